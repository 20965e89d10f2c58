//! A file that only a driver knows, by a raw handle: what the simulator puts its disks behind.
//!
//! [`RawFile`] is a [`super::FileDevice`] without the opening: the same lane part, slots, fence and
//! flush rules, over a handle that every lane registers anew. Nothing here asks the operating
//! system, so with the simulator's driver it is deterministic. A daemon never makes one.
//!
//! Rules. The size is fixed. All lanes register the same number; with a real driver that would give
//! one descriptor away several times, which is why the daemon's files are opened one description a
//! lane instead.

use super::lane::FileLane;
use super::state::{DirectAlign, FileShared, InodeState};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use udm_core::{LowerCx, LowerDevice, LowerLane};
use udm_lane::{Errno, RawHandle};
use udm_types::{QueueLimits, Sector};

/// A file behind a raw handle.
#[derive(Debug)]
pub struct RawFile {
    shown: String,
    len_sectors: Sector,
    limits: QueueLimits,
    shared: Arc<FileShared>,
    raw: RawHandle,
}

impl RawFile {
    /// A file of a driver that knows it as `raw`. With `direct`, memory and ranges are aligned to
    /// the logical block of `limits`, through a bounce buffer where needed.
    pub fn new(
        shown: &str,
        len_sectors: Sector,
        limits: QueueLimits,
        direct: bool,
        raw: RawHandle,
    ) -> RawFile {
        let block_bytes = limits.logical_block_bytes;
        let shared = Arc::new(FileShared {
            inode: Arc::new(InodeState::default()),
            len_sectors: AtomicU64::new(len_sectors),
            read_only: limits.read_only,
            direct: direct
                .then_some(DirectAlign { memory_bytes: block_bytes, range_bytes: block_bytes }),
        });
        RawFile { shown: shown.to_owned(), len_sectors, limits, shared, raw }
    }
}

impl LowerDevice for RawFile {
    fn shown(&self) -> String {
        self.shown.clone()
    }

    fn len_sectors(&self) -> Sector {
        self.len_sectors
    }

    fn limits(&self) -> QueueLimits {
        self.limits.clone()
    }

    fn open_lane(&self, cx: &mut LowerCx<'_>) -> Result<Box<dyn LowerLane>, Errno> {
        let handle = cx.driver().register(self.raw)?;
        Ok(Box::new(FileLane::new(Arc::clone(&self.shared), handle)))
    }
}
