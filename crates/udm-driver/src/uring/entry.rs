//! Submission entries: one operation becomes one entry.
//!
//! Called by `submit` with the operation already in its slot, so every address put into an entry
//! points into memory that the slot keeps until the final completion.
//!
//! Choices worth knowing. A single segment goes as a plain read, write, receive or send, which is
//! cheaper for the kernel than a list of one. Sends ask the kernel to go on until everything is
//! sent (`MSG_WAITALL`), so a big reply costs one completion.

use super::slots::{POLL_BIT, Slot};
use crate::shape::{Shape, fallocate_mode};
use io_uring::squeue::{Entry, Entry128, Flags};
use io_uring::{opcode, types};

/// A descriptor as an entry names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// A place in the ring's file table, or a descriptor number.
    pub(crate) number: i32,
    /// Which of the two.
    pub(crate) fixed: bool,
}

/// The submission entry of an operation whose payload lies in `slot`.
#[inline]
pub(crate) fn entry(shape: Shape, target: Target, slot: &mut Slot, multishot: bool) -> Entry128 {
    let fd = types::Fd(target.number);
    let entry: Entry = match shape {
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
        Shape::Accept if multishot => {
            opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build()
        }
        Shape::Watch => opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build(),
        Shape::Command { code, words } => command(fd, slot, code, words),
        Shape::Lend { queue } => return with_flags(lend(fd, slot, queue), target),
        Shape::Exchange { queue, message } => {
            return with_flags(fuse_command(fd, FUSE_COMMIT, queue, message, None), target);
        }
        Shape::Accept => opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC)
            .build(),
    };
    with_flags(entry.into(), target)
}

/// The opcode builders choose this flag by the *type* of the descriptor; here it is a value.
#[inline]
fn with_flags(entry: Entry128, target: Target) -> Entry128 {
    if target.fixed { entry.flags(Flags::FIXED_FILE) } else { entry }
}

/// The entry that rings an eventfd. It belongs to no slot and reports nothing but a failure.
pub(crate) fn signal(target: Target) -> Entry {
    // Static, so it outlives every operation.
    static ONE: u64 = 1;
    let mut flags = Flags::SKIP_SUCCESS;
    if target.fixed {
        flags |= Flags::FIXED_FILE;
    }
    let one = (&raw const ONE).cast();
    opcode::Write::new(types::Fd(target.number), one, 8).build().flags(flags)
}

/// Waits until there is a message to read; the entry after it goes when there is one.
pub(crate) fn wait_for_message(target: Target, user_data: u64) -> Entry {
    let poll = opcode::PollAdd::new(types::Fd(target.number), libc::POLLIN as u32).build();
    let mut flags = Flags::IO_LINK;
    flags.set(Flags::FIXED_FILE, target.fixed);
    poll.flags(flags).user_data(user_data | POLL_BIT)
}

/// `FUSE_IO_URING_CMD_REGISTER` and `_COMMIT_AND_FETCH`.
const FUSE_REGISTER: u32 = 1;
const FUSE_COMMIT: u32 = 2;
/// Where the length is in a submission entry, which the crate has no way to set for a command.
const LEN_AT: usize = 24;

/// Lends the segments of the slot's payload: two, or the kernel refuses.
fn lend(fd: types::Fd, slot: &mut Slot, queue: u16) -> Entry128 {
    let list = slot.vectors().iovecs();
    let (begin, count) = (list.as_ptr() as u64, list.len() as u32);
    let mut entry = fuse_command(fd, FUSE_REGISTER, queue, 0, Some(begin));
    let len = (&raw mut entry).cast::<u8>().wrapping_add(LEN_AT).cast::<u32>();
    // SAFETY: an entry is the kernel's structure of 128 bytes, of which bytes 24 to 28 are a number
    // of this type at this alignment; see `struct io_uring_sqe`.
    unsafe { len.write(count) };
    entry
}

/// `struct fuse_uring_cmd_req`: flags, the message's number, the queue.
fn fuse_command(fd: types::Fd, code: u32, queue: u16, message: u64, list: Option<u64>) -> Entry128 {
    let mut bytes = [0; 80];
    bytes[8..16].copy_from_slice(&message.to_ne_bytes());
    bytes[16..18].copy_from_slice(&queue.to_ne_bytes());
    opcode::UringCmd80::new(fd, code).cmd(bytes).addr(list).build()
}

/// A ublk command has room for one address; zero if it has no memory.
fn command(fd: types::Fd, slot: &Slot, code: u32, words: [u8; 8]) -> Entry {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&words);
    if let Some(segment) = slot.payload.segments().next() {
        bytes[8..].copy_from_slice(&(segment.as_ptr() as u64).to_ne_bytes());
    }
    opcode::UringCmd16::new(fd, code).cmd(bytes).build()
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
pub(super) fn single(slot: &Slot) -> Option<(*mut u8, u32)> {
    let mut segments = slot.payload.segments();
    match (segments.next(), segments.next()) {
        (None, _) => Some((std::ptr::null_mut(), 0)),
        (Some(segment), None) => Some((segment.as_ptr(), segment.len_bytes)),
        (Some(_), Some(_)) => None,
    }
}
