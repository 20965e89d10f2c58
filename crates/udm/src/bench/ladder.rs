//! The ladder: so many layers of one target over a null or memory device, or over named ones.
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
use udm_core::lifecycle::{DeviceKey, Reply, Request};
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
    regions: u32,
    lower: String,
    op: String,
    is_sequential: bool,
    bs: u64,
    depth: u32,
    lanes: usize,
    driver: String,
    seconds: f64,
    ios: u64,
    errors: u64,
    iops: f64,
    cpu_ns_per_io: f64,
    /// I/Os of the lowest layer to what is below it, for each I/O; `null` unless it merges.
    requests_per_io: Option<f64>,
    lat_ns: Latencies,
}

pub(super) fn run(args: &LadderArgs) -> Result<(), BenchError> {
    let len_sectors = args.bs / SECTOR_BYTES;
    if !args.bs.is_multiple_of(SECTOR_BYTES) || len_sectors == 0 {
        return Err(format!("--bs {}: expected a multiple of 512", args.bs).into());
    }
    let config =
        RuntimeConfig { lanes: args.lanes, driver: args.driver.into(), ..RuntimeConfig::default() };
    let runtime = Runtime::start(&config)?;
    let Stack { dest, device_sectors } = build(&runtime, args)?;
    if len_sectors > device_sectors {
        return Err(
            format!("--bs {}: the device has only {device_sectors} sectors", args.bs).into()
        );
    }
    let order = LoadOrder {
        dest,
        op: match args.op {
            BenchOp::Read => Op::Read,
            BenchOp::Write => Op::Write,
            BenchOp::Flush => Op::Flush,
            BenchOp::Discard => Op::Discard,
        },
        len_sectors,
        device_sectors,
        depth: args.depth,
        is_sequential: args.sequential,
        seconds: args.seconds,
        seed: 1,
    };
    let results = run_loads(&runtime, &order)?;
    print(args, &runtime, &results)
}

/// What is measured.
struct Stack {
    /// Where to send bios.
    dest: Dest,
    device_sectors: Sector,
}

/// Builds the stack.
fn build(runtime: &Runtime, args: &LadderArgs) -> Result<Stack, BenchError> {
    let (below, device_sectors) = devices_below(runtime, args)?;
    if args.layers == 0 {
        let device = runtime.lowers().open(&below[0], false)?;
        let lower: LowerRef = device.lower.ok_or("the bench device is a lower device")?;
        for lane in 0..runtime.lane_count() {
            let lower = lower.clone();
            runtime.on_lane(LaneId(lane as u16), move |engine| engine.open_lower(&lower))?;
        }
        return Ok(Stack { dest: device.dest, device_sectors });
    }
    let mut below = below;
    let mut top = None;
    for layer in 0..args.layers {
        let name = layer_name(layer);
        let words = target_args(args, &below, device_sectors);
        let table = format!("0 {device_sectors} {} {words}", args.target);
        let status = runtime.create(&name, None, &table, false)?;
        for _ in 0..args.regions {
            let words = ["@stats_create", "-", "/64"].map(str::to_owned).to_vec();
            let device = DeviceKey::Id(status.id);
            runtime.request(Request::Message { device, sector: 0, words })?;
        }
        top = Some(Dest::Device(status.id));
        below = vec![format!("dm:{name}"); args.paths as usize];
    }
    let dest = top.ok_or("a stack has at least one layer")?;
    Ok(Stack { dest, device_sectors })
}

fn layer_name(layer: u32) -> String {
    format!("bench{layer}")
}

/// Names of the devices below, one for each path, and the size of the smallest.
fn devices_below(
    runtime: &Runtime,
    args: &LadderArgs,
) -> Result<(Vec<String>, Sector), BenchError> {
    let kind = match args.lower {
        Lower::Null => "null",
        Lower::Mem => "mem",
    };
    if args.device.is_empty() {
        let name = format!("{kind}:{}", DEVICE_SECTORS * SECTOR_BYTES);
        return Ok((vec![name; args.paths as usize], DEVICE_SECTORS));
    }
    let mut device_sectors = Sector::MAX;
    for name in &args.device {
        let device = runtime.lowers().open(name, false)?;
        device_sectors = device_sectors.min(device.len_sectors);
    }
    Ok((args.device.clone(), device_sectors))
}

/// Arguments that make each target pass I/O on to the devices below (the first, if it is not
/// multipath).
fn target_args(args: &LadderArgs, below: &[String], device_sectors: Sector) -> String {
    let first = &below[0];
    match args.target.as_str() {
        "striped" => format!("2 128 {first} 0 {first} {}", device_sectors / 2),
        "delay" => format!("{first} 0 0"),
        "flakey" => format!("{first} 0 3600 0"),
        "zero" | "error" => String::new(),
        "multipath" => multipath_args(args, below),
        _ => format!("{first} 0"),
    }
}

/// One group of paths.
fn multipath_args(args: &LadderArgs, below: &[String]) -> String {
    let mode = match args.queue_mode {
        QueueMode::Bio => "bio",
        QueueMode::Rq => "rq",
    };
    let path_words = usize::from(args.selector == "io-affinity");
    let mut line =
        format!("2 queue_mode {mode} 0 1 1 {} 0 {} {path_words}", args.selector, below.len());
    for (path, name) in below.iter().enumerate() {
        line.push(' ');
        line.push_str(name);
        if path_words > 0 {
            // Every path has a lane of its own; lanes beyond the paths take the first.
            line.push_str(&format!(" {:x},{:x}", (1_u64 << path) >> 32, (1_u64 << path) as u32));
        }
    }
    line
}

/// Requests of the lowest layer so far; none if it does not merge.
fn requests_of(runtime: &Runtime, args: &LadderArgs) -> Result<Option<u64>, BenchError> {
    if args.layers == 0 || args.target != "multipath" || args.queue_mode == QueueMode::Bio {
        return Ok(None);
    }
    let device = DeviceKey::Name(layer_name(0));
    match runtime.request(Request::Gauges { device })? {
        Reply::Gauges(gauges) => Ok(Some(gauges.requests.requests)),
        other => Err(format!("an answer to another question: {other:?}").into()),
    }
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
        regions: args.regions,
        lower: match args.device.is_empty() {
            true => format!("{:?}", args.lower).to_lowercase(),
            false => args.device.join(" "),
        },
        op: format!("{:?}", args.op).to_lowercase(),
        is_sequential: args.sequential,
        bs: args.bs,
        depth: args.depth,
        lanes: runtime.lane_count(),
        driver: runtime.driver().name.into(),
        seconds: wall_ns as f64 / 1e9,
        ios,
        errors: results.iter().map(|result| result.errors).sum(),
        iops: ios as f64 * 1e9 / wall_ns as f64,
        cpu_ns_per_io: cpu_ns as f64 / ios.max(1) as f64,
        requests_per_io: requests_of(runtime, args)?
            .map(|requests| requests as f64 / ios.max(1) as f64),
        lat_ns: latencies(&histogram),
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    println!(
        "{} x{} over {}: {}{} {} bytes, depth {}, {} lane(s), {}",
        report.target,
        report.layers,
        report.lower,
        if report.is_sequential { "sequential " } else { "" },
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
    if let Some(requests) = report.requests_per_io {
        println!("  {requests:>14.3} requests an I/O");
    }
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
