//! What all parts of a world share: time, dice, disks, operations, the oracle, the trace.
//!
//! Driver, actors and scripts hold a handle ([`Stage`]) on one cell. Each takes it for the length
//! of one small step; nobody holds it across a call into the engine. That keeps the engine's
//! re-entry (an actor that submits from inside a completion) and this sharing apart.
//!
//! Time is virtual and moves only when the world says so ([`SimState::advance`] in `ops.rs`). Order
//! among things of one instant is the order of their serial numbers.
//!
//! The tricky case is the oracle's clock: virtual time stands still while much happens, so what
//! came before what is told by the oracle's ticks, never by the time of day.

use crate::disk::Disk;
use crate::lane_io::LaneIo;
use crate::ops::Ops;
use crate::oracle::Oracle;
use crate::paths::Path;
use crate::swarm::{FaultRates, Swarm};
use crate::tally::Tally;
use crate::trace::Trace;
use fastrand::Rng;
use std::cell::{RefCell, RefMut};
use std::collections::BTreeSet;
use std::rc::Rc;
use udm_types::Nanos;

/// Which half of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Anything may break.
    Safety,
    /// Everything is healed and has to complete.
    Liveness,
}

/// The shared state of a world.
#[derive(Debug)]
pub(crate) struct SimState {
    /// Virtual time.
    pub now: Nanos,
    /// The world's dice.
    pub rng: Rng,
    /// What may happen.
    pub swarm: Swarm,
    /// The events so far.
    pub trace: Trace,
    /// The disks.
    pub disks: Vec<Disk>,
    /// The paths to those of them that are LUNs.
    pub paths: Vec<Path>,
    /// The LUNs whose paths the weather leaves as they are.
    pub pinned: BTreeSet<usize>,
    /// Resumes under way: devices may be opened.
    pub resuming: u32,
    /// Operations under way on them.
    pub ops: Ops,
    /// The drivers' side of each lane.
    pub lanes: Vec<LaneIo>,
    /// Who judges.
    pub oracle: Oracle,
    /// What happened how often.
    pub tally: Tally,
    /// The half of the run.
    pub phase: Phase,
    /// A planted bug, if this world is a canary.
    pub canary: Option<Canary>,
}

/// A handle on the shared state.
#[derive(Clone, Debug)]
pub(crate) struct Stage(Rc<RefCell<SimState>>);

impl Stage {
    /// Puts a state behind a handle.
    pub(crate) fn new(state: SimState) -> Stage {
        Stage(Rc::new(RefCell::new(state)))
    }

    /// The state, for one step.
    pub(crate) fn get(&self) -> RefMut<'_, SimState> {
        self.0.borrow_mut()
    }
}

impl SimState {
    /// The disks' fault rates now.
    pub(crate) fn fault_rates(&self) -> FaultRates {
        match self.phase {
            Phase::Safety => self.swarm.faults.clone(),
            Phase::Liveness => FaultRates::default(),
        }
    }

    /// Notes an event.
    pub(crate) fn note(&mut self, what: &str, numbers: &[u64]) {
        self.trace.note(self.now, what, numbers);
    }

    /// Notes an event of words.
    pub(crate) fn note_text(&mut self, what: &str, text: &str) {
        self.trace.note_text(self.now, what, text);
    }

    /// True once in `of`.
    pub(crate) fn once_in(&mut self, of: u32) -> bool {
        self.rng.u32(0..of) == 0
    }
}

/// A bug planted in a test double, to prove that the alarm works. Each wakes another checker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// A disk drops one in 500 writes and says it did them.
    DropWrite,
    /// A disk answers a sync without making anything durable.
    FlushLie,
    /// A disk applies an old write a second time, later.
    StaleRewrite,
    /// A disk says EIO although nothing happened to it.
    SpuriousError,
    /// A disk never answers one in 300 operations.
    LostCompletion,
    /// A target maps one sector to its neighbour after a swap.
    WrongSector,
    /// A hold target does not let go when a suspend asks for it.
    HoldForever,
    /// The load's barriers go down as plain writes.
    FakeBarrier,
    /// The load's flushes are never sent and answered well.
    FakeFlush,
    /// Tables are longer than the volume.
    LongTable,
    /// The load tells the oracle the wrong order of submission.
    SwappedOrder,
}

impl Canary {
    /// All of them, with the names `--canary` takes.
    pub const ALL: [(&'static str, Canary); 11] = [
        ("drop-write", Canary::DropWrite),
        ("flush-lie", Canary::FlushLie),
        ("stale-rewrite", Canary::StaleRewrite),
        ("spurious-error", Canary::SpuriousError),
        ("lost-completion", Canary::LostCompletion),
        ("wrong-sector", Canary::WrongSector),
        ("hold-forever", Canary::HoldForever),
        ("fake-barrier", Canary::FakeBarrier),
        ("fake-flush", Canary::FakeFlush),
        ("long-table", Canary::LongTable),
        ("swapped-order", Canary::SwappedOrder),
    ];

    /// Finds one by name.
    pub fn find(name: &str) -> Option<Canary> {
        Canary::ALL.iter().find(|(known, _)| *known == name).map(|&(_, canary)| canary)
    }
}
