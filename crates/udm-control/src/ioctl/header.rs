//! The header of every dm ioctl, and how a device's state is written into it.
//!
//! Byte for byte the kernel's `struct dm_ioctl` of interface 4.50, in native byte order. Read from
//! what a caller sent and written back to it; nothing here asks anybody anything.
//!
//! The tricky case is what is *not* recomputed: flags that are no state come back as the caller
//! gave them, and `DEFERRED_REMOVE` is only ever added.

use super::layout::{HEADER_LEN_BYTES, HEADER_LEN_BYTES_MIN, flag};
use udm_core::lifecycle::{DM_MAJOR, DeviceStatus};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version of the interface.
pub(super) const VERSION: [u32; 3] = [4, 50, 0];

/// The header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub(super) version: [u32; 3],
    pub(super) data_size: u32,
    pub(super) data_start: u32,
    pub(super) target_count: u32,
    pub(super) open_count: i32,
    pub(super) flags: u32,
    pub(super) event_nr: u32,
    pub(super) padding: u32,
    pub(super) dev: u64,
    pub(super) name: [u8; 128],
    pub(super) uuid: [u8; 129],
    pub(super) data: [u8; 7],
}

impl Header {
    /// The header at the beginning of a call; what a short one does not have is zero.
    pub(super) fn read(input: &[u8]) -> Option<Header> {
        if input.len() < HEADER_LEN_BYTES_MIN {
            return None;
        }
        let mut bytes = [0; HEADER_LEN_BYTES];
        let there = input.len().min(HEADER_LEN_BYTES);
        bytes[..there].copy_from_slice(&input[..there]);
        Header::read_from_bytes(&bytes).ok()
    }

    /// Is a flag set?
    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Sets or clears a flag.
    pub(super) fn set(&mut self, flag: u32, on: bool) {
        self.flags = if on { self.flags | flag } else { self.flags & !flag };
    }

    /// The name up to its NUL.
    pub(super) fn name(&self) -> &[u8] {
        until_nul(&self.name)
    }

    /// The uuid up to its NUL.
    pub(super) fn uuid(&self) -> &[u8] {
        until_nul(&self.uuid)
    }

    /// What finding a device writes: its name, its uuid, and whether the inactive slot is taken.
    pub(super) fn write_found(&mut self, device: &DeviceStatus) {
        fill(&mut self.name, device.name.as_str());
        fill(&mut self.uuid, device.uuid.as_ref().map_or("", |uuid| uuid.as_str()));
        self.set(flag::INACTIVE_PRESENT, device.inactive_present);
    }

    /// The state of a device, as every command that ends with it shows it.
    pub(super) fn write_status(&mut self, device: &DeviceStatus) {
        let inactive = self.has(flag::QUERY_INACTIVE_TABLE);
        self.set(flag::SUSPEND, device.suspended);
        self.set(flag::INTERNAL_SUSPEND, false);
        self.set(flag::ACTIVE_PRESENT, device.live_present);
        if device.deferred_remove {
            self.set(flag::DEFERRED_REMOVE, true);
        }
        let (count, read_only) = if inactive {
            (device.inactive_target_count, device.inactive_read_only)
        } else {
            (device.target_count, device.read_only)
        };
        self.set(flag::READONLY, read_only);
        self.target_count = count;
        self.dev = dev_number(device.major, device.minor);
        self.open_count = i32::try_from(device.open_count).unwrap_or(i32::MAX);
        self.event_nr = device.event_nr;
    }
}

/// A device number in the kernel's "huge" encoding.
pub(super) fn dev_number(major: u32, minor: u32) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The minor number in an encoded device number.
pub(super) fn minor_of(dev: u64) -> u32 {
    // Both parts fit: 8 bits and 20 bits shifted back.
    ((dev & 0xff) | ((dev >> 12) & 0x000f_ff00)) as u32
}

/// The minor number, if the number is one of our major.
pub(super) fn our_minor(dev: u64) -> Option<u32> {
    let major = (dev >> 8) & 0xfff;
    (major == u64::from(DM_MAJOR) && dev >> 32 == 0).then(|| minor_of(dev))
}

/// The bytes before the first NUL.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// Writes text with its NUL and leaves the bytes behind it alone, as the kernel's `strscpy`.
fn fill(field: &mut [u8], text: &str) {
    let len = text.len().min(field.len() - 1);
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    field[len] = 0;
}

#[cfg(test)]
mod tests {
    use super::{HEADER_LEN_BYTES, HEADER_LEN_BYTES_MIN, Header, dev_number, minor_of, our_minor};
    use std::mem::offset_of;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!((HEADER_LEN_BYTES, offset_of!(Header, data)), (312, HEADER_LEN_BYTES_MIN));
        assert_eq!((offset_of!(Header, data_size), offset_of!(Header, data_start)), (12, 16));
        assert_eq!((offset_of!(Header, target_count), offset_of!(Header, open_count)), (20, 24));
        assert_eq!((offset_of!(Header, flags), offset_of!(Header, event_nr)), (28, 32));
        assert_eq!((offset_of!(Header, dev), offset_of!(Header, name)), (40, 48));
        assert_eq!(offset_of!(Header, uuid), 176);
    }

    #[test]
    fn device_numbers_survive_their_encoding() {
        for minor in [0, 1, 255, 256, 0xf_ffff] {
            assert_eq!(minor_of(dev_number(254, minor)), minor);
            assert_eq!(our_minor(dev_number(254, minor)), Some(minor));
            assert_eq!(our_minor(dev_number(253, minor)), None);
        }
        assert_eq!(dev_number(254, 3), 0xfe03);
        assert_eq!(our_minor(1 << 40 | 0xfe03), None);
    }

    #[test]
    fn a_short_call_has_no_header() {
        assert!(Header::read(&[0; HEADER_LEN_BYTES_MIN - 1]).is_none());
        assert!(Header::read(&[0; HEADER_LEN_BYTES_MIN]).is_some());
    }
}
