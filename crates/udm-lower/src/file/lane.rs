//! A file as one lane sees it: bios to operations and back.
//!
//! Called by the engine with bios and with the ends of operations; calls the lane's driver through
//! [`LowerCx`]. A bio takes a slot and goes through its stages:
//!
//! ```text
//!  flush, PREFLUSH:  wait for a sync --+
//!                                      v
//!  read, write: one operation, continued from where it stopped until all is done (FUA: dsync)
//!  discard, write-zeroes: fallocate; where that is refused, zeroes are written piece by piece;
//!                         with FUA, wait for a sync after it
//! ```
//!
//! Rules. A short result is never success: it is continued, and where nothing moves (the file has
//! become shorter) the bio fails. `EINTR` is tried again at once, `EAGAIN` after a pause, neither
//! for ever. An error ends the bio with its status; nothing is tried twice behind the submitter's
//! back after a real error.
//!
//! The tricky case is `abort`. The chosen bios are answered at once, but their operations live on
//! in their slots, and the device is fenced (see `state.rs`) until the last of them, on any lane,
//! has ended. Nothing that has not reached the kernel by then is started: it would race with them.

use super::bounce::{bring_back, share_payload};
use super::slots::{SlotState, Slots, Stage};
use super::state::FileShared;
use super::sync::{SYNC_USER, SyncGroups};
use std::collections::VecDeque;
use std::sync::Arc;
use udm_core::{Bio, BioBox, LowerCx, LowerLane};
use udm_driver::status_from_errno;
use udm_lane::{
    Buf, BufPool, Completion, DriverOp, Errno, FallocateKind, Handle, OpResult, Payload, Segment,
};
use udm_types::{BioFlags, Nanos, Op, SECTOR_BYTES, SECTOR_SHIFT, Status};

/// Most bios of one lane with the driver at once; others wait in order. More than any disk's queue
/// is deep, and bounds what the driver must keep.
pub(crate) const SLOTS_MAX: usize = 1024;

/// How often `EINTR` and `EAGAIN` are tried again before they count as errors.
pub(crate) const RETRIES_MAX: u32 = 100;

/// The pause before a retry after `EAGAIN`: a second in all, for memory to come back.
pub(crate) const RETRY_PAUSE: Nanos = Nanos(10_000_000);

/// Zeroes are written in pieces of this size where fallocate is refused: large enough for a disk,
/// small enough to keep one for each lane.
pub(crate) const ZERO_PIECE_BYTES: u64 = 256 << 10;

const DURABLE: BioFlags = BioFlags::FUA.union(BioFlags::ORDERED);
const FLUSH_FIRST: BioFlags = BioFlags::PREFLUSH.union(BioFlags::ORDERED);

/// One lane's part of an open file.
pub(crate) struct FileLane {
    shared: Arc<FileShared>,
    handle: Handle,
    slots: Slots,
    sync: SyncGroups,
    /// Bios that found all slots taken. Bounded by what the submitters have in flight.
    waiting: VecDeque<BioBox>,
    bounce: BufPool,
    /// [`ZERO_PIECE_BYTES`] of zeroes, made when first needed and only ever read.
    zeroes: Option<Buf>,
    pauses: u32,
}

impl FileLane {
    /// A part that works on a registered handle.
    pub(crate) fn new(shared: Arc<FileShared>, handle: Handle) -> FileLane {
        FileLane {
            shared,
            handle,
            slots: Slots::default(),
            sync: SyncGroups::default(),
            waiting: VecDeque::new(),
            bounce: BufPool::new(),
            zeroes: None,
            pauses: 0,
        }
    }

    /// The answer to a bio that needs no operation.
    fn answer(&self, bio: &Bio) -> Option<Status> {
        if self.shared.inode.is_fenced() {
            return Some(Status::Offline);
        }
        if bio.op == Op::Flush {
            return None;
        }
        if bio.op.is_write() && self.shared.read_only {
            return Some(Status::ReadOnly);
        }
        if !self.shared.holds(bio.end_sector()) {
            return Some(Status::IoErr);
        }
        if bio.op.has_data() && bio.payload.len_bytes() != bio.len_sectors * SECTOR_BYTES {
            return Some(Status::Invalid);
        }
        let nothing = bio.len_sectors == 0 && !bio.flags.intersects(FLUSH_FIRST);
        nothing.then_some(Status::Ok)
    }

