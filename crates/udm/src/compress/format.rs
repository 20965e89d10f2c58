//! `udm compress format`: makes a volume, or says with `--dry-run` what it would be.
//!
//! Everything that can be refused (sizes, a device in use, something known on it) is refused before
//! the first write. The tricky case is `--dry-run`: the device is opened for reading then, so it
//! provably writes nothing.

use super::device::{Device, Purpose};
use super::{DeviceArg, on_device, random_identity, signature, size_text, uuid_text};
use crate::cli::{Failure, Output};
use clap::{Args, ValueEnum};
use serde_json::json;
use udm_core::error::{ErrorCode, UserError};
use udm_core::table::parse_size_sectors;
use udm_targets::compress::format::{Codec, Defaults, Shape};
use udm_targets::compress::tools::ToolError;
use udm_targets::compress::tools::format::{FormatRequest, Plan, format, plan};
use udm_types::SECTOR_BYTES;

/// `compress format`.
#[derive(Clone, Debug, Args)]
pub struct FormatArgs {
    #[command(flatten)]
    pub device: DeviceArg,
    /// Logical size, such as 64G; it may be larger than the device. If left out: the size that can
    /// be filled even if nothing compresses, about 89 % of the device.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub size: Option<u64>,
    /// Default compressor of tables that name none: none, lz4, zstd or zstd:LEVEL.
    #[arg(long, value_name = "NAME[:LEVEL]", default_value = "lz4", value_parser = parse_codec)]
    pub compressor: (Codec, i8),
    /// Length of a segment, 1M to 64M, a power of two. If left out: 4M, on small devices 1M.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub segment: Option<u64>,
    /// Blocks of 4 KiB compressed together at most: more saves space, fewer make small reads cheap.
    #[arg(long, value_name = "BLOCKS", default_value_t = 8,
        value_parser = clap::value_parser!(u8).range(1..=15))]
    pub max_extent: u8,
    /// Alignment of records in bytes.
    #[arg(long, value_name = "BYTES", value_enum, default_value = "4096")]
    pub align: AlignArg,
    /// Format although something is on the device.
    #[arg(long)]
    pub force: bool,
    /// Leave the free space below as it is, instead of discarding it.
    #[arg(long)]
    pub no_discard: bool,
    /// Say what would be made, and write nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Alignment of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AlignArg {
    /// For disks with 512-byte physical sectors: small flushes write less.
    #[value(name = "512")]
    Bytes512,
    /// For everything else.
    #[value(name = "4096")]
    Bytes4096,
}

pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let sectors = parse_size_sectors(text).map_err(|error| error.message().to_owned())?;
    Ok(sectors * SECTOR_BYTES)
}

pub(crate) fn parse_codec(text: &str) -> Result<(Codec, i8), String> {
    let (name, level) = text.split_once(':').unwrap_or((text, "0"));
    let codec = Codec::from_name(name).ok_or("expected none, lz4, zstd or zstd:LEVEL")?;
    let level: i8 = level.parse().map_err(|_| "the level is a small number".to_owned())?;
    match codec {
        Codec::Zstd if (-7..=22).contains(&level) => Ok((codec, level)),
        Codec::Zstd => Err("levels of zstd are -7 to 22".to_owned()),
        Codec::Raw | Codec::Lz4 if level == 0 => Ok((codec, level)),
        Codec::Raw | Codec::Lz4 => Err(format!("{codec} has no levels")),
    }
}

/// Makes a volume.
pub(super) fn run(args: &FormatArgs, output: &mut Output) -> Result<(), Failure> {
    let path = &args.device.device;
    let purpose = if args.dry_run { Purpose::Look } else { Purpose::Write };
    let mut device = Device::open(path, purpose)?;
    let request = request(args, device.len_bytes())?;
    let physical_bytes = u64::from(device.physical_bytes());
    if 1 << request.shape.physical_shift < physical_bytes.min(4096) {
        let text = format!("the device has physical sectors of {physical_bytes} bytes");
        return Err(UserError::new(ErrorCode::VolumeSizes, text)
            .hint("leave out --align 512")
            .into());
    }
    let planned = plan(device.len_bytes(), &request).map_err(|error| told(&error))?;
    if !args.force && !args.dry_run {
        refuse_known(path, &device)?;
    }
    if !args.dry_run {
        on_device(&mut device, |disk, mut progress| async move {
            format(&disk, &request, &mut |step| progress.hear(step)).await
        })
        .map_err(|error| told(&error))?;
    }
    show(args, &planned, output);
    Ok(())
}

