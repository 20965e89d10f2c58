//! Lower devices: where bios end when no mapped device is below.
//!
//! [`LowerRegistry`] opens what a table names and shares what is open already: files and block
//! devices (`file/`), memory (`memory.rs`), null (`null.rs`), exports of NBD servers (`nbd/`).
//! Each is a [`udm_core::LowerDevice`], shared by all lanes, with a [`udm_core::LowerLane`] on
//! each lane that uses it.
//!
//! Only the registry blocks (it runs on the control side and opens files); what runs on the lanes
//! talks to the lane's driver and never waits. No `unsafe`: descriptors and memory come from
//! `udm-driver` as owned values.
//!
//! What users should know about each is in docs/lower-devices.md.
#![forbid(unsafe_code)]

mod file;
mod ids;
mod memory;
mod name;
#[doc(hidden)]
pub mod nbd;
mod null;
mod registry;

pub use file::RawFile;
pub use registry::LowerRegistry;
