//! The numbers and fixed structures of the NBD protocol.
//!
//! Used by `negotiate`, `session` and `reply`; holds no logic beyond reading and writing single
//! structures. All fields are big-endian and unaligned, so the structures can be laid over received
//! bytes as they are. Names are the protocol's own without the `NBD_` in front.
//!
//! Magic numbers, sizes and error codes here are what other people's clients send and expect: none
//! of them may ever change. `docs/formats/nbd.md` has the byte maps.
//!
//! The tricky case: a *length* is a payload length (bytes follow) or an effect length (bytes of
//! the export concerned), and with extended headers only a command flag tells which. So no
//! structure here offers "its payload"; `session` decides.

use bitflags::bitflags;
use udm_types::Status;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First word of the greeting (`NBDMAGIC`).
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting, and the start of every option (`IHAVEOPT`).
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Start of an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Handshake flag of the server: fixed newstyle. The client's flag has the same bit.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag of the server: no padding after `EXPORT_NAME`. The client's has the same bit.
pub const FLAG_NO_ZEROES: u16 = 2;
/// Zeroes that end the answer to `EXPORT_NAME` for clients without [`FLAG_NO_ZEROES`].
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// Longest string the protocol allows (names, queries, messages).
pub const STRING_LEN_BYTES_MAX: usize = 4096;

/// Option: choose an export and start, without errors (old clients).
pub const OPT_EXPORT_NAME: u32 = 1;
/// Option: end politely.
pub const OPT_ABORT: u32 = 2;
/// Option: list exports.
pub const OPT_LIST: u32 = 3;
/// Option: begin TLS.
pub const OPT_STARTTLS: u32 = 5;
/// Option: describe an export.
pub const OPT_INFO: u32 = 6;
/// Option: describe an export and start.
pub const OPT_GO: u32 = 7;
/// Option: use structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// Option: list metadata contexts.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Option: select metadata contexts.
pub const OPT_SET_META_CONTEXT: u32 = 10;
/// Option: use extended headers.
pub const OPT_EXTENDED_HEADERS: u32 = 11;

/// Option reply: done.
pub const REP_ACK: u32 = 1;
/// Option reply: one export of a list.
pub const REP_SERVER: u32 = 2;
/// Option reply: one information item.
pub const REP_INFO: u32 = 3;
/// Option reply: one metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// Option error: not known here.
pub const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
/// Option error: malformed.
pub const REP_ERR_INVALID: u32 = (1 << 31) + 3;
/// Option error: TLS has to be used first.
pub const REP_ERR_TLS_REQD: u32 = (1 << 31) + 5;
/// Option error: no such export.
pub const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
/// Option error: the server is shutting down.
pub const REP_ERR_SHUTDOWN: u32 = (1 << 31) + 7;
/// Option error: extended headers are already agreed on.
pub const REP_ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;

/// Information item: size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// Information item: canonical name.
pub const INFO_NAME: u16 = 1;
/// Information item: description for people.
pub const INFO_DESCRIPTION: u16 = 2;
/// Information item: block sizes.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// The one metadata context there is.
pub const CONTEXT_BASE_ALLOCATION: &str = "base:allocation";
/// The id we give to [`CONTEXT_BASE_ALLOCATION`].
pub const CONTEXT_ID_BASE_ALLOCATION: u32 = 1;

/// Command: read.
pub const CMD_READ: u16 = 0;
/// Command: write.
pub const CMD_WRITE: u16 = 1;
/// Command: end the connection.
pub const CMD_DISC: u16 = 2;
/// Command: flush.
pub const CMD_FLUSH: u16 = 3;
/// Command: discard.
pub const CMD_TRIM: u16 = 4;
/// Command: prefetch.
pub const CMD_CACHE: u16 = 5;
/// Command: write zeroes.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// Command: ask for the allocation status of a range.
pub const CMD_BLOCK_STATUS: u16 = 7;

