//! The log: the open record, the records on their way to the disk, and the order of everything.
//!
//! [`Log::plan`] says how a request's pieces would lie in records, [`Log::append`] puts them there.
//! Appending is *the* order of the volume: what a crash leaves is a prefix of it. A record is
//! sealed when it is full, when somebody needs it on the disk, or when the caller's timer says so;
//! sealing gives its extents their addresses and starts its write.
//!
//! Rules. The pieces of a request lie in one record, or in a group of records of its own in which
//! all but the last say that more follows. Several writes may be under way, in any order; a record
//! counts as written when it and all before it are. What is not written yet is read from here.
//!
//! The tricky case is a request that does not fit the open record: that one is sealed first, even
//! half full, since a group must not hold what somebody else was promised: recovery drops an
//! incomplete group as a whole.

use super::delta::Delta;
use super::segments::Segments;
use crate::compress::format::extent::EXTENT_HEAD_BYTES;
use crate::compress::format::map::MapExtent;
use crate::compress::format::{
    BLOCK_BYTES, Entry, ExtentHead, Geometry, MapEntry, PlacedEntry, RecordFlags,
};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::future::Future;
use core::ops::Range;
use core::pin::Pin;
use core::task::{Context, Poll};
use udm_lane::Payload;
use udm_meta::chain::Fence;
use udm_meta::record::{LogPlace, RecordBuilder, RecordHead, RecordRules};
use udm_meta::{Disk, DiskError, DiskFuture};

/// Entries of a record: what fits the count that a summary has for it.
const ENTRIES_MAX: usize = 60_000;
/// Words of the overlay for extents of the open record: what no other word of it looks like.
const OVERLAY_EXTENT: u64 = 1 << 62;

/// A part of a request, ready to be written.
pub(super) struct Piece {
    /// What it does.
    pub(super) entry: Entry,
    /// The payload of an extent; empty otherwise.
    pub(super) payload: Vec<u8>,
}

/// A point between two records: everything before `next_sequence` is on its left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogPoint {
    pub(super) next_sequence: u64,
    pub(super) previous_hash: u64,
    pub(super) place: LogPlace,
    pub(super) next_segment: u32,
}

/// The log of a volume.
pub(super) struct Log {
    rules: RecordRules,
    geometry: Geometry,
    /// Where the next record goes.
    point: LogPoint,
    /// This life's epoch.
    pub(super) epoch: u32,
    /// Tails that are shut out.
    pub(super) fence: Fence,
    open: Open,
    /// Writes under way, by the address of the record.
    in_flight: BTreeMap<u64, InFlight>,
    /// Which of the sealed records are written, from the first one that is not.
    is_written: VecDeque<bool>,
    /// Highest sequence known to be durable.
    pub(super) durable: u64,
    /// A write failed: nothing more is taken.
    pub(super) is_broken: bool,
    /// Bytes in the open record and in those under way.
    pub(super) buffered_bytes: usize,
    /// Segments entered, records sealed, and their bytes, since the volume was opened.
    pub(super) segments_entered: u64,
    pub(super) records: u64,
    pub(super) record_bytes: u64,
}

#[derive(Default)]
struct Open {
    table: RecordBuilder,
    body: Vec<u8>,
    /// Offsets in here are those in the body.
    entries: Vec<PlacedEntry>,
    overlay: Delta,
    is_cleaner: bool,
}

struct InFlight {
    payload: Payload,
    sequence: u64,
    len_units: u64,
    /// Nothing once it has failed.
    write: Option<DiskFuture>,
}

/// What appending and sealing change besides the log.
pub(super) struct Ground<'a> {
    pub(super) disk: &'a Disk,
    pub(super) segments: &'a mut Segments,
    pub(super) active: &'a mut Delta,
    /// Number of the last checkpoint, the age of segments.
    pub(super) checkpoint: u64,
}

