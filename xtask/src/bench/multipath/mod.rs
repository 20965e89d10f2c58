//! `cargo xtask bench multipath`: what multipath costs, what merging gives, what selectors do.
//!
//! | file | measures |
//! |---|---|
//! | `cost.rs` | CPU time an I/O over linear, in bio and in request mode, over a null device |
//! | `merge.rs` | sequential writes over two NBD paths: lower I/Os a bio, and throughput |
//! | `failover.rs` | the time from a path's death to the next completed I/O |
//! | `selectors.rs` | all selectors over bad paths, in simulated time and over NBD |
//!
//! Compared things are measured interleaved in one run, since the machine does other things, too.
//! The page it writes says what was asked for beside what was found.

mod cost;
mod failover;
mod merge;
mod selectors;

use super::lab::{Bench, Fio, Part, fio, median};
use crate::steps::{Failed, release_udm};
use std::fs;
use std::path::{Path, PathBuf};

/// How to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds; tables show medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only this: cost, merge, failover or selectors; may be repeated.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// A udm that is built already, instead of a release build.
    #[arg(long, value_name = "PATH")]
    udm: Option<PathBuf>,
    /// Write the page to this Markdown file.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

const PARTS: [Part; 4] = [
    ("cost", cost::run),
    ("merge", merge::run),
    ("failover", failover::run),
    ("selectors", selectors::run),
];

/// Measures and prints; writes the page if asked to.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let udm = release_udm(root, args.udm.as_ref())?;
    let dir = std::env::temp_dir().join(format!("udm-bench-multipath-{}", std::process::id()));
    let (rounds, seconds) = (args.rounds.max(1), args.seconds);
    let bench = Bench { root, udm, dir: dir.clone(), rounds, seconds };
    let page = Bench::in_folder(&dir, || bench.page(INTRODUCTION, &PARTS, &args.only))?;
    match &args.write {
        Some(file) => fs::write(root.join(file), page).map_err(Failed::to("write the page")),
        None => Ok(()),
    }
}

const INTRODUCTION: &str = "\
# Multipath: cost, merging, failover, selectors

Made by `cargo xtask bench multipath --write docs/benchmarks/multipath.md`. Absolute times are those of a small shared
virtual machine with two processors that did other things, too; what counts is what was measured side by side.
";
