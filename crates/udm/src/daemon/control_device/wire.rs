//! What CUSE says and hears: the part of the FUSE protocol that a character device needs.
//!
//! Pure: bytes in, meaning out, and answers as bytes; `mod.rs` reads and writes them. The kernel of
//! this machine speaks in its own byte order; every field is read by its place, and what is missing
//! is zero, so no message can be too short to look at.
//!
//! The tricky case is an ioctl's buffer. CUSE does not know how long a dm ioctl is, so the answer
//! to the first message is which bytes of the caller are wanted ([`Stage::Retry`]); the same ioctl
//! comes again with them. The size is in those bytes, so it takes up to three rounds.

use udm_control::ioctl;
use udm_control::ioctl::layout::{
    CALL_LEN_BYTES_MAX, DATA_SIZE_AT, FLAGS_AT, HEADER_LEN_BYTES, HEADER_LEN_BYTES_MIN,
    VERSION_LEN_BYTES, flag, is_dm,
};

/// What a message asks for.
pub(super) mod opcode {
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const IOCTL: u32 = 39;
    pub(crate) const POLL: u32 = 40;
    pub(crate) const CUSE_INIT: u32 = 4096;
}

/// Error numbers, as Linux numbers them.
pub(super) mod errno {
    pub(crate) const EINTR: i32 = 4;
    pub(crate) const EIO: i32 = 5;
    pub(crate) const ENXIO: i32 = 6;
    pub(crate) const EAGAIN: i32 = 11;
    pub(crate) const ENOMEM: i32 = 12;
    pub(crate) const EACCES: i32 = 13;
    pub(crate) const EFAULT: i32 = 14;
    pub(crate) const ENOTTY: i32 = 25;
    pub(crate) const ENOSYS: i32 = 38;
}

/// The oldest minor version with retries as they are used here.
const MINOR_OLDEST: u32 = 16;
const MAJOR: u32 = 7;
const MINOR: u32 = 31;
const IN_HEADER_BYTES: usize = 40;
const OUT_HEADER_BYTES: usize = 16;
const IOCTL_IN_BYTES: usize = 32;
/// Most bytes of a caller that CUSE carries: 32 pages.
pub(super) const ROOM_BYTES_MAX: usize = 128 << 10;
/// Room for the longest message.
pub(super) const MESSAGE_BYTES_MAX: usize = ROOM_BYTES_MAX + (64 << 10);
/// Ioctls may name any bytes of their caller.
const UNRESTRICTED_IOCTL: u32 = 1;
const IOCTL_RETRY: u32 = 1 << 2;
const POLL_SCHEDULE_NOTIFY: u32 = 1;
const POLLIN: u32 = 1 | 1 << 6;
const NOTIFY_POLL: i32 = 1;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_ne_bytes(*word))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_ne_bytes(*word))
}

/// A message of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) opcode: u32,
    /// What its answer is known by.
    pub(super) unique: u64,
    /// Who does it.
    pub(super) uid: u32,
    pub(super) body: &'a [u8],
}

impl Message<'_> {
    pub(super) fn of(bytes: &[u8]) -> Message<'_> {
        Message {
            opcode: u32_at(bytes, 4),
            unique: u64_at(bytes, 8),
            uid: u32_at(bytes, 24),
            body: bytes.get(IN_HEADER_BYTES..).unwrap_or_default(),
        }
    }

    /// The open file of an ioctl, a poll or a release; the message an interrupt is about.
    pub(super) fn handle(&self) -> u64 {
        u64_at(self.body, 0)
    }

    /// The number a poll is woken by, if it wants to be.
    pub(super) fn wake(&self) -> Option<u64> {
        (u32_at(self.body, 16) & POLL_SCHEDULE_NOTIFY != 0).then(|| u64_at(self.body, 8))
    }
}

/// An answer: a negative errno or 0, and its body.
fn answer(unique: u64, error: i32, body: &[u8]) -> Vec<u8> {
    let len_bytes = OUT_HEADER_BYTES + body.len();
    // Bodies are bounded by the room of an ioctl.
    let mut bytes = (len_bytes as u32).to_ne_bytes().to_vec();
    bytes.extend(error.to_ne_bytes());
    bytes.extend(unique.to_ne_bytes());
    bytes.extend(body);
    bytes
}

pub(super) fn done(unique: u64) -> Vec<u8> {
    answer(unique, 0, &[])
}

pub(super) fn refused(unique: u64, errno: i32) -> Vec<u8> {
    answer(unique, -errno, &[])
}

/// Accepts the handshake: the device's name, and ioctls of any shape. `None` if the kernel is too
/// old.
pub(super) fn hello(message: &Message<'_>, name: &str) -> Option<Vec<u8>> {
    let (major, minor) = (u32_at(message.body, 0), u32_at(message.body, 4));
    if message.opcode != opcode::CUSE_INIT || major != MAJOR || minor < MINOR_OLDEST {
        return None;
    }
    // Version, flags, the longest read and write (there are none), the number (any), spares.
    let words = [MAJOR, MINOR, 0, UNRESTRICTED_IOCTL, 4096, 4096, 0, 0];
    let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    body.extend([0; 40]);
    // A slash of a device's name is a folder below /dev.
    body.extend(format!("DEVNAME={}\0", name.replace('/', "!")).bytes());
    Some(answer(message.unique, 0, &body))
}

/// A file is open under this number.
pub(super) fn opened(unique: u64, handle: u64) -> Vec<u8> {
    let mut body = handle.to_ne_bytes().to_vec();
    body.extend([0; 8]);
    answer(unique, 0, &body)
}

