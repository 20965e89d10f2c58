//! `udm compress repair`: mends a volume, and says what it could not save.
//!
//! Without `--write` it only tells what is wrong, with `check`'s words, and writes nothing: the
//! device is opened for reading then. The tricky case is a log from which durable records are
//! missing: what follows was acknowledged to somebody, so giving it up needs a word of its own.

use super::device::{Device, Purpose};
use super::format::{parse_bytes, told};
use super::{DeviceArg, on_device};
use crate::cli::{Failure, Output};
use clap::Args;
use serde_json::json;
use udm_targets::compress::tools::check::{CheckRequest, Severity};
use udm_targets::compress::tools::repair::{RepairReport, RepairRequest, repair};

/// `compress repair`.
#[derive(Clone, Debug, Args)]
pub struct RepairArgs {
    #[command(flatten)]
    pub device: DeviceArg,
    /// Mend it; without this, only what is wrong is told.
    #[arg(long)]
    pub write: bool,
    /// Give up the rest of a log from which durable records are missing.
    #[arg(long, requires = "write")]
    pub truncate: bool,
    /// Make the whole map anew from the records. Blocks that were discarded long ago may come back.
    #[arg(long, requires = "write")]
    pub rebuild: bool,
    /// Logical size of the volume, in case no checkpoint is left that tells it.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "rebuild")]
    pub size: Option<u64>,
}

/// Mends a volume.
pub(super) fn run(args: &RepairArgs, output: &mut Output) -> Result<(), Failure> {
    let purpose = if args.write { Purpose::Write } else { Purpose::Look };
    let mut device = Device::open(&args.device.device, purpose)?;
    let request = RepairRequest {
        check: CheckRequest::default(),
        may_write: args.write,
        may_truncate: args.truncate,
        rebuild: args.rebuild,
        logical_blocks: args.size.map(|bytes| bytes / 4096),
    };
    let report = on_device(&mut device, |disk, mut progress| async move {
        repair(&disk, &request, &mut |step| progress.hear(step)).await
    })
    .map_err(|error| told(&error))?;
    show(args, &report, output);
    let is_left = !report.wrote && report.found.worst > Some(Severity::Normal);
    if !is_left {
        return Ok(());
    }
    output.print()?;
    Err(Failure::silent(1))
}

fn show(args: &RepairArgs, report: &RepairReport, output: &mut Output) {
    let poisoned: Vec<_> = report
        .poisoned
        .iter()
        .map(|range| json!({ "first_block": range.start, "blocks": range.end - range.start }))
        .collect();
    output.field(
        "repair",
        &json!({
            "wrote": report.wrote,
            "was_sound": report.found.is_sound(),
            "checkpoint": report.checkpoint,
            "rebuilt_pages": report.rebuilt_pages,
            "may_resurrect": report.may_resurrect,
            "poisoned": poisoned,
            "poisoned_blocks": report.poisoned_blocks,
            "truncated_before": report.truncated_before,
        }),
    );
    for finding in &report.found.findings {
        output.text(&format!("{}: {}\n", finding.severity.word(), finding.text));
    }
    for range in &report.poisoned {
        let (first, last) = (range.start * 8, range.end * 8 - 1);
        output.text(&format!("lost: sectors {first} to {last}, reads are errors until written\n"));
    }
    if let Some(sequence) = report.truncated_before {
        output.text(&format!("lost: the log from record {sequence} on\n"));
    }
    if report.may_resurrect {
        output.text("blocks that were discarded long ago may be back with their old contents\n");
    }
    let path = args.device.device.display();
    let outcome = match (report.wrote, report.found.worst) {
        (true, _) => format!("is mended: checkpoint {}", report.checkpoint),
        (false, None | Some(Severity::Normal)) => "needs no repair".to_owned(),
        (false, Some(_)) => "was not touched; --write mends it".to_owned(),
    };
    output.text(&format!("{path} {outcome}\n"));
}
