//! The ladder: so many layers of one target over a null or memory device.
//!
//! `udm bench` without a subcommand. Every lane gets a load of its own (`load.rs`) on the top
//! device; what is printed is their sum, and CPU time for an I/O. Layers are compared by running
//! this several times, so nothing here subtracts one run from another.

use super::load::{Load, LoadOrder, LoadResult};
use super::{BenchError, BenchOp, LadderArgs, Lower, QueueMode};
use crate::runtime::{Runtime, RuntimeConfig};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::sync::mpsc;
use udm_core::{Dest, LowerRef};
use udm_types::{LaneId, Op, SECTOR_BYTES, Sector};

/// Size of the bench device: 256 MiB, larger than the caches.
const DEVICE_SECTORS: Sector = 1 << 19;

/// Percentiles of the sampled latencies, in nanoseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Latencies {
    p50: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// The figures, as `--json` prints them.
#[derive(Debug, Serialize)]
struct LadderReport {
    schema_version: u32,
    target: String,
    layers: u32,
    lower: String,
    op: String,
    bs: u64,
    depth: u32,
    lanes: usize,
    driver: String,
    seconds: f64,
    ios: u64,
    errors: u64,
    iops: f64,
    cpu_ns_per_io: f64,
    lat_ns: Latencies,
}

pub(super) fn run(args: &LadderArgs) -> Result<(), BenchError> {
    let len_sectors = args.bs / SECTOR_BYTES;
    if !args.bs.is_multiple_of(SECTOR_BYTES) || len_sectors == 0 || len_sectors > DEVICE_SECTORS {
        return Err(format!("--bs {}: expected a multiple of 512, up to 256 MiB", args.bs).into());
    }
    let config =
        RuntimeConfig { lanes: args.lanes, driver: args.driver.into(), ..RuntimeConfig::default() };
    let runtime = Runtime::start(&config)?;
    let dest = build(&runtime, args)?;
    let order = LoadOrder {
        dest,
        op: match args.op {
            BenchOp::Read => Op::Read,
            BenchOp::Write => Op::Write,
            BenchOp::Flush => Op::Flush,
            BenchOp::Discard => Op::Discard,
        },
        len_sectors,
        device_sectors: DEVICE_SECTORS,
        depth: args.depth,
        seconds: args.seconds,
        seed: 1,
    };
    let results = run_loads(&runtime, &order)?;
    print(args, &runtime, &results)
}

/// Builds the stack; returns where to send bios.
fn build(runtime: &Runtime, args: &LadderArgs) -> Result<Dest, BenchError> {
    let lower = match args.lower {
        Lower::Null => format!("null:{}", DEVICE_SECTORS * SECTOR_BYTES),
        Lower::Mem => format!("mem:{}", DEVICE_SECTORS * SECTOR_BYTES),
    };
    if args.layers == 0 {
        let device = runtime.lowers().open(&lower, false)?;
        let lower: LowerRef = device.lower.ok_or("the bench device is a lower device")?;
        for lane in 0..runtime.lane_count() {
            let lower = lower.clone();
            runtime.on_lane(LaneId(lane as u16), move |engine| engine.open_lower(&lower))?;
        }
        return Ok(device.dest);
    }
    let mut below = lower;
    let mut top = None;
    for layer in 0..args.layers {
        let name = format!("bench{layer}");
        let table = format!("0 {DEVICE_SECTORS} {} {}", args.target, target_args(args, &below));
        let status = runtime.create(&name, None, &table, false)?;
        top = Some(Dest::Device(status.id));
        below = format!("dm:{name}");
    }
    top.ok_or_else(|| "a stack has at least one layer".into())
}

/// Arguments that make each target pass I/O on to `below`.
fn target_args(args: &LadderArgs, below: &str) -> String {
    match args.target.as_str() {
        "striped" => format!("2 128 {below} 0 {below} {}", DEVICE_SECTORS / 2),
        "delay" => format!("{below} 0 0"),
        "flakey" => format!("{below} 0 3600 0"),
        "zero" | "error" => String::new(),
        "multipath" => multipath_args(args, below),
        _ => format!("{below} 0"),
    }
}