/// How pieces would lie in records.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The open record is sealed first.
    seals_first: bool,
    /// Records: their pieces, and whether they begin a new segment.
    records: Vec<(Range<usize>, bool)>,
    /// Segments needed beyond the one reserved.
    pub(super) segments: usize,
}

/// Where a block is, if the open record says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenBlock {
    /// A word as in the map.
    Word(u64),
    /// In an extent of the open record.
    Extent {
        /// Which entry.
        entry: usize,
        /// Which of its blocks.
        index: u8,
    },
}

impl Log {
    /// A log that goes on at `point`.
    pub(super) fn new(
        rules: RecordRules,
        geometry: Geometry,
        point: LogPoint,
        epoch: u32,
        fence: Fence,
    ) -> Log {
        Log {
            rules,
            geometry,
            point,
            epoch,
            fence,
            open: Open::default(),
            in_flight: BTreeMap::new(),
            is_written: VecDeque::new(),
            durable: point.next_sequence - 1,
            is_broken: false,
            buffered_bytes: 0,
            segments_entered: 0,
            records: 0,
            record_bytes: 0,
        }
    }

    /// Where the next record goes.
    pub(super) fn point(&self) -> LogPoint {
        self.point
    }

    /// True if the open record holds something.
    pub(super) fn has_open(&self) -> bool {
        !self.open.entries.is_empty()
    }

    /// The sequence that what was appended last has, or will have.
    pub(super) fn last_sequence(&self) -> u64 {
        if self.has_open() { self.point.next_sequence } else { self.point.next_sequence - 1 }
    }

    /// The highest sequence that was sealed.
    pub(super) fn sealed(&self) -> u64 {
        self.point.next_sequence - 1
    }

    /// The highest sequence up to which all records are written.
    pub(super) fn written(&self) -> u64 {
        self.sealed() - self.is_written.len() as u64
    }

    /// Length of the open record if it were sealed now.
    fn open_bytes(&self) -> u32 {
        match self.has_open() {
            true => {
                let count = self.open.table.entry_count();
                self.rules.total_bytes(count, self.open.body.len() as u32)
            }
            false => 0,
        }
    }

    /// What a record that begins at `offset_bytes` of a segment may be long.
    fn room_at(&self, offset_bytes: u32) -> u32 {
        self.rules.limit_bytes.min(self.rules.segment_bytes - offset_bytes)
    }

    /// How these pieces would be appended now.
    ///
    /// # Panics
    /// If a piece does not fit a record of its own; extents and runs are cut before.
    pub(super) fn plan(&self, pieces: &[Piece]) -> Plan {
        let sizes = |pieces: &[Piece]| {
            pieces.iter().fold((0, 0), |(slots, body), piece| {
                (slots + piece.entry.slots(), body + self.stored_bytes(piece))
            })
        };
        let (slots, body) = sizes(pieces);
        let offset = self.point.place.offset_bytes;
        let is_fit = |slots: usize, body: u32, room: u32| {
            slots <= ENTRIES_MAX && self.rules.total_bytes(slots, body) <= room
        };
        let open_slots = self.open.table.entry_count();
        let open_body = self.open.body.len() as u32;
        if self.has_open() && is_fit(open_slots + slots, open_body + body, self.room_at(offset)) {
            let records = alloc::vec![(0..pieces.len(), false)];
            return Plan { records, ..Plan::default() };
        }
        let mut plan = Plan { seals_first: self.has_open(), ..Plan::default() };
        let mut offset = offset + self.open_bytes();
        let left = self.rules.segment_bytes - offset;
        let is_whole = is_fit(slots, body, self.rules.limit_bytes);
        if is_whole && !is_fit(slots, body, left) && !self.is_worth_a_group(pieces, left) {
            offset = self.rules.segment_bytes;
        }
        let (mut first, mut begins_segment) = (0, false);
        while first < pieces.len() {
            let room = self.room_at(offset);
            let (mut slots, mut body, mut end) = (0, 0, first);
            while let Some(piece) = pieces.get(end) {
                let more = (slots + piece.entry.slots(), body + self.stored_bytes(piece));
                if !is_fit(more.0, more.1, room) {
                    break;
                }
                (slots, body) = more;
                end += 1;
            }
            if end == first {
                assert!(!begins_segment, "invariant: every piece fits a record of its own");
                (begins_segment, offset) = (true, 0);
                plan.segments += 1;
                continue;
            }
            plan.records.push((first..end, begins_segment));
            begins_segment = false;
            offset += self.rules.total_bytes(slots, body);
            first = end;
        }
        plan
    }

