//! The data of a bio: a scatter list of buffer segments.
//!
//! Mapping targets never look inside; they move the bio and its payload with it. Splitting takes
//! sub-ranges (`slice`), which share the memory and never copy it. Up to [`SEGMENTS_INLINE`]
//! segments live inside the payload, so an ordinary request allocates nothing.
//!
//! The tricky case: byte offsets here are positions in the *payload*, not in any buffer; a range
//! may start in the middle of one segment and end in the middle of another.

use crate::Buf;
use alloc::vec::Vec;

/// Segments kept without allocating; a front's request rarely has more.
pub const SEGMENTS_INLINE: usize = 2;

/// A contiguous piece of a buffer.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The memory.
    pub buf: Buf,
    /// Where the piece starts in the buffer.
    pub offset_bytes: u32,
    /// How long it is.
    pub len_bytes: u32,
}

/// A scatter list of segments; empty for operations without data.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    inline: [Option<Segment>; SEGMENTS_INLINE],
    inline_count: u8,
    len_bytes: u64,
    spill: Vec<Segment>,
}

impl Segment {
    /// All of a buffer.
    ///
    /// # Panics
    /// If the buffer is 4 GiB or larger; fronts bound requests far below.
    pub fn whole(buf: Buf) -> Segment {
        let len_bytes =
            u32::try_from(buf.len_bytes()).expect("invariant: request buffers are below 4 GiB");
        Segment { buf, offset_bytes: 0, len_bytes }
    }

    /// The address of the first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.buf.as_ptr().wrapping_add(self.offset_bytes as usize)
    }
}

impl Payload {
    /// No data.
    pub const fn empty() -> Payload {
        Payload {
            inline: [const { None }; SEGMENTS_INLINE],
            inline_count: 0,
            len_bytes: 0,
            spill: Vec::new(),
        }
    }

    /// One segment: all of a buffer.
    pub fn from_buf(buf: Buf) -> Payload {
        let mut payload = Payload::empty();
        payload.push(Segment::whole(buf));
        payload
    }

    /// Appends a segment.
    pub fn push(&mut self, segment: Segment) {
        self.len_bytes += u64::from(segment.len_bytes);
        if let Some(slot) = self.inline.get_mut(usize::from(self.inline_count)) {
            *slot = Some(segment);
            self.inline_count += 1;
        } else {
            self.spill.push(segment);
        }
    }

    /// Total length in bytes.
    #[inline]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// True if there is no data.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Number of segments.
    pub fn segment_count(&self) -> usize {
        usize::from(self.inline_count) + self.spill.len()
    }

    /// The segments in order.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.inline.iter().flatten().chain(self.spill.iter())
    }

    /// Removes all segments; keeps spilled capacity for reuse.
    pub fn clear(&mut self) {
        self.inline = [const { None }; SEGMENTS_INLINE];
        self.inline_count = 0;
        self.len_bytes = 0;
        self.spill.clear();
    }

    /// The first segment's buffer, taking the payload apart (to give it back to a pool).
    pub fn into_first_buf(mut self) -> Option<Buf> {
        self.inline[0].take().map(|segment| segment.buf)
    }

    /// A payload that shares bytes `offset_bytes..offset_bytes + len_bytes` of this one.
    ///
    /// # Panics
    /// If the range does not lie inside the payload.
    pub fn slice(&self, offset_bytes: u64, len_bytes: u64) -> Payload {
        let mut part = Payload::empty();
        self.for_range(offset_bytes, len_bytes, |segment, start, len, _| {
            part.push(Segment {
                buf: segment.buf.clone(),
                offset_bytes: segment.offset_bytes + start,
                len_bytes: len,
            });
        });
        part
    }

    /// Copies `from` into the payload at `offset_bytes`.
    pub fn copy_in(&self, offset_bytes: u64, from: &[u8]) {
        self.for_range(offset_bytes, from.len() as u64, |segment, start, len, done| {
            let from = &from[done..done + len as usize];
            segment.buf.copy_in((segment.offset_bytes + start) as usize, from);
        });
    }

    /// Copies out of the payload at `offset_bytes` into `to`.
    pub fn copy_out(&self, offset_bytes: u64, to: &mut [u8]) {
        self.for_range(offset_bytes, to.len() as u64, |segment, start, len, done| {
            let to = &mut to[done..done + len as usize];
            segment.buf.copy_out((segment.offset_bytes + start) as usize, to);
        });
    }

    /// A range as a slice, if it lies in one segment whose buffer has no other handle: whoever
    /// makes the data can make it in place.
    ///
    /// # Panics
    /// If the range does not lie inside the payload.
    pub fn slice_mut(&mut self, offset_bytes: u64, len_bytes: u64) -> Option<&mut [u8]> {
        let end_bytes = offset_bytes.checked_add(len_bytes);
        assert!(end_bytes.is_some_and(|end| end <= self.len_bytes), "past the payload's end");
        let mut skip = offset_bytes;
        for segment in self.inline.iter_mut().flatten().chain(self.spill.iter_mut()) {
            let len = u64::from(segment.len_bytes);
            if skip < len {
                let start = segment.offset_bytes as usize + skip as usize;
                let is_inside = skip + len_bytes <= len;
                let bytes = is_inside.then(|| segment.buf.get_mut()).flatten()?;
                return bytes.get_mut(start..start + len_bytes as usize);
            }
            skip -= len;
        }
        None
    }

    /// Sets a range to `byte`.
    pub fn fill(&self, offset_bytes: u64, len_bytes: u64, byte: u8) {
        self.for_range(offset_bytes, len_bytes, |segment, start, len, _| {
            segment.buf.fill((segment.offset_bytes + start) as usize, len as usize, byte);
        });
    }

    /// Walks the segments that a range touches: `visit(segment, start in it, length, done so far)`.
    ///
    /// # Panics
    /// If the range does not lie inside the payload.
    pub fn for_range(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        mut visit: impl FnMut(&Segment, u32, u32, usize),
    ) {
        let end = offset_bytes.checked_add(len_bytes);
        assert!(
            end.is_some_and(|end| end <= self.len_bytes),
            "payload access past its end: {offset_bytes}+{len_bytes} of {}",
            self.len_bytes
        );
        let mut skip = offset_bytes;
        let mut done = 0_u64;
        for segment in self.segments() {
            let len = u64::from(segment.len_bytes);
            if skip >= len {
                skip -= len;
                continue;
            }
            if done == len_bytes {
                break;
            }
            let take = (len - skip).min(len_bytes - done);
            // Both fit: they are bounded by the segment's 32-bit length.
            visit(segment, skip as u32, take as u32, done as usize);
            done += take;
            skip = 0;
        }
    }
}

