//! Tests of the import: volumes as the ancestors would write them, whole and damaged.

use super::layout::{Ancestor, MAGIC, OldCodec};
use super::{ImportReport, Sink, import};
use crate::compress::tools::ToolError;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;
use udm_meta::host::MemoryHost;
use udm_types::Status;

const META_BLOCKS: u64 = 2;
const DATA_BLOCKS: u64 = 70;
const DATA_AT: usize = 3 * 4096;

/// What came out, block by block.
#[derive(Default)]
struct Kept(BTreeMap<u64, Vec<u8>>);

impl Sink for Kept {
    fn put(&mut self, first_block: u64, bytes: &[u8]) -> Result<(), Status> {
        for (block, bytes) in (first_block..).zip(bytes.chunks(4096)) {
            self.0.insert(block, bytes.to_vec());
        }
        Ok(())
    }
}

fn pack(codec: OldCodec, bytes: &[u8]) -> Vec<u8> {
    match codec {
        OldCodec::Lzo => lzokay::compress::compress(bytes).expect("compressed"),
        OldCodec::Deflate => miniz_oxide::deflate::compress_to_vec(bytes, 6),
        OldCodec::Nx842 => bytes.to_vec(),
    }
}

/// A volume in the making.
struct Old {
    bytes: Vec<u8>,
    codec: OldCodec,
}

