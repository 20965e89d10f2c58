//! Map entries and segment entries, and the pages they fill.
//!
//! A map entry is one word that says where a block is; a page holds 504 of them. A segment entry is
//! 16 bytes that say how full a segment is; a page holds 252. Pages themselves, their header and
//! their slots, are in `udm_meta::page`.
//!
//! Rules. Every word read from a disk goes through [`MapEntry::from_word`], which refuses what no
//! writer writes. The functions on page bodies take the 4032 bytes behind the header.
//!
//! The tricky case is a word of zero: a hole, so that a page never written is a page of holes.

use super::ADDRESS_LIMIT;
use super::geometry::{MAP_ENTRIES, SEGMENT_ENTRIES};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Kind of a page of map entries.
pub const KIND_MAP: u8 = 1;
/// Kind of a page of segment entries.
pub const KIND_SEGMENTS: u8 = 2;

/// Where an extent that holds a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapExtent {
    /// In units from the start of DATA, 40 bits.
    pub address: u64,
    /// Units it takes: 1 to 1024.
    pub units: u16,
    /// Which of its blocks this one is: 0 to 15.
    pub index: u8,
    /// The low 8 bits of its record's sequence.
    pub tag: u8,
}

/// Where a block is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MapEntry {
    /// Nowhere: it reads as zeroes.
    #[default]
    Hole,
    /// In an extent.
    Extent(MapExtent),
    /// It is this word all over.
    Fill(u32),
    /// Lost; reads are errors.
    Poisoned,
}

impl MapEntry {
    /// The entry of a word.
    ///
    /// # Errors
    /// The word, if it is none.
    pub fn from_word(word: u64) -> Result<MapEntry, u64> {
        match word >> 62 {
            0 if word == 0 => Ok(MapEntry::Hole),
            1 => Ok(MapEntry::Extent(MapExtent {
                address: word & (ADDRESS_LIMIT - 1),
                units: ((word >> 40) & 0x3ff) as u16 + 1,
                index: ((word >> 50) & 15) as u8,
                tag: ((word >> 54) & 0xff) as u8,
            })),
            2 if (word >> 32) & 0x3fff_ffff == 0 => Ok(MapEntry::Fill(word as u32)),
            3 if word << 2 == 0 => Ok(MapEntry::Poisoned),
            _bad => Err(word),
        }
    }

    /// As a word.
    ///
    /// # Panics
    /// If a field of an extent is out of range; its maker bounds them.
    pub fn to_word(self) -> u64 {
        match self {
            MapEntry::Hole => 0,
            MapEntry::Extent(MapExtent { address, units, index, tag }) => {
                let is_sound = address < ADDRESS_LIMIT && (1..=1024).contains(&units) && index < 16;
                assert!(is_sound, "a map entry's fields fit: {self:?}");
                let (units, index) = (u64::from(units - 1) << 40, u64::from(index) << 50);
                address | units | index | u64::from(tag) << 54 | 1 << 62
            }
            MapEntry::Fill(pattern) => u64::from(pattern) | 2 << 62,
            MapEntry::Poisoned => 3 << 62,
        }
    }
}

/// The entry at `index` of a map page's body.
///
/// # Errors
/// The word, if it is none.
///
/// # Panics
/// If there is no such entry.
pub fn map_entry(body: &[u8], index: usize) -> Result<MapEntry, u64> {
    MapEntry::from_word(map_word(body, index))
}

/// The word at `index` of a map page's body, not checked.
///
/// # Panics
/// If there is no such entry.
pub fn map_word(body: &[u8], index: usize) -> u64 {
    assert!(index < MAP_ENTRIES as usize, "map entry {index}");
    let mut word = [0; 8];
    word.copy_from_slice(&body[index * 8..index * 8 + 8]);
    u64::from_le_bytes(word)
}

/// Sets the entry at `index` of a map page's body.
///
/// # Panics
/// If there is no such entry.
pub fn set_map_entry(body: &mut [u8], index: usize, entry: MapEntry) {
    assert!(index < MAP_ENTRIES as usize, "map entry {index}");
    body[index * 8..index * 8 + 8].copy_from_slice(&entry.to_word().to_le_bytes());
}

/// What a segment is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SegmentState {
    /// Free, and the device below was told so.
    #[default]
    Discarded,
    /// Free.
    Free,
    /// Holds records.
    Used,
    /// Never to be used again: the device shrinks, or it is bad.
    Retired,
    /// Holds map pages.
    Map,
}

impl SegmentState {
    fn number(self) -> u8 {
        match self {
            SegmentState::Discarded => 0,
            SegmentState::Free => 1,
            SegmentState::Used => 2,
            SegmentState::Retired => 3,
            SegmentState::Map => 4,
        }
    }

    fn from_number(number: u8) -> Option<SegmentState> {
        match number {
            0 => Some(SegmentState::Discarded),
            1 => Some(SegmentState::Free),
            2 => Some(SegmentState::Used),
            3 => Some(SegmentState::Retired),
            4 => Some(SegmentState::Map),
            _unknown => None,
        }
    }
}

