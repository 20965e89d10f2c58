//! The contents of a disk in pages that copies share, so that a crash costs next to nothing.
//!
//! Used by the simulated disk only. A fork of the world clones the image (a list of counted
//! references) and pays for a page when it writes to it first.
//!
//! Rules. Addresses are whole sectors inside the image; who writes outside has a bug and panics,
//! because the disk has checked the range before.
//!
//! The tricky case is the empty disk: all its pages are one page, so a few MiB of zeroes cost one.

use std::rc::Rc;

/// Bytes of a sector.
pub(crate) const SECTOR_BYTES: usize = 512;
/// Sectors of a page: what one write to a shared page copies.
const PAGE_SECTORS: usize = 8;

/// A sector's bytes.
pub(crate) type SectorBytes = [u8; SECTOR_BYTES];

/// What a disk holds.
#[derive(Clone)]
pub(crate) struct Image {
    pages: Vec<Rc<[SectorBytes; PAGE_SECTORS]>>,
}

impl Image {
    /// Zeroes.
    pub(crate) fn zeroed(len_sectors: usize) -> Image {
        let zeroes = Rc::new([[0; SECTOR_BYTES]; PAGE_SECTORS]);
        Image { pages: vec![zeroes; len_sectors.div_ceil(PAGE_SECTORS)] }
    }

    /// More zeroes behind the end.
    pub(crate) fn extend(&mut self, len_sectors: usize) {
        let zeroes = Rc::new([[0; SECTOR_BYTES]; PAGE_SECTORS]);
        let pages = self.pages.len().max(len_sectors.div_ceil(PAGE_SECTORS));
        self.pages.resize(pages, zeroes);
    }

    /// A sector.
    pub(crate) fn sector(&self, sector: usize) -> &SectorBytes {
        &self.pages[sector / PAGE_SECTORS][sector % PAGE_SECTORS]
    }

    /// Gives a sector other contents.
    pub(crate) fn put(&mut self, sector: usize, bytes: &[u8]) {
        let page = Rc::make_mut(&mut self.pages[sector / PAGE_SECTORS]);
        page[sector % PAGE_SECTORS].copy_from_slice(bytes);
    }

    /// Flips bits of one byte.
    pub(crate) fn spoil(&mut self, sector: usize, byte: usize, mask: u8) {
        let page = Rc::make_mut(&mut self.pages[sector / PAGE_SECTORS]);
        page[sector % PAGE_SECTORS][byte] ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::{Image, SECTOR_BYTES};

    #[test]
    fn a_copy_keeps_what_the_first_changes() {
        let mut first = Image::zeroed(20);
        first.put(9, &[7; SECTOR_BYTES]);
        let copy = first.clone();
        first.put(9, &[8; SECTOR_BYTES]);
        first.spoil(10, 3, 0x10);
        assert_eq!((copy.sector(9)[0], first.sector(9)[0]), (7, 8));
        assert_eq!((copy.sector(10)[3], first.sector(10)[3]), (0, 0x10));
    }
}
