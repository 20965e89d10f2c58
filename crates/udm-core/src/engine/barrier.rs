//! Ordered barriers: everything before completes first, then flush, data, flush; nothing after
//! starts before. Across lanes, and nobody is ever blocked in a call.
//!
//! A barrier closes the gate of its lane when it is submitted and waits there, in the held queue
//! like everything else. The device's *home lane* grants barriers one at a time:
//! ```text
//!   lane A                      home lane                     every lane
//!   barrier at the gate --Ask-->  queue
//!                                 its turn: --Close-->        gate closed; drained? --Closed-->
//!                                 all closed: --Go--> lane A
//!   flush, data, flush
//!   answered           --Over-->  --Open-->                   held bios enter in order
//! ```
//! Order: on one lane it is the order of submission. Between lanes two submissions are ordered if
//! one completed before the other began; a barrier covers every bio completed, on any lane, before
//! it was submitted, and every bio submitted after it completed starts after it.
//!
//! With suspend: a barrier under way counts as in flight, so a suspend waits for it. One that has
//! been asked for but not begun stays held; if its turn comes while suspended, the lane passes
//! (`Over` at once) and asks again at resume. So neither can wait for the other.

use super::parent::ParentKind;
use super::{Engine, LaneMessage};
use alloc::collections::{BTreeMap, VecDeque};
use udm_types::{BioFlags, DeviceId, LaneId, Status};

/// What lanes say to each other about barriers.
#[derive(Clone, Copy, Debug)]
pub enum BarrierMessage {
    /// To the home lane: a barrier of `lane` waits at its gate.
    Ask(DeviceId, LaneId),
    /// From the home lane: close the gate.
    Close(DeviceId, u64),
    /// To the home lane: the gate is closed and nothing is in flight.
    Closed(DeviceId, u64),
    /// From the home lane to the asker: it is your turn.
    Go(DeviceId, u64),
    /// To the home lane: the barrier is through (or was passed over).
    Over(DeviceId, u64),
    /// From the home lane: the gate may open again.
    Open(DeviceId, u64),
}

/// The home lane's side: who waits, whose turn it is. One per device with barriers.
#[derive(Debug, Default)]
pub(crate) struct BarrierHome {
    waiting: VecDeque<LaneId>,
    turn: Option<Turn>,
}

#[derive(Debug)]
struct Turn {
    lane: LaneId,
    ticket: u64,
    lanes_open: usize,
}

/// Barriers this lane is home of.
pub(crate) type BarrierHomes = BTreeMap<DeviceId, BarrierHome>;

impl Engine {
    fn home_of(&self, id: DeviceId) -> LaneId {
        id.home_lane(self.shared.peers.len())
    }

    pub(super) fn tell_barrier_home(&mut self, id: DeviceId, message: BarrierMessage) {
        let home = self.home_of(id);
        self.shared.send(home, LaneMessage::Barrier(message));
    }

    /// A barrier stands first at the gate: asks for its turn unless that is impossible now.
    pub(super) fn ask_barrier(&mut self, id: DeviceId) {
        let lane = self.shared.lane;
        let Some(device) = self.devices.get_mut(id) else { return };
        device.gate.set_open(false);
        if device.gate.suspend.is_some() || device.gate.barrier.asked {
            return;
        }
        device.gate.barrier.asked = true;
        self.tell_barrier_home(id, BarrierMessage::Ask(id, lane));
    }

    pub(crate) fn on_barrier_message(&mut self, message: BarrierMessage) {
        match message {
            BarrierMessage::Ask(id, lane) => {
                self.barrier_homes.entry(id).or_default().waiting.push_back(lane);
                self.next_turn(id);
            }
            BarrierMessage::Close(id, ticket) => self.barrier_close(id, ticket),
            BarrierMessage::Closed(id, ticket) => self.barrier_closed(id, ticket),
            BarrierMessage::Go(id, ticket) => self.barrier_go(id, ticket),
            BarrierMessage::Over(id, ticket) => self.barrier_over(id, ticket),
            BarrierMessage::Open(id, ticket) => self.barrier_open(id, ticket),
        }
    }

    /// Grants the next barrier its turn, or drops the home of a device that is gone.
    pub(super) fn next_turn(&mut self, id: DeviceId) {
        let lanes = self.shared.peers.len();
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        let Some(home) = self.barrier_homes.get_mut(&id) else { return };
        if home.turn.is_some() {
            return;
        }
        let Some(lane) = home.waiting.pop_front() else {
            // A device's home stays for its next barrier, so that barriers allocate nothing.
            if self.devices.get(id).is_none() {
                self.barrier_homes.remove(&id);
            }
            return;
        };
        home.turn = Some(Turn { lane, ticket, lanes_open: lanes });
        self.tell_all(BarrierMessage::Close(id, ticket));
    }

    fn tell_all(&mut self, message: BarrierMessage) {
        for lane in 0..self.shared.peers.len() {
            self.shared.send(LaneId(lane as u16), LaneMessage::Barrier(message));
        }
    }

    fn barrier_close(&mut self, id: DeviceId, ticket: u64) {
        match self.devices.get_mut(id) {
            Some(device) => {
                device.gate.set_open(false);
                device.gate.barrier.closed_by = Some(ticket);
                device.gate.barrier.answer_due = true;
                self.check_drained(id);
            }
            // Nothing of a destroyed device can be in flight.
            None => self.tell_barrier_home(id, BarrierMessage::Closed(id, ticket)),
        }
    }

