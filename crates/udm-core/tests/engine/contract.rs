//! What happens when somebody breaks a rule: a target, a submitter, a lower device.

use crate::rig::world;
use udm_testkit::{Io, IoDone, TestWorld};
use udm_types::{BioFlags, DeviceId, QueueLimits, Status};

fn lab(world: &mut TestWorld, mood: &str) -> (DeviceId, IoDone) {
    let dm = world.create("t", "0 512 lab d0 0");
    world.message(dm, 0, &[mood]).unwrap();
    let done = world.io_on(1, dm, Io::write_pattern(0, 8, 1));
    world.message(dm, 0, &["good"]).unwrap();
    (dm, done)
}

#[test]
fn a_dropped_bio_comes_back_with_an_error_and_is_counted() {
    let mut world = world();
    let (dm, done) = lab(&mut world, "drop");
    assert_eq!(done.status, Status::IoErr);
    assert_eq!(world.census().bios_lost, 1);
    assert_eq!(world.gauges(dm).in_flight, 0, "the gate has not lost count");
    world.suspend(dm, false);
    world.resume(dm);
    assert_eq!(world.io(dm, Io::write_pattern(0, 8, 1)).status, Status::Ok);
}

#[test]
fn a_dropped_piece_fails_its_bio_once() {
    let mut world = world();
    let dm = world.create("t", "0 64 lab d0 0\n64 64 plain d1 0");
    world.message(dm, 0, &["drop"]).unwrap();
    assert_eq!(world.io(dm, Io::write_pattern(32, 64, 1)).status, Status::IoErr);
    assert_eq!((world.census().bios_lost, world.census().parents), (1, 0));
}

#[test]
fn a_target_that_sends_a_bio_to_its_own_device_loses_only_that_bio() {
    let mut world = world();
    let (dm, done) = lab(&mut world, "loop");
    assert_eq!(done.status, Status::IoErr);
    assert_eq!(world.gauges(dm).contract_breaches, 1);
    assert_eq!(world.io(dm, Io::write_pattern(0, 8, 1)).status, Status::Ok);
    assert_eq!(world.census().in_flight, 0);
}

#[test]
fn ranges_beyond_the_end_are_refused_by_the_core_however_large() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    for io in [
        Io::read(512, 1),
        Io::read(511, 2),
        Io::read(u64::MAX, 1),
        Io::discard(0, u64::MAX),
        Io::write_zeroes(u64::MAX - 1, 7),
        Io::write_pattern(513, 1, 1).with(BioFlags::PREFLUSH),
    ] {
        let shown = format!("{:?} {}+{}", io.op, io.sector, io.len_sectors);
        assert_eq!(world.io(dm, io).status, Status::IoErr, "{shown}");
    }
    assert!(world.lower("d0").log().is_empty());
    world.assert_quiet();
}

#[test]
fn io_that_cuts_a_block_is_refused() {
    let mut world = world();
    let limits = QueueLimits { logical_block_bytes: 4096, ..QueueLimits::default() };
    world.add_lower_with("big", 512, limits);
    let dm = world.create("t", "0 512 plain big 0");
    for io in [Io::read(4, 8), Io::read(0, 4), Io::write_pattern(8, 12, 1), Io::discard(1, 8)] {
        assert_eq!(world.io(dm, io).status, Status::Invalid);
    }
    assert_eq!(world.io(dm, Io::write_pattern(8, 16, 1)).status, Status::Ok);
    world.assert_quiet();
}

#[test]
fn a_device_without_a_table_fails_io_and_does_not_keep_it() {
    let mut world = world();
    let dm = world.create_empty("t");
    assert_eq!(world.io(dm, Io::read(0, 8)).status, Status::IoErr);
    assert_eq!(world.io(dm, Io::flush()).status, Status::IoErr);
    world.assert_quiet();
}

#[test]
fn empty_reads_and_writes_succeed_and_reach_nobody() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    assert_eq!(world.io(dm, Io::read(0, 0)).status, Status::Ok);
    assert_eq!(world.io(dm, Io::write(512, Vec::new())).status, Status::Ok);
    assert!(world.lower("d0").log().is_empty());
    let flush = Io::write(0, Vec::new()).with(BioFlags::PREFLUSH);
    assert_eq!(world.io(dm, flush).status, Status::Ok);
    assert_eq!(world.lower("d0").flushes(), 1, "an empty write with a pre-flush is a flush");
    world.assert_quiet();
}
