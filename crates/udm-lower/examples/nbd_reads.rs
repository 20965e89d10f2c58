//! What a random read from an NBD export costs our client in processor time, per driver and size.
//!
//! `cargo run --release -p udm-lower --example nbd_reads -- NAME [DEPTH]`, with the name as it
//! stands in a table. The server is another process, so the processor time of this one is the
//! client's: one lane, one connection, threads of the kernel's ring included. For instance
//! `nbdkit -f -U SOCKET memory 256M` and `'nbd+unix:///?socket=SOCKET'`.
//!
//! Depth is kept: each completion starts the next read at once, as under a busy target.
#![allow(clippy::print_stdout, reason = "a small program for the terminal")]
#![allow(clippy::unwrap_used, reason = "the lane shared with the tests unwraps")]

#[path = "../tests/lanes/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod lanes;

use lanes::Lane;
use rustix::time::{ClockId, clock_gettime};
use std::error::Error;
use udm_driver::{DriverChoice, monotonic_ns};
use udm_lower::LowerRegistry;
use udm_types::{BioFlags, Op, Status};

const READS: u64 = 200_000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let name = args.next().ok_or("the name of an export is missing")?;
    let depth: u64 = args.next().map_or(Ok(32), |depth| depth.parse())?;
    let registry = LowerRegistry::new(1);
    for round in 1..=3 {
        for choice in [DriverChoice::Uring, DriverChoice::Portable] {
            for len_sectors in [8, 256] {
                let opened = registry.open(&name, false).map_err(|error| error.to_string())?;
                let device = opened.lower.ok_or("an export is a lower device")?.device;
                let Some(lane) = Lane::open(0, choice, &device) else { continue };
                let (cpu_ns, per_s) = run(lane, opened.len_sectors, len_sectors, depth)?;
                println!(
                    "round {round} {choice:?} depth {depth} {} KiB: {cpu_ns} ns CPU a read, \
                     {per_s} reads/s",
                    len_sectors / 2
                );
            }
        }
    }
    Ok(())
}

/// Processor time of this process.
fn cpu_time_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    // Neither part is negative.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Processor time of a read in nanoseconds, and reads a second.
fn run(
    mut lane: Lane,
    device_sectors: u64,
    len_sectors: u64,
    depth: u64,
) -> Result<(u64, u64), Box<dyn Error>> {
    let mut random = fastrand::Rng::with_seed(1);
    let places = device_sectors / len_sectors;
    for _ in 0..depth {
        let sector = random.u64(0..places) * len_sectors;
        let bio = lane.bio(Op::Read, BioFlags::empty(), sector, len_sectors, 0);
        lane.submit(bio);
    }
    let reads = READS * 8 / len_sectors.max(8);
    let (cpu, begun) = (cpu_time_ns(), monotonic_ns());
    for _ in 0..reads {
        let mut bio = lane.next_done();
        if bio.status != Status::Ok {
            return Err(format!("a read failed: {:?}", bio.status).into());
        }
        let sector = random.u64(0..places) * len_sectors;
        bio.ask(Op::Read, BioFlags::empty(), sector, len_sectors);
        lane.submit(bio);
    }
    let (cpu, took) = (cpu_time_ns() - cpu, monotonic_ns() - begun);
    for _ in 0..depth {
        lane.next_done();
    }
    lane.close();
    Ok((cpu / reads, reads * 1_000_000_000 / took.max(1)))
}
