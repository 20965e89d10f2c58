//! A subject on its disk, moved one small thing at a time.
//!
//! Lives and recoveries use it. A move is one of: an operation goes from the port to the disk, the
//! disk ends one, the subject gets a turn, time passes. Which one is drawn, so operations end in
//! any order and turns fall between any two of them. After each move that may have changed the
//! disk its caller may take a crash.
//!
//! A disk may be *lazy*: its discards end when nothing else can, or nobody waits any more, so that
//! a subject that does not wait for them is far ahead when they do.
//!
//! Rules. Time passes only if nothing else can happen. What the subject answers is collected by
//! the caller after each turn, acceptances first.
//!
//! The tricky case is a subject that waits for something that cannot come: then no move is left
//! ([`Move::Idle`]), and whoever still waits for an answer reports it as stuck.

use crate::crash::disk::{CrashDisk, Event, Misuse, UnderWay, describe_under_way};
use crate::crash::image::SECTOR_BYTES;
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
    /// Discards end last.
    pub(crate) is_lazy: bool,
    /// Nobody waits for an answer: discards may stay under way over the next requests.
    pub(crate) is_unhurried: bool,
    port: Disk,
    has_work: bool,
    /// What it asked of the disk in its last turn has been taken.
    is_taken: bool,
    /// The latest time there was: a subject whose clock went back still counts from there.
    latest: Nanos,
}

impl<S: CrashSubject> Host<S> {
    /// Opens a subject on what the disk holds.
    pub(crate) fn open(setup: &S::Setup, disk: CrashDisk, now: Nanos) -> Host<S> {
        let port = Disk::new(disk.len_sectors as u64 * 512);
        let subject = S::open(setup, port.clone(), now);
        let (is_lazy, is_unhurried) = (false, false);
        let (has_work, is_taken) = (true, false);
        Host {
            subject,
            disk,
            now,
            trace: None,
            is_lazy,
            is_unhurried,
            port,
            has_work,
            is_taken,
            latest: now,
        }
    }

    /// The disk below is made longer.
    pub(crate) fn grow_disk(&mut self, len_bytes: u64, rng: &mut Rng) {
        self.disk.grow(len_bytes, rng);
        self.port.set_len_bytes((self.disk.len_sectors * SECTOR_BYTES) as u64);
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
        self.is_taken = true;
        self.latest = self.latest.max(self.now);
        let busy = self.disk.under_way.len();
        if self.has_work && (busy == 0 || rng.u32(0..3) > 0) {
            self.has_work = self.subject.turn(self.now);
            self.is_taken = false;
            return Ok(Move::Turned);
        }
        if busy > 0 && self.is_lazy && self.is_unhurried {
            let is_rest = self.disk.under_way.iter().all(UnderWay::is_discard);
            if is_rest && rng.u32(0..16) > 0 {
                return Ok(Move::Idle);
            }
        }
        if busy > 0 {
            let at = self.pick(rng);
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
            Some(at) if at.since(self.latest) <= WAIT_MAX => {
                self.now = Nanos(at.0.max(self.now.0 + 1));
                self.has_work = true;
                Ok(Move::Quiet)
            }
            Some(_) | None => Ok(Move::Idle),
        }
    }

    /// The operation under way that ends next: any, but of a lazy disk's discards only the last.
    fn pick(&self, rng: &mut Rng) -> usize {
        let under_way = &self.disk.under_way;
        let prompt: Vec<usize> = (0..under_way.len())
            .filter(|at| !(self.is_lazy && under_way[*at].is_discard()))
            .collect();
        match prompt.len() {
            0 => rng.usize(0..under_way.len()),
            count => prompt[rng.usize(0..count)],
        }
    }

    /// True if disk and subject have nothing to do before time passes.
    pub(crate) fn is_calm(&self) -> bool {
        !self.has_work && self.is_taken && self.disk.under_way.is_empty()
    }

    /// The program ends; the disk stays, with what was under way.
    pub(crate) fn into_disk(self) -> CrashDisk {
        self.disk
    }
}
