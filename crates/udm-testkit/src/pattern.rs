//! Sector-stamped test data, and a byte model of what a device must hold.
//!
//! Each 512-byte sector of a pattern says which sector it was written to, in which generation
//! (which write), and carries a checksum, so that a sector found in the wrong place, from the wrong
//! write, or torn in the middle is recognised for what it is.
//!
//! ```text
//! bytes  0..8   sector (little endian)       bytes 16..24  checksum of everything else
//! bytes  8..16  generation                   bytes 24..512 filler made from the two
//! ```
//!
//! [`Model`] is the oracle of the battery: a plain array of bytes with a mark for sectors whose
//! contents are undefined (after a discard).

use udm_types::Sector;

/// Bytes of a sector, as an array length.
pub const SECTOR_LEN: usize = 512;

/// What a sector was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// A whole pattern sector.
    Written {
        /// The sector it was written to.
        sector: Sector,
        /// The write it came from.
        generation: u64,
    },
    /// All bytes are zero.
    Zero,
    /// Anything else: torn, corrupted, or never a pattern.
    Other,
}

/// A number well mixed from another (the finaliser of splitmix64).
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The bytes of `len_sectors` pattern sectors that start at `sector`.
pub fn pattern(sector: Sector, len_sectors: Sector, generation: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len_sectors as usize * SECTOR_LEN);
    for sector in sector..sector + len_sectors {
        bytes.extend_from_slice(&pattern_sector(sector, generation));
    }
    bytes
}

fn pattern_sector(sector: Sector, generation: u64) -> [u8; SECTOR_LEN] {
    let mut bytes = [0; SECTOR_LEN];
    let mut filler = mix(sector ^ generation.rotate_left(32));
    for word in bytes[24..].chunks_exact_mut(8) {
        filler = mix(filler);
        word.copy_from_slice(&filler.to_le_bytes());
    }
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..16].copy_from_slice(&generation.to_le_bytes());
    let sum = checksum(&bytes);
    bytes[16..24].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Of everything but the checksum itself.
fn checksum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8).enumerate().filter(|&(index, _)| index != 2);
    words.fold(1, |sum, (_, word)| {
        let word = word.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
        mix(sum ^ word)
    })
}

/// Reads a sector's stamp.
///
/// # Panics
/// If `bytes` is not one sector long.
pub fn stamp(bytes: &[u8]) -> Stamp {
    assert_eq!(bytes.len(), SECTOR_LEN, "a stamp is read from one sector");
    let word = |at: usize| {
        bytes[at..at + 8].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    };
    if bytes.iter().all(|&byte| byte == 0) {
        Stamp::Zero
    } else if word(16) == checksum(bytes) {
        Stamp::Written { sector: word(0), generation: word(8) }
    } else {
        Stamp::Other
    }
}

/// What a device must hold.
#[derive(Clone, Debug)]
pub struct Model {
    bytes: Vec<u8>,
    defined: Vec<bool>,
}

impl Model {
    /// A device of zeroes.
    pub fn new(len_sectors: Sector) -> Model {
        Model {
            bytes: vec![0; len_sectors as usize * SECTOR_LEN],
            defined: vec![true; len_sectors as usize],
        }
    }

    /// Size.
    pub fn len_sectors(&self) -> Sector {
        self.defined.len() as Sector
    }

    /// A write of whole sectors.
    pub fn write(&mut self, sector: Sector, bytes: &[u8]) {
        let at = sector as usize * SECTOR_LEN;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.defined[sector as usize..sector as usize + bytes.len() / SECTOR_LEN].fill(true);
    }

    /// A write of zeroes.
    pub fn zero(&mut self, sector: Sector, len_sectors: Sector) {
        self.write(sector, &vec![0; len_sectors as usize * SECTOR_LEN]);
    }

    /// A discard: from now on anything may be read there.
    pub fn discard(&mut self, sector: Sector, len_sectors: Sector) {
        self.defined[sector as usize..(sector + len_sectors) as usize].fill(false);
    }

    /// The bytes of a range; undefined sectors hold what was there before.
    pub fn bytes(&self, sector: Sector, len_sectors: Sector) -> &[u8] {
        let at = sector as usize * SECTOR_LEN;
        &self.bytes[at..at + len_sectors as usize * SECTOR_LEN]
    }

    /// Compares what was read at `sector`; the error names the first sector that differs.
    pub fn check(&self, sector: Sector, read: &[u8]) -> Result<(), String> {
        for (index, found) in read.chunks(SECTOR_LEN).enumerate() {
            let sector = sector + index as Sector;
            let wanted = self.bytes(sector, 1);
            if self.defined[sector as usize] && found != wanted {
                return Err(format!(
                    "sector {sector}: found {:?}, wanted {:?}",
                    stamp(found),
                    stamp(wanted)
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Model, SECTOR_LEN, Stamp, pattern, stamp};

    #[test]
    fn a_sector_tells_where_and_when_it_was_written() {
        let bytes = pattern(40, 2, 7);
        assert_eq!(bytes.len(), 2 * SECTOR_LEN);
        assert_eq!(stamp(&bytes[SECTOR_LEN..]), Stamp::Written { sector: 41, generation: 7 });
        assert_eq!(stamp(&[0; SECTOR_LEN]), Stamp::Zero);
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let whole = pattern(3, 1, 9);
        for at in [0, 8, 16, 24, 300, 511] {
            let mut torn = whole.clone();
            torn[at] ^= 1;
            assert_eq!(stamp(&torn), Stamp::Other, "byte {at}");
        }
    }

    #[test]
    fn the_model_names_the_sector_that_differs() {
        let mut model = Model::new(8);
        model.write(2, &pattern(2, 2, 1));
        let mut read = model.bytes(0, 8).to_vec();
        assert_eq!(model.check(0, &read), Ok(()));
        read[3 * SECTOR_LEN] ^= 1;
        assert!(model.check(0, &read).is_err_and(|text| text.starts_with("sector 3:")));
        model.discard(3, 1);
        assert_eq!(model.check(0, &read), Ok(()));
    }
}
