//! Request-based devices: bios are merged and sorted into requests before the target sees them.
//!
//! Each lane has a [`RequestQueue`] for each such device. A bio that passed the gate is put there;
//! at the end of the loop turn the queue is unplugged: sorted, neighbours joined into one request,
//! each request mapped through the doorway by the same `Target::map` and `end_io` as a bio. What a
//! target pushes back waits here and is mapped again, suspended or not.
//! ```text
//!   bio --gate--> pending --end of turn--> sort, merge --map--> started (in flight) --> done
//!                                            ^                     |
//!                      requeued  <-- timer --+-- delayed <---------+ requeue, delay
//! ```
//! Files: `dispatch` (queue, plug, map), `merge` (requests of several bios), `wait` (what was
//! pushed back, and what suspend, resume, abort and removal do with it).
//!
//! A stream of small bios on a deep queue gains little from one turn, where two or three of them
//! meet. So a request that continues one that was started waits to grow while others are under way,
//! until it has half of the bios that are outstanding, or 256 KiB, or nothing is under way, or 1 ms
//! is over. Of one or two bios outstanding, or of bios in random places, none ever waits.
//!
//! Rules. A request that is *started* has a frame of the device and is counted by the gate, like
//! any bio; one that waits here has neither. So a suspend, of either kind, ends while requests
//! wait; they are mapped by the table that resumes, ahead of newer I/O, in the order of their
//! oldest bio. A barrier waits for both. A bio completes only when its request's fate is known;
//! nothing of a request is given back for reuse before its bios are on their way. In steady state
//! nothing here allocates.
//!
//! A request of one bio *is* that bio: it costs no second one. A request of several is a bio of its
//! own (the carrier), whose payload lists the segments of all; `merge.rs` has them.
//!
//! Partial completion. Linux completes the bios of a request one by one as far as the lower driver
//! got. Our lower devices and targets answer a bio as a whole, so there is nothing to report, and
//! nothing is made up. What users see of it is kept another way: a request of several bios that
//! failed for what may concern a part of it (a medium error, say) is taken apart, and each bio goes
//! alone once more, so that only the bad one fails.

mod dispatch;
mod merge;
mod wait;

use crate::bio::{BioBox, BioClass};
use crate::lifecycle::RequestGauges;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
pub(super) use merge::Requests;
use udm_types::{BioFlags, DeviceFeatures, Nanos, Op, QueueLimits, Sector};
pub(super) use wait::Again;

/// Segments of a request at the most: one system call takes 1024 (`UIO_MAXIOV`), and a lower device
/// may add some of its own. 256 bios of 4 KiB make 1 MiB, where larger requests gain nothing.
const SEGMENTS_MAX: usize = 256;

/// Requests that wait for the end of the turn at the most: as many as bios are started in a turn,
/// so that only bios that are cut into many pieces can reach it.
const PENDING_MAX: usize = 512;

/// The requests of a device on one lane that have not been started.
#[derive(Debug, Default)]
pub(crate) struct RequestQueue {
    /// New ones, in the order they came, until the end of the turn or until they have grown.
    pending: Vec<Waiting>,
    /// Empty memory that changes places with `pending`.
    spare: Vec<Waiting>,
    /// Pushed back, ordered by sequence number; mapped in the next turn, or at resume.
    requeued: VecDeque<Waiting>,
    /// Pushed back with a pause, ordered by when they are due.
    delayed: VecDeque<(Nanos, Waiting)>,
    /// The lane knows that `pending` has something.
    plugged: bool,
    /// Since when `pending` has requests that wait to grow.
    growing_since: Option<Nanos>,
    /// A timer ends that wait.
    growth_timer: bool,
    /// Where requests started last ended, as keys: what continues one of them is a stream.
    ends: [u64; STREAMS],
    next_end: usize,
    /// Bios joined to others that have not completed.
    joined: u64,
    /// The lane knows that `requeued` has something to map.
    kicked: bool,
    /// When the one timer for `delayed` fires.
    timer: Option<Nanos>,
    /// Requests of several bios and FUA writes that are not over. A barrier waits for them, too: as
    /// long as one is not over it may come back here.
    unsettled: u32,
    max_sectors: Sector,
    /// A FUA write needs a flush after it: there is a cache below and no FUA.
    fua_by_flush: bool,
    gauges: RequestGauges,
}

