//! The bytes of each reply, in the three header styles.
//!
//! Called by the connection when a command is done. A reply's head is a small value on the stack
//! ([`Head`]); the data of a read is never copied here: the connection places the head in front of
//! it, or sends the two as neighbouring segments.
//!
//! Rules. With structured or extended headers every reply is a chunk, also where a simple reply
//! would be allowed: one style on a connection is easier to follow in a trace. A read is answered
//! by exactly one data chunk with the DONE flag, sent only after the whole read has succeeded, so
//! no error can turn up behind a head that promised data, and DF is always honoured.
//!
//! The tricky case is an error message: clients print it, so it is cut at [`MESSAGE_BYTES_MAX`]
//! rather than refused, and all our messages are ASCII, so the cut never splits a character.

use super::export::PAYLOAD_BYTES_MAX;
use super::wire::{
    CONTEXT_ID_BASE_ALLOCATION, EXTENDED_REPLY_MAGIC, ExtendedChunk, HeaderStyle, NbdError,
    REPLY_BLOCK_STATUS, REPLY_BLOCK_STATUS_EXT, REPLY_ERROR, REPLY_FLAG_DONE, REPLY_NONE,
    REPLY_OFFSET_DATA, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, SimpleReply, StructuredChunk,
};
use zerocopy::IntoBytes;

/// Longest message in an error chunk; makes every head fit [`HEAD_BYTES_MAX`].
pub const MESSAGE_BYTES_MAX: usize = 80;

/// Longest reply head: extended header, error number, message length, message.
pub const HEAD_BYTES_MAX: usize = 32 + 4 + 2 + MESSAGE_BYTES_MAX;

/// Longest head of a successful read.
pub const READ_HEAD_BYTES_MAX: usize = 32 + 8;

/// Which request a reply answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset (extended headers repeat it).
    pub offset_bytes: u64,
}

/// One extent of a block status reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How many bytes it covers; not zero.
    pub len_bytes: u64,
    /// Not allocated.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

/// The bytes of a reply up to its data.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    len_bytes: usize,
}

impl Head {
    fn new() -> Head {
        Head { bytes: [0; HEAD_BYTES_MAX], len_bytes: 0 }
    }

    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        let end = self.len_bytes + bytes.len();
        self.bytes[self.len_bytes..end].copy_from_slice(bytes);
        self.len_bytes = end;
    }

    /// The bytes to send.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len_bytes]
    }
}

/// Length of the head of a successful read, so that room can be left in front of its data.
#[inline]
pub fn read_head_len_bytes(style: HeaderStyle) -> usize {
    match style {
        HeaderStyle::Simple => 16,
        HeaderStyle::Structured => 20 + 8,
        HeaderStyle::Extended => READ_HEAD_BYTES_MAX,
    }
}

/// The head of a successful read of `len_bytes` (at most [`PAYLOAD_BYTES_MAX`]); the data follows.
#[inline]
pub fn read_head(style: HeaderStyle, to: ReplyTo, len_bytes: u32) -> Head {
    debug_assert!(len_bytes <= PAYLOAD_BYTES_MAX);
    match style {
        HeaderStyle::Simple => simple(to, 0),
        HeaderStyle::Structured | HeaderStyle::Extended => {
            let mut head = chunk(style, to, REPLY_OFFSET_DATA, 8 + len_bytes);
            head.push(&to.offset_bytes.to_be_bytes());
            head
        }
    }
}

/// The reply to a command that succeeded and has no data.
#[inline]
pub fn done(style: HeaderStyle, to: ReplyTo) -> Head {
    match style {
        HeaderStyle::Simple => simple(to, 0),
        HeaderStyle::Structured | HeaderStyle::Extended => chunk(style, to, REPLY_NONE, 0),
    }
}

