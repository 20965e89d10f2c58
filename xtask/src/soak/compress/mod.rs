//! `cargo xtask soak compress`: an ext4 on a compress device, killed at random moments.
//!
//! A daemon serves a compress volume, the kernel mounts an ext4 on it (`front.rs`), and workloads
//! create, overwrite, rename, delete, discard and fsync in it (`load.rs`), keeping a ledger of what
//! was promised outside of the device (`ledger.rs`). The disk below is a file, or a disk of ours
//! over NBD that records every write and flush (`disk.rs`, `server.rs`). Then
//!
//! - the power is cut: a copy of the recorded disk in a random legal state is judged, while the
//!   life it was taken from goes on, or ends with it;
//! - the daemon is killed (SIGKILL), and the disk is judged as it is.
//!
//! After the crashes the device is suspended, swapped and resized under load, and its disk stalls;
//! that may be noticed by nobody (`changes.rs`).
//!
//! To be right (`judge.rs`) `udm compress check` has to be clean, e2fsck has to find nothing that a
//! plain disk would not leave, and everything that was fsynced has to be there. The next life
//! begins with what the crash left, so nothing may come back later either.
//!
//! Rules. An error a workload sees is a finding, unless its daemon was killed. Actions come from
//! the seed; their timing is the machine's.

mod changes;
mod disk;
mod front;
mod judge;
mod ledger;
mod life;
mod load;
mod outside;
mod server;
mod story;

use crate::steps::{Failed, is_ci, is_installed, release_udm};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What it needs; without one of them it is left out, and that is said.
const TOOLS: [&str; 7] = ["nbdfuse", "nbdcopy", "losetup", "mount", "mke2fs", "e2fsck", "fstrim"];
/// What the kernel has to have.
const DEVICES: [&str; 2] = ["/dev/fuse", "/dev/loop-control"];

/// How to soak.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Crashes to judge: power cuts, and kills of the daemon.
    #[arg(long, default_value_t = 1000)]
    kills: u64,
    /// Suspends, resumes, swaps and resizes under load, after the crashes.
    #[arg(long, default_value_t = 1000)]
    changes: u64,
    /// Seed of the actions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A disk that ignores flushes; the soak has to notice.
    #[arg(long)]
    lying_disk: bool,
    /// A udm that is built already, instead of a release build.
    #[arg(long, value_name = "PATH")]
    udm: Option<PathBuf>,
}

impl Args {
    /// The short form: about half a minute.
    pub(super) fn short() -> Args {
        Args { kills: 24, changes: 100, seed: 1, lying_disk: false, udm: None }
    }
}

/// Soaks, and says what was done.
pub(super) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    if let Some(tool) = TOOLS.iter().find(|tool| !is_installed(tool)) {
        println!("{tool} is not installed; not checked: compress soak");
        return match is_ci() {
            true => Err(Failed::new("tools are missing, and CI=true asks for all of them")),
            false => Ok(()),
        };
    }
    if let Some(why) = cannot_mount() {
        println!("{why}; not checked: compress soak");
        return Ok(());
    }
    let udm = release_udm(root, args.udm.as_ref())?;
    let dir = std::env::temp_dir().join(format!("udm-soak-compress-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
    let begin = Instant::now();
    let crashed = story::crashes(&udm, &dir, args);
    let counts = match (crashed, args.lying_disk) {
        (Ok(_), true) => return Err(Failed::new("nobody noticed that the disk lies")),
        (Err(failed), true) => {
            println!("compress: a disk that lies was noticed: {failed}");
            let _removed = std::fs::remove_dir_all(&dir);
            return Ok(());
        }
        (Err(failed), false) => return Err(failed_in(&failed, args.seed, &dir)),
        (Ok(counts), false) => counts,
    };
    println!("compress: {counts}; {} s", begin.elapsed().as_secs());
    let begin = Instant::now();
    let counts = changes::run(&udm, &dir, args.seed, args.changes)
        .map_err(|failed| failed_in(&failed, args.seed, &dir))?;
    println!("compress: {counts}; {} s", begin.elapsed().as_secs());
    // It is ours; what cannot be removed is left to the operating system's cleaner.
    let _removed = std::fs::remove_dir_all(&dir);
    Ok(())
}

fn failed_in(failed: &Failed, seed: u64, dir: &Path) -> Failed {
    Failed::new(format!("seed {seed}: {failed}; see {}", dir.display()))
}

/// Why the kernel mounts nothing for us here. A container may have no such devices, so it is no
/// failure even where all tools have to be there.
fn cannot_mount() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting needs root".to_owned());
    }
    let device = DEVICES.iter().find(|device| !Path::new(device).exists())?;
    Some(format!("there is no {device}"))
}
