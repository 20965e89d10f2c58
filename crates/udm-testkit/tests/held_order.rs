//! The order of held I/O: what is pushed back returns to its place, ahead of what came later.
//!
//! All held I/O of a lane sits in one queue. These tests push bios back in the worst order, twice,
//! and look at the order in which they reach the device at last. The `probe` target does the
//! pushing.

use udm_core::Registry;
use udm_core::lifecycle::SuspendOptions;
use udm_testkit::{Io, IoTicket, MemLower, TestWorld, probe_type};
use udm_types::{DeviceId, OpSet, Status};

fn world() -> (TestWorld, MemLower, DeviceId) {
    let mut world = TestWorld::new(Registry::new([probe_type()]), 1);
    let disk = world.add_lower("d0", 1024);
    let device = world.create("t", "0 1024 probe d0 0");
    (world, disk, device)
}

fn writes(world: &mut TestWorld, device: DeviceId, slots: std::ops::Range<u64>) -> Vec<IoTicket> {
    slots.map(|slot| world.submit(0, device, Io::write_pattern(slot * 8, 8, 1))).collect()
}

fn order(disk: &MemLower) -> Vec<u64> {
    disk.log().iter().map(|seen| seen.sector / 8).collect()
}

/// A noflush suspend during which everything under way is pushed back, newest first.
fn push_everything_back(world: &mut TestWorld, disk: &MemLower, device: DeviceId) {
    assert!(world.message(device, 0, &["return"]).is_ok());
    let options = SuspendOptions { noflush: true, ..SuspendOptions::default() };
    let suspend = world.start_suspend(device, options);
    assert!(world.answer(suspend).is_none(), "the disk holds the writes");
    disk.release_newest_first();
    world.run();
    assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
}

#[test]
fn pushed_back_bios_run_in_the_order_of_submission_ahead_of_newer_ones() {
    let (mut world, disk, device) = world();
    disk.hold(OpSet::all());
    let mut tickets = writes(&mut world, device, 0..6);
    world.run();
    push_everything_back(&mut world, &disk, device);
    tickets.extend(writes(&mut world, device, 6..9));
    world.run();
    disk.clear_log();
    disk.flow();
    world.resume(device);
    world.settle();
    assert_eq!(order(&disk), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    for ticket in tickets {
        assert!(world.done(ticket).is_some_and(|done| done.status.is_ok()));
    }
    world.assert_quiet();
}

#[test]
fn a_second_push_back_finds_the_same_places() {
    let (mut world, disk, device) = world();
    disk.hold(OpSet::all());
    writes(&mut world, device, 0..6);
    world.run();
    push_everything_back(&mut world, &disk, device);
    writes(&mut world, device, 6..9);
    world.run();
    // Back to the disk, which still holds; and once more.
    world.resume(device);
    assert_eq!(disk.held().len(), 9);
    push_everything_back(&mut world, &disk, device);
    writes(&mut world, device, 9..11);
    world.run();
    disk.clear_log();
    disk.flow();
    world.resume(device);
    world.settle();
    assert_eq!(order(&disk), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(world.pending(), 0);
}

#[test]
fn bios_kept_by_a_target_return_ahead_of_those_at_the_gate() {
    let (mut world, disk, device) = world();
    assert!(world.message(device, 0, &["hold"]).is_ok());
    writes(&mut world, device, 0..4);
    world.run();
    assert_eq!(world.line_args(device, udm_core::lifecycle::StatusKind::Info), "4");
    world.suspend(device, true);
    writes(&mut world, device, 4..6);
    world.run();
    assert_eq!(world.census().held, 6);
    world.swap_suspended(device, "0 1024 probe d0 0");
    world.settle();
    assert_eq!(order(&disk), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn growing_and_shrinking_fail_only_what_lies_beyond_the_new_end() {
    let (mut world, disk, device) = world();
    disk.hold(OpSet::all());
    let inside = world.submit(0, device, Io::write_pattern(0, 8, 1));
    let beyond = world.submit(0, device, Io::write_pattern(1016, 8, 1));
    let across = world.submit(0, device, Io::write_pattern(504, 16, 1));
    world.run();
    push_everything_back(&mut world, &disk, device);
    let late = world.submit(0, device, Io::read(512, 8));
    disk.flow();
    world.swap_suspended(device, "0 512 probe d0 0");
    world.settle();
    let mut ok = |ticket| world.done(ticket).expect("it comes back").status.is_ok();
    assert_eq!([ok(inside), ok(beyond), ok(across), ok(late)], [true, false, false, false]);
    world.swap(device, "0 1024 probe d0 0", true);
    assert!(world.io(device, Io::read(1016, 8)).status.is_ok());
    world.assert_quiet();
}

#[test]
fn a_push_back_is_kept_under_noflush_only() {
    let (mut world, disk, device) = world();
    assert!(world.message(device, 0, &["insist"]).is_ok());
    assert_eq!(world.io(device, Io::write_pattern(0, 8, 1)).status, Status::IoErr);
    for noflush in [false, true] {
        disk.hold(OpSet::all());
        let ticket = world.submit(0, device, Io::write_pattern(8, 8, 1));
        let flush = world.submit(0, device, Io::flush());
        world.run();
        let options = SuspendOptions { noflush, ..SuspendOptions::default() };
        let suspend = world.start_suspend(device, options);
        disk.flow();
        world.run();
        assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
        world.swap_suspended(device, "0 1024 probe d0 0");
        world.settle();
        let wanted = if noflush { Status::Ok } else { Status::IoErr };
        for ticket in [ticket, flush] {
            assert_eq!(world.done(ticket).map(|done| done.status), Some(wanted));
        }
        assert!(world.message(device, 0, &["insist"]).is_ok());
    }
    world.assert_quiet();
}

#[test]
fn a_flushing_suspend_waits_for_what_a_target_kept() {
    let (mut world, disk, device) = world();
    assert!(world.message(device, 0, &["hold"]).is_ok());
    let tickets = writes(&mut world, device, 0..4);
    disk.hold(OpSet::all());
    world.run();
    assert_eq!(disk.held().len(), 0, "the target keeps them");
    let suspend = world.start_suspend(device, SuspendOptions::default());
    assert_eq!(disk.held().len(), 4, "presuspend has let go of them");
    assert!(world.answer(suspend).is_none());
    disk.flow();
    world.run();
    assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
    for ticket in tickets {
        assert!(world.done(ticket).is_some_and(|done| done.status.is_ok()), "done before resume");
    }
    world.resume(device);
    world.assert_quiet();
}
