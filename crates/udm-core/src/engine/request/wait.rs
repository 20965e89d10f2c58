//! Requests that wait: pushed back by the target, or caught by a suspend before they were started.
//!
//! ```text
//!   how it came back                       mapped again
//!   end_io said Requeue, TargetCx::requeue  in the next turn
//!   map said Requeue                        in 3 ms
//!   DelayRequeue                            in 100 ms
//!   anything, and the device is suspended   at resume, ahead of newer I/O
//! ```
//! Called by dispatch for what was pushed back, by the lane's loop for kicks and the timer, and by
//! the device's commands (suspend, resume, abort, destroy).
//!
//! Rules. Waiting requests are ordered by their oldest bio. Before one is mapped again it is
//! checked against the table as it is now: what does not fit any more is taken apart, and a bio
//! that does not fit by itself enters like a new one, so beyond a shrunken end only that fails
//! which is beyond.
//!
//! The tricky case is a part of an ordered barrier. While the barrier runs it waits here like any
//! other; when a suspend begins it is handed to the barrier, which is replayed as a whole, because
//! a suspend waits for a barrier that has begun.

use super::super::Engine;
use super::super::device::DeviceLane;
use super::super::parent::passes_through;
use super::super::parts::TimerFor;
use super::{RequestQueue, Waiting};
use crate::bio::BioBox;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use udm_types::{DeviceId, Nanos, Status};

/// When a request that was pushed back is mapped again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Again {
    /// In the next turn of the loop.
    NextTurn,
    /// After [`SHORT_PAUSE`].
    Shortly,
    /// After [`LONG_PAUSE`].
    Later,
}

/// Before `map` is asked again after it said `Requeue`: as long as Linux waits for a resource.
const SHORT_PAUSE: Nanos = Nanos(3_000_000);
/// What `DelayRequeue` means in Linux's multipath.
const LONG_PAUSE: Nanos = Nanos(100_000_000);

impl Again {
    fn pause(self) -> Option<Nanos> {
        match self {
            Again::NextTurn => None,
            Again::Shortly => Some(SHORT_PAUSE),
            Again::Later => Some(LONG_PAUSE),
        }
    }
}

impl RequestQueue {
    /// Puts a request into its place among those that were pushed back.
    fn insert(&mut self, waiting: Waiting) {
        let at = match self.requeued.back() {
            Some(last) if last.seq > waiting.seq => {
                self.requeued.partition_point(|held| held.seq <= waiting.seq)
            }
            _ => self.requeued.len(),
        };
        self.requeued.insert(at, waiting);
    }

    fn insert_delayed(&mut self, due: Nanos, waiting: Waiting) {
        let at = match self.delayed.back() {
            Some((last, _)) if *last > due => self.delayed.partition_point(|held| held.0 <= due),
            _ => self.delayed.len(),
        };
        self.delayed.insert(at, (due, waiting));
    }

    /// Everything that waits, ordered, among those that were pushed back.
    fn gather(&mut self) {
        while let Some((_, waiting)) = self.delayed.pop_front() {
            self.insert(waiting);
        }
        let mut pending = core::mem::take(&mut self.pending);
        for waiting in pending.drain(..) {
            self.insert(waiting);
        }
        self.pending = pending;
        self.growing_since = None;
    }

    /// What waits, taken out of the queue of a device that is gone.
    pub(in crate::engine) fn into_bios(mut self) -> impl Iterator<Item = BioBox> {
        self.gather();
        self.requeued.into_iter().map(|waiting| waiting.bio)
    }
}

impl DeviceLane {
    /// True if a request that waited can be mapped as it is by the live table.
    fn still_takes(&self, bio: &BioBox) -> bool {
        let max_sectors = match &self.requests {
            Some(queue) if bio.op.has_data() => queue.max_sectors(),
            Some(_) | None => self.piece_sectors(bio.op, bio.sector),
        };
        !self.table.targets.is_empty()
            && self.ops.has(bio.op)
            && bio.end_sector() <= self.len_sectors
            && bio.len_sectors <= max_sectors
            && !self.is_misaligned(bio)
            && self.requests.as_ref().is_none_or(|queue| !queue.needs_postflush(bio))
    }
}

impl Engine {
    /// Takes a request that was pushed back and has left its frame.
    pub(in crate::engine) fn requeue_request(
        &mut self,
        id: DeviceId,
        seq: u64,
        mut bio: BioBox,
        again: Again,
    ) {
        bio.status = Status::Ok;
        let suspended = self.devices.get(id).is_some_and(|device| device.gate.suspend.is_some());
        match self.replaying_parent(bio.origin, id).filter(|_| suspended) {
            Some(parent) => self.child_done(parent, bio, true),
            None => self.put_back(id, seq, bio, again),
        }
    }

    /// Lets a request wait in its place.
    pub(super) fn put_back(&mut self, id: DeviceId, seq: u64, bio: BioBox, again: Again) {
        let now = self.shared.now;
        let queue = self.devices.get_mut(id).and_then(|device| device.requests.as_mut());
        let Some(queue) = queue else { return self.give_up(bio, Status::Offline) };
        queue.gauges.requeues += 1;
        let waiting = Waiting::new(seq, bio);
        match again.pause() {
            None => {
                queue.insert(waiting);
                self.kick(id);
            }
            Some(pause) => {
                queue.insert_delayed(now + pause, waiting);
                self.arm(id);
            }
        }
    }

