//! Suspends, resumes, swaps and resizes under an ext4 that is busy, and a disk that stalls.
//!
//! Nobody is killed here, so nothing may be noticed above: no error of a workload, and at the end
//! every file is exactly what was written last, e2fsck and `udm compress check` are clean. Half of
//! the changes run over a file, which grows; the other half over the recorded disk, which stalls
//! now and then: a suspend with a deadline ends by it then, and the device runs on.
//!
//! Rules. A change that fails is a finding, but for one that is given up at its deadline while the
//! disk stalls. A change is done when udm's verb has ended; the next one comes at once or a little
//! later.
//!
//! The tricky case is a shorter table: it never ends before the file system's end, so that what
//! lies behind is nobody's.

use super::disk::RecordedDisk;
use super::front::Front;
use super::judge::Judge;
use super::ledger::Ledger;
use super::life::{ARGUMENTS, DEVICE, below_recorded, format, make_file_system, table_line};
use super::load::{Ledgers, Load};
use super::server::{Server, Shared};
use crate::soak::chaos::Random;
use crate::soak::daemon::Daemon;
use crate::soak::pause;
use crate::steps::Failed;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The disk at the begin, and how far it grows.
const DISK_BYTES: u64 = 96 << 20;
const DISK_BYTES_MAX: u64 = 160 << 20;
/// The device at the begin, and how far it grows; the file system fills the first size.
const LEN_SECTORS: u64 = (128 << 20) / 512;
const LEN_SECTORS_MAX: u64 = (256 << 20) / 512;
/// Workloads side by side.
const WORKLOADS: u64 = 8;
/// What a change may take longer than its deadline: a program starts and asks. On a machine that
/// has too much to do, it may take so many times what a verb takes that only asks.
const GRACE: Duration = Duration::from_millis(1000);
const GRACE_VERBS: u32 = 6;

/// How often each thing was done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    suspends: u64,
    swaps: u64,
    longer: u64,
    shorter: u64,
    shrinks: u64,
    disk_growths: u64,
    messages: u64,
    /// Over a stalled disk: given up by their deadline, and gone through before it.
    given_up: u64,
    gone_through: u64,
    /// How much later than its deadline the slowest of them ended.
    latest: Duration,
    steps: u64,
    ios: u64,
}

impl Counts {
    fn changes(&self) -> u64 {
        let Counts { suspends, swaps, longer, shorter, shrinks, disk_growths, messages, .. } = self;
        let calm = suspends + swaps + longer + shorter + shrinks + disk_growths + messages;
        calm + self.given_up + self.gone_through
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { suspends, swaps, longer, shorter, shrinks, disk_growths, messages, .. } = self;
        write!(
            f,
            "{} changes under load, nothing lost, no error seen: {suspends} suspends and resumes, \
             {swaps} swaps, {longer} longer and {shorter} shorter tables, {shrinks} shrinks, \
             {disk_growths} growths of the disk, {messages} messages; over a stalled disk {} given \
             up and {} gone through, at most {} ms after their deadline; {} steps of the \
             workloads, {} I/Os",
            self.changes(),
            self.given_up,
            self.gone_through,
            self.latest.as_millis(),
            self.steps,
            self.ios
        )
    }
}

/// Changes the device so often, and looks at what is there in the end.
pub(super) fn run(udm: &Path, dir: &Path, seed: u64, changes: u64) -> Result<Counts, Failed> {
    let mut counts = Counts::default();
    for (is_recorded, until) in [(false, changes / 2), (true, changes)] {
        let image = dir.join("changes.img");
        format(udm, dir, &image, DISK_BYTES, LEN_SECTORS)?;
        let server = match is_recorded {
            true => {
                let bytes = fs::read(&image).map_err(Failed::to("read the disk"))?;
                Some(Server::start(RecordedDisk::new(bytes), &dir.join("disk.sock"), seed)?)
            }
            false => None,
        };
        let random = Random::new(seed ^ u64::from(is_recorded) << 50);
        let below = match is_recorded {
            true => below_recorded(dir),
            false => image.display().to_string(),
        };
        let daemon = Daemon::start(udm, dir)?;
        daemon.udm(&[
            "create",
            DEVICE,
            "--table",
            &table_line(LEN_SECTORS, &below, ARGUMENTS[0]),
        ])?;
        let shared = server.as_ref().map(|server| Arc::clone(&server.shared));
        let (dir, len_sectors) = (dir.to_owned(), LEN_SECTORS);
        let mut story = Story { dir, daemon, image, below, shared, random, counts, len_sectors };
        let ledgers = story.abuse(seed, until)?;
        counts = story.counts;
        story.look(udm, ledgers)?;
    }
    Ok(counts)
}

