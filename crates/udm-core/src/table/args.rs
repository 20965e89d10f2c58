//! The arguments of a table line, taken one by one with errors that name the field.
//!
//! Target types use this in `build`. Fields are counted as people count words of the line: START
//! is 1, LENGTH 2, TYPE 3, the first argument 4.

use super::text::{TableLine, parse_number, shorten};
use crate::error::{ErrorCode, UserError};
use alloc::format;
use alloc::string::String;
use core::ops::RangeInclusive;
use udm_types::{MAX_SECTOR, Sector};

/// Field number of the first argument.
const FIRST_ARG_FIELD: u32 = 4;

/// A walk over the arguments of one line; a copy looks ahead.
#[derive(Clone, Debug)]
pub struct Args<'a> {
    line: &'a TableLine,
    next: usize,
}

impl<'a> Args<'a> {
    /// Starts at the first argument.
    pub fn new(line: &'a TableLine) -> Args<'a> {
        Args { line, next: 0 }
    }

    /// The whole line.
    pub fn line(&self) -> &'a TableLine {
        self.line
    }

    /// How many arguments are left.
    pub fn left(&self) -> usize {
        self.line.args.len() - self.next
    }

    /// The next argument, without taking it.
    pub fn peek(&self) -> Option<&'a str> {
        self.line.args.get(self.next).map(String::as_str)
    }

    /// Takes a word; `what` names it in the error.
    pub fn word(&mut self, what: &str) -> Result<&'a str, UserError> {
        let Some(word) = self.peek() else {
            return Err(self.here(UserError::new(
                ErrorCode::TooFewArgs,
                format!("{}: {what} is missing", self.line.target),
            )));
        };
        self.next += 1;
        Ok(word)
    }

    /// Takes a decimal number in a range.
    pub fn number(&mut self, what: &str, range: RangeInclusive<u64>) -> Result<u64, UserError> {
        let word = self.word(what)?;
        let value = parse_number(word, what).map_err(|error| self.previous(error))?;
        if !range.contains(&value) {
            return Err(self.bad(format!(
                "{what}: {} is not between {} and {}",
                shorten(word),
                range.start(),
                range.end()
            )));
        }
        Ok(value)
    }

    /// Takes a sector number.
    pub fn sector(&mut self, what: &str) -> Result<Sector, UserError> {
        self.number(what, 0..=MAX_SECTOR)
    }

    /// Takes a 32-bit number.
    pub fn number32(&mut self, what: &str, range: RangeInclusive<u32>) -> Result<u32, UserError> {
        let value = self.number(what, u64::from(*range.start())..=u64::from(*range.end()))?;
        Ok(u32::try_from(value).expect("invariant: the range is of 32-bit numbers"))
    }

    /// All arguments must have been taken.
    pub fn end(&self) -> Result<(), UserError> {
        match self.peek() {
            None => Ok(()),
            Some(word) => Err(self.here(UserError::new(
                ErrorCode::TooManyArgs,
                format!("{}: unexpected argument '{}'", self.line.target, shorten(word)),
            ))),
        }
    }

    /// Exactly one of these counts of arguments must be there; checked before taking any.
    pub fn expect_count(&self, allowed: &[usize], usage: &str) -> Result<(), UserError> {
        let count = self.line.args.len();
        if allowed.contains(&count) {
            return Ok(());
        }
        // Between two allowed counts something is missing rather than too much.
        let most = allowed.iter().copied().max().unwrap_or(0);
        let code = if count < most { ErrorCode::TooFewArgs } else { ErrorCode::TooManyArgs };
        let field = count.min(most);
        Err(UserError::new(code, format!("{}: {count} arguments", self.line.target))
            .at_line(self.line.line)
            .at_field(FIRST_ARG_FIELD + u32::try_from(field).unwrap_or(0))
            .hint(format!("usage: START LENGTH {} {usage}", self.line.target)))
    }

    /// An error about the argument just taken.
    pub fn bad(&self, message: impl Into<String>) -> UserError {
        self.previous(UserError::new(ErrorCode::BadArgument, message))
    }

    /// Places an error at the argument just taken.
    pub fn previous(&self, error: UserError) -> UserError {
        let field = FIRST_ARG_FIELD + u32::try_from(self.next.saturating_sub(1)).unwrap_or(0);
        error.at_line(self.line.line).at_field(field)
    }

    fn here(&self, error: UserError) -> UserError {
        let field = FIRST_ARG_FIELD + u32::try_from(self.next).unwrap_or(0);
        error.at_line(self.line.line).at_field(field)
    }
}

/// A size for people: bytes, or with a unit K, M, G, T (powers of 1024); in sectors.
pub fn parse_size_sectors(text: &str) -> Result<Sector, UserError> {
    let refuse = || {
        UserError::new(
            ErrorCode::SizeSyntax,
            format!("expected a size such as 64M or 1G, found '{}'", shorten(text)),
        )
    };
    let text_upper = text.trim_end_matches(['B', 'b']).trim_end_matches('i');
    let (digits, shift) = match text_upper.chars().last().map(|unit| unit.to_ascii_uppercase()) {
        Some('K') => (&text_upper[..text_upper.len() - 1], 10),
        Some('M') => (&text_upper[..text_upper.len() - 1], 20),
        Some('G') => (&text_upper[..text_upper.len() - 1], 30),
        Some('T') => (&text_upper[..text_upper.len() - 1], 40),
        _ => (text, 0),
    };
    let value = parse_number(digits, "size").map_err(|_| refuse())?;
    let bytes = value.checked_mul(1 << shift).ok_or_else(refuse)?;
    if bytes == 0 || bytes % udm_types::SECTOR_BYTES != 0 {
        return Err(refuse().hint("it must be a multiple of 512 bytes and not 0"));
    }
    let sectors = bytes / udm_types::SECTOR_BYTES;
    if sectors > MAX_SECTOR { Err(refuse()) } else { Ok(sectors) }
}

#[cfg(test)]
mod tests {
    use super::{Args, parse_size_sectors};
    use crate::error::ErrorCode;
    use crate::table::parse_table;

    #[test]
    fn fields_are_counted_as_words_of_the_line() {
        let lines = parse_table("0 8 linear /dev/x y").expect("good");
        let mut args = Args::new(&lines[0]);
        assert_eq!(args.word("device").expect("there"), "/dev/x");
        let error = args.sector("start").expect_err("not a number");
        assert_eq!((error.code(), error.field()), (ErrorCode::BadNumber, Some(5)));
        let error = args.word("more").expect_err("missing");
        assert_eq!((error.code(), error.field()), (ErrorCode::TooFewArgs, Some(6)));
    }

    #[test]
    fn ranges_are_inclusive() {
        let lines = parse_table("0 8 t 1 5 0 6").expect("good");
        let mut args = Args::new(&lines[0]);
        assert_eq!(args.number("n", 1..=5).expect("in"), 1);
        assert_eq!(args.number("n", 1..=5).expect("in"), 5);
        assert!(args.number("n", 1..=5).is_err());
        assert!(args.number("n", 1..=5).is_err());
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size_sectors("64M").expect("size"), 131_072);
        assert_eq!(parse_size_sectors("1GiB").expect("size"), 2_097_152);
        assert_eq!(parse_size_sectors("512").expect("size"), 1);
        for bad in ["", "M", "1X", "0", "100", "99999999999T", "-1M"] {
            assert!(parse_size_sectors(bad).is_err(), "{bad}");
        }
    }
}
