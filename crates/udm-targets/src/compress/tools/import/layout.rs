//! The ancestors' superblocks, and where their metadata and data are.
//!
//! ```text
//! block 0        superblock                  after it   metadata, 5 bits a block
//! behind that    data: block i is at i       in groups of 32 blocks, 20 bytes of bits each
//! ```
//!
//! | at | dm-insitu-comp | at | dm-inplace-compress |
//! |---|---|---|---|
//! | 0 | magic 0x106526c206506c09, 8 bytes | 0 | the same |
//! | 8 | version, 1 | | |
//! | 16 | metadata blocks, 8 | 8 | metadata blocks, 8 |
//! | 24 | data blocks, 8 | 16 | data blocks, 8 |
//! | 32 | codec, 1: lzo, deflate | 24 | codec, 1: 842, lzo |
//!
//! Rules. A layout that was parsed lies inside the device.
//!
//! The tricky cases: both have one magic, so it is the fields behind it that have to make sense
//! one way or the other (the successor, tried second, has to fill half of the device at least, as
//! it always filled all of it); and on one device size in 6554 the original wrote 2^32 - 1 data
//! blocks too many, so what is too much for the device is cut, not refused.

use core::fmt;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// The magic of both.
pub const MAGIC: u64 = 0x1065_26c2_0650_6c09;
const BLOCK: u64 = 4096;
/// Metadata bits of a block.
const BITS: u64 = 5;
/// Bytes of metadata of a group of 32 blocks.
pub const GROUP_BYTES: u64 = 20;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOriginal {
    magic: U64,
    version: U64,
    meta_blocks: U64,
    data_blocks: U64,
    codec: u8,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSuccessor {
    magic: U64,
    meta_blocks: U64,
    data_blocks: U64,
    codec: u8,
}

/// Whose volume it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ancestor {
    /// The original.
    InsituComp,
    /// IBM's.
    InplaceCompress,
}

impl Ancestor {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Ancestor::InsituComp => "dm-insitu-comp",
            Ancestor::InplaceCompress => "dm-inplace-compress",
        }
    }
}

/// How the ancestor compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldCodec {
    /// LZO1X, as the kernel's "lzo".
    Lzo,
    /// Deflate without a header, as the kernel's "deflate".
    Deflate,
    /// IBM's 842.
    Nx842,
}

/// An ancestor's volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Whose.
    pub ancestor: Ancestor,
    /// How it compressed.
    pub codec: OldCodec,
    /// Blocks of metadata.
    pub meta_blocks: u64,
    /// Blocks of data: the logical size.
    pub data_blocks: u64,
}

/// Why there is no such volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutFault {
    /// Neither ancestor's magic.
    Magic,
    /// The fields make no sense, either way.
    Fields,
}

impl Layout {
    /// Believes the superblock in the first bytes of a device.
    ///
    /// # Errors
    /// If it is neither ancestor's.
    pub fn parse(bytes: &[u8], device_bytes: u64) -> Result<Layout, LayoutFault> {
        let (magic, _rest) = U64::read_from_prefix(bytes).map_err(|_short| LayoutFault::Magic)?;
        if magic.get() != MAGIC {
            return Err(LayoutFault::Magic);
        }
        let original = RawOriginal::read_from_prefix(bytes).ok().and_then(|(raw, _)| {
            let codec = match raw.codec {
                0 => OldCodec::Lzo,
                1 => OldCodec::Deflate,
                _unknown => return None,
            };
            let (meta, data) = (raw.meta_blocks.get(), raw.data_blocks.get());
            let is_version_1 = raw.version.get() == 1;
            is_version_1.then(|| sound(Ancestor::InsituComp, codec, meta, data, device_bytes))?
        });
        let successor = || {
            let (raw, _rest) = RawSuccessor::read_from_prefix(bytes).ok()?;
            let codec = match raw.codec {
                0 => OldCodec::Nx842,
                1 => OldCodec::Lzo,
                _unknown => return None,
            };
            let (meta, data) = (raw.meta_blocks.get(), raw.data_blocks.get());
            sound(Ancestor::InplaceCompress, codec, meta, data, device_bytes)
                .filter(|layout| layout.data_blocks >= device_bytes / BLOCK / 2)
        };
        original.or_else(successor).ok_or(LayoutFault::Fields)
    }

