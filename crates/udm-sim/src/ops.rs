//! Disk operations under way: when they take effect, when they end, and what goes wrong with them.
//!
//! An operation has two moments, drawn when it is submitted: it *takes effect* (a read samples the
//! cache, a write enters it) and it *ends* (the lane may see the completion). Between the two,
//! other operations overtake it. A fault is drawn at submission too and told to the oracle, so that
//! an error that reaches a submitter can be held against the fault that caused it.
//!
//! | fault | what happens | what may reach the submitter |
//! |---|---|---|
//! | EIO, ENOSPC | a part (or nothing) takes effect | that error |
//! | short | a part takes effect, fewer bytes are reported | nothing: it has to be continued |
//! | EINTR, EAGAIN | nothing takes effect | nothing: it has to be tried again |
//! | slow | later | nothing |
//! | hang | nothing before the disk is healed, then as usual | nothing, or a time-out by an abort |
//!
//! The tricky case is the hanging write that was abandoned: it keeps its memory and takes effect
//! when the disk is healed, which is what the fence above has to survive.

use crate::lane_io::Ended;
use crate::oracle::FaultKind;
use crate::paths::Health;
use crate::state::{Canary, SimState};
use crate::value::SECTOR_LEN;
use std::collections::{BTreeMap, BTreeSet};
use udm_lane::{Completion, Errno, OpResult, OpToken, Payload};
use udm_types::Nanos;

pub(crate) const EIO: Errno = Errno(5);
pub(crate) const EINTR: Errno = Errno(4);
pub(crate) const EAGAIN: Errno = Errno(11);
pub(crate) const EBADF: Errno = Errno(9);
pub(crate) const EINVAL: Errno = Errno(22);
pub(crate) const ENOSPC: Errno = Errno(28);
pub(crate) const ENOLINK: Errno = Errno(67);
pub(crate) const EOPNOTSUPP: Errno = Errno(95);
pub(crate) const ECANCELED: Errno = Errno(125);

/// What an operation does to its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskAction {
    /// Fills the payload.
    Read,
    /// Writes the payload; durable when it ends if so asked.
    Write {
        /// Durable on completion.
        durable: bool,
    },
    /// Makes durable what the cache holds.
    Sync,
    /// Writes zeroes over the range.
    Zero,
}

/// An operation under way.
#[derive(Debug)]
pub(crate) struct DiskOp {
    /// The lane that waits for it.
    pub lane: usize,
    /// The lane's word for it.
    pub token: OpToken,
    /// Which disk.
    pub disk: usize,
    /// The path it comes by, if the disk is a LUN.
    pub path: Option<usize>,
    /// What to do.
    pub action: DiskAction,
    /// Where.
    pub offset_bytes: u64,
    /// How much.
    pub len_bytes: u64,
    /// Its memory.
    pub payload: Payload,
    fate: Fate,
    result: Option<OpResult>,
    sync_point: crate::disk::SyncPoint,
    hung: bool,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Full,
    /// So many bytes, reported as done.
    Part(u64),
    /// So many bytes take effect, then this error.
    Fail(u64, Errno),
    /// Nothing takes effect, success is reported (canary).
    Lie,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    Effect,
    End,
}

/// The operations under way and their agenda.
#[derive(Debug, Default)]
pub(crate) struct Ops {
    under_way: BTreeMap<u64, DiskOp>,
    agenda: BTreeSet<(Nanos, u64, Moment)>,
    next_serial: u64,
    /// An old write kept for the stale-rewrite canary: disk, offset, bytes.
    stale: Option<(usize, u64, Vec<u8>)>,
}

impl Ops {
    /// When the next thing happens on a disk.
    pub(crate) fn next_moment(&self) -> Option<Nanos> {
        self.agenda.first().map(|&(when, ..)| when)
    }

    /// How many operations are under way.
    pub(crate) fn len(&self) -> usize {
        self.under_way.len()
    }

    /// True if none is.
    pub(crate) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// The serial number the next operation will get; all before are older.
    pub(crate) fn next_serial(&self) -> u64 {
        self.next_serial
    }

    /// True if an operation older than `serial` is under way.
    pub(crate) fn any_older_than(&self, serial: u64) -> bool {
        self.under_way.first_key_value().is_some_and(|(&first, _)| first < serial)
    }

    /// True if an operation hangs.
    pub(crate) fn any_hung(&self) -> bool {
        self.under_way.values().any(|op| op.hung)
    }

