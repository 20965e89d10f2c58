//! A suspend always ends: deadlines both ways, the fence afterwards, stacks over something dead.
//!
//! Traps: a flush or lockfs on a dead backend that hangs for ever; a device left suspended after
//! the change that suspended it has failed.

use crate::rig::{accepted, key, noflush, refused, status, with_deadline, world};
use udm_core::ErrorCode;
use udm_core::lifecycle::{OnTimeout, Request, StatusKind, SuspendOptions};
use udm_testkit::{Io, IoTicket, TestWorld, pattern};
use udm_types::{DeviceId, Nanos, OpSet, Status};

/// A device over `d0`, which does not answer any more, with three writes under way.
fn hanging(world: &mut TestWorld) -> (DeviceId, [IoTicket; 3]) {
    let dm = world.create("t", "0 512 lab d0 0");
    world.lower("d0").hold(OpSet::all());
    let tickets = [0, 8, 16].map(|sector| world.submit(0, dm, Io::write_pattern(sector, 8, 1)));
    world.advance(Nanos::from_secs(1));
    (dm, tickets)
}

#[test]
fn a_suspend_over_a_dead_device_gives_up_and_the_device_runs_on() {
    for noflush in [true, false] {
        let mut world = world();
        let (dm, tickets) = hanging(&mut world);
        let options = SuspendOptions { noflush, ..with_deadline(5, OnTimeout::Resume) };
        let suspend = world.start_suspend(dm, options);
        let during = world.submit(1, dm, Io::write_pattern(64, 8, 1));
        world.advance(Nanos::from_millis(4999));
        assert!(world.answer(suspend).is_none());
        let seen = world.status(dm).suspend.expect("a suspend is under way");
        assert!(seen.draining && seen.noflush == noflush && seen.reason == "test");
        assert_eq!(
            (seen.age, seen.deadline),
            (Nanos::from_millis(4999), Some(Nanos::from_secs(5)))
        );
        assert!(!world.status(dm).suspended, "not before it has drained");
        let gauges = world.gauges(dm);
        assert_eq!((gauges.in_flight, gauges.held), (3, 1));
        world.advance(Nanos::from_millis(1));
        assert_eq!(refused(world.answer(suspend)), ErrorCode::SuspendTimedOut);
        assert_eq!(world.status(dm).suspend, None);
        assert_eq!(world.line_args(dm, StatusKind::Info), "2 2 0 2 2", "presuspend was undone");
        assert_eq!(world.lower("d0").held().len(), 4, "what came meanwhile goes on");
        world.lower("d0").flow();
        world.run();
        for ticket in tickets.into_iter().chain([during]) {
            assert_eq!(status(&mut world, ticket), Status::Ok);
        }
        world.assert_quiet();
    }
}

#[test]
fn on_timeout_fail_ends_the_suspend_and_fences_the_device_until_it_answers() {
    let mut world = world();
    let (dm, tickets) = hanging(&mut world);
    let suspend = world.start_suspend(dm, with_deadline(5, OnTimeout::Fail));
    world.advance(Nanos::from_secs(5));
    accepted(world.answer(suspend));
    for ticket in tickets {
        assert_eq!(status(&mut world, ticket), Status::Timeout);
    }
    assert!(world.status(dm).suspended);
    assert_eq!(world.gauges(dm).in_flight, 0);
    world.resume(dm);
    // The hanging writes may still land; nothing newer may be written before they have.
    assert_eq!(world.io(dm, Io::write_pattern(0, 8, 2)).status, Status::Offline);
    world.lower("d0").flow();
    assert_eq!(world.io(dm, Io::write_pattern(0, 8, 3)).status, Status::Ok);
    assert_eq!(world.io(dm, Io::read(0, 8)).bytes, pattern(0, 8, 3));
    world.assert_quiet();
}

#[test]
fn on_timeout_fail_spares_other_devices_on_the_same_dead_device() {
    let mut world = world();
    let (dm, tickets) = hanging(&mut world);
    let other = world.create("other", "0 512 plain d0 1024");
    let spared = world.submit(0, other, Io::write_pattern(0, 8, 1));
    world.run();
    let suspend = world.start_suspend(dm, with_deadline(5, OnTimeout::Fail));
    world.advance(Nanos::from_secs(5));
    accepted(world.answer(suspend));
    assert!(world.done(spared).is_none(), "it waits on, as long as the device below");
    world.lower("d0").flow();
    world.run();
    assert_eq!(status(&mut world, spared), Status::Ok);
    for ticket in tickets {
        assert_eq!(status(&mut world, ticket), Status::Timeout);
    }
    world.assert_quiet();
}

#[test]
fn on_timeout_fail_reaches_through_a_stack() {
    let mut world = world();
    let below = world.create("below", "0 512 plain d0 0");
    let top = world.create("top", "0 512 plain dm:below 0");
    world.lower("d0").hold(OpSet::all());
    let ticket = world.submit(1, top, Io::write_pattern(0, 8, 1));
    world.run();
    let suspend = world.start_suspend(top, with_deadline(2, OnTimeout::Fail));
    world.advance(Nanos::from_secs(2));
    accepted(world.answer(suspend));
    assert_eq!(status(&mut world, ticket), Status::Timeout);
    assert!(!world.status(below).suspended);
    assert_eq!(world.gauges(below).in_flight, 0);
    world.lower("d0").flow();
    world.resume(top);
    world.assert_quiet();
}

