//! One truth about paths and groups for all lanes: the home lane and its notes.
//!
//! Home is lane 0. Its copy of path states, bypassed groups, current and next group and of
//! queue_if_no_path *is* the state; it counts failures, raises events and runs the time limit.
//! Every other lane works with a copy. Whatever changes on home is told to all; whatever another
//! lane finds out (a path error, a group it had to choose) it applies to its copy at once and tells
//! home.
//!
//! ```text
//! lane 2: I/O error on path 5
//!   marks its copy failed         --Failed(5, epoch)-->   home: counts once, raises the event
//!   every lane: marks path 5
//!   failed, takes the epoch       <--Path(5, failed, epoch + 1)--
//! ```
//!
//! Messages reach all lanes, and each applies them at once, so that they are in force everywhere
//! when they are answered; but only home decides, and its notes, which come later and in order,
//! settle every copy on what home has decided.
//!
//! The tricky case is the race of a path error with a reinstate. A lane reports the epoch it knew;
//! home takes a report only if the path has not changed since, so an error from before a reinstate
//! cannot undo it, and the note of the reinstate, which is under way, sets that lane's copy right.
//! An error after it bears the new epoch and counts. So neither is lost, nor anything counted
//! twice.

use super::map::Multipath;
use alloc::vec;
use alloc::vec::Vec;
use udm_core::TargetCx;
use udm_types::{LaneId, Nanos};

/// The lane that decides; messages are answered by it.
pub(super) const HOME: LaneId = LaneId(0);

/// What only the home lane has.
#[derive(Debug, Default)]
pub(super) struct Home {
    /// How often each path has failed.
    pub(super) fail_counts: Vec<u64>,
    /// Time limit of queueing; 0 for none.
    pub(super) timeout_secs: u64,
    /// How often the limit was reached.
    pub(super) expired: u64,
    /// Number of the time limit that runs; timers of others are stale. There is no cancel.
    timer: u64,
    /// A time limit runs.
    armed: bool,
}

impl Home {
    pub(super) fn new(paths: usize) -> Home {
        Home { fail_counts: vec![0; paths], ..Home::default() }
    }
}

/// What lanes tell each other. Packed into three words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// To home: I/O on a path failed while the lane knew this epoch of it.
    Failed { path: u32, epoch: u64 },
    /// To home: the lane chose a group (or found none) while it knew this epoch of the groups.
    Chose { current: Option<u32>, next: Option<u32>, epoch: u64 },
    /// From home: a path's state.
    Path { path: u32, active: bool, epoch: u64 },
    /// From home: a group is bypassed or not.
    Bypassed { group: u32, bypassed: bool, epoch: u64 },
    /// From home: the current and next group.
    Groups { current: Option<u32>, next: Option<u32>, epoch: u64 },
    /// From home: queue_if_no_path, and whether a resume turns it on.
    Queueing { on: bool, saved: bool },
}

fn packed(current: Option<u32>, next: Option<u32>) -> u64 {
    let number = |group: Option<u32>| group.map_or(0, |group| u64::from(group) + 1);
    number(current) << 32 | number(next)
}

fn unpacked(word: u64) -> (Option<u32>, Option<u32>) {
    let group = |number: u64| (number as u32).checked_sub(1);
    (group(word >> 32), group(word & u64::from(u32::MAX)))
}

impl Note {
    pub(super) fn pack(self) -> [u64; 3] {
        match self {
            Note::Failed { path, epoch } => [0, u64::from(path), epoch],
            Note::Chose { current, next, epoch } => [1, packed(current, next), epoch],
            Note::Path { path, active, epoch } => [2 + u64::from(active), u64::from(path), epoch],
            Note::Bypassed { group, bypassed, epoch } => {
                [4 + u64::from(bypassed), u64::from(group), epoch]
            }
            Note::Groups { current, next, epoch } => [6, packed(current, next), epoch],
            Note::Queueing { on, saved } => [7, u64::from(on), u64::from(saved)],
        }
    }

