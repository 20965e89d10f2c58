//! The superblock of a compress volume: what it is, and how to read everything else.
//!
//! Read first by everybody, written by `format` and by resizes of the device. The shared part, the
//! copies and the choice among them are in `udm_meta::superblock`.
//!
//! Rules. A superblock that is believed has a geometry that was checked; features we do not know
//! are respected. It never says anything that changes while the volume works.
//!
//! The tricky case is a device whose size changed: the third copy lies at the end the device *had*.
//! [`Superblock::find`] looks at the end of today's device and, if a copy names another, there.

use super::codec::Codec;
use super::geometry::{Geometry, GeometryFault};
use super::{BLOCK_SHIFT, SegmentEntry};
use alloc::vec::Vec;
use core::fmt;
use udm_meta::Disk;
use udm_meta::checkpoint::CheckpointSlots;
use udm_meta::page::PageMarks;
use udm_meta::record::RecordRules;
use udm_meta::superblock::{
    CopyReport, SUPERBLOCK_BYTES, SuperblockHead, SuperblockImage, read_copies,
};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first eight bytes of a compress volume.
pub const MAGIC: &[u8; 8] = b"UDMLSC01";
/// The version of the format.
pub const VERSION: u32 = 1;
/// Magic of checkpoints.
const CHECKPOINT_MAGIC: [u8; 4] = *b"ICK1";
/// Magic of pages.
const PAGE_MAGIC: [u8; 4] = *b"ICP1";
/// Magic of records.
const RECORD_MAGIC: [u8; 4] = *b"ICR1";

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOwn {
    block_shift: u8,
    physical_shift: u8,
    segment_shift: u8,
    unit_shift: u8,
    device_bytes: U64,
    checkpoint_offset_bytes: U64,
    checkpoint_len_bytes: U64,
    data_offset_bytes: U64,
    record_limit_bytes: U32,
    codec: u8,
    level: i8,
    extent_blocks: u8,
    flags: u8,
    reserve_segments: U64,
    segment_pages: U64,
}
const _: () = assert!(size_of::<RawOwn>() == 120 - 60);

/// Flag: the device size was asked for ([`Superblock::is_sized`]).
const FLAG_SIZED: u8 = 1;

/// What a table line that does not say otherwise gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// How data is compressed.
    pub codec: Codec,
    /// How hard; 0 is the codec's own default.
    pub level: i8,
}

/// A compress volume's superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The volume.
    pub uuid: [u8; 16],
    /// Where its checksums start from.
    pub salt: u32,
    /// How often the superblock was rewritten.
    pub generation: u64,
    /// Where everything lies.
    pub geometry: Geometry,
    /// Defaults for its users.
    pub defaults: Defaults,
    /// The volume was made smaller than its device on purpose: it does not grow by itself, since
    /// the device is going to be cut.
    pub is_sized: bool,
}

/// Why a whole superblock cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperblockFault {
    /// Another version.
    Version(u32),
    /// Features that are not known here: `(read-only compatible, incompatible)`.
    Features(u64, u64),
    /// Blocks of another size, an unknown default codec or flag.
    Fields,
    /// An impossible geometry.
    Geometry(GeometryFault),
}

/// The outcome of looking for a superblock.
#[derive(Clone, Debug)]
pub struct Found {
    /// The superblock, or nothing if no copy is whole, or why the newest one cannot be used.
    pub superblock: Option<Result<Superblock, SuperblockFault>>,
    /// Each copy.
    pub reports: Vec<CopyReport>,
}

impl Superblock {
    /// Looks for the copies on `disk`.
    pub async fn find(disk: &Disk) -> Found {
        let end = disk.len_bytes() - disk.len_bytes() % SUPERBLOCK_BYTES as u64;
        let mut places = alloc::vec![0, SUPERBLOCK_BYTES as u64];
        places.extend(end.checked_sub(SUPERBLOCK_BYTES as u64).filter(|at| *at > 4096));
        let mut copies = read_copies(disk, MAGIC, &places).await;
        let parsed = copies.newest.as_ref().map(Superblock::parse);
        if let Some(Ok(superblock)) = parsed {
            let third = superblock.geometry.superblock_offsets()[2];
            if !places.contains(&third) {
                // The device has another size than the volume: the last report is of no copy.
                copies.reports.truncate(2);
                copies.reports.extend(read_copies(disk, MAGIC, &[third]).await.reports);
            }
        }
        Found { superblock: parsed, reports: copies.reports }
    }

