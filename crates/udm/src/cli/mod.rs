//! The command line: parse, run one verb, print, exit.
//!
//! `args.rs` is the grammar; `create.rs`, `change.rs`, `query.rs`, `exports.rs` and `paths.rs`
//! are the verbs that ask a daemon; `papers.rs` those that need none; `daemon`, `up` and `run` live
//! beside this folder, since they run an engine. A verb fills an [`Output`]; a failure carries its
//! own words (`failure.rs`).
//!
//! Exit codes: 0, 1 for a failure as dmsetup, 2 for wrong usage.

pub mod args;
mod asker;
mod change;
mod create;
mod exports;
mod failure;
mod output;
mod papers;
mod paths;
mod query;
mod resize;
mod table_text;

#[cfg(test)]
mod tests;

pub use failure::{Failure, SCHEMA_VERSION};
pub(crate) use output::Output;

use args::{Cli, Command};
use asker::Daemon;
use clap::Parser;
use std::process::ExitCode;
use udm_control::server::default_socket;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Prints to the right stream; a closed one is nobody's loss.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let json = cli.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if json {
                eprintln!("{}", failure.json());
            } else {
                eprint!("{}", failure.text());
            }
            ExitCode::from(failure.exit)
        }
    }
}

/// Runs a parsed command.
///
/// # Errors
/// What to tell the user, and the exit code.
pub fn run(cli: Cli) -> Result<(), Failure> {
    let socket =
        cli.socket.clone().unwrap_or_else(|| default_socket(|name| std::env::var(name).ok()));
    let daemon = &mut Daemon::new(socket.clone());
    let output = &mut Output::new(cli.json);
    let verbose = cli.verbose > 0;
    match &cli.command {
        Command::Daemon(args) => crate::daemon::run(args, &socket, cli.json)?,
        Command::Create(args) => create::create(daemon, args, output)?,
        Command::Load(args) => change::load(daemon, args, output)?,
        Command::Resume(args) => change::resume(daemon, args, output)?,
        Command::Suspend(args) => change::suspend(daemon, args, output)?,
        Command::Clear(args) => change::clear(daemon, args, output)?,
        Command::Remove(args) => change::remove(daemon, args, output)?,
        Command::RemoveAll(args) => change::remove_all(daemon, args, output)?,
        Command::Rename(args) => change::rename(daemon, args, output)?,
        Command::Resize(args) => resize::resize(daemon, args, output)?,
        Command::Message(args) => change::message(daemon, args, output)?,
        Command::WipeTable(args) => change::wipe_table(daemon, args, output)?,
        Command::Wait(args) => change::wait(daemon, args, verbose, output)?,
        Command::Status(args) => query::lines(daemon, args, query::LinesVerb::Status, output)?,
        Command::Table(args) => query::lines(daemon, args, query::LinesVerb::Table, output)?,
        Command::Info(args) => query::info(daemon, args, verbose, output)?,
        Command::Ls(args) => query::ls(daemon, args, output)?,
        Command::Deps(args) => query::deps(daemon, args, output)?,
        Command::Targets => query::targets(daemon, output)?,
        Command::TargetVersion { targets } => query::target_version(daemon, targets, output)?,
        Command::Version => query::version(daemon, output)?,
        Command::Export(args) => exports::export(daemon, args, output)?,
        Command::Unexport { name } => exports::unexport(daemon, name, output)?,
        Command::Exports => exports::exports(daemon, output)?,
        Command::UblkOwner { device } => exports::ublk_owner(device, output)?,
        Command::Paths(args) => paths::paths(daemon, args, output)?,
        Command::Compress(args) => crate::compress::run(args, output)?,
        Command::Up(args) => {
            return crate::up::run(args, &socket, cli.socket.is_some(), cli.json);
        }
        Command::Run(args) => return crate::run::run(args),
        Command::Exec(args) => return crate::exec::run(args, &socket),
        Command::Bench(args) => return crate::bench::run(args).map_err(|error| told(&error)),
        Command::Demo(args) => {
            return crate::demo::run(args, cli.json).map_err(|error| told(&error));
        }
        Command::Explain { code } => papers::explain(code.as_deref(), output)?,
        Command::Completions { shell } => {
            papers::completions(*shell, output);
            output.json = false;
        }
        Command::Man { dir } => papers::man(dir, output)?,
        Command::Help { topic } => {
            papers::help(topic, output)?;
            output.json = false;
        }
    }
    output.print()
}

/// A failure of a verb that has words of its own for it.
fn told(error: &impl std::fmt::Display) -> Failure {
    Failure { lines: Some(format!("udm: {error}\n")), error: None, exit: 1 }
}
