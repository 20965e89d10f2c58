//! The result of a bio: a small copyable status.
//!
//! errno, NBD and virtio codes exist only at the borders (drivers, fronts, control). There is no
//! "requeue" status on purpose: pushing a bio back is a return value of a target
//! (`Mapped::Requeue`), so it cannot reach a submitter by mistake.

/// How a bio ended. The names and meanings are those of Linux's `blk_status_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Status {
    /// Done.
    #[default]
    Ok,
    /// The operation is not supported (EOPNOTSUPP).
    NotSupported,
    /// It took too long (ETIMEDOUT).
    Timeout,
    /// No space left below (ENOSPC).
    NoSpace,
    /// The transport to the device failed (ENOLINK).
    Transport,
    /// The device itself refused (EREMOTEIO).
    Target,
    /// Reservation conflict (EBADE).
    Reservation,
    /// The medium is damaged (ENODATA).
    Medium,
    /// Data failed its integrity check (EILSEQ).
    Protection,
    /// Out of memory or another shared resource (ENOMEM).
    Resource,
    /// The device is out of a resource (EBUSY).
    DevResource,
    /// Would have to wait (EAGAIN).
    Again,
    /// The device is gone or fenced (ENODEV).
    Offline,
    /// The request makes no sense (EINVAL).
    Invalid,
    /// The device is read-only (EROFS).
    ReadOnly,
    /// Everything else (EIO).
    IoErr,
}

impl Status {
    /// True for [`Status::Ok`].
    #[inline]
    pub fn is_ok(self) -> bool {
        matches!(self, Status::Ok)
    }

    /// A short lower-case description for people.
    pub fn describe(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::NotSupported => "operation not supported",
            Status::Timeout => "timed out",
            Status::NoSpace => "no space left below",
            Status::Transport => "transport failed",
            Status::Target => "refused by the device",
            Status::Reservation => "reservation conflict",
            Status::Medium => "medium error",
            Status::Protection => "integrity check failed",
            Status::Resource => "out of resources",
            Status::DevResource => "device out of resources",
            Status::Again => "would block",
            Status::Offline => "device offline",
            Status::Invalid => "invalid request",
            Status::ReadOnly => "read-only device",
            Status::IoErr => "I/O error",
        }
    }
}
