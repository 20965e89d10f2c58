//! The status (INFO) of `multipath`, from the counters of all lanes.
//!
//! ```text
//! 2 QUEUE_IO PG_INIT_COUNT 0 #GROUPS GROUP
//!     { D|A|E SELECTOR_STATUS #PATHS #PATH_WORDS { DEVICE A|F FAIL_COUNT {WORD} } }
//! ```
//!
//! QUEUE_IO is 1 until the first path is chosen; without hardware handlers nothing sets it again,
//! and PG_INIT_COUNT stays 0. A group is D if it is bypassed, else A if it is the current one, else
//! E. The text ends with a space, as in the kernel.
//!
//! The tricky case is an inactive table: no lane serves it, so it is shown as if just made.

use super::config::MultipathConfig;
use super::counters::{CHOSE, CURRENT, Snapshot};
use super::table::{put, shown_group};
use alloc::string::String;

pub(super) fn print(config: &MultipathConfig, snapshot: &Snapshot<'_>) -> String {
    let layout = config.layout;
    let mut text = String::new();
    let queue_io = u8::from(snapshot.get(CHOSE) == 0);
    let shown = shown_group(config, snapshot);
    put(&mut text, format_args!("2 {queue_io} 0 0 {} {shown} ", config.groups.len()));
    for (number, group) in config.groups.iter().enumerate() {
        let state = group_state(snapshot, number);
        put(&mut text, format_args!("{state} {}", group.selector.own_words()));
        put(&mut text, format_args!("{} {} ", group.count, group.selector.info_words()));
        for (place, path) in config.paths_of(group).iter().enumerate() {
            let index = group.first + place;
            let active = !snapshot.is_live() || snapshot.get(layout.active(index)) != 0;
            let letter = if active { 'A' } else { 'F' };
            let fails = snapshot.get(layout.fail_count(index));
            put(&mut text, format_args!("{} {letter} {fails} ", path.device.shown));
            let view = snapshot.path(index, number);
            group.selector.print_info(place, &view, &mut text);
        }
    }
    text
}

/// The letter of a group.
pub(super) fn group_state(snapshot: &Snapshot<'_>, group: usize) -> char {
    if snapshot.get(snapshot.layout.bypassed(group)) != 0 {
        'D'
    } else if snapshot.get(CURRENT) == group as u64 + 1 {
        'A'
    } else {
        'E'
    }
}
