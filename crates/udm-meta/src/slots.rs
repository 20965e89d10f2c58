//! Which of its two slots a page is in: two bits a page, kept in a checkpoint.
//!
//! A page is never overwritten in place. Its next image goes to the slot that the current
//! checkpoint does not name, and becomes current when a checkpoint names it. So the array *is* the
//! choice; which image is younger by its own words does not matter and must not be asked (an
//! aborted checkpoint leaves younger images that count for nothing).
//!
//! | bits | meaning |
//! |---|---|
//! | 0 | never written: the page is all zeroes and nothing is on the disk |
//! | 1 | slot A |
//! | 2 | slot B |
//! | 3 | not allowed |
//!
//! Four pages share a byte, the first in the lowest bits.

use alloc::vec::Vec;

/// One of the two places of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// The one that is not this one.
    pub fn other(self) -> Slot {
        match self {
            Slot::A => Slot::B,
            Slot::B => Slot::A,
        }
    }

    /// 0 or 1.
    pub fn index(self) -> u64 {
        match self {
            Slot::A => 0,
            Slot::B => 1,
        }
    }
}

/// The slots of all pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotArray {
    bytes: Vec<u8>,
    page_count: u64,
}

/// A page with bits that mean nothing; the array cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotFault {
    /// The page, or the number of pages if the array is too short or goes on behind its end.
    pub page: u64,
}

impl SlotArray {
    /// Bytes of an array for `page_count` pages.
    pub fn len_bytes_of(page_count: u64) -> u64 {
        page_count.div_ceil(4)
    }

    /// `page_count` pages, none of them written.
    pub fn new(page_count: u64) -> SlotArray {
        let mut array = SlotArray::default();
        array.resize(page_count);
        array
    }

    /// The array in the first bytes of `bytes`.
    ///
    /// # Errors
    /// If `bytes` is too short, or bits are set that must not be.
    pub fn parse(bytes: &[u8], page_count: u64) -> Result<SlotArray, SlotFault> {
        let wanted = usize::try_from(SlotArray::len_bytes_of(page_count));
        let bytes = wanted.ok().and_then(|len| bytes.get(..len));
        let bytes = bytes.ok_or(SlotFault { page: page_count })?.to_vec();
        for (index, byte) in bytes.iter().enumerate() {
            // Both bits of a pair set.
            let both = byte & (byte >> 1) & 0b0101_0101;
            if both != 0 {
                let page = index as u64 * 4 + u64::from(both.trailing_zeros() / 2);
                return Err(SlotFault { page });
            }
        }
        let used_bits = (page_count % 4) * 2;
        if used_bits != 0 && bytes.last().is_some_and(|last| last >> used_bits != 0) {
            return Err(SlotFault { page: page_count });
        }
        Ok(SlotArray { bytes, page_count })
    }

    /// How many pages there are.
    pub fn page_count(&self) -> u64 {
        self.page_count
    }

    /// Where a page is; nothing if it was never written.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn get(&self, page: u64) -> Option<Slot> {
        assert!(page < self.page_count, "page {page} of {}", self.page_count);
        match (self.bytes[(page / 4) as usize] >> ((page % 4) * 2)) & 3 {
            0 => None,
            1 => Some(Slot::A),
            _two => Some(Slot::B),
        }
    }

    /// Says where a page is from now on.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn set(&mut self, page: u64, slot: Option<Slot>) {
        assert!(page < self.page_count, "page {page} of {}", self.page_count);
        let bits = match slot {
            None => 0,
            Some(Slot::A) => 1,
            Some(Slot::B) => 2,
        };
        let byte = &mut self.bytes[(page / 4) as usize];
        let shift = (page % 4) * 2;
        *byte = (*byte & !(3 << shift)) | (bits << shift);
    }

    /// Pages that were written.
    pub fn written_count(&self) -> u64 {
        let pairs = self.bytes.iter().map(|byte| ((byte | byte >> 1) & 0x55).count_ones());
        pairs.map(u64::from).sum()
    }

    /// The slot that may be written: the one this array does not name.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn free_slot(&self, page: u64) -> Slot {
        self.get(page).map_or(Slot::A, Slot::other)
    }

    /// More pages, never written, or fewer.
    pub fn resize(&mut self, page_count: u64) {
        let cut_from = page_count;
        for page in cut_from..self.page_count.min(cut_from.next_multiple_of(4)) {
            self.set(page, None);
        }
        let len = usize::try_from(SlotArray::len_bytes_of(page_count))
            .expect("invariant: a format bounds its pages");
        self.bytes.resize(len, 0);
        self.page_count = page_count;
    }

    /// As it lies on the disk.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{Slot, SlotArray, SlotFault};

    #[test]
    fn pages_keep_their_slots_through_bytes_and_back() {
        let mut array = SlotArray::new(9);
        array.set(0, Some(Slot::A));
        array.set(3, Some(Slot::B));
        array.set(8, Some(Slot::A));
        assert_eq!(array.as_bytes(), [0b1000_0001, 0, 1]);
        assert_eq!((array.free_slot(0), array.free_slot(1)), (Slot::B, Slot::A));
        assert_eq!(SlotArray::parse(array.as_bytes(), 9), Ok(array.clone()));
        assert_eq!(array.written_count(), 3);
        array.set(3, None);
        assert_eq!((array.get(3), array.get(8)), (None, Some(Slot::A)));
    }

    #[test]
    fn bits_that_mean_nothing_are_refused() {
        assert_eq!(SlotArray::parse(&[0, 0b0011_0000], 8), Err(SlotFault { page: 6 }));
        assert_eq!(SlotArray::parse(&[0b0001_0000], 2), Err(SlotFault { page: 2 }));
        assert_eq!(SlotArray::parse(&[0], 5), Err(SlotFault { page: 5 }));
    }

    #[test]
    fn pages_that_were_cut_off_come_back_unwritten() {
        let mut array = SlotArray::new(8);
        for page in 0..8 {
            array.set(page, Some(Slot::B));
        }
        array.resize(2);
        assert_eq!(SlotArray::parse(array.as_bytes(), 2), Ok(array.clone()));
        array.resize(8);
        assert_eq!((array.get(1), array.get(2), array.get(7)), (Some(Slot::B), None, None));
    }
}
