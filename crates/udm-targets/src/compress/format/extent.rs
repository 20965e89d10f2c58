//! An extent in a record's body: 16 bytes of header, then the payload.
//!
//! One read of an extent brings all that is needed to verify it: its place (first block), its time
//! (the low bits of its record's sequence) and its content (the CRC).
//!
//! ```text
//! 0  CRC of 4..16+payload   9   blocks - 1 (low nibble), codec (high)   12  sequence, low half
//! 4  first block, 5 bytes   10  payload bytes - 1                       16  payload
//! ```
//!
//! The tricky case is an extent that is whole but not the one the map means: its segment was
//! reused, or it is a copy left elsewhere. [`ExtentHead::answers`] compares what the map knows.

use super::codec::Codec;
use super::map::MapExtent;
use super::{BLOCK_BYTES, BLOCK_LIMIT};
use core::fmt;
use udm_meta::sum;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the header.
pub const EXTENT_HEAD_BYTES: usize = 16;
/// The longest extent the format can say.
pub const EXTENT_BLOCKS_MAX: u8 = 15;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawExtent {
    crc: U32,
    first_block: [u8; 5],
    blocks_codec: u8,
    payload: U16,
    tag: U32,
}
const _: () = assert!(size_of::<RawExtent>() == EXTENT_HEAD_BYTES);

/// What the header of an extent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentHead {
    /// The first block it holds.
    pub first_block: u64,
    /// How many: 1 to 15.
    pub blocks: u8,
    /// How its payload is stored.
    pub codec: Codec,
    /// Length of the payload: 1 to 65536, no longer than the blocks.
    pub payload_bytes: u32,
    /// The low 32 bits of its record's sequence.
    pub tag: u32,
}

/// Why bytes are no extent, or not the one that was meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentFault {
    /// Not as many bytes as its length says.
    Short,
    /// Fields that make no sense.
    Fields,
    /// The checksum is wrong.
    Checksum,
    /// Whole, but another one.
    Another,
}

/// A block number as five bytes.
pub(super) fn block_to_bytes(block: u64) -> [u8; 5] {
    let [a, b, c, d, e, ..] = block.to_le_bytes();
    [a, b, c, d, e]
}

/// A block number from five bytes.
pub(super) fn block_from_bytes([a, b, c, d, e]: [u8; 5]) -> u64 {
    u64::from_le_bytes([a, b, c, d, e, 0, 0, 0])
}

impl ExtentHead {
    /// Header and payload, padded to the unit.
    pub fn stored_bytes(&self, unit_bytes: u32) -> u32 {
        (EXTENT_HEAD_BYTES as u32 + self.payload_bytes).next_multiple_of(unit_bytes)
    }

    /// Bytes of the blocks it holds.
    pub fn logical_bytes(&self) -> u32 {
        u32::from(self.blocks) * BLOCK_BYTES as u32
    }

    /// True if the fields make sense together.
    pub fn is_sound(&self) -> bool {
        let last = self.first_block.checked_add(u64::from(self.blocks));
        (1..=EXTENT_BLOCKS_MAX).contains(&self.blocks)
            && last.is_some_and(|end| end <= BLOCK_LIMIT)
            && match self.codec {
                Codec::Raw => self.payload_bytes == self.logical_bytes(),
                Codec::Lz4 | Codec::Zstd => (1..self.logical_bytes()).contains(&self.payload_bytes),
            }
    }

    /// The header as bytes, with the CRC over itself and `payload`.
    ///
    /// # Panics
    /// If the fields make no sense, or `payload` has another length than they say.
    pub fn seal(&self, salt: u32, payload: &[u8]) -> [u8; EXTENT_HEAD_BYTES] {
        assert!(self.is_sound() && payload.len() == self.payload_bytes as usize, "{self:?}");
        let payload_minus_1 = u16::try_from(self.payload_bytes - 1);
        let mut raw = RawExtent {
            crc: U32::ZERO,
            first_block: block_to_bytes(self.first_block),
            blocks_codec: (self.blocks - 1) | (self.codec.number() << 4),
            payload: payload_minus_1
                .expect("invariant: sound extents are 15 blocks at most")
                .into(),
            tag: self.tag.into(),
        };
        let sum = sum::crc32c(sum::crc32c(salt, &raw.as_bytes()[4..]), payload);
        raw.crc.set(sum);
        let mut bytes = [0; EXTENT_HEAD_BYTES];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }

