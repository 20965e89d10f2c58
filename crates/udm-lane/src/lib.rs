//! The lane without its driver: buffers, timers, mailboxes, executor and the [`Driver`] trait.
//!
//! A lane is one thread with one loop; every bio lives and dies on its lane. This crate holds the
//! parts of that loop which need no operating system. The loop itself is in `udm-core`, the real
//! drivers in `udm-driver`, the simulated one in `udm-sim`.
//!
//! Clock, timers, randomness, I/O and wake-ups reach the engine only through [`Driver`]: with the
//! simulator's driver the same seed gives the same trace, bit for bit. `#![no_std]` keeps the
//! standard library's clock, threads and hash order out. `unsafe` is allowed in `buffer` only.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

mod buffer;
mod driver;
mod executor;
mod mailbox;
mod payload;
mod pool;
mod timers;

pub use buffer::{BUF_ALIGN_BYTES, Buf};
pub use driver::{
    Completion, CopyWay, Driver, DriverOp, Errno, FallocateKind, Handle, NoWake, OpResult, OpToken,
    PeerAddress, RawHandle, Wake,
};
pub use executor::{Executor, TaskId, yield_now};
pub use mailbox::{Mailbox, MailboxFull, MailboxReceiver, mailbox};
pub use payload::{Payload, SEGMENTS_INLINE, Segment};
pub use pool::BufPool;
pub use timers::Timers;
