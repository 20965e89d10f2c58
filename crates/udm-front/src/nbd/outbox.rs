//! The send side of a connection: replies gathered and sent together.
//!
//! A read's data goes from the device straight to its place in a reply buffer, with room for the
//! head before it; replies without data are appended. Whatever is finished when the turn ends goes
//! out in one send; neighbours merge into one segment, so a batch that the device answers at once
//! is a single piece of memory.
//!
//! Rules. One send at a time, since a short one must be continued before anything else. A place
//! that was reserved is finished or given up exactly once. A buffer is reused when nothing reserved
//! or queued is left in it. A large read gets buffers of its own, of the same size, which the pool
//! keeps; its head goes before them as a piece of a shared buffer.
//!
//! ```text
//! buf: | sent | head data | head data | head | reserved, not read yet | free ...
//!             |<- one piece, merged ----->|                         cursor
//! ```
//!
//! The tricky case is a place finished out of order: pieces are queued in the order of completion,
//! so bytes between two queued pieces may belong to a reply that is still being read. Only pieces
//! that touch are merged.

use udm_lane::{Buf, BufPool, Payload, Segment};

/// Size of a reply buffer: 32 reads of 4 KiB with their heads, and a size class of the pool.
const BUF_BYTES: usize = 256 << 10;

/// Reads longer than this get a buffer of their own, so that they do not use up shared ones.
const SHARED_READ_BYTES_MAX: usize = 64 << 10;

/// Pieces sent with one call. The kernel takes 1024; fewer keep its copy of the list small.
const PIECES_PER_SEND_MAX: usize = 256;

/// Room reserved for one read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    buf: usize,
    data_offset: usize,
    len_bytes: usize,
}

/// Replies on their way out.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bufs: Vec<Option<ReplyBuf>>,
    /// The shared buffer that is being filled.
    current: Option<usize>,
    queue: Vec<Piece>,
    sending: Vec<Piece>,
    /// An emptied payload, kept for its memory.
    spare: Payload,
    memory_bytes: usize,
}

#[derive(Debug)]
struct ReplyBuf {
    buf: Buf,
    cursor: usize,
    /// Places reserved and pieces queued or being sent.
    live: usize,
    /// The next buffer of the same large read.
    next: Option<usize>,
}

/// A run of finished bytes in one buffer.
#[derive(Clone, Copy, Debug)]
struct Piece {
    buf: usize,
    start: usize,
    end: usize,
    /// How many live places it stands for.
    live: usize,
}

impl Outbox {
    /// Reserves room for the reply of a read: a head of `head_bytes`, and the data right after it.
    ///
    /// The data is not aligned on purpose: replies without gaps are one piece to send, which costs
    /// less than what aligned memory would save (`O_DIRECT` files use memory of their own then).
    pub(super) fn reserve(
        &mut self,
        head_bytes: usize,
        len_bytes: usize,
        pool: &mut BufPool,
    ) -> Place {
        if len_bytes > SHARED_READ_BYTES_MAX {
            return Place { buf: self.add_chain(len_bytes, pool), data_offset: 0, len_bytes };
        }
        let buf = self.shared(head_bytes + len_bytes, pool);
        let reply_buf = self.bufs[buf].as_mut().expect("invariant: chosen right above");
        let data_offset = reply_buf.cursor + head_bytes;
        reply_buf.cursor = data_offset + len_bytes;
        reply_buf.live += 1;
        Place { buf, data_offset, len_bytes }
    }

    /// Appends where the data of a place goes.
    #[inline]
    pub(super) fn add_segments(&self, place: Place, payload: &mut Payload) {
        if place.len_bytes <= SHARED_READ_BYTES_MAX {
            let reply_buf =
                self.bufs[place.buf].as_ref().expect("invariant: a live place keeps it");
            let end = place.data_offset + place.len_bytes;
            return payload.push(segment(&reply_buf.buf, place.data_offset, end));
        }
        let mut next = Some(place.buf);
        while let Some(at) = next {
            let reply_buf = self.bufs[at].as_ref().expect("invariant: a live place keeps it");
            payload.push(segment(&reply_buf.buf, 0, reply_buf.cursor));
            next = reply_buf.next;
        }
    }

