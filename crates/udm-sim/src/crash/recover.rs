//! Recovery of a crashed disk: opened with the subject's own code, crashed again, read back.
//!
//! A share of the crashes happens while the recovery is at work, as often as it likes to; each
//! time the disk takes what a crash leaves and the next recovery starts. When one gets through,
//! the whole device is read back.
//!
//! Rules. Nobody has seen anything before a recovery got through, so only then the oracle is
//! asked. If power was lost once on the way, the promises of a power loss hold, not those of the
//! death of a program.
//!
//! The tricky case is the work a subject starts behind its recovery (a checkpoint, say): a crash
//! there is a crash in the next life, and counts as one inside recovery only before it serves.

use crate::crash::disk::CrashDisk;
use crate::crash::host::{Host, Move};
use crate::crash::image::SECTOR_BYTES;
use crate::crash::outcome::Crash;
use crate::crash::stamp::{self, Value};
use crate::crash::subject::{CrashSubject, Request, Shape, Standing};
use crate::crash::totals::Totals;
use fastrand::Rng;
use std::collections::BTreeMap;
use udm_lane::{Buf, Payload};
use udm_types::{BioFlags, Nanos, Op};

/// Moves a recovery or a reading back may take: far more than any needs, so more means it hangs.
const MOVES_MAX: u32 = 50_000;
/// Bytes of a read when the device is read back.
const READ_LEN_SECTORS: usize = 64;
/// Tickets of reading back start here, far above those of any workload.
const TICKET_BASE: u64 = 1 << 40;

/// How recoveries are crashed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nesting {
    /// Of a hundred recoveries, how many are crashed.
    pub(crate) percent: u32,
    /// Of a hundred crashes, how many are deaths of the program.
    pub(crate) process_percent: u32,
}

/// A subject that serves again.
pub(crate) struct Recovered<S> {
    /// It.
    pub(crate) host: Host<S>,
    /// What the device holds; zeroes behind its end.
    pub(crate) found: Vec<Option<Value>>,
    /// Its size, if it can have several.
    pub(crate) len_bytes: Option<u64>,
    /// Power was lost on the way.
    pub(crate) was_power: bool,
}

/// What is recovered, and how.
pub(crate) struct Recovery<'a, S: CrashSubject> {
    /// Geometry and options.
    pub(crate) setup: &'a S::Setup,
    /// What follows from them.
    pub(crate) shape: &'a Shape,
    /// How recoveries are crashed.
    pub(crate) nesting: Nesting,
    /// A volume that refuses to write is no failure: the life before had a faulty disk.
    pub(crate) may_refuse: bool,
    /// The time when it starts.
    pub(crate) now: Nanos,
    /// A failure tells the disk's operations too.
    pub(crate) with_trace: bool,
}

