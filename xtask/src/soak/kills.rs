//! Kill -9 of a daemon under writers that know what they wrote; what all front ends share.
//!
//! Writers stamp records of their own with versions through a front end and remember what was
//! acknowledged. The daemon is killed at random and started again with its state; writers whose
//! disk is dead open it again, as a user has to. After each restart every record has to hold one
//! version, whole: none older than the one acknowledged last, none that was never written. How
//! long writers stood still is told. What is particular to a front end ([`Front`], [`Disk`]) is in
//! the file of its name.
//!
//! The tricky case is a batch in which the daemon died: each record of it may hold what was sent
//! or what was there before, and is taken for what it holds from then on.

use super::chaos::Random;
use super::{pause, wait_until};
use crate::steps::{Failed, release_udm};
use std::fs::{File, OpenOptions};
use std::io;
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

/// Writers at a time: every second one writes at odd places, where the front end lets it.
const WRITERS: u64 = 4;
/// Records of each, one in each 4 KiB.
const RECORDS: u64 = 64;
const STRIDE_BYTES: u64 = 4096;
/// Size of the device.
pub(super) const SIZE_BYTES: u64 = WRITERS * RECORDS * STRIDE_BYTES;
/// How long anything may take before it counts as hung.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// A write: where, what.
pub(super) type Write = (u64, Vec<u8>);

/// The device, opened through a front end.
pub(super) trait Disk: Sized {
    /// Opens it; an error if it is not there (yet).
    fn open(place: &Place) -> io::Result<Self>;
    fn read(&mut self, at: u64, to: &mut [u8]) -> io::Result<()>;
    /// Does all writes, which do not overlap, and tells the index of each that was acknowledged.
    fn write(&mut self, writes: &[Write], acknowledged: &mut dyn FnMut(usize)) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
    /// Whether an error says that the daemon is dead.
    fn is_death(error: &io::Error) -> bool;
}

/// What is particular to a front end.
pub(super) struct Front {
    pub(super) name: &'static str,
    /// Words after `udm export d`.
    pub(super) export: fn(&Place) -> Vec<String>,
    /// Bytes may be written anywhere, not only whole blocks.
    pub(super) takes_odd_places: bool,
    /// Writes in a batch, at the most.
    pub(super) depth: u64,
}

/// Soaks, and says what was done.
pub(super) fn run<D: Disk>(
    root: &Path,
    args: &Args,
    front: &Front,
    clean_up: impl Fn(&Place),
) -> Result<(), Failed> {
    let udm = release_udm(root, args.udm.as_ref())?;
    let dir = format!("udm-soak-{}-{}", front.name, std::process::id());
    let dir = std::env::temp_dir().join(dir);
    std::fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
    let place = Place { udm, dir };
    let outcome = soak::<D>(&place, args, front);
    clean_up(&place);
    match &outcome {
        Ok(()) => drop(std::fs::remove_dir_all(&place.dir)),
        Err(_) => eprintln!("logs and the disk are in {}", place.dir.display()),
    }
    outcome
}

/// The daemon's folder.
pub(super) struct Place {
    udm: PathBuf,
    dir: PathBuf,
}

