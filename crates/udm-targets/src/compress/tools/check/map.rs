//! Every page and every entry of the map, and the exact count of live blocks of each segment.
//!
//! An entry is good if its word is one that a writer writes, its block lies inside the volume, and
//! its extent lies inside one segment, in the part that the log had written when the checkpoint was
//! taken. Whether the extent is there is for `extents.rs`; the counts are compared by `table.rs`.

use super::{Code, Counts, Findings};
use crate::compress::format::MapEntry;
use crate::compress::format::geometry::MAP_ENTRIES;
use crate::compress::format::map::{MapExtent, map_word};
use crate::compress::tools::view::View;
use crate::compress::tools::{Progress, Watch};
use alloc::vec::Vec;
use udm_meta::Disk;

/// Why an extent cannot be where an entry says, if so.
pub(super) fn misplaced(view: &View, extent: &MapExtent) -> Option<&'static str> {
    let geometry = &view.superblock.geometry;
    let head = &view.checkpoint.head;
    let place = geometry.place_of(extent.address);
    let len = u64::from(extent.units) << geometry.unit_shift;
    let end = u64::from(place.offset_bytes) + len;
    if place.segment >= head.segments {
        Some("points outside the volume")
    } else if end > geometry.segment_bytes() {
        Some("crosses a segment's end")
    } else if extent.index >= geometry.extent_blocks {
        Some("has an impossible place in its extent")
    } else if place.segment == head.next_segment {
        Some("points into the segment that the log has not reached")
    } else if place.segment == head.start.segment && end > u64::from(head.start.offset_bytes) {
        Some("points behind the place where the log goes on")
    } else {
        None
    }
}

/// Goes through the map. Gives the live blocks of each segment.
pub(in crate::compress::tools) async fn count(
    disk: &Disk,
    view: &View,
    segments: usize,
    counts: &mut Counts,
    findings: &mut Findings,
    watch: Watch<'_>,
) -> Vec<u32> {
    let mut live = alloc::vec![0_u32; segments];
    let geometry = &view.superblock.geometry;
    let (first, end) = (geometry.segment_pages, view.checkpoint.slots.page_count());
    let mut visit = |page: u64, body: Result<&[u8], _>| {
        let step = "reading the map";
        watch(Progress { step, done: page - first, total: end - first });
        match body {
            Ok(body) => count_page(view, page, body, &mut live, counts, findings),
            Err(fault) => {
                findings.damage(Code::MapPage, format_args!("map page {page} {fault}"));
                findings.lose_page(page);
            }
        }
    };
    view.visit_pages(disk, first, end, &mut visit).await;
    if counts.poisoned_blocks > 0 {
        let lost = counts.poisoned_blocks;
        let text = format_args!("{lost} blocks are lost; reading them is an error");
        findings.normal(Code::Poisoned, text);
    }
    live
}

fn count_page(
    view: &View,
    page: u64,
    body: &[u8],
    live: &mut [u32],
    counts: &mut Counts,
    findings: &mut Findings,
) {
    let geometry = &view.superblock.geometry;
    let Some(first_block) = geometry.first_block_of(page) else { return };
    for index in 0..MAP_ENTRIES as usize {
        let block = first_block + index as u64;
        let entry = match MapEntry::from_word(map_word(body, index)) {
            Ok(entry) => entry,
            Err(word) => {
                let text = format_args!("block {block} has the impossible word {word:#018x}");
                findings.damage(Code::MapEntry, text);
                findings.lose_block(block);
                continue;
            }
        };
        if entry != MapEntry::Hole && block >= view.checkpoint.head.logical_blocks {
            let text = format_args!("block {block} is mapped and beyond the volume's end");
            findings.damage(Code::MapEntry, text);
            findings.lose_block(block);
        }
        match entry {
            MapEntry::Hole => {}
            MapEntry::Fill(_pattern) => counts.fill_blocks += 1,
            MapEntry::Poisoned => counts.poisoned_blocks += 1,
            MapEntry::Extent(extent) => {
                counts.extent_blocks += 1;
                let segment = geometry.place_of(extent.address).segment as usize;
                if let Some(live) = live.get_mut(segment) {
                    *live += 1;
                }
                if let Some(what) = misplaced(view, &extent) {
                    findings.damage(Code::MapEntry, format_args!("block {block} {what}"));
                    findings.lose_block(block);
                }
            }
        }
    }
}
