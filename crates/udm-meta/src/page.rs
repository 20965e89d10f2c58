//! Checksummed 4 KiB pages in two slots, and where the slots lie.
//!
//! A page says who it is: volume, kind, number, and the checkpoint it was written for. What a
//! reader expects and what the page says must agree, so that a page that landed in a wrong place,
//! or comes from another volume or an aborted later checkpoint, is never taken for the right one.
//! Which slot is current is said by the checkpoint's [`SlotArray`](crate::slots::SlotArray).
//!
//! ```text
//! 0       magic, 4 bytes        24      kind, 1 byte, then 7 zeroes
//! 4       CRC of 8..4096        32      uuid, 16 bytes, then 16 zeroes
//! 8       page number           64      the format's own part, 4032 bytes
//! 16      checkpoint number
//! ```
//!
//! The tricky case is a page in the current slot that names a *later* checkpoint than the one the
//! slot array belongs to: it was overwritten although it was needed. That is reported as damage.

use crate::disk::{Disk, DiskError};
use crate::slots::Slot;
use crate::sum;
use alloc::vec::Vec;
use core::fmt;
use udm_types::Status;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a page.
pub const PAGE_BYTES: usize = 4096;
/// Length of its header.
pub const PAGE_HEAD_BYTES: usize = 64;
/// Length of the format's own part.
pub const PAGE_BODY_BYTES: usize = PAGE_BYTES - PAGE_HEAD_BYTES;
/// Distance from a page to the next one of the same slot: both slots lie side by side.
pub const PAGE_PAIR_BYTES: u64 = 2 * PAGE_BYTES as u64;
/// Where the CRC is.
const CRC_AT: usize = 4;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PageHead {
    magic: [u8; 4],
    crc: U32,
    page: U64,
    checkpoint: U64,
    kind: u8,
    zero_1: [u8; 7],
    uuid: [u8; 16],
    zero_2: [u8; 16],
}
const _: () = assert!(size_of::<PageHead>() == PAGE_HEAD_BYTES);

/// What the pages of a volume have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageMarks {
    /// The first four bytes.
    pub magic: [u8; 4],
    /// The volume.
    pub uuid: [u8; 16],
    /// Where checksums start from.
    pub salt: u32,
}

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageName {
    /// What it holds; the format's own numbers.
    pub kind: u8,
    /// Its number.
    pub page: u64,
}

/// What is wrong with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFault {
    /// The disk did not give it.
    Unreadable(Status),
    /// Another magic, or nothing.
    Magic,
    /// The checksum is wrong.
    Checksum,
    /// A page of another volume.
    Volume,
    /// Another page: this one.
    Name(PageName),
    /// Written for this checkpoint, later than the one that is read.
    Later(u64),
    /// Bytes that must be zero are not.
    Padding,
}

impl PageMarks {
    /// Fills the header of `image`, whose own part is ready, and seals it.
    ///
    /// # Panics
    /// If `image` is no page.
    pub fn seal(&self, name: PageName, checkpoint: u64, image: &mut [u8]) {
        assert_eq!(image.len(), PAGE_BYTES, "a page has 4096 bytes");
        let mut head = PageHead::new_zeroed();
        head.magic = self.magic;
        head.page.set(name.page);
        head.checkpoint.set(checkpoint);
        head.kind = name.kind;
        head.uuid = self.uuid;
        image[..PAGE_HEAD_BYTES].copy_from_slice(head.as_bytes());
        sum::seal(image, CRC_AT, self.salt);
    }

