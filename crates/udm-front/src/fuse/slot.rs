//! A slot of a mount's server: one request at a time, in a buffer of its own.
//!
//! ```text
//! buffer:  | small answers | ... | head of a message | payload of a write, aligned to a page ...
//!          0               128   4016                4096
//! read:                    ... | head of its answer | the data, read here by the device
//! ```
//!
//! What moves it on is in `server`, `work` and `exchange`.

use super::change::Change;
use super::exchange::Lent;
use super::session::IO_BYTES_MAX;
use super::wire::WRITE_HEAD_BYTES;
use udm_lane::{Buf, Segment};

/// Requests of a mount served at a time on a lane. Each has a buffer of its own (a little more than
/// 1 MiB, of which only what was used takes memory), and 64 keep any disk busy.
pub(super) const SLOTS: usize = 64;

/// Where the payload of a write arrives and the data of a read goes to.
pub(super) const DATA_AT: usize = 4096;
/// The largest block of a device; edges of unaligned reads need one on each side.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// A slot's buffer.
pub(super) const BUF_BYTES: usize = DATA_AT + IO_BYTES_MAX as usize + 2 * BLOCK_BYTES_MAX;
/// What a read of `/dev/fuse` offers: the kernel wants room for the longest write.
pub(super) const MESSAGE_BYTES: usize = WRITE_HEAD_BYTES + IO_BYTES_MAX as usize;
/// Where a message arrives.
pub(super) const MESSAGE_AT: usize = DATA_AT - WRITE_HEAD_BYTES;

/// Where a slot is on its round.
#[derive(Debug)]
pub(super) enum Phase {
    /// Not in use: the mount ends.
    Idle,
    /// Waits for a message.
    Receiving,
    /// Reads: the request's first byte and length, and where its blocks begin.
    Reading { unique: u64, start: u64, len_bytes: u32, from: u64 },
    /// Waits for other changes of the same blocks.
    Waiting,
    /// Changes whole blocks, up to here.
    Plain { change: Change, to: u64 },
    /// Patches: reads the blocks, then writes them back.
    Patching(Patch),
    /// Flushes.
    Flushing { unique: u64 },
    /// Sends its answer.
    Answering,
}

/// A patch on its way: `change.cursor..end` goes over the blocks `from..to`.
#[derive(Debug)]
pub(super) struct Patch {
    pub(super) change: Change,
    pub(super) end: u64,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) blocks: Buf,
    /// The blocks are being written back.
    pub(super) writes: bool,
}

pub(super) struct Slot {
    pub(super) buf: Buf,
    pub(super) phase: Phase,
    /// The number of the patch it does.
    pub(super) patch: Option<u32>,
    /// What the kernel has of it, if it goes round without `/dev/fuse`.
    pub(super) lent: Option<Lent>,
}

/// A piece of a slot's buffer.
pub(super) fn segment(buf: &Buf, begin: usize, len: usize) -> Segment {
    // Both fit: a buffer is little more than 1 MiB.
    Segment { buf: buf.clone(), offset_bytes: begin as u32, len_bytes: len as u32 }
}
