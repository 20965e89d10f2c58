//! The server of one mount: an actor that reads the kernel's requests and answers them.
//!
//! It has [`SLOTS`] slots, each with a buffer of its own. A slot goes round: it waits for a
//! message, the message becomes bios, the answer is sent from the same buffer, and it waits again.
//! So nothing is allocated on the way, and what is in flight is bounded by the slots; further
//! requests wait in the kernel.
//!
//! ```text
//! buffer:  | small answers | ... | head of a message | payload of a write, aligned to a page ...
//!          0               128   4016                4096
//! read:                    ... | head of its answer | the data, read here by the device
//! ```
//!
//! Rules. All slots without a request offer a read at the same time, so that the driver can fetch a
//! burst of requests in one turn. An answer is sent once for each command. After the mount has
//! ended (unmounted, aborted, told to stop) nothing is read any more.
//!
//! The tricky case is a read that is not aligned: the blocks around it are read, and the head of
//! the answer is put right before the part that was asked for, over what nobody wants.

use super::change::{Change, ChangeKind, Changes, Piece};
use super::reply::{Answer, data_head, errno_of};
use super::session::{Command, CommandKind, Event, FileView, IO_BYTES_MAX, Session, written};
use super::wire::{HEAD_BYTES_MAX, OUT_HEADER_BYTES, WRITE_HEAD_BYTES, errno};
use std::any::Any;
use std::fmt;
use std::os::fd::{IntoRawFd, OwnedFd};
use udm_core::actor::{Actor, ActorCx, DeviceNotice};
use udm_core::bio::BioBox;
use udm_lane::{Buf, Completion, DriverOp, Errno, Handle, Payload, RawHandle, Segment};
use udm_types::{BioFlags, DeviceId, Op, SECTOR_BYTES, SECTOR_SHIFT};

/// Requests of a mount that are served at a time. Each has a buffer of its own (a little more than
/// 1 MiB, of which only what was used takes memory), and 64 keep any disk busy.
pub const SLOTS: usize = 64;

/// Where the payload of a write arrives and the data of a read goes to.
const DATA_AT: usize = 4096;
/// The largest block of a device; edges of unaligned reads need one on each side.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// A slot's buffer.
const BUF_BYTES: usize = DATA_AT + IO_BYTES_MAX as usize + 2 * BLOCK_BYTES_MAX;
/// What a read of `/dev/fuse` offers: the kernel wants room for the longest write.
const MESSAGE_BYTES: usize = WRITE_HEAD_BYTES + IO_BYTES_MAX as usize;
/// Where a message arrives.
const MESSAGE_AT: usize = DATA_AT - WRITE_HEAD_BYTES;

/// Set in the word of an operation that sends an answer.
const OP_ANSWER: u32 = 1 << 16;

/// Errors of reading `/dev/fuse` after which one reads again: the request was called off.
const TRY_AGAIN: [i32; 3] = [2, 4, 11];

/// What to serve.
#[derive(Clone, Debug)]
pub struct Served {
    /// The device.
    pub device: DeviceId,
    /// Refuse every change.
    pub read_only: bool,
    /// Whose file it is.
    pub uid: u32,
    /// Of which group.
    pub gid: u32,
    /// When it was mounted, in seconds since 1970.
    pub since_s: u64,
}

/// What happens to a mount, for its control side. Told on the lane: do not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountEvent {
    /// The handshake is over.
    Ready,
    /// The kernel speaks another protocol.
    Refused,
    /// The device has another size; who asks for it gets the new one.
    Resized,
    /// Nothing is served any more: unmounted, aborted, or stopped.
    Ended,
}

/// What the control side tells a server; send it as the message of a `LaneMessage::ToActor`.
pub enum MountOrder {
    /// End.
    Stop {
        /// At once, instead of answering what is under way.
        cut: bool,
        /// Called on the lane when `/dev/fuse` is closed.
        done: Box<dyn FnOnce() + Send>,
    },
    /// Asks how often the file is open.
    Count(Box<dyn FnOnce(u32) + Send>),
}

