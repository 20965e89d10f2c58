//! The simulated disk: a volatile cache over a durable image, at sectors of 512 bytes.
//!
//! Lives and recoveries drive it: [`CrashDisk::take`] moves what the subject asked of the port
//! below it, [`CrashDisk::complete`] ends one operation, and `outcome.rs` makes of it what a crash
//! leaves.
//! It is as mean as the promises of a disk allow, and never meaner:
//!
//! ```text
//! write taken       any part of it may be on the medium after a crash
//! write completed   read from now on; a version each sector may have after a power loss
//! flush completed   what was completed before the flush was *taken* is durable, nothing else
//! FUA completed     this write is durable, older versions of its sectors are gone
//! discard completed zeroes, garbage or the old bytes, as the disk's manners say; volatile too
//! ```
//!
//! Rules. Two writes under way on one sector have no order, so nobody may ask for them: it is a
//! [`Misuse`], as is a range outside and a payload that changes while the disk has it.
//!
//! The tricky case is a flush with writes beside it: one that completes while the flush is under
//! way is not covered. A disk that covered it would hide a flush sent too early.

use crate::crash::image::{Image, SECTOR_BYTES};
use fastrand::Rng;
use std::collections::BTreeMap;
use std::rc::Rc;
use udm_meta::{Disk, DiskOp, DiskOpKind};
use udm_types::Status;

/// What a discarded sector reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiscardReads {
    /// Zeroes.
    Zeroes,
    /// Bytes that never were.
    Garbage,
    /// What it held.
    Kept,
    /// One of the three, each sector for itself.
    Mixed,
}

/// How operations may fail, for a life that is meant to see errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Of a thousand writes, flushes and discards, how many fail without doing anything.
    pub(crate) write_per_mille: u32,
    /// Of a thousand reads, how many fail.
    pub(crate) read_per_mille: u32,
}

/// A version of a sector that is in the cache and not durable.
#[derive(Clone)]
pub(crate) struct Version {
    /// Number of the write among completed ones.
    pub(crate) nr: u64,
    data: Rc<[u8]>,
    at_bytes: usize,
}

impl Version {
    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.data[self.at_bytes..self.at_bytes + SECTOR_BYTES]
    }
}

/// An operation the disk has and has not ended.
pub(crate) struct UnderWay {
    op: DiskOp,
    /// Writes: what was to be written, as it was when the disk got it.
    data: Rc<[u8]>,
    /// Flushes: the last write that is covered.
    covers: u64,
}

/// What was done to the disk that no disk promises to survive.
pub(crate) type Misuse = String;

/// The kind of an ended or begun operation, for the count of crash points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Nothing a crash could tell from before.
    Read,
    /// Medium or cache may have changed.
    Changed,
}

/// The disk.
pub(crate) struct CrashDisk {
    pub(crate) len_sectors: usize,
    pub(crate) durable: Image,
    pub(crate) cached: Image,
    pub(crate) pending: BTreeMap<usize, Vec<Version>>,
    pub(crate) under_way: Vec<UnderWay>,
    pub(crate) faults: Faults,
    pub(crate) discard_reads: DiscardReads,
    /// Operations that were made to fail.
    pub(crate) failures: u64,
    /// How many writes and discards have completed; numbers them.
    pub(crate) completed: u64,
}

impl UnderWay {
    /// The sectors and versions of a write; nothing for anything else.
    pub(crate) fn versions(&self, nr: u64) -> impl Iterator<Item = (usize, Version)> + '_ {
        let first = self.op.offset_bytes as usize / SECTOR_BYTES;
        (0..self.data.len() / SECTOR_BYTES).map(move |index| {
            let at_bytes = index * SECTOR_BYTES;
            (first + index, Version { nr, data: Rc::clone(&self.data), at_bytes })
        })
    }

    /// The disk likes to take long over it.
    pub(crate) fn is_discard(&self) -> bool {
        match self.op.kind {
            DiskOpKind::Discard => true,
            DiskOpKind::Read | DiskOpKind::Write { .. } | DiskOpKind::Flush => false,
        }
    }

    fn overlaps(&self, op: &DiskOp) -> bool {
        let end = |op: &DiskOp| op.offset_bytes + op.len_bytes;
        self.op.offset_bytes < end(op) && op.offset_bytes < end(&self.op)
    }
}

