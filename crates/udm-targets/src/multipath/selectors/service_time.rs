//! `service-time`: the path on which this I/O would be done first, by bytes under way and a given
//! throughput.
//!
//! Paths are compared in list order; only a strictly better one replaces the best so far, and the
//! chosen one goes to the tail. For `n` bytes more, path `a` against `b`:
//!
//! | case | better is |
//! |---|---|
//! | equal throughput | fewer bytes under way |
//! | equal bytes, or a throughput of 0 | the higher throughput |
//! | else | the smaller (bytes + n) / throughput, crosswise; on a tie the higher throughput |
//!
//! Selector arguments: any, ignored. Path arguments: a repeat count and a relative throughput, 0 to
//! 100 (1 if not given). A path of throughput 0 is used only if no other is active. INFO shows the
//! bytes under way (over all lanes) and the throughput, TABLE repeat count and throughput.
//!
//! The tricky case is the width: Linux cuts differences to 32 bits and may then take the worse
//! path when much is under way; here they are compared in full.

use super::order::Order;
use super::{Load, PathSelector, Selector, SelectorConfig, WordGroup, repeat_of};
use crate::multipath::counters::PathView;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::fmt::Write;
use udm_core::UserError;
use udm_types::{LaneId, Nanos};

/// Highest relative throughput.
const THROUGHPUT_MAX: u32 = 100;

/// The part of the table line.
#[derive(Default)]
pub(super) struct Config {
    paths: Vec<PathConfig>,
}

#[derive(Clone, Copy)]
struct PathConfig {
    repeat: u32,
    throughput: u32,
}

impl SelectorConfig for Config {
    fn name(&self) -> &'static str {
        "service-time"
    }

    fn add_path(&mut self, words: &mut WordGroup<'_, '_>) -> Result<(), UserError> {
        words.expect_at_most(2, self.name())?;
        let repeat = repeat_of(words)?;
        let throughput = words.number("the relative throughput", 0, THROUGHPUT_MAX)?.unwrap_or(1);
        self.paths.push(PathConfig { repeat, throughput });
        Ok(())
    }

    fn table_words(&self) -> usize {
        2
    }

    fn info_words(&self) -> usize {
        2
    }

    fn print_table(&self, path: usize, text: &mut String) {
        let PathConfig { repeat, throughput } = self.paths[path];
        write!(text, "{repeat} {throughput} ").expect("invariant: writing to a string succeeds");
    }

    fn print_info(&self, path: usize, view: &PathView<'_>, text: &mut String) {
        let throughput = self.paths[path].throughput;
        write!(text, "{} {throughput} ", view.sum_of_word(1))
            .expect("invariant: writing to a string succeeds");
    }

    fn explain(&self, path: usize, words: &[u64]) -> String {
        format!("{} bytes under way, relative throughput {}", words[1], self.paths[path].throughput)
    }

    fn start(&self) -> Selector {
        Selector::ServiceTime(ServiceTime::new(self.paths.iter().map(|path| path.throughput)))
    }
}

/// At work on one lane.
pub(crate) struct ServiceTime {
    order: Order,
    throughputs: Vec<u64>,
}

impl ServiceTime {
    fn new(throughputs: impl ExactSizeIterator<Item = u32>) -> ServiceTime {
        let order = Order::new(throughputs.len());
        ServiceTime { order, throughputs: throughputs.map(u64::from).collect() }
    }
}

/// A path in a comparison: bytes under way and throughput.
#[derive(Clone, Copy)]
struct Rival {
    bytes: u64,
    throughput: u64,
}

impl Rival {
    /// `Less` if this path is better than the other for `more` bytes.
    #[inline]
    fn compare(self, other: Rival, more: u64) -> Ordering {
        if self.throughput == other.throughput {
            return self.bytes.cmp(&other.bytes);
        }
        self.compare_weighted(other, more)
    }

    #[cold]
    fn compare_weighted(self, other: Rival, more: u64) -> Ordering {
        let by_throughput = other.throughput.cmp(&self.throughput);
        if self.bytes == other.bytes || self.throughput == 0 || other.throughput == 0 {
            return by_throughput;
        }
        // Bytes under way are far below 2^57, so times 100 fits.
        let mine = (self.bytes + more).saturating_mul(other.throughput);
        let theirs = (other.bytes + more).saturating_mul(self.throughput);
        mine.cmp(&theirs).then(by_throughput)
    }
}

impl PathSelector for ServiceTime {
    #[inline(always)]
    fn select(&mut self, bytes: u64, loads: &[Load], _lane: LaneId, _now: Nanos) -> Option<u32> {
        let rival = |path: u32| Rival {
            bytes: loads[path as usize].bytes,
            throughput: self.throughputs[path as usize],
        };
        let (&first, rest) = self.order.paths().split_first()?;
        let mut best = (0, rival(first));
        for (place, &path) in rest.iter().enumerate() {
            let candidate = rival(path);
            if candidate.compare(best.1, bytes) == Ordering::Less {
                best = (place + 1, candidate);
            }
        }
        Some(self.order.take(best.0))
    }

    fn fail_path(&mut self, path: u32) {
        self.order.remove(path);
    }

    fn reinstate_path(&mut self, path: u32) {
        self.order.restore(path);
    }
}

#[cfg(test)]
mod tests {
    use super::ServiceTime;
    use crate::multipath::selectors::PathSelector;
    use crate::multipath::selectors::testing::Rig;

    fn rig(throughputs: [u32; 2]) -> Rig<ServiceTime> {
        Rig::new(ServiceTime::new(throughputs.into_iter()), 2)
    }

    #[test]
    fn equal_throughputs_balance_bytes() {
        let mut rig = rig([1, 1]);
        assert_eq!(rig.send(64 << 10, 0), Some(0));
        // 16 small ones fit beside the large one: at 64 KiB each the order decides.
        assert_eq!(rig.sent(4 << 10, 16, 0), [1; 16]);
        assert_eq!(rig.send(4 << 10, 0), Some(0), "path 0 is first in the list");
    }

    #[test]
    fn throughput_weighs_the_bytes() {
        // 10 against 20: with nothing under way the faster; then crosswise.
        let mut rig = rig([10, 20]);
        // a: (0+1)*20 = 20 against b: (1+1)*10 = 20: a tie, the faster wins; then 20 < 30.
        assert_eq!(rig.sent(1, 6, 0), [1, 1, 0, 1, 1, 0]);
    }

    #[test]
    fn a_throughput_of_zero_is_a_last_resort() {
        let mut rig = rig([0, 1]);
        assert_eq!(rig.sent(4096, 3, 0), [1, 1, 1]);
        rig.it.fail_path(1);
        assert_eq!(rig.sent(4096, 2, 0), [0, 0]);
        rig.it.reinstate_path(1);
        assert_eq!(rig.sent(4096, 1, 0), [1]);
        assert_eq!(rig.it.words(1, rig.loads[1])[1], 4 * 4096);
    }

    #[test]
    fn large_differences_are_not_cut_to_32_bits() {
        let mut rig = rig([100, 99]);
        rig.start(0, 3 << 30, 0);
        assert_eq!(rig.send(4096, 0), Some(1), "3 GiB under way on path 0");
    }
}