impl fmt::Debug for MountOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountOrder::Stop { cut, .. } => write!(f, "Stop(cut: {cut})"),
            MountOrder::Count(_) => f.write_str("Count"),
        }
    }
}

/// Where a slot is on its round.
#[derive(Debug)]
enum Phase {
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
struct Patch {
    change: Change,
    end: u64,
    from: u64,
    to: u64,
    blocks: Buf,
    /// The blocks are being written back.
    writes: bool,
}

/// What a bio is to do, in bytes of whole blocks.
#[derive(Clone, Copy)]
struct Ask {
    op: Op,
    flags: BioFlags,
    from: u64,
    to: u64,
}

impl Ask {
    fn new(op: Op, from: u64, to: u64) -> Ask {
        Ask { op, flags: BioFlags::empty(), from, to }
    }
}

struct Slot {
    buf: Buf,
    phase: Phase,
}

/// The server.
pub struct MountServer {
    raw: Option<RawHandle>,
    handle: Option<Handle>,
    served: Served,
    session: Session,
    block_bytes: u64,
    slots: Vec<Slot>,
    changes: Changes<usize>,
    tell: Box<dyn Fn(MountEvent) + Send>,
    draining: bool,
    done: Vec<Box<dyn FnOnce() + Send>>,
}

impl MountServer {
    /// Takes over an open `/dev/fuse` that has been mounted.
    pub fn new(
        connection: OwnedFd,
        served: Served,
        tell: Box<dyn Fn(MountEvent) + Send>,
    ) -> MountServer {
        let file = FileView {
            size_bytes: 0,
            block_bytes: 4096,
            read_only: served.read_only,
            uid: served.uid,
            gid: served.gid,
            since_s: served.since_s,
        };
        MountServer {
            raw: Some(RawHandle(connection.into_raw_fd())),
            handle: None,
            served,
            session: Session::new(file),
            block_bytes: SECTOR_BYTES,
            slots: Vec::new(),
            changes: Changes::new(SLOTS),
            tell,
            draining: false,
            done: Vec::new(),
        }
    }

    fn look_at_device(&mut self, cx: &ActorCx<'_>) {
        let Some(view) = cx.device(self.served.device) else {
            return self.session.set_size(0, 4096);
        };
        let limits = &view.limits;
        self.block_bytes = u64::from(limits.logical_block_bytes).max(SECTOR_BYTES);
        let liked = limits.io_min_bytes.max(limits.logical_block_bytes).clamp(4096, IO_BYTES_MAX);
        self.session.set_size(view.len_sectors * SECTOR_BYTES, liked);
    }

    /// Waits for a message in this slot.
    fn receive(&mut self, at: usize, cx: &mut ActorCx<'_>) {
        let slot = &mut self.slots[at];
        let Some(handle) = self.handle.filter(|_| !self.draining) else {
            slot.phase = Phase::Idle;
            return self.end_if_drained(cx);
        };
        slot.phase = Phase::Receiving;
        let payload = Payload::from(segment(&slot.buf, MESSAGE_AT, MESSAGE_BYTES));
        cx.submit_op(at as u32, DriverOp::Read { handle, offset_bytes: 0, payload });
    }

    fn received(&mut self, at: usize, result: Result<u32, Errno>, cx: &mut ActorCx<'_>) {
        let len = match result {
            Ok(len) => len as usize,
            Err(Errno(code)) if self.draining || TRY_AGAIN.contains(&code) => {
                return self.receive(at, cx);
            }
            // ENODEV: it was unmounted. Anything else would come again for ever.
            Err(_) => return self.end(cx),
        };
        let mut head = [0; HEAD_BYTES_MAX];
        let head = &mut head[..len.min(HEAD_BYTES_MAX)];
        self.slots[at].buf.copy_out(MESSAGE_AT, head);
        match self.session.take(head, len) {
            Event::Command(command) => self.start(at, command, cx),
            Event::Answer(answer) => self.answer(at, &answer, cx),
            Event::Ready(answer) => {
                self.answer(at, &answer, cx);
                (self.tell)(MountEvent::Ready);
            }
            Event::Refused(answer) => {
                self.answer(at, &answer, cx);
                (self.tell)(MountEvent::Refused);
                self.drain(cx);
            }
            Event::Quiet => self.receive(at, cx),
            Event::Broken(_) => self.end(cx),
        }
    }

