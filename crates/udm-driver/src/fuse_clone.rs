//! One more descriptor of a FUSE connection, so that several lanes read it.
//!
//! Each descriptor made this way has its own list of requests that are being served, and closing
//! one ends only those. The connection ends when the last one is closed.

use crate::calls::retry;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use udm_lane::Errno;

/// `_IOR(229, 0, u32)`: the descriptor becomes one of the connection of another.
const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;

/// Opens `/dev/fuse` once more, for the connection of `fd`.
///
/// # Errors
/// The kernel's; `EINVAL` if `fd` has not been mounted.
pub fn clone_fuse(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let clone = rustix::fs::open("/dev/fuse", flags, Mode::empty())
        .map_err(|error| Errno(error.raw_os_error()))?;
    let of = fd.as_raw_fd();
    // SAFETY: the kernel reads a descriptor number of 4 bytes from the place given, which is a
    // local variable; it writes nothing.
    retry(|| unsafe {
        libc::ioctl(clone.as_raw_fd(), FUSE_DEV_IOC_CLONE as _, &raw const of) as isize
    })?;
    Ok(clone)
}

#[cfg(test)]
mod tests {
    use super::clone_fuse;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_that_is_no_connection_is_refused() {
        // Where there is no FUSE at all, opening it is what fails.
        let file = File::open("/dev/null").unwrap();
        assert!(clone_fuse(file.as_fd()).is_err());
    }
}
