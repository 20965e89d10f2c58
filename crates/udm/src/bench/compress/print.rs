//! The figures of `udm bench compress`, for people and as JSON.
//!
//! Filled by `mod.rs` from `parts.rs`; measures nothing. A part that was not asked for is missing
//! in both forms.

use super::super::BenchError;
use super::isolation::Isolation;
use super::parts::{Flush, Overwrite, Random, Sequential, Space};
use super::{CompressBenchArgs, Sample};
use serde::Serialize;
use std::fmt::Write;

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema_version: u32,
    data: String,
    sample_bytes: u64,
    disk_bytes: u64,
    compressor: &'static str,
    level: i8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sequential: Option<Vec<Sequential>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) random: Option<Random>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) flush: Option<Vec<Flush>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) overwrite: Option<Vec<Overwrite>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) isolation: Option<Isolation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) space: Option<Space>,
}

impl Report {
    pub(super) fn new(args: &CompressBenchArgs, sample: &Sample, disk_bytes: u64) -> Report {
        let data = args.data.as_ref().map(|path| path.display().to_string());
        Report {
            schema_version: 1,
            data: data.unwrap_or_else(|| "this program".to_owned()),
            sample_bytes: sample.len_bytes(),
            disk_bytes,
            compressor: args.compressor.0.name(),
            level: args.compressor.1,
            sequential: None,
            random: None,
            flush: None,
            overwrite: None,
            isolation: None,
            space: None,
        }
    }

    pub(super) fn print(&self, json: bool) -> Result<(), BenchError> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        let mut text = String::new();
        self.write(&mut text)?;
        print!("{text}");
        Ok(())
    }

    fn write(&self, out: &mut String) -> Result<(), std::fmt::Error> {
        let mib = self.sample_bytes >> 20;
        writeln!(
            out,
            "{}, {mib} MiB, over {} MiB of memory",
            self.compressor,
            self.disk_bytes >> 20
        )?;
        for row in self.sequential.iter().flatten() {
            let Sequential { op, len_bytes, mb_per_s, mb_per_cpu_s, percent_of_codec, .. } = row;
            writeln!(
                out,
                "sequential {op:<5} {len_bytes:>7} bytes: {mb_per_s:>6.0} MB/s, {mb_per_cpu_s:>6.0} \
                 a second of CPU: {percent_of_codec:.0} % of the codec alone ({:.0})",
                row.codec_mb_per_cpu_s
            )?;
        }
        if let Some(row) = &self.random {
            writeln!(
                out,
                "random read 4096 bytes: {:.3} lower reads of {:.0} bytes, {:.1} us of CPU, {} pages of \
                 the map read",
                row.lower_reads_per_read,
                row.lower_bytes_per_read,
                row.cpu_us_per_read,
                row.page_reads
            )?;
        }
        for row in self.flush.iter().flatten() {
            writeln!(
                out,
                "{:>3} flushes at once: {:.2} lower writes, {:.2} lower flushes",
                row.waiters, row.lower_writes_per_round, row.lower_flushes_per_round
            )?;
        }
        for row in self.overwrite.iter().flatten() {
            writeln!(
                out,
                "overwrite 4096 bytes, {}, {:.0} % full: {:.3} bytes below for each (data {:.3}, cleaner \
                 {:.3}, map {:.3}; ancestor {:.3}), {:.1} thousand a second, {:.1} us of CPU",
                row.places,
                row.fill_percent,
                row.below_per_byte,
                row.stored_per_byte,
                row.cleaned_per_byte,
                row.map_per_byte,
                row.ancestor_per_byte,
                row.kilo_ios_per_s,
                row.cpu_us_per_io
            )?;
        }
        if let Some(row) = &self.isolation {
            writeln!(
                out,
                "random writes while another volume is stalled: {:.0} MB/s, {:.0} without: {:.1} % ({:.1} % \
                 by CPU)",
                row.stalled_mb_per_s, row.idle_mb_per_s, row.percent, row.percent_by_cpu
            )?;
        }
        if let Some(row) = &self.space {
            writeln!(
                out,
                "space: ratio {:.3}, codec alone {:.3}: {:.1} %; read back and compared",
                row.ratio, row.codec_ratio, row.percent_of_codec
            )?;
        }
        Ok(())
    }
}
