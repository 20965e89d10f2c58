//! Tests of the check: every rule that can be broken is broken once, and found.

use super::{CheckReport, CheckRequest, Code, Severity, check};
use crate::compress::format::map::{MapEntry, map_entry, set_map_entry};
use crate::compress::format::{CheckpointFlags, Codec, Entry};
use crate::compress::tools::sample::{Sample, raw};
use alloc::vec::Vec;
use udm_meta::host::MemoryHost;

fn run(host: &mut MemoryHost) -> CheckReport {
    let request = CheckRequest { memory_bytes: 64, ..CheckRequest::default() };
    host.run(|disk| async move { check(&disk, &request, &mut |_progress| ()).await })
}

/// Codes of what is damaged.
fn damage(sample: &mut Sample) -> Vec<Code> {
    let report = run(&mut sample.host);
    let all = report.findings.iter().filter(|finding| finding.severity == Severity::Damage);
    let mut codes: Vec<_> = all.map(|finding| finding.code).collect();
    codes.sort();
    codes.dedup();
    codes
}

#[test]
fn a_sound_volume_has_no_findings() {
    let report = run(&mut Sample::new().host);
    assert_eq!((report.findings.as_slice(), report.worst), (&[][..], None));
    let mut sample = Sample::filled();
    let report = run(&mut sample.host);
    assert_eq!(report.findings, []);
    let counts = report.counts;
    assert_eq!((counts.checkpoint, counts.extent_blocks, counts.extents), (2, 5, 4));
    assert_eq!((counts.fill_blocks, counts.log_records, counts.live_segments), (3, 2, 2));
    let quick = CheckRequest { reads_extents: false, ..CheckRequest::default() };
    let report =
        sample.host.run(|disk| async move { check(&disk, &quick, &mut |_progress| ()).await });
    assert_eq!((report.findings.as_slice(), report.counts.extents), (&[][..], 0));
    assert_eq!(sample.host.writes, 8, "the check wrote something");
}

#[test]
fn a_lost_copy_is_weak_and_a_torn_checkpoint_is_normal() {
    let mut sample = Sample::filled();
    sample.host.bytes[100] ^= 1;
    let report = run(&mut sample.host);
    assert_eq!((report.worst, report.findings.len()), (Some(Severity::Weak), 1));
    assert_eq!(report.findings[0].code, Code::SuperblockCopy);
    let mut sample = Sample::filled();
    let at = sample.superblock.checkpoint_slots().offset_of(1) as usize;
    sample.host.bytes[at + 100] ^= 1;
    let report = run(&mut sample.host);
    assert_eq!((report.worst, report.findings.len()), (Some(Severity::Normal), 1));
    assert!(report.is_sound());
}

#[test]
fn a_device_without_a_volume_is_told() {
    let report = run(&mut MemoryHost::new(65536));
    assert_eq!(report.worst, Some(Severity::Damage));
    assert_eq!(report.findings[0].code, Code::Superblock);
    let mut sample = Sample::filled();
    sample.host.bytes.truncate(128 << 10);
    assert_eq!(damage(&mut sample), [Code::DeviceSize]);
    let mut sample = Sample::filled();
    for number in 0..2 {
        let at = sample.superblock.checkpoint_slots().offset_of(number) as usize;
        sample.host.bytes[at + 8] ^= 0x10;
    }
    assert_eq!(damage(&mut sample), [Code::Checkpoint]);
    let mut sample = Sample::filled();
    sample.checkpoint.head.next_segment = 4000;
    sample.write_checkpoint();
    assert_eq!(damage(&mut sample), [Code::Checkpoint]);
}

#[test]
fn flags_for_a_check_are_told() {
    let mut sample = Sample::filled();
    sample.checkpoint.head.flags = CheckpointFlags::NEEDS_CHECK | CheckpointFlags::READ_ONLY;
    sample.write_checkpoint();
    let report = run(&mut sample.host);
    assert_eq!((report.worst, report.findings.len()), (Some(Severity::Weak), 2));
}

