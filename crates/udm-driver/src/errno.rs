//! From error numbers to the engine's status: the kernel's own table, and what user space adds.
//!
//! Lower devices call this with what a driver's completion carries. The first part is Linux's
//! `blk_errors` table read backwards. The second is what a file can answer and a block device
//! cannot: a descriptor opened read-only, a full quota, a connection that went.
//!
//! Anything unknown is `IoErr`, as in the kernel. No error number ever becomes `Ok`.

use udm_lane::Errno;
use udm_types::Status;

/// The status of an operation that failed with `errno`.
pub fn status_from_errno(errno: Errno) -> Status {
    match errno.0 {
        libc::EOPNOTSUPP => Status::NotSupported,
        libc::ETIMEDOUT => Status::Timeout,
        libc::ENOSPC => Status::NoSpace,
        libc::ENOLINK => Status::Transport,
        libc::EREMOTEIO => Status::Target,
        libc::EBADE => Status::Reservation,
        libc::ENODATA => Status::Medium,
        libc::EILSEQ => Status::Protection,
        libc::ENOMEM => Status::Resource,
        libc::EBUSY => Status::DevResource,
        libc::EAGAIN => Status::Again,
        libc::ENODEV => Status::Offline,
        libc::EINVAL => Status::Invalid,
        // What files and sockets add.
        libc::EDQUOT => Status::NoSpace,
        libc::EFBIG => Status::NoSpace,
        libc::EROFS | libc::EACCES | libc::EPERM => Status::ReadOnly,
        libc::ENXIO => Status::Offline,
        libc::ENOSYS => Status::NotSupported,
        libc::EPIPE
        | libc::ECONNRESET
        | libc::ECONNREFUSED
        | libc::ECONNABORTED
        | libc::ENOTCONN
        | libc::EHOSTUNREACH
        | libc::ENETUNREACH => Status::Transport,
        _ => Status::IoErr,
    }
}

#[cfg(test)]
mod tests {
    use super::status_from_errno;
    use udm_lane::Errno;
    use udm_types::Status;

    #[test]
    fn no_error_number_is_success() {
        for code in -200..2_000 {
            assert_ne!(status_from_errno(Errno(code)), Status::Ok, "errno {code}");
        }
    }

    #[test]
    fn the_kernel_table_holds_and_the_rest_is_io_error() {
        for (code, status) in [
            (libc::EOPNOTSUPP, Status::NotSupported),
            (libc::ENOSPC, Status::NoSpace),
            (libc::ENODATA, Status::Medium),
            (libc::EILSEQ, Status::Protection),
            (libc::EBUSY, Status::DevResource),
            (libc::EROFS, Status::ReadOnly),
            (libc::ECONNRESET, Status::Transport),
            (libc::EBADF, Status::IoErr),
            (libc::ECANCELED, Status::IoErr),
            (libc::EIO, Status::IoErr),
        ] {
            assert_eq!(status_from_errno(Errno(code)), status, "errno {code}");
        }
    }
}
