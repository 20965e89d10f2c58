//! Ordered barriers over several lanes, mixed with ordinary I/O, suspends and removals.
//!
//! The order is observed at recording lower devices: `Seen::event` is when a bio came there,
//! `Seen::completed` when it was done, both on one clock of events over all devices and lanes.

use crate::rig::{accepted, noflush, status, world, world_of};
use udm_testkit::{Io, IoTicket, Seen, TestWorld, mix};
use udm_types::{BioFlags, DeviceId, Op, OpSet, Status};

fn barrier(sector: u64, generation: u64) -> Io {
    Io::write_pattern(sector, 8, generation).with(BioFlags::ORDERED)
}

/// The bios a device got for a sector, or its flushes.
fn seen(world: &TestWorld, name: &str, op: Op, sector: u64) -> Vec<Seen> {
    let log = world.lower(name).log();
    log.into_iter().filter(|seen| seen.op == op && seen.sector == sector).collect()
}

#[test]
fn a_barrier_is_ordered_against_io_of_all_lanes() {
    let mut world = world_of(4);
    let dm = world.create("t", "0 64 plain d0 0\n64 64 plain d1 0");
    for name in ["d0", "d1"] {
        world.lower(name).hold(OpSet::WRITE);
    }
    let on_each = |world: &mut TestWorld, generation| -> Vec<IoTicket> {
        let io = |lane: u16| Io::write_pattern(32 * u64::from(lane), 8, generation);
        (0..4).map(|lane| world.submit(lane, dm, io(lane))).collect()
    };
    let before = on_each(&mut world, 1);
    world.run();
    let fence = world.submit(2, dm, barrier(8, 2));
    let behind = world.submit(2, dm, Io::write_pattern(16, 8, 2));
    world.run();
    assert_eq!(
        world.lower("d0").flushes() + world.lower("d1").flushes(),
        0,
        "writes are under way"
    );
    // Now every lane knows of the barrier, so this comes after it.
    let after = on_each(&mut world, 3);
    for name in ["d0", "d1"] {
        world.lower(name).flow();
    }
    world.run();
    for ticket in before.into_iter().chain([fence, behind]).chain(after) {
        assert_eq!(status(&mut world, ticket), Status::Ok);
    }
    let data = &seen(&world, "d0", Op::Write, 8)[0];
    for name in ["d0", "d1"] {
        let flushes = seen(&world, name, Op::Flush, 0);
        assert_eq!(flushes.len(), 2, "{name}: one before the data, one after");
        assert!(flushes[0].completed < data.event && data.completed < flushes[1].event);
        for sector in [0, 32] {
            let writes = seen(&world, name, Op::Write, sector);
            assert!(writes[0].completed < flushes[0].event, "{name} {sector}: it came before");
            assert!(writes[1].event > flushes[1].completed, "{name} {sector}: it came after");
        }
    }
    assert!(seen(&world, "d0", Op::Write, 16)[0].event > data.completed);
    world.assert_quiet();
}

#[test]
fn a_barrier_covers_what_other_lanes_have_completed() {
    let mut world = world();
    let dm = world.create("t", "0 64 plain d0 0\n64 64 plain d1 0");
    let write = world.io_on(0, dm, Io::write_pattern(64, 8, 1));
    let fence = world.io_on(1, dm, barrier(0, 1));
    let later = world.io_on(0, dm, Io::write_pattern(72, 8, 1));
    assert!(write.event < fence.event && fence.event < later.event);
    let flushes = seen(&world, "d1", Op::Flush, 0);
    assert!(seen(&world, "d1", Op::Write, 0)[0].completed < flushes[0].event);
    world.assert_quiet();
}

#[test]
fn barriers_of_all_lanes_at_once_take_turns() {
    let mut world = world_of(4);
    let dm = world.create("t", "0 512 plain d0 0");
    let tickets: Vec<_> = (0..16_u64)
        .map(|index| world.submit((index % 4) as u16, dm, barrier(index * 8, 1)))
        .collect();
    world.run();
    for ticket in tickets {
        assert_eq!(status(&mut world, ticket), Status::Ok);
    }
    let log = world.lower("d0").log();
    let ops: Vec<Op> = log.iter().map(|seen| seen.op).collect();
    assert_eq!(ops, [Op::Flush, Op::Write, Op::Flush].repeat(16), "one at a time, each whole");
    assert!(log.windows(2).all(|pair| pair[0].completed < pair[1].event));
    world.assert_quiet();
}

