//! The server of a mount on one lane: an actor that reads the kernel's requests and answers them.
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
//! A mount has a server on each lane, with a descriptor of its own. One is its home and always
//! reads; the others sleep until a lane that reads has had [`FULL_TURNS`] full turns in a row or
//! takes its last slot, and again after [`LULL_TURNS`] turns with one request each. See `team`.
//!
//! Rules. All slots without a request offer a read at the same time, so that the driver can fetch a
//! burst of requests in one turn. An answer is sent once for each command. After the mount has
//! ended (unmounted, aborted, told to stop) nothing is read any more. The home leaves last.
//!
//! The tricky case is the end while answers are under way: nobody reads any more, but a mate still
//! holds blocks for patches of others, so all stay until the home has nothing left to answer.

use super::change::{Change, Changes};
use super::exchange::Lent;
use super::reply::{Answer, errno_of};
use super::session::{Event, FileView, IO_BYTES_MAX, Session};
use super::team::{Place, Team, TeamMessage, TeamNote, Who};
use super::wire::{HEAD_BYTES_MAX, WRITE_HEAD_BYTES};
use std::any::Any;
use std::fmt;
use std::os::fd::{IntoRawFd, OwnedFd};
use udm_core::actor::{Actor, ActorCx, DeviceNotice};
use udm_core::bio::BioBox;
use udm_lane::{Buf, Completion, DriverOp, Errno, Handle, Payload, RawHandle, Segment};
use udm_types::{ActorId, DeviceId, LaneId, Nanos, SECTOR_BYTES};

/// Requests of a mount served at a time on a lane. Each has a buffer of its own (a little more than
/// 1 MiB, of which only what was used takes memory), and 64 keep any disk busy.
pub const SLOTS: usize = 64;

/// Where the payload of a write arrives and the data of a read goes to.
pub(super) const DATA_AT: usize = 4096;
/// The largest block of a device; edges of unaligned reads need one on each side.
const BLOCK_BYTES_MAX: usize = 64 << 10;
/// A slot's buffer.
pub(super) const BUF_BYTES: usize = DATA_AT + IO_BYTES_MAX as usize + 2 * BLOCK_BYTES_MAX;
/// What a read of `/dev/fuse` offers: the kernel wants room for the longest write.
const MESSAGE_BYTES: usize = WRITE_HEAD_BYTES + IO_BYTES_MAX as usize;
/// Where a message arrives.
const MESSAGE_AT: usize = DATA_AT - WRITE_HEAD_BYTES;

/// A turn with so many requests is full: it is what the driver fetches in a turn, so more may wait.
const FULL_TURN: u32 = 16;
/// After so many full turns in a row, some milliseconds, a lane has more to do than it can. A batch
/// now and then is no reason: it costs less if one lane has all of it.
const FULL_TURNS: u32 = 32;
/// After so many turns with one request each a mate sleeps again. Every request wakes all lanes
/// that wait for one, so one that is not needed costs the others.
const LULL_TURNS: u32 = 32;

/// Set in the word of an operation that sends an answer.
const OP_ANSWER: u32 = 1 << 16;

/// The kernel does not want the rings after all.
const EOPNOTSUPP: i32 = 95;
/// Errors of reading `/dev/fuse` after which one reads again: the request was called off.
const TRY_AGAIN: [i32; 3] = [2, 4, 11];

/// What to serve.
#[derive(Clone, Debug)]
pub struct Served {
    /// Tells the mount from others of this daemon.
    pub mount: u64,
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
    /// The kernel's queues of a connection, if requests may come through the lanes' rings.
    pub ring_queues: Option<u16>,
}

/// What happens to a mount, for its control side. Told on the lane: do not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountEvent {
    /// The handshake is over.
    Ready {
        /// Requests come through the rings of the lanes, not by reads of `/dev/fuse`.
        by_ring: bool,
    },
    /// The kernel speaks another protocol.
    Refused,
    /// The rings were switched off during the handshake; requests come by reads.
    RingsRefused,
    /// The device has another size; who asks for it gets the new one.
    Resized,
    /// Nothing is under way any more, but the kernel has our memory: abort the connection.
    Abort,
    /// Nothing is served any more: unmounted, aborted, or stopped.
    Ended,
}

