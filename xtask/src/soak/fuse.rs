//! `cargo xtask soak fuse`: kill -9 of a daemon whose device is in use as a file.
//!
//! Writers stamp records of their own with versions through the mounted file, some at whole blocks,
//! some at odd places, and remember what was acknowledged. The daemon is killed at random and
//! started again with its state; writers whose file is dead open it again, as a user has to. After
//! each restart every record has to hold one version, whole: none older than the one acknowledged
//! last, none that was never written. How long writers stood still is printed.
//!
//! The tricky case is a writer between two lives of the daemon: where the file was mounted there is
//! an empty file for a moment. A file is taken for the device only if it has its size.

use super::chaos::Random;
use super::{pause, wait_until};
use crate::steps::{Failed, release_udm};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How to soak.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often the daemon is killed.
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// Seed of the actions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A udm that is built already, instead of a release build.
    #[arg(long, value_name = "PATH")]
    udm: Option<PathBuf>,
}

impl Args {
    /// The short form: a few kills, as a check that the long one would begin well.
    pub(super) fn short() -> Args {
        Args { kills: 3, seed: 1, udm: None }
    }
}

/// Writers at a time: every second one writes at odd places.
const WRITERS: u64 = 4;
/// Records of each, one in each 4 KiB.
const RECORDS: u64 = 64;
const STRIDE_BYTES: u64 = 4096;
const SIZE_BYTES: u64 = WRITERS * RECORDS * STRIDE_BYTES;
/// How long anything may take before it counts as hung.
const LIMIT: Duration = Duration::from_secs(60);

