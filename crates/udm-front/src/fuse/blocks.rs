//! Who may change which blocks, over all lanes of a mount; and what its servers tell each other.
//!
//! The rules are in `team` (the home's books) and `change` (each lane's table); this is where their
//! answers become messages, and messages become calls.
//!
//! The tricky case is a message that comes when the mount has ended here: it is dropped. The home
//! ends all others, so nobody waits for an answer.

use super::change::Change;
use super::server::MountServer;
use super::team::{Owner, Place, TeamMessage, TeamNote, Who};
use udm_core::LaneMessage;
use udm_core::actor::ActorCx;

impl MountServer {
    /// Sends a note to another server of the mount.
    pub(super) fn tell(&self, (lane, actor): Place, note: TeamNote, cx: &mut ActorCx<'_>) {
        let from = (cx.lane(), cx.id());
        let message = TeamMessage { mount: self.served.mount, from, note };
        cx.send(lane, LaneMessage::ToActor(actor, Box::new(message)));
    }

    /// Sends a note to the home. A mate knows it from the first note of it.
    pub(super) fn tell_home(&self, note: TeamNote, cx: &mut ActorCx<'_>) {
        if let Some(home) = self.home {
            self.tell(home, note, cx);
        }
    }

    /// Has another lane help, if one sleeps.
    pub(super) fn crowded(&mut self, cx: &mut ActorCx<'_>) {
        if self.draining || self.has_ring || self.handle.is_none() {
            return;
        }
        if !self.is_home() {
            if !std::mem::replace(&mut self.has_asked, true) {
                self.tell_home(TeamNote::Crowded, cx);
            }
            return;
        }
        let Some((place, holds)) = self.team.invite() else { return };
        self.tell(place, TeamNote::Invite { holds, queues: Vec::new() }, cx);
    }

    /// A note of another server of this mount.
    pub(super) fn hear(&mut self, from: Place, note: TeamNote, cx: &mut ActorCx<'_>) {
        let of_the_end = matches!(note, TeamNote::Left { .. } | TeamNote::End { .. });
        if self.handle.is_none() && !of_the_end {
            return self.decline(from, note, cx);
        }
        match note {
            TeamNote::Left { mate } => {
                self.team.left(mate);
                // It was told to, or its connection has ended, which is ours.
                self.end(cx);
                self.leave_if_last(cx);
            }
            TeamNote::End { cut } => {
                self.home = Some(from);
                if cut { self.end(cx) } else { self.drain(cx) }
            }
            TeamNote::Crowded => self.crowded(cx),
            TeamNote::Asleep { mate } => {
                self.team.sleeps(mate);
                self.tell_awake(|| TeamNote::Rested, cx);
                if self.free == 0 {
                    self.crowded(cx);
                }
                self.rest_if_idle(cx);
            }
            TeamNote::Want { owner, change } => {
                let number = self.team.want(owner);
                self.take_blocks(Who::Patch(number), change, cx);
            }
            TeamNote::Held { patch } => {
                if let Some((owner, change)) = self.team.held(patch) {
                    self.grant(owner, patch, change, cx);
                }
            }
            TeamNote::Done { patch } => self.patch_done(patch, cx),
            TeamNote::Unfit { mate, queues } => {
                self.team.unfit(mate);
                if queues.is_empty() { self.crowded(cx) } else { self.join_rings(&queues, cx) }
            }
            TeamNote::Refused => self.leave_rings(cx),
            TeamNote::Rested => self.has_asked = false,
            TeamNote::Invite { holds, queues } => {
                self.home = Some(from);
                for (patch, change) in holds {
                    self.take_blocks(Who::Patch(patch), change, cx);
                }
                if queues.is_empty() { self.wake_up(cx) } else { self.join_rings(&queues, cx) }
            }
            TeamNote::Hold { patch, change } if self.is_awake => {
                self.take_blocks(Who::Patch(patch), change, cx);
            }
            // It was sent before the home knew that we sleep; nobody would release it.
            TeamNote::Hold { patch, .. } => self.tell_home(TeamNote::Held { patch }, cx),
            TeamNote::Go { slot, patch, change } => {
                self.slots[slot].patch = Some(patch);
                self.go_on(slot, change, cx);
            }
            TeamNote::Release { patch } => {
                self.leave_blocks(Who::Patch(patch), cx);
                self.rest_if_idle(cx);
            }
        }
    }