    /// Has the requests that were pushed back mapped in the next turn.
    fn kick(&mut self, id: DeviceId) {
        let Some(device) = self.devices.get_mut(id) else { return };
        if let Some(queue) = &mut device.requests
            && !queue.kicked
            && !queue.requeued.is_empty()
        {
            queue.kicked = true;
            self.kicked.push_back(id);
        }
    }

    /// Sets the timer for what waits out a pause, if none is set that fires in time.
    fn arm(&mut self, id: DeviceId) {
        let queue = self.devices.get_mut(id).and_then(|device| device.requests.as_mut());
        let Some(queue) = queue else { return };
        let Some((due, _)) = queue.delayed.front() else { return };
        if queue.timer.is_none_or(|set| set > *due) {
            queue.timer = Some(*due);
            self.shared.timers.set(*due, TimerFor::Requests { device: id });
        }
    }

    /// The timer fired: what is due is mapped in this turn.
    pub(in crate::engine) fn requests_due(&mut self, id: DeviceId) {
        let now = self.shared.now;
        let queue = self.devices.get_mut(id).and_then(|device| device.requests.as_mut());
        let Some(queue) = queue else { return };
        queue.timer = None;
        while queue.delayed.front().is_some_and(|(due, _)| *due <= now)
            && let Some((_, waiting)) = queue.delayed.pop_front()
        {
            queue.insert(waiting);
        }
        self.arm(id);
        self.kick(id);
    }

    /// Maps what was pushed back before this turn. True if there was anything.
    #[inline]
    pub(in crate::engine) fn run_kicked(&mut self) -> bool {
        if self.kicked.is_empty() {
            return false;
        }
        for _ in 0..self.kicked.len() {
            let Some(id) = self.kicked.pop_front() else { break };
            if let Some(queue) =
                self.devices.get_mut(id).and_then(|device| device.requests.as_mut())
            {
                queue.kicked = false;
            }
            self.start_requeued(id);
        }
        true
    }

    /// Maps the requests that were pushed back, in order; what comes back meanwhile waits. Here,
    /// and only here, is it decided that a suspended device maps none.
    fn start_requeued(&mut self, id: DeviceId) {
        let queue = self.devices.get(id).and_then(|device| device.requests.as_ref());
        for _ in 0..queue.map_or(0, |queue| queue.requeued.len()) {
            let Some(device) = self.devices.get_mut(id) else { return };
            if device.gate.suspend.is_some() {
                return;
            }
            let Some(queue) = &mut device.requests else { return };
            let Some(waiting) = queue.requeued.pop_front() else { return };
            if device.still_takes(&waiting.bio) {
                self.start_request(id, waiting);
            } else {
                let seq = waiting.seq;
                self.take_apart(id, waiting.bio, |engine, bio| engine.enter_again(id, bio, seq));
            }
        }
        self.check_drained(id);
    }

    /// A bio of a request that does not fit the table: mapped alone if it does fit itself.
    fn enter_again(&mut self, id: DeviceId, bio: BioBox, seq: u64) {
        if self.devices.get(id).is_some_and(|device| device.still_takes(&bio)) {
            self.start_request(id, Waiting::new(seq, bio));
        } else {
            self.route(id, bio, seq);
        }
    }

    /// A suspend begins: parts of a barrier go back to it.
    pub(in crate::engine) fn suspend_requests(&mut self, id: DeviceId) {
        let queue = self.devices.get_mut(id).and_then(|device| device.requests.as_mut());
        let Some(queue) = queue else { return };
        queue.gather();
        let all = core::mem::take(&mut queue.requeued);
        let mut kept = VecDeque::with_capacity(all.len());
        for waiting in all {
            match self.replaying_parent(waiting.bio.origin, id) {
                Some(parent) => self.child_done(parent, waiting.bio, true),
                None => kept.push_back(waiting),
            }
        }
        for waiting in kept {
            if let Some(queue) =
                self.devices.get_mut(id).and_then(|device| device.requests.as_mut())
            {
                queue.insert(waiting);
            }
        }
    }

    /// The device runs again: everything that waits is mapped now.
    pub(in crate::engine) fn resume_requests(&mut self, id: DeviceId) {
        let queue = self.devices.get_mut(id).and_then(|device| device.requests.as_mut());
        let Some(queue) = queue else { return };
        queue.gather();
        self.start_requeued(id);
    }

    /// Fails what came through device `above` and waits here.
    pub(in crate::engine) fn abort_requests(&mut self, id: DeviceId, above: DeviceId) {
        let queue = self.devices.get_mut(id).and_then(|device| device.requests.as_mut());
        let Some(queue) = queue else { return };
        let mut timed = Vec::new();
        for (due, waiting) in core::mem::take(&mut queue.delayed) {
            timed.push((Some(due), waiting));
        }
        let queued = core::mem::take(&mut queue.requeued).into_iter();
        let queued = queued.chain(core::mem::take(&mut queue.pending));
        timed.extend(queued.map(|waiting| (None, waiting)));
        for (due, waiting) in timed {
            if passes_through(&self.parents, &self.requests, &waiting.bio, above) {
                self.take_apart(id, waiting.bio, |engine, bio| {
                    engine.give_up(bio, Status::Timeout);
                });
                continue;
            }
            let queue = self.devices.get_mut(id).and_then(|device| device.requests.as_mut());
            match (queue, due) {
                (Some(queue), Some(due)) => queue.insert_delayed(due, waiting),
                (Some(queue), None) => queue.insert(waiting),
                (None, Some(_) | None) => self.give_up(waiting.bio, Status::Offline),
            }
        }
        self.kick(id);
        self.check_drained(id);
    }
}
