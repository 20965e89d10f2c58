//! A small volume in memory, for tests of the tools and for fuzzers: a writer without cleverness.
//!
//! It appends records, keeps the map as a plain tree, and writes whole checkpoints. It is no model
//! of the volume's algorithms; it only has to write what the format says.

use super::format::{FormatRequest, format};
use crate::compress::format::map::{KIND_MAP, KIND_SEGMENTS, MapExtent};
use crate::compress::format::map::{set_map_entry, set_segment_entry};
use crate::compress::format::{
    Checkpoint, CheckpointFlags, Codec, Defaults, Entry, ExtentHead, MapEntry, SegmentEntry,
    SegmentState, Shape, Superblock,
};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use udm_meta::chain::Chain;
use udm_meta::host::MemoryHost;
use udm_meta::page::{PAGE_BYTES, PAGE_HEAD_BYTES, PageName};
use udm_meta::record::{LogPlace, Record, RecordBuilder, RecordHead};

/// Logical blocks of a sample: one map page and a bit.
pub(crate) const BLOCKS: u64 = 600;

/// A volume in memory, and what should be in it.
pub(crate) struct Sample {
    /// The device.
    pub(crate) host: MemoryHost,
    /// Its superblock.
    pub(crate) superblock: Superblock,
    /// Its newest checkpoint.
    pub(crate) checkpoint: Checkpoint,
    /// Where each block should be, log included.
    pub(crate) map: BTreeMap<u64, MapEntry>,
    /// Where the log goes on.
    pub(crate) chain: Chain,
    /// What the next record says is durable.
    pub(crate) durable_sequence: u64,
    /// Segments in use: up to this one.
    last_segment: u32,
}

/// A request for a tiny volume: 16 KiB segments, extents of up to 2 blocks.
pub(crate) fn tiny(logical_bytes: Option<u64>) -> FormatRequest {
    FormatRequest {
        shape: Shape {
            physical_shift: 9,
            segment_shift: 14,
            record_limit_bytes: 16384,
            extent_blocks: 2,
            reserve_segments: 3,
            growth: 2,
            ..Shape::for_device(0)
        },
        logical_bytes,
        uuid: [7; 16],
        salt: 99,
        defaults: Defaults { codec: Codec::Lz4, level: 0 },
        is_discarded: true,
    }
}

/// A raw extent.
pub(crate) fn raw(first_block: u64, blocks: u8) -> Entry {
    let payload_bytes = u32::from(blocks) * 4096;
    Entry::Extent { first_block, blocks, codec: Codec::Raw, payload_bytes }
}

/// What block `block` holds if record `sequence` wrote it.
pub(crate) fn content(block: u64, sequence: u64) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    bytes[..8].copy_from_slice(&block.to_le_bytes());
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    bytes
}

impl Sample {
    /// A new volume.
    pub(crate) fn new() -> Sample {
        let mut host = MemoryHost::new(256 << 10);
        let request = tiny(Some(BLOCKS * 4096));
        let plan = host.run(|disk| async move { format(&disk, &request, &mut |_| ()).await });
        let superblock = plan.expect("formatted").superblock;
        let checkpoint = Checkpoint::fresh(&superblock.geometry, BLOCKS);
        Sample {
            host,
            superblock,
            chain: checkpoint.head.chain(),
            checkpoint,
            map: BTreeMap::new(),
            durable_sequence: 0,
            last_segment: 1,
        }
    }

    /// A volume with a map of two pages, a checkpoint, and a log of two segments behind it.
    pub(crate) fn filled() -> Sample {
        let mut sample = Sample::new();
        sample.append(&[raw(0, 2), Entry::Fill { first_block: 9, blocks: 3, pattern: 7 }], 0);
        let short =
            Entry::Extent { first_block: 599, blocks: 1, codec: Codec::Lz4, payload_bytes: 500 };
        sample.append(&[raw(503, 2), raw(1, 1), short], 0);
        sample.checkpoint();
        sample.append(&[Entry::Unmap { first_block: 503, blocks: 1 }, raw(2, 2)], 0);
        sample.append(&[raw(1, 2)], 0);
        sample
    }

    /// Appends a record; returns its place.
    pub(crate) fn append(&mut self, all: &[Entry], flags: u32) -> LogPlace {
        let rules = self.superblock.record_rules();
        let sequence = self.chain.next_sequence;
        let mut table = RecordBuilder::new();
        let mut body = Vec::new();
        let mut placed = Vec::new();
        for entry in all {
            entry.push(&mut table);
            if let Entry::Extent { first_block, blocks, codec, payload_bytes } = *entry {
                let tag = sequence as u32;
                let extent = ExtentHead { first_block, blocks, codec, payload_bytes, tag };
                let mut payload: Vec<u8> = (0..u64::from(blocks))
                    .flat_map(|index| content(first_block + index, sequence))
                    .collect();
                payload.truncate(payload_bytes as usize);
                placed.push((body.len() as u32, extent));
                body.extend_from_slice(&extent.seal(rules.salt, &payload));
                body.extend_from_slice(&payload);
                body.resize(body.len().next_multiple_of(64), 0);
            }
        }
        let total = rules.total_bytes(table.entry_count(), body.len() as u32);
        let mut place = self.chain.place;
        let mut next_segment = self.chain.next_segment;
        if place.offset_bytes + total > rules.segment_bytes {
            place = LogPlace { segment: next_segment, offset_bytes: 0 };
            self.last_segment += 1;
            next_segment = self.last_segment;
        }
        let head = RecordHead {
            sequence,
            epoch: self.checkpoint.head.epoch,
            next_segment,
            previous_hash: self.chain.previous_hash,
            durable_sequence: self.durable_sequence,
            flags,
            segment: place.segment,
        };
        let sealed = table.seal(&rules, &head, body.len() as u32);
        let mut bytes = table.as_bytes().to_vec();
        bytes.resize(sealed.body_bytes_at as usize, 0);
        bytes.extend_from_slice(&body);
        bytes.resize(sealed.total_bytes as usize, 0);
        let at = self.superblock.geometry.offset_of(place) as usize;
        self.host.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        let record = Record::parse(&rules, place, &bytes).expect("whole");
        self.chain.follow(place, &record);
        self.map_entries(all, place, sealed.body_bytes_at, &placed, sequence);
        place
    }

