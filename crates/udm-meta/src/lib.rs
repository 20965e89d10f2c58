//! On-disk building blocks for targets that keep metadata: compress now; snapshots, thin pools and
//! mirrors later.
//!
//! | module | holds |
//! |---|---|
//! | [`disk`] | the port: reads, writes and flushes as futures, for any kind of host |
//!
//! Rules. Deterministic: no clock, no threads, no hash order. What is read from a disk is bytes and
//! not truth: every structure is checked before a field of it is believed, and nothing here panics
//! on any contents.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod disk;

pub use disk::{Disk, DiskError, DiskFuture, DiskOp, DiskOpKind, DiskToken};