    fn barrier_closed(&mut self, id: DeviceId, ticket: u64) {
        let Some(turn) = self.barrier_homes.get_mut(&id).and_then(|home| home.turn.as_mut()) else {
            return;
        };
        if turn.ticket != ticket {
            return;
        }
        turn.lanes_open -= 1;
        if turn.lanes_open == 0 {
            let lane = turn.lane;
            self.shared.send(lane, LaneMessage::Barrier(BarrierMessage::Go(id, ticket)));
        }
    }

    /// Our turn: every gate of the device is closed and drained.
    fn barrier_go(&mut self, id: DeviceId, ticket: u64) {
        let Some(device) = self.devices.get_mut(id) else {
            return self.tell_barrier_home(id, BarrierMessage::Over(id, ticket));
        };
        device.gate.barrier.asked = false;
        let first_is_barrier =
            device.gate.held.front().is_some_and(|held| held.bio.flags.contains(BioFlags::ORDERED));
        if device.gate.suspend.is_some() || !first_is_barrier {
            return self.tell_barrier_home(id, BarrierMessage::Over(id, ticket));
        }
        let Some(held) = device.gate.held.pop_front() else { return };
        device.gate.in_flight += 1;
        let seq = held.seq;
        let index = self.parents.put(id, seq, ParentKind::BarrierPreflush, held.bio);
        let child = self.flush_for(index);
        self.route_flush(id, child, seq);
    }

    /// A phase of a barrier is over: starts the next, or answers.
    pub(super) fn barrier_step(&mut self, index: u32) {
        let parent = self.parents.get_mut(index);
        let (status, pushed_back) = parent.outcome();
        let (id, seq) = (parent.device(), parent.seq());
        if pushed_back || !status.is_ok() {
            return self.barrier_end(index);
        }
        let has_data = parent.bio().len_sectors > 0;
        match parent.kind() {
            ParentKind::BarrierPreflush if has_data => {
                parent.set_kind(ParentKind::BarrierData);
                let mut child = self.copy_for(index, 0);
                child.flags.remove(BioFlags::ORDERED | BioFlags::PREFLUSH);
                child.classify();
                self.route(id, child, seq);
            }
            ParentKind::BarrierPreflush | ParentKind::BarrierData => {
                parent.set_kind(ParentKind::BarrierPostflush);
                let child = self.flush_for(index);
                self.route_flush(id, child, seq);
            }
            ParentKind::BarrierPostflush
            | ParentKind::Split
            | ParentKind::FanOut
            | ParentKind::Preflush
            | ParentKind::FuaData
            | ParentKind::FuaFlush => self.barrier_end(index),
        }
    }

    fn barrier_end(&mut self, index: u32) {
        let parent = self.parents.finish(index);
        let (id, seq) = (parent.device(), parent.seq());
        let (status, pushed_back) = parent.outcome();
        let mut bio = parent.into_bio();
        let Some(device) = self.devices.get_mut(id) else {
            return self.give_up(bio, Status::Offline);
        };
        device.gate.in_flight -= 1;
        let ticket = device.gate.barrier.closed_by;
        if pushed_back {
            device.gate.hold(seq, bio);
        } else {
            bio.status = status;
            device.stats.count(&bio, self.shared.now.since(bio.issued_at));
            self.parts.done.push_back(bio);
        }
        if let Some(ticket) = ticket {
            self.tell_barrier_home(id, BarrierMessage::Over(id, ticket));
        }
        self.check_drained(id);
    }

    fn barrier_over(&mut self, id: DeviceId, ticket: u64) {
        let Some(home) = self.barrier_homes.get_mut(&id) else { return };
        if home.turn.as_ref().is_none_or(|turn| turn.ticket != ticket) {
            return;
        }
        home.turn = None;
        self.tell_all(BarrierMessage::Open(id, ticket));
        self.next_turn(id);
    }

    fn barrier_open(&mut self, id: DeviceId, ticket: u64) {
        let Some(device) = self.devices.get_mut(id) else { return };
        if device.gate.barrier.closed_by == Some(ticket) {
            device.gate.barrier.closed_by = None;
            device.gate.barrier.answer_due = false;
            self.let_flow(id);
        }
    }

    /// Lets held bios in, in order, as far as nothing keeps the gate closed; then opens it.
    pub(super) fn let_flow(&mut self, id: DeviceId) {
        loop {
            let Some(device) = self.devices.get_mut(id) else { return };
            if !device.gate.may_flow() {
                return;
            }
            let Some(held) = device.gate.held.pop_front() else {
                device.gate.set_open(true);
                return;
            };
            if held.bio.flags.contains(BioFlags::ORDERED) {
                device.gate.held.push_front(held);
                return self.ask_barrier(id);
            }
            // The bio passes as if it were arriving now, but keeps its place in the order.
            device.gate.set_open(true);
            let next_seq = device.gate.rewind_seq(held.seq);
            self.enter(held.bio);
            if let Some(device) = self.devices.get_mut(id) {
                device.gate.restore_seq(next_seq);
            }
        }
    }
}
