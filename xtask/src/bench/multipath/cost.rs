//! What multipath costs: CPU time an I/O beside linear, over a null device, one lane.
//!
//! `udm bench` for each case, round after round, case after case; random reads, so that request
//! mode finds nothing to merge. The differences are taken within a round.

use super::{Bench, median};
use crate::steps::Failed;

/// Cases: name, what Linux needs over its raw null device, the bar over linear, options.
const CASES: [(&str, &str, &str, &[&str]); 4] = [
    ("null device alone", "", "", &["--layers", "0"]),
    ("linear", "79", "", &["--target", "linear"]),
    ("multipath, bio", "97", "15", &["--target", "multipath", "--queue-mode", "bio"]),
    ("multipath, request", "234 to 309", "60", &["--target", "multipath", "--queue-mode", "rq"]),
];
/// Index of the case that the others are compared with.
const LINEAR: usize = 1;

pub(super) fn run(bench: &Bench<'_>) -> Result<String, Failed> {
    let seconds = bench.seconds.to_string();
    let mut rounds = Vec::new();
    for _ in 0..bench.rounds {
        let mut round = Vec::new();
        for (_, _, _, options) in CASES {
            let words = [&["bench", "--json", "--seconds", &seconds], options].concat();
            let told = bench.json(&words)?;
            let cpu_ns = told["cpu_ns_per_io"].as_f64();
            round.push(cpu_ns.ok_or_else(|| Failed::new("udm bench told no CPU time"))?);
        }
        rounds.push(round);
    }
    let mut text = "\n## Cost\n\nCPU nanoseconds an I/O, one lane, depth 32, random 4 KiB reads over a null device, \
        selector service-time, two paths, statistics on; medians. Linux: over its raw null device, measured on a \
        machine of its own.\n\n| case | an I/O | over linear | bar | Linux |\n|---|--:|--:|--:|--:|\n"
        .to_owned();
    for (case, (name, linux, bar, _)) in CASES.iter().enumerate() {
        let own = median(rounds.iter().map(|round| round[case]).collect());
        let over = median(rounds.iter().map(|round| round[case] - round[LINEAR]).collect());
        let over = if case > LINEAR { format!("{over:.1}") } else { String::new() };
        text += &format!("| {name} | {own:.1} | {over} | {bar} | {linux} |\n");
    }
    Ok(text)
}