    fn start(&mut self, at: usize, command: Command, cx: &mut ActorCx<'_>) {
        let unique = command.unique;
        match command.kind {
            CommandKind::Read { offset_bytes: start, len_bytes } => {
                let from = start & !(self.block_bytes - 1);
                let to = (start + u64::from(len_bytes)).next_multiple_of(self.block_bytes);
                if to - from > (BUF_BYTES - DATA_AT) as u64 {
                    return self.answer(at, &Answer::error(unique, errno::EIO), cx);
                }
                let data = segment(&self.slots[at].buf, DATA_AT, (to - from) as usize);
                self.slots[at].phase = Phase::Reading { unique, start, len_bytes, from };
                self.ask(at, Ask::new(Op::Read, from, to), Some(data), cx);
            }
            CommandKind::Flush => {
                self.slots[at].phase = Phase::Flushing { unique };
                self.ask(at, Ask::new(Op::Flush, 0, 0), None, cx);
            }
            CommandKind::Write { offset_bytes: start, len_bytes } => {
                let end = start + u64::from(len_bytes);
                self.begin(at, unique, ChangeKind::Write, (start, end), cx);
            }
            CommandKind::Zero { offset_bytes: start, len_bytes, keep } => {
                let kind = ChangeKind::Zero { keep };
                self.begin(at, unique, kind, (start, start + len_bytes), cx);
            }
        }
    }

    fn begin(
        &mut self,
        at: usize,
        unique: u64,
        kind: ChangeKind,
        (start, end): (u64, u64),
        cx: &mut ActorCx<'_>,
    ) {
        let block_bytes = self.block_bytes;
        let change = Change { unique, kind, start, end, cursor: start, block_bytes };
        if self.changes.begin(at, change) {
            self.go_on(at, change, cx);
        } else {
            self.slots[at].phase = Phase::Waiting;
        }
    }

    /// Does the next piece of a change, or answers it.
    fn go_on(&mut self, at: usize, change: Change, cx: &mut ActorCx<'_>) {
        match change.next_piece() {
            None => {
                let answer = match change.kind {
                    // Fits: a write is at most `IO_BYTES_MAX`.
                    ChangeKind::Write => written(change.unique, (change.end - change.start) as u32),
                    ChangeKind::Zero { .. } => Answer::done(change.unique),
                };
                self.changed(at, &answer, cx);
            }
            Some(Piece::Plain { start, end }) => {
                self.slots[at].phase = Phase::Plain { change, to: end };
                match change.kind {
                    ChangeKind::Write => {
                        let data = segment(&self.slots[at].buf, DATA_AT, (end - start) as usize);
                        self.ask(at, Ask::new(Op::Write, start, end), Some(data), cx);
                    }
                    ChangeKind::Zero { keep } => {
                        let mut ask = Ask::new(Op::WriteZeroes, start, end);
                        ask.flags.set(BioFlags::NO_UNMAP, keep);
                        self.ask(at, ask, None, cx);
                    }
                }
            }
            Some(Piece::Patch { end, from, to, .. }) => {
                let blocks = cx.bufs().take((to - from) as usize);
                let data = segment(&blocks, 0, (to - from) as usize);
                let patch = Patch { change, end, from, to, blocks, writes: false };
                self.slots[at].phase = Phase::Patching(patch);
                self.ask(at, Ask::new(Op::Read, from, to), Some(data), cx);
            }
        }
    }