impl<S: CrashSubject> Recovery<'_, S> {
    /// Recovers `disk`; `was_power` says what happened to it.
    pub(crate) fn run(
        &self,
        disk: CrashDisk,
        was_power: bool,
        rng: &mut Rng,
        totals: &mut Totals,
    ) -> Result<Recovered<S>, String> {
        let mut trace = Vec::new();
        self.attempts(disk, was_power, rng, totals, &mut trace).map_err(|what| {
            let lines: String = trace.iter().map(|line| format!("\n  recovery {line}")).collect();
            what + &lines
        })
    }

    /// Recoveries until one gets through.
    fn attempts(
        &self,
        mut disk: CrashDisk,
        mut was_power: bool,
        rng: &mut Rng,
        totals: &mut Totals,
        trace: &mut Vec<String>,
    ) -> Result<Recovered<S>, String> {
        loop {
            let is_crashed = rng.u32(0..100) < self.nesting.percent;
            // Early rather than late: a recovery writes little before it serves.
            let within = rng.u32(1..10);
            let mut budget = if is_crashed { rng.u32(0..within) } else { u32::MAX };
            // The clock of a machine that was switched on begins anew.
            let now = if rng.bool() { self.now } else { Nanos::ZERO };
            let mut host = Host::open(self.setup, disk, now);
            host.trace = self.with_trace.then(Vec::new);
            let crashed = self.until_serving(&mut host, &mut budget, rng);
            if crashed != Ok(false) {
                trace.extend(host.trace.take().unwrap_or_default());
            }
            if crashed? {
                let disk_now = host.into_disk();
                let crash = Crash::draw(&disk_now, self.nesting.process_percent, rng);
                totals.crash(crash, true);
                if self.with_trace {
                    trace.push(format!("is crashed: {crash:?}"));
                }
                was_power |= crash.is_power();
                disk = crash.strike(&disk_now, rng);
                continue;
            }
            let found = self.read_back(&mut host, rng).inspect_err(|_| {
                trace.extend(host.trace.take().unwrap_or_default());
            })?;
            let len_bytes = host.subject.len_bytes();
            return Ok(Recovered { host, found, len_bytes, was_power });
        }
    }

    /// Moves until it serves (false) or the budget of changes is used up (true).
    fn until_serving(
        &self,
        host: &mut Host<S>,
        budget: &mut u32,
        rng: &mut Rng,
    ) -> Result<bool, String> {
        for _ in 0..MOVES_MAX {
            match host.subject.standing() {
                Standing::Serving => return Ok(false),
                Standing::Refusing(_) if self.may_refuse => return Ok(false),
                Standing::Refusing(why) => return Err(format!("recovery refuses: {why}")),
                Standing::Stopped => return Err("stopped without being told to".to_owned()),
                Standing::Recovering => {}
            }
            match host.step(rng)? {
                Move::Changed if *budget == 0 => return Ok(true),
                Move::Changed => *budget -= 1,
                Move::Quiet | Move::Turned => {}
                Move::Idle => return Err("recovery is stuck: nothing left to do".to_owned()),
            }
        }
        Err(format!("recovery takes more than {MOVES_MAX} moves"))
    }

    /// Reads the whole device.
    pub(crate) fn read_back(
        &self,
        host: &mut Host<S>,
        rng: &mut Rng,
    ) -> Result<Vec<Option<Value>>, String> {
        let device_bytes = host.subject.len_bytes().unwrap_or(u64::MAX);
        let sectors = 0..self.shape.len_sectors;
        let len = sectors.take_while(|at| self.shape.offset_bytes(*at) < device_bytes).count();
        let mut reads = BTreeMap::new();
        let mut first = 0;
        while first < len {
            let island_end = (first / self.shape.island_sectors + 1) * self.shape.island_sectors;
            let sectors = READ_LEN_SECTORS.min(len - first).min(island_end - first);
            let payload = Payload::from_buf(Buf::alloc(sectors * SECTOR_BYTES));
            payload.fill(0, payload.len_bytes(), 0xee);
            let ticket = TICKET_BASE + first as u64;
            reads.insert(ticket, payload.clone());
            host.subject.submit(Request {
                ticket,
                op: Op::Read,
                flags: BioFlags::empty(),
                offset_bytes: self.shape.offset_bytes(first),
                len_bytes: payload.len_bytes(),
                payload,
            });
            first += sectors;
        }
        host.stir();
        let mut found = vec![None; len];
        found.resize(self.shape.len_sectors, Some(stamp::ZEROES));
        for _ in 0..MOVES_MAX {
            while let Some((ticket, status)) = host.subject.next_done() {
                let Some(payload) = reads.remove(&ticket) else {
                    return Err(format!("request {ticket} is done, but nobody asked for it"));
                };
                let first = (ticket - TICKET_BASE) as usize;
                if let (false, true, Standing::Refusing(why)) =
                    (status.is_ok(), self.may_refuse, host.subject.standing())
                {
                    return Err(format!("cannot even be read: {why}"));
                }
                if !status.is_ok() {
                    return Err(format!("reading back sector {first}: {}", status.describe()));
                }
                let mut bytes = [0; SECTOR_BYTES];
                for index in 0..payload.len_bytes() as usize / SECTOR_BYTES {
                    payload.copy_out((index * SECTOR_BYTES) as u64, &mut bytes);
                    found[first + index] = stamp::read(&bytes);
                }
            }
            if reads.is_empty() {
                return Ok(found);
            }
            if host.step(rng)? == Move::Idle {
                return Err("reading back is stuck: nothing left to do".to_owned());
            }
        }
        Err(format!("reading back takes more than {MOVES_MAX} moves"))
    }
}
