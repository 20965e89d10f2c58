//! One mapped device as the coordinator knows it: names, tables, users, and what is under way.
//!
//! Only the coordinator holds and changes this. The I/O side of a device is on the lanes
//! (`engine/device.rs`), which learn of changes by command; nothing here counts bios.
//!
//! The tricky case is a request that comes while a suspend, resume or remove is under way: `change`
//! is that one, and what has to wait for it stands in `queue`, in the order it came.

use super::change::Change;
use super::request::{DeviceStatus, Geometry, ReplySink, Request, SuspendStatus, Ticket};
use super::stats::StatsRegion;
use crate::table::Table;
use crate::target::MapMode;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use udm_types::{DeviceId, DmName, DmUuid, Nanos};

/// The major number udm's own devices have in tables and listings. Linux gives its device mapper
/// a dynamic one; 253 and 254 are what people are used to see.
pub const DM_MAJOR: u32 = 254;

/// A table with the number of its load.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) generation: u64,
    pub(super) table: Arc<Table>,
    /// Bio or request; never "either".
    pub(super) mode: MapMode,
}

/// Why a device is suspended, and since when.
#[derive(Clone, Debug)]
pub(super) struct Suspension {
    pub(super) since: Nanos,
    pub(super) noflush: bool,
    pub(super) reason: String,
}

/// Somebody waits for an event.
pub(super) struct EventWait {
    pub(super) ticket: Ticket,
    pub(super) sink: ReplySink,
}

pub(super) struct Device {
    pub(super) id: DeviceId,
    pub(super) name: DmName,
    pub(super) uuid: Option<DmUuid>,
    pub(super) minor: u32,
    /// Bio or request, from the first load that succeeded; it never changes after.
    pub(super) mode: Option<MapMode>,
    pub(super) live: Option<Loaded>,
    pub(super) inactive: Option<Loaded>,
    pub(super) suspended: Option<Suspension>,
    /// Suspended, but targets of the live table may have I/O of their own under way: a resume was
    /// given up or failed. It is drained before the table is replaced or the device removed.
    pub(super) unsettled: bool,
    /// Exports and other openers.
    pub(super) opens: u32,
    /// Devices whose tables name this one, with how many of their tables do.
    pub(super) users: BTreeMap<DeviceId, u32>,
    pub(super) event_nr: u32,
    pub(super) geometry: Option<Geometry>,
    /// What `@stats_create` asked for, by number.
    pub(super) regions: Vec<StatsRegion>,
    pub(super) deferred_remove: bool,
    /// Committed to removal: unlinked, no new work.
    pub(super) deleting: bool,
    /// The suspend, resume or remove under way.
    pub(super) change: Option<Change>,
    /// Changes that wait for it, in order.
    pub(super) queue: VecDeque<(Request, ReplySink)>,
    pub(super) waits: Vec<EventWait>,
}

impl Device {
    pub(super) fn open_count(&self) -> u32 {
        self.opens + self.users.len() as u32
    }

    pub(super) fn status(&self, now: Nanos) -> DeviceStatus {
        let live = self.live.as_ref();
        let inactive = self.inactive.as_ref();
        DeviceStatus {
            id: self.id,
            name: self.name.clone(),
            uuid: self.uuid.clone(),
            major: DM_MAJOR,
            minor: self.minor,
            suspended: self.suspended.is_some(),
            suspend: self.suspend_status(now),
            read_only: live.is_some_and(|live| live.table.read_only),
            live_present: live.is_some(),
            inactive_present: inactive.is_some(),
            deferred_remove: self.deferred_remove,
            open_count: self.open_count(),
            event_nr: self.event_nr,
            target_count: live.map_or(0, |live| live.table.targets.len() as u32),
            inactive_target_count: inactive.map_or(0, |slot| slot.table.targets.len() as u32),
            inactive_read_only: inactive.is_some_and(|slot| slot.table.read_only),
            len_sectors: live.map_or(0, |live| live.table.len_sectors),
            geometry: self.geometry,
            request_based: self.mode == Some(MapMode::Request),
            holds_writes: live.is_some_and(|live| {
                live.table.targets.iter().any(|target| target.traits.flushes_itself)
            }),
        }
    }

    fn suspend_status(&self, now: Nanos) -> Option<SuspendStatus> {
        if let Some(change) = self.change.as_ref().filter(|change| change.is_draining()) {
            return Some(SuspendStatus {
                draining: true,
                noflush: change.options().noflush,
                reason: change.options().reason.clone(),
                age: now.since(change.started()),
                deadline: change.options().deadline,
            });
        }
        self.suspended.as_ref().map(|suspension| SuspendStatus {
            draining: false,
            noflush: suspension.noflush,
            reason: suspension.reason.clone(),
            age: now.since(suspension.since),
            deadline: None,
        })
    }
}
