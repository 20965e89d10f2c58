//! `cargo xtask bench`: measurements that somebody else can repeat, beside peers or a floor.
//!
//! One module for each subject. A measurement prints a table and can write it as Markdown for
//! `docs/benchmarks`. Absolute times are this machine's; what counts is the ratio within one run,
//! so everything compared is measured interleaved in the same run.

mod engine;

use crate::steps::Failed;
use std::path::Path;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(clap::Subcommand)]
enum Subject {
    /// What a mapping layer costs: `udm bench` over a null device with 0, 1 and 4 layers.
    Engine(engine::Args),
}

/// Measures one subject.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    match &args.subject {
        Subject::Engine(args) => engine::run(root, args),
    }
}
