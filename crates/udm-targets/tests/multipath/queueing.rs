//! I/O that waits for a path: order, ends of the wait, suspends, swaps, the time limit.

use crate::rig::{
    back, disk, events, info, kill, line, one_group, reported, seen, table, tell, world, write,
};
use udm_core::lifecycle::{OnTimeout, SuspendOptions};
use udm_testkit::{Io, IoTicket, TestWorld};
use udm_types::{BioFlags, DeviceId, Nanos, OpSet, Status};

/// Both paths failed, queueing on, five writes waiting on two lanes.
fn waiting() -> (TestWorld, DeviceId, Vec<IoTicket>) {
    let (mut world, dm) = world(2, &one_group("queue_if_no_path", "d0 d1"));
    tell(&mut world, dm, "fail_path d0");
    tell(&mut world, dm, "fail_path d1");
    let mut tickets = Vec::new();
    for slot in 0..5 {
        tickets.push(world.submit(0, dm, write(slot)));
        world.run();
    }
    tickets.push(world.submit(1, dm, write(9)));
    world.run();
    assert_eq!(world.pending(), 6);
    (world, dm, tickets)
}

#[track_caller]
fn all_back(world: &mut TestWorld, tickets: Vec<IoTicket>, status: Status) {
    for ticket in tickets {
        assert_eq!(back(world, ticket).status, status);
    }
}

#[test]
fn io_waits_and_is_sent_in_order_ahead_of_newer_io() {
    let (mut world, dm, tickets) = waiting();
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 E 0 2 0 d0 F 1 d1 F 1 ");
    assert_eq!(reported(&mut world, dm, "multipath", "held"), "6");
    tell(&mut world, dm, "reinstate_path d1");
    let newer = world.submit(0, dm, write(7));
    world.run();
    let mut sent = seen(&world, "d1");
    sent.retain(|&sector| sector != 72);
    assert_eq!(sent, [0, 8, 16, 24, 32, 56]);
    assert!(seen(&world, "d1").contains(&72), "lane 1's, too");
    all_back(&mut world, tickets, Status::Ok);
    assert!(back(&mut world, newer).status.is_ok());
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 0 d0 F 1 d1 A 1 ");
    world.assert_quiet();
}

#[test]
fn io_that_comes_back_from_a_dying_path_waits_in_its_old_place() {
    let (mut world, dm) = world(1, &one_group("queue_if_no_path", "d0"));
    let d0 = disk(&world, "d0");
    d0.hold(OpSet::all());
    let mut tickets = Vec::new();
    for slot in 0..3 {
        tickets.push(world.submit(0, dm, write(slot)));
        world.advance(Nanos(1000));
    }
    kill(&world, "d0", Status::Transport);
    // The second fails first; a newer one waits; then the others fail.
    d0.release(1);
    world.advance(Nanos(1000));
    tickets.push(world.submit(0, dm, write(3)));
    world.advance(Nanos(1000));
    d0.flow();
    world.run();
    assert_eq!(world.pending(), 4);
    d0.heal();
    d0.clear_log();
    tell(&mut world, dm, "reinstate_path d0");
    assert_eq!(seen(&world, "d0"), [0, 8, 16, 24]);
    all_back(&mut world, tickets, Status::Ok);
    world.assert_quiet();
}

#[test]
fn fail_if_no_path_fails_what_waits() {
    let (mut world, dm, tickets) = waiting();
    tell(&mut world, dm, "fail_if_no_path");
    all_back(&mut world, tickets, Status::IoErr);
    assert_eq!(table(&mut world, dm), "2 queue_mode bio 0 1 1 round-robin 0 2 1 d0 1 d1 1 ");
    assert_eq!(world.io(dm, Io::flush()).status, Status::IoErr);
    tell(&mut world, dm, "queue_if_no_path");
    let ticket = world.submit(1, dm, Io::flush());
    world.run();
    assert_eq!(world.pending(), 1);
    tell(&mut world, dm, "reinstate_path d0");
    assert!(back(&mut world, ticket).status.is_ok());
    world.assert_quiet();
}

#[test]
fn a_flushing_suspend_fails_what_waits_and_a_resume_queues_again() {
    let (mut world, dm, tickets) = waiting();
    world.suspend(dm, false);
    all_back(&mut world, tickets, Status::IoErr);
    assert_eq!(table(&mut world, dm), "2 queue_mode bio 0 1 1 round-robin 0 2 1 d0 1 d1 1 ");
    let ticket = world.submit(0, dm, write(0));
    world.run();
    world.resume(dm);
    assert!(table(&mut world, dm).starts_with("3 queue_if_no_path queue_mode bio "));
    assert_eq!(world.pending(), 1, "it waits for a path now");
    tell(&mut world, dm, "reinstate_path d0");
    assert!(back(&mut world, ticket).status.is_ok());
    world.assert_quiet();
}