/// Whether a file is readable.
pub(super) fn polled(unique: u64, readable: bool) -> Vec<u8> {
    let events = if readable { POLLIN } else { 0 };
    answer(unique, 0, &[events.to_ne_bytes(), [0; 4]].concat())
}

/// Has a waiting poll asked again.
pub(super) fn wake_up(wake: u64) -> Vec<u8> {
    answer(0, NOTIFY_POLL, &wake.to_ne_bytes())
}

/// An ioctl as far as its bytes have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ioctl<'a> {
    pub(super) command: u32,
    /// Where the caller's buffer is.
    argument: u64,
    /// Bytes that may be written back.
    room_bytes: usize,
    data: &'a [u8],
}

/// What is to be done about an ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// More of the caller's bytes are needed, and room for the answer.
    Retry { wanted_bytes: usize, room_bytes: usize },
    /// All is there: the first so many bytes are the call.
    Ask { call_bytes: usize },
    /// It ends with this errno.
    Refuse(i32),
}

impl<'a> Ioctl<'a> {
    pub(super) fn of(message: &Message<'a>) -> Ioctl<'a> {
        let body = message.body;
        let data = body.get(IOCTL_IN_BYTES..).unwrap_or_default();
        let len_bytes = (u32_at(body, 24) as usize).min(data.len());
        Ioctl {
            command: u32_at(body, 12),
            argument: u64_at(body, 16),
            room_bytes: u32_at(body, 28) as usize,
            data: data.get(..len_bytes).unwrap_or_default(),
        }
    }

    pub(super) fn stage(&self) -> Stage {
        if !is_dm(self.command) {
            return Stage::Refuse(errno::ENOTTY);
        }
        if self.argument == 0 {
            return Stage::Refuse(errno::EFAULT);
        }
        let (has_bytes, room_bytes) = (self.data.len(), self.room_bytes);
        let retry = |wanted_bytes, room_bytes| Stage::Retry { wanted_bytes, room_bytes };
        // The version is all that surely is there, until it has been found good.
        if has_bytes < VERSION_LEN_BYTES || room_bytes < VERSION_LEN_BYTES {
            return retry(VERSION_LEN_BYTES, VERSION_LEN_BYTES);
        }
        if !ioctl::reads_header(self.command) || !ioctl::is_version_good(self.data) {
            return Stage::Ask { call_bytes: VERSION_LEN_BYTES };
        }
        if has_bytes < HEADER_LEN_BYTES_MIN {
            return retry(HEADER_LEN_BYTES_MIN, HEADER_LEN_BYTES_MIN);
        }
        let size_bytes = u32_at(self.data, DATA_SIZE_AT) as usize;
        if !(HEADER_LEN_BYTES_MIN..=CALL_LEN_BYTES_MAX).contains(&size_bytes) {
            return Stage::Ask { call_bytes: HEADER_LEN_BYTES_MIN };
        }
        let whole = ioctl::reads_payload(self.command);
        let wanted_bytes = if whole { size_bytes } else { size_bytes.min(HEADER_LEN_BYTES) };
        if wanted_bytes > ROOM_BYTES_MAX {
            return Stage::Refuse(errno::ENOMEM);
        }
        let wanted_room = size_bytes.min(ROOM_BYTES_MAX);
        if has_bytes < wanted_bytes || room_bytes < wanted_room {
            return retry(wanted_bytes, wanted_room);
        }
        Stage::Ask { call_bytes: wanted_bytes }
    }

    /// The call, with no more room than there is: what does not fit is said to be full.
    pub(super) fn call(&self, call_bytes: usize) -> Vec<u8> {
        let mut call = self.data.get(..call_bytes).unwrap_or(self.data).to_vec();
        let has_size = call.len() >= HEADER_LEN_BYTES_MIN && !ioctl::reads_payload(self.command);
        if has_size && (HEADER_LEN_BYTES_MIN..=CALL_LEN_BYTES_MAX).contains(&self.size_bytes()) {
            let room_bytes = self.size_bytes().min(ROOM_BYTES_MAX) as u32;
            call[DATA_SIZE_AT..DATA_SIZE_AT + 4].copy_from_slice(&room_bytes.to_ne_bytes());
        }
        call
    }

    fn size_bytes(&self) -> usize {
        u32_at(self.data, DATA_SIZE_AT) as usize
    }

    /// Asks for the caller's bytes.
    pub(super) fn retry(&self, unique: u64, wanted_bytes: usize, room_bytes: usize) -> Vec<u8> {
        let mut body = Vec::with_capacity(48);
        // Result, flags, pieces to bring, pieces to write.
        [0, IOCTL_RETRY, 1, 1].iter().for_each(|word| body.extend(word.to_ne_bytes()));
        for len_bytes in [wanted_bytes, room_bytes] {
            body.extend(self.argument.to_ne_bytes());
            body.extend((len_bytes as u64).to_ne_bytes());
        }
        answer(unique, 0, &body)
    }

    /// The answer: an errno or 0, and what goes to the beginning of the caller's buffer.
    pub(super) fn answered(&self, unique: u64, errno: i32, mut bytes: Vec<u8>) -> Vec<u8> {
        if bytes.len() > self.room_bytes {
            return self.answered(unique, errno::ENOMEM, Vec::new());
        }
        let is_whole = self.data.len() >= HEADER_LEN_BYTES_MIN;
        if is_whole && u32_at(self.data, FLAGS_AT) & flag::SECURE_DATA != 0 {
            // The kernel wipes such a buffer before it looks at it.
            bytes.resize(self.room_bytes, 0);
        }
        let mut body = (-errno).to_ne_bytes().to_vec();
        body.extend([0; 12]);
        body.extend(bytes);
        answer(unique, 0, &body)
    }
}

#[cfg(test)]
mod tests;
