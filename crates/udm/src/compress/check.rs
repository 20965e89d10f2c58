//! `udm compress check`: proves a volume, and lists what does not hold.
//!
//! Reads only. The exit code is 1 if something is damaged, 0 for what a crash leaves behind; the
//! tricky case is that a damaged volume is an answer and no failure: it goes to the output stream.

use super::device::{Device, Purpose};
use super::{DeviceArg, on_device};
use crate::cli::{Failure, Output};
use clap::Args;
use serde_json::json;
use udm_targets::compress::tools::check::{CheckReport, CheckRequest, check};
use udm_types::SECTOR_BYTES;

/// `compress check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub device: DeviceArg,
    /// Do not read the data: everything but the extents is proven.
    #[arg(long)]
    pub quick: bool,
    /// Memory for the map in MiB; with less, the map is read more often.
    #[arg(long, value_name = "MIB", default_value_t = 128,
        value_parser = clap::value_parser!(u16).range(1..=16384))]
    pub memory: u16,
    /// Findings to list; the rest is counted.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub limit: usize,
}

/// Checks a volume.
pub(super) fn run(args: &CheckArgs, output: &mut Output) -> Result<(), Failure> {
    let mut device = Device::open(&args.device.device, Purpose::Look)?;
    let request = CheckRequest {
        reads_extents: !args.quick,
        memory_bytes: usize::from(args.memory) << 20,
        finding_limit: args.limit,
    };
    let report = on_device(&mut device, |disk, mut progress| async move {
        check(&disk, &request, &mut |step| progress.hear(step)).await
    });
    show(args, &report, output);
    if report.is_sound() {
        return Ok(());
    }
    output.print()?;
    Err(Failure::silent(1))
}

fn show(args: &CheckArgs, report: &CheckReport, output: &mut Output) {
    let counts = &report.counts;
    let findings: Vec<_> = report
        .findings
        .iter()
        .map(|finding| {
            json!({
                "severity": finding.severity.word(),
                "code": finding.code.word(),
                "text": finding.text,
            })
        })
        .collect();
    output.field(
        "check",
        &json!({
            "sound": report.is_sound(),
            "checkpoint": counts.checkpoint,
            "logical_sectors": counts.logical_blocks * 4096 / SECTOR_BYTES,
            "extent_blocks": counts.extent_blocks,
            "fill_blocks": counts.fill_blocks,
            "poisoned_blocks": counts.poisoned_blocks,
            "extents": counts.extents,
            "segments": counts.segments,
            "live_segments": counts.live_segments,
            "log_records": counts.log_records,
            "log_bytes": counts.log_bytes,
            "findings": findings,
            "hidden_findings": report.hidden,
        }),
    );
    for finding in &report.findings {
        output.text(&format!("{}: {}\n", finding.severity.word(), finding.text));
    }
    if report.hidden > 0 {
        output.text(&format!("and {} more\n", report.hidden));
    }
    let path = args.device.device.display();
    let verdict = if report.is_sound() { "sound" } else { "damaged" };
    output.text(&format!(
        "{path} is {verdict}: checkpoint {}, {} blocks in {} extents, {} records in the log\n",
        counts.checkpoint, counts.extent_blocks, counts.extents, counts.log_records
    ));
}
