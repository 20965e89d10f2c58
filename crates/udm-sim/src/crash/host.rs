//! A subject on its disk, moved one small thing at a time.
//!
//! Lives and recoveries use it. A move is one of: an operation goes from the port to the disk, the
//! disk ends one, the subject gets a turn, time passes. Which one is drawn, so operations end in
//! any order and turns fall between any two of them. After each move that may have changed the
//! disk its caller may take a crash.
//!
//! Rules. Time passes only if nothing else can happen. What the subject answers is collected by
//! the caller after each turn, acceptances first.
//!
//! The tricky case is a subject that waits for something that cannot come: then no move is left
//! ([`Move::Idle`]), and whoever still waits for an answer reports it as stuck.

use crate::crash::disk::{CrashDisk, Event, Misuse, describe_under_way};
use crate::crash::subject::CrashSubject;
use fastrand::Rng;
use udm_meta::Disk;
use udm_types::Nanos;

/// Who sets a timer further ahead waits for something else, in truth.
const WAIT_MAX: Nanos = Nanos(3_600_000_000_000);

/// What a move was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// Something that a crash could tell from before.
    Changed,
    /// A read began or ended, or time passed.
    Quiet,
    /// The subject had a turn.
    Turned,
    /// There was nothing to do.
    Idle,
}

/// A subject and what it runs on.
pub(crate) struct Host<S> {
    /// The subject.
    pub(crate) subject: S,
    /// Its disk.
    pub(crate) disk: CrashDisk,
    /// The time.
    pub(crate) now: Nanos,
    /// Every operation of the disk as a line, if wanted.
    pub(crate) trace: Option<Vec<String>>,
    port: Disk,
    has_work: bool,
}

impl<S: CrashSubject> Host<S> {
    /// Opens a subject on what the disk holds.
    pub(crate) fn open(setup: &S::Setup, disk: CrashDisk, now: Nanos) -> Host<S> {
        let port = Disk::new(disk.len_sectors as u64 * 512);
        let subject = S::open(setup, port.clone(), now);
        Host { subject, disk, now, trace: None, port, has_work: true }
    }

    /// The subject was given something.
    pub(crate) fn stir(&mut self) {
        self.has_work = true;
    }

    /// Makes one move.
    pub(crate) fn step(&mut self, rng: &mut Rng) -> Result<Move, Misuse> {
        if let Some(event) = self.disk.take(&self.port)? {
            if let (Some(trace), Some(op)) = (&mut self.trace, self.disk.under_way.last()) {
                trace.push(format!("  disk: {} begins", describe_under_way(op)));
            }
            return Ok(match event {
                Event::Changed => Move::Changed,
                Event::Read => Move::Quiet,
            });
        }
        let busy = self.disk.under_way.len();
        if self.has_work && (busy == 0 || rng.u32(0..3) > 0) {
            self.has_work = self.subject.turn(self.now);
            return Ok(Move::Turned);
        }
        if busy > 0 {
            let at = rng.usize(0..busy);
            let line = self.trace.is_some().then(|| describe_under_way(&self.disk.under_way[at]));
            let failures = self.disk.failures;
            let event = self.disk.complete(&self.port, at, rng)?;
            if let (Some(trace), Some(line)) = (&mut self.trace, line) {
                let how = if self.disk.failures > failures { "fails" } else { "ends" };
                trace.push(format!("  disk: {line} {how}"));
            }
            self.has_work = true;
            return Ok(match event {
                Event::Changed => Move::Changed,
                Event::Read => Move::Quiet,
            });
        }
        match self.subject.next_timer() {
            Some(at) if at.since(self.now) <= WAIT_MAX => {
                self.now = Nanos(at.0.max(self.now.0 + 1));
                self.has_work = true;
                Ok(Move::Quiet)
            }
            Some(_) | None => Ok(Move::Idle),
        }
    }

    /// True if disk and subject have nothing to do before time passes.
    pub(crate) fn is_calm(&self) -> bool {
        !self.has_work && self.disk.under_way.is_empty()
    }

    /// The program ends; the disk stays, with what was under way.
    pub(crate) fn into_disk(self) -> CrashDisk {
        self.disk
    }
}
