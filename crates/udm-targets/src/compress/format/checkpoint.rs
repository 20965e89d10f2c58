//! The checkpoint: where the log goes on, how large the volume is, which slot each page is in.
//!
//! Written by the volume at the end of a merge and at the end of a recovery, by `format`, and by
//! `repair`. The slots, their choice and their checksums are `udm_meta::checkpoint`'s; this file
//! knows the fields.
//!
//! Rules. A [`Checkpoint`] that was parsed has a start place inside the volume, regions that do not
//! overlap, and a slot array for exactly its pages. What the segments and pages hold is not known
//! here.
//!
//! The tricky case: the start segment and the next segment are in use whatever the segment table
//! says. A new volume has no table at all on the disk (every page in slot "never written"), and
//! its checkpoint 1 starts the log in segment 0.

use super::geometry::Geometry;
use super::{BLOCK_LIMIT, Superblock};
use alloc::vec::Vec;
use bitflags::bitflags;
use core::fmt;
use udm_meta::chain::{Chain, Fence};
use udm_meta::checkpoint::{
    CHECKPOINT_HEAD_BYTES, CHECKPOINT_OWN_AT, CHECKPOINT_USED_AT, CheckpointImage, CheckpointSlots,
};
use udm_meta::page::{PAGE_PAIR_BYTES, PageRegion, PageRegions};
use udm_meta::record::LogPlace;
use udm_meta::slots::{SlotArray, SlotFault};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

bitflags! {
    /// The flags of a checkpoint.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct CheckpointFlags: u32 {
        /// The volume was shut down after it: no record follows.
        const CLEAN = 1;
        /// Damage was seen: read-only until checked.
        const NEEDS_CHECK = 2;
        /// Never to be written again.
        const READ_ONLY = 4;
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOwn {
    next_sequence: U64,
    epoch: U32,
    fence_epoch: U32,
    fence_sequence: U64,
    previous_hash: U64,
    start_segment: U32,
    start_units: U32,
    next_segment: U32,
    flags: U32,
    logical_blocks: U64,
    segments: U64,
    live_units: U64,
    live_blocks: U64,
    region_count: U32,
    zero: U32,
}
const _: () = assert!(size_of::<RawOwn>() == 104 - CHECKPOINT_OWN_AT);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRegion {
    first_page: U64,
    page_count: U64,
    offset_bytes: U64,
}

/// Sequences, checkpoint numbers and sums stay below this: a billion a second for three centuries.
pub(in crate::compress) const COUNT_LIMIT: u64 = 1 << 63;
/// Epochs stay below this: one more at each recovery.
const EPOCH_LIMIT: u32 = u32::MAX - (1 << 16);
/// Where the regions begin.
const REGIONS_AT: usize = CHECKPOINT_OWN_AT + size_of::<RawOwn>();
/// Regions of map pages in segments that a checkpoint has room for.
pub const REGIONS_MAX: usize = (CHECKPOINT_USED_AT - REGIONS_AT) / size_of::<RawRegion>();
const _: () = assert!(REGIONS_MAX == 166);

/// The fixed fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointHead {
    /// The first sequence to replay; the map holds everything before it.
    pub next_sequence: u64,
    /// The volume's epoch.
    pub epoch: u32,
    /// Tails that are shut out.
    pub fence: Fence,
    /// The hash of the record before the first one to replay; 0 if there is none.
    pub previous_hash: u64,
    /// Where that one may lie.
    pub start: LogPlace,
    /// The segment where it may begin otherwise.
    pub next_segment: u32,
    /// Flags.
    pub flags: CheckpointFlags,
    /// Logical size.
    pub logical_blocks: u64,
    /// Segments in use; at most what the device has room for.
    pub segments: u32,
    /// Sum over the segment table: units, for status only.
    pub live_units: u64,
    /// Sum over the segment table: blocks, exact.
    pub live_blocks: u64,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its number.
    pub number: u64,
    /// The fixed fields.
    pub head: CheckpointHead,
    /// Where pages lie: META first, then regions in segments.
    pub regions: PageRegions,
    /// Which slot each page is in.
    pub slots: SlotArray,
}

/// Why a whole checkpoint cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointContents {
    /// Flags nobody knows.
    Flags(u32),
    /// The log would go on outside the volume.
    Start,
    /// More segments than the device has room for, or too few.
    Segments(u64),
    /// A logical size that the slots have no room for.
    LogicalSize(u64),
    /// Regions that lie outside, overlap, or leave pages without a place.
    Regions,
    /// A number so high that the next one would not fit; nobody counts that far.
    Counters,
    /// The slot array.
    Slots(SlotFault),
}

