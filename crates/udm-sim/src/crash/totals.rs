//! What was done, in numbers: the answer to "how much does a clean run say".
//!
//! Kept by everything that crashes, added up over plans and threads, printed at the end. Nothing
//! here decides anything.
//!
//! The tricky case is what counts as inside recovery: a crash before the recovered subject serves.

use crate::crash::outcome::Crash;
use crate::crash::subject::Busy;
use std::fmt;

/// Counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Plans run.
    pub plans: u64,
    /// Requests and orders given.
    pub steps: u64,
    /// Places where a crash was possible.
    pub points: u64,
    /// Crashes, of any kind.
    pub crashes: u64,
    /// Of these, deaths of the program.
    pub process: u64,
    /// Inside recovery.
    pub in_recovery: u64,
    /// Inside a checkpoint.
    pub in_checkpoint: u64,
    /// While the cleaner was at work.
    pub in_cleaning: u64,
    /// While the size was being changed.
    pub in_resize: u64,
    /// Changes that were there after a crash.
    pub kept: u64,
    /// Changes that were gone, as they may be.
    pub lost: u64,
    /// Changes that were there although nothing promised it.
    pub beyond: u64,
    /// Disks looked at by the offline checker.
    pub checked: u64,
    /// Writes that ran out of space.
    pub no_space: u64,
    /// Closed volumes with flipped bits.
    pub spoiled: u64,
    /// Of these, how many said something about it.
    pub unreadable: u64,
}

impl Totals {
    /// Another's work too.
    pub fn absorb(&mut self, other: &Totals) {
        for (mine, theirs) in self.numbers().into_iter().zip(other.clone().numbers()) {
            *mine += *theirs;
        }
    }

    fn numbers(&mut self) -> [&mut u64; 16] {
        [
            &mut self.plans,
            &mut self.steps,
            &mut self.points,
            &mut self.crashes,
            &mut self.process,
            &mut self.in_recovery,
            &mut self.in_checkpoint,
            &mut self.in_cleaning,
            &mut self.in_resize,
            &mut self.kept,
            &mut self.lost,
            &mut self.beyond,
            &mut self.checked,
            &mut self.no_space,
            &mut self.spoiled,
            &mut self.unreadable,
        ]
    }

    pub(crate) fn crash(&mut self, crash: Crash, in_recovery: bool) {
        self.crashes += 1;
        self.process += u64::from(!crash.is_power());
        self.in_recovery += u64::from(in_recovery);
    }

    pub(crate) fn busy(&mut self, busy: Busy) {
        self.in_checkpoint += u64::from(busy.checkpoint);
        self.in_cleaning += u64::from(busy.cleaning);
        self.in_resize += u64::from(busy.resize);
    }

    pub(crate) fn verdict(&mut self, kept: usize, accepted: usize, floor: usize) {
        self.kept += kept as u64;
        self.lost += (accepted - kept) as u64;
        self.beyond += (kept - floor) as u64;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} crashes ({} of the program only, {} inside recovery, {} inside a checkpoint, {} \
             while cleaning, {} while resizing) at {} points of {} plans with {} steps; changes \
             kept {}, lost as allowed {}, kept beyond promise {}; {} disks checked, {} writes \
             without space; bits flipped on {} disks, {} of them noticed",
            self.crashes,
            self.process,
            self.in_recovery,
            self.in_checkpoint,
            self.in_cleaning,
            self.in_resize,
            self.points,
            self.plans,
            self.steps,
            self.kept,
            self.lost,
            self.beyond,
            self.checked,
            self.no_space,
            self.spoiled,
            self.unreadable
        )
    }
}