/// Soaks, and says what was done.
pub(super) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        println!("mounting needs root and /dev/fuse here; not checked: fuse soak");
        return Ok(());
    }
    let udm = release_udm(root, args.udm.as_ref())?;
    let dir = std::env::temp_dir().join(format!("udm-soak-fuse-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
    let place = Place { udm, dir };
    let outcome = soak(&place, args);
    // Whatever is still mounted there; fails if nothing is.
    let _ = rustix::mount::unmount(place.file(), rustix::mount::UnmountFlags::DETACH);
    match &outcome {
        Ok(()) => drop(std::fs::remove_dir_all(&place.dir)),
        Err(_) => eprintln!("logs and the disk are in {}", place.dir.display()),
    }
    outcome
}

struct Place {
    udm: PathBuf,
    dir: PathBuf,
}

impl Place {
    fn file(&self) -> PathBuf {
        self.dir.join("device")
    }

    fn start(&self) -> Result<Daemon, Failed> {
        let log = OpenOptions::new().create(true).append(true).open(self.dir.join("udm.log"));
        let child = Command::new(&self.udm)
            .args(["daemon", "--lanes", "2", "--state"])
            .arg(self.dir.join("state"))
            .env("UDM_SOCKET", self.dir.join("control.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.map_err(Failed::to("make a log"))?)
            .spawn()
            .map_err(Failed::to("start udm"))?;
        let daemon = Daemon(child);
        wait_until("udm listens", LIMIT, || {
            Ok(UnixStream::connect(self.dir.join("control.sock")).is_ok())
        })?;
        Ok(daemon)
    }

    fn run(&self, words: &[&str]) -> Result<(), Failed> {
        let output = Command::new(&self.udm)
            .args(words)
            .env("UDM_SOCKET", self.dir.join("control.sock"))
            .output()
            .map_err(Failed::to("run udm"))?;
        if output.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr);
        Err(Failed::new(format!("udm {}: {why}", words.join(" "))))
    }
}

/// A daemon; killed on drop.
struct Daemon(Child);

impl Daemon {
    /// Without a warning.
    fn kill(&mut self) {
        // Both fail if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn soak(place: &Place, args: &Args) -> Result<(), Failed> {
    let disk = place.dir.join("disk.img");
    let made = File::create(&disk).and_then(|file| file.set_len(SIZE_BYTES));
    made.map_err(Failed::to("make the disk"))?;
    let mut daemon = place.start()?;
    let table = format!("0 {} linear {} 0", SIZE_BYTES / 512, disk.display());
    place.run(&["create", "d", "--table", &table])?;
    place.run(&["export", "d", "--fuse", &place.file().display().to_string()])?;
    let shared = Shared {
        file: place.file(),
        over: AtomicBool::new(false),
        acks: (0..WRITERS).map(|_| AtomicU64::new(0)).collect(),
        stalls: Mutex::default(),
        wrong: Mutex::default(),
    };
    let mut random = Random::new(args.seed);
    std::thread::scope(|scope| {
        for number in 0..WRITERS {
            let (shared, seed) = (&shared, args.seed * 100 + number);
            scope.spawn(move || {
                if let Err(wrong) = Writer::new(number, seed).work(shared) {
                    shared.lock(&shared.wrong).push(wrong);
                }
            });
        }
        let outcome = (0..args.kills).try_for_each(|kill| {
            shared.all_get_on(&format!("writers after {kill} kills"))?;
            pause(Duration::from_millis(20 + random.below(200)));
            daemon.kill();
            daemon = place.start()?;
            Ok(())
        });
        let outcome = outcome.and_then(|()| shared.all_get_on("writers at the end"));
        shared.over.store(true, Ordering::Relaxed);
        outcome
    })?;
    if let Some(wrong) = shared.lock(&shared.wrong).first() {
        return Err(Failed::new(wrong.clone()));
    }
    shared.tell(args.kills);
    place.run(&["unexport", "d"])
}

/// What writers and the soak share.
struct Shared {
    file: PathBuf,
    over: AtomicBool,
    /// Acknowledged writes, of each writer.
    acks: Vec<AtomicU64>,
    /// How long writers stood still, milliseconds.
    stalls: Mutex<Vec<u64>>,
    wrong: Mutex<Vec<String>>,
}

impl Shared {
    fn lock<'a, T>(&self, held: &'a Mutex<T>) -> MutexGuard<'a, T> {
        // What is behind these locks is whole between any two calls.
        held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every writer has had a few writes acknowledged from now on.
    fn all_get_on(&self, what: &str) -> Result<(), Failed> {
        let before: Vec<u64> = self.acks.iter().map(|acks| acks.load(Ordering::Relaxed)).collect();
        wait_until(what, LIMIT, || {
            if let Some(wrong) = self.lock(&self.wrong).first() {
                return Err(Failed::new(wrong.clone()));
            }
            let mut now = self.acks.iter().map(|acks| acks.load(Ordering::Relaxed)).zip(&before);
            Ok(now.all(|(now, before)| now > before + 3))
        })
    }

    fn tell(&self, kills: u32) {
        let mut stalls = self.lock(&self.stalls).clone();
        stalls.sort_unstable();
        let at = |percent: usize| {
            let last = stalls.len().saturating_sub(1);
            stalls.get(last * percent / 100).copied().unwrap_or(0)
        };
        let acks: u64 = self.acks.iter().map(|acks| acks.load(Ordering::Relaxed)).sum();
        println!(
            "fuse soak: {kills} kills, {acks} writes acknowledged, none is missing; writers stood \
             still for {} ms (half of them), {} ms (99 of 100), {} ms (at most), {} times",
            at(50),
            at(99),
            at(100),
            stalls.len()
        );
    }
}

/// A record: where it is, and which versions it may hold.
#[derive(Clone, Copy, Default)]
struct Known {
    acknowledged: u64,
    sent: u64,
}

struct Writer {
    number: u64,
    random: Random,
    records: Vec<Known>,
}

impl Writer {
    fn new(number: u64, seed: u64) -> Writer {
        let records = vec![Known::default(); RECORDS as usize];
        Writer { number, random: Random::new(seed), records }
    }

    /// Where a record is: whole blocks, or 1000 bytes in the middle of some.
    fn place(&self, index: usize) -> (u64, usize) {
        let start = (self.number * RECORDS + index as u64) * STRIDE_BYTES;
        if self.number.is_multiple_of(2) { (start, 4096) } else { (start + 100, 1000) }
    }

    /// Works until the soak is over. What is wrong, if something is.
    fn work(mut self, shared: &Shared) -> Result<(), String> {
        let mut last_ack = Instant::now();
        while !shared.over.load(Ordering::Relaxed) {
            let Some(file) = self.open(shared)? else { return Ok(()) };
            if self.check(&file)?.is_none() {
                continue;
            }
            let mut is_first = true;
            while !shared.over.load(Ordering::Relaxed) && self.write_one(&file)? {
                shared.acks[self.number as usize].fetch_add(1, Ordering::Relaxed);
                if std::mem::take(&mut is_first) {
                    let still_ms = last_ack.elapsed().as_millis();
                    shared.lock(&shared.stalls).push(u64::try_from(still_ms).unwrap_or(u64::MAX));
                }
                last_ack = Instant::now();
            }
        }
        Ok(())
    }

    /// Opens the device; nothing if the soak is over before it is there.
    fn open(&self, shared: &Shared) -> Result<Option<File>, String> {
        let begin = Instant::now();
        while !shared.over.load(Ordering::Relaxed) {
            let opened = OpenOptions::new().read(true).write(true).open(&shared.file);
            if let Ok(file) = opened
                && file.metadata().is_ok_and(|found| found.len() == SIZE_BYTES)
            {
                return Ok(Some(file));
            }
            if begin.elapsed() > LIMIT {
                return Err(format!("writer {} cannot open the file", self.number));
            }
            pause(Duration::from_millis(2));
        }
        Ok(None)
    }

    /// Compares all records with what is known; nothing if the daemon died meanwhile.
    fn check(&mut self, file: &File) -> Result<Option<()>, String> {
        for index in 0..self.records.len() {
            let (at, len) = self.place(index);
            let mut found = vec![0; len];
            match file.read_exact_at(&mut found, at) {
                Ok(()) => {}
                Err(error) if is_death(&error) => return Ok(None),
                Err(error) => return Err(format!("read at {at}: {error}")),
            }
            let known = self.records[index];
            let is = |version: &u64| stamp(at, *version, len) == found;
            let Some(version) = (known.acknowledged..=known.sent).find(is) else {
                let (from, to) = (known.acknowledged, known.sent);
                return Err(format!("the record at {at} holds none of {from}..={to}"));
            };
            self.records[index] = Known { acknowledged: version, sent: version };
        }
        Ok(Some(()))
    }

    /// Writes the next version of a record, now and then with an fsync. False if the daemon died.
    fn write_one(&mut self, file: &File) -> Result<bool, String> {
        let index = self.random.below(RECORDS) as usize;
        let (at, len) = self.place(index);
        let known = &mut self.records[index];
        known.sent += 1;
        let result = file.write_all_at(&stamp(at, known.sent, len), at);
        if result.is_ok() {
            known.acknowledged = known.sent;
        }
        let synced = match self.random.below(16) {
            0 => result.and_then(|()| file.sync_data()),
            _ => result,
        };
        match synced {
            Ok(()) => Ok(true),
            Err(error) if is_death(&error) => Ok(false),
            Err(error) => Err(format!("write at {at}: {error}")),
        }
    }
}

/// Whether an error says that the daemon is dead: ENOTCONN, ECONNABORTED.
fn is_death(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::NOTCONN | Errno::CONNABORTED))
}

/// A version of a record: numbers that tell place and version, all over. Version 0 is zeroes.
fn stamp(at: u64, version: u64, len: usize) -> Vec<u8> {
    if version == 0 {
        return vec![0; len];
    }
    let words = (0_u64..).flat_map(|word| {
        (at ^ (version << 24)).wrapping_add(word).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
    });
    words.take(len).collect()
}

#[cfg(test)]
mod tests {
    use super::stamp;

    #[test]
    fn records_of_other_places_and_versions_differ() {
        assert_eq!(stamp(0, 0, 8), [0; 8]);
        assert_eq!(stamp(4096, 3, 1000).len(), 1000);
        assert_ne!(stamp(0, 1, 16), stamp(4096, 1, 16));
        assert_ne!(stamp(0, 1, 16), stamp(0, 2, 16));
    }
}
