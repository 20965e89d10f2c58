//! Self-validating log records: one header, one table of eight-byte entries, one body.
//!
//! A record proves by itself that it is whole (CRC over header and table) and, by its place in the
//! chain (`chain.rs`), that it belongs to the log. What the entries mean, and whether the body is
//! whole, is the format's business; it sees entries as bytes. Layout: docs/formats/meta.md.
//!
//! Rules. A record starts at a multiple of the alignment, never crosses its segment, and names the
//! segment it lies in, so that a copy elsewhere is not one.
//!
//! The tricky case is that the table's length is in the header, and the header is covered by a CRC
//! over the table: [`Record::parse`] bounds the length before it uses it, and asks for more bytes
//! ([`RecordFault::Short`]) if the caller gave too few.

use crate::sum;
use alloc::vec::Vec;
use core::fmt;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the header.
pub const RECORD_HEAD_BYTES: usize = 64;
/// Length of an entry.
pub const ENTRY_BYTES: usize = 8;
/// Where the CRC is.
const CRC_AT: usize = 4;

/// An entry as bytes.
pub type EntryBytes = [u8; ENTRY_BYTES];

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHead {
    magic: [u8; 4],
    crc: U32,
    sequence: U64,
    epoch: U32,
    entry_count: U32,
    total_bytes: U32,
    next_segment: U32,
    previous_hash: U64,
    durable_sequence: U64,
    flags: U32,
    segment: U32,
    zero: U64,
}
const _: () = assert!(size_of::<RawHead>() == RECORD_HEAD_BYTES);

/// What all records of a log have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRules {
    /// The first four bytes.
    pub magic: [u8; 4],
    /// Where checksums start from.
    pub salt: u32,
    /// Records start at multiples of this and are as long; a power of two.
    pub align_bytes: u32,
    /// The body starts at a multiple of this behind the table; a power of two, at least 8.
    pub unit_bytes: u32,
    /// The longest record.
    pub limit_bytes: u32,
    /// Length of a segment.
    pub segment_bytes: u32,
}

/// A header's fields, apart from those that follow from the contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHead {
    /// Its number; each record has one more than the one before it.
    pub sequence: u64,
    /// The life of the volume in which it was written; every recovery begins another.
    pub epoch: u32,
    /// The segment that follows the one it lies in.
    pub next_segment: u32,
    /// The hash of the record before it.
    pub previous_hash: u64,
    /// The highest sequence known to be durable when it was built.
    pub durable_sequence: u64,
    /// The format's own.
    pub flags: u32,
    /// The segment it lies in.
    pub segment: u32,
}

/// A record's place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPlace {
    /// The segment.
    pub segment: u32,
    /// Where in it.
    pub offset_bytes: u32,
}

/// A record whose header and table are whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its header.
    pub head: RecordHead,
    /// Its length, padding included.
    pub total_bytes: u32,
    /// Where its body begins, from its start.
    pub body_bytes_at: u32,
    /// Its hash, which the next record has to name.
    pub hash: u64,
    entries: &'a [EntryBytes],
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordFault {
    /// So many bytes are needed to tell.
    Short {
        /// From the record's start.
        need_bytes: u32,
    },
    /// Another magic, or nothing.
    Magic,
    /// Lengths that contradict each other or the log's rules.
    Shape,
    /// It names another segment than the one it lies in.
    Segment(u32),
    /// The checksum is wrong.
    Checksum,
}

/// A record that was sealed: what the next one and the map have to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Its length, padding included.
    pub total_bytes: u32,
    /// Where its body begins, from its start.
    pub body_bytes_at: u32,
    /// Its hash.
    pub hash: u64,
}

/// Builds the header and the table of a record. Keeps its memory from one record to the next.
#[derive(Clone, Debug)]
pub struct RecordBuilder {
    table: Vec<u8>,
}

impl RecordRules {
    /// Where the body of a record with so many entries begins.
    pub fn body_bytes_at(&self, entry_count: usize) -> u32 {
        let table = RECORD_HEAD_BYTES + entry_count * ENTRY_BYTES;
        u32::try_from(table)
            .expect("invariant: a record's table is bounded by its limit")
            .next_multiple_of(self.unit_bytes)
    }

    /// The length of a record with so many entries and such a body.
    pub fn total_bytes(&self, entry_count: usize, body_bytes: u32) -> u32 {
        (self.body_bytes_at(entry_count) + body_bytes).next_multiple_of(self.align_bytes)
    }

    /// True if a record could begin at this offset of a segment.
    pub fn has_room(&self, offset_bytes: u32) -> bool {
        offset_bytes.checked_add(self.align_bytes).is_some_and(|end| end <= self.segment_bytes)
    }
}

impl Default for RecordBuilder {
    fn default() -> RecordBuilder {
        RecordBuilder::new()
    }
}

