//! Mends a volume, and says what it could not save.
//!
//! | what is wrong | what is done |
//! |---|---|
//! | a superblock copy | written again from the best one |
//! | the segment table | made anew from the map |
//! | a map page | made anew from the record tables (`records.rs`) |
//! | an extent, or a map entry that makes no sense | its blocks are poisoned: reads are errors |
//! | the log, with durable records missing | cut off there, if that is allowed |
//! | both checkpoints, or the whole map is doubted | everything is made anew from the records |
//!
//! Rules. Never older data in place of lost data: the highest sequence of a block wins, and if its
//! extent is damaged the block is poisoned. All changes go to slots that the current checkpoint
//! does not name, and count when the new checkpoint is durable: a crash in between changes nothing.
//! Without [`RepairRequest::may_write`] nothing is written.
//!
//! The tricky case is a discarded block of a page that has to be made anew: the record that
//! unmapped it may be in a segment that was reused since, while the data it unmapped is still
//! there. Such blocks come back to life; [`RepairReport::may_resurrect`] says that it may have
//! happened.

mod base;
mod records;
mod write;

use super::check::{self, CheckReport, CheckRequest, Counts, Findings, Lost};
use super::log::{self, LogEnd};
use super::view::{self, OpenFault, View};
use super::{ToolError, Watch};
use crate::compress::format::{CheckpointFlags, SegmentEntry};
use alloc::string::ToString;
use alloc::vec::Vec;
use core::ops::Range;
use udm_meta::Disk;
use udm_meta::chain::Fence;
use udm_meta::superblock::write_copies;
use write::Work;

/// What a repair may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairRequest {
    /// How to look.
    pub check: CheckRequest,
    /// Write; without, only what is wrong is told.
    pub may_write: bool,
    /// Give up the rest of a log from which durable records are missing.
    pub may_truncate: bool,
    /// Make the whole map anew from the records, whatever it looks like.
    pub rebuild: bool,
    /// The logical size, in case no checkpoint tells it; if nobody tells it, it is taken from the
    /// records.
    pub logical_blocks: Option<u64>,
}

/// What a repair did.
#[derive(Clone, Debug)]
pub struct RepairReport {
    /// What was wrong.
    pub found: CheckReport,
    /// True if something was written.
    pub wrote: bool,
    /// The checkpoint of the mended volume.
    pub checkpoint: u64,
    /// Map pages made anew.
    pub rebuilt_pages: u64,
    /// Blocks that were lost, in order; the first few ranges.
    pub poisoned: Vec<Range<u64>>,
    /// How many blocks that are in all.
    pub poisoned_blocks: u64,
    /// The first record that was given up, if the log was cut.
    pub truncated_before: Option<u64>,
    /// Blocks discarded long ago may be back.
    pub may_resurrect: bool,
}

/// Ranges of lost blocks that are listed.
const RANGES_MAX: usize = 1000;

impl RepairReport {
    fn new(found: CheckReport, checkpoint: u64) -> RepairReport {
        RepairReport {
            found,
            wrote: false,
            checkpoint,
            rebuilt_pages: 0,
            poisoned: Vec::new(),
            poisoned_blocks: 0,
            truncated_before: None,
            may_resurrect: false,
        }
    }

    fn poison(&mut self, block: u64) {
        self.poisoned_blocks += 1;
        if let Some(last) = self.poisoned.last_mut().filter(|last| last.end == block) {
            last.end += 1;
        } else if self.poisoned.len() < RANGES_MAX {
            self.poisoned.push(block..block + 1);
        }
    }
}

