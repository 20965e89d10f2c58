//! Blocking system calls, made until they are through.
//!
//! Used by every thread that may block in the kernel for a file: the portable driver's pool and
//! the ring's writer. Answers are what io_uring would say: bytes done or an error number. A call
//! that a signal interrupts is made again.
//!
//! Rules. Nothing here knows operations or owns memory; whoever calls keeps the memory and the
//! descriptor valid until the call returns.
//!
//! The tricky case is a durable write. It uses `RWF_DSYNC`; on kernels or file systems without
//! it, a plain write is followed by `fdatasync`, which promises at least as much.

use crate::handles::last_errno;
use std::os::fd::RawFd;
use udm_lane::{Errno, OpResult};

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

/// Writes `count` vectors at a byte offset; durable on return if `dsync`.
///
/// # Safety
/// `start` points to `count` vectors. They, and the memory they name, stay valid during the call.
pub(crate) unsafe fn write_at(
    fd: RawFd,
    start: *const libc::iovec,
    count: i32,
    offset_bytes: u64,
    dsync: bool,
) -> OpResult {
    // Checked to fit when the operation was submitted (`Shape::check`).
    let offset = offset_bytes as i64;
    if dsync {
        // SAFETY: the caller's promise about the vectors.
        let result = retry(|| unsafe { libc::pwritev2(fd, start, count, offset, libc::RWF_DSYNC) });
        if !matches!(result, Err(Errno(libc::ENOSYS | libc::EOPNOTSUPP))) {
            return result;
        }
    }
    // SAFETY: as above.
    let written = retry(|| unsafe { libc::pwritev(fd, start, count, offset) })?;
    if dsync {
        // SAFETY: a call on a descriptor, without memory.
        retry(|| unsafe { libc::fdatasync(fd) } as isize)?;
    }
    Ok(written)
}
