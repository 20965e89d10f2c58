//! One virtqueue on a lane: an actor that takes requests from the ring and answers into it.
//!
//! Made by the control thread when the session starts a queue, gone when it stops. A kick (or the
//! end of a turn) makes it look into the ring; every request becomes one bio whose payload is the
//! guest's memory in place; what came back in a turn is shown to the guest at once, at its end,
//! with one ring of the call eventfd if the guest wants one. In steady state that is no
//! allocation, and one system call for all of it.
//!
//! Rules. What is under way is bounded by the ring's size. The descriptor's number is the bio's
//! tag; a number the guest uses twice at once is a breach. After a breach nothing of the guest's
//! memory is touched any more; the control thread is told and stops the queue.
//!
//! ```text
//! running --Stop, or a breach--> stopping --last bio is back--> Stopped (told), gone
//! ```
//!
//! The tricky case is a stop while the device is suspended: bios may be held for hours. The kick
//! is closed at once, and whoever stops decides how long to wait; the actor stays until then.

use super::breach::Breach;
use super::inflight::Inflight;
use super::memory::{GuestMemory, Span};
use super::request::{self, Ask, BlockRequest, ID_BYTES, STATUS_OK, status_byte};
use super::ring::{Chain, Ring};
use super::session::QueueSetup;
use std::any::Any;
use std::fmt;
use std::os::fd::{IntoRawFd, OwnedFd};
use udm_core::actor::{Actor, ActorCx};
use udm_core::bio::BioBox;
use udm_lane::{Completion, DriverOp, Handle, RawHandle};
use udm_types::{BioFlags, DeviceId, Op};

/// Our word for the watch on the kick eventfd.
const OP_KICK: u32 = 0;

/// What a queue tells the control thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueReport {
    /// It has stopped; the next available entry has this index.
    Stopped(u16),
    /// The guest broke the rules; it waits to be stopped.
    Broken(Breach),
}

/// Called with a queue's reports, on its lane.
pub type Report = Box<dyn Fn(QueueReport) + Send>;

/// What the control thread tells a queue.
pub struct QueueOrder {
    /// Which queue is meant; an actor's id may belong to another by the time the order arrives.
    pub number: u64,
    /// What to do.
    pub wish: QueueWish,
}

/// See [`QueueOrder`].
pub enum QueueWish {
    /// Take no more, answer what is under way, report, end.
    Stop,
    /// Call the guest with this eventfd from now on.
    Call(Option<OwnedFd>),
    /// Use this memory from now on, then call.
    Memory(GuestMemory, [Span; 3], Box<dyn FnOnce() + Send>),
}

impl fmt::Debug for QueueOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wish = match self.wish {
            QueueWish::Stop => "stop",
            QueueWish::Call(_) => "call",
            QueueWish::Memory(..) => "memory",
        };
        write!(f, "{wish} queue {}", self.number)
    }
}

/// What a queue serves.
#[derive(Clone, Debug)]
pub struct QueueDisk {
    /// The device.
    pub device: DeviceId,
    /// Changes are refused, whatever the device allows.
    pub read_only: bool,
    /// The answer to "get id".
    pub id: [u8; ID_BYTES],
}

/// A request that was taken.
#[derive(Clone, Copy, Debug)]
struct Slot {
    status_addr: u64,
    written_bytes: u32,
    /// A flush has to follow.
    then_flush: bool,
}

/// A virtqueue.
pub struct Queue {
    number: u64,
    disk: QueueDisk,
    ring: Ring,
    memory: GuestMemory,
    inflight: Option<Inflight>,
    again: Vec<u16>,
    write_through: bool,
    kick_fd: Option<OwnedFd>,
    call_fd: Option<OwnedFd>,
    kick: Option<Handle>,
    call: Option<Handle>,
    /// By the number of a request's first descriptor.
    slots: Vec<Option<Slot>>,
    chain: Chain,
    report: Report,
    /// Kicks were asked for when the next entry was this.
    armed_at: Option<u16>,
    stopping: bool,
    broken: bool,
    ended: bool,
}

impl Queue {
    /// A queue; install it on a lane.
    pub fn new(number: u64, disk: QueueDisk, setup: QueueSetup, report: Report) -> Queue {
        let slots = vec![None; usize::from(setup.ring.size())];
        Queue {
            number,
            disk,
            ring: setup.ring,
            memory: setup.memory,
            inflight: setup.inflight,
            again: setup.again,
            write_through: setup.write_through,
            kick_fd: Some(setup.kick),
            call_fd: setup.call,
            kick: None,
            call: None,
            slots,
            chain: Chain::default(),
            report,
            armed_at: None,
            stopping: false,
            broken: false,
            ended: false,
        }
    }

