//! The end of a mount's servers: they stop to read, answer what is under way, close `/dev/fuse`.
//!
//! ```text
//! drain --nothing under way--> cut --rings: the control side aborts--> end --> leave, mates first
//! ```
//!
//! The home leaves last. The tricky case is the end while answers are under way: nobody reads any
//! more, but a mate still holds blocks for patches of others, so all stay until the home has
//! nothing left to answer.

use super::order::MountEvent;
use super::server::MountServer;
use super::slot::{Phase, Slot};
use super::team::TeamNote;
use udm_core::actor::ActorCx;

impl MountServer {
    /// Stops to read; what is under way goes on.
    pub(super) fn stop_reading(&mut self, cx: &mut ActorCx<'_>) {
        self.reads = false;
        for (at, slot) in (0_u32..).zip(&self.slots) {
            if matches!(slot.phase, Phase::Receiving) && slot.lent.is_none() {
                cx.cancel_op(at);
            }
        }
        self.rest_if_idle(cx);
    }

    /// Takes no more requests, answers what is under way, then ends.
    pub(super) fn drain(&mut self, cx: &mut ActorCx<'_>) {
        if self.draining || self.handle.is_none() {
            return;
        }
        self.draining = true;
        for place in self.team.present() {
            self.tell(place, TeamNote::End { cut: false }, cx);
        }
        self.stop_reading(cx);
    }

    /// Nothing may be under way any more: a mate says that it sleeps, a home that drains ends.
    pub(super) fn rest_if_idle(&mut self, cx: &mut ActorCx<'_>) {
        let sleeps = self.draining || !self.has_ring;
        let waits_for_it = if self.is_home() { self.draining } else { self.is_awake && sleeps };
        let is_idle = |slot: &Slot| match slot.phase {
            Phase::Idle => true,
            Phase::Receiving => slot.lent.is_some(),
            _ => false,
        };
        if self.reads || !waits_for_it || !self.slots.iter().all(is_idle) {
            return;
        }
        match self.mate {
            None if self.team.awake().next().is_none() => self.cut(cx),
            // A mate says so, and then this is looked at again.
            None => {}
            Some(mate) if self.changes.is_empty() => {
                self.is_awake = false;
                self.tell_home(TeamNote::Asleep { mate }, cx);
            }
            // It holds blocks for others.
            Some(_) => {}
        }
    }

    /// Ends, whatever is under way. What the kernel has of us only the control side can take back.
    pub(super) fn cut(&mut self, cx: &mut ActorCx<'_>) {
        if !self.has_ring {
            return self.end(cx);
        }
        if !std::mem::replace(&mut self.has_asked_to_abort, true) {
            (self.tell)(MountEvent::Abort);
        }
    }

    /// Closes `/dev/fuse`, on all lanes: the kernel ends what it still has with us. Bios under way
    /// come back to a shell that answers nobody.
    pub(super) fn end(&mut self, cx: &mut ActorCx<'_>) {
        if let Some(handle) = self.handle.take() {
            cx.driver().close(handle);
        } else if self.is_home() {
            return;
        }
        self.reads = false;
        self.leave(cx);
    }

    /// Tells the others that nothing is open here any more.
    pub(super) fn leave(&mut self, cx: &mut ActorCx<'_>) {
        match self.mate {
            None => {
                for place in self.team.present() {
                    self.tell(place, TeamNote::End { cut: true }, cx);
                }
                self.leave_if_last(cx);
            }
            Some(_) if self.has_left => {}
            Some(mate) => {
                self.has_left = true;
                self.tell_home(TeamNote::Left { mate }, cx);
                cx.exit();
            }
        }
    }

    /// The home is gone when all mates are.
    pub(super) fn leave_if_last(&mut self, cx: &mut ActorCx<'_>) {
        if self.has_left || self.handle.is_some() || self.team.present().next().is_some() {
            return;
        }
        self.has_left = true;
        self.done.drain(..).for_each(|done| done());
        (self.tell)(MountEvent::Ended);
        cx.exit();
    }
}