    /// The data of a place has been read: queues `head` (as long as was reserved) and the data.
    pub(super) fn finish(&mut self, place: Place, head: &[u8], pool: &mut BufPool) {
        if place.len_bytes > SHARED_READ_BYTES_MAX {
            self.push(head, pool);
            let mut next = Some(place.buf);
            while let Some(buf) = next {
                let reply_buf = self.bufs[buf].as_ref().expect("invariant: a live place keeps it");
                let end = reply_buf.cursor;
                next = reply_buf.next;
                self.enqueue(Piece { buf, start: 0, end, live: 1 });
            }
            return;
        }
        let reply_buf = self.bufs[place.buf].as_ref().expect("invariant: a live place keeps it");
        let start = place.data_offset - head.len();
        reply_buf.buf.copy_in(start, head);
        let end = place.data_offset + place.len_bytes;
        self.enqueue(Piece { buf: place.buf, start, end, live: 1 });
    }

    /// A place is not needed after all.
    pub(super) fn give_up(&mut self, place: Place, pool: &mut BufPool) {
        let mut next = Some(place.buf);
        while let Some(buf) = next {
            next = self.bufs[buf].as_ref().and_then(|reply_buf| reply_buf.next);
            self.unlive(buf, 1, pool);
        }
    }

    /// Queues bytes that are there already: a reply without data, an option reply.
    pub(super) fn push(&mut self, mut bytes: &[u8], pool: &mut BufPool) {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(SHARED_READ_BYTES_MAX));
            let buf = self.shared(now.len(), pool);
            let reply_buf = self.bufs[buf].as_mut().expect("invariant: chosen right above");
            let start = reply_buf.cursor;
            reply_buf.buf.copy_in(start, now);
            reply_buf.cursor += now.len();
            reply_buf.live += 1;
            let end = reply_buf.cursor;
            self.enqueue(Piece { buf, start, end, live: 1 });
            bytes = later;
        }
    }

    /// Memory of all buffers in use, the half-empty ones too.
    #[inline]
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// True if nothing is queued and nothing is being sent.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.sending.is_empty()
    }

    /// What to send now; `None` if there is nothing, or a send is under way.
    pub(super) fn next_send(&mut self) -> Option<Payload> {
        if self.queue.is_empty() || !self.sending.is_empty() {
            return None;
        }
        let count = self.queue.len().min(PIECES_PER_SEND_MAX);
        self.sending.extend(self.queue.drain(..count));
        Some(self.sending_payload())
    }

    /// A send ended after `len_bytes`. Gives the rest to send next, if it was short.
    pub(super) fn sent(
        &mut self,
        mut len_bytes: usize,
        payload: Payload,
        pool: &mut BufPool,
    ) -> Option<Payload> {
        self.spare = payload;
        self.spare.clear();
        let mut done = 0;
        while let Some(piece) = self.sending.get_mut(done) {
            let piece_bytes = piece.end - piece.start;
            if len_bytes < piece_bytes {
                piece.start += len_bytes;
                break;
            }
            len_bytes -= piece_bytes;
            let Piece { buf, live, .. } = *piece;
            self.unlive(buf, live, pool);
            done += 1;
        }
        self.sending.drain(..done);
        (!self.sending.is_empty()).then(|| self.sending_payload())
    }

    fn sending_payload(&mut self) -> Payload {
        let mut payload = std::mem::take(&mut self.spare);
        for piece in &self.sending {
            let reply_buf =
                self.bufs[piece.buf].as_ref().expect("invariant: a live piece keeps it");
            payload.push(segment(&reply_buf.buf, piece.start, piece.end));
        }
        payload
    }

    fn enqueue(&mut self, piece: Piece) {
        match self.queue.last_mut() {
            Some(last) if last.buf == piece.buf && last.end == piece.start => {
                last.end = piece.end;
                last.live += piece.live;
            }
            _ => self.queue.push(piece),
        }
    }

    /// A shared buffer with at least `room` bytes free.
    fn shared(&mut self, room: usize, pool: &mut BufPool) -> usize {
        if let Some(current) = self.current
            && let Some(reply_buf) = &self.bufs[current]
            && reply_buf.cursor + room <= reply_buf.buf.len_bytes()
        {
            return current;
        }
        // The old one goes back to the pool when its last reply has been sent.
        let fresh = self.add(pool.take(BUF_BYTES));
        self.current = Some(fresh);
        fresh
    }

    /// Buffers of their own for a large read; the first of them.
    fn add_chain(&mut self, len_bytes: usize, pool: &mut BufPool) -> usize {
        let (mut first, mut last) = (None, None);
        for piece_bytes in pieces(len_bytes) {
            let at = self.add(pool.take(piece_bytes));
            if let Some(reply_buf) = &mut self.bufs[at] {
                (reply_buf.cursor, reply_buf.live) = (piece_bytes, 1);
            }
            if let Some(before) =
                last.replace(at).and_then(|before: usize| self.bufs[before].as_mut())
            {
                before.next = Some(at);
            }
            first = first.or(Some(at));
        }
        first.expect("invariant: a large read is not empty")
    }

    fn add(&mut self, buf: Buf) -> usize {
        self.memory_bytes += buf.len_bytes();
        let reply_buf = Some(ReplyBuf { buf, cursor: 0, live: 0, next: None });
        if let Some(free) = self.bufs.iter().position(Option::is_none) {
            self.bufs[free] = reply_buf;
            return free;
        }
        self.bufs.push(reply_buf);
        self.bufs.len() - 1
    }

    /// `count` places of a buffer are done; an empty buffer goes back to the pool, so an idle
    /// connection holds none and busy ones share those the processor has cached.
    fn unlive(&mut self, at: usize, count: usize, pool: &mut BufPool) {
        let Some(reply_buf) = &mut self.bufs[at] else { return };
        reply_buf.live -= count;
        if reply_buf.live > 0 {
            return;
        }
        if self.current == Some(at) {
            self.current = None;
        }
        if let Some(reply_buf) = self.bufs[at].take() {
            self.memory_bytes -= reply_buf.buf.len_bytes();
            pool.put(reply_buf.buf);
        }
    }

    /// The connection has gone: gives the memory back. Places still reserved stay valid.
    pub(super) fn release(&mut self, pool: &mut BufPool) {
        let pieces: Vec<Piece> = self.queue.drain(..).chain(self.sending.drain(..)).collect();
        for piece in pieces {
            self.unlive(piece.buf, piece.live, pool);
        }
    }
}

