//! The contract between a lane and the world: [`Driver`].
//!
//! A driver takes operations, which own their memory until they complete, and gives completions
//! back; it tells the time; it can be woken from another thread. There are three: io_uring and
//! portable in `udm-driver`, the simulated one in `udm-sim`. One test suite runs on all.
//!
//! Rules. Submitting never blocks and never fails: an operation that cannot be started completes
//! with an error. Every operation completes exactly once (accepts and watches: once with `more`
//! unset). Results may be short; continuing is the caller's business. Completions of one `wait`
//! come in an order the driver chose.
//!
//! The tricky case is an abandoned operation: nobody waits for it any more, but the kernel may
//! still write into its memory. The driver therefore keeps the payload until the real completion.

use crate::{Payload, Segment};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;
use udm_types::Nanos;

/// A file, device or socket registered with a driver. Meaningful on that lane only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u32);

/// "Network is unreachable", as Linux numbers it.
const ENETUNREACH: Errno = Errno(101);
/// "Function not implemented".
const ENOSYS: Errno = Errno(38);

/// What the operating system calls a descriptor, handed to [`Driver::register`].
///
/// Real drivers take over the descriptor of that number (the caller gives up ownership); the
/// simulator reads it as the number of a simulated disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawHandle(pub i32);

/// Whom to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    /// A unix socket, by the bytes of its path.
    Unix(Vec<u8>),
    /// A TCP port.
    Tcp(SocketAddr),
}

/// Chosen by the submitter, given back with the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpToken(pub u64);

/// A positive error number as the operating system gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// Bytes done (or the new descriptor, for accept), or the error.
pub type OpResult = Result<u32, Errno>;

/// How to change a range without writing data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallocateKind {
    /// Deallocate; reads as zeroes (also BLKDISCARD-like on block devices).
    PunchHole,
    /// Zero the range and keep it allocated.
    ZeroRange,
}

/// One operation.
#[derive(Debug)]
pub enum DriverOp {
    /// Read at a byte offset into all of the payload.
    Read {
        /// The file.
        handle: Handle,
        /// Where in the file.
        offset_bytes: u64,
        /// Filled from the front.
        payload: Payload,
    },
    /// Write all of the payload at a byte offset; durable on completion if `dsync`.
    Write {
        /// The file.
        handle: Handle,
        /// Where in the file.
        offset_bytes: u64,
        /// What to write.
        payload: Payload,
        /// Durable on completion.
        dsync: bool,
    },
    /// `fdatasync`.
    Sync {
        /// The file.
        handle: Handle,
    },
    /// Change a range.
    Fallocate {
        /// The file.
        handle: Handle,
        /// How.
        kind: FallocateKind,
        /// Start of the range.
        offset_bytes: u64,
        /// Length of the range.
        len_bytes: u64,
    },
    /// Receive into the segment; 0 bytes means the peer has closed.
    Recv {
        /// The socket.
        handle: Handle,
        /// Where to put the bytes; comes back as the completion's payload.
        segment: Segment,
    },
    /// Send the payload (may be short).
    Send {
        /// The socket.
        handle: Handle,
        /// What to send.
        payload: Payload,
    },
    /// Accept connections until cancelled; each completion carries a raw descriptor.
    Accept {
        /// The listening socket.
        handle: Handle,
    },
    /// Report every ring of an eventfd until cancelled or closed; the counter is never read, so
    /// one result may stand for many rings. The first result may come without a ring.
    Watch {
        /// The eventfd.
        handle: Handle,
    },
    /// A command of a device of the kernel that is driven through the ring (ublk's queues). It
    /// ends when the device answers, however long that takes; it cannot be cancelled.
    Command {
        /// The device.
        handle: Handle,
        /// Which command, as the device numbers it.
        code: u32,
        /// What goes with it, as the device lays it out.
        words: [u8; 8],
        /// Memory for the device, in one segment, or none. It learns the address alone, so there
        /// has to be as much as it reads or writes until the command ends.
        memory: Payload,
    },
    /// Lends memory to a device that puts its messages there (FUSE over the ring), and waits for
    /// the first. The memory stays the device's until the file is closed and all of its operations
    /// have ended, whatever becomes of this one. Like a command it cannot be cancelled.
    Lend {
        /// The device.
        handle: Handle,
        /// Which of its queues.
        queue: u16,
        /// Two segments: for heads, and for what follows them.
        memory: Payload,
    },
    /// Answers the message in lent memory, and waits for the next one there.
    Exchange {
        /// The device.
        handle: Handle,
        /// The queue that the memory was lent to.
        queue: u16,
        /// The message's number.
        message: u64,
    },
}

