//! What programs ask a block device, answered for a file that is one.
//!
//! A mapped device that is served by FUSE is a regular file, and `ioctl` on it knows nothing of
//! blocks. LVM and mkfs ask for the size that way. The file is known by its file system: no other
//! regular file answers.
//!
//! The tricky case is a FUSE file that is not ours: its size in bytes is a true answer for it, too.

use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::fs::{FileType, Stat, fstat, fstatfs};

/// The file system of FUSE, as `statfs` shows it.
const FUSE_MAGIC: i64 = 0x6573_5546;
const SECTOR_LEN_BYTES: u64 = 512;
/// What the kernel's own devices have unless somebody changes it.
const READ_AHEAD_SECTORS: u64 = 256;
const BLKRAGET: u32 = 0x1263;
const BLKROGET: u32 = 0x125e;
const BLKGETSIZE: u32 = 0x1260;
const BLKSSZGET: u32 = 0x1268;
const BLKPBSZGET: u32 = 0x127b;
const BLKGETSIZE64: u32 = 0x8008_1272;

/// A question to a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    ReadAhead,
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
        BLKRAGET => Some(Question::ReadAhead),
        BLKROGET => Some(Question::ReadOnly),
        BLKGETSIZE => Some(Question::Sectors),
        BLKSSZGET => Some(Question::LogicalBlock),
        BLKPBSZGET => Some(Question::PhysicalBlock),
        BLKGETSIZE64 => Some(Question::Bytes),
        _ => None,
    }
}

/// The path of an open regular file of a FUSE file system; `None` for any other descriptor.
pub(crate) fn path_of(file: BorrowedFd<'_>) -> Option<Vec<u8>> {
    if !is_fuse_file(file, &fstat(file).ok()?) {
        return None;
    }
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    Some(rustix::fs::readlink(link, Vec::new()).ok()?.into_bytes())
}

fn is_fuse_file(file: BorrowedFd<'_>, stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && fstatfs(file).is_ok_and(|system| system.f_type == FUSE_MAGIC)
}

/// The answer for a regular file of a FUSE file system; `None` for any other descriptor.
pub(crate) fn answer(file: BorrowedFd<'_>, question: Question) -> Option<Answer> {
    let stat = fstat(file).ok()?;
    if !is_fuse_file(file, &stat) {
        return None;
    }
    let len_bytes = u64::try_from(stat.st_size).ok()?;
    Some(match question {
        Question::ReadAhead => Answer::Long(READ_AHEAD_SECTORS),
        Question::ReadOnly => Answer::Int(u32::from(stat.st_mode & 0o222 == 0)),
        Question::Sectors => Answer::Long(len_bytes / SECTOR_LEN_BYTES),
        Question::LogicalBlock | Question::PhysicalBlock => Answer::Int(512),
        Question::Bytes => Answer::Long(len_bytes),
    })
}
