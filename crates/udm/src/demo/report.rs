//! The closing table of the demo, for people and as JSON.
//!
//! The story fills a [`Report`]; this file only prints it. The JSON has the same numbers under
//! stable names, with their units in the names; `lost` and `mismatches` are what a script looks at.
//!
//! "Lost" counts every I/O that failed or never came back: a change of the device must not be
//! visible to those who use it, so there is no error that would be all right.

use super::DemoError;
use crate::bench::pauses::Pauses;
use serde::Serialize;
use std::io::{Write, stdout};
use udm_types::{SECTOR_BYTES, Sector};

/// What happened.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) schema_version: u32,
    pub(super) lanes: usize,
    pub(super) driver: String,
    pub(super) seconds: f64,
    pub(super) ios: u64,
    pub(super) swaps: u64,
    pub(super) pause_us: Pauses,
    pub(super) grown_from_sectors: Sector,
    pub(super) grown_to_sectors: Sector,
    pub(super) suspends_given_up: u64,
    pub(super) given_up_code: String,
    pub(super) given_up_message: String,
    pub(super) dead_device_ios: u64,
    pub(super) dead_device_ms: u64,
    pub(super) lost: u64,
    pub(super) mismatches: u64,
}

impl Report {
    /// True if nothing was lost or damaged.
    pub(super) fn is_clean(&self) -> bool {
        self.lost == 0 && self.mismatches == 0
    }

    /// Prints the table, or one line of JSON.
    pub(super) fn print(&self, json: bool) -> Result<(), DemoError> {
        let mut out = stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::to_string(self)?)?;
            return Ok(());
        }
        let Pauses { p50, p99, max } = self.pause_us;
        let rows = [
            ("I/Os, each verified", grouped(self.ios)),
            ("table swaps under noflush", grouped(self.swaps)),
            (
                "pause of I/O for a swap",
                format!("{p50:.0} us p50, {p99:.0} us p99, {max:.0} us max"),
            ),
            (
                "grown under load",
                format!("{} -> {}", mib(self.grown_from_sectors), mib(self.grown_to_sectors)),
            ),
            ("suspends given up by deadline", grouped(self.suspends_given_up)),
            (
                "held by the dead device",
                format!("{} I/Os for {} ms", self.dead_device_ios, self.dead_device_ms),
            ),
            ("lost", grouped(self.lost)),
            ("mismatches", grouped(self.mismatches)),
        ];
        writeln!(out)?;
        for (what, value) in rows {
            writeln!(out, "  {what:<30} {value}")?;
        }
        Ok(())
    }
}

/// Mebibytes of a number of sectors.
pub(super) fn mib(len_sectors: Sector) -> String {
    format!("{} MiB", (len_sectors * SECTOR_BYTES) >> 20)
}

/// A number with its digits in groups of three.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{grouped, mib};

    #[test]
    fn numbers_are_grouped_from_the_right() {
        let shown = [0, 12, 999, 1_000, 12_345_678].map(grouped);
        assert_eq!(shown, ["0", "12", "999", "1,000", "12,345,678"]);
        assert_eq!(mib(131_072), "64 MiB");
    }
}
