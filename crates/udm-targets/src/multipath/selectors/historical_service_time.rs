//! `historical-service-time`: the path with the least (I/Os under way + 1) times its service time
//! so far.
//!
//! The service time of an I/O is counted from the later of its start and the path's last finish, so
//! a queue on a path is not counted again with every I/O in it. It is smoothed in fixed point (10
//! bits after the point): the longer an I/O took, the less the past weighs.
//!
//! How candidate `a` is compared with the best so far, `b`:
//!
//! | first case that fits | better is |
//! |---|---|
//! | the service times are within the threshold of each other | fewer I/Os under way |
//! | one is idle and stale, or both are idle | the idle one; of two, the one stale for longer |
//! | else | the smaller (1 + under way) * service time; if that is stale, fewer under way |
//!
//! Selector arguments: base weight (0 to 1023, default 972) and threshold (default 0). Path
//! argument: a repeat count, ignored and shown as 0. INFO shows service time (mean of the lanes
//! that have used the path, in 1/1024 ns), I/Os under way (sum) and when it becomes stale (the
//! latest).
//!
//! The tricky case is staleness: a path that was slow once is not chosen, so it would never be
//! measured again; after `paths * service time` without I/O it counts as stale and is tried.

use super::order::Order;
use super::{Finished, Load, PathSelector, Selector, SelectorConfig, WORDS, WordGroup, repeat_of};
use crate::multipath::counters::PathView;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt::Write;
use udm_core::UserError;
use udm_types::{LaneId, Nanos};

/// Bits after the point.
const POINT_BITS: u32 = 10;
/// 1.0.
const ONE: u64 = 1 << POINT_BITS;
/// Weights there are: one for each 16.8 ms of service time, the last for everything longer.
const WEIGHTS: usize = 64;
/// Service time covered by one weight, as a power of two in ns.
const WEIGHT_BITS: u32 = 24;
/// Largest service time in fixed point, so that it can be multiplied by a weight.
const SERVICE_MAX: u64 = (1 << 54) - 1;
/// From so many I/Os under way the fraction is dropped, so that the product fits.
const MANY: u64 = 1024;
const BASE_WEIGHT_DEFAULT: u32 = 972;

/// The part of the table line.
pub(super) struct Config {
    base_weight: u32,
    threshold: u32,
    paths: usize,
}

impl Config {
    pub(super) fn parse(words: &mut WordGroup<'_, '_>) -> Result<Config, UserError> {
        words.expect_at_most(2, "historical-service-time: path selector constructor failed")?;
        let base = words.number("the base weight", 0, ONE as u32 - 1)?;
        let threshold = words.number("the threshold multiplier", 0, u32::MAX)?;
        Ok(Config {
            base_weight: base.unwrap_or(BASE_WEIGHT_DEFAULT),
            threshold: threshold.unwrap_or(0),
            paths: 0,
        })
    }
}

impl SelectorConfig for Config {
    fn name(&self) -> &'static str {
        "historical-service-time"
    }

    fn add_path(&mut self, words: &mut WordGroup<'_, '_>) -> Result<(), UserError> {
        words.expect_at_most(1, self.name())?;
        repeat_of(words)?;
        self.paths += 1;
        Ok(())
    }

    fn own_words(&self) -> String {
        format!("2 {} {} ", self.base_weight, self.threshold)
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
        // A lane that has not finished an I/O on the path knows nothing of it.
        let used = || view.lanes().filter(|lane| lane.word(2) != 0);
        let service = match used().count() as u64 {
            0 => ONE,
            lanes => used().fold(0u64, |sum, lane| sum.saturating_add(lane.word(0))) / lanes,
        };
        let stale_after = used().map(|lane| lane.word(2)).max().unwrap_or(0);
        write!(text, "{service} {} {stale_after} ", view.sum_of_word(1))
            .expect("invariant: writing to a string succeeds");
    }

    fn explain(&self, _path: usize, words: &[u64]) -> String {
        let (service_ns, outstanding) = (words[0] >> POINT_BITS, words[1]);
        let product = service_ns.saturating_mul(outstanding + 1);
        format!(
            "{product} ns = service time {service_ns} ns * (1 + {outstanding} under way), \
             stale after {} ns",
            words[2]
        )
    }

    fn start(&self) -> Selector {
        let it = HistoricalServiceTime::new(self.base_weight, self.threshold, self.paths);
        Selector::HistoricalServiceTime(it)
    }
}

/// At work on one lane.
pub(crate) struct HistoricalServiceTime {
    order: Order,
    paths: Vec<Path>,
    threshold: u64,
    weights: Box<[u64; WEIGHTS]>,
}

#[derive(Clone, Copy, Debug)]
struct Path {
    /// Smoothed service time in ns, fixed point.
    service: u64,
    stale_after: u64,
    last_finish: Nanos,
}

