//! The way of a request: queued, plugged until the end of the turn, sorted, merged, mapped.
//!
//! Called by dispatch (`engine/dispatch.rs`) with bios that passed the gate of a request-based
//! device, and by the lane's loop to unplug. A queue is unplugged at the end of every turn, so a
//! bio that comes alone goes out in the turn it came in; under load a turn has many.
//!
//! Rules. A suspended device starts nothing. Sorting keeps bios of the same range in the order they
//! came. What a lower device completes at once is only queued here, so nothing recurses.
//!
//! The tricky case is a batch whose requests go through another request-based device below: they
//! are queued there, and that device is unplugged later in the same loop.

use super::super::Engine;
use super::super::device::DeviceLane;
use super::super::doorway::{self, Next};
use super::super::parts::TimerFor;
use super::{Again, GROWTH_TIME, JOINED_SECTORS, PENDING_MAX, Waiting, key_of};
use crate::bio::BioBox;
use udm_types::{DeviceId, Nanos, Status};

impl Engine {
    /// Puts a bio that may be started into its device's queue.
    #[inline]
    pub(in crate::engine) fn queue_request(&mut self, id: DeviceId, seq: u64, bio: BioBox) {
        let Some(device) = self.devices.get_mut(id) else {
            return self.give_up(bio, Status::Offline);
        };
        let Some(queue) = &mut device.requests else {
            debug_assert!(false, "only request-based devices queue requests");
            return self.give_up(bio, Status::IoErr);
        };
        queue.gauges.bios += 1;
        queue.pending.push(Waiting { key: key_of(&bio), seq, bio });
        if !queue.plugged {
            queue.plugged = true;
            self.plugged.push(id);
        }
        self.plug_full |= queue.pending.len() >= PENDING_MAX;
    }

    /// A bio of any kind that lies in the table: a part of a barrier goes on at once, since its
    /// suspend waits for it; everything else is queued.
    pub(in crate::engine) fn route_request(&mut self, id: DeviceId, mut bio: BioBox, seq: u64) {
        bio.target_bio_nr = 0;
        let takes = |device: &DeviceLane| device.table.targets.iter().all(|t| t.ops.has(bio.op));
        if !self.devices.get(id).is_some_and(takes) {
            return self.give_up(bio, Status::NotSupported);
        }
        if self.replaying_parent(bio.origin, id).is_some() {
            return self.start_request(id, Waiting::new(seq, bio));
        }
        self.queue_request(id, seq, bio);
    }

    /// Starts what gathered in all queues. True if that was anything new.
    #[inline]
    pub(in crate::engine) fn unplug_all(&mut self) -> bool {
        if self.plugged.is_empty() && self.growing.is_empty() {
            return false;
        }
        self.unplug_queues()
    }

    fn unplug_queues(&mut self) -> bool {
        self.plug_full = false;
        let mut did = !self.plugged.is_empty();
        // What waits to grow is looked at again: something may have completed in this turn.
        self.plugged.append(&mut self.growing);
        while let Some(id) = self.plugged.pop() {
            did |= self.unplug(id);
            self.run_parts();
        }
        did
    }

    /// Sorts, joins, starts; true if a request was started.
    fn unplug(&mut self, id: DeviceId) -> bool {
        let now = self.shared.now;
        let Some(device) = self.devices.get_mut(id) else { return false };
        let Some(queue) = &mut device.requests else { return false };
        queue.plugged = false;
        if device.gate.suspend.is_some() {
            return false;
        }
        let max_sectors = queue.max_sectors.min(JOINED_SECTORS);
        let grown = queue.growing_since.take();
        let patient = grown.is_none_or(|since| now.since(since) < GROWTH_TIME);
        let mut batch = core::mem::replace(&mut queue.pending, core::mem::take(&mut queue.spare));
        if batch.len() > 1 {
            batch.sort_unstable_by_key(|waiting| (waiting.key, waiting.seq));
        }
        let mut did = false;
        let mut open: Option<Waiting> = None;
        for next in batch.drain(..) {
            open = match open {
                Some(mut now) if self.requests.may_join(id, &now, &next, max_sectors) => {
                    self.merge(id, &mut now, next);
                    Some(now)
                }
                Some(now) => {
                    did |= self.start_or_grow(id, now, patient);
                    Some(next)
                }
                None => Some(next),
            };
        }
        if let Some(last) = open {
            did |= self.start_or_grow(id, last, patient);
        }
        if let Some(queue) = self.devices.get_mut(id).and_then(|device| device.requests.as_mut()) {
            queue.spare = batch;
            if !queue.pending.is_empty() {
                let since = grown.filter(|_| patient).unwrap_or(now);
                queue.growing_since = Some(since);
                self.growing.push(id);
                self.time_growth(id, since);
            }
        }
        did
    }

    /// Starts a request, or lets it wait for more of its stream. True if it was started.
    #[inline]
    fn start_or_grow(&mut self, id: DeviceId, waiting: Waiting, patient: bool) -> bool {
        if let Some(device) = self.devices.get_mut(id)
            && let Some(queue) = &mut device.requests
        {
            let bios = self.requests.bios_of(id, &waiting.bio);
            let (len, in_flight) = (waiting.bio.len_sectors, device.gate.in_flight);
            if patient && queue.may_grow(waiting.key, len, bios, in_flight) {
                queue.pending.push(waiting);
                return false;
            }
        }
        self.start_request(id, waiting);
        true
    }

    /// Sees to it that a request does not wait for its stream too long.
    fn time_growth(&mut self, id: DeviceId, since: Nanos) {
        if let Some(queue) = self.devices.get_mut(id).and_then(|device| device.requests.as_mut())
            && !queue.growth_timer
        {
            queue.growth_timer = true;
            let timer = TimerFor::Growth { device: id };
            self.shared.timers.set(since + GROWTH_TIME, timer);
        }
    }

    /// The timer of what waits to grow: it may have gone, and something else may wait by now.
    pub(in crate::engine) fn growth_timer(&mut self, id: DeviceId) {
        let now = self.shared.now;
        let queue = self.devices.get_mut(id).and_then(|device| device.requests.as_mut());
        let Some(queue) = queue else { return };
        queue.growth_timer = false;
        // What has waited its time goes out at the end of this turn.
        if let Some(since) = queue.growing_since
            && now.since(since) < GROWTH_TIME
        {
            self.time_growth(id, since);
        }
    }

    /// Maps a request and sends it on.
    pub(super) fn start_request(&mut self, id: DeviceId, waiting: Waiting) {
        let Some(device) = self.devices.get_mut(id) else {
            return self.give_up(waiting.bio, Status::Offline);
        };
        if let Some(queue) = &mut device.requests {
            queue.gauges.requests += 1;
            queue.note_end(&waiting);
        }
        let Waiting { seq, bio, .. } = waiting;
        device.region_start(seq, &bio, self.shared.now);
        // A request-based table has one target.
        match doorway::map(device, &mut self.parts, 0, seq, bio) {
            Next::Onward(bio, _) => self.enter(bio),
            Next::Kept => {}
            // The target has no room now. To ask at once again could go on for ever.
            Next::Requeue(bio) => self.requeue(bio, Again::Shortly),
            Next::DelayRequeue(bio) => self.requeue(bio, Again::Later),
            Next::Dead(bio) => {
                self.requests.seal(&bio);
                self.parts.done.push_back(bio);
                self.check_drained(id);
            }
        }
    }
}
