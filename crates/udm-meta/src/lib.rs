//! On-disk building blocks for targets that keep metadata: compress now; snapshots, thin pools and
//! mirrors later.
//!
//! | module | holds |
//! |---|---|
//! | [`disk`] | the port: reads, writes and flushes as futures, for any kind of host |
//! | [`host`] | hosts that do every operation at once: tools, tests, fuzzers |
//! | [`bytes`] | reads and writes of plain byte vectors |
//! | [`sum`] | checksums |
//! | [`superblock`] | the superblock in several copies |
//! | [`slots`], [`page`] | checksummed pages in two slots |
//! | [`checkpoint`] | two-slot checkpoints |
//! | [`record`], [`chain`] | a log of self-validating records |
//!
//! The layouts are in docs/formats/meta.md, byte by byte.
//!
//! Rules. Deterministic: no clock, no threads, no hash order. What is read from a disk is bytes and
//! not truth: every structure is checked before a field of it is believed, and nothing here panics
//! on any contents.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod buffers;
pub mod bytes;
pub mod chain;
pub mod checkpoint;
pub mod disk;
pub mod host;
pub mod page;
pub mod record;
pub mod slots;
pub mod sum;
pub mod superblock;

pub use buffers::KEPT_BYTES_MAX;
pub use disk::{Disk, DiskError, DiskFuture, DiskOp, DiskOpKind, DiskToken};