    /// Whether a request that does not fit the end of a segment is cut in two for it. That costs
    /// up to two roundings; what is put there has to be more.
    fn is_worth_a_group(&self, pieces: &[Piece], left_bytes: u32) -> bool {
        let fitting = pieces.iter().scan((0, 0), |(slots, body), piece| {
            *slots += piece.entry.slots();
            *body += self.stored_bytes(piece);
            Some(self.rules.total_bytes(*slots, *body))
        });
        let used_bytes = fitting.take_while(|total| *total <= left_bytes).last();
        used_bytes.is_some_and(|bytes| bytes > 2 * self.rules.align_bytes)
    }

    fn stored_bytes(&self, piece: &Piece) -> u32 {
        match piece.entry {
            Entry::Extent { payload_bytes, .. } => {
                (EXTENT_HEAD_BYTES as u32 + payload_bytes).next_multiple_of(self.rules.unit_bytes)
            }
            Entry::Unmap { .. } | Entry::Fill { .. } => 0,
        }
    }

    /// Appends a request as planned; nothing may have happened since. Gives the sequence that has
    /// all of it.
    pub(super) fn append(
        &mut self,
        plan: &Plan,
        pieces: &[Piece],
        is_cleaner: bool,
        ground: &mut Ground<'_>,
    ) -> u64 {
        if plan.seals_first {
            self.seal(RecordFlags::empty(), ground);
        }
        for (index, (range, begins_segment)) in plan.records.iter().enumerate() {
            if *begins_segment {
                self.enter_next(ground);
            }
            for piece in &pieces[range.clone()] {
                self.push(piece);
            }
            self.open.is_cleaner |= is_cleaner;
            if index + 1 < plan.records.len() {
                self.seal(RecordFlags::ATOMIC, ground);
            }
        }
        let sequence = self.last_sequence();
        // Not worth waiting for more: no raw block would fit any more.
        let least = BLOCK_BYTES as u32 + self.rules.unit_bytes;
        if self.room_at(self.point.place.offset_bytes) < self.open_bytes() + least {
            self.seal(RecordFlags::empty(), ground);
        }
        sequence
    }

    fn enter_next(&mut self, ground: &mut Ground<'_>) {
        let segment = self.point.next_segment;
        ground.segments.enter(segment, ground.checkpoint);
        self.segments_entered += 1;
        self.point.place = LogPlace { segment, offset_bytes: 0 };
        self.point.next_segment =
            ground.segments.take().expect("invariant: the caller saw that there is one");
    }

    fn push(&mut self, piece: &Piece) {
        let (index, at) = (self.open.entries.len(), self.open.body.len());
        let stored_bytes = self.stored_bytes(piece);
        piece.entry.push(&mut self.open.table);
        let blocks =
            piece.entry.first_block()..piece.entry.first_block() + u64::from(piece.entry.blocks());
        match piece.entry {
            Entry::Extent { first_block, blocks: count, codec, payload_bytes } => {
                let tag = self.point.next_sequence as u32;
                let head = ExtentHead { first_block, blocks: count, codec, payload_bytes, tag };
                self.open.body.extend_from_slice(&head.seal(self.rules.salt, &piece.payload));
                self.open.body.extend_from_slice(&piece.payload);
                self.open.body.resize(at + stored_bytes as usize, 0);
                for (within, block) in blocks.enumerate() {
                    let word = OVERLAY_EXTENT | (index as u64) << 8 | within as u64;
                    self.open.overlay.set(block, word);
                }
            }
            Entry::Unmap { .. } => self.open.overlay.set_holes(blocks),
            Entry::Fill { pattern, .. } => {
                let word = MapEntry::Fill(pattern).to_word();
                blocks.for_each(|block| self.open.overlay.set(block, word));
            }
        }
        let offset_bytes = at as u32;
        self.open.entries.push(PlacedEntry { entry: piece.entry, offset_bytes, stored_bytes });
        self.buffered_bytes += stored_bytes as usize;
    }

