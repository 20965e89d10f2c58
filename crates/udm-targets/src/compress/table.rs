//! A parsed line of a compress target: what the core is told of it, and its instances.
//!
//! The line itself is `args.rs`'s business. Here stands what does not depend on it: which
//! operations the target takes by itself, and the limits it shows above.
//!
//! The tricky case is the block size. The volume takes any range of 512-byte sectors, whatever the
//! device below needs, since it never passes a range on as it came; so small blocks are offered
//! even above a disk of large ones, and what they cost (a block is read to change a part of it) is
//! told by the physical block size.

use super::args::Line;
use super::format::BLOCK_BYTES;
use super::status;
use super::target::Compress;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use udm_core::Target;
use udm_core::target::{DeviceUse, TargetConfig, TargetTraits};
use udm_types::{LaneId, QueueLimits, SECTOR_BYTES, UNLIMITED};

/// What is best asked for at once: an extent.
const IO_OPT_BYTES: u32 = 32 << 10;

/// A parsed line.
pub(super) struct CompressConfig {
    line: Arc<Line>,
}

impl CompressConfig {
    pub(super) fn new(line: Line) -> CompressConfig {
        CompressConfig { line: Arc::new(line) }
    }
}

impl TargetConfig for CompressConfig {
    fn traits(&self) -> TargetTraits {
        TargetTraits {
            discards_itself: true,
            zeroes_itself: true,
            flushes_itself: true,
            own_work: true,
            ..TargetTraits::default()
        }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        let device = self.line.device.clone();
        let len_sectors = device.len_sectors;
        vec![DeviceUse { device, start_sector: 0, len_sectors }]
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        let block_bytes = BLOCK_BYTES as u32;
        limits.logical_block_bytes = SECTOR_BYTES as u32;
        limits.physical_block_bytes = block_bytes;
        limits.io_min_bytes = block_bytes;
        limits.io_opt_bytes = IO_OPT_BYTES;
        limits.chunk_sectors = 0;
        limits.max_discard_sectors = UNLIMITED;
        limits.discard_granularity_bytes = block_bytes;
        limits.max_write_zeroes_sectors = UNLIMITED;
    }

    fn table_args(&self) -> String {
        format!("{}{}", self.line.device.shown, self.line.words)
    }

    fn status_args(&self, counters: &[u64]) -> String {
        status::print(counters)
    }

    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        Box::new(Compress::new(Arc::clone(&self.line)))
    }
}
