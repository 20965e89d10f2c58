//! The message `explain`: why I/O goes where it goes, for people.
//!
//! First what holds for the device (mode, queueing and its limit, held I/O, the current group),
//! then each group with its selector, then each path with its share of the I/Os so far and, for
//! every lane that has used it, what the selector knows of it. A selector that learns says its
//! terms as they were at its last choice.
//!
//! Called with the counters of all lanes; it changes nothing. The wording is not an interface; for
//! programs there is `report.rs`.
//!
//! The tricky case is the share: it is counted since the table was loaded, so it lags behind what a
//! selector does now. The terms beside it are of now.

use super::config::{MultipathConfig, QueueMode};
use super::counters::{
    CHOSEN, CURRENT, EXPIRED, HELD, NEXT, PathView, QUEUEING, Snapshot, TIMEOUT_SECS, VALID,
};
use super::report::name_of;
use super::status::group_state;
use super::table::put;
use alloc::string::String;

pub(super) fn print(config: &MultipathConfig, snapshot: &Snapshot<'_>) -> String {
    let mut text = String::new();
    put_device(config, snapshot, &mut text);
    for (number, group) in config.groups.iter().enumerate() {
        let state = match group_state(snapshot, number) {
            'A' => "current",
            'D' => "bypassed: used only if no other group has an active path",
            _ if snapshot.get(NEXT) == number as u64 + 1 => "next",
            _ => "stands by",
        };
        put(&mut text, format_args!("\ngroup {} ({}): {state}", number + 1, group.selector.name()));
        let views = || {
            let paths = group.first..group.first + group.count;
            paths.map(|path| snapshot.path(path, number))
        };
        let total: u64 = views().map(|view| view.sum(CHOSEN)).sum();
        let newest = views().filter_map(|view| view.last_chosen_at()).max();
        for (place, view) in views().enumerate() {
            put_path(config, snapshot, group.first + place, total, &mut text);
            if newest.is_some() && view.last_chosen_at() == newest {
                text.push_str(", chosen last");
            }
            put_lanes(config, number, place, &view, &mut text);
        }
    }
    text
}

fn put_device(config: &MultipathConfig, snapshot: &Snapshot<'_>, text: &mut String) {
    let mode = match config.features.queue_mode {
        QueueMode::Bio => "bio",
        QueueMode::Request => "request",
    };
    let queueing = snapshot.get(QUEUEING) != 0;
    let without = if queueing { "I/O waits" } else { "I/O fails" };
    put(text, format_args!("{mode} mode; without a path {without}"));
    match snapshot.get(TIMEOUT_SECS) {
        0 if queueing => text.push_str(" without limit"),
        0 => {}
        secs => put(text, format_args!(" (waiting is limited to {secs} s)")),
    }
    match snapshot.get(EXPIRED) {
        0 => {}
        times => put(text, format_args!("; the limit was reached {times} times")),
    }
    let (valid, all) = (snapshot.get(VALID), config.paths.len());
    put(text, format_args!("; {valid} of {all} paths active"));
    match snapshot.get(HELD) {
        0 => {}
        held => put(text, format_args!("; {held} bios wait for a path")),
    }
    if snapshot.get(CURRENT) == 0 {
        text.push_str("; no group is chosen until the next I/O");
    }
}

fn put_path(
    config: &MultipathConfig,
    snapshot: &Snapshot<'_>,
    path: usize,
    total: u64,
    text: &mut String,
) {
    let view = snapshot.path(path, config.paths[path].group);
    let active = snapshot.get(config.layout.active(path)) != 0;
    let state = if active { "active" } else { "failed" };
    let chosen = view.sum(CHOSEN);
    let share = chosen.saturating_mul(100).checked_div(total).unwrap_or(0);
    put(
        text,
        format_args!(
            "\n  path {} {}: {state}, chosen {chosen} times ({share} %), {} in flight",
            path + 1,
            config.paths[path].device.shown,
            view.in_flight()
        ),
    );
    let fails = snapshot.get(config.layout.fail_count(path));
    if fails > 0 {
        put(text, format_args!(", failed {fails} times"));
    }
    if let Some((code, _)) = view.last_error() {
        put(text, format_args!(", last error {}", name_of(code)));
    }
}

/// What the selector knows of a path, lane by lane.
fn put_lanes(
    config: &MultipathConfig,
    group: usize,
    place: usize,
    view: &PathView<'_>,
    text: &mut String,
) {
    let selector = &config.groups[group].selector;
    for lane in view.lanes().filter(|lane| lane.get(CHOSEN) > 0) {
        let known = selector.explain(place, &lane.words());
        if !known.is_empty() {
            put(text, format_args!("\n    lane {}: {known}", lane.lane()));
        }
    }
}