    pub(super) fn unpack([kind, first, second]: [u64; 3]) -> Option<Note> {
        let (number, epoch) = (first as u32, second);
        let (current, next) = unpacked(first);
        Some(match kind {
            0 => Note::Failed { path: number, epoch },
            1 => Note::Chose { current, next, epoch },
            2 | 3 => Note::Path { path: number, active: kind == 3, epoch },
            4 | 5 => Note::Bypassed { group: number, bypassed: kind == 5, epoch },
            6 => Note::Groups { current, next, epoch },
            7 => Note::Queueing { on: first != 0, saved: second != 0 },
            _ => return None,
        })
    }
}

impl Multipath {
    /// Tells every other lane.
    fn tell_all(&self, note: Note, cx: &mut TargetCx<'_>) {
        for lane in 0..cx.lanes() {
            if lane != HOME.index() {
                cx.tell(LaneId(lane as u16), note.pack());
            }
        }
    }

    /// I/O on a path failed on this lane.
    pub(super) fn path_failed(&mut self, path: u32, cx: &mut TargetCx<'_>) {
        if self.home.is_some() {
            return self.set_path(path, false, cx);
        }
        let epoch = self.groups.paths[path as usize].epoch;
        if self.groups.mark(path, false) {
            cx.tell(HOME, Note::Failed { path, epoch }.pack());
        }
    }

    /// Fails or reinstates a path. On home that is final; on other lanes it goes ahead of home's
    /// note (the message that asks for it reaches home, too).
    pub(super) fn set_path(&mut self, path: u32, active: bool, cx: &mut TargetCx<'_>) {
        if !self.groups.mark(path, active) {
            return;
        }
        if let Some(home) = &mut self.home {
            let epoch = self.groups.paths[path as usize].epoch + 1;
            self.groups.paths[path as usize].epoch = epoch;
            if active {
                home.armed = false;
            } else {
                home.fail_counts[path as usize] += 1;
            }
            self.tell_all(Note::Path { path, active, epoch }, cx);
            cx.raise_event();
            self.arm(cx);
        }
        if active {
            self.process_held(cx);
        }
    }

    /// Bypasses a group or ends that; on home that is final.
    pub(super) fn set_bypassed(&mut self, group: u32, bypassed: bool, cx: &mut TargetCx<'_>) {
        self.groups.bypass(group, bypassed);
        if self.home.is_some() {
            self.groups.epoch += 1;
            let epoch = self.groups.epoch;
            self.tell_all(Note::Bypassed { group, bypassed, epoch }, cx);
            self.tell_groups(cx);
            cx.raise_event();
        }
    }

    /// Makes a group the next one; on home that is final.
    pub(super) fn switch_group(&mut self, group: u32, cx: &mut TargetCx<'_>) {
        self.groups.switch_to(group);
        if self.home.is_some() {
            self.groups.epoch += 1;
            let epoch = self.groups.epoch;
            for group in 0..self.groups.groups.len() as u32 {
                self.tell_all(Note::Bypassed { group, bypassed: false, epoch }, cx);
            }
            self.tell_groups(cx);
            cx.raise_event();
        }
    }

    fn tell_groups(&self, cx: &mut TargetCx<'_>) {
        let super::group::Groups { current, next, epoch, .. } = self.groups;
        self.tell_all(Note::Groups { current, next, epoch }, cx);
    }

    /// This lane has chosen another group, or found none.
    #[cold]
    pub(super) fn group_chosen(&mut self, cx: &mut TargetCx<'_>) {
        if self.home.is_some() {
            self.groups.epoch += 1;
            return self.tell_groups(cx);
        }
        let super::group::Groups { current, next, epoch, .. } = self.groups;
        cx.tell(HOME, Note::Chose { current, next, epoch }.pack());
    }

