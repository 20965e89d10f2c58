//! Entry points for fuzzers: volumes and ancestors' volumes with anything on them.
//!
//! Called by the libFuzzer target in `fuzz/` and by seeded tests, never in production. The input is
//! a list of changes to a small sound volume, so that few bytes reach deep places; if its first
//! byte says so, all checksums are made right again afterwards, so that the code behind them is
//! reached.
//!
//! Besides not panicking, there is a property for all input: a repair that says it mended a volume
//! left one that `check` finds nothing damaged in.

use super::format::Superblock;
use super::format::entry::{Entry, entries};
use super::tools::check::{CheckReport, CheckRequest, check};
use super::tools::dump::{DumpRequest, dump};
use super::tools::import::{Sink, import, layout};
use super::tools::repair::{RepairRequest, repair};
use super::tools::sample::Sample;
use super::tools::stat::stat;
use super::volume::{Options, Request, Volume};
use alloc::vec::Vec;
use udm_lane::{Buf, Payload};
use udm_meta::Disk;
use udm_meta::checkpoint::CHECKPOINT_HEAD_BYTES;
use udm_meta::host::{BlockHost, MemoryHost};
use udm_meta::page::PAGE_BYTES;
use udm_meta::record::{LogPlace, Record};
use udm_meta::{DiskOpKind, sum};
use udm_types::{BioFlags, Nanos, Op, Status};

/// A change: where (3 bytes), how many bytes (1), the bytes.
const CHANGE_HEAD_BYTES: usize = 4;
/// Turns of a volume on a broken disk: enough to open it and to do a few requests.
const TURNS: usize = 10_000;

/// A volume with changes.
///
/// # Panics
/// If a repair says that it mended the volume, and did not.
pub fn volume(bytes: &[u8]) {
    let Some((flags, changes)) = bytes.split_first() else { return };
    if flags & 2 != 0 {
        return ancestor(changes);
    }
    let sample = Sample::filled();
    let mut host = sample.host;
    change(&mut host.bytes, changes);
    if flags & 1 != 0 {
        seal_all(&sample.superblock, &mut host.bytes);
    }
    checked(&mut host);
    let mut shown = 0;
    let all = DumpRequest { segments: true, map: true, log: true, segment: Some(1) };
    let count = &mut shown;
    // What comes is one thing; that it comes to an end is what is tested.
    let _unusable = host.run(|disk| async move {
        dump(&disk, &all, &mut |_item| *count += 1, &mut |_progress| ()).await
    });
    let _unusable = host.run(|disk| async move { stat(&disk).await });
    for rebuild in [false, true] {
        let mut copy = MemoryHost::from_bytes(host.bytes.clone());
        let request = RepairRequest {
            may_write: true,
            may_truncate: true,
            rebuild,
            logical_blocks: rebuild.then_some(600),
            ..RepairRequest::default()
        };
        let outcome =
            copy.run(|disk| async move { repair(&disk, &request, &mut |_progress| ()).await });
        if outcome.is_ok_and(|report| report.wrote) {
            let after = checked(&mut copy);
            assert!(after.is_sound(), "mended: {:?}", after.findings);
        }
    }
    serve(host);
}

