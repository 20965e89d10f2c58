//! The receive side of a connection: where bytes arrive, and where write payloads stay.
//!
//! One large buffer takes what the kernel has at hand, often dozens of requests. The session looks
//! at it through [`Window`]. A write's payload is handed to the engine where it lies, as a segment
//! of this buffer; the buffer is used again once no such segment is left.
//!
//! Rules. Memory is bounded: a connection has at most [`BUFS_MAX`] receive buffers. If the device
//! is slow and all of them hold payloads of unfinished writes, [`Inbox::room`] has nothing to
//! offer, the connection stops receiving, and the client feels it. Buffers are taken from the
//! lane's pool and go back to it.
//!
//! ```text
//! buf: | payloads in use | consumed | unread window | room for the next receive |
//!      0                            start           end                         capacity
//! ```
//!
//! The tricky case is the end of the buffer: the unread rest is moved to the front of the same
//! buffer if nobody holds a payload in it, else to another buffer, while the old one waits in
//! `pinned` until its last payload is done.

use super::session::Window;
use udm_lane::{Buf, BufPool, Segment};

/// Size of a receive buffer: 32 requests of 4 KiB with room to spare, and a size class of the pool.
pub(super) const BUF_BYTES: usize = 256 << 10;

/// Payloads up to this length are gathered in the receive buffer; longer ones get memory of their
/// own and are received right into it.
pub(super) const INLINE_PAYLOAD_BYTES_MAX: usize = 64 << 10;

/// Receive again into the same buffer only with this much room, or receives get small. It holds
/// any header and payload that are gathered here.
const ROOM_BYTES_MIN: usize = INLINE_PAYLOAD_BYTES_MAX + 64;

/// Receive buffers of one connection, the current one included: 2 MiB.
const BUFS_MAX: usize = 8;

/// Bytes received and not yet consumed.
#[derive(Debug)]
pub(super) struct Inbox {
    buf: Buf,
    start: usize,
    end: usize,
    pinned: Vec<Buf>,
}

impl Inbox {
    pub(super) fn new(pool: &mut BufPool) -> Inbox {
        Inbox { buf: pool.take(BUF_BYTES), start: 0, end: 0, pinned: Vec::new() }
    }

    /// Where the next bytes go; `None` if every buffer is held by unfinished writes. The segment
    /// must be received into before the next call of `room`.
    pub(super) fn room(&mut self, pool: &mut BufPool) -> Option<Segment> {
        if self.buf.len_bytes() - self.end < ROOM_BYTES_MIN
            || (self.start == self.end && self.end > 0 && self.buf.is_unique())
        {
            self.move_rest(pool)?;
        }
        Some(segment(&self.buf, self.end, self.buf.len_bytes() - self.end))
    }

    /// Moves the unread rest to the front of a free buffer.
    fn move_rest(&mut self, pool: &mut BufPool) -> Option<()> {
        let len = self.end - self.start;
        if self.buf.is_unique() {
            self.buf.copy_to(self.start, &self.buf, 0, len);
        } else {
            let fresh = self.other_buf(pool)?;
            self.buf.copy_to(self.start, &fresh, 0, len);
            self.pinned.push(std::mem::replace(&mut self.buf, fresh));
        }
        (self.start, self.end) = (0, len);
        Some(())
    }

    fn other_buf(&mut self, pool: &mut BufPool) -> Option<Buf> {
        if let Some(free) = self.pinned.iter().position(Buf::is_unique) {
            return Some(self.pinned.swap_remove(free));
        }
        (self.pinned.len() + 1 < BUFS_MAX).then(|| pool.take(BUF_BYTES))
    }

    /// `len` bytes have arrived in the segment of the last `room`.
    pub(super) fn received(&mut self, len: usize) {
        self.end += len;
        debug_assert!(self.end <= self.buf.len_bytes());
    }

    /// The first `len` bytes are done with.
    #[inline]
    pub(super) fn consume(&mut self, len: usize) {
        self.start += len;
        debug_assert!(self.start <= self.end);
    }

    /// The first `len` bytes where they lie; they count as consumed, and stay until the segment is
    /// dropped.
    #[inline]
    pub(super) fn take_in_place(&mut self, len: usize) -> Segment {
        let payload = segment(&self.buf, self.start, len);
        self.consume(len);
        payload
    }

