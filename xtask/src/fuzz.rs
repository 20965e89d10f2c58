//! `cargo xtask fuzz`: coverage-guided fuzzing with libFuzzer, on a stable toolchain.
//!
//! The harnesses are in `fuzz/`, a workspace of its own (laid out as cargo-fuzz expects, for those
//! who have it). cargo-fuzz itself asks for a nightly compiler, for the address sanitizer; the
//! code fuzzed here is safe Rust, so all that is needed is coverage, and the flags for that are
//! stable. They are passed here with an explicit `--target`, so that build scripts and procedural
//! macros stay as they are.
//!
//! What is found: panics (overflow checks and debug assertions are on), hangs (15 s an input) and
//! memory above a limit. A finding is written below `fuzz/artifacts`, with the command that
//! replays it. Seeds and dictionaries are committed; what a run learns stays in `fuzz/corpus`.

use crate::steps::{Failed, cargo, run as run_step};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Flags that make the compiler count edges and compare operands, as libFuzzer wants them.
const COVERAGE: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];
/// Seconds an input may take before it counts as a hang. They are seconds of the clock on the wall,
/// and a busy machine takes the processor away for a few.
const TIMEOUT_S: u64 = 15;
/// Memory of a run; the parsers have bounds far below.
const MEMORY_LIMIT_MIB: u64 = 1024;

/// What to fuzz.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// One harness; all of them if left out.
    pub(crate) target: Option<String>,
    /// How long each harness runs.
    #[arg(long, default_value_t = 60, value_name = "S")]
    pub(crate) seconds: u64,
    /// Run this one input and stop: replays a finding.
    #[arg(long, value_name = "FILE", requires = "target")]
    pub(crate) input: Option<PathBuf>,
    /// Only list the harnesses.
    #[arg(long)]
    pub(crate) list: bool,
}

/// Builds the harnesses and runs them one after the other.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let all = harnesses(root)?;
    if args.list {
        all.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let chosen: Vec<&String> = match &args.target {
        None => all.iter().collect(),
        Some(wanted) => {
            let found: Vec<&String> = all.iter().filter(|name| *name == wanted).collect();
            if found.is_empty() {
                let what = format!("no harness {wanted}; there are: {}", all.join(", "));
                return Err(Failed::new(what));
            }
            found
        }
    };
    let triple = host()?;
    let built = build(root, &triple, &chosen)?;
    for name in chosen {
        run_one(root, &built, name, args)?;
    }
    Ok(())
}

/// The harnesses: files of `fuzz/fuzz_targets`, by name.
fn harnesses(root: &Path) -> Result<Vec<String>, Failed> {
    let folder = root.join("fuzz/fuzz_targets");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .map_err(Failed::to("list fuzz/fuzz_targets"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".rs").map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

/// The compiler's own target triple.
fn host() -> Result<String, Failed> {
    let output = Command::new("rustc").arg("-vV").output().map_err(Failed::to("run rustc -vV"))?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .ok_or_else(|| Failed::new("rustc -vV names no host"))
}

fn build(root: &Path, triple: &str, chosen: &[&String]) -> Result<PathBuf, Failed> {
    let target_dir = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root.join(dir).join("fuzz"),
        None => root.join("fuzz/target"),
    };
    let mut command = cargo(&["build", "--quiet", "--release", "--target", triple]);
    command.arg("--manifest-path").arg(root.join("fuzz/Cargo.toml"));
    command.arg("--target-dir").arg(&target_dir);
    for name in chosen {
        command.args(["--bin", name]);
    }
    command.env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\u{1f}"));
    run_step(root, &mut command)?;
    Ok(target_dir.join(triple).join("release"))
}

fn run_one(root: &Path, built: &Path, name: &str, args: &Args) -> Result<(), Failed> {
    let mut command = Command::new(built.join(name));
    if let Some(input) = &args.input {
        return run_step(root, command.arg(input));
    }
    let fuzz = root.join("fuzz");
    let (corpus, seeds) = (fuzz.join("corpus").join(name), fuzz.join("seeds").join(name));
    let artifacts = fuzz.join("artifacts").join(name);
    for folder in [&corpus, &artifacts] {
        std::fs::create_dir_all(folder)
            .map_err(Failed::to(format!("make {}", folder.display())))?;
    }
    command.arg(format!("-max_total_time={}", args.seconds));
    command.arg(format!("-timeout={TIMEOUT_S}"));
    command.arg(format!("-rss_limit_mb={MEMORY_LIMIT_MIB}"));
    command.arg("-print_final_stats=1");
    if !std::io::stderr().is_terminal() {
        command.arg("-verbosity=0");
    }
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    let dictionary = fuzz.join("dictionaries").join(name);
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    command.arg(&corpus);
    if seeds.is_dir() {
        command.arg(&seeds);
    }
    run_step(root, &mut command).map_err(|failed| {
        Failed::new(format!(
            "{failed}\nreplay with: cargo xtask fuzz {name} --input fuzz/artifacts/{name}/FILE"
        ))
    })
}
