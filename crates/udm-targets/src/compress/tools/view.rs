//! A volume as its newest checkpoint describes it, for tools that look at it offline.
//!
//! [`open`] finds superblock and checkpoint; [`View`] then gives pages and the segment table. The
//! log behind the checkpoint is `log.rs`'s.
//!
//! Rules. Reads only. Pages are read in runs, since a map is long; where a run cannot be read its
//! pages are tried one by one, so that one bad sector costs one page.
//!
//! The tricky case is memory: a slot array may claim millions of pages, so pages are never kept,
//! they are shown to a visitor and forgotten.

use crate::compress::format::checkpoint::CheckpointContents;
use crate::compress::format::map::{KIND_MAP, KIND_SEGMENTS, segment_entry};
use crate::compress::format::superblock::SuperblockFault;
use crate::compress::format::{Checkpoint, SegmentEntry, Superblock};
use alloc::vec::Vec;
use core::fmt;
use udm_meta::Disk;
use udm_meta::bytes::read_vec;
use udm_meta::checkpoint::CheckpointFault;
use udm_meta::page::{PAGE_BYTES, PAGE_HEAD_BYTES, PAGE_PAIR_BYTES, PageFault, PageName};
use udm_meta::superblock::CopyReport;

/// Who is shown the bodies of pages, or what is wrong with them.
pub type PageVisit<'a> = &'a mut dyn FnMut(u64, Result<&[u8], PageFault>);

/// Pages of one read: half a megabyte.
const RUN_PAGES: u64 = 64;

/// A volume that can be looked at.
#[derive(Clone, Debug)]
pub struct View {
    /// Its superblock.
    pub superblock: Superblock,
    /// Its newest checkpoint.
    pub checkpoint: Checkpoint,
    /// Each superblock copy.
    pub copies: Vec<CopyReport>,
    /// Each checkpoint slot: its number, or what is wrong.
    pub slots: [Result<u64, CheckpointFault>; 2],
}

/// Why there is nothing to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenFault {
    /// No copy of the superblock is whole.
    NoSuperblock(Vec<CopyReport>),
    /// The superblock cannot be used.
    Superblock(SuperblockFault),
    /// The device is shorter than the volume.
    Short {
        /// What the volume needs.
        needed_bytes: u64,
    },
    /// No checkpoint is whole.
    NoCheckpoint([CheckpointFault; 2]),
    /// The newest checkpoint cannot be used.
    Checkpoint(u64, CheckpointContents),
}

/// Looks for the volume on `disk`.
///
/// # Errors
/// Why there is none that can be looked at.
pub async fn open(disk: &Disk) -> Result<View, OpenFault> {
    let found = Superblock::find(disk).await;
    let Some(parsed) = found.superblock else {
        return Err(OpenFault::NoSuperblock(found.reports));
    };
    let superblock = parsed.map_err(OpenFault::Superblock)?;
    let needed_bytes = superblock.geometry.device_bytes;
    if disk.len_bytes() < needed_bytes {
        return Err(OpenFault::Short { needed_bytes });
    }
    let pair = superblock.checkpoint_slots().read(disk).await;
    let slots = [0, 1].map(|slot: usize| match &pair.slots[slot] {
        Ok(image) => Ok(image.number()),
        Err(fault) => Err(*fault),
    });
    let Some(newest) = pair.newest() else {
        let faults = slots.map(|slot| slot.err().unwrap_or(CheckpointFault::Magic));
        return Err(OpenFault::NoCheckpoint(faults));
    };
    let checkpoint = Checkpoint::parse(&superblock, newest)
        .map_err(|contents| OpenFault::Checkpoint(newest.number(), contents))?;
    Ok(View { superblock, checkpoint, copies: found.reports, slots })
}

impl View {
    /// What a page is called.
    pub fn name_of(&self, page: u64) -> PageName {
        let is_map = page >= self.superblock.geometry.segment_pages;
        PageName { kind: if is_map { KIND_MAP } else { KIND_SEGMENTS }, page }
    }

