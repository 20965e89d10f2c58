//! `udm-crash`: crashes a volume at every write of many workloads, and reports what broke.
//!
//! `cargo xtask crash` runs this in release. Seeds are taken one after the other by as many jobs
//! as there are cores to use; they end after the crashes, the minutes or the seeds that were asked
//! for. Progress goes to stderr with the seed to go on from (`--from`); the last lines on stdout
//! say what was done, or what broke, as small as it goes, with the one command that shows it.
//!
//! Exit code 0: nothing found. 1: a failure. 2: bad arguments (clap's).
//!
//! The tricky case is the end: jobs that are at work when the limit is reached finish their seed,
//! so a run of `--crashes N` makes a few more than N, and the next seed is still exact.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

use clap::{Parser, ValueEnum};
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use udm_sim::crash::{Depth, Rule, Scenario, Totals, Which, judge, shrink};

/// Crashes a volume everywhere and judges what comes back.
#[derive(Parser, Debug)]
#[command(name = "udm-crash")]
struct Args {
    /// Who is crashed.
    #[arg(value_enum)]
    which: Name,
    /// End after so many crashes.
    #[arg(long, value_name = "N")]
    crashes: Option<u64>,
    /// End after so many minutes.
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Run this seed only.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// The first seed; a run that was ended says where it stopped.
    #[arg(long, value_name = "S", default_value_t = 1)]
    from: u64,
    /// Crash at every point in every way, instead of in a few drawn ones.
    #[arg(long)]
    exhaustive: bool,
    /// Steps of each life, at most.
    #[arg(long, value_name = "K", default_value_t = 40)]
    steps: u32,
    /// Only these steps of the plan, as a failure's replay line names them.
    #[arg(long, value_name = "NR,NR...", value_delimiter = ',')]
    keep: Option<Vec<u32>>,
    /// Take out a rule of the ledger: it has to be found.
    #[arg(long, value_name = "RULE")]
    without: Option<String>,
    /// Print what happens, operation by operation.
    #[arg(long)]
    trace: bool,
    /// Seeds run side by side.
    #[arg(long, value_name = "J", default_value_t = 2)]
    jobs: u64,
    /// Name every failing seed instead of stopping at the first.
    #[arg(long)]
    keep_going: bool,
    /// Do not make a failure small.
    #[arg(long)]
    no_shrink: bool,
}

/// What can be crashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// The small volume that tests the enumerator.
    Ledger,
    /// The volume of the compress target.
    Compress,
}

/// Crashes of a run that says nothing else.
const CRASHES: u64 = 100_000;
/// Points of a thousand and crashes at each, unless all are wanted.
const SAMPLED: Depth = Depth::Sampled { points_per_mille: 250, outcomes: 2 };
/// Seconds between two lines of progress.
const PROGRESS_S: u64 = 5;

/// What the jobs share.
struct Search {
    next_seed: AtomicU64,
    is_over: AtomicBool,
    sum: Mutex<Sum>,
}

