//! Where a table's text comes from, and what dmsetup refuses in it before it asks anyone.
//!
//! Text is on the command line, in a file, or on standard input. It is checked for its shape here,
//! so that a mistake is reported with its line and nothing has been touched; whether the table can
//! be built is for the daemon to say, which knows the targets and devices.
//!
//! The tricky case is text without a line: to `create` it means a device without a table, to
//! `load` an error from the kernel (a table needs a target).

use super::failure::Failure;
use std::io::Read;
use std::path::Path;
use udm_control::errno;
use udm_control::render::usage_of_table;
use udm_core::error::{ErrorCode, UserError};
use udm_core::table::{TABLE_LEN_BYTES_MAX, parse_table};

/// A table as given.
#[derive(Debug)]
pub(crate) struct TableText {
    pub(crate) text: String,
    /// As dmsetup names the origin in its errors.
    origin: String,
}

impl TableText {
    /// Takes the table from an option, a file, or standard input.
    pub(crate) fn read(option: Option<&str>, file: Option<&Path>) -> Result<TableText, Failure> {
        if let Some(text) = option {
            return Ok(TableText { text: text.to_owned(), origin: String::new() });
        }
        let Some(path) = file else {
            let text = bounded(std::io::stdin().lock(), "standard input")?;
            return Ok(TableText { text, origin: "on stdin".to_owned() });
        };
        let shown = path.display().to_string();
        let stream = std::fs::File::open(path).map_err(|error| {
            let lines = format!("Couldn't open '{shown}' for reading\n");
            Failure::dm(lines, Some(errno::system(ErrorCode::DeviceNotFound, &shown, &error)))
        })?;
        Ok(TableText { text: bounded(stream, &shown)?, origin: shown })
    }

    /// True if it has no line at all.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(parse_table(&self.text), Err(error) if error.code() == ErrorCode::EmptyTable)
    }

    /// Refuses what dmsetup refuses.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let parsed = parse_table(&self.text);
        match usage_of_table(parsed.as_deref(), &self.text, &self.origin) {
            Some(line) => Err(Failure::dm(line, parsed.err())),
            None => Ok(()),
        }
    }
}

fn bounded(stream: impl Read, origin: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let limit = TABLE_LEN_BYTES_MAX as u64 + 1;
    stream.take(limit).read_to_end(&mut bytes).map_err(|error| {
        Failure::from(errno::system(ErrorCode::BadConfig, &format!("read {origin}"), &error))
    })?;
    String::from_utf8(bytes).map_err(|_| {
        let text = format!("{origin}: the table is not UTF-8 text");
        Failure::from(UserError::new(ErrorCode::BadConfig, text))
    })
}