    /// Where a block's data begins.
    pub fn offset_of(&self, block: u64) -> u64 {
        (1 + self.meta_blocks + block) * BLOCK
    }

    /// Where the metadata of `count` groups is: offset and length, whole bytes.
    pub fn metadata_of(&self, group: u64, count: u64) -> (u64, usize) {
        let end = self.meta_blocks * BLOCK;
        let from = group * GROUP_BYTES;
        let len = (count * GROUP_BYTES).min(end.saturating_sub(from));
        (BLOCK + from, usize::try_from(len).unwrap_or(0).max(1))
    }
}

/// A layout, if metadata and data fit the device; data blocks cut to what can be there.
fn sound(
    ancestor: Ancestor,
    codec: OldCodec,
    meta_blocks: u64,
    data_blocks: u64,
    device_bytes: u64,
) -> Option<Layout> {
    let room = (device_bytes / BLOCK).checked_sub(1)?.checked_sub(meta_blocks)?;
    let mapped = meta_blocks.checked_mul(BLOCK * 8)? / BITS;
    let excess = u64::from(u32::MAX);
    let meant = match data_blocks > room && data_blocks > excess {
        true => data_blocks - excess,
        false => data_blocks,
    };
    let data_blocks = meant.min(room).min(mapped);
    let is_sound = meta_blocks > 0 && data_blocks > 0 && data_blocks >= meant / 2;
    is_sound.then_some(Layout { ancestor, codec, meta_blocks, data_blocks })
}

impl fmt::Display for LayoutFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LayoutFault::Magic => "there is no insitu-comp or inplace-compress volume here",
            LayoutFault::Fields => {
                "the superblock makes no sense, neither as insitu-comp nor as \
                                    inplace-compress"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Ancestor, Layout, LayoutFault, MAGIC, OldCodec};

    fn words(words: &[u64], codec: u8) -> [u8; 4096] {
        let mut bytes = [0; 4096];
        for (index, word) in [MAGIC].iter().chain(words).enumerate() {
            bytes[index * 8..index * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes[(words.len() + 1) * 8] = codec;
        bytes
    }

    const DEVICE: u64 = 64 << 20;

    #[test]
    fn both_ancestors_are_told_apart() {
        let parsed = Layout::parse(&words(&[1, 3, 16_380], 1), DEVICE).expect("the original");
        assert_eq!((parsed.ancestor, parsed.codec), (Ancestor::InsituComp, OldCodec::Deflate));
        assert_eq!((parsed.offset_of(0), parsed.data_blocks), (4 * 4096, 16_380));
        let parsed = Layout::parse(&words(&[3, 16_380], 1), DEVICE).expect("the successor");
        assert_eq!((parsed.ancestor, parsed.codec), (Ancestor::InplaceCompress, OldCodec::Lzo));
        // One block of metadata looks like version 1.
        let parsed = Layout::parse(&words(&[1, 6000], 0), 24 << 20).expect("the successor");
        assert_eq!((parsed.ancestor, parsed.codec), (Ancestor::InplaceCompress, OldCodec::Nx842));
    }

    #[test]
    fn the_originals_mistake_is_known() {
        let wrong = 16_380 + u64::from(u32::MAX);
        let parsed = Layout::parse(&words(&[1, 3, wrong], 0), DEVICE).expect("the original");
        assert_eq!(parsed.data_blocks, 16_380);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(Layout::parse(&[0; 4096], DEVICE), Err(LayoutFault::Magic));
        assert_eq!(Layout::parse(&[9], DEVICE), Err(LayoutFault::Magic));
        for fields in [[1, 0, 5], [1, 3, 0], [1, 1 << 40, 5], [1, 3, 1 << 50]] {
            let parsed = Layout::parse(&words(&fields, 0), DEVICE);
            assert_eq!(parsed, Err(LayoutFault::Fields), "{fields:?}");
        }
        assert_eq!(Layout::parse(&words(&[1, 3, 16_380], 9), DEVICE), Err(LayoutFault::Fields));
    }

    #[test]
    fn metadata_lies_behind_the_superblock() {
        let parsed = Layout::parse(&words(&[1, 3, 16_380], 0), DEVICE).expect("the original");
        assert_eq!(parsed.metadata_of(2, 3), (4096 + 40, 60));
        assert_eq!(parsed.metadata_of(614, 3), (4096 + 12_280, 8));
    }
}
