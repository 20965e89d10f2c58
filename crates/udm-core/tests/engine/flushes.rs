//! Flush fan-out, pre-flush and FUA over tables of several devices.
//!
//! Traps: a flush that is advertised and does nothing; one device of several that is forgotten.

use crate::rig::{status, world, writes};
use udm_testkit::{Io, TestWorld};
use udm_types::{BioFlags, Op, OpSet, Status};

const THREE: &str = "0 64 plain d0 0\n64 64 plain d1 0\n128 64 plain d0 64\n192 64 plain d1 64";

fn flushes(world: &TestWorld) -> [usize; 3] {
    ["d0", "d1", "d2"].map(|name| world.lower(name).flushes())
}

#[test]
fn a_flush_goes_to_each_distinct_device_once() {
    let mut world = world();
    let dm = world.create("t", THREE);
    assert_eq!(world.io_on(1, dm, Io::flush()).status, Status::Ok);
    assert_eq!(flushes(&world), [1, 1, 0]);
    world.assert_quiet();
}

#[test]
fn a_flush_goes_through_every_target_that_wants_to_see_it() {
    let mut world = world();
    let dm = world.create("t", "0 64 lab d0 0 flush=2\n64 64 plain d1 0\n128 64 lab d2 0 flush=0");
    assert_eq!(world.io(dm, Io::flush()).status, Status::Ok);
    assert_eq!(flushes(&world), [2, 1, 0], "as many copies as each target asks for");
    world.assert_quiet();
}

#[test]
fn a_flush_with_nothing_to_flush_succeeds() {
    let mut world = world();
    let dm = world.create("t", "0 64 lab d0 0 flush=0");
    assert_eq!(world.io(dm, Io::flush()).status, Status::Ok);
    assert_eq!(flushes(&world), [0, 0, 0]);
    world.assert_quiet();
}

#[test]
fn a_flush_fails_if_one_device_fails_and_again_until_it_is_healed() {
    let mut world = world();
    let dm = world.create("t", THREE);
    world.lower("d1").fail_flushes(Some(Status::Medium));
    for _ in 0..2 {
        assert_eq!(world.io(dm, Io::flush()).status, Status::Medium);
    }
    world.lower("d1").heal();
    assert_eq!(world.io(dm, Io::flush()).status, Status::Ok);
    assert_eq!(flushes(&world), [3, 3, 0], "the healthy device is flushed each time");
    world.assert_quiet();
}

#[test]
fn a_flush_waits_for_all_devices() {
    let mut world = world();
    let dm = world.create("t", THREE);
    for name in ["d0", "d1"] {
        world.lower(name).hold(OpSet::FLUSH);
    }
    let ticket = world.submit(0, dm, Io::flush());
    world.run();
    for name in ["d1", "d0"] {
        assert!(world.done(ticket).is_none(), "{name} has not answered");
        world.lower(name).flow();
        world.run();
    }
    assert_eq!(status(&mut world, ticket), Status::Ok);
    world.assert_quiet();
}

#[test]
fn a_preflush_reaches_every_device_before_the_data_goes_anywhere() {
    let mut world = world();
    let dm = world.create("t", THREE);
    for name in ["d0", "d1"] {
        world.lower(name).hold(OpSet::FLUSH);
    }
    let io = Io::write_pattern(32, 64, 1).with(BioFlags::PREFLUSH | BioFlags::FUA);
    let ticket = world.submit(0, dm, io);
    world.run();
    for name in ["d0", "d1"] {
        assert!(writes(world.lower("d0")).is_empty() && writes(world.lower("d1")).is_empty());
        world.lower(name).flow();
        world.run();
    }
    assert_eq!(status(&mut world, ticket), Status::Ok);
    for name in ["d0", "d1"] {
        let log = world.lower(name).log();
        let data = log.iter().find(|seen| seen.op == Op::Write).expect("a piece for each");
        assert_eq!(data.flags, BioFlags::FUA, "flushed already, still durable when done");
    }
    assert_eq!(flushes(&world), [1, 1, 0]);
    world.assert_quiet();
}

#[test]
fn a_preflush_rides_along_where_there_is_one_device() {
    let mut world = world();
    let dm = world.create("t", "0 64 plain d0 0\n64 64 plain d0 128");
    let io = Io::write_pattern(0, 8, 1).with(BioFlags::PREFLUSH);
    assert_eq!(world.io(dm, io).status, Status::Ok);
    let log = world.lower("d0").log();
    assert_eq!(log.len(), 1);
    assert!(log[0].op == Op::Write && log[0].flags == BioFlags::PREFLUSH);
    world.assert_quiet();
}

#[test]
fn data_is_not_written_after_a_preflush_that_failed() {
    let mut world = world();
    let dm = world.create("t", THREE);
    world.lower("d1").fail_flushes(Some(Status::NoSpace));
    let io = Io::write_pattern(0, 8, 1).with(BioFlags::PREFLUSH);
    assert_eq!(world.io(dm, io).status, Status::NoSpace);
    assert!(writes(world.lower("d0")).is_empty());
    world.assert_quiet();
}

#[test]
fn a_preflush_that_is_pushed_back_is_done_again_before_the_data() {
    let mut world = world();
    let dm = world.create("t", "0 64 probe d0 0\n64 64 probe d1 0");
    world.message(dm, 64, &["hold"]).unwrap();
    let io = Io::write_pattern(0, 8, 1).with(BioFlags::PREFLUSH);
    let ticket = world.submit(0, dm, io);
    world.run();
    world.swap(dm, "0 64 probe d2 0\n64 64 probe d1 0", true);
    world.run();
    assert_eq!(status(&mut world, ticket), Status::Ok);
    assert_eq!(writes(world.lower("d2")), [0]);
    assert!(flushes(&world)[2] >= 1 && flushes(&world)[1] >= 1);
    let write = world.lower("d2").log().iter().find(|seen| seen.op == Op::Write).unwrap().event;
    for name in ["d1", "d2"] {
        let log = world.lower(name).log();
        let flushed = log.iter().any(|seen| seen.op == Op::Flush && seen.completed < write);
        assert!(flushed, "{name} is flushed before the data");
    }
    world.assert_quiet();
}

#[test]
fn fua_stays_on_every_piece() {
    let mut world = world();
    let dm = world.create("t", THREE);
    let io = Io::write_pattern(0, 256, 1).with(BioFlags::FUA);
    assert_eq!(world.io(dm, io).status, Status::Ok);
    for name in ["d0", "d1"] {
        let log = world.lower(name).log();
        assert_eq!(log.len(), 2);
        assert!(log.iter().all(|seen| seen.flags == BioFlags::FUA));
    }
    world.assert_quiet();
}