/// What the control side tells a server; send it as the message of a `LaneMessage::ToActor`.
#[derive(Debug)]
pub struct MountCall {
    /// Which mount is meant; an actor's number may belong to another one when this arrives.
    pub mount: u64,
    /// What.
    pub order: MountOrder,
}

/// What the control side wants.
pub enum MountOrder {
    /// End. For the home.
    Stop {
        /// At once, instead of answering what is under way.
        cut: bool,
        /// Called on the lane when `/dev/fuse` is closed on all lanes.
        done: Box<dyn FnOnce() + Send>,
    },
    /// Asks how often the file was opened on this lane, less how often it was closed.
    Count(Box<dyn FnOnce(i32) + Send>),
    /// The connection has been aborted, or cannot be: end, whatever is under way. For the home.
    Close,
}

impl fmt::Debug for MountOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MountOrder::Stop { cut, .. } => write!(f, "Stop(cut: {cut})"),
            MountOrder::Count(_) => f.write_str("Count"),
            MountOrder::Close => f.write_str("Close"),
        }
    }
}

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

/// The server.
pub struct MountServer {
    raw: Option<RawHandle>,
    pub(super) handle: Option<Handle>,
    pub(super) served: Served,
    session: Session,
    pub(super) block_bytes: u64,
    pub(super) slots: Vec<Slot>,
    pub(super) changes: Changes<Who>,
    pub(super) tell: Box<dyn Fn(MountEvent) + Send>,
    /// Its number among the mates; none is the home.
    pub(super) mate: Option<u16>,
    /// Where the home is, for a mate that has heard of it.
    pub(super) home: Option<Place>,
    /// The mates, for the home.
    pub(super) team: Team,
    /// Free slots wait for messages.
    reads: bool,
    /// A mate that has been invited and has not said that it sleeps.
    pub(super) is_awake: bool,
    /// A mate that has asked for help, and knows of nobody who has gone to sleep since. Those who
    /// come ask for themselves.
    pub(super) has_asked: bool,
    pub(super) draining: bool,
    /// Requests come through the rings of the lanes.
    pub(super) has_ring: bool,
    /// The handshake was answered a moment ago.
    is_fresh: bool,
    /// The kernel did not want the rings after all.
    pub(super) is_refused: bool,
    /// The control side knows that the connection is to be aborted.
    has_asked_to_abort: bool,
    /// Nothing will be said or done any more.
    has_left: bool,
    done: Vec<Box<dyn FnOnce() + Send>>,
    turn: Turn,
    /// Slots that wait for a message.
    pub(super) free: usize,
}

/// How busy the turns of this lane are.
#[derive(Default)]
struct Turn {
    /// Its time.
    at: Nanos,
    /// Messages in it.
    messages: u32,
    /// Turns with one message before it, in a row.
    lull: u32,
    /// Full turns before it, in a row.
    full: u32,
}

impl Turn {
    /// Counts a message.
    fn count(&mut self, now: Nanos) {
        if now != self.at {
            self.at = now;
            self.lull = if self.messages > 1 { 0 } else { self.lull + 1 };
            self.full = if self.messages < FULL_TURN { 0 } else { self.full + 1 };
            self.messages = 0;
        }
        self.messages += 1;
    }
}

impl MountServer {
    /// The home of a mount: takes over an open `/dev/fuse` that has been mounted. `mates` are where
    /// the servers of the other lanes are.
    pub fn new(
        connection: OwnedFd,
        served: Served,
        mates: Vec<(LaneId, ActorId)>,
        tell: Box<dyn Fn(MountEvent) + Send>,
    ) -> MountServer {
        let session = Session::new(file_view(&served), served.ring_queues.is_some());
        let mut home = MountServer::blank(connection, served, session, tell);
        home.team = Team::new(mates);
        home.reads = true;
        home
    }

