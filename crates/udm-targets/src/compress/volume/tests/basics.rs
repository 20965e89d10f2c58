//! Round trips, flush counting, order, sizes.

use super::host::{BLOCK, World, data, formatted, noise, tiny_shape, zstd};
use crate::compress::format::Shape;
use crate::compress::volume::{Options, State, Trouble};
use alloc::vec::Vec;
use udm_types::{BioFlags, Nanos, Op, Status};

#[test]
fn what_was_written_is_read_from_memory_and_disk_and_after_a_checkpoint() {
    for options in [Options::default(), zstd()] {
        let mut world = World::open(formatted(tiny_shape(), 40, 600), options);
        world.run();
        let pieces = [data(9, 1), noise(5, 2), data(1, 3)].concat();
        assert_eq!(world.write(3 * BLOCK, &pieces), Status::Ok);
        let len = pieces.len() as u64;
        assert_eq!(world.read(3 * BLOCK, len).as_ref(), Ok(&pieces), "in the open record");
        assert_eq!(world.flush(), Status::Ok);
        assert_eq!(world.read(3 * BLOCK, len).as_ref(), Ok(&pieces), "on the disk");
        world.checkpoint();
        assert_eq!(world.read(3 * BLOCK, len).as_ref(), Ok(&pieces), "through a page");
        let mut world = world.reopen();
        assert_eq!(world.read(3 * BLOCK, len).as_ref(), Ok(&pieces), "opened again");
        assert_eq!(world.read(0, 3 * BLOCK), Ok(alloc::vec![0; 3 * BLOCK as usize]));
        world.assert_sound();
    }
}

#[test]
fn random_requests_of_all_kinds_leave_what_an_array_has() {
    for seed in 0..12 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let options = Options {
            writeback: rng.bool().then_some(Nanos::from_secs(1)),
            extent_blocks: Some(rng.u8(1..5)),
            ..Options::default()
        };
        let blocks = 600;
        let mut world = World::open(formatted(tiny_shape(), 60, blocks), options);
        world.order = Some(fastrand::Rng::with_seed(seed));
        world.run();
        let mut plain: Vec<u8> = alloc::vec![0; (blocks * BLOCK) as usize];
        for step in 0..150 {
            let unit = if rng.bool() { BLOCK } else { 512 };
            let units = blocks * BLOCK / unit;
            let len = rng.u64(1..24).min(units);
            let first = rng.u64(..=units - len);
            let (at, len) = ((first * unit) as usize, (len * unit) as usize);
            match rng.u32(..10) {
                0..5 => {
                    let mut bytes = data(len / BLOCK as usize + 1, seed * 1000 + step);
                    bytes.truncate(len);
                    if rng.u32(..6) == 0 {
                        bytes.fill(rng.u8(..3));
                    }
                    assert_eq!(world.write(at as u64, &bytes), Status::Ok);
                    plain[at..at + len].copy_from_slice(&bytes);
                }
                5 => {
                    assert_eq!(world.op(Op::WriteZeroes, at as u64, len as u64), Status::Ok);
                    plain[at..at + len].fill(0);
                }
                6 => {
                    assert_eq!(world.op(Op::Discard, at as u64, len as u64), Status::Ok);
                    let inside = at.next_multiple_of(4096)..(at + len) / 4096 * 4096;
                    if inside.start < inside.end {
                        plain[inside].fill(0);
                    }
                }
                7 => assert_eq!(world.flush(), Status::Ok),
                8 if rng.bool() => world.checkpoint(),
                8 => world = world.reopen_after_flush(seed),
                _ => {
                    let read = world.read(at as u64, len as u64).expect("read");
                    assert!(read == plain[at..at + len], "seed {seed} step {step}");
                }
            }
        }
        assert!(world.read(0, blocks * BLOCK).expect("read") == plain, "seed {seed}");
        world.checkpoint();
        world.assert_sound();
        assert!(world.read(0, blocks * BLOCK).expect("read") == plain, "seed {seed}");
    }
}

impl World {
    fn reopen_after_flush(mut self, seed: u64) -> World {
        assert_eq!(self.flush(), Status::Ok);
        let mut world = self.reopen();
        world.order = Some(fastrand::Rng::with_seed(seed));
        world
    }
}

#[test]
fn one_flush_is_one_write_and_one_flush_however_many_wait() {
    let shape = Shape { segment_shift: 20, record_limit_bytes: 256 << 10, ..tiny_shape() };
    let mut world = World::open(formatted(shape, 12, 600), Options::default());
    world.run();
    for depth in [1, 8, 64] {
        let before = world.ops;
        let mut tickets = Vec::new();
        for index in 0..depth {
            let bytes = data(1, index);
            tickets.push(world.submit_write(index % 20 * BLOCK, &bytes, BioFlags::empty()));
        }
        world.is_stalled = true;
        world.run();
        for ticket in tickets.drain(..) {
            assert_eq!(world.done.remove(&ticket), Some(Status::Ok), "writeback");
        }
        let before = (before.flushes, world.volume.counters().records);
        for _ in 0..depth {
            tickets.push(world.submit_op(Op::Flush, 0, 0));
        }
        world.is_stalled = false;
        world.run();
        assert!(tickets.iter().all(|ticket| world.done.get(ticket) == Some(&Status::Ok)));
        let counters = world.volume.counters();
        assert_eq!(counters.records - before.1, 1, "what was open is one record");
        assert_eq!(world.ops.flushes - before.0, 1, "depth {depth}");
        assert_eq!(counters.sequences[0], counters.sequences[2]);
    }
    let before = world.ops;
    assert_eq!(world.flush(), Status::Ok);
    assert_eq!(world.ops, before, "nothing to make durable");
}

