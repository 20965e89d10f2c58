//! Two-slot checkpoints: the newest whole one is the truth.
//!
//! Checkpoint `n` is written to slot `n mod 2`, so the one before it stays whole until `n` is
//! durable. A torn one fails its checksum and the one before it counts. This file finds, checks,
//! seals and writes them; what is in them is the format's own (docs/formats/meta.md).
//!
//! ```text
//! 0     magic, 4 bytes             4088   used length, 4 bytes, a multiple of 4096; then zeroes
//! 4     CRC of 8..used length      4096   body
//! 8     number                     used   whatever an earlier, longer checkpoint left
//! 16    the format's own
//! ```
//!
//! Rules. Nothing here flushes: what must be durable before a checkpoint is written, and when a
//! checkpoint counts, is the caller's order of things (docs/formats/compress.md).
//!
//! The tricky case is a slot that holds a valid checkpoint of the wrong parity (a bug, or an image
//! put together by hand): it is damage, not a choice, since the next write would hit the wrong one.

use crate::bytes::{read_vec, write_bytes};
use crate::disk::{Disk, DiskError};
use crate::sum;
use alloc::vec::Vec;
use core::fmt;
use udm_types::Status;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

/// Length of the header, and the unit of the used length.
pub const CHECKPOINT_HEAD_BYTES: usize = 4096;
/// Where a format's own part of the header begins.
pub const CHECKPOINT_OWN_AT: usize = 16;
/// Where the used length is, and where a format's own part of the header ends.
pub const CHECKPOINT_USED_AT: usize = CHECKPOINT_HEAD_BYTES - 8;
/// Where the CRC is.
const CRC_AT: usize = 4;
/// Where the number is.
const NUMBER_AT: usize = 8;

/// The two slots of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointSlots {
    /// The first four bytes of each.
    pub magic: [u8; 4],
    /// Where checksums start from.
    pub salt: u32,
    /// Where slot 0 begins; slot 1 follows it.
    pub offset_bytes: u64,
    /// Length of a slot, a multiple of 4096.
    pub len_bytes: u64,
}

/// A checkpoint that was found whole: its number and its bytes up to the used length.
#[derive(Clone, PartialEq, Eq)]
pub struct CheckpointImage {
    number: u64,
    bytes: Vec<u8>,
}

/// What is wrong with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointFault {
    /// The disk did not give it.
    Unreadable(Status),
    /// Another magic, or nothing.
    Magic,
    /// The used length makes no sense.
    Length(u32),
    /// The checksum is wrong.
    Checksum,
    /// A whole checkpoint that belongs into the other slot.
    Parity(u64),
}

/// Both slots as they were found.
#[derive(Clone, Debug)]
pub struct CheckpointPair {
    /// Slot 0 and slot 1.
    pub slots: [Result<CheckpointImage, CheckpointFault>; 2],
}

impl CheckpointImage {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its bytes up to the used length, a multiple of 4096 and never less.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What follows the header.
    pub fn body(&self) -> &[u8] {
        &self.bytes[CHECKPOINT_HEAD_BYTES..]
    }
}

impl fmt::Debug for CheckpointImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckpointImage(number {}, {} bytes)", self.number, self.bytes.len())
    }
}

impl fmt::Display for CheckpointFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckpointFault::Unreadable(status) => {
                write!(f, "cannot be read: {}", status.describe())
            }
            CheckpointFault::Magic => f.write_str("holds no checkpoint"),
            CheckpointFault::Length(used) => write!(f, "has the impossible length {used}"),
            CheckpointFault::Checksum => f.write_str("has a wrong checksum"),
            CheckpointFault::Parity(number) => {
                write!(f, "holds checkpoint {number}, which belongs into the other slot")
            }
        }
    }
}

impl CheckpointPair {
    /// The one to believe.
    pub fn newest(&self) -> Option<&CheckpointImage> {
        self.slots.iter().flatten().max_by_key(|image| image.number)
    }

    /// As [`CheckpointPair::newest`], taking it.
    pub fn into_newest(self) -> Option<CheckpointImage> {
        self.slots.into_iter().flatten().max_by_key(|image| image.number)
    }
}

