//! Verified load on a block device whose server may die: no error, nothing lost, nothing twice.
//!
//! Writers stamp blocks of their own with versions, past the page cache, and remember what was
//! acknowledged; every third access reads one back, and at the end all are read. A block has to
//! hold the version acknowledged last, whole: an older one was lost (or written again later), a
//! newer one cannot be. An I/O error is a failure, however often the server has died meanwhile.
//! The longest wait of an access is printed, and how long the pauses were in which nobody got an
//! answer: of the KILLS longest the middle one and the longest, since each kill makes one.
//!
//! `disk_load DEVICE SECONDS [KILLS]`; with `-` for the seconds it goes on until its standard input
//! ends, so that no kill comes too late for it. For `cargo xtask guest ublk`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Writers at a time; some more than a small queue holds makes the kernel wait, too.
const WRITERS: u64 = 24;
/// Blocks of each.
const BLOCKS: u64 = 32;
const BLOCK_BYTES: usize = 8192;
/// Where direct I/O wants memory to begin.
const ALIGN_BYTES: usize = 4096;

/// Shorter pauses are this machine's.
const PAUSE: Duration = Duration::from_millis(5);

/// Standard input has ended.
static IS_OVER: AtomicBool = AtomicBool::new(false);

/// When somebody got an answer last, and the pauses before.
static PAUSES: Mutex<(Option<Instant>, Vec<Duration>)> = Mutex::new((None, Vec::new()));

/// Notes an answer.
fn answered(now: Instant) {
    let mut pauses = PAUSES.lock().unwrap_or_else(PoisonError::into_inner);
    let (last, seen) = &mut *pauses;
    if let Some(before) = last.replace(now) {
        let pause = now.saturating_duration_since(before);
        if pause > PAUSE {
            seen.push(pause);
        }
    }
}

/// The middle one and the longest of so many longest pauses.
fn pauses_of(kills: usize) -> Option<(Duration, Duration)> {
    let mut seen = PAUSES.lock().unwrap_or_else(PoisonError::into_inner).1.clone();
    seen.sort_by(|a, b| b.cmp(a));
    seen.truncate(kills);
    Some((*seen.get(seen.len() / 2)?, *seen.first()?))
}

/// What a writer has seen.
#[derive(Clone, Copy, Default)]
struct Seen {
    accesses: u64,
    longest: Duration,
}

/// A writer and its blocks.
struct Writer {
    file: File,
    first: u64,
    versions: Vec<u64>,
    memory: Vec<u8>,
    random: u64,
    seen: Seen,
}

impl Writer {
    fn open(path: &str, number: u64) -> Result<Writer, String> {
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = OpenOptions::new().read(true).write(true).custom_flags(direct).open(path);
        let file = file.map_err(|error| format!("open {path}: {error}"))?;
        Ok(Writer {
            file,
            first: number * BLOCKS,
            versions: vec![0; BLOCKS as usize],
            memory: vec![0; BLOCK_BYTES + ALIGN_BYTES],
            random: number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            seen: Seen::default(),
        })
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// One access to a block, with its time.
    fn access(&mut self, block: u64, write: Option<u64>) -> Result<u64, String> {
        let at = (self.first + block) * BLOCK_BYTES as u64;
        let start = self.memory.as_ptr().align_offset(ALIGN_BYTES);
        let bytes = &mut self.memory[start..start + BLOCK_BYTES];
        let begin = Instant::now();
        let done = match write {
            Some(version) => {
                for (place, word) in bytes.chunks_exact_mut(8).enumerate() {
                    word.copy_from_slice(&stamp(at, version, place).to_le_bytes());
                }
                self.file.write_all_at(bytes, at)
            }
            None => self.file.read_exact_at(bytes, at),
        };
        done.map_err(|error| format!("block at {at}: {error}"))?;
        let end = Instant::now();
        answered(end);
        self.seen.longest = self.seen.longest.max(end - begin);
        self.seen.accesses += 1;
        let bytes = &self.memory[start..start + BLOCK_BYTES];
        let version = word_of(bytes, 0) & 0xFFFF_FFFF;
        let whole =
            (0..BLOCK_BYTES / 8).all(|place| word_of(bytes, place) == stamp(at, version, place));
        match whole || bytes.iter().all(|byte| *byte == 0) {
            true => Ok(version),
            false => Err(format!("block at {at} is torn, or another's")),
        }
    }

    fn check(&mut self, block: u64) -> Result<(), String> {
        let (found, wanted) = (self.access(block, None)?, self.versions[block as usize]);
        match found == wanted {
            true => Ok(()),
            false => Err(format!("block {} has version {found}, not {wanted}", self.first + block)),
        }
    }

    fn run(mut self, until: Option<Instant>) -> Result<Seen, String> {
        for block in 0..BLOCKS {
            self.versions[block as usize] = self.access(block, None)?;
        }
        while until.map_or(!IS_OVER.load(Ordering::Relaxed), |until| Instant::now() < until) {
            let random = self.next_random();
            let block = random % BLOCKS;
            if random >> 32 & 3 == 0 {
                self.check(block)?;
            } else {
                let version = self.versions[block as usize] + 1;
                self.access(block, Some(version))?;
                self.versions[block as usize] = version;
            }
        }
        (0..BLOCKS).try_for_each(|block| self.check(block))?;
        Ok(self.seen)
    }
}

/// The word at a place of a block: version below, where it belongs above.
fn stamp(at: u64, version: u64, place: usize) -> u64 {
    version | (at / 512 + place as u64 % 7) << 32
}

fn word_of(bytes: &[u8], place: usize) -> u64 {
    let word = bytes[place * 8..].first_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(word)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let (path, seconds, kills) = match &words[..] {
        [_, path, seconds] => (path, seconds, 0),
        [_, path, seconds, kills] => (path, seconds, kills.parse().unwrap_or(0)),
        _ => {
            eprintln!("usage: disk_load DEVICE SECONDS [KILLS]");
            return ExitCode::FAILURE;
        }
    };
    let until = seconds.parse().ok().map(|seconds| Instant::now() + Duration::from_secs(seconds));
    if until.is_none() {
        std::thread::spawn(|| {
            // However it ends, it has ended.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            IS_OVER.store(true, Ordering::Relaxed);
        });
    }
    let threads: Vec<_> = (0..WRITERS)
        .map(|number| {
            let path = path.clone();
            std::thread::spawn(move || Writer::open(&path, number)?.run(until))
        })
        .collect();
    let (mut all, mut failed) = (Seen::default(), false);
    for thread in threads {
        match thread.join() {
            Ok(Ok(seen)) => {
                all.accesses += seen.accesses;
                all.longest = all.longest.max(seen.longest);
            }
            Ok(Err(why)) => {
                println!("{why}");
                failed = true;
            }
            Err(_) => failed = true,
        }
    }
    print!("{} accesses, the longest {} ms", all.accesses, all.longest.as_millis());
    match pauses_of(kills) {
        Some((middle, longest)) => println!(
            "; pauses of {kills} kills: p50 {} ms, max {} ms",
            middle.as_millis(),
            longest.as_millis()
        ),
        None => println!(),
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
