//! Where things are in a dm ioctl, for everybody who carries one: the preload library, the
//! character device, the fuzzers.
//!
//! One place for numbers that several crates need; each is derived from the header's structure
//! (`header.rs`), so they cannot disagree with what the interface itself reads. Nothing here reads
//! or writes.
//!
//! The tricky case is that a header has two lengths: up to its last field, which a call needs, and
//! up to the end of the structure, where results begin.

use super::header::{Header, VERSION};
use core::mem::offset_of;

/// The type byte of every dm ioctl.
pub const IOCTL_TYPE: u32 = 0xfd;
/// Bytes of the version, which every call begins with.
pub const VERSION_LEN_BYTES: usize = size_of_val(&VERSION);
/// Bytes of the header that a call has to have; a payload may begin here.
pub const HEADER_LEN_BYTES_MIN: usize = offset_of!(Header, data);
/// Bytes of the structure; results begin here.
pub const HEADER_LEN_BYTES: usize = size_of::<Header>();
/// Most bytes of a call (the kernel's limit).
pub const CALL_LEN_BYTES_MAX: usize = 1 << 30;

/// How much room the caller has, in bytes: 4 bytes.
pub const DATA_SIZE_AT: usize = offset_of!(Header, data_size);
/// The flags: 4 bytes.
pub const FLAGS_AT: usize = offset_of!(Header, flags);
/// Number of the last event, or a udev cookie: 4 bytes.
pub const EVENT_NR_AT: usize = offset_of!(Header, event_nr);
/// The device's number: 8 bytes.
pub const DEV_AT: usize = offset_of!(Header, dev);
/// The name, with a NUL at its end.
pub const NAME_AT: usize = offset_of!(Header, name);
/// Bytes of the name.
pub const NAME_LEN_BYTES: usize = UUID_AT - NAME_AT;
/// The uuid, with a NUL at its end.
pub const UUID_AT: usize = offset_of!(Header, uuid);
/// Bytes of the uuid.
pub const UUID_LEN_BYTES: usize = offset_of!(Header, data) - UUID_AT;

/// True if a request number is one of the device mapper's.
pub fn is_dm(request: u32) -> bool {
    (request >> 8) & 0xff == IOCTL_TYPE
}

/// Flags of the header, by the kernel's names without `DM_` and `_FLAG`.
#[expect(missing_docs, reason = "they are the kernel's, and documented there")]
pub mod flag {
    pub const READONLY: u32 = 1 << 0;
    pub const SUSPEND: u32 = 1 << 1;
    pub const PERSISTENT_DEV: u32 = 1 << 3;
    pub const STATUS_TABLE: u32 = 1 << 4;
    pub const ACTIVE_PRESENT: u32 = 1 << 5;
    pub const INACTIVE_PRESENT: u32 = 1 << 6;
    pub const BUFFER_FULL: u32 = 1 << 8;
    pub const NOFLUSH: u32 = 1 << 11;
    pub const QUERY_INACTIVE_TABLE: u32 = 1 << 12;
    pub const UEVENT_GENERATED: u32 = 1 << 13;
    pub const UUID: u32 = 1 << 14;
    pub const SECURE_DATA: u32 = 1 << 15;
    pub const DATA_OUT: u32 = 1 << 16;
    pub const DEFERRED_REMOVE: u32 = 1 << 17;
    pub const INTERNAL_SUSPEND: u32 = 1 << 18;
    pub const IMA_MEASUREMENT: u32 = 1 << 19;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_laid_out_as_the_kernels() {
        let at = [DATA_SIZE_AT, FLAGS_AT, EVENT_NR_AT, DEV_AT, NAME_AT, UUID_AT];
        assert_eq!(at, [12, 28, 32, 40, 48, 176]);
        assert_eq!((NAME_LEN_BYTES, UUID_LEN_BYTES, VERSION_LEN_BYTES), (128, 129, 12));
        assert_eq!((HEADER_LEN_BYTES_MIN, HEADER_LEN_BYTES), (305, 312));
    }
}
