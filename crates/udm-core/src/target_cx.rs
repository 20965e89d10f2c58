//! What a target may reach while it is called.
//!
//! A [`TargetCx`] is made by the doorway for every call. Whatever a target asks for here is
//! gathered in [`TargetParts`] and taken up by the loop when the call has returned, so nothing
//! re-enters the engine; only counts at the gate change at once, so that a device never looks idle
//! between a call and the taking up.
//!
//! Two kinds of target use it. A mapping target needs the first half. A target with real work of
//! its own (compression, snapshots, mirrors; [`TargetTraits::own_work`]) also does I/O of its own,
//! says that work goes on, computes in turns, and gives bios to its instance on another lane:
//! ```text
//!   submit_own -> Target::on_own_bio     in flight at the gate until that call has returned
//!   begin_work .. end_work               the same, for what is no I/O
//!   want_turn  -> Target::on_turn        once; all targets that want one take turns
//!   hand_over  -> Target::on_handed      there; the bio goes home when it is completed
//! ```
//! Own I/O and work are allowed from `preresume` until the core calls `postsuspend`, for which it
//! waits until none is left. The tricky case is a bio that was handed over: it belongs to its home
//! lane, where its frames are counted. So completing, requeueing or dispatching it elsewhere sends
//! it home first. While it is away the home gate counts it in flight; so no suspend ends, and the
//! table cannot be replaced on any lane, before it is back.
//!
//! [`TargetTraits::own_work`]: crate::target::TargetTraits::own_work

use crate::bio::{BioBox, Dest, Origin};
use crate::engine::doorway::{Homecoming, TargetParts};
use crate::engine::gate::Gate;
use crate::error::UserError;
use udm_lane::BufPool;
use udm_types::{DeviceId, LaneId, Nanos, Sector, Status};

/// What a target may reach while it is called.
///
/// Three words: it is made anew for every call, at every layer of every bio.
pub struct TargetCx<'a> {
    pub(crate) parts: &'a mut TargetParts,
    pub(crate) place: &'a TargetPlace,
    pub(crate) gate: &'a mut Gate,
}

/// Where a target stands; the same for as long as its table is on the lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TargetPlace {
    pub(crate) begin_sector: Sector,
    pub(crate) end_sector: Sector,
    pub(crate) device: DeviceId,
    pub(crate) target: u32,
    pub(crate) table_generation: u64,
}

impl TargetPlace {
    /// True if both are the same target of the same table.
    pub(crate) fn is(&self, other: &TargetPlace) -> bool {
        (self.device, self.target, self.table_generation)
            == (other.device, other.target, other.table_generation)
    }
}

