//! `cargo xtask bench compress`: what compression costs and saves, beside the codec and peers.
//!
//! | file | measures |
//! |---|---|
//! | `speed.rs` | sequential I/O beside the codec alone, random reads, flushes, overwrites |
//! | `isolation.rs` | a volume while the disk of another one stalls |
//! | `memory.rs` | memory of the daemon with a device of 1 TiB |
//! | `peers.rs` | copies into and out of qcow2, nbdkit's filters, btrfs, and udm |
//! | `space.rs` | what real data takes on the disk, and a device twice as large as its disk |
//! | `corpus.rs` | makes the data: an ext4 image, source text, a database |
//!
//! Speed and space are `udm bench compress`, over memory and with one lane; this repeats it on
//! several kinds of data, round after round, and shows medians.

mod corpus;
mod isolation;
mod memory;
mod peers;
mod space;
mod speed;

use super::lab::{Bench, Part, fio, median};
use crate::steps::{Failed, release_udm};
use std::fs;
use std::path::{Path, PathBuf};

/// How to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds; tables show medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement that has no natural end.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only this: speed, overwrite, space, isolation, memory or peers; may be repeated.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// A udm that is built already, instead of a release build.
    #[arg(long, value_name = "PATH")]
    udm: Option<PathBuf>,
    /// Folder for data and disks (default: below the build's target folder).
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write the page to this Markdown file.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

const PARTS: [Part; 6] = [
    ("speed", speed::run),
    ("overwrite", speed::run_overwrite),
    ("space", space::run),
    ("isolation", isolation::run),
    ("memory", memory::run),
    ("peers", peers::run),
];

const INTRODUCTION: &str = "\
# Compression: speed, space, isolation, memory, peers

Made by `cargo xtask bench compress --write docs/benchmarks/compress.md`. Absolute times are those of a small shared
virtual machine with two processors that did other things, too; what counts is what was measured side by side.
";

/// Measures and prints; writes the page if asked to.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let udm = release_udm(root, args.udm.as_ref())?;
    let folder = args.dir.clone().unwrap_or_else(|| crate::steps::target_dir(root));
    let dir = folder.join(format!("bench-compress-{}", std::process::id()));
    let (rounds, seconds) = (args.rounds.max(1), args.seconds);
    let bench = Bench { root, udm, dir: dir.clone(), rounds, seconds };
    let page = Bench::in_folder(&dir, || bench.page(INTRODUCTION, &PARTS, &args.only))?;
    match &args.write {
        Some(file) => fs::write(root.join(file), page).map_err(Failed::to("write the page")),
        None => Ok(()),
    }
}

/// A number of udm's JSON.
fn number(value: &serde_json::Value, name: &str) -> Result<f64, Failed> {
    value[name].as_f64().ok_or_else(|| Failed::new(format!("udm bench told no {name}")))
}
