//! A guest's disk is a mapped device of a daemon inside of it: the kernel's ublk.
//!
//! Everything happens in the guest (`ublk-init`): verified load on the disk while the daemon is
//! killed, a file system in use while tables are swapped and it is killed, an orderly end below a
//! mounted file system, a resize, read-only, and the end of a suspended device. The disk's file
//! lies in the guest's memory, which a kill of the daemon does not touch.

use super::kernel::kernel;
use super::machine::{self, Contents, LIMIT_S, Machine};
use crate::steps::{Failed, cargo, release_udm, run as run_step, target_dir};
use std::fs;
use std::path::{Path, PathBuf};

const MODULES: [&str; 3] = ["ublk_drv", "crc32c_generic", "ext4"];
const PROGRAMS: [&str; 3] = ["mkfs.ext4", "e2fsck", "resize2fs"];
/// Seconds a kill takes at most, with the load around it.
const KILL_S: u32 = 10;

/// How much.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds of files; the device changes in each.
    #[arg(long, default_value_t = 6)]
    pub(crate) rounds: u32,
    /// How often the daemon is killed under verified load.
    #[arg(long, default_value_t = 100)]
    pub(crate) kills: u32,
    /// Another Linux: a series as 6.18, or newest; from Debian's backports.
    #[arg(long, value_name = "SERIES")]
    pub(crate) kernel: Option<String>,
    /// The udm to try; a release build if left out.
    #[arg(long, value_name = "FILE")]
    pub(crate) udm: Option<PathBuf>,
}

/// Runs a guest to its end.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let udm = release_udm(root, args.udm.as_ref())?;
    let example = ["--package", "udm", "--example", "disk_load"];
    run_step(root, cargo(&["build", "--quiet"]).args(example))?;
    let load = target_dir(root).join("debug/examples/disk_load");
    let dir = std::env::temp_dir().join(format!("udm-guest-ublk-{}", std::process::id()));
    fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
    let result = try_guest(root, &dir, &[udm, load], args);
    // It is ours; what cannot be removed is left to the operating system's cleaner.
    let _removed = fs::remove_dir_all(&dir);
    result
}

fn try_guest(root: &Path, dir: &Path, built: &[PathBuf], args: &Args) -> Result<(), Failed> {
    let init = concat!(include_str!("common-init"), include_str!("ublk-init"));
    let contents = Contents { init, modules: &MODULES, programs: &PROGRAMS, built };
    let kernel = kernel(root, args.kernel.as_deref())?;
    machine::pack(dir, &kernel, &contents)?;
    let machine = Machine {
        kernel: Some(&kernel),
        memory_mib: 1024,
        limit_s: LIMIT_S + args.kills * KILL_S,
        words: &format!("udm_rounds={} udm_kills={}", args.rounds, args.kills),
        devices: &[],
    };
    let qemu = machine::start(dir, &machine)?;
    // It needs no answers; where it fails, the console's end says why.
    let told = machine::follow(qemu, |_| Ok(()))?;
    told.expect_last_to_begin("ok ")?;
    println!("{} rounds, {} kills under load: all is well", args.rounds, args.kills);
    Ok(())
}
