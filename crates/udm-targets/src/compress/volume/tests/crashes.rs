//! Crashes at every operation of a workload, and what is there afterwards.

use super::host::{BLOCK, World, data, formatted, tiny_shape};
use crate::compress::volume::{Event, Options, State};
use alloc::vec::Vec;
use udm_types::{BioFlags, Op, Status};

const BLOCKS: u64 = 24;

/// What each accepted request did: first block, tags (0 for a hole).
type History = Vec<(u64, Vec<u64>)>;

struct Run {
    world: World,
    history: History,
    /// Requests that have to be there after a crash.
    safe: usize,
}

/// Does random requests until the machine stops or `steps` are done.
fn work(world: World, rng: &mut fastrand::Rng, steps: usize, tag: &mut u64) -> Run {
    let mut run = Run { world, history: Vec::new(), safe: 0 };
    for _ in 0..steps {
        if !step(&mut run, rng, tag) {
            break;
        }
    }
    run
}

/// One request; false if the machine stopped.
fn step(run: &mut Run, rng: &mut fastrand::Rng, tag: &mut u64) -> bool {
    let count = rng.u64(1..7);
    let first = rng.u64(..=BLOCKS - count);
    let world = &mut run.world;
    match rng.u32(..100) {
        0..60 => {
            let tags: Vec<u64> = (0..count).map(|index| *tag + index + 1).collect();
            *tag += count;
            let bytes = tags.iter().flat_map(|tag| data(1, *tag)).collect::<Vec<u8>>();
            let is_fua = rng.u32(..10) == 0;
            let flags = if is_fua { BioFlags::FUA } else { BioFlags::empty() };
            let ticket = world.submit_write(first * BLOCK, &bytes, flags);
            run.history.push((first, tags));
            let is_up = world.run();
            if is_fua && world.done.get(&ticket) == Some(&Status::Ok) {
                run.safe = run.history.len();
            }
            is_up
        }
        60..72 => {
            world.submit_op(Op::Discard, first * BLOCK, count * BLOCK);
            run.history.push((first, alloc::vec![0; count as usize]));
            world.run()
        }
        72..85 => {
            let ticket = world.submit_op(Op::Flush, 0, 0);
            let is_up = world.run();
            if world.done.get(&ticket) == Some(&Status::Ok) {
                run.safe = run.history.len();
            }
            is_up
        }
        _ => {
            world.volume.checkpoint();
            world.run()
        }
    }
}

/// The tags that are on the volume.
fn read_tags(world: &mut World) -> Vec<u64> {
    let bytes = world.read(0, BLOCKS * BLOCK).expect("everything is readable");
    let tag_of = |block: &[u8]| {
        let tag = u64::from_le_bytes(block[..8].try_into().expect("eight bytes"));
        let wanted = if tag == 0 { alloc::vec![0; BLOCK as usize] } else { data(1, tag) };
        assert!(block == wanted, "a block is one of those written");
        tag
    };
    bytes.chunks(BLOCK as usize).map(tag_of).collect()
}

/// Which prefix of the history the volume holds; it is the new base.
fn prefix(base: &mut Vec<u64>, run: &History, safe: usize, found: &[u64]) -> Option<usize> {
    let mut state = base.clone();
    let mut best = None;
    for count in 0..=run.len() {
        if count > 0 {
            let (first, tags) = &run[count - 1];
            state[*first as usize..*first as usize + tags.len()].copy_from_slice(tags);
        }
        if count >= safe && state == found {
            best = Some(count);
        }
    }
    if best.is_some() {
        *base = found.to_vec();
    }
    best
}

fn lives(seed: u64, options: &Options) -> (u64, u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut media = formatted(tiny_shape(), 12, BLOCKS);
    let (mut base, mut tag) = (alloc::vec![0; BLOCKS as usize], 1);
    let (mut crashes, mut kept) = (0, 0);
    for life in 0..6 {
        let mut world = World::open(media, options.clone());
        world.order = Some(rng.fork());
        // A crash in recovery, some of the time, again and again.
        while rng.u32(..3) == 0 {
            world.budget = rng.u64(..12);
            world.run();
            crashes += 1;
            world = world.cut(&mut rng);
        }
        world.run();
        assert_eq!(world.volume.state(), State::Serving, "seed {seed} life {life}");
        let found = read_tags(&mut world);
        assert_eq!(found, base, "seed {seed} life {life}: nothing changes by itself");
        world.budget = rng.u64(..150);
        let run = work(world, &mut rng, 60, &mut tag);
        crashes += 1;
        let is_power_cut = rng.u32(..3) > 0;
        let world = run.world;
        world.assert_no_doubts();
        let mut world = match is_power_cut {
            true => world.cut(&mut rng),
            false => World::open(world.media, options.clone()),
        };
        world.run();
        assert_eq!(world.volume.state(), State::Serving, "seed {seed} life {life}");
        let found = read_tags(&mut world);
        let count = prefix(&mut base, &run.history, run.safe, &found);
        assert!(count.is_some(), "seed {seed} life {life}: no prefix from {} on", run.safe);
        kept += count.unwrap_or(0) as u64;
        world.assert_sound();
        media = world.media;
    }
    (crashes, kept)
}

impl World {
    fn assert_no_doubts(&self) {
        let is_bad = |event: &Event| matches!(event, Event::Troubled(_) | Event::BlocksLost { .. });
        assert!(!self.events.iter().any(is_bad), "{:?}", self.events);
    }
}

#[test]
fn a_crash_leaves_a_prefix_that_holds_what_was_flushed() {
    let (mut crashes, mut kept) = (0, 0);
    for seed in 0..60 {
        let (more, records) = lives(seed, &Options::default());
        (crashes, kept) = (crashes + more, kept + records);
    }
    assert!(crashes > 300 && kept > 500, "{crashes} crashes, {kept} requests kept");
}

#[test]
fn writethrough_crashes_leave_prefixes_too() {
    for seed in 100..130 {
        lives(seed, &Options { writeback: None, ..Options::default() });
    }
}
