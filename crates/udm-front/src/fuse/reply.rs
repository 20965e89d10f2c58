//! The bytes of each answer.
//!
//! An answer is small and fixed, so it is made on the stack; only a read's answer has data, which
//! is already where it has to be, with room for its head before it.

use super::wire::{ANSWER_BYTES_MAX, OUT_HEADER_BYTES, OutHeader, errno};
use udm_types::Status;
use zerocopy::{Immutable, IntoBytes};

/// An answer without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    bytes: [u8; ANSWER_BYTES_MAX],
    len: usize,
}

impl Answer {
    /// "Done", and nothing more.
    pub fn done(unique: u64) -> Answer {
        Answer::of(unique, &[0_u8; 0])
    }

    /// "Failed", with a positive error number.
    pub fn error(unique: u64, errno: i32) -> Answer {
        let mut answer = Answer::of(unique, &[0_u8; 0]);
        answer.set_head(OutHeader { len: OUT_HEADER_BYTES as u32, error: -errno, unique });
        answer
    }

    /// A structure.
    pub fn of<T: IntoBytes + Immutable + ?Sized>(unique: u64, body: &T) -> Answer {
        let body = body.as_bytes();
        let len = OUT_HEADER_BYTES + body.len();
        let mut answer = Answer { bytes: [0; ANSWER_BYTES_MAX], len };
        // Fits: `ANSWER_BYTES_MAX` is the longest structure's.
        answer.set_head(OutHeader { len: len as u32, error: 0, unique });
        answer.bytes[OUT_HEADER_BYTES..len].copy_from_slice(body);
        answer
    }

    fn set_head(&mut self, head: OutHeader) {
        self.bytes[..OUT_HEADER_BYTES].copy_from_slice(head.as_bytes());
    }

    /// What to send.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The head of a read's answer; `len_bytes` of data follow.
pub fn data_head(unique: u64, len_bytes: u32) -> [u8; OUT_HEADER_BYTES] {
    let head = OutHeader { len: OUT_HEADER_BYTES as u32 + len_bytes, error: 0, unique };
    let mut bytes = [0; OUT_HEADER_BYTES];
    bytes.copy_from_slice(head.as_bytes());
    bytes
}

/// The error number a program sees for a bio's result; `None` if it went well.
pub fn errno_of(status: Status) -> Option<i32> {
    match status {
        Status::Ok => None,
        Status::NotSupported => Some(errno::EOPNOTSUPP),
        Status::NoSpace => Some(errno::ENOSPC),
        Status::Resource | Status::DevResource => Some(errno::ENOMEM),
        Status::Invalid => Some(errno::EINVAL),
        Status::ReadOnly => Some(errno::EROFS),
        // A file knows one word for all of them; the device's status says more.
        Status::Timeout
        | Status::Transport
        | Status::Target
        | Status::Reservation
        | Status::Medium
        | Status::Protection
        | Status::Again
        | Status::Offline
        | Status::IoErr => Some(errno::EIO),
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, data_head, errno_of};
    use crate::fuse::wire::{OutHeader, WriteOut, errno};
    use udm_types::Status;
    use zerocopy::FromBytes;

    fn head(bytes: &[u8]) -> OutHeader {
        OutHeader::read_from_prefix(bytes).expect("a head").0
    }

    #[test]
    fn heads_count_themselves_and_what_follows() {
        let done = Answer::done(7);
        let got = head(done.as_bytes());
        assert_eq!((got.len, got.error, got.unique, done.as_bytes().len()), (16, 0, 7, 16));
        let error = head(Answer::error(8, errno::EROFS).as_bytes());
        assert_eq!((error.len, error.error), (16, -30));
        let written = Answer::of(9, &WriteOut { size: 512, padding: 0 });
        assert_eq!((head(written.as_bytes()).len, written.as_bytes()[17]), (24, 2));
        assert_eq!(head(&data_head(1, 4096)).len, 4112);
    }

    #[test]
    fn every_failure_has_a_number_and_success_has_none() {
        assert_eq!(errno_of(Status::Ok), None);
        assert_eq!(errno_of(Status::NoSpace), Some(errno::ENOSPC));
        assert_eq!(errno_of(Status::Offline), Some(errno::EIO));
    }
}
