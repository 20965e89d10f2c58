//! What the codec does alone, on one core: the measure of everything the volume adds.
//!
//! The volume's own coder over the same bytes, cut into extents of one length, and nothing else: no
//! copying, no checksums, no log. And what the ancestor's layout would write for the same data.
//!
//! Rules. Only the codec's calls are timed. Extents are compressed a second time, untimed, to have
//! them all in memory: decompressing then reads memory as a volume would.

use super::super::BenchError;
use serde::Serialize;
use std::hint::black_box;
use udm_driver::{cpu_time_ns, monotonic_ns};
use udm_targets::compress::codec::{Coder, CoderChoice};
use udm_targets::compress::format::Codec;

/// A block of the volume and of the ancestor.
pub(super) const BLOCK_BYTES: usize = 4096;
/// What the volume rounds extents to.
const UNIT_BYTES: usize = 64;
const SECTOR_BYTES: usize = 512;

/// The codec over a sample.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Alone {
    pub(super) extent_bytes: usize,
    pub(super) sample_bytes: u64,
    /// Payloads, each rounded up to 64 bytes.
    pub(super) packed_bytes: u64,
    pub(super) pack_cpu_ns: u64,
    pub(super) pack_wall_ns: u64,
    pub(super) unpack_cpu_ns: u64,
    pub(super) unpack_wall_ns: u64,
}

impl Alone {
    /// Bytes of the sample for one stored.
    pub(super) fn ratio(&self) -> f64 {
        self.sample_bytes as f64 / self.packed_bytes.max(1) as f64
    }
}

/// Compresses and decompresses `sample`, extent by extent.
pub(super) fn alone(
    choice: CoderChoice,
    sample: &[u8],
    extent_bytes: usize,
) -> Result<Alone, BenchError> {
    let mut coder = Coder::new();
    let mut alone = Alone { extent_bytes, sample_bytes: sample.len() as u64, ..Alone::default() };
    let (wall_ns, cpu_ns) = (monotonic_ns(), cpu_time_ns());
    for extent in sample.chunks(extent_bytes) {
        black_box(coder.pack(choice, extent));
    }
    alone.pack_cpu_ns = cpu_time_ns() - cpu_ns;
    alone.pack_wall_ns = monotonic_ns() - wall_ns;
    let mut packed = Vec::new();
    let mut extents = Vec::with_capacity(sample.len() / extent_bytes + 1);
    for extent in sample.chunks(extent_bytes) {
        let (codec, payload) = coder.pack(choice, extent);
        extents.push((codec, payload.len()));
        packed.extend_from_slice(payload);
    }
    let rounded = extents.iter().map(|(_, len)| len.next_multiple_of(UNIT_BYTES) as u64);
    alone.packed_bytes = rounded.sum();
    let mut room = vec![1; extent_bytes];
    let mut at = 0;
    let (wall_ns, cpu_ns) = (monotonic_ns(), cpu_time_ns());
    for (index, (codec, len)) in extents.iter().enumerate() {
        let from = index * extent_bytes;
        let room = &mut room[..extent_bytes.min(sample.len() - from)];
        let outcome = coder.unpack(*codec, &packed[at..at + len], room);
        outcome.map_err(|_| "the codec does not know its own bytes")?;
        at += len;
        black_box(room);
    }
    alone.unpack_cpu_ns = cpu_time_ns() - cpu_ns;
    alone.unpack_wall_ns = monotonic_ns() - wall_ns;
    Ok(alone)
}

/// Bytes that dm-insitu-comp in writethrough writes for each byte overwritten: the payload of a
/// block in sectors, and one page of its bitmap.
pub(super) fn ancestor_cost(sample: &[u8]) -> f64 {
    let mut coder = Coder::new();
    let choice = CoderChoice { codec: Codec::Lz4, level: 0 };
    let (mut below, mut above) = (0, 0);
    for block in sample.chunks_exact(BLOCK_BYTES) {
        let (_, payload) = coder.pack(choice, block);
        // The length is in the last four bytes; raw unless a sector and those are saved.
        let sectors = match payload.len() + SECTOR_BYTES + 4 <= BLOCK_BYTES {
            true => (payload.len() + 4).next_multiple_of(SECTOR_BYTES),
            false => BLOCK_BYTES,
        };
        below += sectors + BLOCK_BYTES;
        above += BLOCK_BYTES;
    }
    below as f64 / above.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_BYTES, alone, ancestor_cost};
    use udm_targets::compress::codec::CoderChoice;
    use udm_targets::compress::format::Codec;

    #[test]
    fn what_does_not_compress_costs_the_ancestor_twice_its_size() {
        let mut rng = fastrand::Rng::with_seed(1);
        let noise: Vec<u8> = (0..8 * BLOCK_BYTES).map(|_| rng.u8(..)).collect();
        assert_eq!(ancestor_cost(&noise), 2.0);
        // One sector of payload and a page.
        let text = b"abcd".repeat(2 * BLOCK_BYTES);
        assert_eq!(ancestor_cost(&text), 1.125);
    }

    #[test]
    fn sizes_are_rounded_to_units() {
        let choice = CoderChoice { codec: Codec::Lz4, level: 0 };
        let text = b"abcd".repeat(2 * BLOCK_BYTES);
        let told = alone(choice, &text, 2 * BLOCK_BYTES).expect("it works");
        assert_eq!(told.sample_bytes, 8 * BLOCK_BYTES as u64);
        assert_eq!(told.packed_bytes % 64, 0);
        assert!(told.ratio() > 50.0, "{told:?}");
    }
}
