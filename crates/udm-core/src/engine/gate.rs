//! The gate of a device on a lane: who may enter, what is in flight, what has to wait.
//!
//! Dispatch passes it, commands and barriers close and open it, targets count their own work at it
//! (`target_cx.rs`). All held I/O sits in one queue, ordered by the sequence number a bio got when
//! it first reached the gate; a bio that a target pushed back returns to its old place, ahead of
//! everything newer. Because the gate is plain data of one lane, "suspend saw nothing in flight
//! while a bio slipped in" cannot happen: closing it, counting and draining are steps of one
//! thread.
//!
//! Picture of a gate:
//! ```text
//!   open       ----suspend or barrier---->  closed: bios go to `held`
//!   closed     ----in_flight == 0-------->  drained: told to whoever closed it
//!   closed     ----resume, barrier over-->  held bios enter in order, then open
//! ```
//! A suspend also waits for I/O and work of the targets' own ([`OwnWork`]), a barrier does not: it
//! speaks about the submitters' bios only, and background work may go on all the time.
//!
//! The tricky case is a barrier (`Op` with `ORDERED`) among held bios: entering them stops in front
//! of it, and the gate stays closed until the barrier has been through.

use crate::bio::{BioBox, BioClass};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use udm_types::OpSet;

/// The gate of one device on one lane.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Bios enter. False while suspended, closed by a barrier, or with bios held.
    open: bool,
    /// Classes of bios the table takes the short way, open or not.
    short_way: BioClass,
    /// The same while the gate is open, else nothing: one test for dispatch.
    pub(crate) entry: BioClass,
    /// A noflush suspend is under way or has been made.
    pub(crate) noflush: bool,
    /// Bios (pieces, after splitting) inside the table.
    pub(crate) in_flight: u64,
    /// What waits, ordered by sequence number.
    pub(crate) held: VecDeque<Held>,
    pub(crate) suspend: Option<SuspendMark>,
    pub(crate) barrier: BarrierMark,
    /// What targets of the live table do of their own. Boxed: what every bio touches of a device
    /// stays in as few cache lines as it was.
    pub(crate) own: Box<OwnWork>,
    next_seq: u64,
}

/// I/O and work of the targets' own, on one device and lane.
#[derive(Debug, Default)]
pub(crate) struct OwnWork {
    /// Bios under way.
    pub(crate) ios: u64,
    /// Works begun and not ended.
    pub(crate) works: u64,
    /// Rules broken, ever.
    pub(crate) breaches: u64,
    /// The load whose targets may have any.
    pub(crate) generation: u64,
    /// Between `preresume` and `postsuspend`.
    pub(crate) allowed: bool,
    /// A resume waits for targets that said "later".
    pub(crate) resuming: Option<Box<Resuming>>,
}

/// A resume that waits on this lane.
#[derive(Debug)]
pub(crate) struct Resuming {
    /// The round to answer.
    pub(crate) round: Option<u64>,
    /// The targets it waits for, by index.
    pub(crate) targets: Vec<u32>,
}

/// A bio at the gate.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) seq: u64,
    pub(crate) bio: BioBox,
}

/// The suspend that closed a gate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SuspendMark {
    /// The round to answer when the gate has drained; `None` once answered.
    pub(crate) answer_round: Option<u64>,
}

/// What barriers mean to a gate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BarrierMark {
    /// A barrier of this device (of any lane) has the gate closed; its ticket.
    pub(crate) closed_by: Option<u64>,
    /// The home lane waits to hear that the gate has drained.
    pub(crate) answer_due: bool,
    /// This lane's own barrier has been asked for and not yet been granted.
    pub(crate) asked: bool,
}

impl Default for Gate {
    /// An open gate of a device without a table.
    fn default() -> Self {
        Gate {
            open: true,
            short_way: BioClass::empty(),
            entry: BioClass::empty(),
            noflush: false,
            in_flight: 0,
            held: VecDeque::new(),
            suspend: None,
            barrier: BarrierMark::default(),
            own: Box::default(),
            next_seq: 0,
        }
    }
}

impl Gate {
    /// Whether bios enter.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Opens or closes the gate.
    pub(crate) fn set_open(&mut self, open: bool) {
        self.open = open;
        self.entry = if open { self.short_way } else { BioClass::empty() };
    }

    /// Takes over what a new table allows.
    pub(crate) fn allow(&mut self, ops: OpSet) {
        self.short_way = BioClass::of_ops(ops);
        self.set_open(self.open);
    }

    /// The place that the next bio gets.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The next place in the order of submission.
    #[inline]
    pub(crate) fn take_seq(&mut self) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        seq
    }

    /// Runs on with `seq` as the next number, so that a replayed bio keeps its place. Returns what
    /// to give back to [`Gate::restore_seq`].
    pub(crate) fn rewind_seq(&mut self, seq: u64) -> u64 {
        core::mem::replace(&mut self.next_seq, seq)
    }

    /// Ends a replay.
    pub(crate) fn restore_seq(&mut self, next_seq: u64) {
        self.next_seq = self.next_seq.max(next_seq);
    }

    /// Holds a bio in its place; behind those of the same number (pieces of one bio, in order).
    pub(crate) fn hold(&mut self, seq: u64, bio: BioBox) {
        self.set_open(false);
        let at = match self.held.back() {
            Some(last) if last.seq > seq => self.held.partition_point(|held| held.seq <= seq),
            _ => self.held.len(),
        };
        self.held.insert(at, Held { seq, bio });
    }

    /// True if nothing is in flight, and the targets have nothing of their own under way either.
    pub(crate) fn is_drained(&self) -> bool {
        self.in_flight == 0 && self.own.is_idle()
    }

    /// True if neither a suspend nor a barrier has the gate closed.
    pub(crate) fn may_flow(&self) -> bool {
        self.suspend.is_none() && self.barrier.closed_by.is_none() && !self.barrier.asked
    }
}

impl OwnWork {
    pub(crate) fn is_idle(&self) -> bool {
        self.ios == 0 && self.works == 0
    }

    /// How much is under way.
    pub(crate) fn count(&self) -> u64 {
        self.ios + self.works
    }

    /// True for targets of the live table; others are counted as a breach.
    pub(crate) fn takes(&mut self, generation: u64) -> bool {
        let takes = generation == self.generation;
        self.breaches += u64::from(!takes);
        takes
    }

    /// True if something new may begin. What is under way may go on with a next step at any time:
    /// as long as it counts, the suspend that would forbid it is not over.
    pub(crate) fn may_begin(&self) -> bool {
        self.allowed || !self.is_idle()
    }
}
