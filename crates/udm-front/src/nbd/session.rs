//! The transmission phase: received bytes to checked commands.
//!
//! The connection shows what it has received as a [`Window`] and calls [`Session::step`] until it
//! answers [`Event::NeedMore`]; what was not consumed is shown again with more behind it. The
//! session holds a few numbers and no bytes, so many requests are taken from one receive, and a
//! write's payload can stay where it was received.
//!
//! Rules. Every field is checked before a [`Command`] comes out. A request that can be parsed but
//! not served gets an error reply and the connection lives; a stream whose framing is broken, or a
//! payload larger than we ever hold, ends it. Nothing here blocks, allocates or knows the engine.
//!
//! | request is | unaligned, empty, bad flag | beyond the end | export is read-only |
//! |---|---|---|---|
//! | read, cache, block status | EINVAL | EINVAL | - |
//! | write, write zeroes | EINVAL | ENOSPC | EPERM |
//! | trim | EINVAL | EINVAL | EPERM |
//!
//! The tricky case: a refused write still has its payload in the stream. It is skipped here
//! ([`Event::Skipped`]), whatever the reason of the refusal, or the next header would be read from
//! the middle of it. An *accepted* write's payload is the caller's to take before the next step.

use super::export::PAYLOAD_BYTES_MAX;
use super::negotiate::Agreed;
use super::reply::ReplyTo;
use super::wire::{
    CMD_BLOCK_STATUS, CMD_CACHE, CMD_DISC, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE,
    CMD_WRITE_ZEROES, CommandFlags, CompactRequest, EXTENDED_REQUEST_MAGIC, ExtendedRequest,
    HeaderStyle, NbdError, REQUEST_MAGIC,
};
use udm_types::OpSet;
use zerocopy::FromBytes;

/// Bytes received and not yet consumed.
pub trait Window {
    /// How many there are.
    fn len_bytes(&self) -> usize;

    /// Copies the first `to.len()` of them, which is at most [`Window::len_bytes`].
    fn peek(&self, to: &mut [u8]);
}

impl Window for [u8] {
    fn len_bytes(&self) -> usize {
        self.len()
    }

    fn peek(&self, to: &mut [u8]) {
        to.copy_from_slice(&self[..to.len()]);
    }
}

/// What a client wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandKind {
    /// Read the range.
    Read,
    /// Write the range; the payload follows in the stream.
    Write,
    /// Make all completed writes durable.
    Flush,
    /// Discard the range.
    Trim,
    /// Zero the range.
    WriteZeroes,
    /// Tell the allocation status of the range.
    BlockStatus,
    /// Prefetch the range.
    Cache,
}

/// A checked request: aligned, in range, allowed, with no flag that does not belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Whom to answer; holds the offset too.
    pub to: ReplyTo,
    /// What to do.
    pub kind: CommandKind,
    /// Length of the range in bytes; 0 for a flush only.
    pub len_bytes: u64,
    /// Modifiers; [`CommandFlags::PAYLOAD_LEN`] is already taken care of.
    pub flags: CommandFlags,
}

/// A request that gets an error reply; the connection lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whom to answer.
    pub to: ReplyTo,
    /// The error.
    pub error: NbdError,
    /// Why, for people.
    pub reason: &'static str,
}

/// How a client broke the protocol beyond repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// A request does not start with its magic number.
    BadMagic(u32),
    /// A payload is longer than the maximum we told the client; the length in bytes.
    PayloadTooLong(u64),
}

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Not enough bytes; receive more.
    NeedMore,
    /// A command. If it is a write, `len_bytes` of payload follow the consumed bytes; the caller
    /// takes them before the next step.
    Command(Command),
    /// A request to answer with an error.
    Refused(Refusal),
    /// Bytes of a refused request were passed over.
    Skipped,
    /// The client said goodbye: answer what is in flight, then close. Nothing follows.
    Disconnect,
    /// Close at once. Nothing follows.
    Broken(Breach),
}

/// The result of [`Session::step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How many bytes of the window are done with.
    pub consumed_bytes: usize,
    /// What they were.
    pub event: Event,
}

/// The state of one connection in the transmission phase.
#[derive(Debug)]
pub struct Session {
    style: HeaderStyle,
    size_bytes: u64,
    block_mask: u64,
    ops: OpSet,
    may_query_status: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// A header comes next.
    Header,
    /// So many bytes of a refused payload come first.
    Skip(u64),
    /// Nothing comes any more; the event that ended it.
    Ended(Event),
}

/// A header in either style.
struct Request {
    flags: u16,
    command: u16,
    len_bytes: u64,
    to: ReplyTo,
}

