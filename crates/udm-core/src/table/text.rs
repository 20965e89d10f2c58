//! Table text to lines: `START LENGTH TYPE ARGUMENTS`, one target a line.
//!
//! Called with what a user typed or a file held. Pure: no target is consulted, nothing is opened.
//! The grammar is the kernel's: any of the kernel's white space separates words, a backslash makes
//! the next character literal, a last backslash stands for itself, there are no quotes. Empty lines
//! and lines that begin with `#` are skipped, as dmsetup does.
//!
//! The tricky case: numbers. Linux wraps silently on overflow; here an overflowing number is an
//! error, because what the user meant is certainly not what they would get.

use crate::error::{ErrorCode, UserError};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use udm_types::{MAX_SECTOR, Sector};

/// Most targets in a table (the kernel's limit).
pub const TARGETS_MAX: usize = 1 << 20;
/// Longest line in bytes: 1 MiB holds a stripe set of thousands of legs.
pub const LINE_LEN_BYTES_MAX: usize = 1 << 20;
/// Longest table text in bytes; bounds what a client can make the daemon hold.
pub const TABLE_LEN_BYTES_MAX: usize = 64 << 20;

/// One line of a table, split into words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableLine {
    /// Line number in the text, counted from 1.
    pub line: u32,
    /// First sector on the mapped device.
    pub begin_sector: Sector,
    /// Length.
    pub len_sectors: Sector,
    /// Target type.
    pub target: String,
    /// The target's arguments.
    pub args: Vec<String>,
}

/// Splits table text into lines.
pub fn parse_table(text: &str) -> Result<Vec<TableLine>, UserError> {
    if text.len() > TABLE_LEN_BYTES_MAX {
        return Err(UserError::new(
            ErrorCode::TableTooLarge,
            format!("the table has {} bytes, the limit is {TABLE_LEN_BYTES_MAX}", text.len()),
        ));
    }
    let mut lines = Vec::new();
    for (index, text) in text.split('\n').enumerate() {
        let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
        let trimmed = text.trim_matches(is_space);
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        lines.push(parse_line(text, number)?);
        if lines.len() > TARGETS_MAX {
            return Err(UserError::new(
                ErrorCode::TooManyTargets,
                format!("more than {TARGETS_MAX} lines"),
            )
            .at_line(number));
        }
    }
    if lines.is_empty() {
        return Err(UserError::new(ErrorCode::EmptyTable, "the table has no lines")
            .hint("a line is START LENGTH TYPE ARGUMENTS, for example: 0 2048 zero"));
    }
    Ok(lines)
}

fn parse_line(text: &str, line: u32) -> Result<TableLine, UserError> {
    if text.len() > LINE_LEN_BYTES_MAX {
        return Err(UserError::new(
            ErrorCode::TableTooLarge,
            format!("the line has {} bytes, the limit is {LINE_LEN_BYTES_MAX}", text.len()),
        )
        .at_line(line));
    }
    let mut words = split_words(text).into_iter();
    let begin_sector = number(words.next(), "the start sector", 1, line)?;
    let len_sectors = number(words.next(), "the length in sectors", 2, line)?;
    let target = words.next().ok_or_else(|| {
        UserError::new(ErrorCode::MissingField, "the target type is missing")
            .at_line(line)
            .at_field(3)
            .hint("a line is START LENGTH TYPE ARGUMENTS, for example: 0 2048 zero")
    })?;
    if begin_sector.checked_add(len_sectors).is_none_or(|end| end > MAX_SECTOR) {
        return Err(UserError::new(
            ErrorCode::RangeOverflow,
            format!("start {begin_sector} + length {len_sectors} is beyond 2^54 - 1 sectors"),
        )
        .at_line(line)
        .at_field(2));
    }
    Ok(TableLine { line, begin_sector, len_sectors, target, args: words.collect() })
}

