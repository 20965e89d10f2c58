//! The way of a bio: down through gates and targets, up through `end_io`, back to its submitter.
//!
//! `enter` is the hot path: an ordinary read or write that fits into one target passes gate,
//! doorway and remap in a loop without a call per layer beyond the target's `map`. Everything else
//! (flushes, discards, bios that must be split or held, barriers) goes through `route`.
//!
//! Rules. Nothing recurses: a completion found on the way goes to a queue that the loop drains, so
//! a deep stack or a long chain of split bios cannot use up the machine stack. A bio is counted in
//! flight at a device exactly while it has a frame of it (fan-out parents count for themselves).
//!
//! The tricky case is a bio whose gate is closed while its *parent* has been promised to finish
//! (a barrier's own data, a fan-out's copies): those go past the gate; see `parent.rs`.

use super::Engine;
use super::device::DeviceLane;
use super::doorway::{self, NO_TARGET, Next};
use super::parent::{ParentKind, Rest};
use super::request::Again;
use crate::bio::{BioBox, Dest, Origin};
use crate::table::{FlushRoute, Table};
use crate::target::Ended;
use alloc::sync::Arc;
use udm_types::{BioFlags, DeviceId, Op, SECTOR_BYTES, Status};

impl Engine {
    /// Sends a bio to its destination: through as many devices as remap it, down to where it is
    /// kept or ends.
    pub(crate) fn enter(&mut self, mut bio: BioBox) {
        let mut dest = bio.dest;
        loop {
            let id = match dest {
                Dest::Lower(lower) => return self.submit_lower(lower, bio),
                Dest::Device(id) => id,
            };
            let Some(device) = self.devices.get_mut(id) else {
                return self.give_up(bio, Status::Offline);
            };
            let Some(target) = device.fast_target(&bio) else {
                return self.enter_slow(id, bio);
            };
            let seq = device.gate.take_seq();
            match doorway::map(device, &mut self.parts, target, seq, bio) {
                Next::Onward(next, to) => (bio, dest) = (next, to),
                other => return self.settle(other),
            }
        }
    }

    /// Maps a bio through a given target and sends it on.
    pub(super) fn map_through(&mut self, id: DeviceId, target: usize, seq: u64, bio: BioBox) {
        let Some(device) = self.devices.get_mut(id) else {
            return self.give_up(bio, Status::Offline);
        };
        device.region_start(seq, &bio, self.shared.now);
        match doorway::map(device, &mut self.parts, target, seq, bio) {
            Next::Onward(bio, _) => self.enter(bio),
            other => self.settle(other),
        }
    }

    fn settle(&mut self, next: Next) {
        match next {
            Next::Onward(bio, _) => self.parts.dispatched.push_back(bio),
            Next::Kept => {}
            Next::Requeue(bio) => self.requeue(bio, Again::Shortly),
            Next::DelayRequeue(bio) => self.requeue(bio, Again::Later),
            Next::Dead(bio) => {
                let id = match bio.dest {
                    Dest::Device(id) => Some(id),
                    Dest::Lower(_) => None,
                };
                self.parts.done.push_back(bio);
                if let Some(id) = id {
                    self.check_drained(id);
                }
            }
        }
    }

    /// Finishes a bio here with a status.
    pub(super) fn give_up(&mut self, mut bio: BioBox, status: Status) {
        bio.status = status;
        self.parts.done.push_back(bio);
    }

    #[inline(never)]
    fn enter_slow(&mut self, id: DeviceId, bio: BioBox) {
        let Some(device) = self.devices.get_mut(id) else {
            return self.give_up(bio, Status::Offline);
        };
        let seq = device.gate.take_seq();
        if !device.gate.is_open() {
            return device.gate.hold(seq, bio);
        }
        if device.takes_request(&bio) {
            return self.queue_request(id, seq, bio);
        }
        self.route(id, bio, seq);
    }

    /// Enters a device with a place in its order already taken (a replayed or continued bio).
    pub(super) fn enter_at(&mut self, id: DeviceId, bio: BioBox, seq: u64) {
        let Some(device) = self.devices.get_mut(id) else {
            return self.give_up(bio, Status::Offline);
        };
        if !device.gate.is_open() {
            return device.gate.hold(seq, bio);
        }
        self.route(id, bio, seq);
    }

    /// Past the gate: decides what a bio of any kind needs.
    pub(super) fn route(&mut self, id: DeviceId, mut bio: BioBox, seq: u64) {
        let Some(device) = self.devices.get_mut(id) else {
            return self.give_up(bio, Status::Offline);
        };
        if device.table.targets.is_empty() {
            return self.give_up(bio, Status::IoErr);
        }
        if bio.op == Op::Write && bio.len_sectors == 0 && bio.flags.contains(BioFlags::PREFLUSH) {
            bio.op = Op::Flush;
            bio.classify();
        }
        if let Some(status) = refusal(device, &bio) {
            return self.give_up(bio, status);
        }
        if bio.flags.contains(BioFlags::ORDERED) {
            device.gate.hold(seq, bio);
            return self.ask_barrier(id);
        }
        if bio.op == Op::Flush {
            return self.route_flush(id, bio, seq);
        }
        if bio.len_sectors == 0 {
            return self.give_up(bio, Status::Ok);
        }
        if bio.flags.contains(BioFlags::PREFLUSH) && !flush_rides_along(device, &bio) {
            return self.preflush(id, bio, seq);
        }
        if device.requests.as_ref().is_some_and(|queue| queue.needs_postflush(&bio)) {
            return self.write_then_flush(id, bio, seq);
        }
        let piece = device.piece_sectors(bio.op, bio.sector);
        if bio.len_sectors > piece {
            let rest = Rest { sector: bio.sector, len_sectors: bio.len_sectors };
            return self.split(id, bio, seq, rest);
        }
        self.route_piece(id, bio, seq);
    }