    /// Ends the open record and starts its write. Without one, nothing happens.
    pub(super) fn seal(&mut self, more: RecordFlags, ground: &mut Ground<'_>) {
        if self.has_open() {
            self.write_open(more, ground);
        }
    }

    /// Goes on in the next segment; the caller saw that one is free to follow it. A record without
    /// entries leads there, since nothing else would.
    pub(super) fn leave_segment(&mut self, ground: &mut Ground<'_>) {
        self.seal(RecordFlags::empty(), ground);
        self.enter_next(ground);
        self.write_open(RecordFlags::empty(), ground);
    }

    fn write_open(&mut self, more: RecordFlags, ground: &mut Ground<'_>) {
        let open = &mut self.open;
        let flags = if open.is_cleaner { more | RecordFlags::CLEANER } else { more };
        let point = self.point;
        let head = RecordHead {
            sequence: point.next_sequence,
            epoch: self.epoch,
            next_segment: point.next_segment,
            previous_hash: point.previous_hash,
            durable_sequence: self.durable,
            flags: flags.bits(),
            segment: point.place.segment,
        };
        let body_bytes = open.body.len();
        let sealed = open.table.seal(&self.rules, &head, body_bytes as u32);
        let payload = ground.disk.buffer(sealed.total_bytes as usize);
        let (table, body_at) = (open.table.as_bytes(), u64::from(sealed.body_bytes_at));
        let body_end = body_at + open.body.len() as u64;
        // Nothing of an earlier use may get to the disk.
        payload.copy_in(0, table);
        payload.fill(table.len() as u64, body_at - table.len() as u64, 0);
        payload.copy_in(body_at, &open.body);
        payload.fill(body_end, payload.len_bytes() - body_end, 0);
        for placed in &open.entries {
            let offset_bytes = placed.offset_bytes + sealed.body_bytes_at;
            let placed = PlacedEntry { offset_bytes, ..*placed };
            apply(ground.active, &self.geometry, point.place, point.next_sequence, &placed);
        }
        open.table.clear();
        open.body.clear();
        open.entries.clear();
        open.overlay.clear();
        open.is_cleaner = false;
        let write = ground.disk.write(self.geometry.offset_of(point.place), payload.clone());
        self.in_flight.insert(
            self.geometry.address_of(point.place),
            InFlight {
                payload,
                sequence: point.next_sequence,
                len_units: u64::from(sealed.total_bytes / self.rules.unit_bytes),
                write: Some(write),
            },
        );
        self.is_written.push_back(false);
        self.buffered_bytes += sealed.total_bytes as usize - body_bytes;
        self.records += 1;
        self.record_bytes += u64::from(sealed.total_bytes);
        self.point = LogPoint {
            next_sequence: point.next_sequence + 1,
            previous_hash: sealed.hash,
            place: LogPlace {
                offset_bytes: point.place.offset_bytes + sealed.total_bytes,
                ..point.place
            },
            next_segment: point.next_segment,
        };
    }

