//! One life: a daemon, a disk below, a mounted file system, workloads, and what disturbs them.
//!
//! The story begins lives and ends them with a crash. Meanwhile a life disturbs itself: messages to
//! the volume, trims, swaps to tables with other arguments, longer and shorter tables, shrinks, a
//! disk that grows.
//!
//! Rules. A change is begun, not done: the story cuts the power while udm's verb is under way, and
//! asks for its end later (`Life::check`). None of them may be noticed by a workload.
//!
//! The tricky case is the promise of a device that writes through: it holds when the daemon dies
//! only if every table of the life wrote through.

use super::disk::RecordedDisk;
use super::front::Front;
use super::load::{Ledgers, Load};
use super::outside::run;
use super::server::{Server, Shared};
use crate::soak::chaos::Random;
use crate::soak::daemon::Daemon;
use crate::soak::pause;
use crate::steps::Failed;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Name of the device.
pub(super) const DEVICE: &str = "volume";
/// The disk: small, so that the cleaner works all the time; and how far it grows.
pub(super) const DISK_BYTES: u64 = 24 << 20;
const DISK_BYTES_MAX: u64 = 30 << 20;
/// The device: larger than its disk; and how far it grows.
pub(super) const LEN_SECTORS: u64 = (36 << 20) / 512;
const LEN_SECTORS_MAX: u64 = (48 << 20) / 512;

/// Arguments of the table; one line of them for each life.
pub(super) const ARGUMENTS: [&str; 6] = [
    "writethrough",
    "delta_mb 1",
    "compressor zstd:1 delta_mb 1",
    "compressor none cache_mb 1",
    "writeback 3 no_discard_passdown",
    "writethrough compressor zstd max_extent 3",
];

/// A table over this disk with these arguments.
pub(super) fn table_line(len_sectors: u64, below: &str, arguments: &str) -> String {
    let count = arguments.split(' ').count();
    format!("0 {len_sectors} compress {below} {count} {arguments}")
}

/// A life.
pub(super) struct Life {
    // They end in this order: nobody waits for something that has ended before.
    load: Load,
    front: Front,
    change: Option<Child>,
    daemon: Daemon,
    server: Option<Server>,
    dir: PathBuf,
    root: PathBuf,
    image: String,
    /// The disk as a table names it.
    below: String,
    arguments: &'static str,
    is_written_through: bool,
    len_sectors: u64,
    /// Changes begun.
    pub(super) changes: u64,
}

/// What a life begins with.
pub(super) struct Begin<'a> {
    pub(super) udm: &'a Path,
    pub(super) dir: &'a Path,
    /// The disk, a file; or that one below, in its place.
    pub(super) image: String,
    pub(super) recorded: Option<RecordedDisk>,
    pub(super) ledgers: &'a Arc<Ledgers>,
    /// Its number; before life 0 there is no file system.
    pub(super) nr: u64,
}

impl Life {
    /// Begins a life; what earlier ones promised is there on the device.
    pub(super) fn begin(begin: Begin<'_>, random: &mut Random) -> Result<Life, Failed> {
        let Begin { udm, dir, image, recorded, ledgers, nr } = begin;
        let (below, server) = match recorded {
            None => (image.clone(), None),
            Some(disk) => {
                let server = Server::start(disk, &dir.join("disk.sock"), random.below(u64::MAX))?;
                (below_recorded(dir), Some(server))
            }
        };
        let daemon = Daemon::start(udm, dir)?;
        let arguments = ARGUMENTS[random.below(ARGUMENTS.len() as u64) as usize];
        daemon.udm(&["create", DEVICE, "--table", &table_line(LEN_SECTORS, &below, arguments)])?;
        // The kernel may keep the socket of a killed daemon open for a while.
        let address = format!("unix:{}", dir.join(format!("front-{nr}.sock")).display());
        let uri = daemon.udm(&["export", DEVICE, "--nbd", &address])?.trim().to_owned();
        let mut front = Front::open(dir, &uri)?;
        if nr == 0 {
            make_file_system(dir, &front)?;
        }
        let root = front.mount()?;
        if nr > 0 {
            ledgers.lock().iter_mut().try_for_each(|ledger| ledger.settle(&root))?;
        }
        Ok(Life {
            load: Load::start(ledgers, &root, random.below(u64::MAX)),
            front,
            change: None,
            daemon,
            server,
            dir: dir.to_owned(),
            root,
            image,
            below,
            arguments,
            is_written_through: arguments.contains("writethrough"),
            len_sectors: LEN_SECTORS,
            changes: 0,
        })
    }

    /// The recorded disk.
    pub(super) fn disk(&self) -> Option<Arc<Shared>> {
        self.server.as_ref().map(|server| Arc::clone(&server.shared))
    }

