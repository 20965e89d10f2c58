//! Files and block devices: buffered, or past the page cache (`direct:`).
//!
//! [`FileDevice`] is opened by the registry, on the control side, and shared by all lanes;
//! `lane.rs` is the part of one lane, `state.rs` what the parts share, `sync.rs` how flushes are
//! gathered, `slots.rs` what a bio under way is.
//!
//! Rules. A flush is a real `fdatasync`, a FUA write a durable write. Descriptors are open as long
//! as the device is, whatever tables come and go: closing one would forget the write-back errors
//! it has not yet reported.
//!
//! The tricky case is who is told of a write-back error. The kernel reports it once for each open
//! file description. So each lane gets a description of its *own* (opened with the device, for a
//! lane must not wait for an `open`): every lane's next flush reports the error, and no lane can
//! use up the report that another's flush was owed. A lane registers a duplicate with its driver,
//! which shares the description; the original stays here. The first one also holds the shared lock
//! that keeps offline tools off a file.

mod bounce;
mod lane;
mod raw;
mod slots;
mod state;
mod sync;
#[cfg(test)]
mod tests;

pub use raw::RawFile;
pub(crate) use state::InodeState;

use lane::FileLane;
use rustix::fd::{AsFd, IntoRawFd, OwnedFd};
use rustix::fs::{FlockOperation, SeekFrom, flock, fstat, seek};
use rustix::io::{Errno as OsErrno, fcntl_dupfd_cloexec, pread};
use state::{DirectAlign, FileShared};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use udm_core::{LowerCx, LowerDevice, LowerLane};
use udm_driver::{OpenOptions, OpenedFile, open_file};
use udm_lane::{BUF_ALIGN_BYTES, Buf, Errno, RawHandle};
use udm_types::{
    DeviceFeatures, MAX_SECTORS_DEFAULT, QueueLimits, SECTOR_BYTES, SECTOR_SHIFT, Sector, UNLIMITED,
};

/// An open file or block device.
pub(crate) struct FileDevice {
    shown: String,
    shared: Arc<FileShared>,
    limits: QueueLimits,
    is_block_device: bool,
    /// One description a lane; never empty.
    lanes: Vec<OwnedFd>,
    /// Keeps others off a block device that is written here.
    _claim: Option<Arc<OwnedFd>>,
}

impl FileDevice {
    /// Opens `path` for as many lanes. `shown` is for people, in case it has no number.
    ///
    /// # Errors
    /// The kernel's; `ESTALE` if the path was replaced by another file in the middle of it.
    pub(crate) fn open(
        path: &Path,
        shown: &str,
        options: OpenOptions,
        inode: Arc<InodeState>,
        lane_count: usize,
    ) -> Result<FileDevice, Errno> {
        let first = open_file(path, options)?;
        let claim = match first.is_block_device && !options.read_only {
            true => Some(inode.claim(|| claim(path))?),
            false => None,
        };
        if !first.is_block_device {
            share(&first.fd)?;
        }
        let limits = limits_of(&first);
        let block_bytes = u64::from(limits.logical_block_bytes);
        let direct = first.direct.then_some(DirectAlign {
            memory_bytes: first.memory_align_bytes.max(1),
            range_bytes: first.logical_block_bytes,
        });
        let shared = Arc::new(FileShared {
            inode,
            len_sectors: AtomicU64::new(whole_sectors(first.len_bytes, block_bytes)),
            read_only: first.read_only,
            direct,
        });
        let shown = match first.major_minor {
            Some((major, minor)) => format!("{major}:{minor}"),
            None => shown.to_owned(),
        };
        let identity = identity(&first.fd)?;
        let is_block_device = first.is_block_device;
        let mut lanes = vec![first.fd];
        while lanes.len() < lane_count {
            let next = open_file(path, options)?.fd;
            if self::identity(&next)? != identity {
                return Err(Errno(rustix::io::Errno::STALE.raw_os_error()));
            }
            lanes.push(next);
        }
        Ok(FileDevice { shown, shared, limits, is_block_device, lanes, _claim: claim })
    }

    fn len_bytes_now(&self) -> Option<u64> {
        let fd = &self.lanes[0];
        if self.is_block_device {
            return seek(fd, SeekFrom::End(0)).ok();
        }
        u64::try_from(fstat(fd).ok()?.st_size).ok()
    }
}

impl LowerDevice for FileDevice {
    fn shown(&self) -> String {
        self.shown.clone()
    }