impl CrashDisk {
    /// A disk full of zeroes, all durable.
    pub(crate) fn new(len_bytes: u64, discard_reads: DiscardReads) -> CrashDisk {
        let len_sectors = len_bytes as usize / SECTOR_BYTES;
        CrashDisk {
            len_sectors,
            durable: Image::zeroed(len_sectors),
            cached: Image::zeroed(len_sectors),
            pending: BTreeMap::new(),
            under_way: Vec::new(),
            faults: Faults::default(),
            discard_reads,
            failures: 0,
            completed: 0,
        }
    }

    /// The same disk with nothing under way and nobody waiting: what the next to open it finds
    /// if only a program died.
    pub(crate) fn fork(&self) -> CrashDisk {
        CrashDisk {
            len_sectors: self.len_sectors,
            durable: self.durable.clone(),
            cached: self.cached.clone(),
            pending: self.pending.clone(),
            under_way: Vec::new(),
            faults: self.faults,
            discard_reads: self.discard_reads,
            failures: self.failures,
            completed: self.completed,
        }
    }

    /// The disk after power came back: the image is all there is.
    pub(crate) fn restarted(&self, image: Image) -> CrashDisk {
        CrashDisk {
            len_sectors: self.len_sectors,
            durable: image.clone(),
            cached: image,
            pending: BTreeMap::new(),
            under_way: Vec::new(),
            faults: self.faults,
            discard_reads: self.discard_reads,
            failures: self.failures,
            completed: self.completed,
        }
    }

    /// The disk is made longer; the new part holds zeroes, or whatever it was used for before.
    pub(crate) fn grow(&mut self, len_bytes: u64, rng: &mut Rng) {
        let first = self.len_sectors;
        self.len_sectors += len_bytes as usize / SECTOR_BYTES;
        self.durable.extend(self.len_sectors);
        self.cached.extend(self.len_sectors);
        let is_used = rng.bool();
        let mut old = [0; SECTOR_BYTES];
        for sector in (first..self.len_sectors).filter(|_| is_used) {
            rng.fill(&mut old);
            self.durable.put(sector, &old);
            self.cached.put(sector, &old);
        }
    }

    /// Takes the next operation from the port. `None`: it asks for nothing.
    pub(crate) fn take(&mut self, port: &Disk) -> Result<Option<Event>, Misuse> {
        let Some(op) = port.next_op() else { return Ok(None) };
        let end = op.offset_bytes.checked_add(op.len_bytes);
        let is_whole = op.offset_bytes.is_multiple_of(512) && op.len_bytes.is_multiple_of(512);
        if !is_whole || end.is_none_or(|end| end > (self.len_sectors * SECTOR_BYTES) as u64) {
            return Err(format!("an operation outside or across sectors: {}", describe(&op)));
        }
        let is_change = |kind| match kind {
            DiskOpKind::Read | DiskOpKind::Flush => false,
            DiskOpKind::Write { .. } | DiskOpKind::Discard => true,
        };
        if is_change(op.kind) {
            let other = self.under_way.iter().find(|o| is_change(o.op.kind) && o.overlaps(&op));
            if let Some(other) = other {
                let (new, old) = (describe(&op), describe(&other.op));
                return Err(format!("two changes of one sector under way: {old}, then {new}"));
            }
        }
        let (data, event) = match op.kind {
            DiskOpKind::Read => (Rc::from([]), Event::Read),
            DiskOpKind::Write { .. } => {
                let mut data = vec![0; op.len_bytes as usize];
                op.payload.copy_out(0, &mut data);
                (data.into(), Event::Changed)
            }
            DiskOpKind::Flush | DiskOpKind::Discard => (Rc::from([]), Event::Changed),
        };
        self.under_way.push(UnderWay { op, data, covers: self.completed });
        Ok(Some(event))
    }

    /// Ends the operation under way at this place of the list, and tells the port.
    pub(crate) fn complete(
        &mut self,
        port: &Disk,
        at: usize,
        rng: &mut Rng,
    ) -> Result<Event, Misuse> {
        let ended = self.under_way.swap_remove(at);
        let mut event = Event::Changed;
        let limit = match ended.op.kind {
            DiskOpKind::Read => self.faults.read_per_mille,
            DiskOpKind::Write { .. } | DiskOpKind::Flush | DiskOpKind::Discard => {
                self.faults.write_per_mille
            }
        };
        if limit > 0 && rng.u32(0..1000) < limit {
            self.failures += 1;
            port.complete(ended.op.token, Status::IoErr, ended.op.payload);
            return Ok(event);
        }
        match ended.op.kind {
            DiskOpKind::Read => {
                event = Event::Read;
                self.fill(&ended.op, rng);
            }
            DiskOpKind::Write { fua } => self.finish_write(&ended, fua)?,
            DiskOpKind::Flush => self.settle(ended.covers),
            DiskOpKind::Discard => self.finish_discard(&ended.op, rng),
        }
        port.complete(ended.op.token, Status::Ok, ended.op.payload);
        Ok(event)
    }

