//! fio with verification, pass after pass, on a thread of its own.
//!
//! A pass writes its half of the device in random order with flushes in between, then reads all of
//! it back and compares. Each pass has another seed, so data from the pass before is a mismatch. A
//! pass that is under way when the end comes is finished; the first failure ends the thread.

use crate::steps::Failed;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// What to do in each pass.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// The export.
    pub(super) uri: String,
    /// The part of the device.
    pub(super) offset_mib: u64,
    pub(super) size_mib: u64,
    /// For fio's own files.
    pub(super) dir: PathBuf,
}

/// The load.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    passes: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<(), Failed>>>,
}

impl Load {
    pub(super) fn start(order: Order, seed: u64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let passes = Arc::new(AtomicU64::new(0));
        let (told, counted) = (Arc::clone(&stop), Arc::clone(&passes));
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let number = counted.load(Ordering::Relaxed);
                pass(&order, seed + number)?;
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Load { stop, passes, thread: Some(thread) }
    }

    /// Fails if the load has failed; it never ends by itself otherwise.
    pub(super) fn check(&mut self) -> Result<(), Failed> {
        match self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            true => self.finish().map(drop),
            false => Ok(()),
        }
    }

    /// Lets the pass under way end; how many passes were right.
    pub(super) fn finish(&mut self) -> Result<u64, Failed> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| Failed::new("the load's thread panicked"))??;
        }
        Ok(self.passes.load(Ordering::Relaxed))
    }
}

fn pass(order: &Order, seed: u64) -> Result<(), Failed> {
    let output = Command::new("fio")
        .args(arguments(order, seed))
        .current_dir(&order.dir)
        .stdin(Stdio::null())
        .output()
        .map_err(Failed::to("start fio"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    let log = order.dir.join("fio-failed.log");
    // The failure itself is reported; the log is a help.
    let _written = std::fs::write(&log, &text);
    let text = String::from_utf8_lossy(&text);
    let tells = |line: &&str| line.contains("verify") || line.contains("err=");
    let first: Vec<&str> = text.lines().filter(tells).take(4).collect();
    Err(Failed::new(format!("fio: {} (all of it in {})", first.join("; "), shown(&log))))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn arguments(order: &Order, seed: u64) -> Vec<String> {
    let Order { uri, offset_mib, size_mib, .. } = order;
    [
        "--name=soak",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--rw=randwrite",
        "--bsrange=4k-64k",
        "--blockalign=4k",
        &format!("--offset={offset_mib}M"),
        &format!("--size={size_mib}M"),
        "--iodepth=32",
        "--fsync=64",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--verify_dump=0",
        &format!("--randseed={seed}"),
    ]
    .iter()
    .map(|word| (*word).to_owned())
    .collect()
}
