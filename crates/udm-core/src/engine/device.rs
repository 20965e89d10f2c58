//! A mapped device as one lane sees it: its gate, the table it serves from, its counters.
//!
//! Dispatch asks here what a bio needs, commands change it, the coordinator sums its counters. The
//! numbers dispatch compares with (`fast_target`) are copies of what the live table's limits say,
//! taken when a table is bound, so that the common case touches one device and one target.
//!
//! The tricky case is a device without a table: it has no targets and no size, so everything takes
//! the long way and is refused there.

use super::gate::Gate;
use super::regions::Regions;
use super::request::RequestQueue;
use crate::bio::{BioBox, Dest};
use crate::lifecycle::Gauges;
use crate::table::{Table, TableTarget};
use crate::target::{MapMode, Target};
use crate::target_cx::TargetPlace;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use udm_types::{DeviceId, LaneId, Nanos, Op, OpSet, QueueLimits, Sector};

/// The devices of a lane, by number.
#[derive(Default)]
pub(crate) struct Devices {
    /// Not boxed: one pointer less to follow at every layer.
    slots: Vec<Option<DeviceLane>>,
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
    /// Where bios become requests, if the device is request-based: fixed with its first table.
    pub(crate) requests: Option<Box<RequestQueue>>,
    /// The live table; without targets if there is none.
    pub(crate) table: TableLane,
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

/// The table a lane serves from.
pub(crate) struct TableLane {
    pub(crate) generation: u64,
    /// Bios become requests before they are mapped.
    request_based: bool,
    pub(crate) table: Option<Arc<Table>>,
    pub(crate) targets: Vec<TargetLane>,
}

/// One target on one lane, with what dispatch needs at hand.
pub(crate) struct TargetLane {
    pub(crate) instance: Box<dyn Target>,
    pub(crate) place: TargetPlace,
    pub(crate) max_io_len_sectors: Sector,
    pub(crate) ops: OpSet,
    pub(crate) wants_end_io: bool,
    /// The destination and what to add (modulo 2^64) for reads and writes, if that is all.
    pub(crate) shift: Option<(Dest, u64)>,
}

/// Counters of a device on one lane; summed when asked for.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    by_op: [OpStats; Op::COUNT],
    errors: u64,
    busy: Nanos,
    pub(crate) contract_breaches: u64,
    /// Regions that are counted; nearly always none.
    pub(crate) regions: Option<Box<Regions>>,
}

/// Counters of one operation, side by side for the cache.
#[derive(Clone, Copy, Debug, Default)]
struct OpStats {
    ios: u64,
    sectors: u64,
}

impl Devices {
    #[inline]
    pub(crate) fn get_mut(&mut self, id: DeviceId) -> Option<&mut DeviceLane> {
        self.slots.get_mut(id.index())?.as_mut()
    }

    pub(crate) fn get(&self, id: DeviceId) -> Option<&DeviceLane> {
        self.slots.get(id.index())?.as_ref()
    }

    pub(crate) fn create(&mut self, id: DeviceId) {
        if self.slots.len() <= id.index() {
            self.slots.resize_with(id.index() + 1, || None);
        }
        self.slots[id.index()] = Some(DeviceLane::new(id));
    }

    pub(crate) fn destroy(&mut self, id: DeviceId) -> Option<DeviceLane> {
        self.slots.get_mut(id.index())?.take()
    }

