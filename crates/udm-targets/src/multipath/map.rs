//! `multipath` at work on a lane: sends each I/O down a path and deals with paths that fail.
//!
//! The same `map` and `end_io` serve bios and requests; the mode differs only in what becomes of an
//! I/O that has no path, and of one that failed:
//!
//! | | bio mode | request mode |
//! |---|---|---|
//! | no path, queueing | waits here | tried again in 100 ms |
//! | no path, noflush suspend | pushed back | tried again in 100 ms |
//! | no path otherwise | fails, EIO | fails, EIO |
//! | path error, a path or queueing | sent again at once (or waits here) | back into the queue |
//! | path error, no path, noflush suspend | pushed back | back into the queue |
//! | path error, no path otherwise | fails, EIO | fails with the error as it was |
//!
//! Rules. Errors that another path would give as well (no space, medium, reservation, ...) are
//! returned as they are and fail no path. Nothing allocates for an I/O. A path's selector hears of
//! the end of every I/O it was told the start of.
//!
//! The tricky case is a bio that waited and is ended by the target: the core calls `end_io` for it
//! like for any other; its first word is 0, so it is on no path and passes.

use super::config::{MultipathConfig, QueueMode};
use super::counters::{self, Layout};
use super::group::Groups;
use super::home::{HOME, Home, Note};
use super::message::Message;
use super::queue::Queue;
use super::selectors::PathSelector;
use alloc::string::String;
use alloc::vec::Vec;
use udm_core::bio::BioBox;
use udm_core::{Ended, ErrorCode, Mapped, Target, TargetCx, UserError};
use udm_types::{LaneId, SECTOR_SHIFT, Status};

/// `multipath` on one lane.
pub(super) struct Multipath {
    pub(super) groups: Groups,
    pub(super) queue: Queue,
    pub(super) mode: QueueMode,
    /// On the home lane only.
    pub(super) home: Option<Home>,
    /// Names a path may be called by in messages, by path.
    names: Vec<[String; 3]>,
    layout: Layout,
    lane: LaneId,
    /// From postsuspend to resume.
    suspended: bool,
}

/// True if an error speaks about the path and not about the I/O: another path may do better.
fn is_path_error(status: Status) -> bool {
    match status {
        Status::Ok
        | Status::NotSupported
        | Status::NoSpace
        | Status::Target
        | Status::Reservation
        | Status::Medium
        | Status::Protection => false,
        Status::Timeout
        | Status::Transport
        | Status::Resource
        | Status::DevResource
        | Status::Again
        | Status::Offline
        | Status::Invalid
        | Status::ReadOnly
        | Status::IoErr => true,
    }
}

impl Multipath {
    pub(super) fn new(config: &MultipathConfig, lane: LaneId) -> Multipath {
        Multipath {
            groups: Groups::new(config),
            queue: Queue::new(config.features.queue_if_no_path),
            mode: config.features.queue_mode,
            home: (lane == HOME).then(|| Home::new(config.paths.len())),
            names: config.paths.iter().map(super::message::names_of).collect(),
            layout: config.layout,
            lane,
            suspended: false,
        }
    }

    /// The path for an I/O of so many bytes.
    #[inline]
    pub(super) fn choose(&mut self, bytes: u64, cx: &mut TargetCx<'_>) -> Option<u32> {
        match self.groups.choose(bytes, self.lane, cx.now()) {
            Some(path) => Some(path),
            None => self.choose_group(bytes, cx),
        }
    }

    #[cold]
    fn choose_group(&mut self, bytes: u64, cx: &mut TargetCx<'_>) -> Option<u32> {
        let before = (self.groups.current, self.groups.next);
        let path = self.groups.choose_group(bytes, self.lane, cx.now());
        if (self.groups.current, self.groups.next) != before {
            self.group_chosen(cx);
        }
        path
    }

    /// An I/O came back from its path with an error.
    #[cold]
    fn failed(&mut self, path: u32, mut bio: BioBox, cx: &mut TargetCx<'_>) -> Ended {
        self.groups.count_error(path, bio.status, cx.now());
        if !is_path_error(bio.status) {
            return Ended::Done(bio);
        }
        self.path_failed(path, cx);
        let hopeless = self.groups.valid == 0 && !self.queue.on;
        match self.mode {
            QueueMode::Request if hopeless && !cx.noflush_suspending() => Ended::Done(bio),
            QueueMode::Request if bio.status == Status::Resource => Ended::DelayRequeue(bio),
            QueueMode::Request => Ended::Requeue(bio),
            QueueMode::Bio if hopeless && cx.noflush_suspending() => Ended::Requeue(bio),
            QueueMode::Bio if hopeless => {
                bio.status = Status::IoErr;
                Ended::Done(bio)
            }
            QueueMode::Bio => {
                self.send_again(bio, cx);
                Ended::Incomplete
            }
        }
    }

    /// Sends a bio down another path, or lets it wait for one.
    fn send_again(&mut self, mut bio: BioBox, cx: &mut TargetCx<'_>) {
        bio.status = Status::Ok;
        match self.choose(bio.len_sectors << SECTOR_SHIFT, cx) {
            Some(path) => {
                self.groups.start(path, &mut bio, cx.now());
                cx.dispatch(bio);
            }
            None => self.queue.hold(bio),
        }
    }