/// One group of several paths to `below`.
fn multipath_args(args: &LadderArgs, below: &str) -> String {
    let mode = match args.queue_mode {
        QueueMode::Bio => "bio",
        QueueMode::Rq => "rq",
    };
    let path_words = usize::from(args.selector == "io-affinity");
    let mut line =
        format!("2 queue_mode {mode} 0 1 1 {} 0 {} {path_words}", args.selector, args.paths);
    for path in 0..args.paths {
        line.push(' ');
        line.push_str(below);
        if path_words > 0 {
            // Every path has a lane of its own; lanes beyond the paths take the first.
            line.push_str(&format!(" {:x},{:x}", (1_u64 << path) >> 32, (1_u64 << path) as u32));
        }
    }
    line
}

fn run_loads(runtime: &Runtime, order: &LoadOrder) -> Result<Vec<LoadResult>, BenchError> {
    let (sender, receiver) = mpsc::channel();
    for lane in 0..runtime.lane_count() {
        let mut order = order.clone();
        order.seed += lane as u64;
        let sender = sender.clone();
        runtime.spawn_actor(LaneId(lane as u16), move || Box::new(Load::new(order, sender)));
    }
    drop(sender);
    let results: Vec<LoadResult> = receiver.iter().collect();
    if results.len() == runtime.lane_count() {
        Ok(results)
    } else {
        Err("a lane ended early".into())
    }
}

fn print(args: &LadderArgs, runtime: &Runtime, results: &[LoadResult]) -> Result<(), BenchError> {
    let ios: u64 = results.iter().map(|result| result.ios).sum();
    let cpu_ns: u64 = results.iter().map(|result| result.cpu_ns).sum();
    let wall_ns = results.iter().map(|result| result.wall_ns).max().unwrap_or(1);
    let mut histogram: Histogram<u64> = Histogram::new_with_bounds(1, 600_000_000_000, 3)?;
    for latency in results.iter().flat_map(|result| &result.latencies_ns) {
        histogram.saturating_record(*latency);
    }
    let report = LadderReport {
        schema_version: 1,
        target: args.target.clone(),
        layers: args.layers,
        lower: format!("{:?}", args.lower).to_lowercase(),
        op: format!("{:?}", args.op).to_lowercase(),
        bs: args.bs,
        depth: args.depth,
        lanes: runtime.lane_count(),
        driver: runtime.driver().name.into(),
        seconds: wall_ns as f64 / 1e9,
        ios,
        errors: results.iter().map(|result| result.errors).sum(),
        iops: ios as f64 * 1e9 / wall_ns as f64,
        cpu_ns_per_io: cpu_ns as f64 / ios.max(1) as f64,
        lat_ns: latencies(&histogram),
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!(
        "{} x{} over {}: {} {} bytes, depth {}, {} lane(s), {}",
        report.target,
        report.layers,
        report.lower,
        report.op,
        report.bs,
        report.depth,
        report.lanes,
        report.driver
    );
    println!("  {:>14.0} I/Os a second", report.iops);
    println!("  {:>14.1} ns of CPU an I/O", report.cpu_ns_per_io);
    let Latencies { p50, p99, p999, max } = report.lat_ns;
    println!("  {p50:>14} ns latency p50, {p99} p99, {p999} p99.9, {max} max");
    println!("  {:>14} I/Os, {} errors", report.ios, report.errors);
    Ok(())
}

pub(super) fn latencies(histogram: &Histogram<u64>) -> Latencies {
    Latencies {
        p50: histogram.value_at_quantile(0.5),
        p99: histogram.value_at_quantile(0.99),
        p999: histogram.value_at_quantile(0.999),
        max: histogram.max(),
    }
}
