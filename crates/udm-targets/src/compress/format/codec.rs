//! The codecs by their numbers on the disk and their names in tables.
//!
//! Numbers are part of the format and never change their meaning; 3 to 7 are free. What a codec
//! does with bytes is not known here.

use core::fmt;

/// How the payload of an extent is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Codec {
    /// As it is.
    Raw,
    /// An LZ4 block, without length or frame.
    Lz4,
    /// A zstd frame.
    Zstd,
}

impl Codec {
    /// Its number.
    pub fn number(self) -> u8 {
        match self {
            Codec::Raw => 0,
            Codec::Lz4 => 1,
            Codec::Zstd => 2,
        }
    }

    /// The codec with this number, if there is one.
    pub fn from_number(number: u8) -> Option<Codec> {
        match number {
            0 => Some(Codec::Raw),
            1 => Some(Codec::Lz4),
            2 => Some(Codec::Zstd),
            _unknown => None,
        }
    }

    /// Its name in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Raw => "none",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }

    /// The codec with this name.
    pub fn from_name(name: &str) -> Option<Codec> {
        [Codec::Raw, Codec::Lz4, Codec::Zstd].into_iter().find(|codec| codec.name() == name)
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Codec;

    #[test]
    fn numbers_and_names_lead_back() {
        for number in 0..=255 {
            if let Some(codec) = Codec::from_number(number) {
                assert_eq!(codec.number(), number);
                assert_eq!(Codec::from_name(codec.name()), Some(codec));
            }
        }
        assert_eq!((Codec::from_number(3), Codec::from_name("lzo")), (None, None));
    }
}
