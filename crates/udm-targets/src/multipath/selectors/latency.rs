//! `latency`: the path on which this I/O is predicted to be done first. Our own; Linux has no such.
//!
//! For each path a lane learns two numbers from what comes back: how long a unit of work keeps the
//! path busy (`cost`; a unit is a byte, and every I/O counts [`WORK_PER_IO`] bytes extra), and what
//! an I/O takes beyond the work before it and its own (`base`, the round trip of a pipelined path).
//! The prediction for a new I/O is a sum of three terms, which `explain` shows:
//!
//! | term | is |
//! |---|---|
//! | base | the learned time beyond the work |
//! | backlog | (work under way + this I/O) * cost |
//! | overdue | how long the path has been silent beyond twice what its next answer should take |
//!
//! The lowest sum wins; of equal ones the first in the list, and the chosen goes to the tail.
//!
//! Gentle probes. A path that is new or was reinstated has no history: it gets one I/O at a time,
//! one in [`LEARN_GAP`] choices, until [`SAMPLES_TRUSTED`] have come back. And one choice in
//! `probe_every` goes to the idle path that was measured longest ago, so that no path is judged by
//! its past for ever and none starves.
//!
//! Selector arguments: `probe_every` (2 to 65535, default 128) and `smoothing` (1 to 8, default 3:
//! a new turn counts 1/8). Path argument: a repeat count, ignored as everywhere. INFO shows base in
//! ns and cost in ns for 4 KiB (means of the lanes that know) and I/Os under way (sum); TABLE `0`.
//!
//! The tricky case is time that stands still: all completions of a loop turn bear the same time, so
//! the first of a batch seems slow and the rest instantaneous. Costs are therefore learned from a
//! turn as a whole: its time over its work.

use super::order::Order;
use super::{Finished, Load, PathSelector, Selector, SelectorConfig, WORDS, WordGroup, repeat_of};
use crate::multipath::counters::PathView;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;
use udm_core::UserError;
use udm_types::{LaneId, Nanos};

/// Work that an I/O is beside its bytes: what a small I/O costs next to moving its data.
const WORK_PER_IO: u64 = 4096;
/// Completions after which a path's numbers are believed.
const SAMPLES_TRUSTED: u32 = 4;
/// Choices between two I/Os to a path that is still being learned.
const LEARN_GAP: u32 = 8;
const PROBE_EVERY_DEFAULT: u32 = 128;
const SMOOTHING_DEFAULT: u32 = 3;
/// Bits after the point of a cost, in ns for a unit of work.
const COST_BITS: u32 = 16;
/// Bits after the point of the smoothed sums.
const SUM_BITS: u32 = 8;
/// Longest time that is learned from one turn: a minute is as bad as an hour.
const TIME_MAX: u64 = 60_000_000_000;

/// The part of the table line.
pub(super) struct Config {
    probe_every: u32,
    smoothing: u32,
    paths: usize,
}

impl Config {
    pub(super) fn parse(words: &mut WordGroup<'_, '_>) -> Result<Config, UserError> {
        words.expect_at_most(2, "latency")?;
        let probe_every = words.number("how often to probe", 2, 65535)?;
        let smoothing = words.number("the smoothing", 1, 8)?;
        Ok(Config {
            probe_every: probe_every.unwrap_or(PROBE_EVERY_DEFAULT),
            smoothing: smoothing.unwrap_or(SMOOTHING_DEFAULT),
            paths: 0,
        })
    }
}

impl SelectorConfig for Config {
    fn name(&self) -> &'static str {
        "latency"
    }

    fn add_path(&mut self, words: &mut WordGroup<'_, '_>) -> Result<(), UserError> {
        words.expect_at_most(1, self.name())?;
        repeat_of(words)?;
        self.paths += 1;
        Ok(())
    }

    fn own_words(&self) -> String {
        format!("2 {} {} ", self.probe_every, self.smoothing)
    }

    fn table_words(&self) -> usize {
        1
    }

    fn info_words(&self) -> usize {
        3
    }

    fn print_table(&self, _path: usize, text: &mut String) {
        text.push_str("0 ");
    }

    fn print_info(&self, _path: usize, view: &PathView<'_>, text: &mut String) {
        let knows = || view.lanes().filter(|lane| lane.word(SAMPLES) != 0);
        let lanes = (knows().count() as u64).max(1);
        let mean = |word| knows().fold(0u64, |sum, lane| sum.saturating_add(lane.word(word)));
        let base_ns = mean(BASE) / lanes;
        let cost = mean(COST) / lanes;
        let block_ns = cost.saturating_mul(4096) >> COST_BITS;
        write!(text, "{base_ns} {block_ns} {} ", view.in_flight())
            .expect("invariant: writing to a string succeeds");
    }

    fn explain(&self, _path: usize, words: &[u64]) -> String {
        let (base, backlog, overdue) = (words[BASE], words[BACKLOG], words[OVERDUE]);
        let predicted = base.saturating_add(backlog).saturating_add(overdue);
        let samples = words[SAMPLES];
        if samples < u64::from(SAMPLES_TRUSTED) {
            return format!("learning: {samples} of {SAMPLES_TRUSTED} answers, one I/O at a time");
        }
        let block_ns = words[COST].saturating_mul(4096 + WORK_PER_IO) >> COST_BITS;
        format!(
            "predicted {predicted} ns = base {base} + backlog {backlog} + overdue {overdue}; \
             4 KiB cost {block_ns} ns; {samples} answers"
        )
    }

    fn start(&self) -> Selector {
        Selector::Latency(Latency::new(self.probe_every, self.smoothing, self.paths))
    }
}

