//! Paths that fail and come back: failover, groups, and which errors count.

use crate::rig::{
    TWO_GROUPS, back, disk, events, info, kill, one_group, reported, seen, table, tell, world,
    write,
};
use udm_core::lifecycle::{OnTimeout, SuspendOptions};
use udm_testkit::Io;
use udm_types::{BioFlags, Nanos, OpSet, Status};

#[test]
fn an_io_whose_path_fails_is_done_on_another_with_nothing_visible() {
    let (mut world, dm) = world(2, TWO_GROUPS);
    assert!(world.io(dm, write(0)).status.is_ok());
    assert_eq!(info(&mut world, dm), "2 0 0 0 2 1 A 0 1 0 d0 A 0 E 0 1 0 d1 A 0 ");
    kill(&world, "d0", Status::Transport);
    assert!(world.io(dm, write(1)).status.is_ok());
    assert_eq!(info(&mut world, dm), "2 0 0 0 2 2 E 0 1 0 d0 F 1 A 0 1 0 d1 A 0 ");
    assert_eq!(events(&mut world, dm), 1);
    assert_eq!(seen(&world, "d1"), [8]);
    assert_eq!(disk(&world, "d1").bytes(8, 8), Io::write_pattern(8, 8, 1).bytes);
    world.assert_quiet();
}

#[test]
fn every_operation_fails_over() {
    let operations = [
        Io::read(0, 8),
        write(0),
        Io::flush(),
        Io::discard(0, 8),
        Io::write_zeroes(0, 8),
        write(1).with(BioFlags::FUA),
        write(1).with(BioFlags::PREFLUSH),
    ];
    for io in operations {
        let (mut world, dm) = world(1, &one_group("", "d0 d1"));
        kill(&world, "d0", Status::Offline);
        assert!(world.io(dm, io.clone()).status.is_ok(), "{io:?}");
        let log = disk(&world, "d1").log();
        let last = log.last().expect("it went to d1");
        assert_eq!(
            (last.op, last.flags.contains(BioFlags::FUA)),
            (io.op, io.flags.contains(BioFlags::FUA))
        );
        assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 0 d0 F 1 d1 A 0 ");
        world.assert_quiet();
    }
}

#[test]
fn errors_of_the_path_fail_it_and_errors_of_the_io_do_not() {
    let path_errors = [
        Status::Timeout,
        Status::Transport,
        Status::Resource,
        Status::DevResource,
        Status::Again,
        Status::Offline,
        Status::Invalid,
        Status::ReadOnly,
        Status::IoErr,
    ];
    for status in path_errors {
        let (mut world, dm) = world(1, &one_group("", "d0 d1"));
        kill(&world, "d0", status);
        assert!(world.io(dm, write(0)).status.is_ok(), "{status:?}");
        assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 0 d0 F 1 d1 A 0 ", "{status:?}");
    }
    let io_errors = [
        Status::NotSupported,
        Status::NoSpace,
        Status::Target,
        Status::Reservation,
        Status::Medium,
        Status::Protection,
    ];
    for status in io_errors {
        let (mut world, dm) = world(1, &one_group("queue_if_no_path", "d0 d1"));
        kill(&world, "d0", status);
        assert_eq!(world.io(dm, write(0)).status, status);
        assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 0 d0 A 0 d1 A 0 ", "{status:?}");
        assert_eq!(events(&mut world, dm), 0);
        assert_eq!(reported(&mut world, dm, "path 1", "errors"), "1");
    }
}

#[test]
fn the_last_path_turns_the_error_into_eio() {
    let (mut world, dm) = world(1, &one_group("", "d0 d1"));
    kill(&world, "d0", Status::Transport);
    kill(&world, "d1", Status::Offline);
    assert_eq!(world.io(dm, Io::read(0, 8)).status, Status::IoErr);
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 0 d0 F 1 d1 F 1 ");
    // Without a path nothing reaches the disks, and no group is current any more.
    let before = seen(&world, "d0").len() + seen(&world, "d1").len();
    assert_eq!(world.io(dm, write(0)).status, Status::IoErr);
    assert_eq!(world.io(dm, Io::flush()).status, Status::IoErr);
    assert_eq!(seen(&world, "d0").len() + seen(&world, "d1").len(), before);
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 E 0 2 0 d0 F 1 d1 F 1 ");
    assert_eq!(events(&mut world, dm), 2);
    world.assert_quiet();
}