/// Streams a queue knows; a lane serves few connections, and each is one stream or none.
const STREAMS: usize = 4;

/// Bios are joined up to this length (128 KiB); requests of this length do not wait to grow. The
/// cost of a request is small beside that of its data by then, and a deep stream becomes several
/// requests that are under way at once, on several paths; one huge request would wait for its own
/// end. A single bio may be longer.
const JOINED_SECTORS: Sector = 256;

/// How long a request waits to grow at the most. Only a dead device below makes it that long.
const GROWTH_TIME: Nanos = Nanos(1_000_000);

/// A request that has not been started.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// What it is (see [`key_of`]) and where: the order of dispatch, and who can be joined to whom.
    key: u64,
    /// The place in the device's order of submission of its oldest bio.
    seq: u64,
    bio: BioBox,
}

/// Where the kind begins in a key; sectors are below 2^54.
const KIND_SHIFT: u32 = 56;
/// The first kind that is never joined to another.
const ALONE: u64 = 4 << KIND_SHIFT;

/// Kind and sector in one number: two requests can be joined if the key of one plus its length is
/// the key of the other. Reads, writes, and each with flags of its own, are different kinds.
fn key_of(bio: &BioBox) -> u64 {
    let kind = match bio.op {
        Op::Read => 0,
        Op::Write if bio.flags.contains(BioFlags::FUA) => 2,
        Op::Write => 1,
        Op::Flush | Op::Discard | Op::WriteZeroes => 4,
    };
    kind << KIND_SHIFT | bio.sector
}

impl RequestQueue {
    /// Takes over what a new table allows.
    pub(crate) fn allow(&mut self, limits: &QueueLimits) {
        self.max_sectors = limits.max_sectors.max(limits.logical_block_sectors());
        self.fua_by_flush = limits.features.contains(DeviceFeatures::WRITE_CACHE)
            && !limits.features.contains(DeviceFeatures::FUA);
    }

    /// The longest read or write in one request.
    pub(crate) fn max_sectors(&self) -> Sector {
        self.max_sectors
    }

    /// True for a FUA write that needs a flush after it.
    pub(super) fn needs_postflush(&self, bio: &BioBox) -> bool {
        self.fua_by_flush && bio.op == Op::Write && bio.flags.contains(BioFlags::FUA)
    }

    /// True if a plain bio inside the device can be queued as it is.
    #[inline]
    pub(super) fn takes(&self, bio: &BioBox) -> bool {
        !bio.class().contains(BioClass::OTHER)
            && bio.len_sectors.wrapping_sub(1) < self.max_sectors
            && !self.needs_postflush(bio)
    }

    /// A FUA write that a flush follows has begun.
    pub(super) fn unsettle(&mut self) {
        self.unsettled += 1;
    }

    /// It is over.
    pub(super) fn settle(&mut self) {
        self.unsettled -= 1;
    }

    /// True if a request should wait for more of its stream.
    #[inline]
    fn may_grow(&self, key: u64, len_sectors: Sector, bios: u64, in_flight: u64) -> bool {
        in_flight > 0
            && 2 * bios < in_flight + self.joined + self.waiting() + 1
            && len_sectors < JOINED_SECTORS.min(self.max_sectors)
            && self.ends.contains(&key)
    }

    /// A request is started.
    #[inline]
    fn note_end(&mut self, waiting: &Waiting) {
        if waiting.key < ALONE {
            self.ends[self.next_end % STREAMS] = waiting.key + waiting.bio.len_sectors;
            self.next_end = self.next_end.wrapping_add(1);
        }
    }

    /// True if nothing waits here and nothing can come back.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting() == 0 && self.unsettled == 0
    }

    /// Requests that have not been started.
    pub(crate) fn waiting(&self) -> u64 {
        (self.pending.len() + self.requeued.len() + self.delayed.len()) as u64
    }

    /// This lane's counters.
    pub(crate) fn gauges(&self) -> RequestGauges {
        RequestGauges { waiting: self.waiting(), ..self.gauges }
    }
}
