//! `udm demo`: the story of this project in one minute, in one process, without files or root.
//!
//! A mapped device over memory gets a verified load from every lane. While it runs, its table is
//! swapped hundreds of times, the device is grown, and the device below it dies and is replaced. A
//! suspend with a deadline shows on the way that it gives up and says why, instead of hanging. At
//! the end stands a table: what was done, how long I/O paused for it, and that nothing was lost.
//!
//! Files: `story` (the acts), `progress` (what is shown meanwhile), `report` (the closing table).
//! Called by the command line only. It starts an engine of its own and never talks to a daemon.
//!
//! The tricky case is the dead device: nothing in a process of its own can die, so the device below
//! gets a table that keeps every I/O for an hour (`delay`). Seen from above that is a device that
//! takes I/O and never answers, which is what a dead one looks like.

mod progress;
mod report;
mod story;

use clap::Args;
use progress::Progress;
use std::error::Error;
use story::Story;

/// The story in one minute.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// How long the story takes
    #[arg(long, value_name = "N", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(3..=3600))]
    pub seconds: u64,
}

/// Anything that keeps the demo from its end.
pub type DemoError = Box<dyn Error + Send + Sync>;

/// Tells the story and prints the closing table, or one line of JSON.
///
/// # Errors
/// If the engine cannot be started, an act goes wrong, or anything was lost or damaged.
pub fn run(args: &DemoArgs, json: bool) -> Result<(), DemoError> {
    let mut story = Story::begin(args.seconds, Progress::new(!json))?;
    story.warm_up();
    story.swap_tables()?;
    story.grow()?;
    story.replace_a_dead_device()?;
    story.run_on();
    let report = story.end()?;
    report.print(json)?;
    if report.is_clean() { Ok(()) } else { Err("I/O was lost or damaged".into()) }
}
