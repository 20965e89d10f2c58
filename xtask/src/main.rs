//! `cargo xtask`: every command of this repository, in one program.
//!
//! There are no scripts with logic in them: `.ci/run` installs packages and calls
//! `cargo xtask ci`. Each command has a module; `steps.rs` holds how they run other programs. The
//! crate uses no crate of the product, so that a broken product can still be tidied and so that
//! tidy's own layer check has nothing to excuse.
//!
//! A command prints what it runs and how long it took, and exits with 1 if anything failed.
#![forbid(unsafe_code)]

mod bench;
mod certificates;
mod ci;
mod crash;
mod fuse_rings;
mod fuzz;
mod guest;
mod interop;
mod mutants;
mod oracle;
mod sim;
mod soak;
mod steps;
mod tidy;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The repository's commands.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check the rules of the repository: layers, lengths, headers, banned calls, docs, licences.
    Tidy,
    /// Run everything a change has to pass, in order, with times.
    Ci(ci::Args),
    /// Run the simulator over seeds (release build of udm-sim).
    Sim(sim::Args),
    /// Crash a volume at every write of many workloads, and judge what comes back.
    Crash(crash::Args),
    /// Abuse the real thing with real servers and clients for a while.
    Soak(soak::Args),
    /// Plant bugs in a copy of the sources; the simulator has to find each.
    Mutants(mutants::Args),
    /// Hold us against Linux's own device mapper: recorded answers, or a guest asked anew.
    Oracle(oracle::Args),
    /// Fuzz what parses other people's bytes (libFuzzer, stable toolchain).
    Fuzz(fuzz::Args),
    /// Use a device from a stock Linux in QEMU, through a front end, while it is changed.
    Guest(guest::Args),
    /// Other people's programs use a device, one row each: NBD clients, fio, libblkio, QEMU.
    Interop(interop::Args),
    /// Measure, beside the peers or the floor.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let root = steps::root();
    let result = match Cli::parse().command {
        Command::Tidy => tidy::run(&root),
        Command::Ci(args) => ci::run(&root, &args),
        Command::Sim(args) => sim::run(&root, &args),
        Command::Crash(args) => crash::run(&root, &args),
        Command::Soak(args) => soak::run(&root, &args),
        Command::Mutants(args) => mutants::run(&root, &args),
        Command::Oracle(args) => oracle::run(&root, &args),
        Command::Fuzz(args) => fuzz::run(&root, &args),
        Command::Guest(args) => guest::run(&root, &args),
        Command::Interop(args) => interop::run(&root, &args),
        Command::Bench(args) => bench::run(&root, &args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("error: {failed}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_makes_sense() {
        Cli::command().debug_assert();
    }
}
