//! Received bytes to what they mean for the requests under way.
//!
//! Pure. `connection` calls [`Replies::step`] with the bytes it has (through [`Window`]) and the
//! table of requests, and does what comes out: takes data to its place, ends requests, or drops
//! the connection.
//!
//! Rules. Nothing the server sends is trusted. A cookie has to belong to a request under way on
//! this connection; data has to lie inside the range that request asked for, no byte may come
//! twice, and a read has succeeded only when all of it has come. A reply that says otherwise is a
//! breach, after which the place of the next reply in the stream is unknown: the connection ends.
//!
//! The tricky case is a read's reply in many chunks, in any order, with an error among them: the
//! request ends with its last chunk, with the first error if there was one. What has come before
//! an error is in the bio's memory already, which is fine for a read that fails.

use super::requests::{CoverError, Requests};
use super::wire::{
    CMD_READ, EXTENDED_REPLY_MAGIC, HeaderStyle, REPLY_ERR_BIT, REPLY_FLAG_DONE, REPLY_NONE,
    REPLY_OFFSET_DATA, REPLY_OFFSET_HOLE, SIMPLE_REPLY_MAGIC, STRING_LEN_BYTES_MAX,
    STRUCTURED_REPLY_MAGIC, be_u16, be_u32, be_u64,
};

/// Longest payload of an error chunk: code, length of the text, text, offset.
const ERROR_LEN_BYTES_MAX: u64 = 4 + 2 + STRING_LEN_BYTES_MAX as u64 + 8;

/// An error chunk without a code gets this one (EIO).
const ERROR_UNKNOWN: u32 = 5;

/// Received bytes, wherever they are kept.
pub(super) trait Window {
    /// How many there are.
    fn len_bytes(&self) -> usize;
    /// Copies `to.len()` bytes from the front; that many are there.
    fn peek(&self, to: &mut [u8]);
}

impl Window for &[u8] {
    fn len_bytes(&self) -> usize {
        self.len()
    }

    fn peek(&self, to: &mut [u8]) {
        to.copy_from_slice(&self[..to.len()]);
    }
}

/// What the bytes at the front mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// More bytes are needed.
    NeedMore,
    /// Nothing to do but to go on.
    Continue,
    /// Data of a read follows; see [`Replies::data`].
    Data,
    /// Zeroes in place of data: the range of the payload, from its start.
    Hole {
        /// The request.
        slot: u32,
        /// Where in the piece.
        at_bytes: u32,
        /// How many.
        len_bytes: u32,
        /// That was the last chunk: the request is over.
        is_over: bool,
    },
    /// A request is over; its slot knows the error.
    Over {
        /// The request.
        slot: u32,
    },
    /// The stream makes no sense from here on.
    Broken(&'static str),
}

/// Data that is on its way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Incoming {
    /// The request.
    pub(super) slot: u32,
    /// Where in the piece the next byte goes.
    pub(super) at_bytes: u32,
    /// How many are still to come.
    pub(super) left_bytes: u32,
    /// The request is over when they have.
    is_last: bool,
}

/// The reply stream of a connection.
#[derive(Debug)]
pub(super) struct Replies {
    style: HeaderStyle,
    connection: u16,
    incoming: Option<Incoming>,
}

/// The head of a chunk, of either form.
struct Chunk {
    flags: u16,
    kind: u16,
    cookie: u64,
    len_bytes: u64,
    head_bytes: usize,
}

impl Replies {
    /// The replies of connection number `connection`.
    pub(super) fn new(style: HeaderStyle, connection: u16) -> Replies {
        Replies { style, connection, incoming: None }
    }

    /// The data that has to be taken before the next step.
    #[inline]
    pub(super) fn data(&self) -> Option<Incoming> {
        self.incoming
    }

    /// Length of the head before a read's data: what to receive if the data is to come alone.
    pub(super) fn data_head_bytes(&self) -> usize {
        match self.style {
            HeaderStyle::Simple => 16,
            HeaderStyle::Structured => 28,
            HeaderStyle::Extended => 40,
        }
    }

    /// `len_bytes` of the data have been taken; the request that is over with them.
    pub(super) fn data_taken(&mut self, len_bytes: u32) -> Option<u32> {
        let incoming = self.incoming.as_mut()?;
        incoming.at_bytes += len_bytes;
        incoming.left_bytes -= len_bytes;
        if incoming.left_bytes > 0 {
            return None;
        }
        let over = incoming.is_last.then_some(incoming.slot);
        self.incoming = None;
        over
    }

