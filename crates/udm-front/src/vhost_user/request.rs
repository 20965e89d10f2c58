//! Block requests as virtio puts them into a chain of buffers.
//!
//! ```text
//!  readable: header (type u32, reserved u32, sector u64) | data to write, or ranges to discard
//!  writable: data that was read                          | status u8
//! ```
//!
//! The borders between buffers mean nothing: the header may be spread over several, or share one
//! with the data; the status is the last writable byte, wherever that lies.
//!
//! Rules. A chain without room for header and status is a breach, since it cannot be answered.
//! Everything else is answered: with "I/O error" what makes no sense, with "unsupported" what we
//! do not know. The data itself is not touched here; the payload names it in place.

use super::breach::Breach;
use super::memory::{GuestMemory, GuestRange};
use super::ring::Chain;
use udm_lane::Payload;
use udm_types::{SECTOR_BYTES, Sector, Status};

/// `VIRTIO_BLK_T_*`.
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

const HEADER_BYTES: u32 = 16;
/// A range of a discard or write-zeroes: sector u64, sectors u32, flags u32.
const RANGE_BYTES: u64 = 16;
/// Flag of a write-zeroes range: the blocks may be deallocated.
const RANGE_UNMAP: u32 = 1;

/// Bytes of the answer to "get id".
pub const ID_BYTES: usize = 20;

/// Status byte: done.
pub const STATUS_OK: u8 = 0;
/// Status byte: failed.
pub const STATUS_IOERR: u8 = 1;
/// Status byte: not supported.
pub const STATUS_UNSUPPORTED: u8 = 2;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Read into the payload.
    Read(Sector),
    /// Write the payload.
    Write(Sector),
    /// Make all durable.
    Flush,
    /// Write the name of the disk to this place.
    GetId(GuestRange),
    /// Forget a range.
    Discard(Sector, Sector),
    /// Make a range read as zeroes.
    WriteZeroes {
        /// First sector.
        sector: Sector,
        /// Length.
        len_sectors: Sector,
        /// The blocks may be deallocated.
        may_unmap: bool,
    },
    /// Nothing: answer with this status byte.
    Answer(u8),
}

/// A request taken from a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRequest {
    /// What is asked.
    pub ask: Ask,
    /// Where the status byte goes.
    pub status_addr: u64,
    /// Bytes written if it succeeds, the status among them.
    pub written_bytes: u32,
}

