//! Whole reads and writes as plain byte vectors.
//!
//! For metadata, where a copy of a few kilobytes costs nothing. The path of user data does not
//! come here: it keeps its buffers.

use crate::disk::{Disk, DiskError};
use alloc::vec::Vec;
use udm_lane::{Buf, Payload};

/// Reads `len_bytes` at `offset_bytes`.
///
/// # Errors
/// The disk's answer.
///
/// # Panics
/// If `len_bytes` is 0 or 4 GiB and more; callers ask for pieces far below.
pub async fn read_vec(
    disk: &Disk,
    offset_bytes: u64,
    len_bytes: usize,
) -> Result<Vec<u8>, DiskError> {
    let payload = disk.read(offset_bytes, len_bytes).await?;
    let mut bytes = alloc::vec![0; len_bytes];
    payload.copy_out(0, &mut bytes);
    Ok(bytes)
}

/// Writes `bytes` at `offset_bytes`.
///
/// # Errors
/// The disk's answer.
///
/// # Panics
/// If `bytes` is empty.
pub async fn write_bytes(disk: &Disk, offset_bytes: u64, bytes: &[u8]) -> Result<(), DiskError> {
    disk.write(offset_bytes, payload_of(bytes)).await.map(|_| ())
}

/// A payload of its own with a copy of `bytes`.
///
/// # Panics
/// If `bytes` is empty.
pub fn payload_of(bytes: &[u8]) -> Payload {
    let buf = Buf::alloc(bytes.len());
    buf.copy_in(0, bytes);
    Payload::from_buf(buf)
}
