//! Messages of the kernel to checked commands.
//!
//! Pure: the actor hands over the head of each message and gets an [`Event`]: an answer to send at
//! once, or a command for the engine, which is inside the device and allowed. The session knows
//! the file (size, mode, times) and what was agreed on at the handshake.
//!
//! Rules. Lengths are compared with what really arrived before they decide anything. What is not
//! known is answered ENOSYS, which makes the kernel stop asking where it can. Every message but
//! FORGET and its kin is answered exactly once.
//!
//! | asked | on a file of 1000 bytes |
//! |---|---|
//! | read 900+200 | 100 bytes |
//! | read 1000+1 | nothing: the end |
//! | write 900+200 | 100 bytes are written, as on a block device |
//! | write 1000+1 | ENOSPC |
//! | truncate to 0 by open | nothing happens, as on a block device |
//! | truncate to anything but 1000 | EINVAL: the table makes the size |
//!
//! The tricky case is INTERRUPT: it is refused for good. The kernel sends it for every signal, not
//! only for a kill; a write that was called off might still land after its caller has written
//! again, and reads of files do not fail with EINTR.

use super::reply::Answer;
use super::wire::{
    Attr, AttrOut, FallocateIn, HEAD_BYTES_MAX, IN_HEADER_BYTES, InHeader, InitIn, InitOut, IoIn,
    MAJOR, MINOR, MINOR_OLDEST, O_ACCMODE, OpenIn, OpenOut, ROOT_NODE, S_IFREG, SeekIn, SetAttrIn,
    StatFsOut, WRITE_HEAD_BYTES, errno, fallocate, init_flag, opcode, open_flag, seek, set_attr,
};
use zerocopy::FromBytes;

/// The longest read or write: what Linux allows without further setting (256 pages).
pub const IO_BYTES_MAX: u32 = 1 << 20;

/// Requests the kernel may have with us that nobody waits for in a call (asynchronous direct I/O).
/// More than a front serves at a time would only wait here instead of there.
const BACKGROUND_MAX: u16 = 256;

/// The file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileView {
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What the device likes to be read and written in.
    pub block_bytes: u32,
    /// Refuse every change.
    pub read_only: bool,
    /// Whose it is.
    pub uid: u32,
    /// Of which group.
    pub gid: u32,
    /// When it was mounted, in seconds since 1970.
    pub since_s: u64,
}

/// A command for the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// Whom to answer.
    pub unique: u64,
    /// What to do.
    pub kind: CommandKind,
}

/// What to do. Ranges are inside the device, not empty, in bytes, and aligned to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandKind {
    /// Read.
    Read {
        /// From here.
        offset_bytes: u64,
        /// So much.
        len_bytes: u32,
    },
    /// Write the payload that came with the message.
    Write {
        /// To here.
        offset_bytes: u64,
        /// So much; the payload may be longer.
        len_bytes: u32,
    },
    /// Make all that was written durable.
    Flush,
    /// Make a range read as zeroes.
    Zero {
        /// From here.
        offset_bytes: u64,
        /// So much.
        len_bytes: u64,
        /// Keep the space.
        keep: bool,
    },
}

/// What a message comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Send this.
    Answer(Answer),
    /// Send this: the handshake is over.
    Ready(Answer),
    /// Send this, and end: the kernel speaks another protocol.
    Refused(Answer),
    /// Send nothing.
    Quiet,
    /// Do this.
    Command(Command),
    /// This is no message; end.
    Broken(&'static str),
}

/// One mount's conversation.
#[derive(Clone, Debug)]
pub struct Session {
    file: FileView,
    wants_ring: bool,
    has_ring: bool,
    is_ready: bool,
    open_count: i32,
}

/// A refusal on the way.
type Refusal = i32;

impl Session {
    /// Before the handshake.
    pub fn new(file: FileView, wants_ring: bool) -> Session {
        Session { file, wants_ring, has_ring: false, is_ready: false, open_count: 0 }
    }

    /// After a handshake that another lane of the mount has had.
    pub fn joined(file: FileView) -> Session {
        Session { file, wants_ring: false, has_ring: false, is_ready: true, open_count: 0 }
    }

    /// Requests come through rings from now on: asked for, and offered.
    pub fn has_ring(&self) -> bool {
        self.has_ring
    }

    /// The device has another size, or likes other blocks.
    pub fn set_size(&mut self, size_bytes: u64, block_bytes: u32) {
        self.file.size_bytes = size_bytes;
        self.file.block_bytes = block_bytes;
    }

    /// How often the file was opened here, less how often it was closed: it may be opened through
    /// one lane and closed through another. The sum over a mount's lanes says how often it is open.
    pub fn open_count(&self) -> i32 {
        self.open_count
    }

