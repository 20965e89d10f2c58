//! Which segments are free, which are in use, and who still reads in them.
//!
//! The counts of live blocks are those of the last checkpoint, exact for its moment; between
//! checkpoints nothing here counts. A segment goes round: free, next (reserved to follow the open
//! one), open, recent (filled since the last freeze), used, and, once a checkpoint finds no live
//! block in it, held (until readers have left it and the discard below is done), and free again.
//!
//! Rules. A segment becomes free only by [`Segments::settle`] and [`Segments::release`]: after the
//! checkpoint that counted it dead is durable, without pins, and not before its discard ended.
//! The reserve is the caller's business: [`Segments::take`] gives out the last one.
//!
//! While the disk is being made smaller, segments before the *cut* are given out first, so that
//! those behind it become empty; then the cut is closed, and those are not given out at all.
//!
//! The tricky case is a segment filled between two freezes: its count in here is 0, because nothing
//! has counted it yet, not because it is dead. `recent` and the counts of the *next* settling keep
//! the two apart.

use crate::compress::format::map::SegmentState;
use crate::compress::format::{MapEntry, SegmentEntry};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;

/// Live blocks and units of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) blocks: u32,
    pub(super) units: u32,
}

/// The segments of a volume.
#[derive(Default)]
pub(super) struct Segments {
    entries: Vec<SegmentEntry>,
    free: VecDeque<u32>,
    held: BTreeSet<u32>,
    /// Entered since the last freeze; the first one is the one that was open then.
    recent: VecDeque<u32>,
    /// Copied out by the cleaner, waiting for a checkpoint to find them dead: it must cover this
    /// sequence.
    cleaned: BTreeMap<u32, u64>,
    /// The cleaner could not copy everything out of them.
    stuck: BTreeSet<u32>,
    pins: BTreeMap<u32, u32>,
    /// Segments from here on are given out last.
    cut: Option<u32>,
    /// Those behind a closed cut, all free; not given out any more.
    aside: VecDeque<u32>,
}