impl From<Segment> for Payload {
    fn from(segment: Segment) -> Payload {
        let mut payload = Payload::empty();
        payload.push(segment);
        payload
    }
}

#[cfg(test)]
mod tests {
    use super::{Payload, Segment};
    use crate::Buf;

    fn three_segments() -> Payload {
        let mut payload = Payload::empty();
        for (index, len) in [512_u32, 1024, 512].into_iter().enumerate() {
            let buf = Buf::alloc(4096);
            buf.fill(0, 4096, index as u8 + 1);
            payload.push(Segment { buf, offset_bytes: 1024, len_bytes: len });
        }
        payload
    }

    #[test]
    fn a_slice_shares_memory_across_segments() {
        let payload = three_segments();
        assert_eq!((payload.len_bytes(), payload.segment_count()), (2048, 3));
        let middle = payload.slice(500, 1100);
        assert_eq!((middle.len_bytes(), middle.segment_count()), (1100, 3));
        middle.copy_in(0, &[9; 20]);
        let mut out = [0_u8; 30];
        payload.copy_out(495, &mut out);
        assert_eq!(out[..5], [1; 5]);
        assert_eq!(out[5..25], [9; 20]);
        assert_eq!(out[25..], [2; 5]);
    }

    #[test]
    fn an_empty_slice_has_no_segments() {
        assert_eq!(three_segments().slice(2048, 0).segment_count(), 0);
    }

    #[test]
    #[should_panic(expected = "payload access past its end")]
    fn a_slice_past_the_end_is_refused() {
        let _ = three_segments().slice(2000, 49);
    }

    #[test]
    fn a_slice_needs_one_segment_without_other_handles() {
        let mut payload = Payload::from_buf(Buf::alloc(100));
        payload.push(Segment { offset_bytes: 4, len_bytes: 6, buf: Buf::alloc(16) });
        payload.fill(0, 106, 7);
        assert_eq!(payload.slice_mut(98, 4), None, "in two segments");
        payload.slice_mut(101, 5).unwrap().copy_from_slice(&[1, 2, 3, 4, 5]);
        let mut end = [0; 8];
        payload.copy_out(98, &mut end);
        assert_eq!(end, [7, 7, 7, 1, 2, 3, 4, 5]);
        let other = payload.slice(0, 10);
        assert_eq!(payload.slice_mut(20, 4), None, "somebody else has a handle");
        assert!(payload.slice_mut(100, 6).is_some(), "of this one nobody has");
        drop(other);
        assert_eq!(payload.slice_mut(96, 4), Some(&mut [7; 4][..]));
    }
}
