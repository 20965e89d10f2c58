//! Map pages from the tables of the records that are still there.
//!
//! Records are never overwritten before the checkpoint after everything in them died, so the record
//! that last wrote a live block is still in its segment. Segments are read one after the other; of
//! all records that name a block the one with the highest sequence wins, whatever it says.
//!
//! Rules. Records at or behind the place where the log goes on are not looked at: recovery replays
//! them. Pages are made in windows that fit the memory, with one pass over the segments for each.
//!
//! The tricky case are whole records that do not count: tails that an earlier recovery gave up. In
//! one segment they lie behind what was written over them, with a lower sequence or epoch than
//! that; across segments, a record is dead if one of a later epoch has its sequence or a lower one.

use super::write::Work;
use crate::compress::format::entry::{PlacedEntry, entries, verify};
use crate::compress::format::geometry::MAP_ENTRIES;
use crate::compress::format::map::MapExtent;
use crate::compress::format::{
    Entry, MapEntry, RecordFlags, SegmentEntry, SegmentState, Superblock,
};
use crate::compress::tools::view::View;
use crate::compress::tools::{Progress, ToolError, Watch, log};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use udm_meta::Disk;
use udm_meta::page::{PAGE_BYTES, PAGE_HEAD_BYTES};
use udm_meta::record::{LogPlace, Record};

/// Pages made at a time: 64 MiB of candidates.
const WINDOW_PAGES: usize = 8192;

/// What is known of a block: who said it, and what.
type Candidate = (u64, MapEntry);

/// Makes `pages`, in order, anew and writes them to their free slots.
pub(super) async fn rebuild(
    disk: &Disk,
    work: &mut Work,
    table: &[Option<SegmentEntry>],
    pages: &[u64],
    watch: Watch<'_>,
) -> Result<(), ToolError> {
    let segments = segments_of(&work.view, table);
    let limit = work.view.checkpoint.head.next_sequence;
    let first_of_epoch = first_sequences(disk, &work.view, &segments, watch).await;
    for window in pages.chunks(WINDOW_PAGES) {
        let mut found: BTreeMap<u64, Vec<Candidate>> = window
            .iter()
            .map(|page| (*page, alloc::vec![(0, MapEntry::Hole); MAP_ENTRIES as usize]))
            .collect();
        let superblock = work.view.superblock;
        let mut visit = |place: LogPlace, record: &Record<'_>| {
            let (sequence, epoch) = (record.head.sequence, record.head.epoch);
            let is_dead = first_of_epoch
                .range(epoch.saturating_add(1)..)
                .any(|(_later, first)| *first <= sequence);
            if sequence < limit && !is_dead {
                collect(&superblock, place, record, &mut found);
            }
        };
        each_record(disk, &work.view, &segments, watch, &mut visit).await;
        for (page, candidates) in found {
            write(disk, work, page, &candidates).await?;
        }
    }
    Ok(())
}

async fn write(
    disk: &Disk,
    work: &mut Work,
    page: u64,
    candidates: &[Candidate],
) -> Result<(), ToolError> {
    let geometry = work.view.superblock.geometry;
    let logical_blocks = work.view.checkpoint.head.logical_blocks;
    let first_block = geometry.first_block_of(page).unwrap_or(0);
    let mut image = alloc::vec![0; PAGE_BYTES];
    let mut is_empty = true;
    for (index, (_sequence, entry)) in candidates.iter().enumerate() {
        if first_block + (index as u64) < logical_blocks && *entry != MapEntry::Hole {
            is_empty = false;
            crate::compress::format::map::set_map_entry(
                &mut image[PAGE_HEAD_BYTES..],
                index,
                *entry,
            );
        }
    }
    if is_empty {
        work.forget_page(page);
        return Ok(());
    }
    work.write_page(disk, page, &mut image).await
}