fn request(args: &FormatArgs, device_bytes: u64) -> Result<FormatRequest, UserError> {
    let (uuid, salt) = random_identity()?;
    let mut shape = Shape::for_device(device_bytes);
    if let Some(segment) = args.segment {
        if !segment.is_power_of_two() || !(1 << 20..=64 << 20).contains(&segment) {
            let text = format!("segments cannot have {segment} bytes");
            return Err(
                UserError::new(ErrorCode::VolumeSizes, text).hint("a power of two from 1M to 64M")
            );
        }
        shape.segment_shift = segment.trailing_zeros() as u8;
    }
    shape.physical_shift = match args.align {
        AlignArg::Bytes512 => 9,
        AlignArg::Bytes4096 => 12,
    };
    shape.extent_blocks = args.max_extent;
    let (codec, level) = args.compressor;
    Ok(FormatRequest {
        shape,
        logical_bytes: args.size,
        uuid,
        salt,
        defaults: Defaults { codec, level },
        is_discarded: !args.no_discard,
    })
}

fn refuse_known(path: &std::path::Path, device: &Device) -> Result<(), UserError> {
    let shown = path.display();
    match signature::find(device) {
        Ok(None) => Ok(()),
        Ok(Some(what)) => {
            let text = format!("{shown} has {what} on it");
            Err(UserError::new(ErrorCode::VolumeKnown, text)
                .hint("--force formats it anyway; everything on it will be lost"))
        }
        Err(error) => {
            let text = format!("{shown} cannot be read: {error}");
            Err(UserError::new(ErrorCode::VolumeUnusable, text))
        }
    }
}

/// A tool's error in the user's terms.
pub(super) fn told(error: &ToolError) -> UserError {
    match error {
        ToolError::Disk(_) | ToolError::Unusable(_) => {
            UserError::new(ErrorCode::VolumeUnusable, error.to_string())
        }
        ToolError::NeedsRebuild(_) => UserError::new(ErrorCode::VolumeUnusable, error.to_string())
            .hint("`udm compress repair --write --rebuild` does it"),
        ToolError::NeedsTruncate { .. } => {
            UserError::new(ErrorCode::VolumeUnusable, error.to_string())
                .hint("--truncate gives up what follows; copy the device first")
        }
        ToolError::Geometry(_) | ToolError::LogicalTooLarge { .. } | ToolError::LogicalUneven => {
            UserError::new(ErrorCode::VolumeSizes, error.to_string())
        }
    }
}

fn show(args: &FormatArgs, plan: &Plan, output: &mut Output) {
    let superblock = &plan.superblock;
    let geometry = &superblock.geometry;
    let logical_bytes = plan.logical_blocks * 4096;
    let guaranteed_bytes = plan.guaranteed_blocks * 4096;
    let codec = superblock.defaults.codec;
    output.field(
        "volume",
        &json!({
            "uuid": uuid_text(&superblock.uuid),
            "device_sectors": geometry.device_bytes / SECTOR_BYTES,
            "logical_sectors": logical_bytes / SECTOR_BYTES,
            "guaranteed_sectors": guaranteed_bytes / SECTOR_BYTES,
            "segment_bytes": geometry.segment_bytes(),
            "segments": geometry.segment_limit(),
            "align_bytes": geometry.physical_bytes(),
            "compressor": codec.name(),
            "level": superblock.defaults.level,
            "dry_run": args.dry_run,
        }),
    );
    let verb = if args.dry_run { "would be" } else { "is" };
    let sectors = logical_bytes / SECTOR_BYTES;
    let path = args.device.device.display();
    output.text(&format!(
        "{path} {verb} a compress volume {}\n\
         logical size   {} ({sectors} sectors)\n\
         always fits    {}\n\
         segments       {} of {}\n\
         table line     0 {sectors} compress {path}\n",
        uuid_text(&superblock.uuid),
        size_text(logical_bytes),
        size_text(guaranteed_bytes),
        geometry.segment_limit(),
        size_text(geometry.segment_bytes()),
    ));
}
