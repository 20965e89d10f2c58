//! Bios that wait for a path: what queue_if_no_path keeps, in bio mode.
//!
//! Called by `map.rs` when no path is active, and by `home.rs` when that changes. A request-based
//! target holds nothing: its requests wait in the core's queue and are tried again.
//!
//! | moment | what waits |
//! |---|---|
//! | a path is reinstated | is sent, in order, ahead of everything newer |
//! | queueing ends: message, time limit, flush suspend | fails with an I/O error |
//! | queueing ends: noflush suspend | is pushed back to the core, which maps it after resume |
//!
//! Rules. Bios wait only while no path is active and queueing is on; whoever changes either calls
//! [`Multipath::process_held`]. The queue has no bound of its own: it holds bios that their
//! submitters have in flight and makes none.
//!
//! The tricky case is the late error: a bio that was on a dying path comes here after younger ones.
//! It takes its place by the time it was submitted.

use super::config::QueueMode;
use super::map::Multipath;
use alloc::collections::VecDeque;
use udm_core::bio::BioBox;
use udm_core::{Mapped, TargetCx};
use udm_types::{SECTOR_SHIFT, Status};

/// queue_if_no_path and what waits because of it.
pub(super) struct Queue {
    /// Wait instead of failing if no path is active.
    pub(super) on: bool,
    /// It was on before the suspend: a resume turns it on again.
    pub(super) saved: bool,
    /// From presuspend to resume: it cannot be turned on now, only for after the resume.
    pub(super) letting_go: bool,
    held: VecDeque<BioBox>,
}

impl Queue {
    pub(super) fn new(on: bool) -> Queue {
        Queue { on, saved: false, letting_go: false, held: VecDeque::new() }
    }

    /// How many bios wait.
    pub(super) fn len(&self) -> u64 {
        self.held.len() as u64
    }

    /// Keeps a bio until [`Multipath::process_held`] takes it.
    pub(super) fn hold(&mut self, mut bio: BioBox) {
        bio.status = Status::Ok;
        // It is on no path: should the core end it, `end_io` must not count it.
        *bio.words_mut() = [0; 2];
        let younger = |held: &BioBox| held.issued_at > bio.issued_at;
        match self.held.back() {
            Some(last) if younger(last) => {
                let place = self.held.partition_point(|held| held.issued_at <= bio.issued_at);
                self.held.insert(place, bio);
            }
            Some(_) | None => self.held.push_back(bio),
        }
    }
}

impl Multipath {
    /// What becomes of a bio in `map` if no path is active.
    #[cold]
    pub(super) fn map_without_path(&mut self, mut bio: BioBox, cx: &TargetCx<'_>) -> Mapped {
        match self.mode {
            QueueMode::Request if self.queue.on || cx.noflush_suspending() => {
                return Mapped::DelayRequeue(bio);
            }
            QueueMode::Bio if self.queue.on => {
                self.queue.hold(bio);
                return Mapped::Submitted;
            }
            QueueMode::Bio if cx.noflush_suspending() => return Mapped::Requeue(bio),
            QueueMode::Request | QueueMode::Bio => {}
        }
        bio.status = Status::IoErr;
        Mapped::Kill(bio)
    }

    /// Looks at what waits again: sends it, lets it wait on, pushes it back or fails it.
    pub(super) fn process_held(&mut self, cx: &mut TargetCx<'_>) {
        while let Some(mut bio) = self.queue.held.pop_front() {
            if let Some(path) = self.choose(bio.len_sectors << SECTOR_SHIFT, cx) {
                self.groups.start(path, &mut bio, cx.now());
                cx.dispatch(bio);
            } else if self.queue.on {
                self.queue.held.push_front(bio);
                return;
            } else if cx.noflush_suspending() {
                cx.requeue(bio);
            } else {
                cx.complete(bio, Status::IoErr);
            }
        }
    }
}
