//! The methods of `org.udm.control` as Rust types: one struct a method, one an answer.
//!
//! Both ends use them, so what the client can ask and what the server understands cannot drift
//! apart; a test compares every field with the published interface file. `types.rs` holds what
//! answers are made of, `paths.rs` those about paths, `tls.rs` what an export has of TLS, and
//! `error.rs` the one error.
//!
//! Parameters that are not known are refused (`deny_unknown_fields`): a misspelt option must not be
//! silently ignored. Answers are open the other way: a client ignores fields it does not know.
//!
//! The tricky case is the default: a parameter left out means `false` or nothing, never "as last
//! time".

mod error;
mod paths;
mod tls;
mod types;

pub use error::{WireError, from_wire, to_wire};
pub use paths::{PathPolicy, PathStatus};
pub use tls::Tls;
pub use types::{
    Counter, Dependency, Device, ExportState, Gauges, Line, RequestCounters, Selector,
    SuspendState, TargetType,
};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU16;

/// A method of the interface.
pub trait Method: Serialize + DeserializeOwned {
    /// Its name without the interface.
    const NAME: &'static str;
    /// What it answers.
    type Answer: Serialize + DeserializeOwned;
}

macro_rules! methods {
    ($(
        $(#[$doc:meta])*
        $name:ident { $($(#[$meta:meta])* $field:ident: $kind:ty,)* } -> $answer:ty;
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
            #[serde(deny_unknown_fields)]
            pub struct $name { $($(#[$meta])* pub $field: $kind,)* }

            impl Method for $name {
                const NAME: &'static str = stringify!($name);
                type Answer = $answer;
            }
        )*
        /// Every method's name.
        pub const METHODS: &[&str] = &[$(stringify!($name)),*];

        #[cfg(test)]
        pub(crate) fn field_names() -> Vec<(&'static str, Vec<&'static str>)> {
            vec![$((stringify!($name), vec![$(stringify!($field)),*])),*]
        }
    };
}

methods! {
    /// Is the daemon alive?
    Ping {} -> Empty;
    /// Versions of the daemon and its interfaces.
    Version {} -> VersionAnswer;
    /// The target types.
    Targets {} -> TargetsAnswer;
    /// All devices, ordered by name.
    List {} -> ListAnswer;
    /// Makes a device without tables.
    Create {
        /// Its name.
        name: String,
        /// Its uuid.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uuid: Option<String>,
        /// A minor number; the lowest free one if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        minor: Option<u32>,
    } -> DeviceAnswer;
    /// Puts a table into the inactive slot.
    Load {
        /// Which device.
        device: Selector,
        /// Table text, one target a line.
        table: String,
        /// Open what is below read-only.
        #[serde(default)]
        read_only: bool,
    } -> DeviceAnswer;
    /// Empties the inactive slot.
    Clear {
        /// Which device.
        device: Selector,
    } -> DeviceAnswer;
    /// Stops I/O and waits for what is under way.
    Suspend {
        /// Which device.
        device: Selector,
        /// Let targets push I/O back instead of waiting for it.
        #[serde(default)]
        noflush: bool,
        /// No file system freeze (there is none in user space; kept for the verb's sake).
        #[serde(default)]
        nolockfs: bool,
        /// Give up after this many milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline_ms: Option<u64>,
        /// What giving up means: `resume` or `fail`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        on_timeout: Option<String>,
        /// Shown to whoever asks why the device is suspended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    } -> DeviceAnswer;
    /// Swaps the inactive table in and lets I/O flow. The options are of the suspend it implies.
    Resume {
        /// Which device.
        device: Selector,
        /// Let targets push I/O back instead of waiting for it.
        #[serde(default)]
        noflush: bool,
        /// No file system freeze.
        #[serde(default)]
        nolockfs: bool,
        /// Give up after this many milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline_ms: Option<u64>,
        /// What giving up means: `resume` or `fail`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        on_timeout: Option<String>,
        /// Shown to whoever asks why the device is suspended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    } -> DeviceAnswer;
    /// Removes a device.
    Remove {
        /// Which device.
        device: Selector,
        /// If it is open, remove it at the last close.
        #[serde(default)]
        deferred: bool,
    } -> DeviceAnswer;
    /// Removes every device that nobody has open.
    RemoveAll {
        /// Mark open ones for removal at the last close.
        #[serde(default)]
        deferred: bool,
    } -> DeviceAnswer;
    /// Gives a device another name.
    Rename {
        /// Which device.
        device: Selector,
        /// The new name.
        name: String,
    } -> DeviceAnswer;
    /// Sets the uuid of a device that has none.
    SetUuid {
        /// Which device.
        device: Selector,
        /// The uuid.
        uuid: String,
    } -> DeviceAnswer;
    /// Sends words to the target at a sector.
    Message {
        /// Which device.
        device: Selector,
        /// A sector of the target.
        sector: u64,
        /// The words.
        words: Vec<String>,
    } -> TextAnswer;
    /// The device's state.
    Status {
        /// Which device.
        device: Selector,
    } -> DeviceAnswer;
    /// The lines of a table.
    TableStatus {
        /// Which device.
        device: Selector,
        /// Of the inactive table instead of the live one.
        #[serde(default)]
        inactive: bool,
        /// `table` or `status`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<String>,
    } -> LinesAnswer;
    /// The devices below.
    Deps {
        /// Which device.
        device: Selector,
        /// Of the inactive table instead of the live one.
        #[serde(default)]
        inactive: bool,
    } -> DepsAnswer;
    /// The device with its counters.
    Info {
        /// Which device.
        device: Selector,
    } -> InfoAnswer;
    /// Waits for the next event.
    Wait {
        /// Which device.
        device: Selector,
        /// The last event number seen.
        event_nr: u32,
    } -> DeviceAnswer;
    /// The device now and after each event; called with `more`.
    Events {
        /// Which device.
        device: Selector,
        /// The last event number seen; the present one if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        event_nr: Option<u32>,
    } -> DeviceAnswer;
    /// Serves a device, in exactly one way.
    Export {
        /// Which device.
        device: Selector,
        /// Over NBD, at `unix:PATH` or `tcp:HOST:PORT`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nbd: Option<String>,
        /// As a file: mounted over this one, which is made if it is missing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fuse: Option<String>,
        /// As the disk of a virtual machine, at this unix socket.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vhost_user: Option<String>,
        /// As a disk of the kernel: the number of `/dev/ublkbN`, or `auto`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ublk: Option<String>,
        /// Name of the export; the device's name if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Refuse writes.
        #[serde(default)]
        read_only: bool,
        /// Speak TLS; over NBD only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tls: Option<Tls>,
        /// Spread its queues or connections over not more lanes than this; over all if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lanes: Option<NonZeroU16>,
    } -> ExportAnswer;
    /// Ends an export.
    Unexport {
        /// Name of the export.
        name: String,
    } -> Empty;
    /// What is served where.
    Exports {} -> ExportsAnswer;
    /// Where a mapped device can be opened.
    Node {
        /// Which device.
        device: Selector,
    } -> NodeAnswer;
    /// The paths of multipath devices.
    Paths {
        /// Which device; all if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<Selector>,
    } -> PathsAnswer;
    /// Has the paths of a device checked from now on, or not any more.
    CheckPaths {
        /// Which device.
        device: Selector,
        /// How; they are not checked any more if it is left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<PathPolicy>,
    } -> Empty;
    /// One ioctl of the kernel's device mapper, for programs that speak that.
    DmIoctl {
        /// The ioctl's number.
        command: u32,
        /// Its bytes, header first, in base64; no more than the header if it reads no more.
        data: String,
    } -> DmIoctlAnswer;
    /// The global event number now, and once it has changed; called with `more`. Ends early when
    /// the caller sends anything.
    DmPoll {} -> DmPollAnswer;
    /// Ends the daemon.
    Shutdown {} -> Empty;
}

macro_rules! answers {
    ($($(#[$doc:meta])* $name:ident { $($(#[$meta:meta])* $field:ident: $kind:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
            pub struct $name { $($(#[$meta])* pub $field: $kind,)* }
        )*
    };
}

answers! {
    /// Nothing but "done".
    Empty {}
    /// Versions.
    VersionAnswer {
        /// Of the daemon.
        version: String,
        /// Of this interface.
        interface_version: String,
        /// Of the dm ioctl interface whose behaviour is kept.
        driver_version: String,
    }
    /// Target types.
    TargetsAnswer {
        /// The last registered first.
        targets: Vec<TargetType>,
    }
    /// Devices.
    ListAnswer {
        /// Ordered by name.
        devices: Vec<Device>,
    }
    /// The device as it is now.
    DeviceAnswer {
        /// Nothing if the call was about no single device, or if the device is gone.
        device: Option<Device>,
    }
    /// A message's answer.
    TextAnswer {
        /// Most messages have none.
        text: Option<String>,
    }
    /// Table lines.
    LinesAnswer {
        /// The device.
        device: Device,
        /// Its lines; empty without that table.
        lines: Vec<Line>,
    }
    /// Devices below.
    DepsAnswer {
        /// The device.
        device: Device,
        /// Newest first.
        deps: Vec<Dependency>,
    }
    /// A device with its counters.
    InfoAnswer {
        /// The device.
        device: Device,
        /// Counters and queue depths.
        gauges: Gauges,
    }
    /// One export.
    ExportAnswer {
        /// The export.
        export: ExportState,
    }
    /// Where a mapped device can be opened; all is left out if nowhere.
    NodeAnswer {
        /// A block device of the kernel's if there is one on it, else a file.
        path: Option<String>,
        /// Major number of that block device.
        major: Option<u32>,
        /// Minor number of that block device.
        minor: Option<u32>,
    }
    /// Paths.
    PathsAnswer {
        /// By device, group, and place in the table.
        paths: Vec<PathStatus>,
    }
    /// What became of an ioctl.
    DmIoctlAnswer {
        /// 0, or the errno.
        errno: i32,
        /// What to copy to the beginning of the caller's buffer, in base64.
        data: String,
        /// Why it was refused, in words.
        why: Option<String>,
    }
    /// The global event number.
    DmPollAnswer {
        /// It grows with every event of any device.
        event_nr: u32,
    }
    /// Exports.
    ExportsAnswer {
        /// Ordered by name.
        exports: Vec<ExportState>,
    }
}

#[cfg(test)]
mod tests;
