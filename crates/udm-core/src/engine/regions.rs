//! dm statistics on a lane: counters of regions that somebody asked to have counted.
//!
//! A region is a range of the device cut into areas of one size; its definition is the
//! coordinator's (`lifecycle/stats.rs`), the counters are each lane's own and summed when printed.
//!
//! While a device has a region, its bios go the long way and are counted there when they start; so
//! without one the short way does not even ask, and the way back asks once (`is_some`).
//!
//! The tricky case is a bio that was under way when a region came: its start was not counted, so
//! neither is its end. A region remembers the gate's order at its birth and counts only bios that
//! are later in it.

use super::device::DeviceLane;
use crate::bio::{BioBox, Frame};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use udm_types::{Nanos, Sector};

/// What a region counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Its number, unique on the device.
    pub id: u32,
    /// First sector.
    pub start_sector: Sector,
    /// The first sector after it.
    pub end_sector: Sector,
    /// Length of an area.
    pub step_sectors: Sector,
    /// Buckets are bounded by nanoseconds instead of milliseconds.
    pub precise: bool,
    /// Upper bounds of the histogram's buckets but the last; empty without a histogram.
    pub bounds: Vec<u64>,
}

impl RegionSpec {
    /// How many areas it has.
    pub fn area_count(&self) -> u64 {
        (self.end_sector - self.start_sector).div_ceil(self.step_sectors)
    }

    /// Buckets of an area's histogram; 0 without one.
    pub fn bucket_count(&self) -> usize {
        if self.bounds.is_empty() { 0 } else { self.bounds.len() + 1 }
    }

    fn bucket_of(&self, took: Nanos) -> usize {
        let took = if self.precise { took.0 } else { took.as_millis() };
        self.bounds.partition_point(|bound| *bound <= took)
    }
}

/// Numbers of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AreaWay {
    /// Bios completed.
    pub ios: u64,
    /// Of those, begun where the one before had ended.
    pub merges: u64,
    /// Sectors.
    pub sectors: u64,
    /// Time they took, summed.
    pub took: Nanos,
    /// Under way now.
    pub in_flight: u64,
    /// Time in which any was under way.
    pub busy: Nanos,
}

/// Numbers of one area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Area {
    /// Reads, and writes (discards, too).
    pub ways: [AreaWay; 2],
    /// Time in which any bio was under way.
    pub busy: Nanos,
    /// That time multiplied by how many were.
    pub weighted: Nanos,
    stamp: Nanos,
}

impl Area {
    /// Adds the time since the last look.
    fn advance(&mut self, now: Nanos) {
        let passed = now.since(self.stamp);
        self.stamp = now;
        let under_way = self.ways[0].in_flight + self.ways[1].in_flight;
        if under_way == 0 || passed == Nanos::ZERO {
            return;
        }
        for way in &mut self.ways {
            if way.in_flight > 0 {
                way.busy = way.busy + passed;
            }
        }
        self.busy = self.busy + passed;
        self.weighted.0 = self.weighted.0.saturating_add(passed.0.saturating_mul(under_way));
    }

    /// Forgets all but what is under way.
    fn clear(&mut self) {
        let in_flight = self.ways.map(|way| way.in_flight);
        let stamp = self.stamp;
        *self = Area { stamp, ..Area::default() };
        for (way, in_flight) in self.ways.iter_mut().zip(in_flight) {
            way.in_flight = in_flight;
        }
    }

    /// Adds another lane's numbers.
    pub(crate) fn add(&mut self, other: &Area) {
        for (way, other) in self.ways.iter_mut().zip(&other.ways) {
            way.ios += other.ios;
            way.merges += other.merges;
            way.sectors += other.sectors;
            way.took = way.took + other.took;
            way.in_flight += other.in_flight;
            way.busy = way.busy + other.busy;
        }
        self.busy = self.busy + other.busy;
        self.weighted = self.weighted + other.weighted;
    }
}

/// Some areas of a region with their histograms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionNumbers {
    /// The areas.
    pub areas: Vec<Area>,
    /// Their buckets, one area after the other.
    pub buckets: Vec<u64>,
}

impl RegionNumbers {
    fn blank(areas: usize, buckets: usize) -> RegionNumbers {
        RegionNumbers { areas: vec![Area::default(); areas], buckets: vec![0; areas * buckets] }
    }

    /// Adds another lane's numbers.
    pub(crate) fn add(&mut self, other: &RegionNumbers) {
        if self.areas.is_empty() {
            *self = other.clone();
            return;
        }
        self.areas.iter_mut().zip(&other.areas).for_each(|(area, other)| area.add(other));
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(sum, other)| *sum += other);
    }
}

#[derive(Debug)]
struct Region {
    spec: Arc<RegionSpec>,
    /// Bios before this one in the gate's order are not counted.
    first_seq: u64,
    numbers: RegionNumbers,
}

/// The regions of a device on a lane.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    list: Vec<Region>,
    last_end_sector: Sector,
    last_was_write: bool,
}

/// What happens to a bio.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Start { merged: bool },
    End { took: Nanos },
    Back,
}

