//! One file operation as blocking system calls, run by a thread of the pool.
//!
//! Answers what io_uring would: bytes done or an error number. A call that a signal interrupts
//! is made again. A durable write uses `RWF_DSYNC`; on kernels or file systems without it, a
//! plain write is followed by `fdatasync`, which promises at least as much.

use crate::handles::{last_errno, raw_of};
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
        Shape::Write { offset_bytes, dsync } => write(file, offset_bytes, dsync, payload, vectors),
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
        Shape::Recv | Shape::Send | Shape::Accept => Err(Errno(libc::EINVAL)),
    }
}

fn write(
    file: &OwnedFd,
    offset_bytes: u64,
    dsync: bool,
    payload: &Payload,
    vectors: &mut Vectors,
) -> OpResult {
    let list = vectors.fill(payload);
    let (fd, start, count) = (raw_of(file), list.as_ptr(), list.len() as i32);
    let offset = offset_bytes as i64;
    if dsync {
        // SAFETY: the list points into the payload, which the caller keeps for the call.
        let result = retry(|| unsafe { libc::pwritev2(fd, start, count, offset, libc::RWF_DSYNC) });
        if !matches!(result, Err(Errno(libc::ENOSYS | libc::EOPNOTSUPP))) {
            return result;
        }
    }
    // SAFETY: as above.
    let written = retry(|| unsafe { libc::pwritev(fd, start, count, offset) })?;
    if dsync {
        // SAFETY: a call on an open descriptor, without memory.
        retry(|| unsafe { libc::fdatasync(fd) } as isize)?;
    }
    Ok(written)
}

/// Makes a call until it is not interrupted.
pub(crate) fn retry(mut call: impl FnMut() -> isize) -> OpResult {
    loop {
        let result = call();
        if result >= 0 {
            return Ok(u32::try_from(result).unwrap_or(u32::MAX));
        }
        let errno = last_errno();
        if errno != Errno(libc::EINTR) {
            return Err(errno);
        }
    }
}