    /// Whether whatever a workload was told stays when only the daemon dies.
    pub(super) fn is_written_through(&self) -> bool {
        self.is_written_through
    }

    /// Some time, then something that may be under way when this returns.
    pub(super) fn disturb(&mut self, random: &mut Random) -> Result<(), Failed> {
        pause(Duration::from_millis(10 + random.below(400)));
        let message = |words: &[&str]| {
            self.daemon.udm(&[&["message", DEVICE, "0"], words].concat()).map(drop)
        };
        match random.below(12) {
            0 => message(&["checkpoint"])?,
            1 => message(&["gc", "2"])?,
            2 => message(&["scrub"])?,
            3 => message(&["shrink"])?,
            4 => run(&self.dir, &["fstrim", &self.root.display().to_string()]).map(drop)?,
            5 | 6 => {
                self.swap(LEN_SECTORS + random.below(LEN_SECTORS_MAX - LEN_SECTORS), random)?
            }
            7 => self.swap(LEN_SECTORS, random)?,
            8 => self.grow_disk(random)?,
            _ => {}
        }
        pause(Duration::from_millis(random.below(25)));
        Ok(())
    }

    /// Begins to swap to a table of this length with other arguments.
    fn swap(&mut self, len_sectors: u64, random: &mut Random) -> Result<(), Failed> {
        self.arguments = ARGUMENTS[random.below(ARGUMENTS.len() as u64) as usize];
        self.is_written_through &= self.arguments.contains("writethrough");
        self.len_sectors = len_sectors;
        let table = table_line(len_sectors, &self.below, self.arguments);
        self.daemon.udm(&["load", DEVICE, "--table", &table])?;
        let resume = match random.below(2) {
            0 => &["resume", DEVICE][..],
            _ => &["resume", "--noflush", DEVICE],
        };
        self.change = Some(self.daemon.start_verb(resume)?);
        self.changes += 1;
        Ok(())
    }

    /// The file grows, and the next table uses it. The recorded disk cannot.
    fn grow_disk(&mut self, random: &mut Random) -> Result<(), Failed> {
        if self.server.is_none() {
            let file = fs::File::options().write(true).open(&self.image);
            let file = file.map_err(Failed::to("open the disk"))?;
            let len_bytes = file.metadata().map_err(Failed::to("ask for a length"))?.len();
            let len_bytes = (len_bytes + (random.below(3) << 20)).min(DISK_BYTES_MAX);
            file.set_len(len_bytes).map_err(Failed::to("grow the disk"))?;
        }
        self.swap(self.len_sectors, random)
    }

    /// Fails if a workload or the daemon has ended, or a change has failed.
    pub(super) fn check(&mut self) -> Result<(), Failed> {
        if let Some(change) = self.change.take() {
            let output = change.wait_with_output().map_err(Failed::to("wait for udm"))?;
            if !output.status.success() {
                let why = String::from_utf8_lossy(&output.stderr);
                return Err(Failed::new(format!("a swap to {}: {why}", self.arguments)));
            }
        }
        self.check_load()
    }

    /// Fails if a workload or the daemon has ended.
    pub(super) fn check_load(&mut self) -> Result<(), Failed> {
        self.load.check()?;
        self.daemon.check_alive()
    }

    /// SIGKILL; what the workloads have done in steps.
    pub(super) fn kill(self) -> u64 {
        let Life { mut load, mut front, change, daemon, server, .. } = self;
        drop(daemon);
        front.cut_off();
        // It ends with an error, as its disk is gone; if not, it was between two steps.
        let _ended = load.finish();
        // The verb lost its daemon in the middle, or was through.
        let _told = change.map(Child::wait_with_output);
        drop((front, server));
        load.steps.load(Ordering::Relaxed)
    }
}

/// A file with a new volume.
pub(super) fn format(
    udm: &Path,
    dir: &Path,
    image: &Path,
    disk_bytes: u64,
    len_sectors: u64,
) -> Result<(), Failed> {
    let made = fs::File::create(image).and_then(|file| file.set_len(disk_bytes));
    made.map_err(Failed::to("make the disk"))?;
    let (udm, image) = (udm.display().to_string(), image.display().to_string());
    let size = (len_sectors * 512).to_string();
    run(dir, &[&udm, "compress", "format", &image, "--size", &size]).map(drop)
}

/// The recorded disk as a table names it.
pub(super) fn below_recorded(dir: &Path) -> String {
    format!("nbd+unix:///?socket={}", dir.join("disk.sock").display())
}

/// An ext4 on the whole device, with a journal of its own size.
pub(super) fn make_file_system(dir: &Path, front: &Front) -> Result<(), Failed> {
    let words =
        ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=0", front.device()];
    run(dir, &words).map(drop)
}