#[test]
fn a_noflush_suspend_pushes_back_and_the_same_table_takes_it_again() {
    let (mut world, dm, tickets) = waiting();
    world.suspend(dm, true);
    assert_eq!((world.census().in_flight, world.census().held), (0, 6));
    world.resume(dm);
    world.run();
    assert_eq!((world.pending(), world.census().held), (6, 0), "it waits in the target again");
    tell(&mut world, dm, "reinstate_path d0");
    all_back(&mut world, tickets, Status::Ok);
    world.assert_quiet();
}

#[test]
fn a_noflush_swap_to_a_table_with_a_path_lets_it_flow_in_order() {
    let (mut world, dm, tickets) = waiting();
    world.load(dm, &line(&one_group("queue_if_no_path", "d2")));
    world.suspend(dm, true);
    let newer = world.submit(0, dm, write(6));
    world.resume(dm);
    world.run();
    let mut sent = seen(&world, "d2");
    sent.retain(|&sector| sector != 72);
    assert_eq!(sent, [0, 8, 16, 24, 32, 48]);
    all_back(&mut world, tickets, Status::Ok);
    assert!(back(&mut world, newer).status.is_ok());
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 1 0 d2 A 0 ");
    world.assert_quiet();
}

#[test]
fn an_error_in_the_middle_of_a_noflush_suspend_is_pushed_back() {
    for (noflush, status) in [(true, Status::Ok), (false, Status::IoErr)] {
        let (mut world, dm) = world(2, &one_group("queue_if_no_path", "d0"));
        let d0 = disk(&world, "d0");
        d0.hold(OpSet::all());
        let tickets = vec![world.submit(0, dm, write(0)), world.submit(1, dm, write(1))];
        world.run();
        world.load(dm, &line(&one_group("queue_if_no_path", "d1")));
        let options = SuspendOptions { noflush, ..SuspendOptions::default() };
        let suspend = world.start_suspend(dm, options);
        kill(&world, "d0", Status::Transport);
        d0.flow();
        world.run();
        assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
        world.resume(dm);
        world.run();
        all_back(&mut world, tickets, status);
        world.assert_quiet();
    }
}

#[test]
fn an_error_in_the_middle_of_a_suspend_goes_to_the_path_that_is_left() {
    for noflush in [true, false] {
        let (mut world, dm) = world(1, &one_group("", "d0 d1"));
        let d0 = disk(&world, "d0");
        d0.hold(OpSet::all());
        let ticket = world.submit(0, dm, write(0));
        world.run();
        let options = SuspendOptions { noflush, ..SuspendOptions::default() };
        let suspend = world.start_suspend(dm, options);
        kill(&world, "d0", Status::Transport);
        d0.flow();
        world.run();
        assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
        assert!(back(&mut world, ticket).status.is_ok(), "before the resume");
        world.resume(dm);
        world.assert_quiet();
    }
}

#[test]
fn a_suspend_that_is_given_up_goes_on_queueing() {
    let (mut world, dm) = world(2, &one_group("queue_if_no_path", "d0"));
    let d0 = disk(&world, "d0");
    d0.hold(OpSet::all());
    let first = world.submit(1, dm, write(0));
    world.run();
    let options = SuspendOptions {
        deadline: Some(Nanos::from_secs(1)),
        on_timeout: OnTimeout::Resume,
        noflush: true,
        ..SuspendOptions::default()
    };
    let suspend = world.start_suspend(dm, options);
    world.advance(Nanos::from_secs(1));
    assert!(world.answer(suspend).is_some_and(|answer| answer.is_err()));
    assert!(table(&mut world, dm).starts_with("3 queue_if_no_path "));
    kill(&world, "d0", Status::Transport);
    d0.flow();
    world.run();
    assert_eq!(world.pending(), 1, "it waits");
    d0.heal();
    tell(&mut world, dm, "reinstate_path d0");
    assert!(back(&mut world, first).status.is_ok());
    world.assert_quiet();
}

#[test]
fn a_message_in_the_middle_of_a_suspend_takes_effect_at_the_resume() {
    let (mut world, dm) = world(2, &one_group("", "d0"));
    let d0 = disk(&world, "d0");
    d0.hold(OpSet::all());
    let ticket = world.submit(1, dm, write(0));
    world.run();
    let suspend = world.start_suspend(dm, SuspendOptions::default());
    tell(&mut world, dm, "queue_if_no_path");
    assert!(table(&mut world, dm).starts_with("2 queue_mode bio "));
    kill(&world, "d0", Status::Transport);
    d0.flow();
    world.run();
    assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()), "it ends");
    assert_eq!(back(&mut world, ticket).status, Status::IoErr);
    world.resume(dm);
    assert!(table(&mut world, dm).starts_with("3 queue_if_no_path "));
    world.assert_quiet();
}

