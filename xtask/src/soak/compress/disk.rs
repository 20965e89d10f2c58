//! The recorded disk: a volatile cache over a durable image, and what a power cut leaves of it.
//!
//! The NBD server in `server.rs` drives it with what the daemon writes; the soak forks it while the
//! daemon goes on. It is as mean as the promises of a disk allow, and never meaner:
//!
//! ```text
//! change begun      any part of it may be on the medium after a cut
//! change completed  read from now on; a version each sector may have after a cut
//! flush completed   what was completed before the flush was begun is durable, nothing else
//! FUA completed     this change is durable, older versions of its sectors are gone
//! ```
//!
//! Rules. Of a sector the durable version is left or any one of the later ones, so any subset of
//! the writes, in any order, torn at 512 bytes; of those a few are shorn (a byte flipped).
//!
//! The tricky case is a flush with writes beside it: one that completes while the flush is under
//! way is not covered. A disk that covered it would hide a flush sent too early.

use super::super::chaos::Random;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a sector: what a disk writes as a whole.
pub(super) const SECTOR_BYTES: usize = 512;
/// Sectors of a hundred that are shorn when sectors are drawn one by one.
const SHORN_PERCENT: u64 = 2;

/// A version of a sector that may not survive.
#[derive(Clone)]
struct Version {
    /// Number of its change; changes under way come after all completed ones.
    nr: u64,
    bytes: Arc<[u8]>,
    at: usize,
}

impl Version {
    fn sector(&self) -> &[u8] {
        &self.bytes[self.at..self.at + SECTOR_BYTES]
    }
}

/// A write or discard the disk has begun.
struct Change {
    first: usize,
    bytes: Arc<[u8]>,
}

impl Change {
    fn versions(&self, nr: u64) -> impl Iterator<Item = (usize, Version)> + '_ {
        (0..self.bytes.len() / SECTOR_BYTES).map(move |index| {
            let version = Version { nr, bytes: Arc::clone(&self.bytes), at: index * SECTOR_BYTES };
            (self.first + index, version)
        })
    }
}

/// The disk.
pub(super) struct RecordedDisk {
    durable: Vec<u8>,
    cached: Vec<u8>,
    unflushed: BTreeMap<usize, Vec<Version>>,
    under_way: BTreeMap<u64, Change>,
    begun: u64,
    completed: u64,
    /// Nothing is ended while it is set.
    pub(super) is_stalled: bool,
    /// Nothing is done any more: the power is off.
    pub(super) is_off: bool,
    /// Flushes and FUA are answered and nothing more: a broken disk, to see that it is noticed.
    pub(super) is_lying: bool,
}

impl RecordedDisk {
    /// A disk that holds this, durably. The length is a multiple of 512.
    pub(super) fn new(bytes: Vec<u8>) -> RecordedDisk {
        RecordedDisk {
            durable: bytes.clone(),
            cached: bytes,
            unflushed: BTreeMap::new(),
            under_way: BTreeMap::new(),
            begun: 0,
            completed: 0,
            is_stalled: false,
            is_off: false,
            is_lying: false,
        }
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.cached.len()
    }

    /// What readers see.
    pub(super) fn read(&self, range: Range<usize>) -> &[u8] {
        &self.cached[range]
    }

    /// A change of whole sectors begins; its name, for the end.
    pub(super) fn begin(&mut self, offset_bytes: usize, bytes: Vec<u8>) -> u64 {
        let change = Change { first: offset_bytes / SECTOR_BYTES, bytes: bytes.into() };
        self.begun += 1;
        self.under_way.insert(self.begun, change);
        self.begun
    }

    /// A change has ended.
    pub(super) fn finish(&mut self, name: u64, is_durable: bool) {
        let Some(change) = self.under_way.remove(&name) else { return };
        self.completed += 1;
        for (sector, version) in change.versions(self.completed) {
            put(&mut self.cached, sector, version.sector());
            if is_durable && !self.is_lying {
                put(&mut self.durable, sector, version.sector());
                self.unflushed.remove(&sector);
            } else {
                self.unflushed.entry(sector).or_default().push(version);
            }
        }
    }

    /// A flush begins: what it covers.
    pub(super) fn begin_flush(&self) -> u64 {
        self.completed
    }

    /// A flush that covers so many changes has ended.
    pub(super) fn finish_flush(&mut self, covers: u64) {
        if self.is_lying {
            return;
        }
        let durable = &mut self.durable;
        self.unflushed.retain(|&sector, versions| {
            let covered = versions.iter().take_while(|version| version.nr <= covers).count();
            if covered > 0 {
                put(durable, sector, versions[covered - 1].sector());
                versions.drain(..covered);
            }
            !versions.is_empty()
        });
    }

    /// What is there if only the program dies: the cache, with what was under way done in part.
    pub(super) fn after_death(&self, random: &mut Random) -> Vec<u8> {
        let mut left = self.cached.clone();
        for change in self.under_way.values() {
            let percent = random.below(101);
            for (sector, version) in change.versions(0) {
                if random.below(100) < percent {
                    put(&mut left, sector, version.sector());
                }
            }
        }
        left
    }

