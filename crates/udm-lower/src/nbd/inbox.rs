//! Bytes received on a connection and not yet looked at.
//!
//! One buffer of [`BUF_BYTES`]: a receive takes what the kernel has at hand, often dozens of
//! replies. Small data is copied from here to its bio; large data is received into the bio's memory
//! itself and never comes by here (see `lane`).
//!
//! The tricky case is a connection that ended with a receive under way: the kernel may still write
//! into the buffer. So it is handed over to that operation ([`Inbox::reset`]) and the next
//! connection gets another.

use super::replies::Window;
use udm_lane::{Buf, Payload, Segment};

/// Room for 60 reads of 4 KiB. Its pages cost nothing until they are received into.
const BUF_BYTES: usize = 256 << 10;

/// Unread bytes are moved to the front when less than this is left behind them: a head and the
/// longest thing that is looked at whole (an error chunk) always fit.
const ROOM_BYTES_MIN: usize = 16 << 10;

/// The buffer.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    buf: Option<Buf>,
    start: usize,
    end: usize,
}

impl Inbox {
    /// Where the next bytes go, up to `len_bytes_max`. No receive may be under way.
    pub(super) fn room(&mut self, len_bytes_max: usize) -> Segment {
        let buf = self.buf.get_or_insert_with(|| Buf::alloc(BUF_BYTES));
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if BUF_BYTES - self.end < ROOM_BYTES_MIN {
            let len = self.end - self.start;
            buf.copy_to(self.start, buf, 0, len);
            (self.start, self.end) = (0, len);
        }
        let len = (BUF_BYTES - self.end).min(len_bytes_max);
        // Both are below the buffer's 256 KiB.
        Segment { buf: buf.clone(), offset_bytes: self.end as u32, len_bytes: len as u32 }
    }

    /// `len` bytes have arrived in the last room.
    #[inline]
    pub(super) fn received(&mut self, len: usize) {
        self.end += len;
        debug_assert!(self.end <= BUF_BYTES);
    }

    /// The first `len` bytes are done with.
    #[inline]
    pub(super) fn consume(&mut self, len: usize) {
        self.start += len;
        debug_assert!(self.start <= self.end);
    }

    /// Copies the first `len` bytes into a payload; they are not consumed.
    #[inline]
    pub(super) fn copy_to(&self, payload: &Payload, at_bytes: u64, len: usize) {
        let Some(buf) = &self.buf else { return };
        payload.for_range(at_bytes, len as u64, |segment, start, len, done| {
            let to = (segment.offset_bytes + start) as usize;
            buf.copy_to(self.start + done, &segment.buf, to, len as usize);
        });
    }

    /// The unread bytes.
    pub(super) fn unread(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.end - self.start];
        self.peek(&mut bytes);
        bytes
    }

    /// Forgets everything. The buffer is kept if nobody else holds it.
    pub(super) fn reset(&mut self) {
        self.buf = self.buf.take().filter(Buf::is_unique);
        (self.start, self.end) = (0, 0);
    }
}

impl Window for Inbox {
    #[inline]
    fn len_bytes(&self) -> usize {
        self.end - self.start
    }

    #[inline]
    fn peek(&self, to: &mut [u8]) {
        if let Some(buf) = &self.buf {
            buf.copy_out(self.start, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BUF_BYTES, Inbox, ROOM_BYTES_MIN};
    use crate::nbd::replies::Window;
    use udm_lane::Payload;

    #[test]
    fn bytes_come_out_as_they_came_in_wherever_the_buffer_turns() {
        let mut inbox = Inbox::default();
        let mut random = fastrand::Rng::with_seed(3);
        let (mut put, mut taken) = (0_u32, 0_u32);
        while taken < 3_000_000 {
            let room = inbox.room(random.usize(1..=BUF_BYTES));
            let len = random.u32(1..=room.len_bytes);
            let bytes: Vec<u8> = (0..len).map(|at| ((put + at) / 3) as u8).collect();
            room.buf.copy_in(room.offset_bytes as usize, &bytes);
            drop(room);
            inbox.received(len as usize);
            put += len;
            let most = inbox.len_bytes();
            let len = if most + ROOM_BYTES_MIN > BUF_BYTES { most } else { random.usize(0..=most) };
            let payload = Payload::from_buf(udm_lane::Buf::alloc(BUF_BYTES));
            inbox.copy_to(&payload, 0, len);
            inbox.consume(len);
            let mut bytes = vec![0; len];
            payload.copy_out(0, &mut bytes);
            assert!((0_u32..).zip(&bytes).all(|(at, &byte)| byte == ((taken + at) / 3) as u8));
            taken += len as u32;
        }
    }

    #[test]
    fn a_buffer_somebody_may_still_write_into_is_not_used_again() {
        let mut inbox = Inbox::default();
        let late = inbox.room(100);
        inbox.reset();
        let fresh = inbox.room(100);
        assert_ne!(late.as_ptr(), fresh.as_ptr());
        drop((late, fresh));
        let before = inbox.room(100).as_ptr();
        inbox.reset();
        assert_eq!(inbox.room(100).as_ptr(), before);
    }
}