impl CheckpointSlots {
    /// Where checkpoint `number` is written.
    pub fn offset_of(&self, number: u64) -> u64 {
        self.offset_bytes + (number % 2) * self.len_bytes
    }

    /// Bytes that a checkpoint with `body_bytes` behind its header uses.
    pub fn used_bytes(body_bytes: u64) -> u64 {
        CHECKPOINT_HEAD_BYTES as u64 + body_bytes.next_multiple_of(CHECKPOINT_HEAD_BYTES as u64)
    }

    /// Fills the shared fields of `bytes` (header and body, padded to the used length) and seals
    /// it.
    ///
    /// # Panics
    /// If the length is no multiple of 4096, or longer than a slot.
    pub fn seal(&self, number: u64, bytes: &mut [u8]) {
        let is_whole = !bytes.is_empty() && bytes.len().is_multiple_of(CHECKPOINT_HEAD_BYTES);
        assert!(is_whole && bytes.len() as u64 <= self.len_bytes, "a checkpoint fits its slot");
        let used = u32::try_from(bytes.len()).expect("invariant: a slot is below 4 GiB");
        bytes[..4].copy_from_slice(&self.magic);
        bytes[NUMBER_AT..NUMBER_AT + 8].copy_from_slice(&number.to_le_bytes());
        bytes[CHECKPOINT_USED_AT..CHECKPOINT_USED_AT + 4].copy_from_slice(&used.to_le_bytes());
        sum::seal(bytes, CRC_AT, self.salt);
    }

    /// Believes `bytes`, of slot `slot`, if everything is right. Bytes behind the used length are
    /// ignored.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(&self, slot: u64, bytes: &[u8]) -> Result<CheckpointImage, CheckpointFault> {
        let used = self.used_of(bytes)?;
        let bytes = bytes.get(..used as usize).ok_or(CheckpointFault::Length(used))?;
        if !sum::is_sealed(bytes, CRC_AT, self.salt) {
            return Err(CheckpointFault::Checksum);
        }
        let (number, _own) = U64::read_from_prefix(&bytes[NUMBER_AT..])
            .map_err(|_short| CheckpointFault::Length(used))?;
        match number.get() % 2 == slot {
            true => Ok(CheckpointImage { number: number.get(), bytes: bytes.to_vec() }),
            false => Err(CheckpointFault::Parity(number.get())),
        }
    }

    /// The used length, not yet believed but possible.
    fn used_of(&self, head: &[u8]) -> Result<u32, CheckpointFault> {
        if head.get(..4) != Some(&self.magic[..]) {
            return Err(CheckpointFault::Magic);
        }
        let field = head.get(CHECKPOINT_USED_AT..).ok_or(CheckpointFault::Magic)?;
        let (used, _zero) =
            U32::read_from_prefix(field).map_err(|_short| CheckpointFault::Magic)?;
        let used = used.get();
        let is_possible = used != 0
            && used.is_multiple_of(CHECKPOINT_HEAD_BYTES as u32)
            && u64::from(used) <= self.len_bytes;
        if is_possible { Ok(used) } else { Err(CheckpointFault::Length(used)) }
    }

    /// Reads and checks slot 0 or 1. The header first, then as much as it says is used.
    ///
    /// # Errors
    /// What is wrong, the disk's own error included.
    pub async fn read_slot(
        &self,
        disk: &Disk,
        slot: u64,
    ) -> Result<CheckpointImage, CheckpointFault> {
        let unreadable = |error: DiskError| CheckpointFault::Unreadable(error.status);
        let at = self.offset_of(slot);
        let mut bytes = read_vec(disk, at, CHECKPOINT_HEAD_BYTES).await.map_err(unreadable)?;
        let used = self.used_of(&bytes)? as usize;
        if used > CHECKPOINT_HEAD_BYTES {
            let body_at = at + CHECKPOINT_HEAD_BYTES as u64;
            let body = read_vec(disk, body_at, used - CHECKPOINT_HEAD_BYTES).await;
            bytes.extend_from_slice(&body.map_err(unreadable)?);
        }
        self.parse(slot, &bytes)
    }

    /// Reads both slots. Errors of the disk are in the answer: the other slot may do.
    pub async fn read(&self, disk: &Disk) -> CheckpointPair {
        CheckpointPair { slots: [self.read_slot(disk, 0).await, self.read_slot(disk, 1).await] }
    }

    /// Seals `bytes` as checkpoint `number` and writes it to its slot. Durable after the caller's
    /// next flush, and not before.
    ///
    /// # Errors
    /// The disk's answer.
    pub async fn write(&self, disk: &Disk, number: u64, bytes: &mut [u8]) -> Result<(), DiskError> {
        self.seal(number, bytes);
        write_bytes(disk, self.offset_of(number), bytes).await
    }
}