    /// What is there after a power cut now: one of the legal states.
    pub(super) fn after_cut(&self, random: &mut Random) -> Vec<u8> {
        let mut choices = self.unflushed.clone();
        for (nr, change) in (self.completed + 1..).zip(self.under_way.values()) {
            let percent = [0, 50, 100][random.below(3) as usize];
            for (sector, version) in change.versions(nr) {
                if random.below(100) < percent {
                    choices.entry(sector).or_default().push(version);
                }
            }
        }
        let mut numbers: Vec<u64> = choices.values().flatten().map(|version| version.nr).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut left = self.durable.clone();
        match Loss::draw(numbers.len(), random) {
            Loss::Sectors(percent) => keep_sectors(&choices, percent, &mut left, random),
            loss @ (Loss::All | Loss::Nothing | Loss::Writes | Loss::From(_) | Loss::AllBut(_)) => {
                let kept: Vec<u64> = numbers
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| loss.keeps(*at, random))
                    .map(|(_, nr)| *nr)
                    .collect();
                keep_writes(&choices, &kept, &mut left);
            }
        }
        left
    }
}

/// Which unflushed changes a cut takes.
#[derive(Clone, Copy)]
enum Loss {
    All,
    Nothing,
    /// Each sector for itself is kept, so many of a hundred.
    Sectors(u64),
    /// Each change for itself, half of them.
    Writes,
    /// All from this one on.
    From(usize),
    /// Only this one is lost.
    AllBut(usize),
}

impl Loss {
    fn draw(changes: usize, random: &mut Random) -> Loss {
        let which = random.below(changes as u64 + 1) as usize;
        match random.below(10) {
            0 => Loss::All,
            1 => Loss::Nothing,
            2..5 => Loss::Sectors([20, 50, 85][random.below(3) as usize]),
            5..7 => Loss::Writes,
            7 | 8 => Loss::From(which),
            _ => Loss::AllBut(which),
        }
    }

    /// Whether the change at this place in the order survives; sectors are another matter.
    fn keeps(self, at: usize, random: &mut Random) -> bool {
        match self {
            Loss::All => false,
            Loss::Nothing | Loss::Sectors(_) => true,
            Loss::Writes => random.below(2) == 0,
            Loss::From(first) => at < first,
            Loss::AllBut(lost) => at != lost,
        }
    }
}

type Choices = BTreeMap<usize, Vec<Version>>;

fn keep_sectors(choices: &Choices, percent: u64, left: &mut [u8], random: &mut Random) {
    for (&sector, versions) in choices {
        if random.below(100) >= percent {
            continue;
        }
        let newest = versions.len() - 1;
        let is_newest = random.below(100) < 80;
        let kept = if is_newest { newest } else { random.below(versions.len() as u64) as usize };
        put(left, sector, versions[kept].sector());
        if random.below(100) < SHORN_PERCENT {
            let at = sector * SECTOR_BYTES + random.below(SECTOR_BYTES as u64) as usize;
            left[at] ^= 1 << random.below(8);
        }
    }
}

fn keep_writes(choices: &Choices, kept: &[u64], left: &mut [u8]) {
    for (&sector, versions) in choices {
        let newest = versions.iter().rev().find(|v| kept.binary_search(&v.nr).is_ok());
        if let Some(version) = newest {
            put(left, sector, version.sector());
        }
    }
}

fn put(bytes: &mut [u8], sector: usize, value: &[u8]) {
    bytes[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES].copy_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::{RecordedDisk, SECTOR_BYTES};
    use crate::soak::chaos::Random;

    fn write(disk: &mut RecordedDisk, sector: usize, value: u8, is_durable: bool) {
        let name = disk.begin(sector * SECTOR_BYTES, vec![value; SECTOR_BYTES]);
        disk.finish(name, is_durable);
    }

    #[test]
    fn a_cut_never_loses_what_a_flush_covered_and_may_lose_all_else() {
        let mut disk = RecordedDisk::new(vec![0; 4 * SECTOR_BYTES]);
        write(&mut disk, 0, 1, false);
        let covers = disk.begin_flush();
        write(&mut disk, 1, 2, false);
        write(&mut disk, 2, 3, true);
        disk.finish_flush(covers);
        disk.begin(3 * SECTOR_BYTES, vec![4; SECTOR_BYTES]);
        let mut random = Random::new(5);
        let mut seen = [[false; 2]; 2];
        for _ in 0..200 {
            let left = disk.after_cut(&mut random);
            let of = |sector: usize| left[sector * SECTOR_BYTES];
            assert_eq!((of(0), of(2)), (1, 3));
            seen[0][usize::from(of(1) != 0)] = true;
            seen[1][usize::from(of(3) != 0)] = true;
        }
        assert_eq!(seen, [[true; 2]; 2], "both fates of what no flush covered");
        assert_eq!(disk.read(3 * SECTOR_BYTES..4 * SECTOR_BYTES)[0], 0, "it has not ended");
    }

    #[test]
    fn an_older_version_may_be_the_one_that_is_left() {
        let mut disk = RecordedDisk::new(vec![0; SECTOR_BYTES]);
        for value in [1, 2] {
            write(&mut disk, 0, value, false);
        }
        let mut random = Random::new(9);
        let mut seen = [false; 3];
        for _ in 0..500 {
            if let Some(seen) = seen.get_mut(usize::from(disk.after_cut(&mut random)[77])) {
                *seen = true;
            }
        }
        assert_eq!(seen, [true; 3]);
        assert_eq!(disk.after_death(&mut random)[77], 2, "nothing of it was under way");
    }
}