    /// Takes a message of `len_bytes` of which `head` is the beginning: all of it, or
    /// [`HEAD_BYTES_MAX`] bytes.
    pub fn take(&mut self, head: &[u8], len_bytes: usize) -> Event {
        let Ok((header, body)) = InHeader::read_from_prefix(head) else {
            return Event::Broken("it is shorter than a header");
        };
        if header.len as usize != len_bytes || head.len() < len_bytes.min(HEAD_BYTES_MAX) {
            return Event::Broken("its length is not what it says");
        }
        let unique = header.unique;
        if header.opcode == opcode::INIT {
            return self.init(unique, body);
        }
        if !self.is_ready {
            return Event::Broken("it comes before the handshake");
        }
        match self.known(&header, body) {
            Ok(event) => event,
            Err(errno) => Event::Answer(Answer::error(unique, errno)),
        }
    }

    fn init(&mut self, unique: u64, body: &[u8]) -> Event {
        let Ok((init, rest)) = InitIn::read_from_prefix(body) else {
            return Event::Broken("the handshake is too short");
        };
        if self.is_ready {
            return Event::Broken("a second handshake");
        }
        if init.major > MAJOR {
            // It will come again with our version.
            let ours = InitOut { major: MAJOR, minor: MINOR, ..InitOut::default() };
            return Event::Answer(Answer::of(unique, &ours));
        }
        if init.major < MAJOR || init.minor < MINOR_OLDEST {
            return Event::Refused(Answer::error(unique, errno::EPROTO));
        }
        let wanted = init_flag::ASYNC_READ
            | init_flag::BIG_WRITES
            | init_flag::ASYNC_DIO
            | init_flag::MAX_PAGES;
        let more = rest.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
        let is_offered = init.flags & init_flag::EXT != 0 && more & init_flag::OVER_IO_URING != 0;
        self.has_ring = self.wants_ring && is_offered;
        let (ext, flags2) = match self.has_ring {
            true => (init_flag::EXT, init_flag::OVER_IO_URING),
            false => (0, 0),
        };
        self.is_ready = true;
        Event::Ready(Answer::of(
            unique,
            &InitOut {
                major: MAJOR,
                minor: MINOR,
                flags: init.flags & wanted | ext,
                flags2,
                max_background: BACKGROUND_MAX,
                congestion_threshold: BACKGROUND_MAX,
                max_write: IO_BYTES_MAX,
                time_gran: 1,
                max_pages: (IO_BYTES_MAX / 4096) as u16,
                ..InitOut::default()
            },
        ))
    }

    fn known(&mut self, header: &InHeader, body: &[u8]) -> Result<Event, Refusal> {
        let unique = header.unique;
        let answer = match header.opcode {
            opcode::READ => return self.read(unique, body),
            opcode::WRITE => return self.write(header, body),
            opcode::FSYNC | opcode::FLUSH => {
                return Ok(Event::Command(Command { unique, kind: CommandKind::Flush }));
            }
            opcode::FALLOCATE => return self.fallocate(unique, body),
            opcode::FORGET | opcode::BATCH_FORGET | opcode::NOTIFY_REPLY => {
                return Ok(Event::Quiet);
            }
            opcode::GETATTR => self.attr(header)?,
            opcode::SETATTR => self.set_attr(header, body)?,
            opcode::OPEN => self.open(unique, body)?,
            opcode::RELEASE => {
                self.open_count = self.open_count.wrapping_sub(1);
                Answer::done(unique)
            }
            opcode::DESTROY => Answer::done(unique),
            opcode::STATFS => self.stat_fs(unique),
            opcode::LSEEK => self.seek(unique, body)?,
            opcode::IOCTL => Answer::error(unique, errno::ENOTTY),
            _ => Answer::error(unique, errno::ENOSYS),
        };
        Ok(Event::Answer(answer))
    }

    fn read(&self, unique: u64, body: &[u8]) -> Result<Event, Refusal> {
        let io = read_body::<IoIn>(body)?;
        if io.size > IO_BYTES_MAX {
            return Err(errno::EINVAL);
        }
        let left = self.file.size_bytes.saturating_sub(io.offset);
        // Fits: it is at most `size`.
        let len_bytes = left.min(u64::from(io.size)) as u32;
        if len_bytes == 0 {
            return Ok(Event::Answer(Answer::done(unique)));
        }
        let kind = CommandKind::Read { offset_bytes: io.offset, len_bytes };
        Ok(Event::Command(Command { unique, kind }))
    }

    fn write(&self, header: &InHeader, body: &[u8]) -> Result<Event, Refusal> {
        let io = read_body::<IoIn>(body)?;
        if io.size > IO_BYTES_MAX || header.len as usize != WRITE_HEAD_BYTES + io.size as usize {
            return Err(errno::EINVAL);
        }
        if self.file.read_only {
            return Err(errno::EROFS);
        }
        if io.size == 0 {
            return Ok(Event::Answer(written(header.unique, 0)));
        }
        let left = self.file.size_bytes.saturating_sub(io.offset);
        let len_bytes = left.min(u64::from(io.size)) as u32;
        if len_bytes == 0 {
            return Err(errno::ENOSPC);
        }
        let kind = CommandKind::Write { offset_bytes: io.offset, len_bytes };
        Ok(Event::Command(Command { unique: header.unique, kind }))
    }

