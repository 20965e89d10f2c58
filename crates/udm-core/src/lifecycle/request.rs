//! What can be asked of the life cycle, and what it answers.
//!
//! The control faces (varlink and the dm ioctl codec) and the simulator speak this; there is no
//! second way in. A request is answered once, through the sink that came with it; a suspend that
//! waits or an event wait answers later. Names are resolved here, atomically with the operation.

use crate::error::UserError;
use crate::table::{DeviceRef, Table};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use udm_types::{DeviceId, DmName, DmUuid, Nanos, Op, Sector};

/// How a request names a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceKey {
    /// By name.
    Name(String),
    /// By uuid.
    Uuid(String),
    /// By minor number.
    Minor(u32),
    /// By the number the engine gave it.
    Id(DeviceId),
}

/// What to do when a suspend has not drained by its deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTimeout {
    /// Give the suspend up; the device runs on as before.
    #[default]
    Resume,
    /// Fail the I/O that hangs below and finish the suspend.
    Fail,
}

/// How to suspend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SuspendOptions {
    /// Let targets push I/O back instead of waiting for it.
    pub noflush: bool,
    /// Give up after this long.
    pub deadline: Option<Nanos>,
    /// What giving up means.
    pub on_timeout: OnTimeout,
    /// Shown to whoever asks why the device is suspended.
    pub reason: String,
}

/// A number the asker chose to cancel a waiting request by. Unique per asker.
pub type Ticket = u64;

/// A request.
#[derive(Debug)]
pub enum Request {
    /// Makes a device without tables.
    Create {
        /// Its name.
        name: DmName,
        /// Its uuid.
        uuid: Option<DmUuid>,
        /// A minor number; the lowest free one if `None`.
        minor: Option<u32>,
    },
    /// Removes a device that nobody has open.
    Remove {
        /// Which.
        device: DeviceKey,
        /// If it is open, remove it at the last close.
        deferred: bool,
    },
    /// Removes every device that nobody has open.
    RemoveAll {
        /// Mark open ones for removal at the last close.
        deferred: bool,
    },
    /// Takes a deferred remove back.
    CancelDeferredRemove {
        /// Which.
        device: DeviceKey,
    },
    /// Gives a device another name.
    Rename {
        /// Which.
        device: DeviceKey,
        /// The new name.
        name: DmName,
    },
    /// Sets the uuid of a device that has none.
    SetUuid {
        /// Which.
        device: DeviceKey,
        /// The uuid.
        uuid: DmUuid,
    },
    /// Puts a table into the inactive slot.
    Load {
        /// Which.
        device: DeviceKey,
        /// The table.
        table: Arc<Table>,
    },
    /// Empties the inactive slot.
    Clear {
        /// Which.
        device: DeviceKey,
    },
    /// Stops I/O and waits for what is under way.
    Suspend {
        /// Which.
        device: DeviceKey,
        /// How.
        options: SuspendOptions,
        /// To cancel it by.
        ticket: Ticket,
    },
    /// Swaps the inactive table in (if there is one) and lets I/O flow.
    Resume {
        /// Which.
        device: DeviceKey,
        /// How to suspend if the device runs and there is a table to swap in.
        options: SuspendOptions,
        /// To cancel the implied suspend by.
        ticket: Ticket,
    },
    /// Sends words to the target at a sector.
    Message {
        /// Which.
        device: DeviceKey,
        /// A sector of the target.
        sector: Sector,
        /// The words.
        words: Vec<String>,
    },
    /// The device's state.
    Status {
        /// Which.
        device: DeviceKey,
    },
    /// The lines of a table, as `status` or `table` shows them.
    TableStatus {
        /// Which.
        device: DeviceKey,
        /// The inactive table instead of the live one.
        inactive: bool,
        /// Arguments as written, or the targets' state.
        kind: StatusKind,
    },
    /// The devices below.
    Deps {
        /// Which.
        device: DeviceKey,
        /// Of the inactive table instead of the live one.
        inactive: bool,
    },
    /// The live table itself, for who needs the devices below and not their names.
    LiveTable {
        /// Which.
        device: DeviceKey,
    },
    /// All devices, ordered by name.
    List,
    /// Waits until the event number differs from `event_nr`.
    Wait {
        /// Which.
        device: DeviceKey,
        /// The last number seen.
        event_nr: u32,
        /// To cancel it by.
        ticket: Ticket,
    },
    /// The global event number.
    GlobalEvent,
    /// Waits until the global event number differs from `event_nr`.
    WaitGlobal {
        /// The last number seen.
        event_nr: u32,
        /// To cancel it by.
        ticket: Ticket,
    },
    /// Keeps a disk geometry for who asks for one; a new size wipes it.
    SetGeometry {
        /// Which.
        device: DeviceKey,
        /// The geometry.
        geometry: Geometry,
    },
    /// Counters and queue depths, summed over the lanes.
    Gauges {
        /// Which.
        device: DeviceKey,
    },
    /// A device as a table line may use it.
    Lookup {
        /// Which.
        device: DeviceKey,
    },
    /// Counts an opener (an export).
    Open {
        /// Which.
        device: DeviceKey,
    },
    /// Takes an opener back.
    Close {
        /// Which, by id: the name may have changed.
        device: DeviceId,
    },
    /// Ends a waiting request of this ticket (its asker has gone); it answers `SuspendCancelled`.
    Cancel {
        /// The ticket.
        ticket: Ticket,
    },
}

/// A disk geometry, as old partitioning tools want one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors of a track.
    pub sectors: u8,
    /// Where it begins.
    pub start_sector: Sector,
}

