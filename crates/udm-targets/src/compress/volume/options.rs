//! What a host says about how a volume should work, and what the volume says about itself.
//!
//! Rules. Plain values. Every budget has its reason beside it; what a table line can set and what
//! it cannot is the business of the target's `args.rs`.

use crate::compress::codec::CoderChoice;
use crate::compress::format::checkpoint::CheckpointContents;
use crate::compress::format::superblock::SuperblockFault;
use core::fmt;
use udm_lane::Payload;
use udm_meta::DiskError;
use udm_meta::page::{PageFault, PageName};
use udm_meta::record::LogPlace;
use udm_types::{BioFlags, Nanos, Op, Status};

/// How a volume works. Nothing of it is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A write is done when it is in memory, and its record is written after so long at the latest.
    /// Without: a write is done when its record is written (writethrough).
    pub writeback: Option<Nanos>,
    /// How new data is compressed; without, as the volume's superblock says.
    pub coder: Option<CoderChoice>,
    /// The longest extent in blocks, at most the volume's own limit; without, that limit.
    pub extent_blocks: Option<u8>,
    /// Memory for changes that are not in map pages yet.
    pub delta_bytes: usize,
    /// Memory for map pages.
    pub cache_bytes: usize,
    /// Memory for data that is not written yet.
    pub buffer_bytes: usize,
    /// A checkpoint is made after so much log: what a recovery reads at most.
    pub checkpoint_log_bytes: u64,
    /// Also when nothing was written for so long and there are changes worth the memory.
    pub quiet_before_checkpoint: Nanos,
    /// Freed segments are discarded below.
    pub discard_passdown: bool,
    /// Dead parts of used segments are discarded below, in multiples of so many bytes; without,
    /// they are not.
    pub punch_granularity_bytes: Option<u64>,
    /// The disk has a volatile cache, so that flushes are needed.
    pub has_volatile_cache: bool,
    /// What happens to writes when no space is left.
    pub no_space: NoSpace,
    /// Tell the order in which requests are accepted; for tests.
    pub tells_accepts: bool,
}

/// What happens to writes when no space is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSpace {
    /// They fail at once.
    Error,
    /// They wait so long for space, and fail then.
    Queue {
        /// How long.
        timeout: Nanos,
    },
}

impl Default for Options {
    fn default() -> Options {
        Options {
            writeback: Some(Nanos::from_secs(1)),
            coder: None,
            extent_blocks: None,
            // About two million changes twice: what is being collected, what is being folded in.
            delta_bytes: 128 << 20,
            // 4 KiB of map are 2 MiB of data: 8 GiB of it at one read each.
            cache_bytes: 16 << 20,
            // Enough for a disk to be busy with some full records while others are filled.
            buffer_bytes: 8 << 20,
            // Half a second to two of reading at a recovery.
            checkpoint_log_bytes: 4 << 30,
            // Longer than the pauses of a busy host, short for memory that others could use.
            quiet_before_checkpoint: Nanos::from_secs(5),
            discard_passdown: true,
            punch_granularity_bytes: None,
            has_volatile_cache: true,
            no_space: NoSpace::Queue { timeout: Nanos::from_secs(60) },
            tells_accepts: false,
        }
    }
}

/// A request to a volume.
#[derive(Clone, Debug)]
pub struct Request {
    /// The host's name for it; comes back with its end.
    pub ticket: u64,
    /// What to do.
    pub op: Op,
    /// FUA and PREFLUSH count; other flags are the engine's business.
    pub flags: BioFlags,
    /// Where, a multiple of 512.
    pub offset_bytes: u64,
    /// How long, a multiple of 512; 0 for a flush.
    pub len_bytes: u64,
    /// The data, as long as the range, of reads and writes. It comes back with the end; what a read
    /// finds is made in place if nobody else has a handle on the memory.
    pub payload: Payload,
}

/// What a volume can do right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It reads its log; requests wait.
    Recovering,
    /// Everything.
    Serving,
    /// It reads, and refuses to write.
    ReadOnly(Trouble),
    /// Nothing.
    Failed(Trouble),
}

/// Why a volume does not do everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No superblock was found: not formatted, or another format.
    NotFormatted,
    /// The superblock cannot be used.
    Superblock(SuperblockFault),
    /// The disk is smaller than the volume.
    DiskTooSmall {
        /// What it has.
        have_bytes: u64,
        /// What the volume was made for.
        need_bytes: u64,
    },
    /// Neither checkpoint is whole.
    NoCheckpoint,
    /// The newest checkpoint cannot be used.
    Checkpoint(CheckpointContents),
    /// A page of the map or of the segment table is damaged.
    Page(PageName, PageFault),
    /// An entry in a page that nobody writes.
    Entry(PageName),
    /// The map points to a segment more often than the segment table says, or outside.
    Counts {
        /// The segment.
        segment: u32,
    },
    /// Records that were durable are damaged; what follows them is lost.
    LogDamaged {
        /// The first one that cannot be read.
        sequence: u64,
        /// Where it should be.
        place: LogPlace,
    },
    /// The disk failed where the volume cannot go on.
    Disk(DiskError),
    /// The volume was marked: it has to be checked first.
    NeedsCheck,
    /// The volume was marked read-only for good.
    MarkedReadOnly,
}

/// Something people may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The volume serves.
    Recovered {
        /// Records found behind the checkpoint.
        records: u64,
    },
    /// It changed to a worse state.
    Troubled(Trouble),
    /// Blocks cannot be read: what the disk has for them is damaged.
    BlocksLost {
        /// The first one.
        first_block: u64,
        /// How many.
        blocks: u64,
    },
    /// Free space is below the low-water mark.
    LowSpace,
    /// Writes wait or fail: no space is left.
    OutOfSpace,
    /// There is space again.
    SpaceAgain,
}

/// The ticket under which the cut of a shrink is told as accepted: it has its place in the order,
/// but is no request.
pub const TICKET_OF_CUT: u64 = u64::MAX;

/// The end of a request.
#[derive(Clone, Debug)]
pub struct Done {
    /// Which.
    pub ticket: u64,
    /// How it went.
    pub status: Status,
    /// The request's own; of a read that went well, with the data in it.
    pub payload: Payload,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::NotFormatted => f.write_str("no compress volume is on the device"),
            Trouble::Superblock(fault) => write!(f, "the superblock cannot be used: {fault}"),
            Trouble::DiskTooSmall { have_bytes, need_bytes } => {
                write!(f, "the device has {have_bytes} bytes, the volume needs {need_bytes}")
            }
            Trouble::NoCheckpoint => f.write_str("neither checkpoint is whole"),
            Trouble::Checkpoint(fault) => write!(f, "the newest checkpoint {fault}"),
            Trouble::Page(name, fault) => {
                write!(f, "metadata page {} of kind {} {fault}", name.page, name.kind)
            }
            Trouble::Entry(name) => {
                write!(f, "metadata page {} of kind {} makes no sense", name.page, name.kind)
            }
            Trouble::Counts { segment } => {
                write!(f, "the map and the table of segments disagree about segment {segment}")
            }
            Trouble::LogDamaged { sequence, place } => write!(
                f,
                "record {sequence} in segment {} at byte {} was durable and is damaged",
                place.segment, place.offset_bytes
            ),
            Trouble::Disk(error) => write!(f, "the device failed: {error}"),
            Trouble::NeedsCheck => f.write_str("damage was seen earlier; check the volume"),
            Trouble::MarkedReadOnly => f.write_str("the volume is marked read-only"),
        }
    }
}
