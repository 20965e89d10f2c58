//! `cargo xtask soak`: the real thing, under abuse, for as long as you like.
//!
//! Real servers, the real daemon, real clients, killed and restarted at random (seeded, so that a
//! run's actions can be repeated, though not its timing). A soak ends with a count of what was done
//! or with the first thing that went wrong; its logs are kept then.
//!
//! | file | holds |
//! |---|---|
//! | `multipath.rs` | the story: paths killed and restarted, reloads, both dead, a new path |
//! | `chaos.rs` | which action comes next, and doing it |
//! | `path.rs` | an NBD server over the image, to be killed and started again |
//! | `daemon.rs` | udm, and asking it |
//! | `load.rs` | fio with verification, pass after pass |
//! | `compress/` | an ext4 on a compress device: power cuts and kills of the daemon |
//! | `kills.rs` | kills of the daemon while writers use a device |
//! | `fuse.rs`, `nbd.rs` | by which front end they do |
//! | `file_system.rs` | an ext4 copied in under abuse, copied out and checked |

mod chaos;
mod compress;
pub(crate) mod daemon;
mod file_system;
mod fuse;
mod kills;
mod load;
mod multipath;
mod nbd;
mod path;

use crate::steps::Failed;
use std::path::Path;
use std::time::Duration;

/// What to soak.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(clap::Subcommand)]
enum Subject {
    /// Two NBD servers over one image below multipath: killed, restarted, reloaded, swapped.
    Multipath(multipath::Args),
    /// An ext4 on a compress device: power cuts, and kills of the daemon.
    Compress(compress::Args),
    /// A device in use as a file: kills of the daemon.
    Fuse(fuse::Args),
    /// NBD clients with many writes under way: kills of the daemon.
    Nbd(kills::Args),
}

/// Soaks one subject.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    match &args.subject {
        Subject::Multipath(args) => multipath::run(root, args),
        Subject::Compress(args) => compress::run(root, args),
        Subject::Fuse(args) => fuse::run(root, args),
        Subject::Nbd(args) => nbd::run(root, args),
    }
}

/// The short forms, for CI.
pub(crate) fn short(root: &Path) -> Result<(), Failed> {
    multipath::run(root, &multipath::Args::short())?;
    compress::run(root, &compress::Args::short())?;
    fuse::run(root, &fuse::Args::short(false))?;
    fuse::run(root, &fuse::Args::short(true))?;
    nbd::run(root, &kills::Args::short())
}

/// Lets time pass. Abuse has a rhythm; nothing is waited for in this way.
pub(crate) fn pause(span: Duration) {
    let begin = std::time::Instant::now();
    while let Some(left) = span.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// Asks every few milliseconds whether something has become true.
pub(crate) fn wait_until(
    what: &str,
    limit: Duration,
    mut is_true: impl FnMut() -> Result<bool, Failed>,
) -> Result<(), Failed> {
    let begin = std::time::Instant::now();
    while !is_true()? {
        if begin.elapsed() > limit {
            return Err(Failed::new(format!("{what}: not within {} s", limit.as_secs())));
        }
        pause(Duration::from_millis(20));
    }
    Ok(())
}
