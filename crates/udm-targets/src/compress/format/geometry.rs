//! Where everything lies on the disk: computed from a few numbers, checked in one place.
//!
//! ```text
//! 0           superblock copy 0        8 KiB   checkpoint slot 0, slot 1
//! 4 KiB       superblock copy 1        META    pairs of pages: segment pages, then map pages
//! end - 4 KiB superblock copy 2        DATA    segments, all of one length
//! ```
//!
//! Used by whoever touches the disk: the volume, the tools, the crash enumerator.
//!
//! Rules. [`Geometry::check`] is the only judge of what is possible; a geometry that passed it
//! never overflows in any method here. Limits allow tiny volumes (16 KiB segments) for crash
//! tests; what people may ask for is narrower and the command line's business.
//!
//! The tricky case is growth. Pages are numbered once and for all, segment pages first, so `format`
//! sets aside page *numbers* (and their pairs in META) for more segments than there are, and makes
//! the checkpoint slots long enough for the slot array of a larger map. A map page that has a
//! number but no place in META gets one in a segment when the map grows.

use super::{ADDRESS_LIMIT, BLOCK_BYTES, BLOCK_LIMIT, BLOCK_SHIFT};
use core::fmt;
use udm_meta::page::{PAGE_BYTES, PAGE_PAIR_BYTES, PageRegion};
use udm_meta::record::LogPlace;
use udm_meta::slots::SlotArray;

/// Map entries of a page.
pub const MAP_ENTRIES: u64 = 504;
/// Segment entries of a page.
pub const SEGMENT_ENTRIES: u64 = 252;
/// Bytes of a page or of a superblock copy.
const PAGE: u64 = PAGE_BYTES as u64;
/// The smallest number of segments: one open, one next, one to clean into, one with data.
pub const SEGMENTS_MIN: u64 = 4;
/// The longest record: what a recovery or a tool has to hold in memory at once.
pub const RECORD_LIMIT_MAX: u32 = 1 << 20;
/// Of what can be stored, the share that is promised without compression, in percent. The rest is
/// room for cleaning: at 92 % live, cleaning costs about five bytes a byte, and rises steeply.
const GUARANTEED_PERCENT: u64 = 92;

/// What `format` may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Log2 of the physical alignment: 9 to 12.
    pub physical_shift: u8,
    /// Log2 of a segment's length: 14 to 26.
    pub segment_shift: u8,
    /// Log2 of the address unit: 6 to 9.
    pub unit_shift: u8,
    /// The longest record; a multiple of the physical alignment, at most a segment.
    pub record_limit_bytes: u32,
    /// The longest extent: 1 to 15.
    pub extent_blocks: u8,
    /// Segments that users never get.
    pub reserve_segments: u64,
    /// How many times larger device and map can become.
    pub growth: u64,
}

impl Shape {
    /// The default for a device: smaller segments on small ones, so that the reserve stays small.
    pub fn for_device(device_bytes: u64) -> Shape {
        let segment_shift = if device_bytes < 1 << 30 { 20 } else { 22 };
        Shape {
            physical_shift: 12,
            segment_shift,
            unit_shift: 6,
            record_limit_bytes: 512 << 10,
            extent_blocks: 8,
            reserve_segments: 8,
            growth: 16,
        }
    }
}

/// The numbers that say where everything is. All of them are in the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Log2 of the physical alignment.
    pub physical_shift: u8,
    /// Log2 of a segment's length.
    pub segment_shift: u8,
    /// Log2 of the address unit.
    pub unit_shift: u8,
    /// Length of the device.
    pub device_bytes: u64,
    /// Where checkpoint slot 0 begins.
    pub checkpoint_offset_bytes: u64,
    /// Length of a checkpoint slot.
    pub checkpoint_len_bytes: u64,
    /// Where DATA begins.
    pub data_offset_bytes: u64,
    /// The longest record.
    pub record_limit_bytes: u32,
    /// The longest extent.
    pub extent_blocks: u8,
    /// Segments that users never get.
    pub reserve_segments: u64,
    /// Page numbers set aside for segment pages.
    pub segment_pages: u64,
}

/// Why a geometry is impossible, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeometryFault(pub &'static str);

impl fmt::Display for GeometryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

fn require(holds: bool, otherwise: &'static str) -> Result<(), GeometryFault> {
    if holds { Ok(()) } else { Err(GeometryFault(otherwise)) }
}

