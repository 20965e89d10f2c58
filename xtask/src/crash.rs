//! `cargo xtask crash`: builds and runs the crash enumerator of `udm-sim`.
//!
//! Always a release build, as for `cargo xtask sim`. The arguments are passed on as they are; what
//! they mean is `udm-crash`'s business, and so is the line that replays a failure, which has to
//! name this command. `short` is what `cargo xtask ci` runs.
//!
//! The tricky case is the first run: building takes longer than a short search.

use crate::steps::{Failed, cargo, run as run_step};
use std::path::Path;

/// What to crash; everything is passed on (`--help` lists it).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// WHO [--crashes N] [--minutes M] [--from SEED] [--exhaustive] [--seed S [--keep ...]] ...
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    arguments: Vec<String>,
}

/// Runs of the short form: who, and how long.
const SHORT: [&[&str]; 2] =
    [&["ledger", "--crashes", "20000"], &["compress", "--minutes", "1", "--crashes", "100000"]];

/// Runs the enumerator.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let arguments: Vec<&str> = args.arguments.iter().map(String::as_str).collect();
    start(root, &arguments)
}

/// The form for every change.
pub(crate) fn short(root: &Path) -> Result<(), Failed> {
    SHORT.iter().try_for_each(|arguments| start(root, arguments))
}

fn start(root: &Path, arguments: &[&str]) -> Result<(), Failed> {
    let begin = ["run", "--quiet", "--release", "--package", "udm-sim", "--bin", "udm-crash", "--"];
    run_step(root, cargo(&begin).args(arguments))
}
