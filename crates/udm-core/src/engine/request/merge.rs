//! Requests of several bios: a carrier that goes down, and the bios that wait for it.
//!
//! The carrier is a bio of its own: its range is that of all its bios together, its payload lists
//! their segments (handles, no copies), its oldest time and place are theirs. Carriers are kept for
//! reuse with the memory of their lists. Called by the unplugging of a queue (`dispatch.rs`) and by
//! `finish` when a carrier has come back.
//!
//! Rules. Only neighbours of one kind are joined, up to the device's `max_sectors` and
//! [`SEGMENTS_MAX`], and only if they came the same way: then a device above that gives up its I/O
//! gives up whole requests. All bios of a request get its status, unless it is taken apart.
//!
//! The tricky case is a request-based device on another: a carrier from above is an ordinary bio
//! below, and may be joined to others there. A carrier belongs to the device its slot names.

use super::super::Engine;
use super::{ALONE, Again, SEGMENTS_MAX, Waiting, key_of};
use crate::bio::{Bio, BioBox, Origin};
use alloc::vec::Vec;
use udm_types::{DeviceId, Sector, Status};

/// The requests of several bios of a lane.
#[derive(Debug, Default)]
pub(in crate::engine) struct Requests {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

/// One request of several bios.
#[derive(Debug)]
struct Slot {
    device: DeviceId,
    /// Its bios, by sector. Empty while the slot is free.
    bios: Vec<BioBox>,
    /// Place in the order of submission of the oldest, and of the one joined last.
    seq: u64,
    last_seq: u64,
    /// The target has refused the request: it is not taken apart.
    sealed: bool,
    /// The carrier, while it is at home.
    carrier: Option<BioBox>,
}

impl Requests {
    /// True if `next` may be joined to the end of `now`.
    #[inline]
    pub(super) fn may_join(
        &self,
        id: DeviceId,
        now: &Waiting,
        next: &Waiting,
        max_sectors: Sector,
    ) -> bool {
        now.key + now.bio.len_sectors == next.key
            && next.key < ALONE
            && self.fits(id, &now.bio, &next.bio, max_sectors)
    }

    fn fits(&self, id: DeviceId, now: &BioBox, next: &Bio, max_sectors: Sector) -> bool {
        // A carrier has come no way; its bios have.
        let first = match self.own(now, id) {
            Some(slot) => &self.slots[slot as usize].bios[0],
            None => now,
        };
        now.len_sectors + next.len_sectors <= max_sectors
            && now.payload.segment_count() + next.payload.segment_count() <= SEGMENTS_MAX
            && came_the_same_way(first, next)
            // One that waited to grow is not joined to what came before it.
            && self.own(next, id).is_none()
    }
}

/// True if two bios passed the same devices.
fn came_the_same_way(one: &Bio, other: &Bio) -> bool {
    let (one, other) = (one.frames(), other.frames());
    one.iter().map(|frame| frame.device).eq(other.iter().map(|frame| frame.device))
}

/// True if an error may concern only a part of the request: then each bio is tried alone.
fn may_be_partial(status: Status) -> bool {
    match status {
        Status::NotSupported
        | Status::NoSpace
        | Status::Target
        | Status::Medium
        | Status::Protection
        | Status::Invalid
        | Status::IoErr => true,
        Status::Ok
        | Status::Timeout
        | Status::Transport
        | Status::Reservation
        | Status::Resource
        | Status::DevResource
        | Status::Again
        | Status::Offline
        | Status::ReadOnly => false,
    }
}

impl Requests {
    /// Requests of several bios that are not over.
    pub(in crate::engine) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many bios a request of this device has.
    #[inline]
    pub(super) fn bios_of(&self, id: DeviceId, bio: &Bio) -> u64 {
        self.own(bio, id).map_or(1, |slot| self.slots[slot as usize].bios.len() as u64)
    }

    /// The bios of a request.
    pub(in crate::engine) fn bios(&self, slot: u32) -> &[BioBox] {
        self.slots.get(slot as usize).map_or(&[], |slot| &slot.bios)
    }

    /// The slot of a carrier of this device.
    fn own(&self, bio: &Bio, id: DeviceId) -> Option<u32> {
        match bio.origin {
            Origin::Request(slot) if self.slots[slot as usize].device == id => Some(slot),
            Origin::Request(_)
            | Origin::Actor { .. }
            | Origin::Parent(_)
            | Origin::Target { .. } => None,
        }
    }

