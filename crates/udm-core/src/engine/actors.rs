//! The actors of a lane: installed, called, reaped when their last bio and operation are back.
//!
//! The lane's loop calls them with completions, timers and messages, dispatch with bios that came
//! back; an actor is called by its lane only, never from inside another call of itself.
//!
//! The tricky case is an actor that has ended while it still has bios or operations out: its slot
//! stays taken until the last is back, so that none can reach whoever gets the number next.

use super::Engine;
use crate::actor::{Actor, ActorCx, ActorUse, DeviceNotice};
use crate::bio::BioBox;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::any::Any;
use udm_lane::Completion;
use udm_types::ActorId;

/// The actors of a lane, by number.
#[derive(Default)]
pub(crate) struct Actors {
    slots: Vec<Option<ActorSlot>>,
    free: Vec<u32>,
}

pub(crate) struct ActorSlot {
    actor: Box<dyn Actor>,
    uses: ActorUse,
}

impl Actors {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl Engine {
    /// Installs an actor on this lane.
    pub fn spawn_actor(&mut self, actor: Box<dyn Actor>) -> ActorId {
        let slot = Some(ActorSlot { actor, uses: ActorUse::default() });
        let id = match self.actors.free.pop() {
            Some(index) => {
                self.actors.slots[index as usize] = slot;
                ActorId(index)
            }
            None => {
                self.actors.slots.push(slot);
                ActorId(self.actors.slots.len() as u32 - 1)
            }
        };
        self.with_actor(id, |actor, cx| actor.on_start(cx));
        id
    }

    /// Calls an actor. Silently nothing if it is gone.
    #[inline]
    pub(super) fn with_actor(
        &mut self,
        id: ActorId,
        visit: impl FnOnce(&mut dyn Actor, &mut ActorCx<'_>),
    ) {
        if let Some(ActorSlot { actor, uses }) =
            self.actors.slots.get_mut(id.index()).and_then(Option::as_mut)
        {
            let mut cx =
                ActorCx { shared: &mut self.shared, devices: &self.devices, slot: uses, id };
            visit(&mut **actor, &mut cx);
        }
    }

    /// Gives a bio back to its submitter.
    #[inline]
    pub(super) fn deliver(&mut self, id: ActorId, tag: u64, mut bio: BioBox) {
        bio.set_live(false);
        let Some(ActorSlot { actor, uses }) =
            self.actors.slots.get_mut(id.index()).and_then(Option::as_mut)
        else {
            debug_assert!(false, "an actor is kept until its last bio is back");
            return;
        };
        uses.bios_in_flight -= 1;
        let mut cx = ActorCx { shared: &mut self.shared, devices: &self.devices, slot: uses, id };
        actor.on_bio(tag, bio, &mut cx);
    }

    pub(super) fn on_actor_op(&mut self, id: ActorId, user: u32, completion: Completion) {
        if !completion.more
            && let Some(slot) = self.actors.slots.get_mut(id.index()).and_then(Option::as_mut)
        {
            slot.uses.ops_in_flight -= 1;
        }
        self.with_actor(id, |actor, cx| actor.on_op(user, completion, cx));
    }

    pub(super) fn on_actor_message(&mut self, id: ActorId, message: Box<dyn Any + Send>) {
        self.with_actor(id, |actor, cx| actor.on_message(message, cx));
    }

    /// Tells every actor of this lane about a device.
    pub(super) fn notify_actors(&mut self, notice: DeviceNotice) {
        for index in 0..self.actors.slots.len() {
            self.with_actor(ActorId(index as u32), |actor, cx| actor.on_notice(notice, cx));
        }
    }

    /// Calls the actors that asked for the end of the turn.
    pub(super) fn end_turn(&mut self) {
        let mut ids = core::mem::take(&mut self.turn_enders);
        core::mem::swap(&mut ids, &mut self.shared.turn_enders);
        for id in ids.drain(..) {
            if let Some(slot) = self.actors.slots.get_mut(id.index()).and_then(Option::as_mut) {
                slot.uses.wants_turn_end = false;
            }
            self.with_actor(id, |actor, cx| actor.on_turn_end(cx));
        }
        self.turn_enders = ids;
    }

    /// Drops actors that have exited and have nothing under way.
    pub(super) fn reap_actors(&mut self) {
        if self.shared.exiting.is_empty() {
            return;
        }
        let exiting = core::mem::take(&mut self.shared.exiting);
        for id in exiting {
            let Some(slot) = self.actors.slots.get(id.index()).and_then(Option::as_ref) else {
                continue;
            };
            if slot.uses.bios_in_flight == 0 && slot.uses.ops_in_flight == 0 {
                debug_assert!(slot.uses.exiting, "only an exiting actor is reaped");
                self.actors.slots[id.index()] = None;
                self.actors.free.push(id.0);
            } else if !self.shared.exiting.contains(&id) {
                self.shared.exiting.push(id);
            }
        }
    }
}
