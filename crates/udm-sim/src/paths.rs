//! Paths: several ways to one simulated disk, which fail independently of the disk's contents.
//!
//! A *LUN* is a disk that only paths lead to. Each path is a lower device of its own (`path3`), and
//! the operations that come through it carry its number. What a path can do:
//!
//! | health | operations that come | operations under way when it begins |
//! |---|---|---|
//! | alive | go to the disk | |
//! | dead | fail at once, ENOLINK | have happened or never will; fail now or later |
//! | stalled | stay | stay, until the path is alive or dead |
//! | misfit | fail, as if it came back smaller | as for dead |
//!
//! An answer may be lost (it happened, and fails all the same) and may be late: it arrives when the
//! path is alive again. An error of a path is no excuse for an error above a multipath that queues;
//! the oracle is told of what the *disk* refuses (no space) and of nothing else.
//!
//! The tricky case is a write given up by its path. A real server could still execute it after the
//! same write, and newer ones, went by another path; nobody above could prevent that. Here, as with
//! a fence at the disk, it takes effect before it is given up, or never.

use crate::ops::{ECANCELED, ENOLINK};
use crate::state::SimState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use udm_core::{LinkState, LowerCx, LowerDevice, LowerLane};
use udm_lane::Errno;
use udm_lower::RawFile;
use udm_types::{Nanos, QueueLimits, Sector};

/// Raw handles from here on are paths; below, disks.
pub(crate) const FIRST_PATH_HANDLE: i32 = 1000;

/// What a path can do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// Everything.
    Alive,
    /// Nothing.
    Dead,
    /// Take operations and keep them.
    Stalled,
    /// It came back as something smaller.
    Misfit,
}

/// A path.
#[derive(Debug)]
pub(crate) struct Path {
    /// The disk it leads to.
    pub(crate) disk: usize,
    /// What it can do.
    pub(crate) health: Health,
    /// How often it came back as something smaller.
    pub(crate) misfits: u64,
    len_sectors: Arc<AtomicU64>,
}

/// A path as a lower device: a file whose size may be another one day.
pub(crate) struct PathDevice {
    file: RawFile,
    len_sectors: Arc<AtomicU64>,
}

impl Path {
    /// A path to a disk, and the number it shares with its device.
    pub(crate) fn new(disk: usize, len_sectors: Sector) -> Path {
        let len_sectors = Arc::new(AtomicU64::new(len_sectors));
        Path { disk, health: Health::Alive, misfits: 0, len_sectors }
    }

    /// The size it shows now.
    pub(crate) fn len_sectors(&self) -> Sector {
        self.len_sectors.load(Ordering::Relaxed)
    }

    /// The lower device of this path.
    pub(crate) fn device(&self, file: RawFile) -> PathDevice {
        PathDevice { file, len_sectors: Arc::clone(&self.len_sectors) }
    }
}

impl LowerDevice for PathDevice {
    fn shown(&self) -> String {
        self.file.shown()
    }

    fn len_sectors(&self) -> Sector {
        self.len_sectors.load(Ordering::Relaxed)
    }

    fn limits(&self) -> QueueLimits {
        self.file.limits()
    }

    fn open_lane(&self, cx: &mut LowerCx<'_>) -> Result<Box<dyn LowerLane>, Errno> {
        self.file.open_lane(cx)
    }

    fn link(&self) -> Option<LinkState> {
        None
    }
}

impl SimState {
    /// The paths that lead to a disk.
    pub(crate) fn paths_to(&self, disk: usize) -> Vec<usize> {
        (0..self.paths.len()).filter(|&path| self.paths[path].disk == disk).collect()
    }

    /// Another health for a path, and for what is under way on it.
    pub(crate) fn set_health(&mut self, path: usize, health: Health) {
        let before = std::mem::replace(&mut self.paths[path].health, health);
        if before == health {
            return;
        }
        self.note("path", &[path as u64, health as u64]);
        let whole = self.disks[self.paths[path].disk].len_sectors();
        let len = if health == Health::Misfit { whole / 2 } else { whole };
        self.paths[path].len_sectors.store(len, Ordering::Relaxed);
        match health {
            Health::Alive => {
                self.tally.count("path returns");
                self.release_stalled(path);
            }
            Health::Stalled => {
                self.tally.count("path stalls");
                self.stall_under_way(path);
            }
            Health::Dead | Health::Misfit => {
                self.paths[path].misfits += u64::from(health == Health::Misfit);
                let word = if health == Health::Dead { "path deaths" } else { "path misfits" };
                self.tally.count(word);
                self.drop_under_way(path);
            }
        }
    }

    /// How often these paths have come back smaller.
    pub(crate) fn misfits_of(&self, paths: &[usize]) -> u64 {
        paths.iter().map(|&path| self.paths[path].misfits).sum()
    }

    fn under_way_on(&self, path: usize) -> Vec<u64> {
        self.ops.serials(|op| op.path == Some(path))
    }

    fn release_stalled(&mut self, path: usize) {
        for serial in self.under_way_on(path) {
            let wait = Nanos(self.rng.u64(0..500_000));
            self.let_go(serial, wait);
        }
    }

    fn stall_under_way(&mut self, path: usize) {
        for serial in self.under_way_on(path) {
            self.hold_back(serial);
        }
    }

    /// The connection is gone: nobody will ever hear of what is under way.
    fn drop_under_way(&mut self, path: usize) {
        for serial in self.under_way_on(path) {
            let happened = self.rng.bool();
            let late = self.rng.u32(0..4) == 0;
            let wait = self.rng.u64(0..if late { 300_000_000 } else { 100_000 });
            if late {
                self.tally.count("late answers of a dead path");
            }
            self.give_up_op(serial, happened, ENOLINK, Nanos(wait));
        }
    }

    /// An abort: the connection is dropped for this operation alone.
    pub(crate) fn cancel_on_path(&mut self, serial: u64) {
        let happened = self.rng.bool();
        self.give_up_op(serial, happened, ECANCELED, Nanos::ZERO);
    }

    /// Liveness: one path to each LUN lives from now on, all others are dead. `prefer` names paths
    /// in use.
    pub(crate) fn leave_one_path_each(&mut self, prefer: &[usize]) {
        for disk in self.swarm.disks..self.swarm.disks + self.swarm.luns {
            let all = self.paths_to(disk);
            let used: Vec<usize> =
                all.iter().copied().filter(|path| prefer.contains(path)).collect();
            let pick_used = !used.is_empty() && self.rng.u32(0..4) != 0;
            let from = if pick_used { &used } else { &all };
            let chosen = from[self.rng.usize(0..from.len())];
            for path in all {
                let health = if path == chosen { Health::Alive } else { Health::Dead };
                self.set_health(path, health);
            }
        }
    }
}
