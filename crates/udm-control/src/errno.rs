//! Error classes as numbers and words: what the kernel would answer, and how C libraries say it.
//!
//! `dmsetup` prints `strerror` of what the kernel returned, and scripts match those words; so the
//! texts here are glibc's, to the letter. The control interface carries the class, the number and
//! our own explanation side by side; nothing is lost on the way to a client.
//!
//! Numbers come from the operating system's own list, not from memory.

use rustix::io::Errno;
use udm_core::error::{ErrorCode, ErrorKind, UserError};

/// Every class, with its name on the wire, its number and its text.
const KINDS: [(ErrorKind, &str, Errno, &str); 14] = [
    (ErrorKind::Invalid, "EINVAL", Errno::INVAL, "Invalid argument"),
    (ErrorKind::NoDevice, "ENXIO", Errno::NXIO, "No such device or address"),
    (ErrorKind::Busy, "EBUSY", Errno::BUSY, "Device or resource busy"),
    (ErrorKind::NoEntry, "ENOENT", Errno::NOENT, "No such file or directory"),
    (ErrorKind::NotBlock, "ENOTBLK", Errno::NOTBLK, "Block device required"),
    (ErrorKind::Access, "EACCES", Errno::ACCESS, "Permission denied"),
    (ErrorKind::ReadOnly, "EROFS", Errno::ROFS, "Read-only file system"),
    (ErrorKind::Interrupted, "EINTR", Errno::INTR, "Interrupted system call"),
    (ErrorKind::TimedOut, "ETIMEDOUT", Errno::TIMEDOUT, "Connection timed out"),
    (ErrorKind::Overflow, "EOVERFLOW", Errno::OVERFLOW, "Value too large for defined data type"),
    (ErrorKind::Io, "EIO", Errno::IO, "Input/output error"),
    (ErrorKind::NoSpace, "ENOSPC", Errno::NOSPC, "No space left on device"),
    (ErrorKind::Unsupported, "EOPNOTSUPP", Errno::OPNOTSUPP, "Operation not supported"),
    (ErrorKind::Again, "EAGAIN", Errno::AGAIN, "Resource temporarily unavailable"),
];

fn row(kind: ErrorKind) -> &'static (ErrorKind, &'static str, Errno, &'static str) {
    KINDS.iter().find(|row| row.0 == kind).unwrap_or(&KINDS[0])
}

/// The number the kernel would return (positive).
pub fn number(kind: ErrorKind) -> i32 {
    row(kind).2.raw_os_error()
}

/// The symbolic name, for instance `EINVAL`.
pub fn name(kind: ErrorKind) -> &'static str {
    row(kind).1
}

/// The C library's words.
pub fn text(kind: ErrorKind) -> &'static str {
    row(kind).3
}

/// The class with this symbolic name.
pub fn kind_named(name: &str) -> Option<ErrorKind> {
    KINDS.iter().find(|row| row.1 == name).map(|row| row.0)
}

/// The class nearest to a system error.
pub fn kind_of(error: &std::io::Error) -> ErrorKind {
    let number = error.raw_os_error();
    let found = KINDS.iter().find(|row| Some(row.2.raw_os_error()) == number);
    found.map_or(ErrorKind::Io, |row| row.0)
}

/// An error of a system call, with what was being done.
pub fn system(code: ErrorCode, what: &str, error: &std::io::Error) -> UserError {
    let words = error.to_string();
    let words = words.split(" (os error").next().unwrap_or_default();
    UserError::new(code, format!("{what}: {words}")).of_kind(kind_of(error))
}

#[cfg(test)]
mod tests {
    use super::{KINDS, kind_named, name, number, text};
    use udm_core::error::{ErrorCode, ErrorKind};

    #[test]
    fn every_class_of_every_code_has_its_own_row() {
        for code in ErrorCode::ALL {
            let kind = code.kind();
            assert_eq!(kind_named(name(kind)), Some(kind), "{}", code.as_str());
        }
        for (index, row) in KINDS.iter().enumerate() {
            assert!(KINDS[..index].iter().all(|other| other.0 != row.0 && other.1 != row.1));
        }
    }

    #[test]
    fn words_are_those_of_the_c_library() {
        for (kind, _, errno, text) in KINDS {
            let system = std::io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
            assert!(system.starts_with(text), "{kind:?}: {system}");
        }
        assert_eq!(
            (number(ErrorKind::Invalid), text(ErrorKind::Busy)),
            (22, "Device or resource busy")
        );
    }
}
