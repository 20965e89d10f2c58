//! `udm compress`: the offline tools of compress volumes, on a file or a block device.
//!
//! The tools themselves are pure code (`udm_targets::compress::tools`); this folder gives them a
//! device (`device.rs`), arguments, words and progress, one file a verb.
//!
//! Rules. A device is opened so that nobody else has it: not a running daemon, not a mount, not a
//! second tool. What only looks opens it for reading. Long work shows progress with an ETA on a
//! terminal and nothing in a pipe. Findings go to the output stream, failures to the error stream;
//! the exit code is 1 if something is damaged.
//!
//! The tricky case is `format` on a device with something on it: known signatures are refused
//! (`signature.rs`), and so is a volume of ours, unless the user says `--force`.

mod check;
mod device;
mod dump;
mod format;
mod import;
mod progress;
mod repair;
mod signature;
mod stat;
#[cfg(test)]
mod tests;

use crate::cli::{Failure, Output};
use clap::{Args, Subcommand};
use device::Device;
pub(crate) use format::{parse_bytes, parse_codec};
use progress::Progress;
use std::path::PathBuf;
use udm_core::error::{ErrorCode, UserError};
use udm_meta::Disk;
use udm_meta::host::run_on;

/// `compress`.
#[derive(Clone, Debug, Args)]
pub struct CompressArgs {
    #[command(subcommand)]
    #[expect(
        missing_docs,
        reason = "its variants are documented, and a doc here would become help"
    )]
    pub tool: CompressTool,
}

/// The tools.
#[derive(Clone, Debug, Subcommand)]
pub enum CompressTool {
    /// Make a new compress volume; everything on the device is lost.
    Format(format::FormatArgs),
    /// Prove every rule of the format, and list what does not hold.
    Check(check::CheckArgs),
    /// Mend what is damaged, and say what could not be saved.
    Repair(repair::RepairArgs),
    /// Read a volume of dm-insitu-comp or dm-inplace-compress into an image.
    Import(import::ImportArgs),
    /// Show what is on a volume, piece by piece.
    Dump(dump::DumpArgs),
    /// What a volume is and how full it is.
    Stat(stat::StatArgs),
}

/// The device of a tool.
#[derive(Clone, Debug, Args)]
pub struct DeviceArg {
    /// A file or a block device that nobody uses.
    #[arg(value_name = "DEVICE")]
    pub device: PathBuf,
}

/// Runs a tool.
///
/// # Errors
/// What to tell the user, and the exit code.
pub(crate) fn run(args: &CompressArgs, output: &mut Output) -> Result<(), Failure> {
    match &args.tool {
        CompressTool::Format(args) => format::run(args, output),
        CompressTool::Check(args) => check::run(args, output),
        CompressTool::Repair(args) => repair::run(args, output),
        CompressTool::Import(args) => import::run(args, output),
        CompressTool::Dump(args) => dump::run(args, output),
        CompressTool::Stat(args) => stat::run(args, output),
    }
}

/// Runs a tool's task on an open device, with progress.
fn on_device<T, F: Future<Output = T>>(
    device: &mut Device,
    task: impl FnOnce(Disk, Progress) -> F,
) -> T {
    let disk = Disk::new(device.len_bytes());
    let task = task(disk.clone(), Progress::new());
    run_on(&disk, device, task)
}

/// Sixteen random bytes that make an identity, and a salt.
fn random_identity() -> Result<([u8; 16], u32), UserError> {
    use std::io::Read;
    let mut bytes = [0; 20];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|error| UserError::new(ErrorCode::Internal, format!("no randomness: {error}")))?;
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&bytes[..16]);
    // Version 4, the variant of the standard.
    uuid[6] = (uuid[6] & 0x0f) | 0x40;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    let salt = u32::from_le_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]);
    Ok((uuid, salt))
}

/// A uuid as people write it.
fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// A size as people read it.
fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    let digits = if size < 10.0 { 2 } else { usize::from(size < 100.0) };
    format!("{size:.digits$} {}", UNITS[unit])
}
