//! The closing table of the demo, for people and as JSON.
//!
//! The story fills a [`Report`]; this file only prints it. The JSON has the same numbers under
//! stable names, with their units in the names; `lost` and `mismatches` are what a script looks at.
//!
//! "Lost" counts every I/O that failed or never came back: a change of the device must not be
//! visible to those who use it, so there is no error that would be all right.

use super::DemoError;
use hdrhistogram::Histogram;
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

/// How long I/O paused for a swap: the longest time without a completion on a lane.
#[derive(Debug, Default, Serialize)]
pub(super) struct Pauses {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Pauses {
    /// Percentiles of pauses in nanoseconds.
    pub(super) fn of(pauses_ns: impl IntoIterator<Item = u64>) -> Result<Pauses, DemoError> {
        let mut histogram: Histogram<u64> = Histogram::new_with_bounds(1, 600_000_000_000, 3)?;
        for pause_ns in pauses_ns {
            histogram.saturating_record(pause_ns);
        }
        let us = |ns: u64| ns as f64 / 1e3;
        Ok(Pauses {
            p50: us(histogram.value_at_quantile(0.5)),
            p99: us(histogram.value_at_quantile(0.99)),
            max: us(histogram.max()),
        })
    }
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
    use super::{Pauses, grouped, mib};

    #[test]
    fn numbers_are_grouped_from_the_right() {
        let shown = [0, 12, 999, 1_000, 12_345_678].map(grouped);
        assert_eq!(shown, ["0", "12", "999", "1,000", "12,345,678"]);
        assert_eq!(mib(131_072), "64 MiB");
    }

    #[test]
    fn pauses_are_percentiles_in_microseconds() {
        let pauses = Pauses::of((1..=100).map(|us| us * 1_000)).expect("bounds are right");
        let near = |value: f64, wanted: f64| (value - wanted).abs() < wanted / 500.0;
        assert!(near(pauses.p50, 50.0) && near(pauses.p99, 99.0) && near(pauses.max, 100.0));
    }
}
