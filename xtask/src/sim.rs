//! `cargo xtask sim`: builds and runs the simulator of `udm-sim`.
//!
//! Always a release build: the simulator's worth is the number of seeds it gets through. The
//! arguments are passed on as they are; what they mean is the simulator's business, and so is the
//! line that replays a failure, which has to name this command.

use crate::steps::{Failed, cargo, run as run_step};
use std::path::Path;

/// What to simulate.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// How many seeds to run.
    #[arg(long, value_name = "N")]
    pub(crate) seeds: Option<u64>,
    /// The first seed (or, without --seeds, the only one).
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,
    /// Steps of each run.
    #[arg(long, value_name = "K")]
    pub(crate) steps: Option<u64>,
    /// Only the scenario of this name.
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Option<String>,
    /// Build this bug into the world: it has to be found.
    #[arg(long, value_name = "NAME")]
    pub(crate) canary: Option<String>,
    /// More for the simulator, behind `--`.
    #[arg(last = true)]
    pub(crate) more: Vec<String>,
}

/// Runs the simulator.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let begin = ["run", "--quiet", "--release", "--package", "udm-sim", "--bin", "udm-sim", "--"];
    let mut command = cargo(&begin);
    let numbers = [("--seeds", args.seeds), ("--seed", args.seed), ("--steps", args.steps)];
    for (name, value) in numbers {
        if let Some(value) = value {
            command.args([name, &value.to_string()]);
        }
    }
    for (name, value) in [("--only", &args.only), ("--canary", &args.canary)] {
        if let Some(value) = value {
            command.args([name, value]);
        }
    }
    command.args(&args.more);
    run_step(root, &mut command)
}
