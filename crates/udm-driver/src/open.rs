//! Opening what lies below: regular files and block devices, with what their limits are.
//!
//! Called by the lower devices once per path and lane (or once, with duplicated descriptors).
//! Answers everything the queue limits need, so nobody above asks the kernel again.
//!
//! | | regular file | block device |
//! |---|---|---|
//! | length | `st_size` | `BLKGETSIZE64` |
//! | logical block | 512; with `direct` what the file system needs | `BLKSSZGET` |
//! | physical block, best sizes | the file system's block | `BLKPBSZGET`, `BLKIOMIN`, `BLKIOOPT` |
//! | discard | asked by punching behind the end | the queue's `discard_max_bytes` |
//!
//! Rules. Only these two kinds are opened (`ENOTBLK` otherwise), without ever hanging on a FIFO.
//! A file is created only if asked to, readable for its owner alone, and removed again if it
//! cannot be given its length. Nothing of an existing file changes.

use crate::handles::set_nonblocking;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, StatxFlags, fallocate, fstat, ftruncate, open,
    statx, unlink,
};
use rustix::io::Errno as OsErrno;
use rustix::ioctl::{Getter, Opcode, ioctl, opcode};
use std::os::fd::OwnedFd;
use std::path::Path;
use udm_lane::Errno;

/// Alignment assumed for direct I/O where the kernel does not say: right for every file system
/// met so far, if not the smallest possible.
const DIRECT_ALIGN_BYTES: u32 = 4096;

/// How to open.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// For reading only.
    pub read_only: bool,
    /// Past the page cache (`O_DIRECT`).
    pub direct: bool,
    /// Refuse a block device that something else holds (mounted, or part of a volume).
    pub exclusive: bool,
    /// Create a missing file with this length in bytes.
    pub create_len: Option<u64>,
}

/// An open file or block device, and its limits.
#[derive(Debug)]
pub struct OpenedFile {
    /// The descriptor; blocking, closed on exec.
    pub fd: OwnedFd,
    /// Length in bytes.
    pub len_bytes: u64,
    /// I/O must be a multiple of this, at a multiple of this.
    pub logical_block_bytes: u32,
    /// Smaller writes cost a read.
    pub physical_block_bytes: u32,
    /// Smallest I/O without a penalty; zero if unknown.
    pub io_min_bytes: u32,
    /// Preferred I/O size; zero if there is none.
    pub io_opt_bytes: u32,
    /// Memory must be aligned to this.
    pub memory_align_bytes: u32,
    /// A block device, else a regular file.
    pub is_block_device: bool,
    /// The numbers of a block device.
    pub major_minor: Option<(u32, u32)>,
    /// Ranges can be deallocated.
    pub supports_discard: bool,
    /// Writes will fail: asked for, or the device is read-only.
    pub read_only: bool,
    /// Opened past the page cache.
    pub direct: bool,
    /// This call created the file.
    pub created: bool,
}

/// Opens a regular file or block device.
///
/// # Errors
/// The kernel's error number; `ENOTBLK` for anything else than a file or block device.
pub fn open_file(path: &Path, options: OpenOptions) -> Result<OpenedFile, Errno> {
    let (fd, created) = open_or_create(path, options).map_err(errno)?;
    let stat = fstat(&fd).map_err(errno)?;
    let mut opened = OpenedFile {
        fd,
        len_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        logical_block_bytes: 512,
        physical_block_bytes: 512,
        io_min_bytes: 0,
        io_opt_bytes: 0,
        memory_align_bytes: 1,
        is_block_device: false,
        major_minor: None,
        supports_discard: false,
        read_only: options.read_only,
        direct: options.direct,
        created,
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => describe_file(&mut opened, stat.st_blksize)?,
        FileType::BlockDevice => {
            let numbers = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            opened.is_block_device = true;
            opened.major_minor = Some(numbers);
            describe_device(&mut opened, numbers)?;
        }
        _ => return Err(Errno(libc::ENOTBLK)),
    }
    // The flag was for the open only; on it, the ring would fail reads that have to wait.
    set_nonblocking(&opened.fd, false)?;
    Ok(opened)
}

fn open_or_create(path: &Path, options: OpenOptions) -> Result<(OwnedFd, bool), OsErrno> {
    let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    flags |= if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    if options.direct {
        flags |= OFlags::DIRECT;
    }
    // Without O_CREAT the flag concerns block devices only.
    let found = if options.exclusive { flags | OFlags::EXCL } else { flags };
    match (open(path, found, Mode::empty()), options.create_len) {
        (Err(OsErrno::NOENT), Some(len_bytes)) => {
            let new = flags | OFlags::CREATE | OFlags::EXCL;
            let fd = open(path, new, Mode::RUSR | Mode::WUSR)?;
            if let Err(error) = ftruncate(&fd, len_bytes) {
                let _ = unlink(path);
                return Err(error);
            }
            Ok((fd, true))
        }
        (result, _) => result.map(|fd| (fd, false)),
    }
}

