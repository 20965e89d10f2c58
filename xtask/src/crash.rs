//! `cargo xtask crash`: builds and runs the crash enumerator of `udm-sim`.
//!
//! Always a release build, as for `cargo xtask sim`. The arguments are passed on as they are; what
//! they mean is `udm-crash`'s business, and so is the line that replays a failure, which has to
//! name this command. `timed` is what `cargo xtask ci` runs.
//!
//! The tricky case is the first run: building takes longer than a short search.

use crate::steps::{Failed, cargo, run as run_step};
use std::path::Path;
use std::process::Command;

/// What to crash; everything is passed on (`--help` lists it).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// WHO [--crashes N] [--minutes M] [--from SEED] [--exhaustive] [--seed S [--keep ...]] ...
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    arguments: Vec<String>,
}

/// Minutes that `cargo xtask ci` gives to the compress volume: some millions of crashes.
const CI_MINUTES: &str = "10";

/// Runs the enumerator.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let arguments: Vec<&str> = args.arguments.iter().map(String::as_str).collect();
    start(root, &arguments)
}

/// The form for every change. Its seeds begin where the commit says, so every change is tested on
/// others; the number is in the command that is printed, and a failure prints its own.
pub(crate) fn timed(root: &Path) -> Result<(), Failed> {
    start(root, &["ledger", "--crashes", "20000"])?;
    let from = seed_of_commit(root).to_string();
    start(root, &["compress", "--minutes", CI_MINUTES, "--from", &from])
}

/// A number that follows from the commit; 1 where there is none.
pub(crate) fn seed_of_commit(root: &Path) -> u64 {
    let arguments = ["rev-parse", "--short=8", "HEAD"];
    let output = Command::new("git").args(arguments).current_dir(root).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let number = text.ok().and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    // Far apart, so that two runs do not meet.
    number.map_or(1, |number| number * 1_000_000)
}

fn start(root: &Path, arguments: &[&str]) -> Result<(), Failed> {
    let begin = ["run", "--quiet", "--release", "--package", "udm-sim", "--bin", "udm-crash", "--"];
    run_step(root, cargo(&begin).args(arguments))
}
