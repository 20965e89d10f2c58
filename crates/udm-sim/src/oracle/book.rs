//! What the oracle knows of a volume: its registers, regions, size over time, and where it lives.
//!
//! A volume is an address space that the load uses: the top device of a stack. Scripts that change
//! tables tell this book what the tables mean; the oracle never reads a table.
//!
//! Sizes are spans of ticks. While a resize is on its way (from the resume request to its answer)
//! the old and the new size are both possible: I/O that fits one of them may succeed, I/O that
//! overhangs one of them may fail. Outside such times the answer is certain.
//!
//! The tricky case is space that comes back: a shrink and a later grow give fresh sectors, whatever
//! was there before; bios still under way may land in them all the same. And a read that was split
//! before the shrink may come back after the grow: what one of its pieces found is right if it was
//! right then, by the class the sector had then, too.

use super::register::{NEVER, Register, Tick};
use super::{Oracle, Submission};
use crate::disk::Disk;
use std::collections::BTreeMap;
use udm_types::{Op, Sector};

/// What a sector of a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// It lives on a disk.
    Data,
    /// Reads zeroes, forgets writes.
    Zero,
    /// Fails.
    Error,
}

/// A size that the volume may have, until a tick.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SizeSpan {
    /// The size.
    pub len_sectors: Sector,
    /// Last tick.
    pub to: Tick,
}

/// One volume.
#[derive(Debug)]
pub(crate) struct Volume {
    registers: Vec<Register>,
    classes: Vec<Class>,
    /// When each sector got its class.
    classed: Vec<Tick>,
    spots: Vec<Option<(usize, Sector)>>,
    sizes: Vec<SizeSpan>,
    next_seq: BTreeMap<usize, u64>,
    /// The suspend that holds its I/O; 0 if it is not (surely) suspended.
    pub(crate) epoch: u64,
    pub(crate) last_started: BTreeMap<(u64, usize), (u64, u32)>,
    pub(crate) last_good_flush: Tick,
    /// Writes may be refused for want of space.
    pub(crate) may_be_full: bool,
}

impl Volume {
    fn new(classes: Vec<Class>, now: Tick) -> Volume {
        let len_sectors = classes.len() as Sector;
        Volume {
            registers: classes.iter().map(|_| Register::fresh(now)).collect(),
            spots: vec![None; classes.len()],
            classed: vec![now; classes.len()],
            classes,
            sizes: vec![SizeSpan { len_sectors, to: NEVER }],
            next_seq: BTreeMap::new(),
            epoch: 0,
            last_started: BTreeMap::new(),
            last_good_flush: now,
            may_be_full: false,
        }
    }

    pub(crate) fn take_seq(&mut self, lane: usize) -> u64 {
        let seq = self.next_seq.entry(lane).or_default();
        *seq += 1;
        *seq
    }

    pub(crate) fn class(&self, sector: Sector) -> Class {
        self.classes.get(sector as usize).copied().unwrap_or(Class::Error)
    }

    pub(crate) fn register(&mut self, sector: Sector) -> &mut Register {
        &mut self.registers[sector as usize]
    }

    pub(crate) fn spot(&self, sector: Sector) -> Option<(usize, Sector)> {
        self.spots.get(sector as usize).copied().flatten()
    }

    /// Runs over the registers of a bio's sectors that live on disks.
    pub(crate) fn for_data(&mut self, asked: Submission, mut visit: impl FnMut(&mut Register)) {
        let len = self.registers.len() as Sector;
        let end = asked.sector.saturating_add(asked.len_sectors).min(len);
        for sector in asked.sector..end {
            if self.classes[sector as usize] == Class::Data {
                visit(&mut self.registers[sector as usize]);
            }
        }
    }

    /// True if some size since `start` held a range ending there.
    pub(crate) fn may_fit(&self, end: Sector, start: Tick) -> bool {
        self.sizes.iter().any(|span| span.to >= start && end <= span.len_sectors)
    }

    /// True if a range ending there reached beyond some size since `start`.
    pub(crate) fn may_overhang(&self, end: Sector, start: Tick) -> bool {
        self.sizes.iter().any(|span| span.to >= start && end > span.len_sectors)
    }

    /// The sectors that are there whichever size is the volume's now.
    pub(crate) fn sure_len_sectors(&self) -> Sector {
        let open = self.sizes.iter().filter(|span| span.to == NEVER);
        open.map(|span| span.len_sectors).min().unwrap_or(0)
    }

    /// True if I/O that began at `since` met the class the sector has now, and no other.
    pub(crate) fn is_sure_of_class(&self, sector: Sector, since: Tick) -> bool {
        self.classed.get(sector as usize).is_some_and(|&changed| changed <= since)
    }

    /// True if a range holds sectors that fail.
    pub(crate) fn touches_error(&self, first: Sector, end: Sector) -> bool {
        (first..end.min(self.classes.len() as Sector))
            .any(|sector| self.classes[sector as usize] == Class::Error)
    }