/// An ancestor's volume with changes.
fn ancestor(changes: &[u8]) {
    let mut host = MemoryHost::new(256 << 10);
    let words = [layout::MAGIC, 1, 1, 60];
    for (at, word) in (0..).step_by(8).zip(words) {
        host.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    change(&mut host.bytes, changes);
    let mut blocks = Blocks(0);
    let sink = &mut blocks;
    let outcome = host.run(|disk| async move { import(&disk, sink, &mut |_progress| ()).await });
    if let Ok(report) = outcome {
        assert_eq!(blocks.0, report.blocks, "blocks given and blocks counted");
    }
}

/// Counts blocks.
struct Blocks(u64);

impl Sink for Blocks {
    fn put(&mut self, _first_block: u64, bytes: &[u8]) -> Result<(), Status> {
        self.0 += bytes.len() as u64 / 4096;
        Ok(())
    }
}

fn checked(host: &mut MemoryHost) -> CheckReport {
    let request = CheckRequest { finding_limit: 20, ..CheckRequest::default() };
    host.run(|disk| async move { check(&disk, &request, &mut |_progress| ()).await })
}

fn change(image: &mut [u8], mut changes: &[u8]) {
    while let Some((head, rest)) = changes.split_at_checked(CHANGE_HEAD_BYTES) {
        let at = u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize % image.len();
        let len = usize::from(head[3]).min(rest.len()).min(image.len() - at);
        image[at..at + len].copy_from_slice(&rest[..len]);
        changes = &rest[len..];
    }
}

/// Makes the checksums of everything right that looks like something.
fn seal_all(superblock: &Superblock, image: &mut [u8]) {
    let geometry = &superblock.geometry;
    for at in geometry.superblock_offsets() {
        sum::seal(&mut image[at as usize..at as usize + 4096], 8, 0);
    }
    for number in 0..2 {
        let at = superblock.checkpoint_slots().offset_of(number) as usize;
        let slot = &mut image[at..at + geometry.checkpoint_len_bytes as usize];
        let used = u32::from_le_bytes([slot[4088], slot[4089], slot[4090], slot[4091]]) as usize;
        if (CHECKPOINT_HEAD_BYTES..=slot.len()).contains(&used) {
            sum::seal(&mut slot[..used], 4, superblock.salt);
        }
    }
    let (meta, data) = (geometry.meta_offset_bytes(), geometry.data_offset_bytes);
    for page in image[meta as usize..data as usize].chunks_exact_mut(PAGE_BYTES) {
        if page[..4] == superblock.page_marks().magic {
            sum::seal(page, 4, superblock.salt);
        }
    }
    for segment in 0..geometry.segment_limit() as u32 {
        let at = geometry.segment_offset_bytes(segment) as usize;
        let bytes = &mut image[at..at + geometry.segment_bytes() as usize];
        seal_records(superblock, segment, bytes);
    }
}

fn seal_records(superblock: &Superblock, segment: u32, bytes: &mut [u8]) {
    let rules = superblock.record_rules();
    let align = rules.align_bytes as usize;
    for at in (0..bytes.len()).step_by(align) {
        if bytes[at..at + 4] != rules.magic {
            continue;
        }
        let count = [bytes[at + 20], bytes[at + 21], bytes[at + 22], bytes[at + 23]];
        let table = 64_usize.saturating_add((u32::from_le_bytes(count) as usize).saturating_mul(8));
        let Some(end) = at.checked_add(table).filter(|end| *end <= bytes.len()) else { continue };
        sum::seal(&mut bytes[at..end], 4, rules.salt);
        let place = LogPlace { segment, offset_bytes: at as u32 };
        let Ok(record) = Record::parse(&rules, place, &bytes[at..]) else { continue };
        let extents: Vec<(usize, usize)> = entries(&rules, &record)
            .flatten()
            .filter_map(|placed| match placed.entry {
                Entry::Extent { payload_bytes, .. } => {
                    Some((at + placed.offset_bytes as usize, 16 + payload_bytes as usize))
                }
                Entry::Unmap { .. } | Entry::Fill { .. } => None,
            })
            .collect();
        for (at, len) in extents {
            if let Some(extent) = bytes.get_mut(at..at + len) {
                sum::seal(extent, 0, rules.salt);
            }
        }
    }
}

/// The volume itself on such a disk: opened, read, written, flushed.
fn serve(mut host: MemoryHost) {
    let disk = Disk::new(host.bytes.len() as u64);
    let mut volume = Volume::open(disk.clone(), Options::default(), Nanos(1));
    let submit = |volume: &mut Volume, ticket: u64, op: Op, block: u64, blocks: u64| {
        let (offset_bytes, len_bytes) = (block * 4096, blocks * 4096);
        let payload = match len_bytes {
            0 => Payload::empty(),
            _ => Payload::from_buf(Buf::alloc(len_bytes as usize)),
        };
        let flags = BioFlags::empty();
        volume.submit(Request { ticket, op, flags, offset_bytes, len_bytes, payload });
    };
    let blocks = [(Op::Read, 0, 12), (Op::Read, 500, 8), (Op::Write, 7, 3), (Op::Flush, 0, 0)];
    for (ticket, (op, block, count)) in (1..).zip(blocks) {
        submit(&mut volume, ticket, op, block, count);
        run(&mut volume, &disk, &mut host);
    }
    volume.checkpoint();
    run(&mut volume, &disk, &mut host);
}

fn run(volume: &mut Volume, disk: &Disk, host: &mut MemoryHost) {
    for turn in 0..TURNS {
        let mut goes_on = volume.turn(Nanos(turn as u64));
        while volume.next_done().is_some() || volume.next_event().is_some() {}
        while let Some(op) = disk.next_op() {
            goes_on = true;
            let end = op.offset_bytes.checked_add(op.len_bytes);
            let is_inside = end.is_some_and(|end| end <= host.bytes.len() as u64);
            let status = match op.kind {
                _outside if !is_inside => Status::Invalid,
                DiskOpKind::Read => host.read(op.offset_bytes, &op.payload),
                DiskOpKind::Write { .. } => host.write(op.offset_bytes, &op.payload),
                DiskOpKind::Flush => host.flush(),
                DiskOpKind::Discard => host.discard(op.offset_bytes, op.len_bytes),
            };
            disk.complete(op.token, status, op.payload);
        }
        if !goes_on {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::volume;
    use alloc::vec::Vec;

    /// What the fuzzer found once, and what it starts from.
    #[test]
    fn the_seeds_break_nothing() {
        for seed in [
            &include_bytes!("../../../../fuzz/seeds/compress_format/counters")[..],
            include_bytes!("../../../../fuzz/seeds/compress_format/beyond"),
            include_bytes!("../../../../fuzz/seeds/compress_format/checkpoint"),
            include_bytes!("../../../../fuzz/seeds/compress_format/superblock"),
            include_bytes!("../../../../fuzz/seeds/compress_format/ancestor"),
            include_bytes!("../../../../fuzz/seeds/compress_format/page_number"),
            include_bytes!("../../../../fuzz/seeds/compress_format/durable_claim"),
            include_bytes!("../../../../fuzz/seeds/compress_format/segment_counts"),
        ] {
            volume(seed);
        }
    }

    #[test]
    fn volumes_with_random_changes_break_nothing() {
        for seed in 0..150 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut input: Vec<u8> = alloc::vec![rng.u8(..)];
            for _ in 0..rng.usize(1..12) {
                // Most of what matters lies in the first quarter.
                let limit = if rng.bool() { 64 << 10 } else { 256 << 10 };
                let at: u32 = rng.u32(..limit);
                let len = rng.u8(1..9);
                input.extend_from_slice(&at.to_le_bytes()[..3]);
                input.push(len);
                input.extend((0..len).map(|_| if rng.bool() { rng.u8(..) } else { rng.u8(..4) }));
            }
            volume(&input);
        }
    }
}
