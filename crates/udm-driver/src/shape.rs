//! Operations taken apart: what to do, apart from the file and the memory.
//!
//! Both drivers turn a [`DriverOp`] into a file, a [`Shape`] and a payload first. The shape is
//! small and copied freely; the payload is moved once, to wherever it stays until the operation
//! has ended.
//!
//! Byte offsets above `i64::MAX` are refused here, for both drivers alike: the kernel would call
//! some of them negative and take minus one for "the current position".

use crate::handles::FileClass;
use udm_lane::{DriverOp, Errno, FallocateKind, Handle, Payload};

/// An operation without its file and its memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    Read { offset_bytes: u64 },
    Write { offset_bytes: u64, dsync: bool },
    Sync,
    Fallocate { kind: FallocateKind, offset_bytes: u64, len_bytes: u64 },
    Recv,
    Send,
    Accept,
    Watch,
    Command { code: u32, words: [u8; 8] },
    Lend { queue: u16 },
    Exchange { queue: u16, message: u64 },
}

/// Takes an operation apart: which file, what to do, with which memory.
pub(crate) fn split(op: DriverOp) -> (Handle, Shape, Payload) {
    match op {
        DriverOp::Read { handle, offset_bytes, payload } => {
            (handle, Shape::Read { offset_bytes }, payload)
        }
        DriverOp::Write { handle, offset_bytes, payload, dsync } => {
            (handle, Shape::Write { offset_bytes, dsync }, payload)
        }
        DriverOp::Sync { handle } => (handle, Shape::Sync, Payload::empty()),
        DriverOp::Fallocate { handle, kind, offset_bytes, len_bytes } => {
            (handle, Shape::Fallocate { kind, offset_bytes, len_bytes }, Payload::empty())
        }
        DriverOp::Recv { handle, segment } => (handle, Shape::Recv, Payload::from(segment)),
        DriverOp::Send { handle, payload } => (handle, Shape::Send, payload),
        DriverOp::Accept { handle } => (handle, Shape::Accept, Payload::empty()),
        DriverOp::Watch { handle } => (handle, Shape::Watch, Payload::empty()),
        DriverOp::Command { handle, code, words, memory } => {
            (handle, Shape::Command { code, words }, memory)
        }
        DriverOp::Lend { handle, queue, memory } => (handle, Shape::Lend { queue }, memory),
        DriverOp::Exchange { handle, queue, message } => {
            (handle, Shape::Exchange { queue, message }, Payload::empty())
        }
    }
}

impl Shape {
    /// Refuses what the kernel would misunderstand.
    pub(crate) fn check(self) -> Result<(), Errno> {
        let end = match self {
            Shape::Read { offset_bytes } | Shape::Write { offset_bytes, dsync: _ } => offset_bytes,
            Shape::Fallocate { kind: _, offset_bytes, len_bytes } => {
                offset_bytes.saturating_add(len_bytes)
            }
            Shape::Sync
            | Shape::Recv
            | Shape::Send
            | Shape::Accept
            | Shape::Watch
            | Shape::Command { .. }
            | Shape::Lend { .. }
            | Shape::Exchange { .. } => 0,
        };
        if end > i64::MAX as u64 { Err(Errno(libc::EINVAL)) } else { Ok(()) }
    }

    /// How such an operation ends on a file of this class.
    pub(crate) fn kind(self, class: FileClass) -> OpKind {
        match (self, class) {
            (Shape::Read { .. }, FileClass::Messages) => OpKind::Take,
            (Shape::Read { .. }, FileClass::Socket | FileClass::Stream | FileClass::Event)
            | (Shape::Recv, _) => OpKind::Recv,
            (
                Shape::Write { .. },
                FileClass::Socket | FileClass::Stream | FileClass::Event | FileClass::Messages,
            )
            | (Shape::Send, _) => OpKind::Send,
            (Shape::Accept, _) => OpKind::Accept,
            (Shape::Watch, _) => OpKind::Watch,
            (Shape::Command { .. }, _) => OpKind::Command,
            (Shape::Lend { .. }, _) => OpKind::Lend,
            (Shape::Exchange { .. }, _) => OpKind::Exchange,
            (Shape::Read { .. } | Shape::Write { .. }, FileClass::Storage)
            | (Shape::Sync | Shape::Fallocate { .. }, _) => OpKind::Storage,
        }
    }
}

/// How an operation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpKind {
    /// By itself, in bounded time.
    Storage,
    /// When the peer sends or goes.
    Recv,
    /// When there is a message nobody else takes, or the peer goes.
    Take,
    /// When the peer has taken bytes or goes.
    Send,
    /// When cancelled; has many results, each a descriptor.
    Accept,
    /// When cancelled; has many results that mean nothing but "look".
    Watch,
    /// When the device answers; nothing else ends it.
    Command,
    /// As a command; its memory is the file's from then on.
    Lend,
    /// As a command; the memory it is about is the file's.
    Exchange,
}

/// `fallocate`'s mode for a kind.
pub(crate) fn fallocate_mode(kind: FallocateKind) -> i32 {
    match kind {
        FallocateKind::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        FallocateKind::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
    }
}
