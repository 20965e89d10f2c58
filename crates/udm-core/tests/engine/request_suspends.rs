//! Suspends of request-based devices: what is started is waited for, what waits is not.

use crate::rig::{noflush, refused, status, submit_all, with_deadline, world, writes};
use udm_core::ErrorCode;
use udm_core::lifecycle::{OnTimeout, SuspendOptions};
use udm_testkit::{Io, TestWorld, pattern};
use udm_types::{BioFlags, DeviceId, Nanos, Op, OpSet, Sector, Status};

const TABLE: &str = "0 4096 rprobe d0 0";

fn device(world: &mut TestWorld) -> DeviceId {
    world.create("r", TABLE)
}

fn say(world: &mut TestWorld, dm: DeviceId, word: &str) {
    world.message(dm, 0, &[word]).unwrap();
}

fn write(sector: Sector) -> Io {
    Io::write_pattern(sector, 8, 1)
}

fn barrier(sector: Sector) -> Io {
    write(sector).with(BioFlags::ORDERED)
}

#[test]
fn both_suspends_end_while_requests_wait_and_the_next_table_maps_them_first() {
    for noflush in [true, false] {
        let mut world = world();
        let dm = device(&mut world);
        say(&mut world, dm, "lost");
        let mut tickets = submit_all(&mut world, dm, [500, 100, 108].map(write));
        say(&mut world, dm, "pause");
        world.lower("d0").fail(300..301, OpSet::all(), Status::Transport);
        tickets.push(world.submit(0, dm, write(300)));
        world.run();
        world.suspend(dm, noflush);
        assert_eq!((world.census().in_flight, world.census().waiting), (0, 3));
        tickets.push(world.submit(0, dm, write(0)));
        world.advance(Nanos::from_secs(1));
        assert_eq!((world.pending(), world.census().held), (5, 1), "a timer does not wake them");
        world.lower("d0").heal();
        world.lower("d0").clear_log();
        world.swap_suspended(dm, "0 4096 rprobe d1 0");
        for ticket in tickets {
            assert_eq!(status(&mut world, ticket), Status::Ok);
        }
        // In the order of their oldest bio; the newer one last.
        assert_eq!(writes(world.lower("d1")), [500, 100, 300, 0]);
        assert!(world.lower("d1").bytes(100, 16) == pattern(100, 16, 1));
        assert!(world.lower("d0").log().is_empty());
        world.assert_quiet();
    }
}

#[test]
fn waiting_requests_that_do_not_fit_the_new_table_fail_only_where_they_are_beyond() {
    let mut world = world();
    let dm = device(&mut world);
    say(&mut world, dm, "lost");
    let mut tickets = submit_all(&mut world, dm, [0, 496, 504, 512, 520].map(write));
    tickets.push(world.submit(0, dm, Io::write_pattern(500, 8, 3)));
    world.run();
    world.suspend(dm, true);
    world.swap_suspended(dm, "0 508 rprobe d1 0");
    world.run();
    let statuses: Vec<_> = tickets.into_iter().map(|ticket| status(&mut world, ticket)).collect();
    let (ok, beyond) = (Status::Ok, Status::IoErr);
    assert_eq!(statuses, [ok, ok, beyond, beyond, beyond, ok]);
    assert!(world.lower("d1").bytes(500, 8) == pattern(500, 8, 3), "the younger write came last");
    world.assert_quiet();
}

#[test]
fn a_suspend_waits_for_what_is_started_and_starts_nothing_more() {
    for noflush in [true, false] {
        let mut world = world();
        let dm = device(&mut world);
        world.lower("d0").hold(OpSet::all());
        let started = world.submit(0, dm, write(0));
        world.run();
        let options = SuspendOptions { noflush, ..SuspendOptions::default() };
        let suspend = world.start_suspend(dm, options);
        let late = world.submit(0, dm, write(8));
        world.run();
        assert!(world.answer(suspend).is_none());
        assert_eq!(world.lower("d0").log().len(), 1);
        world.lower("d0").flow();
        world.run();
        assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
        assert_eq!(status(&mut world, started), Status::Ok);
        assert!(world.done(late).is_none());
        world.resume(dm);
        assert_eq!(status(&mut world, late), Status::Ok);
        world.assert_quiet();
    }
}

