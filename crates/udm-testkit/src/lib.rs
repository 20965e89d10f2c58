//! Fakes for tests of targets and engine, and the conformance battery every target passes.
//!
//! [`TestWorld`] is a whole engine of several lanes in one thread, with [`MemLower`] devices that a
//! test can look into, hold and fail, and a clock moved by hand. [`probe_type`] is a target that
//! holds and pushes back on command, [`worker_type`] one with work of its own. [`mod@pattern`]
//! makes sector-stamped data, [`Model`] says what a device must hold, [`Counting`] counts
//! allocations.
//!
//! [`fuse_way`] is for tests that mount: which way the kernel hands requests over.
//!
//! The battery ([`conformance!`]) is the proof a target owes: one line enrols it, see
//! `conformance/mod.rs`. Nothing here sleeps or looks at a real clock; every test waits for the
//! thing itself.
//!
//! This crate is for tests only: helpers panic with a reason instead of returning errors.
#![deny(unsafe_code)]

pub mod conformance;
mod counting;
mod fake_driver;
pub mod fuse_way;
mod io;
mod mem_lower;
mod pattern;
mod probe;
mod worker;
mod world;

pub use counting::{Counting, allocations, allocations_here};
pub use fake_driver::{FakeWorld, LaneProbe};
pub use io::{Io, IoDone, IoTicket};
pub use mem_lower::{DISCARDED_BYTE, MemLower, Seen};
pub use pattern::{Model, SECTOR_LEN, Stamp, mix, pattern, stamp};
pub use probe::{probe_type, request_probe_type};
pub use worker::worker_type;
pub use world::{Started, TestWorld};