#[cfg(test)]
mod tests {
    use super::{CheckpointFault, CheckpointSlots};
    use crate::host::MemoryHost;
    use udm_types::Status;

    const SLOTS: CheckpointSlots =
        CheckpointSlots { magic: *b"TSTC", salt: 3, offset_bytes: 8192, len_bytes: 12288 };

    fn disk_with(numbers: &'static [(u64, usize)]) -> MemoryHost {
        let mut host = MemoryHost::new(8192 + 2 * 12288);
        host.run(|disk| async move {
            for &(number, len) in numbers {
                let mut bytes = alloc::vec![number as u8; len];
                SLOTS.write(&disk, number, &mut bytes).await.expect("written");
            }
        });
        host
    }

    #[test]
    fn the_newest_whole_checkpoint_is_found() {
        let mut host = disk_with(&[(1, 12288), (2, 8192), (3, 4096)]);
        let pair = host.run(|disk| async move { SLOTS.read(&disk).await });
        let newest = pair.newest().expect("found");
        assert_eq!((newest.number(), newest.as_bytes().len(), newest.body()), (3, 4096, &[][..]));
        // Number 3, torn: what number 1 left behind its end does not matter, a byte inside does.
        let slot = SLOTS.offset_of(3) as usize;
        host.bytes[slot + 5000] ^= 1;
        assert_eq!(host.run(|disk| async move { SLOTS.read(&disk).await }).newest(), Some(newest));
        host.bytes[slot + 4000] ^= 1;
        let pair = host.run(|disk| async move { SLOTS.read(&disk).await });
        assert_eq!(pair.slots[1], Err(CheckpointFault::Checksum));
        let newest = pair.into_newest().expect("found");
        assert_eq!((newest.number(), newest.body()), (2, &[2; 4096][..]));
    }

    #[test]
    fn damage_of_every_kind_is_told() {
        let mut host = disk_with(&[(4, 4096)]);
        let (even, odd) = (SLOTS.offset_of(0) as usize, SLOTS.offset_of(1) as usize);
        host.bytes.copy_within(even..even + 4096, odd);
        host.unreadable.push((SLOTS.offset_of(0), 1));
        let pair = host.run(|disk| async move { SLOTS.read(&disk).await });
        assert_eq!(pair.slots[0], Err(CheckpointFault::Unreadable(Status::Medium)));
        assert_eq!(pair.slots[1], Err(CheckpointFault::Parity(4)));
        let mut bytes = alloc::vec![0; 4096];
        assert_eq!(SLOTS.parse(0, &bytes), Err(CheckpointFault::Magic));
        SLOTS.seal(2, &mut bytes);
        for wrong in [0, 4095, 16384_u32] {
            bytes[4088..4092].copy_from_slice(&wrong.to_le_bytes());
            assert_eq!(SLOTS.parse(0, &bytes), Err(CheckpointFault::Length(wrong)));
        }
        bytes[4088..4092].copy_from_slice(&8192_u32.to_le_bytes());
        assert_eq!(SLOTS.parse(0, &bytes), Err(CheckpointFault::Length(8192)));
        assert_eq!(SLOTS.parse(0, &bytes[..100]), Err(CheckpointFault::Magic));
    }
}