    /// Looks at the front of the stream; how many bytes are done with, and what they meant.
    #[inline]
    pub(super) fn step(&mut self, window: &impl Window, requests: &mut Requests) -> (usize, Event) {
        debug_assert!(self.incoming.is_none(), "data is taken first");
        if window.len_bytes() < 16 {
            return (0, Event::NeedMore);
        }
        let mut head = [0; 16];
        window.peek(&mut head);
        match (be_u32(&head), self.style) {
            (SIMPLE_REPLY_MAGIC, HeaderStyle::Simple | HeaderStyle::Structured) => {
                (16, self.simple(&head, requests))
            }
            (STRUCTURED_REPLY_MAGIC, HeaderStyle::Structured) => {
                self.chunk(window, requests, |head| Chunk {
                    flags: be_u16(&head[4..]),
                    kind: be_u16(&head[6..]),
                    cookie: be_u64(&head[8..]),
                    len_bytes: u64::from(be_u32(&head[16..])),
                    head_bytes: 20,
                })
            }
            (EXTENDED_REPLY_MAGIC, HeaderStyle::Extended) => {
                self.chunk(window, requests, |head| Chunk {
                    flags: be_u16(&head[4..]),
                    kind: be_u16(&head[6..]),
                    cookie: be_u64(&head[8..]),
                    len_bytes: be_u64(&head[24..]),
                    head_bytes: 32,
                })
            }
            (_, HeaderStyle::Simple | HeaderStyle::Structured | HeaderStyle::Extended) => {
                (0, Event::Broken("a reply without its magic number"))
            }
        }
    }

    #[inline]
    fn simple(&mut self, head: &[u8; 16], requests: &mut Requests) -> Event {
        let (error, cookie) = (be_u32(&head[4..]), be_u64(&head[8..]));
        let Some((slot, request)) = requests.awaited(cookie, self.connection) else {
            return Event::Broken("a reply to nothing we asked");
        };
        if request.command == CMD_READ && self.style == HeaderStyle::Structured {
            return Event::Broken("a simple reply to a read, against the agreement");
        }
        if error != 0 {
            request.error = error;
            return Event::Over { slot };
        }
        if request.command != CMD_READ {
            return Event::Over { slot };
        }
        let len_bytes = request.len_bytes;
        request.cover_all();
        self.incoming = Some(Incoming { slot, at_bytes: 0, left_bytes: len_bytes, is_last: true });
        Event::Data
    }

    #[inline]
    fn chunk(
        &mut self,
        window: &impl Window,
        requests: &mut Requests,
        parse: impl FnOnce(&[u8; 32]) -> Chunk,
    ) -> (usize, Event) {
        let head_bytes = if self.style == HeaderStyle::Extended { 32 } else { 20 };
        if window.len_bytes() < head_bytes {
            return (0, Event::NeedMore);
        }
        let mut head = [0; 32];
        window.peek(&mut head[..head_bytes]);
        let chunk = parse(&head);
        match chunk.kind {
            REPLY_NONE => {
                if chunk.len_bytes != 0 || chunk.flags & REPLY_FLAG_DONE == 0 {
                    return (0, Event::Broken("a malformed chunk without content"));
                }
                let Some((slot, request)) = requests.awaited(chunk.cookie, self.connection) else {
                    return (0, Event::Broken("a reply to nothing we asked"));
                };
                if !request.is_covered() && request.error == 0 {
                    return (0, Event::Broken("a read that ended before all its data came"));
                }
                (chunk.head_bytes, Event::Over { slot })
            }
            REPLY_OFFSET_DATA => self.data_chunk(window, requests, &chunk),
            REPLY_OFFSET_HOLE => self.hole_chunk(window, requests, &chunk),
            kind if kind & REPLY_ERR_BIT != 0 => self.error_chunk(window, requests, &chunk),
            _ => (0, Event::Broken("a chunk of a kind we did not ask for")),
        }
    }