    /// Believes a whole image if everything in it makes sense.
    ///
    /// # Errors
    /// What does not.
    pub fn parse(image: &SuperblockImage) -> Result<Superblock, SuperblockFault> {
        let head = image.head();
        if head.version.get() != VERSION {
            return Err(SuperblockFault::Version(head.version.get()));
        }
        let (read_only, incompatible) =
            (head.features_read_only.get(), head.features_incompatible.get());
        if (read_only, incompatible) != (0, 0) {
            return Err(SuperblockFault::Features(read_only, incompatible));
        }
        let (raw, _zero) =
            RawOwn::read_from_prefix(image.own()).map_err(|_short| SuperblockFault::Fields)?;
        let codec = Codec::from_number(raw.codec).ok_or(SuperblockFault::Fields)?;
        let is_known = raw.block_shift == BLOCK_SHIFT && raw.flags & !FLAG_SIZED == 0;
        if !is_known || image.generation() >= 1 << 63 {
            return Err(SuperblockFault::Fields);
        }
        let geometry = Geometry {
            physical_shift: raw.physical_shift,
            segment_shift: raw.segment_shift,
            unit_shift: raw.unit_shift,
            device_bytes: raw.device_bytes.get(),
            checkpoint_offset_bytes: raw.checkpoint_offset_bytes.get(),
            checkpoint_len_bytes: raw.checkpoint_len_bytes.get(),
            data_offset_bytes: raw.data_offset_bytes.get(),
            record_limit_bytes: raw.record_limit_bytes.get(),
            extent_blocks: raw.extent_blocks,
            reserve_segments: raw.reserve_segments.get(),
            segment_pages: raw.segment_pages.get(),
        };
        geometry.check().map_err(SuperblockFault::Geometry)?;
        Ok(Superblock {
            uuid: head.uuid,
            salt: head.salt.get(),
            generation: image.generation(),
            geometry,
            defaults: Defaults { codec, level: raw.level },
            is_sized: raw.flags & FLAG_SIZED != 0,
        })
    }

    /// As bytes, sealed.
    pub fn to_image(&self) -> SuperblockImage {
        let mut head = SuperblockHead::new_zeroed();
        head.magic = *MAGIC;
        head.version.set(VERSION);
        head.uuid = self.uuid;
        head.salt.set(self.salt);
        let geometry = &self.geometry;
        let raw = RawOwn {
            block_shift: geometry.block_shift(),
            physical_shift: geometry.physical_shift,
            segment_shift: geometry.segment_shift,
            unit_shift: geometry.unit_shift,
            device_bytes: geometry.device_bytes.into(),
            checkpoint_offset_bytes: geometry.checkpoint_offset_bytes.into(),
            checkpoint_len_bytes: geometry.checkpoint_len_bytes.into(),
            data_offset_bytes: geometry.data_offset_bytes.into(),
            record_limit_bytes: geometry.record_limit_bytes.into(),
            codec: self.defaults.codec.number(),
            level: self.defaults.level,
            extent_blocks: geometry.extent_blocks,
            flags: if self.is_sized { FLAG_SIZED } else { 0 },
            reserve_segments: geometry.reserve_segments.into(),
            segment_pages: geometry.segment_pages.into(),
        };
        SuperblockImage::new(head, raw.as_bytes(), self.generation)
    }

    /// The checkpoint slots of the volume.
    pub fn checkpoint_slots(&self) -> CheckpointSlots {
        CheckpointSlots {
            magic: CHECKPOINT_MAGIC,
            salt: self.salt,
            offset_bytes: self.geometry.checkpoint_offset_bytes,
            len_bytes: self.geometry.checkpoint_len_bytes,
        }
    }

    /// What its pages have in common.
    pub fn page_marks(&self) -> PageMarks {
        PageMarks { magic: PAGE_MAGIC, uuid: self.uuid, salt: self.salt }
    }

    /// What its records have in common.
    pub fn record_rules(&self) -> RecordRules {
        let small =
            |bytes: u64| u32::try_from(bytes).expect("invariant: checked with the geometry");
        RecordRules {
            magic: RECORD_MAGIC,
            salt: self.salt,
            align_bytes: small(self.geometry.physical_bytes()),
            unit_bytes: small(self.geometry.unit_bytes()),
            limit_bytes: self.geometry.record_limit_bytes,
            segment_bytes: small(self.geometry.segment_bytes()),
        }
    }

    /// The entry of a segment whose page was never written.
    pub fn untouched_segment() -> SegmentEntry {
        SegmentEntry::default()
    }
}

