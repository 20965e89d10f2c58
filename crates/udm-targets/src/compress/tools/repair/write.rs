//! The mended volume on its way: pages in free slots, the segment table, the checkpoint.
//!
//! [`Work`] is a view in which some pages are already new. Nothing of it counts before
//! [`Work::commit`], since new pages go to slots that the checkpoint on the disk does not name.
//!
//! The tricky case is a page that is changed twice in one repair: the second image goes over the
//! first one, never over the one that still counts.

use super::{RepairReport, ToolError};
use crate::compress::format::geometry::SEGMENT_ENTRIES;
use crate::compress::format::map::{set_map_entry, set_segment_entry};
use crate::compress::format::{Checkpoint, MapEntry, SegmentEntry, SegmentState};
use crate::compress::tools::Watch;
use crate::compress::tools::check::{Counts, Findings, map};
use crate::compress::tools::view::View;
use alloc::vec::Vec;
use udm_meta::Disk;
use udm_meta::bytes::write_bytes;
use udm_meta::page::{PAGE_BYTES, PAGE_HEAD_BYTES};
use udm_meta::slots::SlotArray;

/// A volume that is being mended.
pub(super) struct Work {
    /// As it will be.
    pub(super) view: View,
    /// Slots of the checkpoint on the disk, which must not be touched.
    old: SlotArray,
}

impl Work {
    /// Begins with a volume as it is.
    pub(super) fn new(mut view: View) -> Work {
        let old = view.checkpoint.slots.clone();
        view.checkpoint.number += 1;
        Work { view, old }
    }

    /// The numbers of its map pages.
    pub(super) fn map_pages(&self) -> core::ops::Range<u64> {
        self.view.superblock.geometry.segment_pages..self.view.checkpoint.slots.page_count()
    }

    /// Writes a page; `image` has its body.
    pub(super) async fn write_page(
        &mut self,
        disk: &Disk,
        page: u64,
        image: &mut [u8],
    ) -> Result<(), ToolError> {
        let checkpoint = &mut self.view.checkpoint;
        let slot = self.old.free_slot(page);
        checkpoint.slots.set(page, Some(slot));
        let at = checkpoint.regions.offset_bytes(page, slot);
        let at = at.ok_or_else(|| ToolError::Unusable("a map page has no place".into()))?;
        let name = self.view.name_of(page);
        self.view.superblock.page_marks().seal(name, self.view.checkpoint.number, image);
        Ok(write_bytes(disk, at, image).await?)
    }

    /// A page that was never written, or is to be: all holes, nothing on the disk.
    pub(super) fn forget_page(&mut self, page: u64) {
        self.view.checkpoint.slots.set(page, None);
    }

    /// Marks blocks, in order, as lost.
    pub(super) async fn poison(
        &mut self,
        disk: &Disk,
        blocks: &[u64],
        report: &mut RepairReport,
    ) -> Result<(), ToolError> {
        let geometry = self.view.superblock.geometry;
        let logical_blocks = self.view.checkpoint.head.logical_blocks;
        let page_of = |block: u64| geometry.map_page_of(block).0;
        for same in blocks.chunk_by(|one, next| page_of(*one) == page_of(*next)) {
            let page = page_of(same[0]);
            let Ok(mut image) = self.view.page(disk, page).await else { continue };
            for &block in same {
                let index = geometry.map_page_of(block).1;
                // Beyond the end there is nothing to lose.
                let is_inside = block < logical_blocks;
                let entry = if is_inside { MapEntry::Poisoned } else { MapEntry::Hole };
                set_map_entry(&mut image[PAGE_HEAD_BYTES..], index, entry);
                if is_inside {
                    report.poison(block);
                }
            }
            self.write_page(disk, page, &mut image).await?;
        }
        Ok(())
    }

    /// Counts the map and writes the whole segment table, keeping what is known of each segment.
    pub(super) async fn write_table(
        &mut self,
        disk: &Disk,
        old: &[Option<SegmentEntry>],
        watch: Watch<'_>,
    ) -> Result<(), ToolError> {
        let mut findings = Findings::new(0);
        let mut counts = Counts::default();
        let live = map::count(disk, &self.view, old.len(), &mut counts, &mut findings, watch).await;
        let regions = self.region_segments();
        let entries: Vec<SegmentEntry> = (0_u32..)
            .zip(live.iter().zip(old))
            .map(|(segment, (live, old))| entry(segment, *live, *old, &regions))
            .collect();
        let head = &mut self.view.checkpoint.head;
        head.live_blocks = live.iter().map(|live| u64::from(*live)).sum();
        head.live_units = entries.iter().map(|entry| u64::from(entry.live_units)).sum();
        for (page, entries) in (0..).zip(entries.chunks(SEGMENT_ENTRIES as usize)) {
            let mut image = alloc::vec![0; PAGE_BYTES];
            for (index, entry) in entries.iter().enumerate() {
                set_segment_entry(&mut image[PAGE_HEAD_BYTES..], index, entry);
            }
            self.write_page(disk, page, &mut image).await?;
        }
        Ok(())
    }

    fn region_segments(&self) -> Vec<u32> {
        let geometry = &self.view.superblock.geometry;
        let grown = self.view.checkpoint.regions.as_slice()[1..].iter();
        grown
            .map(|region| {
                let within = region.offset_bytes - geometry.data_offset_bytes;
                u32::try_from(within >> geometry.segment_shift).unwrap_or(u32::MAX)
            })
            .collect()
    }

    /// Makes it true.
    pub(super) async fn commit(&mut self, disk: &Disk) -> Result<(), ToolError> {
        disk.flush().await?;
        let superblock = &self.view.superblock;
        let checkpoint = &self.view.checkpoint;
        let mut bytes = checkpoint.to_bytes(&superblock.geometry);
        // Counts that are near their end, found on a hostile disk, must not become the truth.
        let slots = superblock.checkpoint_slots();
        slots.seal(checkpoint.number, &mut bytes);
        let image = slots.parse(checkpoint.number % 2, &bytes);
        let is_sound = image.is_ok_and(|image| Checkpoint::parse(superblock, &image).is_ok());
        if !is_sound {
            return Err(ToolError::Unusable("the numbers on the device make no sense".into()));
        }
        superblock.checkpoint_slots().write(disk, checkpoint.number, &mut bytes).await?;
        Ok(disk.flush().await.map(|_| ())?)
    }
}

fn entry(
    segment: u32,
    live_blocks: u32,
    old: Option<SegmentEntry>,
    regions: &[u32],
) -> SegmentEntry {
    let old = old.unwrap_or_default();
    let state = if regions.contains(&segment) {
        SegmentState::Map
    } else if live_blocks > 0 {
        SegmentState::Used
    } else if old.state == SegmentState::Retired {
        SegmentState::Retired
    } else {
        SegmentState::Free
    };
    let is_known = state == SegmentState::Used;
    SegmentEntry {
        live_blocks,
        live_units: if is_known { old.live_units } else { 0 },
        state,
        summary_at: if is_known { old.summary_at } else { 0 },
        ..old
    }
}
