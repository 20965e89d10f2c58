//! `cargo xtask bench nbd`: udm's NBD server beside nbdkit, qemu and the floor.
//!
//! Starts every server (`servers.rs`), drives each with our own client (`load.rs`) over a unix
//! socket with 4 KiB random reads and writes, and reads the CPU time of the server's process
//! (`cpu.rs`). Rounds are interleaved, server after server, case after case, so that what else the
//! machine does hits all alike; tables show medians (`report.rs`).
//!
//! Reading and writing happen on a device that was written once, so that nobody answers from a
//! hole. Both this program and udm are release builds; started from a development build, this
//! starts itself again as one.

pub(super) mod cpu;
mod floor;
mod load;
mod report;
mod servers;
#[cfg(test)]
mod tests;
mod tls;
pub(crate) mod wire;

use super::lab::machine;
use super::progress;
use crate::steps::{Failed, cargo, run as run_step, target_dir};
use floor::Store;
use load::{Connection, Pattern, Window, measure};
use report::{Cell, Row, tables};
use servers::{Place, Server};
use std::fs;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wire::Op;

/// Before a measurement: threads start, caches warm, adaptive parts settle.
const WARM_UP: Duration = Duration::from_millis(200);

/// What explains the numbers, whatever they are this time.
const READING: &str = "
## How to read it

- The floors show how far a promise can be kept here: where a floor itself is not so many times cheaper than
  the best peer, the promise is below what the socket (and the file system) cost in a bare loop.
- **File writes** are one `pwrite` each, and the kernel's part of it is most of the cost. ext4 looks at every
  block of the page cache's folio for each write into it, and a file that was written 64 KiB at a time, as this
  one, has folios of 64 KiB: a plain `pwrite` of 4 KiB took 4.2 us where this page was made first, and 1.8 us in
  a file written 4 KiB at a time. Above \"floor, file\" udm pays for handing writes to a thread, since a write
  into the page cache may block on the disk and a lane must not; the floor simply blocks. Writing through a
  mapping would avoid the `pwrite`, but a full disk would arrive as a signal and a lost page as a fault, and files
  larger than memory would be slower; it is not done.
- **In a file written 4 KiB at a time** (four rounds, same machine, busy) the floor's writes were 2.5 to 3.3 times
  cheaper than nbdkit's, udm's 1.5 to 2.2 times: 1.3 to 1.5 times \"floor, file\", and 2.3 times at write 1x32,
  where batches are small and each wakes the thread and the lane. That part is udm's own to win.
- **One connection at depth 32** depends on what else the machine does. On an idle machine client and server
  take turns to sleep, and waking a sleeping core (in a virtual machine an exit to the host) costs as much as a
  dozen requests; on a busy one neither sleeps, and udm comes near the floor. Read 1x32 on the same machine while
  it was idle (udm before it answered the first requests of a batch early): floor, memory 1.64 us, udm 2.12,
  nbdkit 6.12, so the floor was 3.7 times cheaper than the best peer, and udm 2.9.
- With **four connections** udm can cost less than a floor: it serves them from two lanes in larger batches.
";

/// How to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds; the tables show medians.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Milliseconds of each measurement.
    #[arg(long, default_value_t = 1000, value_name = "MS")]
    window_ms: u64,
    /// Size of each device in MiB.
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    size_mib: u64,
    /// Folder for the files behind the file servers (default: below the build's target folder).
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Measure only servers whose name contains this; may be repeated. `tls` alone is a page of
    /// its own: TLS beside nbdkit's.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Measure only cases whose name contains this ("read 4x", "write 1x32"); may be repeated.
    #[arg(long, value_name = "TEXT")]
    case: Vec<String>,
    /// With `--only tls`: a udm that is built already, instead of a release build.
    #[arg(long, value_name = "PATH")]
    udm: Option<PathBuf>,
    /// Write the tables to this Markdown file.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// A floor server, for the benchmark's own use.
#[derive(clap::Args)]
pub(crate) struct FloorArgs {
    socket: PathBuf,
    size_bytes: u64,
    /// Store what is written.
    #[arg(long)]
    memory: bool,
    /// Read and write this file.
    #[arg(long, conflicts_with = "memory")]
    file: Option<PathBuf>,
}

/// Serves as the floor until it is killed.
pub(crate) fn run_floor(args: &FloorArgs) -> Result<(), Failed> {
    let listener = UnixListener::bind(&args.socket).map_err(Failed::to("listen"))?;
    let store = match &args.file {
        Some(path) => {
            let file = fs::File::options().read(true).write(true).open(path);
            Store::File(file.map_err(Failed::to("open the file"))?)
        }
        None if args.memory => Store::Memory,
        None => Store::Block,
    };
    floor::serve(&listener, args.size_bytes, store).map_err(Failed::to("serve"))
}