    /// Believes `image` if it is this page, for `newest_checkpoint` or an earlier one. Gives the
    /// checkpoint it was written for.
    ///
    /// # Errors
    /// What is wrong.
    pub fn verify(
        &self,
        name: PageName,
        newest_checkpoint: u64,
        image: &[u8],
    ) -> Result<u64, PageFault> {
        let Ok((head, body)) = PageHead::read_from_prefix(image) else {
            return Err(PageFault::Magic);
        };
        if head.magic != self.magic || body.len() != PAGE_BODY_BYTES {
            return Err(PageFault::Magic);
        }
        if !sum::is_sealed(image, CRC_AT, self.salt) {
            return Err(PageFault::Checksum);
        }
        if head.uuid != self.uuid {
            return Err(PageFault::Volume);
        }
        let found = PageName { kind: head.kind, page: head.page.get() };
        if found != name {
            return Err(PageFault::Name(found));
        }
        if head.zero_1 != [0; 7] || head.zero_2 != [0; 16] {
            return Err(PageFault::Padding);
        }
        let checkpoint = head.checkpoint.get();
        if checkpoint > newest_checkpoint {
            return Err(PageFault::Later(checkpoint));
        }
        Ok(checkpoint)
    }

    /// Who a page says it is, with the checkpoint it was written for, if it is one of this volume.
    /// For tools that look for pages.
    pub fn identify(&self, image: &[u8]) -> Option<(PageName, u64)> {
        let (head, _body) = PageHead::read_from_prefix(image).ok()?;
        let name = PageName { kind: head.kind, page: head.page.get() };
        self.verify(name, u64::MAX, image).ok().map(|checkpoint| (name, checkpoint))
    }

    /// Reads the page at `offset_bytes` and verifies it. Gives all of it, header and own part.
    ///
    /// # Errors
    /// What is wrong, the disk's own error included.
    pub async fn read(
        &self,
        disk: &Disk,
        offset_bytes: u64,
        name: PageName,
        newest_checkpoint: u64,
    ) -> Result<Vec<u8>, PageFault> {
        let image = crate::bytes::read_vec(disk, offset_bytes, PAGE_BYTES)
            .await
            .map_err(|error: DiskError| PageFault::Unreadable(error.status))?;
        self.verify(name, newest_checkpoint, &image)?;
        Ok(image)
    }
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PageFault::Unreadable(status) => write!(f, "cannot be read: {}", status.describe()),
            PageFault::Magic => f.write_str("is no metadata page"),
            PageFault::Checksum => f.write_str("has a wrong checksum"),
            PageFault::Volume => f.write_str("belongs to another volume"),
            PageFault::Name(found) => {
                write!(f, "is page {} of kind {} instead", found.page, found.kind)
            }
            PageFault::Later(checkpoint) => write!(f, "is of the later checkpoint {checkpoint}"),
            PageFault::Padding => f.write_str("has bytes set that must be zero"),
        }
    }
}

/// A run of pages that lies in one piece, both slots of a page side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRegion {
    /// The first page.
    pub first_page: u64,
    /// How many.
    pub page_count: u64,
    /// Where slot A of the first page is.
    pub offset_bytes: u64,
}

/// Where all pages lie: regions in the order of their pages, without a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRegions {
    regions: Vec<PageRegion>,
}

impl PageRegions {
    /// Appends a region.
    ///
    /// # Errors
    /// Gives it back if it does not begin where the last one ends, or its numbers overflow.
    pub fn push(&mut self, region: PageRegion) -> Result<(), PageRegion> {
        let bytes = region.page_count.checked_mul(PAGE_PAIR_BYTES);
        let is_sound = region.first_page == self.page_count()
            && bytes.and_then(|bytes| bytes.checked_add(region.offset_bytes)).is_some()
            && region.first_page.checked_add(region.page_count).is_some();
        if !is_sound {
            return Err(region);
        }
        self.regions.push(region);
        Ok(())
    }

    /// Pages that have a place.
    pub fn page_count(&self) -> u64 {
        self.regions.last().map_or(0, |last| last.first_page + last.page_count)
    }

    /// The regions.
    pub fn as_slice(&self) -> &[PageRegion] {
        &self.regions
    }

