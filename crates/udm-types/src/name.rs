//! Names and uuids of mapped devices, checked once at the border.
//!
//! The rules are the kernel's: 1 to 127 bytes, no `/`, and not `control`, `.` or `..`; a uuid is
//! up to 128 bytes and otherwise unchecked. A value of these types is always valid, so nothing
//! behind the border checks again.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::fmt;

/// Longest device name in bytes.
pub const NAME_LEN_BYTES_MAX: usize = 127;
/// Longest uuid in bytes.
pub const UUID_LEN_BYTES_MAX: usize = 128;

/// The name of a mapped device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DmName(String);

/// The uuid of a mapped device; never empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DmUuid(String);

/// Why a name or uuid was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// It has no characters.
    Empty,
    /// It is longer than the limit, which is given in bytes.
    TooLong(usize),
    /// It contains a slash.
    Slash,
    /// It contains a NUL byte.
    Nul,
    /// It is one of `control`, `.` and `..`.
    Reserved,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Empty => f.write_str("it is empty"),
            NameError::TooLong(max) => write!(f, "it is longer than {max} bytes"),
            NameError::Slash => f.write_str("it contains a '/'"),
            NameError::Nul => f.write_str("it contains a NUL byte"),
            NameError::Reserved => f.write_str("'control', '.' and '..' are reserved"),
        }
    }
}

impl core::error::Error for NameError {}

impl DmName {
    /// Checks and takes a name.
    pub fn new(name: &str) -> Result<DmName, NameError> {
        check(name, NAME_LEN_BYTES_MAX)?;
        if name.contains('/') {
            return Err(NameError::Slash);
        }
        if matches!(name, "control" | "." | "..") {
            return Err(NameError::Reserved);
        }
        Ok(DmName(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl DmUuid {
    /// Checks and takes a uuid.
    pub fn new(uuid: &str) -> Result<DmUuid, NameError> {
        check(uuid, UUID_LEN_BYTES_MAX)?;
        Ok(DmUuid(uuid.to_owned()))
    }

    /// The uuid as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(text: &str, len_bytes_max: usize) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > len_bytes_max {
        return Err(NameError::TooLong(len_bytes_max));
    }
    if text.contains('\0') {
        return Err(NameError::Nul);
    }
    Ok(())
}

impl fmt::Display for DmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for DmUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{DmName, DmUuid, NameError};
    use alloc::string::String;

    fn repeat(byte: char, count: usize) -> String {
        core::iter::repeat_n(byte, count).collect()
    }

    #[test]
    fn names_follow_the_kernels_rules() {
        assert!(DmName::new("vg-lv with space").is_ok());
        assert_eq!(DmName::new(""), Err(NameError::Empty));
        assert_eq!(DmName::new("a/b"), Err(NameError::Slash));
        assert_eq!(DmName::new("control"), Err(NameError::Reserved));
        assert_eq!(DmName::new(".."), Err(NameError::Reserved));
        assert!(DmName::new("...").is_ok());
    }

    #[test]
    fn lengths_are_exact_on_both_sides() {
        assert!(DmName::new(&repeat('n', 127)).is_ok());
        assert_eq!(DmName::new(&repeat('n', 128)), Err(NameError::TooLong(127)));
        assert!(DmUuid::new(&repeat('u', 128)).is_ok());
        assert_eq!(DmUuid::new(&repeat('u', 129)), Err(NameError::TooLong(128)));
    }
}
