//! The world's view of one lane's driver: open handles, ended operations, and whether it sleeps.
//!
//! A lane whose driver was asked to block and had nothing to give is asleep. The world lets it turn
//! again only for a reason: a completion, its deadline, or a wake-up through [`SimWake`]. A lost
//! wake-up therefore shows as a lane that never turns, and the liveness phase reports it. (In seeds
//! with spurious turns lanes also turn without a reason, as real threads may.)
//!
//! The tricky case is a wake-up that arrives while the lane is awake: it must make the *next* wait
//! return, so the flag stays set until a wait has taken it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use udm_lane::{Completion, Wake};
use udm_types::Nanos;

/// How long a lane wants to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sleep {
    /// It runs.
    Awake,
    /// Until then, unless woken.
    Until(Nanos),
    /// Until woken.
    ForEver,
}

/// What a handle leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// The disk.
    pub disk: usize,
    /// The path, if the disk is a LUN.
    pub path: Option<usize>,
}

/// A lane's driver, seen from the world.
#[derive(Debug)]
pub(crate) struct LaneIo {
    /// What is behind each handle.
    pub handles: Vec<Option<Way>>,
    /// Operations that have ended and wait for the lane.
    pub(crate) ended: Vec<Ended>,
    /// Whether it sleeps.
    pub sleep: Sleep,
    /// Its wake-up flag.
    pub wake: Arc<SimWake>,
}

/// An operation that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// What the lane will get.
    pub(crate) completion: Completion,
    /// It was to make data durable, and failed: who is told of it may begin before the lane looks.
    pub(crate) unsettled: bool,
}

/// The wake-up flag of a lane. It crosses no thread here; the trait wants it shareable.
#[derive(Debug, Default)]
pub(crate) struct SimWake {
    woken: AtomicBool,
}

impl Wake for SimWake {
    fn wake(&self) {
        self.woken.store(true, Ordering::SeqCst);
    }
}

impl SimWake {
    /// Takes the wake-up, if there was one.
    pub(crate) fn take(&self) -> bool {
        self.woken.swap(false, Ordering::SeqCst)
    }

    /// True if a wake-up waits to be taken.
    pub(crate) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst)
    }
}

impl LaneIo {
    /// A lane that has not begun.
    pub(crate) fn new() -> LaneIo {
        LaneIo {
            handles: Vec::new(),
            ended: Vec::new(),
            sleep: Sleep::Awake,
            wake: Arc::new(SimWake::default()),
        }
    }

    /// True if the lane has a reason to turn.
    pub(crate) fn has_reason(&self, now: Nanos) -> bool {
        let due = match self.sleep {
            Sleep::Awake => true,
            Sleep::Until(deadline) => deadline <= now,
            Sleep::ForEver => false,
        };
        due || self.wake.is_woken() || !self.ended.is_empty()
    }
}

impl Default for LaneIo {
    fn default() -> Self {
        LaneIo::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{LaneIo, Sleep};
    use udm_lane::Wake;
    use udm_types::Nanos;

    #[test]
    fn a_sleeping_lane_needs_a_reason() {
        let mut lane = LaneIo::new();
        assert!(lane.has_reason(Nanos(0)));
        lane.sleep = Sleep::Until(Nanos(5));
        assert!(!lane.has_reason(Nanos(4)));
        assert!(lane.has_reason(Nanos(5)));
        lane.sleep = Sleep::ForEver;
        assert!(!lane.has_reason(Nanos(99)));
        lane.wake.wake();
        assert!(lane.has_reason(Nanos(0)));
        assert!(lane.wake.take());
        assert!(!lane.has_reason(Nanos(0)));
    }
}