impl Place {
    /// A file of the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
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

fn soak<D: Disk>(place: &Place, args: &Args, front: &Front) -> Result<(), Failed> {
    let disk = place.dir.join("disk.img");
    let made = File::create(&disk).and_then(|file| file.set_len(SIZE_BYTES));
    made.map_err(Failed::to("make the disk"))?;
    let mut daemon = place.start()?;
    let table = format!("0 {} linear {} 0", SIZE_BYTES / 512, disk.display());
    place.run(&["create", "d", "--table", &table])?;
    let export = (front.export)(place);
    let words: Vec<&str> = ["export", "d"].into_iter().chain(export.iter().map(|w| &**w)).collect();
    place.run(&words)?;
    let shared = Shared {
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
                if let Err(wrong) = Writer::new(number, seed, front).work::<D>(place, shared) {
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
    shared.tell(front.name, args.kills);
    place.run(&["unexport", "d"])
}

/// What writers and the soak share.
struct Shared {
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

    fn tell(&self, name: &str, kills: u32) {
        let mut stalls = self.lock(&self.stalls).clone();
        stalls.sort_unstable();
        let at = |percent: usize| {
            let last = stalls.len().saturating_sub(1);
            stalls.get(last * percent / 100).copied().unwrap_or(0)
        };
        let acks: u64 = self.acks.iter().map(|acks| acks.load(Ordering::Relaxed)).sum();
        println!(
            "{name} soak: {kills} kills, {acks} writes acknowledged, none is missing; writers stood \
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
    is_odd: bool,
    depth: u64,
}

impl Writer {
    fn new(number: u64, seed: u64, front: &Front) -> Writer {
        let records = vec![Known::default(); RECORDS as usize];
        let is_odd = front.takes_odd_places && !number.is_multiple_of(2);
        Writer { number, random: Random::new(seed), records, is_odd, depth: front.depth }
    }

    /// Where a record is: whole blocks, or 1000 bytes in the middle of some.
    fn place(&self, index: usize) -> (u64, usize) {
        let start = (self.number * RECORDS + index as u64) * STRIDE_BYTES;
        if self.is_odd { (start + 100, 1000) } else { (start, 4096) }
    }

    /// Works until the soak is over. What is wrong, if something is.
    fn work<D: Disk>(mut self, place: &Place, shared: &Shared) -> Result<(), String> {
        let mut last_ack = Instant::now();
        while !shared.over.load(Ordering::Relaxed) {
            let Some(mut disk) = self.open::<D>(place, shared)? else { return Ok(()) };
            if self.check(&mut disk)?.is_none() {
                continue;
            }
            let mut is_first = true;
            while !shared.over.load(Ordering::Relaxed) {
                let (acks, goes_on) = self.write_some(&mut disk)?;
                shared.acks[self.number as usize].fetch_add(acks, Ordering::Relaxed);
                if acks > 0 {
                    if std::mem::take(&mut is_first) {
                        let still_ms = last_ack.elapsed().as_millis();
                        let still_ms = u64::try_from(still_ms).unwrap_or(u64::MAX);
                        shared.lock(&shared.stalls).push(still_ms);
                    }
                    last_ack = Instant::now();
                }
                if !goes_on {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Opens the device; nothing if the soak is over before it is there.
    fn open<D: Disk>(&self, place: &Place, shared: &Shared) -> Result<Option<D>, String> {
        let begin = Instant::now();
        while !shared.over.load(Ordering::Relaxed) {
            let error = match D::open(place) {
                Ok(disk) => return Ok(Some(disk)),
                Err(error) => error,
            };
            if begin.elapsed() > LIMIT {
                return Err(format!("writer {} cannot open the disk: {error}", self.number));
            }
            pause(Duration::from_millis(2));
        }
        Ok(None)
    }

    /// Compares all records with what is known; nothing if the daemon died meanwhile.
    fn check<D: Disk>(&mut self, disk: &mut D) -> Result<Option<()>, String> {
        for index in 0..self.records.len() {
            let (at, len) = self.place(index);
            let mut found = vec![0; len];
            match disk.read(at, &mut found) {
                Ok(()) => {}
                Err(error) if D::is_death(&error) => return Ok(None),
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

    /// Writes the next versions of some records, now and then with a sync behind: how many were
    /// acknowledged, and whether the daemon lives.
    fn write_some<D: Disk>(&mut self, disk: &mut D) -> Result<(u64, bool), String> {
        let first = self.random.below(RECORDS);
        let count = 1 + self.random.below(self.depth);
        let indexes: Vec<usize> =
            (first..first + count).map(|index| (index % RECORDS) as usize).collect();
        let mut writes = Vec::new();
        for index in &indexes {
            let (at, len) = self.place(*index);
            self.records[*index].sent += 1;
            writes.push((at, stamp(at, self.records[*index].sent, len)));
        }
        let (records, mut acks) = (&mut self.records, 0);
        let written = disk.write(&writes, &mut |nth| {
            let record = &mut records[indexes[nth]];
            record.acknowledged = record.sent;
            acks += 1;
        });
        let synced = match self.random.below(16) {
            0 => written.and_then(|()| disk.sync()),
            _ => written,
        };
        match synced {
            Ok(()) => Ok((acks, true)),
            Err(error) if D::is_death(&error) => Ok((acks, false)),
            Err(error) => Err(format!("write at {}: {error}", writes[0].0)),
        }
    }
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