#[test]
fn an_empty_barrier_is_one_flush_at_its_place() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    let tickets = [
        world.submit(0, dm, Io::write_pattern(0, 8, 1)),
        world.submit(0, dm, Io::flush().with(BioFlags::ORDERED)),
        world.submit(0, dm, Io::write_pattern(8, 8, 1)),
    ];
    world.run();
    for ticket in tickets {
        assert_eq!(status(&mut world, ticket), Status::Ok);
    }
    let ops: Vec<Op> = world.lower("d0").log().iter().map(|seen| seen.op).collect();
    assert!(ops.first() == Some(&Op::Write) && ops.last() == Some(&Op::Write));
    assert!(ops[1..ops.len() - 1].iter().all(|op| *op == Op::Flush));
    world.assert_quiet();
}

#[test]
fn a_barrier_that_fails_says_so_and_lets_the_others_go_on() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.lower("d0").fail(0..8, OpSet::WRITE, Status::Medium);
    let bad = world.submit(0, dm, barrier(0, 1));
    let good = world.submit(1, dm, barrier(8, 1));
    world.run();
    assert_eq!(status(&mut world, bad), Status::Medium);
    assert_eq!(status(&mut world, good), Status::Ok);
    world.lower("d0").fail_flushes(Some(Status::NoSpace));
    assert_eq!(world.io(dm, barrier(16, 1)).status, Status::NoSpace);
    assert!(seen(&world, "d0", Op::Write, 16).is_empty(), "its first flush failed");
    world.lower("d0").heal();
    assert_eq!(world.io(dm, barrier(0, 1)).status, Status::Ok);
    world.assert_quiet();
}

#[test]
fn a_suspend_waits_for_the_barrier_in_progress_in_every_phase() {
    for (ops, noflush) in [(OpSet::FLUSH, true), (OpSet::WRITE, true), (OpSet::FLUSH, false)] {
        let mut world = world();
        let dm = world.create("t", "0 512 plain d0 0");
        world.lower("d0").hold(ops);
        let fence = world.submit(1, dm, barrier(0, 1));
        let after = world.submit(1, dm, Io::write_pattern(8, 8, 1));
        world.run();
        let options = udm_core::lifecycle::SuspendOptions { noflush, ..crate::rig::noflush() };
        let suspend = world.start_suspend(dm, options);
        assert!(world.answer(suspend).is_none(), "the barrier is under way");
        world.lower("d0").flow();
        world.run();
        accepted(world.answer(suspend));
        assert_eq!(status(&mut world, fence), Status::Ok);
        assert!(world.done(after).is_none(), "what follows it waits for the resume");
        world.resume(dm);
        world.run();
        assert_eq!(status(&mut world, after), Status::Ok);
        world.assert_quiet();
    }
}

#[test]
fn a_barrier_that_waits_for_its_turn_keeps_its_place_over_a_suspend() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.lower("d0").hold(OpSet::all());
    let first = world.submit(0, dm, Io::write_pattern(0, 8, 1));
    world.run();
    let fence = world.submit(1, dm, barrier(8, 1));
    let after = world.submit(1, dm, Io::write_pattern(16, 8, 1));
    world.run();
    let suspend = world.start_suspend(dm, noflush());
    world.lower("d0").flow();
    world.run();
    accepted(world.answer(suspend));
    let state = [first, fence, after].map(|ticket| world.done(ticket).is_some());
    assert_eq!(state, [true, false, false], "it has not begun, so it is held");
    world.swap(dm, "0 512 plain d1 0", true);
    world.run();
    let [fence, after] = [fence, after].map(|ticket| world.done(ticket).expect("it is back"));
    assert!(fence.status.is_ok() && after.status.is_ok() && fence.event < after.event);
    let ops: Vec<Op> = world.lower("d1").log().iter().map(|seen| seen.op).collect();
    assert_eq!(ops, [Op::Flush, Op::Write, Op::Flush, Op::Write]);
    world.assert_quiet();
}

#[test]
fn a_device_can_be_removed_with_barriers_held_and_its_number_used_again() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.suspend(dm, true);
    let held = [0, 1, 1].map(|lane| world.submit(lane, dm, barrier(0, 1)));
    world.run();
    world.remove(dm);
    for ticket in held {
        assert_eq!(status(&mut world, ticket), Status::Offline);
    }
    let again = world.create("again", "0 512 plain d1 0");
    assert_eq!(again, dm, "numbers are used again");
    for lane in [0, 1] {
        assert_eq!(world.io_on(lane, again, barrier(0, 1)).status, Status::Ok);
    }
    world.assert_quiet();
}