struct Story {
    dir: PathBuf,
    daemon: Daemon,
    image: PathBuf,
    /// The disk as a table names it.
    below: String,
    shared: Option<Arc<Shared>>,
    random: Random,
    counts: Counts,
    /// Of the live table.
    len_sectors: u64,
}

impl Story {
    /// Changes under load until so many are counted; what has to be there now.
    fn abuse(&mut self, seed: u64, until: u64) -> Result<Vec<Ledger>, Failed> {
        let address = format!("unix:{}", self.dir.join("front.sock").display());
        let uri = self.daemon.udm(&["export", DEVICE, "--nbd", &address])?.trim().to_owned();
        let mut front = Front::open(&self.dir, &uri)?;
        make_file_system(&self.dir, &front)?;
        let root = front.mount()?;
        let ledgers = Arc::new(Ledgers::new(WORKLOADS));
        let mut load = Load::start(&ledgers, &root, seed);
        while self.counts.changes() < until {
            self.change().map_err(|failed| {
                Failed::new(format!("change {}: {failed}", self.counts.changes()))
            })?;
            load.check()?;
            self.daemon.check_alive()?;
            pause(Duration::from_millis(self.random.below(30)));
        }
        load.finish()?;
        self.counts.steps += load.steps.load(Ordering::Relaxed);
        front.close()?;
        let done = self.daemon.done(DEVICE)?;
        self.counts.ios += done.ios;
        if done.errors + done.breaches > 0 {
            return Err(Failed::new(format!("the device counted errors: {done:?}")));
        }
        let mut known = ledgers.lock().clone();
        known.iter_mut().for_each(Ledger::promise_all);
        Ok(known)
    }

    fn change(&mut self) -> Result<(), Failed> {
        match self.random.below(100) {
            0..25 => self.suspend_and_resume(),
            25..50 => self.swap(self.len_sectors).map(|()| self.counts.swaps += 1),
            50..62 => {
                let room = LEN_SECTORS_MAX - self.len_sectors;
                let len_sectors = self.len_sectors + self.random.below(room.min(16_384) + 1);
                self.swap(len_sectors).map(|()| self.counts.longer += 1)
            }
            62..72 => self.shorter(),
            72..80 => self.grow_disk(),
            80..88 => self.message(),
            _ => self.stalled(),
        }
    }

