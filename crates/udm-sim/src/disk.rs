//! A simulated disk: a volatile cache over a durable image, and who owns which sector.
//!
//! Writes land in the cache (`write`), a sync makes durable what the cache held when the sync was
//! *submitted* (`begin_sync`, `end_sync`), never more: a disk that makes later writes durable too
//! would hide a flush sent too early. A durable write (`write_durable`) settles its own sectors.
//!
//! The seam for crash enumeration: data enters the cache in one place and becomes durable in one
//! place; what a crash may lose is exactly `unsettled()`.
//!
//! The owner map says which sector of which volume lives where, and is kept by the world as tables
//! change. A write that carries another place's tag is caught here at once.
//!
//! The tricky case is a sector written again while a sync is under way: the sync settles the older
//! contents, and must not settle over newer ones that a durable write has put there meanwhile; the
//! versions decide.

use crate::value::SECTOR_LEN;
use std::collections::BTreeSet;
use udm_types::Sector;

/// A sector of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The volume.
    pub volume: usize,
    /// The sector there.
    pub sector: Sector,
}

/// What a sync will make durable: sector, version, contents.
#[derive(Debug, Default)]
pub(crate) struct SyncPoint(Vec<(usize, u64, Box<[u8; SECTOR_LEN]>)>);

/// What is kept of a compress volume's disk.
#[derive(Clone, Debug)]
pub(crate) struct Vault {
    is_tight: bool,
    /// Sectors whose reading has failed: it does once.
    failed: BTreeSet<Sector>,
}

impl Vault {
    /// `is_tight`: the disk is too small for what can be written to the volume.
    pub(crate) fn new(is_tight: bool) -> Vault {
        Vault { is_tight, failed: BTreeSet::new() }
    }

    /// A read fails, if none of its sectors has before: whoever tries again finds them.
    pub(crate) fn fail_once(&mut self, sectors: std::ops::Range<Sector>) -> bool {
        let is_new = self.failed.range(sectors.clone()).next().is_none();
        if is_new {
            self.failed.extend(sectors);
        }
        is_new
    }
}

/// A simulated disk.
#[derive(Debug)]
pub(crate) struct Disk {
    cached: Vec<u8>,
    durable: Vec<u8>,
    cached_version: Vec<u64>,
    durable_version: Vec<u64>,
    unsettled: BTreeSet<usize>,
    next_version: u64,
    owners: Vec<Option<Owner>>,
    /// Handles that lanes have open.
    pub open_handles: u32,
    /// It can punch holes and zero ranges.
    pub fallocate: bool,
    /// A compress volume lies on it: nobody can tell from outside what belongs where.
    pub vault: Option<Vault>,
    /// Bytes it does at once at the least: a short result is a multiple of it.
    pub unit_bytes: u64,
}

impl Disk {
    /// A disk full of zeroes, all durable.
    pub(crate) fn new(len_sectors: Sector, fallocate: bool) -> Disk {
        let sectors = len_sectors as usize;
        Disk {
            cached: vec![0; sectors * SECTOR_LEN],
            durable: vec![0; sectors * SECTOR_LEN],
            cached_version: vec![0; sectors],
            durable_version: vec![0; sectors],
            unsettled: BTreeSet::new(),
            next_version: 1,
            owners: vec![None; sectors],
            open_handles: 0,
            fallocate,
            vault: None,
            unit_bytes: 8,
        }
    }

    /// A compress volume lies on it, and can be written more than there is room for.
    pub(crate) fn is_tight(&self) -> bool {
        self.vault.as_ref().is_some_and(|vault| vault.is_tight)
    }

