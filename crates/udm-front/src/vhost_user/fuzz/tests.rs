//! The fuzz entry driven by seeds, and the in-flight record at every point of a death.

use super::{RING_SIZE, connection, memfd};
use crate::vhost_user::inflight::{Inflight, queue_bytes};
use crate::vhost_user::memory::Span;
use fastrand::Rng;
use std::collections::BTreeSet;
use std::os::fd::AsFd;
use udm_driver::FileMapping;

fn poke(at: u16, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(4);
    out.extend(at.to_le_bytes());
    out.push(bytes.len() as u8);
    out.extend(bytes);
}

fn pick(rng: &mut Rng, from: &[u32]) -> u32 {
    from[rng.usize(..from.len())]
}

/// Requests whose fields are right most of the time, and a look at them.
fn requests(rng: &mut Rng, out: &mut Vec<u8>) {
    let base = if rng.u8(..) < 200 { 0 } else { 0x800 };
    for index in 0..u16::from(rng.u8(1..8)) {
        let mut descriptor = (0x1000 + rng.u64(0..0x7000)).to_le_bytes().to_vec();
        descriptor.extend(pick(rng, &[16, 16, 512, 1024, 1, 17, 48, u32::MAX]).to_le_bytes());
        let flags = pick(rng, &[1, 1, 1, 2, 3, 4, 0, 7]) as u16;
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend((index + 1).to_le_bytes());
        if rng.u8(..) < 4 {
            descriptor[rng.usize(..16)] = rng.u8(..);
        }
        poke(base + index * 16, &descriptor, out);
    }
    let kinds = [0, 1, 4, 8, 11, 13, 99];
    poke(rng.u16(0x1000..0x7000), &pick(rng, &kinds).to_le_bytes(), out);
    let count = rng.u16(0..20);
    for entry in 0..count.min(16) {
        poke(base + 0x200 + 4 + entry * 2, &rng.u16(0..17).to_le_bytes(), out);
    }
    poke(base + 0x202, &count.to_le_bytes(), out);
    out.push(6);
}

#[test]
fn mutated_conversations_never_panic() {
    for seed in 0..3_000 {
        let mut rng = Rng::with_seed(seed);
        let mut bytes = vec![7 | rng.u8(..) << 3];
        for _ in 0..rng.usize(1..8) {
            match rng.u8(..8) {
                0 => bytes.push(7 | rng.u8(..) << 3),
                1 => {
                    let len = rng.u8(0..48);
                    bytes.extend([0, rng.u8(..48), 1, rng.u8(..), len]);
                    bytes.extend((0..len).map(|_| rng.u8(..)));
                }
                _ => requests(&mut rng, &mut bytes),
            }
        }
        if rng.bool() {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        connection(&bytes);
    }
}

#[test]
fn garbage_never_panics() {
    for seed in 0..500 {
        let mut rng = Rng::with_seed(seed);
        let bytes: Vec<u8> = (0..rng.usize(..400)).map(|_| rng.u8(..)).collect();
        connection(&bytes);
    }
}

/// What a queue does with requests, step by step, so that it can die between any two.
#[derive(Clone, Copy, Debug)]
enum Step {
    Take(u16),
    Answer(u16),
    /// The used ring's index moves.
    Show,
    /// The record follows.
    Settle,
}

/// A life of takes, answers and batches, drawn at random.
fn life(rng: &mut Rng) -> Vec<Step> {
    let (mut free, mut taken): (Vec<u16>, Vec<u16>) = ((0..RING_SIZE).collect(), Vec::new());
    let (mut steps, mut answered) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        match rng.u8(..3) {
            0 if !free.is_empty() => {
                let head = free.swap_remove(rng.usize(..free.len()));
                taken.push(head);
                steps.push(Step::Take(head));
            }
            1 if !taken.is_empty() => {
                let head = taken.swap_remove(rng.usize(..taken.len()));
                answered.push(head);
                steps.push(Step::Answer(head));
            }
            2 if !answered.is_empty() => {
                steps.extend([Step::Show, Step::Settle]);
                free.append(&mut answered);
            }
            _ => {}
        }
    }
    steps
}

#[test]
fn after_a_death_at_any_point_exactly_what_was_not_shown_is_done_again_in_order() {
    for seed in 0..50 {
        let steps = life(&mut Rng::with_seed(seed));
        for death in 0..=steps.len() {
            let file = memfd(queue_bytes(RING_SIZE));
            let open = |used_idx: u16| {
                let len_bytes = queue_bytes(RING_SIZE);
                let mapping = FileMapping::map(file.as_fd(), 0, len_bytes as u64).unwrap();
                Inflight::open(Span { mapping, start: 0, len_bytes }, RING_SIZE, used_idx).unwrap()
            };
            let mut used_idx = 65_530_u16;
            let (mut record, again) = open(used_idx);
            assert!(again.is_empty());
            let (mut waiting, mut batch) = (Vec::new(), BTreeSet::new());
            for step in &steps[..death] {
                match *step {
                    Step::Take(head) => {
                        record.taken(head);
                        waiting.push(head);
                    }
                    Step::Answer(head) => {
                        record.answered(head);
                        batch.insert(head);
                    }
                    Step::Show => {
                        used_idx = used_idx.wrapping_add(batch.len() as u16);
                        waiting.retain(|head| !batch.contains(head));
                        batch.clear();
                    }
                    Step::Settle => record.published(used_idx),
                }
            }
            drop(record);
            let (_, again) = open(used_idx);
            assert_eq!(again, waiting, "seed {seed}, death before step {death}");
            let (_, once_more) = open(used_idx);
            assert_eq!(once_more, waiting, "a second death changes nothing");
        }
    }
}

#[test]
fn a_record_that_contradicts_the_ring_is_refused() {
    let file = memfd(queue_bytes(RING_SIZE));
    let len_bytes = queue_bytes(RING_SIZE);
    let open = |size: u16, used_idx: u16| {
        let mapping = FileMapping::map(file.as_fd(), 0, len_bytes as u64).unwrap();
        Inflight::open(Span { mapping, start: 0, len_bytes }, size, used_idx)
    };
    let (mut record, _) = open(RING_SIZE, 100).unwrap();
    record.taken(3);
    assert!(open(RING_SIZE / 2, 100).is_err(), "of another size");
    assert!(open(RING_SIZE, 100 + RING_SIZE + 1).is_err(), "the ring has jumped");
    assert_eq!(open(RING_SIZE, 100).unwrap().1, [3]);
    record.answered(3);
    record.published(101);
    assert_eq!(open(RING_SIZE, 7_000).unwrap().1, [], "a new ring, and nothing in flight");
}