    /// Turns queueing on or off; on home that is final. What waits is looked at again.
    ///
    /// In a suspend it cannot be turned on, or what comes back late would wait and the suspend
    /// never end: then it is kept for the resume.
    pub(super) fn set_queueing(&mut self, on: bool, saved: bool, cx: &mut TargetCx<'_>) {
        let later = on && self.queue.letting_go;
        let (on, saved) = (on && !later, saved || later);
        (self.queue.on, self.queue.saved) = (on, saved);
        if self.home.is_some() {
            self.tell_all(Note::Queueing { on, saved }, cx);
        }
        if !on {
            self.process_held(cx);
        }
    }

    /// Starts the time limit (anew) if it applies: no path is active and I/O would wait.
    pub(super) fn arm(&mut self, cx: &mut TargetCx<'_>) {
        let applies = self.groups.valid == 0 && self.queue.on;
        if let Some(home) = &mut self.home
            && applies
            && home.timeout_secs > 0
        {
            home.timer += 1;
            home.armed = true;
            cx.set_timer(cx.now() + Nanos::from_secs(home.timeout_secs), home.timer);
        }
    }

    /// Starts the time limit if it applies and does not run.
    pub(super) fn arm_if_idle(&mut self, cx: &mut TargetCx<'_>) {
        if self.home.as_ref().is_some_and(|home| !home.armed) {
            self.arm(cx);
        }
    }

    /// Sets the time limit. Home only; others have no use for it.
    pub(super) fn set_timeout(&mut self, secs: u64, cx: &mut TargetCx<'_>) {
        if let Some(home) = &mut self.home {
            home.timeout_secs = secs;
            home.armed = false;
            self.arm(cx);
        }
    }

    /// A timer fired: the time limit, if it is the one that runs.
    pub(super) fn timer_fired(&mut self, timer: u64, cx: &mut TargetCx<'_>) {
        let Some(home) = &mut self.home else { return };
        if !home.armed || home.timer != timer {
            return;
        }
        home.armed = false;
        home.expired += 1;
        self.set_queueing(false, false, cx);
        cx.raise_event();
    }

    /// A note has come.
    pub(super) fn heard(&mut self, note: Note, cx: &mut TargetCx<'_>) {
        match note {
            Note::Failed { path, epoch } => {
                if self.groups.paths[path as usize].epoch == epoch {
                    self.set_path(path, false, cx);
                }
            }
            Note::Chose { current, next, epoch } => {
                let same = (current, next) == (self.groups.current, self.groups.next);
                if self.groups.epoch == epoch && !same {
                    (self.groups.current, self.groups.next) = (current, next);
                    self.groups.epoch += 1;
                    self.tell_groups(cx);
                }
            }
            Note::Path { path, active, epoch } => {
                let known = &mut self.groups.paths[path as usize].epoch;
                if epoch > *known {
                    *known = epoch;
                    self.set_path(path, active, cx);
                }
            }
            Note::Bypassed { group, bypassed, epoch } => {
                if epoch >= self.groups.epoch {
                    self.groups.bypass(group, bypassed);
                }
            }
            Note::Groups { current, next, epoch } => {
                if epoch >= self.groups.epoch {
                    self.groups.epoch = epoch;
                    (self.groups.current, self.groups.next) = (current, next);
                }
            }
            Note::Queueing { on, saved } => self.set_queueing(on, saved, cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Note;

    #[test]
    fn notes_survive_packing() {
        let epoch = 1 << 40;
        let notes = [
            Note::Failed { path: 7, epoch },
            Note::Chose { current: Some(3), next: None, epoch },
            Note::Chose { current: None, next: Some(0), epoch },
            Note::Path { path: 0, active: true, epoch },
            Note::Path { path: u32::MAX, active: false, epoch },
            Note::Bypassed { group: 2, bypassed: true, epoch },
            Note::Bypassed { group: 2, bypassed: false, epoch },
            Note::Groups { current: Some(0), next: Some(1023), epoch },
            Note::Queueing { on: true, saved: false },
            Note::Queueing { on: false, saved: true },
        ];
        for note in notes {
            assert_eq!(Note::unpack(note.pack()), Some(note));
        }
        assert_eq!(Note::unpack([99, 0, 0]), None);
    }
}
