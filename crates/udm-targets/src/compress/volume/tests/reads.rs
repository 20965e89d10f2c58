//! What reads cost below, counted, and that what is kept in memory is never old.

use super::host::{BLOCK, World, data, formatted, tiny_shape};
use super::plain::{Plain, files};
use crate::compress::format::{Codec, Shape};
use crate::compress::volume::Options;
use alloc::vec::Vec;
use udm_lane::{Buf, Payload};
use udm_types::{BioFlags, Op, Status};

#[test]
fn a_random_read_is_one_read_below_once_its_page_is_in_memory() {
    let mut world = World::open(formatted(tiny_shape(), 60, 500), Options::default());
    world.run();
    for block in 0..500 {
        world.write(block * BLOCK, &data(1, block));
    }
    world.checkpoint();
    let mut world = world.reopen();
    world.read(0, BLOCK).expect("read");
    assert_eq!(world.volume.counters().counts.page_reads, 1);
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..200 {
        let block = rng.u64(1..500);
        let before = world.ops;
        assert!(world.read(block * BLOCK, BLOCK).expect("read") == data(1, block));
        let reads = world.ops.reads - before.reads;
        assert_eq!((reads, world.ops.writes), (1, before.writes), "block {block}");
    }
    assert_eq!(world.volume.counters().counts.page_reads, 1);
}

#[test]
fn an_extent_is_read_once_for_all_who_read_it_block_by_block() {
    let shape = Shape::for_device(64 << 20);
    let mut plain = Plain::new(64 << 20, shape, 16 << 20, Codec::Lz4);
    let bytes = files(4 << 20, 1);
    plain.write(0, &bytes);
    plain.settle();
    let extents = bytes.len() as u64 / (32 << 10);
    for depth in [1, 16, 64] {
        // Something else in between, so that nothing of the last round is in memory.
        plain.write(8 << 20, &files(8 << 20, depth));
        plain.settle();
        for at in (8 << 20..16 << 20).step_by(4096) {
            plain.submit(Op::Read, at, Payload::from_buf(Buf::alloc(4096)), depth - 1);
        }
        plain.idle();
        let before = plain.volume.counters().counts;
        let payloads: Vec<Payload> = (0..bytes.len() as u64 / BLOCK)
            .map(|block| {
                let payload = Payload::from_buf(Buf::alloc(4096));
                plain.submit(Op::Read, block * BLOCK, payload.clone(), depth - 1);
                payload
            })
            .collect();
        plain.idle();
        let after = plain.volume.counters().counts;
        assert_eq!(after.data_reads - before.data_reads, extents, "depth {depth}");
        for (payload, wanted) in payloads.iter().zip(bytes.chunks(4096)) {
            let mut found = [0; 4096];
            payload.copy_out(0, &mut found);
            assert!(found == *wanted, "depth {depth}");
        }
    }
    assert!(plain.volume.counters().memory_bytes < 24 << 20);
}

/// Extents of four blocks are read in part all the time, while their segments are used again.
#[test]
fn what_is_kept_of_an_extent_goes_with_its_segment() {
    const BLOCKS: u64 = 200;
    let mut world = World::open(formatted(tiny_shape(), 20, BLOCKS), Options::default());
    world.run();
    let mut rng = fastrand::Rng::with_seed(2);
    let mut plain: Vec<u8> = alloc::vec![0; (BLOCKS * BLOCK) as usize];
    for step in 0..3000 {
        let first = rng.u64(..BLOCKS / 4) * 4;
        let at = (first * BLOCK) as usize;
        if rng.u32(..3) == 0 {
            let bytes = data(4, step);
            assert_eq!(world.write(at as u64, &bytes), Status::Ok);
            plain[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        let at = at + rng.usize(..4) * 4096;
        let found = world.read(at as u64, BLOCK).expect("read");
        assert!(found == plain[at..at + 4096], "step {step} block {}", at / 4096);
    }
    let counters = world.volume.counters();
    assert!(counters.counts.segments_freed > 60, "{counters:?}");
    assert!(counters.counts.data_reads < 2500, "nothing was kept: {counters:?}");
}

/// Those who read on in small pieces wait for nothing, and see what was written last.
#[test]
fn what_is_at_hand_is_read_at_once_and_is_the_newest() {
    let mut world = World::small();
    world.write(0, &data(4, 1));
    world.write(8 * BLOCK, &[7; 4096]);
    world.checkpoint();
    let at_once = |world: &mut World, block: u64| {
        let payload = Payload::from_buf(Buf::alloc(4096));
        let no_flags = BioFlags::empty();
        world.submit_with(Op::Read, no_flags, block * BLOCK, payload.clone(), BLOCK);
        let is_done = world.volume.next_done().is_some();
        let mut found = [0; 4096];
        payload.copy_out(0, &mut found);
        (is_done, found)
    };
    assert!(!at_once(&mut world, 1).0, "it is on the disk only");
    world.run();
    let old = data(4, 1);
    for block in [0, 1, 2, 3] {
        let (is_done, found) = at_once(&mut world, block);
        assert!(is_done && found == old[block as usize * 4096..][..4096], "block {block}");
    }
    assert_eq!(at_once(&mut world, 8), (true, [7; 4096]), "all of one word");
    assert_eq!(at_once(&mut world, 9), (true, [0; 4096]), "a hole");
    world.write(BLOCK, &data(1, 5));
    let (is_done, found) = at_once(&mut world, 1);
    assert!(!is_done || found[..] == data(1, 5)[..], "in the open record");
    world.checkpoint();
    assert_eq!(world.read(BLOCK, BLOCK).expect("read"), data(1, 5));
    assert!(at_once(&mut world, 2).1[..] == old[2 * 4096..3 * 4096]);
}

/// A scrub looks at the disk, whatever is in memory.
#[test]
fn a_scrub_finds_damage_under_what_is_in_memory() {
    let mut world = World::small();
    world.write(0, &data(4, 1));
    world.checkpoint();
    world.read(BLOCK, BLOCK).expect("read");
    let from = world.data_offset() as usize;
    world.media.bytes[from + 200] ^= 1;
    world.read(2 * BLOCK, BLOCK).expect("from memory");
    world.volume.scrub();
    world.run();
    assert_eq!(world.volume.counters().counts.scrub_errors, 1);
}
