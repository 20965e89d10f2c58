//! Every number and fixed structure of the FUSE protocol that we use, nothing else.
//!
//! FUSE is a conversation with the kernel of this very machine, so all numbers are in its own byte
//! order and structures have the layout of C. Version 7.31 (Linux 5.4) is the oldest we speak; what
//! came later is only used where the kernel offers it. The byte map is docs/formats/fuse.md.
//!
//! The tricky case: structures have grown over the years, so a message may be shorter than the
//! structure here ([`InitIn`]) or longer. Only fields that were always there are read.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Our major version; another one is another protocol.
pub const MAJOR: u32 = 7;
/// The newest minor version we know.
pub const MINOR: u32 = 42;
/// The oldest minor version we speak.
pub const MINOR_OLDEST: u32 = 31;

/// Bytes of [`InHeader`].
pub const IN_HEADER_BYTES: usize = size_of::<InHeader>();
/// Bytes of [`OutHeader`].
pub const OUT_HEADER_BYTES: usize = size_of::<OutHeader>();
/// Bytes before the payload of a write.
pub const WRITE_HEAD_BYTES: usize = IN_HEADER_BYTES + size_of::<IoIn>();
/// The longest part of a message that is not a write's payload, as far as we look at it.
pub const HEAD_BYTES_MAX: usize = IN_HEADER_BYTES + size_of::<SetAttrIn>();
/// The longest answer that is not data.
pub const ANSWER_BYTES_MAX: usize = OUT_HEADER_BYTES + size_of::<AttrOut>();

/// The node of the only file: the root.
pub const ROOT_NODE: u64 = 1;

/// What a message asks for.
pub mod opcode {
    #![expect(missing_docs, reason = "the names are the protocol's own")]
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const LSEEK: u32 = 46;
}

/// Flags of the handshake.
pub mod init_flag {
    /// Several reads of a file at a time.
    pub const ASYNC_READ: u32 = 1 << 0;
    /// Writes of more than a page.
    pub const BIG_WRITES: u32 = 1 << 5;
    /// Direct I/O need not wait for its answer.
    pub const ASYNC_DIO: u32 = 1 << 15;
    /// `max_pages` counts.
    pub const MAX_PAGES: u32 = 1 << 22;
    /// There is a second word of flags.
    pub const EXT: u32 = 1 << 30;
    /// Second word: requests may come through io_uring.
    pub const OVER_IO_URING: u32 = 1 << 9;
}

/// Flags of an open file.
pub mod open_flag {
    /// No page cache: reads and writes come as they are made, so that every front sees one state.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// Writes of one file need not wait for each other.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// What SETATTR changes.
pub mod set_attr {
    /// The permissions.
    pub const MODE: u32 = 1 << 0;
    /// The owner.
    pub const UID: u32 = 1 << 1;
    /// The group.
    pub const GID: u32 = 1 << 2;
    /// The size.
    pub const SIZE: u32 = 1 << 3;
    /// It came through an open file.
    pub const FH: u32 = 1 << 6;
}

/// Modes of FALLOCATE.
pub mod fallocate {
    /// The size stays.
    pub const KEEP_SIZE: u32 = 1;
    /// The range reads as zeroes and gives its space back.
    pub const PUNCH_HOLE: u32 = 2;
    /// The range reads as zeroes and keeps its space.
    pub const ZERO_RANGE: u32 = 16;
}

/// Whence of LSEEK.
pub mod seek {
    /// The next data.
    pub const DATA: u32 = 3;
    /// The next hole, or the end.
    pub const HOLE: u32 = 4;
}

/// File type bits of a regular file.
pub const S_IFREG: u32 = 0o100_000;
/// `O_ACCMODE`: which of reading and writing a file is opened for.
pub const O_ACCMODE: u32 = 3;

/// Error numbers we answer with, as Linux numbers them.
pub mod errno {
    #![expect(missing_docs, reason = "the names are the system's own")]
    pub const EPERM: i32 = 1;
    pub const EIO: i32 = 5;
    pub const ENXIO: i32 = 6;
    pub const ENOMEM: i32 = 12;
    pub const EINVAL: i32 = 22;
    pub const ENOTTY: i32 = 25;
    pub const ENOSPC: i32 = 28;
    pub const EROFS: i32 = 30;
    pub const ENOSYS: i32 = 38;
    pub const EPROTO: i32 = 71;
    pub const EOPNOTSUPP: i32 = 95;
}

/// The head of every message.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct InHeader {
    pub len: u32,
    pub opcode: u32,
    pub unique: u64,
    pub nodeid: u64,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    pub padding: u32,
}

/// The head of every answer.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct OutHeader {
    pub len: u32,
    /// 0 or a negative error number.
    pub error: i32,
    pub unique: u64,
}

/// The part of INIT that was always there.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct InitIn {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u32,
}

/// The answer to INIT.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct InitOut {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u32,
    pub max_background: u16,
    pub congestion_threshold: u16,
    pub max_write: u32,
    pub time_gran: u32,
    pub max_pages: u16,
    pub map_alignment: u16,
    pub flags2: u32,
    pub unused: [u32; 7],
}

/// What `stat` tells.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: u64,
    pub mtime: u64,
    pub ctime: u64,
    pub atimensec: u32,
    pub mtimensec: u32,
    pub ctimensec: u32,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub blksize: u32,
    pub flags: u32,
}

/// The answer to GETATTR and SETATTR.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct AttrOut {
    /// For how long the kernel may believe it; always 0, so that a resize is seen at once.
    pub attr_valid: u64,
    pub attr_valid_nsec: u32,
    pub dummy: u32,
    pub attr: Attr,
}

/// SETATTR.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct SetAttrIn {
    pub valid: u32,
    pub padding: u32,
    pub fh: u64,
    pub size: u64,
    pub lock_owner: u64,
    pub times: [u64; 3],
    pub times_nsec: [u32; 3],
    pub mode: u32,
    pub unused4: u32,
    pub uid: u32,
    pub gid: u32,
    pub unused5: u32,
}

/// OPEN.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct OpenIn {
    pub flags: u32,
    pub open_flags: u32,
}

/// The answer to OPEN.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct OpenOut {
    pub fh: u64,
    pub open_flags: u32,
    pub backing_id: u32,
}

/// READ and WRITE.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct IoIn {
    pub fh: u64,
    pub offset: u64,
    pub size: u32,
    pub io_flags: u32,
    pub lock_owner: u64,
    pub flags: u32,
    pub padding: u32,
}

/// The answer to WRITE.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct WriteOut {
    pub size: u32,
    pub padding: u32,
}

/// FALLOCATE.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct FallocateIn {
    pub fh: u64,
    pub offset: u64,
    pub length: u64,
    pub mode: u32,
    pub padding: u32,
}

/// LSEEK.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct SeekIn {
    pub fh: u64,
    pub offset: u64,
    pub whence: u32,
    pub padding: u32,
}

/// The answer to STATFS.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub struct StatFsOut {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
    pub padding: u32,
    pub spare: [u32; 6],
}

// The layouts the kernel has; a field too many would shift all that follow.
const _: () = {
    assert!(IN_HEADER_BYTES == 40 && OUT_HEADER_BYTES == 16 && WRITE_HEAD_BYTES == 80);
    assert!(size_of::<InitOut>() == 64 && size_of::<AttrOut>() == 104);
    assert!(size_of::<SetAttrIn>() == 88 && size_of::<FallocateIn>() == 32);
    assert!(size_of::<StatFsOut>() == 80 && size_of::<SeekIn>() == 24);
};
