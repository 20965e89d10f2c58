//! The memory of an operation: the bio's own, or aligned memory in its place.
//!
//! `O_DIRECT` asks for aligned addresses. Bios mostly have them; where one has not (data that
//! arrived behind a header in a receive buffer), the whole bio goes through a buffer of the lane's
//! pool: copied in before a write, copied out after a read. Nothing is copied without `direct:`.
//!
//! The operation gets handles of its own, so the bio can be answered (aborted) while the kernel
//! still uses the memory. With a buffer in between, a read that ends after the abort never reaches
//! the bio's memory at all.

use super::slots::Slot;
use super::state::DirectAlign;
use udm_lane::{BufPool, Payload, Segment};
use udm_types::Op;

/// Handles on what is left of the bio's memory, or on aligned memory in its place.
pub(super) fn share_payload(
    slot: &mut Slot,
    direct: Option<DirectAlign>,
    pool: &mut BufPool,
) -> Payload {
    let mut shared = std::mem::take(&mut slot.spare);
    let Some(bio) = &slot.bio else { return shared };
    let total_bytes = bio.payload.len_bytes();
    if slot.bounce.is_none()
        && let Some(align) = direct
        && !align.fits(&bio.payload)
    {
        // Bios are bounded far below `usize` by the limits' `max_sectors`.
        let bounce = pool.take(total_bytes as usize);
        if bio.op == Op::Write {
            bio.payload.for_range(0, total_bytes, |from, start, len, done| {
                let at = (from.offset_bytes + start) as usize;
                from.buf.copy_to(at, &bounce, done, len as usize);
            });
        }
        slot.bounce = Some(bounce);
    }
    let rest_bytes = total_bytes - slot.done_bytes;
    match &slot.bounce {
        Some(bounce) => shared.push(Segment {
            buf: bounce.clone(),
            offset_bytes: slot.done_bytes as u32,
            len_bytes: rest_bytes as u32,
        }),
        None => bio.payload.for_range(slot.done_bytes, rest_bytes, |segment, start, len, _| {
            shared.push(Segment {
                buf: segment.buf.clone(),
                offset_bytes: segment.offset_bytes + start,
                len_bytes: len,
            });
        }),
    }
    shared
}

/// After a read: copies what came in to where the bio wants it.
pub(super) fn bring_back(slot: &Slot) {
    if let (Some(bounce), Some(bio)) = (&slot.bounce, &slot.bio) {
        bio.payload.for_range(0, bio.payload.len_bytes(), |to, start, len, done| {
            let at = (to.offset_bytes + start) as usize;
            bounce.copy_to(done, &to.buf, at, len as usize);
        });
    }
}

impl DirectAlign {
    /// True if the kernel takes this memory as it is.
    fn fits(self, payload: &Payload) -> bool {
        payload.segments().all(|segment| {
            (segment.as_ptr() as usize).is_multiple_of(self.memory_bytes as usize)
                && segment.len_bytes.is_multiple_of(self.range_bytes)
        })
    }
}
