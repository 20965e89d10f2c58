//! What programs ask a block device, answered for a file that is one.
//!
//! A mapped device that is served by FUSE is a regular file, and `ioctl` on it knows nothing of
//! blocks. LVM and mkfs ask for the size that way. The file is known by its file system: no other
//! regular file answers.
//!
//! The tricky case is a FUSE file that is not ours: its size in bytes is a true answer for it, too.

use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, fstat, fstatfs};

/// The file system of FUSE, as `statfs` shows it.
const FUSE_MAGIC: i64 = 0x6573_5546;
const SECTOR_LEN_BYTES: u64 = 512;
const BLKROGET: u32 = 0x125e;
const BLKGETSIZE: u32 = 0x1260;
const BLKSSZGET: u32 = 0x1268;
const BLKPBSZGET: u32 = 0x127b;
const BLKGETSIZE64: u32 = 0x8008_1272;

/// A question to a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    ReadOnly,
    Sectors,
    LogicalBlock,
    PhysicalBlock,
    Bytes,
}

/// An answer, as wide as its ioctl wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Int(u32),
    Long(u64),
}

/// What an ioctl asks a block device, if it is one of those answered here.
pub(crate) fn question(request: u32) -> Option<Question> {
    match request {
        BLKROGET => Some(Question::ReadOnly),
        BLKGETSIZE => Some(Question::Sectors),
        BLKSSZGET => Some(Question::LogicalBlock),
        BLKPBSZGET => Some(Question::PhysicalBlock),
        BLKGETSIZE64 => Some(Question::Bytes),
        _ => None,
    }
}

/// The answer for a regular file of a FUSE file system; `None` for any other descriptor.
pub(crate) fn answer(file: BorrowedFd<'_>, question: Question) -> Option<Answer> {
    let stat = fstat(file).ok()?;
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_regular || fstatfs(file).ok()?.f_type != FUSE_MAGIC {
        return None;
    }
    let len_bytes = u64::try_from(stat.st_size).ok()?;
    Some(match question {
        Question::ReadOnly => Answer::Int(u32::from(stat.st_mode & 0o222 == 0)),
        Question::Sectors => Answer::Long(len_bytes / SECTOR_LEN_BYTES),
        Question::LogicalBlock | Question::PhysicalBlock => Answer::Int(512),
        Question::Bytes => Answer::Long(len_bytes),
    })
}
