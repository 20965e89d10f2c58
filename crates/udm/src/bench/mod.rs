//! `udm bench`: how anyone repeats our figures on their own machine.
//!
//! `udm bench` runs a closed loop of bios through a stack of mapped devices in this process and
//! prints I/Os a second, CPU nanoseconds an I/O (of the lane's thread, from the kernel's
//! accounting) and latencies. `udm bench swap` runs a verified load on every lane while tables are
//! swapped as fast as they go, and prints what the swaps cost and that nothing was lost. `udm bench
//! failover` kills the path that a multipath device uses, and prints how long I/O paused.
//! `udm bench compress` writes real data to a compress volume, and prints what it costs and saves.
//!
//! On a shared machine wall-clock rates say little; CPU per I/O and ratios within one run do.

mod compress;
mod failover;
mod ladder;
mod load;
pub(crate) mod pauses;
mod swap;
pub(crate) mod verify;

use clap::{Args, Subcommand, ValueEnum};
use udm_driver::DriverChoice;

/// Which measurement.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: Option<BenchWhat>,
    #[command(flatten)]
    ladder: LadderArgs,
}

#[derive(Clone, Debug, Subcommand)]
enum BenchWhat {
    /// Swap tables under a verified load from every lane
    Swap(SwapArgs),
    /// Kill the path in use under a verified load, again and again
    Failover(FailoverArgs),
    /// Measure a compress volume over memory with real data, beside its codec alone
    Compress(compress::CompressBenchArgs),
}

/// A stack of mapped devices over a null or memory device, in this process.
#[derive(Clone, Debug, Args)]
pub struct LadderArgs {
    /// Mapped devices on top of each other; 0 measures the device below alone
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=12))]
    pub layers: u32,
    /// Target type of every layer
    #[arg(long, default_value = "linear")]
    pub target: String,
    /// Path selector, with `--target multipath`
    #[arg(long, default_value = "service-time")]
    pub selector: String,
    /// Queue mode, with `--target multipath`
    #[arg(long, value_enum, default_value_t = QueueMode::Bio)]
    pub queue_mode: QueueMode,
    /// Paths of each layer (all to one device), with `--target multipath`
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub paths: u32,
    /// Where the stack ends
    #[arg(long, value_enum, default_value_t = Lower::Null)]
    pub lower: Lower,
    /// A device as tables name it, instead of `--lower`; several are the paths of `--target
    /// multipath`. Its contents are overwritten by writes
    #[arg(long, value_name = "NAME", conflicts_with_all = ["lower", "paths"])]
    pub device: Vec<String>,
    /// One place after the other instead of random places
    #[arg(long)]
    pub sequential: bool,
    /// Statistics regions (`@stats_create`) on each layer, of 64 areas each
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=256))]
    pub regions: u32,
    /// Operation
    #[arg(long, value_enum, default_value_t = BenchOp::Read)]
    pub op: BenchOp,
    /// Bytes an I/O
    #[arg(long, default_value_t = 4096)]
    pub bs: u64,
    /// I/Os under way on each lane
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub depth: u32,
    /// Lanes; 0 for one a processor
    #[arg(long, default_value_t = 1)]
    pub lanes: usize,
    /// How long to measure
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Driver of the lanes
    #[arg(long, value_enum, default_value_t = Driver::Auto)]
    pub driver: Driver,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Swapping tables under load.
#[derive(Clone, Debug, Args)]
pub struct SwapArgs {
    /// How long to swap
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Lanes; 0 for one a processor
    #[arg(long, default_value_t = 0)]
    pub lanes: usize,
    /// I/Os under way on each lane
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub depth: u32,
    /// Driver of the lanes
    #[arg(long, value_enum, default_value_t = Driver::Auto)]
    pub driver: Driver,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Killing paths under load.
#[derive(Clone, Debug, Args)]
pub struct FailoverArgs {
    /// Deaths of each kind
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rounds: u32,
    /// Lanes; 0 for one a processor
    #[arg(long, default_value_t = 1)]
    pub lanes: usize,
    /// I/Os under way on each lane
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub depth: u32,
    /// Only this kind of path
    #[arg(long, value_enum)]
    pub only: Option<FailoverPaths>,
    /// Driver of the lanes
    #[arg(long, value_enum, default_value_t = Driver::Auto)]
    pub driver: Driver,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What paths a failover bench kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailoverPaths {
    /// Mapped devices of this process, replaced by the error target
    InProcess,
    /// NBD servers on unix sockets, killed
    Nbd,
}

/// How I/O reaches a multipath target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QueueMode {
    /// Bio by bio
    Bio,
    /// Merged into requests
    Rq,
}

/// What is below a bench stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Lower {
    /// Completes at once, moves no data
    Null,
    /// Memory
    Mem,
}

/// What a bench does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchOp {
    /// Reads
    Read,
    /// Writes
    Write,
    /// Flushes
    Flush,
    /// Discards
    Discard,
}

/// Which driver the lanes use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Driver {
    /// io_uring if it works here, else portable
    #[default]
    Auto,
    /// io_uring or an error
    Uring,
    /// The portable driver
    Portable,
}

impl From<Driver> for DriverChoice {
    fn from(driver: Driver) -> DriverChoice {
        match driver {
            Driver::Auto => DriverChoice::Auto,
            Driver::Uring => DriverChoice::Uring,
            Driver::Portable => DriverChoice::Portable,
        }
    }
}

/// Anything that keeps a bench from running.
pub type BenchError = Box<dyn std::error::Error + Send + Sync>;

/// Runs a bench and prints its result.
///
/// # Errors
/// If the stack cannot be built, or (for `swap` and `failover`) if anything was lost.
pub fn run(args: &BenchArgs) -> Result<(), BenchError> {
    match &args.what {
        None => ladder::run(&args.ladder),
        Some(BenchWhat::Swap(args)) => swap::run(args),
        Some(BenchWhat::Failover(args)) => failover::run(args),
        Some(BenchWhat::Compress(args)) => compress::run(args),
    }
}