impl Segments {
    /// The segments as the last checkpoint left them. `open` is where the log goes on and `next`
    /// what follows, whatever the table says of them.
    pub(super) fn new(mut entries: Vec<SegmentEntry>, open: u32, next: u32) -> Segments {
        for used in [open, next] {
            entries[used as usize].state = SegmentState::Used;
        }
        let is_free = |entry: &SegmentEntry| match entry.state {
            SegmentState::Discarded | SegmentState::Free => true,
            SegmentState::Used | SegmentState::Retired | SegmentState::Map => false,
        };
        let free = (0..).zip(&entries).filter(|(_, entry)| is_free(entry)).map(|(at, _)| at);
        let free = free.collect();
        Segments { entries, free, recent: VecDeque::from([open]), ..Segments::default() }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.entries.len()).expect("invariant: checked with the geometry")
    }

    /// An entry, as of the last checkpoint.
    pub(super) fn entry(&self, segment: u32) -> &SegmentEntry {
        &self.entries[segment as usize]
    }

    /// How many could be taken now.
    pub(super) fn free_count(&self) -> usize {
        self.free.len()
    }

    /// How many wait to become free.
    pub(super) fn held_count(&self) -> usize {
        self.held.len()
    }

    /// Where the cut is; the end, if there is none.
    fn end(&self) -> u32 {
        self.cut.unwrap_or(self.count())
    }

    /// Reserves one to follow the open one.
    pub(super) fn take(&mut self) -> Option<u32> {
        let end = self.end();
        let first = self.free.iter().position(|segment| *segment < end).unwrap_or(0);
        let segment = self.free.remove(first)?;
        let entry = &mut self.entries[segment as usize];
        *entry = SegmentEntry { state: SegmentState::Used, ..SegmentEntry::default() };
        Some(segment)
    }

    /// Recovery: the log went on in this one.
    pub(super) fn take_this(&mut self, segment: u32) {
        self.free.retain(|free| *free != segment);
        let entry = &mut self.entries[segment as usize];
        if entry.state != SegmentState::Used {
            *entry = SegmentEntry { state: SegmentState::Used, ..SegmentEntry::default() };
        }
    }

    /// The log enters a segment that was reserved; `checkpoint` is its age.
    pub(super) fn enter(&mut self, segment: u32, checkpoint: u64) {
        self.entries[segment as usize].sealed_at = checkpoint as u32;
        self.recent.push_back(segment);
    }

    /// A checkpoint begins: whatever is full by now will be counted by it. `open` stays recent.
    pub(super) fn freeze(&mut self, open: u32) {
        self.recent.clear();
        self.recent.push_back(open);
    }

    /// More of them, all free; or fewer, when those behind the cut are empty.
    pub(super) fn resize(&mut self, count: u32) {
        self.free.extend(self.count()..count);
        if count < self.count() {
            self.cut = None;
            self.aside.clear();
            self.cleaned.split_off(&count);
            self.stuck.split_off(&count);
        }
        self.entries.resize(count as usize, SegmentEntry::default());
    }

    /// One for map pages, for ever: the first one, since it is in the way when the disk shrinks.
    pub(super) fn take_for_map(&mut self) -> Option<u32> {
        let first = *self.free.iter().min()?;
        self.free.retain(|free| *free != first);
        self.entries[first as usize] =
            SegmentEntry { state: SegmentState::Map, ..SegmentEntry::default() };
        Some(first)
    }

    /// Gives out segments from `from` on only if there is no other.
    pub(super) fn begin_cut(&mut self, from: u32) {
        self.cut = Some(from);
    }

    /// Gives out no segment behind the cut any more, if all of them are free.
    pub(super) fn close_cut(&mut self) -> bool {
        let is_empty = self.used_behind_cut() == 0;
        if is_empty {
            let end = self.end();
            (self.aside, self.free) = self.free.drain(..).partition(|segment| *segment >= end);
        }
        is_empty
    }

    /// The cut is given up.
    pub(super) fn end_cut(&mut self) {
        self.cut = None;
        self.free.append(&mut self.aside);
    }

    /// Free segments before the cut.
    pub(super) fn free_before_cut(&self) -> usize {
        self.free.iter().filter(|segment| **segment < self.end()).count()
    }

    /// Segments behind the cut that are not free.
    pub(super) fn used_behind_cut(&self) -> usize {
        let behind = (self.count() - self.end()) as usize;
        behind - (self.free.len() - self.free_before_cut())
    }

    /// True if some behind the cut wait to become free.
    pub(super) fn is_held_behind_cut(&self) -> bool {
        self.held.range(self.end()..).next().is_some()
    }

    /// A segment behind the cut that the cleaner may choose.
    pub(super) fn candidate_behind_cut(&self, is_whole: impl Fn(u32) -> bool) -> Option<u32> {
        let mut candidates = self.candidates().map(|(segment, _)| segment);
        candidates.find(|segment| *segment >= self.end() && is_whole(*segment))
    }

    /// The emptiest one before the cut, with what is live in it.
    pub(super) fn candidate_before_cut(
        &self,
        is_whole: impl Fn(u32) -> bool,
    ) -> Option<(u32, u32)> {
        let end = self.end();
        let before = self.candidates().filter(|(at, _)| *at < end && is_whole(*at));
        before.map(|(segment, entry)| (segment, entry.live_units)).min_by_key(|(_, units)| *units)
    }

    /// A segment behind the cut that cannot be emptied: map pages, or damage.
    pub(super) fn is_cut_stuck(&self) -> bool {
        let is_map = |entry: &SegmentEntry| entry.state == SegmentState::Map;
        self.stuck.range(self.end()..).next().is_some()
            || self.entries[self.end() as usize..].iter().any(is_map)
    }

    /// How many hold map pages, and the end of the last one.
    pub(super) fn of_map(&self) -> (usize, u32) {
        let of_map = (0..).zip(&self.entries).filter(|(_, entry)| entry.state == SegmentState::Map);
        of_map.fold((0, 0), |(count, _), (segment, _)| (count + 1, segment + 1))
    }

    /// True if the log has been in it since the last freeze.
    pub(super) fn is_recent(&self, segment: u32) -> bool {
        self.recent.contains(&segment)
    }

    /// Segments that were entered after the last freeze.
    pub(super) fn entered_since_freeze(&self) -> impl Iterator<Item = u32> + '_ {
        self.recent.iter().skip(1).copied()
    }

    /// The counts, to go on from.
    pub(super) fn live(&self) -> Vec<Live> {
        let of = |entry: &SegmentEntry| Live { blocks: entry.live_blocks, units: entry.live_units };
        self.entries.iter().map(of).collect()
    }

    /// A checkpoint is durable: these are its counts, and the segments it found dead. They are held
    /// until nobody reads in them any more.
    pub(super) fn settle(&mut self, live: &[Live], dead: &[u32], next_sequence: u64) {
        for (entry, live) in self.entries.iter_mut().zip(live) {
            (entry.live_blocks, entry.live_units) = (live.blocks, live.units);
        }
        for &segment in dead {
            self.entries[segment as usize] =
                SegmentEntry { state: SegmentState::Free, ..SegmentEntry::default() };
            self.held.insert(segment);
        }
        // What is still alive although it was copied out cannot be reached: damage.
        let stuck = &mut self.stuck;
        self.cleaned.retain(|segment, sequence| {
            let is_counted = *sequence < next_sequence;
            if is_counted && live[*segment as usize].blocks > 0 {
                stuck.insert(*segment);
            }
            !is_counted
        });
    }

    /// A held segment that nobody reads in; it stays held.
    pub(super) fn next_held(&self, after: Option<u32>) -> Option<u32> {
        let from = after.map_or(0, |after| after + 1);
        self.held.range(from..).find(|segment| !self.pins.contains_key(segment)).copied()
    }

    /// A held segment may be used again. `is_discarded`: the device below knows.
    pub(super) fn release(&mut self, segment: u32, is_discarded: bool) {
        if self.held.remove(&segment) && !self.pins.contains_key(&segment) {
            if is_discarded {
                self.entries[segment as usize].state = SegmentState::Discarded;
            }
            self.free.push_back(segment);
        }
    }

    /// Somebody reads in a segment.
    pub(super) fn pin(&mut self, segment: u32) {
        *self.pins.entry(segment).or_insert(0) += 1;
    }

    /// How many read in a segment.
    pub(super) fn pin_count(&self, segment: u32) -> u32 {
        self.pins.get(&segment).copied().unwrap_or(0)
    }

    /// And no longer. True if it was the last.
    pub(super) fn unpin(&mut self, segment: u32) -> bool {
        let Some(count) = self.pins.get_mut(&segment) else { return false };
        *count -= 1;
        let is_last = *count == 0;
        if is_last {
            self.pins.remove(&segment);
        }
        is_last
    }

    /// The cleaner copied everything live out of it, up to `sequence`.
    pub(super) fn mark_cleaned(&mut self, segment: u32, sequence: u64) {
        self.cleaned.insert(segment, sequence);
    }

    /// The cleaner met damage in it.
    pub(super) fn mark_stuck(&mut self, segment: u32) {
        self.stuck.insert(segment);
    }

    /// Segments the cleaner may choose from, with their entries: counted, live, not touched.
    pub(super) fn candidates(&self) -> impl Iterator<Item = (u32, &SegmentEntry)> {
        (0..).zip(&self.entries).filter(|(segment, entry)| {
            entry.state == SegmentState::Used
                && entry.live_blocks > 0
                && !self.is_recent(*segment)
                && !self.cleaned.contains_key(segment)
                && !self.stuck.contains(segment)
        })
    }

    /// Memory it takes, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<SegmentEntry>()
            + self.free.capacity() * size_of::<u32>()
            + (self.held.len() + self.cleaned.len() + self.pins.len()) * 16
    }

    /// Segments in use.
    pub(super) fn used_count(&self) -> usize {
        self.entries.len() - self.free.len() - self.aside.len() - self.held.len()
    }
}