    fn start(&mut self, bio: BioBox, cx: &mut LowerCx<'_>) {
        let flush_first = bio.op == Op::Flush || bio.flags.intersects(FLUSH_FIRST);
        let index = self.slots.insert(bio);
        if flush_first {
            self.sync.join(index);
            self.start_sync(cx);
        } else {
            self.slots.get(index).stage = Stage::Work;
            self.issue(index, cx);
        }
    }

    /// Starts the slot's next operation.
    fn issue(&mut self, index: u32, cx: &mut LowerCx<'_>) {
        if self.shared.inode.is_fenced() {
            return self.finish(index, Status::Offline, cx);
        }
        let zeroes = &mut self.zeroes;
        let slot = self.slots.get(index);
        slot.state = SlotState::Running;
        let bio = slot.bio.as_ref().expect("invariant: only a slot with a bio is issued");
        let handle = self.handle;
        let offset_bytes = (bio.sector << SECTOR_SHIFT) + slot.done_bytes;
        let len_bytes = (bio.len_sectors << SECTOR_SHIFT) - slot.done_bytes;
        let fallocate = |kind| DriverOp::Fallocate { handle, kind, offset_bytes, len_bytes };
        let op = match (slot.stage, bio.op) {
            (Stage::ZeroPages, _) => {
                let buf = zeroes.get_or_insert_with(|| Buf::alloc(ZERO_PIECE_BYTES as usize));
                let len_bytes = len_bytes.min(ZERO_PIECE_BYTES) as u32;
                let payload =
                    Payload::from(Segment { buf: buf.clone(), offset_bytes: 0, len_bytes });
                DriverOp::Write { handle, offset_bytes, payload, dsync: false }
            }
            (_, Op::Read) => {
                let payload = share_payload(slot, self.shared.direct, &mut self.bounce);
                DriverOp::Read { handle, offset_bytes, payload }
            }
            (_, Op::Write) => {
                let dsync = bio.flags.intersects(DURABLE);
                slot.dsync = dsync;
                let payload = share_payload(slot, self.shared.direct, &mut self.bounce);
                DriverOp::Write { handle, offset_bytes, payload, dsync }
            }
            (_, Op::Discard) => fallocate(FallocateKind::PunchHole),
            (_, Op::WriteZeroes) if bio.flags.contains(BioFlags::NO_UNMAP) => {
                fallocate(FallocateKind::ZeroRange)
            }
            (_, Op::WriteZeroes) => fallocate(FallocateKind::PunchHole),
            // A flush is all sync and never comes here.
            (_, Op::Flush) => DriverOp::Sync { handle },
        };
        cx.submit_op(index, op);
    }

    /// The slot's operation went through.
    fn advance(&mut self, index: u32, moved_bytes: u32, cx: &mut LowerCx<'_>) {
        let direct = self.shared.direct;
        let slot = self.slots.get(index);
        let bio = slot.bio.as_ref().expect("invariant: an abandoned slot does not advance");
        let total_bytes = bio.len_sectors << SECTOR_SHIFT;
        let moves = slot.stage == Stage::ZeroPages || bio.op.has_data();
        if !moves {
            return self.range_done(index, cx);
        }
        let before = slot.done_bytes;
        let mut done = before + u64::from(moved_bytes);
        if done < total_bytes
            && let Some(align) = direct
        {
            // The next piece has to begin at a block; the cut one is done again.
            done -= done % u64::from(align.range_bytes);
        }
        if done <= before || done > total_bytes {
            // Nothing moved: the file has become shorter. (More than asked for cannot be.)
            return self.finish(index, Status::IoErr, cx);
        }
        slot.done_bytes = done;
        slot.retries = 0;
        if done < total_bytes { self.issue(index, cx) } else { self.range_done(index, cx) }
    }