    /// Copies bytes out to the start of `to` and consumes them; how many there were.
    pub(super) fn take_copy(&mut self, to: &Buf, len_max: usize) -> usize {
        let len = len_max.min(self.end - self.start);
        self.buf.copy_to(self.start, to, 0, len);
        self.consume(len);
        len
    }

    /// True if something was received that was not consumed.
    pub(super) fn has_unread(&self) -> bool {
        self.end > self.start
    }

    /// Copies the unread bytes to `to`, replacing what it holds.
    pub(super) fn copy_unread(&self, to: &mut Vec<u8>) {
        to.clear();
        to.resize(self.end - self.start, 0);
        self.buf.copy_out(self.start, to);
    }

    /// Gives the memory back.
    pub(super) fn release(&mut self, pool: &mut BufPool) {
        for buf in self.pinned.drain(..) {
            pool.put(buf);
        }
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
        self.buf.copy_out(self.start, to);
    }
}

/// A piece of a buffer; both fit 32 bits, as buffers here are far below 4 GiB.
#[inline]
fn segment(buf: &Buf, offset: usize, len: usize) -> Segment {
    Segment { buf: buf.clone(), offset_bytes: offset as u32, len_bytes: len as u32 }
}

#[cfg(test)]
mod tests {
    use super::{BUF_BYTES, BUFS_MAX, Inbox, ROOM_BYTES_MIN};
    use crate::nbd::session::Window;
    use udm_lane::BufPool;

    fn fill(inbox: &mut Inbox, pool: &mut BufPool, bytes: &[u8]) {
        let room = inbox.room(pool).expect("there is room");
        room.buf.copy_in(room.offset_bytes as usize, bytes);
        drop(room);
        inbox.received(bytes.len());
    }

    #[test]
    fn an_empty_inbox_starts_over_at_the_front() {
        let mut pool = BufPool::new();
        let mut inbox = Inbox::new(&mut pool);
        for _ in 0..10 {
            fill(&mut inbox, &mut pool, &[1; 1000]);
            inbox.consume(1000);
            let room = inbox.room(&mut pool).expect("there is room");
            assert_eq!((room.offset_bytes, room.len_bytes as usize), (0, BUF_BYTES));
        }
    }

    #[test]
    fn the_rest_moves_to_the_front_when_room_gets_scarce() {
        let mut pool = BufPool::new();
        let mut inbox = Inbox::new(&mut pool);
        let len = BUF_BYTES - ROOM_BYTES_MIN + 1;
        let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
        fill(&mut inbox, &mut pool, &bytes);
        inbox.consume(len - 5);
        let room = inbox.room(&mut pool).expect("there is room");
        assert_eq!((room.offset_bytes, room.len_bytes as usize), (5, BUF_BYTES - 5));
        let mut rest = [0; 5];
        inbox.peek(&mut rest);
        assert_eq!(rest, bytes[len - 5..]);
    }

    #[test]
    fn a_payload_in_use_keeps_its_bytes_and_its_buffer() {
        let mut pool = BufPool::new();
        let mut inbox = Inbox::new(&mut pool);
        fill(&mut inbox, &mut pool, &vec![7; BUF_BYTES]);
        let payload = inbox.take_in_place(BUF_BYTES - 3);
        fill(&mut inbox, &mut pool, &[8; 100]);
        assert_eq!(inbox.len_bytes(), 103, "the rest came along");
        let mut kept = [0; 4];
        payload.buf.copy_out(BUF_BYTES - 7, &mut kept);
        assert_eq!(kept, [7; 4]);
    }

    #[test]
    fn buffers_are_bounded_and_come_back() {
        let mut pool = BufPool::new();
        let mut inbox = Inbox::new(&mut pool);
        let mut held = Vec::new();
        for _ in 0..BUFS_MAX {
            fill(&mut inbox, &mut pool, &vec![0; BUF_BYTES]);
            held.push(inbox.take_in_place(BUF_BYTES));
        }
        assert!(inbox.room(&mut pool).is_none(), "every buffer is in use");
        held.remove(3);
        assert!(inbox.room(&mut pool).is_some(), "a finished write makes room");
    }
}