    /// Where a slot of a page is; nothing if the page has no place.
    pub fn offset_bytes(&self, page: u64, slot: Slot) -> Option<u64> {
        let index = self.regions.partition_point(|region| region.first_page <= page);
        let region = self.regions.get(index.checked_sub(1)?)?;
        let within = page - region.first_page;
        let pages = 2 * within + slot.index();
        (within < region.page_count).then_some(region.offset_bytes + pages * PAGE_BYTES as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::{PAGE_BYTES, PageFault, PageMarks, PageName, PageRegion, PageRegions};
    use crate::bytes::write_bytes;
    use crate::host::MemoryHost;
    use crate::slots::Slot;
    use udm_types::Status;

    const MARKS: PageMarks = PageMarks { magic: *b"TSTP", uuid: [3; 16], salt: 11 };
    const NAME: PageName = PageName { kind: 1, page: 42 };

    fn page() -> [u8; PAGE_BYTES] {
        let mut image = [9; PAGE_BYTES];
        MARKS.seal(NAME, 7, &mut image);
        image
    }

    #[test]
    fn a_page_is_believed_for_what_it_is_and_nothing_else() {
        let image = page();
        assert_eq!(MARKS.verify(NAME, 7, &image), Ok(7));
        assert_eq!(MARKS.identify(&image), Some((NAME, 7)));
        assert_eq!(MARKS.verify(NAME, 6, &image), Err(PageFault::Later(7)));
        let other = PageName { kind: 1, page: 43 };
        assert_eq!(MARKS.verify(other, 7, &image), Err(PageFault::Name(NAME)));
        let volume = PageMarks { uuid: [4; 16], ..MARKS };
        assert_eq!(volume.verify(NAME, 7, &image), Err(PageFault::Volume));
        let salted = PageMarks { salt: 12, ..MARKS };
        assert_eq!(salted.verify(NAME, 7, &image), Err(PageFault::Checksum));
        assert_eq!(MARKS.verify(NAME, 7, &image[..4095]), Err(PageFault::Magic));
        assert_eq!(MARKS.verify(NAME, 7, &[]), Err(PageFault::Magic));
    }

    #[test]
    fn no_flipped_bit_goes_unnoticed() {
        let mut image = page();
        for bit in (0..PAGE_BYTES * 8).step_by(7) {
            image[bit / 8] ^= 1 << (bit % 8);
            assert!(MARKS.verify(NAME, 7, &image).is_err(), "bit {bit}");
            image[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_page_is_read_or_the_reason_told() {
        let mut host = MemoryHost::new(8192);
        let written = host.run(|disk| async move { write_bytes(&disk, 4096, &page()).await });
        written.expect("written");
        let read = |at| move |disk| async move { MARKS.read(&disk, at, NAME, 7).await };
        assert_eq!(host.run(read(4096)).expect("good")[64], 9);
        assert_eq!(host.run(read(0)), Err(PageFault::Magic));
        assert_eq!(host.run(read(8192)), Err(PageFault::Unreadable(Status::Invalid)));
    }

    #[test]
    fn regions_follow_each_other() {
        let mut regions = PageRegions::default();
        let first = PageRegion { first_page: 0, page_count: 3, offset_bytes: 16384 };
        assert_eq!(regions.push(first), Ok(()));
        assert_eq!(regions.push(first), Err(first));
        let far = PageRegion { first_page: 3, page_count: 1 << 60, offset_bytes: 1 << 20 };
        assert_eq!(regions.push(far), Err(far));
        let next = PageRegion { first_page: 3, page_count: 2, offset_bytes: 1 << 20 };
        assert_eq!(regions.push(next), Ok(()));
        assert_eq!(regions.offset_bytes(0, Slot::A), Some(16384));
        assert_eq!(regions.offset_bytes(2, Slot::B), Some(16384 + 5 * 4096));
        assert_eq!(regions.offset_bytes(4, Slot::A), Some((1 << 20) + 8192));
        assert_eq!((regions.offset_bytes(5, Slot::A), regions.page_count()), (None, 5));
    }
}