/// The reply to a command that failed; `message` is for people and may be empty.
pub fn error(style: HeaderStyle, to: ReplyTo, error: NbdError, message: &str) -> Head {
    match style {
        HeaderStyle::Simple => simple(to, error.code()),
        HeaderStyle::Structured | HeaderStyle::Extended => {
            let message = &message.as_bytes()[..message.len().min(MESSAGE_BYTES_MAX)];
            // Fits: the message was just cut to 80 bytes.
            let message_len = message.len() as u16;
            let mut head = chunk(style, to, REPLY_ERROR, 6 + u32::from(message_len));
            head.push(&error.code().to_be_bytes());
            head.push(&message_len.to_be_bytes());
            head.push(message);
            head
        }
    }
}

/// Appends a block status reply for `base:allocation` to `out`.
///
/// Extents too long for 32 bits are cut in the structured style, and the list ends there: the
/// client asks again from where the answer stops.
///
/// # Panics
/// If `extents` is empty, or in the simple style: the session refuses block status without a
/// selected context, and contexts cannot be selected in the simple style.
pub fn block_status(style: HeaderStyle, to: ReplyTo, extents: &[Extent], out: &mut Vec<u8>) {
    assert!(!extents.is_empty(), "invariant: a block status reply has at least one extent");
    let whole = extents.iter().take_while(|extent| extent.len_bytes <= EXTENT_BYTES_MAX_32);
    let count_32 = (whole.count() + 1).min(extents.len());
    match style {
        HeaderStyle::Simple => {
            unreachable!("invariant: no metadata context is selected in the simple style")
        }
        HeaderStyle::Structured => {
            let len = 4 + 8 * len_u32(count_32);
            out.extend_from_slice(chunk(style, to, REPLY_BLOCK_STATUS, len).as_bytes());
            out.extend_from_slice(&CONTEXT_ID_BASE_ALLOCATION.to_be_bytes());
            for extent in &extents[..count_32] {
                // Fits: cut to the largest 32-bit length right here.
                let len = extent.len_bytes.min(EXTENT_BYTES_MAX_32) as u32;
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(&state(extent).to_be_bytes());
            }
        }
        HeaderStyle::Extended => {
            let count = len_u32(extents.len());
            let len = 8 + 16 * count;
            out.extend_from_slice(chunk(style, to, REPLY_BLOCK_STATUS_EXT, len).as_bytes());
            out.extend_from_slice(&CONTEXT_ID_BASE_ALLOCATION.to_be_bytes());
            out.extend_from_slice(&count.to_be_bytes());
            for extent in extents {
                out.extend_from_slice(&extent.len_bytes.to_be_bytes());
                out.extend_from_slice(&u64::from(state(extent)).to_be_bytes());
            }
        }
    }
}

/// The longest 32-bit extent that is a multiple of every block size the protocol allows.
const EXTENT_BYTES_MAX_32: u64 = 0xffff_0000;

fn len_u32(count: usize) -> u32 {
    u32::try_from(count).expect("invariant: a reply has at most 2^20 extents")
}

fn state(extent: &Extent) -> u32 {
    u32::from(extent.hole) | u32::from(extent.zero) << 1
}

#[inline]
fn simple(to: ReplyTo, error: u32) -> Head {
    let mut head = Head::new();
    head.push(
        SimpleReply {
            magic: SIMPLE_REPLY_MAGIC.into(),
            error: error.into(),
            cookie: to.cookie.into(),
        }
        .as_bytes(),
    );
    head
}

/// The header of the only chunk of a reply.
#[inline]
fn chunk(style: HeaderStyle, to: ReplyTo, kind: u16, len: u32) -> Head {
    let mut head = Head::new();
    match style {
        HeaderStyle::Simple => {
            unreachable!("invariant: callers handle the simple style themselves")
        }
        HeaderStyle::Structured => head.push(
            StructuredChunk {
                magic: STRUCTURED_REPLY_MAGIC.into(),
                flags: REPLY_FLAG_DONE.into(),
                kind: kind.into(),
                cookie: to.cookie.into(),
                len: len.into(),
            }
            .as_bytes(),
        ),
        HeaderStyle::Extended => head.push(
            ExtendedChunk {
                magic: EXTENDED_REPLY_MAGIC.into(),
                flags: REPLY_FLAG_DONE.into(),
                kind: kind.into(),
                cookie: to.cookie.into(),
                offset: to.offset_bytes.into(),
                len: u64::from(len).into(),
            }
            .as_bytes(),
        ),
    }
    head
}