/// How full a segment is, as of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentEntry {
    /// Blocks in it that the map points to: exact; 0 means dead.
    pub live_blocks: u32,
    /// Units of it that are live: a rounded share, for the cleaner's choice only.
    pub live_units: u32,
    /// The low 32 bits of the checkpoint that was current when it was filled: its age.
    pub sealed_at: u32,
    /// What it is used for.
    pub state: SegmentState,
    /// For the cleaner: 0 written by users, 1 by the cleaner.
    pub class: u8,
    /// Where its summary record begins, in physical alignments from its start; 0 for nowhere.
    pub summary_at: u16,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSegment {
    live_blocks: U32,
    live_units: U32,
    sealed_at: U32,
    state: u8,
    class: u8,
    summary_at: U16,
}
const SEGMENT_ENTRY_BYTES: usize = size_of::<RawSegment>();
const _: () = assert!(SEGMENT_ENTRY_BYTES == 16);

/// The entry at `index` of a segment page's body; nothing if its state is none.
///
/// # Panics
/// If there is no such entry.
pub fn segment_entry(body: &[u8], index: usize) -> Option<SegmentEntry> {
    assert!(index < SEGMENT_ENTRIES as usize, "segment entry {index}");
    let (raw, _rest) = RawSegment::read_from_prefix(&body[index * SEGMENT_ENTRY_BYTES..]).ok()?;
    Some(SegmentEntry {
        live_blocks: raw.live_blocks.get(),
        live_units: raw.live_units.get(),
        sealed_at: raw.sealed_at.get(),
        state: SegmentState::from_number(raw.state)?,
        class: raw.class,
        summary_at: raw.summary_at.get(),
    })
}

/// Sets the entry at `index` of a segment page's body.
///
/// # Panics
/// If there is no such entry.
pub fn set_segment_entry(body: &mut [u8], index: usize, entry: &SegmentEntry) {
    assert!(index < SEGMENT_ENTRIES as usize, "segment entry {index}");
    let raw = RawSegment {
        live_blocks: entry.live_blocks.into(),
        live_units: entry.live_units.into(),
        sealed_at: entry.sealed_at.into(),
        state: entry.state.number(),
        class: entry.class,
        summary_at: entry.summary_at.into(),
    };
    let at = index * SEGMENT_ENTRY_BYTES;
    body[at..at + SEGMENT_ENTRY_BYTES].copy_from_slice(raw.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::{
        MapEntry, MapExtent, SegmentEntry, SegmentState, map_entry, segment_entry, set_map_entry,
        set_segment_entry,
    };
    use crate::compress::format::ADDRESS_LIMIT;
    use udm_meta::page::PAGE_BODY_BYTES;

    const EXTENT: MapExtent =
        MapExtent { address: ADDRESS_LIMIT - 2, units: 1024, index: 14, tag: 0xa5 };

    #[test]
    fn entries_survive_words() {
        let all = [
            MapEntry::Hole,
            MapEntry::Extent(EXTENT),
            MapEntry::Extent(MapExtent { address: 0, units: 1, index: 0, tag: 0 }),
            MapEntry::Fill(0xffff_ffff),
            MapEntry::Fill(0),
            MapEntry::Poisoned,
        ];
        for entry in all {
            assert_eq!(MapEntry::from_word(entry.to_word()), Ok(entry));
        }
        let word = MapEntry::Extent(EXTENT).to_word();
        assert_eq!(
            word,
            0x4000_0000_0000_0000 | 0xa5 << 54 | 14 << 50 | 1023 << 40 | 0xff_ffff_fffe
        );
    }

    #[test]
    fn words_that_nobody_writes_are_refused() {
        for word in [1, 1 << 61, (2 << 62) | 1 << 32, (2 << 62) | 1 << 61, (3 << 62) | 1] {
            assert_eq!(MapEntry::from_word(word), Err(word), "{word:#x}");
        }
    }

    #[test]
    fn pages_are_filled_to_their_last_byte() {
        let mut body = [0; PAGE_BODY_BYTES];
        set_map_entry(&mut body, 503, MapEntry::Poisoned);
        assert_eq!(map_entry(&body, 503), Ok(MapEntry::Poisoned));
        assert_eq!((map_entry(&body, 502), body[PAGE_BODY_BYTES - 1]), (Ok(MapEntry::Hole), 0xc0));
        let mut body = [0; PAGE_BODY_BYTES];
        let entry = SegmentEntry {
            live_blocks: 1,
            live_units: 2,
            sealed_at: 3,
            state: SegmentState::Map,
            class: 5,
            summary_at: 0x607,
        };
        set_segment_entry(&mut body, 251, &entry);
        assert_eq!(segment_entry(&body, 251), Some(entry));
        assert_eq!(body[PAGE_BODY_BYTES - 4..], [4, 5, 7, 6]);
        assert_eq!(segment_entry(&body, 0), Some(SegmentEntry::default()));
        body[12] = 5;
        assert_eq!(segment_entry(&body, 0), None);
    }
}