/// Reply chunk: success, no content.
pub const REPLY_NONE: u16 = 0;
/// Reply chunk: data at an offset.
pub const REPLY_OFFSET_DATA: u16 = 1;
/// Reply chunk: block status, 32-bit extents.
pub const REPLY_BLOCK_STATUS: u16 = 5;
/// Reply chunk: block status, 64-bit extents.
pub const REPLY_BLOCK_STATUS_EXT: u16 = 6;
/// Reply chunk: error.
pub const REPLY_ERROR: u16 = (1 << 15) + 1;
/// Chunk flag: the last chunk of this reply.
pub const REPLY_FLAG_DONE: u16 = 1;

bitflags! {
    /// What an export can do, told to the client at the end of the handshake.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1;
        /// Writes of every kind are refused.
        const READ_ONLY = 1 << 1;
        /// Flush is understood.
        const SEND_FLUSH = 1 << 2;
        /// The FUA command flag is understood.
        const SEND_FUA = 1 << 3;
        /// Seeks are slow.
        const ROTATIONAL = 1 << 4;
        /// Trim is understood.
        const SEND_TRIM = 1 << 5;
        /// Write-zeroes and its NO_HOLE flag are understood.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// The DF command flag is understood.
        const SEND_DF = 1 << 7;
        /// A flush on one connection covers all connections.
        const CAN_MULTI_CONN = 1 << 8;
        /// Cache is understood.
        const SEND_CACHE = 1 << 10;
        /// The FAST_ZERO command flag is understood.
        const SEND_FAST_ZERO = 1 << 11;
    }
}

bitflags! {
    /// Modifiers of a request.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// Durable on completion.
        const FUA = 1;
        /// Write-zeroes keeps the range allocated.
        const NO_HOLE = 1 << 1;
        /// A read's data comes in one chunk.
        const DF = 1 << 2;
        /// Block status answers with one extent.
        const REQ_ONE = 1 << 3;
        /// Write-zeroes fails at once unless it is faster than writing.
        const FAST_ZERO = 1 << 4;
        /// Extended headers: *length* is a payload length.
        const PAYLOAD_LEN = 1 << 5;
    }
}

/// How requests and replies are framed, as agreed in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderStyle {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured reply chunks.
    Structured,
    /// Extended requests, extended reply chunks.
    Extended,
}

/// The error codes NBD knows. Everything else is translated to one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NbdError {
    /// EPERM: the export is read-only.
    Perm = 1,
    /// EIO.
    Io = 5,
    /// ENOMEM.
    NoMem = 12,
    /// EINVAL.
    Inval = 22,
    /// ENOSPC; also a write beyond the end.
    NoSpace = 28,
    /// EOVERFLOW: a read too large to answer.
    Overflow = 75,
    /// ENOTSUP; only ever in answer to FAST_ZERO.
    NotSup = 95,
    /// ESHUTDOWN: the server stops; the client must go.
    Shutdown = 108,
}

impl NbdError {
    /// The error for a bio's status; `None` for success. `fast_zero`: the request had that flag.
    ///
    /// `Offline` is EIO and not ESHUTDOWN, because ESHUTDOWN tells the client to disconnect, and a
    /// device whose paths are gone may come back. `NotSupported` is EINVAL without FAST_ZERO, as
    /// the protocol forbids ENOTSUP there.
    pub fn from_status(status: Status, fast_zero: bool) -> Option<NbdError> {
        match status {
            Status::Ok => None,
            Status::NotSupported if fast_zero => Some(NbdError::NotSup),
            Status::NotSupported | Status::Invalid => Some(NbdError::Inval),
            Status::NoSpace => Some(NbdError::NoSpace),
            Status::Resource | Status::DevResource => Some(NbdError::NoMem),
            Status::ReadOnly => Some(NbdError::Perm),
            Status::Timeout
            | Status::Transport
            | Status::Target
            | Status::Reservation
            | Status::Medium
            | Status::Protection
            | Status::Again
            | Status::Offline
            | Status::IoErr => Some(NbdError::Io),
        }
    }

    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }
}

/// The head of an option; `len` bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionHead {
    /// [`OPTION_MAGIC`].
    pub magic: U64,
    /// Which option.
    pub option: U32,
    /// Length of its data in bytes.
    pub len: U32,
}