    /// The target has refused a request.
    pub(super) fn seal(&mut self, bio: &Bio) {
        if let Origin::Request(slot) = bio.origin {
            self.slots[slot as usize].sealed = true;
        }
    }
}

impl Engine {
    /// Joins `next` to the end of `now`.
    pub(super) fn merge(&mut self, id: DeviceId, now: &mut Waiting, next: Waiting) {
        let index = match self.requests.own(&now.bio, id) {
            Some(index) => index,
            None => self.make_carrier(id, now),
        };
        let slot = &mut self.requests.slots[index as usize];
        let back = next.seq > slot.last_seq;
        slot.last_seq = next.seq;
        now.seq = now.seq.min(next.seq);
        slot.seq = now.seq;
        add_to_carrier(&mut now.bio, &next.bio);
        slot.bios.push(next.bio);
        if let Some(queue) = self.devices.get_mut(id).and_then(|device| device.requests.as_mut()) {
            queue.joined += 1;
            queue.gauges.back_merges += u64::from(back);
            queue.gauges.front_merges += u64::from(!back);
        }
    }

    /// Turns a request of one bio into one that others can be joined to.
    fn make_carrier(&mut self, id: DeviceId, now: &mut Waiting) -> u32 {
        let index = self.requests.free.pop().unwrap_or_else(|| {
            self.requests.slots.push(Slot {
                device: id,
                bios: Vec::new(),
                seq: 0,
                last_seq: 0,
                sealed: false,
                carrier: None,
            });
            self.requests.slots.len() as u32 - 1
        });
        let slot = &mut self.requests.slots[index as usize];
        let mut carrier = slot.carrier.take().unwrap_or_else(|| self.shared.take_bio());
        let first = &now.bio;
        carrier.ask(first.op, first.flags, first.sector, 0);
        carrier.dest = first.dest;
        carrier.origin = Origin::Request(index);
        carrier.issued_at = first.issued_at;
        add_to_carrier(&mut carrier, first);
        carrier.classify();
        carrier.set_live(true);
        slot.device = id;
        slot.sealed = false;
        slot.seq = now.seq;
        slot.last_seq = now.seq;
        slot.bios.push(core::mem::replace(&mut now.bio, carrier));
        if let Some(queue) = self.devices.get_mut(id).and_then(|device| device.requests.as_mut()) {
            queue.unsettle();
        }
        index
    }

    /// A carrier has come back: its bios get its status, or go alone if only some may be bad. Kept
    /// out of the way of bios.
    #[inline(never)]
    pub(in crate::engine) fn request_done(&mut self, index: u32, mut carrier: BioBox) {
        carrier.set_live(false);
        let status = carrier.status;
        let slot = &mut self.requests.slots[index as usize];
        let (id, seq) = (slot.device, slot.seq);
        let mut bios = core::mem::take(&mut slot.bios);
        let joined = bios.len() as u64 - 1;
        if may_be_partial(status) && !slot.sealed {
            for bio in bios.drain(..) {
                self.put_back(id, seq, bio, Again::NextTurn);
            }
        } else {
            for mut bio in bios.drain(..) {
                bio.status = status;
                self.parts.done.push_back(bio);
            }
        }
        self.free_slot(index, bios, carrier);
        if let Some(queue) = self.devices.get_mut(id).and_then(|device| device.requests.as_mut()) {
            queue.joined -= joined;
            queue.settle();
            self.check_drained(id);
        }
    }

    /// Takes a waiting request of several bios apart; a request of one bio is that bio.
    pub(super) fn take_apart(
        &mut self,
        id: DeviceId,
        mut bio: BioBox,
        mut visit: impl FnMut(&mut Engine, BioBox),
    ) {
        let Some(index) = self.requests.own(&bio, id) else { return visit(self, bio) };
        let mut bios = core::mem::take(&mut self.requests.slots[index as usize].bios);
        let joined = bios.len() as u64 - 1;
        for bio in bios.drain(..) {
            visit(self, bio);
        }
        bio.set_live(false);
        self.free_slot(index, bios, bio);
        if let Some(queue) = self.devices.get_mut(id).and_then(|device| device.requests.as_mut()) {
            queue.joined -= joined;
            queue.settle();
        }
    }

    fn free_slot(&mut self, index: u32, bios: Vec<BioBox>, mut carrier: BioBox) {
        carrier.reset();
        let slot = &mut self.requests.slots[index as usize];
        slot.bios = bios;
        slot.carrier = Some(carrier);
        self.requests.free.push(index);
    }
}

/// Adds a bio's range and segments to the end of a carrier.
fn add_to_carrier(carrier: &mut Bio, bio: &Bio) {
    carrier.len_sectors += bio.len_sectors;
    carrier.issued_at = carrier.issued_at.min(bio.issued_at);
    for segment in bio.payload.segments() {
        carrier.payload.push(segment.clone());
    }
}

impl Waiting {
    pub(super) fn new(seq: u64, bio: BioBox) -> Waiting {
        Waiting { key: key_of(&bio), seq, bio }
    }
}
