//! What the tests share: a world with three disks, tables over them, and words for its state.

use udm_core::lifecycle::StatusKind;
use udm_testkit::{Io, IoDone, IoTicket, MemLower, TestWorld};
use udm_types::{DeviceId, OpSet, Status};

/// Sectors of the mapped device.
pub(crate) const LEN: u64 = 512;

/// A world of so many lanes with disks d0, d1 and d2, and a device of this table.
pub(crate) fn world(lanes: u16, args: &str) -> (TestWorld, DeviceId) {
    let mut world = TestWorld::new(udm_targets::registry(), lanes);
    for name in ["d0", "d1", "d2"] {
        world.add_lower(name, 2 * LEN);
    }
    let device = world.create("t", &line(args));
    (world, device)
}

/// A table line.
pub(crate) fn line(args: &str) -> String {
    format!("0 {LEN} multipath {args}")
}

/// One group of paths in bio mode.
pub(crate) fn one_group(features: &str, paths: &str) -> String {
    let count = paths.split(' ').count();
    let features = features.split_whitespace().chain(["queue_mode", "bio"]);
    let features: Vec<&str> = features.collect();
    let (words, features) = (features.len(), features.join(" "));
    format!("{words} {features} 0 1 1 round-robin 0 {count} 0 {paths}")
}

/// Two groups of one path each in bio mode.
pub(crate) const TWO_GROUPS: &str =
    "2 queue_mode bio 0 2 1 round-robin 0 1 0 d0 round-robin 0 1 0 d1";

/// A disk.
pub(crate) fn disk(world: &TestWorld, name: &str) -> MemLower {
    world.lower(name).clone()
}

/// Everything on a disk fails from now on.
pub(crate) fn kill(world: &TestWorld, name: &str, status: Status) {
    let disk = disk(world, name);
    disk.fail(0..u64::MAX, OpSet::all(), status);
    disk.fail_flushes(Some(status));
}

/// The status of the device.
pub(crate) fn info(world: &mut TestWorld, device: DeviceId) -> String {
    world.line_args(device, StatusKind::Info)
}

/// The table of the device.
pub(crate) fn table(world: &mut TestWorld, device: DeviceId) -> String {
    world.line_args(device, StatusKind::Table)
}

/// Sends a message that must be accepted.
#[track_caller]
pub(crate) fn tell(world: &mut TestWorld, device: DeviceId, words: &str) {
    let words: Vec<&str> = words.split(' ').collect();
    if let Err(error) = world.message(device, 0, &words) {
        panic!("{words:?}: {error}");
    }
    world.run();
}

/// The events so far.
pub(crate) fn events(world: &mut TestWorld, device: DeviceId) -> u32 {
    world.status(device).event_nr
}

/// A number of the report, by its key, on the line that begins with these words.
#[track_caller]
pub(crate) fn reported(world: &mut TestWorld, device: DeviceId, line: &str, key: &str) -> String {
    let text = world.message(device, 0, &["paths"]).expect("a report").expect("with text");
    let found = text.lines().find(|found| format!("{found} ").starts_with(&format!("{line} ")));
    let words: Vec<&str> =
        found.unwrap_or_else(|| panic!("{line} in\n{text}")).split(' ').collect();
    let at = words.iter().position(|&word| word == key).expect("the key is there");
    words[at + 1].to_owned()
}

/// The I/O has come back.
#[track_caller]
pub(crate) fn back(world: &mut TestWorld, ticket: IoTicket) -> IoDone {
    world.done(ticket).expect("it has come back")
}

/// A write of one slot of 8 sectors.
pub(crate) fn write(slot: u64) -> Io {
    Io::write_pattern(slot * 8, 8, 1)
}

/// The first sectors of the bios a disk has seen.
pub(crate) fn seen(world: &TestWorld, name: &str) -> Vec<u64> {
    world.lower(name).log().iter().map(|seen| seen.sector).collect()
}