impl CheckpointHead {
    /// The checkpoint of a new volume: nothing mapped, the log begins in segment 0.
    pub fn fresh(geometry: &Geometry, logical_blocks: u64) -> CheckpointHead {
        CheckpointHead {
            next_sequence: 1,
            epoch: 1,
            fence: Fence { sequence: 0, epoch: 1 },
            previous_hash: 0,
            start: LogPlace { segment: 0, offset_bytes: 0 },
            next_segment: 1,
            flags: CheckpointFlags::CLEAN,
            logical_blocks,
            segments: u32::try_from(geometry.segment_limit())
                .expect("invariant: checked with the geometry"),
            live_units: 0,
            live_blocks: 0,
        }
    }

    /// The chain of records that recovery follows from here.
    pub fn chain(&self) -> Chain {
        Chain {
            next_sequence: self.next_sequence,
            previous_hash: self.previous_hash,
            epoch_floor: 0,
            epoch_ceiling: self.epoch,
            fence: self.fence,
            place: self.start,
            next_segment: self.next_segment,
        }
    }

    /// Whether all that is counted can be counted on.
    fn check_counters(&self, number: u64) -> Result<(), CheckpointContents> {
        let (fence, units, blocks) = (self.fence.sequence, self.live_units, self.live_blocks);
        let is_sound = [number, self.next_sequence, fence, units, blocks]
            .iter()
            .all(|count| *count < COUNT_LIMIT);
        let is_sound = is_sound && self.epoch < EPOCH_LIMIT;
        if is_sound { Ok(()) } else { Err(CheckpointContents::Counters) }
    }

    fn check(&self, geometry: &Geometry) -> Result<(), CheckpointContents> {
        let segments = u64::from(self.segments);
        if !(super::geometry::SEGMENTS_MIN..=geometry.segment_limit()).contains(&segments) {
            return Err(CheckpointContents::Segments(segments));
        }
        let is_start_sound = self.start.segment < self.segments
            && self.next_segment < self.segments
            && self.next_segment != self.start.segment
            && u64::from(self.start.offset_bytes) <= geometry.segment_bytes()
            && u64::from(self.start.offset_bytes).is_multiple_of(geometry.physical_bytes())
            && self.next_sequence > 0;
        if !is_start_sound {
            return Err(CheckpointContents::Start);
        }
        if !(1..=geometry.logical_limit_blocks().min(BLOCK_LIMIT)).contains(&self.logical_blocks) {
            return Err(CheckpointContents::LogicalSize(self.logical_blocks));
        }
        Ok(())
    }
}

impl Checkpoint {
    /// Checkpoint 1 of a new volume.
    pub fn fresh(geometry: &Geometry, logical_blocks: u64) -> Checkpoint {
        let mut regions = PageRegions::default();
        regions.push(geometry.meta_region()).expect("invariant: META is the first region");
        Checkpoint {
            number: 1,
            head: CheckpointHead::fresh(geometry, logical_blocks),
            regions,
            slots: SlotArray::new(geometry.page_count(logical_blocks)),
        }
    }

    /// Believes a whole image if everything in it makes sense.
    ///
    /// # Errors
    /// What does not.
    pub fn parse(
        superblock: &Superblock,
        image: &CheckpointImage,
    ) -> Result<Checkpoint, CheckpointContents> {
        let geometry = &superblock.geometry;
        let bytes = &image.as_bytes()[CHECKPOINT_OWN_AT..CHECKPOINT_USED_AT];
        let (raw, regions) =
            RawOwn::read_from_prefix(bytes).map_err(|_short| CheckpointContents::Start)?;
        let flags = CheckpointFlags::from_bits(raw.flags.get())
            .ok_or(CheckpointContents::Flags(raw.flags.get()))?;
        let start_bytes = u64::from(raw.start_units.get()) << geometry.unit_shift;
        let start = LogPlace {
            segment: raw.start_segment.get(),
            offset_bytes: u32::try_from(start_bytes).map_err(|_| CheckpointContents::Start)?,
        };
        let segments = u32::try_from(raw.segments.get())
            .map_err(|_| CheckpointContents::Segments(raw.segments.get()))?;
        let head = CheckpointHead {
            next_sequence: raw.next_sequence.get(),
            epoch: raw.epoch.get(),
            fence: Fence { sequence: raw.fence_sequence.get(), epoch: raw.fence_epoch.get() },
            previous_hash: raw.previous_hash.get(),
            start,
            next_segment: raw.next_segment.get(),
            flags,
            logical_blocks: raw.logical_blocks.get(),
            segments,
            live_units: raw.live_units.get(),
            live_blocks: raw.live_blocks.get(),
        };
        head.check(geometry)?;
        head.check_counters(image.number())?;
        let count = raw.region_count.get() as usize;
        let regions = parse_regions(geometry, &head, regions, count)?;
        let pages = geometry.page_count(head.logical_blocks);
        if regions.page_count() < pages {
            return Err(CheckpointContents::Regions);
        }
        let slots = SlotArray::parse(image.body(), pages).map_err(CheckpointContents::Slots)?;
        Ok(Checkpoint { number: image.number(), head, regions, slots })
    }

