//! Reads what the two ancestors wrote: dm-insitu-comp and IBM's dm-inplace-compress.
//!
//! `layout.rs` knows their superblocks and where things are; `extents.rs` their metadata bits and
//! payloads. What is read goes to a [`Sink`], whatever that is: an image, or a new volume. Blocks
//! never written, and blocks of zeroes, are not given to it.
//!
//! Rules. Nothing of the source is believed, for neither ancestor has a single checksum: lengths
//! are bounded before they are used, and what does not decompress to exactly its length is lost. A
//! lost block is told and not given to the sink, so that it never gets wrong contents.
//!
//! The tricky case is a payload that is damaged and decompresses all the same: nobody can tell.

pub mod extents;
pub mod layout;

use super::{Progress, ToolError, Watch};
use alloc::string::ToString;
use alloc::vec::Vec;
use core::ops::Range;
use extents::{Extent, Unpacked, group_extents, unpack};
use layout::{Layout, LayoutFault, OldCodec};
use udm_meta::Disk;
use udm_meta::bytes::read_vec;
use udm_types::Status;

/// Bytes of a block.
const BLOCK: usize = 4096;
/// Blocks of an aligned group, which no extent leaves: 128 KiB.
pub const GROUP_BLOCKS: u64 = 32;
/// Groups whose metadata is read at once.
const GROUPS_A_READ: u64 = 1024;
/// Ranges of lost blocks that are listed.
const RANGES_MAX: usize = 1000;

/// Where what was read goes.
pub trait Sink {
    /// Takes whole blocks.
    ///
    /// # Errors
    /// Why it cannot; the import ends.
    fn put(&mut self, first_block: u64, bytes: &[u8]) -> Result<(), Status>;
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportReport {
    /// Where it came from.
    pub layout: Layout,
    /// Blocks given to the sink.
    pub blocks: u64,
    /// Blocks that are zeroes, or were never written.
    pub zero_blocks: u64,
    /// Blocks that could not be read: the first few ranges.
    pub lost: Vec<Range<u64>>,
    /// How many those are in all.
    pub lost_blocks: u64,
}

/// What is on `disk`.
///
/// # Errors
/// If it is neither ancestor's.
pub async fn find(disk: &Disk) -> Result<Layout, ToolError> {
    if disk.len_bytes() < BLOCK as u64 {
        return Err(ToolError::Unusable(LayoutFault::Magic.to_string()));
    }
    let bytes = read_vec(disk, 0, BLOCK).await?;
    Layout::parse(&bytes, disk.len_bytes()).map_err(|fault| ToolError::Unusable(fault.to_string()))
}

/// Reads the ancestor's volume on `disk` into `sink`.
///
/// # Errors
/// If there is none, its codec is not known here, or the sink fails.
pub async fn import(
    disk: &Disk,
    sink: &mut dyn Sink,
    watch: Watch<'_>,
) -> Result<ImportReport, ToolError> {
    let layout = find(disk).await?;
    if layout.codec == OldCodec::Nx842 {
        let text = "it is compressed with 842, for which there is no free decoder";
        return Err(ToolError::Unusable(text.into()));
    }
    let mut report =
        ImportReport { layout, blocks: 0, zero_blocks: 0, lost: Vec::new(), lost_blocks: 0 };
    let groups = layout.data_blocks.div_ceil(GROUP_BLOCKS);
    let mut group = 0;
    while group < groups {
        watch(Progress { step: "importing", done: group, total: groups });
        let count = GROUPS_A_READ.min(groups - group);
        let (at, len) = layout.metadata_of(group, count);
        let bits = read_vec(disk, at, len).await;
        for each in group..group + count {
            let first = each * GROUP_BLOCKS;
            let blocks = GROUP_BLOCKS.min(layout.data_blocks - first);
            let extents = match &bits {
                Ok(bits) => group_extents(bits, (each - group) as usize, first, blocks),
                Err(_unreadable) => Vec::from([Extent::Damaged(first..first + blocks)]),
            };
            import_group(disk, &layout, &extents, sink, &mut report).await?;
        }
        group += count;
    }
    Ok(report)
}

/// Extents of one group.
async fn import_group(
    disk: &Disk,
    layout: &Layout,
    extents: &[Extent],
    sink: &mut dyn Sink,
    report: &mut ImportReport,
) -> Result<(), ToolError> {
    for extent in extents {
        match extent {
            Extent::Hole(blocks) => report.zero_blocks += blocks.end - blocks.start,
            Extent::Damaged(blocks) => report.lose(blocks.clone()),
            Extent::Data { blocks, payload_bytes } => {
                let at = layout.offset_of(blocks.start);
                let unpacked = match read_vec(disk, at, *payload_bytes).await {
                    Ok(payload) => unpack(layout.codec, blocks, &payload),
                    Err(_unreadable) => Unpacked::Damaged,
                };
                match unpacked {
                    Unpacked::Damaged => report.lose(blocks.clone()),
                    Unpacked::Bytes(bytes) => put(blocks.start, &bytes, sink, report)?,
                }
            }
        }
    }
    Ok(())
}

/// Gives what is not zero to the sink, in runs.
fn put(
    first_block: u64,
    bytes: &[u8],
    sink: &mut dyn Sink,
    report: &mut ImportReport,
) -> Result<(), ToolError> {
    let (blocks, _none) = bytes.as_chunks::<BLOCK>();
    let is_zero = |block: &[u8; BLOCK]| block.iter().all(|byte| *byte == 0);
    let mut at = first_block;
    for run in blocks.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
        let count = run.len() as u64;
        if is_zero(&run[0]) {
            report.zero_blocks += count;
        } else {
            report.blocks += count;
            sink.put(at, run.as_flattened()).map_err(|status| {
                ToolError::Unusable(alloc::format!("the copy failed: {}", status.describe()))
            })?;
        }
        at += count;
    }
    Ok(())
}

impl ImportReport {
    fn lose(&mut self, blocks: Range<u64>) {
        self.lost_blocks += blocks.end - blocks.start;
        if let Some(last) = self.lost.last_mut().filter(|last| last.end == blocks.start) {
            last.end = blocks.end;
        } else if self.lost.len() < RANGES_MAX {
            self.lost.push(blocks);
        }
    }
}

#[cfg(test)]
mod tests;