#[test]
fn the_time_limit_ends_the_wait_once() {
    let (mut world, dm, tickets) = waiting();
    let before = events(&mut world, dm);
    tell(&mut world, dm, "queue_if_no_path_timeout_secs 5");
    world.advance(Nanos::from_millis(4999));
    assert_eq!(world.pending(), 6);
    world.advance(Nanos::from_millis(1));
    all_back(&mut world, tickets, Status::IoErr);
    assert!(table(&mut world, dm).starts_with("2 queue_mode bio "));
    assert_eq!(events(&mut world, dm), before + 1);
    assert_eq!(reported(&mut world, dm, "multipath", "expired"), "1");
    assert_eq!(reported(&mut world, dm, "multipath", "timeout_secs"), "5");
    // Turned on again by message, the limit runs anew.
    tell(&mut world, dm, "queue_if_no_path");
    let ticket = world.submit(1, dm, Io::read(0, 8));
    world.advance(Nanos::from_secs(5));
    assert_eq!(back(&mut world, ticket).status, Status::IoErr);
    assert_eq!(reported(&mut world, dm, "multipath", "expired"), "2");
    world.assert_quiet();
}

#[test]
fn the_time_limit_counts_from_the_loss_of_the_last_path() {
    let (mut world, dm) = world(2, &one_group("queue_if_no_path", "d0 d1"));
    tell(&mut world, dm, "queue_if_no_path_timeout_secs 5");
    tell(&mut world, dm, "fail_path d0");
    assert_eq!(world.next_deadline(), None, "a path is left");
    kill(&world, "d1", Status::Transport);
    let ticket = world.submit(1, dm, write(0));
    world.advance(Nanos::from_secs(4));
    tell(&mut world, dm, "reinstate_path d0");
    assert!(back(&mut world, ticket).status.is_ok());
    tell(&mut world, dm, "fail_path d0");
    let ticket = world.submit(1, dm, write(0));
    world.advance(Nanos::from_secs(4));
    assert_eq!(world.pending(), 1, "the old limit was ended by the reinstate");
    world.advance(Nanos::from_secs(1));
    assert_eq!(back(&mut world, ticket).status, Status::IoErr);
    world.assert_quiet();
}

#[test]
fn the_time_limit_can_be_lifted() {
    let (mut world, dm, tickets) = waiting();
    tell(&mut world, dm, "queue_if_no_path_timeout_secs 5");
    tell(&mut world, dm, "queue_if_no_path_timeout_secs 0");
    world.advance(Nanos::from_secs(60));
    assert_eq!(world.pending(), 6);
    tell(&mut world, dm, "reinstate_path d0");
    all_back(&mut world, tickets, Status::Ok);
    world.assert_quiet();
}

#[test]
fn the_time_limit_runs_again_after_a_resume_without_a_path() {
    let (mut world, dm, _) = waiting();
    world.suspend(dm, true);
    tell(&mut world, dm, "queue_if_no_path_timeout_secs 5");
    world.advance(Nanos::from_secs(60));
    world.resume(dm);
    world.advance(Nanos::from_millis(4999));
    assert_eq!(world.pending(), 6);
    world.advance(Nanos::from_millis(1));
    assert_eq!(world.pending(), 0);
    world.assert_quiet();
}

#[test]
fn a_table_without_paths_waits_or_fails() {
    let (mut world, dm) = world(1, "3 queue_if_no_path queue_mode bio 0 0 0");
    let ticket = world.submit(0, dm, Io::read(0, 8));
    world.run();
    assert_eq!(world.pending(), 1);
    assert_eq!(info(&mut world, dm), "2 0 0 0 0 0 ");
    world.swap(dm, &line(&one_group("", "d0")), true);
    world.run();
    assert!(back(&mut world, ticket).status.is_ok());
    world.swap(dm, &line("2 queue_mode bio 0 0 0"), false);
    assert_eq!(world.io(dm, Io::read(0, 8)).status, Status::IoErr);
    world.assert_quiet();
}

#[test]
fn an_ordered_write_waits_and_keeps_its_place() {
    let (mut world, dm) = world(1, &one_group("queue_if_no_path", "d0"));
    tell(&mut world, dm, "fail_path d0");
    let before = world.submit(0, dm, write(0));
    let barrier = world.submit(0, dm, write(1).with(BioFlags::ORDERED));
    let after = world.submit(0, dm, write(2));
    world.run();
    tell(&mut world, dm, "reinstate_path d0");
    let events = [before, barrier, after].map(|ticket| back(&mut world, ticket).event);
    assert!(events.is_sorted());
    let writes: Vec<u64> = disk(&world, "d0")
        .log()
        .iter()
        .filter(|seen| seen.op.is_write())
        .map(|seen| seen.sector)
        .collect();
    assert_eq!(writes, [0, 8, 16]);
    world.assert_quiet();
}
