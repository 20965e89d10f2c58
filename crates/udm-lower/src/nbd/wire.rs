//! The numbers of the NBD protocol that a client needs, and the bytes of its requests.
//!
//! Used by `handshake`, `replies` and `lane`. Names are the protocol's own without the `NBD_` in
//! front; all fields are big-endian. None of these numbers may ever change. `docs/formats/nbd.md`
//! has the byte maps.
//!
//! The server (`udm-front`) has the same numbers in its own `wire.rs`: neither crate may use the
//! other, and the one below both (`udm-driver`) moves bytes and knows no protocol. Each side needs
//! another half of them, and the tests of each talk to programs of others.

/// First word of the greeting (`NBDMAGIC`).
pub(super) const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting, and the start of every option (`IHAVEOPT`).
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Second word of the greeting of servers from before there were options.
pub(super) const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// Start of every option reply.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of a compact request.
const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of an extended request.
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Start of a simple reply.
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a structured reply chunk.
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Start of an extended reply chunk.
pub(super) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Handshake flag: fixed newstyle. The client's flag has the same bit.
pub(super) const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: no padding after `EXPORT_NAME`. The client's flag has the same bit.
pub(super) const FLAG_NO_ZEROES: u16 = 2;
/// Zeroes that end the answer to `EXPORT_NAME` without [`FLAG_NO_ZEROES`].
pub(super) const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// Longest string the protocol allows.
pub(super) const STRING_LEN_BYTES_MAX: usize = 4096;

/// Option: choose an export and start, for servers without [`OPT_GO`].
pub(super) const OPT_EXPORT_NAME: u32 = 1;
/// Option: describe an export and start.
pub(super) const OPT_GO: u32 = 7;
/// Option: use structured replies.
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;
/// Option: use extended headers.
pub(super) const OPT_EXTENDED_HEADERS: u32 = 11;

/// Option reply: done.
pub(super) const REP_ACK: u32 = 1;
/// Option reply: one information item.
pub(super) const REP_INFO: u32 = 3;
/// Set in every option reply that is an error.
pub(super) const REP_ERR_BIT: u32 = 1 << 31;
/// Option error: not known there.
pub(super) const REP_ERR_UNSUP: u32 = REP_ERR_BIT + 1;
/// Option error: forbidden by the server's settings.
pub(super) const REP_ERR_POLICY: u32 = REP_ERR_BIT + 2;
/// Option error: TLS has to come first.
pub(super) const REP_ERR_TLS_REQD: u32 = REP_ERR_BIT + 5;
/// Option error: no such export.
pub(super) const REP_ERR_UNKNOWN: u32 = REP_ERR_BIT + 6;
/// Option error: the server is shutting down.
pub(super) const REP_ERR_SHUTDOWN: u32 = REP_ERR_BIT + 7;

/// Information item: size and transmission flags.
pub(super) const INFO_EXPORT: u16 = 0;
/// Information item: block sizes.
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// Command: read.
pub(super) const CMD_READ: u16 = 0;
/// Command: write.
pub(super) const CMD_WRITE: u16 = 1;
/// Command: end the connection.
pub(super) const CMD_DISC: u16 = 2;
/// Command: flush.
pub(super) const CMD_FLUSH: u16 = 3;
/// Command: discard.
pub(super) const CMD_TRIM: u16 = 4;
/// Command: write zeroes.
pub(super) const CMD_WRITE_ZEROES: u16 = 6;

/// Command flag: durable on completion.
pub(super) const CMD_FLAG_FUA: u16 = 1;
/// Command flag: write-zeroes keeps the range allocated.
pub(super) const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// Command flag, extended headers: the length is that of a payload.
pub(super) const CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

/// Reply chunk: success, no content.
pub(super) const REPLY_NONE: u16 = 0;
/// Reply chunk: data at an offset.
pub(super) const REPLY_OFFSET_DATA: u16 = 1;
/// Reply chunk: zeroes at an offset.
pub(super) const REPLY_OFFSET_HOLE: u16 = 2;
/// Set in every reply chunk that is an error.
pub(super) const REPLY_ERR_BIT: u16 = 1 << 15;
/// Chunk flag: the last chunk of this reply.
pub(super) const REPLY_FLAG_DONE: u16 = 1;

/// What an export can do: always set.
pub(super) const HAS_FLAGS: u16 = 1;
/// What an export can do: writes are refused.
pub(super) const READ_ONLY: u16 = 1 << 1;
/// What an export can do: flush.
pub(super) const SEND_FLUSH: u16 = 1 << 2;
/// What an export can do: FUA.
pub(super) const SEND_FUA: u16 = 1 << 3;
/// What an export can do: seeks are slow.
pub(super) const ROTATIONAL: u16 = 1 << 4;
/// What an export can do: trim.
pub(super) const SEND_TRIM: u16 = 1 << 5;
/// What an export can do: write-zeroes.
pub(super) const SEND_WRITE_ZEROES: u16 = 1 << 6;
/// What an export can do: a flush on one connection covers all of them.
pub(super) const CAN_MULTI_CONN: u16 = 1 << 8;

/// Error: the server stops; the client has to go.
pub(super) const ERROR_SHUTDOWN: u32 = 108;

/// Longest request head.
pub(super) const REQUEST_BYTES_MAX: usize = 32;

/// How requests and replies are framed, as agreed in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderStyle {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured reply chunks.
    Structured,
    /// Extended requests, extended reply chunks.
    Extended,
}

/// A request before it is bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestHead {
    /// `CMD_FLAG_*`.
    pub(super) flags: u16,
    /// `CMD_*`.
    pub(super) command: u16,
    /// Comes back in the reply.
    pub(super) cookie: u64,
    /// Position in the export.
    pub(super) offset_bytes: u64,
    /// Length of the range.
    pub(super) len_bytes: u32,
}

impl RequestHead {
    /// Writes the head to the front of `to`; how long it is. A write's data follows.
    pub(super) fn encode(&self, style: HeaderStyle, to: &mut [u8; REQUEST_BYTES_MAX]) -> usize {
        let (magic, flags) = match style {
            HeaderStyle::Simple | HeaderStyle::Structured => (REQUEST_MAGIC, self.flags),
            HeaderStyle::Extended if self.command == CMD_WRITE => {
                (EXTENDED_REQUEST_MAGIC, self.flags | CMD_FLAG_PAYLOAD_LEN)
            }
            HeaderStyle::Extended => (EXTENDED_REQUEST_MAGIC, self.flags),
        };
        to[..4].copy_from_slice(&magic.to_be_bytes());
        to[4..6].copy_from_slice(&flags.to_be_bytes());
        to[6..8].copy_from_slice(&self.command.to_be_bytes());
        to[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        to[16..24].copy_from_slice(&self.offset_bytes.to_be_bytes());
        match style {
            HeaderStyle::Simple | HeaderStyle::Structured => {
                to[24..28].copy_from_slice(&self.len_bytes.to_be_bytes());
                28
            }
            HeaderStyle::Extended => {
                to[24..32].copy_from_slice(&u64::from(self.len_bytes).to_be_bytes());
                32
            }
        }
    }
}

/// The big-endian number at the front of `bytes`, which holds all of it.
#[inline]
pub(super) fn be_u64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// See [`be_u64`].
#[inline]
pub(super) fn be_u32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |number, &byte| number << 8 | u32::from(byte))
}

/// See [`be_u64`].
#[inline]
pub(super) fn be_u16(bytes: &[u8]) -> u16 {
    bytes.iter().take(2).fold(0, |number, &byte| number << 8 | u16::from(byte))
}