// Places of the words a lane reports for a path.
const BASE: usize = 0;
const BACKLOG: usize = 1;
const OVERDUE: usize = 2;
const SAMPLES: usize = 3;
const COST: usize = 4;

/// At work on one lane.
pub(crate) struct Latency {
    order: Order,
    paths: Vec<Path>,
    probe_every: u32,
    smoothing: u32,
    /// Choices until the next probe.
    until_probe: u32,
    /// Choices until a path that is being learned may get an I/O.
    until_learn: u32,
    /// Paths in the list that are being learned.
    learning: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Path {
    samples: u32,
    base_ns: u64,
    /// Fixed point, from the two sums.
    cost: u64,
    /// Smoothed busy time of a turn, and its smoothed work; their ratio is the cost.
    sum_ns: u64,
    sum_work: u64,
    /// What this turn has brought so far.
    turn_ns: u64,
    turn_work: u64,
    last_finish: Nanos,
    /// The last time the path answered, or began to have something to answer.
    progress: Nanos,
    /// The terms of the last choice.
    backlog_ns: u64,
    overdue_ns: u64,
}

/// Work of an I/O.
#[inline]
fn work_of(bytes: u64) -> u64 {
    bytes + WORK_PER_IO
}

/// Work under way.
#[inline]
fn work_under(load: Load) -> u64 {
    load.bytes + load.ios * WORK_PER_IO
}

impl Path {
    /// Time for an amount of work.
    #[inline]
    fn time_for(&self, work: u64) -> u64 {
        work.saturating_mul(self.cost) >> COST_BITS
    }

    /// Computes the terms for an I/O and returns their sum.
    #[inline]
    fn predict(&mut self, bytes: u64, load: Load, now: Nanos) -> u64 {
        let work = work_under(load);
        self.backlog_ns = self.time_for(work + work_of(bytes));
        self.overdue_ns = if load.ios > 0 { self.overdue(load, now) } else { 0 };
        self.base_ns.saturating_add(self.backlog_ns).saturating_add(self.overdue_ns)
    }

    /// How long the path, which has something under way, is silent beyond twice its usual time.
    #[inline]
    fn overdue(&self, load: Load, now: Nanos) -> u64 {
        let silent = now.since(self.progress).0;
        // Usually the last answer is not long ago, and nothing has to be divided.
        if silent <= self.base_ns * 2 {
            return 0;
        }
        let one = self.base_ns + self.time_for(work_under(load) / load.ios.max(1));
        silent.saturating_sub(one.saturating_mul(2))
    }

    /// Takes the turn that is over into the sums.
    fn fold_turn(&mut self, smoothing: u32) {
        let (time, work) = (self.turn_ns.min(TIME_MAX) << SUM_BITS, self.turn_work << SUM_BITS);
        if self.sum_work == 0 {
            (self.sum_ns, self.sum_work) = (time, work);
        } else {
            self.sum_ns = smoothed(self.sum_ns, time, smoothing);
            self.sum_work = smoothed(self.sum_work, work, smoothing).max(1);
        }
        self.cost = (self.sum_ns << COST_BITS) / self.sum_work.max(1);
        (self.turn_ns, self.turn_work) = (0, 0);
    }

