//! Makes a new volume.
//!
//! [`plan`] computes everything and touches nothing; [`format`] writes what was planned: three
//! superblock copies, checkpoint 1, and nothing else. Pages are "never written" and the log is
//! empty, so a terabyte is formatted with a handful of writes.
//!
//! Rules. Old superblocks are wiped, durably, before anything else, and the new ones are written
//! last: a crash in between leaves a device without a volume, never half of one. What an earlier
//! volume left in the segments is harmless, since its checksums start from another salt; so the
//! caller must give a new random salt each time.

use super::{Progress, ToolError, Watch};
use crate::compress::format::geometry::MAP_ENTRIES;
use crate::compress::format::{BLOCK_BYTES, Checkpoint, Defaults, Geometry, Shape, Superblock};
use udm_meta::bytes::write_bytes;
use udm_meta::checkpoint::CHECKPOINT_HEAD_BYTES;
use udm_meta::superblock::{SUPERBLOCK_BYTES, write_copies};
use udm_meta::{Disk, DiskError};
use udm_types::Status;

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatRequest {
    /// Sizes of its parts.
    pub shape: Shape,
    /// Its logical size; without one, what can always be filled.
    pub logical_bytes: Option<u64>,
    /// Its identity: random.
    pub uuid: [u8; 16],
    /// Where its checksums start from: random.
    pub salt: u32,
    /// Defaults for its users.
    pub defaults: Defaults,
    /// Tell the device below that all segments are free.
    pub is_discarded: bool,
}

/// A volume that was planned or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its superblock.
    pub superblock: Superblock,
    /// Its logical size.
    pub logical_blocks: u64,
    /// The logical size that can be filled with data that does not compress.
    pub guaranteed_blocks: u64,
}

/// Lays out a volume on a device of `device_bytes`.
///
/// # Errors
/// What does not fit.
pub fn plan(device_bytes: u64, request: &FormatRequest) -> Result<Plan, ToolError> {
    if request.logical_bytes.is_some_and(|bytes| bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES)) {
        return Err(ToolError::LogicalUneven);
    }
    let geometry = Geometry::plan(device_bytes, request.logical_bytes, &request.shape)?;
    let guaranteed_blocks = geometry.guaranteed_blocks();
    // META has places for the pages of the size that was planned; more would need segments.
    let mapped = (geometry.meta_pages() - geometry.segment_pages) * MAP_ENTRIES;
    let logical_blocks = match request.logical_bytes {
        Some(bytes) => bytes / BLOCK_BYTES,
        None => guaranteed_blocks.min(mapped),
    };
    let limit = geometry.logical_limit_blocks().min(mapped);
    if logical_blocks > limit {
        return Err(ToolError::LogicalTooLarge { limit_bytes: limit * BLOCK_BYTES });
    }
    let superblock = Superblock {
        uuid: request.uuid,
        salt: request.salt,
        generation: 1,
        geometry,
        defaults: request.defaults,
        is_sized: false,
    };
    Ok(Plan { superblock, logical_blocks, guaranteed_blocks })
}

/// Makes a volume on `disk`. Everything on it is lost.
///
/// # Errors
/// What does not fit, before anything was written; or the disk's error.
pub async fn format(
    disk: &Disk,
    request: &FormatRequest,
    watch: Watch<'_>,
) -> Result<Plan, ToolError> {
    let plan = plan(disk.len_bytes(), request)?;
    let geometry = &plan.superblock.geometry;
    let copies = geometry.superblock_offsets();
    let nothing = alloc::vec![0; SUPERBLOCK_BYTES];
    for at in copies {
        write_bytes(disk, at, &nothing).await?;
    }
    disk.flush().await?;
    if request.is_discarded {
        discard_segments(disk, geometry, watch).await?;
    }
    let slots = plan.superblock.checkpoint_slots();
    let empty = alloc::vec![0; CHECKPOINT_HEAD_BYTES];
    write_bytes(disk, slots.offset_of(0), &empty).await?;
    let checkpoint = Checkpoint::fresh(geometry, plan.logical_blocks);
    slots.write(disk, checkpoint.number, &mut checkpoint.to_bytes(geometry)).await?;
    disk.flush().await?;
    write_copies(disk, &copies, &plan.superblock.to_image()).await?;
    Ok(plan)
}

