//! A workload on the mounted file system: documents, a database, a journal, an ordered file.
//!
//! One thread, one step after the other; two of them run side by side, each in a folder of its own.
//! What it does is in the ledger before it is done, and what came back from an fsync after it has.
//!
//! Rules. The first error ends the workload; whether it is a finding is for the soak to say: when
//! the daemon was killed it is not. Nothing is read back here, that is for the ledger.
//!
//! The tricky case is an fsync that fails: nothing of what it was to cover becomes durable in the
//! ledger, since the kernel may report such a failure once only.

use super::super::chaos::Random;
use super::ledger::{Kind, Ledger, PAGE_BYTES, PAGES, RECORD_BYTES};
use crate::steps::Failed;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// A journal that is longer is begun anew.
const JOURNAL_BYTES_MAX: u64 = 768 << 10;

/// The longest scratch file: written back by the kernel in many requests at once.
const SCRATCH_BYTES_MAX: u64 = 3 << 20;

/// The ledgers of all workloads, under one lock, so that a moment is the same for all.
pub(super) struct Ledgers(Mutex<Vec<Ledger>>);

impl Ledgers {
    pub(super) fn new(count: u64) -> Ledgers {
        Ledgers(Mutex::new((0..count).map(Ledger::new).collect()))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Ledger>> {
        // A panic in a workload is its own finding.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Workloads under way.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    /// Steps done.
    pub(super) steps: Arc<AtomicU64>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Load {
    /// Starts one workload for each ledger, on the file system at `root`.
    pub(super) fn start(ledgers: &Arc<Ledgers>, root: &Path, seed: u64) -> Load {
        let (stop, steps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let count = ledgers.lock().len();
        let threads = (0..count)
            .map(|index| {
                let folder = ledgers.lock()[index].folder(root);
                let random = Random::new(seed ^ (index as u64) << 40);
                let (ledgers, stop) = (Arc::clone(ledgers), Arc::clone(&stop));
                let steps = Arc::clone(&steps);
                std::thread::spawn(move || {
                    let mut work = Work::open(&ledgers, index, folder, random)?;
                    while !stop.load(Ordering::Relaxed) {
                        work.step()?;
                        steps.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        Load { stop, steps, threads }
    }

    /// Fails if one has ended, which none does by itself.
    pub(super) fn check(&mut self) -> Result<(), Failed> {
        match self.threads.iter().any(JoinHandle::is_finished) {
            true => self.finish(),
            false => Ok(()),
        }
    }

    /// Ends them; an error of any.
    pub(super) fn finish(&mut self) -> Result<(), Failed> {
        self.stop.store(true, Ordering::Relaxed);
        let mut ends = Vec::new();
        for thread in self.threads.drain(..) {
            ends.push(thread.join().map_err(|_| Failed::new("a workload panicked"))?);
        }
        let first = ends.into_iter().collect::<io::Result<Vec<()>>>();
        first.map(drop).map_err(Failed::to("go on with a workload"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Something else has failed, and files that are open keep the file system mounted.
        drop(self.finish());
    }
}

struct Work<'a> {
    ledgers: &'a Ledgers,
    index: usize,
    folder: PathBuf,
    random: Random,
    database: File,
    ordered: File,
    journal: File,
    journal_records: u64,
}

impl<'a> Work<'a> {
    /// Opens what is there, and makes what is not: files of a fixed length, all of it written.
    fn open(
        ledgers: &'a Ledgers,
        index: usize,
        folder: PathBuf,
        random: Random,
    ) -> io::Result<Work<'a>> {
        if !folder.is_dir() {
            std::fs::create_dir(&folder)?;
        }
        let open = |name: &str, flags: OFlags| {
            let path = folder.join(name);
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
            if file.metadata()?.len() < (PAGES * PAGE_BYTES) as u64 {
                file.write_all_at(&vec![0; PAGES * PAGE_BYTES], 0)?;
                file.sync_all()?;
            }
            OpenOptions::new().write(true).custom_flags(flags.bits().cast_signed()).open(&path)
        };
        let database = open("database", OFlags::empty())?;
        let ordered = open("ordered", OFlags::DIRECT)?;
        let journal = next_journal(ledgers, index, &folder)?;
        Ok(Work { ledgers, index, folder, random, database, ordered, journal, journal_records: 0 })
    }

    fn ledger<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        change(&mut self.ledgers.lock()[self.index])
    }

    fn step(&mut self) -> io::Result<()> {
        match self.random.below(100) {
            0..30 => self.document(),
            30..60 => self.transaction(),
            60..80 => self.append(),
            80..95 => self.ordered_writes(),
            _ => self.scratch(),
        }
    }

    /// A new version of a document, or its end.
    fn document(&mut self) -> io::Result<()> {
        let slot = self.random.below(super::ledger::DOCUMENTS as u64) as usize;
        let (version, bytes) = self.ledger(|ledger| {
            let version = ledger.documents[slot].begin();
            (version, ledger.document(slot, version))
        });
        let path = self.folder.join(format!("document-{slot}"));
        match bytes {
            Some(bytes) => {
                let aside = self.folder.join("aside");
                let file = File::create(&aside)?;
                file.write_all_at(&bytes, 0)?;
                file.sync_all()?;
                std::fs::rename(&aside, &path)?;
            }
            None if path.exists() => std::fs::remove_file(&path)?,
            None => {}
        }
        if self.random.below(3) > 0 {
            File::open(&self.folder)?.sync_all()?;
            self.ledger(|ledger| ledger.documents[slot].durable = version);
        }
        Ok(())
    }

    /// Some pages of the database in place, then an fsync.
    fn transaction(&mut self) -> io::Result<()> {
        let mut written = Vec::new();
        for _ in 0..=self.random.below(12) {
            let page = self.random.below(PAGES as u64) as usize;
            let (version, bytes) = self.ledger(|ledger| {
                let version = ledger.pages[page].begin();
                (version, ledger.page(Kind::Page, page, version))
            });
            self.database.write_all_at(&bytes, (page * PAGE_BYTES) as u64)?;
            written.push((page, version));
        }
        match self.random.below(8) {
            0 => return Ok(()),
            1..4 => self.database.sync_all()?,
            _ => self.database.sync_data()?,
        }
        self.ledger(|ledger| {
            for (page, version) in written {
                ledger.pages[page].durable = version;
            }
        });
        Ok(())
    }

    /// Some records at the journal's end, then an fdatasync.
    fn append(&mut self) -> io::Result<()> {
        if self.journal_records * RECORD_BYTES as u64 > JOURNAL_BYTES_MAX {
            self.journal = next_journal(self.ledgers, self.index, &self.folder)?;
            self.journal_records = 0;
        }
        for _ in 0..=self.random.below(6) {
            let bytes = self.ledger(|ledger| ledger.record(self.journal_records));
            let at = self.journal_records * RECORD_BYTES as u64;
            self.journal.write_all_at(&bytes, at)?;
            self.journal_records += 1;
        }
        self.journal.sync_data()?;
        self.ledger(|ledger| ledger.records = self.journal_records);
        Ok(())
    }

    /// Pages around every cache of the kernel, one after the other, and now and then an fsync.
    fn ordered_writes(&mut self) -> io::Result<()> {
        let mut last = 0;
        for _ in 0..=self.random.below(16) {
            let page = self.random.below(PAGES as u64) as usize;
            let (number, bytes) = self.ledger(|ledger| {
                ledger.order.sent += 1;
                let number = ledger.order.sent;
                ledger.order.pages[page].push(number);
                (number, ledger.page(Kind::Ordered, page, number))
            });
            write_direct(&self.ordered, &bytes, (page * PAGE_BYTES) as u64)?;
            self.ledger(|ledger| ledger.order.written = number);
            last = number;
        }
        if self.random.below(2) == 0 {
            self.ordered.sync_data()?;
            self.ledger(|ledger| {
                ledger.order.durable = last;
                for writes in &mut ledger.order.pages {
                    let dead = writes.iter().take_while(|write| **write <= last).count();
                    writes.drain(..dead.saturating_sub(1));
                }
            });
        }
        Ok(())
    }

    /// A file that nobody promised anything about: written, holed, cut and removed.
    fn scratch(&mut self) -> io::Result<()> {
        let path = self.folder.join("scratch");
        let file = File::create(&path)?;
        let len = 4096 + self.random.below(SCRATCH_BYTES_MAX);
        let mut noise = vec![0; len as usize];
        for word in noise.chunks_mut(6) {
            word.copy_from_slice(&self.random.below(1 << 48).to_le_bytes()[..word.len()]);
        }
        file.write_all_at(&noise, 0)?;
        if self.random.below(2) == 0 {
            file.sync_all()?;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, flags, self.random.below(len), 1 + self.random.below(len))?;
        file.set_len(self.random.below(len))?;
        drop(file);
        std::fs::remove_file(&path)
    }
}

/// A new journal; the old one goes when the new one is durable.
fn next_journal(ledgers: &Ledgers, index: usize, folder: &Path) -> io::Result<File> {
    let old = ledgers.lock()[index].journal;
    let journal = File::create(folder.join(format!("journal-{}", old + 1)))?;
    journal.sync_all()?;
    File::open(folder)?.sync_all()?;
    let ledger = &mut ledgers.lock()[index];
    (ledger.journal, ledger.records) = (old + 1, 0);
    match std::fs::remove_file(folder.join(format!("journal-{old}"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(journal),
    }
}

/// Writes a page from memory that lies at a page's begin, as O_DIRECT wants it.
fn write_direct(file: &File, page: &[u8], at: u64) -> io::Result<()> {
    let mut room = vec![0; 2 * PAGE_BYTES];
    let begin = room.as_ptr().align_offset(PAGE_BYTES);
    let aligned = &mut room[begin..begin + PAGE_BYTES];
    aligned.copy_from_slice(page);
    match file.write_at(aligned, at)? {
        PAGE_BYTES => Ok(()),
        _short => Err(io::Error::other("a direct write was cut short")),
    }
}
