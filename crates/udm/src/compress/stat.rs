//! `udm compress stat`: what a volume is and how full it is, without reading map or data.
//!
//! The numbers are as of the newest checkpoint. The tricky case is the ratio: it compares what live
//! blocks are worth with what their extents take; holes and fills take nothing and do not count.

use super::device::{Device, Purpose};
use super::format::told;
use super::{DeviceArg, on_device, size_text, uuid_text};
use crate::cli::{Failure, Output};
use clap::Args;
use serde_json::json;
use udm_targets::compress::format::CheckpointFlags;
use udm_targets::compress::tools::stat::{Stat, stat};
use udm_types::SECTOR_BYTES;

/// `compress stat`.
#[derive(Clone, Debug, Args)]
pub struct StatArgs {
    #[command(flatten)]
    pub device: DeviceArg,
}

/// Describes a volume.
pub(super) fn run(args: &StatArgs, output: &mut Output) -> Result<(), Failure> {
    let mut device = Device::open(&args.device.device, Purpose::Look)?;
    let stat = on_device(&mut device, |disk, _progress| async move { stat(&disk).await });
    show(&stat.map_err(|error| told(&error))?, output);
    Ok(())
}

fn show(stat: &Stat, output: &mut Output) {
    let superblock = &stat.superblock;
    let geometry = &superblock.geometry;
    let segments = &stat.segments;
    let live_bytes = stat.live_blocks * 4096;
    output.field(
        "stat",
        &json!({
            "uuid": uuid_text(&superblock.uuid),
            "device_sectors": geometry.device_bytes / SECTOR_BYTES,
            "logical_sectors": stat.logical_blocks * 4096 / SECTOR_BYTES,
            "compressor": superblock.defaults.codec.name(),
            "level": superblock.defaults.level,
            "checkpoint": stat.checkpoint,
            "epoch": stat.epoch,
            "clean": stat.flags.contains(CheckpointFlags::CLEAN),
            "needs_check": stat.flags.contains(CheckpointFlags::NEEDS_CHECK),
            "live_blocks": stat.live_blocks,
            "live_bytes": stat.live_bytes,
            "segment_bytes": geometry.segment_bytes(),
            "segments": segments.all,
            "free_segments": segments.free,
            "used_segments": segments.used,
            "map_segments": segments.map,
            "retired_segments": segments.retired,
            "unknown_segments": segments.unknown,
            "reserve_segments": geometry.reserve_segments,
            "log_records": stat.log_records,
            "log_bytes": stat.log_bytes,
            "overhead_bytes": stat.overhead_bytes,
        }),
    );
    let ratio = match stat.live_bytes {
        0 => String::new(),
        stored => format!(", {:.2} to 1", live_bytes as f64 / stored as f64),
    };
    output.text(&format!(
        "uuid           {}\n\
         logical size   {} ({} sectors)\n\
         device         {}, of which {} are metadata\n\
         compressor     {}\n\
         in use         {} stored as {}{ratio}\n\
         segments       {} of {}: {} free, {} used, {} map, {} retired\n\
         checkpoint     {}, {} records ({}) behind it\n",
        uuid_text(&superblock.uuid),
        size_text(stat.logical_blocks * 4096),
        stat.logical_blocks * 4096 / SECTOR_BYTES,
        size_text(geometry.device_bytes),
        size_text(stat.overhead_bytes),
        superblock.defaults.codec,
        size_text(live_bytes),
        size_text(stat.live_bytes),
        segments.all,
        size_text(geometry.segment_bytes()),
        segments.free,
        segments.used,
        segments.map,
        segments.retired,
        stat.checkpoint,
        stat.log_records,
        size_text(stat.log_bytes),
    ));
    if segments.unknown > 0 {
        output.text(&format!("damaged: the entries of {} segments\n", segments.unknown));
    }
}
