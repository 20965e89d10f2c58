//! Space: what dies comes back, a full volume says so, and data survives being moved.

use super::host::{BLOCK, World, data, formatted, noise, tiny_shape};
use crate::compress::volume::{Event, NoSpace, Options, State, Trouble};
use alloc::vec::Vec;
use udm_meta::DiskOpKind;
use udm_types::{BioFlags, Nanos, Op, Status};

/// Overwrites at random, `count` times, and checks everything at the end.
fn churn(world: &mut World, blocks: u64, count: u64, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut tags: Vec<u64> = alloc::vec![0; blocks as usize];
    for step in 0..count {
        let block = rng.u64(..blocks);
        let tag = seed * 100_000 + step + 1;
        let status = world.write(block * BLOCK, &noise(1, tag));
        assert_eq!(status, Status::Ok, "step {step}: {:?}", world.volume.counters());
        tags[block as usize] = tag;
        if rng.u32(..10) == 0 {
            assert_eq!(world.flush(), Status::Ok);
        }
    }
    for (block, tag) in tags.iter().enumerate().filter(|(_, tag)| **tag != 0) {
        let read = world.read(block as u64 * BLOCK, BLOCK).expect("read");
        assert!(read == noise(1, *tag), "block {block}");
    }
}

#[test]
fn overwriting_for_ever_needs_no_more_space() {
    // 30 segments of 15 raw blocks; two thirds of them are live.
    let mut world = World::open(formatted(tiny_shape(), 30, 300), Options::default());
    world.run();
    churn(&mut world, 300, 3000, 1);
    let counters = world.volume.counters();
    assert!(counters.counts.segments_cleaned > 20, "{counters:?}");
    assert!(world.ops.discards > 20);
    world.checkpoint();
    world.assert_sound();
    let mut world = world.reopen();
    churn(&mut world, 300, 300, 2);
    assert!(!world.events.contains(&Event::OutOfSpace));
}

#[test]
fn a_full_volume_refuses_writes_and_takes_them_again_after_a_discard() {
    let options = Options { no_space: NoSpace::Error, ..Options::default() };
    let mut world = World::open(formatted(tiny_shape(), 20, 600), options);
    world.run();
    let mut written = 0;
    let refused = loop {
        match world.write(written * BLOCK, &noise(4, written)) {
            Status::Ok => written += 4,
            status => break status,
        }
        assert!(written < 600, "it is larger than its disk");
    };
    assert_eq!(refused, Status::NoSpace);
    assert!(world.events.contains(&Event::LowSpace) && world.events.contains(&Event::OutOfSpace));
    assert!(written >= 15 * 10, "most of the disk was used: {written}");
    assert_eq!(world.flush(), Status::Ok, "flushes do not need space");
    for first in (0..written).step_by(4) {
        assert!(world.read(first * BLOCK, 4 * BLOCK).expect("read") == noise(4, first));
    }
    assert_eq!(world.op(Op::Discard, 0, 100 * BLOCK), Status::Ok);
    world.run();
    assert!(world.events.contains(&Event::SpaceAgain), "{:?}", world.events);
    assert_eq!(world.write(500 * BLOCK, &noise(4, 9)), Status::Ok);
    world.checkpoint();
    world.assert_sound();
}

#[test]
fn writes_wait_for_space_until_their_time_is_over() {
    let timeout = Nanos::from_secs(60);
    let options = Options { no_space: NoSpace::Queue { timeout }, ..Options::default() };
    let mut world = World::open(formatted(tiny_shape(), 20, 600), options);
    world.run();
    let mut first = 0;
    let waiting = loop {
        let ticket = world.submit_write(first * BLOCK, &noise(4, first), BioFlags::empty());
        if world.end(ticket).is_none() {
            break ticket;
        }
        first += 4;
    };
    world.op(Op::Discard, 0, 100 * BLOCK);
    assert_eq!(world.end(waiting), Some(Status::Ok), "there is space again");
    let waiting = loop {
        first += 4;
        let ticket = world.submit_write(first * BLOCK, &noise(4, first), BioFlags::empty());
        if world.end(ticket).is_none() {
            break ticket;
        }
    };
    world.now = world.now + timeout;
    assert_eq!(world.end(waiting), Some(Status::NoSpace));
}

