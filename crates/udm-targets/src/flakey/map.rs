//! `flakey` at work: pass while up, misbehave while down.
//!
//! Whether a bio meets the device up or down is decided when it arrives; a read that arrived while
//! down may be corrupted when it comes back, even if the device is up again by then.
//!
//! | while down | error_reads | drop_writes | error_writes | corrupt / random |
//! |---|---|---|---|---|
//! | read | fails | passes | passes | passes, bytes changed on the way back |
//! | write | passes | completes, nothing written | fails | a changed copy is written |
//! | discard, flush, write-zeroes | passes | completes | fails | passes |
//!
//! The tricky case is more corrupted writes than private copies: those beyond the bound wait here
//! until a copy comes back. They hold no suspend up: what they wait for is under way below, and
//! under noflush they are pushed back.

use super::corrupt::{Copies, Spoiler, apply, lane_rng};
use super::table::{Faults, WriteFault};
use crate::leg::LegAt;
use alloc::collections::VecDeque;
use udm_core::bio::BioBox;
use udm_core::{Ended, Mapped, Target, TargetCx};
use udm_types::{LaneId, Nanos, Op, Status};

/// What the frame's first word says about a bio on its way back.
const UNTOUCHED: u64 = 0;
/// A read that may be corrupted.
const SPOIL_READ: u64 = 1;
/// A write with a private copy; the second word has its slot.
const COPIED_WRITE: u64 = 2;

/// When the device is up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phases {
    pub(super) built_at: Nanos,
    pub(super) up_s: u32,
    pub(super) down_s: u32,
}

impl Phases {
    /// Whole seconds since construction, as Linux counts them.
    fn is_down(self, now: Nanos) -> bool {
        const NANOS_PER_S: u64 = 1_000_000_000;
        let elapsed_s = now.since(self.built_at).0 / NANOS_PER_S;
        // Not zero: a line with both zero is refused.
        let period_s = u64::from(self.up_s) + u64::from(self.down_s);
        elapsed_s % period_s >= u64::from(self.up_s)
    }
}

/// `flakey` on one lane.
pub(super) struct Flakey {
    leg: LegAt,
    phases: Phases,
    faults: Faults,
    reads: Spoiler,
    writes: Spoiler,
    rng: fastrand::Rng,
    copies: Copies,
    /// Writes that wait for a copy; bounded by what the submitters have in flight.
    waiting: VecDeque<BioBox>,
}

impl Flakey {
    pub(super) fn new(
        leg: LegAt,
        phases: Phases,
        faults: Faults,
        seed: u64,
        lane: LaneId,
    ) -> Flakey {
        let (reads, writes) = faults.spoilers();
        Flakey {
            leg,
            phases,
            faults,
            reads,
            writes,
            rng: lane_rng(seed, lane),
            copies: Copies::new(),
            waiting: VecDeque::new(),
        }
    }

    fn map_read(&mut self, mut bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        if self.faults.error_reads {
            return Mapped::Kill(bio);
        }
        if !self.reads.is_idle() {
            bio.words_mut()[0] = SPOIL_READ;
        }
        self.leg.aim(&mut bio, cx);
        Mapped::Remapped(bio)
    }

    fn map_write(&mut self, mut bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        match self.faults.writes {
            WriteFault::Drop => {
                cx.complete(bio, Status::Ok);
                return Mapped::Submitted;
            }
            WriteFault::Error => return Mapped::Kill(bio),
            WriteFault::None => {}
        }
        if !self.writes.is_idle() && bio.op.has_data() {
            if self.copies.is_full() {
                self.waiting.push_back(bio);
                return Mapped::Submitted;
            }
            self.spoil_write(&mut bio);
        }
        self.leg.aim(&mut bio, cx);
        Mapped::Remapped(bio)
    }

    /// Draws, and swaps the payload if a byte has to change.
    fn spoil_write(&mut self, bio: &mut BioBox) {
        let changes = self.writes.pick(bio, &mut self.rng);
        if changes.iter().any(Option::is_some) {
            let slot = self.copies.swap_in(bio, changes);
            *bio.words_mut() = [COPIED_WRITE, slot];
        }
    }

    /// Sends on writes that waited for a copy.
    fn send_waiting(&mut self, cx: &mut TargetCx<'_>) {
        while !self.copies.is_full()
            && let Some(mut bio) = self.waiting.pop_front()
        {
            self.spoil_write(&mut bio);
            self.leg.aim(&mut bio, cx);
            cx.dispatch(bio);
        }
    }
}

impl Target for Flakey {
    fn map(&mut self, mut bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        if !self.phases.is_down(cx.now()) {
            self.leg.aim(&mut bio, cx);
            return Mapped::Remapped(bio);
        }
        match bio.op {
            Op::Read => self.map_read(bio, cx),
            Op::Write | Op::Flush | Op::Discard | Op::WriteZeroes => self.map_write(bio, cx),
        }
    }

    fn end_io(&mut self, mut bio: BioBox, cx: &mut TargetCx<'_>) -> Ended {
        let [mark, slot] = core::mem::replace(bio.words_mut(), [UNTOUCHED; 2]);
        if mark == SPOIL_READ && bio.status.is_ok() {
            apply(self.reads.pick(&bio, &mut self.rng), &bio.payload);
        }
        if mark == COPIED_WRITE {
            self.copies.swap_out(&mut bio, slot);
            self.send_waiting(cx);
        }
        Ended::Done(bio)
    }

    fn presuspend(&mut self, cx: &mut TargetCx<'_>) {
        if cx.noflush_suspending() {
            while let Some(bio) = self.waiting.pop_front() {
                cx.requeue(bio);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Phases;
    use udm_types::Nanos;

    fn downs(up_s: u32, down_s: u32) -> [bool; 6] {
        let built_at = Nanos::from_millis(500);
        let phases = Phases { built_at, up_s, down_s };
        // Just before and at each whole second since construction.
        [0, 999, 1000, 1999, 2000, 2999]
            .map(|millis| phases.is_down(built_at + Nanos::from_millis(millis)))
    }

    #[test]
    fn phases_count_whole_seconds_from_construction() {
        assert_eq!(downs(1, 1), [false, false, true, true, false, false]);
        assert_eq!(downs(2, 1), [false, false, false, false, true, true]);
        assert_eq!(downs(0, 1), [true; 6]);
        assert_eq!(downs(1, 0), [false; 6]);
    }
}
