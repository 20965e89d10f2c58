//! Shows what is on a volume, piece by piece: superblock, checkpoint, segments, map, records.
//!
//! Used by `udm compress dump`, for people who look for a fault and for programs that read volumes
//! without knowing the format. Everything comes as [`Item`]s, one after the other, so that a map of
//! any size fits; runs of blocks that go on where the last one ended are one item.
//!
//! Rules. Reads only; damage is an item like any other, and does not end the dump.
//!
//! The tricky case is what counts as a run: blocks of one extent belong together, fills of one
//! pattern run over any length, holes are left out, and poisoned blocks stay visible.

use super::log;
use super::view::{OpenFault, View, open};
use super::{Progress, ToolError, Watch};
use crate::compress::format::entry::{PlacedEntry, entries};
use crate::compress::format::geometry::MAP_ENTRIES;
use crate::compress::format::map::map_entry;
use crate::compress::format::{Checkpoint, MapEntry, RecordFlags, SegmentEntry, Superblock};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use udm_meta::Disk;
use udm_meta::record::{LogPlace, Record, RecordHead};

/// What to show, beside superblock and checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DumpRequest {
    /// The segment table.
    pub segments: bool,
    /// The map.
    pub map: bool,
    /// The log behind the checkpoint.
    pub log: bool,
    /// All records of a segment, whether they count or not.
    pub segment: Option<u32>,
}

/// Something on the volume.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// The superblock.
    Superblock(Superblock),
    /// The newest checkpoint.
    Checkpoint(Checkpoint),
    /// A segment that is not free, or whose entry is damaged.
    Segment(u32, Option<SegmentEntry>),
    /// A run of blocks with the same kind of entry: first block, blocks, the first one's entry.
    Map(u64, u64, MapEntry),
    /// A record, with its length and its entries.
    Record(LogPlace, RecordHead, u32, Vec<PlacedEntry>),
    /// Something that is damaged.
    Damage(String),
}

/// Shows the volume on `disk`.
///
/// # Errors
/// If there is none that can be looked at.
pub async fn dump(
    disk: &Disk,
    request: &DumpRequest,
    show: &mut dyn FnMut(Item),
    watch: Watch<'_>,
) -> Result<(), ToolError> {
    let view =
        open(disk).await.map_err(|fault: OpenFault| ToolError::Unusable(fault.to_string()))?;
    if request.segment.is_some_and(|segment| segment >= view.checkpoint.head.segments) {
        return Err(ToolError::Unusable("there is no such segment".into()));
    }
    show(Item::Superblock(view.superblock));
    show(Item::Checkpoint(view.checkpoint.clone()));
    if request.segments {
        segments(disk, &view, show).await;
    }
    if request.map {
        map(disk, &view, show, watch).await;
    }
    if request.log {
        let mut visit =
            |place: LogPlace, record: &Record<'_>| show(record_item(&view, place, record));
        let end = log::walk(disk, &view, &mut visit).await;
        for (place, stop) in end.stops.iter().filter(|_stop| end.is_damaged) {
            let LogPlace { segment, offset_bytes } = place;
            let text =
                alloc::format!("the log ends in segment {segment} at {offset_bytes}: {stop}");
            show(Item::Damage(text));
        }
    }
    if let Some(segment) = request.segment {
        let rules = view.superblock.record_rules();
        let from = LogPlace { segment, offset_bytes: 0 };
        let mut visit =
            |place: LogPlace, record: &Record<'_>| show(record_item(&view, place, record));
        if let Err(status) = log::scan(disk, &view, &rules, from, &mut visit).await {
            let text = alloc::format!("a part of the segment: {}", status.describe());
            show(Item::Damage(text));
        }
    }
    Ok(())
}

fn record_item(view: &View, place: LogPlace, record: &Record<'_>) -> Item {
    let is_summary = record.head.flags & RecordFlags::SUMMARY.bits() != 0;
    let all: Vec<PlacedEntry> = match is_summary {
        true => Vec::new(),
        false => entries(&view.superblock.record_rules(), record).flatten().collect(),
    };
    Item::Record(place, record.head, record.total_bytes, all)
}

async fn segments(disk: &Disk, view: &View, show: &mut dyn FnMut(Item)) {
    let mut faults = Vec::new();
    let table = view.segment_table(disk, &mut |page, fault| faults.push((page, fault))).await;
    for (page, fault) in faults {
        show(Item::Damage(alloc::format!("segment page {page} {fault}")));
    }
    for (segment, entry) in (0..).zip(table) {
        if entry != Some(SegmentEntry::default()) {
            show(Item::Segment(segment, entry));
        }
    }
}

