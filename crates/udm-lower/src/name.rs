//! What a table calls a lower device: `PATH`, `file:PATH`, `direct:PATH`, `mem:SIZE[:NAME]`,
//! `null:SIZE`, `MAJOR:MINOR`, and the names of NBD exports (`nbd/uri.rs`).
//!
//! Pure: nothing is opened here. Called by the registry with one word of a table line; mapped
//! devices (`dm:NAME`, `/dev/mapper/NAME`, numbers of their major) have been looked for before, so
//! a name of that shape which arrives here belongs to no mapped device.
//!
//! Paths are absolute. The daemon's working directory is not the user's, so a relative path would
//! name a file the user did not mean; the command line makes its paths absolute before it asks.
//!
//! The tricky case is `mem:64M:disk`: the unit ends at the second colon and the rest is a name, so
//! that two tables can mean the same memory.

use crate::nbd::{NbdName, is_nbd};
use udm_core::table::parse_size_sectors;
use udm_core::{ErrorCode, ErrorKind, UserError};
use udm_types::Sector;

/// Longest name of a named memory; long enough for a uuid with a prefix.
const MEMORY_NAME_LEN_BYTES_MAX: usize = 64;

/// Longest path Linux takes, without its final NUL.
const PATH_LEN_BYTES_MAX: usize = 4095;

/// A parsed device name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LowerName<'a> {
    /// A regular file or a block device.
    File {
        /// Absolute.
        path: &'a str,
        /// Past the page cache (`O_DIRECT`).
        direct: bool,
    },
    /// A block device of the system, by its number.
    Number {
        /// Which driver.
        major: u32,
        /// Which of its devices.
        minor: u32,
    },
    /// Memory of this daemon.
    Memory {
        /// Its size.
        len_sectors: Sector,
        /// Memory of the same name is the same memory.
        name: Option<&'a str>,
    },
    /// An export of an NBD server.
    Nbd(Box<NbdName>),
    /// Takes everything, keeps nothing.
    Null {
        /// Its size.
        len_sectors: Sector,
    },
}

/// Parses a device name.
pub(crate) fn parse_name(text: &str) -> Result<LowerName<'_>, UserError> {
    if is_nbd(text) {
        return Ok(LowerName::Nbd(Box::new(NbdName::parse(text)?)));
    }
    if let Some(size) = text.strip_prefix("null:") {
        return Ok(LowerName::Null { len_sectors: parse_size_sectors(size)? });
    }
    if let Some(rest) = text.strip_prefix("mem:") {
        return parse_memory(rest);
    }
    if let Some((major, minor)) = number(text) {
        return Ok(LowerName::Number { major, minor });
    }
    let (path, direct) = match (text.strip_prefix("file:"), text.strip_prefix("direct:")) {
        (Some(path), _) => (path, false),
        (None, Some(path)) => (path, true),
        (None, None) => (text, false),
    };
    if !path.starts_with('/') {
        return Err(not_a_path(text, path));
    }
    if path.len() > PATH_LEN_BYTES_MAX || path.contains('\0') {
        let text = "a path has at most 4095 bytes and no NUL byte";
        return Err(UserError::new(ErrorCode::DeviceNotFound, text).of_kind(ErrorKind::Invalid));
    }
    Ok(LowerName::File { path, direct })
}

fn parse_memory(rest: &str) -> Result<LowerName<'_>, UserError> {
    let (size, name) = match rest.split_once(':') {
        Some((size, name)) => (size, Some(name)),
        None => (rest, None),
    };
    let len_sectors = parse_size_sectors(size)?;
    if let Some(name) = name {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !(1..=MEMORY_NAME_LEN_BYTES_MAX).contains(&name.len()) || !name.bytes().all(plain) {
            let text = format!(
                "the name of a memory has 1 to {MEMORY_NAME_LEN_BYTES_MAX} letters, digits, \
                 '.', '_' or '-', found '{}'",
                shorten(name)
            );
            return Err(UserError::new(ErrorCode::BadArgument, text));
        }
    }
    Ok(LowerName::Memory { len_sectors, name })
}

/// The two words of a device number, whatever their size.
fn numbers(text: &str) -> Option<(&str, &str)> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once(':').filter(|(major, minor)| is_number(major) && is_number(minor))
}

/// A device number that Linux could have: 12 bits and 20 bits.
fn number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = numbers(text)?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    (major < 1 << 12 && minor < 1 << 20).then_some((major, minor))
}

