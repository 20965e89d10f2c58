//! The table line of a compress target, in both of its forms, and what it says.
//!
//! ```text
//! compress DEVICE [#ARGS [writeback SECONDS | writethrough] [compressor NAME[:LEVEL]]
//!                        [max_extent BLOCKS] [delta_mb N] [cache_mb N] [workers N]
//!                        [discard_passdown | no_discard_passdown] [punch]
//!                        [error_if_no_space | queue_if_no_space SECONDS]]
//! insitu-comp DEVICE [writethrough | writeback SECONDS]
//! ```
//! Rules. Everything has a default, so `compress DEVICE` is a good line; what is said twice is
//! refused, since one of the two was a mistake. `table` prints what was said, in the order of the
//! usage above, so two lines that mean the same look the same.
//!
//! The tricky case is a device that has no compress volume. Where it can be read while the table is
//! built, the load is refused with the command that makes one; elsewhere the resume is.

use super::codec::CoderChoice;
use super::format::superblock::MAGIC;
use super::format::{Codec, Superblock};
use super::volume::{NoSpace, Options};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use udm_core::table::{Args, BuildCx, DeviceRef};
use udm_core::{ErrorCode, UserError};
use udm_meta::superblock::{SUPERBLOCK_BYTES, SuperblockImage};
use udm_types::{DeviceFeatures, Nanos, SECTOR_BYTES};

/// Longest time data stays in memory: an hour. More is no write-back any more.
const WRITEBACK_SECS_MAX: u64 = 3600;
/// What the ancestor writes back after, if its line does not say.
const INSITU_WRITEBACK_SECS: u64 = 5;
/// Longest time that writes wait for space: a day, as a queueing multipath may.
const QUEUE_SECS_MAX: u64 = 24 * 3600;
/// Budgets in MiB: at least what a few requests need, at most a terabyte.
const BUDGET_MB: core::ops::RangeInclusive<u64> = 1..=1 << 20;
/// Longest extent the format has.
const EXTENT_BLOCKS_MAX: u64 = 15;
/// Levels that zstd has.
const ZSTD_LEVELS: core::ops::RangeInclusive<i8> = -7..=22;

/// What a table line says.
#[derive(Clone, Debug)]
pub(super) struct Line {
    /// The device below, all of it.
    pub(super) device: DeviceRef,
    /// How the volume works.
    pub(super) options: Options,
    /// Slices of computing in one turn of the lane: the device's share beside others.
    pub(super) workers: u32,
    /// The arguments behind the device, as `table` prints them.
    pub(super) words: String,
}

/// What was said, by place in the order of printing; also tells what was said twice.
#[derive(Default)]
struct Said([Option<String>; 9]);

impl Said {
    fn put(&mut self, place: usize, words: String, args: &Args<'_>) -> Result<(), UserError> {
        match self.0[place].replace(words) {
            None => Ok(()),
            Some(before) => Err(args.bad(format!("this was said already: '{before}'"))),
        }
    }

    fn print(&self) -> String {
        let words: Vec<&str> = self.0.iter().flatten().map(String::as_str).collect();
        let count: usize = words.iter().map(|words| words.split(' ').count()).sum();
        match count {
            0 => String::new(),
            _ => format!(" {count} {}", words.join(" ")),
        }
    }
}

/// Parses the arguments of `compress`.
pub(super) fn parse(args: &mut Args<'_>, cx: &mut BuildCx<'_>) -> Result<Line, UserError> {
    let (device, mut options) = device(args, cx)?;
    let mut said = Said::default();
    let mut workers = 1;
    if args.left() > 0 {
        let count = args.number("the count of arguments", 0..=64)?;
        if count != args.left() as u64 {
            return Err(args.bad(format!("{} arguments follow, not {count}", args.left())));
        }
    }
    let limits = &device.limits;
    let can_punch_bytes = (limits.max_discard_sectors > 0)
        .then(|| u64::from(limits.discard_granularity_bytes).max(SECTOR_BYTES));
    while args.left() > 0 {
        option(args, &mut options, can_punch_bytes, &mut workers, &mut said)?;
    }
    Ok(Line { device, options, workers, words: said.print() })
}

