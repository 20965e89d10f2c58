//! Entry points for fuzzers: everything here must return, whatever the bytes are.
//!
//! Called by the libFuzzer targets in `fuzz/` and by seeded tests, never in production. Besides not
//! panicking, each states a property that holds for all input: what was accepted is printed and
//! read again, and must come out the same.

use crate::table::{TableLine, parse_table};
use alloc::format;
use alloc::string::String;

/// Table text as a user or a file could give it: parsed, and if it was good, printed and parsed
/// again, which must give the same lines.
///
/// # Panics
/// If the round trip changes the table; that is the property under test.
pub fn table_text(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    let Ok(lines) = parse_table(text) else { return };
    for line in lines {
        let again = parse_table(&print(&line)).expect("invariant: a printed line is a good line");
        assert_eq!(again.len(), 1, "a line prints as one line");
        assert_eq!((&again[0].target, &again[0].args), (&line.target, &line.args));
        assert_eq!(again[0].begin_sector, line.begin_sector);
        assert_eq!(again[0].len_sectors, line.len_sectors);
    }
}

/// A line with everything that could be taken for a separator escaped. A newline would end the
/// line even behind a backslash, and cannot be part of a word for that reason.
fn print(line: &TableLine) -> String {
    let mut text = format!("{} {}", line.begin_sector, line.len_sectors);
    for word in core::iter::once(&line.target).chain(&line.args) {
        text.push(' ');
        for character in word.chars() {
            if matches!(character, ' ' | '\t' | '\x0b' | '\x0c' | '\r' | '\\') {
                text.push('\\');
            }
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_with_spaces_survive() {
        super::table_text(b"0 8 linear /dev/a\\ b\\\\ 0\\");
        super::table_text(b"\xff");
    }
}