    /// As bytes, ready for [`CheckpointSlots::write`], which fills in number and checksum.
    ///
    /// # Panics
    /// If there are more regions than a checkpoint has room for; who grows the map checks.
    pub fn to_bytes(&self, geometry: &Geometry) -> Vec<u8> {
        let array = self.slots.as_bytes();
        let used = CheckpointSlots::used_bytes(array.len() as u64);
        let mut bytes =
            alloc::vec![0; usize::try_from(used).expect("invariant: a slot is below 4 GiB")];
        let grown = &self.regions.as_slice()[1..];
        assert!(grown.len() <= REGIONS_MAX, "{} regions", grown.len());
        let head = &self.head;
        let raw = RawOwn {
            next_sequence: head.next_sequence.into(),
            epoch: head.epoch.into(),
            fence_epoch: head.fence.epoch.into(),
            fence_sequence: head.fence.sequence.into(),
            previous_hash: head.previous_hash.into(),
            start_segment: head.start.segment.into(),
            start_units: (head.start.offset_bytes >> geometry.unit_shift).into(),
            next_segment: head.next_segment.into(),
            flags: head.flags.bits().into(),
            logical_blocks: head.logical_blocks.into(),
            segments: u64::from(head.segments).into(),
            live_units: head.live_units.into(),
            live_blocks: head.live_blocks.into(),
            region_count: (grown.len() as u32).into(),
            zero: U32::ZERO,
        };
        bytes[CHECKPOINT_OWN_AT..REGIONS_AT].copy_from_slice(raw.as_bytes());
        for (index, region) in grown.iter().enumerate() {
            let raw = RawRegion {
                first_page: region.first_page.into(),
                page_count: region.page_count.into(),
                offset_bytes: region.offset_bytes.into(),
            };
            let at = REGIONS_AT + index * size_of::<RawRegion>();
            bytes[at..at + size_of::<RawRegion>()].copy_from_slice(raw.as_bytes());
        }
        bytes[CHECKPOINT_HEAD_BYTES..CHECKPOINT_HEAD_BYTES + array.len()].copy_from_slice(array);
        bytes
    }
}

/// META, and the regions in segments: whole segments, none used twice.
fn parse_regions(
    geometry: &Geometry,
    head: &CheckpointHead,
    bytes: &[u8],
    count: usize,
) -> Result<PageRegions, CheckpointContents> {
    let fault = CheckpointContents::Regions;
    if count > REGIONS_MAX {
        return Err(fault);
    }
    let mut regions = PageRegions::default();
    regions.push(geometry.meta_region()).map_err(|_region| fault)?;
    let mut segments: Vec<u32> = Vec::with_capacity(count);
    for index in 0..count {
        let at = index * size_of::<RawRegion>();
        let (raw, _rest) = RawRegion::read_from_prefix(&bytes[at..]).map_err(|_short| fault)?;
        let region = PageRegion {
            first_page: raw.first_page.get(),
            page_count: raw.page_count.get(),
            offset_bytes: raw.offset_bytes.get(),
        };
        let segment = region
            .offset_bytes
            .checked_sub(geometry.data_offset_bytes)
            .filter(|within| within.is_multiple_of(geometry.segment_bytes()))
            .and_then(|within| u32::try_from(within >> geometry.segment_shift).ok())
            .filter(|segment| *segment < head.segments && !segments.contains(segment))
            .ok_or(fault)?;
        let is_inside = region.page_count <= geometry.segment_bytes() / PAGE_PAIR_BYTES;
        if !is_inside || [head.start.segment, head.next_segment].contains(&segment) {
            return Err(fault);
        }
        segments.push(segment);
        regions.push(region).map_err(|_region| fault)?;
    }
    Ok(regions)
}