#[test]
fn what_comes_back_during_a_suspend_waits_for_the_resume() {
    for (word, noflush) in [("insist", false), ("insist", true), ("pause", false)] {
        let mut world = world();
        let dm = device(&mut world);
        world.lower("d0").hold(OpSet::all());
        let tickets = submit_all(&mut world, dm, [0, 8, 100].map(write));
        say(&mut world, dm, word);
        world.lower("d0").fail(0..4096, OpSet::all(), Status::Transport);
        let options = SuspendOptions { noflush, ..SuspendOptions::default() };
        let suspend = world.start_suspend(dm, options);
        world.lower("d0").flow();
        world.run();
        assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
        assert_eq!((world.census().waiting, world.pending()), (2, 3));
        world.lower("d0").heal();
        world.lower("d0").clear_log();
        world.swap_suspended(dm, TABLE);
        for ticket in tickets {
            assert_eq!(status(&mut world, ticket), Status::Ok);
        }
        assert_eq!(writes(world.lower("d0")), [0, 100], "the merged request goes out whole");
        world.assert_quiet();
    }
}

#[test]
fn requests_a_target_holds_leave_it_before_the_suspend() {
    for noflush in [true, false] {
        let mut world = world();
        let dm = device(&mut world);
        say(&mut world, dm, "hold");
        let tickets = submit_all(&mut world, dm, [0, 8].map(write));
        assert_eq!(world.census().in_flight, 1, "one request");
        world.suspend(dm, noflush);
        assert_eq!(world.pending(), if noflush { 2 } else { 0 });
        world.resume(dm);
        for ticket in tickets {
            assert_eq!(status(&mut world, ticket), Status::Ok);
        }
        assert_eq!(writes(world.lower("d0")), [0]);
        world.assert_quiet();
    }
}

#[test]
fn a_suspend_that_is_given_up_lets_waiting_requests_go_on() {
    let mut world = world();
    let dm = device(&mut world);
    say(&mut world, dm, "lost");
    let waiting = world.submit(0, dm, write(0));
    world.run();
    say(&mut world, dm, "good");
    world.lower("d0").hold(OpSet::all());
    let hangs = world.submit(1, dm, write(8));
    world.run();
    let suspend = world.start_suspend(dm, with_deadline(1, OnTimeout::Resume));
    world.advance(Nanos::from_millis(500));
    assert_eq!(world.lower("d0").held().len(), 1, "nothing is started meanwhile");
    world.advance(Nanos::from_millis(500));
    assert_eq!(refused(world.answer(suspend)), ErrorCode::SuspendTimedOut);
    assert_eq!(world.lower("d0").held().len(), 2);
    world.lower("d0").flow();
    world.run();
    assert_eq!((status(&mut world, waiting), status(&mut world, hangs)), (Status::Ok, Status::Ok));
    world.assert_quiet();
}

#[test]
fn a_deadline_that_fails_fails_what_is_started_and_keeps_what_waits() {
    let mut world = world();
    let dm = device(&mut world);
    world.lower("d0").hold(OpSet::all());
    let hangs = submit_all(&mut world, dm, [0, 8].map(write));
    say(&mut world, dm, "lost");
    let waiting = world.submit(0, dm, write(16));
    world.run();
    let suspend = world.start_suspend(dm, with_deadline(1, OnTimeout::Fail));
    world.advance(Nanos::from_secs(1));
    assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
    for ticket in hangs {
        assert_eq!(status(&mut world, ticket), Status::Timeout);
    }
    assert_eq!(world.census().waiting, 1);
    world.lower("d0").flow();
    world.swap_suspended(dm, TABLE);
    assert_eq!(status(&mut world, waiting), Status::Ok);
    world.assert_quiet();
}

#[test]
fn a_device_above_gives_up_what_waits_in_the_queue_below() {
    let mut world = world();
    let dm = device(&mut world);
    let one = world.create("one", "0 64 plain dm:r 0");
    let two = world.create("two", "0 64 plain dm:r 8");
    say(&mut world, dm, "lost");
    let own = submit_all(&mut world, one, [0, 8].map(write));
    let spared = world.submit(0, two, write(8));
    let suspend = world.start_suspend(one, with_deadline(1, OnTimeout::Fail));
    world.advance(Nanos::from_millis(999));
    assert!(world.answer(suspend).is_none(), "it is started there, although it waits below");
    world.advance(Nanos::from_millis(1));
    assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
    for ticket in own {
        assert_eq!(status(&mut world, ticket), Status::Timeout);
    }
    assert!(world.done(spared).is_none());
    say(&mut world, dm, "good");
    world.settle();
    assert_eq!(status(&mut world, spared), Status::Ok);
    world.resume(one);
    world.assert_quiet();
}