    /// `--noflush` or not.
    fn how(&mut self, verb: &'static str) -> Vec<&'static str> {
        match self.random.below(2) {
            0 => vec![verb, DEVICE],
            _ => vec![verb, "--noflush", DEVICE],
        }
    }

    fn suspend_and_resume(&mut self) -> Result<(), Failed> {
        let suspend = self.how("suspend");
        self.daemon.udm(&suspend)?;
        pause(Duration::from_millis(self.random.below(40)));
        self.daemon.udm(&["resume", DEVICE])?;
        self.counts.suspends += 1;
        Ok(())
    }

    /// A table of this length with other arguments, in place of the live one.
    fn swap(&mut self, len_sectors: u64) -> Result<(), Failed> {
        self.load(len_sectors)?;
        let resume = self.how("resume");
        self.daemon.udm(&resume)?;
        self.len_sectors = len_sectors;
        Ok(())
    }

    fn load(&mut self, len_sectors: u64) -> Result<(), Failed> {
        let arguments = ARGUMENTS[self.random.below(ARGUMENTS.len() as u64) as usize];
        let table = table_line(len_sectors, &self.below, arguments);
        self.daemon.udm(&["load", DEVICE, "--table", &table]).map(drop)
    }

    /// Back to a shorter table, and in half of the cases the volume gives up the rest.
    fn shorter(&mut self) -> Result<(), Failed> {
        let room = self.len_sectors - LEN_SECTORS;
        let len_sectors = LEN_SECTORS + self.random.below(room + 1);
        self.swap(len_sectors)?;
        self.counts.shorter += 1;
        if self.random.below(2) == 0 {
            self.daemon.udm(&["message", DEVICE, "0", "shrink"])?;
            self.counts.shrinks += 1;
        }
        Ok(())
    }

    /// The disk grows; the next table uses it. The recorded disk cannot.
    fn grow_disk(&mut self) -> Result<(), Failed> {
        if self.shared.is_none() {
            let file = File::options().write(true).open(&self.image);
            let file = file.map_err(Failed::to("open the disk"))?;
            let len_bytes = file.metadata().map_err(Failed::to("ask for a length"))?.len();
            let len_bytes = (len_bytes + (self.random.below(5) << 20)).min(DISK_BYTES_MAX);
            file.set_len(len_bytes).map_err(Failed::to("grow the disk"))?;
            self.counts.disk_growths += 1;
        }
        self.swap(self.len_sectors).map(|()| self.counts.swaps += 1)
    }

    fn message(&mut self) -> Result<(), Failed> {
        let words = [&["checkpoint"][..], &["gc", "2"], &["scrub"]][self.random.below(3) as usize];
        self.daemon.udm(&[&["message", DEVICE, "0"], words].concat())?;
        self.counts.messages += 1;
        Ok(())
    }

    /// The disk stalls under load; a suspend, or a swap, with a deadline ends by it.
    fn stalled(&mut self) -> Result<(), Failed> {
        let Some(shared) = self.shared.clone() else { return self.suspend_and_resume() };
        shared.stall(true);
        pause(Duration::from_millis(50 + self.random.below(300)));
        let is_swap = self.random.below(3) == 0;
        if is_swap {
            self.load(self.len_sectors)?;
        }
        let deadline_ms = 50 + self.random.below(400);
        let deadline = format!("{deadline_ms}ms");
        let mut words = self.how(if is_swap { "resume" } else { "suspend" });
        words.extend(["--deadline", &deadline]);
        let begin = Instant::now();
        let ended = self.daemon.udm(&words);
        let late = begin.elapsed().saturating_sub(Duration::from_millis(deadline_ms));
        let begin = Instant::now();
        self.daemon.udm(&["info", DEVICE])?;
        let verb = begin.elapsed();
        shared.stall(false);
        self.counts.latest = self.counts.latest.max(late);
        if late > GRACE + verb * GRACE_VERBS {
            let (late_ms, verb_ms) = (late.as_millis(), verb.as_millis());
            let text = format!("{} ended {late_ms} ms late", words.join(" "));
            return Err(Failed::new(format!("{text}, and `info` took {verb_ms} ms")));
        }
        match ended {
            Ok(_) => self.counts.gone_through += 1,
            Err(failed) if failed.to_string().contains("[UDM-0210]") => self.counts.given_up += 1,
            Err(failed) => return Err(failed),
        }
        // Whatever came of it, the device runs after this; a table that waits goes in.
        self.daemon.udm(&["resume", DEVICE]).map(drop)
    }

    /// What is there is what was written last.
    fn look(self, udm: &Path, mut ledgers: Vec<Ledger>) -> Result<(), Failed> {
        self.daemon.udm(&["unexport", DEVICE])?;
        self.daemon.udm(&["remove", "--retry", DEVICE])?;
        let Story { dir, daemon, image, shared, len_sectors, .. } = self;
        drop(daemon);
        let bytes = match shared {
            Some(shared) => {
                let disk = shared.disk();
                disk.read(0..disk.len_bytes()).to_vec()
            }
            None => fs::read(&image).map_err(Failed::to("read the disk"))?,
        };
        Judge::start(udm, &dir)?.judge(&bytes, len_sectors, &mut ledgers)
    }
}
