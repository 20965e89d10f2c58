//! Lives: a daemon, a mounted file system, workloads, crashes; and the next one on what is left.
//!
//! Between two lives the disk is a file, `disk.img`. A life over the recorded disk takes it into
//! memory and puts what is left of it back; a life over the file has it below directly.
//!
//! Rules. A life ends in one of three ways (`End`), and what it leaves is the truth: the judge
//! looks at a copy of it, and the next life looks again, through the device and the kernel. A life
//! that ends otherwise is a finding.
//!
//! The tricky case is the last cut of a life: the disk is copied, switched off and the ledgers are
//! copied under both locks at once, so nothing that happened later counts.

use super::Args;
use super::disk::RecordedDisk;
use super::front::Front;
use super::judge::Judge;
use super::ledger::Ledger;
use super::load::{Ledgers, Load};
use super::outside::run;
use super::server::{Server, Shared};
use crate::soak::chaos::Random;
use crate::soak::daemon::Daemon;
use crate::soak::{pause, wait_until};
use crate::steps::Failed;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Name of the device.
pub(super) const DEVICE: &str = "volume";
/// The disk: small, so that the log goes round and round.
const DISK_BYTES: u64 = 28 << 20;
/// The device: larger than its disk.
pub(super) const LEN_SECTORS: u64 = (36 << 20) / 512;
/// Workloads side by side.
pub(super) const WORKLOADS: u64 = 2;
/// Power cuts of a life, at most.
const CUTS_MAX: u64 = 8;
/// How long a dead daemon's disk may stay in use: until the kernel has ended its ring.
const RELEASE_MAX: Duration = Duration::from_secs(20);

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

/// How often each thing was done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    lives: u64,
    /// Power cuts that a life went on after, and those that ended one.
    cuts: u64,
    last_cuts: u64,
    /// Kills of the daemon over a file, and over the recorded disk.
    kills_file: u64,
    kills_recorded: u64,
    steps: u64,
}

impl Counts {
    fn crashes(&self) -> u64 {
        self.cuts + self.last_cuts + self.kills_file + self.kills_recorded
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { lives, cuts, last_cuts, kills_file, kills_recorded, steps } = self;
        write!(
            f,
            "{} crashes judged, nothing lost: {} power cuts ({last_cuts} of them ended a life), \
             kill -9 {kills_file} times over a file and {kills_recorded} over the recorded disk; \
             {lives} lives, {steps} steps of the workloads",
            self.crashes(),
            cuts + last_cuts
        )
    }
}

/// Crashes so often, and judges each time.
pub(super) fn crashes(udm: &Path, dir: &Path, args: &Args) -> Result<Counts, Failed> {
    let mut story = Story {
        udm: udm.to_owned(),
        dir: dir.to_owned(),
        judge: Judge::start(udm, dir)?,
        random: Random::new(args.seed),
        is_lying: args.lying_disk,
        ledgers: Arc::new(Ledgers::new(WORKLOADS)),
        counts: Counts::default(),
    };
    format(udm, dir, Path::new(&story.image()), DISK_BYTES, LEN_SECTORS)?;
    while story.counts.crashes() < args.kills {
        story.live(args.kills)?;
        story.counts.lives += 1;
        if story.counts.lives.is_multiple_of(10) {
            println!("{}", story.counts);
        }
    }
    Ok(story.counts)
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    KillOverFile,
    KillOverRecorded,
    PowerCut,
}

struct Story {
    udm: PathBuf,
    dir: PathBuf,
    judge: Judge,
    random: Random,
    ledgers: Arc<Ledgers>,
    counts: Counts,
    is_lying: bool,
}

impl Story {
    /// The disk between lives.
    fn image(&self) -> String {
        self.dir.join("disk.img").display().to_string()
    }

    fn live(&mut self, kills: u64) -> Result<(), Failed> {
        let end = match self.random.below(5) {
            0 => End::KillOverFile,
            1 | 2 => End::KillOverRecorded,
            _ => End::PowerCut,
        };
        let arguments = ARGUMENTS[self.random.below(ARGUMENTS.len() as u64) as usize];
        let told = format!("life {}, {arguments}, {end:?}", self.counts.lives);
        self.live_so(end, arguments, kills)
            .map_err(|failed| Failed::new(format!("{told}: {failed}")))
    }

