//! Superblock copies, checkpoint slots, and the segment table.
//!
//! The table is compared with what the map really points to (`map.rs`) and with what else uses
//! segments: the log, and map pages that grew out of META. The start and the next segment of the
//! log are in use whatever their entries say, so only their counts are compared.

use super::{Code, Findings};
use crate::compress::format::{CheckpointFlags, SegmentEntry, SegmentState};
use crate::compress::tools::view::View;
use alloc::vec::Vec;
use udm_meta::Disk;
use udm_meta::checkpoint::CheckpointFault;

/// Copies, slots, flags, sizes.
pub(super) fn copies(view: &View, device_bytes: u64, findings: &mut Findings) {
    let generation = view.superblock.generation;
    for copy in &view.copies {
        let at = copy.offset_bytes;
        match copy.state {
            Ok(found) if found == generation => {}
            Ok(found) => {
                let text = format_args!("the copy at byte {at} is of generation {found}");
                findings.weak(Code::SuperblockCopy, text);
            }
            Err(fault) => {
                findings.weak(Code::SuperblockCopy, format_args!("the copy at byte {at} {fault}"));
            }
        }
    }
    let needed = view.superblock.geometry.device_bytes;
    if device_bytes - device_bytes % 4096 > needed {
        let text = format_args!("the device has {device_bytes} bytes, the volume uses {needed}");
        findings.normal(Code::DeviceSize, text);
    }
    let newest = view.checkpoint.number;
    for (slot, state) in view.slots.iter().enumerate() {
        match state {
            Ok(number) if *number == newest || number + 1 == newest => {}
            Ok(number) => {
                let text = format_args!("slot {slot} has checkpoint {number}, not {}", newest - 1);
                findings.weak(Code::CheckpointSlot, text);
            }
            // A new volume has one checkpoint only.
            Err(CheckpointFault::Magic) if newest == 1 => {}
            Err(fault @ CheckpointFault::Unreadable(_)) => {
                findings.weak(Code::CheckpointSlot, format_args!("slot {slot} {fault}"));
            }
            Err(fault) => {
                let text = format_args!("slot {slot} {fault}, as a crash may leave it");
                findings.normal(Code::CheckpointSlot, text);
            }
        }
    }
    let flags = view.checkpoint.head.flags;
    if flags.contains(CheckpointFlags::NEEDS_CHECK) {
        findings.weak(Code::Flags, format_args!("the volume was marked for a check"));
    }
    if flags.contains(CheckpointFlags::READ_ONLY) {
        findings.weak(Code::Flags, format_args!("the volume was marked read-only"));
    }
}

/// Reads the segment table.
pub(super) async fn read(
    disk: &Disk,
    view: &View,
    findings: &mut Findings,
) -> Vec<Option<SegmentEntry>> {
    let mut damaged_pages = Vec::new();
    let table = view
        .segment_table(disk, &mut |page, fault| {
            damaged_pages.push(page);
            findings.damage(Code::SegmentPage, format_args!("segment page {page} {fault}"));
        })
        .await;
    for (segment, _none) in table.iter().enumerate().filter(|(_, entry)| entry.is_none()) {
        let page = view.superblock.geometry.segment_page_of(segment as u32).0;
        if !damaged_pages.contains(&page) {
            let text = format_args!("segment {segment} has an unknown state");
            findings.damage(Code::SegmentEntry, text);
        }
    }
    table
}

/// Compares the table with the live blocks that were counted.
pub(super) fn compare(
    view: &View,
    table: &[Option<SegmentEntry>],
    live: &[u32],
    findings: &mut Findings,
) {
    let head = &view.checkpoint.head;
    let geometry = &view.superblock.geometry;
    let region_segments: Vec<u64> = view.checkpoint.regions.as_slice()[1..]
        .iter()
        .map(|region| (region.offset_bytes - geometry.data_offset_bytes) >> geometry.segment_shift)
        .collect();
    let mut sum = Some(0_u64);
    for (segment, (entry, live)) in table.iter().zip(live).enumerate() {
        let Some(entry) = entry else {
            sum = None;
            continue;
        };
        sum = sum.map(|sum| sum + u64::from(entry.live_blocks));
        if entry.live_blocks != *live {
            let kept = entry.live_blocks;
            let text = format_args!("segment {segment} has {live} live blocks, its entry {kept}");
            findings.damage(Code::LiveCount, text);
        }
        let is_named = [head.start.segment, head.next_segment].contains(&(segment as u32));
        let is_region = region_segments.contains(&(segment as u64));
        let what = match entry.state {
            SegmentState::Map if !is_region => Some("is said to hold map pages and does not"),
            SegmentState::Discarded
            | SegmentState::Free
            | SegmentState::Used
            | SegmentState::Retired
                if is_region =>
            {
                Some("holds map pages and is said not to")
            }
            SegmentState::Discarded | SegmentState::Free | SegmentState::Retired
                if *live > 0 && !is_named =>
            {
                Some("has live blocks and is said to have none")
            }
            SegmentState::Map if *live > 0 => Some("holds map pages and extents"),
            SegmentState::Discarded
            | SegmentState::Free
            | SegmentState::Used
            | SegmentState::Retired
            | SegmentState::Map => None,
        };
        if let Some(what) = what {
            findings.damage(Code::SegmentEntry, format_args!("segment {segment} {what}"));
        }
    }
    if let Some(sum) = sum.filter(|sum| *sum != head.live_blocks) {
        let kept = head.live_blocks;
        let text = format_args!("the table has {sum} live blocks, the checkpoint says {kept}");
        findings.weak(Code::LiveSum, text);
    }
}