impl HistoricalServiceTime {
    fn new(base_weight: u32, threshold: u32, count: usize) -> HistoricalServiceTime {
        let mut weights = [0; WEIGHTS];
        for (power, weight) in weights.iter_mut().enumerate().take(WEIGHTS - 1) {
            *weight = power_of(u64::from(base_weight), power as u32 + 1);
        }
        let path = Path { service: ONE, stale_after: 0, last_finish: Nanos::ZERO };
        HistoricalServiceTime {
            order: Order::new(count),
            paths: vec![path; count],
            threshold: u64::from(threshold),
            weights: Box::new(weights),
        }
    }

    /// `Less` if `a` is better than `b`. Each is a path and the I/Os under way on it.
    fn compare(&self, a: (&Path, u64), b: (&Path, u64), now: Nanos) -> Ordering {
        let ((a, a_ios), (b, b_ios)) = (a, b);
        let fewer = a_ios.cmp(&b_ios);
        let (most, least) = (a.service.max(b.service), a.service.min(b.service));
        if most <= least.saturating_mul(self.threshold) {
            return fewer;
        }
        let (a_stale, b_stale) = (a.stale_after < now.0, b.stale_after < now.0);
        let (a_idle, b_idle) = (a_ios == 0, b_ios == 0);
        if (a_idle && a_stale) || (b_idle && b_stale) || (a_idle && b_idle) {
            return if a_idle && b_idle { a.stale_after.cmp(&b.stale_after) } else { fewer };
        }
        let b_better = if a_ios == b_ios {
            a.service > b.service
        } else {
            let many = a_ios.max(b_ios) >= MANY;
            product(a.service, a_ios, many) >= product(b.service, b_ios, many)
        };
        match (b_better, a_stale, b_stale) {
            (true, _, true) | (false, true, _) => fewer,
            (true, _, false) => Ordering::Greater,
            (false, false, _) => Ordering::Less,
        }
    }
}

/// (1 + under way) * service time; without the fraction if there are many, so that it fits.
fn product(service: u64, ios: u64, many: bool) -> u64 {
    let service = if many { service >> POINT_BITS } else { service };
    service.saturating_mul(ios + 1)
}

/// `base` to a power, in fixed point, rounded to the nearest at each multiplication.
fn power_of(base: u64, mut power: u32) -> u64 {
    let multiply = |a: u64, b: u64| (a * b + ONE / 2) >> POINT_BITS;
    let (mut result, mut square) = (ONE, base);
    while power > 0 {
        if power & 1 == 1 {
            result = multiply(result, square);
        }
        power >>= 1;
        if power > 0 {
            square = multiply(square, square);
        }
    }
    result
}

impl PathSelector for HistoricalServiceTime {
    #[inline(never)]
    fn select(&mut self, _bytes: u64, loads: &[Load], _lane: LaneId, now: Nanos) -> Option<u32> {
        let rival = |path: u32| (&self.paths[path as usize], loads[path as usize].ios);
        let (&first, rest) = self.order.paths().split_first()?;
        let mut best = (0, rival(first));
        for (place, &path) in rest.iter().enumerate() {
            let candidate = rival(path);
            if self.compare(candidate, best.1, now) == Ordering::Less {
                best = (place + 1, candidate);
            }
        }
        let place = best.0;
        Some(self.order.take(place))
    }

    fn learns(&self) -> bool {
        true
    }

    fn end_io(&mut self, path: u32, io: Finished) {
        let valid = self.order.paths().len() as u64;
        let path = &mut self.paths[path as usize];
        let took = io.now.since(io.started.max(path.last_finish)).0;
        path.last_finish = path.last_finish.max(io.now);
        let slot = usize::try_from(took >> WEIGHT_BITS).unwrap_or(usize::MAX).min(WEIGHTS - 1);
        let weight = self.weights[slot];
        let sample = took.saturating_mul(ONE).min(SERVICE_MAX);
        // Both factors of each product are bounded so that the sum fits 64 bits.
        path.service = (path.service * weight + sample * (ONE - weight) + ONE / 2) >> POINT_BITS;
        let patience = valid.saturating_mul(path.service >> POINT_BITS);
        path.stale_after = path.last_finish.0.saturating_add(patience);
    }

    fn fail_path(&mut self, path: u32) {
        self.order.remove(path);
    }

    fn reinstate_path(&mut self, path: u32) {
        self.order.restore(path);
    }

