//! The superblock: one 4 KiB block that says what is on a disk, in several copies.
//!
//! It is written by `format`, and again only when the volume itself changes (a resize, an upgrade).
//! This file knows the part every format shares, byte for byte in docs/formats/meta.md; what lies
//! between is the format's own.
//!
//! Rules. A copy counts if its magic and its CRC are right, and of those the one with the highest
//! generation wins. [`write_copies`] makes the first copy durable before it touches the others, so
//! at every instant one whole copy is there.
//!
//! The tricky case is a crash between two copies of a changed superblock: some copies are new and
//! some old, all of them valid. The highest generation makes the choice the same every time; who
//! changes a superblock must be content with either until [`write_copies`] has returned.

use crate::bytes::{read_vec, write_bytes};
use crate::disk::{Disk, DiskError};
use crate::sum;
use alloc::vec::Vec;
use core::fmt;
use udm_types::Status;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a superblock.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// Where the CRC is.
const CRC_AT: usize = 8;
/// Where the generation is: the last eight bytes.
const GENERATION_AT: usize = SUPERBLOCK_BYTES - 8;

/// The first 60 bytes of every superblock.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SuperblockHead {
    /// Which format.
    pub magic: [u8; 8],
    /// CRC-32C of everything behind it; not salted, since the salt is inside.
    pub crc: U32,
    /// The format's version.
    pub version: U32,
    /// The volume's identity.
    pub uuid: [u8; 16],
    /// Features that a reader may ignore.
    pub features_compatible: U64,
    /// Features that a reader has to know before it writes.
    pub features_read_only: U64,
    /// Features that a reader has to know before it reads.
    pub features_incompatible: U64,
    /// Where every other checksum of the volume starts from.
    pub salt: U32,
}

/// Bytes of [`SuperblockHead`]: where a format's own part begins.
pub const SUPERBLOCK_HEAD_BYTES: usize = size_of::<SuperblockHead>();
const _: () = assert!(SUPERBLOCK_HEAD_BYTES == 60);

/// A superblock, byte by byte.
#[derive(Clone, PartialEq, Eq)]
pub struct SuperblockImage {
    bytes: Vec<u8>,
}

/// What is wrong with a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyFault {
    /// Its place is not on the disk.
    Outside,
    /// The disk did not give it.
    Unreadable(Status),
    /// Another magic, or nothing.
    Magic,
    /// The checksum is wrong.
    Checksum,
}

/// A copy, as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyReport {
    /// Where it lies.
    pub offset_bytes: u64,
    /// Its generation, or what is wrong.
    pub state: Result<u64, CopyFault>,
}

/// All copies, and the one to believe.
#[derive(Clone, Debug)]
pub struct Copies {
    /// The good copy with the highest generation.
    pub newest: Option<SuperblockImage>,
    /// Each copy, in the order asked for.
    pub reports: Vec<CopyReport>,
}

impl SuperblockImage {
    /// A sealed image of a head, the format's own part behind it, and a generation.
    ///
    /// # Panics
    /// If `own` is longer than the room for it.
    pub fn new(head: SuperblockHead, own: &[u8], generation: u64) -> SuperblockImage {
        let mut bytes = alloc::vec![0; SUPERBLOCK_BYTES];
        bytes[..SUPERBLOCK_HEAD_BYTES].copy_from_slice(head.as_bytes());
        let room = &mut bytes[SUPERBLOCK_HEAD_BYTES..GENERATION_AT];
        room[..own.len()].copy_from_slice(own);
        bytes[GENERATION_AT..].copy_from_slice(&generation.to_le_bytes());
        sum::seal(&mut bytes, CRC_AT, 0);
        SuperblockImage { bytes }
    }

    /// Believes `bytes` if magic and checksum are right.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(magic: &[u8; 8], bytes: &[u8]) -> Result<SuperblockImage, CopyFault> {
        if bytes.len() != SUPERBLOCK_BYTES || bytes[..8] != *magic {
            return Err(CopyFault::Magic);
        }
        if !sum::is_sealed(bytes, CRC_AT, 0) {
            return Err(CopyFault::Checksum);
        }
        Ok(SuperblockImage { bytes: bytes.to_vec() })
    }

    /// The shared part.
    pub fn head(&self) -> SuperblockHead {
        let (head, _own) = SuperblockHead::read_from_prefix(&self.bytes)
            .expect("invariant: an image has 4096 bytes");
        head
    }

    /// The format's own part.
    pub fn own(&self) -> &[u8] {
        &self.bytes[SUPERBLOCK_HEAD_BYTES..GENERATION_AT]
    }

    /// How often it was rewritten.
    pub fn generation(&self) -> u64 {
        let (generation, _nothing) = U64::read_from_prefix(&self.bytes[GENERATION_AT..])
            .expect("invariant: an image has 4096 bytes");
        generation.get()
    }

    /// All of it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for SuperblockImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SuperblockImage(generation {})", self.generation())
    }
}

impl fmt::Display for CopyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CopyFault::Outside => f.write_str("its place is beyond the end of the device"),
            CopyFault::Unreadable(status) => write!(f, "cannot be read: {}", status.describe()),
            CopyFault::Magic => f.write_str("is no superblock of this format"),
            CopyFault::Checksum => f.write_str("has a wrong checksum"),
        }
    }
}