    /// A change has ended, well or not: answers it, and lets go who waited for it.
    fn changed(&mut self, at: usize, answer: &Answer, cx: &mut ActorCx<'_>) {
        self.changes.ended(at);
        self.answer(at, answer, cx);
        while let Some((next, change)) = self.changes.next() {
            self.go_on(next, change, cx);
        }
    }

    /// Submits a bio for the slot.
    fn ask(&mut self, at: usize, ask: Ask, data: Option<Segment>, cx: &mut ActorCx<'_>) {
        let mut bio = cx.take_bio();
        if let Some(data) = data {
            bio.payload.push(data);
        }
        bio.ask(ask.op, ask.flags, ask.from >> SECTOR_SHIFT, (ask.to - ask.from) >> SECTOR_SHIFT);
        cx.submit(self.served.device, at as u64, bio);
    }

    /// The slot's bio came back.
    fn came_back(&mut self, at: usize, failed: Option<i32>, cx: &mut ActorCx<'_>) {
        match (std::mem::replace(&mut self.slots[at].phase, Phase::Idle), failed) {
            (Phase::Reading { unique, .. } | Phase::Flushing { unique }, Some(errno)) => {
                self.answer(at, &Answer::error(unique, errno), cx);
            }
            (Phase::Reading { unique, start, len_bytes, from }, None) => {
                let begin = DATA_AT + (start - from) as usize - OUT_HEADER_BYTES;
                self.slots[at].buf.copy_in(begin, &data_head(unique, len_bytes));
                self.send(at, begin, OUT_HEADER_BYTES + len_bytes as usize, cx);
            }
            (Phase::Flushing { unique }, None) => self.answer(at, &Answer::done(unique), cx),
            (Phase::Plain { change, .. }, Some(errno)) => {
                self.changed(at, &Answer::error(change.unique, errno), cx);
            }
            (Phase::Plain { change, to }, None) => {
                self.go_on(at, Change { cursor: to, ..change }, cx);
            }
            (Phase::Patching(patch), Some(errno)) => {
                cx.bufs().put(patch.blocks);
                self.changed(at, &Answer::error(patch.change.unique, errno), cx);
            }
            (Phase::Patching(patch), None) => self.patched(at, patch, cx),
            (Phase::Idle | Phase::Receiving | Phase::Waiting | Phase::Answering, _) => {
                debug_assert!(false, "a bio nobody submitted");
            }
        }
    }

    /// The blocks of a patch were read, or written back.
    fn patched(&mut self, at: usize, patch: Patch, cx: &mut ActorCx<'_>) {
        let Patch { change, end, from, to, .. } = patch;
        if patch.writes {
            cx.bufs().put(patch.blocks);
            return self.go_on(at, Change { cursor: end, ..change }, cx);
        }
        let (place, len) = ((change.cursor - from) as usize, (end - change.cursor) as usize);
        match change.kind {
            ChangeKind::Write => {
                let payload_at = DATA_AT + (change.cursor - change.start) as usize;
                self.slots[at].buf.copy_to(payload_at, &patch.blocks, place, len);
            }
            ChangeKind::Zero { .. } => patch.blocks.fill(place, len, 0),
        }
        let data = segment(&patch.blocks, 0, (to - from) as usize);
        self.slots[at].phase = Phase::Patching(Patch { writes: true, ..patch });
        self.ask(at, Ask::new(Op::Write, from, to), Some(data), cx);
    }

    fn answer(&mut self, at: usize, answer: &Answer, cx: &mut ActorCx<'_>) {
        self.slots[at].buf.copy_in(0, answer.as_bytes());
        self.send(at, 0, answer.as_bytes().len(), cx);
    }