    /// Shows the bodies of pages `first..end`, or what is wrong with them, in order; pages never
    /// written are left out.
    pub async fn visit_pages(&self, disk: &Disk, first: u64, end: u64, visit: PageVisit<'_>) {
        let mut page = first;
        while page < end {
            let run_end = self.run_end(page, end);
            if (page..run_end).all(|page| self.checkpoint.slots.get(page).is_none()) {
                page = run_end;
                continue;
            }
            let bytes = self.read_run(disk, page, run_end).await;
            for each in page..run_end {
                let Some(slot) = self.checkpoint.slots.get(each) else { continue };
                let at =
                    ((each - page) * PAGE_PAIR_BYTES + slot.index() * PAGE_BYTES as u64) as usize;
                match &bytes {
                    Some(bytes) => {
                        let image = &bytes[at..at + PAGE_BYTES];
                        let verified = self.verify(each, image);
                        visit(each, verified.map(|()| &image[PAGE_HEAD_BYTES..]));
                    }
                    None => {
                        let image = self.page(disk, each).await;
                        let image = image.as_ref().map_err(|fault| *fault);
                        visit(each, image.map(|image| &image[PAGE_HEAD_BYTES..]));
                    }
                }
            }
            page = run_end;
        }
    }

    /// The end of a run that lies in one region.
    fn run_end(&self, page: u64, end: u64) -> u64 {
        let regions = self.checkpoint.regions.as_slice();
        let region_end = regions
            .iter()
            .map(|region| region.first_page + region.page_count)
            .find(|region_end| page < *region_end)
            .unwrap_or(end);
        end.min(region_end).min(page + RUN_PAGES)
    }

    async fn read_run(&self, disk: &Disk, page: u64, end: u64) -> Option<Vec<u8>> {
        let at = self.checkpoint.regions.offset_bytes(page, udm_meta::slots::Slot::A)?;
        let len = usize::try_from((end - page) * PAGE_PAIR_BYTES).ok()?;
        read_vec(disk, at, len).await.ok()
    }

    fn verify(&self, page: u64, image: &[u8]) -> Result<(), PageFault> {
        let marks = self.superblock.page_marks();
        marks.verify(self.name_of(page), self.checkpoint.number, image).map(|_checkpoint| ())
    }

    /// One page with its header, from the slot the checkpoint names; zeroes if never written.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn page(&self, disk: &Disk, page: u64) -> Result<Vec<u8>, PageFault> {
        let Some(slot) = self.checkpoint.slots.get(page) else {
            return Ok(alloc::vec![0; PAGE_BYTES]);
        };
        let at = self.checkpoint.regions.offset_bytes(page, slot).unwrap_or(u64::MAX);
        let marks = self.superblock.page_marks();
        marks.read(disk, at, self.name_of(page), self.checkpoint.number).await
    }

    /// The segment table; nothing where its page is damaged or the entry is none. `fault` hears of
    /// each damaged page.
    pub async fn segment_table(
        &self,
        disk: &Disk,
        fault: &mut dyn FnMut(u64, PageFault),
    ) -> Vec<Option<SegmentEntry>> {
        let geometry = &self.superblock.geometry;
        let count = self.checkpoint.head.segments;
        let mut table = alloc::vec![Some(Superblock::untouched_segment()); count as usize];
        let pages = geometry.segment_page_of(count - 1).0 + 1;
        let per_page = crate::compress::format::geometry::SEGMENT_ENTRIES as usize;
        let mut visit = |page: u64, body: Result<&[u8], PageFault>| {
            let first = page as usize * per_page;
            let end = (first + per_page).min(table.len());
            for (index, entry) in table[first..end].iter_mut().enumerate() {
                *entry = body.ok().and_then(|body| segment_entry(body, index));
            }
            if let Err(found) = body {
                fault(page, found);
            }
        };
        self.visit_pages(disk, 0, pages, &mut visit).await;
        table
    }
}

impl fmt::Display for OpenFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenFault::NoSuperblock(_copies) => {
                f.write_str("there is no compress volume here: no copy of a superblock is whole")
            }
            OpenFault::Superblock(fault) => write!(f, "the superblock cannot be used: {fault}"),
            OpenFault::Short { needed_bytes } => {
                write!(f, "the device is shorter than the volume, which has {needed_bytes} bytes")
            }
            OpenFault::NoCheckpoint([first, second]) => {
                write!(f, "no checkpoint is whole: slot 0 {first}, slot 1 {second}")
            }
            OpenFault::Checkpoint(number, contents) => write!(f, "checkpoint {number} {contents}"),
        }
    }
}
