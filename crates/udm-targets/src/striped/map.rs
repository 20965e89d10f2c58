//! `striped` at work: which leg, and where on it.
//!
//! With chunk index `c = offset / chunk`: leg `c % count`, sector `(c / count) * chunk + offset %
//! chunk` on it. A read or write lies in one chunk (the core splits at `max_io_len_sectors`), so it
//! goes to one leg.
//!
//! A discard or write-zeroes comes once for each leg with the whole range; copy k keeps the part on
//! leg k. Both ends are moved to where leg k continues: three legs, chunk 4, range 6..17:
//!
//! ```text
//! offset  0    4    8    12   16   20      leg 0: chunks 0, 3     -> own 4..8  (= offsets 12..16)
//! leg     0    1    2    0    1    2       leg 1: from 6 to 17    -> own 2..5  (= 6..8 and 16)
//!               [-----------]              leg 2: chunk 2         -> own 0..4  (= 8..12)
//! ```
//!
//! A copy whose part is empty completes at once. Errors are counted against every leg on the same
//! device, on the way back.

use crate::leg::LegAt;
use alloc::vec;
use alloc::vec::Vec;
use udm_core::bio::BioBox;
use udm_core::{Ended, Mapped, Target, TargetCx};
use udm_types::{Op, Sector, Status};

/// An event is raised for errors of a leg until it has had this many; a dead leg must not bury
/// whoever listens to events.
const ERRORS_WITH_EVENT: u64 = 15;

/// Division by a number known at load; most are powers of two, for which a shift is enough.
#[derive(Clone, Copy, Debug)]
struct Divisor {
    value: u64,
    shift: Option<u32>,
}

impl Divisor {
    fn new(value: u64) -> Divisor {
        Divisor { value, shift: value.is_power_of_two().then(|| value.trailing_zeros()) }
    }

    /// Quotient and remainder.
    #[inline]
    fn split(self, number: u64) -> (u64, u64) {
        match self.shift {
            Some(shift) => (number >> shift, number & (self.value - 1)),
            None => (number / self.value, number % self.value),
        }
    }
}

/// The chunk arithmetic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunks {
    chunk: Divisor,
    count: Divisor,
}

impl Chunks {
    pub(super) fn new(chunk_sectors: u32, count: u64) -> Chunks {
        Chunks { chunk: Divisor::new(u64::from(chunk_sectors)), count: Divisor::new(count) }
    }

    /// The leg that holds an offset, and the offset on that leg.
    #[inline]
    fn locate(self, offset: Sector) -> (u64, Sector) {
        let (index, within) = self.chunk.split(offset);
        let (row, leg) = self.count.split(index);
        (leg, row * self.chunk.value + within)
    }

    /// Where `leg` continues at an offset: its first sector that is at or after it.
    fn border(self, offset: Sector, leg: u64) -> Sector {
        let (owner, sector) = self.locate(offset);
        let (_, within) = self.chunk.split(sector);
        let row_start = sector - within;
        match leg.cmp(&owner) {
            core::cmp::Ordering::Equal => sector,
            core::cmp::Ordering::Less => row_start + self.chunk.value,
            core::cmp::Ordering::Greater => row_start,
        }
    }
}

/// `striped` on one lane.
pub(super) struct Striped {
    legs: Vec<LegAt>,
    chunks: Chunks,
    /// Errors seen on this lane, for each leg.
    errors: Vec<u64>,
}

impl Striped {
    pub(super) fn new(legs: Vec<LegAt>, chunks: Chunks) -> Striped {
        let errors = vec![0; legs.len()];
        Striped { legs, chunks, errors }
    }

    /// Sends a bio to a leg and remembers which.
    #[inline]
    fn send(&self, mut bio: BioBox, leg: usize, sector: Sector) -> Mapped {
        let LegAt { dest, start_sector } = self.legs[leg];
        bio.words_mut()[0] = leg as u64;
        bio.remap(dest, start_sector + sector);
        Mapped::Remapped(bio)
    }

    /// Narrows a copy of a discard or write-zeroes to its leg's part.
    fn send_part(&self, mut bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        let leg = u64::from(bio.target_bio_nr);
        let offset = bio.sector - cx.begin_sector();
        let first = self.chunks.border(offset, leg);
        let end = self.chunks.border(offset + bio.len_sectors, leg);
        if first >= end {
            cx.complete(bio, Status::Ok);
            return Mapped::Submitted;
        }
        bio.len_sectors = end - first;
        let leg = bio.target_bio_nr as usize;
        self.send(bio, leg, first)
    }
}

impl Target for Striped {
    #[inline]
    fn map(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        match bio.op {
            Op::Read | Op::Write => {
                let (leg, sector) = self.chunks.locate(bio.sector - cx.begin_sector());
                self.send(bio, leg as usize, sector)
            }
            Op::Flush => {
                let leg = bio.target_bio_nr as usize;
                self.send(bio, leg, 0)
            }
            Op::Discard | Op::WriteZeroes => self.send_part(bio, cx),
        }
    }

    fn end_io(&mut self, mut bio: BioBox, cx: &mut TargetCx<'_>) -> Ended {
        // "Not supported" says what a device cannot do, not that it is broken.
        if matches!(bio.status, Status::Ok | Status::NotSupported) {
            return Ended::Done(bio);
        }
        let leg = bio.words_mut()[0] as usize;
        let failed = self.legs[leg].dest;
        let mut worth_an_event = false;
        for (leg, errors) in self.legs.iter().zip(&mut self.errors) {
            if leg.dest == failed {
                *errors = errors.saturating_add(1);
                worth_an_event |= *errors < ERRORS_WITH_EVENT;
            }
        }
        if worth_an_event {
            cx.raise_event();
        }
        Ended::Done(bio)
    }

    fn add_counters(&self, sum: &mut Vec<u64>) {
        sum.resize(self.errors.len(), 0);
        for (total, errors) in sum.iter_mut().zip(&self.errors) {
            *total += errors;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Chunks;

    /// The arithmetic against a walk over every sector.
    #[test]
    fn parts_of_a_range_cover_each_sector_on_its_leg_exactly_once() {
        for (chunk, count) in [(4_u32, 3_u64), (1, 1), (8, 2), (5, 4), (24, 3)] {
            let chunks = Chunks::new(chunk, count);
            let len = u64::from(chunk) * count * 3;
            for first in 0..len {
                for end in first + 1..=len {
                    for leg in 0..count {
                        let mut expected = (first..end)
                            .map(|offset| chunks.locate(offset))
                            .filter(|&(owner, _)| owner == leg)
                            .map(|(_, sector)| sector);
                        let from = chunks.border(first, leg);
                        let to = chunks.border(end, leg);
                        let covered = from..to.max(from);
                        assert!(expected.by_ref().eq(covered), "{chunk} {count} {first}..{end}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_layout_is_the_kernels() {
        // Two legs, chunk 8: sectors 0, 8, 16, 24 are on legs 0, 1, 0, 1.
        let chunks = Chunks::new(8, 2);
        assert_eq!(chunks.locate(0), (0, 0));
        assert_eq!(chunks.locate(8), (1, 0));
        assert_eq!(chunks.locate(19), (0, 11));
        // A chunk that is no power of two.
        let chunks = Chunks::new(24, 3);
        assert_eq!(chunks.locate(24 * 4 + 5), (1, 29));
    }
}
