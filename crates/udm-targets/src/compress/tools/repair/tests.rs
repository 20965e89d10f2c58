//! Tests of the repair: what is mended is sound, what is lost is told, and nothing is made up.

use super::{RepairReport, RepairRequest, ToolError, repair};
use crate::compress::format::map::MapEntry;
use crate::compress::format::{Checkpoint, Entry};
use crate::compress::tools::check::{CheckReport, CheckRequest, Severity, check};
use crate::compress::tools::sample::{BLOCKS, Sample, raw};
use crate::compress::tools::view::open;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;
use udm_meta::host::MemoryHost;

const WRITE: RepairRequest = RepairRequest {
    check: CheckRequest { reads_extents: true, memory_bytes: 1 << 20, finding_limit: 1000 },
    may_write: true,
    may_truncate: false,
    rebuild: false,
    logical_blocks: None,
};

fn run(host: &mut MemoryHost, request: RepairRequest) -> Result<RepairReport, ToolError> {
    host.run(|disk| async move { repair(&disk, &request, &mut |_progress| ()).await })
}

fn checked(host: &mut MemoryHost) -> CheckReport {
    let request = CheckRequest::default();
    host.run(|disk| async move { check(&disk, &request, &mut |_progress| ()).await })
}

/// The map of the checkpoint on the disk, holes left out.
fn map_of(host: &mut MemoryHost) -> (Checkpoint, BTreeMap<u64, MapEntry>) {
    host.run(|disk| async move {
        let view = open(&disk).await.expect("a volume");
        let geometry = view.superblock.geometry;
        let mut map = BTreeMap::new();
        for block in 0..view.checkpoint.head.logical_blocks {
            let (page, index) = geometry.map_page_of(block);
            let image = view.page(&disk, page).await.expect("whole");
            let entry = crate::compress::format::map::map_entry(&image[64..], index);
            let entry = entry.expect("an entry");
            if entry != MapEntry::Hole {
                map.insert(block, entry);
            }
        }
        (view.checkpoint, map)
    })
}

fn without_holes(map: &BTreeMap<u64, MapEntry>) -> BTreeMap<u64, MapEntry> {
    map.iter().filter(|(_, entry)| **entry != MapEntry::Hole).map(|(b, e)| (*b, *e)).collect()
}

/// A sample, checkpointed once more so that its whole map is on the disk.
fn settled() -> Sample {
    let mut sample = Sample::filled();
    sample.checkpoint();
    sample
}

#[test]
fn a_sound_volume_is_left_alone() {
    let mut sample = Sample::filled();
    let before = sample.host.bytes.clone();
    let report = run(&mut sample.host, WRITE).expect("looked at");
    assert!(!report.wrote && sample.host.bytes == before);
}

#[test]
fn without_leave_nothing_is_written() {
    let mut sample = Sample::filled();
    sample.host.bytes[100] ^= 1;
    let before = sample.host.bytes.clone();
    let look = RepairRequest { may_write: false, ..WRITE };
    let report = run(&mut sample.host, look).expect("looked at");
    assert_eq!((report.wrote, report.found.worst), (false, Some(Severity::Weak)));
    assert!(sample.host.bytes == before);
}

#[test]
fn copies_and_the_segment_table_are_made_anew() {
    let mut sample = Sample::filled();
    let (_, map) = map_of(&mut sample.host);
    sample.host.bytes[100] ^= 1;
    let at = sample.page_at(0);
    sample.host.bytes[at + 100] ^= 1;
    let report = run(&mut sample.host, WRITE).expect("mended");
    assert_eq!((report.wrote, report.poisoned_blocks, report.rebuilt_pages), (true, 0, 0));
    assert_eq!(checked(&mut sample.host).findings, []);
    assert_eq!(map_of(&mut sample.host).1, map);
}

#[test]
fn a_damaged_extent_costs_its_blocks_and_says_so() {
    let mut sample = settled();
    // The extent of blocks 503 and 504, of which 504 is live, and of block 599.
    for block in [504, 599] {
        let Some(MapEntry::Extent(extent)) = sample.map.get(&block).copied() else { panic!() };
        let geometry = sample.superblock.geometry;
        let at = geometry.offset_of(geometry.place_of(extent.address)) as usize;
        sample.host.bytes[at + 20] ^= 1;
    }
    let report = run(&mut sample.host, WRITE).expect("mended");
    assert_eq!((report.poisoned, report.poisoned_blocks), (Vec::from([504..505, 599..600]), 2));
    let after = checked(&mut sample.host);
    assert_eq!((after.worst, after.counts.poisoned_blocks), (Some(Severity::Normal), 2));
    let mut wanted = without_holes(&sample.map);
    wanted.insert(504, MapEntry::Poisoned);
    wanted.insert(599, MapEntry::Poisoned);
    assert_eq!(map_of(&mut sample.host).1, wanted);
}

#[test]
fn a_damaged_map_page_is_made_anew_from_the_records() {
    for page in 0..2 {
        let mut sample = settled();
        let at = sample.page_at(sample.superblock.geometry.segment_pages + page);
        sample.host.bytes[at + 1000] ^= 1;
        let report = run(&mut sample.host, WRITE).expect("mended");
        assert_eq!((report.rebuilt_pages, report.poisoned_blocks), (1, 0));
        assert!(report.may_resurrect);
        assert_eq!(checked(&mut sample.host).findings, []);
        assert_eq!(map_of(&mut sample.host).1, without_holes(&sample.map), "page {page}");
    }
}