    /// True if I/O that began at `since` cannot but have met a sector that fails.
    pub(crate) fn surely_touches_error(&self, first: Sector, end: Sector, since: Tick) -> bool {
        (first..end.min(self.classes.len() as Sector)).any(|sector| {
            self.classes[sector as usize] == Class::Error && self.is_sure_of_class(sector, since)
        })
    }
}

impl Oracle {
    /// A volume comes into being: fresh space of these classes.
    pub(crate) fn open_volume(&mut self, index: usize, classes: Vec<Class>) {
        let now = self.next_tick();
        if self.volumes.len() <= index {
            self.volumes.resize_with(index + 1, || None);
        }
        self.volumes[index] = Some(Volume::new(classes, now));
    }

    /// What can be written to the volume may be more than there is room for.
    pub(crate) fn may_be_full(&mut self, index: usize) {
        if let Some(volume) = self.volumes[index].as_mut() {
            volume.may_be_full = true;
        }
    }

    /// A volume is gone.
    pub(crate) fn close_volume(&mut self, index: usize) {
        self.volumes[index] = None;
    }

    /// Says where a volume's sectors live now.
    pub(crate) fn place_volume(&mut self, index: usize, spots: Vec<Option<(usize, Sector)>>) {
        if let Some(volume) = self.volumes[index].as_mut() {
            volume.spots = spots;
            // A disk that is new to the volume may still owe somebody the report of a failed sync,
            // and what is held now may be the one to get it.
            volume.last_good_flush = 0;
            for record in self.under_way.values_mut() {
                if record.asked.volume == index {
                    record.flushed = 0;
                }
            }
        }
    }

    /// A resize begins to be possible: the volume may have this size too. Sectors it did not have
    /// are fresh, of these classes.
    pub(crate) fn begin_resize(&mut self, index: usize, classes: &[Class]) {
        let now = self.next_tick();
        let Some(volume) = self.volumes[index].as_mut() else { return };
        let old = volume.sure_len_sectors() as usize;
        let len_sectors = classes.len() as Sector;
        volume.sizes.push(SizeSpan { len_sectors, to: NEVER });
        if volume.registers.len() < classes.len() {
            volume.registers.resize_with(classes.len(), || Register::fresh(now));
            volume.classes.resize(classes.len(), Class::Data);
            volume.classed.resize(classes.len(), now);
        }
        let writes = self
            .under_way
            .iter()
            .filter(|(_, record)| record.asked.volume == index && record.asked.op.is_write());
        for (sector, &class) in classes.iter().enumerate().skip(old) {
            if volume.classes[sector] != class {
                volume.classes[sector] = class;
                volume.classed[sector] = now;
            }
            let register = &mut volume.registers[sector];
            register.renew(now);
            // What was submitted beyond the end and is held may yet find room.
            for (&number, record) in writes.clone() {
                let asked = record.asked;
                let at = sector as Sector;
                if asked.sector <= at && at < asked.sector.saturating_add(asked.len_sectors) {
                    register.begin_once(number, asked.op != Op::Write, record.start);
                }
            }
        }
    }

    /// The volume surely has this size now (the newest one, or the one before if it failed).
    pub(crate) fn end_resize(&mut self, index: usize, len_sectors: Sector) {
        let now = self.next_tick();
        let Some(volume) = self.volumes[index].as_mut() else { return };
        for span in &mut volume.sizes {
            if span.len_sectors != len_sectors {
                span.to = span.to.min(now);
            }
        }
    }

    /// True if the volume may have this size now.
    pub(crate) fn may_have_len(&self, index: usize, len_sectors: Sector) -> bool {
        let Some(volume) = self.volumes[index].as_ref() else { return true };
        volume.sizes.iter().any(|span| span.to == NEVER && span.len_sectors == len_sectors)
    }

    /// The size every sector of which is there for sure.
    pub(crate) fn len_sectors(&self, index: usize) -> Sector {
        self.volumes[index].as_ref().map_or(0, Volume::sure_len_sectors)
    }

    /// The end of the run: what a disk holds of a volume must be legal, read past the engine.
    pub(crate) fn check_cached(&mut self, index: usize, disks: &[Disk]) {
        let now = self.next_tick();
        let Some(volume) = self.volumes[index].as_mut() else { return };
        for sector in 0..volume.sure_len_sectors() {
            let Some((disk, place)) = volume.spot(sector) else { continue };
            let contents = crate::value::decode(disks[disk].cached_sector(place));
            let register = &volume.registers[sector as usize];
            if !super::is_legal(&contents, index, sector, |tag| register.may_be_read(tag, now)) {
                let text = format!(
                    "at the end disk {disk} holds {} for sector {sector} of volume {index}; legal:{}",
                    super::shown(&contents),
                    register.describe()
                );
                return self.violate(text);
            }
        }
    }
}