fn describe_file(opened: &mut OpenedFile, block_bytes: impl TryInto<u32>) -> Result<(), Errno> {
    let block_bytes = block_bytes.try_into().unwrap_or(0);
    if block_bytes.is_power_of_two() && block_bytes >= 512 {
        opened.physical_block_bytes = block_bytes.min(4096);
        opened.io_min_bytes = block_bytes;
    }
    if opened.direct {
        let (memory, offset) = direct_alignment(&opened.fd)?;
        opened.memory_align_bytes = memory;
        opened.logical_block_bytes = offset.max(512);
        opened.physical_block_bytes = opened.physical_block_bytes.max(offset);
    }
    if !opened.read_only {
        // A hole behind the end changes nothing, but tells whether there can be holes.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        opened.supports_discard = fallocate(&opened.fd, flags, opened.len_bytes, 4096).is_ok();
    }
    Ok(())
}

/// What `O_DIRECT` needs on this file, as (memory, offset and length). `EINVAL` if it cannot.
fn direct_alignment(fd: &OwnedFd) -> Result<(u32, u32), Errno> {
    let wanted = StatxFlags::DIOALIGN;
    let Ok(answer) = statx(fd, "", AtFlags::EMPTY_PATH, wanted) else {
        return Ok((DIRECT_ALIGN_BYTES, DIRECT_ALIGN_BYTES));
    };
    if answer.stx_mask & wanted.bits() == 0 {
        return Ok((DIRECT_ALIGN_BYTES, DIRECT_ALIGN_BYTES));
    }
    if answer.stx_dio_offset_align == 0 {
        return Err(Errno(libc::EINVAL));
    }
    Ok((answer.stx_dio_mem_align, answer.stx_dio_offset_align))
}

/// The kernel's group letter for block-device ioctls.
const BLK_GROUP: u8 = 0x12;
const BLKROGET: Opcode = opcode::none(BLK_GROUP, 94);
const BLKGETSIZE64: Opcode = opcode::read::<usize>(BLK_GROUP, 114);
const BLKSSZGET: Opcode = opcode::none(BLK_GROUP, 104);
const BLKIOMIN: Opcode = opcode::none(BLK_GROUP, 120);
const BLKIOOPT: Opcode = opcode::none(BLK_GROUP, 121);
const BLKPBSZGET: Opcode = opcode::none(BLK_GROUP, 123);

fn describe_device(opened: &mut OpenedFile, (major, minor): (u32, u32)) -> Result<(), Errno> {
    let fd = &opened.fd;
    // SAFETY: these ioctls of a block device write one value of the named type: a 64-bit size for
    // BLKGETSIZE64 and a 32-bit number for the rest (`linux/fs.h`).
    unsafe {
        opened.len_bytes = ioctl(fd, Getter::<BLKGETSIZE64, u64>::new()).map_err(errno)?;
        opened.logical_block_bytes = ioctl(fd, Getter::<BLKSSZGET, u32>::new()).map_err(errno)?;
        opened.physical_block_bytes = ioctl(fd, Getter::<BLKPBSZGET, u32>::new()).map_err(errno)?;
        opened.io_min_bytes = ioctl(fd, Getter::<BLKIOMIN, u32>::new()).map_err(errno)?;
        opened.io_opt_bytes = ioctl(fd, Getter::<BLKIOOPT, u32>::new()).map_err(errno)?;
        opened.read_only |= ioctl(fd, Getter::<BLKROGET, u32>::new()).map_err(errno)? != 0;
    }
    if opened.direct {
        opened.memory_align_bytes = opened.logical_block_bytes;
    }
    opened.supports_discard = !opened.read_only && device_discards(major, minor);
    Ok(())
}

/// Asks sysfs, since no ioctl tells. A partition's queue is its parent's.
fn device_discards(major: u32, minor: u32) -> bool {
    let folder = format!("/sys/dev/block/{major}:{minor}");
    ["queue", "../queue"].into_iter().any(|queue| {
        std::fs::read_to_string(format!("{folder}/{queue}/discard_max_bytes"))
            .is_ok_and(|text| text.trim() != "0")
    })
}

fn errno(error: OsErrno) -> Errno {
    Errno(error.raw_os_error())
}