/// Segments that may hold live records.
fn segments_of(view: &View, table: &[Option<SegmentEntry>]) -> Vec<u32> {
    let start = view.checkpoint.head.start.segment;
    (0_u32..)
        .zip(table)
        .filter(|(segment, entry)| {
            let state = entry.map(|entry| entry.state);
            let is_free = matches!(
                state,
                Some(SegmentState::Free | SegmentState::Discarded | SegmentState::Map)
            );
            *segment == start || !is_free
        })
        .map(|(segment, _entry)| segment)
        .collect()
}

/// The lowest sequence of each epoch.
pub(super) async fn first_sequences(
    disk: &Disk,
    view: &View,
    segments: &[u32],
    watch: Watch<'_>,
) -> BTreeMap<u32, u64> {
    let mut first = BTreeMap::new();
    let mut visit = |_place: LogPlace, record: &Record<'_>| {
        let lowest = first.entry(record.head.epoch).or_insert(u64::MAX);
        *lowest = record.head.sequence.min(*lowest);
    };
    each_record(disk, view, segments, watch, &mut visit).await;
    first
}

/// Shows the records of segments, without those that lie behind what was written over them.
pub(super) async fn each_record(
    disk: &Disk,
    view: &View,
    segments: &[u32],
    watch: Watch<'_>,
    visit: log::RecordVisit<'_>,
) {
    let rules = view.superblock.record_rules();
    for (done, segment) in (0..).zip(segments) {
        let total = segments.len() as u64;
        watch(Progress { step: "reading records", done, total });
        let mut last: Option<(u64, u32)> = None;
        let mut in_order = |place: LogPlace, record: &Record<'_>| {
            let this = (record.head.sequence, record.head.epoch);
            let is_behind =
                last.is_some_and(|(sequence, epoch)| this.0 <= sequence || this.1 < epoch);
            if !is_behind && verify(&rules, record, None).is_ok() {
                last = Some(this);
                visit(place, record);
            }
        };
        let from = LogPlace { segment: *segment, offset_bytes: 0 };
        // What cannot be read holds no records; what lived there is poisoned by nobody naming it.
        let _unreadable = log::scan(disk, view, &rules, from, &mut in_order).await;
    }
}

fn collect(
    superblock: &Superblock,
    place: LogPlace,
    record: &Record<'_>,
    found: &mut BTreeMap<u64, Vec<Candidate>>,
) {
    if record.head.flags & RecordFlags::SUMMARY.bits() != 0 {
        return;
    }
    for placed in entries(&superblock.record_rules(), record).flatten() {
        let (first, blocks) = (placed.entry.first_block(), u64::from(placed.entry.blocks()));
        let geometry = &superblock.geometry;
        let pages = geometry.map_page_of(first).0..=geometry.map_page_of(first + blocks - 1).0;
        for (page, candidates) in found.range_mut(pages) {
            let page_first = geometry.first_block_of(*page).unwrap_or(0);
            let from = first.max(page_first);
            let to = (first + blocks).min(page_first + MAP_ENTRIES);
            for block in from..to {
                let candidate = &mut candidates[(block - page_first) as usize];
                if record.head.sequence >= candidate.0 {
                    let entry = map_entry(superblock, place, record, &placed, block);
                    *candidate = (record.head.sequence, entry);
                }
            }
        }
    }
}

/// What an entry says about one of its blocks.
fn map_entry(
    superblock: &Superblock,
    place: LogPlace,
    record: &Record<'_>,
    placed: &PlacedEntry,
    block: u64,
) -> MapEntry {
    match placed.entry {
        Entry::Unmap { .. } => MapEntry::Hole,
        Entry::Fill { pattern, .. } => MapEntry::Fill(pattern),
        Entry::Extent { first_block, .. } => {
            let offset_bytes = place.offset_bytes + placed.offset_bytes;
            let at = LogPlace { segment: place.segment, offset_bytes };
            let units = placed.stored_bytes >> superblock.geometry.unit_shift;
            MapEntry::Extent(MapExtent {
                address: superblock.geometry.address_of(at),
                units: units as u16,
                index: (block - first_block) as u8,
                tag: record.head.sequence as u8,
            })
        }
    }
}
