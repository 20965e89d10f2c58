//! The offline tools of a compress volume, as pure async functions over the port `Disk`.
//!
//! | module | does |
//! |---|---|
//! | [`format`] | lays out a new volume |
//! | [`check`] | proves every rule of the format |
//! | [`import`] | reads what the ancestors wrote |
//! | [`repair`] | mends what can be mended, and says what could not be saved |
//! | [`dump`], [`stat`] | show what is there: everything, or the numbers |
//! | [`view`], [`log`] | a volume as its checkpoint describes it, and the log behind it |
//!
//! Their host is `udm compress` (a file or a block device); tests and fuzzers run them on memory.
//!
//! Rules. No tool panics, whatever the device holds: a broken volume is what they are for. A tool
//! that only looks never writes. Memory is bounded whatever the sizes on the disk claim. Nobody
//! may use the volume meanwhile; that is for the host to see to.
//!
//! The tricky case is an error of the disk itself: `check` goes on and lists what it could not
//! read; a tool that writes stops at the first failure and says where.

use crate::compress::format::geometry::GeometryFault;
use alloc::string::String;
use core::fmt;
use udm_meta::DiskError;

pub mod check;
pub mod dump;
pub mod format;
pub mod import;
pub mod log;
pub mod repair;
pub(crate) mod sample;
pub mod stat;
pub mod view;

/// How far a tool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it does now, for people.
    pub step: &'static str,
    /// Done, in the step's own measure.
    pub done: u64,
    /// All of it.
    pub total: u64,
}

/// Who wants to know how far a tool is.
pub type Watch<'a> = &'a mut dyn FnMut(Progress);

/// Why a tool gave up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolError {
    /// The disk failed.
    Disk(DiskError),
    /// The sizes do not fit.
    Geometry(GeometryFault),
    /// The logical size asked for is larger than the volume can map.
    LogicalTooLarge {
        /// The largest possible, in bytes.
        limit_bytes: u64,
    },
    /// The volume is damaged beyond what can be mended piece by piece.
    NeedsRebuild(String),
    /// Durable records are missing from the log; what follows has to be given up.
    NeedsTruncate {
        /// The first missing record.
        sequence: u64,
    },
    /// There is nothing to work on.
    Unusable(String),
    /// The logical size asked for is not a multiple of 4096, or is zero.
    LogicalUneven,
}

impl From<DiskError> for ToolError {
    fn from(error: DiskError) -> ToolError {
        ToolError::Disk(error)
    }
}

impl From<GeometryFault> for ToolError {
    fn from(fault: GeometryFault) -> ToolError {
        ToolError::Geometry(fault)
    }
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ToolError::Disk(error) => write!(f, "the device failed: {error}"),
            ToolError::Geometry(fault) => write!(f, "{fault}"),
            ToolError::LogicalTooLarge { limit_bytes } => {
                write!(f, "the logical size is limited to {limit_bytes} bytes")
            }
            ToolError::NeedsRebuild(why) => {
                write!(f, "the map has to be made anew from the records: {why}")
            }
            ToolError::NeedsTruncate { sequence } => {
                write!(f, "record {sequence} of the log is missing, and was durable")
            }
            ToolError::Unusable(why) => f.write_str(why),
            ToolError::LogicalUneven => {
                f.write_str("the logical size is not a positive multiple of 4096 bytes")
            }
        }
    }
}
