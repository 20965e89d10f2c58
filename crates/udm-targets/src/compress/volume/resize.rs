//! Other sizes while everything goes on: the logical size both ways, and a disk that grew.
//!
//! ```text
//! grow logical    pages "never written" are all there is to it; past META, whole free segments
//!                 become regions of map pages
//! shrink logical  users' requests end at the new size; what is cut off becomes holes in the log
//! grow the disk   superblock first (it says what may be used), more segments after
//! shrink the disk is `shrink.rs`'s: the checkpoint first
//! then            a checkpoint makes it the truth, in the same step as everything else
//! ```
//!
//! Rules. Until that checkpoint is durable the volume has its old size, and a crash leaves the old
//! one or the new one. Nobody sees a larger size before it is durable.
//!
//! The tricky case is a write beyond the new end of a shrink that was on its way: it is refused
//! when it wants to be accepted ([`Live::limit_blocks`](super::shared::Live)), which is before the
//! holes are, so nothing lies behind the end when the pages there are given up.

use super::options::{State, TICKET_OF_CUT};
use super::shared::{Core, Resizing};
use super::write::{Ask, accept, push_unmap};
use crate::compress::format::checkpoint::REGIONS_MAX;
use crate::compress::format::{BLOCK_BYTES, Geometry, Superblock};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::fmt;
use udm_meta::page::{PAGE_PAIR_BYTES, PageRegion, PageRegions};
use udm_meta::superblock::write_copies;
use udm_types::Status;

/// Sizes to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The logical size, a multiple of 4096; without, as it is.
    pub logical_bytes: Option<u64>,
    /// Use the whole disk, if it is larger than it was, or was not used whole.
    pub grows_to_disk: bool,
}

/// Why a volume kept its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeFault {
    /// It does not serve.
    NotServing,
    /// Another resize is under way.
    Busy,
    /// Not a positive multiple of 4096, or more than the volume was laid out for.
    Logical {
        /// The most it can have.
        limit_bytes: u64,
    },
    /// More map pages are needed than free segments, or regions, there are.
    NoRoomForMap,
    /// A disk cannot be so small, or is smaller already.
    Disk {
        /// About the least it can have.
        least_bytes: u64,
        /// What it has.
        most_bytes: u64,
    },
    /// Making the disk smaller was given up: the space was needed.
    NoRoom,
    /// What lies at the end of the disk cannot be moved: it is damaged, or holds map pages.
    Stuck,
    /// The host gave it up.
    GivenUp,
    /// The disk grew beyond what the volume was laid out for; it stays as it was.
    DiskTooLarge,
    /// The disk failed, or the volume stopped serving.
    Failed(Status),
}

impl fmt::Display for ResizeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ResizeFault::NotServing => f.write_str("the volume does not serve"),
            ResizeFault::Busy => f.write_str("another resize is under way"),
            ResizeFault::Logical { limit_bytes } => {
                write!(f, "the logical size is a multiple of 4096 up to {limit_bytes} bytes")
            }
            ResizeFault::NoRoomForMap => f.write_str("there is no room for more map pages"),
            ResizeFault::Disk { least_bytes, most_bytes } => {
                write!(f, "the volume can use {least_bytes} to {most_bytes} bytes of its device")
            }
            ResizeFault::NoRoom => f.write_str("the space at the end of the device is needed"),
            ResizeFault::Stuck => {
                f.write_str("what lies at the end of the device is damaged and cannot be moved")
            }
            ResizeFault::GivenUp => f.write_str("it was given up"),
            ResizeFault::DiskTooLarge => {
                f.write_str("the volume was not laid out for so large a device")
            }
            ResizeFault::Failed(status) => write!(f, "it failed: {}", status.describe()),
        }
    }
}

/// Task: one resize.
pub(super) async fn resize(core: Rc<Core>, sizes: Sizes) {
    let outcome = match claim(&core) {
        Ok(()) => {
            let outcome = try_resize(&core, sizes).await;
            core.live.borrow_mut().is_resize_claimed = false;
            outcome
        }
        Err(fault) => Err(fault),
    };
    core.port.resized.borrow_mut().push_back(outcome);
}

/// From here on there is no other resize. In one step: two that were asked for in one turn would
/// both see that there is none, and one would cut its tail off to say then that it could not.
fn claim(core: &Core) -> Result<(), ResizeFault> {
    if *core.port.state.borrow() != State::Serving {
        return Err(ResizeFault::NotServing);
    }
    let mut live = core.live.borrow_mut();
    if live.is_resizing() {
        return Err(ResizeFault::Busy);
    }
    live.is_resize_claimed = true;
    Ok(())
}

