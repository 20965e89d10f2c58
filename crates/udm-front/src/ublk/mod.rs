//! The ublk front end: a mapped device as a disk of this machine's kernel, `/dev/ublkbN`.
//!
//! ```text
//!  /dev/ublk-control <--orders, waited for-- control thread (add, start, stop, take up, resize)
//!  /dev/ublkcN  requests, mapped  ---------> queue actor on a lane: one command for each tag
//!               commands, by the lane's ring <-- "answered, give me the next"
//!               data, read and written there <-- copied at once, without waiting
//! ```
//!
//! - [`wire`]: every number and structure of the interface.
//! - [`disk`]: what the kernel is told about the disk, from queue limits.
//! - [`queue`]: one queue on a lane, an actor.
//! - [`control`]: the orders, one function each. [`untrusted`]: those without root.
//! - [`server`]: the life of a disk, and its thread.
//!
//! The kernel is trusted; nothing here guards against it but by refusing what is not understood.

pub mod control;
pub mod disk;
pub mod queue;
pub mod server;
pub mod untrusted;

pub mod wire;