    /// The server of another lane, with a descriptor of its own of the same connection: number
    /// `mate` of the home's list.
    pub fn mate(
        mate: u16,
        connection: OwnedFd,
        served: Served,
        tell: Box<dyn Fn(MountEvent) + Send>,
    ) -> MountServer {
        let session = Session::joined(file_view(&served));
        MountServer { mate: Some(mate), ..MountServer::blank(connection, served, session, tell) }
    }

    fn blank(
        connection: OwnedFd,
        served: Served,
        session: Session,
        tell: Box<dyn Fn(MountEvent) + Send>,
    ) -> MountServer {
        MountServer {
            raw: Some(RawHandle(connection.into_raw_fd())),
            handle: None,
            served,
            session,
            block_bytes: SECTOR_BYTES,
            slots: Vec::new(),
            changes: Changes::new(SLOTS),
            tell,
            mate: None,
            home: None,
            team: Team::default(),
            reads: false,
            is_awake: false,
            has_asked: false,
            draining: false,
            has_ring: false,
            is_fresh: false,
            is_refused: false,
            has_asked_to_abort: false,
            has_left: false,
            done: Vec::new(),
            turn: Turn::default(),
            free: 0,
        }
    }

    pub(super) fn is_home(&self) -> bool {
        self.mate.is_none()
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

    /// Begins to read.
    pub(super) fn wake_up(&mut self, cx: &mut ActorCx<'_>) {
        if self.draining {
            return;
        }
        (self.reads, self.is_awake, self.has_asked) = (true, true, false);
        self.turn = Turn { at: cx.now(), messages: 2, lull: 0, full: 0 };
        // One is enough for the home's handshake, if more may not be needed.
        let may_ring = self.is_home() && self.served.ring_queues.is_some();
        let count = if may_ring { 1 } else { SLOTS };
        self.grow(count, None);
        self.receive_everywhere(cx);
    }

    /// Has every slot that does nothing wait for a message.
    pub(super) fn receive_everywhere(&mut self, cx: &mut ActorCx<'_>) {
        for at in 0..self.slots.len() {
            if matches!(self.slots[at].phase, Phase::Idle) {
                self.receive(at, cx);
            }
        }
    }

    /// Makes slots until there are so many.
    pub(super) fn grow(&mut self, count: usize, lent: Option<Lent>) {
        while self.slots.len() < count {
            let buf = Buf::alloc(BUF_BYTES);
            self.slots.push(Slot { buf, phase: Phase::Idle, patch: None, lent });
        }
    }

    /// The handshake is over, and the kernel knows our answer.
    fn spread_out(&mut self, cx: &mut ActorCx<'_>) {
        (self.tell)(MountEvent::Ready { by_ring: self.session.has_ring() });
        if self.session.has_ring() {
            return self.deal_queues(cx);
        }
        self.grow(SLOTS, None);
        self.receive_everywhere(cx);
    }

    /// Stops to read; what is under way goes on.
    fn stop_reading(&mut self, cx: &mut ActorCx<'_>) {
        self.reads = false;
        for (at, slot) in (0_u32..).zip(&self.slots) {
            if matches!(slot.phase, Phase::Receiving) && slot.lent.is_none() {
                cx.cancel_op(at);
            }
        }
        self.rest_if_idle(cx);
    }

    /// Waits for a message in this slot.
    fn receive(&mut self, at: usize, cx: &mut ActorCx<'_>) {
        let slot = &mut self.slots[at];
        let reads = self.reads && slot.lent.is_none();
        let Some(handle) = self.handle.filter(|_| reads) else {
            slot.phase = Phase::Idle;
            return self.rest_if_idle(cx);
        };
        slot.phase = Phase::Receiving;
        self.free += 1;
        let payload = Payload::from(segment(&slot.buf, MESSAGE_AT, MESSAGE_BYTES));
        cx.submit_op(at as u32, DriverOp::Read { handle, offset_bytes: 0, payload });
    }

    fn received(&mut self, at: usize, result: Result<u32, Errno>, cx: &mut ActorCx<'_>) {
        if self.slots[at].lent.is_some() {
            return match result {
                Ok(_) => self.received_lent(at, cx),
                Err(Errno(EOPNOTSUPP)) => self.leave_rings(cx),
                // The connection was aborted, or unmounted.
                Err(_) => self.end(cx),
            };
        }
        self.free -= 1;
        let len = match result {
            Ok(len) => len as usize,
            Err(Errno(code)) if !self.reads || TRY_AGAIN.contains(&code) => {
                return self.receive(at, cx);
            }
            // ENODEV: it was unmounted. Anything else would come again for ever.
            Err(_) => return self.end(cx),
        };
        self.turn.count(cx.now());
        let mut head = [0; HEAD_BYTES_MAX];
        let there = len.min(HEAD_BYTES_MAX);
        self.slots[at].buf.copy_out(MESSAGE_AT, &mut head[..there]);
        self.take(at, &head[..there], len, cx);
        // With one slot for the handshake it only seems that there is much to do.
        if self.has_ring || self.is_fresh {
            return;
        }
        if self.turn.full >= FULL_TURNS || self.free == 0 {
            self.turn.full = 0;
            self.crowded(cx);
        }
        if self.turn.lull >= LULL_TURNS && self.reads && !self.is_home() {
            self.turn.lull = 0;
            self.stop_reading(cx);
        }
    }

    /// Takes a message of `len` bytes that has arrived and begins like this.
    pub(super) fn take(&mut self, at: usize, head: &[u8], len: usize, cx: &mut ActorCx<'_>) {
        match self.session.take(head, len) {
            Event::Command(command) => self.start(at, command, cx),
            Event::Answer(answer) => self.answer(at, &answer, cx),
            Event::Ready(answer) => {
                self.is_fresh = true;
                self.answer(at, &answer, cx);
            }
            Event::Refused(answer) => {
                self.answer(at, &answer, cx);
                (self.tell)(MountEvent::Refused);
                self.drain(cx);
            }
            Event::Quiet if self.slots[at].lent.is_some() => self.exchange(at, cx),
            Event::Quiet => self.receive(at, cx),
            Event::Broken(_) => self.end(cx),
        }
    }

    pub(super) fn answer(&mut self, at: usize, answer: &Answer, cx: &mut ActorCx<'_>) {
        self.slots[at].buf.copy_in(0, answer.as_bytes());
        self.send(at, 0, answer.as_bytes().len(), cx);
    }

    pub(super) fn send(&mut self, at: usize, begin: usize, len: usize, cx: &mut ActorCx<'_>) {
        if self.slots[at].lent.is_some() {
            return self.answer_lent(at, (begin, len), cx);
        }
        let Some(handle) = self.handle else { return };
        let slot = &mut self.slots[at];
        slot.phase = Phase::Answering;
        let payload = Payload::from(segment(&slot.buf, begin, len));
        let write = DriverOp::Write { handle, offset_bytes: 0, payload, dsync: false };
        cx.submit_op(at as u32 | OP_ANSWER, write);
    }

    /// Takes no more requests, answers what is under way, then ends.
    pub(super) fn drain(&mut self, cx: &mut ActorCx<'_>) {
        if self.draining || self.handle.is_none() {
            return;
        }
        self.draining = true;
        for place in self.team.present() {
            self.tell(place, TeamNote::End { cut: false }, cx);
        }
        self.stop_reading(cx);
    }

    /// Nothing may be under way any more: a mate says that it sleeps, a home that drains ends.
    pub(super) fn rest_if_idle(&mut self, cx: &mut ActorCx<'_>) {
        let sleeps = self.draining || !self.has_ring;
        let waits_for_it = if self.is_home() { self.draining } else { self.is_awake && sleeps };
        let is_idle = |slot: &Slot| match slot.phase {
            Phase::Idle => true,
            Phase::Receiving => slot.lent.is_some(),
            _ => false,
        };
        if self.reads || !waits_for_it || !self.slots.iter().all(is_idle) {
            return;
        }
        match self.mate {
            None if self.team.awake().next().is_none() => self.cut(cx),
            // A mate says so, and then this is looked at again.
            None => {}
            Some(mate) if self.changes.is_empty() => {
                self.is_awake = false;
                self.tell_home(TeamNote::Asleep { mate }, cx);
            }
            // It holds blocks for others.
            Some(_) => {}
        }
    }

    /// Ends, whatever is under way. What the kernel has of us only the control side can take back.
    fn cut(&mut self, cx: &mut ActorCx<'_>) {
        if !self.has_ring {
            return self.end(cx);
        }
        if !std::mem::replace(&mut self.has_asked_to_abort, true) {
            (self.tell)(MountEvent::Abort);
        }
    }

    /// Closes `/dev/fuse`, on all lanes: the kernel ends what it still has with us. Bios under way
    /// come back to a shell that answers nobody.
    pub(super) fn end(&mut self, cx: &mut ActorCx<'_>) {
        if let Some(handle) = self.handle.take() {
            cx.driver().close(handle);
        } else if self.is_home() {
            return;
        }
        self.reads = false;
        self.leave(cx);
    }

    /// Tells the others that nothing is open here any more.
    fn leave(&mut self, cx: &mut ActorCx<'_>) {
        match self.mate {
            None => {
                for place in self.team.present() {
                    self.tell(place, TeamNote::End { cut: true }, cx);
                }
                self.leave_if_last(cx);
            }
            Some(_) if self.has_left => {}
            Some(mate) => {
                self.has_left = true;
                self.tell_home(TeamNote::Left { mate }, cx);
                cx.exit();
            }
        }
    }

    /// The home is gone when all mates are.
    pub(super) fn leave_if_last(&mut self, cx: &mut ActorCx<'_>) {
        if self.has_left || self.handle.is_some() || self.team.present().next().is_some() {
            return;
        }
        self.has_left = true;
        self.done.drain(..).for_each(|done| done());
        (self.tell)(MountEvent::Ended);
        cx.exit();
    }

    fn obey(&mut self, order: MountOrder, cx: &mut ActorCx<'_>) {
        match order {
            MountOrder::Count(answer) => answer(self.session.open_count()),
            MountOrder::Stop { done, .. } if self.has_left => done(),
            MountOrder::Stop { cut, done } => {
                self.done.push(done);
                if cut { self.cut(cx) } else { self.drain(cx) }
            }
            MountOrder::Close => self.end(cx),
        }
    }
}

fn file_view(served: &Served) -> FileView {
    FileView {
        size_bytes: 0,
        block_bytes: 4096,
        read_only: served.read_only,
        uid: served.uid,
        gid: served.gid,
        since_s: served.since_s,
    }
}

pub(super) fn segment(buf: &Buf, begin: usize, len: usize) -> Segment {
    // Both fit: a buffer is little more than 1 MiB.
    Segment { buf: buf.clone(), offset_bytes: begin as u32, len_bytes: len as u32 }
}

impl Actor for MountServer {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        self.handle = self.raw.take().and_then(|raw| cx.driver().register(raw).ok());
        self.look_at_device(cx);
        match (self.is_home(), self.handle) {
            (true, Some(_)) => self.wake_up(cx),
            (true, None) => self.leave(cx),
            // A mate waits for the home's first word. Without a handle it says then that it cannot.
            (false, _) => {}
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
            if std::mem::take(&mut self.is_fresh) {
                self.spread_out(cx);
            }
        }
    }

    fn on_notice(&mut self, notice: DeviceNotice, cx: &mut ActorCx<'_>) {
        match notice {
            DeviceNotice::Resized(device) if device == self.served.device => {
                self.look_at_device(cx);
                (self.tell)(MountEvent::Resized);
            }
            // The home ends the others.
            DeviceNotice::Removed(device) if device == self.served.device && self.is_home() => {
                self.drain(cx);
            }
            DeviceNotice::Resized(_) | DeviceNotice::Removed(_) => {}
        }
    }

    fn on_message(&mut self, message: Box<dyn Any + Send>, cx: &mut ActorCx<'_>) {
        match message.downcast::<TeamMessage>() {
            Ok(message) if message.mount == self.served.mount => {
                self.hear(message.from, message.note, cx);
            }
            Ok(_) => {}
            Err(message) => {
                if let Ok(call) = message.downcast::<MountCall>()
                    && call.mount == self.served.mount
                {
                    self.obey(call.order, cx);
                }
            }
        }
    }
}
