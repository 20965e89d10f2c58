//! `cargo xtask bench`: measurements that somebody else can repeat, beside peers or a floor.
//!
//! One module for each subject. A measurement prints a table and can write it as Markdown for
//! `docs/benchmarks`. Absolute times are this machine's; what counts is the ratio within one run,
//! so everything compared is measured interleaved in the same run.

mod compress;
mod engine;
mod fuse;
mod lab;
mod multipath;
mod nbd;
mod vhost;

pub(crate) use nbd::wire;

use crate::steps::Failed;
use std::io::{self, IsTerminal};
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
    /// udm's NBD server beside nbdkit, qemu and a bare loop: CPU for an I/O, I/Os a second.
    Nbd(nbd::Args),
    /// Multipath: cost over linear, merging, failover, and all selectors over bad paths.
    Multipath(multipath::Args),
    /// Compression: speed beside the codec alone and beside peers, space, memory, isolation.
    Compress(compress::Args),
    /// A device as a file: udm beside qemu-storage-daemon and nbdfuse.
    Fuse(fuse::Args),
    /// udm's vhost-user-blk server beside qemu-storage-daemon's: CPU for an I/O, I/Os a second.
    Vhost(vhost::Args),
    /// The bare loop itself, for `bench nbd`.
    #[command(hide = true)]
    Floor(nbd::FloorArgs),
}

/// Measures one subject.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    match &args.subject {
        Subject::Engine(args) => engine::run(root, args),
        Subject::Nbd(args) => nbd::run(root, args),
        Subject::Multipath(args) => multipath::run(root, args),
        Subject::Compress(args) => compress::run(root, args),
        Subject::Fuse(args) => fuse::run(root, args),
        Subject::Vhost(args) => vhost::run(root, args),
        Subject::Floor(args) => nbd::run_floor(args),
    }
}

/// A line that replaces the one before; nothing where nobody watches.
fn progress(line: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\u{1b}[K{line}");
    }
}