fn number(word: Option<String>, what: &str, field: u32, line: u32) -> Result<u64, UserError> {
    let at = |error: UserError| error.at_line(line).at_field(field);
    let Some(word) = word else {
        return Err(at(UserError::new(ErrorCode::MissingField, format!("{what} is missing"))
            .hint("a line is START LENGTH TYPE ARGUMENTS, for example: 0 2048 zero")));
    };
    parse_number(&word, what).map_err(at)
}

/// A plain decimal number; says what was expected if it is not one.
pub(crate) fn parse_number(word: &str, what: &str) -> Result<u64, UserError> {
    let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        return Err(UserError::new(
            ErrorCode::BadNumber,
            format!("{what}: expected a decimal number, found '{}'", shorten(word)),
        ));
    }
    word.parse().map_err(|_| {
        UserError::new(
            ErrorCode::RangeOverflow,
            format!("{what}: {} does not fit 64 bits", shorten(word)),
        )
    })
}

/// Cuts a word that would fill the screen.
pub(crate) fn shorten(word: &str) -> String {
    const SHOWN_CHARS: usize = 40;
    let mut shown: String = word.chars().take(SHOWN_CHARS).collect();
    if shown.len() < word.len() {
        shown.push_str("...");
    }
    shown
}

/// The kernel's `isspace`, without its Latin-1 no-break space (which is no character in UTF-8).
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

/// Splits at white space; a backslash makes the next character literal.
pub fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if is_space(character) {
            words.extend(word.take());
            continue;
        }
        let literal = match character {
            '\\' => characters.next().unwrap_or('\\'),
            other => other,
        };
        word.get_or_insert_with(String::new).push(literal);
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::{parse_table, split_words};
    use crate::error::ErrorCode;
    use alloc::string::{String, ToString};

    fn code(text: &str) -> ErrorCode {
        parse_table(text).expect_err("bad table").code()
    }

    #[test]
    fn words_split_as_the_kernel_does() {
        assert_eq!(split_words("  a\t b\\ c \\\\ d\\"), ["a", "b c", "\\", "d\\"]);
        assert!(split_words(" \n ").is_empty());
    }

    #[test]
    fn comments_and_empty_lines_are_skipped_but_counted() {
        let lines = parse_table("# a comment\n\n0 8 zero\n8 8 linear /dev/x 0\n").expect("good");
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].line, 4);
        assert_eq!(lines[1].args, ["/dev/x", "0"]);
    }

    #[test]
    fn every_bad_line_names_its_line_and_field() {
        let error = parse_table("0 8 zero\n8 x zero").expect_err("bad");
        assert_eq!((error.line(), error.field()), (Some(2), Some(2)));
        assert_eq!(
            error.to_string(),
            "line 2, field 2: the length in sectors: expected a decimal number, found 'x' [UDM-0103]"
        );
        assert_eq!(code(""), ErrorCode::EmptyTable);
        assert_eq!(code("0"), ErrorCode::MissingField);
        assert_eq!(code("0 8"), ErrorCode::MissingField);
        assert_eq!(code("-1 8 zero"), ErrorCode::BadNumber);
        assert_eq!(code("0 0x10 zero"), ErrorCode::BadNumber);
        assert_eq!(code("0 18446744073709551616 zero"), ErrorCode::RangeOverflow);
        assert_eq!(code("18446744073709551615 8 zero"), ErrorCode::RangeOverflow);
        assert_eq!(code("0 18014398509481984 zero"), ErrorCode::RangeOverflow);
        assert!(parse_table("0 18014398509481983 zero").is_ok());
    }

    #[test]
    fn a_line_of_one_mebibyte_passes_and_a_longer_one_does_not() {
        let fill = |len: usize| {
            let mut text = String::from("0 8 zero ");
            text.extend(core::iter::repeat_n('x', len - text.len()));
            text
        };
        assert!(parse_table(&fill(1 << 20)).is_ok());
        assert_eq!(code(&fill((1 << 20) + 1)), ErrorCode::TableTooLarge);
    }
}