    /// The operations that `which` picks.
    pub(crate) fn serials(&self, which: impl Fn(&DiskOp) -> bool) -> Vec<u64> {
        self.under_way.iter().filter(|(_, op)| which(op)).map(|(&serial, _)| serial).collect()
    }
}

impl SimState {
    /// Starts an operation whose range lies on the disk.
    pub(crate) fn start_op(&mut self, mut op: DiskOp) {
        let serial = self.ops.next_serial;
        self.ops.next_serial += 1;
        let rates = self.fault_rates();
        op.fate = self.draw_fate(&op);
        let health = op.path.map_or(Health::Alive, |path| self.paths[path].health);
        if matches!(health, Health::Dead | Health::Misfit) {
            self.tally.count("operations on a dead path");
            op.fate = Fate::Fail(0, ENOLINK);
        }
        let mut effect = self.now + Nanos(self.rng.u64(20_000..400_000));
        if self.strikes(rates.slow) {
            self.tally.count("fault slow");
            effect = effect + Nanos::from_millis(self.rng.u64(4..400));
        }
        if op.action == DiskAction::Sync {
            op.sync_point = self.disks[op.disk].begin_sync();
        }
        let hang = self.strikes(rates.hang) && health == Health::Alive;
        let lost = self.canary == Some(Canary::LostCompletion) && self.once_in(300);
        self.note("op", &[serial, op.lane as u64, op.disk as u64, op.offset_bytes, op.len_bytes]);
        if hang {
            self.tally.count("fault hang");
            self.note("hang", &[serial]);
            op.hung = true;
        } else if health == Health::Stalled {
            op.hung = true;
        } else if !lost {
            self.ops.agenda.insert((effect, serial, Moment::Effect));
        }
        self.ops.under_way.insert(serial, op);
    }

    /// Lets hanging operations go on: one by chance, or all.
    pub(crate) fn heal_hung(&mut self, all: bool) {
        for serial in self.ops.serials(|op| op.hung) {
            if !all && self.rng.u32(0..2) == 0 {
                continue;
            }
            let wait = Nanos(self.rng.u64(0..500_000));
            let path = self.ops.under_way.get(&serial).and_then(|op| op.path);
            if path.is_none_or(|path| self.paths[path].health != Health::Stalled) {
                self.let_go(serial, wait);
            }
        }
    }

    /// Lets an operation that hangs go on in a while.
    pub(crate) fn let_go(&mut self, serial: u64, wait: Nanos) {
        let Some(op) = self.ops.under_way.get_mut(&serial) else { return };
        if std::mem::take(&mut op.hung) {
            self.ops.agenda.insert((self.now + wait, serial, Moment::Effect));
        }
    }

    /// Makes an operation hang that has not taken effect yet.
    pub(crate) fn hold_back(&mut self, serial: u64) {
        let Some(op) = self.ops.under_way.get_mut(&serial) else { return };
        if op.result.is_none() {
            op.hung = true;
            self.ops.agenda.retain(|&(_, other, _)| other != serial);
        }
    }

    /// An operation ends with an error in a while; what it has not done it does now, or never.
    pub(crate) fn give_up_op(&mut self, serial: u64, do_it: bool, errno: Errno, wait: Nanos) {
        let Some(mut op) = self.ops.under_way.remove(&serial) else { return };
        if op.result.is_none() && do_it && matches!(op.fate, Fate::Full) {
            let len_bytes = op.len_bytes;
            self.apply(&mut op, len_bytes, true);
        }
        op.hung = false;
        op.result = Some(Err(errno));
        self.ops.agenda.retain(|&(_, other, _)| other != serial);
        self.ops.agenda.insert((self.now + wait, serial, Moment::End));
        self.ops.under_way.insert(serial, op);
    }

    /// The lane asks for an operation to end early.
    pub(crate) fn cancel_op(&mut self, lane: usize, token: OpToken) {
        let found = self
            .ops
            .under_way
            .iter()
            .find(|(_, op)| op.lane == lane && op.token == token)
            .map(|(&serial, _)| serial);
        // A disk that hangs ignores the request half of the time, as disks do.
        let Some(serial) = found else { return };
        self.note("cancel", &[serial]);
        let ignored = self.rng.bool();
        let now = self.now;
        let Some(op) = self.ops.under_way.get_mut(&serial) else { return };
        if op.path.is_some() {
            return self.cancel_on_path(serial);
        }
        if ignored || op.result.is_some() {
            return;
        }
        op.hung = false;
        op.result = Some(Err(ECANCELED));
        self.ops.agenda.retain(|&(_, other, _)| other != serial);
        self.ops.agenda.insert((now, serial, Moment::End));
    }