    /// Looks at the writes under way. True if any has ended.
    ///
    /// # Errors
    /// The first that failed; the log takes nothing more, and what failed is kept for readers.
    pub(super) fn poll_writes(
        &mut self,
        disk: &Disk,
        cx: &mut Context<'_>,
    ) -> Result<bool, DiskError> {
        let first = self.written() + 1;
        let (mut has_ended, mut failure) = (false, None);
        let (written, buffered_bytes) = (&mut self.is_written, &mut self.buffered_bytes);
        self.in_flight.retain(|_, record| {
            let Some(write) = &mut record.write else { return true };
            let payload = match Pin::new(write).poll(cx) {
                Poll::Pending => return true,
                Poll::Ready(Err(error)) => {
                    record.write = None;
                    failure = failure.or(Some(error));
                    return true;
                }
                Poll::Ready(Ok(payload)) => payload,
            };
            written[(record.sequence - first) as usize] = true;
            *buffered_bytes -= record.payload.len_bytes() as usize;
            record.payload = Payload::empty();
            disk.give_back(payload);
            has_ended = true;
            false
        });
        while self.is_written.front() == Some(&true) {
            self.is_written.pop_front();
        }
        match failure {
            Some(error) => {
                self.is_broken = true;
                Err(error)
            }
            None => Ok(has_ended),
        }
    }

    /// What the open record says of a block.
    pub(super) fn find_open(&self, block: u64) -> Option<OpenBlock> {
        if !self.has_open() {
            return None;
        }
        let word = self.open.overlay.get(block)?;
        Some(match word >> 62 == OVERLAY_EXTENT >> 62 {
            true => OpenBlock::Extent {
                entry: ((word & !OVERLAY_EXTENT) >> 8) as usize,
                index: word as u8,
            },
            false => OpenBlock::Word(word),
        })
    }

    /// An extent of the open record, header and payload.
    pub(super) fn open_extent(&self, entry: usize) -> &[u8] {
        let placed = &self.open.entries[entry];
        let at = placed.offset_bytes as usize;
        &self.open.body[at..at + placed.stored_bytes as usize]
    }

    /// The memory of a record under way that has this address, and where in it.
    pub(super) fn find_in_flight(&self, address: u64) -> Option<(Payload, u64)> {
        let (start, record) = self.in_flight.range(..=address).next_back()?;
        let within = address - start;
        (within < record.len_units)
            .then(|| (record.payload.clone(), within * u64::from(self.rules.unit_bytes)))
    }

    /// True if a record of this segment is on its way: what is on the disk is not all of it yet.
    pub(super) fn is_writing_to(&self, segment: u32) -> bool {
        let address_of = |segment| self.geometry.address_of(LogPlace { segment, offset_bytes: 0 });
        self.in_flight.range(address_of(segment)..address_of(segment + 1)).next().is_some()
    }

    /// Memory it takes beyond `buffered_bytes`, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.buffered_bytes
            + self.open.overlay.memory_bytes()
            + self.open.entries.capacity() * size_of::<PlacedEntry>()
    }
}

/// Makes the changes of an entry, of the record `sequence` at `record`.
pub(super) fn apply(
    delta: &mut Delta,
    geometry: &Geometry,
    record: LogPlace,
    sequence: u64,
    placed: &PlacedEntry,
) {
    let first = placed.entry.first_block();
    let blocks = first..first + u64::from(placed.entry.blocks());
    match placed.entry {
        Entry::Extent { .. } => {
            let offset_bytes = record.offset_bytes + placed.offset_bytes;
            let address = geometry.address_of(LogPlace { offset_bytes, ..record });
            let units = (placed.stored_bytes >> geometry.unit_shift) as u16;
            for (index, block) in (0..).zip(blocks) {
                let extent = MapExtent { address, units, index, tag: sequence as u8 };
                delta.set(block, MapEntry::Extent(extent).to_word());
            }
        }
        Entry::Unmap { .. } => delta.set_holes(blocks),
        Entry::Fill { pattern, .. } => {
            let word = MapEntry::Fill(pattern).to_word();
            blocks.for_each(|block| delta.set(block, word));
        }
    }
}