impl Live {
    /// A block is in a segment from now on.
    pub(super) fn add(live: &mut [Live], entry: &MapEntry, segment: u32) {
        let Some(place) = live.get_mut(segment as usize) else { return };
        // A damaged table may say anything; a count that stays too high frees nothing.
        place.blocks = place.blocks.saturating_add(1);
        place.units = place.units.saturating_add(units_of(entry));
    }

    /// And no longer. False if it was not counted: the map contradicts the table.
    #[must_use]
    pub(super) fn subtract(live: &mut [Live], entry: &MapEntry, segment: u32) -> bool {
        let Some(place) = live.get_mut(segment as usize).filter(|place| place.blocks > 0) else {
            return false;
        };
        place.blocks -= 1;
        place.units = place.units.saturating_sub(units_of(entry));
        true
    }
}

/// What a map entry adds to the units of its segment. A map entry does not say how many blocks
/// share its extent, so the first one stands for all: right on average, and the same both ways.
fn units_of(entry: &MapEntry) -> u32 {
    match entry {
        MapEntry::Extent(extent) if extent.index == 0 => extent.units.into(),
        MapEntry::Extent(_) | MapEntry::Hole | MapEntry::Fill(_) | MapEntry::Poisoned => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::{Live, Segments};
    use crate::compress::format::SegmentEntry;
    use alloc::vec::Vec;

    fn six() -> Segments {
        Segments::new(alloc::vec![SegmentEntry::default(); 6], 0, 1)
    }

    #[test]
    fn a_segment_goes_round() {
        let mut segments = six();
        assert_eq!(segments.free_count(), 4);
        segments.enter(1, 7);
        assert_eq!(segments.take(), Some(2));
        assert!(segments.is_recent(0) && segments.is_recent(1) && !segments.is_recent(2));
        segments.freeze(1);
        let mut live = segments.live();
        assert_eq!(segments.candidates().count(), 0, "not counted yet");
        live[1] = Live { blocks: 3, units: 9 };
        segments.pin(0);
        segments.settle(&live, &[0], 10);
        assert_eq!((segments.next_held(None), segments.free_count()), (None, 3));
        assert!(segments.unpin(0));
        assert_eq!(segments.next_held(None), Some(0));
        segments.release(0, true);
        assert_eq!((segments.free_count(), segments.held_count()), (4, 0));
        segments.enter(2, 8);
        segments.freeze(2);
        let found: Vec<_> = segments.candidates().map(|(segment, _)| segment).collect();
        assert_eq!(found, [1]);
        segments.mark_cleaned(1, 10);
        assert_eq!(segments.candidates().count(), 0);
    }

    #[test]
    fn nothing_is_subtracted_that_was_not_counted() {
        use crate::compress::format::MapEntry;
        use crate::compress::format::map::MapExtent;
        let entry = |index| MapEntry::Extent(MapExtent { address: 0, units: 4, index, tag: 0 });
        let mut live = alloc::vec![Live::default(); 2];
        Live::add(&mut live, &entry(0), 1);
        Live::add(&mut live, &entry(1), 1);
        assert_eq!(live[1], Live { blocks: 2, units: 4 });
        assert!(Live::subtract(&mut live, &entry(1), 1) && Live::subtract(&mut live, &entry(0), 1));
        assert_eq!(live[1], Live::default());
        assert!(
            !Live::subtract(&mut live, &entry(0), 1) && !Live::subtract(&mut live, &entry(0), 9)
        );
    }
}