    pub(crate) fn view(&self, id: DeviceId) -> Option<DeviceView> {
        let device = self.get(id)?;
        let limits = device.table.table.as_ref()?.limits.clone();
        Some(DeviceView {
            len_sectors: device.len_sectors,
            limits,
            in_flight: device.gate.in_flight,
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &DeviceLane> {
        self.slots.iter().flatten()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut DeviceLane> {
        self.slots.iter_mut().flatten()
    }
}

impl TableLane {
    pub(crate) fn new(
        device: DeviceId,
        table_generation: u64,
        table: Arc<Table>,
        mode: MapMode,
        lane: LaneId,
    ) -> TableLane {
        let instance = |(index, target): (usize, &TableTarget)| TargetLane {
            instance: target.config.instantiate(lane),
            place: TargetPlace {
                begin_sector: target.begin_sector,
                end_sector: target.end_sector(),
                device,
                target: index as u32,
                table_generation,
            },
            max_io_len_sectors: target.traits.max_io_len_sectors,
            ops: target.ops,
            wants_end_io: target.traits.wants_end_io,
            shift: target
                .traits
                .shift
                .filter(|_| !target.traits.wants_end_io)
                .map(|to| (to.dest, to.start_sector.wrapping_sub(target.begin_sector))),
        };
        let targets = table.targets.iter().enumerate().map(instance).collect();
        let request_based = mode == MapMode::Request;
        TableLane { generation: table_generation, request_based, table: Some(table), targets }
    }

    fn none() -> TableLane {
        TableLane { generation: 0, request_based: false, table: None, targets: Vec::new() }
    }

    /// The target that holds a sector inside the table.
    #[inline]
    pub(crate) fn target_at(&self, sector: Sector) -> usize {
        match self.targets.len() {
            1 => 0,
            _ => self.targets.partition_point(|target| target.place.end_sector <= sector),
        }
    }
}

impl TargetLane {
    /// How much of a read or write starting at `sector` this target takes in one piece.
    #[inline(always)]
    pub(crate) fn room_at(&self, sector: Sector) -> Sector {
        let to_end = self.place.end_sector - sector;
        match self.max_io_len_sectors {
            0 => to_end,
            max => to_end.min(max - (sector - self.place.begin_sector) % max),
        }
    }
}

impl DeviceLane {
    fn new(id: DeviceId) -> DeviceLane {
        let mut device = DeviceLane {
            id,
            gate: Gate::default(),
            requests: None,
            table: TableLane::none(),
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

    /// The live table, as this lane has it and as everybody does.
    pub(crate) fn live(&self) -> Option<(&TableLane, &Arc<Table>)> {
        Some((&self.table, self.table.table.as_ref()?))
    }

    /// Puts a table in place; the old one comes back. Nothing may be in flight.
    pub(crate) fn bind(&mut self, table: TableLane) -> TableLane {
        debug_assert!(self.gate.is_drained(), "a table is swapped on a drained gate");
        self.gate.own.generation = table.generation;
        if table.request_based && self.requests.is_none() {
            self.requests = Some(Box::default());
        }
        let old = core::mem::replace(&mut self.table, table);
        self.refresh();
        old
    }

    /// Takes the numbers dispatch needs out of the live table.
    pub(super) fn refresh(&mut self) {
        let Some(table) = &self.table.table else { return };
        let limits = &table.limits;
        self.len_sectors = table.len_sectors;
        self.ops = limits.ops();
        // Bios of a request-based device never go the short way: they are queued. Nor do those of a
        // device with statistics: they are counted when they start.
        let long_way = self.requests.is_some() || self.stats.regions.is_some();
        let short_way = if long_way { OpSet::empty() } else { self.ops };
        self.gate.allow(short_way);
        if let Some(queue) = &mut self.requests {
            queue.allow(limits);
        }
        self.block_mask = limits.logical_block_sectors() - 1;
        self.max_discard_sectors = limits.max_discard_sectors;
        self.max_write_zeroes_sectors = limits.max_write_zeroes_sectors;
        self.max_sectors = limits.max_sectors;
    }

    /// The target a bio can go to as it is; `None` if it needs the long way.
    #[inline(always)]
    pub(crate) fn fast_target(&self, bio: &BioBox) -> Option<usize> {
        let plain = self.gate.entry.contains(bio.class())
            && (bio.sector | bio.len_sectors) & self.block_mask == 0
            && bio.sector < self.len_sectors;
        if !plain {
            return None;
        }
        let index = self.table.target_at(bio.sector);
        // Length 0 wraps and is refused, too; so is what crosses the target's (or device's) end.
        let room = self.table.targets[index].room_at(bio.sector);
        (bio.len_sectors.wrapping_sub(1) < room).then_some(index)
    }

    /// True for a read or write that can be queued as it is, on a request-based device.
    #[inline]
    pub(crate) fn takes_request(&self, bio: &BioBox) -> bool {
        self.requests.as_ref().is_some_and(|queue| {
            queue.takes(bio)
                && self.ops.has(bio.op)
                && !self.is_misaligned(bio)
                && bio.end_sector() <= self.len_sectors
        })
    }

    /// True if a range does not begin and end on logical blocks.
    pub(crate) fn is_misaligned(&self, bio: &BioBox) -> bool {
        (bio.sector | bio.len_sectors) & self.block_mask != 0
    }

    /// How long a piece of `op` at `sector` may be: to the target's border, `max_io_len`, and the
    /// limits of the queue (which cap discards always and data only where `max_io_len` is set).
    pub(crate) fn piece_sectors(&self, op: Op, sector: Sector) -> Sector {
        let Some(target) = self.table.targets.get(self.table.target_at(sector)) else {
            return Sector::MAX;
        };
        let to_border = target.place.end_sector - sector;
        if let Some(queue) = &self.requests
            && op.has_data()
        {
            return to_border.min(queue.max_sectors());
        }
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

    /// Adds this lane's numbers.
    pub(crate) fn add_gauges(&self, gauges: &mut Gauges) {
        gauges.add(&Gauges {
            device: None,
            // For whoever asks what a suspend waits for; background work is not the users' I/O.
            in_flight: match self.gate.suspend {
                Some(_) => self.gate.in_flight + self.gate.own.count(),
                None => self.gate.in_flight,
            },
            held: self.gate.held.len() as u64,
            ios: self.stats.by_op.map(|op| op.ios),
            sectors: self.stats.by_op.map(|op| op.sectors),
            errors: self.stats.errors,
            busy: self.stats.busy,
            contract_breaches: self.stats.contract_breaches + self.gate.own.breaches,
            requests: self.requests.as_ref().map_or_else(Default::default, |queue| queue.gauges()),
        });
    }
}

impl Stats {
    /// Counts a bio that leaves the device.
    #[inline]
    pub(crate) fn count(&mut self, bio: &BioBox, busy: Nanos) {
        let op = &mut self.by_op[bio.op.index()];
        op.ios += 1;
        op.sectors += bio.len_sectors;
        if !bio.status.is_ok() {
            self.errors += 1;
        }
        self.busy.0 += busy.0;
    }
}