    /// A sector that a write under way covers reads as old or new.
    fn fill(&self, op: &DiskOp, rng: &mut Rng) {
        let first = op.offset_bytes as usize / SECTOR_BYTES;
        let count = op.len_bytes as usize / SECTOR_BYTES;
        for index in 0..count {
            let bytes = self.cached.sector(first + index);
            op.payload.copy_in((index * SECTOR_BYTES) as u64, bytes);
        }
        for other in self.under_way.iter().filter(|other| other.overlaps(op)) {
            for (sector, version) in other.versions(0) {
                if (first..first + count).contains(&sector) && rng.bool() {
                    let at = (sector - first) * SECTOR_BYTES;
                    op.payload.copy_in(at as u64, version.bytes());
                }
            }
        }
    }

    fn finish_write(&mut self, ended: &UnderWay, fua: bool) -> Result<(), Misuse> {
        let mut now = vec![0; ended.data.len()];
        ended.op.payload.copy_out(0, &mut now);
        if now[..] != ended.data[..] {
            let what = describe(&ended.op);
            return Err(format!("the payload changed while the disk had it: {what}"));
        }
        self.completed += 1;
        for (sector, version) in ended.versions(self.completed) {
            self.cached.put(sector, version.bytes());
            if fua {
                self.durable.put(sector, version.bytes());
                self.pending.remove(&sector);
            } else {
                self.pending.entry(sector).or_default().push(version);
            }
        }
        Ok(())
    }

    fn finish_discard(&mut self, op: &DiskOp, rng: &mut Rng) {
        self.completed += 1;
        let first = op.offset_bytes as usize / SECTOR_BYTES;
        let zeroes: Rc<[u8]> = Rc::from([0; SECTOR_BYTES]);
        let garbage: Rc<[u8]> = (0..2 * SECTOR_BYTES).map(|_| rng.u8(..)).collect();
        for sector in first..first + op.len_bytes as usize / SECTOR_BYTES {
            let reads = match self.discard_reads {
                DiscardReads::Mixed => {
                    [DiscardReads::Zeroes, DiscardReads::Garbage, DiscardReads::Kept]
                        [rng.usize(0..3)]
                }
                fixed @ (DiscardReads::Zeroes | DiscardReads::Garbage | DiscardReads::Kept) => {
                    fixed
                }
            };
            let (data, at_bytes) = match reads {
                DiscardReads::Zeroes => (&zeroes, 0),
                DiscardReads::Garbage => (&garbage, rng.usize(0..=SECTOR_BYTES)),
                DiscardReads::Kept | DiscardReads::Mixed => continue,
            };
            let version = Version { nr: self.completed, data: Rc::clone(data), at_bytes };
            self.cached.put(sector, version.bytes());
            self.pending.entry(sector).or_default().push(version);
        }
    }

    /// A flush that was taken when `covers` was the newest write has ended.
    fn settle(&mut self, covers: u64) {
        let durable = &mut self.durable;
        self.pending.retain(|&sector, versions| {
            let covered = versions.iter().take_while(|version| version.nr <= covers).count();
            if covered > 0 {
                durable.put(sector, versions[covered - 1].bytes());
                versions.drain(..covered);
            }
            !versions.is_empty()
        });
    }
}

/// An operation for people.
pub(crate) fn describe(op: &DiskOp) -> String {
    let name = match op.kind {
        DiskOpKind::Read => "read",
        DiskOpKind::Write { fua: false } => "write",
        DiskOpKind::Write { fua: true } => "FUA write",
        DiskOpKind::Flush => return "flush".to_owned(),
        DiskOpKind::Discard => "discard",
    };
    format!("{name} of {} bytes at {}", op.len_bytes, op.offset_bytes)
}

/// The operation under way for people.
pub(crate) fn describe_under_way(op: &UnderWay) -> String {
    describe(&op.op)
}