/// Discards all segments, a piece at a time. A device that cannot is no reason to stop.
async fn discard_segments(
    disk: &Disk,
    geometry: &Geometry,
    watch: Watch<'_>,
) -> Result<(), DiskError> {
    /// Small enough for progress to move, large enough not to take long.
    const PIECE_BYTES: u64 = 1 << 30;
    let first = geometry.data_offset_bytes;
    let end = first + (geometry.segment_limit() << geometry.segment_shift);
    let mut at = first;
    while at < end {
        watch(Progress { step: "discarding", done: at - first, total: end - first });
        let len = PIECE_BYTES.min(end - at);
        match disk.discard(at, len).await {
            Ok(_) => at += len,
            Err(DiskError { status: Status::NotSupported, .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{FormatRequest, format, plan};
    use crate::compress::format::{Checkpoint, Shape, Superblock};
    use crate::compress::tools::ToolError;
    use crate::compress::tools::sample::tiny;
    use udm_meta::host::MemoryHost;

    #[test]
    fn a_new_volume_is_found_with_an_empty_log() {
        let mut host = MemoryHost::new(256 << 10);
        host.bytes.fill(0xee);
        let made = host.run(|disk| async move {
            format(&disk, &tiny(Some(20 * 4096)), &mut |_progress| ()).await
        });
        let made = made.expect("formatted");
        let found = host.run(|disk| async move { Superblock::find(&disk).await });
        assert_eq!(found.superblock, Some(Ok(made.superblock)));
        assert!(found.reports.iter().all(|copy| copy.state == Ok(1)));
        let slots = made.superblock.checkpoint_slots();
        let pair = host.run(|disk| async move { slots.read(&disk).await });
        let image = pair.into_newest().expect("checkpoint 1");
        let checkpoint = Checkpoint::parse(&made.superblock, &image).expect("sound");
        assert_eq!(checkpoint, Checkpoint::fresh(&made.superblock.geometry, 20));
        // Wipe three, slot 0, checkpoint, copies three.
        assert_eq!((host.writes, host.flushes), (8, 4));
    }

    #[test]
    fn the_default_size_can_always_be_filled() {
        for mib in [16_u64, 64, 1000, 5000, 1 << 20] {
            let request = FormatRequest { shape: Shape::for_device(mib << 20), ..tiny(None) };
            let plan = plan(mib << 20, &request).expect("fits");
            assert_eq!(plan.logical_blocks, plan.guaranteed_blocks, "{mib} MiB");
        }
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused_before_anything_is_written() {
        let mut host = MemoryHost::new(256 << 10);
        let run = |host: &mut MemoryHost, request: FormatRequest| {
            host.run(|disk| async move { format(&disk, &request, &mut |_progress| ()).await })
        };
        assert_eq!(run(&mut host, tiny(Some(4097))), Err(ToolError::LogicalUneven));
        assert_eq!(run(&mut host, tiny(Some(0))), Err(ToolError::LogicalUneven));
        assert!(matches!(run(&mut host, tiny(Some(1 << 45))), Err(ToolError::Geometry(_))));
        assert_eq!((host.writes, host.flushes), (0, 0));
    }

    #[test]
    fn a_crash_in_the_middle_leaves_no_volume_or_a_whole_one() {
        let run = |host: &mut MemoryHost, request: FormatRequest| {
            host.run(|disk| async move { format(&disk, &request, &mut |_progress| ()).await })
        };
        let mut old = MemoryHost::new(256 << 10);
        run(&mut old, tiny(None)).expect("formatted");
        let again = FormatRequest { uuid: [8; 16], salt: 100, ..tiny(None) };
        let mut seen = [0; 3];
        for writes in 0..8 {
            let mut host = MemoryHost::from_bytes(old.bytes.clone());
            host.write_limit = Some(writes);
            assert!(run(&mut host, again).is_err());
            let found = host.run(|disk| async move { Superblock::find(&disk).await });
            let Some(superblock) = found.superblock else {
                seen[1] += 1;
                continue;
            };
            let superblock = superblock.expect("sound");
            seen[if superblock.uuid == [7; 16] { 0 } else { 2 }] += 1;
            let slots = superblock.checkpoint_slots();
            let pair = host.run(|disk| async move { slots.read(&disk).await });
            assert_eq!(pair.newest().map(|image| image.number()), Some(1));
        }
        // The old volume until its last copy is gone, then nothing, then the new one.
        assert_eq!(seen, [3, 3, 2]);
    }
}