    /// Moves time on to `to`; everything due on the way happens.
    pub(crate) fn advance(&mut self, to: Nanos) {
        while let Some(&(when, serial, moment)) = self.ops.agenda.first() {
            if when > to {
                break;
            }
            self.ops.agenda.pop_first();
            self.now = self.now.max(when);
            match moment {
                Moment::Effect => self.take_effect(serial),
                Moment::End => self.end_op(serial),
            }
        }
        self.now = self.now.max(to);
    }

    fn strikes(&mut self, per_thousand: u32) -> bool {
        // Dice are thrown whatever the rate, so that one rate does not shift all later ones.
        self.rng.u32(0..1000) < per_thousand
    }

    fn draw_fate(&mut self, op: &DiskOp) -> Fate {
        let rates = self.fault_rates();
        let is_write = matches!(op.action, DiskAction::Write { .. } | DiskAction::Zero);
        if let Some(fate) = self.draw_lie(op) {
            return fate;
        }
        if self.strikes(rates.eintr) {
            self.tally.count("fault eintr");
            return Fate::Fail(0, EINTR);
        }
        if self.strikes(rates.eagain) && op.action != DiskAction::Sync {
            self.tally.count("fault eagain");
            return Fate::Fail(0, EAGAIN);
        }
        let part = self.draw_part(op, rates.short_in_sector);
        // A path that owes somebody the report of a full disk may pay it much later: not drawn.
        let owed = op.path.is_some() && op.action == DiskAction::Write { durable: true };
        let full = self.strikes(rates.enospc) && is_write && !owed;
        let struck = (self.strikes(rates.eio), full);
        let errno = match self.strike_vault(op, struck) {
            (true, _) => Some(("fault eio", EIO)),
            (false, true) => Some(("fault enospc", ENOSPC)),
            (false, false) => None,
        };
        if let Some((name, errno)) = errno {
            self.tally.count(name);
            self.tell_fault(op, errno);
            return Fate::Fail(part, errno);
        }
        let can_be_short = matches!(op.action, DiskAction::Read | DiskAction::Write { .. });
        if self.strikes(rates.short) && can_be_short && part > 0 && part < op.len_bytes {
            self.tally.count("fault short");
            return Fate::Part(part);
        }
        Fate::Full
    }

    /// What may strike a compress volume's disk: see `vault.rs`.
    fn strike_vault(&mut self, op: &DiskOp, (eio, enospc): (bool, bool)) -> (bool, bool) {
        let Some(vault) = &mut self.disks[op.disk].vault else { return (eio, enospc) };
        let sector_len = SECTOR_LEN as u64;
        let end = (op.offset_bytes + op.len_bytes).div_ceil(sector_len);
        let sectors = op.offset_bytes / sector_len..end;
        let may_fail = op.action == DiskAction::Read && self.resuming == 0;
        (eio && may_fail && vault.fail_once(sectors), false)
    }

    fn draw_lie(&mut self, op: &DiskOp) -> Option<Fate> {
        match self.canary? {
            Canary::DropWrite if matches!(op.action, DiskAction::Write { .. }) => {
                self.once_in(500).then_some(Fate::Lie)
            }
            Canary::FlushLie if op.action == DiskAction::Sync => Some(Fate::Lie),
            Canary::SpuriousError => self.once_in(300).then_some(Fate::Fail(0, EIO)),
            Canary::DropWrite
            | Canary::FlushLie
            | Canary::StaleRewrite
            | Canary::LostCompletion
            | Canary::WrongSector
            | Canary::HoldForever
            | Canary::FakeBarrier
            | Canary::FakeFlush
            | Canary::LongTable
            | Canary::SwappedOrder => None,
        }
    }

    /// How much of an operation a fault lets through.
    fn draw_part(&mut self, op: &DiskOp, in_sector: bool) -> u64 {
        let whole = if in_sector { 8 } else { SECTOR_LEN as u64 };
        let unit = whole.max(self.disks[op.disk].unit_bytes);
        let units = op.len_bytes / unit;
        let drawn = self.rng.u64(0..=units.max(1));
        drawn.min(units) * unit
    }

