//! `delay` at work: a queue for each class, a timer for each queue that is not empty.
//!
//! Within a class every bio waits equally long and the clock does not go back, so a class is a
//! plain FIFO ordered by expiry. When a timer fires, everything that is due leaves in order of
//! expiry over all classes; equal ones leave as they came.
//!
//! Rules. At most one timer a class is set at any time; there is no cancel, so after a suspend a
//! timer may fire late and find nothing due, which is harmless. Steady state allocates nothing: the
//! queues keep their capacity.
//!
//! | moment | a bio with a delay | what waits |
//! |---|---|---|
//! | running | queued until now + delay | leaves when due |
//! | presuspend | - | all of it leaves at once, in order |
//! | until resume (or undo) | passes at once | - |
//!
//! The queues are bounded by what the submitters have in flight; nothing here makes more bios.

use crate::leg::LegAt;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use udm_core::bio::{Bio, BioBox};
use udm_core::{Mapped, Preresume, Target, TargetCx, UserError};
use udm_types::{BioFlags, Nanos, Op};

/// How many classes there are.
pub(super) const CLASSES: usize = 3;

/// What kind of I/O a bio is to this target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Read = 0,
    Write = 1,
    Flush = 2,
}

impl Class {
    /// In the order of the table line and the status.
    pub(super) const ALL: [Class; CLASSES] = [Class::Read, Class::Write, Class::Flush];

    /// A write that flushes first counts as a flush, as in Linux.
    #[inline]
    fn of(bio: &Bio) -> Class {
        match bio.op {
            Op::Read => Class::Read,
            Op::Flush => Class::Flush,
            Op::Write | Op::Discard | Op::WriteZeroes => {
                if bio.flags.contains(BioFlags::PREFLUSH) {
                    Class::Flush
                } else {
                    Class::Write
                }
            }
        }
    }
}

/// A bio that waits.
struct Waiting {
    due: Nanos,
    /// Position among all bios delayed by this lane, to break ties.
    seq: u64,
    bio: BioBox,
}

/// One class: where its bios go, how late, and those that wait.
pub(super) struct Wait {
    leg: LegAt,
    delay: Nanos,
    queue: VecDeque<Waiting>,
    /// When the class's timer fires, if one is set.
    timer: Option<Nanos>,
}

impl Wait {
    pub(super) fn new(leg: LegAt, delay: Nanos) -> Wait {
        Wait { leg, delay, queue: VecDeque::new(), timer: None }
    }
}

/// `delay` on one lane.
pub(super) struct Delay {
    classes: [Wait; CLASSES],
    next_seq: u64,
    /// False from presuspend to resume.
    delaying: bool,
}

impl Delay {
    pub(super) fn new(classes: [Wait; CLASSES]) -> Delay {
        Delay { classes, next_seq: 0, delaying: true }
    }

    /// Sends on what is due by `limit`, in order of expiry.
    fn release(&mut self, limit: Nanos, cx: &mut TargetCx<'_>) {
        loop {
            let heads = self.classes.iter_mut().filter_map(|class| {
                let head = class.queue.front()?;
                (head.due <= limit).then_some((head.due, head.seq, class))
            });
            let Some((_, _, class)) = heads.min_by_key(|&(due, seq, _)| (due, seq)) else { return };
            if let Some(waiting) = class.queue.pop_front() {
                cx.dispatch(waiting.bio);
            }
        }
    }

    /// Sets the timer of a class that waits and has none.
    fn arm(&mut self, class: usize, cx: &mut TargetCx<'_>) {
        let wait = &mut self.classes[class];
        if let (None, Some(head)) = (wait.timer, wait.queue.front()) {
            wait.timer = Some(head.due);
            cx.set_timer(head.due, class as u64);
        }
    }
}

impl Target for Delay {
    fn map(&mut self, mut bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        let class = Class::of(&bio) as usize;
        let wait = &mut self.classes[class];
        wait.leg.aim(&mut bio, cx);
        if !self.delaying || wait.delay == Nanos::ZERO {
            return Mapped::Remapped(bio);
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        wait.queue.push_back(Waiting { due: cx.now() + wait.delay, seq, bio });
        self.arm(class, cx);
        Mapped::Submitted
    }

    fn on_timer(&mut self, token: u64, cx: &mut TargetCx<'_>) {
        let class = token as usize;
        // A timer from before a suspend may still fire after one was set anew.
        if self.classes[class].timer.is_some_and(|deadline| deadline > cx.now()) {
            return;
        }
        self.classes[class].timer = None;
        self.release(cx.now(), cx);
        self.arm(class, cx);
    }

    fn presuspend(&mut self, cx: &mut TargetCx<'_>) {
        self.delaying = false;
        self.release(Nanos(u64::MAX), cx);
    }

    fn presuspend_undo(&mut self, _cx: &mut TargetCx<'_>) {
        self.delaying = true;
    }

    fn preresume(&mut self, _cx: &mut TargetCx<'_>) -> Result<Preresume, UserError> {
        // Timers of the time before the suspend are not waited for; see `on_timer`.
        self.classes.iter_mut().for_each(|wait| wait.timer = None);
        Ok(Preresume::Ready)
    }

    fn resume(&mut self, _cx: &mut TargetCx<'_>) {
        self.delaying = true;
    }

    fn add_counters(&self, sum: &mut Vec<u64>) {
        sum.resize(CLASSES, 0);
        for (total, wait) in sum.iter_mut().zip(&self.classes) {
            *total += wait.queue.len() as u64;
        }
    }
}