async fn map(disk: &Disk, view: &View, show: &mut dyn FnMut(Item), watch: Watch<'_>) {
    let geometry = &view.superblock.geometry;
    let logical_blocks = view.checkpoint.head.logical_blocks;
    let (first, end) = (geometry.segment_pages, view.checkpoint.slots.page_count());
    let mut run: Option<(u64, u64, MapEntry)> = None;
    let mut visit = |page: u64, body: Result<&[u8], udm_meta::page::PageFault>| {
        watch(Progress { step: "reading the map", done: page - first, total: end - first });
        let body = match body {
            Ok(body) => body,
            Err(fault) => return show(Item::Damage(alloc::format!("map page {page} {fault}"))),
        };
        let first_block = geometry.first_block_of(page).unwrap_or(0);
        for index in 0..MAP_ENTRIES as usize {
            let block = first_block + index as u64;
            if block >= logical_blocks {
                break;
            }
            let entry = match map_entry(body, index) {
                Ok(MapEntry::Hole) => continue,
                Ok(entry) => entry,
                Err(word) => {
                    show(Item::Damage(alloc::format!("block {block} has the word {word:#018x}")));
                    continue;
                }
            };
            match &mut run {
                Some((from, count, head)) if goes_on(*from, *count, head, block, &entry) => {
                    *count += 1;
                }
                _ => {
                    if let Some((from, count, head)) = run.replace((block, 1, entry)) {
                        show(Item::Map(from, count, head));
                    }
                }
            }
        }
    };
    view.visit_pages(disk, first, end, &mut visit).await;
    if let Some((from, count, head)) = run {
        show(Item::Map(from, count, head));
    }
}

/// Whether a block belongs to the run before it.
fn goes_on(from: u64, count: u64, head: &MapEntry, block: u64, entry: &MapEntry) -> bool {
    if from + count != block {
        return false;
    }
    match (head, entry) {
        (MapEntry::Extent(head), MapEntry::Extent(entry)) => {
            let same_extent =
                (head.address, head.units, head.tag) == (entry.address, entry.units, entry.tag);
            same_extent && u64::from(entry.index) == u64::from(head.index) + count
        }
        (MapEntry::Extent(_), _) => false,
        (MapEntry::Hole | MapEntry::Fill(_) | MapEntry::Poisoned, entry) => head == entry,
    }
}

#[cfg(test)]
mod tests {
    use super::{DumpRequest, Item, dump};
    use crate::compress::format::MapEntry;
    use crate::compress::tools::ToolError;
    use crate::compress::tools::sample::Sample;
    use alloc::vec::Vec;

    fn items(sample: &mut Sample, request: DumpRequest) -> Result<Vec<Item>, ToolError> {
        let mut items = Vec::new();
        let taken = &mut items;
        let outcome = sample.host.run(|disk| async move {
            dump(&disk, &request, &mut |item| taken.push(item), &mut |_progress| ()).await
        });
        outcome.map(|()| items)
    }

    #[test]
    fn a_dump_shows_all_there_is() {
        let mut sample = Sample::filled();
        let all = DumpRequest { segments: true, map: true, log: true, segment: Some(0) };
        let items = items(&mut sample, all).expect("shown");
        let runs: Vec<_> = items
            .iter()
            .filter_map(|item| match item {
                Item::Map(from, count, entry) => Some((*from, *count, *entry)),
                _ => None,
            })
            .collect();
        let places: Vec<_> = runs.iter().map(|run| (run.0, run.1)).collect();
        assert_eq!(places, [(0, 1), (1, 1), (9, 3), (503, 2), (599, 1)]);
        assert_eq!(runs[2].2, MapEntry::Fill(7));
        let records = items.iter().filter(|item| matches!(item, Item::Record(..))).count();
        // Two in the log, one in segment 0.
        assert_eq!(records, 3);
        // Two are live; a free one that was discarded is not worth a line.
        let live = items.iter().filter(|item| matches!(item, Item::Segment(0 | 1, Some(_))));
        assert_eq!(live.count(), 2);
        assert!(!items.iter().any(|item| matches!(item, Item::Damage(_))));
    }

    #[test]
    fn damage_is_shown_and_ends_nothing() {
        let mut sample = Sample::filled();
        let pages = sample.superblock.geometry.segment_pages;
        for page in [0, pages] {
            let at = sample.page_at(page);
            sample.host.bytes[at + 99] ^= 1;
        }
        let request = DumpRequest { segments: true, map: true, ..DumpRequest::default() };
        let shown = items(&mut sample, request).expect("shown");
        let damage = shown.iter().filter(|item| matches!(item, Item::Damage(_))).count();
        assert_eq!(damage, 2);
        assert!(matches!(shown.last(), Some(Item::Map(599, 1, _))));
        let none = DumpRequest { segment: Some(12), ..DumpRequest::default() };
        assert!(matches!(items(&mut sample, none), Err(ToolError::Unusable(_))));
    }
}
