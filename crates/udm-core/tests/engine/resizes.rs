//! Resize in a table swap, both ways, with I/O outstanding, also under noflush.
//!
//! Traps: a size reported before it is there; a resize that waits for I/O to flow through a new
//! table that may be as bad as the old one.

use crate::rig::{accepted, key, noflush, status, world};
use udm_core::actor::DeviceNotice;
use udm_core::lifecycle::Request;
use udm_testkit::{Io, TestWorld};
use udm_types::{DeviceId, LaneId, OpSet, Status};

fn resized(world: &mut TestWorld, dm: DeviceId) -> Vec<LaneId> {
    let notices = world.take_notices();
    let wanted = DeviceNotice::Resized(dm);
    notices.iter().filter(|(_, notice)| *notice == wanted).map(|(lane, _)| *lane).collect()
}

#[test]
fn growing_under_noflush_with_io_outstanding_loses_nothing() {
    let mut world = world();
    let dm = world.create("t", "0 256 probe d0 0");
    world.message(dm, 0, &["hold"]).unwrap();
    let inside = [0, 1].map(|lane| world.submit(lane, dm, Io::write_pattern(0, 8, 1)));
    let refused = world.io(dm, Io::write_pattern(256, 8, 1));
    assert_eq!(refused.status, Status::IoErr, "beyond the end of the live table");
    world.load(dm, "0 512 plain d0 0");
    world.suspend(dm, true);
    let beyond = world.submit(0, dm, Io::write_pattern(256, 8, 1));
    world.run();
    world.take_notices();
    world.resume(dm);
    assert_eq!(resized(&mut world, dm), [LaneId(0), LaneId(1)]);
    for ticket in inside.into_iter().chain([beyond]) {
        assert_eq!(status(&mut world, ticket), Status::Ok);
    }
    world.assert_quiet();
}

/// Found by the simulator (seed 13229): every load looks at the size of the devices below, and the
/// size seen then was believed for the live table, too, for ever.
#[test]
fn a_device_that_was_smaller_during_a_load_is_whole_again_when_it_is() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    let whole = world.lower("d0").bytes(0, 512).len() as u64 / 512;
    world.lower("d0").set_len_sectors(256);
    world.load(dm, "0 128 plain d0 0");
    assert_eq!(world.io(dm, Io::read(400, 8)).status, Status::IoErr, "it is smaller now");
    accepted(Some(world.request(Request::Clear { device: key(dm) })));
    world.lower("d0").set_len_sectors(whole);
    assert_eq!(world.io(dm, Io::read(400, 8)).status, Status::Ok);
    world.assert_quiet();
}

#[test]
fn shrinking_fails_held_io_beyond_the_new_end_and_only_that() {
    for noflush in [true, false] {
        let mut world = world();
        let dm = world.create("t", "0 512 probe d0 0");
        world.load(dm, "0 256 plain d0 0");
        world.suspend(dm, noflush);
        let sectors = [0, 248, 252, 256, 504];
        let tickets = sectors.map(|sector| world.submit(1, dm, Io::write_pattern(sector, 8, 1)));
        let flush = world.submit(1, dm, Io::flush());
        world.run();
        world.resume(dm);
        world.run();
        let ended = tickets.map(|ticket| status(&mut world, ticket));
        let (good, bad) = (Status::Ok, Status::IoErr);
        assert_eq!(ended, [good, good, bad, bad, bad], "held I/O at {sectors:?}");
        assert_eq!(status(&mut world, flush), Status::Ok);
        assert_eq!(world.io(dm, Io::read(248, 8)).status, Status::Ok);
        world.assert_quiet();
    }
}

#[test]
fn shrinking_fails_pushed_back_io_beyond_the_new_end_and_only_that() {
    let mut world = world();
    let dm = world.create("t", "0 512 probe d0 0");
    world.message(dm, 0, &["hold"]).unwrap();
    let inside = world.submit(0, dm, Io::write_pattern(248, 8, 1));
    let beyond = world.submit(0, dm, Io::write_pattern(256, 8, 1));
    world.run();
    world.swap(dm, "0 256 plain d0 0", true);
    world.run();
    assert_eq!(status(&mut world, inside), Status::Ok);
    assert_eq!(status(&mut world, beyond), Status::IoErr);
    world.assert_quiet();
}

#[test]
fn a_split_bio_fails_if_a_piece_of_it_is_beyond_the_new_end() {
    let mut world = world();
    let dm = world.create("t", "0 64 plain d0 0\n64 64 probe d1 0");
    world.message(dm, 64, &["hold"]).unwrap();
    let ticket = world.submit(0, dm, Io::write_pattern(32, 64, 1));
    world.run();
    world.swap(dm, "0 64 plain d0 0", true);
    world.run();
    assert_eq!(status(&mut world, ticket), Status::IoErr);
    assert_eq!(world.census().parents, 0);
    world.assert_quiet();
}

#[test]
fn a_resize_is_done_although_no_io_flows_through_the_new_table() {
    let mut world = world();
    let dm = world.create("t", "0 256 probe d0 0");
    world.message(dm, 0, &["hold"]).unwrap();
    let ticket = world.submit(0, dm, Io::write_pattern(0, 8, 1));
    world.run();
    world.lower("d1").hold(OpSet::all());
    world.swap(dm, "0 512 probe d1 0", true);
    assert_eq!(world.status(dm).len_sectors, 512);
    assert!(world.done(ticket).is_none(), "the new table is as bad as the old one");
    // And it can be replaced: what hangs in its device comes back when that lets go of it.
    world.message(dm, 0, &["return"]).unwrap();
    world.load(dm, "0 1024 plain d2 0");
    let options = noflush();
    let resume = world.start(|ticket| Request::Resume { device: key(dm), options, ticket });
    world.lower("d1").fail(0..512, OpSet::WRITE, Status::Transport);
    world.lower("d1").flow();
    world.run();
    accepted(world.answer(resume));
    assert_eq!(status(&mut world, ticket), Status::Ok);
    assert_eq!(world.status(dm).len_sectors, 1024);
    world.assert_quiet();
}

#[test]
fn a_swap_of_the_same_size_is_not_reported_as_a_resize() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.take_notices();
    world.swap(dm, "0 512 plain d1 0", true);
    world.swap(dm, "0 512 plain d1 0", false);
    assert!(resized(&mut world, dm).is_empty());
    world.assert_quiet();
}

#[test]
fn growing_a_device_in_a_stack_lets_the_one_above_grow() {
    let mut world = world();
    let below = world.create("below", "0 256 plain d0 0");
    let top = world.create("top", "0 256 plain dm:below 0");
    assert!(world.build("0 512 plain dm:below 0").is_err(), "too small below");
    world.swap(below, "0 512 plain d0 0", true);
    world.swap(top, "0 512 plain dm:below 0", true);
    assert_eq!(world.io(top, Io::write_pattern(504, 8, 1)).status, Status::Ok);
    world.assert_quiet();
}

#[test]
fn shrinking_a_device_under_another_fails_what_is_beyond_and_not_the_engine() {
    let mut world = world();
    let below = world.create("below", "0 512 plain d0 0");
    let top = world.create("top", "0 512 plain dm:below 0");
    world.swap(below, "0 256 plain d0 0", true);
    assert_eq!(world.io(top, Io::write_pattern(248, 8, 1)).status, Status::Ok);
    assert_eq!(world.io(top, Io::write_pattern(252, 8, 1)).status, Status::IoErr);
    assert_eq!(world.io(top, Io::write_pattern(504, 8, 1)).status, Status::IoErr);
    world.assert_quiet();
}
