//! Failover: `udm bench failover`, as a table beside its bars.
//!
//! Called by `mod.rs`; measures nothing itself. The tricky case is a paths' name without a bar: the
//! table then shows 0, so that nobody takes it for kept.

use super::Bench;
use crate::steps::Failed;

/// Bars of the 99th percentile in milliseconds, by the name of the paths.
const BARS_MS: [(&str, f64); 2] = [("in_process", 5.0), ("nbd", 50.0)];

pub(super) fn run(bench: &Bench<'_>) -> Result<String, Failed> {
    let rounds = (bench.rounds * 20).to_string();
    let told = bench.json(&["bench", "failover", "--json", "--rounds", &rounds])?;
    let mut text = "\n## Failover\n\n`udm bench failover`: the longest time without a completion around the death of \
        the path in use, under a verified load. In process death is a table swap to the error target, over NBD it is \
        SIGKILL to the server. Milliseconds.\n\n| paths | deaths | p50 | p99 | max | bar (p99) | errors, mismatches |\n\
        |---|--:|--:|--:|--:|--:|--:|\n"
        .to_owned();
    for run in told["runs"].as_array().into_iter().flatten() {
        let name = run["paths"].as_str().unwrap_or_default();
        let ms = |field: &str| run["pause_us"][field].as_f64().unwrap_or(f64::NAN) / 1e3;
        let bar = BARS_MS.iter().find(|(known, _)| *known == name).map_or(0.0, |(_, bar)| *bar);
        text += &format!(
            "| {} | {} | {:.2} | {:.2} | {:.2} | {bar} | {}, {} |\n",
            name.replace('_', " "),
            run["deaths"],
            ms("p50"),
            ms("p99"),
            ms("max"),
            run["errors"],
            run["mismatches"]
        );
    }
    Ok(text)
}