    fn tell_fault(&mut self, op: &DiskOp, errno: Errno) {
        if op.path.is_some() && errno != ENOSPC {
            // Another path would not have failed, and there must be a try by another.
            return self.note("path fault", &[op.path.unwrap_or(0) as u64]);
        }
        let kind = match op.action {
            DiskAction::Read => FaultKind::Read,
            DiskAction::Write { durable: false } | DiskAction::Zero => FaultKind::Write,
            DiskAction::Write { durable: true } => FaultKind::DurableWrite,
            DiskAction::Sync => FaultKind::Sync,
        };
        let first = op.offset_bytes / SECTOR_LEN as u64;
        let end = (op.offset_bytes + op.len_bytes).div_ceil(SECTOR_LEN as u64);
        self.note("fault", &[op.disk as u64, first, end]);
        let disk = &self.disks[op.disk];
        self.oracle.fault(kind, (first..end).filter_map(|sector| disk.owner(sector)));
    }

    fn take_effect(&mut self, serial: u64) {
        let Some(mut op) = self.ops.under_way.remove(&serial) else { return };
        let (bytes, result) = match op.fate {
            Fate::Full => (op.len_bytes, Ok(op.len_bytes)),
            Fate::Part(bytes) => (bytes, Ok(bytes)),
            Fate::Fail(bytes, errno) => (bytes, Err(errno)),
            Fate::Lie => (0, Ok(op.len_bytes)),
        };
        self.apply(&mut op, bytes, result.is_ok());
        op.result = Some(result.map(|done| match op.action {
            DiskAction::Read | DiskAction::Write { .. } => done as u32,
            DiskAction::Sync | DiskAction::Zero => 0,
        }));
        let wait = self.rng.u64(0..200_000);
        self.ops.agenda.insert((self.now + Nanos(wait), serial, Moment::End));
        self.ops.under_way.insert(serial, op);
    }

    fn apply(&mut self, op: &mut DiskOp, bytes: u64, good: bool) {
        let disk = &mut self.disks[op.disk];
        let stale_canary = self.canary == Some(Canary::StaleRewrite);
        match op.action {
            DiskAction::Read => {
                op.payload.copy_in(0, disk.read(op.offset_bytes, bytes));
            }
            DiskAction::Write { durable } => {
                let mut data = vec![0; bytes as usize];
                op.payload.copy_out(0, &mut data);
                match durable && good {
                    true => disk.write_durable(op.offset_bytes, &data),
                    false => disk.write(op.offset_bytes, &data),
                }
                if stale_canary {
                    self.rewrite_stale(op.disk, op.offset_bytes, data);
                }
            }
            DiskAction::Zero => disk.write(op.offset_bytes, &vec![0; bytes as usize]),
            DiskAction::Sync => {
                let point = std::mem::take(&mut op.sync_point);
                if good && op.fate != Fate::Lie {
                    disk.end_sync(point);
                }
            }
        }
    }

    fn rewrite_stale(&mut self, disk: usize, offset_bytes: u64, data: Vec<u8>) {
        if self.once_in(100)
            && let Some((disk, offset_bytes, data)) = self.ops.stale.take()
        {
            self.disks[disk].write(offset_bytes, &data);
        }
        if self.ops.stale.is_none() {
            self.ops.stale = Some((disk, offset_bytes, data));
        }
    }

    fn end_op(&mut self, serial: u64) {
        let Some(op) = self.ops.under_way.remove(&serial) else { return };
        let result = op.result.unwrap_or(Err(EIO));
        let code = match result {
            Ok(done) => u64::from(done),
            Err(errno) => u64::MAX - errno.0 as u64,
        };
        self.note("op ends", &[serial, code]);
        let settles = matches!(op.action, DiskAction::Sync | DiskAction::Write { durable: true });
        let told = op.path.is_none() || matches!(op.fate, Fate::Fail(_, ENOSPC));
        let unsettled = told && settles && matches!(op.fate, Fate::Fail(_, EIO | ENOSPC));
        let completion = Completion { token: op.token, result, payload: op.payload, more: false };
        self.lanes[op.lane].ended.push(Ended { completion, unsettled });
    }
}

impl DiskOp {
    /// An operation about to start.
    pub(crate) fn new(lane: usize, token: OpToken, disk: usize, action: DiskAction) -> DiskOp {
        DiskOp {
            lane,
            token,
            disk,
            path: None,
            action,
            offset_bytes: 0,
            len_bytes: 0,
            payload: Payload::empty(),
            fate: Fate::Full,
            result: None,
            sync_point: crate::disk::SyncPoint::default(),
            hung: false,
        }
    }
}