impl Old {
    fn new(ancestor: Ancestor, codec: OldCodec) -> Old {
        let mut bytes = alloc::vec![0; DATA_AT + DATA_BLOCKS as usize * 4096];
        let (words, number): (&[u64], u8) = match (ancestor, codec) {
            (Ancestor::InsituComp, OldCodec::Deflate) => (&[1, META_BLOCKS, DATA_BLOCKS], 1),
            (Ancestor::InsituComp, _) => (&[1, META_BLOCKS, DATA_BLOCKS], 0),
            (Ancestor::InplaceCompress, OldCodec::Nx842) => (&[META_BLOCKS, DATA_BLOCKS], 0),
            (Ancestor::InplaceCompress, _) => (&[META_BLOCKS, DATA_BLOCKS], 1),
        };
        for (index, word) in [MAGIC].iter().chain(words).enumerate() {
            bytes[index * 8..index * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes[(words.len() + 1) * 8] = number;
        Old { bytes, codec }
    }

    fn set_bits(&mut self, block: u64, value: u8) {
        for bit in 0..5 {
            let at = block as usize * 5 + bit;
            let byte = &mut self.bytes[4096 + at / 8];
            *byte &= !(1 << (at % 8));
            *byte |= ((value >> bit) & 1) << (at % 8);
        }
    }

    /// Writes an extent as the ancestors do.
    fn put(&mut self, block: u64, data: &[u8]) {
        let blocks = data.len() as u64 / 4096;
        let mut payload = pack(self.codec, data);
        let exact = (payload.len() as u32).to_le_bytes();
        let sectors = (payload.len() + 4).div_ceil(512);
        if sectors * 512 + 512 > data.len() {
            payload = data.to_vec();
        } else {
            payload.resize(sectors * 512 - 4, 0);
            payload.extend_from_slice(&exact);
        }
        let at = DATA_AT + block as usize * 4096;
        self.bytes[at..at + payload.len()].copy_from_slice(&payload);
        let mut left = payload.len() / 512;
        for index in 0..blocks {
            let own = left.min(8);
            left -= own;
            self.set_bits(block + index, own as u8 | if index > 0 { 16 } else { 0 });
        }
    }

    fn import(&self) -> (Result<ImportReport, ToolError>, BTreeMap<u64, Vec<u8>>) {
        let mut host = MemoryHost::from_bytes(self.bytes.clone());
        let mut kept = Kept::default();
        let sink = &mut kept;
        let report = host.run(|disk| async move { import(&disk, sink, &mut |_progress| ()).await });
        (report, kept.0)
    }
}

/// Text that compresses.
fn text(blocks: usize, seed: u8) -> Vec<u8> {
    (0..blocks * 4096).map(|at| b"some text, again and again. "[at % 28] ^ (seed & 1)).collect()
}

/// Bytes that do not.
fn noise(blocks: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(1);
    (0..blocks * 4096).map(|_| rng.u8(..)).collect()
}

fn filled(ancestor: Ancestor, codec: OldCodec) -> (Old, BTreeMap<u64, Vec<u8>>) {
    let mut old = Old::new(ancestor, codec);
    let mut wanted = BTreeMap::new();
    let extents = [
        (0, text(2, 0)),
        (5, noise(1)),
        (6, noise(3)),
        (30, text(2, 1)),
        (32, text(32, 0)),
        (69, text(1, 1)),
    ];
    for (block, data) in extents {
        old.put(block, &data);
        for (block, data) in (block..).zip(data.chunks(4096)) {
            wanted.insert(block, data.to_vec());
        }
    }
    (old, wanted)
}

#[test]
fn both_ancestors_volumes_are_read() {
    let kinds = [
        (Ancestor::InsituComp, OldCodec::Lzo),
        (Ancestor::InsituComp, OldCodec::Deflate),
        (Ancestor::InplaceCompress, OldCodec::Lzo),
    ];
    for (ancestor, codec) in kinds {
        let (old, wanted) = filled(ancestor, codec);
        let (report, kept) = old.import();
        let report = report.expect("read");
        assert_eq!((report.layout.ancestor, report.layout.codec), (ancestor, codec));
        assert_eq!((report.blocks, report.lost_blocks), (wanted.len() as u64, 0));
        assert_eq!(report.zero_blocks + report.blocks, DATA_BLOCKS);
        assert!(kept == wanted, "{codec:?}");
    }
}

#[test]
fn what_cannot_be_decoded_is_refused() {
    let (report, _) = Old::new(Ancestor::InplaceCompress, OldCodec::Nx842).import();
    let error = report.expect_err("refused");
    assert!(alloc::format!("{error}").contains("842"));
    let mut old = Old::new(Ancestor::InsituComp, OldCodec::Lzo);
    old.bytes[0] ^= 1;
    assert!(old.import().0.is_err());
}

#[test]
fn a_damaged_extent_is_lost_alone() {
    let (mut old, mut wanted) = filled(Ancestor::InsituComp, OldCodec::Lzo);
    // The exact length of the extent at block 30 becomes larger than its payload.
    let payload_end = DATA_AT + 30 * 4096 + 512;
    old.bytes[payload_end - 4..payload_end].copy_from_slice(&[0xff; 4]);
    let (report, kept) = old.import();
    let report = report.expect("read");
    assert_eq!((report.lost, report.lost_blocks), (alloc::vec![Range { start: 30, end: 32 }], 2));
    wanted.remove(&30);
    wanted.remove(&31);
    assert!(kept == wanted);
}

#[test]
fn bits_that_make_no_sense_cost_what_they_concern() {
    let (mut old, wanted) = filled(Ancestor::InsituComp, OldCodec::Lzo);
    // A continuation of nothing, and nine sectors.
    old.set_bits(3, 16);
    old.set_bits(69, 9);
    let (report, kept) = old.import();
    let report = report.expect("read");
    assert_eq!(report.lost, [3..4, 69..70]);
    assert_eq!(kept.len(), wanted.len() - 1);
}

#[test]
fn volumes_with_random_damage_break_nothing() {
    for seed in 0..400 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let ancestor = if rng.bool() { Ancestor::InsituComp } else { Ancestor::InplaceCompress };
        let codec = if rng.bool() { OldCodec::Lzo } else { OldCodec::Deflate };
        let (mut old, _) = filled(ancestor, codec);
        for _ in 0..rng.usize(1..20) {
            let limit = [64, 4200, old.bytes.len()][rng.usize(..3)];
            let at = rng.usize(..limit);
            old.bytes[at] = rng.u8(..);
        }
        let (report, kept) = old.import();
        if let Ok(report) = report {
            assert_eq!(kept.len() as u64, report.blocks);
            let all = report.blocks + report.zero_blocks + report.lost_blocks;
            assert_eq!(all, report.layout.data_blocks);
        }
    }
}