/// A direction of [`Driver::copy_now`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyWay {
    /// From the file into memory.
    Out,
    /// From memory into the file.
    In,
}

/// The end of an operation (or one result of a multishot one).
#[derive(Debug)]
pub struct Completion {
    /// The submitter's token.
    pub token: OpToken,
    /// Bytes done, the accepted descriptor, or the error.
    pub result: OpResult,
    /// The memory the operation owned.
    pub payload: Payload,
    /// More completions of this operation follow.
    pub more: bool,
}

/// Wakes a blocked driver from any thread.
pub trait Wake: Send + Sync {
    /// Makes the current or next [`Driver::wait`] return soon. Cheap when repeated.
    fn wake(&self);
}

/// Wakes nobody: for a host that never blocks, or that looks for what is ready by itself.
#[derive(Clone, Copy, Debug)]
pub struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

/// The world as a lane sees it.
pub trait Driver {
    /// The name shown to people: `io_uring`, `portable`, `simulated`.
    fn name(&self) -> &'static str;

    /// Takes over a descriptor.
    fn register(&mut self, raw: RawHandle) -> Result<Handle, Errno>;

    /// Makes a stream socket and begins to connect it; never blocks. The handle can be used at
    /// once: sends and receives wait until the connection stands, and if it cannot be made, they
    /// end with the reason (a connect itself has no completion).
    ///
    /// # Errors
    /// The kernel's, for what it knows at once: nobody listens at a unix socket (`ECONNREFUSED`,
    /// `ENOENT`), its queue is full (`EAGAIN`). `ENETUNREACH` from a driver without network.
    fn connect(&mut self, peer: &PeerAddress) -> Result<Handle, Errno> {
        let _ = peer;
        Err(ENETUNREACH)
    }

    /// Closes a registered descriptor. Operations in flight on it still complete.
    fn close(&mut self, handle: Handle);

    /// Shuts a socket down in both directions, so that operations in flight on it complete.
    fn shutdown(&mut self, handle: Handle);

    /// Starts an operation. It may be held back until the next [`Driver::wait`] (batching).
    fn submit(&mut self, token: OpToken, op: DriverOp);

    /// Rings an eventfd: adds one to its counter, with the operations of the next
    /// [`Driver::wait`] at the latest. Nothing comes back. One that cannot be rung (closed, its
    /// counter full) is not.
    fn signal(&mut self, handle: Handle) {
        let _ = handle;
    }

    /// Copies between memory and a file of the kernel that answers at once, since it only copies
    /// (the data of a ublk request). Bytes done. Not for anything that may wait.
    ///
    /// # Errors
    /// The file's; `ENOSYS` from a driver without such files.
    fn copy_now(
        &mut self,
        handle: Handle,
        offset_bytes: u64,
        payload: &Payload,
        way: CopyWay,
    ) -> OpResult {
        let _ = (handle, offset_bytes, payload, way);
        Err(ENOSYS)
    }

    /// Asks for an operation to end early; it still completes exactly once.
    fn cancel(&mut self, token: OpToken);

    /// Starts what was submitted and appends completions. Without a completion at hand it blocks:
    /// until `deadline` (`Some`), without limit (`None`), or not at all if `deadline` has passed;
    /// [`Wake::wake`] ends the wait early.
    fn wait(&mut self, deadline: Option<Nanos>, completions: &mut Vec<Completion>);

    /// The time, read from the clock. A lane reads it once a turn.
    fn now(&mut self) -> Nanos;

    /// A handle that wakes this driver.
    fn waker(&self) -> Arc<dyn Wake>;
}