impl fmt::Display for SuperblockFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SuperblockFault::Version(version) => {
                write!(f, "version {version} of the format is not known here")
            }
            SuperblockFault::Features(read_only, incompatible) => {
                write!(f, "features {read_only:#x}/{incompatible:#x} are not known here")
            }
            SuperblockFault::Fields => f.write_str("block size, codec or a flag is not known here"),
            SuperblockFault::Geometry(fault) => write!(f, "impossible geometry: {fault}"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Codec, Defaults, Geometry, MAGIC, Superblock, SuperblockFault};
    use crate::compress::format::Shape;
    use udm_meta::host::MemoryHost;
    use udm_meta::superblock::{SUPERBLOCK_BYTES, SuperblockImage, write_copies};

    /// A volume of 16 KiB segments on 256 KiB, with room for 20 logical blocks.
    pub(crate) fn tiny() -> Superblock {
        let shape = Shape {
            physical_shift: 9,
            segment_shift: 14,
            record_limit_bytes: 16384,
            extent_blocks: 2,
            reserve_segments: 3,
            growth: 2,
            ..Shape::for_device(0)
        };
        Superblock {
            uuid: [7; 16],
            salt: 99,
            generation: 1,
            geometry: Geometry::plan(256 << 10, Some(20 * 4096), &shape).expect("fits"),
            defaults: Defaults { codec: Codec::Zstd, level: -3 },
            is_sized: true,
        }
    }

    #[test]
    fn a_superblock_survives_bytes() {
        let superblock = tiny();
        let image = superblock.to_image();
        assert_eq!(Superblock::parse(&image), Ok(superblock));
        // The offsets that other programs may know by heart.
        let bytes = image.as_bytes();
        assert_eq!((&bytes[..8], bytes[12], bytes[60], bytes[62]), (&MAGIC[..], 1, 12, 14));
        assert_eq!((bytes[100], bytes[101] as i8, bytes[102], bytes[103]), (2, -3, 2, 1));
        assert_eq!(bytes[64..72], (256_u64 << 10).to_le_bytes());
    }

    fn with_byte(at: usize, value: u8) -> Result<Superblock, SuperblockFault> {
        let mut bytes = tiny().to_image().as_bytes().to_vec();
        bytes[at] = value;
        let sum = udm_meta::sum::crc32c(0, &bytes[12..]);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        Superblock::parse(&SuperblockImage::parse(MAGIC, &bytes).expect("sealed"))
    }

    #[test]
    fn what_is_not_known_is_respected() {
        assert_eq!(with_byte(12, 2), Err(SuperblockFault::Version(2)));
        assert!(with_byte(32, 1).is_ok());
        assert_eq!(with_byte(40, 1), Err(SuperblockFault::Features(1, 0)));
        assert_eq!(with_byte(48, 1), Err(SuperblockFault::Features(0, 1)));
        assert_eq!(with_byte(60, 13), Err(SuperblockFault::Fields));
        assert_eq!(with_byte(100, 7), Err(SuperblockFault::Fields));
        assert_eq!(with_byte(103, 2), Err(SuperblockFault::Fields));
        assert!(matches!(with_byte(62, 40), Err(SuperblockFault::Geometry(_))));
    }

    #[test]
    fn a_volume_is_found_by_any_copy_also_on_a_device_that_grew() {
        let superblock = tiny();
        let mut host = MemoryHost::new((256 << 10) + 512);
        let places = superblock.geometry.superblock_offsets();
        let image = superblock.to_image();
        let written = host.run(|disk| async move { write_copies(&disk, &places, &image).await });
        written.expect("written");
        host.bytes[..2 * SUPERBLOCK_BYTES].fill(0);
        let found = host.run(|disk| async move { Superblock::find(&disk).await });
        assert_eq!(found.superblock, Some(Ok(superblock)));
        assert_eq!(found.reports[2].state, Ok(1));
        let whole = superblock.to_image();
        host.bytes[..SUPERBLOCK_BYTES].copy_from_slice(whole.as_bytes());
        host.bytes.resize(300 << 10, 0);
        let found = host.run(|disk| async move { Superblock::find(&disk).await });
        let states: alloc::vec::Vec<_> = found.reports.iter().map(|r| r.state.is_ok()).collect();
        assert_eq!(states, [true, false, true]);
        let nothing = MemoryHost::new(100).run(|disk| async move { Superblock::find(&disk).await });
        assert!(nothing.superblock.is_none());
    }
}
