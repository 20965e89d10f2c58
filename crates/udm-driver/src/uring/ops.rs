//! Submission entries: one [`DriverOp`] becomes one entry.
//!
//! Called by `submit` with the operation already in its slot, so every address put into an entry
//! points into memory that the slot keeps until the final completion.
//!
//! Choices worth knowing. A single segment goes as a plain read, write, receive or send, which is
//! cheaper for the kernel than a list of one. Sends ask the kernel to go on until everything is
//! sent (`MSG_WAITALL`), so a big reply costs one completion. Byte offsets above `i64::MAX` are
//! refused here: the kernel would take minus one for "the current position".

use super::slots::{OpKind, Slot};
use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types};
use udm_lane::{DriverOp, Errno, FallocateKind, Handle, Payload};

/// A descriptor as an entry names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// A place in the ring's file table, or a descriptor number.
    pub(crate) number: i32,
    /// Which of the two.
    pub(crate) fixed: bool,
}

/// What an entry needs besides the payload.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    Read { offset_bytes: u64 },
    Write { offset_bytes: u64, dsync: bool },
    Sync,
    Fallocate { kind: FallocateKind, offset_bytes: u64, len_bytes: u64 },
    Recv,
    Send,
    Accept { multishot: bool },
}

/// Takes an operation apart: which file, what to do, with which memory.
pub(crate) fn split(op: DriverOp, multishot: bool) -> (Handle, Shape, Payload) {
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
        DriverOp::Accept { handle } => (handle, Shape::Accept { multishot }, Payload::empty()),
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
            Shape::Sync | Shape::Recv | Shape::Send | Shape::Accept { multishot: _ } => 0,
        };
        if end > i64::MAX as u64 { Err(Errno(libc::EINVAL)) } else { Ok(()) }
    }

    /// How such an operation ends.
    pub(crate) fn kind(self) -> OpKind {
        match self {
            Shape::Read { offset_bytes: _ }
            | Shape::Write { offset_bytes: _, dsync: _ }
            | Shape::Sync
            | Shape::Fallocate { kind: _, offset_bytes: _, len_bytes: _ } => OpKind::Storage,
            Shape::Recv => OpKind::Recv,
            Shape::Send => OpKind::Send,
            Shape::Accept { multishot: _ } => OpKind::Accept,
        }
    }
}

/// The submission entry of an operation whose payload lies in `slot`.
#[inline]
pub(crate) fn entry(shape: Shape, target: Target, slot: &mut Slot) -> Entry {
    let fd = types::Fd(target.number);
    let entry = match shape {
        Shape::Read { offset_bytes } => read(fd, slot, offset_bytes),
        Shape::Write { offset_bytes, dsync } => {
            write(fd, slot, offset_bytes, if dsync { libc::RWF_DSYNC } else { 0 })
        }
        Shape::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        Shape::Fallocate { kind, offset_bytes, len_bytes } => opcode::Fallocate::new(fd, len_bytes)
            .offset(offset_bytes)
            .mode(fallocate_mode(kind))
            .build(),
        Shape::Recv => {
            let (start, len_bytes) = single(slot).unwrap_or((std::ptr::null_mut(), 0));
            opcode::Recv::new(fd, start, len_bytes).build()
        }
        Shape::Send => send(fd, slot),
        Shape::Accept { multishot: true } => {
            opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build()
        }
        Shape::Accept { multishot: false } => {
            opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build()
        }
    };
    // The opcode builders choose this flag by the *type* of the descriptor; here it is a value.
    if target.fixed { entry.flags(Flags::FIXED_FILE) } else { entry }
}

/// `fallocate`'s mode for a kind.
pub(crate) fn fallocate_mode(kind: FallocateKind) -> i32 {
    match kind {
        FallocateKind::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        FallocateKind::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
    }
}

fn read(fd: types::Fd, slot: &mut Slot, offset_bytes: u64) -> Entry {
    if let Some((start, len_bytes)) = single(slot) {
        return opcode::Read::new(fd, start, len_bytes).offset(offset_bytes).build();
    }
    let list = slot.vectors().iovecs();
    opcode::Readv::new(fd, list.as_ptr(), list.len() as u32).offset(offset_bytes).build()
}

fn write(fd: types::Fd, slot: &mut Slot, offset_bytes: u64, rw_flags: i32) -> Entry {
    if let Some((start, len_bytes)) = single(slot) {
        return opcode::Write::new(fd, start, len_bytes)
            .offset(offset_bytes)
            .rw_flags(rw_flags)
            .build();
    }
    let list = slot.vectors().iovecs();
    opcode::Writev::new(fd, list.as_ptr(), list.len() as u32)
        .offset(offset_bytes)
        .rw_flags(rw_flags)
        .build()
}

fn send(fd: types::Fd, slot: &mut Slot) -> Entry {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
    if let Some((start, len_bytes)) = single(slot) {
        return opcode::Send::new(fd, start, len_bytes).flags(flags).build();
    }
    opcode::SendMsg::new(fd, slot.vectors().message()).flags(flags as u32).build()
}

/// The one segment of a payload (or nothing at all), as address and length.
fn single(slot: &Slot) -> Option<(*mut u8, u32)> {
    let mut segments = slot.payload.segments();
    match (segments.next(), segments.next()) {
        (None, _) => Some((std::ptr::null_mut(), 0)),
        (Some(segment), None) => Some((segment.as_ptr(), segment.len_bytes)),
        (Some(_), Some(_)) => None,
    }
}