#[test]
fn the_whole_map_can_be_made_anew() {
    let mut sample = settled();
    let report = run(&mut sample.host, RepairRequest { rebuild: true, ..WRITE });
    assert_eq!(report.expect("mended").rebuilt_pages, 2);
    assert_eq!(checked(&mut sample.host).findings, []);
    assert_eq!(map_of(&mut sample.host).1, without_holes(&sample.map));
}

#[test]
fn a_rebuild_leaves_the_log_to_recovery() {
    let mut sample = Sample::filled();
    let (before, map) = map_of(&mut sample.host);
    run(&mut sample.host, RepairRequest { rebuild: true, ..WRITE }).expect("mended");
    let (after, rebuilt) = map_of(&mut sample.host);
    assert_eq!((rebuilt, after.head.start), (map, before.head.start));
    assert_eq!((after.head.epoch, after.head.fence.epoch), (2, 2));
    assert_eq!(after.head.fence.sequence, sample.chain.next_sequence - 1);
    assert_eq!(checked(&mut sample.host).counts.log_records, 2);
}

#[test]
fn without_any_checkpoint_everything_comes_from_the_records() {
    let mut sample = Sample::filled();
    for number in 0..2 {
        let at = sample.superblock.checkpoint_slots().offset_of(number) as usize;
        sample.host.bytes[at..at + 4096].fill(0);
    }
    assert!(matches!(run(&mut sample.host, WRITE), Err(ToolError::NeedsRebuild(_))));
    let request = RepairRequest { rebuild: true, logical_blocks: Some(BLOCKS), ..WRITE };
    let report = run(&mut sample.host, request).expect("mended");
    assert!(report.wrote && report.poisoned_blocks == 0);
    assert_eq!(checked(&mut sample.host).worst, Some(Severity::Normal), "an empty slot");
    let (checkpoint, map) = map_of(&mut sample.host);
    assert_eq!(map, without_holes(&sample.map));
    assert_eq!(checkpoint.head.next_sequence, sample.chain.next_sequence);
    assert_eq!(checkpoint.head.start, sample.chain.place);
}

#[test]
fn a_log_with_durable_records_missing_is_cut_only_with_leave() {
    let mut sample = Sample::filled();
    let place = sample.append(&[raw(20, 1)], 0);
    let at = sample.superblock.geometry.offset_of(place) as usize;
    sample.durable_sequence = sample.chain.next_sequence - 1;
    sample.append(&[raw(21, 1)], 0);
    sample.host.bytes[at + 200] ^= 1;
    let missing = sample.durable_sequence;
    let refused = run(&mut sample.host, WRITE).expect_err("refused");
    assert_eq!(refused, ToolError::NeedsTruncate { sequence: missing });
    let report = run(&mut sample.host, RepairRequest { may_truncate: true, ..WRITE });
    assert_eq!(report.expect("mended").truncated_before, Some(missing));
    let after = checked(&mut sample.host);
    assert_ne!(after.worst, Some(Severity::Damage), "{:?}", after.findings);
}

#[test]
fn older_data_never_stands_in_for_lost_data() {
    let mut sample = Sample::new();
    sample.append(&[raw(5, 1)], 0);
    let place = sample.append(&[raw(5, 1)], 0);
    sample.checkpoint();
    let at = sample.superblock.geometry.offset_of(place) as usize;
    sample.host.bytes[at + 1000] ^= 1;
    let report = run(&mut sample.host, RepairRequest { rebuild: true, ..WRITE }).expect("mended");
    assert_eq!(report.poisoned, alloc::vec![Range { start: 5, end: 6 }]);
    assert_eq!(map_of(&mut sample.host).1, BTreeMap::from([(5, MapEntry::Poisoned)]));
}

#[test]
fn a_tail_that_was_given_up_stays_dead() {
    let mut sample = Sample::new();
    sample.append(&[raw(5, 1)], 0);
    let fork = (sample.chain, sample.map.clone());
    sample.append(&[Entry::Fill { first_block: 1, blocks: 1, pattern: 1 }], 0);
    sample.append(&[raw(5, 1)], 0);
    // A recovery ended before those two, and another life wrote one record over the first.
    (sample.chain, sample.map) = fork;
    sample.checkpoint.head.epoch = 2;
    sample.append(&[Entry::Fill { first_block: 2, blocks: 1, pattern: 2 }], 0);
    sample.checkpoint();
    run(&mut sample.host, RepairRequest { rebuild: true, ..WRITE }).expect("mended");
    assert_eq!(map_of(&mut sample.host).1, without_holes(&sample.map));
}

#[test]
fn a_repair_that_dies_changes_nothing_that_counts() {
    let broken = || {
        let mut sample = settled();
        let at = sample.page_at(sample.superblock.geometry.segment_pages);
        sample.host.bytes[at + 1000] ^= 1;
        let at = sample.page_at(0);
        sample.host.bytes[at + 100] ^= 1;
        sample
    };
    let mut whole = broken();
    run(&mut whole.host, WRITE).expect("mended");
    let (_, wanted) = map_of(&mut whole.host);
    for writes in 0..whole.host.writes {
        let mut sample = broken();
        sample.host.write_limit = Some(writes);
        let _died = run(&mut sample.host, WRITE);
        sample.host.write_limit = None;
        run(&mut sample.host, WRITE).expect("mended");
        assert_eq!(checked(&mut sample.host).findings, [], "after {writes} writes");
        assert_eq!(map_of(&mut sample.host).1, wanted, "after {writes} writes");
    }
}
