//! Why a driver could not be made.
//!
//! Seen by people only as the text after "refused:" in the daemon's first line, so each says
//! which step failed and with which error.

use std::fmt;
use udm_lane::Errno;

/// A driver that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {}", ErrnoText(*errno))]
pub struct DriverError {
    /// The step that failed: a system call or a missing ability.
    pub step: &'static str,
    /// What the kernel answered.
    pub errno: Errno,
}

impl DriverError {
    pub(crate) fn refused(step: &'static str, errno: Errno) -> DriverError {
        DriverError { step, errno }
    }

    pub(crate) fn refused_by(step: &'static str, error: &std::io::Error) -> DriverError {
        DriverError { step, errno: Errno(error.raw_os_error().unwrap_or(libc::EIO)) }
    }
}

/// An errno as people read it.
struct ErrnoText(Errno);

impl fmt::Display for ErrnoText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0.0))
    }
}