    /// Answers for a mate that cannot help, or has ended: nobody waits for it.
    fn decline(&mut self, from: Place, note: TeamNote, cx: &mut ActorCx<'_>) {
        let Some(mate) = self.mate else { return };
        match note {
            TeamNote::Invite { holds, queues } => {
                for (patch, _) in holds {
                    self.tell(from, TeamNote::Held { patch }, cx);
                }
                self.tell(from, TeamNote::Unfit { mate, queues }, cx);
            }
            // It was sent before the home knew.
            TeamNote::Hold { patch, .. } => self.tell(from, TeamNote::Held { patch }, cx),
            TeamNote::Left { .. }
            | TeamNote::End { .. }
            | TeamNote::Crowded
            | TeamNote::Asleep { .. }
            | TeamNote::Want { .. }
            | TeamNote::Held { .. }
            | TeamNote::Done { .. }
            | TeamNote::Unfit { .. }
            | TeamNote::Refused
            | TeamNote::Rested
            | TeamNote::Go { .. }
            | TeamNote::Release { .. } => {}
        }
    }

    /// Somebody wants to change blocks; goes at once if nobody is in the way on this lane.
    pub(super) fn take_blocks(&mut self, who: Who, change: Change, cx: &mut ActorCx<'_>) {
        if self.changes.begin(who, change) {
            self.may_go(who, change, cx);
        }
    }

    /// A change is over; lets go who waited for it.
    pub(super) fn leave_blocks(&mut self, who: Who, cx: &mut ActorCx<'_>) {
        self.changes.ended(who);
        while let Some((next, change)) = self.changes.next() {
            self.may_go(next, change, cx);
        }
    }

    /// Nobody is in the way on this lane.
    fn may_go(&mut self, who: Who, change: Change, cx: &mut ActorCx<'_>) {
        match who {
            Who::Slot(at) if !change.is_patch() => self.go_on(at, change, cx),
            Who::Slot(at) => {
                let number = self.team.want(Owner { mate: None, slot: at });
                self.hold(number, change, cx);
            }
            Who::Patch(number) if self.is_home() => self.hold(number, change, cx),
            Who::Patch(patch) => self.tell_home(TeamNote::Held { patch }, cx),
        }
    }

    /// A patch has the home's blocks.
    fn hold(&mut self, patch: u32, change: Change, cx: &mut ActorCx<'_>) {
        if let Some(owner) = self.team.hold(patch, change) {
            return self.grant(owner, patch, change, cx);
        }
        self.tell_awake(|| TeamNote::Hold { patch, change }, cx);
    }

    /// A patch is alone on its blocks.
    fn grant(&mut self, owner: Owner, patch: u32, change: Change, cx: &mut ActorCx<'_>) {
        match owner.mate {
            None => {
                self.slots[owner.slot].patch = Some(patch);
                self.go_on(owner.slot, change, cx);
            }
            Some(mate) => {
                if let Some(place) = self.team.place(mate) {
                    self.tell(place, TeamNote::Go { slot: owner.slot, patch, change }, cx);
                }
            }
        }
    }

    /// A patch is over, at its home.
    pub(super) fn patch_done(&mut self, patch: u32, cx: &mut ActorCx<'_>) {
        let Some(owner) = self.team.done(patch) else { return };
        self.tell_awake(|| TeamNote::Release { patch }, cx);
        let who = owner.mate.map_or(Who::Slot(owner.slot), |_| Who::Patch(patch));
        self.leave_blocks(who, cx);
    }

    fn tell_awake(&self, note: impl Fn() -> TeamNote, cx: &mut ActorCx<'_>) {
        self.team.awake().for_each(|place| self.tell(place, note(), cx));
    }
}
