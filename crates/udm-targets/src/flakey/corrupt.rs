//! Which byte of a bio `flakey` spoils, and the private copies spoilt writes travel in.
//!
//! Used by `map.rs` only. [`Spoiler::pick`] answers which bytes to change, from the table line's
//! features and this lane's random numbers; it never touches data. [`Copies`] swaps a write's
//! payload for a private copy on the way down and puts the original back on the way up, so the
//! submitter never sees its own memory change.
//!
//! The random numbers come from a generator seeded by the load's seed and the lane: the same run
//! gives the same damage.
//!
//! The tricky case is the byte position: it counts from the start of the *piece* this target sees
//! (from 1), not of the submitter's request, and a piece that is too short is left alone.

use alloc::vec::Vec;
use udm_core::bio::Bio;
use udm_lane::{BufPool, Payload, Segment};
use udm_types::{BioFlags, LaneId, Op};

/// Random probabilities are given in billionths.
pub(super) const PROBABILITY_BASE: u32 = 1_000_000_000;

/// Corrupted writes under way at the most, on each lane. Each holds a copy of its data; 64 keep a
/// deep queue of small writes busy and bound the copies of 1 MiB requests to 64 MiB.
pub(super) const COPIES_MAX: usize = 64;

/// `corrupt_bio_byte`: one byte at a fixed place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FixedByte {
    /// Which byte, counted from 1.
    pub(super) nth: u32,
    /// On writes (else on reads).
    pub(super) on_write: bool,
    /// What it becomes.
    pub(super) value: u8,
    /// Only bios whose flags have all of these (Linux's numbers, see [`opf`]).
    pub(super) flags: u32,
}

/// A byte to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    offset_bytes: u64,
    value: u8,
}

/// At most one fixed and one random change.
pub(super) type Changes = [Option<Change>; 2];

/// Decides what to spoil in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spoiler {
    pub(super) fixed: Option<FixedByte>,
    /// Chance of a random byte, in billionths.
    pub(super) random: u32,
}

impl Spoiler {
    /// True if it never does anything.
    pub(super) fn is_idle(&self) -> bool {
        self.fixed.is_none() && self.random == 0
    }

    /// What to change in this bio.
    pub(super) fn pick(&self, bio: &Bio, rng: &mut fastrand::Rng) -> Changes {
        let len_bytes = bio.payload.len_bytes();
        if len_bytes == 0 {
            return [None; 2];
        }
        let fixed = self.fixed.and_then(|fixed| {
            let offset_bytes = u64::from(fixed.nth) - 1;
            let matches = opf(bio) & fixed.flags == fixed.flags;
            let value = fixed.value;
            (matches && offset_bytes < len_bytes).then_some(Change { offset_bytes, value })
        });
        let hit = self.random > 0 && rng.u32(0..PROBABILITY_BASE) < self.random;
        let random =
            hit.then(|| Change { offset_bytes: rng.u64(0..len_bytes), value: rng.u8(0..=u8::MAX) });
        [fixed, random]
    }
}

/// Changes bytes of a payload.
pub(super) fn apply(changes: Changes, payload: &Payload) {
    for change in changes.into_iter().flatten() {
        payload.fill(change.offset_bytes, 1, change.value);
    }
}

/// The operation and flags of a bio as the number Linux keeps them in, for the flag mask of
/// `corrupt_bio_byte`. Flags that do not exist in user space are never set.
fn opf(bio: &Bio) -> u32 {
    const FUA: u32 = 1 << 17;
    const PREFLUSH: u32 = 1 << 18;
    let mut opf = match bio.op {
        Op::Read => 0,
        Op::Write => 1,
        Op::Flush => 1 | PREFLUSH,
        Op::Discard => 3,
        Op::WriteZeroes => 9,
    };
    if bio.flags.contains(BioFlags::FUA) {
        opf |= FUA;
    }
    if bio.flags.contains(BioFlags::PREFLUSH) {
        opf |= PREFLUSH;
    }
    opf
}

/// The generator of one lane.
pub(super) fn lane_rng(seed: u64, lane: LaneId) -> fastrand::Rng {
    // Lanes of one load must not draw the same numbers; an odd factor keeps the seeds distinct.
    let own = (u64::from(lane.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    fastrand::Rng::with_seed(seed ^ own)
}

/// Private copies of writes under way.
pub(super) struct Copies {
    /// The original payloads, by slot.
    originals: Vec<Option<Payload>>,
    free: Vec<usize>,
    bufs: BufPool,
}

impl Copies {
    pub(super) fn new() -> Copies {
        Copies { originals: Vec::new(), free: Vec::new(), bufs: BufPool::new() }
    }

    /// True if no further copy may be made now.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.originals.len() >= COPIES_MAX
    }

    /// Gives the bio a changed copy of its data; the result finds the original again.
    pub(super) fn swap_in(&mut self, bio: &mut Bio, changes: Changes) -> u64 {
        let len_bytes = bio.payload.len_bytes();
        let len = usize::try_from(len_bytes).expect("invariant: a payload is in memory");
        let buf = self.bufs.take(len);
        bio.payload.for_range(0, len_bytes, |segment, start, part, done| {
            let from = (segment.offset_bytes + start) as usize;
            segment.buf.copy_to(from, &buf, done, part as usize);
        });
        let len_bytes = u32::try_from(len).expect("invariant: a request is below 4 GiB");
        let copy = Payload::from(Segment { buf, offset_bytes: 0, len_bytes });
        apply(changes, &copy);
        let original = core::mem::replace(&mut bio.payload, copy);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.originals.push(None);
            self.originals.len() - 1
        });
        self.originals[slot] = Some(original);
        slot as u64
    }

    /// Gives the bio its own data back.
    pub(super) fn swap_out(&mut self, bio: &mut Bio, slot: u64) {
        let slot = usize::try_from(slot).expect("invariant: slots count from 0");
        let Some(original) = self.originals.get_mut(slot).and_then(Option::take) else { return };
        let copy = core::mem::replace(&mut bio.payload, original);
        if let Some(buf) = copy.into_first_buf() {
            self.bufs.put(buf);
        }
        self.free.push(slot);
    }
}
