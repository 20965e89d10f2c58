//! Checksums: CRC-32C seeded with a volume's salt, and XXH3-64.
//!
//! The CRC tells whether bytes are what was written; the hash chains log records. Both are fixed
//! by the formats (docs/formats/meta.md) and must never change.
//!
//! The salt makes the checksums of one volume wrong on another, so that what an earlier volume
//! left on a disk is not taken for ours. It is no secret and no protection against an attacker.
//!
//! The tricky case is a sum over pieces that do not lie together: `crc32c(crc32c(salt, a), b)` is
//! the sum of `a` followed by `b`. Salt 0 gives the CRC-32C that everybody else computes.

/// CRC-32C of `bytes`, started from `salt`, or from the sum of the bytes before.
#[inline]
pub fn crc32c(salt: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(salt, bytes)
}

/// XXH3 with 64 bits, seed 0.
#[inline]
pub fn xxh3(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// Writes the CRC of everything behind `crc_at + 4` into the four bytes at `crc_at`.
///
/// # Panics
/// If `bytes` ends before `crc_at + 4`.
pub fn seal(bytes: &mut [u8], crc_at: usize, salt: u32) {
    let sum = crc32c(salt, &bytes[crc_at + 4..]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&sum.to_le_bytes());
}

/// True if the four bytes at `crc_at` are the CRC of everything behind them.
pub fn is_sealed(bytes: &[u8], crc_at: usize, salt: u32) -> bool {
    let (Some(kept), Some(covered)) = (bytes.get(crc_at..crc_at + 4), bytes.get(crc_at + 4..))
    else {
        return false;
    };
    *kept == crc32c(salt, covered).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::{crc32c, is_sealed, seal, xxh3};

    #[test]
    fn the_sums_are_the_published_ones() {
        // The check values of the catalogues: CRC-32/ISCSI, and XXH3-64 of nothing.
        assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
        assert_eq!(xxh3(b""), 0x2d06_8005_38d3_94c2);
    }

    #[test]
    fn a_sum_over_pieces_is_the_sum_of_the_whole() {
        let all = b"a record's header, and its body";
        for cut in 0..all.len() {
            let sum = crc32c(crc32c(77, &all[..cut]), &all[cut..]);
            assert_eq!(sum, crc32c(77, all));
        }
        assert_ne!(crc32c(77, all), crc32c(78, all));
    }

    #[test]
    fn every_flipped_bit_breaks_the_seal() {
        let mut bytes = [0x5a_u8; 64];
        seal(&mut bytes, 4, 9);
        assert!(is_sealed(&bytes, 4, 9));
        for bit in 4 * 8..64 * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_sealed(&bytes, 4, 9), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(!is_sealed(&bytes[..6], 4, 9));
    }
}
