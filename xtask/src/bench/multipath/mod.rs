//! `cargo xtask bench multipath`: what multipath costs, what merging gives, what selectors do.
//!
//! | file | measures |
//! |---|---|
//! | `cost.rs` | CPU time an I/O over linear, in bio and in request mode, over a null device |
//! | `merge.rs` | sequential writes over two NBD paths: lower I/Os a bio, and throughput |
//! | `failover.rs` | the time from a path's death to the next completed I/O |
//! | `selectors.rs` | all selectors over bad paths, in simulated time and over NBD |
//!
//! Compared things are measured interleaved in one run, since the machine does other things, too.
//! The page it writes says what was asked for beside what was found.

mod cost;
mod failover;
mod merge;
mod selectors;

use crate::steps::{Failed, cargo, is_installed, run as run_step, target_dir};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds; tables show medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only this: cost, merge, failover or selectors; may be repeated.
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// A udm that is built already, instead of a release build.
    #[arg(long, value_name = "PATH")]
    udm: Option<PathBuf>,
    /// Write the page to this Markdown file.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// What every part needs.
struct Bench<'a> {
    root: &'a Path,
    udm: PathBuf,
    /// For sockets and files.
    dir: PathBuf,
    rounds: usize,
    seconds: f64,
}

type Part = (&'static str, fn(&Bench<'_>) -> Result<String, Failed>);

const PARTS: [Part; 4] = [
    ("cost", cost::run),
    ("merge", merge::run),
    ("failover", failover::run),
    ("selectors", selectors::run),
];

/// Measures and prints; writes the page if asked to.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let udm = match &args.udm {
        Some(udm) => udm.clone(),
        None => {
            run_step(root, &mut cargo(&["build", "--quiet", "--release", "--package", "udm"]))?;
            target_dir(root).join("release/udm")
        }
    };
    let dir = std::env::temp_dir().join(format!("udm-bench-multipath-{}", std::process::id()));
    fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
    let bench =
        Bench { root, udm, dir: dir.clone(), rounds: args.rounds.max(1), seconds: args.seconds };
    let mut page = INTRODUCTION.to_owned();
    for (name, part) in PARTS {
        if args.only.is_empty() || args.only.iter().any(|only| only == name) {
            let text = part(&bench)?;
            println!("{text}");
            page += &text;
        }
    }
    // It is ours; what cannot be removed is left to the operating system's cleaner.
    let _removed = fs::remove_dir_all(&dir);
    match &args.write {
        Some(file) => fs::write(root.join(file), page).map_err(Failed::to("write the page")),
        None => Ok(()),
    }
}

const INTRODUCTION: &str = "\
# Multipath: cost, merging, failover, selectors

Made by `cargo xtask bench multipath --write docs/benchmarks/multipath.md`. Absolute times are those of a small shared
virtual machine with two processors that did other things, too; what counts is what was measured side by side.
";

impl Bench<'_> {
    /// Runs `udm` with these words and reads its JSON.
    fn json(&self, words: &[&str]) -> Result<Value, Failed> {
        let output = Command::new(&self.udm)
            .args(words)
            .stdin(Stdio::null())
            .output()
            .map_err(Failed::to("run udm"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(Failed::new(format!("udm {}: {why}", words.join(" "))));
        }
        serde_json::from_slice(&output.stdout).map_err(Failed::to("read udm's JSON"))
    }

    /// Whether programs are there; says what is left out if not.
    fn has(&self, programs: &[&str], lost: &str) -> bool {
        match programs.iter().find(|program| !is_installed(program)) {
            Some(missing) => {
                println!("{missing} is not installed; left out: {lost}");
                false
            }
            None => true,
        }
    }
}

/// What fio says of a job on an export.
#[derive(Clone, Copy, Debug, Default)]
struct Fio {
    iops: f64,
    p99_ms: f64,
}

/// Runs fio on an export; `words` say what.
fn fio(bench: &Bench<'_>, uri: &str, words: &[&str]) -> Result<Fio, Failed> {
    let (uri, runtime) = (format!("--uri={uri}"), format!("--runtime={}", bench.seconds));
    let output = Command::new("fio")
        .args(["--name=m", "--ioengine=nbd", &uri, "--bs=4k", "--size=64M", "--time_based"])
        .args([&*runtime, "--group_reporting", "--output-format=json"])
        .args(words)
        .current_dir(&bench.dir)
        .stdin(Stdio::null())
        .output()
        .map_err(Failed::to("run fio"))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        return Err(Failed::new(format!("fio: {}", String::from_utf8_lossy(&text))));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').map_or("", |at| &text[at..]);
    let told: Value = serde_json::from_str(json).map_err(Failed::to("read fio's JSON"))?;
    let job = &told["jobs"][0];
    let side =
        if job["read"]["total_ios"].as_u64() > Some(0) { &job["read"] } else { &job["write"] };
    Ok(Fio {
        iops: side["iops"].as_f64().unwrap_or(0.0),
        p99_ms: side["clat_ns"]["percentile"]["99.000000"].as_f64().unwrap_or(0.0) / 1e6,
    })
}

/// The middle one.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