#[test]
fn a_group_is_kept_until_it_has_no_path_and_switched_back_by_message() {
    let (mut world, dm) = world(2, TWO_GROUPS);
    world.io(dm, write(0));
    tell(&mut world, dm, "fail_path d0");
    world.io(dm, write(1));
    tell(&mut world, dm, "reinstate_path d0");
    world.io_on(1, dm, write(2));
    assert_eq!(seen(&world, "d1"), [8, 16], "the better group has recovered but is not taken");
    assert_eq!(info(&mut world, dm), "2 0 0 0 2 2 E 0 1 0 d0 A 1 A 0 1 0 d1 A 0 ");
    tell(&mut world, dm, "switch_group 1");
    assert_eq!(info(&mut world, dm), "2 0 0 0 2 1 E 0 1 0 d0 A 1 E 0 1 0 d1 A 0 ");
    world.io_on(1, dm, write(3));
    world.io(dm, write(4));
    assert_eq!(seen(&world, "d0"), [0, 24, 32]);
    assert_eq!(info(&mut world, dm), "2 0 0 0 2 1 A 0 1 0 d0 A 1 E 0 1 0 d1 A 0 ");
    assert_eq!(events(&mut world, dm), 3, "failed, reinstated, switched");
    world.assert_quiet();
}

#[test]
fn a_next_group_without_a_path_is_passed_over_once() {
    let (mut world, dm) = world(1, TWO_GROUPS);
    tell(&mut world, dm, "fail_path d1");
    tell(&mut world, dm, "switch_group 2");
    assert_eq!(info(&mut world, dm), "2 1 0 0 2 2 E 0 1 0 d0 A 0 E 0 1 0 d1 F 1 ");
    world.io(dm, write(0));
    assert_eq!(info(&mut world, dm), "2 0 0 0 2 1 A 0 1 0 d0 A 0 E 0 1 0 d1 F 1 ");
    tell(&mut world, dm, "reinstate_path d1");
    world.io(dm, write(1));
    assert_eq!(seen(&world, "d1"), [], "the wish was used up");
}

#[test]
fn a_bypassed_group_is_the_last_resort() {
    let (mut world, dm) = world(1, TWO_GROUPS);
    world.io(dm, write(0));
    tell(&mut world, dm, "disable_group 1");
    assert_eq!(info(&mut world, dm), "2 0 0 0 2 1 D 0 1 0 d0 A 0 E 0 1 0 d1 A 0 ");
    world.io(dm, write(1));
    assert_eq!(seen(&world, "d1"), [8]);
    assert_eq!(info(&mut world, dm), "2 0 0 0 2 2 D 0 1 0 d0 A 0 A 0 1 0 d1 A 0 ");
    kill(&world, "d1", Status::Transport);
    assert!(world.io(dm, write(2)).status.is_ok());
    assert_eq!(seen(&world, "d0"), [0, 16]);
    assert_eq!(info(&mut world, dm), "2 0 0 0 2 1 D 0 1 0 d0 A 0 E 0 1 0 d1 F 1 ");
    tell(&mut world, dm, "enable_group 1");
    world.io(dm, write(3));
    assert_eq!(info(&mut world, dm), "2 0 0 0 2 1 A 0 1 0 d0 A 0 E 0 1 0 d1 F 1 ");
    tell(&mut world, dm, "disable_group 2");
    tell(&mut world, dm, "switch_group 1");
    assert!(!info(&mut world, dm).contains('D'), "a switch ends every bypass");
    assert_eq!(events(&mut world, dm), 5);
}

#[test]
fn the_initial_group_comes_first_and_one_beyond_the_last_is_none() {
    let args = |initial| {
        format!("2 queue_mode bio 0 2 {initial} round-robin 0 1 0 d0 round-robin 0 1 0 d1")
    };
    let (mut second, dm) = world(1, &args(2));
    assert_eq!(info(&mut second, dm), "2 1 0 0 2 2 E 0 1 0 d0 A 0 E 0 1 0 d1 A 0 ");
    second.io(dm, write(0));
    assert_eq!(seen(&second, "d1"), [0]);
    let (mut none, dm) = world(1, &args(7));
    assert_eq!(info(&mut none, dm), "2 1 0 0 2 1 E 0 1 0 d0 A 0 E 0 1 0 d1 A 0 ");
    none.io(dm, write(0));
    assert_eq!(seen(&none, "d0"), [0]);
}