impl RecordBuilder {
    /// No entries yet.
    pub fn new() -> RecordBuilder {
        RecordBuilder { table: alloc::vec![0; RECORD_HEAD_BYTES] }
    }

    /// Begins the next record.
    pub fn clear(&mut self) {
        self.table.truncate(RECORD_HEAD_BYTES);
    }

    /// Appends an entry.
    pub fn push(&mut self, entry: EntryBytes) {
        self.table.extend_from_slice(&entry);
    }

    /// Entries so far.
    pub fn entry_count(&self) -> usize {
        (self.table.len() - RECORD_HEAD_BYTES) / ENTRY_BYTES
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.entry_count() == 0
    }

    /// Fills the header, for a body of `body_bytes` (each part of it padded to the unit).
    ///
    /// # Panics
    /// If the record is longer than the rules allow; the caller seals before that.
    pub fn seal(&mut self, rules: &RecordRules, head: &RecordHead, body_bytes: u32) -> Sealed {
        let count = self.entry_count();
        let total_bytes = rules.total_bytes(count, body_bytes);
        assert!(total_bytes <= rules.limit_bytes, "a record of {total_bytes} bytes");
        let mut raw = RawHead::new_zeroed();
        raw.magic = rules.magic;
        raw.sequence.set(head.sequence);
        raw.epoch.set(head.epoch);
        raw.entry_count.set(u32::try_from(count).expect("invariant: bounded by the limit"));
        raw.total_bytes.set(total_bytes);
        raw.next_segment.set(head.next_segment);
        raw.previous_hash.set(head.previous_hash);
        raw.durable_sequence.set(head.durable_sequence);
        raw.flags.set(head.flags);
        raw.segment.set(head.segment);
        self.table[..RECORD_HEAD_BYTES].copy_from_slice(raw.as_bytes());
        sum::seal(&mut self.table, CRC_AT, rules.salt);
        let body_bytes_at = rules.body_bytes_at(count);
        Sealed { total_bytes, body_bytes_at, hash: sum::xxh3(&self.table) }
    }

    /// Header and table; what lies between it and the body, and behind the body, is zero.
    pub fn as_bytes(&self) -> &[u8] {
        &self.table
    }
}

impl<'a> Record<'a> {
    /// Believes the record at the start of `bytes`, which lies at `place`, if header and table are
    /// whole. Its body is not looked at and need not be there.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(
        rules: &RecordRules,
        place: LogPlace,
        bytes: &'a [u8],
    ) -> Result<Record<'a>, RecordFault> {
        let Ok((raw, _rest)) = RawHead::read_from_prefix(bytes) else {
            return Err(RecordFault::Short { need_bytes: RECORD_HEAD_BYTES as u32 });
        };
        if raw.magic != rules.magic {
            return Err(RecordFault::Magic);
        }
        let total_bytes = raw.total_bytes.get();
        let entries_bytes = raw.entry_count.get().checked_mul(ENTRY_BYTES as u32);
        let table_bytes = entries_bytes.and_then(|len| len.checked_add(RECORD_HEAD_BYTES as u32));
        let end = place.offset_bytes.checked_add(total_bytes);
        let is_sound = total_bytes.is_multiple_of(rules.align_bytes)
            && total_bytes <= rules.limit_bytes
            && table_bytes.is_some_and(|table| table <= total_bytes)
            && end.is_some_and(|end| end <= rules.segment_bytes)
            && raw.zero.get() == 0;
        let (true, Some(table_bytes)) = (is_sound, table_bytes) else {
            return Err(RecordFault::Shape);
        };
        if raw.segment.get() != place.segment {
            return Err(RecordFault::Segment(raw.segment.get()));
        }
        let Some(table) = bytes.get(..table_bytes as usize) else {
            return Err(RecordFault::Short { need_bytes: table_bytes });
        };
        if !sum::is_sealed(table, CRC_AT, rules.salt) {
            return Err(RecordFault::Checksum);
        }
        let (entries, _none) = table[RECORD_HEAD_BYTES..].as_chunks::<ENTRY_BYTES>();
        let body_bytes_at = rules.body_bytes_at(entries.len());
        if body_bytes_at > total_bytes {
            return Err(RecordFault::Shape);
        }
        let head = RecordHead {
            sequence: raw.sequence.get(),
            epoch: raw.epoch.get(),
            next_segment: raw.next_segment.get(),
            previous_hash: raw.previous_hash.get(),
            durable_sequence: raw.durable_sequence.get(),
            flags: raw.flags.get(),
            segment: raw.segment.get(),
        };
        Ok(Record { head, total_bytes, body_bytes_at, hash: sum::xxh3(table), entries })
    }

    /// The entries.
    pub fn entries(&self) -> &'a [EntryBytes] {
        self.entries
    }
}