impl Geometry {
    /// The size it describes.
    pub fn len_sectors(&self) -> Sector {
        Sector::from(self.cylinders) * Sector::from(self.heads) * Sector::from(self.sectors)
    }
}

/// Which text of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusKind {
    /// `dmsetup status`.
    Info,
    /// `dmsetup table`.
    Table,
}

/// An answer.
#[derive(Debug)]
pub enum Reply {
    /// Done; the device as it is now (`None` for requests about no single device).
    Done(Option<Box<DeviceStatus>>),
    /// Table lines.
    Lines {
        /// The device.
        device: Box<DeviceStatus>,
        /// Its lines; empty without that table.
        lines: Vec<StatusLine>,
    },
    /// Devices below: number and how they are shown.
    Deps {
        /// The device.
        device: Box<DeviceStatus>,
        /// Newest first.
        deps: Vec<(Option<(u32, u32)>, String)>,
    },
    /// The live table; it and what is below stay open for as long as it is held.
    Table {
        /// The device.
        device: Box<DeviceStatus>,
        /// `None` without one.
        table: Option<Arc<Table>>,
    },
    /// All devices.
    List(Vec<DeviceStatus>),
    /// A message's answer.
    Text(Option<String>),
    /// The global event number.
    Number(u32),
    /// Counters.
    Gauges(Box<Gauges>),
    /// A device as tables use it.
    Device(Box<DeviceRef>),
}

/// One line of `status` or `table`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusLine {
    /// First sector.
    pub begin_sector: Sector,
    /// Length.
    pub len_sectors: Sector,
    /// Target type.
    pub target: String,
    /// The rest of the line.
    pub args: String,
}

/// A device as its header shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// The engine's number.
    pub id: DeviceId,
    /// Name.
    pub name: DmName,
    /// Uuid.
    pub uuid: Option<DmUuid>,
    /// Major number (udm's own space).
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Suspended by the user; I/O is held.
    pub suspended: bool,
    /// A suspend or the stay in it: why, since when.
    pub suspend: Option<SuspendStatus>,
    /// The live table is read-only.
    pub read_only: bool,
    /// There is a live table.
    pub live_present: bool,
    /// There is an inactive table.
    pub inactive_present: bool,
    /// It goes at the last close.
    pub deferred_remove: bool,
    /// Openers: exports and other devices' tables.
    pub open_count: u32,
    /// Events so far.
    pub event_nr: u32,
    /// Targets of the live table.
    pub target_count: u32,
    /// Targets of the inactive table.
    pub inactive_target_count: u32,
    /// The inactive table is read-only.
    pub inactive_read_only: bool,
    /// Size of the live table.
    pub len_sectors: Sector,
    /// As it was set; nothing here uses it.
    pub geometry: Option<Geometry>,
    /// Its bios become requests before they are mapped; fixed by the first table.
    pub request_based: bool,
    /// A target of the live table may hold writes that were answered and are not below yet.
    pub holds_writes: bool,
}

/// Why and since when a device is suspended (or about to be).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuspendStatus {
    /// Still waiting for I/O to come back.
    pub draining: bool,
    /// Pushing back instead of waiting.
    pub noflush: bool,
    /// Who asked, in their words.
    pub reason: String,
    /// For how long.
    pub age: Nanos,
    /// When it gives up, counted from its start.
    pub deadline: Option<Nanos>,
}

/// Counters of a device, summed over the lanes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// The device.
    pub device: Option<DeviceStatus>,
    /// Bios in the live table.
    pub in_flight: u64,
    /// Bios held at the gates.
    pub held: u64,
    /// Completed, by operation.
    pub ios: [u64; Op::COUNT],
    /// Sectors of those, by operation.
    pub sectors: [u64; Op::COUNT],
    /// Of those, failed.
    pub errors: u64,
    /// Time bios spent below the gate, summed.
    pub busy: Nanos,
    /// Calls in which a target broke its contract.
    pub contract_breaches: u64,
    /// What became of bios on a request-based device; all zero on any other.
    pub requests: RequestGauges,
}

/// Counters of request-based devices, like those of `iostat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestGauges {
    /// Bios queued (pieces, after splitting).
    pub bios: u64,
    /// Requests started, repetitions included.
    pub requests: u64,
    /// Bios joined to the end of a request.
    pub back_merges: u64,
    /// Bios joined to the beginning of a request.
    pub front_merges: u64,
    /// Requests that were put back into the queue.
    pub requeues: u64,
    /// Requests that have not been started, now.
    pub waiting: u64,
}

impl RequestGauges {
    fn add(&mut self, other: &RequestGauges) {
        self.bios += other.bios;
        self.requests += other.requests;
        self.back_merges += other.back_merges;
        self.front_merges += other.front_merges;
        self.requeues += other.requeues;
        self.waiting += other.waiting;
    }
}

impl Gauges {
    /// Adds another lane's numbers.
    pub fn add(&mut self, other: &Gauges) {
        self.in_flight += other.in_flight;
        self.held += other.held;
        for index in 0..Op::COUNT {
            self.ios[index] += other.ios[index];
            self.sectors[index] += other.sectors[index];
        }
        self.errors += other.errors;
        self.busy = self.busy + other.busy;
        self.contract_breaches += other.contract_breaches;
        self.requests.add(&other.requests);
    }
}

/// Takes the answer of one request.
pub type ReplySink = Box<dyn FnOnce(Result<Reply, UserError>) + Send>;
