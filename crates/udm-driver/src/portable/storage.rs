//! One file operation as blocking system calls, run by a thread of the pool.
//!
//! Answers what io_uring would: bytes done or an error number. How a call is repeated, and what
//! makes a write durable, is in `calls.rs`.
//!
//! Rules. The caller keeps descriptor and payload for the time of the call; the list of addresses
//! is the thread's own and holds nothing between two calls.

use crate::calls::{retry, write_at};
use crate::handles::raw_of;
use crate::shape::{Shape, fallocate_mode};
use crate::vectors::Vectors;
use std::os::fd::OwnedFd;
use udm_lane::{Errno, OpResult, Payload};

/// Does it. Blocks for as long as the kernel does.
pub(crate) fn run(
    file: &OwnedFd,
    shape: Shape,
    payload: &Payload,
    vectors: &mut Vectors,
) -> OpResult {
    match shape {
        Shape::Read { offset_bytes } => {
            let list = vectors.fill(payload);
            let (start, count) = (list.as_ptr(), list.len() as i32);
            // SAFETY: the list points into the payload, which the caller keeps for the call.
            retry(|| unsafe { libc::preadv(raw_of(file), start, count, offset_bytes as i64) })
        }
        Shape::Write { offset_bytes, dsync } => {
            let list = vectors.fill(payload);
            let (start, count) = (list.as_ptr(), list.len() as i32);
            // SAFETY: as for the read.
            unsafe { write_at(raw_of(file), start, count, offset_bytes, dsync) }
        }
        // SAFETY: a call on an open descriptor, without memory.
        Shape::Sync => retry(|| unsafe { libc::fdatasync(raw_of(file)) } as isize),
        Shape::Fallocate { kind, offset_bytes, len_bytes } => {
            let (offset, len) = (offset_bytes as i64, len_bytes as i64);
            // SAFETY: as for the sync. Both numbers were checked to fit (`Shape::check`).
            retry(|| unsafe {
                libc::fallocate(raw_of(file), fallocate_mode(kind), offset, len) as isize
            })
        }
        // The driver tries these itself and never hands them to the pool.
        Shape::Recv
        | Shape::Send
        | Shape::Accept
        | Shape::Watch
        | Shape::Command { .. }
        | Shape::Lend { .. }
        | Shape::Exchange { .. } => Err(Errno(libc::EINVAL)),
    }
}