#[test]
fn damaged_pages_are_found() {
    let mut sample = Sample::filled();
    let at = sample.page_at(0);
    sample.host.bytes[at + 70] ^= 1;
    assert_eq!(damage(&mut sample), [Code::SegmentPage]);
    let mut sample = Sample::filled();
    let page = sample.superblock.geometry.segment_pages + 1;
    let at = sample.page_at(page);
    sample.host.unreadable.push((at as u64 + 512, 512));
    assert_eq!(damage(&mut sample), [Code::LiveCount, Code::MapPage]);
}

#[test]
fn wrong_counts_and_states_are_found() {
    let mut sample = Sample::filled();
    sample.change_page(0, |body| body[0] ^= 1);
    assert_eq!(damage(&mut sample), [Code::LiveCount]);
    let mut sample = Sample::filled();
    // Segment 0 is live and said to be free.
    sample.change_page(0, |body| body[12] = 1);
    assert_eq!(damage(&mut sample), [Code::SegmentEntry]);
    let mut sample = Sample::filled();
    sample.change_page(0, |body| body[5 * 16 + 12] = 4);
    assert_eq!(damage(&mut sample), [Code::SegmentEntry]);
    let mut sample = Sample::filled();
    sample.change_page(0, |body| body[5 * 16 + 12] = 9);
    assert_eq!(damage(&mut sample), [Code::SegmentEntry]);
    let mut sample = Sample::filled();
    sample.checkpoint.head.live_blocks += 1;
    sample.write_checkpoint();
    assert_eq!(run(&mut sample.host).findings[0].code, Code::LiveSum);
}

/// Changes the map entry of block 0, in segment 0, and tells what is found then.
fn with_entry(change: impl FnOnce(MapEntry) -> u64) -> Vec<Code> {
    let mut sample = Sample::filled();
    let page = sample.superblock.geometry.segment_pages;
    sample.change_page(page, |body| {
        let word = change(map_entry(body, 0).expect("an entry"));
        body[..8].copy_from_slice(&word.to_le_bytes());
    });
    damage(&mut sample)
}

fn extent_word(change: impl FnOnce(&mut crate::compress::format::map::MapExtent)) -> Vec<Code> {
    with_entry(|entry| {
        let MapEntry::Extent(mut extent) = entry else { panic!("block 0 is in an extent") };
        change(&mut extent);
        MapEntry::Extent(extent).to_word()
    })
}

#[test]
fn wrong_map_entries_are_found() {
    assert_eq!(with_entry(|_| 1), [Code::LiveCount, Code::MapEntry]);
    assert_eq!(with_entry(|_| 0), [Code::LiveCount]);
    let both = [Code::LiveCount, Code::MapEntry];
    assert_eq!(extent_word(|extent| extent.address = (1 << 40) - 1), both);
    assert_eq!(extent_word(|extent| extent.index = 5), [Code::MapEntry]);
    assert_eq!(extent_word(|extent| extent.units = 1024), [Code::MapEntry]);
    assert_eq!(extent_word(|extent| extent.address = 255), [Code::MapEntry]);
    // Segment 2 is the next one, and the log stands in segment 1.
    let overwritten = [Code::LiveCount, Code::MapEntry, Code::Log];
    assert_eq!(extent_word(|extent| extent.address = 2 * 256), overwritten);
    assert_eq!(extent_word(|extent| extent.address = 256 + 180), both);
    assert_eq!(extent_word(|extent| extent.tag ^= 1), [Code::Extent]);
    assert_eq!(extent_word(|extent| extent.index ^= 1), [Code::Extent]);
    assert_eq!(extent_word(|extent| extent.units -= 1), [Code::Extent]);
    assert_eq!(extent_word(|extent| extent.address += 1), [Code::Extent]);
}

#[test]
fn entries_beyond_the_end_are_found() {
    let mut sample = Sample::filled();
    let page = sample.superblock.geometry.segment_pages + 1;
    sample.change_page(page, |body| set_map_entry(body, 503, MapEntry::Poisoned));
    assert_eq!(damage(&mut sample), [Code::MapEntry]);
}

