//! A checkpoint where none is left: from the newest record, and from what the user knows.
//!
//! The newest record says where the log goes on; the map pages say which checkpoint number is
//! higher than any before. The logical size is nowhere but in checkpoints: without one, it is the
//! end of the last block that any record names.
//!
//! Rules. Reads only. The map is empty afterwards, for `records.rs` to fill, so a map that had
//! grown out of META cannot be made this way. The tricky case is a last record that was torn: its
//! blocks end up poisoned, since without a checkpoint nothing tells a tear from damage.

use super::records::each_record;
use crate::compress::format::checkpoint::COUNT_LIMIT;
use crate::compress::format::entry::entries;
use crate::compress::format::{Checkpoint, CheckpointFlags, RecordFlags, Superblock};
use crate::compress::tools::view::View;
use crate::compress::tools::{Progress, ToolError, Watch};
use alloc::vec::Vec;
use udm_meta::Disk;
use udm_meta::bytes::read_vec;
use udm_meta::chain::Fence;
use udm_meta::checkpoint::CheckpointFault;
use udm_meta::page::{PAGE_BYTES, PAGE_PAIR_BYTES};
use udm_meta::record::{LogPlace, Record};
use udm_meta::slots::SlotArray;

/// Pages of one read.
const RUN_PAGES: u64 = 64;

/// The newest record.
struct Newest {
    place: LogPlace,
    total_bytes: u32,
    hash: u64,
    sequence: u64,
    epoch: u32,
    next_segment: u32,
}

/// A view of the volume with an empty map, and its log ended.
pub(super) async fn without_checkpoint(
    disk: &Disk,
    logical_blocks: Option<u64>,
    watch: Watch<'_>,
) -> Result<View, ToolError> {
    let found = Superblock::find(disk).await;
    let Some(Ok(superblock)) = found.superblock else {
        return Err(ToolError::Unusable("no superblock is whole".into()));
    };
    let geometry = superblock.geometry;
    let mut view = View {
        superblock,
        checkpoint: Checkpoint::fresh(&geometry, 1),
        copies: found.reports,
        slots: [Err(CheckpointFault::Magic); 2],
    };
    let all: Vec<u32> = (0..view.checkpoint.head.segments).collect();
    let (mut newest, mut end_block): (Option<Newest>, u64) = (None, 1);
    let rules = superblock.record_rules();
    let mut visit = |place: LogPlace, record: &Record<'_>| {
        let head = &record.head;
        let is_newer =
            newest.as_ref().is_none_or(|n| (head.epoch, head.sequence) > (n.epoch, n.sequence));
        if is_newer {
            newest = Some(Newest {
                place,
                total_bytes: record.total_bytes,
                hash: record.hash,
                sequence: head.sequence,
                epoch: head.epoch,
                next_segment: head.next_segment,
            });
        }
        if head.flags & RecordFlags::SUMMARY.bits() == 0 {
            for placed in entries(&rules, record).flatten() {
                let entry = placed.entry;
                end_block = end_block.max(entry.first_block() + u64::from(entry.blocks()));
            }
        }
    };
    each_record(disk, &view, &all, watch, &mut visit).await;
    let meta_blocks = (geometry.meta_pages() - geometry.segment_pages) * 504;
    let logical_blocks = logical_blocks.unwrap_or(end_block);
    if logical_blocks == 0 || logical_blocks > meta_blocks {
        return Err(ToolError::LogicalTooLarge { limit_bytes: meta_blocks * 4096 });
    }
    view.checkpoint.number = next_number(disk, &view, watch).await?;
    view.checkpoint.slots = SlotArray::new(geometry.page_count(logical_blocks));
    let head = &mut view.checkpoint.head;
    head.logical_blocks = logical_blocks;
    head.flags = CheckpointFlags::empty();
    if let Some(newest) = newest {
        let offset_bytes = newest.place.offset_bytes + newest.total_bytes;
        head.start = LogPlace { segment: newest.place.segment, offset_bytes };
        head.next_segment = newest.next_segment;
        head.next_sequence = newest.sequence.wrapping_add(1);
        head.previous_hash = newest.hash;
        head.epoch = newest.epoch;
        head.fence = Fence { sequence: newest.sequence, epoch: newest.epoch };
        if head.next_segment >= head.segments || head.next_segment == head.start.segment {
            return Err(ToolError::Unusable("the newest record leads nowhere".into()));
        }
    }
    Ok(view)
}

/// A number above that of every checkpoint there was.
async fn next_number(disk: &Disk, view: &View, watch: Watch<'_>) -> Result<u64, ToolError> {
    let pair = view.superblock.checkpoint_slots().read(disk).await;
    let newest_slot = pair.newest().map_or(0, |image| image.number());
    let number = newest_page(disk, view, watch).await.max(newest_slot).saturating_add(1);
    if number >= COUNT_LIMIT {
        // No volume counts so far, and a checkpoint with a lower number would not be believed.
        return Err(ToolError::Unusable("a checkpoint has a number that cannot be".into()));
    }
    Ok(number)
}

/// The highest checkpoint that any page in META was written for.
async fn newest_page(disk: &Disk, view: &View, watch: Watch<'_>) -> u64 {
    let geometry = &view.superblock.geometry;
    let marks = view.superblock.page_marks();
    let mut highest = 1;
    let mut page = 0;
    while page < geometry.meta_pages() {
        let total = geometry.meta_pages();
        watch(Progress { step: "looking for pages", done: page, total });
        let count = RUN_PAGES.min(total - page);
        let at = geometry.meta_offset_bytes() + page * PAGE_PAIR_BYTES;
        // What cannot be read names no checkpoint.
        if let Ok(bytes) = read_vec(disk, at, (count * PAGE_PAIR_BYTES) as usize).await {
            let names = bytes.chunks_exact(PAGE_BYTES).filter_map(|image| marks.identify(image));
            let numbers = names.map(|(_name, number)| number);
            // A page may bear any number; those that no volume counts to are damage.
            let possible = numbers.filter(|number| *number < COUNT_LIMIT - 1);
            highest = possible.max().unwrap_or(1).max(highest);
        }
        page += count;
    }
    highest
}
