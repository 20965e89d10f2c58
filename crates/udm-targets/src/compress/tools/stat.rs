//! What a volume is and how full it is, from superblock, checkpoint and segment table: quick.
//!
//! Used by `udm compress stat`. Reads only, and neither the map nor the data: the numbers are as of
//! the newest checkpoint, and say how much log lies behind it.
//!
//! The tricky case is a damaged page of the segment table: its segments are counted as unknown, and
//! the rest is told all the same.

use super::ToolError;
use super::log;
use super::view::{View, open};
use crate::compress::format::{CheckpointFlags, SegmentState, Superblock};
use alloc::string::ToString;
use udm_meta::Disk;

/// Segments by what they are used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentCounts {
    /// Of the volume.
    pub all: u64,
    /// Free, discarded or not.
    pub free: u64,
    /// With records.
    pub used: u64,
    /// With map pages.
    pub map: u64,
    /// Never to be used again.
    pub retired: u64,
    /// In damaged pages of the table.
    pub unknown: u64,
}

/// What a volume is, and how full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub superblock: Superblock,
    /// The newest checkpoint.
    pub checkpoint: u64,
    /// Its flags.
    pub flags: CheckpointFlags,
    /// The volume's epoch: how often it was recovered.
    pub epoch: u32,
    /// The first sequence behind the checkpoint.
    pub next_sequence: u64,
    /// Logical size.
    pub logical_blocks: u64,
    /// Blocks in extents.
    pub live_blocks: u64,
    /// Bytes those take, rounded shares.
    pub live_bytes: u64,
    /// Segments.
    pub segments: SegmentCounts,
    /// Records behind the checkpoint.
    pub log_records: u64,
    /// Their bytes.
    pub log_bytes: u64,
    /// Bytes of superblocks, checkpoints and META.
    pub overhead_bytes: u64,
}

/// Looks at the volume on `disk`.
///
/// # Errors
/// If there is none that can be looked at.
pub async fn stat(disk: &Disk) -> Result<Stat, ToolError> {
    let view = open(disk).await.map_err(|fault| ToolError::Unusable(fault.to_string()))?;
    let end = log::walk(disk, &view, &mut |_place, _record| ()).await;
    let segments = count(disk, &view).await;
    let View { superblock, checkpoint, copies: _, slots: _ } = view;
    let head = checkpoint.head;
    Ok(Stat {
        superblock,
        checkpoint: checkpoint.number,
        flags: head.flags,
        epoch: head.epoch,
        next_sequence: head.next_sequence,
        logical_blocks: head.logical_blocks,
        live_blocks: head.live_blocks,
        live_bytes: head.live_units << superblock.geometry.unit_shift,
        segments,
        log_records: end.records,
        log_bytes: end.bytes,
        overhead_bytes: superblock.geometry.data_offset_bytes + 4096,
    })
}

async fn count(disk: &Disk, view: &View) -> SegmentCounts {
    // Damaged pages leave their entries unknown.
    let table = view.segment_table(disk, &mut |_page, _fault| ()).await;
    let mut counts = SegmentCounts { all: table.len() as u64, ..SegmentCounts::default() };
    for entry in table {
        let count = match entry.map(|entry| entry.state) {
            Some(SegmentState::Free | SegmentState::Discarded) => &mut counts.free,
            Some(SegmentState::Used) => &mut counts.used,
            Some(SegmentState::Map) => &mut counts.map,
            Some(SegmentState::Retired) => &mut counts.retired,
            None => &mut counts.unknown,
        };
        *count += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::stat;
    use crate::compress::tools::ToolError;
    use crate::compress::tools::sample::{BLOCKS, Sample};
    use udm_meta::host::MemoryHost;

    #[test]
    fn a_volume_is_described() {
        let mut sample = Sample::filled();
        let stat = sample.host.run(|disk| async move { stat(&disk).await }).expect("a volume");
        assert_eq!((stat.checkpoint, stat.logical_blocks, stat.live_blocks), (2, BLOCKS, 5));
        assert_eq!((stat.segments.all, stat.segments.used, stat.segments.free), (12, 2, 10));
        assert_eq!((stat.log_records, stat.log_bytes), (2, 2 * 8704));
    }

    #[test]
    fn a_damaged_table_and_no_volume_are_told() {
        let mut sample = Sample::filled();
        let at = sample.page_at(0);
        sample.host.bytes[at + 99] ^= 1;
        let found = sample.host.run(|disk| async move { stat(&disk).await }).expect("a volume");
        assert_eq!((found.segments.unknown, found.segments.used), (12, 0));
        let none = MemoryHost::new(65536).run(|disk| async move { stat(&disk).await });
        assert!(matches!(none, Err(ToolError::Unusable(_))));
    }
}