    /// All of the bio's range is done.
    fn range_done(&mut self, index: u32, cx: &mut LowerCx<'_>) {
        let slot = self.slots.get(index);
        let bio = slot.bio.as_ref().expect("invariant: an abandoned slot does not advance");
        match bio.op {
            Op::Read => bring_back(slot),
            Op::Discard | Op::WriteZeroes if bio.flags.intersects(DURABLE) => {
                slot.stage = Stage::PostSync;
                slot.state = SlotState::Queued;
                self.sync.join(index);
                return self.start_sync(cx);
            }
            Op::Write | Op::Flush | Op::Discard | Op::WriteZeroes => {}
        }
        self.finish(index, Status::Ok, cx);
    }

    /// The slot's operation failed.
    fn failed(&mut self, index: u32, errno: Errno, cx: &mut LowerCx<'_>) {
        let slot = self.slots.get(index);
        let op = slot.bio.as_ref().map_or(Op::Flush, |bio| bio.op);
        let mut dsync = false;
        match Failure::of(errno) {
            Failure::Interrupted if slot.retries < RETRIES_MAX => {
                slot.retries += 1;
                return self.issue(index, cx);
            }
            Failure::Again if slot.retries < RETRIES_MAX => {
                slot.retries += 1;
                self.pauses = self.pauses.wrapping_add(1);
                slot.state = SlotState::Pausing(self.pauses);
                let token = u64::from(self.pauses) << 32 | u64::from(index);
                return cx.set_timer(cx.now + RETRY_PAUSE, token);
            }
            Failure::Unsupported if op == Op::WriteZeroes && slot.stage == Stage::Work => {
                slot.stage = Stage::ZeroPages;
                slot.retries = 0;
                return self.issue(index, cx);
            }
            Failure::Interrupted | Failure::Again | Failure::Unsupported | Failure::Other => {
                dsync |= slot.dsync;
            }
        }
        if dsync {
            self.shared.inode.durable_write_failed(errno);
        }
        self.finish(index, status_from_errno(errno), cx);
    }

    /// Answers the slot's bio and frees the slot.
    fn finish(&mut self, index: u32, status: Status, cx: &mut LowerCx<'_>) {
        if let Some(bio) = self.release(index) {
            cx.complete(bio, status);
        }
        self.start_waiting(cx);
    }

    fn release(&mut self, index: u32) -> Option<BioBox> {
        let (bio, bounce) = self.slots.remove(index);
        if let Some(bounce) = bounce {
            self.bounce.put(bounce);
        }
        bio
    }

    /// Starts bios that waited for a slot.
    fn start_waiting(&mut self, cx: &mut LowerCx<'_>) {
        while self.slots.taken_count() < SLOTS_MAX
            && let Some(bio) = self.waiting.pop_front()
        {
            if self.shared.inode.is_fenced() {
                cx.complete(bio, Status::Offline);
            } else {
                self.start(bio, cx);
            }
        }
    }

    /// Starts the next sync if somebody waits for one and none runs.
    fn start_sync(&mut self, cx: &mut LowerCx<'_>) {
        if self.sync.begin(self.shared.inode.sync_generation()) {
            cx.submit_op(SYNC_USER, DriverOp::Sync { handle: self.handle });
        }
    }

    fn sync_ended(&mut self, result: OpResult, cx: &mut LowerCx<'_>) {
        if let Err(errno) = result
            && matches!(Failure::of(errno), Failure::Interrupted | Failure::Again)
            && self.sync.retries < RETRIES_MAX
        {
            self.sync.retries += 1;
            return cx.submit_op(SYNC_USER, DriverOp::Sync { handle: self.handle });
        }
        let inode = Arc::clone(&self.shared.inode);
        let (group, began) = self.sync.end();
        if std::mem::take(&mut self.sync.abandoned) {
            inode.unfence();
        }
        let failure = match result {
            Ok(_) => inode.failed_since(began),
            Err(errno) => Some(inode.sync_failed(errno)),
        };
        let anybody = group.iter().any(|&index| self.slots.get(index).bio.is_some());
        match failure {
            Some(failure) if anybody => inode.told(failure),
            Some(_) if result.is_err() => inode.leave_unseen(),
            Some(_) | None => {}
        }
        for &index in &group {
            let slot = self.slots.get(index);
            match (&slot.bio, failure) {
                (None, _) => self.finish(index, Status::Ok, cx),
                (Some(_), Some(failure)) => {
                    self.finish(index, status_from_errno(failure.errno), cx);
                }
                (Some(bio), None) if slot.stage == Stage::PreSync && bio.len_sectors != 0 => {
                    slot.stage = Stage::Work;
                    self.issue(index, cx);
                }
                (Some(_), None) => self.finish(index, Status::Ok, cx),
            }
        }
        self.sync.recycle(group);
        self.start_sync(cx);
    }