    fn send(&mut self, at: usize, begin: usize, len: usize, cx: &mut ActorCx<'_>) {
        let Some(handle) = self.handle else { return };
        let slot = &mut self.slots[at];
        slot.phase = Phase::Answering;
        let payload = Payload::from(segment(&slot.buf, begin, len));
        let write = DriverOp::Write { handle, offset_bytes: 0, payload, dsync: false };
        cx.submit_op(at as u32 | OP_ANSWER, write);
    }

    /// Takes no more requests, answers what is under way, then ends.
    fn drain(&mut self, cx: &mut ActorCx<'_>) {
        if self.draining || self.handle.is_none() {
            return;
        }
        self.draining = true;
        for (at, slot) in (0_u32..).zip(&self.slots) {
            if matches!(slot.phase, Phase::Receiving) {
                cx.cancel_op(at);
            }
        }
        self.end_if_drained(cx);
    }

    fn end_if_drained(&mut self, cx: &mut ActorCx<'_>) {
        if self.draining && self.slots.iter().all(|slot| matches!(slot.phase, Phase::Idle)) {
            self.end(cx);
        }
    }

    /// Closes `/dev/fuse`: the kernel ends what it still has with us. Bios under way come back to
    /// a shell that answers nobody.
    fn end(&mut self, cx: &mut ActorCx<'_>) {
        let Some(handle) = self.handle.take() else { return };
        cx.driver().close(handle);
        self.done.drain(..).for_each(|done| done());
        (self.tell)(MountEvent::Ended);
        cx.exit();
    }

    fn obey(&mut self, order: MountOrder, cx: &mut ActorCx<'_>) {
        match order {
            MountOrder::Count(answer) => answer(self.session.open_count()),
            MountOrder::Stop { done, .. } if self.handle.is_none() => done(),
            MountOrder::Stop { cut, done } => {
                self.done.push(done);
                if cut { self.end(cx) } else { self.drain(cx) }
            }
        }
    }
}

fn segment(buf: &Buf, begin: usize, len: usize) -> Segment {
    // Both fit: a buffer is little more than 1 MiB.
    Segment { buf: buf.clone(), offset_bytes: begin as u32, len_bytes: len as u32 }
}

impl Actor for MountServer {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        let handle = self.raw.take().and_then(|raw| cx.driver().register(raw).ok());
        let Some(handle) = handle else {
            (self.tell)(MountEvent::Ended);
            return cx.exit();
        };
        self.handle = Some(handle);
        self.look_at_device(cx);
        self.slots
            .extend((0..SLOTS).map(|_| Slot { buf: Buf::alloc(BUF_BYTES), phase: Phase::Idle }));
        for at in 0..SLOTS {
            self.receive(at, cx);
        }
    }

    fn on_bio(&mut self, tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        let status = bio.status;
        cx.recycle(bio);
        if self.handle.is_some() {
            self.came_back(tag as usize, errno_of(status), cx);
        }
    }

    fn on_op(&mut self, user: u32, completion: Completion, cx: &mut ActorCx<'_>) {
        if self.handle.is_none() {
            return;
        }
        let at = (user & !OP_ANSWER) as usize;
        drop(completion.payload);
        if user & OP_ANSWER == 0 {
            self.received(at, completion.result, cx);
        } else {
            // An answer nobody waits for any more is refused, which harms nobody.
            self.receive(at, cx);
        }
    }

    fn on_notice(&mut self, notice: DeviceNotice, cx: &mut ActorCx<'_>) {
        match notice {
            DeviceNotice::Resized(device) if device == self.served.device => {
                self.look_at_device(cx);
                (self.tell)(MountEvent::Resized);
            }
            DeviceNotice::Removed(device) if device == self.served.device => self.drain(cx),
            DeviceNotice::Resized(_) | DeviceNotice::Removed(_) => {}
        }
    }

    fn on_message(&mut self, message: Box<dyn Any + Send>, cx: &mut ActorCx<'_>) {
        if let Ok(order) = message.downcast::<MountOrder>() {
            self.obey(*order, cx);
        }
    }
}
