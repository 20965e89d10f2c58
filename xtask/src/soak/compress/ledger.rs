//! What was written and what was promised to be durable, outside of the device; and whether it is
//! there.
//!
//! Everything a workload writes can be told from its name and a version number, so the ledger is a
//! few numbers for each thing: the version that a crash left (`base`), the newest that was tried
//! before that crash (`floor`), the newest that was begun (`sent`), the newest whose fsync came
//! back (`durable`). After a crash a thing may be any version from the durable one to the newest
//! that was begun; nothing that an earlier crash took comes back.
//!
//! | thing | promise |
//! |---|---|
//! | document | written aside, fsynced, renamed, folder fsynced: old or new as a whole, or absent |
//! | page of the database | written in place, fsynced: old or new, and never torn |
//! | record of the journal | appended, fdatasynced: what was synced is there |
//! | page of the ordered file | written with O_DIRECT, one by one: a **prefix** of them is there |
//!
//! The last two rows' promises are stronger than a plain disk's where they say "never torn" and
//! "prefix"; both follow from what the volume promises (whole requests, in order).
//!
//! The tricky case is the moment of a cut: the ledger is copied under the lock that the workload
//! takes before it begins a version and after an fsync, so a copy never promises what the disk at
//! that moment need not hold, and knows of everything that it may hold.

use super::super::chaos::Random;
use crate::steps::Failed;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Documents of a workload.
pub(super) const DOCUMENTS: usize = 40;
/// Pages of the database, and of the ordered file.
pub(super) const PAGES: usize = 192;
/// Bytes of a page.
pub(super) const PAGE_BYTES: usize = 4096;
/// Bytes of a record of the journal: uneven, so that most cross a page.
pub(super) const RECORD_BYTES: usize = 700;
/// The longest document.
const DOCUMENT_BYTES_MAX: u64 = 96 << 10;

/// Kinds of things, for their contents.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Document,
    Page,
    Record,
    Ordered,
}

/// What is known of one thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) base: u64,
    pub(super) floor: u64,
    pub(super) sent: u64,
    pub(super) durable: u64,
}

impl Known {
    /// A new version is begun; its number.
    pub(super) fn begin(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }

    /// May it be this version after a crash?
    fn allows(&self, version: u64) -> bool {
        let is_later = version > self.floor && version >= self.durable && version <= self.sent;
        is_later || (version == self.base && self.durable <= self.floor)
    }

    /// A crash left this one, and that is the truth from now on.
    fn settle(&mut self, version: u64) {
        *self = Known { base: version, floor: self.sent, sent: self.sent, durable: version };
    }
}

/// Of the ordered file: what each page may hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    /// The newest write that was begun.
    pub(super) sent: u64,
    /// The newest one that has ended: what a device that writes through keeps when the daemon dies.
    pub(super) written: u64,
    /// The newest one that is durable.
    pub(super) durable: u64,
    /// For each page the writes to it since the last crash, oldest first; the first is what it
    /// held.
    pub(super) pages: Vec<Vec<u64>>,
}

/// The ledger of one workload, which has a folder of its own.
#[derive(Clone, Debug)]
pub(super) struct Ledger {
    /// Tells workloads apart in what they write.
    pub(super) owner: u64,
    pub(super) documents: Vec<Known>,
    pub(super) pages: Vec<Known>,
    pub(super) order: Order,
    /// The journal's generation, and its durable records.
    pub(super) journal: u64,
    pub(super) records: u64,
}

impl Ledger {
    pub(super) fn new(owner: u64) -> Ledger {
        let order = Order { pages: vec![vec![0]; PAGES], ..Order::default() };
        Ledger {
            owner,
            documents: vec![Known::default(); DOCUMENTS],
            pages: vec![Known::default(); PAGES],
            order,
            journal: 0,
            records: 0,
        }
    }

    /// Where it lives below the root of the file system.
    pub(super) fn folder(&self, root: &Path) -> PathBuf {
        root.join(format!("work-{}", self.owner))
    }

    /// What a version of a document holds; nothing if it is absent then.
    pub(super) fn document(&self, slot: usize, version: u64) -> Option<Vec<u8>> {
        let mut random = self.random(Kind::Document, slot as u64, version);
        if version == 0 || random.below(6) == 0 {
            return None;
        }
        let is_long = random.below(6) == 0;
        let len = 40 + random.below(if is_long { DOCUMENT_BYTES_MAX } else { 9000 });
        Some(self.bytes(Kind::Document, slot as u64, version, len as usize))
    }

    /// What a version of a page holds.
    pub(super) fn page(&self, kind: Kind, page: usize, version: u64) -> Vec<u8> {
        match version {
            0 => vec![0; PAGE_BYTES],
            _ => self.bytes(kind, page as u64, version, PAGE_BYTES),
        }
    }

    /// A record of the journal.
    pub(super) fn record(&self, number: u64) -> Vec<u8> {
        self.bytes(Kind::Record, self.journal, number, RECORD_BYTES)
    }

    fn random(&self, kind: Kind, place: u64, version: u64) -> Random {
        Random::new(version << 28 ^ place << 12 ^ self.owner << 4 ^ kind as u64)
    }