#[test]
fn lost_blocks_are_told_and_no_damage() {
    let mut sample = Sample::filled();
    let page = sample.superblock.geometry.segment_pages + 1;
    sample.change_page(page, |body| set_map_entry(body, 3, MapEntry::Poisoned));
    let report = run(&mut sample.host);
    assert_eq!((report.worst, report.counts.poisoned_blocks), (Some(Severity::Normal), 1));
}

#[test]
fn damaged_extents_are_found_one_by_one() {
    let mut sample = Sample::filled();
    // In the first extent's payload, which block 0 still uses.
    let at = sample.superblock.geometry.data_offset_bytes as usize + 300;
    sample.host.bytes[at] ^= 1;
    let report = run(&mut sample.host);
    let texts: Vec<_> = report.findings.iter().map(|finding| finding.text.as_str()).collect();
    let wanted = "the extent of blocks 0 to 0, in segment 0 at byte 128, has a wrong checksum";
    assert_eq!(texts, [wanted]);
    sample.host.bytes[at] ^= 1;
    sample.host.unreadable.push((at as u64 / 512 * 512, 512));
    assert_eq!(damage(&mut sample), [Code::Extent]);
}

#[test]
fn extents_that_share_bytes_are_found() {
    let mut sample = Sample::new();
    sample.append(
        &[Entry::Extent { first_block: 3, blocks: 2, codec: Codec::Lz4, payload_bytes: 900 }],
        0,
    );
    sample.append(&[raw(9, 1)], 0);
    let Some(MapEntry::Extent(mut extent)) = sample.map.get(&9).copied() else { panic!("raw") };
    extent.address -= 8;
    sample.map.insert(8, MapEntry::Extent(extent));
    sample.checkpoint();
    assert_eq!(damage(&mut sample), [Code::Extent, Code::Overlap]);
}

#[test]
fn a_torn_tail_is_normal_and_a_durable_one_is_damage() {
    let mut sample = Sample::filled();
    let place = sample.append(&[raw(20, 1)], 0);
    let at = sample.superblock.geometry.offset_of(place) as usize;
    sample.host.bytes[at + 4000] ^= 1;
    let report = run(&mut sample.host);
    assert_eq!((report.worst, report.counts.log_records), (Some(Severity::Normal), 2));
    // A later record says that the torn one was durable.
    sample.durable_sequence = sample.chain.next_sequence - 1;
    sample.append(&[raw(21, 1)], 0);
    assert_eq!(damage(&mut sample), [Code::Log]);
}

#[test]
fn an_unfinished_group_does_not_count() {
    let mut sample = Sample::filled();
    sample.append(&[raw(20, 1)], 4);
    sample.append(&[raw(21, 1)], 4);
    let report = run(&mut sample.host);
    assert_eq!((report.worst, report.counts.log_records), (Some(Severity::Normal), 2));
    sample.append(&[raw(22, 1)], 0);
    let report = run(&mut sample.host);
    assert_eq!((report.worst, report.counts.log_records), (None, 5));
}

#[test]
fn records_in_impossible_places_are_found() {
    let mut sample = Sample::filled();
    sample.append(&[Entry::Unmap { first_block: 599, blocks: 2 }], 0);
    assert_eq!(damage(&mut sample), [Code::Log]);
    let mut sample = Sample::filled();
    // The log goes on in segment 0, which the checkpoint's map still needs.
    sample.chain = sample.checkpoint.head.chain();
    sample.chain.next_segment = 0;
    sample.chain.place.offset_bytes = 16384;
    sample.checkpoint.head.start = sample.chain.place;
    sample.checkpoint.head.next_segment = 0;
    sample.write_checkpoint();
    sample.append(&[raw(20, 1)], 0);
    assert_eq!(damage(&mut sample), [Code::MapEntry, Code::Log]);
}

#[test]
fn findings_are_bounded() {
    let mut sample = Sample::filled();
    let page = sample.superblock.geometry.segment_pages;
    sample.change_page(page, |body| body.fill(1));
    let request = CheckRequest { finding_limit: 10, ..CheckRequest::default() };
    let report =
        sample.host.run(|disk| async move { check(&disk, &request, &mut |_progress| ()).await });
    assert_eq!((report.findings.len(), report.worst), (10, Some(Severity::Damage)));
    assert!(report.hidden >= 494);
}
