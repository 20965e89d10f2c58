//! A piece of the log in memory, for those who walk it: recovery and the cleaner.
//!
//! Rules. The longest record fits, so that whoever stands at a record sees all of it; the rest is
//! reading ahead. What is in memory is read again only if the record that begins there goes on
//! behind it. The tricky case is the end of a segment: a record never crosses it, so less than the
//! longest one is enough there.

use crate::compress::format::Geometry;
use alloc::vec::Vec;
use udm_meta::bytes::read_vec;
use udm_meta::record::{LogPlace, RECORD_HEAD_BYTES, RecordRules, claimed_bytes};
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
    /// Makes sure that the record at `place`, if there is one, is in memory as a whole.
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
        let is_near = self.place.segment == place.segment
            && (begin..begin + self.bytes.len() as u32).contains(&place.offset_bytes);
        let is_here = is_near && {
            let bytes = self.at(place);
            // Without a header whoever looks at it wants to know only that there is none.
            let claim = claimed_bytes(rules, bytes).unwrap_or(RECORD_HEAD_BYTES as u32);
            bytes.len() >= claim.min(need) as usize
        };
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