    fn learn(&mut self, io: Finished, smoothing: u32) {
        if io.now != self.last_finish {
            if self.turn_work > 0 {
                self.fold_turn(smoothing);
            }
            self.turn_ns = io.now.since(io.started.max(self.last_finish)).0;
        }
        let work = work_of(io.bytes);
        self.turn_work += work;
        if self.sum_work == 0 {
            // The very first turn counts while it lasts.
            self.cost = (self.turn_ns.min(TIME_MAX) << COST_BITS) / self.turn_work;
        }
        let took = io.now.since(io.started).0.min(TIME_MAX);
        let beyond = took.saturating_sub(self.time_for(work_under(io.left) + work));
        self.base_ns = match self.samples {
            0 => beyond,
            _ => smoothed(self.base_ns, beyond, smoothing),
        };
        self.samples = self.samples.saturating_add(1);
        self.last_finish = io.now;
        self.progress = io.now;
    }
}

/// `old` moved towards `new` by 1 / 2^smoothing of the way.
#[inline]
fn smoothed(old: u64, new: u64, smoothing: u32) -> u64 {
    if new >= old { old + ((new - old) >> smoothing) } else { old - ((old - new) >> smoothing) }
}

impl Latency {
    fn new(probe_every: u32, smoothing: u32, count: usize) -> Latency {
        Latency {
            order: Order::new(count),
            paths: vec![Path::default(); count],
            probe_every,
            smoothing,
            until_probe: probe_every,
            until_learn: 0,
            learning: count as u32,
        }
    }

    fn is_learning(&self, path: u32) -> bool {
        self.paths[path as usize].samples < SAMPLES_TRUSTED
    }

    /// The place of a path to be measured now, if it is time for that.
    #[inline]
    fn probe(&mut self, loads: &[Load]) -> Option<usize> {
        if self.learning > 0 {
            self.until_learn = self.until_learn.saturating_sub(1);
            if self.until_learn == 0
                && let Some(place) = self.idle_place(loads, |it, path| it.is_learning(path))
            {
                self.until_learn = LEARN_GAP;
                return Some(place);
            }
        }
        self.until_probe -= 1;
        if self.until_probe > 0 {
            return None;
        }
        self.until_probe = self.probe_every;
        self.idle_place(loads, |_, _| true)
    }

    /// The idle path measured longest ago, of those that fit.
    fn idle_place(&self, loads: &[Load], fits: impl Fn(&Latency, u32) -> bool) -> Option<usize> {
        let places = self.order.paths().iter().enumerate();
        places
            .filter(|&(_, &path)| loads[path as usize].ios == 0 && fits(self, path))
            .min_by_key(|&(_, &path)| self.paths[path as usize].last_finish)
            .map(|(place, _)| place)
    }

    /// The place of the lowest prediction. Paths being learned stand back unless there is no other.
    #[inline]
    fn lowest(&mut self, bytes: u64, loads: &[Load], now: Nanos) -> usize {
        let some_known = self.learning < self.order.paths().len() as u32;
        let mut best = (0, u64::MAX);
        for (place, &path) in self.order.paths().iter().enumerate() {
            let load = loads[path as usize];
            let path = &mut self.paths[path as usize];
            if some_known && path.samples < SAMPLES_TRUSTED {
                continue;
            }
            // Nothing is known of any: share by work alone.
            let predicted =
                if some_known { path.predict(bytes, load, now) } else { work_under(load) };
            if predicted < best.1 {
                best = (place, predicted);
            }
        }
        best.0
    }
}

impl PathSelector for Latency {
    #[inline(never)]
    fn select(&mut self, bytes: u64, loads: &[Load], _lane: LaneId, now: Nanos) -> Option<u32> {
        let place = match self.order.paths() {
            [] => return None,
            &[only] => {
                self.paths[only as usize].predict(bytes, loads[only as usize], now);
                return Some(only);
            }
            _ => match self.probe(loads) {
                Some(place) => place,
                None => self.lowest(bytes, loads, now),
            },
        };
        Some(self.order.take(place))
    }

    fn learns(&self) -> bool {
        true
    }

    #[inline]
    fn start_io(&mut self, path: u32, load: Load, now: Nanos) {
        if load.ios == 0 {
            self.paths[path as usize].progress = now;
        }
    }

    fn end_io(&mut self, path: u32, io: Finished) {
        let was_learning = self.is_learning(path);
        let listed = was_learning && self.order.paths().contains(&path);
        self.paths[path as usize].learn(io, self.smoothing);
        if listed && !self.is_learning(path) {
            self.learning -= 1;
        }
    }

    fn fail_path(&mut self, path: u32) {
        self.order.remove(path);
        self.learning -= u32::from(self.is_learning(path));
    }

    fn reinstate_path(&mut self, path: u32) {
        self.order.restore(path);
        let Path { last_finish, progress, .. } = self.paths[path as usize];
        // What it was before it failed says little.
        self.paths[path as usize] = Path { last_finish, progress, ..Path::default() };
        self.learning += 1;
        self.until_learn = LEARN_GAP;
    }

    fn words(&self, path: u32, _load: Load) -> [u64; WORDS] {
        let path = &self.paths[path as usize];
        let samples = u64::from(path.samples);
        [path.base_ns, path.backlog_ns, path.overdue_ns, samples, path.cost, 0]
    }
}

#[cfg(test)]
mod tests;