    fn live_so(&mut self, end: End, arguments: &str, kills: u64) -> Result<(), Failed> {
        let server = match end {
            End::KillOverFile => None,
            End::KillOverRecorded | End::PowerCut => {
                let bytes = fs::read(self.image()).map_err(Failed::to("read the disk"))?;
                let socket = self.dir.join("disk.sock");
                let seed = self.random.below(u64::MAX);
                let mut disk = RecordedDisk::new(bytes);
                disk.is_lying = self.is_lying;
                Some(Server::start(disk, &socket, seed)?)
            }
        };
        let below = match &server {
            None => self.image(),
            Some(_) => below_recorded(&self.dir),
        };
        let mut daemon = Daemon::start(&self.udm, &self.dir)?;
        let table = table_line(LEN_SECTORS, &below, arguments);
        daemon.udm(&["create", DEVICE, "--table", &table])?;
        let address = format!("unix:{}", self.dir.join("front.sock").display());
        let uri = daemon.udm(&["export", DEVICE, "--nbd", &address])?.trim().to_owned();
        let mut front = Front::open(&self.dir, &uri)?;
        if self.counts.lives == 0 {
            make_file_system(&self.dir, &front)?;
        }
        let root = front.mount()?;
        if self.counts.lives > 0 {
            // What the judge saw in a copy is there on the device, too.
            self.ledgers.lock().iter_mut().try_for_each(|ledger| ledger.settle(&root))?;
        }
        let mut load = Load::start(&self.ledgers, &root, self.random.below(u64::MAX));
        let shared = server.as_ref().map(|server| Arc::clone(&server.shared));
        let cuts_max = if shared.is_some() { CUTS_MAX } else { 3 };
        let cuts = self.random.below(cuts_max).min(kills - self.counts.crashes());
        for _ in 0..cuts {
            self.disturb(&daemon, &root)?;
            load.check()?;
            daemon.check_alive()?;
            if let Some(shared) = &shared {
                self.cut(shared)?;
            }
        }
        self.disturb(&daemon, &root)?;
        load.check()?;
        let last = match (end, &shared) {
            (End::PowerCut, Some(shared)) => Some(self.moment(shared, true)),
            (End::PowerCut | End::KillOverFile | End::KillOverRecorded, _) => None,
        };
        drop(daemon);
        front.cut_off();
        // It ends with an error, as its disk is gone; if not, it was between two steps.
        let _ended = load.finish();
        self.counts.steps += load.steps.load(Ordering::Relaxed);
        drop(front);
        let left = match last {
            Some((left, ledgers)) => {
                self.counts.last_cuts += 1;
                *self.ledgers.lock() = ledgers;
                left
            }
            None => self.after_kill(arguments, shared.as_deref())?,
        };
        self.take_stock(&left, end)
    }

    /// Some time, and sometimes a message to the volume or a trim.
    fn disturb(&mut self, daemon: &Daemon, root: &Path) -> Result<(), Failed> {
        pause(Duration::from_millis(10 + self.random.below(500)));
        match self.random.below(10) {
            0 => daemon.udm(&["message", DEVICE, "0", "checkpoint"]),
            1 => daemon.udm(&["message", DEVICE, "0", "gc", "2"]),
            2 => daemon.udm(&["message", DEVICE, "0", "scrub"]),
            3 => run(&self.dir, &["fstrim", &root.display().to_string()]),
            _ => return Ok(()),
        }
        .map(drop)?;
        pause(Duration::from_millis(self.random.below(20)));
        Ok(())
    }

    /// A power cut that the life does not notice.
    fn cut(&mut self, shared: &Shared) -> Result<(), Failed> {
        let (left, mut ledgers) = self.moment(shared, false);
        self.counts.cuts += 1;
        self.judge.judge(&left, LEN_SECTORS, &mut ledgers)
    }

    /// A legal state of the disk, and what is known at the same moment. With `is_last` the disk
    /// does nothing any more.
    fn moment(&mut self, shared: &Shared, is_last: bool) -> (Vec<u8>, Vec<Ledger>) {
        let ledgers = self.ledgers.lock();
        let mut disk = shared.disk();
        disk.is_off |= is_last;
        (disk.after_cut(&mut self.random), ledgers.clone())
    }

    /// What a killed daemon has left on the disk.
    fn after_kill(&mut self, arguments: &str, shared: Option<&Shared>) -> Result<Vec<u8>, Failed> {
        if arguments.contains("writethrough") {
            self.ledgers.lock().iter_mut().for_each(Ledger::keep_written);
        }
        match shared {
            Some(shared) => {
                self.counts.kills_recorded += 1;
                Ok(shared.disk().after_death(&mut self.random))
            }
            None => {
                self.counts.kills_file += 1;
                let image = self.image();
                wait_until("the disk is free", RELEASE_MAX, || match self.judge.check(&image) {
                    Ok(()) => Ok(true),
                    Err(failed) if failed.to_string().contains("in use") => Ok(false),
                    Err(failed) => Err(failed),
                })?;
                fs::read(&image).map_err(Failed::to("read the disk"))
            }
        }
    }

    /// The disk a life left, and what is true from now on.
    fn take_stock(&mut self, left: &[u8], end: End) -> Result<(), Failed> {
        if end != End::KillOverFile {
            fs::write(self.image(), left).map_err(Failed::to("keep the disk"))?;
        }
        let mut ledgers = self.ledgers.lock().clone();
        self.judge.judge(left, LEN_SECTORS, &mut ledgers)
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
