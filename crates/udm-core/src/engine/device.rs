//! A mapped device as one lane sees it: its gate, the table it serves from, its counters.
//!
//! The gate decides whether a bio may enter, counts what is in flight, and holds what has to wait.
//! All held I/O sits in one queue, ordered by the sequence number a bio got when it first reached the
//! gate; a bio that a target pushed back returns to its old place, ahead of everything newer. Because
//! the gate is plain data of one lane, "suspend saw nothing in flight while a bio slipped in"
//! cannot happen: closing it, counting and draining are steps of one thread.
//!
//! Picture of a gate:
//! ```text
//!   open       ----suspend or barrier---->  closed: bios go to `held`
//!   closed     ----in_flight == 0-------->  drained: told to whoever closed it
//!   closed     ----resume, barrier over-->  held bios enter in order, then open
//! ```
//! The tricky case is a barrier (`Op` with `ORDERED`) among held bios: entering them stops in front of
//! it, and the gate stays closed until the barrier has been through.

use crate::bio::BioBox;
use crate::engine::doorway::NO_TARGET;
use crate::lifecycle::Gauges;
use crate::table::Table;
use crate::target::Target;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use udm_types::{BioFlags, DeviceId, LaneId, Nanos, Op, OpSet, QueueLimits, SECTOR_BYTES, Sector};

/// The devices of a lane, by number.
#[derive(Default)]
pub(crate) struct Devices {
    slots: Vec<Option<Box<DeviceLane>>>,
}

/// A device as actors see it.
#[derive(Clone, Debug)]
pub struct DeviceView {
    /// Its size now.
    pub len_sectors: Sector,
    /// What it accepts.
    pub limits: QueueLimits,
    /// Bios of this lane in its table.
    pub in_flight: u64,
}

/// One mapped device on one lane.
pub(crate) struct DeviceLane {
    pub(crate) id: DeviceId,
    pub(crate) gate: Gate,
    pub(crate) table: Option<TableLane>,
    pub(crate) staged: Vec<TableLane>,
    pub(crate) stats: Stats,
    /// Size of the live table; 0 without one.
    pub(crate) len_sectors: Sector,
    /// Operations the limits allow.
    pub(crate) ops: OpSet,
    /// Logical block minus one, in sectors.
    block_mask: Sector,
    max_discard_sectors: Sector,
    max_write_zeroes_sectors: Sector,
    max_sectors: Sector,
}

/// The gate of one device on one lane.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// Bios enter. False while suspended, closed by a barrier, or with bios held.
    pub(crate) open: bool,
    /// A noflush suspend is under way or has been made.
    pub(crate) noflush: bool,
    /// Bios (pieces, after splitting) inside the table.
    pub(crate) in_flight: u64,
    /// What waits, ordered by sequence number.
    pub(crate) held: VecDeque<Held>,
    pub(crate) suspend: Option<SuspendMark>,
    pub(crate) barrier: BarrierMark,
    next_seq: u64,
}

/// A bio at the gate.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) seq: u64,
    pub(crate) bio: BioBox,
}

/// The suspend that closed a gate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SuspendMark {
    /// The round to answer when the gate has drained; `None` once answered.
    pub(crate) answer_round: Option<u64>,
}

/// What barriers mean to a gate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BarrierMark {
    /// A barrier of this device (of any lane) has the gate closed; its ticket.
    pub(crate) closed_by: Option<u64>,
    /// The home lane waits to hear that the gate has drained.
    pub(crate) answer_due: bool,
    /// This lane's own barrier has been asked for and not yet been granted.
    pub(crate) asked: bool,
}

/// The table a lane serves from.
pub(crate) struct TableLane {
    pub(crate) generation: u64,
    pub(crate) table: Arc<Table>,
    pub(crate) targets: Vec<TargetLane>,
}

/// One target on one lane, with what dispatch needs at hand.
pub(crate) struct TargetLane {
    pub(crate) begin_sector: Sector,
    pub(crate) end_sector: Sector,
    pub(crate) max_io_len_sectors: Sector,
    pub(crate) ops: OpSet,
    pub(crate) wants_end_io: bool,
    pub(crate) instance: Box<dyn Target>,
}

