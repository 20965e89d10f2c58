//! Flipped bits: a closed volume is damaged anywhere, opened, read, written, and must not lie.
//!
//! Used on volumes that were closed in order, so what the device holds is certain. Then, whatever
//! was flipped:
//!
//! ```text
//! read    the right data, or an error and something said about it
//! write   done or refused; what was done is read again, or is an error
//! open    may refuse, except where another copy of what was hit is whole
//! ```
//!
//! Rules. Blocks are read one by one, so that one that is lost does not hide others. Nothing may
//! panic, hang, or use the disk wrongly, as everywhere.
//!
//! The tricky case is one flip in the newest checkpoint: the older one and the log must lead to the
//! same data, or nowhere. An older state of the device is wrong data too. If the log is hit as
//! well, nothing is left that knows how far it went, and a crash might have left just that; so
//! flips in checkpoints (and superblocks) come with none in the log.

use crate::crash::disk::CrashDisk;
use crate::crash::host::{Host, Move};
use crate::crash::image::SECTOR_BYTES;
use crate::crash::life::MOVES_MAX;
use crate::crash::recover::Recovery;
use crate::crash::stamp::{self, Style, Value};
use crate::crash::subject::{CrashSubject, Order, Request, Standing};
use crate::crash::totals::Totals;
use fastrand::Rng;
use std::collections::BTreeMap;
use udm_lane::{Buf, Payload};
use udm_types::{BioFlags, Op, Status};

/// Requests of the writes here are numbered from here on, far above those of any workload.
const REQUEST_BASE: u32 = 0x7000_0000;

/// Where bits were flipped.
struct Flips {
    places: Vec<u64>,
    /// All of them are in something of which there is another copy.
    must_survive: bool,
}

/// Damages a closed volume that holds `found`, and sees what it does.
pub(crate) fn spoil<S: CrashSubject>(
    recovery: &Recovery<'_, S>,
    mut disk: CrashDisk,
    whole: &S,
    found: &[Option<Value>],
    rng: &mut Rng,
    totals: &mut Totals,
) -> Result<(), String> {
    let flips = flip(&mut disk, whole, rng);
    totals.spoiled += 1;
    let mut host = Host::open(recovery.setup, disk, recovery.now);
    host.trace = recovery.with_trace.then(Vec::new);
    let mut victim = Victim { recovery, host, expected: found.to_vec(), has_spoken: false };
    let outcome = victim.live(&flips, rng);
    totals.unreadable += u64::from(victim.has_spoken);
    outcome.map_err(|what| {
        let trace = victim.host.trace.unwrap_or_default();
        let lines: String = trace.iter().map(|line| format!("\n  spoiled {line}")).collect();
        format!("with bits flipped at {:?} {what}{lines}", flips.places)
    })
}

/// Flips a few bits: anywhere, or where something is.
fn flip<S: CrashSubject>(disk: &mut CrashDisk, whole: &S, rng: &mut Rng) -> Flips {
    let count = if rng.bool() { 1 } else { rng.usize(2..6) };
    let is_empty = |sector: usize, disk: &CrashDisk| disk.cached.sector(sector) == &[0; 512];
    let head = (disk.len_sectors / 8).max(1);
    let mut places: Vec<u64> = Vec::new();
    for _ in 0..count {
        let limit = if rng.bool() { head } else { disk.len_sectors };
        let mut sector = rng.usize(0..limit);
        for _ in 0..20 {
            if !is_empty(sector, disk) {
                break;
            }
            sector = rng.usize(0..limit);
        }
        let byte = rng.usize(0..SECTOR_BYTES);
        let mask = 1 << rng.u32(0..8);
        let place = (sector * SECTOR_BYTES + byte) as u64;
        let is_too_much = |one, other| whole.has_copies(one) && whole.is_log(other);
        if places.iter().any(|other| is_too_much(place, *other) || is_too_much(*other, place)) {
            continue;
        }
        disk.durable.spoil(sector, byte, mask);
        disk.cached.spoil(sector, byte, mask);
        places.push(place);
    }
    let must_survive = places.len() == 1 && whole.has_copies(places[0]);
    Flips { places, must_survive }
}

/// A volume with damage.
struct Victim<'a, 'b, S: CrashSubject> {
    recovery: &'a Recovery<'b, S>,
    host: Host<S>,
    /// What reads may give; nothing where a write failed.
    expected: Vec<Option<Value>>,
    /// It said that something is wrong.
    has_spoken: bool,
}

