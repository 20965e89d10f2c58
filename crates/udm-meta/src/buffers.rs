//! Memory for data on its way to and from a disk, used again and again.
//!
//! A new buffer has to be zeroed, and large ones come as fresh pages that the kernel clears first.
//! For a stream of reads or records that is a good part of all the time spent.
//!
//! Rules. Whoever takes a buffer gets it with anything in it, and has to fill all that is looked
//! at. Only a sole handle is kept: memory that somebody below may still write into is never given
//! out again. What is kept is bounded ([`KEPT_BYTES_MAX`]), and can be let go of.
//!
//! The tricky case is a length that is no power of two: the buffer is longer than was asked for,
//! and its payload is the beginning of it.

use alloc::vec::Vec;
use udm_lane::{Buf, Payload, Segment};

/// Buffers are kept in lengths of 4 KiB, 8 KiB and so on; longer ones than 1 MiB are not kept.
const SHIFT_MIN: u32 = 12;
const SHIFT_MAX: u32 = 20;
const CLASSES: usize = (SHIFT_MAX - SHIFT_MIN + 1) as usize;
/// What is kept in all.
pub const KEPT_BYTES_MAX: usize = 4 << 20;

/// Buffers that nobody uses at the moment.
#[derive(Default)]
pub(crate) struct Buffers {
    kept: [Vec<Buf>; CLASSES],
    kept_bytes: usize,
}

/// The class of a length, if there is one.
fn class_of(len_bytes: usize) -> Option<usize> {
    let shift = len_bytes.next_power_of_two().trailing_zeros().max(SHIFT_MIN);
    (shift <= SHIFT_MAX).then_some((shift - SHIFT_MIN) as usize)
}

impl Buffers {
    /// A payload of one segment, with anything in it.
    pub(crate) fn take(&mut self, len_bytes: usize) -> Payload {
        let Some(class) = class_of(len_bytes) else {
            return Payload::from_buf(Buf::alloc(len_bytes));
        };
        let buf = match self.kept[class].pop() {
            Some(buf) => {
                self.kept_bytes -= buf.len_bytes();
                buf
            }
            None => Buf::alloc(1 << (class as u32 + SHIFT_MIN)),
        };
        let len_bytes = u32::try_from(len_bytes).expect("invariant: a class is 1 MiB at most");
        Payload::from(Segment { buf, offset_bytes: 0, len_bytes })
    }

    /// Keeps a buffer if it is of use.
    pub(crate) fn give_back(&mut self, buf: Buf) {
        let len_bytes = buf.len_bytes();
        let is_room = self.kept_bytes + len_bytes <= KEPT_BYTES_MAX;
        let class = class_of(len_bytes).filter(|_| len_bytes.is_power_of_two());
        if let (Some(class), true, true) = (class, is_room, buf.is_unique()) {
            self.kept_bytes += len_bytes;
            self.kept[class].push(buf);
        }
    }

    /// Lets go of everything.
    pub(crate) fn clear(&mut self) {
        *self = Buffers::default();
    }

    /// Bytes kept.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffers, KEPT_BYTES_MAX};
    use udm_lane::Buf;

    #[test]
    fn a_buffer_comes_again_unless_somebody_still_has_it() {
        let mut buffers = Buffers::default();
        let payload = buffers.take(5000);
        assert_eq!((payload.len_bytes(), payload.segment_count()), (5000, 1));
        let handle = payload.segments().next().expect("one").buf.clone();
        let address = handle.as_ptr();
        buffers.give_back(payload.into_first_buf().expect("one"));
        assert_eq!(buffers.kept_bytes(), 0, "somebody may write into it");
        buffers.give_back(handle);
        assert_eq!(buffers.kept_bytes(), 8192);
        let again = buffers.take(8192).into_first_buf().expect("one");
        assert_eq!((again.as_ptr(), buffers.kept_bytes()), (address, 0));
    }

    #[test]
    fn what_is_kept_is_bounded_and_can_be_let_go() {
        let mut buffers = Buffers::default();
        for _ in 0..100 {
            buffers.give_back(Buf::alloc(1 << 20));
            buffers.give_back(Buf::alloc(5000));
        }
        assert_eq!(buffers.kept_bytes(), KEPT_BYTES_MAX);
        assert_eq!(buffers.take((1 << 20) + 1).len_bytes(), (1 << 20) + 1);
        buffers.clear();
        assert_eq!(buffers.kept_bytes(), 0);
    }
}
