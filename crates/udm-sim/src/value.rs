//! What a sector holds: 512 bytes that say who wrote them, and where they belong.
//!
//! Every write of the load fills each sector with its own number, the volume and the sector of the
//! volume, repeated in 64 words, each with its index. So a sector can be judged by itself: stale
//! data, data of another place, a torn or a shifted sector all show. Zeroes are a value too (fresh
//! space, write-zeroes, discard).
//!
//! ```text
//! word i of a sector:  | write number 32 | volume 4 | sector of the volume 22 | i 6 |
//! ```
//!
//! The tricky case is a sector of which a short write did only a part: its words carry two tags in
//! turn. That is legal while the simulated disks are allowed to be short in the middle of a sector,
//! and only if both tags are legal; see `oracle/`.

use udm_types::{SECTOR_BYTES, Sector};

/// What a word of a sector says without its index; 0 for zeroes.
pub(crate) type Tag = u64;

/// Bytes of a sector, as a length.
pub(crate) const SECTOR_LEN: usize = SECTOR_BYTES as usize;

/// The byte that read buffers are filled with, so that a part nobody filled shows.
pub(crate) const POISON: u8 = 0xEE;

const WORD_BYTES: usize = 8;
const INDEX_MASK: u64 = 63;
const SECTOR_MASK: u64 = 0x3f_ffff;

/// The tag of a write in one sector.
pub(crate) fn tag(write: u32, volume: usize, sector: Sector) -> Tag {
    (u64::from(write) << 32) | ((volume as u64 & 15) << 28) | ((sector & SECTOR_MASK) << 6)
}

/// Which write made a tag.
pub(crate) fn write_of(tag: Tag) -> u32 {
    (tag >> 32) as u32
}

/// The volume a tag belongs to.
pub(crate) fn volume_of(tag: Tag) -> usize {
    (tag >> 28 & 15) as usize
}

/// The sector of the volume a tag belongs to.
pub(crate) fn sector_of(tag: Tag) -> Sector {
    tag >> 6 & SECTOR_MASK
}

/// Fills whole sectors with the tags of a write.
pub(crate) fn fill(bytes: &mut [u8], write: u32, volume: usize, first_sector: Sector) {
    for (offset, sector) in bytes.chunks_exact_mut(SECTOR_LEN).zip(first_sector..) {
        let tag = tag(write, volume, sector);
        for (word, index) in offset.chunks_exact_mut(WORD_BYTES).zip(0_u64..) {
            word.copy_from_slice(&(tag | index).to_le_bytes());
        }
    }
}

/// What a sector was found to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// One tag all through.
    Whole(Tag),
    /// Several tags one after the other.
    Torn(Vec<Tag>),
    /// Words no write of this world makes.
    Garbage,
}

/// Reads a sector.
pub(crate) fn decode(sector: &[u8]) -> Contents {
    match decode_at(sector, 0) {
        Some(tags) => match tags.as_slice() {
            [one] => Contents::Whole(*one),
            _ => Contents::Torn(tags),
        },
        None => Contents::Garbage,
    }
}

/// Reads whole words that begin `offset_bytes` into a sector; the tags in turn, `None` for garbage.
pub(crate) fn decode_at(words: &[u8], offset_bytes: usize) -> Option<Vec<Tag>> {
    let mut tags: Vec<Tag> = Vec::with_capacity(1);
    for (word, index) in words.chunks_exact(WORD_BYTES).zip(offset_bytes / WORD_BYTES..) {
        let mut bytes = [0; WORD_BYTES];
        bytes.copy_from_slice(word);
        let word = u64::from_le_bytes(bytes);
        if word != 0 && word & INDEX_MASK != index as u64 & INDEX_MASK {
            return None;
        }
        let tag = word & !INDEX_MASK;
        if word != 0 && write_of(tag) == 0 {
            return None;
        }
        if tags.last() != Some(&tag) {
            tags.push(tag);
        }
    }
    Some(tags)
}

#[cfg(test)]
mod tests {
    use super::{Contents, POISON, SECTOR_LEN, decode, fill, sector_of, tag, volume_of, write_of};

    #[test]
    fn a_sector_says_who_wrote_it_and_where_it_belongs() {
        let mut bytes = vec![0; 2 * SECTOR_LEN];
        assert_eq!(decode(&bytes[..SECTOR_LEN]), Contents::Whole(0));
        fill(&mut bytes, 77, 3, 1000);
        let Contents::Whole(found) = decode(&bytes[SECTOR_LEN..]) else { panic!("one tag") };
        assert_eq!((write_of(found), volume_of(found), sector_of(found)), (77, 3, 1001));
    }

    #[test]
    fn torn_shifted_and_unfilled_sectors_show() {
        let mut old = vec![0; SECTOR_LEN];
        let mut new = vec![0; SECTOR_LEN];
        fill(&mut old, 1, 0, 9);
        fill(&mut new, 2, 0, 9);
        let mut torn = old.clone();
        torn[..64].copy_from_slice(&new[..64]);
        assert_eq!(decode(&torn), Contents::Torn(vec![tag(2, 0, 9), tag(1, 0, 9)]));
        let mut shifted = old.clone();
        shifted.rotate_left(8);
        assert_eq!(decode(&shifted), Contents::Garbage);
        assert_eq!(decode(&[POISON; SECTOR_LEN]), Contents::Garbage);
    }
}