    #[inline]
    fn data_chunk(
        &mut self,
        window: &impl Window,
        requests: &mut Requests,
        chunk: &Chunk,
    ) -> (usize, Event) {
        let consumed = chunk.head_bytes + 8;
        if window.len_bytes() < consumed {
            return (0, Event::NeedMore);
        }
        let mut bytes = [0; 40];
        window.peek(&mut bytes[..consumed]);
        let offset_bytes = be_u64(&bytes[chunk.head_bytes..]);
        if chunk.len_bytes <= 8 {
            return (0, Event::Broken("a data chunk without data"));
        }
        let (slot, at_bytes, len_bytes) =
            match self.place(requests, chunk, offset_bytes, chunk.len_bytes - 8) {
                Ok(place) => place,
                Err(why) => return (0, Event::Broken(why)),
            };
        let is_last = chunk.flags & REPLY_FLAG_DONE != 0;
        if is_last && !requests.is_complete(slot) {
            return (0, Event::Broken("a read that ended before all its data came"));
        }
        self.incoming = Some(Incoming { slot, at_bytes, left_bytes: len_bytes, is_last });
        (consumed, Event::Data)
    }

    fn hole_chunk(
        &mut self,
        window: &impl Window,
        requests: &mut Requests,
        chunk: &Chunk,
    ) -> (usize, Event) {
        let consumed = chunk.head_bytes + 12;
        if chunk.len_bytes != 12 {
            return (0, Event::Broken("a malformed hole chunk"));
        }
        if window.len_bytes() < consumed {
            return (0, Event::NeedMore);
        }
        let mut bytes = [0; 44];
        window.peek(&mut bytes[..consumed]);
        let offset_bytes = be_u64(&bytes[chunk.head_bytes..]);
        let hole_bytes = u64::from(be_u32(&bytes[chunk.head_bytes + 8..]));
        if hole_bytes == 0 {
            return (0, Event::Broken("a malformed hole chunk"));
        }
        let (slot, at_bytes, len_bytes) =
            match self.place(requests, chunk, offset_bytes, hole_bytes) {
                Ok(place) => place,
                Err(why) => return (0, Event::Broken(why)),
            };
        let is_over = chunk.flags & REPLY_FLAG_DONE != 0;
        if is_over && !requests.is_complete(slot) {
            return (0, Event::Broken("a read that ended before all its data came"));
        }
        (consumed, Event::Hole { slot, at_bytes, len_bytes, is_over })
    }

    /// Checks where a chunk's content goes, and marks it as come: slot, place in the piece, length.
    #[inline]
    fn place(
        &self,
        requests: &mut Requests,
        chunk: &Chunk,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<(u32, u32, u32), &'static str> {
        let (slot, request) =
            requests.awaited(chunk.cookie, self.connection).ok_or("a reply to nothing we asked")?;
        if request.command != CMD_READ {
            return Err("data in reply to something that is no read");
        }
        let at_bytes = offset_bytes.wrapping_sub(request.offset_bytes);
        request.cover(at_bytes, len_bytes).map_err(|error| match error {
            CoverError::Outside => "data from outside the range we asked for",
            CoverError::Twice => "the same data twice",
        })?;
        // Both fit, or `cover` would have refused.
        Ok((slot, at_bytes as u32, len_bytes as u32))
    }

    fn error_chunk(
        &mut self,
        window: &impl Window,
        requests: &mut Requests,
        chunk: &Chunk,
    ) -> (usize, Event) {
        if !(6..=ERROR_LEN_BYTES_MAX).contains(&chunk.len_bytes) {
            return (0, Event::Broken("a malformed error chunk"));
        }
        let consumed = chunk.head_bytes + chunk.len_bytes as usize;
        if window.len_bytes() < consumed {
            return (0, Event::NeedMore);
        }
        let mut bytes = [0; 38];
        window.peek(&mut bytes[..chunk.head_bytes + 6]);
        let body = &bytes[chunk.head_bytes..];
        let (error, text_bytes) = (be_u32(body), u64::from(be_u16(&body[4..])));
        if 6 + text_bytes > chunk.len_bytes {
            return (0, Event::Broken("a malformed error chunk"));
        }
        let Some((slot, request)) = requests.awaited(chunk.cookie, self.connection) else {
            return (0, Event::Broken("a reply to nothing we asked"));
        };
        if request.error == 0 {
            request.error = if error == 0 { ERROR_UNKNOWN } else { error };
        }
        let is_over = chunk.flags & REPLY_FLAG_DONE != 0;
        (consumed, if is_over { Event::Over { slot } } else { Event::Continue })
    }
}
