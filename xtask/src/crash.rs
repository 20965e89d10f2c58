//! `cargo xtask crash`: builds and runs the crash enumerator of `udm-sim`.
//!
//! Always a release build, as for `cargo xtask sim`. The arguments are passed on as they are; what
//! they mean is `udm-crash`'s business, and so is the line that replays a failure, which has to
//! name this command. `timed` is what `cargo xtask ci` runs.
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

/// Minutes that `cargo xtask ci` gives to the compress volume: some millions of crashes.
const CI_MINUTES: &str = "10";

/// Runs the enumerator.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let arguments: Vec<&str> = args.arguments.iter().map(String::as_str).collect();
    start(root, &arguments)
}

/// The form for every change. Its seeds are the same for all of them: what breaks here, the change
/// broke, and whoever made it could have seen it. Seeds that nobody has tried are for the long
/// search, which is a command of its own and has no change to hold up.
pub(crate) fn timed(root: &Path) -> Result<(), Failed> {
    start(root, &["ledger", "--crashes", "20000"])?;
    start(root, &["compress", "--minutes", CI_MINUTES])
}

fn start(root: &Path, arguments: &[&str]) -> Result<(), Failed> {
    let begin = ["run", "--quiet", "--release", "--package", "udm-sim", "--bin", "udm-crash", "--"];
    run_step(root, cargo(&begin).args(arguments))
}
