//! Changes that meet: a resume ends a suspend, others queue, askers go away, targets refuse.

use crate::rig::{accepted, key, noflush, refused, status, world};
use udm_core::ErrorCode;
use udm_core::lifecycle::{Reply, Request, StatusKind};
use udm_testkit::{Io, IoTicket, TestWorld};
use udm_types::{DeviceId, OpSet, Status};

fn hanging(world: &mut TestWorld) -> (DeviceId, IoTicket) {
    let dm = world.create("t", "0 512 lab d0 0");
    world.lower("d0").hold(OpSet::all());
    let ticket = world.submit(0, dm, Io::write_pattern(0, 8, 1));
    world.run();
    (dm, ticket)
}

fn resume(dm: DeviceId) -> impl FnOnce(u64) -> Request {
    move |ticket| Request::Resume { device: key(dm), options: noflush(), ticket }
}

#[test]
fn a_resume_ends_a_suspend_that_cannot_finish() {
    let mut world = world();
    let (dm, ticket) = hanging(&mut world);
    let suspend = world.start_suspend(dm, noflush());
    let during = world.submit(1, dm, Io::write_pattern(8, 8, 1));
    world.run();
    let resume = world.start(resume(dm));
    assert_eq!(refused(world.answer(suspend)), ErrorCode::SuspendCancelled);
    accepted(world.answer(resume));
    assert_eq!(world.status(dm).suspend, None);
    assert_eq!(world.lower("d0").held().len(), 2, "the device runs as before");
    world.lower("d0").flow();
    world.run();
    for ticket in [ticket, during] {
        assert_eq!(status(&mut world, ticket), Status::Ok);
    }
    world.assert_quiet();
}

#[test]
fn a_suspend_is_cancelled_by_its_ticket_and_by_no_other() {
    let mut world = world();
    let (dm, ticket) = hanging(&mut world);
    let suspend = world.start_suspend(dm, noflush());
    accepted(Some(world.request(Request::Cancel { ticket: suspend.number() + 1000 })));
    assert!(world.answer(suspend).is_none());
    accepted(Some(world.request(Request::Cancel { ticket: suspend.number() })));
    assert_eq!(refused(world.answer(suspend)), ErrorCode::SuspendCancelled);
    assert_eq!(world.line_args(dm, StatusKind::Info), "2 2 0 2 2", "presuspend was undone");
    world.lower("d0").flow();
    world.run();
    assert_eq!(status(&mut world, ticket), Status::Ok);
    world.assert_quiet();
}

#[test]
fn two_changes_queue_behind_the_one_under_way_and_end_in_order() {
    let mut world = world();
    let (dm, ticket) = hanging(&mut world);
    world.load(dm, "0 256 plain d1 0");
    let first = world.start(resume(dm));
    let second = world.start_suspend(dm, noflush());
    let third = world.start(resume(dm));
    let status_now = world.status(dm);
    assert!(status_now.suspend.is_some_and(|suspend| suspend.draining), "state is never queued");
    for started in [first, second, third] {
        assert!(world.answer(started).is_none());
    }
    world.lower("d0").flow();
    world.run();
    for started in [first, second, third] {
        accepted(world.answer(started));
    }
    let state = world.status(dm);
    assert!(!state.suspended && state.len_sectors == 256);
    assert_eq!(status(&mut world, ticket), Status::Ok);
    world.assert_quiet();
}

#[test]
fn a_queued_change_is_cancelled_before_it_begins() {
    let mut world = world();
    let (dm, _) = hanging(&mut world);
    world.load(dm, "0 256 plain d1 0");
    let first = world.start(resume(dm));
    let second = world.start_suspend(dm, noflush());
    accepted(Some(world.request(Request::Cancel { ticket: second.number() })));
    assert_eq!(refused(world.answer(second)), ErrorCode::SuspendCancelled);
    world.lower("d0").flow();
    world.run();
    accepted(world.answer(first));
    assert!(!world.status(dm).suspended);
    world.assert_quiet();
}

#[test]
fn two_suspends_at_once_both_succeed() {
    let mut world = world();
    let (dm, _) = hanging(&mut world);
    let both = [world.start_suspend(dm, noflush()), world.start_suspend(dm, noflush())];
    world.lower("d0").flow();
    world.run();
    for suspend in both {
        accepted(world.answer(suspend));
    }
    assert!(world.status(dm).suspended);
    world.resume(dm);
    world.assert_quiet();
}

#[test]
fn a_target_that_refuses_to_resume_leaves_a_device_that_can_be_repaired() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.load(dm, "0 512 lab d1 0 refuses");
    let resume = world.start(resume(dm));
    assert_eq!(refused(world.answer(resume)), ErrorCode::PreresumeFailed);
    assert!(world.status(dm).suspended, "it says so");
    let ticket = world.submit(0, dm, Io::write_pattern(0, 8, 1));
    world.run();
    assert!(world.done(ticket).is_none(), "I/O is held, not failed");
    world.load(dm, "0 512 plain d2 0");
    world.resume(dm);
    world.run();
    assert_eq!(status(&mut world, ticket), Status::Ok);
    world.assert_quiet();
}

#[test]
fn a_resume_without_any_table_is_refused() {
    let mut world = world();
    let dm = world.create_empty("t");
    let suspend = world.start_suspend(dm, noflush());
    accepted(world.answer(suspend));
    let resume = world.start(resume(dm));
    assert_eq!(refused(world.answer(resume)), ErrorCode::NoTable);
    world.load(dm, "0 512 plain d0 0");
    world.resume(dm);
    assert_eq!(world.io(dm, Io::write_pattern(0, 8, 1)).status, Status::Ok);
    world.assert_quiet();
}

#[test]
fn loading_and_clearing_never_disturb_the_live_table() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.load(dm, "0 256 plain d1 0");
    world.load(dm, "0 128 plain d2 0");
    assert_eq!(world.lower("d1").open_lanes(), 0, "the table it replaced in the slot is gone");
    assert_eq!(world.io(dm, Io::write_pattern(500, 8, 1)).status, Status::Ok);
    accepted(Some(world.request(Request::Clear { device: key(dm) })));
    assert_eq!(world.lower("d2").open_lanes(), 0);
    world.resume(dm);
    assert_eq!(world.status(dm).len_sectors, 512);
    world.assert_quiet();
}

#[test]
fn events_count_and_wake_those_who_wait() {
    let mut world = world();
    let dm = world.create("t", "0 512 lab d0 0");
    let seen = world.status(dm).event_nr;
    let wait = |event_nr| move |ticket| Request::Wait { device: key(dm), event_nr, ticket };
    let waits = [world.start(wait(seen)), world.start(wait(seen))];
    let given_up = world.start(wait(seen));
    accepted(Some(world.request(Request::Cancel { ticket: given_up.number() })));
    assert!(world.answer(given_up).is_some_and(|answer| answer.is_err()));
    for wait in waits {
        assert!(world.answer(wait).is_none());
    }
    world.message(dm, 0, &["event"]).unwrap();
    for wait in waits {
        match world.answer(wait) {
            Some(Ok(Reply::Done(Some(state)))) => assert_eq!(state.event_nr, seen + 1),
            other => panic!("the event wakes it: {other:?}"),
        }
    }
    let late = world.start(wait(seen));
    accepted(world.answer(late));
    world.assert_quiet();
}