impl TargetCx<'_> {
    /// The lane's clock of this turn.
    pub fn now(&self) -> Nanos {
        self.parts.now
    }

    /// The lane.
    pub fn lane(&self) -> LaneId {
        self.parts.lane
    }

    /// How many lanes there are; each has an instance of this target.
    pub fn lanes(&self) -> usize {
        self.parts.lanes
    }

    /// The device's own lane, for what must be one: devices are spread over the lanes by their
    /// number, and every table of a device has the same.
    #[inline]
    pub fn home_lane(&self) -> LaneId {
        self.place.device.home_lane(self.parts.lanes)
    }

    /// A noflush suspend is under way: pushing back is allowed.
    #[inline]
    pub fn noflush_suspending(&self) -> bool {
        self.gate.noflush
    }

    /// Tells the instance of this target on another lane something; it comes to
    /// [`Target::on_note`] there. Notes between two lanes arrive in order and are not lost while
    /// the table lives; a note to a table that has been replaced is dropped. To one's own lane it
    /// arrives in a later step of the loop. For what changes now and then, not for every I/O.
    ///
    /// [`Target::on_note`]: crate::target::Target::on_note
    pub fn tell(&mut self, lane: LaneId, note: [u64; 3]) {
        debug_assert!(lane.index() < self.parts.lanes, "notes go to lanes there are");
        self.parts.notes.push((lane, *self.place, note));
    }

    /// Where the target begins on its mapped device.
    #[inline]
    pub fn begin_sector(&self) -> Sector {
        self.place.begin_sector
    }

    /// How long the target is.
    pub fn len_sectors(&self) -> Sector {
        self.place.end_sector - self.place.begin_sector
    }

    /// The offset in the target of a sector of the mapped device.
    #[inline]
    pub fn offset_in_target(&self, sector: Sector) -> Sector {
        sector - self.place.begin_sector
    }

    /// Finishes a bio the target owns; one that was handed over ends on its home lane.
    pub fn complete(&mut self, mut bio: BioBox, status: Status) {
        bio.status = status;
        match bio.home() == self.parts.lane {
            true => self.parts.done.push_back(bio),
            false => self.parts.homeward.push((bio, Homecoming::Completed)),
        }
    }

    /// Sends a bio the target owns to its destination (set with `Bio::remap`), from its home lane.
    pub fn dispatch(&mut self, bio: BioBox) {
        match bio.home() == self.parts.lane {
            true => self.parts.dispatched.push_back(bio),
            false => self.parts.homeward.push((bio, Homecoming::Dispatched)),
        }
    }

    /// Pushes back a bio the target owns. Only under noflush; otherwise it fails.
    pub fn requeue(&mut self, mut bio: BioBox) {
        if bio.home() == self.parts.lane {
            return self.parts.requeued.push_back(bio);
        }
        let how = match self.gate.noflush {
            true => Homecoming::Requeued,
            false => {
                bio.status = Status::IoErr;
                Homecoming::Completed
            }
        };
        self.parts.homeward.push((bio, how));
    }

    /// Asks for [`Target::on_timer`] at `deadline`. There is no cancel: ignore what is stale.
    ///
    /// [`Target::on_timer`]: crate::target::Target::on_timer
    pub fn set_timer(&mut self, deadline: Nanos, token: u64) {
        self.parts.timers.push((deadline, *self.place, token));
    }

    /// Raises a table event: `dmsetup wait` returns, the event number grows.
    pub fn raise_event(&mut self) {
        self.parts.events.push(self.place.device);
    }

    // --- for targets with work of their own -----------------------------------------------------

    /// A blank bio, for an I/O of the target's own.
    pub fn take_bio(&mut self) -> BioBox {
        self.parts.stock.take()
    }

    /// Gives a bio of the target's own back. Its payload is dropped; take it out first to keep the
    /// buffers.
    pub fn recycle(&mut self, bio: BioBox) {
        self.parts.stock.put(bio);
    }

    /// Buffers for the target's own use; they go back there, not to the payload's owner.
    pub fn bufs(&mut self) -> &mut BufPool {
        &mut self.parts.bufs
    }

    /// Starts an I/O of the target's own on a device below. It begins there, without a frame of
    /// this device, and comes back to [`Target::on_own_bio`] with `tag`, its sector as submitted.
    /// Until that call has returned it counts as in flight here, so suspends wait for it. Its
    /// number is bounded by the target.
    ///
    /// Where own I/O is not allowed (before `preresume`, after `postsuspend`, to the device itself)
    /// it fails, and the breach is counted.
    ///
    /// [`Target::on_own_bio`]: crate::target::Target::on_own_bio
    pub fn submit_own(&mut self, dest: Dest, tag: u64, mut bio: BioBox) {
        debug_assert_eq!(bio.depth(), 0, "an I/O of a target's own begins below it");
        let TargetPlace { device, target, table_generation, .. } = *self.place;
        if !self.gate.own.takes(table_generation) {
            // Nobody to answer: the instance is not the one bios of this device come back to.
            return self.parts.stock.put(bio);
        }
        bio.dest = dest;
        bio.origin = Origin::Target { device, target, tag };
        bio.issued_at = self.parts.now;
        bio.classify();
        bio.set_live(true);
        let allowed = dest != Dest::Device(device) && self.gate.own.may_begin();
        self.gate.own.ios += 1;
        if !allowed {
            self.gate.own.breaches += 1;
            bio.status = Status::IoErr;
            return self.parts.done.push_back(bio);
        }
        self.parts.dispatched.push_back(bio);
    }

    /// Work begins that is no I/O (or lies between two): the device is not drained on this lane
    /// before [`TargetCx::end_work`]. Counted; each needs its end.
    pub fn begin_work(&mut self) {
        if !self.gate.own.takes(self.place.table_generation) {
            return;
        }
        if !self.gate.own.may_begin() {
            self.gate.own.breaches += 1;
        }
        self.gate.own.works += 1;
    }

    /// A work has ended.
    pub fn end_work(&mut self) {
        if !self.gate.own.takes(self.place.table_generation) {
            return;
        }
        match self.gate.own.works.checked_sub(1) {
            Some(left) => self.gate.own.works = left,
            None => self.gate.own.breaches += 1,
        }
        if !self.gate.is_open() && self.gate.is_drained() {
            self.parts.settled.push(self.place.device);
        }
    }

    /// Asks for one [`Target::on_turn`] in a later step of the loop, to compute there. All targets
    /// of the lane that want one take turns, so that each gets its share; asking again before it
    /// has come changes nothing.
    ///
    /// [`Target::on_turn`]: crate::target::Target::on_turn
    pub fn want_turn(&mut self) {
        if !self.parts.turns.iter().any(|place| place.is(self.place)) {
            self.parts.turns.push_back(*self.place);
        }
    }

    /// Gives a bio that came to `map` here to the instance of this target on another lane; it comes
    /// to [`Target::on_handed`] there (to one's own lane: in a later step of the loop). Bios from
    /// one lane to another arrive in order. Here it counts as in flight until it is back.
    ///
    /// [`Target::on_handed`]: crate::target::Target::on_handed
    pub fn hand_over(&mut self, lane: LaneId, bio: BioBox) {
        debug_assert!(lane.index() < self.parts.lanes, "bios go to lanes there are");
        debug_assert_eq!(bio.home(), self.parts.lane, "a bio is handed over by its home lane");
        self.parts.handed.push((lane, *self.place, bio));
    }

    /// The end of a `preresume` that answered `Later`. Nobody may wait any more (the resume was
    /// given up); the next `preresume` asks again.
    pub fn resume_ready(&mut self, outcome: Result<(), UserError>) {
        self.parts.resumed.push((*self.place, outcome));
    }
}