/// The lengths of the buffers that hold a large payload: the pool keeps buffers of this size, and
/// the kernel moves no more at a time anyway.
pub(super) fn pieces(len_bytes: usize) -> impl Iterator<Item = usize> {
    (0..len_bytes.div_ceil(BUF_BYTES)).map(move |nr| BUF_BYTES.min(len_bytes - nr * BUF_BYTES))
}

/// Bytes `start..end` of a buffer; they fit 32 bits, as reply buffers are far below 4 GiB.
#[inline]
fn segment(buf: &Buf, start: usize, end: usize) -> Segment {
    Segment { buf: buf.clone(), offset_bytes: start as u32, len_bytes: (end - start) as u32 }
}

#[cfg(test)]
mod tests {
    use super::{BUF_BYTES, Outbox, Place};
    use udm_lane::{BufPool, Payload};

    fn bytes_of(payload: &Payload) -> Vec<u8> {
        let mut bytes = vec![0; payload.len_bytes() as usize];
        payload.copy_out(0, &mut bytes);
        bytes
    }

    fn data_of(outbox: &Outbox, place: Place) -> Payload {
        let mut payload = Payload::empty();
        outbox.add_segments(place, &mut payload);
        payload
    }

    #[test]
    fn a_batch_finished_in_order_is_one_segment() {
        let (mut outbox, mut pool) = (Outbox::default(), BufPool::new());
        let places: Vec<_> = (0..3).map(|_| outbox.reserve(40, 512, &mut pool)).collect();
        assert_eq!(outbox.memory_bytes(), BUF_BYTES);
        for (index, place) in places.into_iter().enumerate() {
            data_of(&outbox, place).fill(0, 512, index as u8 + 1);
            outbox.finish(place, &[0xee; 40], &mut pool);
        }
        let payload = outbox.next_send().expect("replies wait");
        assert_eq!((payload.segment_count(), payload.len_bytes()), (1, 3 * 552));
        let bytes = bytes_of(&payload);
        assert_eq!((bytes[0], bytes[40], bytes[592], bytes[1655]), (0xee, 1, 2, 3));
        assert!(outbox.next_send().is_none(), "one send at a time");
        assert!(outbox.sent(3 * 552, payload, &mut pool).is_none());
        assert!(outbox.is_idle());
    }

