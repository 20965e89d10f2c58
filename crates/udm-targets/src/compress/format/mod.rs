//! The compress format, version 1: every structure on the disk, both ways between bytes and values.
//!
//! | module | holds |
//! |---|---|
//! | [`superblock`] | what the volume is: written by format, changed by resizes |
//! | [`geometry`] | where everything lies, computed and checked in one place |
//! | [`entry`] | the entries of a log record: extents, unmaps, fills, summaries |
//! | [`extent`] | a compressed extent in a record's body |
//! | [`map`] | map entries and segment entries, and the pages they fill |
//! | [`checkpoint`] | the checkpoint: where the log goes on, which slot each page is in |
//! | [`codec`] | the codecs by number |
//!
//! The byte maps are in docs/formats/compress.md, of the shared parts in docs/formats/meta.md.
//!
//! Rules. Pure: no I/O but reading the superblock through the port. Bytes from a disk become values
//! only here, and only after every field was checked; nothing here panics on any bytes. What is
//! checked against other structures (does this map entry match that extent?) is the business of
//! the volume and of `check`.

pub mod checkpoint;
pub mod codec;
pub mod entry;
pub mod extent;
pub mod geometry;
pub mod map;
pub mod superblock;

pub use checkpoint::{Checkpoint, CheckpointFlags, CheckpointHead};
pub use codec::Codec;
pub use entry::{Entry, PlacedEntry, RecordFlags};
pub use extent::ExtentHead;
pub use geometry::{Geometry, Shape};
pub use map::{MapEntry, SegmentEntry, SegmentState};
pub use superblock::{Defaults, Superblock};

/// Bytes of a block, the unit of everything logical.
pub const BLOCK_BYTES: u64 = 4096;
/// Log2 of [`BLOCK_BYTES`].
pub const BLOCK_SHIFT: u8 = 12;
/// Block numbers have 40 bits.
pub const BLOCK_LIMIT: u64 = 1 << 40;
/// Addresses, in units from the start of DATA, have 40 bits.
pub const ADDRESS_LIMIT: u64 = 1 << 40;