#[test]
fn a_barrier_pushed_back_in_its_data_is_repeated_whole() {
    let mut world = world();
    let dm = world.create("t", "0 64 plain d0 0\n64 64 probe d1 0");
    world.lower("d1").hold(OpSet::WRITE);
    world.message(dm, 64, &["return"]).unwrap();
    let fence = world.submit(0, dm, barrier(60, 1));
    let after = world.submit(0, dm, Io::write_pattern(0, 8, 1));
    world.run();
    let suspend = world.start_suspend(dm, noflush());
    world.lower("d1").flow();
    world.run();
    accepted(world.answer(suspend));
    world.lower("d0").clear_log();
    world.swap(dm, "0 64 plain d0 0\n64 64 plain d2 0", true);
    world.run();
    let [fence, after] = [fence, after].map(|ticket| world.done(ticket).expect("it is back"));
    assert!(fence.status.is_ok() && after.status.is_ok() && fence.event < after.event);
    let ops: Vec<Op> = world.lower("d0").log().iter().map(|seen| seen.op).collect();
    assert_eq!(
        ops,
        [Op::Flush, Op::Write, Op::Flush, Op::Write],
        "all of it, against the new table"
    );
    world.assert_quiet();
}

/// What was submitted on a lane, in order.
struct Sent {
    ticket: IoTicket,
    barrier: bool,
}

/// Checks that on each lane nothing overtook a barrier, either way.
fn check_order(world: &mut TestWorld, lanes: Vec<Vec<Sent>>) {
    for (lane, sent) in lanes.into_iter().enumerate() {
        let mut newest = 0;
        let mut newest_barrier = 0;
        for (index, Sent { ticket, barrier }) in sent.into_iter().enumerate() {
            let done = world.done(ticket).expect("everything comes back");
            assert_eq!(done.status, Status::Ok, "lane {lane}, I/O {index}");
            assert!(done.event > newest_barrier, "lane {lane}: {index} overtook a barrier");
            if barrier {
                assert!(done.event > newest, "lane {lane}: barrier {index} overtook");
                newest_barrier = done.event;
            }
            newest = newest.max(done.event);
        }
    }
}

fn round(world: &mut TestWorld, dm: DeviceId, seed: u64) {
    let mut lanes: Vec<Vec<Sent>> = (0..world.lanes()).map(|_| Vec::new()).collect();
    let mut suspend = None;
    for step in 0..120_u64 {
        let dice = mix(seed.wrapping_mul(1_000) + step);
        let lane = (dice >> 8) as u16 % world.lanes();
        let sector = (dice >> 16) % 60 * 8;
        let (io, barrier) = match dice % 8 {
            0 => (barrier(sector, step), true),
            1 => (Io::flush().with(BioFlags::ORDERED), true),
            2 => (Io::flush(), false),
            3 => (Io::read(sector, 8), false),
            _ => (Io::write_pattern(sector, 8, step), false),
        };
        lanes[usize::from(lane)].push(Sent { ticket: world.submit(lane, dm, io), barrier });
        match (dice >> 32) % 16 {
            0 => ["d0", "d1"].iter().for_each(|name| world.lower(name).hold(OpSet::all())),
            1 => ["d0", "d1"].iter().for_each(|name| world.lower(name).flow()),
            2 => ["d0", "d1"].iter().for_each(|name| world.lower(name).release_newest_first()),
            3 if suspend.is_none() => suspend = Some(world.start_suspend(dm, noflush())),
            4 if suspend.is_some() => {
                ["d0", "d1"].iter().for_each(|name| world.lower(name).flow());
                world.run();
                accepted(world.answer(suspend.take().expect("one was started")));
                world.resume(dm);
            }
            5 => drop(world.turn(lane)),
            _ => {}
        }
        if dice >> 60 == 0 {
            world.run();
        }
    }
    ["d0", "d1"].iter().for_each(|name| world.lower(name).flow());
    world.run();
    ["d0", "d1"].iter().for_each(|name| world.lower(name).flow());
    if let Some(suspend) = suspend {
        world.run();
        accepted(world.answer(suspend));
    }
    world.resume(dm);
    world.run();
    check_order(world, lanes);
}

#[test]
fn barriers_io_and_suspends_in_any_mix_keep_the_order_of_each_lane() {
    for seed in 0..60 {
        let mut world = world_of(1 + (seed % 4) as u16);
        let dm = world.create("t", "0 240 plain d0 0\n240 240 probe d1 0");
        round(&mut world, dm, seed);
        world.assert_quiet();
    }
}
