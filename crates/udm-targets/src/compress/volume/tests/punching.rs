//! Dead parts of used segments go back to the device below.

use super::host::{BLOCK, World, data, formatted, noise, tiny_shape};
use crate::compress::volume::{Options, State};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use udm_meta::DiskOpKind;
use udm_types::{BioFlags, Status};

fn options() -> Options {
    let punch_granularity_bytes = Some(4096);
    Options { punch_granularity_bytes, discard_passdown: false, ..Options::default() }
}

fn world() -> World {
    let mut world = World::open(formatted(tiny_shape(), 40, 600), options());
    world.run();
    world
}

/// Writes 200 blocks, and half of them again, in runs of two; gives what was discarded.
fn half_dead(world: &mut World) -> Vec<(u64, u64)> {
    let seen: Rc<RefCell<Vec<(u64, u64)>>> = Rc::default();
    let hears = Rc::clone(&seen);
    world.script = Some(alloc::boxed::Box::new(move |op| {
        if op.kind == DiskOpKind::Discard {
            hears.borrow_mut().push((op.offset_bytes, op.len_bytes));
        }
        None
    }));
    for block in 0..200 {
        assert_eq!(world.write(block * BLOCK, &noise(1, block)), Status::Ok);
    }
    world.checkpoint();
    for block in (0..200).filter(|block| block % 4 >= 2) {
        assert_eq!(world.write(block * BLOCK, &noise(1, 1000 + block)), Status::Ok);
    }
    assert!(seen.borrow().is_empty(), "nothing is dead by a checkpoint");
    world.checkpoint();
    world.run();
    world.script = None;
    seen.take()
}

#[track_caller]
fn assert_half(world: &mut World) {
    for block in 0..200 {
        let tag = if block % 4 >= 2 { 1000 + block } else { block };
        assert!(world.read(block * BLOCK, BLOCK).expect("read") == noise(1, tag), "block {block}");
    }
}

#[test]
fn dead_extents_are_discarded_and_what_lives_between_them_stays() {
    let mut world = world();
    let discards = half_dead(&mut world);
    let bytes: u64 = discards.iter().map(|(_, len)| len).sum();
    // A run of two dead blocks of noise is 8320 bytes, with one whole piece of 4096 in it at
    // least; some runs lie in two records, and the last segment is not counted yet.
    assert!(bytes >= 25 * 4096, "{bytes} in {}", discards.len());
    assert!(discards.iter().all(|(at, len)| at % 4096 == 0 && len % 4096 == 0));
    assert_eq!(world.volume.counters().counts.punched_bytes, bytes);
    assert_half(&mut world);
    world.assert_sound();
    // Everybody who walks over records goes on: the cleaner, recovery, check.
    world.volume.gc(14);
    world.run();
    assert!(world.volume.counters().counts.segments_cleaned > 5);
    assert_half(&mut world);
    let mut world = world.reopen();
    assert_eq!(world.volume.state(), State::Serving);
    assert_half(&mut world);
    world.assert_sound();
}

#[test]
fn without_the_option_nothing_is_punched() {
    let punch_granularity_bytes = None;
    let options = Options { punch_granularity_bytes, ..options() };
    let mut world = World::open(formatted(tiny_shape(), 40, 600), options);
    world.run();
    assert!(half_dead(&mut world).is_empty());
}

#[test]
fn a_segment_in_which_somebody_reads_is_left_for_the_next_time() {
    let mut world = world();
    for block in 0..60 {
        world.write(block * BLOCK, &noise(1, block));
    }
    world.checkpoint();
    // A read that has looked its blocks up, and whose disk is slow.
    world.read(0, 60 * BLOCK).expect("the map is in memory");
    world.is_stalled = true;
    let payload = udm_lane::Payload::from_buf(udm_lane::Buf::alloc(60 * BLOCK as usize));
    let (op, flags) = (udm_types::Op::Read, BioFlags::empty());
    let ticket = world.submit_with(op, flags, 0, payload.clone(), 60 * BLOCK);
    world.run();
    world.keep_back();
    world.is_stalled = false;
    for block in (0..60).filter(|block| block % 4 >= 2) {
        world.write(block * BLOCK, &noise(1, 1000 + block));
    }
    world.checkpoint();
    world.run();
    assert_eq!(world.volume.counters().counts.punched_bytes, 0);
    world.let_go();
    assert_eq!(world.end(ticket), Some(Status::Ok));
    let mut read = alloc::vec![0; 60 * BLOCK as usize];
    payload.copy_out(0, &mut read);
    assert!((0..60).all(|block| {
        read[(block * BLOCK) as usize..][..BLOCK as usize] == noise(1, block)[..]
    }));
    world.write(400 * BLOCK, &data(1, 1));
    world.checkpoint();
    world.run();
    assert!(world.volume.counters().counts.punched_bytes > 0);
    world.assert_sound();
}

/// What is dead in memory only is alive after a crash.
#[test]
fn a_crash_finds_everything_that_was_not_dead_by_a_checkpoint() {
    let mut punched = 0;
    for seed in 0..40 {
        let mut rng = fastrand::Rng::with_seed(seed);
        // Small pieces, so that one dead extent is enough.
        let options = Options { punch_granularity_bytes: Some(512), ..options() };
        let mut world = World::open(formatted(tiny_shape(), 40, 600), options);
        world.run();
        let mut tags: Vec<u64> = alloc::vec![u64::MAX; 200];
        for step in 0..rng.u64(200..900) {
            let block = rng.u64(..200);
            assert_eq!(world.write(block * BLOCK, &noise(1, step)), Status::Ok);
            tags[block as usize] = step;
            if rng.u32(..60) == 0 {
                world.checkpoint();
            }
        }
        world.flush();
        // Overwritten right after the last flush of the checkpoint, so none of it is durable.
        let before = world.volume.counters().checkpoint;
        world.volume.checkpoint();
        while world.volume.counters().checkpoint == before {
            world.budget = 1;
            world.run();
        }
        let mut later = tags.clone();
        for _ in 0..40 {
            let block = rng.usize(..200);
            later[block] = 10_000 + block as u64;
            let bytes = noise(1, later[block]);
            world.submit_write(block as u64 * BLOCK, &bytes, BioFlags::empty());
        }
        world.budget = rng.u64(5..100);
        world.run();
        punched += world.volume.counters().counts.punched_bytes;
        let mut world = world.cut(&mut rng);
        world.run();
        for (block, (tag, later)) in (0..).zip(tags.iter().zip(&later)) {
            let read = world.read(block * BLOCK, BLOCK).expect("read");
            let is = |tag: u64| tag != u64::MAX && read == noise(1, tag);
            let is_right = is(*tag) || is(*later) || *tag == u64::MAX;
            assert!(is_right, "seed {seed}, block {block}");
        }
        world.assert_sound();
    }
    assert!(punched > 1 << 20, "{punched}");
}