async fn try_resize(core: &Rc<Core>, sizes: Sizes) -> Result<(), ResizeFault> {
    let logical_blocks = wanted_blocks(core, sizes)?;
    let old_blocks = core.live.borrow().map.logical_blocks;
    let segments = match sizes.grows_to_disk {
        true => grow_superblock(core).await?,
        false => core.live.borrow().checkpoint.segments,
    };
    if logical_blocks < old_blocks {
        core.live.borrow_mut().limit_blocks = logical_blocks;
        let mut pieces = Vec::new();
        push_unmap(logical_blocks..old_blocks, &mut pieces);
        let (blocks, since) = (logical_blocks..old_blocks, core.port.clock.now());
        let ask = Ask { pieces: &pieces, blocks, has_lock: false, ticket: None, since };
        let cut = accept(core, &ask).await;
        // In the step that accepted it.
        match cut {
            Ok(_sequence) => core.port.note_accepted(TICKET_OF_CUT),
            Err(status) => {
                core.live.borrow_mut().limit_blocks = old_blocks;
                return Err(ResizeFault::Failed(status));
            }
        }
    }
    {
        let mut live = core.live.borrow_mut();
        let regions = regions_for(core, &mut live, logical_blocks)?;
        live.resizing = Some(Resizing { logical_blocks, segments, regions });
    }
    let number = core.ask_checkpoint();
    let is_done = core
        .background
        .wait_for(|| {
            let is_refused = core.refusal();
            match core.live.borrow().checkpoints_done >= number {
                true => Some(Ok(())),
                false => is_refused.map(Err),
            }
        })
        .await;
    core.room.notify();
    is_done.map_err(ResizeFault::Failed)
}

fn wanted_blocks(core: &Core, sizes: Sizes) -> Result<u64, ResizeFault> {
    let now_blocks = core.live.borrow().map.logical_blocks;
    let Some(bytes) = sizes.logical_bytes else { return Ok(now_blocks) };
    let limit_bytes = core.geometry.logical_limit_blocks() * BLOCK_BYTES;
    let is_possible = bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES) && bytes <= limit_bytes;
    if is_possible { Ok(bytes / BLOCK_BYTES) } else { Err(ResizeFault::Logical { limit_bytes }) }
}

/// Where the pages of so many blocks lie: as now, and free segments for those without a place.
fn regions_for(
    core: &Core,
    live: &mut super::shared::Live,
    logical_blocks: u64,
) -> Result<PageRegions, ResizeFault> {
    let geometry = &core.geometry;
    let mut regions = live.map.regions.clone();
    let pages = geometry.page_count(logical_blocks);
    let per_segment = geometry.segment_bytes() / PAGE_PAIR_BYTES;
    let missing = pages.saturating_sub(regions.page_count()).div_ceil(per_segment);
    let room = live.segments.free_count().saturating_sub(core.reserve());
    // META is the first region, and not among those that a checkpoint lists.
    if missing > room as u64 || regions.as_slice().len() as u64 - 1 + missing > REGIONS_MAX as u64 {
        return Err(ResizeFault::NoRoomForMap);
    }
    for _ in 0..missing {
        let segment = live.segments.take_for_map().ok_or(ResizeFault::NoRoomForMap)?;
        let region = PageRegion {
            first_page: regions.page_count(),
            page_count: per_segment,
            offset_bytes: geometry.segment_offset_bytes(segment),
        };
        regions.push(region).map_err(|_region| ResizeFault::NoRoomForMap)?;
    }
    Ok(regions)
}

/// Tells the superblock that the disk is larger; gives how many segments there are then.
async fn grow_superblock(core: &Rc<Core>) -> Result<u32, ResizeFault> {
    let mut superblock = core.superblock_now();
    let device_bytes = core.port.disk.len_bytes() / BLOCK_BYTES * BLOCK_BYTES;
    let geometry = Geometry { device_bytes, ..superblock.geometry };
    if device_bytes > superblock.geometry.device_bytes || superblock.is_sized {
        geometry.check().map_err(|_fault| ResizeFault::DiskTooLarge)?;
        let generation = superblock.generation + 1;
        superblock = Superblock { geometry, generation, is_sized: false, ..superblock };
        write_superblock(core, superblock).await?;
    }
    u32::try_from(superblock.geometry.segment_limit()).map_err(|_| ResizeFault::DiskTooLarge)
}

/// Writes all copies of a superblock. It does not begin during a stop, and a stop waits for it.
pub(super) async fn write_superblock(
    core: &Core,
    superblock: Superblock,
) -> Result<(), ResizeFault> {
    core.background.until(|| core.check_stop().is_ok() || core.refusal().is_some()).await;
    if let Some(status) = core.refusal() {
        return Err(ResizeFault::Failed(status));
    }
    core.live.borrow_mut().writes_superblock = true;
    let places = superblock.geometry.superblock_offsets();
    let written = write_copies(&core.port.disk, &places, &superblock.to_image()).await;
    core.live.borrow_mut().writes_superblock = false;
    written.map_err(|error| ResizeFault::Failed(error.status))?;
    core.grown.set(Some(superblock));
    Ok(())
}