/// Parses the arguments of `insitu-comp`.
pub(super) fn parse_insitu(args: &mut Args<'_>, cx: &mut BuildCx<'_>) -> Result<Line, UserError> {
    let (device, mut options) = device(args, cx)?;
    let mut secs = INSITU_WRITEBACK_SECS;
    let mut is_through = false;
    if args.left() > 0 {
        match args.word("writethrough or writeback")? {
            "writethrough" => is_through = true,
            "writeback" => secs = args.number("seconds", 1..=WRITEBACK_SECS_MAX)?,
            other => return Err(args.bad(format!("unknown mode '{other}'"))),
        }
    }
    args.end()?;
    options.writeback = (!is_through).then_some(Nanos::from_secs(secs));
    let words = match is_through {
        true => String::from(" writethrough"),
        false => format!(" writeback {secs}"),
    };
    Ok(Line { device, options, workers: 1, words })
}

/// One option with its value.
fn option(
    args: &mut Args<'_>,
    options: &mut Options,
    can_punch_bytes: Option<u64>,
    workers: &mut u32,
    said: &mut Said,
) -> Result<(), UserError> {
    let word = args.word("an argument")?;
    match word {
        "writeback" => {
            let secs = args.number("seconds", 1..=WRITEBACK_SECS_MAX)?;
            options.writeback = Some(Nanos::from_secs(secs));
            said.put(0, format!("writeback {secs}"), args)
        }
        "writethrough" => {
            options.writeback = None;
            said.put(0, word.to_string(), args)
        }
        "compressor" => {
            let (choice, words) = compressor(args)?;
            options.coder = Some(choice);
            said.put(1, words, args)
        }
        "max_extent" => {
            let blocks = args.number("blocks", 1..=EXTENT_BLOCKS_MAX)?;
            options.extent_blocks = Some(blocks as u8);
            said.put(2, format!("max_extent {blocks}"), args)
        }
        "delta_mb" => {
            let mb = args.number("megabytes", BUDGET_MB)?;
            options.delta_bytes = (mb << 20) as usize;
            said.put(3, format!("delta_mb {mb}"), args)
        }
        "cache_mb" => {
            let mb = args.number("megabytes", BUDGET_MB)?;
            options.cache_bytes = (mb << 20) as usize;
            said.put(4, format!("cache_mb {mb}"), args)
        }
        "workers" => {
            *workers = args.number32("workers", 1..=64)?;
            said.put(5, format!("workers {workers}"), args)
        }
        "discard_passdown" | "no_discard_passdown" => {
            options.discard_passdown &= word == "discard_passdown";
            said.put(6, word.to_string(), args)
        }
        "punch" => {
            options.punch_granularity_bytes = can_punch_bytes;
            said.put(7, word.to_string(), args)
        }
        "error_if_no_space" => {
            options.no_space = NoSpace::Error;
            said.put(8, word.to_string(), args)
        }
        "queue_if_no_space" => {
            let secs = args.number("seconds", 1..=QUEUE_SECS_MAX)?;
            options.no_space = NoSpace::Queue { timeout: Nanos::from_secs(secs) };
            said.put(8, format!("queue_if_no_space {secs}"), args)
        }
        other => Err(args.bad(format!("unknown argument '{other}'")).hint(
            "arguments: writeback, writethrough, compressor, max_extent, delta_mb, cache_mb, \
             workers, discard_passdown, no_discard_passdown, punch, error_if_no_space, \
             queue_if_no_space",
        )),
    }
}

