//! A bio: one block I/O on its way down a stack of devices and back up.
//!
//! A bio is owned by exactly one place at any time, as a [`BioBox`]: its submitter, a gate's held
//! queue, a target that answered `Submitted`, a lower device. Owning the box is the right to finish
//! it; the box cannot be cloned. Whoever drops a bio that is under way has a bug: the drop is
//! caught, counted, and the bio is completed with an error instead of vanishing.
//!
//! Passing a layer pushes a frame (which device, which target, the sector before the remap, two
//! words for the target) on a small stack inside the bio; completion pops it. No clone, no
//! allocation. Clones are made only when a bio is split or fanned out; see `engine/parent.rs`.
//!
//! The tricky case: `sector` always speaks about the device named in `dest`. On the way back it is
//! restored from the frame before the target's `end_io` sees the bio.

use alloc::boxed::Box;
use alloc::sync::Arc;
use bitflags::bitflags;
use crossbeam_queue::SegQueue;
use udm_lane::Payload;
use udm_types::{
    ActorId, BioFlags, DeviceId, LaneId, LowerId, Nanos, Op, OpSet, SECTOR_SHIFT, Sector, Status,
};

/// Deepest stack of mapped devices a bio can pass. Checked when a table is loaded.
pub const MAX_STACK_DEPTH: usize = 12;

bitflags! {
    /// Which way a bio goes: reads and writes that need nothing special go the short way.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct BioClass: u8 {
        const READ = 1;
        const WRITE = 2;
        const OTHER = 4;
    }
}

impl BioClass {
    /// The classes that may go the short way where these operations are allowed.
    pub(crate) fn of_ops(ops: OpSet) -> BioClass {
        let mut classes = BioClass::empty();
        classes.set(BioClass::READ, ops.contains(OpSet::READ));
        classes.set(BioClass::WRITE, ops.contains(OpSet::WRITE));
        classes
    }
}

/// An owned bio.
pub type BioBox = Box<Bio>;

/// Where a bio goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dest {
    /// A mapped device.
    Device(DeviceId),
    /// A lower device.
    Lower(LowerId),
}

/// Who gets the bio back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An actor on this lane, which knows it by a tag.
    Actor {
        /// The actor.
        actor: ActorId,
        /// Its word for the bio.
        tag: u64,
    },
    /// A parent bio that waits for its pieces; an index into the lane's parents.
    Parent(u32),
    /// The bios it carries as one request; an index into the lane's requests.
    Request(u32),
    /// A target of a live table of this lane, which knows it by a tag: an I/O of its own.
    Target {
        /// The mapped device.
        device: DeviceId,
        /// Which target of its table.
        target: u32,
        /// The target's word for the bio.
        tag: u64,
    },
}

/// What a bio remembers of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// The mapped device passed.
    pub device: DeviceId,
    /// Which target of its table, by index; the top bit says that it wants `end_io`.
    target: u32,
    /// The sector before the target remapped it (relative to the mapped device).
    pub sector: Sector,
    /// Position in the device's order of submission on this lane.
    pub(crate) seq: u64,
    /// For the target to use as it likes; zero at first if the target wants `end_io`.
    pub words: [u64; 2],
}

/// Marks a frame whose target wants `end_io`, so that the way back need not look into the table.
const WANTS_END_IO: u32 = 1 << 31;

impl Frame {
    /// Which target of the device's table, by index.
    #[inline]
    pub fn target(&self) -> u32 {
        self.target & !WANTS_END_IO
    }

    #[inline]
    pub(crate) fn wants_end_io(&self) -> bool {
        self.target & WANTS_END_IO != 0
    }
}

const EMPTY_FRAME: Frame =
    Frame { device: DeviceId(u32::MAX), target: 0, sector: 0, seq: 0, words: [0; 2] };

/// One block I/O.
#[derive(Debug)]
pub struct Bio {
    /// Where it goes next.
    pub dest: Dest,
    /// First sector, on `dest`.
    pub sector: Sector,
    /// Length; 0 for a flush.
    pub len_sectors: Sector,
    /// What is asked.
    pub op: Op,
    /// Modifiers.
    pub flags: BioFlags,
    /// The result, meaningful on the way back.
    pub status: Status,
    depth: u8,
    class: BioClass,
    live: bool,
    /// Which of the copies a target asked for (flush and discard fan-out).
    pub target_bio_nr: u32,
    pub(crate) origin: Origin,
    /// When it was submitted, by the lane's clock of that turn.
    pub issued_at: Nanos,
    frames: [Frame; MAX_STACK_DEPTH],
    /// The data, `len_sectors` long for reads and writes, empty otherwise.
    pub payload: Payload,
    /// The lane it belongs to: only there it is counted, finished and used again.
    home: LaneId,
    lost: LostBios,
}

/// Where dropped bios are sent instead of vanishing. One per lane.
#[derive(Clone, Debug, Default)]
pub(crate) struct LostBios {
    queue: Arc<SegQueue<BioBox>>,
}

