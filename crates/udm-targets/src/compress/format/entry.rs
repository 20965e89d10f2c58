//! The entries of a record, eight bytes each: what the record changes, in order.
//!
//! | kind (byte 5, high) | entry | bytes 6 and 7 | a second entry follows |
//! |---|---|---|---|
//! | 0 to 7, the codec | extent, blocks - 1 in byte 5, low | payload bytes - 1 | no |
//! | 8 | UNMAP run | blocks - 1 | no |
//! | 9 | FILL run | 0 | pattern, 4 bytes; blocks, 4 bytes |
//! | 10 | MARK, in summaries only | entries it announces | sequence, 8 bytes |
//!
//! Bytes 0 to 4 are the first block (of a MARK: where the record lies, in units from the start of
//! the segment). Extents have no address: they lie in the body one behind the other, in the order
//! of their entries, each padded to the unit.
//!
//! A *summary* (flag SUM) is the last record of a segment and repeats the tables of all records in
//! it: a MARK, then that record's entries, again and again. It changes nothing; recovery skips its
//! entries, the cleaner and `repair` read them instead of the whole segment.
//!
//! Rules. [`entries`] and [`summary`] accept exactly what [`Entry::push`] and [`push_mark`] write.

use super::BLOCK_LIMIT;
use super::codec::Codec;
use super::extent::{ExtentFault, ExtentHead, block_from_bytes, block_to_bytes};
use bitflags::bitflags;
use core::fmt;
use udm_meta::record::{EntryBytes, Record, RecordBuilder, RecordRules};

/// The longest UNMAP run of one entry, in blocks.
pub const UNMAP_BLOCKS_MAX: u32 = 1 << 16;
const KIND_UNMAP: u8 = 8;
const KIND_FILL: u8 = 9;
const KIND_MARK: u8 = 10;

bitflags! {
    /// The flags of a record.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RecordFlags: u32 {
        /// Written by the cleaner: nothing a user did.
        const CLEANER = 1;
        /// A summary of the segment's records.
        const SUMMARY = 2;
        /// More records of the same request follow.
        const ATOMIC = 4;
    }
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Blocks are in an extent of the body.
    Extent {
        /// The first of them.
        first_block: u64,
        /// How many: 1 to 15.
        blocks: u8,
        /// How the payload is stored.
        codec: Codec,
        /// Its length.
        payload_bytes: u32,
    },
    /// Blocks are holes from now on.
    Unmap {
        /// The first of them.
        first_block: u64,
        /// How many: 1 to 65536.
        blocks: u32,
    },
    /// Blocks are one word all over.
    Fill {
        /// The first of them.
        first_block: u64,
        /// How many.
        blocks: u32,
        /// The word.
        pattern: u32,
    },
}

/// An entry, and where its extent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedEntry {
    /// What it says.
    pub entry: Entry,
    /// Where its extent begins, from the record's start; for others, where the next one will.
    pub offset_bytes: u32,
    /// Length of its extent, padding included; 0 for others.
    pub stored_bytes: u32,
}

/// Why a table makes no sense although its checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryFault {
    /// Flags nobody knows.
    Flags(u32),
    /// An entry nobody writes; its index.
    Entry(u32),
    /// The extents do not fill the body exactly.
    Body,
    /// The body holds an extent other than its entry says; index of the entry, and why.
    Extent(u32, ExtentFault),
}

impl Entry {
    /// Slots it takes in the table.
    pub fn slots(&self) -> usize {
        match self {
            Entry::Extent { .. } | Entry::Unmap { .. } => 1,
            Entry::Fill { .. } => 2,
        }
    }

    /// The first block it changes.
    pub fn first_block(&self) -> u64 {
        match *self {
            Entry::Extent { first_block, .. }
            | Entry::Unmap { first_block, .. }
            | Entry::Fill { first_block, .. } => first_block,
        }
    }

    /// How many blocks it changes.
    pub fn blocks(&self) -> u32 {
        match *self {
            Entry::Extent { blocks, .. } => u32::from(blocks),
            Entry::Unmap { blocks, .. } | Entry::Fill { blocks, .. } => blocks,
        }
    }