    /// Reads a header, and believes that its fields make sense; the payload is not looked at.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(bytes: &[u8]) -> Result<ExtentHead, ExtentFault> {
        let (raw, _payload) = RawExtent::read_from_prefix(bytes).map_err(|_| ExtentFault::Short)?;
        let codec = Codec::from_number(raw.blocks_codec >> 4).ok_or(ExtentFault::Fields)?;
        let head = ExtentHead {
            first_block: block_from_bytes(raw.first_block),
            blocks: (raw.blocks_codec & 15) + 1,
            codec,
            payload_bytes: u32::from(raw.payload.get()) + 1,
            tag: raw.tag.get(),
        };
        if head.is_sound() { Ok(head) } else { Err(ExtentFault::Fields) }
    }

    /// Believes the extent at the start of `bytes`; gives its header and payload.
    ///
    /// # Errors
    /// Why it is none.
    pub fn verify(salt: u32, bytes: &[u8]) -> Result<(ExtentHead, &[u8]), ExtentFault> {
        let head = ExtentHead::parse(bytes)?;
        let end = EXTENT_HEAD_BYTES + head.payload_bytes as usize;
        let whole = bytes.get(..end).ok_or(ExtentFault::Short)?;
        match sum::is_sealed(whole, 0, salt) {
            true => Ok((head, &whole[EXTENT_HEAD_BYTES..])),
            false => Err(ExtentFault::Checksum),
        }
    }

    /// Whether this is the extent a map entry for `block` means: place, time and length.
    pub fn answers(&self, block: u64, entry: &MapExtent, unit_bytes: u32) -> bool {
        let index = u64::from(entry.index);
        self.first_block.checked_add(index) == Some(block)
            && entry.index < self.blocks
            && entry.tag == self.tag as u8
            && u32::from(entry.units) * unit_bytes == self.stored_bytes(unit_bytes)
    }
}

impl fmt::Display for ExtentFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ExtentFault::Short => "is cut off",
            ExtentFault::Fields => "has a header that makes no sense",
            ExtentFault::Checksum => "has a wrong checksum",
            ExtentFault::Another => "is another extent than the one that was meant",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{ExtentFault, ExtentHead};
    use crate::compress::format::map::MapExtent;
    use crate::compress::format::{BLOCK_LIMIT, Codec};
    use alloc::vec::Vec;

    const HEAD: ExtentHead = ExtentHead {
        first_block: 0xab_cdef_0123,
        blocks: 3,
        codec: Codec::Lz4,
        payload_bytes: 100,
        tag: 0x1234_5678,
    };

    fn sealed() -> Vec<u8> {
        let payload = [0x42; 100];
        let mut bytes = HEAD.seal(5, &payload).to_vec();
        bytes.extend_from_slice(&payload);
        bytes.resize(128, 0);
        bytes
    }

    #[test]
    fn an_extent_is_verified_as_a_whole() {
        let mut bytes = sealed();
        assert_eq!(ExtentHead::verify(5, &bytes), Ok((HEAD, &[0x42; 100][..])));
        assert_eq!(ExtentHead::verify(6, &bytes), Err(ExtentFault::Checksum));
        assert_eq!(ExtentHead::verify(5, &bytes[..115]), Err(ExtentFault::Short));
        assert_eq!(ExtentHead::verify(5, &bytes[..15]), Err(ExtentFault::Short));
        for bit in 0..116 * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(ExtentHead::verify(5, &bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn fields_that_make_no_sense_are_refused() {
        let cases = [
            ExtentHead { blocks: 16, ..HEAD },
            ExtentHead { first_block: BLOCK_LIMIT - 2, ..HEAD },
            ExtentHead { payload_bytes: 3 * 4096, ..HEAD },
            ExtentHead { codec: Codec::Raw, payload_bytes: 4096, ..HEAD },
        ];
        for head in cases {
            assert!(!head.is_sound(), "{head:?}");
        }
        let mut bytes = sealed();
        bytes[9] = 0x7f;
        assert_eq!(ExtentHead::parse(&bytes), Err(ExtentFault::Fields));
    }

    #[test]
    fn only_the_extent_that_was_meant_answers() {
        let entry = MapExtent { address: 1, units: 2, index: 1, tag: 0x78 };
        assert!(HEAD.answers(HEAD.first_block + 1, &entry, 64));
        assert!(!HEAD.answers(HEAD.first_block, &entry, 64));
        assert!(!HEAD.answers(HEAD.first_block + 1, &MapExtent { tag: 0x79, ..entry }, 64));
        assert!(!HEAD.answers(HEAD.first_block + 1, &MapExtent { units: 3, ..entry }, 64));
        assert!(!HEAD.answers(HEAD.first_block + 3, &MapExtent { index: 3, ..entry }, 64));
    }
}