impl LostBios {
    pub(crate) fn pop(&self) -> Option<BioBox> {
        self.queue.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl Bio {
    pub(crate) fn new(home: LaneId, lost: LostBios) -> Bio {
        Bio {
            dest: Dest::Device(DeviceId(u32::MAX)),
            sector: 0,
            len_sectors: 0,
            op: Op::Read,
            flags: BioFlags::empty(),
            status: Status::Ok,
            depth: 0,
            class: BioClass::OTHER,
            live: false,
            target_bio_nr: 0,
            origin: Origin::Parent(u32::MAX),
            issued_at: Nanos::ZERO,
            frames: [EMPTY_FRAME; MAX_STACK_DEPTH],
            payload: Payload::empty(),
            home,
            lost,
        }
    }

    /// Sets what is asked; the payload is set apart. For submitters.
    pub fn ask(&mut self, op: Op, flags: BioFlags, sector: Sector, len_sectors: Sector) {
        self.op = op;
        self.flags = flags;
        self.sector = sector;
        self.len_sectors = len_sectors;
        self.status = Status::Ok;
        self.target_bio_nr = 0;
    }

    /// The first sector after the range. Saturates, so an overflowing range is past every end.
    #[inline]
    pub fn end_sector(&self) -> Sector {
        self.sector.saturating_add(self.len_sectors)
    }

    /// Sends the bio to `sector` of another device. For targets, in `map`.
    #[inline]
    pub fn remap(&mut self, dest: Dest, sector: Sector) {
        self.dest = dest;
        self.sector = sector;
    }

    /// The layer the bio is in: the newest frame.
    #[inline]
    pub fn frame(&self) -> &Frame {
        &self.frames[usize::from(self.depth.saturating_sub(1))]
    }

    /// The newest frame's words, for the target to keep state in.
    #[inline]
    pub fn words_mut(&mut self) -> &mut [u64; 2] {
        &mut self.frames[usize::from(self.depth.saturating_sub(1))].words
    }

    /// How many layers the bio is in.
    #[inline]
    pub fn depth(&self) -> usize {
        usize::from(self.depth)
    }

    /// The layers, oldest first.
    pub fn frames(&self) -> &[Frame] {
        &self.frames[..usize::from(self.depth)]
    }

    #[inline]
    pub(crate) fn push_frame(
        &mut self,
        device: DeviceId,
        target: u32,
        wants_end_io: bool,
        seq: u64,
    ) {
        let frame = &mut self.frames[usize::from(self.depth)];
        frame.device = device;
        frame.target = target;
        frame.sector = self.sector;
        frame.seq = seq;
        if wants_end_io {
            frame.target |= WANTS_END_IO;
            frame.words = [0; 2];
        }
        self.depth += 1;
    }

    /// The layer that `depth` others are above.
    #[inline]
    pub(crate) fn frame_at(&self, depth: usize) -> &Frame {
        &self.frames[depth]
    }

    /// Leaves the newest layer, which `depth` others are above, without restoring anything; see
    /// [`Bio::restore`].
    #[inline]
    pub(crate) fn leave_frame(&mut self, depth: usize) {
        debug_assert_eq!(self.depth(), depth + 1, "a bio leaves the layer it is in");
        self.depth = depth as u8;
    }

    /// Makes sector and destination those of a layer again.
    #[inline]
    pub(crate) fn restore(&mut self, depth: usize) {
        let frame = &self.frames[depth];
        self.sector = frame.sector;
        self.dest = Dest::Device(frame.device);
    }

    /// Leaves the newest layer and restores its sector and device.
    #[inline]
    pub(crate) fn pop_frame(&mut self) -> Option<Frame> {
        let depth = self.depth.checked_sub(1)?;
        self.depth = depth;
        let frame = self.frames[usize::from(depth)];
        self.sector = frame.sector;
        self.dest = Dest::Device(frame.device);
        Some(frame)
    }

    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        usize::from(self.depth) < MAX_STACK_DEPTH
    }

    /// The lane it came from, and where it ends. Another one for a bio that was handed over.
    #[inline]
    pub fn home(&self) -> LaneId {
        self.home
    }

    /// Which way the bio goes.
    #[inline]
    pub(crate) fn class(&self) -> BioClass {
        self.class
    }

    /// Decides which way the bio goes; called when what it asks is final.
    #[inline]
    pub(crate) fn classify(&mut self) {
        let whole = self.payload.len_bytes() == self.len_sectors << SECTOR_SHIFT;
        let special = self.flags.intersects(BioFlags::PREFLUSH.union(BioFlags::ORDERED));
        self.class = match self.op {
            Op::Read if whole && !special => BioClass::READ,
            Op::Write if whole && !special => BioClass::WRITE,
            Op::Read | Op::Write | Op::Flush | Op::Discard | Op::WriteZeroes => BioClass::OTHER,
        };
    }

    #[inline]
    pub(crate) fn set_live(&mut self, live: bool) {
        self.live = live;
    }

    /// Makes the bio blank for its next use; keeps memory.
    pub(crate) fn reset(&mut self) {
        self.depth = 0;
        self.live = false;
        self.flags = BioFlags::empty();
        self.status = Status::Ok;
        self.target_bio_nr = 0;
        self.payload.clear();
    }
}

impl Drop for Bio {
    fn drop(&mut self) {
        if !self.live {
            return;
        }
        let mut rescued = Bio::new(self.home, self.lost.clone());
        core::mem::swap(self, &mut rescued);
        self.live = false;
        let lost = rescued.lost.clone();
        lost.queue.push(Box::new(rescued));
    }
}