    fn map_entries(
        &mut self,
        all: &[Entry],
        place: LogPlace,
        body_at: u32,
        placed: &[(u32, ExtentHead)],
        sequence: u64,
    ) {
        let mut placed = placed.iter();
        for entry in all {
            let at = match entry {
                Entry::Extent { .. } => placed.next(),
                Entry::Unmap { .. } | Entry::Fill { .. } => None,
            };
            for index in 0..entry.blocks() {
                let block = entry.first_block() + u64::from(index);
                let mapped = match (*entry, at) {
                    (Entry::Fill { pattern, .. }, _) => MapEntry::Fill(pattern),
                    (Entry::Extent { .. }, Some((offset, extent))) => {
                        let offset_bytes = place.offset_bytes + body_at + offset;
                        let at = LogPlace { segment: place.segment, offset_bytes };
                        MapEntry::Extent(MapExtent {
                            address: self.superblock.geometry.address_of(at),
                            units: (extent.stored_bytes(64) / 64) as u16,
                            index: index as u8,
                            tag: sequence as u8,
                        })
                    }
                    (Entry::Unmap { .. } | Entry::Extent { .. }, _) => MapEntry::Hole,
                };
                self.map.insert(block, mapped);
            }
        }
    }

    /// Writes the map and the segment table, and a checkpoint that names them.
    pub(crate) fn checkpoint(&mut self) {
        let geometry = self.superblock.geometry;
        let number = self.checkpoint.number + 1;
        let mut bodies: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut live = alloc::vec![0_u32; self.checkpoint.head.segments as usize];
        for (block, entry) in &self.map {
            let (page, index) = geometry.map_page_of(*block);
            let body = bodies.entry(page).or_insert_with(|| alloc::vec![0; PAGE_BYTES]);
            set_map_entry(&mut body[PAGE_HEAD_BYTES..], index, *entry);
            if let MapEntry::Extent(extent) = entry {
                live[geometry.place_of(extent.address).segment as usize] += 1;
            }
        }
        for (segment, live_blocks) in (0_u32..).zip(&live) {
            let (page, index) = geometry.segment_page_of(segment);
            let body = bodies.entry(page).or_insert_with(|| alloc::vec![0; PAGE_BYTES]);
            let state = if *live_blocks > 0 { SegmentState::Used } else { SegmentState::Free };
            let entry =
                SegmentEntry { live_blocks: *live_blocks, state, ..SegmentEntry::default() };
            set_segment_entry(&mut body[PAGE_HEAD_BYTES..], index, &entry);
        }
        for (page, mut image) in bodies {
            let kind = if page < geometry.segment_pages { KIND_SEGMENTS } else { KIND_MAP };
            self.superblock.page_marks().seal(PageName { kind, page }, number, &mut image);
            let slot = self.checkpoint.slots.free_slot(page);
            let at = self.checkpoint.regions.offset_bytes(page, slot).expect("in META") as usize;
            self.host.bytes[at..at + PAGE_BYTES].copy_from_slice(&image);
            self.checkpoint.slots.set(page, Some(slot));
        }
        self.checkpoint.number = number;
        let head = &mut self.checkpoint.head;
        head.next_sequence = self.chain.next_sequence;
        head.previous_hash = self.chain.previous_hash;
        head.start = self.chain.place;
        head.next_segment = self.chain.next_segment;
        head.flags = CheckpointFlags::empty();
        head.live_blocks = live.iter().map(|live| u64::from(*live)).sum();
        self.write_checkpoint();
    }

    /// Writes the checkpoint as it is.
    pub(crate) fn write_checkpoint(&mut self) {
        let slots = self.superblock.checkpoint_slots();
        let mut bytes = self.checkpoint.to_bytes(&self.superblock.geometry);
        slots.seal(self.checkpoint.number, &mut bytes);
        let at = slots.offset_of(self.checkpoint.number) as usize;
        self.host.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
    }

    #[cfg(test)]
    /// Where the current image of a page is.
    pub(crate) fn page_at(&self, page: u64) -> usize {
        let slot = self.checkpoint.slots.get(page).expect("written");
        self.checkpoint.regions.offset_bytes(page, slot).expect("in META") as usize
    }

    #[cfg(test)]
    /// Rewrites the current image of a page, sealed again.
    pub(crate) fn change_page(&mut self, page: u64, change: impl FnOnce(&mut [u8])) {
        let at = self.page_at(page);
        let is_map = page >= self.superblock.geometry.segment_pages;
        let kind = if is_map { KIND_MAP } else { KIND_SEGMENTS };
        let image = &mut self.host.bytes[at..at + PAGE_BYTES];
        change(&mut image[PAGE_HEAD_BYTES..]);
        let number = self.checkpoint.number;
        self.superblock.page_marks().seal(PageName { kind, page }, number, image);
    }
}
