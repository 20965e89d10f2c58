//! What changed since a checkpoint: block to map word, newest wins.
//!
//! Written by the log when a record is sealed (and by recovery), read by lookups, folded into the
//! map pages by the checkpoint. The words are those of map entries (`format/map.rs`); the overlay
//! of the open record uses the same structure with words of its own.
//!
//! Rules. Short runs are kept block by block; long runs of holes as ranges, so that a discard of a
//! terabyte costs as much as a write. Every change has a number, and the higher one wins: a range
//! does not have to look for the blocks it covers.
//!
//! Why ordered maps and not hash tables: the checkpoint needs the blocks in the order of the pages,
//! and a hash table of some million entries stops everything for a tenth of a second when it grows
//! or is sorted. The price is a slower insertion, small beside the compression of a block.

use alloc::collections::BTreeMap;
use core::ops::Range;

/// Runs of holes at least this long are kept as ranges: below, the entry of a range costs more.
const RANGE_MIN_BLOCKS: u64 = 64;
/// Bytes that a block costs: 23 in a leaf, filled to two thirds on average.
const POINT_BYTES: usize = 36;
/// Bytes that a range costs.
const RANGE_BYTES: usize = 64;

/// Changes, numbered in the order they were made.
#[derive(Default)]
pub(super) struct Delta {
    points: BTreeMap<u64, Point>,
    /// Holes: first block to end and number. They do not overlap.
    ranges: BTreeMap<u64, (u64, u32)>,
    changes: u32,
}

/// A word of 64 bits and a number of 32, without the padding they would have as such.
#[derive(Clone, Copy)]
struct Point([u32; 3]);

impl Point {
    fn new(word: u64, number: u32) -> Point {
        Point([word as u32, (word >> 32) as u32, number])
    }

    fn word(self) -> u64 {
        u64::from(self.0[0]) | u64::from(self.0[1]) << 32
    }

    fn number(self) -> u32 {
        self.0[2]
    }
}

impl Delta {
    /// A block has this word from now on.
    pub(super) fn set(&mut self, block: u64, word: u64) {
        self.changes += 1;
        self.points.insert(block, Point::new(word, self.changes));
    }

    /// Blocks are holes from now on.
    pub(super) fn set_holes(&mut self, blocks: Range<u64>) {
        if blocks.end - blocks.start < RANGE_MIN_BLOCKS {
            blocks.for_each(|block| self.set(block, 0));
            return;
        }
        self.changes += 1;
        self.cut_ranges(&blocks);
        self.ranges.insert(blocks.start, (blocks.end, self.changes));
    }

    /// Takes `blocks` out of the ranges there are.
    fn cut_ranges(&mut self, blocks: &Range<u64>) {
        if let Some((&start, &(end, number))) = self.ranges.range(..blocks.start).next_back() {
            if end > blocks.start {
                self.ranges.insert(start, (blocks.start, number));
            }
            if end > blocks.end {
                self.ranges.insert(blocks.end, (end, number));
            }
        }
        while let Some((&start, &(end, number))) = self.ranges.range(blocks.clone()).next() {
            self.ranges.remove(&start);
            if end > blocks.end {
                self.ranges.insert(blocks.end, (end, number));
            }
        }
    }

    /// The word of a block, if it changed.
    pub(super) fn get(&self, block: u64) -> Option<u64> {
        let point = self.points.get(&block);
        let range = self.range_over(block);
        match (point, range) {
            (Some(point), Some(number)) if point.number() < number => Some(0),
            (Some(point), _) => Some(point.word()),
            (None, Some(_)) => Some(0),
            (None, None) => None,
        }
    }

    /// The number of the range that covers a block.
    fn range_over(&self, block: u64) -> Option<u32> {
        if self.ranges.is_empty() {
            return None;
        }
        let (_, &(end, number)) = self.ranges.range(..=block).next_back()?;
        (block < end).then_some(number)
    }

    /// The first block from `from` on that changed.
    pub(super) fn next_block(&self, from: u64) -> Option<u64> {
        let point = self.points.range(from..).next().map(|(&block, _)| block);
        let range = match self.range_over(from) {
            Some(_) => Some(from),
            None => self.ranges.range(from..).next().map(|(&start, _)| start),
        };
        [point, range].into_iter().flatten().min()
    }