    /// A bio that lies in one target: one copy, or as many as the target asks for.
    fn route_piece(&mut self, id: DeviceId, mut bio: BioBox, seq: u64) {
        if self.devices.get(id).is_some_and(|device| device.requests.is_some()) {
            return self.route_request(id, bio, seq);
        }
        let Some((live, table)) = self.devices.get(id).and_then(DeviceLane::live) else {
            return self.give_up(bio, Status::IoErr);
        };
        let target = live.target_at(bio.sector);
        let traits = &table.targets[target].traits;
        let copies = match bio.op {
            Op::Read | Op::Write | Op::Flush => 1,
            Op::Discard => traits.discard_bios,
            Op::WriteZeroes => traits.write_zeroes_bios,
        };
        match copies {
            0 => self.give_up(bio, Status::NotSupported),
            1 => {
                // A copy made by a layer above is the only one here.
                bio.target_bio_nr = 0;
                self.map_through(id, target, seq, bio);
            }
            _ => {
                let parent = self.fan_out(id, bio, seq);
                for nr in 0..copies {
                    let child = self.copy_for(parent, nr);
                    self.map_through(id, target, seq, child);
                }
                self.fanned_out(parent);
            }
        }
    }

    /// An empty flush: to every distinct device below, or through every target that takes flushes.
    pub(super) fn route_flush(&mut self, id: DeviceId, mut bio: BioBox, seq: u64) {
        bio.sector = 0;
        bio.len_sectors = 0;
        if self.devices.get(id).is_some_and(|device| device.requests.is_some()) {
            return self.route_request(id, bio, seq);
        }
        let Some((_, table)) = self.devices.get(id).and_then(DeviceLane::live) else {
            return self.give_up(bio, Status::IoErr);
        };
        let table = Arc::clone(table);
        match &table.flush_route {
            FlushRoute::Devices(dests) => match dests.as_slice() {
                [] => self.give_up(bio, Status::Ok),
                [only] => self.flush_past_targets(id, bio, seq, *only),
                many => {
                    let parent = self.fan_out(id, bio, seq);
                    for dest in many {
                        let mut child = self.copy_for(parent, 0);
                        child.dest = *dest;
                        self.parts.dispatched.push_back(child);
                    }
                    self.fanned_out(parent);
                }
            },
            FlushRoute::Targets => self.flush_through_targets(id, bio, seq, &table),
        }
    }

    /// A flush that targets want to see: as many copies as each asks for.
    fn flush_through_targets(&mut self, id: DeviceId, mut bio: BioBox, seq: u64, table: &Table) {
        // Gone through twice, so that nothing has to be gathered in memory.
        let takers = || {
            table.targets.iter().enumerate().flat_map(|(index, target)| {
                (0..target.traits.flush_bios).map(move |nr| (index, nr))
            })
        };
        let mut first_two = takers();
        match (first_two.next(), first_two.next()) {
            (None, _) => self.give_up(bio, Status::Ok),
            (Some((target, nr)), None) => {
                bio.target_bio_nr = nr;
                self.map_through(id, target, seq, bio);
            }
            (Some(_), Some(_)) => {
                let parent = self.fan_out(id, bio, seq);
                for (target, nr) in takers() {
                    let child = self.copy_for(parent, nr);
                    self.map_through(id, target, seq, child);
                }
                self.fanned_out(parent);
            }
        }
    }

    /// One device below: the flush itself goes there, with a frame but past the targets.
    fn flush_past_targets(&mut self, id: DeviceId, mut bio: BioBox, seq: u64, dest: Dest) {
        let Some(device) = self.devices.get_mut(id) else {
            return self.give_up(bio, Status::Offline);
        };
        if !bio.has_room() {
            return self.give_up(bio, Status::IoErr);
        }
        bio.push_frame(id, NO_TARGET, false, seq);
        device.gate.in_flight += 1;
        bio.dest = dest;
        self.enter(bio);
    }

    /// A write with a flush before it, where the two cannot travel as one.
    fn preflush(&mut self, id: DeviceId, bio: BioBox, seq: u64) {
        let parent = self.parents.put(id, seq, ParentKind::Preflush, bio);
        let child = self.flush_for(parent);
        self.route_flush(id, child, seq);
    }