#[test]
fn on_timeout_fail_fails_what_waits_at_a_suspended_device_below() {
    let mut world = world();
    let below = world.create("below", "0 512 plain d0 0");
    let top = world.create("top", "0 512 plain dm:below 0");
    world.suspend(below, true);
    let of_below = world.submit(0, below, Io::write_pattern(64, 8, 1));
    let of_top = world.submit(0, top, Io::write_pattern(0, 8, 1));
    world.run();
    let suspend = world.start_suspend(top, with_deadline(2, OnTimeout::Fail));
    world.advance(Nanos::from_secs(2));
    accepted(world.answer(suspend));
    assert_eq!(status(&mut world, of_top), Status::Timeout);
    assert!(world.done(of_below).is_none(), "it did not come through the suspended device");
    world.resume(below);
    world.resume(top);
    world.run();
    assert_eq!(status(&mut world, of_below), Status::Ok);
    world.assert_quiet();
}

#[test]
fn on_timeout_fail_gives_up_if_a_target_below_keeps_io() {
    let mut world = world();
    let below = world.create("below", "0 512 probe d0 0");
    let top = world.create("top", "0 512 plain dm:below 0");
    world.message(below, 0, &["hold"]).unwrap();
    let ticket = world.submit(0, top, Io::write_pattern(0, 8, 1));
    world.run();
    let suspend = world.start_suspend(top, with_deadline(2, OnTimeout::Fail));
    world.settle();
    assert_eq!(refused(world.answer(suspend)), ErrorCode::SuspendTimedOut);
    assert!(!world.status(top).suspended);
    world.message(below, 0, &["flow"]).unwrap();
    world.run();
    assert_eq!(status(&mut world, ticket), Status::Ok, "nothing was failed in vain");
    world.assert_quiet();
}

#[test]
fn a_resume_over_a_dead_device_puts_its_table_back() {
    let mut world = world();
    let (dm, _) = hanging(&mut world);
    world.load(dm, "0 512 plain d1 0");
    let options = with_deadline(3, OnTimeout::Resume);
    let resume = world.start(|ticket| Request::Resume { device: key(dm), options, ticket });
    world.advance(Nanos::from_secs(3));
    assert_eq!(refused(world.answer(resume)), ErrorCode::SuspendTimedOut);
    let state = world.status(dm);
    assert!(state.inactive_present && !state.suspended, "as before the resume");
    world.lower("d0").flow();
    world.run();
    world.resume(dm);
    assert_eq!(world.io(dm, Io::write_pattern(0, 8, 2)).status, Status::Ok);
    assert_eq!(world.lower("d1").bytes(0, 8), pattern(0, 8, 2));
    assert_eq!(world.lower("d0").open_lanes(), 0, "the old table's device is closed");
    world.assert_quiet();
}

#[test]
fn a_table_loaded_during_a_resume_that_gives_up_stays() {
    let mut world = world();
    let (dm, _) = hanging(&mut world);
    world.load(dm, "0 512 plain d1 0");
    let options = with_deadline(3, OnTimeout::Resume);
    let resume = world.start(|ticket| Request::Resume { device: key(dm), options, ticket });
    world.load(dm, "0 256 plain d2 0");
    world.advance(Nanos::from_secs(3));
    assert_eq!(refused(world.answer(resume)), ErrorCode::SuspendTimedOut);
    assert_eq!(world.lower("d1").open_lanes(), 0, "the table that did not make it is dropped");
    world.lower("d0").flow();
    world.resume(dm);
    assert_eq!(world.status(dm).len_sectors, 256);
    world.assert_quiet();
}

#[test]
fn a_deadline_that_is_not_needed_does_nothing_later() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    let suspend = world.start_suspend(dm, with_deadline(5, OnTimeout::Resume));
    accepted(world.answer(suspend));
    world.advance(Nanos::from_secs(60));
    assert!(world.status(dm).suspended, "the deadline is for the drain, not for the stay");
    let stay = world.status(dm).suspend.expect("suspended");
    assert!(!stay.draining && stay.age == Nanos::from_secs(60) && stay.deadline.is_none());
    world.resume(dm);
    world.assert_quiet();
}

#[test]
fn a_device_above_a_suspended_one_gives_up_too() {
    let mut world = world();
    let below = world.create("below", "0 512 plain d0 0");
    let top = world.create("top", "0 512 plain dm:below 0");
    world.suspend(below, false);
    let ticket = world.submit(0, top, Io::write_pattern(0, 8, 1));
    world.run();
    let suspend = world.start_suspend(top, with_deadline(1, OnTimeout::Resume));
    world.advance(Nanos::from_secs(1));
    assert_eq!(refused(world.answer(suspend)), ErrorCode::SuspendTimedOut);
    // From the top down it works at once.
    world.resume(below);
    world.run();
    assert_eq!(status(&mut world, ticket), Status::Ok);
    for device in [top, below] {
        world.suspend(device, false);
    }
    for device in [below, top] {
        world.resume(device);
    }
    world.assert_quiet();
}

#[test]
fn an_unrefused_noflush_suspend_waits_only_for_what_is_below_the_targets() {
    let mut world = world();
    let dm = world.create("t", "0 256 probe d0 0\n256 256 plain d1 0");
    world.message(dm, 0, &["hold"]).unwrap();
    world.lower("d1").hold(OpSet::all());
    let held = world.submit(0, dm, Io::write_pattern(0, 8, 1));
    let below = world.submit(0, dm, Io::write_pattern(256, 8, 1));
    world.run();
    let suspend = world.start_suspend(dm, noflush());
    assert!(world.answer(suspend).is_none(), "one write is below");
    assert_eq!((world.gauges(dm).in_flight, world.gauges(dm).held), (1, 1));
    world.lower("d1").flow();
    world.run();
    accepted(world.answer(suspend));
    assert_eq!(status(&mut world, below), Status::Ok);
    assert!(world.done(held).is_none());
    world.resume(dm);
    world.run();
    assert_eq!(status(&mut world, held), Status::Ok);
    world.assert_quiet();
}