impl Regions {
    fn account(&mut self, seq: u64, sector: Sector, bio: &BioBox, step: Step, now: Nanos) {
        let way = usize::from(bio.op.is_write());
        let end = sector + bio.len_sectors;
        for region in self.list.iter_mut().filter(|region| region.first_seq <= seq) {
            let spec = &*region.spec;
            let mut at = sector.max(spec.start_sector);
            let end = end.min(spec.end_sector);
            while at < end {
                let index = ((at - spec.start_sector) / spec.step_sectors) as usize;
                let border = spec.start_sector + (index as u64 + 1) * spec.step_sectors;
                let part = border.min(end) - at;
                let area = &mut region.numbers.areas[index];
                area.advance(now);
                let numbers = &mut area.ways[way];
                match step {
                    Step::Start { merged } => {
                        numbers.in_flight += 1;
                        numbers.merges += u64::from(merged);
                    }
                    Step::Back => numbers.in_flight = numbers.in_flight.saturating_sub(1),
                    Step::End { took } => {
                        numbers.in_flight = numbers.in_flight.saturating_sub(1);
                        numbers.ios += 1;
                        numbers.sectors += part;
                        numbers.took = numbers.took + took;
                        if !spec.bounds.is_empty() {
                            let bucket = index * spec.bucket_count() + spec.bucket_of(took);
                            region.numbers.buckets[bucket] += 1;
                        }
                    }
                }
                at += part;
            }
        }
    }
}

/// Copies of a bio beyond the first are not I/O of the device's users.
fn is_counted(bio: &BioBox) -> bool {
    bio.len_sectors > 0 && bio.target_bio_nr == 0
}

impl DeviceLane {
    /// A bio is about to be mapped.
    #[inline]
    pub(crate) fn region_start(&mut self, seq: u64, bio: &BioBox, now: Nanos) {
        if self.stats.regions.is_some() {
            self.count_start(seq, bio, now);
        }
    }

    #[cold]
    fn count_start(&mut self, seq: u64, bio: &BioBox, now: Nanos) {
        let Some(regions) = &mut self.stats.regions else { return };
        if !is_counted(bio) || !bio.has_room() {
            return;
        }
        let write = bio.op.is_write();
        let merged = regions.last_end_sector == bio.sector && regions.last_was_write == write;
        regions.last_end_sector = bio.sector + bio.len_sectors;
        regions.last_was_write = write;
        regions.account(seq, bio.sector, bio, Step::Start { merged }, now);
    }

    /// A bio leaves the layer of this frame for good.
    #[cold]
    pub(crate) fn region_end(&mut self, frame: Frame, bio: &BioBox, took: Nanos, now: Nanos) {
        let Some(regions) = &mut self.stats.regions else { return };
        if is_counted(bio) {
            regions.account(frame.seq, frame.sector, bio, Step::End { took }, now);
        }
    }

    /// A bio was pushed back out of the layer of this frame; it will start again.
    #[cold]
    pub(crate) fn region_back(&mut self, frame: Frame, bio: &BioBox, now: Nanos) {
        let Some(regions) = &mut self.stats.regions else { return };
        if is_counted(bio) {
            regions.account(frame.seq, frame.sector, bio, Step::Back, now);
        }
    }

    /// Counts a region from now on.
    pub(crate) fn add_region(&mut self, spec: Arc<RegionSpec>, now: Nanos) {
        // The coordinator has bounded the number of areas.
        let mut numbers = RegionNumbers::blank(spec.area_count() as usize, spec.bucket_count());
        numbers.areas.iter_mut().for_each(|area| area.stamp = now);
        let first_seq = self.gate.next_seq();
        let regions = self.stats.regions.get_or_insert_with(Box::default);
        regions.list.push(Region { spec, first_seq, numbers });
        self.refresh();
    }

    /// Forgets a region.
    pub(crate) fn remove_region(&mut self, id: u32) {
        if let Some(regions) = &mut self.stats.regions {
            regions.list.retain(|region| region.spec.id != id);
            if regions.list.is_empty() {
                self.stats.regions = None;
            }
        }
        self.refresh();
    }

    /// The numbers of some areas of a region, and a new beginning for them if `clear`.
    pub(crate) fn read_region(
        &mut self,
        id: u32,
        areas: core::ops::Range<usize>,
        clear: bool,
        now: Nanos,
    ) -> RegionNumbers {
        let regions = self.stats.regions.as_mut();
        let region =
            regions.and_then(|regions| regions.list.iter_mut().find(|region| region.spec.id == id));
        let Some(region) = region else { return RegionNumbers::default() };
        let width = region.spec.bucket_count();
        let Some(found) = region.numbers.areas.get_mut(areas.clone()) else {
            return RegionNumbers::default();
        };
        found.iter_mut().for_each(|area| area.advance(now));
        let buckets = &mut region.numbers.buckets[areas.start * width..areas.end * width];
        let numbers = RegionNumbers { areas: found.to_vec(), buckets: buckets.to_vec() };
        if clear {
            found.iter_mut().for_each(Area::clear);
            buckets.fill(0);
        }
        numbers
    }
}