    /// A FUA write where the device below cannot: the data, then a flush.
    fn write_then_flush(&mut self, id: DeviceId, bio: BioBox, seq: u64) {
        if let Some(queue) = self.devices.get_mut(id).and_then(|device| device.requests.as_mut()) {
            queue.unsettle();
        }
        let parent = self.parents.put(id, seq, ParentKind::FuaData, bio);
        let mut child = self.copy_for(parent, 0);
        child.flags.remove(BioFlags::FUA);
        self.route(id, child, seq);
    }

    /// Takes a completed bio up through its layers to whoever submitted it.
    pub(crate) fn finish(&mut self, mut bio: BioBox) {
        let now = self.shared.now;
        let busy = now.since(bio.issued_at);
        let layers = bio.depth();
        for depth in (0..layers).rev() {
            // By number, not as "the newest": so nothing waits for the depth stored a layer ago.
            let frame = bio.frame_at(depth);
            let (id, wants_end_io) = (frame.device, frame.wants_end_io());
            let Some(device) = self.devices.get_mut(id) else {
                // A device is destroyed only when nothing is in flight.
                debug_assert!(false, "a bio outlived its device");
                bio.leave_frame(depth);
                continue;
            };
            if wants_end_io {
                bio.restore(depth);
                match doorway::end_io(device, &mut self.parts, bio) {
                    Ended::Done(done) => bio = done,
                    Ended::Incomplete => return,
                    Ended::Requeue(back) => return self.requeue(back, Again::NextTurn),
                    Ended::DelayRequeue(back) => return self.requeue(back, Again::Later),
                }
            }
            if device.stats.regions.is_some() {
                device.region_end(*bio.frame_at(depth), &bio, busy, now);
            }
            bio.leave_frame(depth);
            device.stats.count(&bio, busy);
            device.gate.in_flight -= 1;
            if device.gate.in_flight == 0 && !device.gate.is_open() {
                self.check_drained(id);
            }
        }
        if layers > 0 {
            bio.restore(0);
        }
        match bio.origin {
            Origin::Actor { actor, tag } => self.deliver(actor, tag, bio),
            Origin::Parent(parent) => self.child_done(parent, bio, false),
            Origin::Request(request) => self.request_done(request, bio),
            Origin::Target { device, target, tag } => self.own_done(device, target, tag, bio),
        }
    }

    /// Pushes a bio back, out of the layer it is in: held under noflush, an error otherwise. A
    /// request goes back into its queue, always.
    #[inline(never)]
    pub(super) fn requeue(&mut self, mut bio: BioBox, again: Again) {
        let Some(frame) = bio.pop_frame() else {
            debug_assert!(false, "a target pushed back a bio that is in no layer");
            return self.give_up(bio, Status::IoErr);
        };
        let Some(device) = self.devices.get_mut(frame.device) else { return };
        device.gate.in_flight -= 1;
        device.region_back(frame, &bio, self.shared.now);
        if device.requests.is_some() {
            self.requeue_request(frame.device, frame.seq, bio, again);
            return self.check_drained(frame.device);
        }
        if device.gate.noflush {
            self.push_back(frame.device, frame.seq, bio);
        } else {
            bio.status = Status::IoErr;
            device.stats.count(&bio, self.shared.now.since(bio.issued_at));
            self.parts.done.push_back(bio);
        }
        self.check_drained(frame.device);
    }

    /// Holds a bio that was pushed back and has left its frame, or returns it to the whole that is
    /// replayed.
    pub(super) fn push_back(&mut self, id: DeviceId, seq: u64, mut bio: BioBox) {
        bio.status = Status::Ok;
        if let Some(parent) = self.replaying_parent(bio.origin, id) {
            self.child_done(parent, bio, true);
        } else if let Some(device) = self.devices.get_mut(id) {
            device.gate.hold(seq, bio);
        }
    }
}

/// Why a device does not take a bio at all.
fn refusal(device: &DeviceLane, bio: &BioBox) -> Option<Status> {
    if bio.op != Op::Flush && bio.end_sector() > device.len_sectors {
        return Some(Status::IoErr);
    }
    if bio.op.has_data() && bio.payload.len_bytes() != bio.len_sectors * SECTOR_BYTES {
        return Some(Status::Invalid);
    }
    if !device.ops.has(bio.op) {
        let read_only =
            bio.op.is_write() && device.live().is_some_and(|(_, table)| table.limits.read_only);
        return Some(if read_only { Status::ReadOnly } else { Status::NotSupported });
    }
    (bio.op != Op::Flush && device.is_misaligned(bio)).then_some(Status::Invalid)
}

/// True if a flush before a write may travel with the write: one device below, and the target that
/// takes the write's beginning sends it there unseen. (A zero target would swallow the flush.) A
/// request-based device always does one after the other.
fn flush_rides_along(device: &DeviceLane, bio: &BioBox) -> bool {
    device.requests.is_none()
        && device.live().is_some_and(|(live, table)| match &table.flush_route {
            FlushRoute::Devices(dests) => {
                let target = &table.targets[live.target_at(bio.sector)];
                dests.is_empty() || (dests.len() == 1 && target.traits.flush_bypasses_map)
            }
            FlushRoute::Targets => false,
        })
}
