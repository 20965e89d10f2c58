//! Compress devices in a world: their disk, their volume, their table lines and messages.
//!
//! A world with the switch `compress` has one more disk, and its first volume is a compress device
//! on it: production target, volume and format tool. The volume's script changes it as any other
//! (swaps with other arguments, suspends, dead tables, removal), and messages order checkpoints,
//! cleaning and scrubs. Each new table opens the volume anew, so a swap is a recovery under load.
//!
//! Rules. What lies on the disk is nobody's business but the volume's: reads are judged, places are
//! not, nor what is durable there; that is the crash enumerator's (`crash/`). A read below that
//! fails once is noticed by nobody above: each place fails once, and not while a volume is opened,
//! which refuses such a disk. A failed write makes the volume read-only for good; that, too, is the
//! enumerator's.
//!
//! Some disks are too small for what can be written: writes wait for space, or are refused, and
//! what they were to overwrite is still there.
//!
//! The tricky case is a volume made anew on the same disk: whatever the last one left stays there,
//! and must not be believed.

use crate::disk::{Disk, Vault};
use fastrand::Rng;
use std::ops::RangeInclusive;
use udm_lane::Payload;
use udm_meta::host::{BlockHost, run_on};
use udm_targets::compress::format::{Codec, Defaults, Shape};
use udm_targets::compress::tools::format::{self, FormatRequest};
use udm_types::{Sector, Status};

/// Sectors of a block of a volume.
pub(crate) const BLOCK_SECTORS: Sector = 8;
/// Blocks of a volume at most: the load reads and writes all of it many times.
pub(crate) const BLOCKS_MAX: Sector = 48;
/// Segments: room for all blocks uncompressed, for the reserve, and for cleaning.
const SEGMENTS: u64 = 24;
/// Segments of a disk that is too small: the reserve, and a few.
const SEGMENTS_TIGHT: RangeInclusive<u64> = 7..=9;
const SEGMENT_SHIFT: u8 = 16;

/// A disk for a volume.
pub(crate) fn disk(fallocate: bool, rng: &mut Rng) -> Disk {
    let is_tight = rng.u32(0..3) == 0;
    let segments = if is_tight { rng.u64(SEGMENTS_TIGHT) } else { SEGMENTS };
    let mut disk = Disk::new((segments + 2) << (SEGMENT_SHIFT - 9), fallocate);
    disk.vault = Some(Vault::new(is_tight));
    disk
}

/// Writes an empty volume.
pub(crate) fn format(disk: &mut Disk, len_sectors: Sector, rng: &mut Rng) {
    let mut uuid = [0; 16];
    rng.fill(&mut uuid);
    let request = FormatRequest {
        shape: Shape {
            physical_shift: 12,
            segment_shift: SEGMENT_SHIFT,
            unit_shift: 6,
            record_limit_bytes: 1 << SEGMENT_SHIFT,
            extent_blocks: rng.u8(1..=8),
            reserve_segments: 4,
            growth: 1,
        },
        logical_bytes: Some(len_sectors * 512),
        uuid,
        salt: rng.u32(..),
        defaults: Defaults { codec: Codec::Lz4, level: 0 },
        is_discarded: false,
    };
    let port = udm_meta::Disk::new(disk.len_bytes());
    let ask = port.clone();
    let made =
        run_on(&port, disk, async move { format::format(&ask, &request, &mut |_| {}).await });
    made.map(drop).expect("invariant: the geometry fits the disk");
}

/// What a table line says behind its length.
pub(crate) fn line(disk: usize, is_tight: bool, rng: &mut Rng) -> String {
    // What can be compressed fills no disk. The default, a minute, is longer than a world lasts.
    let tight = [
        " 4 compressor none queue_if_no_space 1",
        " 3 compressor none error_if_no_space",
        " 5 writethrough compressor none queue_if_no_space 1",
        " 2 queue_if_no_space 1",
    ];
    if is_tight {
        return format!("compress disk{disk}{}", tight[rng.usize(0..tight.len())]);
    }
    let arguments = [
        "",
        " 1 writethrough",
        " 2 writeback 1",
        " 4 writeback 3 compressor zstd:1",
        " 2 compressor none",
        " 3 writethrough max_extent 2",
        " 4 delta_mb 1 cache_mb 1",
        " 1 no_discard_passdown",
        " 3 workers 4 error_if_no_space",
    ];
    format!("compress disk{disk}{}", arguments[rng.usize(0..arguments.len())])
}

/// Something to order.
pub(crate) fn message(rng: &mut Rng) -> Vec<String> {
    let words: &[&str] =
        [&["checkpoint"][..], &["scrub"], &["gc", "2"], &["stats"], &["release"]][rng.usize(0..5)];
    words.iter().map(|&word| word.to_owned()).collect()
}

impl BlockHost for Disk {
    fn read(&mut self, offset_bytes: u64, payload: &Payload) -> Status {
        payload.copy_in(0, Disk::read(self, offset_bytes, payload.len_bytes()));
        Status::Ok
    }

    fn write(&mut self, offset_bytes: u64, payload: &Payload) -> Status {
        let mut bytes = vec![0; payload.len_bytes() as usize];
        payload.copy_out(0, &mut bytes);
        self.write_durable(offset_bytes, &bytes);
        Status::Ok
    }

    fn flush(&mut self) -> Status {
        Status::Ok
    }

    fn discard(&mut self, _offset_bytes: u64, _len_bytes: u64) -> Status {
        Status::Ok
    }
}
