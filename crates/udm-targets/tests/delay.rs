//! `delay` beyond the battery: how late each class is, in which order, and what a suspend does to
//! it.
//!
//! Time is the test world's clock, so "5 ms late" is exact and no test waits for real.

use udm_core::lifecycle::{OnTimeout, StatusKind, SuspendOptions};
use udm_testkit::{Io, IoDone, IoTicket, TestWorld};
use udm_types::{BioFlags, DeviceId, Nanos, OpSet};

const READ_MS: u64 = 5;
const WRITE_MS: u64 = 30;
const FLUSH_MS: u64 = 100;

/// Three devices, one for each class.
fn world() -> (TestWorld, DeviceId) {
    let mut world = TestWorld::new(udm_targets::registry(), 2);
    for name in ["d0", "d1", "d2"] {
        world.add_lower(name, 1024);
    }
    let line = format!("0 512 delay d0 0 {READ_MS} d1 8 {WRITE_MS} d2 0 {FLUSH_MS}");
    let device = world.create("t", &line);
    (world, device)
}

#[track_caller]
fn back(world: &mut TestWorld, ticket: IoTicket) -> IoDone {
    world.done(ticket).expect("it has come back")
}

#[test]
fn each_class_goes_to_its_device_as_late_as_it_says() {
    let (mut world, device) = world();
    let cases = [
        (Io::read(0, 8), READ_MS, "d0"),
        (Io::write_pattern(0, 8, 1), WRITE_MS, "d1"),
        (Io::discard(0, 8), WRITE_MS, "d1"),
        (Io::flush(), FLUSH_MS, "d2"),
        (Io::write_pattern(0, 8, 2).with(BioFlags::FUA), WRITE_MS, "d1"),
    ];
    for (io, millis, name) in cases {
        let start = world.now();
        let seen = world.lower(name).log().len();
        let done = world.io(device, io.clone());
        assert!(done.status.is_ok());
        assert_eq!(done.at, start + Nanos::from_millis(millis), "{:?}", io.op);
        assert_eq!(world.lower(name).log().len(), seen + 1, "{:?}", io.op);
    }
    assert_eq!(world.lower("d1").log()[0].sector, 8, "the class's own start is used");
    world.assert_quiet();
}

#[test]
fn a_write_with_preflush_is_late_by_both_delays() {
    let mut world = TestWorld::new(udm_targets::registry(), 1);
    world.add_lower("d0", 64);
    let device = world.create("t", "0 64 delay d0 0 5 d0 0 30 d0 0 100");
    let io = Io::write_pattern(0, 8, 1).with(BioFlags::PREFLUSH);
    let start = world.now();
    let done = world.io(device, io);
    assert_eq!(done.at, start + Nanos::from_millis(FLUSH_MS + WRITE_MS));
    world.assert_quiet();
}

#[test]
fn a_write_whose_preflush_fails_is_not_done() {
    let mut world = TestWorld::new(udm_targets::registry(), 1);
    let disk = world.add_lower("d0", 64);
    let device = world.create("t", "0 64 delay d0 0 5");
    disk.fail_flushes(Some(udm_types::Status::Medium));
    let io = Io::write_pattern(0, 8, 1).with(BioFlags::PREFLUSH);
    assert_eq!(world.io(device, io).status, udm_types::Status::Medium);
    assert!(disk.log().iter().all(|seen| !seen.op.is_write()));
}

#[test]
fn a_delay_of_zero_passes_at_once() {
    let mut world = TestWorld::new(udm_targets::registry(), 1);
    world.add_lower("d0", 64);
    let device = world.create("t", "0 64 delay d0 0 0 d0 0 30");
    let ticket = world.submit(0, device, Io::read(0, 8));
    world.run();
    assert!(back(&mut world, ticket).status.is_ok());
}

#[test]
fn the_status_counts_what_waits_in_each_class_over_all_lanes() {
    let (mut world, device) = world();
    for (lane, io) in [
        (0, Io::read(0, 8)),
        (1, Io::read(8, 8)),
        (0, Io::write_pattern(0, 8, 1)),
        (1, Io::flush()),
        (1, Io::discard(16, 8)),
    ] {
        world.submit(lane, device, io);
    }
    world.run();
    assert_eq!(world.line_args(device, StatusKind::Info), "2 2 1");
    world.advance(Nanos::from_millis(READ_MS));
    assert_eq!(world.line_args(device, StatusKind::Info), "0 2 1");
    world.advance(Nanos::from_millis(WRITE_MS));
    assert_eq!(world.line_args(device, StatusKind::Info), "0 0 1");
    world.settle();
    assert_eq!(world.line_args(device, StatusKind::Info), "0 0 0");
}