impl Geometry {
    /// Lays out a new volume. Without a logical size, META has room for the guaranteed one.
    ///
    /// # Errors
    /// What does not fit.
    pub fn plan(
        device_bytes: u64,
        logical_bytes: Option<u64>,
        shape: &Shape,
    ) -> Result<Geometry, GeometryFault> {
        require(shape.segment_shift <= 26, "segments are larger than 64 MiB")?;
        let device_bytes = device_bytes - device_bytes % BLOCK_BYTES;
        require(device_bytes < ADDRESS_LIMIT << 9, "the device is too large")?;
        let logical_blocks = logical_bytes.unwrap_or(device_bytes).div_ceil(BLOCK_BYTES);
        require(logical_blocks <= BLOCK_LIMIT, "the logical size is too large")?;
        let growth = shape.growth.clamp(1, 1 << 10);
        let segments = device_bytes >> shape.segment_shift;
        let segment_pages = segments.saturating_mul(growth).div_ceil(SEGMENT_ENTRIES).max(1);
        let map_pages = logical_blocks.div_ceil(MAP_ENTRIES).max(1);
        let most_pages = segment_pages + map_pages.saturating_mul(growth);
        let array_bytes = SlotArray::len_bytes_of(most_pages);
        let checkpoint_len_bytes = PAGE + array_bytes.next_multiple_of(PAGE);
        let checkpoint_offset_bytes = 2 * PAGE;
        let meta_at = checkpoint_offset_bytes + 2 * checkpoint_len_bytes;
        let meta_end = meta_at + (segment_pages + map_pages) * PAGE_PAIR_BYTES;
        // Discards go to the device below in whole segments: keep them aligned, within reason.
        let align = (1_u64 << shape.segment_shift).clamp(PAGE, 1 << 20);
        let geometry = Geometry {
            physical_shift: shape.physical_shift,
            segment_shift: shape.segment_shift,
            unit_shift: shape.unit_shift,
            device_bytes,
            checkpoint_offset_bytes,
            checkpoint_len_bytes,
            data_offset_bytes: meta_end.next_multiple_of(align),
            record_limit_bytes: shape.record_limit_bytes,
            extent_blocks: shape.extent_blocks,
            reserve_segments: shape.reserve_segments,
            segment_pages,
        };
        geometry.check()?;
        Ok(geometry)
    }