    /// Whether its fields make sense.
    pub fn is_sound(&self) -> bool {
        let end = self.first_block().checked_add(u64::from(self.blocks()));
        let is_inside = self.blocks() > 0 && end.is_some_and(|end| end <= BLOCK_LIMIT);
        is_inside
            && match *self {
                Entry::Extent { first_block, blocks, codec, payload_bytes } => {
                    ExtentHead { first_block, blocks, codec, payload_bytes, tag: 0 }.is_sound()
                }
                Entry::Unmap { blocks, .. } => blocks <= UNMAP_BLOCKS_MAX,
                Entry::Fill { .. } => true,
            }
    }

    /// Appends it to a record's table.
    ///
    /// # Panics
    /// If its fields make no sense.
    pub fn push(&self, table: &mut RecordBuilder) {
        assert!(self.is_sound(), "an entry makes sense: {self:?}");
        let minus_1 = |count: u32| (count - 1) as u16;
        match *self {
            Entry::Extent { first_block, blocks, codec, payload_bytes } => {
                let kind = (blocks - 1) | (codec.number() << 4);
                table.push(slot(first_block, kind, minus_1(payload_bytes)));
            }
            Entry::Unmap { first_block, blocks } => {
                table.push(slot(first_block, KIND_UNMAP << 4, minus_1(blocks)));
            }
            Entry::Fill { first_block, blocks, pattern } => {
                table.push(slot(first_block, KIND_FILL << 4, 0));
                table.push((u64::from(pattern) | u64::from(blocks) << 32).to_le_bytes());
            }
        }
    }

    /// The entry at the start of `slots`, and how many slots it takes.
    fn parse(slots: &[EntryBytes]) -> Option<(Entry, usize)> {
        let [a, b, c, d, e, kind, low, high] = *slots.first()?;
        let first_block = block_from_bytes([a, b, c, d, e]);
        let field = u16::from_le_bytes([low, high]);
        let counted = u32::from(field) + 1;
        let entry = match (kind >> 4, kind & 15) {
            (KIND_UNMAP, 0) => Entry::Unmap { first_block, blocks: counted },
            (KIND_FILL, 0) if field == 0 => {
                let word = u64::from_le_bytes(*slots.get(1)?);
                Entry::Fill { first_block, blocks: (word >> 32) as u32, pattern: word as u32 }
            }
            (number, low) => {
                let codec = Codec::from_number(number)?;
                Entry::Extent { first_block, blocks: low + 1, codec, payload_bytes: counted }
            }
        };
        entry.is_sound().then_some((entry, entry.slots()))
    }
}

fn slot(first: u64, kind: u8, field: u16) -> EntryBytes {
    let [a, b, c, d, e] = block_to_bytes(first);
    let [low, high] = field.to_le_bytes();
    [a, b, c, d, e, kind, low, high]
}

/// The entries of a record that is no summary, each checked before it is given. After a fault
/// nothing more comes.
pub fn entries<'a>(rules: &RecordRules, record: &Record<'a>) -> Entries<'a> {
    Entries {
        slots: record.entries(),
        index: 0,
        offset_bytes: record.body_bytes_at,
        total_bytes: record.total_bytes,
        rules: *rules,
        is_over: false,
    }
}

/// Iterator of [`entries`].
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    slots: &'a [EntryBytes],
    index: u32,
    offset_bytes: u32,
    total_bytes: u32,
    rules: RecordRules,
    is_over: bool,
}

impl Iterator for Entries<'_> {
    type Item = Result<PlacedEntry, EntryFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        if self.slots.is_empty() {
            self.is_over = true;
            let end = self.offset_bytes.checked_next_multiple_of(self.rules.align_bytes);
            return (end != Some(self.total_bytes)).then_some(Err(EntryFault::Body));
        }
        let Some((entry, slots)) = Entry::parse(self.slots) else {
            self.is_over = true;
            return Some(Err(EntryFault::Entry(self.index)));
        };
        let stored_bytes = match entry {
            Entry::Extent { payload_bytes, .. } => (super::extent::EXTENT_HEAD_BYTES as u32
                + payload_bytes)
                .next_multiple_of(self.rules.unit_bytes),
            Entry::Unmap { .. } | Entry::Fill { .. } => 0,
        };
        let offset_bytes = self.offset_bytes;
        if self.total_bytes - offset_bytes < stored_bytes {
            self.is_over = true;
            return Some(Err(EntryFault::Body));
        }
        self.slots = &self.slots[slots..];
        self.index += slots as u32;
        self.offset_bytes += stored_bytes;
        Some(Ok(PlacedEntry { entry, offset_bytes, stored_bytes }))
    }
}

