//! Tests of the `latency` selector against paths simulated by hand.
//!
//! [`Line`] is a path that serves one I/O after the other, each in a fixed time, behind a fixed
//! round trip. The tests run a closed loop over two of them and look at how many I/Os each got.

use super::{LEARN_GAP, Latency, Path, SAMPLES_TRUSTED};
use crate::multipath::selectors::Load;
use crate::multipath::selectors::PathSelector;
use crate::multipath::selectors::testing::Rig;
use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

/// A path as a server with a queue: service time and round trip in ns, free at.
struct Line {
    service: u64,
    round_trip: u64,
    free_at: u64,
}

impl Line {
    fn new(service: u64, round_trip: u64) -> Line {
        Line { service, round_trip, free_at: 0 }
    }

    fn answer_at(&mut self, now: u64) -> u64 {
        self.free_at = self.free_at.max(now) + self.service;
        self.free_at + self.round_trip
    }
}

fn rig(probe_every: u32) -> Rig<Latency> {
    Rig::new(Latency::new(probe_every, 3, 2), 2)
}

/// Runs `total` I/Os, `depth` at a time; returns how many each path got and the time it took.
fn closed_loop(
    rig: &mut Rig<Latency>,
    lines: &mut [Line],
    depth: u64,
    total: u64,
) -> (Vec<u64>, u64) {
    let mut under_way = BTreeSet::new();
    let mut got = vec![0; lines.len()];
    let (mut now, mut sent, mut done) = (0, 0, 0);
    while done < total {
        while sent < total && under_way.len() < depth as usize {
            let path = rig.send(4096, now).expect("a path");
            got[path as usize] += 1;
            under_way.insert((lines[path as usize].answer_at(now), sent, path, now));
            sent += 1;
        }
        let (at, _, path, started) = under_way.pop_first().expect("something is under way");
        now = at;
        rig.end(path, 4096, started, now);
        done += 1;
    }
    (got, now)
}

#[test]
fn equal_paths_share() {
    let mut rig = rig(128);
    let mut lines = [Line::new(100_000, 0), Line::new(100_000, 0)];
    let (got, _) = closed_loop(&mut rig, &mut lines, 16, 4000);
    assert!(got.iter().all(|&count| (1800..=2200).contains(&count)), "{got:?}");
}

#[test]
fn a_path_ten_times_slower_gets_a_tenth() {
    let mut rig = rig(128);
    let mut lines = [Line::new(100_000, 0), Line::new(1_000_000, 0)];
    let (got, took) = closed_loop(&mut rig, &mut lines, 32, 11_000);
    // Together they do 11 in a millisecond; the fast one alone 10.
    assert!(got[1] < 1100, "{got:?}");
    assert!(took < 1_050_000_000, "as fast as the fast path and half of the slow one: {took}");
}

#[test]
fn a_pipelined_path_with_a_long_round_trip_is_avoided_at_low_depth() {
    let mut rig = rig(128);
    let mut lines = [Line::new(10_000, 5_000_000), Line::new(10_000, 50_000)];
    let (got, _) = closed_loop(&mut rig, &mut lines, 4, 4000);
    assert!(got[0] < 100, "{got:?}");
    assert!(got[0] >= 10, "but it is probed: {got:?}");
}

#[test]
fn a_stalled_path_is_left_until_it_answers() {
    let mut rig = rig(1000);
    let mut lines = [Line::new(100_000, 0), Line::new(100_000, 0)];
    let (_, now) = closed_loop(&mut rig, &mut lines, 8, 400);
    // Path 0 takes one more I/O and does not answer.
    rig.start(0, 4096, now);
    let later = now + 50_000_000;
    let chosen: Vec<u32> = (0..50).filter_map(|_| rig.send(4096, later)).collect();
    assert_eq!(chosen, [1; 50]);
    assert!(rig.it.words(0, rig.loads[0])[2] > 40_000_000, "overdue");
    rig.end(0, 4096, now, later);
    assert!((0..200).any(|_| rig.send(4096, later) == Some(0)), "it is back");
}

#[test]
fn an_idle_path_that_became_fast_is_found() {
    let mut rig = rig(64);
    let mut lines = [Line::new(100_000, 0), Line::new(20_000_000, 0)];
    let (got, _) = closed_loop(&mut rig, &mut lines, 4, 2000);
    assert!(got[1] <= 2000 / 64 + 8, "only probes: {got:?}");
    let mut fast = [Line::new(100_000, 0), Line::new(10_000, 0)];
    let (got, _) = closed_loop(&mut rig, &mut fast, 4, 4000);
    assert!(got[1] > got[0], "{got:?}");
}

#[test]
fn a_reinstated_path_is_tried_one_by_one() {
    let mut rig = rig(60_000);
    let mut lines = [Line::new(100_000, 0), Line::new(100_000, 0)];
    let (_, now) = closed_loop(&mut rig, &mut lines, 8, 400);
    rig.it.fail_path(1);
    assert_eq!(rig.it.learning, 0);
    rig.it.reinstate_path(1);
    assert_eq!(rig.it.learning, 1);
    let chosen: Vec<u32> = (0..100).filter_map(|_| rig.send(4096, now)).collect();
    let tries = chosen.iter().filter(|&&path| path == 1).count();
    assert_eq!(tries, 1, "one is under way, so no more");
    let first = chosen.iter().position(|&path| path == 1).expect("tried") as u32;
    assert!(first + 1 >= LEARN_GAP, "not at once");
    for round in 0..u64::from(SAMPLES_TRUSTED) {
        assert!(rig.it.is_learning(1));
        rig.end(1, 4096, now, now + (round + 1) * 100_000);
        if round + 1 < u64::from(SAMPLES_TRUSTED) {
            while rig.send(4096, now + (round + 1) * 100_000) != Some(1) {}
        }
    }
    assert_eq!(rig.it.learning, 0);
}

#[test]
fn failing_and_ending_while_failed_keeps_the_count_of_learners() {
    let mut rig = rig(128);
    for _ in 0..8 {
        rig.start(0, 4096, 0);
    }
    rig.it.fail_path(0);
    assert_eq!(rig.it.learning, 1);
    for _ in 0..8 {
        rig.end(0, 4096, 0, 10);
    }
    assert_eq!((rig.it.learning, rig.it.is_learning(0)), (1, false));
    rig.it.reinstate_path(0);
    assert_eq!((rig.it.learning, rig.it.is_learning(0)), (2, true));
    rig.it.fail_path(0);
    rig.it.fail_path(1);
    assert_eq!(rig.it.learning, 0);
    assert_eq!(rig.send(4096, 20), None);
}

#[test]
fn a_turn_is_learned_as_a_whole() {
    let mut path = Path::default();
    for left in (0..8).rev() {
        let io = super::Finished {
            bytes: 4096,
            started: udm_types::Nanos(0),
            now: udm_types::Nanos(800_000),
            left: Load { ios: left, bytes: left * 4096 },
        };
        path.learn(io, 3);
    }
    // 8 I/Os of 8192 units in 800 us: 100 us each.
    assert_eq!(path.time_for(8192), 100_000);
}
