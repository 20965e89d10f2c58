//! `cargo xtask bench engine`: the ladder of mapping layers, measured with `udm bench`.
//!
//! Runs the release binary with 0, 1 and 4 layers of a target over a null device, several rounds
//! interleaved (0 1 4 0 1 4 ...), and prints medians: CPU nanoseconds for an I/O, and what each
//! layer added to the bottom. The measuring itself is done by `udm bench`; this only repeats it
//! in an order that spreads the machine's noise over all rows.

use super::progress;
use crate::steps::{Failed, release_udm};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Rungs of the ladder.
const LAYERS: [u32; 3] = [0, 1, 4];

/// How to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The target of every layer.
    #[arg(long, default_value = "linear")]
    target: String,
    /// I/Os outstanding.
    #[arg(long, default_value_t = 32)]
    depth: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Rounds; the table shows medians.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
}

/// Builds, measures and prints.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    let binary = release_udm(root, None)?;
    let mut rows: Vec<Vec<(f64, f64)>> = vec![Vec::new(); LAYERS.len()];
    for round in 1..=args.rounds {
        for (row, layers) in rows.iter_mut().zip(LAYERS) {
            progress(&format!("round {round} of {}, {layers} layers", args.rounds));
            row.push(measure(&binary, layers, args)?);
        }
    }
    progress("");
    println!(
        "layers of {} over null, depth {}, medians of {}:",
        args.target, args.depth, args.rounds
    );
    println!("{:>6} {:>14} {:>14} {:>14}", "layers", "CPU ns/IO", "ns per layer", "kIO/s");
    let mut bottom = 0.0;
    for (row, layers) in rows.iter_mut().zip(LAYERS) {
        let cpu_ns = median(row.iter().map(|(cpu_ns, _)| *cpu_ns));
        let iops = median(row.iter().map(|(_, iops)| *iops));
        if layers == 0 {
            bottom = cpu_ns;
        }
        let each = (cpu_ns - bottom) / f64::from(layers.max(1));
        println!("{layers:>6} {cpu_ns:>14.1} {each:>14.1} {:>14.0}", iops / 1000.0);
    }
    Ok(())
}

/// CPU nanoseconds for an I/O, and I/Os a second.
fn measure(binary: &Path, layers: u32, args: &Args) -> Result<(f64, f64), Failed> {
    let output = Command::new(binary)
        .args(["bench", "--json", "--target", &args.target, "--lanes", "1"])
        .args(["--layers", &layers.to_string(), "--depth", &args.depth.to_string()])
        .args(["--seconds", &args.seconds.to_string()])
        .output()
        .map_err(Failed::to("run udm bench"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(Failed::new(format!("udm bench failed: {why}")));
    }
    let value: Value =
        serde_json::from_slice(&output.stdout).map_err(Failed::to("read udm bench's JSON"))?;
    let number = |name: &str| {
        value[name].as_f64().ok_or_else(|| Failed::new(format!("udm bench gave no {name}")))
    };
    Ok((number("cpu_ns_per_io")?, number("iops")?))
}

/// The middle value; of an even number the lower middle. 0 of none.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.0);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}