#[test]
fn late_errors_count_once_and_free_their_places() {
    let (mut world, dm) = world(1, "2 queue_mode bio 0 1 1 queue-length 0 2 0 d0 d1");
    let disks = [disk(&world, "d0"), disk(&world, "d1")];
    disks.iter().for_each(|disk| disk.hold(OpSet::all()));
    let tickets: Vec<_> = (0..6).map(|slot| world.submit(0, dm, write(slot))).collect();
    world.run();
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 1 d0 A 0 3 d1 A 0 3 ");
    kill(&world, "d0", Status::Transport);
    disks[0].release(0);
    world.run();
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 1 d0 F 1 2 d1 A 0 4 ");
    disks[0].release(0);
    disks[0].release(0);
    world.run();
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 1 d0 F 1 0 d1 A 0 6 ");
    disks[1].flow();
    world.run();
    assert!(tickets.into_iter().all(|ticket| back(&mut world, ticket).status.is_ok()));
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 1 d0 F 1 0 d1 A 0 0 ");
    assert_eq!(events(&mut world, dm), 1);
    world.assert_quiet();
}

#[test]
fn an_error_after_a_reinstate_fails_the_path_again() {
    let (mut world, dm) = world(1, &one_group("", "d0 d1"));
    let d0 = disk(&world, "d0");
    d0.hold(OpSet::all());
    let ticket = world.submit(0, dm, write(0));
    world.run();
    tell(&mut world, dm, "fail_path d0");
    tell(&mut world, dm, "reinstate_path d0");
    kill(&world, "d0", Status::Transport);
    d0.flow();
    world.run();
    assert!(back(&mut world, ticket).status.is_ok());
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 0 d0 F 2 d1 A 0 ");
    world.assert_quiet();
}

#[test]
fn abandoned_io_frees_its_place_and_is_tried_elsewhere() {
    let (mut world, dm) = world(1, "2 queue_mode bio 0 1 1 queue-length 0 2 0 d0 d1");
    disk(&world, "d0").hold(OpSet::all());
    let tickets: Vec<_> = (0..4).map(|slot| world.submit(0, dm, write(slot))).collect();
    world.run();
    let options = SuspendOptions {
        deadline: Some(Nanos::from_secs(1)),
        on_timeout: OnTimeout::Fail,
        ..SuspendOptions::default()
    };
    let suspend = world.start_suspend(dm, options);
    world.advance(Nanos::from_secs(1));
    assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
    for ticket in tickets {
        assert!(back(&mut world, ticket).status.is_ok(), "d1 has done it");
    }
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 1 d0 F 1 0 d1 A 0 0 ");
    disk(&world, "d0").flow();
    world.run();
    world.resume(dm);
    world.assert_quiet();
}

#[test]
fn one_device_on_two_paths_fails_and_comes_back_on_both() {
    let (mut world, dm) = world(1, &one_group("", "d0 d1 d0"));
    tell(&mut world, dm, "fail_path d0");
    assert_eq!(info(&mut world, dm), "2 1 0 0 1 1 E 0 3 0 d0 F 1 d1 A 0 d0 F 1 ");
    assert_eq!(events(&mut world, dm), 2);
    tell(&mut world, dm, "reinstate_path d0");
    assert_eq!(info(&mut world, dm), "2 1 0 0 1 1 E 0 3 0 d0 A 1 d1 A 0 d0 A 1 ");
}

#[test]
fn a_new_table_starts_afresh() {
    let (mut world, dm) = world(2, &one_group("", "d0 d1"));
    kill(&world, "d0", Status::Transport);
    world.io(dm, write(0));
    world.io(dm, write(0));
    tell(&mut world, dm, "disable_group 1");
    tell(&mut world, dm, "queue_if_no_path");
    let text = crate::rig::line(&one_group("", "d0 d1"));
    world.swap(dm, &text, true);
    assert_eq!(info(&mut world, dm), "2 1 0 0 1 1 E 0 2 0 d0 A 0 d1 A 0 ");
    assert_eq!(table(&mut world, dm), "2 queue_mode bio 0 1 1 round-robin 0 2 1 d0 1 d1 1 ");
    world.assert_quiet();
}
