//! The message `paths`: every path's numbers, for programs (`udm paths` reads it).
//!
//! One thing a line, words separated by one space; after the first words come pairs of key and
//! value, keys always in the same order, new ones at the end. docs/targets/multipath.md has the
//! whole list. Groups and paths count from 1, as in messages; 0 is none.
//!
//! Called with the counters of all lanes. It changes nothing, so it is answered at any time.
//!
//! The tricky case is the last error: each lane remembers its own, and the newest is shown.

use super::config::{MultipathConfig, QueueMode};
use super::counters::{
    CHOSEN, CURRENT, DONE, ERRORS, EXPIRED, HELD, NEXT, QUEUEING, Snapshot, TIMEOUT_SECS, VALID,
};
use super::status::group_state;
use super::table::put;
use alloc::string::String;
use udm_types::Status;

pub(super) fn print(config: &MultipathConfig, snapshot: &Snapshot<'_>) -> String {
    let mut text = String::new();
    let mode = match config.features.queue_mode {
        QueueMode::Bio => "bio",
        QueueMode::Request => "rq",
    };
    let head = [
        ("queueing", snapshot.get(QUEUEING)),
        ("timeout_secs", snapshot.get(TIMEOUT_SECS)),
        ("expired", snapshot.get(EXPIRED)),
        ("held", snapshot.get(HELD)),
        ("valid", snapshot.get(VALID)),
        ("lanes", snapshot.lanes() as u64),
        ("groups", config.groups.len() as u64),
        ("paths", config.paths.len() as u64),
        ("current", snapshot.get(CURRENT)),
        ("next", snapshot.get(NEXT)),
    ];
    put(&mut text, format_args!("multipath mode {mode}"));
    for (key, value) in head {
        put(&mut text, format_args!(" {key} {value}"));
    }
    for (number, group) in config.groups.iter().enumerate() {
        let state = group_state(snapshot, number);
        let bypassed = snapshot.get(config.layout.bypassed(number));
        put(
            &mut text,
            format_args!(
                "\ngroup {} selector {} bypassed {bypassed} state {state} paths {}",
                number + 1,
                group.selector.name(),
                group.count
            ),
        );
    }
    for path in 0..config.paths.len() {
        put_path(config, snapshot, path, &mut text);
    }
    text
}

fn put_path(config: &MultipathConfig, snapshot: &Snapshot<'_>, path: usize, text: &mut String) {
    let group = config.paths[path].group;
    let view = snapshot.path(path, group);
    let letter = if snapshot.get(config.layout.active(path)) != 0 { 'A' } else { 'F' };
    let (error, error_at) = view.last_error().unwrap_or((0, 0));
    let device = config.paths[path].device.shown.replace('\\', "\\\\").replace(' ', "\\ ");
    put(text, format_args!("\npath {} group {} device {device}", path + 1, group + 1));
    put(
        text,
        format_args!(
            " state {letter} fail_count {} ios {} errors {} in_flight {}",
            snapshot.get(config.layout.fail_count(path)),
            view.sum(DONE),
            view.sum(ERRORS),
            view.in_flight()
        ),
    );
    put(text, format_args!(" last_error {} last_error_at {error_at}", name_of(error)));
    put(text, format_args!(" last_chosen_at {} buckets", view.last_chosen_at().unwrap_or(0)));
    for count in view.histogram() {
        put(text, format_args!(" {count}"));
    }
    for lane in view.lanes().filter(|lane| lane.get(CHOSEN) > 0) {
        let (chosen, done) = (lane.get(CHOSEN), lane.get(DONE));
        put(
            text,
            format_args!(
                "\nlane {} {} ios {done} errors {} in_flight {}",
                path + 1,
                lane.lane(),
                lane.get(ERRORS),
                chosen.saturating_sub(done)
            ),
        );
    }
}

/// Errors, with their words; the place counts from 1.
const ERRORS_NAMED: [(Status, &str); 15] = [
    (Status::IoErr, "io"),
    (Status::Transport, "transport"),
    (Status::Timeout, "timeout"),
    (Status::Offline, "offline"),
    (Status::Resource, "resource"),
    (Status::DevResource, "dev-resource"),
    (Status::Again, "again"),
    (Status::Invalid, "invalid"),
    (Status::ReadOnly, "read-only"),
    (Status::NotSupported, "not-supported"),
    (Status::NoSpace, "no-space"),
    (Status::Target, "target"),
    (Status::Reservation, "reservation"),
    (Status::Medium, "medium"),
    (Status::Protection, "protection"),
];

/// The number a lane counts an error as; 0 for none.
pub(super) fn code_of(status: Status) -> u64 {
    let place = ERRORS_NAMED.iter().position(|&(known, _)| known == status);
    place.map_or(0, |place| place as u64 + 1)
}

/// The word for an error's number.
pub(super) fn name_of(code: u64) -> &'static str {
    let place = usize::try_from(code).ok().and_then(|code| code.checked_sub(1));
    place.and_then(|place| ERRORS_NAMED.get(place)).map_or("-", |&(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::{code_of, name_of};
    use udm_types::Status;

    #[test]
    fn errors_have_words() {
        assert_eq!(name_of(code_of(Status::Transport)), "transport");
        assert_eq!(name_of(code_of(Status::Protection)), "protection");
        assert_eq!(name_of(code_of(Status::Ok)), "-");
        assert_eq!(name_of(99), "-");
    }
}