/// Whether flags and entries of a record make sense; with `body`, the record's bytes from its
/// start, also whether every extent in it is whole and the one its entry says.
///
/// # Errors
/// The first fault.
pub fn verify(
    rules: &RecordRules,
    record: &Record<'_>,
    body: Option<&[u8]>,
) -> Result<RecordFlags, EntryFault> {
    let flags =
        RecordFlags::from_bits(record.head.flags).ok_or(EntryFault::Flags(record.head.flags))?;
    if flags.contains(RecordFlags::SUMMARY) {
        for marked in summary(record.entries()) {
            marked?;
        }
        let is_empty = rules.total_bytes(record.entries().len(), 0) == record.total_bytes;
        return if is_empty { Ok(flags) } else { Err(EntryFault::Body) };
    }
    let mut index = 0;
    for placed in entries(rules, record) {
        let placed = placed?;
        if let Some(body) = body {
            verify_extent(rules, record, &placed, body)
                .map_err(|fault| EntryFault::Extent(index, fault))?;
        }
        index += placed.entry.slots() as u32;
    }
    Ok(flags)
}

/// Whether the extent of an entry is whole and its own. True for entries without one.
///
/// # Errors
/// Why not.
pub fn verify_extent(
    rules: &RecordRules,
    record: &Record<'_>,
    placed: &PlacedEntry,
    body: &[u8],
) -> Result<(), ExtentFault> {
    let Entry::Extent { first_block, blocks, codec, payload_bytes } = placed.entry else {
        return Ok(());
    };
    let bytes = body.get(placed.offset_bytes as usize..).ok_or(ExtentFault::Short)?;
    let (head, _payload) = ExtentHead::verify(rules.salt, bytes)?;
    let tag = record.head.sequence as u32;
    let wanted = ExtentHead { first_block, blocks, codec, payload_bytes, tag };
    if head == wanted { Ok(()) } else { Err(ExtentFault::Another) }
}

/// A record, as a summary repeats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked<'a> {
    /// Where it lies in the segment, in units.
    pub offset_units: u64,
    /// Its sequence.
    pub sequence: u64,
    /// Its entries.
    pub entries: &'a [EntryBytes],
}

/// Slots that a summary needs for a record with so many entries.
pub fn marked_slots(entry_count: usize) -> usize {
    entry_count + 2
}

/// Appends a record to a summary's table.
///
/// # Panics
/// If it has more than 65535 entries; a record that fits its limit has fewer.
pub fn push_mark(table: &mut RecordBuilder, marked: &Marked<'_>) {
    let count = u16::try_from(marked.entries.len())
        .expect("invariant: a record has fewer than 65536 entries");
    table.push(slot(marked.offset_units, KIND_MARK << 4, count));
    table.push(marked.sequence.to_le_bytes());
    marked.entries.iter().for_each(|entry| table.push(*entry));
}

