//! What is crashed: anything that keeps a block device's contents on a disk below it.
//!
//! The enumerator knows nothing of the format. A subject is opened on a [`Disk`] port, given
//! requests, turned, and asked what it accepted and what is done; it is dropped to let its program
//! die. `compress.rs` binds the production volume of the compress target; the tests have a small
//! one of their own with rules that can be taken out.
//!
//! Rules for a subject. [`CrashSubject::next_accepted`] tells every changing request once, in the
//! order the subject claims to keep, before any of it can reach the disk and before it is done.
//! Everything it does follows from what it was given: no clock, no randomness.
//!
//! The tricky case is a request that changes nothing (a discard without one whole block): it may
//! be done without having been accepted.

use fastrand::Rng;
use std::fmt::Debug;
use std::future::Future;
use udm_lane::Payload;
use udm_meta::Disk;
use udm_types::{BioFlags, Nanos, Op, Status};

/// A request to the device above.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Names it in answers.
    pub(crate) ticket: u64,
    /// What.
    pub(crate) op: Op,
    /// How.
    pub(crate) flags: BioFlags,
    /// Where; whole sectors.
    pub(crate) offset_bytes: u64,
    /// How long.
    pub(crate) len_bytes: u64,
    /// Data to write, or room for what is read.
    pub(crate) payload: Payload,
}

/// How things stand with a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It reads what it left.
    Recovering,
    /// It works.
    Serving,
    /// It has been told to stop, and has.
    Stopped,
    /// It does not write any more, or does not work at all, and says why.
    Refusing(String),
}

/// Something else than a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Write a checkpoint.
    Checkpoint,
    /// Clean so many segments.
    Clean(u32),
    /// Read and verify everything, in the background.
    Scrub,
    /// Have another size, use all of the disk, or both; with neither, use no more of the disk than
    /// it had at first.
    Resize {
        /// The size of the device, or as it is.
        len_bytes: Option<u64>,
        /// Use what the disk below has grown by.
        grows_to_disk: bool,
    },
    /// Stop as for a suspend, with a flush or without.
    Stop {
        /// What was accepted is durable in the end.
        flush: bool,
    },
    /// Go on.
    Start,
}

/// The ticket under which the cut of a shrink is told as accepted.
pub(crate) const CUT_TICKET: u64 = u64::MAX;

/// Why a device kept its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unresized {
    /// It has no room for it; everything is as it was.
    NoRoom,
    /// Something failed; it has the old size or the new one.
    Failed(String),
}

/// What a subject is doing beside serving requests; only counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Busy {
    /// A checkpoint is under way.
    pub(crate) checkpoint: bool,
    /// The cleaner is at work.
    pub(crate) cleaning: bool,
    /// The size is being changed.
    pub(crate) resize: bool,
}

/// What the workload has to know of a setup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Size of the disk below.
    pub(crate) disk_len_bytes: u64,
    /// Sectors of the device above that the workload uses, at its largest.
    pub(crate) len_sectors: usize,
    /// How many of them the device has in the beginning.
    pub(crate) first_len_sectors: usize,
    /// What the disk below grows by at a time; 0 if the subject cannot have other sizes.
    pub(crate) growth_bytes: u64,
    /// The sectors are in islands of so many on the device; requests do not leave an island. More
    /// than one island is for volumes whose map has more pages than anybody wants to read back.
    pub(crate) island_sectors: usize,
    /// From the start of one island to the next one's, on the device.
    pub(crate) stride_sectors: usize,
    /// Where the first island starts, on the device.
    pub(crate) start_sector: usize,
    /// Sectors of a block: a discard forgets whole blocks only.
    pub(crate) block_sectors: usize,
    /// The longest request.
    pub(crate) request_len_sectors: usize,
    /// A write that is done has reached the disk's cache, so the death of the program keeps it.
    pub(crate) is_writethrough: bool,
    /// It knows checkpoints and cleaning.
    pub(crate) has_background: bool,
}

impl Shape {
    /// Where a sector is on the device, in bytes.
    pub(crate) fn offset_bytes(&self, sector: usize) -> u64 {
        let island = sector / self.island_sectors;
        let on_device =
            self.start_sector + island * self.stride_sectors + sector % self.island_sectors;
        on_device as u64 * 512
    }

    /// Size of the device that has so many of the sectors.
    pub(crate) fn len_bytes(&self, sectors: usize) -> u64 {
        sectors.checked_sub(1).map_or(0, |last| self.offset_bytes(last) + 512)
    }
}

/// Something that can be crashed.
pub(crate) trait CrashSubject: Sized {
    /// Geometry and options.
    type Setup: Clone + Debug;

    /// A setup for a seed.
    fn draw(rng: &mut Rng) -> Self::Setup;
    /// What the workload has to know of it.
    fn shape(setup: &Self::Setup) -> Shape;
    /// Writes an empty volume.
    fn format(setup: &Self::Setup, disk: Disk) -> impl Future<Output = Result<(), String>>;
    /// Starts on what is there.
    fn open(setup: &Self::Setup, disk: Disk, now: Nanos) -> Self;
    /// How things stand.
    fn standing(&self) -> Standing;
    /// Gives it a request.
    fn submit(&mut self, request: Request);
    /// Gives it an order.
    fn order(&mut self, order: Order);
    /// Lets it work for a bounded time. True if it has more to do at once.
    fn turn(&mut self, now: Nanos) -> bool;
    /// When it wants a turn although nothing happens.
    fn next_timer(&self) -> Option<Nanos>;
    /// The next changing request in the order of acceptance.
    fn next_accepted(&mut self) -> Option<u64>;
    /// The next finished request.
    fn next_done(&mut self) -> Option<(u64, Status)>;
    /// The end of a resize.
    fn next_resized(&mut self) -> Option<Result<(), Unresized>> {
        None
    }
    /// The size of the device, once it is known; nothing for one that always has the same.
    fn len_bytes(&self) -> Option<u64> {
        None
    }
    /// True if what lies at this place of the disk lies at another place, too.
    fn has_copies(&self, _offset_bytes: u64) -> bool {
        false
    }
    /// True if this is a place of the log, whose records are read again when a copy of what speaks
    /// for them is lost.
    fn is_log(&self, _offset_bytes: u64) -> bool {
        false
    }
    /// What it says about damage that it has met.
    fn next_alarm(&mut self) -> Option<String> {
        None
    }
    /// What it is doing.
    fn busy(&self) -> Busy;
    /// What it knows of itself, for the report of one that is stuck.
    fn describe(&self) -> String;
    /// Looks at a disk on which nothing is open, as the offline checker would.
    fn check(setup: &Self::Setup, disk: Disk) -> impl Future<Output = Result<(), String>>;
}
