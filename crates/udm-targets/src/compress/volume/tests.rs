//! Tests of the volume over a disk in memory that loses, tears and refuses.
//!
//! `host.rs` is the host and the disk; the rest are tests by theme. They own the promise of the
//! volume in small; the crash enumerator of `udm-sim` tests it in large.

mod basics;
mod cleaning;
mod crashes;
mod faults;
mod fits;
mod host;
mod plain;
mod punching;
mod reads;
mod resizes;
mod shrinks;
mod space;