#[derive(Default)]
struct Sum {
    totals: Totals,
    failure: Option<(u64, String)>,
    /// Seeds that ended although an earlier one has not.
    ahead: BTreeSet<u64>,
    /// All seeds below this are done.
    done_below: u64,
    said: Option<Instant>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let which = match which(&args) {
        Ok(which) => which,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let base = Scenario {
        which,
        seed: args.seed.unwrap_or(args.from),
        depth: if args.exhaustive { Depth::Exhaustive } else { SAMPLED },
        steps: args.steps,
        keep: args.keep.clone(),
        trace: args.trace,
    };
    // A panic is reported once, as the failure of its seed.
    std::panic::set_hook(Box::new(|_| {}));
    let begun = Instant::now();
    let sum = match args.seed {
        Some(_) => single(&base),
        None => side_by_side(&args, &base, begun),
    };
    report(&args, &base, &sum, begun)
}

fn which(args: &Args) -> Result<Which, String> {
    let rule = match &args.without {
        None => None,
        Some(wanted) => match Rule::ALL.iter().find(|(name, _)| name == wanted) {
            Some((_, rule)) => Some(*rule),
            None => {
                let names: Vec<&str> = Rule::ALL.iter().map(|(name, _)| *name).collect();
                return Err(format!("no rule '{wanted}'; there are {}", names.join(", ")));
            }
        },
    };
    match args.which {
        Name::Ledger => Ok(Which::Ledger(rule)),
        Name::Compress => match rule {
            None => Ok(Which::Compress),
            Some(_) => Err("only the ledger has rules; see cargo xtask mutants compress".into()),
        },
    }
}

fn single(base: &Scenario) -> Sum {
    let verdict = judge(base);
    for line in &verdict.trace {
        println!("{line}");
    }
    let failure = verdict.broken.map(|what| (base.seed, what));
    Sum { totals: verdict.totals, failure, done_below: base.seed + 1, ..Sum::default() }
}

fn side_by_side(args: &Args, base: &Scenario, begun: Instant) -> Sum {
    let search = Search {
        next_seed: AtomicU64::new(base.seed),
        is_over: AtomicBool::new(false),
        sum: Mutex::new(Sum { done_below: base.seed, ..Sum::default() }),
    };
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                while !search.is_over.load(Ordering::Relaxed) {
                    let seed = search.next_seed.fetch_add(1, Ordering::Relaxed);
                    let verdict = judge(&Scenario { seed, ..base.clone() });
                    // Another job that panicked outside a world ends the whole program.
                    let Ok(mut sum) = search.sum.lock() else { return };
                    if let (true, Some(what)) = (args.keep_going, &verdict.broken) {
                        println!("FAILED seed {seed}: {what}");
                    }
                    sum.add(seed, &verdict.totals, verdict.broken);
                    if sum.is_enough(args, begun) {
                        search.is_over.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    search.sum.into_inner().unwrap_or_default()
}

impl Sum {
    fn add(&mut self, seed: u64, totals: &Totals, broken: Option<String>) {
        self.totals.absorb(totals);
        self.ahead.insert(seed);
        while self.ahead.remove(&self.done_below) {
            self.done_below += 1;
        }
        let Some(what) = broken else { return };
        if self.failure.as_ref().is_none_or(|(first, _)| seed < *first) {
            self.failure = Some((seed, what));
        }
    }

    fn is_enough(&mut self, args: &Args, begun: Instant) -> bool {
        let elapsed = begun.elapsed();
        let limit = args.crashes.or(if args.minutes.is_none() { Some(CRASHES) } else { None });
        if self.said.is_none_or(|said| said.elapsed() >= Duration::from_secs(PROGRESS_S)) {
            self.said = Some(Instant::now());
            let rate = self.totals.crashes as f64 / elapsed.as_secs_f64().max(0.001);
            let left = limit.map(|limit| limit.saturating_sub(self.totals.crashes) as f64 / rate);
            let by_time = args.minutes.map(|minutes| minutes * 60.0 - elapsed.as_secs_f64());
            let eta = left.into_iter().chain(by_time).fold(f64::INFINITY, f64::min).max(0.0);
            eprintln!(
                "{} crashes, {rate:.0}/s, about {eta:.0} s left; --from {} goes on from here",
                self.totals.crashes, self.done_below
            );
        }
        let is_late = args.minutes.is_some_and(|minutes| elapsed.as_secs_f64() > minutes * 60.0);
        let is_failed = self.failure.is_some() && !args.keep_going;
        is_failed || is_late || limit.is_some_and(|n| self.totals.crashes >= n)
    }
}

fn report(args: &Args, base: &Scenario, sum: &Sum, begun: Instant) -> ExitCode {
    let secs = begun.elapsed().as_secs_f64();
    println!("{}", sum.totals);
    println!("{:.0} crashes a second, {secs:.1} s", sum.totals.crashes as f64 / secs.max(0.001));
    let Some((seed, what)) = &sum.failure else {
        println!("no promise was broken; the next seed is {}", sum.done_below);
        return ExitCode::SUCCESS;
    };
    println!("FAILED seed {seed}: {what}");
    let found = Scenario { seed: *seed, ..base.clone() };
    if args.no_shrink || args.keep_going || args.trace || args.keep.is_some() {
        println!("replay: {}", replay(args, &found));
        return ExitCode::FAILURE;
    }
    let (small, steps) = shrink(&found);
    let verdict = judge(&Scenario { trace: true, ..small.clone() });
    for line in &verdict.trace {
        println!("{line}");
    }
    println!("in {steps} steps: {}", verdict.broken.unwrap_or_default());
    println!("replay: {}", replay(args, &small));
    ExitCode::FAILURE
}

fn replay(args: &Args, scenario: &Scenario) -> String {
    let name = match args.which {
        Name::Ledger => "ledger",
        Name::Compress => "compress",
    };
    let mut line = format!(
        "cargo xtask crash {name} --seed {} --steps {} --trace",
        scenario.seed, scenario.steps
    );
    if scenario.depth == Depth::Exhaustive {
        line.push_str(" --exhaustive");
    }
    if let Some(rule) = &args.without {
        line.push_str(&format!(" --without {rule}"));
    }
    if let Some(keep) = &scenario.keep {
        let numbers: Vec<String> = keep.iter().map(u32::to_string).collect();
        line.push_str(&format!(" --keep {}", numbers.join(",")));
    }
    line
}