impl Session {
    /// Starts the transmission phase with what the handshake agreed on.
    pub fn new(agreed: &Agreed) -> Session {
        Session {
            style: agreed.style,
            size_bytes: agreed.export.size_bytes,
            block_mask: u64::from(agreed.export.block_sizes().min_bytes) - 1,
            ops: agreed.export.ops(),
            may_query_status: agreed.allocation_selected,
            stage: Stage::Header,
        }
    }

    /// The agreed header style.
    pub fn style(&self) -> HeaderStyle {
        self.style
    }

    /// The device was resized: requests are checked against `size_bytes` from now on.
    pub fn set_size_bytes(&mut self, size_bytes: u64) {
        self.size_bytes = size_bytes;
    }

    /// Takes the next piece from the received bytes. After [`Event::Disconnect`] or
    /// [`Event::Broken`] it consumes nothing and repeats that event.
    #[inline]
    pub fn step<W: Window + ?Sized>(&mut self, window: &W) -> Step {
        match self.stage {
            Stage::Header => self.header(window),
            Stage::Skip(left_bytes) => self.skip(window.len_bytes(), left_bytes),
            Stage::Ended(event) => Step { consumed_bytes: 0, event },
        }
    }

    #[inline]
    fn header<W: Window + ?Sized>(&mut self, window: &W) -> Step {
        let (consumed_bytes, magic, wanted_magic, request) = match self.style {
            HeaderStyle::Simple | HeaderStyle::Structured => {
                let mut bytes = [0; size_of::<CompactRequest>()];
                if window.len_bytes() < bytes.len() {
                    return Step { consumed_bytes: 0, event: Event::NeedMore };
                }
                window.peek(&mut bytes);
                let raw = CompactRequest::ref_from_bytes(&bytes)
                    .expect("invariant: the buffer has the header's size");
                (bytes.len(), raw.magic.get(), REQUEST_MAGIC, Request::from_compact(raw))
            }
            HeaderStyle::Extended => {
                let mut bytes = [0; size_of::<ExtendedRequest>()];
                if window.len_bytes() < bytes.len() {
                    return Step { consumed_bytes: 0, event: Event::NeedMore };
                }
                window.peek(&mut bytes);
                let raw = ExtendedRequest::ref_from_bytes(&bytes)
                    .expect("invariant: the buffer has the header's size");
                (bytes.len(), raw.magic.get(), EXTENDED_REQUEST_MAGIC, Request::from_extended(raw))
            }
        };
        let event = if magic == wanted_magic {
            self.judge(&request)
        } else {
            Event::Broken(Breach::BadMagic(magic))
        };
        match event {
            Event::Disconnect | Event::Broken(_) => self.stage = Stage::Ended(event),
            Event::NeedMore | Event::Command(_) | Event::Refused(_) | Event::Skipped => {}
        }
        Step { consumed_bytes, event }
    }

    fn skip(&mut self, available: usize, left_bytes: u64) -> Step {
        if available == 0 {
            return Step { consumed_bytes: 0, event: Event::NeedMore };
        }
        // Fits: the smaller of the two is at most `available`.
        let consumed_bytes = left_bytes.min(available as u64) as usize;
        self.skip_next(left_bytes - consumed_bytes as u64);
        Step { consumed_bytes, event: Event::Skipped }
    }

    fn skip_next(&mut self, left_bytes: u64) {
        self.stage = if left_bytes == 0 { Stage::Header } else { Stage::Skip(left_bytes) };
    }

    /// Decides about one request and prepares for what follows it in the stream.
    #[inline]
    fn judge(&mut self, request: &Request) -> Event {
        if request.command == CMD_DISC {
            return Event::Disconnect;
        }
        let payload_bytes = self.payload_bytes(request);
        if payload_bytes > u64::from(PAYLOAD_BYTES_MAX) {
            return Event::Broken(Breach::PayloadTooLong(payload_bytes));
        }
        match self.check(request) {
            Ok(command) => Event::Command(command),
            Err((error, reason)) => {
                self.skip_next(payload_bytes);
                Event::Refused(Refusal { to: request.to, error, reason })
            }
        }
    }

    /// How many bytes of payload follow this header.
    ///
    /// A write always has a payload, also where the flag for it is missing although extended
    /// headers demand it: QEMU's client leaves it out (10.0 does), and means a write.
    #[inline]
    fn payload_bytes(&self, request: &Request) -> u64 {
        let flagged = self.style == HeaderStyle::Extended
            && request.flags & CommandFlags::PAYLOAD_LEN.bits() != 0;
        if flagged || request.command == CMD_WRITE { request.len_bytes } else { 0 }
    }

