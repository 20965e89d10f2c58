//! Failures: dmsetup's two lines first, then ours with the place, the reason and the way out.
//!
//! ```text
//! device-mapper: reload ioctl on t0 (254:0) failed: Invalid argument
//! Command failed.
//! udm: line 2, field 1: a gap before this line: it starts at 16, expected 8 [UDM-0105]
//! udm: hint: ...
//! ```
//! A script that matches the first two sees what it always saw; a person reads the others.
//!
//! The tricky case is the number in brackets: dmsetup shows it only for steps of `create` after the
//! device exists, because only then does it address the device by number.

use crate::errno;
use udm_core::error::{ErrorCode, UserError};
use udm_core::table::TableLine;

/// What a failed call was about, as dmsetup names it.
#[derive(Clone, Debug, Default)]
pub struct Subject<'a> {
    /// The device's name; empty if it was addressed otherwise.
    pub name: &'a str,
    /// The uuid given.
    pub uuid: &'a str,
    /// Major and minor number, if addressed by them.
    pub number: Option<(u32, u32)>,
}

/// The line dmsetup prints for an ioctl that failed.
pub fn failed_ioctl(verb: &str, subject: &Subject<'_>, error: &UserError) -> String {
    let number =
        subject.number.map_or(String::new(), |(major, minor)| format!("({major}:{minor})"));
    let words = errno::text(error.kind());
    let (name, uuid) = (subject.name, subject.uuid);
    format!("device-mapper: {verb} ioctl on {name} {uuid}{number} failed: {words}\n")
}

/// Our own lines.
pub fn explained(error: &UserError) -> String {
    let mut text = String::from("udm: ");
    match (error.line(), error.field()) {
        (Some(line), Some(field)) => text += &format!("line {line}, field {field}: "),
        (Some(line), None) => text += &format!("line {line}: "),
        (None, Some(field)) => text += &format!("field {field}: "),
        (None, None) => {}
    }
    text += &format!("{} [{}]\n", error.message(), error.code().as_str());
    if !error.hint_text().is_empty() {
        text += &format!("udm: hint: {}\n", error.hint_text());
    }
    text
}

/// What dmsetup itself refuses in a table's text, before it asks anyone: its line, or `None` if the
/// text is for the kernel to judge. `origin` is the file's name, or `on stdin`, or empty.
pub fn usage_of_table(
    parsed: Result<&[TableLine], &UserError>,
    text: &str,
    origin: &str,
) -> Option<String> {
    const TYPE_LEN_BYTES_MAX: usize = 15;
    match parsed {
        Ok(lines) => lines
            .iter()
            .find(|line| line.target.len() > TYPE_LEN_BYTES_MAX)
            .map(|line| format!("Target type name {} is too long.\n", line.target)),
        Err(error) => {
            let number = error.line()?;
            let shape = matches!(error.code(), ErrorCode::MissingField | ErrorCode::BadNumber);
            let line = text.lines().nth(number as usize - 1)?;
            (shape && !scans(line))
                .then(|| format!("Invalid format on line {number} of table {origin}.\n"))
        }
    }
}

/// True if C's `scanf("%llu %llu %16s")` takes the line: numbers may have a sign.
fn scans(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let mut number = || {
        words.next().is_some_and(|word| {
            let digits = word.strip_prefix(['+', '-']).unwrap_or(word);
            digits.starts_with(|first: char| first.is_ascii_digit())
        })
    };
    number() && number() && words.next().is_some()
}