    /// The paths on a device that a message names.
    pub(super) fn paths_called(&self, name: &str) -> Vec<u32> {
        let name = super::message::plain_name(name);
        let called = |names: &[String; 3]| names.contains(&name);
        let paths = self.names.iter().enumerate().filter(|(_, names)| called(names));
        paths.map(|(path, _)| path as u32).collect()
    }
}

impl Target for Multipath {
    fn map(&mut self, mut bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        match self.choose(bio.len_sectors << SECTOR_SHIFT, cx) {
            Some(path) => {
                self.groups.start(path, &mut bio, cx.now());
                Mapped::Remapped(bio)
            }
            None => self.map_without_path(bio, cx),
        }
    }

    fn end_io(&mut self, mut bio: BioBox, cx: &mut TargetCx<'_>) -> Ended {
        match self.groups.end(&mut bio, cx.now()) {
            Some(path) if !bio.status.is_ok() => self.failed(path, bio, cx),
            Some(_) | None => Ended::Done(bio),
        }
    }

    fn presuspend(&mut self, cx: &mut TargetCx<'_>) {
        if self.mode == QueueMode::Bio || !cx.noflush_suspending() {
            let saved = self.queue.on || self.queue.saved;
            self.queue.letting_go = true;
            self.set_queueing(false, saved, cx);
        }
    }

    fn presuspend_undo(&mut self, cx: &mut TargetCx<'_>) {
        // Linux leaves queueing off here; a suspend that was given up must not cost I/O.
        self.restore_queueing(cx);
    }

    fn postsuspend(&mut self, _cx: &mut TargetCx<'_>) {
        self.suspended = true;
    }

    fn resume(&mut self, cx: &mut TargetCx<'_>) {
        self.suspended = false;
        self.restore_queueing(cx);
        self.arm_if_idle(cx);
    }

    fn on_timer(&mut self, token: u64, cx: &mut TargetCx<'_>) {
        self.timer_fired(token, cx);
    }

    fn on_note(&mut self, _from: LaneId, note: [u64; 3], cx: &mut TargetCx<'_>) {
        match Note::unpack(note) {
            Some(note) => self.heard(note, cx),
            None => debug_assert!(false, "notes are packed by this target"),
        }
    }

    fn add_counters(&self, sum: &mut Vec<u64>) {
        let layout = self.layout;
        let lane = self.lane.index();
        sum.resize(sum.len().max(layout.len(self.lane)), 0);
        sum[counters::LANES] += 1;
        sum[counters::CHOSE] += u64::from(self.groups.chose);
        sum[counters::HELD] += self.queue.len();
        if let Some(home) = &self.home {
            self.add_state(home, sum);
        }
        for (number, group) in self.groups.groups.iter().enumerate() {
            sum[layout.own_count(lane, number)] = group.selector.own_count();
        }
        for (number, path) in self.groups.paths.iter().enumerate() {
            let tally = self.groups.tally(number);
            let at = layout.lane_path(lane, number);
            sum[at + counters::CHOSEN] = tally.chosen;
            sum[at + counters::DONE] = tally.done;
            sum[at + counters::ERRORS] = path.errors;
            sum[at + counters::LAST_ERROR] = path.last_error.0;
            sum[at + counters::LAST_ERROR_AT] = path.last_error.1.0;
            sum[at + counters::LAST_CHOSEN_AT] = tally.last_chosen_at.0;
            let words = self.groups.words(number);
            sum[layout.selector_words(lane, number)..][..words.len()].copy_from_slice(&words);
            let buckets = tally.latencies;
            sum[layout.histogram(lane, number)..][..buckets.len()].copy_from_slice(buckets);
        }
    }

    fn message(
        &mut self,
        words: &[String],
        cx: &mut TargetCx<'_>,
    ) -> Result<Option<String>, UserError> {
        let applied = self.take_message(words, cx);
        // Home answers; the others have refused what home refuses.
        if self.home.is_some() { applied.map(|()| None) } else { Ok(None) }
    }
}

impl Multipath {
    fn take_message(&mut self, words: &[String], cx: &mut TargetCx<'_>) -> Result<(), UserError> {
        let message = Message::parse(words, self);
        // Whatever it says: Linux does not look at it then.
        if self.suspended && !matches!(message, Ok(Message::Timeout(_))) {
            let text = "multipath takes no messages while the device is suspended";
            return Err(UserError::new(ErrorCode::Suspended, text));
        }
        self.apply(message?, cx);
        Ok(())
    }

    fn restore_queueing(&mut self, cx: &mut TargetCx<'_>) {
        self.queue.letting_go = false;
        if self.queue.saved {
            self.set_queueing(true, false, cx);
        }
    }

    /// The state of the whole target, from its home lane.
    fn add_state(&self, home: &Home, sum: &mut [u64]) {
        let number = |group: Option<u32>| group.map_or(0, |group| u64::from(group) + 1);
        sum[counters::QUEUEING] = u64::from(self.queue.on);
        sum[counters::CURRENT] = number(self.groups.current);
        sum[counters::NEXT] = number(self.groups.next);
        sum[counters::VALID] = u64::from(self.groups.valid);
        sum[counters::TIMEOUT_SECS] = home.timeout_secs;
        sum[counters::EXPIRED] = home.expired;
        for (group, it) in self.groups.groups.iter().enumerate() {
            sum[self.layout.bypassed(group)] = u64::from(it.bypassed);
        }
        for (path, it) in self.groups.paths.iter().enumerate() {
            sum[self.layout.active(path)] = u64::from(it.active);
            sum[self.layout.fail_count(path)] = home.fail_counts[path];
        }
    }
}
