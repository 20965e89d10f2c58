//! Proves every rule of the format, and lists what does not hold.
//!
//! | file | looks at |
//! |---|---|
//! | `finding.rs` | what can be found, and how bad it is |
//! | `table.rs` | superblock copies, checkpoint slots, segment table |
//! | `map.rs` | every map page and entry, the exact count of live blocks |
//! | `extents.rs` | every extent a map entry means: place, time, content, overlap |
//! | `tail.rs` | the log behind the checkpoint |
//!
//! The map of the checkpoint is proven against the segments as they are: nothing that it needs may
//! be overwritten before the next checkpoint, so that holds also with a log behind it.
//!
//! Rules. Nothing is written. Everything is looked at, also after damage was found. A finding is
//! *normal* (a crash leaves it), *weak* (a copy is lost, nothing else) or *damage*.
//!
//! The tricky case is a volume larger than memory: references of the map into segments are
//! collected for as many segments at a time as fit [`CheckRequest::memory_bytes`], and the map is
//! read again for the next ones.

use super::Watch;
use super::view::{self, OpenFault};
use crate::compress::format::SegmentEntry;
use alloc::vec::Vec;
use udm_meta::Disk;

pub(super) mod extents;
pub mod finding;
pub(super) mod map;
mod table;
mod tail;

pub use finding::{Code, Finding, Severity};
pub(super) use finding::{Findings, Lost};

/// How thoroughly to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckRequest {
    /// Read every extent, as a scrub would; without, everything but extents is proven.
    pub reads_extents: bool,
    /// Memory for references of the map into segments.
    pub memory_bytes: usize,
    /// Findings that are kept; the rest is counted.
    pub finding_limit: usize,
}

impl Default for CheckRequest {
    fn default() -> CheckRequest {
        CheckRequest { reads_extents: true, memory_bytes: 128 << 20, finding_limit: 1000 }
    }
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The checkpoint that was looked at.
    pub checkpoint: u64,
    /// Logical blocks of the volume.
    pub logical_blocks: u64,
    /// Blocks that the checkpoint's map has in extents.
    pub extent_blocks: u64,
    /// Blocks that are one word all over.
    pub fill_blocks: u64,
    /// Blocks that are lost, and say so.
    pub poisoned_blocks: u64,
    /// Extents that were read.
    pub extents: u64,
    /// Segments of the volume.
    pub segments: u64,
    /// Segments with live blocks.
    pub live_segments: u64,
    /// Records of the log behind the checkpoint.
    pub log_records: u64,
    /// Their bytes.
    pub log_bytes: u64,
}

/// What the check found.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// What was counted.
    pub counts: Counts,
    /// What was found, in the order it was found.
    pub findings: Vec<Finding>,
    /// How many more findings there were.
    pub hidden: u64,
    /// The worst of all.
    pub worst: Option<Severity>,
}

impl CheckReport {
    /// True if nothing is damaged.
    pub fn is_sound(&self) -> bool {
        self.worst != Some(Severity::Damage)
    }
}

/// Checks the volume on `disk`.
pub async fn check(disk: &Disk, request: &CheckRequest, watch: Watch<'_>) -> CheckReport {
    let mut findings = Findings::new(request.finding_limit);
    let mut counts = Counts::default();
    match view::open(disk).await {
        Ok(view) => {
            counts.checkpoint = view.checkpoint.number;
            counts.logical_blocks = view.checkpoint.head.logical_blocks;
            counts.segments = u64::from(view.checkpoint.head.segments);
            table::copies(&view, disk.len_bytes(), &mut findings);
            examine(disk, &view, request, &mut counts, &mut findings, watch).await;
        }
        Err(fault) => nothing_to_see(&fault, &mut findings),
    }
    findings.into_report(counts)
}

/// All of the check behind the superblock. Gives the segment table as it was found.
pub(super) async fn examine(
    disk: &Disk,
    view: &view::View,
    request: &CheckRequest,
    counts: &mut Counts,
    findings: &mut Findings,
    watch: Watch<'_>,
) -> Vec<Option<SegmentEntry>> {
    let table = table::read(disk, view, findings).await;
    let live = map::count(disk, view, table.len(), counts, findings, watch).await;
    table::compare(view, &table, &live, findings);
    counts.live_segments = live.iter().filter(|live| **live > 0).count() as u64;
    if request.reads_extents {
        let budget = request.memory_bytes;
        counts.extents = extents::verify(disk, view, &live, budget, findings, watch).await;
    }
    tail::follow(disk, view, &live, counts, findings, watch).await;
    table
}

fn nothing_to_see(fault: &OpenFault, findings: &mut Findings) {
    let code = match fault {
        OpenFault::NoSuperblock(_) | OpenFault::Superblock(_) => Code::Superblock,
        OpenFault::Short { .. } => Code::DeviceSize,
        OpenFault::NoCheckpoint(_) | OpenFault::Checkpoint(..) => Code::Checkpoint,
    };
    findings.damage(code, format_args!("{fault}"));
    if let OpenFault::NoSuperblock(copies) = fault {
        for copy in copies {
            if let Err(fault) = copy.state {
                let at = copy.offset_bytes;
                findings.weak(Code::SuperblockCopy, format_args!("the copy at byte {at} {fault}"));
            }
        }
    }
}

#[cfg(test)]
mod tests;