    /// Takes all requests that are there.
    fn take(&mut self, cx: &mut ActorCx<'_>) {
        if self.stopping || self.broken {
            return;
        }
        loop {
            match self.ring.pop() {
                Ok(Some(head)) => {
                    if self.armed_at.take().is_some() {
                        self.ring.disarm();
                    }
                    self.begin(head, cx);
                    if self.broken {
                        return;
                    }
                }
                Ok(None) => return,
                Err(breach) => return self.break_off(breach, cx),
            }
        }
    }

    /// Starts a request.
    fn begin(&mut self, head: u16, cx: &mut ActorCx<'_>) {
        if self.slots[usize::from(head)].is_some() {
            return self.break_off(Breach::Ring("a descriptor is used twice at once"), cx);
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.taken(head);
        }
        let mut bio = cx.take_bio();
        let parsed = self
            .ring
            .walk(head, &self.memory, &mut self.chain)
            .and_then(|()| request::parse(&self.chain, &self.memory, &mut bio.payload));
        match parsed {
            Ok(request) => self.submit(head, request, bio, cx),
            Err(breach) => {
                cx.recycle(bio);
                self.break_off(breach, cx);
            }
        }
    }

    fn submit(&mut self, head: u16, request: BlockRequest, mut bio: BioBox, cx: &mut ActorCx<'_>) {
        let BlockRequest { ask, status_addr, written_bytes } = request;
        let mut slot = Slot { status_addr, written_bytes, then_flush: false };
        let mut flags = BioFlags::empty();
        let (op, sector, len_sectors) = match ask {
            Ask::Read(sector) => (Op::Read, sector, bio.payload.len_bytes() >> 9),
            Ask::Write(sector) => {
                flags.set(BioFlags::FUA, self.write_through);
                (Op::Write, sector, bio.payload.len_bytes() >> 9)
            }
            Ask::Flush => (Op::Flush, 0, 0),
            Ask::Discard(sector, len_sectors) => (Op::Discard, sector, len_sectors),
            Ask::WriteZeroes { sector, len_sectors, may_unmap } => {
                flags.set(BioFlags::NO_UNMAP, !may_unmap);
                slot.then_flush = self.write_through;
                (Op::WriteZeroes, sector, len_sectors)
            }
            Ask::GetId(range) => {
                cx.recycle(bio);
                let id = &self.disk.id[..range.len_bytes as usize];
                return match self.memory.write(range.addr, id) {
                    Ok(()) => self.answer(head, slot, STATUS_OK, cx),
                    Err(breach) => self.break_off(breach, cx),
                };
            }
            Ask::Answer(status) => {
                cx.recycle(bio);
                return self.answer(head, slot, status, cx);
            }
        };
        if op.is_write() && self.disk.read_only {
            cx.recycle(bio);
            return self.answer(head, slot, request::STATUS_IOERR, cx);
        }
        self.slots[usize::from(head)] = Some(slot);
        bio.ask(op, flags, sector, len_sectors);
        cx.submit(self.disk.device, u64::from(head), bio);
    }

    /// Puts an answer into the used ring; the guest sees it at the end of the turn.
    fn answer(&mut self, head: u16, slot: Slot, status: u8, cx: &mut ActorCx<'_>) {
        if self.broken {
            return;
        }
        if let Err(breach) = self.memory.write(slot.status_addr, &[status]) {
            return self.break_off(breach, cx);
        }
        if let Some(inflight) = &mut self.inflight {
            inflight.answered(head);
        }
        let written = if status == STATUS_OK { slot.written_bytes } else { 1 };
        self.ring.push_used(head, written);
        cx.want_turn_end();
    }

    fn break_off(&mut self, breach: Breach, cx: &mut ActorCx<'_>) {
        if !std::mem::replace(&mut self.broken, true) {
            (self.report)(QueueReport::Broken(breach));
        }
        self.close_kick(cx);
        cx.want_turn_end();
    }

    fn close_kick(&mut self, cx: &mut ActorCx<'_>) {
        if let Some(kick) = self.kick.take() {
            cx.driver().close(kick);
        }
    }