/// No device has this number.
pub(crate) fn no_such_number(shown: &str) -> UserError {
    let text = format!("no mapped device and no block device has the number {}", shorten(shown));
    UserError::new(ErrorCode::DeviceNotFound, text)
        .of_kind(ErrorKind::NoDevice)
        .hint("`udm ls` lists mapped devices, `lsblk` those of the system")
}

/// Says what a word that is no path looks like.
fn not_a_path(text: &str, path: &str) -> UserError {
    let shown = shorten(text);
    if text.starts_with("dm:") {
        let text = format!("there is no mapped device {shown}");
        return UserError::new(ErrorCode::DeviceNotFound, text).hint("`udm ls` lists them");
    }
    if numbers(text).is_some() {
        return no_such_number(text);
    }
    let text = format!("'{}' is neither an absolute path nor another device name", shorten(path));
    // As Linux answers: to it, any other word is a path that leads nowhere.
    let kind = if path.is_empty() { ErrorKind::Invalid } else { ErrorKind::NoEntry };
    UserError::new(ErrorCode::DeviceNotFound, text)
        .of_kind(kind)
        .hint("write the path from / on, or dm:NAME, mem:SIZE, null:SIZE, nbd://HOST/EXPORT")
}

/// A name as table text writes it: a backslash before what would end or change the word, so that a
/// table that was printed can be loaded again.
pub(crate) fn escaped(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.chars() {
        if matches!(character, ' ' | '\\' | '\t'..='\r') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

/// Cuts a word that would fill the screen.
pub(crate) fn shorten(word: &str) -> String {
    const SHOWN_CHARS: usize = 200;
    let mut shown: String = word.chars().take(SHOWN_CHARS).collect();
    if shown.len() < word.len() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::{LowerName, escaped, parse_name};
    use udm_core::{ErrorCode, ErrorKind};

    #[test]
    fn every_form_of_a_name_parses() {
        let file = |path, direct| LowerName::File { path, direct };
        assert_eq!(parse_name("/a/b").unwrap(), file("/a/b", false));
        assert_eq!(parse_name("file:/a b").unwrap(), file("/a b", false));
        assert_eq!(parse_name("direct:/dev/sda").unwrap(), file("/dev/sda", true));
        assert_eq!(parse_name("null:1T").unwrap(), LowerName::Null { len_sectors: 1 << 31 });
        assert_eq!(parse_name("7:0").unwrap(), LowerName::Number { major: 7, minor: 0 });
        let memory = |name| LowerName::Memory { len_sectors: 2048, name };
        assert_eq!(parse_name("mem:1M").unwrap(), memory(None));
        assert_eq!(parse_name("mem:1024k:disk-0.a").unwrap(), memory(Some("disk-0.a")));
    }

    #[test]
    fn a_name_as_shown_is_the_same_name_in_a_table() {
        for name in ["/plain", "/a b/c\td", "/back\\slash\\", "/\u{b}\u{c}\r\u{a0}"] {
            let text = format!("0 8 linear {} 0", escaped(name));
            let lines = udm_core::table::parse_table(&text).unwrap();
            assert_eq!(lines[0].args, [name, "0"]);
        }
        assert_eq!(escaped("/plain"), "/plain");
    }

    #[test]
    fn what_is_no_path_is_named_for_what_it_is() {
        let error = |text: &str| parse_name(text).expect_err(text);
        for text in ["disk.img", "./disk.img", "file:disk.img", "memory:1M"] {
            assert_eq!(error(text).code(), ErrorCode::DeviceNotFound, "{text}");
            assert_eq!(error(text).kind(), ErrorKind::NoEntry, "{text}");
        }
        for text in ["direct:", "", "file:"] {
            assert_eq!(error(text).kind(), ErrorKind::Invalid, "{text}");
        }
        for text in ["4096:7", "8:1048576", "99999999999:0"] {
            assert_eq!(error(text).kind(), ErrorKind::NoDevice, "{text}");
            assert!(error(text).message().contains("no mapped device"), "{text}");
        }
        assert!(error("dm:gone").message().contains("no mapped device"));
        assert_eq!(error("nbd+unix:///x").code(), ErrorCode::BadArgument);
        assert_eq!(error("/a\0b").kind(), ErrorKind::Invalid);
        assert_eq!(error(&format!("/{}", "a".repeat(4095))).kind(), ErrorKind::Invalid);
        assert_eq!(error("mem:1M:").code(), ErrorCode::BadArgument);
        assert_eq!(error("mem:1M:a/b").code(), ErrorCode::BadArgument);
        assert_eq!(error("mem::x").code(), ErrorCode::SizeSyntax);
    }
}
