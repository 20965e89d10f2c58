//! Push-back: what a noflush suspend holds, in which order it runs again, and what beats what.

use crate::rig::{status, world, writes};
use udm_testkit::{Io, pattern};
use udm_types::{Op, OpSet, Status};

#[test]
fn held_io_is_replayed_in_its_order_ahead_of_newer_io() {
    let mut world = world();
    let dm = world.create("t", "0 512 probe d0 0");
    world.message(dm, 0, &["hold"]).unwrap();
    let older = [40, 8, 24].map(|sector| world.submit(0, dm, Io::write_pattern(sector, 8, 1)));
    world.run();
    world.load(dm, "0 512 plain d1 0");
    world.suspend(dm, true);
    let newer = [0, 16].map(|sector| world.submit(0, dm, Io::write_pattern(sector, 8, 2)));
    world.run();
    assert_eq!((world.gauges(dm).held, world.gauges(dm).in_flight), (5, 0));
    world.resume(dm);
    world.run();
    assert_eq!(writes(world.lower("d1")), [40, 8, 24, 0, 16]);
    assert!(writes(world.lower("d0")).is_empty(), "the old table got nothing");
    for ticket in older.into_iter().chain(newer) {
        assert_eq!(status(&mut world, ticket), Status::Ok);
    }
    world.assert_quiet();
}

#[test]
fn a_newer_write_of_the_same_sectors_wins_over_a_pushed_back_one() {
    let mut world = world();
    let dm = world.create("t", "0 512 probe d0 0");
    world.message(dm, 0, &["hold"]).unwrap();
    world.submit(1, dm, Io::write_pattern(8, 8, 1));
    world.run();
    world.suspend(dm, true);
    world.submit(1, dm, Io::write_pattern(8, 8, 2));
    world.run();
    world.resume(dm);
    world.run();
    assert_eq!(world.lower("d0").bytes(8, 8), pattern(8, 8, 2));
    world.assert_quiet();
}

#[test]
fn held_io_survives_one_bad_table_after_another() {
    let mut world = world();
    let dm = world.create("t", "0 512 probe d0 0");
    world.message(dm, 0, &["hold"]).unwrap();
    let tickets = [8, 0, 16].map(|sector| world.submit(0, dm, Io::write_pattern(sector, 8, 1)));
    world.run();
    for _ in 0..3 {
        // The next table is as bad: what runs again is kept again, and pushed back again.
        world.load(dm, "0 512 probe d1 0");
        world.suspend(dm, true);
        world.lower("d1").hold(OpSet::all());
        world.resume(dm);
        world.message(dm, 0, &["return"]).unwrap();
        let suspend = world.start_suspend(dm, crate::rig::noflush());
        world.lower("d1").fail(0..512, OpSet::WRITE, Status::IoErr);
        world.lower("d1").flow();
        world.run();
        crate::rig::accepted(world.answer(suspend));
        assert_eq!(world.gauges(dm).held, 3, "pushed back out of end_io, the error is forgotten");
    }
    world.swap(dm, "0 512 plain d2 0", true);
    world.run();
    assert_eq!(writes(world.lower("d2")), [8, 0, 16]);
    for ticket in tickets {
        assert_eq!(status(&mut world, ticket), Status::Ok);
    }
    world.assert_quiet();
}

#[test]
fn a_requeue_without_noflush_is_an_error_to_the_submitter() {
    let mut world = world();
    let dm = world.create("t", "0 512 lab d0 0");
    world.message(dm, 0, &["requeue"]).unwrap();
    assert_eq!(world.io(dm, Io::write_pattern(0, 8, 1)).status, Status::IoErr);
    world.message(dm, 0, &["good"]).unwrap();
    assert_eq!(world.io(dm, Io::write_pattern(0, 8, 1)).status, Status::Ok);
    assert_eq!(world.gauges(dm).errors, 1);
    world.assert_quiet();
}

#[test]
fn the_last_error_of_a_split_bio_wins() {
    for (order, wanted) in [(["d0", "d1"], Status::NoSpace), (["d1", "d0"], Status::Medium)] {
        let mut world = world();
        let dm = world.create("t", "0 64 plain d0 0\n64 64 plain d1 0");
        world.lower("d0").fail(0..64, OpSet::WRITE, Status::Medium);
        world.lower("d1").fail(0..64, OpSet::WRITE, Status::NoSpace);
        for name in ["d0", "d1"] {
            world.lower(name).hold(OpSet::all());
        }
        let ticket = world.submit(0, dm, Io::write_pattern(32, 64, 1));
        world.run();
        for name in order {
            assert!(world.done(ticket).is_none(), "a piece is under way");
            assert!(world.lower(name).release(0));
            world.run();
        }
        assert_eq!(status(&mut world, ticket), wanted);
        world.assert_quiet();
    }
}

#[test]
fn an_error_of_one_piece_fails_the_bio_although_later_pieces_succeed() {
    let mut world = world();
    let dm = world.create("t", "0 64 plain d0 0\n64 64 plain d1 0");
    world.lower("d0").fail(0..64, OpSet::READ, Status::Medium);
    assert_eq!(world.io(dm, Io::read(0, 128)).status, Status::Medium);
    world.assert_quiet();
}

#[test]
fn a_push_back_beats_an_error_and_repeats_all_of_a_fan_out() {
    let mut world = world();
    let dm = world.create("t", "0 64 probe d0 0\n64 64 probe d1 0");
    world.message(dm, 0, &["hold"]).unwrap();
    world.lower("d1").fail_flushes(Some(Status::Medium));
    let ticket = world.submit(0, dm, Io::flush());
    world.run();
    assert!(world.done(ticket).is_none(), "the first copy is held, the second has failed");
    world.suspend(dm, true);
    world.lower("d1").heal();
    world.resume(dm);
    world.run();
    assert_eq!(status(&mut world, ticket), Status::Ok);
    assert_eq!((world.lower("d0").flushes(), world.lower("d1").flushes()), (1, 2));
    world.assert_quiet();
}

#[test]
fn a_split_discard_repeats_only_the_piece_that_was_pushed_back() {
    let mut world = world();
    let dm = world.create("t", "0 64 lab d0 0 discards=3\n64 64 probe d1 0");
    world.message(dm, 64, &["hold"]).unwrap();
    let ticket = world.submit(0, dm, Io::discard(32, 64));
    world.run();
    let discards = |world: &udm_testkit::TestWorld, name: &str| {
        world.lower(name).log().iter().filter(|seen| seen.op == Op::Discard).count()
    };
    assert_eq!(discards(&world, "d0"), 3, "as many copies as the target asks for");
    world.suspend(dm, true);
    world.resume(dm);
    world.run();
    assert_eq!(status(&mut world, ticket), Status::Ok);
    // The pieces are of a split, so only the pushed-back one runs again.
    assert_eq!((discards(&world, "d0"), discards(&world, "d1")), (3, 1));
    world.assert_quiet();
}