    /// Shows the guest what was answered in this turn.
    fn publish(&mut self, cx: &mut ActorCx<'_>) {
        if self.broken || !self.ring.has_unpublished() {
            return;
        }
        let wanted = self.ring.publish();
        if let Some(inflight) = &mut self.inflight {
            inflight.published(self.ring.published());
        }
        if wanted {
            self.ring_call(cx);
        }
    }

    fn ring_call(&mut self, cx: &mut ActorCx<'_>) {
        if let Some(call) = self.call {
            cx.driver().signal(call);
        }
    }

    fn set_call(&mut self, call: Option<OwnedFd>, cx: &mut ActorCx<'_>) {
        if let Some(old) = self.call.take() {
            cx.driver().close(old);
        }
        self.call = call.and_then(|fd| register(fd, cx));
        // Something may have been published that the old one could not tell.
        self.ring_call(cx);
    }

    /// Asks for kicks if there is nothing to take.
    fn arm(&mut self, cx: &mut ActorCx<'_>) {
        if self.stopping || self.broken || self.armed_at == Some(self.ring.next_avail()) {
            return;
        }
        self.armed_at = Some(self.ring.next_avail());
        match self.ring.arm() {
            Ok(false) => {}
            Ok(true) => {
                self.take(cx);
                cx.want_turn_end();
            }
            Err(breach) => self.break_off(breach, cx),
        }
    }

    /// Ends once everything is back.
    fn end_if_drained(&mut self, cx: &mut ActorCx<'_>) {
        if self.stopping && !self.ended && cx.bios_in_flight() == 0 {
            self.ended = true;
            if let Some(call) = self.call.take() {
                cx.driver().close(call);
            }
            (self.report)(QueueReport::Stopped(self.ring.next_avail()));
            cx.exit();
        }
    }

    fn obey(&mut self, wish: QueueWish, cx: &mut ActorCx<'_>) {
        match wish {
            QueueWish::Stop => {
                self.stopping = true;
                self.close_kick(cx);
                cx.want_turn_end();
            }
            QueueWish::Call(call) => self.set_call(call, cx),
            QueueWish::Memory(memory, parts, done) => {
                match self.ring.set_parts(parts) {
                    Ok(()) => self.memory = memory,
                    Err(breach) => self.break_off(breach, cx),
                }
                done();
            }
        }
    }
}

fn register(fd: OwnedFd, cx: &mut ActorCx<'_>) -> Option<Handle> {
    cx.driver().register(RawHandle(fd.into_raw_fd())).ok()
}

impl Actor for Queue {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        let call = self.call_fd.take();
        self.set_call(call, cx);
        self.kick = self.kick_fd.take().and_then(|fd| register(fd, cx));
        let Some(handle) = self.kick else {
            return self.break_off(Breach::System("registering an eventfd", 0), cx);
        };
        cx.submit_op(OP_KICK, DriverOp::Watch { handle });
        for head in std::mem::take(&mut self.again) {
            self.begin(head, cx);
        }
        self.take(cx);
        cx.want_turn_end();
    }

    fn on_bio(&mut self, tag: u64, mut bio: BioBox, cx: &mut ActorCx<'_>) {
        let head = tag as u16;
        let Some(slot) = self.slots.get_mut(usize::from(head)).and_then(Option::take) else {
            debug_assert!(false, "a bio nobody submitted");
            return cx.recycle(bio);
        };
        let status = bio.status;
        if slot.then_flush && status.is_ok() {
            self.slots[usize::from(head)] = Some(Slot { then_flush: false, ..slot });
            bio.ask(Op::Flush, BioFlags::empty(), 0, 0);
            return cx.submit(self.disk.device, tag, bio);
        }
        cx.recycle(bio);
        self.answer(head, slot, status_byte(status), cx);
        if self.stopping || self.broken {
            cx.want_turn_end();
        }
    }

    fn on_op(&mut self, _user: u32, completion: Completion, cx: &mut ActorCx<'_>) {
        if self.kick.is_none() {
            return;
        }
        if !completion.more {
            return self.break_off(Breach::System("watching an eventfd", 0), cx);
        }
        self.take(cx);
        cx.want_turn_end();
    }

    fn on_turn_end(&mut self, cx: &mut ActorCx<'_>) {
        self.publish(cx);
        self.take(cx);
        self.arm(cx);
        self.end_if_drained(cx);
    }

    fn on_message(&mut self, message: Box<dyn Any + Send>, cx: &mut ActorCx<'_>) {
        if let Ok(order) = message.downcast::<QueueOrder>()
            && order.number == self.number
        {
            self.obey(order.wish, cx);
        }
    }
}
