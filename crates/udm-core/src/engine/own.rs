//! What targets do of their own: I/O, turns, bios handed from lane to lane, resumes that take time.
//!
//! Targets ask for it through `target_cx.rs`; here the loop takes it up. Everything is delivered to
//! the instance that asked: of the same table, which is on the lane as long as it matters.
//!
//! Why the table cannot have gone. An own I/O or a work counts at the gate of its lane, a bio that
//! was handed over has its frame, and counts, at the gate of its home lane. A table is replaced or
//! destroyed only after every lane's gate has drained (`Suspend`), and then every lane's own work
//! has (`Settle`). A bio in a mailbox or in the hands of another lane keeps its home from draining,
//! hence that round from ending, hence the table on *all* lanes. Nothing new is handed over
//! between: the gates are closed. So a `Handed` always finds its table; if a bug says otherwise,
//! the bio goes home with an error.
//!
//! Turns are how heavy computing shares a lane (D11): a call does at most about 50 us, the loop
//! makes a few calls in a step and looks at its driver, its messages and its bios in between. Who
//! asks again in its turn goes to the end of the row.
//!
//! The tricky case is a bio pushed back on another lane: the noflush suspend that made it legal
//! there may not have reached its home yet, or may be over. It is held at home for as long as its
//! gate is closed, and mapped again at once if it is not.

use super::Engine;
use super::LaneMessage;
use super::doorway::{self, Homecoming};
use super::request::Again;
use crate::bio::BioBox;
use crate::engine::AnswerBody;
use crate::error::UserError;
use crate::target_cx::TargetPlace;
use udm_types::{DeviceId, Status};

/// Turns given in one step of the loop: about 400 us, so that no bio waits much longer than that
/// for targets that compute, and the looks at the driver cost little.
const TURNS_PER_STEP_MAX: usize = 8;

/// A bio for the instance of its target on another lane.
#[derive(Debug)]
pub struct HandedBio {
    pub(super) device: DeviceId,
    pub(super) table_generation: u64,
    pub(super) target: u32,
    pub(super) bio: BioBox,
}

/// A bio on its way back to its home lane.
#[derive(Debug)]
pub struct HomingBio {
    bio: BioBox,
    how: Homecoming,
}

impl Engine {
    /// Gives their turns to targets that wanted one before this step.
    pub(super) fn run_turns(&mut self) -> bool {
        let count = self.parts.turns.len().min(TURNS_PER_STEP_MAX);
        for _ in 0..count {
            let Some(place) = self.parts.turns.pop_front() else { break };
            if let Some(device) = self.devices.get_mut(place.device)
                && device.table.generation == place.table_generation
            {
                let index = place.target as usize;
                doorway::call(device, &mut self.parts, index, |target, cx| target.on_turn(cx));
            }
        }
        if count > 0 {
            self.run_parts();
            self.unplug_all();
        }
        count > 0
    }

    /// Takes up what targets asked for that is not of every mapping target.
    pub(super) fn take_own_wishes(&mut self) {
        for (lane, place, bio) in self.parts.handed.drain(..) {
            let TargetPlace { device, table_generation, target, .. } = place;
            let handed = HandedBio { device, table_generation, target, bio };
            self.shared.send(lane, LaneMessage::Handed(handed));
        }
        for (bio, how) in self.parts.homeward.drain(..) {
            let home = bio.home();
            self.shared.send(home, LaneMessage::Homing(HomingBio { bio, how }));
        }
        while let Some((place, outcome)) = self.parts.resumed.pop() {
            self.target_ready(&place, outcome);
        }
        while let Some(id) = self.parts.settled.pop() {
            self.check_drained(id);
        }
    }

    /// An I/O of a target's own has ended.
    #[inline(never)]
    pub(super) fn own_done(&mut self, id: DeviceId, target: u32, tag: u64, mut bio: BioBox) {
        bio.set_live(false);
        let Some(device) = self.devices.get_mut(id) else {
            debug_assert!(false, "a device is destroyed when drained");
            return;
        };
        let index = target as usize;
        doorway::call(device, &mut self.parts, index, |target, cx| {
            target.on_own_bio(tag, bio, cx);
        });
        // Only now, so that a target that starts the next one here never looks idle.
        device.gate.own.ios -= 1;
        if !device.gate.is_open() && device.gate.is_drained() {
            self.check_drained(id);
        }
    }

    /// The instance of a target on another lane handed a bio over.
    pub(super) fn on_handed(&mut self, handed: HandedBio) {
        let HandedBio { device: id, table_generation, target, mut bio } = handed;
        match self.devices.get_mut(id) {
            Some(device)
                if device.table.generation == table_generation
                    && (target as usize) < device.table.targets.len() =>
            {
                doorway::call(device, &mut self.parts, target as usize, |target, cx| {
                    target.on_handed(bio, cx);
                });
            }
            Some(_) | None => {
                debug_assert!(false, "a table lives on all lanes while one has a bio in flight");
                bio.status = Status::IoErr;
                self.parts.homeward.push((bio, Homecoming::Completed));
            }
        }
    }

    /// A bio of this lane is back from another.
    pub(super) fn on_homing(&mut self, homing: HomingBio) {
        let HomingBio { mut bio, how } = homing;
        match how {
            Homecoming::Completed => self.parts.done.push_back(bio),
            Homecoming::Dispatched => self.parts.dispatched.push_back(bio),
            Homecoming::Requeued => {
                let id = bio.frame().device;
                let Some(device) = self.devices.get_mut(id) else { return };
                if device.gate.noflush || device.gate.suspend.is_some() || device.requests.is_some()
                {
                    return self.requeue(bio, Again::NextTurn);
                }
                if let Some(frame) = bio.pop_frame() {
                    device.gate.in_flight -= 1;
                    self.push_back(id, frame.seq, bio);
                    self.let_flow(id);
                    self.check_drained(id);
                }
            }
        }
    }

    /// A target that made a resume wait has come to an end with it.
    fn target_ready(&mut self, place: &TargetPlace, outcome: Result<(), UserError>) {
        let Some(device) = self.devices.get_mut(place.device) else { return };
        if device.table.generation != place.table_generation {
            return;
        }
        let Some(resuming) = &mut device.gate.own.resuming else { return };
        let Some(at) = resuming.targets.iter().position(|target| *target == place.target) else {
            return;
        };
        resuming.targets.swap_remove(at);
        let round = resuming.round;
        if outcome.is_ok() && !resuming.targets.is_empty() {
            return;
        }
        self.give_up_resume(place.device);
        if let Some(round) = round {
            self.answer(place.device, round, outcome.map(|()| AnswerBody::Done));
        }
    }

    /// Nobody waits any more for the targets that said "later".
    pub(super) fn give_up_resume(&mut self, id: DeviceId) {
        let Some(device) = self.devices.get_mut(id) else { return };
        let Some(resuming) = device.gate.own.resuming.take() else { return };
        for target in resuming.targets {
            let index = target as usize;
            doorway::call(device, &mut self.parts, index, |target, cx| target.resume_given_up(cx));
        }
    }
}