/// Found by the simulator: of writes to one block, each waited its whole time after the one before
/// it had failed.
#[test]
fn those_who_wait_for_each_other_wait_for_space_together() {
    let timeout = Nanos::from_secs(60);
    let options = Options { no_space: NoSpace::Queue { timeout }, ..Options::default() };
    let mut world = World::open(formatted(tiny_shape(), 20, 600), options);
    world.run();
    for block in 0.. {
        let ticket = world.submit_write(block * BLOCK, &noise(1, block), BioFlags::empty());
        if world.end(ticket).is_none() {
            break;
        }
    }
    let small = noise(1, 9);
    let waiting: Vec<u64> =
        (0..5).map(|at| world.submit_write(at * 512, &small[..512], BioFlags::empty())).collect();
    world.run();
    world.now = world.now + timeout;
    for ticket in waiting {
        assert_eq!(world.end(ticket), Some(Status::NoSpace));
    }
}

#[test]
fn whoever_waits_for_space_goes_before_the_cleaners_copies() {
    // Nearly full, and what is freed has to be discarded first: the cleaner took it again for
    // copies, so that the writer never saw it and the cleaner never ended.
    let timeout = Nanos::from_secs(60);
    let options = Options { no_space: NoSpace::Queue { timeout }, ..Options::default() };
    for seed in 0..60 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let segments = rng.u64(7..12);
        let mut world = World::open(formatted(tiny_shape(), segments, 600), options.clone());
        world.run();
        world.has_slow_discards = true;
        for step in 0..400 {
            let block = rng.u64(..(segments - 4) * 15);
            let op = if rng.u32(..8) == 0 { Op::Discard } else { Op::Write };
            let ticket = match op {
                Op::Write => world.submit_write(block * BLOCK, &noise(1, step), BioFlags::empty()),
                _ => world.submit_op(op, block * BLOCK, 4 * BLOCK),
            };
            world.budget = 5000;
            assert!(world.run(), "seed {seed}, step {step}: {:?}", world.volume.counters());
            if world.end(ticket).is_none() {
                world.now = world.now + timeout;
                assert_eq!(world.end(ticket), Some(Status::NoSpace), "seed {seed}, step {step}");
            }
        }
        world.checkpoint();
        world.assert_sound();
    }
}

#[test]
fn a_quiet_volume_folds_its_changes_in_and_sleeps() {
    let quiet = Nanos::from_secs(5);
    let options =
        Options { delta_bytes: 64 << 10, quiet_before_checkpoint: quiet, ..Options::default() };
    let mut world = World::open(formatted(tiny_shape(), 40, 600), options);
    world.run();
    let checkpoints = |world: &World| world.volume.counters().counts.checkpoints;
    assert_eq!(world.volume.next_timer(), None);
    // Not worth it: the changes take less memory than the timer is worth.
    world.write(0, &data(1, 1));
    world.flush();
    assert_eq!((checkpoints(&world), world.volume.next_timer()), (0, None));
    for block in 0..200 {
        world.write(2 * block * BLOCK, &data(1, block));
    }
    world.flush();
    assert_eq!(checkpoints(&world), 0);
    let due = world.volume.next_timer().expect("it comes back when it has been quiet");
    assert_eq!(due, world.now + quiet);
    world.now = world.now + Nanos::from_secs(4);
    world.write(500 * BLOCK, &data(1, 9));
    world.flush();
    world.now = due;
    world.run();
    assert_eq!(checkpoints(&world), 0, "it was not quiet");
    world.now = world.now + quiet;
    world.run();
    assert_eq!((checkpoints(&world), world.volume.counters().changes), (1, 0));
    assert_eq!(world.volume.next_timer(), None, "idle again");
}

#[test]
fn a_segment_is_not_used_again_before_its_discard_has_ended() {
    let mut world = World::open(formatted(tiny_shape(), 30, 300), Options::default());
    world.run();
    world.write(0, &noise(60, 1));
    world.write(0, &noise(60, 2));
    world.flush();
    let free = |world: &World| {
        let counters = world.volume.counters();
        counters.segments - counters.segments_used
    };
    let held = alloc::rc::Rc::new(core::cell::Cell::new(0));
    let seen = alloc::rc::Rc::clone(&held);
    world.script = Some(alloc::boxed::Box::new(move |op| {
        seen.set(seen.get() + u64::from(op.kind == DiskOpKind::Discard));
        None
    }));
    let before = free(&world);
    world.checkpoint();
    assert!(held.get() >= 3 && free(&world) >= before + 3);
    // A device that cannot discard is asked once and no more.
    let seen = alloc::rc::Rc::clone(&held);
    seen.set(0);
    world.script = Some(alloc::boxed::Box::new(move |op| match op.kind {
        DiskOpKind::Discard => {
            seen.set(seen.get() + 1);
            Some(Status::NotSupported)
        }
        DiskOpKind::Read | DiskOpKind::Write { .. } | DiskOpKind::Flush => None,
    }));
    world.write(0, &noise(60, 3));
    world.flush();
    world.checkpoint();
    assert_eq!(held.get(), 1);
    assert!(free(&world) >= before);
}