impl fmt::Display for RecordFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordFault::Short { need_bytes } => write!(f, "goes on for {need_bytes} bytes"),
            RecordFault::Magic => f.write_str("is no record"),
            RecordFault::Shape => f.write_str("has lengths that contradict each other"),
            RecordFault::Segment(segment) => write!(f, "was written for segment {segment}"),
            RecordFault::Checksum => f.write_str("has a wrong checksum"),
        }
    }
}

/// How long the record at the start of `bytes` says it is; nothing if there is no header. Nobody
/// has checked it.
pub fn claimed_bytes(rules: &RecordRules, bytes: &[u8]) -> Option<u32> {
    let (raw, _rest) = RawHead::read_from_prefix(bytes).ok()?;
    (raw.magic == rules.magic).then_some(raw.total_bytes.get())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{LogPlace, Record, RecordBuilder, RecordFault, RecordHead, RecordRules, Sealed};
    use alloc::vec::Vec;

    pub(crate) const RULES: RecordRules = RecordRules {
        magic: *b"TSTR",
        salt: 8,
        align_bytes: 512,
        unit_bytes: 64,
        limit_bytes: 4096,
        segment_bytes: 16384,
    };

    /// A record with `count` entries and 100 body bytes, and what its sealing told.
    pub(crate) fn record(head: &RecordHead, count: u8) -> (Vec<u8>, Sealed) {
        let mut builder = RecordBuilder::new();
        (0..count).for_each(|index| builder.push([index; 8]));
        let sealed = builder.seal(&RULES, head, 100);
        let mut bytes = builder.as_bytes().to_vec();
        bytes.resize(sealed.total_bytes as usize, 0);
        (bytes, sealed)
    }

    const HEAD: RecordHead = RecordHead {
        sequence: 70_000_000_000,
        epoch: 4,
        next_segment: 9,
        previous_hash: 0x1234_5678_9abc_def0,
        durable_sequence: 69_999_999_999,
        flags: 4,
        segment: 3,
    };
    const PLACE: LogPlace = LogPlace { segment: 3, offset_bytes: 512 };

    #[test]
    fn what_was_built_is_parsed() {
        let (bytes, sealed) = record(&HEAD, 5);
        assert_eq!((sealed.body_bytes_at, sealed.total_bytes), (128, 512));
        let record = Record::parse(&RULES, PLACE, &bytes).expect("whole");
        assert_eq!((record.head, record.hash), (HEAD, sealed.hash));
        assert_eq!((record.total_bytes, record.body_bytes_at), (512, 128));
        assert_eq!((record.entries().len(), record.entries()[4]), (5, [4; 8]));
    }

    #[test]
    fn a_builder_is_used_again() {
        let mut builder = RecordBuilder::default();
        builder.push([1; 8]);
        let first = builder.seal(&RULES, &HEAD, 0);
        builder.clear();
        assert!(builder.is_empty());
        builder.push([1; 8]);
        assert_eq!(builder.seal(&RULES, &HEAD, 0), first);
        assert_eq!(builder.entry_count(), 1);
    }

    #[test]
    fn no_flipped_bit_of_header_or_table_goes_unnoticed() {
        let (mut bytes, _sealed) = record(&HEAD, 5);
        for bit in 0..(64 + 5 * 8) * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::parse(&RULES, PLACE, &bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_record_is_bound_to_its_segment_and_fits_it() {
        let (bytes, _sealed) = record(&HEAD, 5);
        let parse = |segment, offset_bytes| {
            Record::parse(&RULES, LogPlace { segment, offset_bytes }, &bytes).map(|_| ())
        };
        assert_eq!(parse(4, 0), Err(RecordFault::Segment(3)));
        assert_eq!((parse(3, 16384 - 512), parse(3, 16384)), (Ok(()), Err(RecordFault::Shape)));
        assert_eq!(parse(3, u32::MAX), Err(RecordFault::Shape));
        assert!(RULES.has_room(16384 - 512) && !RULES.has_room(16384));
    }

    #[test]
    fn too_few_bytes_ask_for_more() {
        let (bytes, _sealed) = record(&HEAD, 5);
        let parse = |len| Record::parse(&RULES, PLACE, &bytes[..len]).map(|_| ());
        let claim = |bytes: &[u8]| super::claimed_bytes(&RULES, bytes);
        assert_eq!((claim(&bytes[..64]), claim(&bytes[..63])), (Some(512), None));
        assert_eq!(claim(&[0; 64]), None);
        assert_eq!(parse(63), Err(RecordFault::Short { need_bytes: 64 }));
        assert_eq!(parse(64), Err(RecordFault::Short { need_bytes: 104 }));
        assert_eq!(parse(104), Ok(()));
        assert_eq!(Record::parse(&RULES, PLACE, &[0; 64]), Err(RecordFault::Magic));
    }
}