/// Reads a request out of its chain; the data of reads and writes goes to `payload`, in place.
///
/// # Errors
/// For a chain that has no room for header or status, or an address that is not the guest's.
pub fn parse(
    chain: &Chain,
    memory: &GuestMemory,
    payload: &mut Payload,
) -> Result<BlockRequest, Breach> {
    let readable = total(&chain.readable);
    let writable = total(&chain.writable);
    if readable < u64::from(HEADER_BYTES) {
        return Err(Breach::Chain("no room for a header"));
    }
    if writable == 0 {
        return Err(Breach::Chain("no room for a status"));
    }
    let mut header = [0; HEADER_BYTES as usize];
    read_start(&chain.readable, memory, &mut header)?;
    let [t0, t1, t2, t3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let (data_out, data_in) = (readable - u64::from(HEADER_BYTES), writable - 1);
    let whole = |bytes: u64| bytes.is_multiple_of(SECTOR_BYTES);
    let mut written = 1;
    let ask = match kind {
        kind::IN if !whole(data_in) => Ask::Answer(STATUS_IOERR),
        kind::OUT if !whole(data_out) => Ask::Answer(STATUS_IOERR),
        kind::IN if data_in == 0 => Ask::Answer(STATUS_OK),
        kind::OUT if data_out == 0 => Ask::Answer(STATUS_OK),
        kind::IN => {
            written += data_in;
            append(&chain.writable, 0, data_in, memory, payload)?;
            Ask::Read(sector)
        }
        kind::OUT => {
            append(&chain.readable, u64::from(HEADER_BYTES), data_out, memory, payload)?;
            Ask::Write(sector)
        }
        kind::FLUSH => Ask::Flush,
        kind::GET_ID => match chain.writable.first() {
            // Everyone gives it a buffer of its own.
            Some(first) if data_in >= u64::from(first.len_bytes) => {
                let len_bytes = first.len_bytes.min(ID_BYTES as u32);
                written += u64::from(len_bytes);
                Ask::GetId(GuestRange { addr: first.addr, len_bytes })
            }
            Some(_) | None => Ask::Answer(STATUS_IOERR),
        },
        kind::DISCARD | kind::WRITE_ZEROES => range(kind, data_out, chain, memory)?,
        _ => Ask::Answer(STATUS_UNSUPPORTED),
    };
    let status_addr = last_byte(&chain.writable).ok_or(Breach::Chain("no room for a status"))?;
    memory.check(GuestRange { addr: status_addr, len_bytes: 1 })?;
    let written_bytes = u32::try_from(written).unwrap_or(u32::MAX);
    Ok(BlockRequest { ask, status_addr, written_bytes })
}

/// The one range of a discard or write-zeroes; we announce that there may be one only.
fn range(kind: u32, data_out: u64, chain: &Chain, memory: &GuestMemory) -> Result<Ask, Breach> {
    if data_out != RANGE_BYTES {
        return Ok(Ask::Answer(STATUS_IOERR));
    }
    let mut bytes = [0; HEADER_BYTES as usize + RANGE_BYTES as usize];
    read_start(&chain.readable, memory, &mut bytes)?;
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let sector = u64::from(word(16)) | u64::from(word(20)) << 32;
    let (len_sectors, flags) = (Sector::from(word(24)), word(28));
    Ok(match kind {
        _ if flags & !RANGE_UNMAP != 0 => Ask::Answer(STATUS_UNSUPPORTED),
        kind::DISCARD if flags != 0 => Ask::Answer(STATUS_UNSUPPORTED),
        _ if len_sectors == 0 => Ask::Answer(STATUS_OK),
        kind::DISCARD => Ask::Discard(sector, len_sectors),
        _ => Ask::WriteZeroes { sector, len_sectors, may_unmap: flags & RANGE_UNMAP != 0 },
    })
}

/// The status byte of a result.
#[inline]
pub fn status_byte(status: Status) -> u8 {
    match status {
        Status::Ok => STATUS_OK,
        Status::NotSupported => STATUS_UNSUPPORTED,
        Status::Timeout
        | Status::NoSpace
        | Status::Transport
        | Status::Target
        | Status::Reservation
        | Status::Medium
        | Status::Protection
        | Status::Resource
        | Status::DevResource
        | Status::Again
        | Status::Offline
        | Status::Invalid
        | Status::ReadOnly
        | Status::IoErr => STATUS_IOERR,
    }
}

#[inline]
fn total(ranges: &[GuestRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.len_bytes)).sum()
}

#[inline]
fn last_byte(ranges: &[GuestRange]) -> Option<u64> {
    let last = ranges.iter().rev().find(|range| range.len_bytes > 0)?;
    Some(last.addr.wrapping_add(u64::from(last.len_bytes) - 1))
}

/// Copies the first bytes of the ranges out.
#[inline]
fn read_start(
    ranges: &[GuestRange],
    memory: &GuestMemory,
    mut into: &mut [u8],
) -> Result<(), Breach> {
    for range in ranges {
        let len = into.len().min(range.len_bytes as usize);
        let (now, later) = into.split_at_mut(len);
        memory.read(range.addr, now)?;
        into = later;
        if into.is_empty() {
            break;
        }
    }
    Ok(())
}

/// Appends `len` bytes of the ranges to a payload, without the first `skip`.
#[inline]
fn append(
    ranges: &[GuestRange],
    mut skip: u64,
    mut len: u64,
    memory: &GuestMemory,
    payload: &mut Payload,
) -> Result<(), Breach> {
    for range in ranges {
        let range_len = u64::from(range.len_bytes);
        let skipped = skip.min(range_len);
        skip -= skipped;
        let taken = len.min(range_len - skipped);
        len -= taken;
        if taken > 0 {
            // Fits: no longer than the range itself.
            let len_bytes = taken as u32;
            let addr = range.addr.wrapping_add(skipped);
            memory.append(GuestRange { addr, len_bytes }, payload)?;
        }
    }
    Ok(())
}
