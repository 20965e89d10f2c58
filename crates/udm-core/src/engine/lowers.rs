//! The lower devices of a lane: opened with the first table that uses them, closed with the last.
//!
//! A slot counts the tables (live and staged) that name the device and the operations under way on
//! it. It goes only when both are zero, so a late completion always finds its owner.

use super::Engine;
use super::parent::passes_through;
use super::tokens::lower_token;
use crate::bio::{Bio, BioBox};
use crate::error::{ErrorCode, UserError};
use crate::lower::{LowerCx, LowerLane, LowerRef};
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use udm_lane::Completion;
use udm_types::{LowerId, Op, Sector, Status};

/// The lower devices of a lane, by number.
#[derive(Default)]
pub(crate) struct Lowers {
    slots: Vec<Option<LowerSlot>>,
}

pub(crate) struct LowerSlot {
    lane: Box<dyn LowerLane>,
    /// Keeps the device open and its number taken.
    device: LowerRef,
    len_sectors: Sector,
    tables: u32,
    ops_in_flight: u32,
}

impl LowerSlot {
    /// Why the device cannot take a bio: a target sent it beyond the end.
    #[inline]
    pub(super) fn refusal(&mut self, bio: &Bio) -> Option<Status> {
        let beyond = bio.end_sector() > self.len_sectors && self.len_sectors != 0;
        if !beyond || bio.op == Op::Flush { None } else { self.refusal_now(bio) }
    }

    /// The same with the size the device has now: the one known may be from a moment in which it
    /// was smaller, when another table was loaded.
    #[cold]
    fn refusal_now(&mut self, bio: &Bio) -> Option<Status> {
        self.len_sectors = self.device.device.len_sectors();
        let beyond = bio.end_sector() > self.len_sectors && self.len_sectors != 0;
        beyond.then_some(Status::IoErr)
    }
}

impl Lowers {
    #[inline]
    pub(super) fn get(&self, id: LowerId) -> Option<&LowerSlot> {
        self.slots.get(id.index())?.as_ref()
    }

    pub(super) fn ops_in_flight(&self) -> u64 {
        self.slots.iter().flatten().map(|slot| u64::from(slot.ops_in_flight)).sum()
    }
}

