//! `udm-sim`: searches seeds for worlds in which a promise is broken.
//!
//! `cargo xtask sim` runs this in release. Without a failure the last lines say what was done; with
//! one they say what was broken and the one command that shows it again, made as short as it goes.
//!
//! Exit code 0: nothing found. 1: a failure. 2: bad arguments (clap's).
//!
//! The tricky case is the clock: only this file reads it (for the elapsed time it prints and to use
//! two cores), never a world.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command line program")]

use clap::Parser;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use udm_sim::Canary;
use udm_sim::search::{Failure, Outcome, judge, search, shrink};
use udm_sim::world::Scenario;

/// Searches simulated worlds for broken promises.
#[derive(Parser, Debug)]
#[command(name = "udm-sim")]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Steps of each world's safety phase.
    #[arg(long, default_value_t = 6000)]
    steps: u64,
    /// Lanes (1 to 4) instead of a drawn number.
    #[arg(long)]
    lanes: Option<usize>,
    /// Leave only this on: faults, swaps, relayouts, resizes, deaths, suspends, races, scratch,
    /// churn, barriers or multipath (with swaps, suspends and churn).
    #[arg(long)]
    only: Option<String>,
    /// Plant a bug, which must be found.
    #[arg(long)]
    canary: Option<String>,
    /// Print every event.
    #[arg(long)]
    trace: bool,
    /// Worlds run side by side.
    #[arg(long, default_value_t = 2)]
    jobs: u64,
    /// Name every failing seed instead of stopping at the first.
    #[arg(long)]
    keep_going: bool,
    /// Print how each path selector does over a few kinds of bad paths, and nothing else.
    #[arg(long)]
    selectors: bool,
    /// Do not make a failure small.
    #[arg(long)]
    no_shrink: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.selectors {
        return match udm_sim::selectors::SelectorTable::run() {
            Ok(table) => {
                print!("{}", table.markdown());
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let canary = match &args.canary {
        None => None,
        Some(name) => match Canary::find(name) {
            Some(canary) => Some(canary),
            None => {
                let names: Vec<&str> = Canary::ALL.iter().map(|(name, _)| *name).collect();
                eprintln!("there is no canary '{name}'; there are {}", names.join(", "));
                return ExitCode::from(2);
            }
        },
    };
    let base = Scenario {
        seed: args.seed,
        steps: args.steps,
        lanes: args.lanes,
        only: args.only.clone(),
        canary,
        trace: args.trace,
    };
    let begun = Instant::now();
    let outcome = if args.seeds == 1 {
        single(&base)
    } else {
        // The panics of searched worlds are reported once, by the failure.
        std::panic::set_hook(Box::new(|_| {}));
        side_by_side(&args, &base)
    };
    report(&args, outcome, begun)
}

fn single(base: &Scenario) -> Outcome {
    let outcome = search(base, base.seed..=base.seed, |_| false);
    let verdict_hash = judge(&Scenario { trace: false, ..base.clone() }).hash;
    println!("trace hash {verdict_hash:016x}");
    outcome
}

fn side_by_side(args: &Args, base: &Scenario) -> Outcome {
    let failed = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    let jobs = args.jobs.clamp(1, args.seeds);
    let mut sum = Outcome::default();
    std::thread::scope(|scope| {
        let searches: Vec<_> = (0..jobs)
            .map(|job| {
                let (failed, done) = (&failed, &done);
                scope.spawn(move || {
                    let mut seeds = (args.seed..args.seed.saturating_add(args.seeds))
                        .filter(|seed| seed % jobs == job);
                    let mut sum = Outcome::default();
                    loop {
                        let outcome = search(base, seeds.by_ref(), |_| {
                            let count = done.fetch_add(1, Ordering::Relaxed) + 1;
                            if count % 500 == 0 {
                                println!("{count} of {} seeds", args.seeds);
                            }
                            failed.load(Ordering::Relaxed)
                        });
                        sum.absorb(outcome);
                        match &sum.failure {
                            Some(failure) if args.keep_going => {
                                println!(
                                    "FAILED seed {}: {}",
                                    failure.scenario.seed, failure.violation
                                );
                                sum.failure = None;
                            }
                            Some(_) => {
                                failed.store(true, Ordering::Relaxed);
                                return sum;
                            }
                            None => return sum,
                        }
                    }
                })
            })
            .collect();
        for search in searches {
            let Ok(outcome) = search.join() else { continue };
            sum.absorb(outcome);
        }
    });
    sum
}

fn report(args: &Args, outcome: Outcome, begun: Instant) -> ExitCode {
    println!(
        "runs {}, steps {}, events {}, bios {}, faults {}, elapsed {:.1} s",
        outcome.runs,
        outcome.steps,
        outcome.events,
        outcome.tally.sum_of("bio "),
        outcome.tally.sum_of("fault "),
        begun.elapsed().as_secs_f64()
    );
    println!("{}", outcome.tally);
    let Some(failure) = outcome.failure else {
        println!("no promise was broken");
        return ExitCode::SUCCESS;
    };
    println!("FAILED seed {}: {}", failure.scenario.seed, failure.violation);
    let small = if args.no_shrink || args.trace { failure } else { shrink(failure) };
    println!("in {} steps: {}", small.scenario.steps, small.violation);
    println!("replay: {}", replay(&small, args));
    ExitCode::FAILURE
}

fn replay(failure: &Failure, args: &Args) -> String {
    let mut command = format!(
        "cargo xtask sim --seed {} --steps {}",
        failure.scenario.seed, failure.scenario.steps
    );
    for (name, value) in [("--only", &args.only), ("--canary", &args.canary)] {
        if let Some(value) = value {
            command.push_str(&format!(" {name} {value}"));
        }
    }
    if let Some(lanes) = args.lanes {
        command.push_str(&format!(" -- --lanes {lanes}"));
    }
    command
}
