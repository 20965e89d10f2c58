//! What a check can find, and how bad it is.
//!
//! Codes are stable words for programs; texts are for people. A list has a bound, so that a volume
//! with a million broken entries does not fill the memory; the rest is counted.

use super::{CheckReport, Counts};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A crash leaves it; nothing is wrong.
    Normal,
    /// A copy is lost or doubtful; no data is.
    Weak,
    /// A rule is broken; data is lost, or may be.
    Damage,
}

/// What kind of thing was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// No superblock, or none that can be used.
    Superblock,
    /// A copy of the superblock.
    SuperblockCopy,
    /// The size of the device.
    DeviceSize,
    /// No checkpoint, or none that can be used.
    Checkpoint,
    /// A checkpoint slot.
    CheckpointSlot,
    /// The volume's own flags.
    Flags,
    /// A page of the segment table.
    SegmentPage,
    /// An entry of the segment table.
    SegmentEntry,
    /// The count of live blocks of a segment.
    LiveCount,
    /// The sum over the segment table.
    LiveSum,
    /// A region of map pages in a segment.
    Region,
    /// A page of the map.
    MapPage,
    /// An entry of the map.
    MapEntry,
    /// An extent.
    Extent,
    /// Two extents in one place.
    Overlap,
    /// The log.
    Log,
    /// Blocks that are lost and say so.
    Poisoned,
}

impl Severity {
    /// The word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Normal => "normal",
            Severity::Weak => "weak",
            Severity::Damage => "damage",
        }
    }
}

impl Code {
    /// The word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Code::Superblock => "superblock",
            Code::SuperblockCopy => "superblock-copy",
            Code::DeviceSize => "device-size",
            Code::Checkpoint => "checkpoint",
            Code::CheckpointSlot => "checkpoint-slot",
            Code::Flags => "flags",
            Code::SegmentPage => "segment-page",
            Code::SegmentEntry => "segment-entry",
            Code::LiveCount => "live-count",
            Code::LiveSum => "live-sum",
            Code::Region => "region",
            Code::MapPage => "map-page",
            Code::MapEntry => "map-entry",
            Code::Extent => "extent",
            Code::Overlap => "overlap",
            Code::Log => "log",
            Code::Poisoned => "poisoned",
        }
    }
}

/// A rule that does not hold, or something worth knowing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of thing it is.
    pub code: Code,
    /// For people: which one, and what about it.
    pub text: String,
}

/// Findings as they come, and what of the map they cost.
pub(in crate::compress::tools) struct Findings {
    kept: Vec<Finding>,
    limit: usize,
    hidden: u64,
    worst: Option<Severity>,
    lost: Lost,
}

/// What of the map cannot be believed; for `repair`.
#[derive(Clone, Debug, Default)]
pub(in crate::compress::tools) struct Lost {
    /// Map pages.
    pub(in crate::compress::tools) pages: Vec<u64>,
    /// Blocks of other pages.
    pub(in crate::compress::tools) blocks: Vec<u64>,
    /// True if there were more blocks than are kept.
    pub(in crate::compress::tools) is_more: bool,
}

/// Lost blocks that are kept: 32 MiB of numbers.
const LOST_BLOCKS_MAX: usize = 4 << 20;

impl Findings {
    pub(in crate::compress::tools) fn new(limit: usize) -> Findings {
        Findings { kept: Vec::new(), limit, hidden: 0, worst: None, lost: Lost::default() }
    }

    /// A map page is damaged.
    pub(super) fn lose_page(&mut self, page: u64) {
        self.lost.pages.push(page);
    }

    /// A block's map entry, or what it means, is damaged.
    pub(super) fn lose_block(&mut self, block: u64) {
        if self.lost.blocks.len() < LOST_BLOCKS_MAX {
            self.lost.blocks.push(block);
        } else {
            self.lost.is_more = true;
        }
    }

    /// What of the map cannot be believed, taken.
    pub(in crate::compress::tools) fn take_lost(&mut self) -> Lost {
        core::mem::take(&mut self.lost)
    }

    pub(super) fn normal(&mut self, code: Code, text: fmt::Arguments<'_>) {
        self.add(Severity::Normal, code, text);
    }

    pub(super) fn weak(&mut self, code: Code, text: fmt::Arguments<'_>) {
        self.add(Severity::Weak, code, text);
    }

    pub(super) fn damage(&mut self, code: Code, text: fmt::Arguments<'_>) {
        self.add(Severity::Damage, code, text);
    }

    fn add(&mut self, severity: Severity, code: Code, text: fmt::Arguments<'_>) {
        self.worst = self.worst.max(Some(severity));
        if self.kept.len() < self.limit {
            self.kept.push(Finding { severity, code, text: alloc::format!("{text}") });
        } else {
            self.hidden += 1;
        }
    }

    pub(in crate::compress::tools) fn into_report(self, counts: Counts) -> CheckReport {
        let Findings { kept: findings, limit: _, hidden, worst, lost: _ } = self;
        CheckReport { counts, findings, hidden, worst }
    }
}
