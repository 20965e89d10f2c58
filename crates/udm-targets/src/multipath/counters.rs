//! The counters of a multipath target: where each number stands in the flat list that lanes fill
//! and the core sums.
//!
//! The home lane writes the state, every lane writes its own section, all else stays 0; so the sum
//! over the lanes is the union. `status.rs` and `report.rs` read it through [`Snapshot`].
//!
//! ```text
//! head      HEAD words: see the constants
//! groups    for each group: bypassed (home)
//! paths     for each path: active, fail count (home)
//! lane 0    for each group: the selector's own count; for each path: PATH_WORDS, see LanePath
//! lane 1    ...
//! ```
//!
//! Rules. Nothing here knows what a number means beyond its place. A list that is empty (a table
//! that no lane serves) reads as zeroes; [`Snapshot::is_live`] tells the difference.
//!
//! The tricky case: lanes answer one after the other, so under load the sum was never true at any
//! one moment. It is exact when nothing moves.

use super::selectors::WORDS;
use alloc::vec::Vec;
use udm_types::LaneId;

/// Lanes that have filled in their section.
pub(crate) const LANES: usize = 0;
/// Lanes that have chosen a path (or found none) since the table was made.
pub(crate) const CHOSE: usize = 1;
/// queue_if_no_path is on (home).
pub(crate) const QUEUEING: usize = 2;
/// The current group, counted from 1; 0 if none (home).
pub(crate) const CURRENT: usize = 3;
/// The next group, counted from 1; 0 if none (home).
pub(crate) const NEXT: usize = 4;
/// Active paths (home).
pub(crate) const VALID: usize = 5;
/// Time limit of queueing in seconds, 0 if none (home).
pub(crate) const TIMEOUT_SECS: usize = 6;
/// Bios that wait for a path, over all lanes.
pub(crate) const HELD: usize = 7;
/// Times queueing ended because of its time limit (home).
pub(crate) const EXPIRED: usize = 8;
const HEAD: usize = 9;

const GROUP_WORDS: usize = 1;
const HOME_PATH_WORDS: usize = 2;
/// Buckets of the latency histogram; see [`bucket_of`].
pub(crate) const BUCKETS: usize = 32;

// A lane's words for a path.
pub(crate) const CHOSEN: usize = 0;
pub(crate) const DONE: usize = 1;
pub(crate) const ERRORS: usize = 2;
pub(crate) const LAST_ERROR: usize = 3;
pub(crate) const LAST_ERROR_AT: usize = 4;
pub(crate) const LAST_CHOSEN_AT: usize = 5;
const SELECTOR: usize = 6;
const HISTOGRAM: usize = SELECTOR + WORDS;
pub(crate) const PATH_WORDS: usize = HISTOGRAM + BUCKETS;

/// Log2 of the upper end of the first bucket: everything below 1024 ns.
pub(crate) const BUCKET_FIRST_BITS: u32 = 10;

/// The bucket of a latency: bucket 0 is below 2^10 ns, bucket `b` from 2^(9+b) to below 2^(10+b),
/// the last holds all that is longer.
#[inline]
pub(crate) fn bucket_of(latency_ns: u64) -> usize {
    let bits = u64::BITS - latency_ns.leading_zeros();
    (bits.saturating_sub(BUCKET_FIRST_BITS) as usize).min(BUCKETS - 1)
}

/// The shape of the list: how many groups and paths the table has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) groups: usize,
    pub(crate) paths: usize,
}

impl Layout {
    pub(crate) fn bypassed(self, group: usize) -> usize {
        HEAD + group * GROUP_WORDS
    }

    fn home_path(self, path: usize) -> usize {
        HEAD + self.groups * GROUP_WORDS + path * HOME_PATH_WORDS
    }

    pub(crate) fn active(self, path: usize) -> usize {
        self.home_path(path)
    }

    pub(crate) fn fail_count(self, path: usize) -> usize {
        self.home_path(path) + 1
    }

    fn lane(self, lane: usize) -> usize {
        self.home_path(self.paths) + lane * (self.groups + self.paths * PATH_WORDS)
    }

    /// How long the list is up to the end of a lane's section.
    pub(crate) fn len(self, lane: LaneId) -> usize {
        self.lane(lane.index() + 1)
    }

    /// A selector's own count on a lane.
    pub(crate) fn own_count(self, lane: usize, group: usize) -> usize {
        self.lane(lane) + group
    }

    /// Where a path's words of a lane begin.
    pub(crate) fn lane_path(self, lane: usize, path: usize) -> usize {
        self.lane(lane) + self.groups + path * PATH_WORDS
    }

    /// Where what a path's selector knows of it begins.
    pub(crate) fn selector_words(self, lane: usize, path: usize) -> usize {
        self.lane_path(lane, path) + SELECTOR
    }

    /// Where a path's histogram begins.
    pub(crate) fn histogram(self, lane: usize, path: usize) -> usize {
        self.lane_path(lane, path) + HISTOGRAM
    }
}

/// The list, to read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Snapshot<'a> {
    pub(crate) layout: Layout,
    words: &'a [u64],
}