#[test]
fn a_write_with_fua_is_durable_and_others_are_not() {
    let mut world = World::small();
    let before = world.ops;
    assert_eq!(world.write(0, &data(1, 1)), Status::Ok);
    assert_eq!(world.ops, before);
    let ticket = world.submit_write(BLOCK, &data(1, 2), BioFlags::FUA);
    assert_eq!(world.end(ticket), Some(Status::Ok));
    assert_eq!((world.ops.writes - before.writes, world.ops.flushes - before.flushes), (1, 1));
}

#[test]
fn an_open_record_is_written_when_its_time_has_come() {
    let mut world = World::small();
    let before = world.ops.writes;
    assert_eq!(world.write(0, &data(1, 1)), Status::Ok);
    let deadline = world.volume.next_timer().expect("it wants to be called");
    assert_eq!(deadline, Nanos(1_000_000_001));
    world.now = Nanos(deadline.0 - 1);
    world.run();
    assert_eq!(world.ops.writes, before);
    world.now = deadline;
    world.run();
    assert_eq!((world.ops.writes, world.volume.next_timer()), (before + 1, None));
}

#[test]
fn writethrough_answers_when_the_record_is_written() {
    let options = Options { writeback: None, ..Options::default() };
    let mut world = World::open(formatted(tiny_shape(), 40, 600), options);
    world.run();
    world.is_stalled = true;
    let ticket = world.submit_write(0, &data(2, 1), BioFlags::empty());
    assert_eq!(world.end(ticket), None);
    let before = world.ops;
    world.is_stalled = false;
    assert_eq!(world.end(ticket), Some(Status::Ok));
    assert_eq!((world.ops.writes - before.writes, world.ops.flushes - before.flushes), (1, 0));
}

#[test]
fn zeroes_and_fills_take_no_room_and_a_discard_costs_nothing_below() {
    let mut world = World::small();
    let blocks = 400;
    let mut bytes = alloc::vec![0; 200 * BLOCK as usize];
    bytes.extend(core::iter::repeat_n(*b"abcd", 200 * 1024).flatten());
    assert_eq!(world.write(0, &bytes), Status::Ok);
    assert_eq!(world.read(0, blocks * BLOCK).as_ref(), Ok(&bytes));
    world.flush();
    assert!(world.volume.counters().record_bytes <= 1024);
    let before = world.ops.reads;
    assert_eq!(world.op(Op::Discard, 0, 600 * BLOCK), Status::Ok);
    assert_eq!(world.ops.reads, before);
    world.checkpoint();
    assert_eq!(world.read(0, BLOCK), Ok(alloc::vec![0; BLOCK as usize]));
    assert_eq!(world.volume.counters().live_blocks, 0);
    world.assert_sound();
}

#[test]
fn a_large_request_is_a_group_and_comes_back_whole() {
    let mut world = World::small();
    let bytes = noise(100, 5);
    assert_eq!(world.write(0, &bytes), Status::Ok);
    assert_eq!(world.read(0, 100 * BLOCK).as_ref(), Ok(&bytes));
    assert_eq!(world.flush(), Status::Ok);
    assert!(world.volume.counters().records > 10);
    let mut world = world.reopen();
    assert_eq!(world.read(0, 100 * BLOCK).as_ref(), Ok(&bytes));
}

#[test]
fn a_random_read_with_its_page_cached_is_one_lower_read() {
    let mut world = World::small();
    world.write(0, &data(64, 5));
    world.flush();
    world.checkpoint();
    world.read(0, BLOCK).expect("the page is cached from here on");
    for block in [5, 17, 40] {
        let before = world.ops.reads;
        world.read(block * BLOCK, BLOCK).expect("read");
        assert_eq!(world.ops.reads - before, 1);
    }
    let before = world.ops.reads;
    world.read(0, 64 * BLOCK).expect("read");
    assert!(world.ops.reads - before <= 3, "neighbours are read together");
}

#[test]
fn requests_wait_for_recovery_and_impossible_ones_are_refused() {
    let mut world = World::open(formatted(tiny_shape(), 40, 600), Options::default());
    let ticket = world.submit_write(0, &data(1, 1), BioFlags::empty());
    assert_eq!(world.volume.state(), State::Recovering);
    assert_eq!(world.end(ticket), Some(Status::Ok));
    for (at, len) in [(600 * BLOCK, BLOCK), (u64::MAX - 511, 512), (1, 512), (512, 100)] {
        assert_eq!(world.op(Op::Discard, at, len), Status::Invalid);
    }
}

#[test]
fn a_disk_without_a_volume_fails_and_says_why() {
    let mut world =
        World::open(super::host::Media::new(alloc::vec![0; 1 << 20]), Options::default());
    let ticket = world.submit_op(Op::Flush, 0, 0);
    assert_eq!(world.end(ticket), Some(Status::IoErr));
    assert_eq!(world.volume.state(), State::Failed(Trouble::NotFormatted));
    let ticket = world.submit_op(Op::Flush, 0, 0);
    assert_eq!(world.end(ticket), Some(Status::IoErr));
}