impl Engine {
    /// Calls a lower device's part of this lane.
    #[inline]
    pub(super) fn with_lower(
        &mut self,
        id: LowerId,
        visit: impl FnOnce(&mut dyn LowerLane, &mut LowerCx<'_>),
    ) {
        let Some(slot) = self.lowers.slots.get_mut(id.index()).and_then(Option::as_mut) else {
            debug_assert!(false, "a lower device outlives its operations");
            return;
        };
        let mut cx = LowerCx {
            driver: &mut *self.shared.driver,
            done: &mut self.parts.done,
            timers: &mut self.lower_timers,
            turn_enders: &mut self.lower_turn_enders,
            ops_in_flight: &mut slot.ops_in_flight,
            id,
            lane: self.shared.lane,
            now: self.shared.now,
        };
        visit(&mut *slot.lane, &mut cx);
    }

    /// Hands a bio to a lower device, if it lies inside.
    #[inline]
    pub(super) fn submit_lower(&mut self, id: LowerId, bio: BioBox) {
        let Some(slot) = self.lowers.slots.get_mut(id.index()).and_then(Option::as_mut) else {
            return self.give_up(bio, Status::Offline);
        };
        if let Some(status) = slot.refusal(&bio) {
            return self.give_up(bio, status);
        }
        let mut cx = LowerCx {
            driver: &mut *self.shared.driver,
            done: &mut self.parts.done,
            timers: &mut self.lower_timers,
            turn_enders: &mut self.lower_turn_enders,
            ops_in_flight: &mut slot.ops_in_flight,
            id,
            lane: self.shared.lane,
            now: self.shared.now,
        };
        slot.lane.submit(bio, &mut cx);
    }

    /// Opens a lower device on this lane and keeps it open, without a table: for measuring what is
    /// below, and for fronts that serve a lower device bare.
    ///
    /// # Errors
    /// What opening it gives.
    pub fn open_lower(&mut self, device: &LowerRef) -> Result<(), UserError> {
        self.attach_lower(device)
    }

    /// Takes one [`Engine::open_lower`] back. The caller has no bio in the device any more.
    pub fn close_lower(&mut self, id: LowerId) {
        self.detach_lower(id);
    }

    /// A table that uses the device arrives on this lane.
    pub(super) fn attach_lower(&mut self, device: &LowerRef) -> Result<(), UserError> {
        let index = device.id.index();
        if self.lowers.slots.len() <= index {
            self.lowers.slots.resize_with(index + 1, || None);
        }
        if let Some(slot) = &mut self.lowers.slots[index] {
            slot.tables += 1;
            slot.len_sectors = device.device.len_sectors();
            return Ok(());
        }
        let mut ops_in_flight = 0;
        let mut cx = LowerCx {
            driver: &mut *self.shared.driver,
            done: &mut self.parts.done,
            timers: &mut self.lower_timers,
            turn_enders: &mut self.lower_turn_enders,
            ops_in_flight: &mut ops_in_flight,
            id: device.id,
            lane: self.shared.lane,
            now: self.shared.now,
        };
        let lane = device.device.open_lane(&mut cx).map_err(|errno| {
            UserError::new(
                ErrorCode::DeviceOpen,
                format!("{} cannot be opened on a lane (errno {})", device.device.shown(), errno.0),
            )
        })?;
        self.lowers.slots[index] = Some(LowerSlot {
            lane,
            device: device.clone(),
            len_sectors: device.device.len_sectors(),
            tables: 1,
            ops_in_flight,
        });
        Ok(())
    }

    /// A table that uses the device leaves this lane.
    pub(super) fn detach_lower(&mut self, id: LowerId) {
        if let Some(slot) = self.lowers.slots.get_mut(id.index()).and_then(Option::as_mut) {
            slot.tables -= 1;
        }
        if self.lowers.get(id).is_some_and(|slot| slot.tables == 0) {
            self.with_lower(id, |lane, cx| lane.let_go(cx));
        }
        self.reap_lower(id);
    }

    fn reap_lower(&mut self, id: LowerId) {
        let idle =
            self.lowers.get(id).is_some_and(|slot| slot.tables == 0 && slot.ops_in_flight == 0);
        if idle {
            self.with_lower(id, |lane, cx| lane.close(cx));
            self.lowers.slots[id.index()] = None;
        }
    }

    pub(super) fn on_lower_op(&mut self, id: LowerId, user: u32, completion: Completion) {
        if !completion.more
            && let Some(slot) = self.lowers.slots.get_mut(id.index()).and_then(Option::as_mut)
        {
            slot.ops_in_flight -= 1;
        }
        self.with_lower(id, |lane, cx| lane.on_op(user, completion, cx));
        self.reap_lower(id);
    }

    /// Calls the lower devices that asked for the end of the turn. They come last, so that what
    /// actors and targets did at the end of theirs goes out with the rest.
    pub(super) fn end_lower_turns(&mut self) {
        let count = self.lower_turn_enders.len();
        if count == 0 {
            return;
        }
        for index in 0..count {
            let id = self.lower_turn_enders[index];
            if self.lowers.get(id).is_some() {
                self.with_lower(id, |lane, cx| lane.on_turn_end(cx));
            }
        }
        // Whoever asked again meanwhile means the next turn.
        self.lower_turn_enders.drain(..count);
        // Their timers must be known before the lane goes to sleep.
        self.take_wishes();
    }

    /// Fails everything of `select`'s choice that hangs in any lower device.
    pub(super) fn abort_lowers(&mut self, device: udm_types::DeviceId) {
        for index in 0..self.lowers.slots.len() {
            let Some(slot) = &mut self.lowers.slots[index] else { continue };
            let id = slot.device.id;
            let (parents, requests) = (&self.parents, &self.requests);
            let mut cx = LowerCx {
                driver: &mut *self.shared.driver,
                done: &mut self.parts.done,
                timers: &mut self.lower_timers,
                turn_enders: &mut self.lower_turn_enders,
                ops_in_flight: &mut slot.ops_in_flight,
                id,
                lane: self.shared.lane,
                now: self.shared.now,
            };
            let mut select = |bio: &Bio| passes_through(parents, requests, bio, device);
            slot.lane.abort(&mut select, &mut cx);
        }
    }

    /// The token a lower device's operation has, for tests of lower devices.
    #[doc(hidden)]
    pub fn lower_op_token(id: LowerId, user: u32) -> udm_lane::OpToken {
        lower_token(id, user)
    }
}