impl<S: CrashSubject> Victim<'_, '_, S> {
    fn live(&mut self, flips: &Flips, rng: &mut Rng) -> Result<(), String> {
        let mut moves = 0;
        while self.host.subject.standing() == Standing::Recovering {
            moves += 1;
            if self.host.step(rng)? == Move::Idle || moves > MOVES_MAX {
                return Err("a recovery hangs".to_owned());
            }
        }
        self.listen();
        let standing = self.host.subject.standing();
        if let (true, Standing::Refusing(why)) = (flips.must_survive, standing) {
            return Err(format!("nothing is served, although there is another copy: {why}"));
        }
        let lost = self.read_all(rng)?;
        if flips.must_survive && lost > 0 {
            return Err(format!("{lost} blocks are lost, although there is another copy"));
        }
        self.write_some(rng)?;
        if self.recovery.shape.has_background {
            self.host.subject.order(Order::Scrub);
            self.host.subject.order(Order::Checkpoint);
            self.host.subject.order(Order::Clean(2));
            self.host.stir();
        }
        for _ in 0..rng.u32(0..300) {
            if self.host.step(rng)? == Move::Idle {
                break;
            }
            self.listen();
        }
        self.read_all(rng).map(drop)
    }

    fn listen(&mut self) {
        let is_refusing = matches!(self.host.subject.standing(), Standing::Refusing(_));
        self.has_spoken |= is_refusing || self.host.subject.next_alarm().is_some();
    }

    /// Reads every block; gives how many are lost.
    fn read_all(&mut self, rng: &mut Rng) -> Result<usize, String> {
        let shape = self.recovery.shape;
        let device_bytes = self.host.subject.len_bytes().unwrap_or(u64::MAX);
        let block = shape.block_sectors;
        let mut reads = BTreeMap::new();
        for first in (0..shape.len_sectors).step_by(block) {
            if shape.offset_bytes(first) >= device_bytes {
                break;
            }
            let payload = Payload::from_buf(Buf::alloc(block * SECTOR_BYTES));
            self.submit(first as u64, Op::Read, first, &payload);
            reads.insert(first as u64, payload);
        }
        let mut lost = 0;
        for (ticket, status) in self.answers(reads.len(), rng)? {
            let Some(payload) = reads.remove(&ticket) else {
                return Err(format!("request {ticket} is done, but nobody asked for it"));
            };
            if !status.is_ok() {
                lost += 1;
                continue;
            }
            let mut bytes = [0; SECTOR_BYTES];
            for (index, sector) in (ticket as usize..).take(block).enumerate() {
                payload.copy_out((index * SECTOR_BYTES) as u64, &mut bytes);
                let value = stamp::read(&bytes);
                if self.expected[sector].is_some() && value != self.expected[sector] {
                    return Err(format!(
                        "sector {sector} is read as {} instead of {}",
                        stamp::describe(value),
                        stamp::describe(self.expected[sector])
                    ));
                }
            }
        }
        if lost > 0 && !self.has_spoken {
            return Err(format!("{lost} blocks are lost, and nothing was said"));
        }
        Ok(lost)
    }

    /// Writes a few blocks, and flushes.
    fn write_some(&mut self, rng: &mut Rng) -> Result<(), String> {
        let shape = self.recovery.shape;
        let device_bytes = self.host.subject.len_bytes().unwrap_or(0);
        let block = shape.block_sectors;
        let mut firsts = Vec::new();
        for _ in 0..3 {
            let first = rng.usize(0..shape.len_sectors / block) * block;
            if shape.offset_bytes(first) < device_bytes && !firsts.contains(&first) {
                firsts.push(first);
            }
        }
        for (nr, &first) in (REQUEST_BASE..).zip(&firsts) {
            let payload = Payload::from_buf(Buf::alloc(block * SECTOR_BYTES));
            let mut bytes = [0; SECTOR_BYTES];
            for (index, sector) in (first..first + block).enumerate() {
                let value = stamp::data(nr, sector, Style::Half);
                stamp::write(value, &mut bytes);
                payload.copy_in((index * SECTOR_BYTES) as u64, &bytes);
                self.expected[sector] = Some(value);
            }
            self.submit(first as u64, Op::Write, first, &payload);
        }
        for (ticket, status) in self.answers(firsts.len(), rng)? {
            let first = ticket as usize;
            if !status.is_ok() {
                self.expected[first..first + block].fill(None);
            }
        }
        self.submit(0, Op::Flush, 0, &Payload::empty());
        self.answers(1, rng).map(drop)
    }

    fn submit(&mut self, ticket: u64, op: Op, first: usize, payload: &Payload) {
        self.host.subject.submit(Request {
            ticket,
            op,
            flags: BioFlags::empty(),
            offset_bytes: if op == Op::Flush { 0 } else { self.recovery.shape.offset_bytes(first) },
            len_bytes: payload.len_bytes(),
            payload: payload.clone(),
        });
        self.host.stir();
    }

    fn answers(&mut self, count: usize, rng: &mut Rng) -> Result<Vec<(u64, Status)>, String> {
        let mut answers = Vec::new();
        for _ in 0..MOVES_MAX {
            self.listen();
            while let Some(answer) = self.host.subject.next_done() {
                answers.push(answer);
            }
            if answers.len() >= count {
                return Ok(answers);
            }
            // Nobody asks, and nothing must pile up.
            while self.host.subject.next_accepted().is_some() {}
            if self.host.step(rng)? == Move::Idle {
                return Err(format!("{} requests hang", count - answers.len()));
            }
        }
        Err("requests take for ever".to_owned())
    }
}