    /// The version number, then about half noise and half runs, so that it compresses to half.
    fn bytes(&self, kind: Kind, place: u64, version: u64, len: usize) -> Vec<u8> {
        let mut random = self.random(kind, place, version);
        let mut bytes = version.to_le_bytes().to_vec();
        while bytes.len() < len {
            let run = 16 + random.below(200) as usize;
            let value = random.below(256) as u8;
            match random.below(2) {
                0 => bytes.resize(bytes.len() + run, value),
                _ => bytes.extend(
                    (0..run / 4).flat_map(|_| (random.below(1 << 32) as u32).to_le_bytes()),
                ),
            }
        }
        bytes.truncate(len);
        bytes
    }

    /// The daemon dies and the disk does not, below a device that writes through.
    pub(super) fn keep_written(&mut self) {
        self.order.durable = self.order.durable.max(self.order.written);
    }

    /// The file system was unmounted in order: everything is the newest version.
    pub(super) fn promise_all(&mut self) {
        for known in self.documents.iter_mut().chain(&mut self.pages) {
            known.durable = known.sent;
        }
        self.order.durable = self.order.sent;
    }

    /// Compares what a crash left with what was promised, and takes it for the truth: what is known
    /// afterwards of this file system, mounted at `root`.
    pub(super) fn settle(&mut self, root: &Path) -> Result<(), Failed> {
        let folder = self.folder(root);
        for slot in 0..self.documents.len() {
            let found = self.find_document(&folder, slot)?;
            self.documents[slot].settle(found);
        }
        let database = read(&folder.join("database"))?.unwrap_or_default();
        for page in 0..self.pages.len() {
            let known = self.pages[page];
            let found = self.find_page(Kind::Page, &database, page)?;
            if !known.allows(found) {
                return Err(self.wrong(format!("page {page} is version {found}, {known:?}")));
            }
            self.pages[page].settle(found);
        }
        self.settle_order(&folder)?;
        self.check_journal(&folder)
    }

    fn find_document(&self, folder: &Path, slot: usize) -> Result<u64, Failed> {
        let known = self.documents[slot];
        let found = read(&folder.join(format!("document-{slot}")))?;
        let mut candidates: Vec<u64> = (known.base.min(known.durable)..=known.sent).collect();
        if let Some(bytes) = &found {
            candidates = vec![version_of(bytes)];
        }
        // Of several absent versions the newest: any of them is the same.
        let fits = candidates
            .into_iter()
            .rev()
            .find(|version| known.allows(*version) && self.document(slot, *version) == found);
        fits.ok_or_else(|| {
            let shown = found.as_ref().map(|bytes| (bytes.len(), version_of(bytes)));
            self.wrong(format!("document {slot} is {shown:?} (length, version), {known:?}"))
        })
    }

    /// Which version of a page this is; an error if it is none, so if it is torn.
    fn find_page(&self, kind: Kind, file: &[u8], page: usize) -> Result<u64, Failed> {
        let at = page * PAGE_BYTES;
        let bytes = file.get(at..at + PAGE_BYTES).unwrap_or_default();
        let version = version_of(bytes);
        match self.page(kind, page, version) == bytes {
            true => Ok(version),
            false => Err(self.wrong(format!("page {page} is torn or foreign: \"{version}\""))),
        }
    }

    /// The ordered file is a prefix of its writes, at or behind the durable one.
    fn settle_order(&mut self, folder: &Path) -> Result<(), Failed> {
        let file = read(&folder.join("ordered"))?.unwrap_or_default();
        // The newest write that is there, and the oldest that is not.
        let (mut newest, mut missing) = (0, u64::MAX);
        let mut left = Vec::new();
        for (page, writes) in self.order.pages.iter().enumerate() {
            let found = self.find_page(Kind::Ordered, &file, page)?;
            let Some(at) = writes.iter().position(|write| *write == found) else {
                let text = format!("ordered page {page} holds {found}, not of {writes:?}");
                return Err(self.wrong(text));
            };
            newest = newest.max(found);
            missing = missing.min(writes.get(at + 1).copied().unwrap_or(u64::MAX));
            left.push(vec![found]);
        }
        if missing <= newest || missing <= self.order.durable {
            let durable = self.order.durable;
            let text = format!("write {missing} is missing, {newest} is there, {durable} durable");
            return Err(self.wrong(text));
        }
        (self.order.pages, self.order.durable) = (left, 0);
        Ok(())
    }

    fn check_journal(&self, folder: &Path) -> Result<(), Failed> {
        let file = read(&folder.join(format!("journal-{}", self.journal)))?.unwrap_or_default();
        for number in 0..self.records {
            let at = number as usize * RECORD_BYTES;
            if file.get(at..at + RECORD_BYTES) != Some(&self.record(number)[..]) {
                return Err(self.wrong(format!("record {number} of {} is not there", self.records)));
            }
        }
        Ok(())
    }

    fn wrong(&self, what: String) -> Failed {
        Failed::new(format!("LOST: workload {}: {what}", self.owner))
    }
}

/// The number a thing begins with.
fn version_of(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Failed> {
    let mut bytes = Vec::new();
    match fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failed::new(format!("cannot read {}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::Known;

    #[test]
    fn what_a_crash_took_does_not_come_back() {
        let mut known = Known::default();
        for _ in 0..5 {
            known.begin();
        }
        known.durable = 2;
        let allowed = |known: &Known| (0..9).filter(|v| known.allows(*v)).collect::<Vec<_>>();
        assert_eq!(allowed(&known), [2, 3, 4, 5]);
        known.settle(3);
        assert_eq!(allowed(&known), [3]);
        known.begin();
        assert_eq!(allowed(&known), [3, 6], "4 and 5 are gone for ever");
        known.durable = 6;
        assert_eq!(allowed(&known), [6]);
    }
}