    fn len_sectors(&self) -> Sector {
        if let Some(len_bytes) = self.len_bytes_now() {
            let len = whole_sectors(len_bytes, u64::from(self.limits.logical_block_bytes));
            self.shared.len_sectors.store(len, Ordering::Relaxed);
        }
        self.shared.len_sectors.load(Ordering::Relaxed)
    }

    fn limits(&self) -> QueueLimits {
        self.limits.clone()
    }

    fn open_lane(&self, cx: &mut LowerCx<'_>) -> Result<Box<dyn LowerLane>, Errno> {
        let own = &self.lanes[cx.lane.index() % self.lanes.len()];
        let fd = fcntl_dupfd_cloexec(own, 0).map_err(|error| Errno(error.raw_os_error()))?;
        let handle = cx.driver().register(RawHandle(fd.into_raw_fd()))?;
        Ok(Box::new(FileLane::new(Arc::clone(&self.shared), handle)))
    }

    fn read_now(&self, offset_bytes: u64, into: &mut [u8]) -> Option<Result<(), Errno>> {
        Some(read_whole_blocks(&self.lanes[0], offset_bytes, into))
    }
}

/// Reads through memory and a range that `O_DIRECT` takes, whatever is asked for.
fn read_whole_blocks(fd: &OwnedFd, offset_bytes: u64, into: &mut [u8]) -> Result<(), Errno> {
    const BLOCK_BYTES: u64 = BUF_ALIGN_BYTES as u64;
    let start = offset_bytes / BLOCK_BYTES * BLOCK_BYTES;
    let skipped = (offset_bytes - start) as usize;
    let len = (skipped + into.len()).next_multiple_of(BUF_ALIGN_BYTES).max(BUF_ALIGN_BYTES);
    let mut buf = Buf::alloc(len);
    let bytes = buf.get_mut().expect("invariant: a new buffer has one handle");
    let mut done = 0;
    while done < skipped + into.len() {
        match pread(fd, &mut bytes[done..], start + done as u64) {
            // The end of the file: what was asked for lies beyond it.
            Ok(0) => return Err(Errno(OsErrno::IO.raw_os_error())),
            Ok(count) => done += count,
            Err(error) if error == OsErrno::INTR => {}
            Err(error) => return Err(Errno(error.raw_os_error())),
        }
    }
    into.copy_from_slice(&bytes[skipped..][..into.len()]);
    Ok(())
}

/// Opens a block device so that nobody else can do the same.
fn claim(path: &Path) -> Result<OwnedFd, Errno> {
    let options = OpenOptions { read_only: true, exclusive: true, ..OpenOptions::default() };
    Ok(open_file(path, options)?.fd)
}

/// Tells offline tools that a file is in use: they want its lock for themselves alone. Held by the
/// first lane's description, for as long as the device is open.
///
/// # Errors
/// `EBUSY` if a tool is at work on it. A file system that knows no locks is no reason to refuse.
fn share(fd: impl AsFd) -> Result<(), Errno> {
    match flock(fd, FlockOperation::NonBlockingLockShared) {
        Err(OsErrno::WOULDBLOCK) => Err(Errno(OsErrno::BUSY.raw_os_error())),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Device and inode numbers.
fn identity(fd: impl AsFd) -> Result<(u64, u64), Errno> {
    let stat = fstat(fd).map_err(|error| Errno(error.raw_os_error()))?;
    Ok((stat.st_dev, stat.st_ino))
}

/// A length in sectors, without a last piece smaller than a block.
fn whole_sectors(len_bytes: u64, block_bytes: u64) -> Sector {
    let block_bytes = block_bytes.max(SECTOR_BYTES);
    (len_bytes / block_bytes * block_bytes) >> SECTOR_SHIFT
}

fn limits_of(opened: &OpenedFile) -> QueueLimits {
    let mut limits = QueueLimits {
        logical_block_bytes: opened.logical_block_bytes,
        physical_block_bytes: opened.physical_block_bytes.max(opened.logical_block_bytes),
        io_min_bytes: opened.io_min_bytes.max(opened.physical_block_bytes),
        io_opt_bytes: opened.io_opt_bytes,
        chunk_sectors: 0,
        max_sectors: MAX_SECTORS_DEFAULT,
        max_discard_sectors: UNLIMITED,
        discard_granularity_bytes: opened.io_min_bytes.max(opened.physical_block_bytes),
        // Where the file system cannot, zeroes are written.
        max_write_zeroes_sectors: UNLIMITED,
        // Also with `direct`: only a flush reaches the disk's own cache.
        features: DeviceFeatures::WRITE_CACHE | DeviceFeatures::FUA,
        read_only: opened.read_only,
    };
    if !opened.supports_discard {
        limits.forbid_discard();
    }
    limits
}
