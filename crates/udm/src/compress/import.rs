//! `udm compress import`: reads a volume of dm-insitu-comp or dm-inplace-compress into an image.
//!
//! The source is opened for reading. The image is a new file, or a device of the right size; blocks
//! of zeroes are left out of a file, which so has holes there. From the image the data goes into a
//! compress volume by any copying tool, through an export.
//!
//! The tricky case is what is lost: a block that cannot be decoded is not written, so it reads as
//! zeroes in the image, and the list of such blocks is the only trace. Hence exit code 1.

use super::device::{Device, Purpose};
use super::format::told;
use super::{DeviceArg, on_device, size_text};
use crate::cli::{Failure, Output};
use clap::Args;
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use udm_core::error::{ErrorCode, UserError};
use udm_targets::compress::tools::import::layout::{Layout, OldCodec};
use udm_targets::compress::tools::import::{ImportReport, Sink, find, import};
use udm_types::{SECTOR_BYTES, Status};

/// `compress import`.
#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    pub device: DeviceArg,
    /// The image to make: a new file.
    #[arg(long, value_name = "FILE", required_unless_present = "dry_run")]
    pub to: Option<PathBuf>,
    /// Say what is on the device, and write nothing.
    #[arg(long, conflicts_with = "to")]
    pub dry_run: bool,
}

/// An image.
struct Image {
    file: File,
}

impl Sink for Image {
    fn put(&mut self, first_block: u64, bytes: &[u8]) -> Result<(), Status> {
        self.file.write_all_at(bytes, first_block * 4096).map_err(|error| match error.kind() {
            std::io::ErrorKind::StorageFull => Status::NoSpace,
            _other => Status::IoErr,
        })
    }
}

/// Reads a volume of an ancestor.
pub(super) fn run(args: &ImportArgs, output: &mut Output) -> Result<(), Failure> {
    let mut device = Device::open(&args.device.device, Purpose::Look)?;
    let layout = on_device(&mut device, |disk, _progress| async move { find(&disk).await });
    let layout = layout.map_err(|error| told(&error))?;
    let Some(to) = &args.to else {
        show(&layout, None, output);
        return Ok(());
    };
    let mut image = Image { file: create(to, layout.data_blocks * 4096)? };
    let sink = &mut image;
    let report = on_device(&mut device, |disk, mut progress| async move {
        import(&disk, sink, &mut |step| progress.hear(step)).await
    });
    let report = report.map_err(|error| told(&error))?;
    image.file.sync_all().map_err(|error| unwritable(to, &error))?;
    show(&layout, Some(&report), output);
    if report.lost_blocks == 0 {
        return Ok(());
    }
    output.print()?;
    Err(Failure::silent(1))
}

fn create(path: &Path, len_bytes: u64) -> Result<File, UserError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|file| file.set_len(len_bytes).map(|()| file))
        .map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &std::io::Error) -> UserError {
    let text = format!("{} cannot be written: {error}", path.display());
    UserError::new(ErrorCode::DeviceOpen, text)
}

fn codec_name(codec: OldCodec) -> &'static str {
    match codec {
        OldCodec::Lzo => "lzo",
        OldCodec::Deflate => "deflate",
        OldCodec::Nx842 => "842",
    }
}

fn show(layout: &Layout, report: Option<&ImportReport>, output: &mut Output) {
    let lost: Vec<_> = report
        .into_iter()
        .flat_map(|report| &report.lost)
        .map(|range| json!({ "first_block": range.start, "blocks": range.end - range.start }))
        .collect();
    let ancestor = layout.ancestor.name();
    let codec = codec_name(layout.codec);
    output.field(
        "import",
        &json!({
            "from": ancestor,
            "compressor": codec,
            "logical_sectors": layout.data_blocks * 4096 / SECTOR_BYTES,
            "blocks": report.map(|report| report.blocks),
            "zero_blocks": report.map(|report| report.zero_blocks),
            "lost": lost,
            "lost_blocks": report.map(|report| report.lost_blocks),
        }),
    );
    let size = size_text(layout.data_blocks * 4096);
    output.text(&format!("{ancestor} volume, {size}, compressed with {codec}\n"));
    let Some(report) = report else { return };
    for range in &report.lost {
        let (first, last) = (range.start * 8, range.end * 8 - 1);
        output.text(&format!("lost: sectors {first} to {last}, zeroes in the image\n"));
    }
    output.text(&format!(
        "{} blocks read, {} are zeroes, {} lost\n",
        report.blocks, report.zero_blocks, report.lost_blocks
    ));
}
