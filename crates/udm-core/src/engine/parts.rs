//! What actors reach of their lane: driver, clock, bios, buffers, timers, mailboxes.
//!
//! Kept apart from devices, lowers and actors so that an actor can be called with this borrowed
//! mutably and the rest left alone. Everything an actor does here is queued and taken up by the
//! loop when the call has returned; nothing re-enters.

use crate::bio::Bio;
use crate::bio::{BioBox, LostBios, Origin};
use crate::engine::LaneMessage;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use udm_lane::{BufPool, Driver, Mailbox, MailboxFull, Timers};
use udm_types::{ActorId, DeviceId, LaneId, LowerId, Nanos};

/// Whom a timer is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TimerFor {
    Actor {
        actor: ActorId,
        token: u64,
    },
    Lower {
        lower: LowerId,
        token: u64,
    },
    Target {
        device: DeviceId,
        table_generation: u64,
        target: u32,
        token: u64,
    },
    /// Requests of a device that wait for more of their stream.
    Growth {
        device: DeviceId,
    },
    /// Requests of a device that wait out a pause.
    Requests {
        device: DeviceId,
    },
    Coordinator {
        token: u64,
    },
}

/// Blank bios kept for reuse at the most; beyond it an old burst's memory is given back.
const IDLE_BIOS_MAX: usize = 4096;

/// Blank bios of a lane, kept for reuse.
#[derive(Debug)]
pub(crate) struct BioStock {
    lane: LaneId,
    lost: LostBios,
    idle: Vec<BioBox>,
}

impl BioStock {
    pub(crate) fn new(lane: LaneId, lost: LostBios) -> BioStock {
        BioStock { lane, lost, idle: Vec::new() }
    }

    /// A blank bio.
    #[inline]
    pub(crate) fn take(&mut self) -> BioBox {
        match self.idle.pop() {
            Some(bio) => bio,
            None => Box::new(Bio::new(self.lane, self.lost.clone())),
        }
    }

    /// Keeps a bio for its next use. One of another lane is freed instead.
    #[inline]
    pub(crate) fn put(&mut self, mut bio: BioBox) {
        bio.reset();
        if self.idle.len() < IDLE_BIOS_MAX && bio.home() == self.lane {
            self.idle.push(bio);
        }
    }
}

/// What actors reach of their lane.
pub(crate) struct Shared {
    pub(crate) lane: LaneId,
    pub(crate) now: Nanos,
    pub(crate) driver: Box<dyn Driver>,
    pub(crate) timers: Timers<TimerFor>,
    pub(crate) bufs: BufPool,
    pub(crate) incoming: VecDeque<BioBox>,
    pub(crate) turn_enders: Vec<ActorId>,
    pub(crate) exiting: Vec<ActorId>,
    pub(crate) peers: Vec<Mailbox<LaneMessage>>,
    pub(crate) lost: LostBios,
    /// Messages a full mailbox gave back, by lane; sent again each turn, in order.
    outbox: Vec<VecDeque<LaneMessage>>,
    /// Messages to this lane itself.
    pub(crate) loopback: VecDeque<LaneMessage>,
    stock: BioStock,
}

impl Shared {
    pub(crate) fn new(
        lane: LaneId,
        peers: Vec<Mailbox<LaneMessage>>,
        mut driver: Box<dyn Driver>,
    ) -> Shared {
        let lost = LostBios::default();
        Shared {
            lane,
            now: driver.now(),
            driver,
            timers: Timers::default(),
            bufs: BufPool::new(),
            incoming: VecDeque::new(),
            turn_enders: Vec::new(),
            exiting: Vec::new(),
            outbox: peers.iter().map(|_| VecDeque::new()).collect(),
            peers,
            stock: BioStock::new(lane, lost.clone()),
            lost,
            loopback: VecDeque::new(),
        }
    }

    #[inline]
    pub(crate) fn take_bio(&mut self) -> BioBox {
        self.stock.take()
    }

    #[inline]
    pub(crate) fn recycle(&mut self, bio: BioBox) {
        self.stock.put(bio);
    }

    #[inline]
    pub(crate) fn submit_from_actor(&mut self, actor: ActorId, tag: u64, mut bio: BioBox) {
        bio.origin = Origin::Actor { actor, tag };
        bio.issued_at = self.now;
        bio.classify();
        bio.set_live(true);
        self.incoming.push_back(bio);
    }

    pub(crate) fn set_actor_timer(&mut self, deadline: Nanos, actor: ActorId, token: u64) {
        self.timers.set(deadline, TimerFor::Actor { actor, token });
    }

    /// Sends to a lane; keeps order per lane, never drops.
    pub(crate) fn send(&mut self, lane: LaneId, message: LaneMessage) {
        if lane == self.lane {
            self.loopback.push_back(message);
            return;
        }
        self.outbox[lane.index()].push_back(message);
        self.flush_outbox(lane.index());
    }

    pub(crate) fn flush_outboxes(&mut self) {
        for lane in 0..self.outbox.len() {
            if !self.outbox[lane].is_empty() {
                self.flush_outbox(lane);
            }
        }
    }

    fn flush_outbox(&mut self, lane: usize) {
        while let Some(message) = self.outbox[lane].pop_front() {
            if let Err(MailboxFull(message)) = self.peers[lane].send(message) {
                self.outbox[lane].push_front(message);
                return;
            }
        }
    }

    /// True if a full mailbox holds messages back.
    pub(crate) fn has_unsent(&self) -> bool {
        self.outbox.iter().any(|queue| !queue.is_empty())
    }
}
