//! The ancestors' metadata bits, and the payloads they lead to.
//!
//! Five bits a block, the first block in the lowest bits: four for the sectors of payload that are
//! counted at this block (0 to 8), one that says "this block continues the extent before it". An
//! extent's payload lies in one piece from its first block on; its length is the sum of its blocks'
//! sectors. As long as its blocks, it is stored as it is; else its last four bytes are the exact
//! length of what was compressed. No sectors at all: never written.
//!
//! Rules. Every number is bounded before it is used.
//!
//! The tricky case is a group that cannot be right (a continuation of nothing, more than eight
//! sectors): what it breaks is damaged, and the rest of the group is read.

use super::layout::{GROUP_BYTES, OldCodec};
use alloc::vec::Vec;
use core::ops::Range;
use miniz_oxide::inflate::decompress_slice_iter_to_slice;

const BLOCK: usize = 4096;
const SECTOR: usize = 512;
/// Sectors of a block.
const SECTORS: u64 = 8;
/// Bytes of the length behind a compressed payload.
const LENGTH_BYTES: usize = 4;

/// A run of blocks, as the metadata has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Never written.
    Hole(Range<u64>),
    /// With a payload.
    Data {
        /// Its blocks.
        blocks: Range<u64>,
        /// Whole sectors.
        payload_bytes: usize,
    },
    /// The bits make no sense.
    Damaged(Range<u64>),
}

/// What a payload was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unpacked {
    /// All of its blocks.
    Bytes(Vec<u8>),
    /// It does not decompress to its length.
    Damaged,
}

/// The extents of a group: the `index`-th in `bits`, which begins with block `first`.
pub fn group_extents(bits: &[u8], index: usize, first: u64, blocks: u64) -> Vec<Extent> {
    let mut extents: Vec<(Extent, u64)> = Vec::new();
    let start = index * GROUP_BYTES as usize;
    for block in 0..blocks {
        let this = first + block;
        let Some(value) = five_bits(bits, start, block as usize) else {
            extents.push((Extent::Damaged(this..this + 1), 0));
            continue;
        };
        let (sectors, is_tail) = (u64::from(value & 15), value & 16 != 0);
        if sectors > SECTORS {
            extents.push((Extent::Damaged(this..this + 1), 0));
            continue;
        }
        match (extents.last_mut(), is_tail) {
            (Some((Extent::Data { blocks, .. }, total)), true) => {
                blocks.end = this + 1;
                *total += sectors;
            }
            (Some((Extent::Damaged(blocks), _)), true) => blocks.end = this + 1,
            (_, true) => extents.push((Extent::Damaged(this..this + 1), 0)),
            (_, false) if sectors == 0 => extents.push((Extent::Hole(this..this + 1), 0)),
            (_, false) => {
                let data = Extent::Data { blocks: this..this + 1, payload_bytes: 0 };
                extents.push((data, sectors));
            }
        }
    }
    extents.into_iter().map(|(extent, total)| with_length(extent, total)).collect()
}

fn with_length(extent: Extent, total: u64) -> Extent {
    match extent {
        Extent::Data { blocks, .. } => {
            Extent::Data { blocks, payload_bytes: total as usize * SECTOR }
        }
        same @ (Extent::Hole(_) | Extent::Damaged(_)) => same,
    }
}

/// The five bits of a block.
fn five_bits(bits: &[u8], start: usize, block: usize) -> Option<u8> {
    let bit = block * 5;
    let low = u16::from(*bits.get(start + bit / 8)?);
    // The last block of a group ends with its last byte.
    let high = if bit % 8 > 3 { u16::from(*bits.get(start + bit / 8 + 1)?) } else { 0 };
    Some((((low | high << 8) >> (bit % 8)) & 31) as u8)
}

/// Decompresses the payload of `blocks`.
pub fn unpack(codec: OldCodec, blocks: &Range<u64>, payload: &[u8]) -> Unpacked {
    let whole = (blocks.end - blocks.start) as usize * BLOCK;
    if payload.len() == whole {
        return Unpacked::Bytes(payload.to_vec());
    }
    let Some((body, length)) = payload.split_last_chunk::<LENGTH_BYTES>() else {
        return Unpacked::Damaged;
    };
    let Some(packed) = body.get(..u32::from_le_bytes(*length) as usize) else {
        return Unpacked::Damaged;
    };
    let mut bytes = alloc::vec![0; whole];
    let unpacked = match codec {
        OldCodec::Lzo => lzokay::decompress::decompress(packed, &mut bytes).ok(),
        OldCodec::Deflate => {
            decompress_slice_iter_to_slice(&mut bytes, [packed].into_iter(), false, true).ok()
        }
        OldCodec::Nx842 => None,
    };
    if unpacked == Some(whole) { Unpacked::Bytes(bytes) } else { Unpacked::Damaged }
}
