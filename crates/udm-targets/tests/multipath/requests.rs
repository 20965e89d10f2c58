//! Request mode: what differs from bio mode. The request queue itself is tested in udm-core.

use crate::rig::{back, disk, events, info, kill, line, seen, table, tell, world, write};
use udm_core::lifecycle::SuspendOptions;
use udm_testkit::Io;
use udm_types::{Nanos, OpSet, Status};

/// One group of paths in request mode.
fn one_group(features: &str, paths: &str) -> String {
    let count = paths.split(' ').count();
    let words = features.split_whitespace().count();
    let features = if words == 0 { String::new() } else { format!(" {features}") };
    format!("{words}{features} 0 1 1 service-time 0 {count} 0 {paths}")
}

#[test]
fn a_request_goes_down_one_path_and_whole_down_another_if_that_fails() {
    let (mut world, dm) = world(1, &one_group("", "d0 d1"));
    let tickets: Vec<_> = (0..16).map(|slot| world.submit(0, dm, write(slot))).collect();
    world.run();
    assert_eq!((seen(&world, "d0"), seen(&world, "d1")), (vec![0], vec![]), "one merged write");
    assert_eq!(disk(&world, "d0").log()[0].len_sectors, 128);
    for ticket in tickets {
        assert!(back(&mut world, ticket).status.is_ok());
    }
    for name in ["d0", "d1"] {
        disk(&world, name).clear_log();
    }
    kill(&world, "d1", Status::Transport);
    let tickets: Vec<_> = (0..16).map(|slot| world.submit(0, dm, write(slot))).collect();
    world.settle();
    for ticket in tickets {
        assert!(back(&mut world, ticket).status.is_ok());
    }
    assert_eq!(seen(&world, "d0"), [0]);
    assert_eq!(seen(&world, "d1"), [0], "the turn was d1's");
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 2 d0 A 0 0 1 d1 F 1 0 1 ");
    assert_eq!(events(&mut world, dm), 1);
    world.assert_quiet();
}

#[test]
fn the_last_path_leaves_the_error_as_it_is() {
    for status in [Status::Transport, Status::Offline, Status::IoErr] {
        let (mut world, dm) = world(2, &one_group("", "d0 d1"));
        kill(&world, "d0", status);
        kill(&world, "d1", status);
        assert_eq!(world.io_on(1, dm, Io::read(0, 8)).status, status);
        assert_eq!(world.io_on(1, dm, Io::read(0, 8)).status, Status::IoErr, "no path: EIO");
        assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 E 0 2 2 d0 F 1 0 1 d1 F 1 0 1 ");
        world.assert_quiet();
    }
}

#[test]
fn a_path_that_is_short_of_resources_is_retried_elsewhere() {
    let (mut world, dm) = world(1, &one_group("", "d0 d1"));
    kill(&world, "d0", Status::Resource);
    let start = world.now();
    let done = world.io(dm, write(0));
    assert!(done.status.is_ok());
    assert_eq!(done.at, start + Nanos::from_millis(100), "after a pause");
    world.assert_quiet();
}

#[test]
fn requests_wait_for_a_path_and_a_noflush_swap_takes_them_over_in_order() {
    let (mut world, dm) = world(2, &one_group("queue_if_no_path", "d0"));
    kill(&world, "d0", Status::Transport);
    let mut tickets = Vec::new();
    for slot in [0, 2, 4] {
        tickets.push(world.submit(0, dm, write(slot)));
        world.run();
    }
    world.advance(Nanos::from_secs(1));
    assert_eq!(world.pending(), 3);
    world.load(dm, &line(&one_group("queue_if_no_path", "d2")));
    world.suspend(dm, true);
    assert!(table(&mut world, dm).starts_with("1 queue_if_no_path "), "noflush leaves it on");
    world.resume(dm);
    world.settle();
    assert_eq!(seen(&world, "d2"), [0, 16, 32]);
    for ticket in tickets {
        assert!(back(&mut world, ticket).status.is_ok());
    }
    world.assert_quiet();
}

#[test]
fn a_reinstated_path_takes_what_waits() {
    let (mut world, dm) = world(2, &one_group("queue_if_no_path", "d0"));
    kill(&world, "d0", Status::Transport);
    let tickets: Vec<_> =
        (0..2).map(|lane| world.submit(lane, dm, write(u64::from(lane)))).collect();
    world.advance(Nanos::from_millis(50));
    disk(&world, "d0").heal();
    tell(&mut world, dm, "reinstate_path d0");
    world.advance(Nanos::from_millis(100));
    for ticket in tickets {
        assert!(back(&mut world, ticket).status.is_ok());
    }
    world.assert_quiet();
}

#[test]
fn fail_if_no_path_and_the_time_limit_fail_what_waits() {
    for words in ["fail_if_no_path", "queue_if_no_path_timeout_secs 1"] {
        let (mut world, dm) = world(2, &one_group("queue_if_no_path", "d0"));
        tell(&mut world, dm, "fail_path d0");
        let ticket = world.submit(1, dm, write(0));
        world.advance(Nanos::from_secs(5));
        assert_eq!(world.pending(), 1);
        tell(&mut world, dm, words);
        world.advance(Nanos::from_millis(1200));
        assert_eq!(back(&mut world, ticket).status, Status::IoErr, "{words}");
        world.assert_quiet();
    }
}

#[test]
fn a_flushing_suspend_turns_queueing_off_until_the_resume() {
    let (mut world, dm) = world(2, &one_group("queue_if_no_path", "d0"));
    let d0 = disk(&world, "d0");
    d0.hold(OpSet::all());
    let ticket = world.submit(0, dm, write(0));
    world.run();
    let suspend = world.start_suspend(dm, SuspendOptions::default());
    kill(&world, "d0", Status::Transport);
    d0.flow();
    world.settle();
    assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
    assert_eq!(back(&mut world, ticket).status, Status::Transport);
    assert!(table(&mut world, dm).starts_with("0 0 1 1 "));
    world.resume(dm);
    assert!(table(&mut world, dm).starts_with("1 queue_if_no_path "));
    world.assert_quiet();
}
