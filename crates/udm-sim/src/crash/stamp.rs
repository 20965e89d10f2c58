//! What the workload writes: sectors that say which request wrote them, and where.
//!
//! A sector has a *value*, a number from which its 512 bytes follow: zeroes, a fill (one word all
//! through, as a FILL entry stores it), or data that carries request, sector and style. So what is
//! read back after a crash names the requests that survived, and bytes of another place, of
//! another time or of nobody show at once.
//!
//! ```text
//! value:  0 zeroes | 1<<63, word 32 a fill | request 31, sector 24, style 8 data
//! ```
//!
//! Styles differ in how well they pack, so that extents of all sizes arise. The tricky case is
//! data whose words happen to be all the same: the styles mix the index into each word.

use crate::crash::image::SECTOR_BYTES;

/// What a sector holds, as a number.
pub(crate) type Value = u64;

/// Sectors that read as zeroes.
pub(crate) const ZEROES: Value = 0;

const FILL: u64 = 1 << 63;
const WORDS: usize = SECTOR_BYTES / 8;

/// How well data packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// To next to nothing.
    Dense = 1,
    /// To about the half.
    Half = 2,
    /// Not at all.
    Noise = 3,
}

/// The value of data.
pub(crate) fn data(request: u32, sector: usize, style: Style) -> Value {
    (u64::from(request) << 32) | ((sector as u64 & 0xff_ffff) << 8) | style as u64
}

/// The value of a fill.
pub(crate) fn fill(word: u32) -> Value {
    if word == 0 { ZEROES } else { FILL | u64::from(word) }
}

/// Writes a value's bytes.
pub(crate) fn write(value: Value, bytes: &mut [u8]) {
    let mut noise = value | 1;
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        let content = if value & FILL != 0 || value == ZEROES {
            (value & 0xffff_ffff) << 32 | (value & 0xffff_ffff)
        } else if index == 0 {
            value
        } else {
            match value & 0xff {
                2 if index < WORDS / 2 => value,
                2 | 3 => {
                    noise ^= noise << 13;
                    noise ^= noise >> 7;
                    noise ^= noise << 17;
                    noise.wrapping_mul(0x2545_f491_4f6c_dd1d)
                }
                _dense => value ^ index as u64,
            }
        };
        word.copy_from_slice(&content.to_le_bytes());
    }
}

/// Reads a sector's value; `None` for bytes that no value has.
pub(crate) fn read(bytes: &[u8]) -> Option<Value> {
    let word = u64::from_le_bytes(bytes[..8].try_into().ok()?);
    let (low, high) = (word as u32, (word >> 32) as u32);
    let is_fill = low == high && bytes.chunks_exact(8).all(|other| other == &bytes[..8]);
    let value = if is_fill { fill(low) } else { word };
    if value & FILL != 0 && !is_fill {
        return None;
    }
    let mut expected = [0; SECTOR_BYTES];
    write(value, &mut expected);
    (expected == bytes).then_some(value)
}

/// A value for people.
pub(crate) fn describe(value: Option<Value>) -> String {
    match value {
        None => "bytes that nobody wrote".to_owned(),
        Some(ZEROES) => "zeroes".to_owned(),
        Some(value) if value & FILL != 0 => format!("fill {:#x}", value & 0xffff_ffff),
        Some(value) => format!("request {} for sector {}", value >> 32, value >> 8 & 0xff_ffff),
    }
}

#[cfg(test)]
mod tests {
    use super::{Style, data, fill, read, write};

    #[test]
    fn a_value_is_read_back_from_its_bytes() {
        let values = [
            0,
            fill(0xf000_0001),
            data(7, 3, Style::Dense),
            data(7, 3, Style::Half),
            data(1, 0, Style::Noise),
        ];
        for value in values {
            let mut bytes = [0; 512];
            write(value, &mut bytes);
            assert_eq!(read(&bytes), Some(value), "{value:#x}");
            bytes[300] ^= 1;
            assert_eq!(read(&bytes), None, "{value:#x}");
        }
    }
}