    #[test]
    fn out_of_order_replies_are_sent_in_the_order_they_finish() {
        let (mut outbox, mut pool) = (Outbox::default(), BufPool::new());
        let first = outbox.reserve(16, 512, &mut pool);
        let second = outbox.reserve(16, 512, &mut pool);
        for (place, byte) in [(second, 2_u8), (first, 1)] {
            data_of(&outbox, place).fill(0, 512, byte);
            outbox.finish(place, &[byte; 16], &mut pool);
        }
        outbox.push(&[3; 20], &mut pool);
        let payload = outbox.next_send().expect("replies wait");
        let bytes = bytes_of(&payload);
        let expected = [vec![2; 528], vec![1; 528], vec![3; 20]].concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_short_send_goes_on_where_it_stopped() {
        let (mut outbox, mut pool) = (Outbox::default(), BufPool::new());
        let message: Vec<u8> = (0..100_000_u32).map(|at| at as u8).collect();
        outbox.push(&message, &mut pool);
        let place = outbox.reserve(16, 4096, &mut pool);
        outbox.finish(place, &[9; 16], &mut pool);
        let mut got = Vec::new();
        let mut next = outbox.next_send();
        while let Some(payload) = next {
            let take = payload.len_bytes().min(777);
            got.extend_from_slice(&bytes_of(&payload)[..take as usize]);
            outbox.push(b"late", &mut pool);
            next = outbox.sent(take as usize, payload, &mut pool);
            if got.len() > 104_112 {
                break;
            }
        }
        assert_eq!(got[..100_000], message);
        assert_eq!(got[100_000..100_016], [9; 16]);
        assert_eq!(got.len(), 100_000 + 16 + 4096, "late replies wait for the next send");
        assert!(outbox.next_send().is_some());
    }

    #[test]
    fn buffers_go_back_when_their_replies_are_sent() {
        let (mut outbox, mut pool) = (Outbox::default(), BufPool::new());
        for _ in 0..20 {
            let places: Vec<_> = (0..8).map(|_| outbox.reserve(16, 60_000, &mut pool)).collect();
            assert!(outbox.memory_bytes() >= 2 * BUF_BYTES, "they do not fit one buffer");
            let mut places = places.into_iter();
            if let Some(failed) = places.next() {
                outbox.give_up(failed, &mut pool);
            }
            places.for_each(|place| outbox.finish(place, &[0; 16], &mut pool));
            while let Some(payload) = outbox.next_send() {
                let len = payload.len_bytes() as usize;
                assert!(outbox.sent(len, payload, &mut pool).is_none());
            }
            assert_eq!(outbox.memory_bytes(), 0, "an idle connection holds nothing");
        }
        outbox.push(b"nobody reads this", &mut pool);
        outbox.release(&mut pool);
        assert_eq!(outbox.memory_bytes(), 0);
    }

    #[test]
    fn a_large_read_is_sent_from_buffers_of_its_own() {
        let (mut outbox, mut pool) = (Outbox::default(), BufPool::new());
        let len = 2 * BUF_BYTES + 512;
        for given_up in [true, false] {
            let place = outbox.reserve(16, len, &mut pool);
            let data = data_of(&outbox, place);
            assert_eq!((data.segment_count(), data.len_bytes()), (3, len as u64));
            let bytes: Vec<u8> = (0..len).map(|at| (at / 7) as u8).collect();
            data.copy_in(0, &bytes);
            drop(data);
            if given_up {
                outbox.give_up(place, &mut pool);
                assert_eq!(outbox.memory_bytes(), 0);
                continue;
            }
            outbox.finish(place, &[7; 16], &mut pool);
            let payload = outbox.next_send().expect("a reply waits");
            assert!(bytes_of(&payload) == [vec![7; 16], bytes].concat());
            assert!(outbox.sent(len + 16, payload, &mut pool).is_none());
            assert_eq!(outbox.memory_bytes(), 0);
        }
    }
}