    #[inline]
    fn check(&self, request: &Request) -> Result<Command, (NbdError, &'static str)> {
        let (kind, allowed) = self.kind_of(request.command)?;
        let flags = CommandFlags::from_bits(request.flags)
            .filter(|flags| allowed.contains(*flags))
            .ok_or((NbdError::Inval, "flag not valid for this command"))?;
        self.check_allowed(kind)?;
        self.check_range(kind, request.to.offset_bytes, request.len_bytes)?;
        Ok(Command {
            to: request.to,
            kind,
            len_bytes: request.len_bytes,
            flags: flags - CommandFlags::PAYLOAD_LEN,
        })
    }

    /// The command of a number, and its flags. FUA is legal everywhere, as the protocol says.
    #[inline]
    fn kind_of(
        &self,
        command: u16,
    ) -> Result<(CommandKind, CommandFlags), (NbdError, &'static str)> {
        let chunks = self.style != HeaderStyle::Simple;
        let extended = self.style == HeaderStyle::Extended;
        let only_if = |yes, flag| if yes { flag } else { CommandFlags::empty() };
        let (kind, flags) = match command {
            CMD_READ => (CommandKind::Read, only_if(chunks, CommandFlags::DF)),
            CMD_WRITE => (CommandKind::Write, only_if(extended, CommandFlags::PAYLOAD_LEN)),
            CMD_FLUSH => (CommandKind::Flush, CommandFlags::empty()),
            CMD_TRIM => (CommandKind::Trim, CommandFlags::empty()),
            CMD_CACHE => (CommandKind::Cache, CommandFlags::empty()),
            CMD_WRITE_ZEROES => {
                (CommandKind::WriteZeroes, CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO)
            }
            CMD_BLOCK_STATUS => (CommandKind::BlockStatus, CommandFlags::REQ_ONE),
            _ => return Err((NbdError::Inval, "unknown command")),
        };
        Ok((kind, flags | CommandFlags::FUA))
    }

    #[inline]
    fn check_allowed(&self, kind: CommandKind) -> Result<(), (NbdError, &'static str)> {
        let op = match kind {
            CommandKind::Read | CommandKind::Flush | CommandKind::Cache => return Ok(()),
            CommandKind::BlockStatus if self.may_query_status => return Ok(()),
            CommandKind::BlockStatus => {
                return Err((NbdError::Inval, "no metadata context was selected"));
            }
            CommandKind::Write => OpSet::WRITE,
            CommandKind::Trim => OpSet::DISCARD,
            CommandKind::WriteZeroes => OpSet::WRITE_ZEROES,
        };
        if !self.ops.contains(OpSet::WRITE) {
            return Err((NbdError::Perm, "the export is read-only"));
        }
        if !self.ops.contains(op) {
            return Err((NbdError::Inval, "the export does not support this command"));
        }
        Ok(())
    }

    #[inline]
    fn check_range(
        &self,
        kind: CommandKind,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<(), (NbdError, &'static str)> {
        let beyond = match kind {
            CommandKind::Flush if offset_bytes | len_bytes == 0 => return Ok(()),
            CommandKind::Flush => return Err((NbdError::Inval, "a flush has no range")),
            CommandKind::Write | CommandKind::WriteZeroes => NbdError::NoSpace,
            CommandKind::Read
            | CommandKind::Trim
            | CommandKind::BlockStatus
            | CommandKind::Cache => NbdError::Inval,
        };
        if len_bytes == 0 {
            return Err((NbdError::Inval, "empty range"));
        }
        if (offset_bytes | len_bytes) & self.block_mask != 0 {
            return Err((NbdError::Inval, "range not aligned to the minimum block size"));
        }
        if offset_bytes.checked_add(len_bytes).is_none_or(|end| end > self.size_bytes) {
            return Err((beyond, "range beyond the end of the export"));
        }
        if kind == CommandKind::Read && len_bytes > u64::from(PAYLOAD_BYTES_MAX) {
            let error = match self.style {
                HeaderStyle::Simple => NbdError::Inval,
                HeaderStyle::Structured | HeaderStyle::Extended => NbdError::Overflow,
            };
            return Err((error, "read longer than the maximum payload"));
        }
        Ok(())
    }
}

impl Request {
    #[inline]
    fn from_compact(raw: &CompactRequest) -> Request {
        Request {
            flags: raw.flags.get(),
            command: raw.command.get(),
            len_bytes: u64::from(raw.len.get()),
            to: ReplyTo { cookie: raw.cookie.get(), offset_bytes: raw.offset.get() },
        }
    }

    #[inline]
    fn from_extended(raw: &ExtendedRequest) -> Request {
        Request {
            flags: raw.flags.get(),
            command: raw.command.get(),
            len_bytes: raw.len.get(),
            to: ReplyTo { cookie: raw.cookie.get(), offset_bytes: raw.offset.get() },
        }
    }
}

#[cfg(test)]
mod tests;
