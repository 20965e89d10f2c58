//! Requests on their way out: gathered during a turn, sent together.
//!
//! Heads are written one behind the other into a buffer, so that a batch of reads is one piece of
//! memory; a write's data stays where it is and goes out as segments between them. There are two
//! buffers of heads: one is being sent while the next requests are written into the other.
//!
//! Rules. One send at a time, since a short one is continued before anything else. The bytes of a
//! send belong to its operation until that ends. What is gathered is bounded by the requests of a
//! connection, each with one head.

use super::wire::REQUEST_BYTES_MAX;
use udm_lane::{Buf, Payload, Segment};

/// Room for the heads of all requests of a connection.
const BUF_BYTES: usize = super::connection::IN_FLIGHT_MAX as usize * REQUEST_BYTES_MAX + 4096;

/// What waits to be sent, and what is being sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    heads: Option<Buf>,
    cursor: usize,
    /// Heads from here to the cursor are not in `next` yet.
    open_from: usize,
    /// The other buffer of heads, and an emptied payload: both of the last send.
    spare_heads: Option<Buf>,
    next: Payload,
    spare: Payload,
    /// What is left of the send under way.
    sending_bytes: u64,
}

impl Outbox {
    /// Appends bytes that are no data of a bio: a head, or what a handshake says.
    #[inline]
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let buf = self.heads.get_or_insert_with(|| Buf::alloc(BUF_BYTES));
        buf.copy_in(self.cursor, bytes);
        self.cursor += bytes.len();
    }

    /// Appends data, where it lies.
    #[inline]
    pub(super) fn push_data(&mut self, payload: &Payload, at_bytes: u64, len_bytes: u64) {
        self.close_heads();
        payload.for_range(at_bytes, len_bytes, |segment, start, len, _| {
            self.next.push(Segment {
                buf: segment.buf.clone(),
                offset_bytes: segment.offset_bytes + start,
                len_bytes: len,
            });
        });
    }

    /// Moves the heads written since the last data into the payload.
    fn close_heads(&mut self) {
        let (start, end) = (self.open_from, self.cursor);
        if let Some(buf) = &self.heads
            && end > start
        {
            // Both are below the buffer's few KiB.
            let (offset_bytes, len_bytes) = (start as u32, (end - start) as u32);
            self.next.push(Segment { buf: buf.clone(), offset_bytes, len_bytes });
            self.open_from = end;
        }
    }

    /// True if a send is under way.
    pub(super) fn is_sending(&self) -> bool {
        self.sending_bytes > 0
    }

    /// What to send now; `None` if there is nothing or a send is under way.
    pub(super) fn next_send(&mut self) -> Option<Payload> {
        if self.is_sending() {
            return None;
        }
        self.close_heads();
        if self.next.is_empty() {
            return None;
        }
        let payload = std::mem::replace(&mut self.next, std::mem::take(&mut self.spare));
        self.sending_bytes = payload.len_bytes();
        std::mem::swap(&mut self.heads, &mut self.spare_heads);
        (self.cursor, self.open_from) = (0, 0);
        Some(payload)
    }

    /// A send ended after `len_bytes`; the rest to send next, if it was short.
    pub(super) fn sent(&mut self, len_bytes: u64, mut payload: Payload) -> Option<Payload> {
        self.sending_bytes = self.sending_bytes.saturating_sub(len_bytes);
        if self.sending_bytes > 0 {
            let done = payload.len_bytes() - self.sending_bytes;
            return Some(payload.slice(done, self.sending_bytes));
        }
        payload.clear();
        self.spare = payload;
        None
    }

    /// Forgets everything. Buffers that a send may still read are not used again.
    pub(super) fn reset(&mut self) {
        self.next.clear();
        self.heads = self.heads.take().filter(Buf::is_unique);
        self.spare_heads = self.spare_heads.take().filter(Buf::is_unique);
        (self.cursor, self.open_from, self.sending_bytes) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Outbox;
    use udm_lane::{Buf, Payload};

    fn bytes_of(payload: &Payload) -> Vec<u8> {
        let mut bytes = vec![0; payload.len_bytes() as usize];
        payload.copy_out(0, &mut bytes);
        bytes
    }

    #[test]
    fn heads_without_data_between_them_are_one_piece() {
        let mut outbox = Outbox::default();
        assert!(outbox.next_send().is_none());
        outbox.push(b"one");
        outbox.push(b"two");
        let data = Payload::from_buf(Buf::alloc(16));
        data.copy_in(4, b"data");
        outbox.push(b"head");
        outbox.push_data(&data, 4, 4);
        outbox.push(b"end");
        let payload = outbox.next_send().expect("something waits");
        assert_eq!(payload.segment_count(), 3);
        assert_eq!(bytes_of(&payload), b"onetwoheaddataend");
        outbox.push(b"later");
        assert!(outbox.next_send().is_none(), "one send at a time");
        assert!(outbox.sent(17, payload).is_none());
        assert_eq!(bytes_of(&outbox.next_send().expect("the next")), b"later");
    }

    #[test]
    fn a_short_send_goes_on_where_it_stopped() {
        let mut outbox = Outbox::default();
        outbox.push(b"0123456789");
        let (mut seen, mut next) = (Vec::new(), outbox.next_send());
        while let Some(payload) = next {
            let taken = payload.len_bytes().min(3);
            seen.extend_from_slice(&bytes_of(&payload)[..taken as usize]);
            next = outbox.sent(taken, payload);
        }
        assert_eq!(seen, b"0123456789");
        assert!(!outbox.is_sending());
    }

    #[test]
    fn what_a_send_still_reads_is_not_written_over() {
        let mut outbox = Outbox::default();
        outbox.push(b"old");
        let late = outbox.next_send().expect("something waits");
        outbox.reset();
        for _ in 0..3 {
            outbox.push(b"new");
            let payload = outbox.next_send().expect("something waits");
            outbox.sent(3, payload);
        }
        assert_eq!(bytes_of(&late), b"old");
    }
}