impl fmt::Display for CheckpointContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckpointContents::Flags(flags) => write!(f, "has unknown flags {flags:#x}"),
            CheckpointContents::Start => f.write_str("continues the log outside the volume"),
            CheckpointContents::Segments(count) => write!(f, "has {count} segments"),
            CheckpointContents::LogicalSize(blocks) => {
                write!(f, "has the impossible logical size of {blocks} blocks")
            }
            CheckpointContents::Regions => f.write_str("has map pages in impossible places"),
            CheckpointContents::Counters => f.write_str("has counts that nobody can have reached"),
            CheckpointContents::Slots(fault) => {
                write!(f, "has an impossible slot for page {}", fault.page)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Checkpoint, CheckpointContents, CheckpointFlags, Fence, LogPlace};
    use crate::compress::format::superblock::tests::tiny;
    use alloc::vec::Vec;
    use udm_meta::page::PageRegion;
    use udm_meta::slots::Slot;

    fn sealed(number: u64, mut bytes: Vec<u8>) -> Result<Checkpoint, CheckpointContents> {
        let superblock = tiny();
        let slots = superblock.checkpoint_slots();
        slots.seal(number, &mut bytes);
        let image = slots.parse(number % 2, &bytes).expect("sealed");
        Checkpoint::parse(&superblock, &image)
    }

    fn grown() -> Checkpoint {
        let geometry = tiny().geometry;
        let mut checkpoint = Checkpoint::fresh(&geometry, 20);
        checkpoint.number = 6;
        checkpoint.head.next_sequence = 1 << 33;
        checkpoint.head.fence = Fence { sequence: 77, epoch: 3 };
        checkpoint.head.epoch = 3;
        checkpoint.head.start = LogPlace { segment: 4, offset_bytes: 16384 };
        checkpoint.head.flags = CheckpointFlags::NEEDS_CHECK;
        let region = PageRegion {
            first_page: geometry.meta_pages(),
            page_count: 2,
            offset_bytes: geometry.segment_offset_bytes(7),
        };
        checkpoint.regions.push(region).expect("follows");
        checkpoint.slots.set(1, Some(Slot::B));
        checkpoint
    }

    #[test]
    fn checkpoints_survive_bytes() {
        let geometry = tiny().geometry;
        for checkpoint in [Checkpoint::fresh(&geometry, 20), grown()] {
            let bytes = checkpoint.to_bytes(&geometry);
            assert_eq!(sealed(checkpoint.number, bytes), Ok(checkpoint));
        }
    }

    #[test]
    fn the_chain_starts_where_the_checkpoint_says() {
        let chain = grown().head.chain();
        assert_eq!((chain.next_sequence, chain.epoch_ceiling, chain.epoch_floor), (1 << 33, 3, 0));
        assert_eq!((chain.place.segment, chain.next_segment), (4, 1));
    }

    fn with(at: usize, value: &[u8]) -> CheckpointContents {
        let mut bytes = grown().to_bytes(&tiny().geometry);
        bytes[at..at + value.len()].copy_from_slice(value);
        sealed(6, bytes).expect_err("refused")
    }

    #[test]
    fn contents_that_make_no_sense_are_refused() {
        assert_eq!(with(60, &[8]), CheckpointContents::Flags(8));
        assert_eq!(with(16, &[0; 8]), CheckpointContents::Start);
        assert_eq!(with(48, &[200]), CheckpointContents::Start);
        assert_eq!(with(52, &[1]), CheckpointContents::Start);
        assert_eq!(with(52, &[0xff; 4]), CheckpointContents::Start);
        assert_eq!(with(56, &[4]), CheckpointContents::Start);
        assert_eq!(with(64, &[0; 8]), CheckpointContents::LogicalSize(0));
        assert_eq!(with(64, &[0xff; 8]), CheckpointContents::LogicalSize(u64::MAX));
        assert_eq!(with(72, &[3]), CheckpointContents::Segments(3));
        assert_eq!(with(76, &[1]), CheckpointContents::Segments((1 << 32) + 12));
        assert_eq!(with(96, &[167]), CheckpointContents::Regions);
        assert_eq!(with(96, &[2]), CheckpointContents::Regions);
        assert_eq!(with(120, &[1]), CheckpointContents::Regions);
        assert_eq!(with(112, &[3]), CheckpointContents::Regions);
        assert_eq!(with(24, &[0xff; 4]), CheckpointContents::Counters);
        assert_eq!(with(23, &[0x80]), CheckpointContents::Counters);
        assert_eq!(with(87, &[0x80]), CheckpointContents::Counters);
        assert_eq!(with(95, &[0x80]), CheckpointContents::Counters);
        assert!(matches!(with(4096, &[3]), CheckpointContents::Slots(_)));
    }
}
