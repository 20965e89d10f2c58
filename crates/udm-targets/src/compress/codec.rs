//! Compressing and decompressing one extent, and seeing that there is nothing to compress.
//!
//! Used by the volume (writes, reads, cleaning) and by the tools. What the codecs are called on the
//! disk is `format/codec.rs`.
//!
//! Rules. Deterministic: the same input gives the same bytes. Input from a disk is not trusted:
//! [`Coder::unpack`] checks every length and never panics, whatever the payload is. Both codecs are
//! called through interfaces without `unsafe`; the LZ4 one has none inside either.
//!
//! The tricky case is data that does not shrink: it is kept raw if less than a sixteenth would be
//! saved, so that a reader is not made to decompress for nothing, and no payload is ever longer
//! than its blocks.

use super::format::{BLOCK_BYTES, Codec};
use alloc::vec::Vec;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};
use udm_lane::Payload;

/// What a payload must save to be kept: one part in so many.
const SAVING_MIN: usize = 16;
/// Level of zstd where none is named.
pub const ZSTD_LEVEL_DEFAULT: i8 = 1;

/// The codecs of one volume, with the memory they work in.
pub struct Coder {
    table: CompressTable,
    zstd_in: Option<zstd_safe::CCtx<'static>>,
    zstd_out: Option<zstd_safe::DCtx<'static>>,
    room: Vec<u8>,
}

/// How new extents are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoderChoice {
    /// With what.
    pub codec: Codec,
    /// How hard; 0 is the codec's own default. Only zstd has levels.
    pub level: i8,
}

/// A payload cannot be decompressed to as many bytes as its extent has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPayload;

/// What is in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Zeroes.
    Zero,
    /// One word all over, little-endian, not zero.
    Fill(u32),
    /// Anything else.
    Plain,
}

impl Default for Coder {
    fn default() -> Coder {
        Coder::new()
    }
}

impl Coder {
    /// No memory yet beyond LZ4's table.
    pub fn new() -> Coder {
        Coder { table: CompressTable::large(), zstd_in: None, zstd_out: None, room: Vec::new() }
    }

    /// Compresses `input`; what comes back is valid until the next call. Raw if it does not pay.
    pub fn pack<'a>(&'a mut self, choice: CoderChoice, input: &'a [u8]) -> (Codec, &'a [u8]) {
        let enough = input.len() - input.len() / SAVING_MIN;
        let packed_len = match choice.codec {
            Codec::Raw => None,
            Codec::Lz4 => {
                self.room.resize(get_maximum_output_size(input.len()), 0);
                compress_into_with_table(input, &mut self.room, &mut self.table).ok()
            }
            Codec::Zstd => {
                // Shorter than the input on purpose: what does not fit is not wanted.
                self.room.resize(enough.max(1), 0);
                let level = if choice.level == 0 { ZSTD_LEVEL_DEFAULT } else { choice.level };
                let coder = self.zstd_in.get_or_insert_with(zstd_safe::CCtx::create);
                coder.compress(&mut self.room[..], input, level.into()).ok()
            }
        };
        match packed_len.filter(|len| (1..=enough).contains(len) && *len < input.len()) {
            Some(len) => (choice.codec, &self.room[..len]),
            None => (Codec::Raw, input),
        }
    }

    /// Decompresses `payload` into all of `output`.
    ///
    /// # Errors
    /// If it is damaged, or has another length.
    pub fn unpack(
        &mut self,
        codec: Codec,
        payload: &[u8],
        output: &mut [u8],
    ) -> Result<(), BadPayload> {
        let len = match codec {
            Codec::Raw if payload.len() == output.len() => {
                output.copy_from_slice(payload);
                Some(payload.len())
            }
            Codec::Raw => None,
            Codec::Lz4 => lz4_flex::block::decompress_into(payload, output).ok(),
            Codec::Zstd => {
                let coder = self.zstd_out.get_or_insert_with(zstd_safe::DCtx::create);
                coder.decompress(output, payload).ok()
            }
        };
        if len == Some(output.len()) { Ok(()) } else { Err(BadPayload) }
    }

    /// Memory it holds, roughly: the contexts of zstd are what counts.
    pub fn memory_bytes(&self) -> usize {
        let zstd_in = self.zstd_in.as_ref().map_or(0, zstd_safe::CCtx::sizeof);
        let zstd_out = self.zstd_out.as_ref().map_or(0, zstd_safe::DCtx::sizeof);
        self.room.capacity() + (16 << 10) + zstd_in + zstd_out
    }
}