/// Counters of a device on one lane; summed when asked for.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    ios: [u64; Op::COUNT],
    sectors: [u64; Op::COUNT],
    errors: u64,
    busy: Nanos,
    pub(crate) contract_breaches: u64,
}

impl Devices {
    #[inline]
    pub(crate) fn get_mut(&mut self, id: DeviceId) -> Option<&mut DeviceLane> {
        self.slots.get_mut(id.index())?.as_deref_mut()
    }

    pub(crate) fn get(&self, id: DeviceId) -> Option<&DeviceLane> {
        self.slots.get(id.index())?.as_deref()
    }

    pub(crate) fn create(&mut self, id: DeviceId) {
        if self.slots.len() <= id.index() {
            self.slots.resize_with(id.index() + 1, || None);
        }
        self.slots[id.index()] = Some(Box::new(DeviceLane::new(id)));
    }

    pub(crate) fn destroy(&mut self, id: DeviceId) -> Option<Box<DeviceLane>> {
        self.slots.get_mut(id.index())?.take()
    }

    pub(crate) fn view(&self, id: DeviceId) -> Option<DeviceView> {
        let device = self.get(id)?;
        let limits = device.table.as_ref()?.table.limits.clone();
        Some(DeviceView {
            len_sectors: device.len_sectors,
            limits,
            in_flight: device.gate.in_flight,
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &DeviceLane> {
        self.slots.iter().flatten().map(|device| &**device)
    }
}

impl TableLane {
    pub(crate) fn new(generation: u64, table: Arc<Table>, lane: LaneId) -> TableLane {
        let targets = table
            .targets
            .iter()
            .map(|target| TargetLane {
                begin_sector: target.begin_sector,
                end_sector: target.end_sector(),
                max_io_len_sectors: target.traits.max_io_len_sectors,
                ops: target.ops,
                wants_end_io: target.traits.wants_end_io,
                instance: target.config.instantiate(lane),
            })
            .collect();
        TableLane { generation, table, targets }
    }

    /// The target that holds a sector inside the table.
    #[inline]
    pub(crate) fn target_at(&self, sector: Sector) -> usize {
        match self.targets.len() {
            1 => 0,
            _ => self.targets.partition_point(|target| target.end_sector <= sector),
        }
    }
}

impl TargetLane {
    /// How much of a read or write starting at `sector` this target takes in one piece.
    #[inline]
    pub(crate) fn room_at(&self, sector: Sector) -> Sector {
        let to_end = self.end_sector - sector;
        match self.max_io_len_sectors {
            0 => to_end,
            max => to_end.min(max - (sector - self.begin_sector) % max),
        }
    }
}

impl DeviceLane {
    fn new(id: DeviceId) -> DeviceLane {
        let mut device = DeviceLane {
            id,
            gate: Gate { open: true, ..Gate::default() },
            table: None,
            staged: Vec::new(),
            stats: Stats::default(),
            len_sectors: 0,
            ops: OpSet::empty(),
            block_mask: 0,
            max_discard_sectors: 0,
            max_write_zeroes_sectors: 0,
            max_sectors: 0,
        };
        device.refresh();
        device
    }

    /// Puts a table in place; the old one comes back. Nothing may be in flight.
    pub(crate) fn bind(&mut self, table: TableLane) -> Option<TableLane> {
        debug_assert_eq!(self.gate.in_flight, 0, "a table is swapped on a drained gate");
        let old = self.table.replace(table);
        self.refresh();
        old
    }

    /// Takes the numbers dispatch needs out of the live table.
    fn refresh(&mut self) {
        let Some(live) = &self.table else { return };
        let limits = &live.table.limits;
        self.len_sectors = live.table.len_sectors;
        self.ops = limits.ops();
        self.block_mask = limits.logical_block_sectors() - 1;
        self.max_discard_sectors = limits.max_discard_sectors;
        self.max_write_zeroes_sectors = limits.max_write_zeroes_sectors;
        self.max_sectors = limits.max_sectors;
    }

    /// The target a bio can go to as it is; `None` if it needs the long way.
    #[inline]
    pub(crate) fn fast_target(&self, bio: &BioBox) -> Option<usize> {
        let live = self.table.as_ref()?;
        let plain = self.gate.open
            && bio.op.has_data()
            && self.ops.has(bio.op)
            && !bio.flags.intersects(BioFlags::PREFLUSH.union(BioFlags::ORDERED))
            && bio.len_sectors != 0
            && (bio.sector | bio.len_sectors) & self.block_mask == 0
            && bio.payload.len_bytes() == bio.len_sectors * SECTOR_BYTES;
        if !plain || bio.end_sector() > self.len_sectors {
            return None;
        }
        let index = live.target_at(bio.sector);
        (bio.len_sectors <= live.targets[index].room_at(bio.sector)).then_some(index)
    }

    /// True if a range does not begin and end on logical blocks.
    pub(crate) fn is_misaligned(&self, bio: &BioBox) -> bool {
        (bio.sector | bio.len_sectors) & self.block_mask != 0
    }

    /// How long a piece of `op` at `sector` may be: to the target's border, `max_io_len`, and the
    /// limits of the queue (which cap discards always and data only where `max_io_len` is set).
    pub(crate) fn piece_sectors(&self, op: Op, sector: Sector) -> Sector {
        let Some(live) = &self.table else { return Sector::MAX };
        let target = &live.targets[live.target_at(sector)];
        let to_border = target.end_sector - sector;
        match op {
            Op::Read | Op::Write => match target.max_io_len_sectors {
                0 => to_border,
                _ => target.room_at(sector).min(self.max_sectors.max(1)),
            },
            Op::Discard => to_border.min(self.max_discard_sectors.max(1)),
            Op::WriteZeroes => to_border.min(self.max_write_zeroes_sectors.max(1)),
            Op::Flush => Sector::MAX,
        }
    }

    /// Whether `end_io` of the target of a frame must be called.
    #[inline]
    pub(crate) fn wants_end_io(&self, target: u32) -> bool {
        target != NO_TARGET
            && self.table.as_ref().is_some_and(|live| live.targets[target as usize].wants_end_io)
    }

    /// Adds this lane's numbers.
    pub(crate) fn add_gauges(&self, gauges: &mut Gauges) {
        gauges.add(&Gauges {
            device: None,
            in_flight: self.gate.in_flight,
            held: self.gate.held.len() as u64,
            ios: self.stats.ios,
            sectors: self.stats.sectors,
            errors: self.stats.errors,
            busy: self.stats.busy,
            contract_breaches: self.stats.contract_breaches,
        });
    }
}

impl Gate {
    /// The next place in the order of submission.
    #[inline]
    pub(crate) fn take_seq(&mut self) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        seq
    }

    /// Runs on with `seq` as the next number, so that a replayed bio keeps its place. Returns what
    /// to give back to [`Gate::restore_seq`].
    pub(crate) fn rewind_seq(&mut self, seq: u64) -> u64 {
        core::mem::replace(&mut self.next_seq, seq)
    }

    /// Ends a replay.
    pub(crate) fn restore_seq(&mut self, next_seq: u64) {
        self.next_seq = self.next_seq.max(next_seq);
    }

    /// Holds a bio in its place; behind those of the same number (pieces of one bio, in order).
    pub(crate) fn hold(&mut self, seq: u64, bio: BioBox) {
        self.open = false;
        let at = match self.held.back() {
            Some(last) if last.seq > seq => self.held.partition_point(|held| held.seq <= seq),
            _ => self.held.len(),
        };
        self.held.insert(at, Held { seq, bio });
    }

    /// True if neither a suspend nor a barrier has the gate closed.
    pub(crate) fn may_flow(&self) -> bool {
        self.suspend.is_none() && self.barrier.closed_by.is_none() && !self.barrier.asked
    }
}

impl Stats {
    /// Counts a bio that leaves the device.
    #[inline]
    pub(crate) fn count(&mut self, bio: &BioBox, busy: Nanos) {
        let op = bio.op.index();
        self.ios[op] += 1;
        self.sectors[op] += bio.len_sectors;
        self.errors += u64::from(!bio.status.is_ok());
        self.busy.0 += busy.0;
    }
}