/// The records that a summary repeats. After a fault nothing more comes.
pub fn summary(
    slots: &[EntryBytes],
) -> impl Iterator<Item = Result<Marked<'_>, EntryFault>> + use<'_> {
    let mut rest = slots;
    core::iter::from_fn(move || {
        let index = (slots.len() - rest.len()) as u32;
        let [mark, sequence, after @ ..] = rest else {
            let is_cut = !rest.is_empty();
            rest = &[];
            return is_cut.then_some(Err(EntryFault::Entry(index)));
        };
        let [a, b, c, d, e, kind, low, high] = *mark;
        let count = usize::from(u16::from_le_bytes([low, high]));
        if kind != KIND_MARK << 4 || count > after.len() {
            rest = &[];
            return Some(Err(EntryFault::Entry(index)));
        }
        let (entries, tail) = after.split_at(count);
        rest = tail;
        Some(Ok(Marked {
            offset_units: block_from_bytes([a, b, c, d, e]),
            sequence: u64::from_le_bytes(*sequence),
            entries,
        }))
    })
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EntryFault::Flags(flags) => write!(f, "has unknown flags {flags:#x}"),
            EntryFault::Entry(index) => write!(f, "has no sense in entry {index}"),
            EntryFault::Body => f.write_str("has extents that do not fill its body"),
            EntryFault::Extent(index, fault) => write!(f, "extent of entry {index} {fault}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, EntryFault, Marked, RecordFlags, entries, push_mark, summary, verify};
    use crate::compress::format::superblock::tests::tiny;
    use crate::compress::format::{BLOCK_LIMIT, Codec, ExtentHead};
    use alloc::vec::Vec;
    use udm_meta::record::{LogPlace, Record, RecordBuilder, RecordHead, RecordRules};

    const HEAD: RecordHead = RecordHead {
        sequence: 0x2_0000_0007,
        epoch: 1,
        next_segment: 1,
        previous_hash: 0,
        durable_sequence: 0,
        flags: 0,
        segment: 0,
    };
    const PLACE: LogPlace = LogPlace { segment: 0, offset_bytes: 0 };

    fn some_entries() -> [Entry; 4] {
        [
            Entry::Extent { first_block: 3, blocks: 2, codec: Codec::Lz4, payload_bytes: 700 },
            Entry::Unmap { first_block: BLOCK_LIMIT - 65536, blocks: 65536 },
            Entry::Fill { first_block: 9, blocks: 70_000, pattern: 0xdead_beef },
            Entry::Extent { first_block: 5, blocks: 1, codec: Codec::Raw, payload_bytes: 4096 },
        ]
    }

    /// A whole record with these entries and payloads of one letter.
    fn record(rules: &RecordRules, head: &RecordHead, all: &[Entry]) -> Vec<u8> {
        let mut table = RecordBuilder::new();
        let mut body = Vec::new();
        for entry in all {
            entry.push(&mut table);
            if let Entry::Extent { first_block, blocks, codec, payload_bytes } = *entry {
                let tag = head.sequence as u32;
                let extent = ExtentHead { first_block, blocks, codec, payload_bytes, tag };
                let payload = alloc::vec![b'x'; payload_bytes as usize];
                body.extend_from_slice(&extent.seal(rules.salt, &payload));
                body.extend_from_slice(&payload);
                body.resize(body.len().next_multiple_of(64), 0);
            }
        }
        let sealed = table.seal(rules, head, u32::try_from(body.len()).expect("small"));
        let mut bytes = table.as_bytes().to_vec();
        bytes.resize(sealed.body_bytes_at as usize, 0);
        bytes.extend_from_slice(&body);
        bytes.resize(sealed.total_bytes as usize, 0);
        bytes
    }

    #[test]
    fn entries_survive_a_record_and_know_their_extents() {
        let rules = tiny().record_rules();
        let bytes = record(&rules, &HEAD, &some_entries());
        let parsed = Record::parse(&rules, PLACE, &bytes).expect("whole");
        let placed: Result<Vec<_>, _> = entries(&rules, &parsed).collect();
        let placed = placed.expect("sound");
        let got: Vec<_> = placed.iter().map(|placed| placed.entry).collect();
        assert_eq!(got, some_entries());
        // 64 + 5 * 8 = 104, so the body begins at 128.
        let places: Vec<_> = placed.iter().map(|p| (p.offset_bytes, p.stored_bytes)).collect();
        assert_eq!(places, [(128, 768), (896, 0), (896, 0), (896, 4160)]);
        assert_eq!(verify(&rules, &parsed, Some(&bytes)), Ok(RecordFlags::empty()));
    }

    #[test]
    fn every_bit_of_header_table_and_extents_is_guarded() {
        let rules = tiny().record_rules();
        let mut bytes = record(&rules, &HEAD, &some_entries());
        let guarded = (0..104).chain(128..128 + 716).chain(896..896 + 4112);
        for byte in guarded.step_by(3) {
            bytes[byte] ^= 4;
            let is_good = Record::parse(&rules, PLACE, &bytes)
                .is_ok_and(|record| verify(&rules, &record, Some(&bytes)).is_ok());
            assert!(!is_good, "byte {byte}");
            bytes[byte] ^= 4;
        }
    }

    #[test]
    fn an_extent_of_another_record_is_told() {
        let rules = tiny().record_rules();
        let mut bytes = record(&rules, &HEAD, &some_entries());
        let older = RecordHead { sequence: HEAD.sequence - 1, ..HEAD };
        let stale = record(&rules, &older, &some_entries());
        bytes[896..].copy_from_slice(&stale[896..]);
        let parsed = Record::parse(&rules, PLACE, &bytes).expect("whole");
        let fault = verify(&rules, &parsed, Some(&bytes)).expect_err("stale");
        assert_eq!(fault, EntryFault::Extent(4, super::ExtentFault::Another));
        let cut = verify(&rules, &parsed, Some(&bytes[..900])).expect_err("cut");
        assert_eq!(cut, EntryFault::Extent(4, super::ExtentFault::Short));
    }

    #[test]
    fn tables_that_nobody_writes_are_refused() {
        let rules = tiny().record_rules();
        let of = |slots: &[[u8; 8]], body_bytes, flags| {
            let mut table = RecordBuilder::new();
            slots.iter().for_each(|slot| table.push(*slot));
            let sealed = table.seal(&rules, &RecordHead { flags, ..HEAD }, body_bytes);
            let mut bytes = table.as_bytes().to_vec();
            bytes.resize(sealed.total_bytes as usize, 0);
            verify(&rules, &Record::parse(&rules, PLACE, &bytes).expect("whole"), None)
        };
        let unmap = [0, 0, 0, 0, 0, 0x80, 0, 0];
        assert_eq!(of(&[unmap], 0, 1), Ok(RecordFlags::CLEANER));
        assert_eq!(of(&[unmap], 0, 8), Err(EntryFault::Flags(8)));
        assert_eq!(of(&[unmap], 512, 0), Err(EntryFault::Body));
        assert_eq!(of(&[[0, 0, 0, 0, 0, 0x17, 255, 15]], 0, 0), Err(EntryFault::Body));
        for bad in [
            [0, 0, 0, 0, 0, 0x81, 0, 0],
            [0, 0, 0, 0, 0, 0x90, 0, 0],
            [0, 0, 0, 0, 0, 0x90, 1, 0],
            [0, 0, 0, 0, 0, 0xa0, 0, 0],
            [0, 0, 0, 0, 0, 0x30, 0, 0],
            [0xff, 0xff, 0xff, 0xff, 0xff, 0x80, 1, 0],
        ] {
            assert_eq!(of(&[unmap, bad], 0, 0), Err(EntryFault::Entry(1)), "{bad:?}");
        }
    }

    #[test]
    fn a_summary_repeats_tables() {
        let rules = tiny().record_rules();
        let mut table = RecordBuilder::new();
        let first = [[1; 8], [2; 8]];
        push_mark(&mut table, &Marked { offset_units: 0, sequence: 5, entries: &first });
        push_mark(&mut table, &Marked { offset_units: 8, sequence: 6, entries: &[] });
        let flags = RecordFlags::SUMMARY.bits();
        let sealed = table.seal(&rules, &RecordHead { flags, ..HEAD }, 0);
        let mut bytes = table.as_bytes().to_vec();
        bytes.resize(sealed.total_bytes as usize, 0);
        let parsed = Record::parse(&rules, PLACE, &bytes).expect("whole");
        assert_eq!(verify(&rules, &parsed, None), Ok(RecordFlags::SUMMARY));
        let all: Vec<_> = summary(parsed.entries()).map(|marked| marked.expect("good")).collect();
        assert_eq!((all[0].sequence, all[0].entries), (5, &first[..]));
        assert_eq!((all[1].offset_units, all[1].entries.len(), all.len()), (8, 0, 2));
        let cut = summary(&parsed.entries()[..3]).last().expect("one");
        assert_eq!(cut, Err(EntryFault::Entry(0)));
    }
}