#[cfg(test)]
mod tests {
    use super::{
        Extent, MESSAGE_BYTES_MAX, ReplyTo, block_status, done, error, read_head,
        read_head_len_bytes,
    };
    use crate::nbd::wire::{HeaderStyle, NbdError};

    const TO: ReplyTo = ReplyTo { cookie: 0x0102_0304_0506_0708, offset_bytes: 0x1000 };
    const STYLES: [HeaderStyle; 3] =
        [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended];

    #[test]
    fn read_heads_are_byte_exact_in_every_style() {
        let head = read_head(HeaderStyle::Simple, TO, 4096);
        assert_eq!(head.as_bytes(), b"\x67\x44\x66\x98\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08");
        let head = read_head(HeaderStyle::Structured, TO, 4096);
        assert_eq!(
            head.as_bytes(),
            b"\x66\x8e\x33\xef\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\x10\x08\
              \0\0\0\0\0\0\x10\0"
        );
        let head = read_head(HeaderStyle::Extended, TO, 4096);
        assert_eq!(
            head.as_bytes(),
            b"\x6e\x8a\x27\x8c\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\
              \0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x10\x08\0\0\0\0\0\0\x10\0"
        );
        for style in STYLES {
            assert_eq!(read_head(style, TO, 1).as_bytes().len(), read_head_len_bytes(style));
        }
    }

    #[test]
    fn done_is_a_none_chunk_where_chunks_are_agreed() {
        assert_eq!(done(HeaderStyle::Simple, TO).as_bytes()[4..8], [0; 4]);
        assert_eq!(
            done(HeaderStyle::Structured, TO).as_bytes()[4..],
            *b"\0\x01\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0"
        );
        assert_eq!(done(HeaderStyle::Extended, TO).as_bytes().len(), 32);
    }

    #[test]
    fn errors_carry_number_and_message() {
        let head = error(HeaderStyle::Simple, TO, NbdError::NoSpace, "ignored");
        assert_eq!(head.as_bytes()[4..8], [0, 0, 0, 28]);
        assert_eq!(head.as_bytes().len(), 16);
        let head = error(HeaderStyle::Structured, TO, NbdError::Inval, "bad");
        assert_eq!(head.as_bytes()[4..8], [0, 1, 0x80, 1]);
        assert_eq!(head.as_bytes()[16..], *b"\0\0\0\x09\0\0\0\x16\0\x03bad");
        let long = "m".repeat(MESSAGE_BYTES_MAX + 1);
        for (style, fixed) in [(HeaderStyle::Structured, 26), (HeaderStyle::Extended, 38)] {
            let head = error(style, TO, NbdError::Io, &long);
            assert_eq!(head.as_bytes().len(), fixed + MESSAGE_BYTES_MAX);
        }
    }

    #[test]
    fn block_status_lists_extents_in_both_widths() {
        let extents = [
            Extent { len_bytes: 512, hole: false, zero: false },
            Extent { len_bytes: 1 << 40, hole: true, zero: true },
            Extent { len_bytes: 512, hole: false, zero: true },
        ];
        let mut out = Vec::new();
        block_status(HeaderStyle::Structured, TO, &extents, &mut out);
        assert_eq!(out[4..8], [0, 1, 0, 5]);
        assert_eq!(out[16..], *b"\0\0\0\x14\0\0\0\x01\0\0\x02\0\0\0\0\0\xff\xff\0\0\0\0\0\x03");
        let mut out = Vec::new();
        block_status(HeaderStyle::Extended, TO, &extents, &mut out);
        assert_eq!(out[4..8], [0, 1, 0, 6]);
        assert_eq!(out[32..40], *b"\0\0\0\x01\0\0\0\x03");
        assert_eq!(out[56..72], *b"\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\x03");
        assert_eq!(out.len(), 40 + 48);
    }
}