impl<'a> Snapshot<'a> {
    pub(crate) fn new(layout: Layout, words: &'a [u64]) -> Snapshot<'a> {
        Snapshot { layout, words }
    }

    /// False for a table that no lane serves.
    pub(crate) fn is_live(&self) -> bool {
        !self.words.is_empty()
    }

    /// A word; 0 if it is not there.
    pub(crate) fn get(&self, at: usize) -> u64 {
        self.words.get(at).copied().unwrap_or(0)
    }

    /// How many lanes have sections.
    pub(crate) fn lanes(&self) -> usize {
        let size = self.layout.lane(1) - self.layout.lane(0);
        match size {
            0 => usize::try_from(self.get(LANES)).unwrap_or(0),
            _ => self.words.len().saturating_sub(self.layout.lane(0)) / size,
        }
    }

    /// A path's numbers.
    pub(crate) fn path(self, path: usize, group: usize) -> PathView<'a> {
        PathView { snapshot: self, path, group }
    }
}

/// A path's numbers on all lanes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PathView<'a> {
    snapshot: Snapshot<'a>,
    path: usize,
    group: usize,
}

/// A path's numbers on one lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LanePathView<'a> {
    view: PathView<'a>,
    lane: usize,
}

impl<'a> PathView<'a> {
    /// Lane by lane.
    pub(crate) fn lanes(self) -> impl Iterator<Item = LanePathView<'a>> {
        (0..self.snapshot.lanes()).map(move |lane| LanePathView { view: self, lane })
    }

    /// A number of the lanes, summed.
    pub(crate) fn sum(&self, field: usize) -> u64 {
        self.lanes().map(|lane| lane.get(field)).fold(0, u64::wrapping_add)
    }

    /// A word of the selector, summed over the lanes.
    pub(crate) fn sum_of_word(&self, word: usize) -> u64 {
        self.lanes().map(|lane| lane.word(word)).fold(0, u64::wrapping_add)
    }

    /// I/Os on the path now.
    pub(crate) fn in_flight(&self) -> u64 {
        self.sum(CHOSEN).saturating_sub(self.sum(DONE))
    }

    /// The count of the path's selector, summed over the lanes.
    pub(crate) fn own_count(&self) -> u64 {
        let Snapshot { layout, .. } = self.snapshot;
        let lanes = 0..self.snapshot.lanes();
        lanes.map(|lane| self.snapshot.get(layout.own_count(lane, self.group))).sum()
    }

    /// The histogram, summed over the lanes.
    pub(crate) fn histogram(&self) -> [u64; BUCKETS] {
        let mut sum = [0; BUCKETS];
        for lane in 0..self.snapshot.lanes() {
            let first = self.snapshot.layout.histogram(lane, self.path);
            for (bucket, total) in sum.iter_mut().enumerate() {
                *total += self.snapshot.get(first + bucket);
            }
        }
        sum
    }

    /// The status code and time of the newest error of any lane.
    pub(crate) fn last_error(&self) -> Option<(u64, u64)> {
        self.lanes()
            .map(|lane| (lane.get(LAST_ERROR), lane.get(LAST_ERROR_AT)))
            .filter(|&(code, _)| code != 0)
            .max_by_key(|&(_, at)| at)
    }

    /// When it was chosen last, on any lane; `None` if never.
    pub(crate) fn last_chosen_at(&self) -> Option<u64> {
        let used = self.lanes().filter(|lane| lane.get(CHOSEN) > 0);
        used.map(|lane| lane.get(LAST_CHOSEN_AT)).max()
    }
}

impl LanePathView<'_> {
    /// The lane's number.
    pub(crate) fn lane(&self) -> usize {
        self.lane
    }

    /// A number.
    pub(crate) fn get(&self, field: usize) -> u64 {
        let Snapshot { layout, .. } = self.view.snapshot;
        self.view.snapshot.get(layout.lane_path(self.lane, self.view.path) + field)
    }

    /// A word of the selector.
    pub(crate) fn word(&self, word: usize) -> u64 {
        self.get(SELECTOR + word)
    }

    /// All words of the selector.
    pub(crate) fn words(&self) -> Vec<u64> {
        (0..WORDS).map(|word| self.word(word)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, Layout, PATH_WORDS, Snapshot, bucket_of};
    use alloc::vec;
    use udm_types::LaneId;

    #[test]
    fn buckets_double() {
        assert_eq!([0, 1023, 1024, 2047, 2048].map(bucket_of), [0, 0, 1, 1, 2]);
        assert_eq!(bucket_of(1_000_000), 10, "2^19 to 2^20 ns");
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn sections_do_not_overlap() {
        let layout = Layout { groups: 2, paths: 3 };
        assert_eq!(layout.fail_count(2) + 1, layout.own_count(0, 0));
        assert_eq!(layout.lane_path(0, 2) + PATH_WORDS, layout.own_count(1, 0));
        assert_eq!(layout.histogram(1, 2) + BUCKETS, layout.len(LaneId(1)));
        let words = vec![0; layout.len(LaneId(2))];
        assert_eq!(Snapshot::new(layout, &words).lanes(), 3);
        assert_eq!(Snapshot::new(layout, &[]).lanes(), 0);
    }
}