/// Reads the copies at `offsets_bytes`. Errors of the disk are in the reports: another copy may do.
pub async fn read_copies(disk: &Disk, magic: &[u8; 8], offsets_bytes: &[u64]) -> Copies {
    let mut copies = Copies { newest: None, reports: Vec::new() };
    for &offset_bytes in offsets_bytes {
        let found = read_copy(disk, magic, offset_bytes).await;
        let state = found.as_ref().map(SuperblockImage::generation).map_err(|fault| *fault);
        copies.reports.push(CopyReport { offset_bytes, state });
        if let Ok(image) = found {
            let best = copies.newest.as_ref().map(SuperblockImage::generation);
            if best.is_none_or(|best| image.generation() > best) {
                copies.newest = Some(image);
            }
        }
    }
    copies
}

async fn read_copy(
    disk: &Disk,
    magic: &[u8; 8],
    offset_bytes: u64,
) -> Result<SuperblockImage, CopyFault> {
    let end = offset_bytes.checked_add(SUPERBLOCK_BYTES as u64);
    if end.is_none_or(|end| end > disk.len_bytes()) {
        return Err(CopyFault::Outside);
    }
    let bytes = read_vec(disk, offset_bytes, SUPERBLOCK_BYTES)
        .await
        .map_err(|error| CopyFault::Unreadable(error.status))?;
    SuperblockImage::parse(magic, &bytes)
}

/// Writes all copies, the first one durable before the others are touched, and all at the end.
///
/// # Errors
/// The first failure; what was written so far stays.
pub async fn write_copies(
    disk: &Disk,
    offsets_bytes: &[u64],
    image: &SuperblockImage,
) -> Result<(), DiskError> {
    for (index, &offset_bytes) in offsets_bytes.iter().enumerate() {
        write_bytes(disk, offset_bytes, image.as_bytes()).await?;
        if index == 0 || index + 1 == offsets_bytes.len() {
            disk.flush().await?;
        }
    }
    Ok(())
}

/// Writes those copies anew that are not `image`, as they were found. A crash in it costs nothing,
/// since the copies that are good are not touched; the caller flushes.
///
/// After a crash in [`write_copies`] only the first copy may be good, and the next change begins
/// with that one. So whoever opens a volume mends it, or two crashes lose it.
///
/// # Errors
/// The first failure.
pub async fn mend_copies(
    disk: &Disk,
    reports: &[CopyReport],
    image: &SuperblockImage,
) -> Result<(), DiskError> {
    for report in reports {
        if report.state != Ok(image.generation()) && report.state != Err(CopyFault::Outside) {
            write_bytes(disk, report.offset_bytes, image.as_bytes()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        CopyFault, SuperblockHead, SuperblockImage, mend_copies, read_copies, write_copies,
    };
    use crate::host::MemoryHost;
    use udm_types::Status;
    use zerocopy::FromZeros;

    const MAGIC: &[u8; 8] = b"TESTSB01";
    const PLACES: [u64; 3] = [0, 4096, 12288];

    fn image(generation: u64) -> SuperblockImage {
        let mut head = SuperblockHead::new_zeroed();
        head.magic = *MAGIC;
        head.salt.set(5);
        SuperblockImage::new(head, &[7; 10], generation)
    }

    #[test]
    fn any_good_copy_is_enough_and_the_newest_wins() {
        let mut host = MemoryHost::new(16384);
        let written = host.run(|disk| async move {
            write_copies(&disk, &PLACES, &image(1)).await?;
            // A crash after the first copy of the next generation.
            write_copies(&disk, &PLACES[2..], &image(2)).await
        });
        written.expect("written");
        assert_eq!((host.writes, host.flushes), (4, 3));
        host.bytes[100] ^= 1;
        host.unreadable.push((4096, 512));
        let mut places = PLACES.to_vec();
        places.push(12289);
        let copies = host.run(|disk| async move { read_copies(&disk, MAGIC, &places).await });
        let newest = copies.newest.expect("one is good");
        assert_eq!((newest.generation(), newest.head().salt.get(), newest.own()[9]), (2, 5, 7));
        let states: alloc::vec::Vec<_> = copies.reports.iter().map(|copy| copy.state).collect();
        let bad = Err(CopyFault::Unreadable(Status::Medium));
        assert_eq!(states, [Err(CopyFault::Checksum), bad, Ok(2), Err(CopyFault::Outside)]);
    }

    #[test]
    fn nothing_is_no_superblock() {
        let mut host = MemoryHost::new(8192);
        let copies = host.run(|disk| async move { read_copies(&disk, MAGIC, &PLACES[..2]).await });
        assert!(copies.newest.is_none());
        assert!(copies.reports.iter().all(|copy| copy.state == Err(CopyFault::Magic)));
    }

    #[test]
    fn copies_that_are_not_the_newest_are_mended() {
        let mut host = MemoryHost::new(16384);
        let reports = host.run(|disk| async move {
            write_copies(&disk, &PLACES, &image(1)).await?;
            write_copies(&disk, &PLACES[..1], &image(2)).await?;
            let found = read_copies(&disk, MAGIC, &PLACES).await;
            mend_copies(&disk, &found.reports, &image(2)).await?;
            Ok::<_, crate::DiskError>(read_copies(&disk, MAGIC, &PLACES).await.reports)
        });
        let states = reports.expect("written").into_iter().map(|report| report.state);
        assert!(states.eq([Ok(2), Ok(2), Ok(2)]));
        assert_eq!(host.writes, 6, "the good copy is not touched");
    }
}
