//! The crash disk as a host that does every operation at once: for formatting and checking.
//!
//! Tools run here as they run on a file. What they write is durable when they end, because a tool
//! flushes; a crash inside a tool is not this page's business.
//!
//! The tricky case is the cache: a disk that comes here from a power loss has none, and one that
//! was formatted must have none left, so a write goes to both images.

use crate::crash::disk::CrashDisk;
use crate::crash::image::SECTOR_BYTES;
use udm_lane::Payload;
use udm_meta::host::BlockHost;
use udm_types::Status;

impl BlockHost for CrashDisk {
    fn read(&mut self, offset_bytes: u64, payload: &Payload) -> Status {
        let end = offset_bytes + payload.len_bytes();
        let first = offset_bytes as usize / SECTOR_BYTES;
        for sector in first..end.div_ceil(SECTOR_BYTES as u64) as usize {
            let at = (sector * SECTOR_BYTES) as u64;
            let (from, to) = (at.max(offset_bytes), (at + SECTOR_BYTES as u64).min(end));
            let bytes = &self.cached.sector(sector)[(from - at) as usize..(to - at) as usize];
            payload.copy_in(from - offset_bytes, bytes);
        }
        Status::Ok
    }

    fn write(&mut self, offset_bytes: u64, payload: &Payload) -> Status {
        let sector_len = SECTOR_BYTES as u64;
        if !(offset_bytes | payload.len_bytes()).is_multiple_of(sector_len) {
            return Status::Invalid;
        }
        let mut bytes = [0; SECTOR_BYTES];
        for index in 0..payload.len_bytes() as usize / SECTOR_BYTES {
            payload.copy_out((index * SECTOR_BYTES) as u64, &mut bytes);
            let sector = offset_bytes as usize / SECTOR_BYTES + index;
            self.cached.put(sector, &bytes);
            self.durable.put(sector, &bytes);
        }
        Status::Ok
    }

    fn flush(&mut self) -> Status {
        Status::Ok
    }

    fn discard(&mut self, _offset_bytes: u64, _len_bytes: u64) -> Status {
        Status::Ok
    }
}