    fn fallocate(&self, unique: u64, body: &[u8]) -> Result<Event, Refusal> {
        let asked = read_body::<FallocateIn>(body)?;
        let keeps_size = asked.mode & fallocate::KEEP_SIZE != 0;
        let keep = match asked.mode & !fallocate::KEEP_SIZE {
            fallocate::PUNCH_HOLE if keeps_size => false,
            fallocate::ZERO_RANGE => true,
            _ => return Err(errno::EOPNOTSUPP),
        };
        if self.file.read_only {
            return Err(errno::EROFS);
        }
        let end = asked.offset.checked_add(asked.length).ok_or(errno::EINVAL)?;
        if end > self.file.size_bytes && !keeps_size {
            return Err(errno::ENOSPC);
        }
        let left = self.file.size_bytes.saturating_sub(asked.offset);
        let len_bytes = left.min(asked.length);
        if len_bytes == 0 {
            return Ok(Event::Answer(Answer::done(unique)));
        }
        let kind = CommandKind::Zero { offset_bytes: asked.offset, len_bytes, keep };
        Ok(Event::Command(Command { unique, kind }))
    }

    fn attr(&self, header: &InHeader) -> Result<Answer, Refusal> {
        if header.nodeid != ROOT_NODE {
            return Err(errno::EINVAL);
        }
        let file = &self.file;
        let attr = Attr {
            ino: ROOT_NODE,
            size: file.size_bytes,
            blocks: file.size_bytes.div_ceil(512),
            atime: file.since_s,
            mtime: file.since_s,
            ctime: file.since_s,
            mode: S_IFREG | if file.read_only { 0o400 } else { 0o600 },
            nlink: 1,
            uid: file.uid,
            gid: file.gid,
            blksize: file.block_bytes,
            ..Attr::default()
        };
        Ok(Answer::of(header.unique, &AttrOut { attr, ..AttrOut::default() }))
    }

    fn set_attr(&self, header: &InHeader, body: &[u8]) -> Result<Answer, Refusal> {
        let asked = read_body::<SetAttrIn>(body)?;
        let changes = |flag: u32| asked.valid & flag != 0;
        if changes(set_attr::MODE) || changes(set_attr::UID) || changes(set_attr::GID) {
            return Err(errno::EPERM);
        }
        if changes(set_attr::SIZE) {
            let by_open = asked.size == 0 && !changes(set_attr::FH);
            if asked.size != self.file.size_bytes && !by_open {
                return Err(errno::EINVAL);
            }
        }
        self.attr(header)
    }

    fn open(&mut self, unique: u64, body: &[u8]) -> Result<Answer, Refusal> {
        let asked = read_body::<OpenIn>(body)?;
        if self.file.read_only && asked.flags & O_ACCMODE != 0 {
            return Err(errno::EROFS);
        }
        self.open_count = self.open_count.wrapping_add(1);
        let open_flags = open_flag::DIRECT_IO | open_flag::PARALLEL_DIRECT_WRITES;
        Ok(Answer::of(unique, &OpenOut { open_flags, ..OpenOut::default() }))
    }

    fn stat_fs(&self, unique: u64) -> Answer {
        let (bsize, namelen) = (self.file.block_bytes, 255);
        let blocks = self.file.size_bytes / u64::from(bsize.max(1));
        let out =
            StatFsOut { blocks, files: 1, bsize, namelen, frsize: bsize, ..Default::default() };
        Answer::of(unique, &out)
    }

    /// All of a device counts as data: which parts are holes is not known here.
    fn seek(&self, unique: u64, body: &[u8]) -> Result<Answer, Refusal> {
        let asked = read_body::<SeekIn>(body)?;
        if asked.offset >= self.file.size_bytes {
            return Err(errno::ENXIO);
        }
        match asked.whence {
            seek::DATA => Ok(Answer::of(unique, &asked.offset)),
            seek::HOLE => Ok(Answer::of(unique, &self.file.size_bytes)),
            _ => Err(errno::EINVAL),
        }
    }
}

/// The answer to a write.
pub fn written(unique: u64, len_bytes: u32) -> Answer {
    Answer::of(unique, &super::wire::WriteOut { size: len_bytes, padding: 0 })
}

fn read_body<T: FromBytes>(body: &[u8]) -> Result<T, Refusal> {
    T::read_from_prefix(body).map(|(asked, _)| asked).map_err(|_| errno::EINVAL)
}

const _: () = assert!(IN_HEADER_BYTES < HEAD_BYTES_MAX);

#[cfg(test)]
mod tests;