    /// An operation whose bio was aborted has ended.
    fn abandoned_ended(&mut self, index: u32, result: OpResult, cx: &mut LowerCx<'_>) {
        if let Err(errno) = result
            && self.slots.get(index).dsync
            && errno != Errno(rustix::io::Errno::CANCELED.raw_os_error())
        {
            self.shared.inode.durable_write_failed(errno);
        }
        self.shared.inode.unfence();
        self.finish(index, Status::Ok, cx);
    }

    /// Puts the fence up for a slot whose bio is about to be answered; true if the slot must stay
    /// until its operation has ended.
    fn abandon(&mut self, index: u32, cx: &mut LowerCx<'_>) -> bool {
        match self.slots.get(index).state {
            SlotState::Free | SlotState::Pausing(_) => false,
            SlotState::Queued => {
                if self.sync.is_current(index) && !self.sync.abandoned {
                    self.sync.abandoned = true;
                    self.shared.inode.fence();
                }
                true
            }
            SlotState::Running => {
                self.shared.inode.fence();
                cx.cancel_op(index);
                true
            }
        }
    }
}

impl LowerLane for FileLane {
    fn submit(&mut self, bio: BioBox, cx: &mut LowerCx<'_>) {
        if let Some(status) = self.answer(&bio) {
            return cx.complete(bio, status);
        }
        if self.slots.taken_count() >= SLOTS_MAX {
            self.waiting.push_back(bio);
        } else {
            self.start(bio, cx);
        }
    }

    fn on_op(&mut self, user: u32, completion: Completion, cx: &mut LowerCx<'_>) {
        if user == SYNC_USER {
            return self.sync_ended(completion.result, cx);
        }
        let slot = self.slots.get(user);
        slot.spare = completion.payload;
        slot.spare.clear();
        match (&slot.bio, completion.result) {
            (None, result) => self.abandoned_ended(user, result, cx),
            (Some(_), Ok(moved_bytes)) => self.advance(user, moved_bytes, cx),
            (Some(_), Err(errno)) => self.failed(user, errno, cx),
        }
    }

    fn on_timer(&mut self, token: u64, cx: &mut LowerCx<'_>) {
        let (pause, index) = ((token >> 32) as u32, token as u32);
        // A timer may outlive its bio, and even this lane's part.
        if self.slots.state(index) == SlotState::Pausing(pause) {
            self.issue(index, cx);
        }
    }

    fn abort(&mut self, select: &mut dyn FnMut(&Bio) -> bool, cx: &mut LowerCx<'_>) {
        // First all fences, then the answers: whoever sees an answer finds the device fenced.
        let mut chosen = Vec::new();
        for index in self.slots.indices() {
            if self.slots.get(index).bio.as_ref().is_some_and(|bio| select(bio)) {
                chosen.push((index, self.abandon(index, cx)));
            }
        }
        for (index, stays) in chosen {
            let bio = if stays { self.slots.get(index).bio.take() } else { self.release(index) };
            if let Some(bio) = bio {
                cx.complete(bio, Status::Timeout);
            }
        }
        for _ in 0..self.waiting.len() {
            let Some(bio) = self.waiting.pop_front() else { break };
            if select(&bio) {
                cx.complete(bio, Status::Timeout);
            } else {
                self.waiting.push_back(bio);
            }
        }
        self.start_waiting(cx);
    }

    fn close(&mut self, cx: &mut LowerCx<'_>) {
        cx.driver().close(self.handle);
    }
}

/// What to make of an error number.
enum Failure {
    Interrupted,
    Again,
    Unsupported,
    Other,
}

impl Failure {
    fn of(errno: Errno) -> Failure {
        match rustix::io::Errno::from_raw_os_error(errno.0) {
            rustix::io::Errno::INTR => Failure::Interrupted,
            rustix::io::Errno::AGAIN => Failure::Again,
            rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS => Failure::Unsupported,
            _ => Failure::Other,
        }
    }
}