#[test]
fn a_removal_fails_what_waits() {
    let mut world = world();
    let dm = device(&mut world);
    say(&mut world, dm, "lost");
    let mut tickets = submit_all(&mut world, dm, [0, 8, 100].map(write));
    // A barrier waits for them on both lanes; the next device of this number must not.
    tickets.push(world.submit(1, dm, barrier(200)));
    world.run();
    world.remove(dm);
    for ticket in tickets {
        assert_eq!(status(&mut world, ticket), Status::Offline);
    }
    let again = device(&mut world);
    assert_eq!(again, dm);
    assert!(world.io(again, barrier(0)).status.is_ok());
    world.assert_quiet();
}

#[test]
fn a_barrier_waits_for_requests_that_wait_and_nothing_passes_it() {
    let mut world = world();
    let dm = device(&mut world);
    say(&mut world, dm, "lost");
    let before = submit_all(&mut world, dm, [0, 8].map(write));
    say(&mut world, dm, "good");
    let ordered = world.submit(1, dm, barrier(200));
    let after = world.submit(1, dm, write(300));
    world.run();
    assert!(world.lower("d0").log().is_empty(), "the older ones wait out their pause");
    // A suspend neither waits for them nor is it waited for.
    world.suspend(dm, false);
    world.resume(dm);
    world.settle();
    for ticket in before.into_iter().chain([ordered, after]) {
        assert_eq!(status(&mut world, ticket), Status::Ok);
    }
    let log = world.lower("d0").log();
    let seen: Vec<_> = log.iter().map(|seen| (seen.op, seen.sector, seen.len_sectors)).collect();
    let flush = (Op::Flush, 0, 0);
    let wanted = [(Op::Write, 0, 16), flush, (Op::Write, 200, 8), flush, (Op::Write, 300, 8)];
    assert_eq!(seen, wanted);
    world.assert_quiet();
}

#[test]
fn a_barrier_whose_part_waits_is_replayed_whole_by_the_next_table() {
    for noflush in [true, false] {
        let mut world = world();
        let dm = device(&mut world);
        say(&mut world, dm, "pause");
        world.lower("d0").fail(200..201, OpSet::all(), Status::Transport);
        let ordered = world.submit(1, dm, barrier(200));
        let after = world.submit(1, dm, write(300));
        world.run();
        assert_eq!((world.census().waiting, world.census().held), (1, 1));
        world.suspend(dm, noflush);
        assert_eq!((world.census().waiting, world.census().held), (0, 2));
        world.swap_suspended(dm, "0 4096 rprobe d1 0");
        world.settle();
        assert_eq!(
            (status(&mut world, ordered), status(&mut world, after)),
            (Status::Ok, Status::Ok)
        );
        let ops: Vec<_> = world.lower("d1").log().iter().map(|seen| seen.op).collect();
        assert_eq!(ops, [Op::Flush, Op::Write, Op::Flush, Op::Write]);
        world.assert_quiet();
    }
}

#[test]
fn a_barrier_part_that_comes_back_during_the_suspend_goes_back_to_its_barrier() {
    let mut world = world();
    let dm = device(&mut world);
    world.lower("d0").hold(OpSet::all());
    let ordered = world.submit(1, dm, barrier(200));
    world.run();
    say(&mut world, dm, "insist");
    let suspend = world.start_suspend(dm, noflush());
    world.lower("d0").flow();
    world.run();
    assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
    assert_eq!((world.census().held, world.census().waiting), (1, 0));
    world.swap_suspended(dm, TABLE);
    world.settle();
    assert_eq!(status(&mut world, ordered), Status::Ok);
    world.assert_quiet();
}

#[test]
fn a_queue_left_by_a_suspend_takes_the_order_of_submission_not_of_sectors() {
    let mut world = world();
    let dm = device(&mut world);
    world.lower("d0").hold(OpSet::all());
    say(&mut world, dm, "insist");
    let mut tickets = Vec::new();
    for sector in [900, 100, 500] {
        tickets.push(world.submit(0, dm, write(sector)));
        world.run();
    }
    let suspend = world.start_suspend(dm, noflush());
    // They come back in another order still.
    for index in [1, 1, 0] {
        assert!(world.lower("d0").release(index));
        world.run();
    }
    assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
    world.lower("d0").hold(OpSet::empty());
    world.lower("d0").clear_log();
    world.swap_suspended(dm, TABLE);
    assert_eq!(writes(world.lower("d0")), [900, 100, 500]);
    for ticket in tickets {
        assert_eq!(status(&mut world, ticket), Status::Ok);
    }
    world.assert_quiet();
}