#[test]
fn the_host_can_ask_for_cleaning() {
    let mut world = World::open(formatted(tiny_shape(), 40, 300), Options::default());
    world.run();
    world.write(0, &noise(120, 1));
    for block in (0..120).step_by(2) {
        world.write(block * BLOCK, &noise(1, block + 7));
    }
    world.checkpoint();
    let before = world.volume.counters().counts.segments_cleaned;
    world.volume.gc(5);
    world.run();
    assert!(world.volume.counters().counts.segments_cleaned >= before + 5);
    for block in 0..120 {
        let wanted = match block % 2 {
            0 => noise(1, block + 7),
            _ => noise(120, 1)[block as usize * 4096..][..4096].to_vec(),
        };
        assert!(world.read(block * BLOCK, BLOCK).expect("read") == wanted, "block {block}");
    }
    world.assert_sound();
}

#[test]
fn budgets_hold_while_a_small_volume_is_churned() {
    let options = Options {
        delta_bytes: 64 << 10,
        buffer_bytes: 256 << 10,
        cache_bytes: 64 << 10,
        ..Options::default()
    };
    let mut world = World::open(formatted(tiny_shape(), 80, 4000), options);
    world.run();
    let mut rng = fastrand::Rng::with_seed(5);
    for step in 0..400 {
        let first = rng.u64(..3990);
        world.submit_write(first * BLOCK, &data(8, step), BioFlags::empty());
        if step % 8 == 0 {
            world.run();
        }
        let counters = world.volume.counters();
        assert!(counters.buffered_bytes <= 256 << 10, "{counters:?}");
        assert!(counters.memory_bytes < 1 << 20, "{counters:?}");
    }
    world.run();
    assert!(world.done.values().all(|status| status.is_ok()));
    assert_eq!(world.volume.state(), State::Serving);
    assert!(world.volume.counters().counts.checkpoints > 1, "the delta was folded in");
}

/// Found by the crash enumerator: a request that needs several segments at once waited for ever.
#[test]
fn a_large_request_on_a_full_volume_ends_too() {
    let timeout = Nanos::from_secs(5);
    let options = Options { no_space: NoSpace::Queue { timeout }, ..Options::default() };
    let mut world = World::open(formatted(tiny_shape(), 20, 1000), options);
    world.run();
    for first in (0..).step_by(16) {
        let ticket = world.submit_write(first * BLOCK, &noise(16, first), BioFlags::empty());
        if world.end(ticket).is_none() {
            world.now = world.now + timeout;
            assert_eq!(world.end(ticket), Some(Status::NoSpace));
            break;
        }
    }
    // Some room is left, but not for so much.
    for blocks in [64, 48, 32] {
        let ticket = world.submit_write(800 * BLOCK, &noise(blocks, 7), BioFlags::empty());
        world.run();
        world.now = world.now + timeout;
        assert!(world.end(ticket).is_some(), "{blocks} blocks wait for ever");
    }
}

/// Found by a benchmark: zeroes may take from the reserve, and others then filled what they opened,
/// until the cleaner had nothing left to copy into.
#[test]
fn zeroes_do_not_let_others_into_the_reserve() {
    let mut world = World::open(formatted(tiny_shape(), 30, 300), Options::default());
    world.run();
    let mut rng = fastrand::Rng::with_seed(8);
    for step in 0..4000 {
        let at = rng.u64(..300) * BLOCK;
        let bytes = match step % 3 {
            0 => alloc::vec![0; BLOCK as usize],
            _ => noise(1, step),
        };
        assert_eq!(world.write(at, &bytes), Status::Ok, "step {step}");
    }
    assert!(!world.events.contains(&Event::OutOfSpace));
}

/// A failed record is no damage to metadata: after the next opening all is well.
#[test]
fn a_record_that_fails_while_cleaning_asks_for_no_check() {
    let mut world = World::open(formatted(tiny_shape(), 30, 300), Options::default());
    world.run();
    churn(&mut world, 300, 600, 3);
    world.flush();
    world.checkpoint();
    let from = world.data_offset();
    world.script = Some(alloc::boxed::Box::new(move |op| {
        let is_write = matches!(op.kind, DiskOpKind::Write { .. });
        (is_write && op.offset_bytes >= from).then_some(Status::Timeout)
    }));
    world.volume.gc(10);
    world.run();
    let state = world.volume.state();
    assert!(matches!(state, State::ReadOnly(Trouble::Disk(_))), "{state:?}");
    world.script = None;
    let mut world = world.reopen();
    assert_eq!(world.volume.state(), State::Serving);
    churn(&mut world, 300, 100, 4);
}
