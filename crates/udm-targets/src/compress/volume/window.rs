//! A piece of the log in memory, for those who walk it: recovery and the cleaner.
//!
//! Rules. At least the longest record fits, so that whoever stands at a record sees all of it; the
//! rest is reading ahead. The tricky case is the end of a segment: a record never crosses it, so
//! less than the longest one is enough there.

use crate::compress::format::Geometry;
use alloc::vec::Vec;
use udm_meta::bytes::read_vec;
use udm_meta::record::{LogPlace, RecordRules};
use udm_meta::{Disk, DiskError};

/// What is read of the log in one piece, at least.
const WINDOW_BYTES: u32 = 1 << 20;

/// A piece of the log in memory.
#[derive(Default)]
pub(super) struct Window {
    place: LogPlace,
    bytes: Vec<u8>,
}

impl Window {
    /// Makes sure that the longest record at `place` is in memory.
    pub(super) async fn load(
        &mut self,
        geometry: &Geometry,
        rules: &RecordRules,
        place: LogPlace,
        disk: &Disk,
    ) -> Result<(), DiskError> {
        let left = rules.segment_bytes - place.offset_bytes;
        let need = rules.limit_bytes.min(left);
        let begin = self.place.offset_bytes;
        let is_here = !self.bytes.is_empty()
            && self.place.segment == place.segment
            && (begin..begin + self.bytes.len() as u32).contains(&place.offset_bytes)
            && begin + self.bytes.len() as u32 >= place.offset_bytes + need;
        if !is_here {
            let len = WINDOW_BYTES.max(need).min(left);
            self.bytes = read_vec(disk, geometry.offset_of(place), len as usize).await?;
            self.place = place;
        }
        Ok(())
    }

    /// The bytes from `place` on.
    pub(super) fn at(&self, place: LogPlace) -> &[u8] {
        &self.bytes[(place.offset_bytes - self.place.offset_bytes) as usize..]
    }
}