/// Measures everything and prints it.
pub(crate) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    if args.only == ["tls"] {
        let Args { rounds, window_ms, size_mib, case, udm, .. } = args;
        let (rounds, window_ms, size_mib) = (*rounds, *window_ms, *size_mib);
        let order = tls::Order { udm: udm.as_ref(), rounds, window_ms, size_mib, case };
        return publish(root, args, &tls::page(root, &order)?);
    }
    if cfg!(debug_assertions) {
        let mut command = cargo(&["run", "--quiet", "--release", "--package", "xtask", "--"]);
        command.args(std::env::args_os().skip(1));
        return run_step(root, &mut command);
    }
    let udm = target_dir(root).join("release/udm");
    if wanted("udm, memory", args) || wanted("udm, file", args) {
        run_step(root, &mut cargo(&["build", "--quiet", "--release", "--package", "udm"]))?;
    }
    let scratch = std::env::temp_dir().join(format!("udm-bench-{}", std::process::id()));
    let files = args.dir.clone().unwrap_or_else(|| target_dir(root).join("bench-nbd"));
    for folder in [&scratch, &files] {
        fs::create_dir_all(folder).map_err(Failed::to(format!("make {}", folder.display())))?;
    }
    let size_bytes = args.size_mib << 20;
    let place = Place { scratch: &scratch, files: &files, udm: &udm, size_bytes };
    let result = measure_all(&place, args);
    // Both folders are ours; what cannot be removed is named by the operating system's cleaner.
    let _removed = fs::remove_dir_all(&scratch);
    let _removed = fs::remove_dir_all(&files);
    publish(root, args, &result?)
}

/// Prints a page, and writes it where it was asked for.
fn publish(root: &Path, args: &Args, text: &str) -> Result<(), Failed> {
    println!("{text}");
    if let Some(page) = &args.write {
        let page = root.join(page);
        if let Some(folder) = page.parent() {
            fs::create_dir_all(folder).map_err(Failed::to("make the page's folder"))?;
        }
        fs::write(&page, text).map_err(Failed::to(format!("write {}", page.display())))?;
    }
    Ok(())
}

fn wanted(name: &str, args: &Args) -> bool {
    is_named(name, &args.only)
}

fn is_named(name: &str, parts: &[String]) -> bool {
    parts.is_empty() || parts.iter().any(|part| name.contains(part.as_str()))
}

fn patterns() -> Vec<(String, Pattern)> {
    let mut patterns = Vec::new();
    for (op, name) in [(Op::Read, "read"), (Op::Write, "write")] {
        for connections in [1, 4] {
            for depth in [32, 128] {
                let pattern = Pattern { op, depth, connections };
                patterns.push((format!("{name} {connections}x{depth}"), pattern));
            }
        }
    }
    patterns
}

fn measure_all(place: &Place<'_>, args: &Args) -> Result<String, Failed> {
    let mut running = Vec::new();
    for spec in servers::all(place)?.into_iter().filter(|spec| wanted(spec.name, args)) {
        if let Some(server) = Server::start(spec)? {
            let filled = Connection::open(server.socket(), server.export())
                .and_then(|mut connection| connection.fill().and_then(|()| connection.close()));
            filled.map_err(Failed::to(format!("fill {}", server.spec.name)))?;
            running.push(server);
        }
    }
    let mut patterns = patterns();
    patterns.retain(|(name, _)| is_named(name, &args.case));
    let mut cells = vec![vec![Cell::default(); patterns.len()]; running.len()];
    let mut peaks = vec![(0, 0); running.len()];
    for round in 1..=args.rounds {
        for (case, (name, pattern)) in patterns.iter().enumerate() {
            for ((server, cells), peak) in running.iter().zip(&mut cells).zip(&mut peaks) {
                let server_name = server.spec.name;
                progress(&format!("round {round} of {}, {name}, {server_name}", args.rounds));
                let window = measure_one(server, pattern, args, peak);
                let what = format!("measure {name} of {server_name}");
                cells[case].push(window.map_err(Failed::to(what))?);
            }
        }
    }
    progress("");
    let mut rows = Vec::new();
    for ((server, cells), peak) in running.iter().zip(cells).zip(peaks) {
        let (name, backing, role) = (server.spec.name, server.spec.backing, server.spec.role);
        let (rss_mib, threads) = peak;
        rows.push(Row { name, backing, role, cells, rss_mib, threads });
    }
    let names: Vec<String> = patterns.into_iter().map(|(name, _)| name).collect();
    Ok(format!("{}{}{READING}", introduction(args), tables(&names, &rows)))
}

/// One window; `peak` takes the most memory (MiB) and threads seen.
fn measure_one(
    server: &Server,
    pattern: &Pattern,
    args: &Args,
    peak: &mut (u64, u64),
) -> io::Result<Window> {
    let times = (WARM_UP, Duration::from_millis(args.window_ms));
    measure(server.socket(), server.export(), pattern, times, || {
        let (rss_mib, threads) = cpu::size(server.pid())?;
        *peak = (peak.0.max(rss_mib), peak.1.max(threads));
        cpu::seconds(server.pid())
    })
}

fn introduction(args: &Args) -> String {
    format!(
        "# NBD servers side by side\n\n\
         Written by `cargo xtask bench nbd --write docs/benchmarks/nbd.md`: 4 KiB random I/O over \
         a unix socket,\nour own load client, device of {} MiB written once before, medians of {} \
         interleaved rounds of {} ms.\nCPU is that of all threads of the server's process, in user \
         and kernel. \"read 4x32\" is reads on\n4 connections with 32 requests outstanding on \
         each. A floor is a bare single-threaded loop\n(`xtask/src/bench/nbd/\
         floor.rs`): \"floor, one block\" answers every read from one cached block and\nthrows writes \
         away, \"floor, memory\" really stores, \"floor, file\" makes a pread or a pwrite for\neach \
         request, right in its loop. Files are in the page cache.\n\n\
         {}",
        args.size_mib,
        args.rounds,
        args.window_ms,
        machine()
    )
}