/// Mends the volume on `disk`.
///
/// # Errors
/// Why nothing was done; or the disk's error, with the volume as it was before.
pub async fn repair(
    disk: &Disk,
    request: &RepairRequest,
    watch: Watch<'_>,
) -> Result<RepairReport, ToolError> {
    let found = check::check(disk, &request.check, watch).await;
    let (view, is_synthetic) = match view::open(disk).await {
        Ok(view) => (view, false),
        Err(fault @ (OpenFault::NoCheckpoint(_) | OpenFault::Checkpoint(..))) => {
            if !request.rebuild {
                return Err(ToolError::NeedsRebuild(fault.to_string()));
            }
            (base::without_checkpoint(disk, request.logical_blocks, watch).await?, true)
        }
        Err(fault) => return Err(ToolError::Unusable(fault.to_string())),
    };
    let mut report = RepairReport::new(found, view.checkpoint.number);
    let is_all_well =
        report.found.findings.iter().all(|found| found.severity == check::Severity::Normal);
    if !request.may_write || (is_all_well && report.found.hidden == 0 && !request.rebuild) {
        return Ok(report);
    }
    let end = log::walk(disk, &view, &mut |_place, _record| ()).await;
    if end.is_damaged && !request.may_truncate {
        let sequence = end.chain.next_sequence;
        return Err(ToolError::NeedsTruncate { sequence });
    }
    let scope = match (is_synthetic, request.rebuild) {
        (true, _) => Scope::Everything,
        (false, true) => Scope::Map,
        (false, false) => Scope::Pieces,
    };
    let job = Job { request, scope, end };
    mend(disk, &job, view, &mut report, watch).await?;
    Ok(report)
}

/// How much is made anew.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Damaged pages and entries.
    Pieces,
    /// The whole map; the segment table says where records are.
    Map,
    /// The whole map, and nothing says where records are.
    Everything,
}

/// What is to be done.
struct Job<'a> {
    request: &'a RepairRequest,
    scope: Scope,
    /// Where the log ends.
    end: LogEnd,
}

async fn mend(
    disk: &Disk,
    job: &Job<'_>,
    view: View,
    report: &mut RepairReport,
    watch: Watch<'_>,
) -> Result<(), ToolError> {
    let Job { request, scope, end } = job;
    let (mut table, mut lost) = look(disk, &view, request, watch).await;
    let mut work = Work::new(view);
    if *scope == Scope::Everything {
        table.fill(None);
    }
    if *scope != Scope::Pieces {
        lost.blocks.clear();
        lost.is_more = false;
        lost.pages = work.map_pages().collect();
    }
    if lost.is_more {
        return Err(ToolError::NeedsRebuild("more blocks are damaged than can be listed".into()));
    }
    if !lost.pages.is_empty() {
        report.rebuilt_pages = lost.pages.len() as u64;
        report.may_resurrect = true;
        records::rebuild(disk, &mut work, &table, &lost.pages, watch).await?;
    }
    work.poison(disk, &lost.blocks, report).await?;
    if !lost.pages.is_empty() {
        // What the records led to may be damaged in its turn.
        let (_table, more) = look(disk, &work.view, request, watch).await;
        if more.is_more || !more.pages.is_empty() {
            return Err(ToolError::Unusable("the device does not keep what is written".into()));
        }
        work.poison(disk, &more.blocks, report).await?;
    }
    work.write_table(disk, &table, watch).await?;
    let head = &mut work.view.checkpoint.head;
    let last = end.chain.next_sequence.wrapping_sub(1);
    head.epoch = head.epoch.saturating_add(1);
    head.fence = Fence { sequence: last, epoch: head.epoch };
    head.flags = CheckpointFlags::empty();
    work.commit(disk).await?;
    let superblock = work.view.superblock;
    let places = superblock.geometry.superblock_offsets();
    write_copies(disk, &places, &superblock.to_image()).await?;
    report.wrote = true;
    report.checkpoint = work.view.checkpoint.number;
    report.truncated_before = end.is_damaged.then_some(end.chain.next_sequence);
    Ok(())
}

/// Everything the check finds in a view, as far as the map is concerned.
async fn look(
    disk: &Disk,
    view: &View,
    request: &RepairRequest,
    watch: Watch<'_>,
) -> (Vec<Option<SegmentEntry>>, Lost) {
    let mut findings = Findings::new(0);
    let mut counts = Counts::default();
    let check = CheckRequest { reads_extents: true, ..request.check };
    let table = check::examine(disk, view, &check, &mut counts, &mut findings, watch).await;
    let mut lost = findings.take_lost();
    lost.blocks.sort_unstable();
    lost.blocks.dedup();
    (table, lost)
}

#[cfg(test)]
mod tests;
