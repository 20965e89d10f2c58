//! Options of `paths`: the words of a path policy, as in an `up` file.
//!
//! Taken as they are and sent to the daemon (by `cli/paths.rs`), which reads them in one place for
//! all who say them. Nothing is checked here, so that a wrong word is reported in the same way
//! wherever it was said; and defaults are only told here, never filled in.

use clap::Args;

/// Heading of the options of a policy.
const POLICY: &str = "How to check (with --check)";

/// `paths`.
#[derive(Clone, Debug, Args)]
pub struct PathsArgs {
    /// A multipath device; all if left out.
    pub device: Option<String>,
    /// Check the device's paths from now on: fail those that do not answer, bring back those that
    /// do.
    #[arg(long, requires = "device", conflicts_with = "no_check")]
    pub check: bool,
    /// Do not check them any more.
    #[arg(long, requires = "device")]
    pub no_check: bool,
    /// Time between two checks of a failed path [default: 5s].
    #[arg(long, value_name = "SPAN", requires = "check", help_heading = POLICY)]
    pub check_interval: Option<String>,
    /// What the time between checks of a good path grows to [default: 4 times the interval].
    #[arg(long, value_name = "SPAN", requires = "check", help_heading = POLICY)]
    pub check_interval_max: Option<String>,
    /// A check without an answer for so long has failed [default: 10s].
    #[arg(long, value_name = "SPAN", requires = "check", help_heading = POLICY)]
    pub check_timeout: Option<String>,
    /// When to go back to a better group: immediate, manual, followover, or after a span
    /// [default: immediate].
    #[arg(long, value_name = "WHEN", requires = "check", help_heading = POLICY)]
    pub failback: Option<String>,
    /// So many failures set a path aside; 0: none do [default: 0].
    #[arg(long, value_name = "N", requires = "check", help_heading = POLICY)]
    pub marginal_failures: Option<u32>,
    /// The time in which they are counted [default: 60s].
    #[arg(long, value_name = "SPAN", requires = "check", help_heading = POLICY)]
    pub marginal_window: Option<String>,
    /// How long a path is set aside [default: 5m].
    #[arg(long, value_name = "SPAN", requires = "check", help_heading = POLICY)]
    pub marginal_hold: Option<String>,
    /// With no path left, I/O does what the table says (table), waits (queue), fails (fail), or
    /// waits for a span and then fails [default: table].
    #[arg(long, value_name = "WHAT", requires = "check", help_heading = POLICY)]
    pub no_path: Option<String>,
}
