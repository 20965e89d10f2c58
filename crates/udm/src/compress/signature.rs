//! What may be on a device already, by its signature.
//!
//! Called by `format` before it writes. The list has what people put on disks; a match is a reason
//! to ask, and no match is no promise that a device is empty.
//!
//! Rules. Reads only, a few kilobytes at the start and the end of the device. Offsets and magics
//! are those of the formats' own documentation.
//!
//! The tricky case is a partition table: the two bytes that end one also end many boot sectors, so
//! they count only with a partition of a known kind behind them.

use super::device::Device;
use rustix::io::Errno;

/// Bytes looked at from the start: btrfs has its magic at 64 KiB.
const START_BYTES: usize = 68 << 10;
/// Bytes looked at from the end: GPT's copy, and ours.
const END_BYTES: usize = 8 << 10;

/// `(offset, magic, what it is)`.
const MAGICS: [(usize, &[u8], &str); 31] = [
    (0, b"UDMLSC01", "a compress volume"),
    (4096, b"UDMLSC01", "a compress volume"),
    (0, &[0x09, 0x6c, 0x50, 0x06, 0xc2, 0x26, 0x65, 0x10], "an insitu-comp volume"),
    (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (65_600, b"_BHRfS_M", "a btrfs file system"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "an F2FS file system"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "an EROFS file system"),
    (0, b"hsqs", "a squashfs file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (54, b"FAT1", "a FAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (32_769, b"CD001", "an ISO 9660 file system"),
    (4096, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca], "a bcache device"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4086, b"SWAP-SPACE", "swap space"),
    (65_526, b"SWAPSPACE2", "swap space"),
    (0, b"LABELONE", "an LVM physical volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (1024, b"LABELONE", "an LVM physical volume"),
    (1536, b"LABELONE", "an LVM physical volume"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (16_384, b"SKUL\xba\xbe", "a LUKS volume"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a RAID member"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a RAID member"),
    (0, b"dmvdo001", "a VDO volume"),
    (0, b"integrt\0", "a dm-integrity volume"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (0, b"QFI\xfb", "a qcow2 image"),
];

/// `(offset from the end, magic, what it is)`.
const END_MAGICS: [(usize, &[u8], &str); 3] = [
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (4096, b"UDMLSC01", "a compress volume"),
];

/// What is on the device, as far as known.
///
/// # Errors
/// The kernel's, if it cannot be read.
pub(super) fn find(device: &Device) -> Result<Option<&'static str>, Errno> {
    let mut start = vec![0; START_BYTES];
    let count = device.peek(0, &mut start)?;
    start.truncate(count);
    let whole = device.len_bytes() - device.len_bytes() % 512;
    let end_at = whole.saturating_sub(END_BYTES as u64);
    let mut end = vec![0; usize::try_from(whole - end_at).unwrap_or(0)];
    let count = device.peek(end_at, &mut end)?;
    end.truncate(count);
    Ok(find_in(&start, &end))
}

fn find_in(start: &[u8], end: &[u8]) -> Option<&'static str> {
    let at_start = MAGICS
        .iter()
        .find(|(at, magic, _)| start.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map(|(_, _, what)| *what);
    let at_end = || {
        END_MAGICS
            .iter()
            .find(|(back, magic, _)| {
                let at = end.len().checked_sub(*back);
                at.is_some_and(|at| end[at..].starts_with(magic))
            })
            .map(|(_, _, what)| *what)
    };
    at_start.or_else(|| has_partitions(start).then_some("a partition table")).or_else(at_end)
}

/// Four entries of 16 bytes at 446; the fifth byte is the kind, the last eight begin and length.
fn has_partitions(start: &[u8]) -> bool {
    let Some(sector) = start.get(..512) else { return false };
    let entries = sector[446..510].chunks_exact(16);
    let is_used = |entry: &[u8]| entry[4] != 0 && entry[12..16] != [0; 4];
    let is_plain = entries.clone().all(|entry| entry[0] & 0x7f == 0);
    sector[510..] == [0x55, 0xaa] && is_plain && entries.into_iter().any(is_used)
}

#[cfg(test)]
mod tests {
    use super::{END_MAGICS, MAGICS, find_in};

    #[test]
    fn every_signature_is_found_where_it_lies() {
        for (at, magic, what) in MAGICS {
            let mut start = vec![0; 68 << 10];
            start[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(find_in(&start, &[]), Some(what));
        }
        for (back, magic, what) in END_MAGICS {
            let mut end = vec![0; 8 << 10];
            let at = end.len() - back;
            end[at..at + magic.len()].copy_from_slice(magic);
            assert_eq!(find_in(&[], &end), Some(what));
        }
    }

    #[test]
    fn a_partition_table_has_a_partition() {
        let mut start = vec![0; 4096];
        start[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(find_in(&start, &[]), None);
        start[446 + 4] = 0x83;
        start[446 + 12] = 1;
        assert_eq!(find_in(&start, &[]), Some("a partition table"));
        start[446] = 0x12;
        assert_eq!(find_in(&start, &[]), None);
    }

    #[test]
    fn an_empty_or_tiny_device_has_none() {
        assert_eq!(find_in(&[0; 68 << 10], &[0; 8 << 10]), None);
        assert_eq!(find_in(&[], &[]), None);
    }
}
