//! The FUSE front end: a device as one file.
//!
//! The file is mounted over a file: the root of the file system is the device itself, so there is
//! no directory, no name and no lookup. The life of a request, and the file each part lives in:
//!
//! ```text
//! /dev/fuse --> server --> session: Answer ------------------------> server --> /dev/fuse
//!                                   Command --> (change) --> engine --^
//! ```
//!
//! - [`wire`]: every number and structure of the protocol that we use.
//! - [`session`]: messages to answers and checked commands; pure.
//! - [`reply`]: the bytes of answers.
//! - `change`: byte ranges on devices that take whole blocks, and who waits for whom; pure.
//! - [`server`]: the actor that has `/dev/fuse` on a lane and moves the bytes; a request has a
//!   `slot`, `work` is its way through the engine, `exchange` how it comes through the lane's ring.
//!   `ending` is the server's end.
//! - `team`, `load`, `blocks`: the lanes of a mount, how many are awake, and who may change which
//!   blocks meanwhile.
//! - [`order`]: what the control side and the servers tell each other.
//! - [`mount`]: mounting and unmounting, with and without root; control side, it blocks.
//! - [`fuzz`]: one entry that drives the pure part with hostile bytes.
//!
//! The peer is this machine's kernel, but what it passes on was chosen by any program, and the
//! session trusts neither. The bytes are in `docs/formats/fuse.md`.

pub mod abort;
mod blocks;
mod change;
mod ending;
mod exchange;
pub mod fuzz;
mod load;
pub mod mount;
pub mod order;
pub mod reply;
pub mod server;
pub mod session;
mod slot;
mod team;
pub mod wire;
mod work;