/// The head of an option reply; `len` bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionReplyHead {
    /// [`OPTION_REPLY_MAGIC`].
    pub magic: U64,
    /// The option this answers.
    pub option: U32,
    /// `REP_*`.
    pub kind: U32,
    /// Length of the reply's data in bytes.
    pub len: U32,
}

/// A request without extended headers.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CompactRequest {
    /// [`REQUEST_MAGIC`].
    pub magic: U32,
    /// [`CommandFlags`].
    pub flags: U16,
    /// `CMD_*`.
    pub command: U16,
    /// Chosen by the client, echoed in the reply.
    pub cookie: U64,
    /// Position in the export in bytes.
    pub offset: U64,
    /// Length in bytes.
    pub len: U32,
}

/// A request with extended headers.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExtendedRequest {
    /// [`EXTENDED_REQUEST_MAGIC`].
    pub magic: U32,
    /// [`CommandFlags`].
    pub flags: U16,
    /// `CMD_*`.
    pub command: U16,
    /// Chosen by the client, echoed in the reply.
    pub cookie: U64,
    /// Position in the export in bytes.
    pub offset: U64,
    /// Payload or effect length in bytes.
    pub len: U64,
}

/// A simple reply; the data of a successful read follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SimpleReply {
    /// [`SIMPLE_REPLY_MAGIC`].
    pub magic: U32,
    /// 0 or an [`NbdError`] code.
    pub error: U32,
    /// The request's cookie.
    pub cookie: U64,
}

/// The head of a structured reply chunk; `len` bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct StructuredChunk {
    /// [`STRUCTURED_REPLY_MAGIC`].
    pub magic: U32,
    /// [`REPLY_FLAG_DONE`] on the last chunk.
    pub flags: U16,
    /// `REPLY_*`.
    pub kind: U16,
    /// The request's cookie.
    pub cookie: U64,
    /// Length of the chunk's payload in bytes.
    pub len: U32,
}

/// The head of an extended reply chunk; `len` bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ExtendedChunk {
    /// [`EXTENDED_REPLY_MAGIC`].
    pub magic: U32,
    /// [`REPLY_FLAG_DONE`] on the last chunk.
    pub flags: U16,
    /// `REPLY_*`.
    pub kind: U16,
    /// The request's cookie.
    pub cookie: U64,
    /// The request's offset.
    pub offset: U64,
    /// Length of the chunk's payload in bytes.
    pub len: U64,
}

const _: () = assert!(size_of::<OptionHead>() == 16);
const _: () = assert!(size_of::<OptionReplyHead>() == 20);
const _: () = assert!(size_of::<CompactRequest>() == 28);
const _: () = assert!(size_of::<ExtendedRequest>() == 32);
const _: () = assert!(size_of::<SimpleReply>() == 16);
const _: () = assert!(size_of::<StructuredChunk>() == 20);
const _: () = assert!(size_of::<ExtendedChunk>() == 32);

#[cfg(test)]
mod tests {
    use super::NbdError;
    use udm_types::Status;

    #[test]
    fn every_status_has_the_code_the_protocol_wants() {
        let table = [
            (Status::Ok, None),
            (Status::NotSupported, Some(22)),
            (Status::Timeout, Some(5)),
            (Status::NoSpace, Some(28)),
            (Status::Transport, Some(5)),
            (Status::Target, Some(5)),
            (Status::Reservation, Some(5)),
            (Status::Medium, Some(5)),
            (Status::Protection, Some(5)),
            (Status::Resource, Some(12)),
            (Status::DevResource, Some(12)),
            (Status::Again, Some(5)),
            (Status::Offline, Some(5)),
            (Status::Invalid, Some(22)),
            (Status::ReadOnly, Some(1)),
            (Status::IoErr, Some(5)),
        ];
        for (status, code) in table {
            assert_eq!(NbdError::from_status(status, false).map(NbdError::code), code);
        }
        assert_eq!(NbdError::from_status(Status::NotSupported, true).map(NbdError::code), Some(95));
        assert_eq!((NbdError::Overflow.code(), NbdError::Shutdown.code()), (75, 108));
    }
}
