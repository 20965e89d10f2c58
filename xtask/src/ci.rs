//! `cargo xtask ci`: everything a change has to pass, cheapest first, each step with its time.
//!
//! The steps run one after the other and the first failure ends the run. A tool that is missing
//! is named together with what is not checked because of it; where everything has to be there
//! (`CI=true`) that is a failure, so that nothing is ever skipped in silence.
//!
//! The test runner comes after the doc tests on purpose: whoever reads only the last counts of the
//! output sees the big number.

use crate::steps::{self, Failed, cargo, is_ci, is_installed};
use crate::{crash, fuzz, guest, interop, mutants, sim, soak, tidy};
use std::path::Path;
use std::time::Instant;

/// Seeds of the simulation smoke run: a few seconds; long runs are for `cargo xtask sim`.
const SMOKE_SEEDS: u64 = 300;
/// Seconds for each fuzz harness, of which there are many; what they have found before is replayed
/// by the tests.
const FUZZ_S: u64 = 10;

/// Programs the end-to-end tests use, and what is not checked without them.
const TOOLS: [(&str, &str); 13] = [
    ("dmsetup", "the unmodified dmsetup through the preload library"),
    ("nbdinfo", "what the NBD front tells libnbd clients"),
    ("nbdcopy", "copies in and out over several NBD connections"),
    ("qemu-img", "QEMU as an NBD client"),
    ("qemu-io", "single NBD requests with flags"),
    ("fio", "verified load over NBD during table swaps"),
    ("mkfs.ext4", "a file system on a mapped device"),
    ("fsck.ext4", "the same file system checked"),
    ("nbdkit", "another server's NBD device below ours"),
    ("qemu-nbd", "a second server as the other path of a multipath device"),
    ("e2fsck", "a file system that went through dying paths"),
    ("nbdfuse", "an ext4 mounted on a compress device, with power cuts and kills"),
    ("losetup", "the same ext4"),
];

type Step = (&'static str, fn(&Path) -> Result<(), Failed>);

const STEPS: [Step; 14] = [
    ("tools", tools),
    ("format", |root| steps::run(root, &mut cargo(&["fmt", "--all", "--check"]))),
    ("tidy", tidy::run),
    ("clippy", clippy),
    ("doc-tests", |root| steps::run(root, &mut cargo(&["test", "--workspace", "--doc"]))),
    ("tests", tests),
    ("simulation", simulation),
    ("crashes", crash::timed),
    ("mutants", mutants::sample),
    ("interop", |root| interop::run(root, &interop::Args::short())),
    ("soak", soak::short),
    ("guest", guest::short),
    ("fuzz", fuzzing),
    ("docs", docs),
];

/// How to run.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run the later steps too when one fails.
    #[arg(long)]
    keep_going: bool,
    /// Only these steps.
    #[arg(value_name = "STEP")]
    only: Vec<String>,
}

/// Runs every step, or those that were asked for.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    if let Some(unknown) = args.only.iter().find(|only| STEPS.iter().all(|(name, _)| name != only))
    {
        let names: Vec<&str> = STEPS.iter().map(|(name, _)| *name).collect();
        return Err(Failed::new(format!("no step {unknown}; there are: {}", names.join(", "))));
    }
    let start = Instant::now();
    let mut times = Vec::new();
    let mut failures = Vec::new();
    for (name, step) in STEPS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
            continue;
        }
        println!("\n==== {name}");
        let step_start = Instant::now();
        let result = step(root);
        let took_s = step_start.elapsed().as_secs_f64();
        times.push(format!("{name} {took_s:.0} s"));
        println!("==== {name}: {} in {took_s:.1} s", if result.is_ok() { "ok" } else { "FAILED" });
        if let Err(failed) = result {
            failures.push(format!("step {name}: {failed}"));
            if !args.keep_going {
                break;
            }
        }
    }
    println!("\n{:.0} s in all ({})", start.elapsed().as_secs_f64(), times.join(", "));
    if failures.is_empty() { Ok(()) } else { Err(Failed::new(failures.join("\n"))) }
}

fn tools(_root: &Path) -> Result<(), Failed> {
    let missing: Vec<_> = TOOLS.iter().filter(|(tool, _)| !is_installed(tool)).collect();
    for (tool, lost) in &missing {
        println!("{tool} is not installed; not checked: {lost}");
    }
    if is_ci() && !missing.is_empty() {
        return Err(Failed::new("tools are missing, and CI=true asks for all of them"));
    }
    Ok(())
}

fn clippy(root: &Path) -> Result<(), Failed> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    steps::run(root, &mut cargo(&arguments))
}

fn tests(root: &Path) -> Result<(), Failed> {
    if is_installed("cargo-nextest") {
        let arguments = ["nextest", "run", "--workspace", "--no-fail-fast"];
        return steps::run(root, &mut cargo(&arguments));
    }
    println!("cargo-nextest is not installed; using cargo test");
    let arguments = ["test", "--workspace", "--no-fail-fast", "--bins", "--lib", "--tests"];
    steps::run(root, &mut cargo(&arguments))
}

fn simulation(root: &Path) -> Result<(), Failed> {
    sim::run(root, &sim::Args { seeds: Some(SMOKE_SEEDS), ..sim::Args::default() })
}

fn fuzzing(root: &Path) -> Result<(), Failed> {
    let args = fuzz::Args { target: None, seconds: FUZZ_S, input: None, list: false };
    fuzz::run(root, &args)
}

fn docs(root: &Path) -> Result<(), Failed> {
    let mut command = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    // Private items are documented too, so links to them lead somewhere.
    let flags = "-D warnings -A rustdoc::private-intra-doc-links";
    steps::run(root, command.env("RUSTDOCFLAGS", flags))
}
