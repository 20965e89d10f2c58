//! Tests of the whole engine: life cycle, barriers, resizes, flushes, tables, removal, errors.
//!
//! One test program for all, so that it is linked once. Every test runs in a `TestWorld`: several
//! lanes in one thread, fake lower devices that hold and fail on command, a clock moved by hand.
//! `rig.rs` has the worlds and two targets for what ordinary targets never do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod barriers;
mod conformance;
mod contract;
mod flushes;
mod global;
mod held_io;
mod lanes;
mod notes;
mod own_work;
mod queued_changes;
mod removal;
mod request_suspends;
mod request_tables;
mod requests;
mod resizes;
mod rig;
mod stacks;
mod stats;
mod suspend_deadline;
mod tables;
