//! The server of a mount on one lane: an actor that reads the kernel's requests and answers them.
//!
//! It has `SLOTS` slots, each with a buffer of its own (`slot`). A slot goes round: it waits for a
//! message, the message becomes bios, the answer is sent from the same buffer, and it waits again.
//! So nothing is allocated on the way, and what is in flight is bounded by the slots; further
//! requests wait in the kernel.
//!
//! A mount has a server on each lane, with a descriptor of its own. One is its home and always
//! reads; the others sleep until a lane that reads has too much to do, and again when there is
//! little (`load`, `team`).
//!
//! Rules. All slots without a request offer a read at the same time, so that the driver can fetch a
//! burst of requests in one turn. An answer is sent once for each command. After the mount has
//! ended (unmounted, aborted, told to stop) nothing is read any more (`ending`).
//!
//! The tricky case is the handshake: it goes through one slot, and only once the kernel has our
//! answer is it known whether requests come by reads, on how many slots, or through the rings.

use super::change::Changes;
use super::exchange::Lent;
use super::load::Turn;
use super::order::{MountCall, MountEvent, MountOrder, Served};
use super::reply::{Answer, errno_of};
use super::session::{Event, FileView, IO_BYTES_MAX, Session};
use super::slot::{BUF_BYTES, MESSAGE_AT, MESSAGE_BYTES, Phase, SLOTS, Slot, segment};
use super::team::{Place, Team, TeamMessage, Who};
use super::wire::HEAD_BYTES_MAX;
use std::any::Any;
use std::os::fd::{IntoRawFd, OwnedFd};
use udm_core::actor::{Actor, ActorCx, DeviceNotice};
use udm_core::bio::BioBox;
use udm_lane::{Buf, Completion, DriverOp, Errno, Handle, Payload, RawHandle};
use udm_types::{ActorId, LaneId, SECTOR_BYTES};

/// Set in the word of an operation that sends an answer.
const OP_ANSWER: u32 = 1 << 16;

/// The kernel does not want the rings after all.
const EOPNOTSUPP: i32 = 95;
/// Errors of reading `/dev/fuse` after which one reads again: the request was called off.
const TRY_AGAIN: [i32; 3] = [2, 4, 11];

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
    pub(super) reads: bool,
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
    pub(super) has_asked_to_abort: bool,
    /// Nothing will be said or done any more.
    pub(super) has_left: bool,
    pub(super) done: Vec<Box<dyn FnOnce() + Send>>,
    turn: Turn,
    /// Slots that wait for a message.
    pub(super) free: usize,
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
        self.turn = Turn::from(cx.now());
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
        if self.turn.take_crowd(self.free == 0) {
            self.crowded(cx);
        }
        if self.reads && !self.is_home() && self.turn.take_lull() {
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
