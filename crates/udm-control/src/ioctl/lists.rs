//! Lists as results: devices, target versions, devices below.
//!
//! Each writes all or nothing into the room the caller has; `None` is "buffer full". Records stand
//! at multiples of 8 bytes and point to their successor relative to themselves, the last with 0.
//!
//! The tricky case is how many bytes a list of versions has: the kernel counts 7 bytes of slack a
//! record, used or not, and a caller sees that number.

use super::header::dev_number;
use super::specs::ALIGN_BYTES;
use udm_core::lifecycle::DeviceStatus;

/// Bytes of a record's head: device number and `next`.
const NAME_AT_BYTES: usize = 12;
/// A record must at least have room for the number that marks an empty list.
const EMPTY_LEN_BYTES: usize = 8;
const HAS_UUID: u32 = 1;
const HAS_NO_UUID: u32 = 2;
/// Bytes of a version record before its name.
const VERSION_HEAD_LEN_BYTES: usize = 16;

/// Devices, in the order given; with `uuids`, theirs too.
pub(super) fn devices(list: &[&DeviceStatus], uuids: bool, capacity: usize) -> Option<Vec<u8>> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut last = None;
    for device in list {
        let begin = bytes.len();
        link(&mut bytes, last, 8);
        bytes.extend_from_slice(&dev_number(device.major, device.minor).to_ne_bytes());
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        debug_assert_eq!(bytes.len() - begin, NAME_AT_BYTES);
        put_text(&mut bytes, device.name.as_str());
        bytes.extend_from_slice(&device.event_nr.to_ne_bytes());
        let (mark, uuid) = match (&device.uuid, uuids) {
            (Some(uuid), true) => (HAS_UUID, Some(uuid)),
            (None, true) => (HAS_NO_UUID, None),
            (_, false) => (0, None),
        };
        bytes.extend_from_slice(&mark.to_ne_bytes());
        if let Some(uuid) = uuid {
            put_text(&mut bytes, uuid.as_str());
        }
        last = Some(begin);
    }
    (capacity >= bytes.len().max(EMPTY_LEN_BYTES)).then_some(bytes)
}

/// Versions of target types, in the order given.
pub(super) fn versions(types: &[(&str, [u32; 3])], capacity: usize) -> Option<Vec<u8>> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut last = None;
    let mut needed = 0;
    for (name, version) in types {
        let begin = bytes.len();
        link(&mut bytes, last, 0);
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        version.iter().for_each(|part| bytes.extend_from_slice(&part.to_ne_bytes()));
        put_text(&mut bytes, name);
        needed += VERSION_HEAD_LEN_BYTES + name.len() + ALIGN_BYTES;
        last = Some(begin);
    }
    bytes.resize(needed, 0);
    (capacity >= needed).then_some(bytes)
}

/// Numbers of the devices below.
pub(super) fn deps(numbers: &[(u32, u32)], capacity: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(8 + 8 * numbers.len());
    bytes.extend_from_slice(&u32::try_from(numbers.len()).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    for (major, minor) in numbers {
        bytes.extend_from_slice(&dev_number(*major, *minor).to_ne_bytes());
    }
    (capacity >= bytes.len()).then_some(bytes)
}

/// Makes the record before point to the one that begins at the end.
fn link(bytes: &mut [u8], last: Option<usize>, next_at: usize) {
    let Some(last) = last else { return };
    let distance = u32::try_from(bytes.len() - last).unwrap_or(u32::MAX);
    bytes[last + next_at..last + next_at + 4].copy_from_slice(&distance.to_ne_bytes());
}

/// Text, its NUL, and zeros up to the next multiple of 8.
fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(ALIGN_BYTES), 0);
}

#[cfg(test)]
mod tests {
    use super::{deps, devices, versions};
    use crate::ioctl::tests::device;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    #[test]
    fn devices_have_their_events_and_uuids_at_aligned_places() {
        let (plain, named) = (device("ab", None, 3), device("c", Some("LVM-x"), 4));
        let list = [&plain, &named];
        let bytes = devices(&list, true, 4096).expect("room");
        // 12 + "ab" + NUL = 15 -> 16; event and flags: 24; no uuid.
        assert_eq!((word(&bytes, 8), word(&bytes, 16), word(&bytes, 20)), (24, 3, 2));
        assert_eq!(&bytes[12..16], b"ab\0\0");
        assert_eq!((word(&bytes, 24 + 8), word(&bytes, 40), word(&bytes, 44)), (0, 4, 1));
        assert_eq!(&bytes[48..], b"LVM-x\0\0\0");
        assert_eq!(devices(&list, true, bytes.len() - 1), None);
        assert_eq!(devices(&list, true, bytes.len()).map(|b| b.len()), Some(56));
        let without = devices(&list, false, 4096).expect("room");
        assert_eq!((without.len(), word(&without, 20), word(&without, 44)), (48, 0, 0));
    }

    #[test]
    fn an_empty_list_needs_room_for_its_mark() {
        assert_eq!(devices(&[], true, 8), Some(Vec::new()));
        assert_eq!(devices(&[], true, 7), None);
    }

    #[test]
    fn versions_count_seven_bytes_of_slack_each() {
        let bytes = versions(&[("zero", [1, 2, 0]), ("error", [1, 7, 0])], 4096).expect("room");
        assert_eq!(bytes.len(), (16 + 5 + 7) + (16 + 6 + 7));
        assert_eq!((word(&bytes, 0), word(&bytes, 4), word(&bytes, 8)), (24, 1, 2));
        assert_eq!((word(&bytes, 24), &bytes[40..46]), (0, &b"error\0"[..]));
        assert_eq!(versions(&[("zero", [1, 2, 0])], 27), None);
    }

    #[test]
    fn deps_are_a_count_and_numbers() {
        let bytes = deps(&[(254, 1), (8, 0)], 24).expect("room");
        assert_eq!((word(&bytes, 0), word(&bytes, 8), word(&bytes, 16)), (2, 0xfe01, 0x800));
        assert_eq!(deps(&[(254, 1)], 15), None);
        assert_eq!(deps(&[], 8).map(|bytes| bytes.len()), Some(8));
    }
}