/// `NAME[:LEVEL]`, and how it is printed.
fn compressor(args: &mut Args<'_>) -> Result<(CoderChoice, String), UserError> {
    let word = args.word("the compressor")?;
    let (name, level) = match word.split_once(':') {
        Some((name, level)) => (name, Some(level)),
        None => (word, None),
    };
    let Some(codec) = Codec::from_name(name) else {
        let text = format!("unknown compressor '{name}'");
        return Err(args.bad(text).hint("compressors: none, lz4, zstd"));
    };
    let level = match (codec, level) {
        (_, None) => 0,
        (Codec::Zstd, Some(level)) => match level.parse::<i8>() {
            Ok(level) if ZSTD_LEVELS.contains(&level) => level,
            Ok(_) | Err(_) => {
                let (least, most) = (ZSTD_LEVELS.start(), ZSTD_LEVELS.end());
                return Err(args.bad(format!("zstd has levels from {least} to {most}")));
            }
        },
        (Codec::Raw | Codec::Lz4, Some(_)) => {
            return Err(args.bad(format!("{} has no levels", codec.name())));
        }
    };
    let words = match level {
        0 => format!("compressor {}", codec.name()),
        _ => format!("compressor {}:{level}", codec.name()),
    };
    Ok((CoderChoice { codec, level }, words))
}

/// The device, what it can do, and whether a volume is on it.
fn device(args: &mut Args<'_>, cx: &mut BuildCx<'_>) -> Result<(DeviceRef, Options), UserError> {
    let device = cx.device(args, "the device")?;
    look(&device, cx).map_err(|error| args.previous(error))?;
    let options = Options {
        discard_passdown: device.limits.max_discard_sectors > 0,
        has_volatile_cache: device.limits.features.contains(DeviceFeatures::WRITE_CACHE),
        ..Options::default()
    };
    Ok((device, options))
}

/// Refuses a device without a usable volume, if it can be read now.
fn look(device: &DeviceRef, cx: &BuildCx<'_>) -> Result<(), UserError> {
    let copy_bytes = SUPERBLOCK_BYTES as u64;
    let len_bytes = device.len_sectors * SECTOR_BYTES;
    let end = len_bytes - len_bytes % copy_bytes;
    let places = [0, copy_bytes, end.saturating_sub(copy_bytes)];
    for place in places {
        let Some(bytes) = cx.read_head(device, place, SUPERBLOCK_BYTES)? else { return Ok(()) };
        let Ok(image) = SuperblockImage::parse(MAGIC, &bytes) else { continue };
        let superblock = Superblock::parse(&image)
            .map_err(|fault| not_usable(device, &format!("its superblock {fault}")))?;
        return fits(device, &superblock);
    }
    Err(not_formatted(device))
}

/// Whether a volume can be used on this device.
pub(super) fn fits(device: &DeviceRef, superblock: &Superblock) -> Result<(), UserError> {
    let geometry = &superblock.geometry;
    let block_bytes = u64::from(device.limits.logical_block_bytes);
    if geometry.physical_bytes() < block_bytes {
        let text = format!(
            "the volume was made for blocks of {} bytes, the device has {block_bytes}",
            geometry.physical_bytes()
        );
        return Err(not_usable(device, &text));
    }
    let len_bytes = device.len_sectors * SECTOR_BYTES;
    if geometry.device_bytes > len_bytes {
        let text = format!(
            "{} has {len_bytes} bytes, the volume on it was made for {}",
            device.shown, geometry.device_bytes
        );
        return Err(UserError::new(ErrorCode::DeviceTooSmall, text));
    }
    Ok(())
}

fn not_formatted(device: &DeviceRef) -> UserError {
    let text = format!("there is no compress volume on {}", device.shown);
    UserError::new(ErrorCode::VolumeUnusable, text)
        .hint(format!("make one with `udm compress format {}`", device.shown))
}

fn not_usable(device: &DeviceRef, why: &str) -> UserError {
    UserError::new(ErrorCode::VolumeUnusable, format!("{} cannot be used: {why}", device.shown))
        .hint(format!("`udm compress check {}` says more", device.shown))
}
