//! From the error codes of NBD to the engine's status.
//!
//! The server speaks with the numbers of Linux, but only a few of them exist on the wire. Whatever
//! else comes is `IoErr`; nothing ever becomes `Ok`.

use super::wire::ERROR_SHUTDOWN;
use udm_types::Status;

/// The status for an error code of a reply.
pub(super) fn status_from_error(code: u32) -> Status {
    match code {
        // EPERM: the export is read-only.
        1 => Status::ReadOnly,
        // ENOMEM.
        12 => Status::Resource,
        // EINVAL; EOVERFLOW: a read too large to answer in one chunk.
        22 | 75 => Status::Invalid,
        // ENOSPC; also a write beyond the end.
        28 => Status::NoSpace,
        // ENOTSUP.
        95 => Status::NotSupported,
        // The server stops. Another path, or a later attempt, may do.
        ERROR_SHUTDOWN => Status::Transport,
        _ => Status::IoErr,
    }
}

#[cfg(test)]
mod tests {
    use super::status_from_error;
    use udm_types::Status;

    #[test]
    fn every_code_of_the_protocol_has_its_status_and_none_is_success() {
        for (code, status) in [
            (1, Status::ReadOnly),
            (5, Status::IoErr),
            (12, Status::Resource),
            (22, Status::Invalid),
            (28, Status::NoSpace),
            (75, Status::Invalid),
            (95, Status::NotSupported),
            (108, Status::Transport),
        ] {
            assert_eq!(status_from_error(code), status, "{code}");
        }
        for code in (1..300).chain([u32::MAX]) {
            assert!(!status_from_error(code).is_ok());
        }
    }
}
