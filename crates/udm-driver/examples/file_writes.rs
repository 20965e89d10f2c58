//! What a buffered write of 4 KiB costs in processor time, per driver and depth.
//!
//! `cargo run --release -p udm-driver --example file_writes [FOLDER]` overwrites a file of 64 MiB
//! in the folder (default: the current one), at random places, and prints the processor time of
//! the whole process per write, threads of the kernel's ring included, and the time that passed.
//! The first line is a plain `pwrite`, the least a write can cost.
//!
//! Depth is kept: each completion starts the next write, as a client of a server does.
#![allow(clippy::print_stdout, reason = "a small program for the terminal")]

use rustix::time::{ClockId, clock_gettime};
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;
use udm_driver::{DriverChoice, open_driver};
use udm_lane::{Buf, Driver, DriverOp, Handle, OpToken, Payload, RawHandle};

const BLOCK_BYTES: usize = 4_096;
const BLOCKS: u64 = 16_384;
const WRITES: u64 = 100_000;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let file = tempfile::tempfile_in(folder)?;
    for block in 0..BLOCKS {
        file.write_all_at(&[1; BLOCK_BYTES], block * BLOCK_BYTES as u64)?;
    }
    for round in 1..=3 {
        println!("round {round}");
        report("pwrite", || plain(&file))?;
        for choice in [DriverChoice::Uring, DriverChoice::Portable] {
            let (mut driver, line) = open_driver(choice)?;
            let raw = RawHandle(file.try_clone()?.into_raw_fd());
            let handle =
                driver.register(raw).map_err(|errno| io::Error::from_raw_os_error(errno.0))?;
            for depth in [1, 4, 32, 128] {
                let title = format!("{} depth {depth}", line.name);
                report(&title, || Ok(keep_depth(&mut *driver, handle, depth)))?;
            }
        }
    }
    Ok(())
}

/// Runs a load and prints its costs.
fn report(title: &str, load: impl FnOnce() -> io::Result<u64>) -> io::Result<()> {
    let (start, cpu) = (Instant::now(), process_cpu_ns());
    let writes = load()? as f64;
    let cpu_us = (process_cpu_ns() - cpu) as f64 / 1e3 / writes;
    let wall_us = start.elapsed().as_nanos() as f64 / 1e3 / writes;
    println!("{title:>20}: {cpu_us:6.2} us of processor, {wall_us:6.2} us of time per write");
    Ok(())
}

fn plain(file: &File) -> io::Result<u64> {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..WRITES {
        let offset_bytes = random.u64(..BLOCKS) * BLOCK_BYTES as u64;
        assert_eq!(file.write_at(&[2; BLOCK_BYTES], offset_bytes)?, BLOCK_BYTES);
    }
    Ok(WRITES)
}

fn keep_depth(driver: &mut dyn Driver, handle: Handle, depth: u64) -> u64 {
    let writes = if depth == 1 { WRITES / 4 } else { WRITES };
    let mut random = fastrand::Rng::with_seed(1);
    let mut start = |driver: &mut dyn Driver, payload| {
        let offset_bytes = random.u64(..BLOCKS) * BLOCK_BYTES as u64;
        let op = DriverOp::Write { handle, offset_bytes, payload, dsync: false };
        driver.submit(OpToken(0), op);
    };
    for _ in 0..depth {
        start(driver, Payload::from_buf(Buf::alloc(BLOCK_BYTES)));
    }
    let (mut started, mut ended) = (depth, 0);
    let mut completions = Vec::new();
    while ended < writes {
        driver.wait(None, &mut completions);
        for completion in completions.drain(..) {
            assert_eq!(completion.result, Ok(BLOCK_BYTES as u32));
            ended += 1;
            if started < writes {
                started += 1;
                start(driver, completion.payload);
            }
        }
    }
    writes
}

fn process_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