impl BlockKind {
    /// Looks at a block.
    pub fn of(block: &[u8]) -> BlockKind {
        debug_assert_eq!(block.len() as u64, BLOCK_BYTES, "a whole block");
        let (words, _rest) = block.as_chunks::<4>();
        let Some(first) = words.first() else { return BlockKind::Plain };
        // Nearly all blocks are told in the first few words; the rest is a straight comparison.
        if words.iter().any(|word| word != first) {
            return BlockKind::Plain;
        }
        match u32::from_le_bytes(*first) {
            0 => BlockKind::Zero,
            pattern => BlockKind::Fill(pattern),
        }
    }
}

/// Fills a range of `payload`, which begins `skip` bytes into a filled block, with a word.
pub fn fill_payload(payload: &Payload, offset_bytes: u64, len_bytes: u64, pattern: u32) {
    if pattern == 0 {
        payload.fill(offset_bytes, len_bytes, 0);
        return;
    }
    let mut piece = [0_u8; 512];
    for word in piece.as_chunks_mut::<4>().0 {
        *word = pattern.to_le_bytes();
    }
    let mut done = 0;
    while done < len_bytes {
        let step = (len_bytes - done).min(piece.len() as u64);
        payload.copy_in(offset_bytes + done, &piece[..step as usize]);
        done += step;
    }
}

#[cfg(test)]
mod tests {
    use super::{BadPayload, BlockKind, Coder, CoderChoice, fill_payload};
    use crate::compress::format::Codec;
    use alloc::vec::Vec;
    use udm_lane::{Buf, Payload};

    fn text(len: usize) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(1);
        (0..len).map(|_| b"abcdefgh"[rng.usize(..8)]).collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(2);
        (0..len).map(|_| rng.u8(..)).collect()
    }

    #[test]
    fn every_codec_gives_back_what_it_got() {
        let mut coder = Coder::new();
        for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
            for level in [0, 3, -5] {
                for input in [text(4096), text(15 * 4096), noise(8192), alloc::vec![7; 4096]] {
                    let (stored, packed) = coder.pack(CoderChoice { codec, level }, &input);
                    let packed = packed.to_vec();
                    assert!(packed.len() <= input.len());
                    let mut output = alloc::vec![0; input.len()];
                    coder.unpack(stored, &packed, &mut output).expect("whole");
                    assert_eq!(output, input);
                }
            }
        }
    }

    #[test]
    fn what_does_not_shrink_stays_raw() {
        let mut coder = Coder::new();
        for codec in [Codec::Lz4, Codec::Zstd] {
            let input = noise(4096);
            let (stored, packed) = coder.pack(CoderChoice { codec, level: 0 }, &input);
            assert_eq!((stored, packed), (Codec::Raw, &input[..]));
        }
    }

    #[test]
    fn damaged_payloads_are_refused_and_never_panic() {
        let mut coder = Coder::new();
        let mut rng = fastrand::Rng::with_seed(3);
        for codec in [Codec::Lz4, Codec::Zstd] {
            let input = text(8192);
            let (stored, packed) = coder.pack(CoderChoice { codec, level: 0 }, &input);
            let packed = packed.to_vec();
            let mut output = alloc::vec![0; 8192];
            let cut = &packed[..packed.len() - 1];
            assert_eq!(coder.unpack(stored, cut, &mut output), Err(BadPayload));
            assert_eq!(coder.unpack(stored, &packed, &mut output[..8191]), Err(BadPayload));
            for _ in 0..2000 {
                let mut bad = packed.clone();
                for _ in 0..rng.usize(1..4) {
                    let at = rng.usize(..bad.len());
                    bad[at] = rng.u8(..);
                }
                bad.truncate(rng.usize(..bad.len() + 1));
                let _whatever = coder.unpack(stored, &bad, &mut output);
            }
        }
        assert_eq!(coder.unpack(Codec::Raw, &[1, 2], &mut [0; 3]), Err(BadPayload));
    }

    #[test]
    fn blocks_of_one_word_are_told() {
        assert_eq!(BlockKind::of(&[0; 4096]), BlockKind::Zero);
        assert_eq!(BlockKind::of(&[9; 4096]), BlockKind::Fill(0x0909_0909));
        let mut block = [0; 4096];
        block[4095] = 1;
        assert_eq!(BlockKind::of(&block), BlockKind::Plain);
    }

    #[test]
    fn a_word_fills_a_range() {
        let payload = Payload::from_buf(Buf::alloc(2048));
        fill_payload(&payload, 512, 1024, 0x0403_0201);
        let mut bytes = [9; 2048];
        payload.copy_out(0, &mut bytes);
        assert_eq!((bytes[511], &bytes[512..517], bytes[1536]), (0, &[1, 2, 3, 4, 1][..], 0));
    }
}