    /// Whether all numbers fit together. Nothing else in this file may be asked before.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), GeometryFault> {
        require((9..=12).contains(&self.physical_shift), "the alignment is not 512 to 4096 bytes")?;
        require((14..=26).contains(&self.segment_shift), "segments are not 16 KiB to 64 MiB")?;
        require((6..=9).contains(&self.unit_shift), "the address unit is not 64 to 512 bytes")?;
        require((1..=15).contains(&self.extent_blocks), "extents are not 1 to 15 blocks")?;
        let limit = u64::from(self.record_limit_bytes);
        let one_extent = self.record_bytes_of(1, u64::from(self.extent_blocks));
        let is_limit_sound = limit.is_multiple_of(self.physical_bytes())
            && limit <= self.segment_bytes()
            && self.record_limit_bytes <= RECORD_LIMIT_MAX
            && limit >= one_extent;
        require(is_limit_sound, "the longest record does not fit segments and extents")?;
        require(self.device_bytes.is_multiple_of(PAGE), "the device is no multiple of 4 KiB")?;
        require(self.device_bytes < ADDRESS_LIMIT << 9, "the device is too large")?;
        let slots_end = self
            .checkpoint_len_bytes
            .checked_mul(2)
            .and_then(|both| both.checked_add(self.checkpoint_offset_bytes));
        let is_slots_sound = self.checkpoint_offset_bytes >= 2 * PAGE
            && self.checkpoint_offset_bytes.is_multiple_of(PAGE)
            && self.checkpoint_len_bytes.is_multiple_of(PAGE)
            && (2 * PAGE..1 << 32).contains(&self.checkpoint_len_bytes)
            && slots_end.is_some_and(|end| end <= self.data_offset_bytes);
        require(is_slots_sound, "the checkpoint slots do not fit before the data")?;
        let is_data_sound = self.data_offset_bytes.is_multiple_of(PAGE)
            && self.data_offset_bytes < self.device_bytes;
        require(is_data_sound, "the data does not begin inside the device")?;
        let segments = self.segment_limit();
        require(segments >= SEGMENTS_MIN, "the device is too small")?;
        require(segments < u64::from(u32::MAX), "there are too many segments")?;
        let units = (segments << self.segment_shift) >> self.unit_shift;
        require(units <= ADDRESS_LIMIT, "the device is too large for its address unit")?;
        require(self.reserve_segments < segments, "the reserve leaves no segment")?;
        require(self.segment_pages < 1 << 40, "there are too many segment pages")?;
        let is_table_sound = segments <= self.segment_pages * SEGMENT_ENTRIES
            && self.segment_pages < self.meta_pages()
            && self.meta_pages() <= self.page_limit();
        require(is_table_sound, "segment pages and map pages do not fit")
    }

    /// Bytes of a record with `extents` extents of `blocks` raw blocks each.
    fn record_bytes_of(&self, extents: u64, blocks: u64) -> u64 {
        let table = (64 + 8 * extents).next_multiple_of(self.unit_bytes());
        let extent = (16 + blocks * BLOCK_BYTES).next_multiple_of(self.unit_bytes());
        (table + extents * extent).next_multiple_of(self.physical_bytes())
    }

    /// The physical alignment.
    pub fn physical_bytes(&self) -> u64 {
        1 << self.physical_shift
    }

    /// The address unit.
    pub fn unit_bytes(&self) -> u64 {
        1 << self.unit_shift
    }

    /// Length of a segment.
    pub fn segment_bytes(&self) -> u64 {
        1 << self.segment_shift
    }

    /// Segments that fit the device. A checkpoint may use fewer.
    pub fn segment_limit(&self) -> u64 {
        let end = self.device_bytes.saturating_sub(PAGE);
        end.saturating_sub(self.data_offset_bytes) >> self.segment_shift
    }

    /// Where the superblock copies are.
    pub fn superblock_offsets(&self) -> [u64; 3] {
        [0, PAGE, self.device_bytes - PAGE]
    }

    /// Where META begins.
    pub fn meta_offset_bytes(&self) -> u64 {
        self.checkpoint_offset_bytes + 2 * self.checkpoint_len_bytes
    }

    /// Pages with a place in META.
    pub fn meta_pages(&self) -> u64 {
        (self.data_offset_bytes - self.meta_offset_bytes()) / PAGE_PAIR_BYTES
    }

    /// Pages that the checkpoint slots have room for.
    pub fn page_limit(&self) -> u64 {
        (self.checkpoint_len_bytes - PAGE) * 4
    }

    /// META as the first region of pages.
    pub fn meta_region(&self) -> PageRegion {
        let offset_bytes = self.meta_offset_bytes();
        PageRegion { first_page: 0, page_count: self.meta_pages(), offset_bytes }
    }

    /// Pages of a volume with so many logical blocks: the length of its slot array.
    pub fn page_count(&self, logical_blocks: u64) -> u64 {
        self.segment_pages + logical_blocks.div_ceil(MAP_ENTRIES)
    }

    /// The most logical blocks the slot array can grow to.
    pub fn logical_limit_blocks(&self) -> u64 {
        ((self.page_limit() - self.segment_pages) * MAP_ENTRIES).min(BLOCK_LIMIT)
    }

    /// The page that maps a block, and where in it.
    pub fn map_page_of(&self, block: u64) -> (u64, usize) {
        (self.segment_pages + block / MAP_ENTRIES, (block % MAP_ENTRIES) as usize)
    }

    /// The first block that a map page maps; nothing for a segment page.
    pub fn first_block_of(&self, page: u64) -> Option<u64> {
        page.checked_sub(self.segment_pages).map(|index| index * MAP_ENTRIES)
    }

    /// The page with a segment's entry, and where in it.
    pub fn segment_page_of(&self, segment: u32) -> (u64, usize) {
        let segment = u64::from(segment);
        (segment / SEGMENT_ENTRIES, (segment % SEGMENT_ENTRIES) as usize)
    }

    /// Where a segment begins.
    pub fn segment_offset_bytes(&self, segment: u32) -> u64 {
        self.data_offset_bytes + (u64::from(segment) << self.segment_shift)
    }

    /// Where a place in the log is on the disk.
    pub fn offset_of(&self, place: LogPlace) -> u64 {
        self.segment_offset_bytes(place.segment) + u64::from(place.offset_bytes)
    }

    /// The address of a place in the log, in units from the start of DATA.
    pub fn address_of(&self, place: LogPlace) -> u64 {
        let bytes =
            (u64::from(place.segment) << self.segment_shift) + u64::from(place.offset_bytes);
        bytes >> self.unit_shift
    }

    /// The place of an address below [`ADDRESS_LIMIT`]; its segment may not exist.
    pub fn place_of(&self, address: u64) -> LogPlace {
        let bytes = address << self.unit_shift;
        let segment = u32::try_from(bytes >> self.segment_shift).unwrap_or(u32::MAX);
        let offset_bytes = (bytes & (self.segment_bytes() - 1)) as u32;
        LogPlace { segment, offset_bytes }
    }

    /// Blocks that fit a segment if nothing can be compressed and records are full.
    pub fn raw_blocks_of_segment(&self) -> u64 {
        let blocks_of = |bytes: u64| {
            // The largest n whose record is no longer than `bytes`: guess low, then step up.
            let extent = (16 + BLOCK_BYTES).next_multiple_of(self.unit_bytes()) + 8;
            let mut count = bytes.saturating_sub(64 + self.unit_bytes()) / extent;
            while self.record_bytes_of(count + 1, 1) <= bytes {
                count += 1;
            }
            count
        };
        let limit = u64::from(self.record_limit_bytes);
        let whole = self.segment_bytes() / limit;
        whole * blocks_of(limit) + blocks_of(self.segment_bytes() % limit)
    }

    /// The logical size that can always be filled, with data that does not compress.
    pub fn guaranteed_blocks(&self) -> u64 {
        // The open segment and the one behind it are never full.
        let usable = self.segment_limit().saturating_sub(self.reserve_segments + 2);
        let blocks = usable.saturating_mul(self.raw_blocks_of_segment());
        (blocks.saturating_mul(GUARANTEED_PERCENT) / 100).clamp(1, self.logical_limit_blocks())
    }

    /// Log2 of a block's length, as the superblock says it.
    pub fn block_shift(&self) -> u8 {
        BLOCK_SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::{Geometry, Shape};
    use udm_meta::record::LogPlace;

    fn tiny() -> Shape {
        Shape {
            physical_shift: 9,
            segment_shift: 14,
            record_limit_bytes: 16384,
            extent_blocks: 2,
            reserve_segments: 3,
            growth: 2,
            ..Shape::for_device(0)
        }
    }

    #[test]
    fn a_terabyte_is_laid_out_as_designed() {
        let tib = 1_u64 << 40;
        let geometry = Geometry::plan(tib, Some(tib), &Shape::for_device(tib)).expect("fits");
        // 0.4 % for the map, and 89 % of the device promised without compression.
        let overhead = geometry.data_offset_bytes as f64 / tib as f64;
        assert!((0.0039..0.0043).contains(&overhead), "{overhead}");
        let promised = (geometry.guaranteed_blocks() * 4096) as f64 / tib as f64;
        assert!((0.88..0.90).contains(&promised), "{promised}");
        assert!(geometry.logical_limit_blocks() * 4096 >= 16 * tib);
        assert_eq!(geometry.data_offset_bytes % (1 << 20), 0);
        let last = u32::try_from(geometry.segment_limit() - 1).expect("few");
        assert!(geometry.segment_offset_bytes(last) + geometry.segment_bytes() <= tib - 4096);
        assert!(geometry.segment_page_of(last).0 < geometry.segment_pages);
    }

    #[test]
    fn tiny_volumes_for_crash_tests_are_possible() {
        let geometry = Geometry::plan(256 << 10, Some(20 * 4096), &tiny()).expect("fits");
        assert!(geometry.segment_limit() >= 10, "{geometry:?}");
        assert_eq!(geometry.raw_blocks_of_segment(), 3);
        assert_eq!(geometry.page_count(20), 2);
    }

    #[test]
    fn addresses_lead_to_places_and_back() {
        let geometry = Geometry::plan(256 << 10, Some(20 * 4096), &tiny()).expect("fits");
        let place = LogPlace { segment: 3, offset_bytes: 16384 - 64 };
        let address = geometry.address_of(place);
        assert_eq!((address, geometry.place_of(address)), (4 * 256 - 1, place));
        assert_eq!(geometry.place_of(super::ADDRESS_LIMIT - 1).segment, u32::MAX);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let plan = |bytes, shape: &Shape| Geometry::plan(bytes, None, shape).map_err(|f| f.0);
        assert_eq!(plan(64 << 10, &tiny()), Err("the device is too small"));
        let reserve = Shape { reserve_segments: 100, ..tiny() };
        assert_eq!(plan(256 << 10, &reserve), Err("the reserve leaves no segment"));
        let record = Shape { record_limit_bytes: 4096, ..tiny() };
        let what = "the longest record does not fit segments and extents";
        assert_eq!(plan(256 << 10, &record), Err(what));
        let far = Geometry { data_offset_bytes: u64::MAX - 4095, ..tiny_geometry() };
        assert!(far.check().is_err());
        let long = Geometry { checkpoint_len_bytes: u64::MAX - 4095, ..tiny_geometry() };
        assert!(long.check().is_err());
        let pages = Geometry { segment_pages: u64::MAX, ..tiny_geometry() };
        assert!(pages.check().is_err());
    }

    fn tiny_geometry() -> Geometry {
        Geometry::plan(256 << 10, Some(20 * 4096), &tiny()).expect("fits")
    }
}