    /// Its size in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.cached.len() as u64
    }

    /// Its size.
    pub(crate) fn len_sectors(&self) -> Sector {
        self.owners.len() as Sector
    }

    /// What reads see.
    pub(crate) fn read(&self, offset_bytes: u64, len_bytes: u64) -> &[u8] {
        &self.cached[offset_bytes as usize..(offset_bytes + len_bytes) as usize]
    }

    /// What a crash would leave of a sector at the least.
    pub(crate) fn durable_sector(&self, sector: Sector) -> &[u8] {
        let start = sector as usize * SECTOR_LEN;
        &self.durable[start..start + SECTOR_LEN]
    }

    /// What reads see of a sector.
    pub(crate) fn cached_sector(&self, sector: Sector) -> &[u8] {
        self.read(sector * SECTOR_LEN as u64, SECTOR_LEN as u64)
    }

    /// Data enters the cache.
    pub(crate) fn write(&mut self, offset_bytes: u64, bytes: &[u8]) {
        let start = offset_bytes as usize;
        self.cached[start..start + bytes.len()].copy_from_slice(bytes);
        let version = self.next_version;
        self.next_version += 1;
        for sector in touched(offset_bytes, bytes.len() as u64) {
            self.cached_version[sector] = version;
            self.unsettled.insert(sector);
        }
    }

    /// Data enters the cache and is durable at once.
    pub(crate) fn write_durable(&mut self, offset_bytes: u64, bytes: &[u8]) {
        self.write(offset_bytes, bytes);
        for sector in touched(offset_bytes, bytes.len() as u64) {
            let contents = Box::new(self.sector_contents(sector));
            self.settle(sector, self.cached_version[sector], &contents);
        }
    }

    /// A sync begins: this is what it promises.
    pub(crate) fn begin_sync(&self) -> SyncPoint {
        let part = |&sector: &usize| {
            (sector, self.cached_version[sector], Box::new(self.sector_contents(sector)))
        };
        SyncPoint(self.unsettled.iter().map(part).collect())
    }

    /// A sync has ended well.
    pub(crate) fn end_sync(&mut self, point: SyncPoint) {
        for (sector, version, contents) in point.0 {
            self.settle(sector, version, &contents);
        }
    }

    /// Sectors whose newest contents a crash may lose.
    pub(crate) fn unsettled(&self) -> impl Iterator<Item = Sector> {
        self.unsettled.iter().map(|&sector| sector as Sector)
    }

    /// The world writes a sector itself, durable at once (moving data, fresh space).
    pub(crate) fn put(&mut self, sector: Sector, contents: &[u8]) {
        self.write_durable(sector * SECTOR_LEN as u64, contents);
    }

    /// Who owns a sector.
    pub(crate) fn owner(&self, sector: Sector) -> Option<Owner> {
        self.owners.get(sector as usize).copied().flatten()
    }

    /// Gives a sector to somebody.
    pub(crate) fn set_owner(&mut self, sector: Sector, owner: Option<Owner>) {
        self.owners[sector as usize] = owner;
    }

    fn settle(&mut self, sector: usize, version: u64, contents: &[u8; SECTOR_LEN]) {
        if version <= self.durable_version[sector] {
            return;
        }
        let start = sector * SECTOR_LEN;
        self.durable[start..start + SECTOR_LEN].copy_from_slice(contents);
        self.durable_version[sector] = version;
        if version == self.cached_version[sector] {
            self.unsettled.remove(&sector);
        }
    }

    fn sector_contents(&self, sector: usize) -> [u8; SECTOR_LEN] {
        let mut contents = [0; SECTOR_LEN];
        contents.copy_from_slice(&self.cached[sector * SECTOR_LEN..(sector + 1) * SECTOR_LEN]);
        contents
    }
}

/// The sectors a byte range touches.
fn touched(offset_bytes: u64, len_bytes: u64) -> std::ops::Range<usize> {
    let first = offset_bytes as usize / SECTOR_LEN;
    let end = (offset_bytes + len_bytes) as usize;
    if len_bytes == 0 { first..first } else { first..end.div_ceil(SECTOR_LEN) }
}

#[cfg(test)]
mod tests {
    use super::Disk;
    use crate::value::SECTOR_LEN;

    #[test]
    fn a_sync_settles_what_was_there_when_it_began_and_no_more() {
        let mut disk = Disk::new(4, true);
        disk.write(512, &[1; SECTOR_LEN]);
        let point = disk.begin_sync();
        disk.write(512, &[2; SECTOR_LEN]);
        disk.write(1024, &[3; SECTOR_LEN]);
        disk.end_sync(point);
        assert_eq!(disk.durable_sector(1)[0], 1);
        assert_eq!(disk.durable_sector(2)[0], 0);
        assert_eq!(disk.unsettled().collect::<Vec<_>>(), [1, 2]);
        let point = disk.begin_sync();
        disk.end_sync(point);
        assert_eq!((disk.durable_sector(1)[0], disk.durable_sector(2)[0]), (2, 3));
        assert_eq!(disk.unsettled().count(), 0);
    }

    #[test]
    fn an_old_sync_does_not_settle_over_a_newer_durable_write() {
        let mut disk = Disk::new(1, true);
        disk.write(0, &[1; SECTOR_LEN]);
        let point = disk.begin_sync();
        disk.write_durable(0, &[2; SECTOR_LEN]);
        disk.end_sync(point);
        assert_eq!(disk.durable_sector(0)[0], 2);
        assert_eq!(disk.unsettled().count(), 0);
    }
}
