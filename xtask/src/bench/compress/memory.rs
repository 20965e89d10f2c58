//! Memory: what the daemon takes for a device of 1 TiB, idle and under the worst load.
//!
//! A sparse file of 1 TiB with a volume of 1 TiB on it, and random writes over all of it through
//! NBD, as fast as they go: every write is a change of the map in a page of its own, which is what
//! takes most memory. Resident memory of the process is looked at all the time.
//!
//! The tricky case is a file system that cannot hold such a file; then the part is left out. What
//! the load really writes is some gigabytes, in holes.

use super::corpus::must;
use super::{Bench, fio};
use crate::bench::lab::Fio;
use crate::bench::nbd::cpu;
use crate::bench::progress;
use crate::soak::daemon::Daemon;
use crate::soak::{pause, wait_until};
use crate::steps::Failed;
use std::fs::{self, File};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const LOGICAL_BYTES: u64 = 1 << 40;
/// Seconds of load for each second that was asked for: changes have to gather.
const LOAD_FACTOR: f64 = 60.0;
const IDLE_BAR_MIB: u64 = 64;
const LOAD_BAR_MIB: u64 = 256;
/// A checkpoint over a slow disk.
const CHECKPOINT_MAX: Duration = Duration::from_secs(300);

pub(super) fn run(bench: &Bench<'_>) -> Result<String, Failed> {
    if !bench.has(&["fio"], "memory under load") {
        return Ok(String::new());
    }
    let disk = bench.dir.join("tib.img");
    let made = File::create(&disk).and_then(|file| file.set_len(LOGICAL_BYTES));
    if made.is_err() {
        println!("no file of 1 TiB can be made here; left out: memory");
        return Ok(String::new());
    }
    let outcome = measure(bench, &disk.display().to_string());
    let _removed = fs::remove_file(&disk);
    outcome
}

fn measure(bench: &Bench<'_>, disk: &str) -> Result<String, Failed> {
    must(Command::new(&bench.udm).args(["compress", "format", disk, "--size", "1T"]))?;
    let daemon = Daemon::start(&bench.udm, &bench.dir)?;
    let sectors = LOGICAL_BYTES / 512;
    daemon.udm(&["create", "tib", "--table", &format!("0 {sectors} compress {disk}")])?;
    let address = format!("unix:{}", bench.dir.join("tib.sock").display());
    let uri = daemon.udm(&["export", "tib", "--nbd", &address])?.trim().to_owned();
    let rss_mib = || cpu::size(daemon.pid()).map(|(rss_mib, _threads)| rss_mib);
    let idle_mib = rss_mib().map_err(Failed::to("read the daemon's memory"))?;
    progress("memory: load");
    let (peak_mib, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let loaded = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                peak_mib.fetch_max(rss_mib().unwrap_or(0), Ordering::Relaxed);
                pause(Duration::from_millis(100));
            }
        });
        let loaded = load(bench, &uri);
        is_over.store(true, Ordering::Relaxed);
        loaded
    })?;
    let (changes, counted) = (stat(&daemon, "changes")?, stat(&daemon, "memory_bytes")?);
    let before = stat(&daemon, "checkpoints")?;
    // Nobody asks for it: it makes one when it has been quiet for a while.
    wait_until("a checkpoint", CHECKPOINT_MAX, || Ok(stat(&daemon, "checkpoints")? > before))?;
    // An allocator gives memory back in time, when it is asked for something.
    for _look in 0..10 {
        pause(Duration::from_secs(1));
        stat(&daemon, "changes")?;
    }
    let after_mib = rss_mib().map_err(Failed::to("read the daemon's memory"))?;
    progress("");
    let verdict = |mib: u64, bar: u64| if mib <= bar { "yes" } else { "no" };
    let peak_mib = peak_mib.into_inner();
    Ok(format!(
        "\n## Memory\n\nResident memory of the daemon with one volume of 1 TiB on a sparse file, default settings; the load is \
        random 4 KiB writes over all of it through NBD, depth 64, for {:.0} s ({:.0} a second; at its end {changes} \
        changes were not in the map, the volume counted {} MiB, and {before} checkpoints had been made).\n\n| when | MiB | \
        bar | kept |\n|---|--:|--:|---|\n| idle, just created | {idle_mib} | {IDLE_BAR_MIB} | {} |\n| most under load | \
        {peak_mib} | {LOAD_BAR_MIB} | {} |\n| idle, 10 s after the checkpoint that it makes when it is quiet | {after_mib} | {IDLE_BAR_MIB} | {} |\n",
        bench.seconds * LOAD_FACTOR,
        loaded.iops,
        counted >> 20,
        verdict(idle_mib, IDLE_BAR_MIB),
        verdict(peak_mib, LOAD_BAR_MIB),
        verdict(after_mib, IDLE_BAR_MIB),
    ))
}

fn load(bench: &Bench<'_>, uri: &str) -> Result<Fio, Failed> {
    let runtime = bench.runtime(LOAD_FACTOR);
    let words = ["--rw=randwrite", "--iodepth=64", "--norandommap", "--size=1T", &runtime];
    fio(bench, uri, &[&words[..], &["--buffer_compress_percentage=50"]].concat())
}

/// A number of the target's `stats`.
fn stat(daemon: &Daemon, name: &str) -> Result<u64, Failed> {
    let text = daemon.udm(&["message", "tib", "0", "stats"])?;
    let mut words = text.split_whitespace();
    let found = words.by_ref().find(|word| *word == name).and_then(|_| words.next());
    let number = found.and_then(|number| number.parse().ok());
    number.ok_or_else(|| Failed::new(format!("the stats have no {name}")))
}
