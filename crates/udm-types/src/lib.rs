//! The plain vocabulary of udm: sectors, operations, status, limits, names, time.
//!
//! Everything else in the workspace uses these words, so they stay values: no I/O, no clock, no
//! threads, no allocation beyond names. `#![no_std]` lets the compiler hold that line.
//!
//! A sector is 512 bytes in every table, status line, message and field of this project, whatever
//! the logical block size of a device is.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod ids;
mod limits;
mod name;
mod op;
mod status;
mod time;

pub use ids::{ActorId, DeviceId, LaneId, LowerId};
pub use limits::{DeviceFeatures, MAX_SECTORS_DEFAULT, QueueLimits, UNLIMITED};
pub use name::{DmName, DmUuid, NAME_LEN_BYTES_MAX, NameError, UUID_LEN_BYTES_MAX};
pub use op::{BioFlags, Op, OpSet};
pub use status::Status;
pub use time::Nanos;

/// A position or length on a device, in units of 512 bytes.
///
/// An alias and not a wrapper: sectors are added, divided and compared in every second line of a
/// target. Fields say what they hold (`sector`, `len_sectors`, `len_bytes`) instead.
pub type Sector = u64;

/// Bytes in a sector.
pub const SECTOR_BYTES: u64 = 512;

/// `log2` of [`SECTOR_BYTES`].
pub const SECTOR_SHIFT: u32 = 9;

/// The largest device or offset the table grammar accepts: 2^54 - 1 sectors, so that the byte
/// position of every sector fits a signed 64-bit integer (as Linux has it).
pub const MAX_SECTOR: Sector = (1 << 54) - 1;