#[test]
fn classes_leave_in_order_of_expiry_and_equal_ones_as_they_came() {
    let mut world = TestWorld::new(udm_targets::registry(), 1);
    let disk = world.add_lower("d0", 64);
    let device = world.create("t", "0 64 delay d0 0 5 d0 0 30");
    world.submit(0, device, Io::write_pattern(0, 8, 1));
    world.advance(Nanos::from_millis(25));
    // Due at the same moment as the write, but younger.
    world.submit(0, device, Io::read(8, 8));
    world.run();
    // Due before both writes that follow it.
    world.submit(0, device, Io::write_pattern(16, 8, 1));
    world.submit(0, device, Io::write_pattern(24, 8, 1));
    world.settle();
    let order: Vec<u64> = disk.log().iter().map(|seen| seen.sector).collect();
    assert_eq!(order, [0, 8, 16, 24]);
}

#[test]
fn a_suspend_sends_everything_at_once_in_order_and_undelayed() {
    for noflush in [false, true] {
        let (mut world, device) = world();
        let tickets: Vec<_> = (0..5)
            .map(|index| world.submit(0, device, Io::write_pattern(index * 8, 8, 1)))
            .collect();
        world.run();
        let start = world.now();
        world.suspend(device, noflush);
        assert_eq!(world.line_args(device, StatusKind::Info), "0 0 0");
        for ticket in tickets {
            assert_eq!(back(&mut world, ticket).at, start, "no clock was needed");
        }
        let order: Vec<u64> = world.lower("d1").log().iter().map(|seen| seen.sector).collect();
        assert_eq!(order, [8, 16, 24, 32, 40]);
        world.resume(device);
        world.assert_quiet();
    }
}

#[test]
fn after_a_resume_the_delay_is_whole_again_although_an_old_timer_is_set() {
    let (mut world, device) = world();
    world.submit(0, device, Io::write_pattern(0, 8, 1));
    world.advance(Nanos::from_millis(10));
    world.suspend(device, true);
    world.resume(device);
    // The timer of the first write is still set for 20 ms from now.
    let start = world.now();
    let done = world.io(device, Io::write_pattern(8, 8, 1));
    assert_eq!(done.at, start + Nanos::from_millis(WRITE_MS));
    world.assert_quiet();
}

#[test]
fn a_suspend_that_is_given_up_delays_again() {
    let (mut world, device) = world();
    world.lower("d1").hold(OpSet::WRITE);
    let ticket = world.submit(0, device, Io::write_pattern(0, 8, 1));
    world.run();
    let options = SuspendOptions {
        deadline: Some(Nanos::from_millis(500)),
        on_timeout: OnTimeout::Resume,
        ..SuspendOptions::default()
    };
    let suspend = world.start_suspend(device, options);
    assert!(world.answer(suspend).is_none(), "the write hangs below");
    world.advance(Nanos::from_millis(500));
    assert!(world.answer(suspend).is_some_and(|answer| answer.is_err()));
    world.lower("d1").flow();
    world.run();
    assert!(back(&mut world, ticket).status.is_ok());
    let start = world.now();
    let done = world.io(device, Io::read(0, 8));
    assert_eq!(done.at, start + Nanos::from_millis(READ_MS));
    world.assert_quiet();
}

#[test]
fn a_thousand_waiting_bios_set_one_timer() {
    let (mut world, device) = world();
    for index in 0..1000 {
        world.submit(0, device, Io::read(index % 64 * 8, 8));
    }
    world.run();
    let deadline = world.now() + Nanos::from_millis(READ_MS);
    assert_eq!(world.next_deadline(), Some(deadline));
    world.advance(Nanos::from_millis(READ_MS));
    assert_eq!(world.pending(), 0);
    assert_eq!(world.next_deadline(), None, "no timer is left");
}