    /// Every block of `blocks` that changed, with its word, in order.
    pub(super) fn for_each_in(&self, blocks: Range<u64>, mut visit: impl FnMut(u64, u64)) {
        let mut points = self.points.range(blocks.clone()).peekable();
        let before = self.ranges.range(..blocks.start).next_back();
        let holes = before.into_iter().chain(self.ranges.range(blocks.clone()));
        for (&start, &(end, number)) in holes {
            let hole = start.max(blocks.start)..end.min(blocks.end);
            while let Some((&block, point)) = points.next_if(|(block, _)| **block < hole.start) {
                visit(block, point.word());
            }
            for block in hole {
                // What was written into the hole after it was made.
                let point = points.next_if(|(at, _)| **at == block).map(|(_, point)| point);
                let newer = point.filter(|point| point.number() > number);
                visit(block, newer.map_or(0, |point| point.word()));
            }
        }
        points.for_each(|(&block, point)| visit(block, point.word()));
    }

    /// The range of holes over a block, whatever else is in it: where it ends.
    pub(super) fn hole_end(&self, block: u64) -> Option<u64> {
        let (_, &(end, _)) = self.ranges.range(..=block).next_back()?;
        (block < end).then_some(end)
    }

    /// True if a single block of `blocks` changed, other than by a range.
    pub(super) fn has_points(&self, blocks: Range<u64>) -> bool {
        self.points.range(blocks).next().is_some()
    }

    /// Blocks and ranges.
    pub(super) fn len(&self) -> usize {
        self.points.len() + self.ranges.len()
    }

    /// Memory it takes, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.points.len() * POINT_BYTES + self.ranges.len() * RANGE_BYTES
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.points.clear();
        self.ranges.clear();
        self.changes = 0;
    }

    /// Forgets up to `count` changes; true if some are left. Millions of them take a while.
    pub(super) fn forget_some(&mut self, count: usize) -> bool {
        for _ in 0..count {
            if self.points.pop_first().is_none() && self.ranges.pop_first().is_none() {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::Delta;
    use alloc::vec::Vec;

    #[test]
    fn the_newest_change_wins_whatever_its_kind() {
        const BLOCKS: u64 = 400;
        let mut rng = fastrand::Rng::with_seed(4);
        for _ in 0..200 {
            let mut delta = Delta::default();
            let mut plain: Vec<Option<u64>> = alloc::vec![None; BLOCKS as usize];
            for step in 0..60 {
                let first = rng.u64(..BLOCKS);
                let len = rng.u64(1..=(BLOCKS - first).min(200));
                if rng.bool() {
                    delta.set_holes(first..first + len);
                    plain[first as usize..(first + len) as usize].fill(Some(0));
                } else {
                    delta.set(first, step + 1);
                    plain[first as usize] = Some(step + 1);
                }
            }
            let found: Vec<_> = (0..BLOCKS).map(|block| delta.get(block)).collect();
            assert_eq!(found, plain);
            let (from, to) = (rng.u64(..BLOCKS), rng.u64(..BLOCKS));
            let mut seen = Vec::new();
            delta.for_each_in(from..to.max(from), |block, word| seen.push((block, word)));
            let wanted: Vec<_> = (from..to.max(from))
                .filter_map(|block| plain[block as usize].map(|word| (block, word)))
                .collect();
            assert_eq!(seen, wanted);
        }
    }

    #[test]
    fn a_terabyte_of_holes_is_one_range() {
        let mut delta = Delta::default();
        delta.set(5, 9);
        delta.set_holes(0..1 << 28);
        delta.set(7, 8);
        assert_eq!((delta.get(5), delta.get(7), delta.get(1 << 27)), (Some(0), Some(8), Some(0)));
        assert_eq!((delta.len(), delta.hole_end(6), delta.get(1 << 28)), (3, Some(1 << 28), None));
        assert!(delta.has_points(0..6) && !delta.has_points(8..1 << 20));
        assert!(delta.forget_some(2) && !delta.forget_some(3) && delta.len() == 0);
    }
}
