//! What answers of the control interface are made of, and how the life cycle's own types become
//! them.
//!
//! Plain values with the field names of the interface file. Numbers are numbers, sizes are 512-byte
//! sectors, times milliseconds. The conversions are one way (engine to wire): a client never
//! builds engine types from an answer.

use serde::{Deserialize, Serialize};
use std::num::NonZeroU16;
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::{self, DeviceKey, DeviceStatus, StatusLine, SuspendStatus};
use udm_types::Op;

/// How a caller names a device: exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// By name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// By uuid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// By minor number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minor: Option<u32>,
}

impl Selector {
    /// The device with this name.
    pub fn name(name: impl Into<String>) -> Selector {
        Selector { name: Some(name.into()), ..Selector::default() }
    }

    /// The key the life cycle looks up.
    ///
    /// # Errors
    /// `BadParameter` unless exactly one way is given (the kernel refuses two as well).
    pub fn key(&self) -> Result<DeviceKey, UserError> {
        match (&self.name, &self.uuid, self.minor) {
            (Some(name), None, None) => Ok(DeviceKey::Name(name.clone())),
            (None, Some(uuid), None) => Ok(DeviceKey::Uuid(uuid.clone())),
            (None, None, Some(minor)) => Ok(DeviceKey::Minor(minor)),
            (None, None, None) => Err(UserError::new(
                ErrorCode::BadParameter,
                "device: expected one of name, uuid and minor",
            )),
            _ => Err(UserError::new(
                ErrorCode::BadParameter,
                "device: expected only one of name, uuid and minor",
            )),
        }
    }
}

/// A device as its header shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The engine's number.
    pub id: u32,
    /// Name.
    pub name: String,
    /// Uuid.
    pub uuid: Option<String>,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Suspended by the user.
    pub suspended: bool,
    /// A suspend or the stay in it.
    pub suspend: Option<SuspendState>,
    /// The live table is read-only.
    pub read_only: bool,
    /// There is a live table.
    pub live_present: bool,
    /// There is an inactive table.
    pub inactive_present: bool,
    /// It goes at the last close.
    pub deferred_remove: bool,
    /// Openers.
    pub open_count: u32,
    /// Events so far.
    pub event_nr: u32,
    /// Targets of the live table.
    pub target_count: u32,
    /// Size of the live table.
    pub len_sectors: u64,
    /// Its bios become requests before they are mapped.
    pub request_based: bool,
}

/// Why and since when a device is suspended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspendState {
    /// Still waiting for I/O to come back.
    pub draining: bool,
    /// Pushing back instead of waiting.
    pub noflush: bool,
    /// Who asked, in their words.
    pub reason: String,
    /// For how long.
    pub age_ms: u64,
    /// When it gives up, counted from its start.
    pub deadline_ms: Option<u64>,
}

impl From<&SuspendStatus> for SuspendState {
    fn from(status: &SuspendStatus) -> SuspendState {
        SuspendState {
            draining: status.draining,
            noflush: status.noflush,
            reason: status.reason.clone(),
            age_ms: status.age.as_millis(),
            deadline_ms: status.deadline.map(udm_types::Nanos::as_millis),
        }
    }
}

impl From<&DeviceStatus> for Device {
    fn from(status: &DeviceStatus) -> Device {
        Device {
            id: status.id.0,
            name: status.name.as_str().to_owned(),
            uuid: status.uuid.as_ref().map(|uuid| uuid.as_str().to_owned()),
            major: status.major,
            minor: status.minor,
            suspended: status.suspended,
            suspend: status.suspend.as_ref().map(SuspendState::from),
            read_only: status.read_only,
            live_present: status.live_present,
            inactive_present: status.inactive_present,
            deferred_remove: status.deferred_remove,
            open_count: status.open_count,
            event_nr: status.event_nr,
            target_count: status.target_count,
            len_sectors: status.len_sectors,
            request_based: status.request_based,
        }
    }
}

/// A line of `table` or `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// First sector.
    pub begin_sector: u64,
    /// Length.
    pub len_sectors: u64,
    /// Target type.
    pub target: String,
    /// The rest of the line.
    pub args: String,
}

impl From<&StatusLine> for Line {
    fn from(line: &StatusLine) -> Line {
        Line {
            begin_sector: line.begin_sector,
            len_sectors: line.len_sectors,
            target: line.target.clone(),
            args: line.args.clone(),
        }
    }
}

/// A device below.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// Major number, if it has one.
    pub major: Option<u32>,
    /// Minor number, if it has one.
    pub minor: Option<u32>,
    /// How tables show it.
    pub shown: String,
}

/// Completed bios of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// The operation.
    pub op: String,
    /// How many.
    pub ios: u64,
    /// Sectors of those.
    pub sectors: u64,
}

/// Counters and queue depths, summed over the lanes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gauges {
    /// Bios in the live table.
    pub in_flight: u64,
    /// Bios held at the gates.
    pub held: u64,
    /// Completed bios, by operation.
    pub counters: Vec<Counter>,
    /// Of those, failed.
    pub errors: u64,
    /// Time bios spent below the gate, summed.
    pub busy_ms: u64,
    /// Calls in which a target broke its contract.
    pub contract_breaches: u64,
    /// What became of bios on a request-based device; all zero on any other.
    pub requests: RequestCounters,
}

/// Counters of request-based devices, like those of `iostat`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestCounters {
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

impl From<&lifecycle::Gauges> for Gauges {
    fn from(gauges: &lifecycle::Gauges) -> Gauges {
        let counter = |op: &Op| Counter {
            op: op.name().to_owned(),
            ios: gauges.ios[op.index()],
            sectors: gauges.sectors[op.index()],
        };
        Gauges {
            in_flight: gauges.in_flight,
            held: gauges.held,
            counters: Op::ALL.iter().map(counter).collect(),
            errors: gauges.errors,
            busy_ms: gauges.busy.as_millis(),
            contract_breaches: gauges.contract_breaches,
            requests: RequestCounters {
                bios: gauges.requests.bios,
                requests: gauges.requests.requests,
                back_merges: gauges.requests.back_merges,
                front_merges: gauges.requests.front_merges,
                requeues: gauges.requests.requeues,
                waiting: gauges.requests.waiting,
            },
        }
    }
}

/// A target type with its version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetType {
    /// The word in table lines.
    pub name: String,
    /// Its version.
    pub version: [u32; 3],
}

/// A device served to clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportState {
    /// Name of the export.
    pub name: String,
    /// Name of the device.
    pub device: String,
    /// How it is served: `nbd`, `fuse`, `vhost_user` or `ublk`.
    pub kind: String,
    /// Where, as its kind writes it: `unix:PATH`, `tcp:HOST:PORT`, or the path of a file.
    pub address: String,
    /// What clients type.
    pub uri: String,
    /// Writes are refused.
    pub read_only: bool,
    /// Clients connected now.
    pub connections: u32,
    /// The size its users see.
    #[serde(default)]
    pub size_sectors: u64,
    /// How its users learn of a new size: `told`, `seen` (they see it when they look), `ask` (they
    /// have to connect anew) or `kept` (the disk keeps its size until it is exported again).
    #[serde(default)]
    pub on_resize: String,
    /// The kernel's number of the disk, `MAJOR:MINOR`, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_device: Option<String>,
    /// How the requests of a FUSE mount come: `read` (of `/dev/fuse`) or `io_uring`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// It uses not more lanes than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<NonZeroU16>,
    /// Something its users should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
