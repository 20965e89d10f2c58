//! What may fail, and why: the faults, and the times in which failing is allowed.
//!
//! An error that reaches a submitter is legal only if something explains it: a fault injected into
//! an operation on those sectors while the bio was under way, an end of the device it reached
//! beyond, a region or table that fails by design, an abort. Everything else is an error that the
//! change itself caused, which the third promise forbids.
//!
//! A failed sync explains every flush of that time, and one that nobody was told of yet explains
//! the next flush: it "stays reported until someone has seen it".
//!
//! The tricky case is the abort: the device below is fenced until the abandoned operations have
//! ended, and whoever comes meanwhile is refused. That is a window for all volumes, since the disk
//! may be shared.

use super::register::{NEVER, Tick};
use crate::disk::Owner;
use std::collections::BTreeMap;
use udm_types::Sector;

/// What kind of operation a fault hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// A read.
    Read,
    /// A write that a later flush makes durable.
    Write,
    /// A write that is durable when it ends.
    DurableWrite,
    /// A sync.
    Sync,
}

/// Something that explains errors.
#[derive(Clone, Copy, Debug)]
struct Excuse {
    /// `None`: all volumes.
    volume: Option<usize>,
    reads: bool,
    writes: bool,
    first: Sector,
    end: Sector,
    from: Tick,
    to: Tick,
}

/// A window that is still open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowId(usize);

/// What asks to be excused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed {
    /// The volume.
    pub volume: usize,
    /// It reads.
    pub reads: bool,
    /// First sector.
    pub first: Sector,
    /// The sector after the last; equal to `first` for an empty flush.
    pub end: Sector,
    /// When it was submitted.
    pub start: Tick,
}

/// All excuses of a world.
#[derive(Debug, Default)]
pub(crate) struct Excuses {
    all: Vec<Excuse>,
    last_sync_fault: Option<Tick>,
}

impl Excuses {
    /// A fault was injected into an operation on these sectors.
    pub(crate) fn fault(
        &mut self,
        kind: FaultKind,
        owners: impl Iterator<Item = Owner>,
        now: Tick,
    ) {
        let (reads, writes) = match kind {
            FaultKind::Read => (true, false),
            FaultKind::Write | FaultKind::DurableWrite => (false, true),
            FaultKind::Sync => (false, false),
        };
        if matches!(kind, FaultKind::Sync | FaultKind::DurableWrite) {
            self.last_sync_fault = Some(now);
        }
        let mut ranges: BTreeMap<usize, (Sector, Sector)> = BTreeMap::new();
        for owner in owners {
            let range = ranges.entry(owner.volume).or_insert((owner.sector, owner.sector + 1));
            *range = (range.0.min(owner.sector), range.1.max(owner.sector + 1));
        }
        for (volume, (first, end)) in ranges {
            let volume = Some(volume);
            self.all.push(Excuse { volume, reads, writes, first, end, from: now, to: now });
        }
    }

    /// From now on everything (of one volume, or of all) may fail.
    pub(crate) fn open(&mut self, volume: Option<usize>, now: Tick) -> WindowId {
        let (first, end) = (0, Sector::MAX);
        let (reads, writes) = (true, true);
        self.all.push(Excuse { volume, reads, writes, first, end, from: now, to: NEVER });
        WindowId(self.all.len() - 1)
    }

    /// A window ends.
    pub(crate) fn close(&mut self, window: WindowId, now: Tick) {
        let excuse = &mut self.all[window.0];
        excuse.to = excuse.to.min(now);
    }

    /// True if something explains this failure.
    pub(crate) fn explain(&self, failed: Failed) -> bool {
        self.all.iter().any(|excuse| {
            let its_time = excuse.to >= failed.start;
            let its_volume = excuse.volume.is_none_or(|volume| volume == failed.volume);
            let its_kind = if failed.reads { excuse.reads } else { excuse.writes };
            let empty = failed.first == failed.end;
            let its_place = excuse.first < failed.end && failed.first < excuse.end;
            // A flush is excused by windows only, not by faults of single writes.
            let window = excuse.to != excuse.from && excuse.reads && excuse.writes;
            its_time && its_volume && if empty { window } else { its_kind && its_place }
        })
    }

    /// True if a sync failed since then.
    pub(crate) fn sync_failed_since(&self, tick: Tick) -> bool {
        self.last_sync_fault.is_some_and(|fault| fault >= tick)
    }
}

#[cfg(test)]
mod tests {
    use super::{Excuses, Failed, FaultKind};
    use crate::disk::Owner;

    fn failed(volume: usize, reads: bool, first: u64, end: u64, start: u64) -> Failed {
        Failed { volume, reads, first, end, start }
    }

    #[test]
    fn a_fault_explains_its_kind_place_and_time_only() {
        let mut excuses = Excuses::default();
        let owners = (8..12).map(|sector| Owner { volume: 1, sector });
        excuses.fault(FaultKind::Write, owners, 50);
        assert!(excuses.explain(failed(1, false, 11, 20, 50)));
        assert!(!excuses.explain(failed(1, false, 12, 20, 50)), "another place");
        assert!(!excuses.explain(failed(0, false, 11, 20, 50)), "another volume");
        assert!(!excuses.explain(failed(1, true, 11, 20, 50)), "a read");
        assert!(!excuses.explain(failed(1, false, 11, 20, 51)), "submitted later");
        assert!(!excuses.sync_failed_since(0));
    }

    #[test]
    fn a_window_explains_everything_until_it_closes() {
        let mut excuses = Excuses::default();
        let window = excuses.open(Some(0), 10);
        assert!(
            excuses.explain(failed(0, true, 1, 2, 3)) && excuses.explain(failed(0, false, 0, 0, 3))
        );
        excuses.close(window, 20);
        assert!(excuses.explain(failed(0, true, 1, 2, 20)));
        assert!(!excuses.explain(failed(0, true, 1, 2, 21)));
    }
}