    fn words(&self, path: u32, load: Load) -> [u64; WORDS] {
        let path = &self.paths[path as usize];
        [path.service, load.ios, path.stale_after, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::{HistoricalServiceTime, Path, power_of};
    use crate::multipath::selectors::PathSelector;
    use crate::multipath::selectors::testing::Rig;
    use core::cmp::Ordering;
    use udm_types::Nanos;

    fn rig(threshold: u32) -> Rig<HistoricalServiceTime> {
        Rig::new(HistoricalServiceTime::new(972, threshold, 2), 2)
    }

    fn words(rig: &Rig<HistoricalServiceTime>) -> [u64; 3] {
        let words = rig.it.words(0, rig.loads[0]);
        [words[0], words[1], words[2]]
    }

    #[test]
    fn weights_are_powers_rounded_at_each_step() {
        assert_eq!(power_of(972, 1), 972);
        // 972 * 972 = 944784; / 1024 = 922.6.
        assert_eq!(power_of(972, 2), 923);
        // 923 * 972 = 897156; / 1024 = 876.1.
        assert_eq!(power_of(972, 3), 876);
        // 923 squared / 1024 = 831.97.
        assert_eq!(power_of(972, 4), 832);
        assert_eq!(power_of(0, 5), 0);
        let it = HistoricalServiceTime::new(972, 0, 1);
        assert_eq!((it.weights[0], it.weights[1], it.weights[63]), (972, 923, 0));
    }

    #[test]
    fn the_service_time_is_smoothed_in_fixed_point() {
        let mut rig = rig(0);
        assert_eq!(words(&rig), [1024, 0, 0]);
        rig.start(0, 4096, 1_000);
        assert_eq!(words(&rig)[1], 1);
        rig.end(0, 4096, 1_000, 101_000);
        // (1024 * 972 + 100000 * 1024 * 52 + 512) >> 10 = 972 + 5200000 (and the rounding half).
        assert_eq!(words(&rig)[0], 5_200_972);
        // Stale after two paths times 5078 ns.
        assert_eq!(words(&rig)[2], 101_000 + 2 * (5_200_972 >> 10));
        // The next began earlier: it is counted from the last finish only.
        rig.start(0, 4096, 1_000);
        rig.end(0, 4096, 1_000, 101_100);
        assert_eq!(words(&rig)[0], (5_200_972 * 972 + 100 * 1024 * 52 + 512) >> 10);
    }

    #[test]
    fn a_very_long_service_time_forgets_the_past() {
        let mut rig = rig(0);
        rig.start(0, 4096, 0);
        let long = 64 << 24;
        rig.end(0, 4096, 0, long);
        assert_eq!(words(&rig)[0], long * 1024);
        rig.start(0, 4096, long);
        rig.end(0, 4096, long, u64::MAX / 2);
        assert_eq!(words(&rig)[0], (1 << 54) - 1, "and is capped");
    }

    #[test]
    fn the_fast_path_gets_more() {
        let mut rig = rig(0);
        // Path 0 takes 1 ms, path 1 takes 100 us, learned over and over.
        for round in 0..200u64 {
            let at = round * 1_000_000;
            rig.start(0, 4096, at);
            rig.end(0, 4096, at, at + 1_000_000);
            rig.start(1, 4096, at + 900_000);
            rig.end(1, 4096, at + 900_000, at + 1_000_000);
        }
        let chosen = rig.sent(4096, 22, 200 * 1_000_000);
        // Both idle: the one stale for longer is the fast one; then products are compared.
        let slow = chosen.iter().filter(|&&path| path == 0).count();
        assert_eq!(chosen[0], 1);
        assert!((2..=3).contains(&slow), "{chosen:?}");
    }

    /// Compares a path of this service time, I/Os under way and staleness with another, at 100 ns.
    fn compare(threshold: u32, a: (u64, u64, u64), b: (u64, u64, u64)) -> Ordering {
        let it = HistoricalServiceTime::new(972, threshold, 2);
        let path = |(service, _, stale_after)| Path { service, stale_after, ..it.paths[0] };
        it.compare((&path(a), a.1), (&path(b), b.1), Nanos(100))
    }

    #[test]
    fn ties_and_thresholds() {
        // Within twice of each other: fewer under way, ties keep the best.
        assert_eq!(compare(2, (2048, 3, 200), (1024, 4, 200)), Ordering::Less);
        assert_eq!(compare(2, (2048, 3, 200), (1024, 3, 200)), Ordering::Equal);
        // Beyond: 5000 * 1 against 1024 * 5; a is idle but not stale, so products decide.
        assert_eq!(compare(2, (5000, 0, 200), (1024, 4, 200)), Ordering::Less);
        assert_eq!(compare(2, (5000, 0, 200), (1024, 3, 200)), Ordering::Greater);
        // Idle and stale beats loaded.
        assert_eq!(compare(2, (50_000, 0, 99), (1024, 3, 200)), Ordering::Less);
        // Both idle: stale for longer.
        assert_eq!(compare(2, (50_000, 0, 99), (1024, 0, 98)), Ordering::Greater);
        // Equal load: b wins only if a is strictly slower.
        assert_eq!(compare(2, (5000, 2, 200), (1024, 2, 200)), Ordering::Greater);
        assert_eq!(compare(0, (1024, 2, 200), (1024, 2, 200)), Ordering::Less);
        // Equal products, unequal loads: b stays.
        assert_eq!(compare(0, (3000, 1, 200), (2000, 2, 200)), Ordering::Greater);
        // The winner by product is stale: fewer under way decides.
        assert_eq!(compare(2, (5000, 3, 200), (1024, 4, 99)), Ordering::Less);
        // From 1024 under way the fraction is dropped: 1023 / 1024 ns counts as nothing.
        assert_eq!(compare(0, (1023, 1024, 200), (1024, 0, 200)), Ordering::Less);
    }
}
