//! A file or block device as the host of a tool: opened for nobody else, blocking I/O.
//!
//! Block devices are opened with `O_EXCL`, which fails while one is mounted or a daemon writes to
//! it; files get an exclusive `flock`, which fails while a daemon (it holds a shared one) or
//! another tool has the file open. Both hold until the tool ends, also after a crash.
//!
//! Rules. A flush is a real `fdatasync`. A device opened for reading refuses everything else, so a
//! tool that only looks cannot write, whatever its code does.
//!
//! The tricky case is a file system that cannot lock (some network ones): the tool goes on without,
//! since refusing would make the tools useless there; the daemon's own lock is missing there too.

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, fdatasync, flock};
use rustix::io::{Errno, pread, pwrite};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use udm_core::error::{ErrorCode, ErrorKind, UserError};
use udm_driver::{OpenOptions, open_file};
use udm_lane::Payload;
use udm_meta::host::BlockHost;
use udm_types::Status;

/// How often a lock is tried, and the pause between two tries: two seconds in all.
const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// An open device.
#[derive(Debug)]
pub(super) struct Device {
    fd: OwnedFd,
    len_bytes: u64,
    physical_bytes: u32,
    is_writable: bool,
    /// Where data passes between buffers and the kernel.
    scratch: Vec<u8>,
}

/// What a tool will do with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Look,
    Write,
}

impl Device {
    /// Opens `path` for nobody else.
    ///
    /// # Errors
    /// It is not there, not allowed, no device, or somebody has it.
    pub(super) fn open(path: &Path, purpose: Purpose) -> Result<Device, UserError> {
        let is_writable = purpose == Purpose::Write;
        let options =
            OpenOptions { read_only: !is_writable, exclusive: true, ..OpenOptions::default() };
        let opened = open_file(path, options)
            .map_err(|error| refusal(path, Errno::from_raw_os_error(error.0)))?;
        if is_writable && opened.read_only {
            return Err(refusal(path, Errno::ROFS));
        }
        if !opened.is_block_device {
            lock(&opened.fd).map_err(|error| refusal(path, error))?;
        }
        Ok(Device {
            len_bytes: opened.len_bytes,
            physical_bytes: opened.physical_block_bytes,
            fd: opened.fd,
            is_writable,
            scratch: Vec::new(),
        })
    }

    /// Its length.
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Smaller writes cost it a read.
    pub(super) fn physical_bytes(&self) -> u32 {
        self.physical_bytes
    }

    /// Fills `bytes` from `offset_bytes`, as far as the device goes; gives how far that was.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn peek(&self, offset_bytes: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        let mut done = 0;
        while done < bytes.len() {
            match pread(&self.fd, &mut bytes[done..], offset_bytes + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

impl BlockHost for Device {
    fn read(&mut self, offset_bytes: u64, payload: &Payload) -> Status {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(payload.len_bytes() as usize, 0);
        let status = match self.peek(offset_bytes, &mut scratch) {
            Ok(count) if count == scratch.len() => {
                payload.copy_in(0, &scratch);
                Status::Ok
            }
            // The device has become shorter.
            Ok(_) => Status::IoErr,
            Err(error) => status(error),
        };
        self.scratch = scratch;
        status
    }

    fn write(&mut self, offset_bytes: u64, payload: &Payload) -> Status {
        if !self.is_writable {
            return Status::ReadOnly;
        }
        self.scratch.resize(payload.len_bytes() as usize, 0);
        payload.copy_out(0, &mut self.scratch);
        let mut done = 0;
        while done < self.scratch.len() {
            match pwrite(&self.fd, &self.scratch[done..], offset_bytes + done as u64) {
                Ok(0) => return Status::NoSpace,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(error) => return status(error),
            }
        }
        Status::Ok
    }

    fn flush(&mut self) -> Status {
        if !self.is_writable {
            return Status::ReadOnly;
        }
        fdatasync(&self.fd).map_or_else(status, |()| Status::Ok)
    }

    fn discard(&mut self, offset_bytes: u64, len_bytes: u64) -> Status {
        if !self.is_writable {
            return Status::ReadOnly;
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.fd, how, offset_bytes, len_bytes).map_or_else(status, |()| Status::Ok)
    }
}

/// Locks a file, waiting a moment for a daemon that has just ended: the kernel takes its ring apart
/// in the background, and what was under way may still reach the file until the lock is free.
fn lock(fd: &OwnedFd) -> Result<(), Errno> {
    for _try in 0..LOCK_TRIES {
        if flock(fd, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK) {
            return Ok(());
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(Errno::BUSY)
}

fn status(error: Errno) -> Status {
    match error {
        Errno::NOSPC | Errno::DQUOT => Status::NoSpace,
        Errno::OPNOTSUPP => Status::NotSupported,
        Errno::NODATA => Status::Medium,
        Errno::ILSEQ => Status::Protection,
        Errno::ROFS => Status::ReadOnly,
        Errno::NODEV | Errno::NXIO => Status::Offline,
        _other => Status::IoErr,
    }
}

fn refusal(path: &Path, error: Errno) -> UserError {
    let shown = path.display();
    match error {
        Errno::NOENT | Errno::NOTDIR => {
            UserError::new(ErrorCode::DeviceNotFound, format!("there is no {shown}"))
        }
        Errno::BUSY => {
            let text = format!("{shown} is in use: by a daemon, a mount, or another tool");
            UserError::new(ErrorCode::DeviceOpen, text)
                .of_kind(ErrorKind::Busy)
                .hint("`udm deps` and `lsblk` show what stands on it")
        }
        Errno::NOTBLK | Errno::ISDIR => {
            let text = format!("{shown} is neither a file nor a block device");
            UserError::new(ErrorCode::DeviceOpen, text).of_kind(ErrorKind::NotBlock)
        }
        other => {
            let system = std::io::Error::from_raw_os_error(other.raw_os_error());
            let kind = match other {
                Errno::ACCESS | Errno::PERM => ErrorKind::Access,
                Errno::ROFS => ErrorKind::ReadOnly,
                _else => ErrorKind::Io,
            };
            let text = format!("{shown} cannot be opened: {system}");
            UserError::new(ErrorCode::DeviceOpen, text).of_kind(kind)
        }
    }
}
