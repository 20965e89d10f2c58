//! The handle table of a driver: from [`Handle`] to what the driver keeps about a descriptor.
//!
//! Used by both drivers with their own entry type. A handle carries the slot's index and a
//! generation, so a handle that was closed and whose slot is used again is recognised as stale
//! (its operations fail with `EBADF`) instead of reaching another file.
//!
//! The tricky case is closing with operations in flight. The entry then only gets marked; the
//! driver removes it when the last operation has completed, and only then may its index, and the
//! number of its descriptor, be used again. Otherwise a write still waiting in the submission
//! queue could land in a file registered after the close.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use udm_lane::{Errno, Handle, RawHandle};

/// Bits of a handle that hold the index: a million descriptors a lane, far beyond `nofile`.
const INDEX_BITS: u32 = 20;
const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;
/// The generation takes the rest and wraps.
const GENERATION_MASK: u32 = u32::MAX >> INDEX_BITS;

/// Slots, and which of them are free.
#[derive(Debug)]
pub(crate) struct HandleTable<T> {
    slots: Vec<HandleSlot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct HandleSlot<T> {
    generation: u32,
    entry: Option<T>,
}

/// The index part of a handle, which is also its place in the ring's file table.
pub(crate) fn index_of(handle: Handle) -> u32 {
    handle.0 & INDEX_MASK
}

impl<T> HandleTable<T> {
    pub(crate) fn new() -> HandleTable<T> {
        HandleTable { slots: Vec::new(), free: Vec::new() }
    }

    /// Stores an entry. `EMFILE` if the table is full.
    pub(crate) fn insert(&mut self, entry: T) -> Result<Handle, Errno> {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.entry = Some(entry);
            return Ok(Handle((slot.generation << INDEX_BITS) | index));
        }
        let index = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        if index > INDEX_MASK {
            return Err(Errno(libc::EMFILE));
        }
        self.slots.push(HandleSlot { generation: 0, entry: Some(entry) });
        Ok(Handle(index))
    }

    /// The entry of a handle; none if the handle was never given out or is stale.
    #[inline]
    pub(crate) fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        let slot = self.slots.get_mut(index_of(handle) as usize)?;
        if slot.generation != handle.0 >> INDEX_BITS {
            return None;
        }
        slot.entry.as_mut()
    }

    /// All entries, in the order of their indexes.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|slot| slot.entry.as_mut())
    }

    /// Takes an entry out; its index may be used again at once.
    pub(crate) fn remove(&mut self, handle: Handle) -> Option<T> {
        self.get_mut(handle)?;
        let slot = &mut self.slots[index_of(handle) as usize];
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        self.free.push(index_of(handle));
        slot.entry.take()
    }
}

/// What a descriptor refers to, as far as drivers treat it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileClass {
    /// A regular file, a block device, or anything else that is read at offsets.
    Storage,
    /// A socket.
    Socket,
    /// A pipe and its like: no offsets, waits for data.
    Stream,
    /// An eventfd. Often shared with another process, which relies on calls that do not block.
    Event,
    /// `/dev/fuse`: each read takes one whole message, and waits for one. A message somebody saw
    /// may be gone when it reads (its sender was killed), so reads must not block.
    Messages,
}

/// The number of `/dev/fuse`, fixed by Linux.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// Takes ownership of a raw handle, with what it is. `EBADF` if it is no open descriptor.
pub(crate) fn take_over(raw: RawHandle) -> Result<(OwnedFd, FileClass), Errno> {
    let class = classify(raw.0)?;
    // SAFETY: the number is an open descriptor (`fstat` has just answered for it), and by the
    // contract of `Driver::register` the caller gives its ownership up.
    let fd = unsafe { OwnedFd::from_raw_fd(raw.0) };
    Ok((fd, class))
}

/// Which file this is, of all there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileKey {
    /// The device it is on.
    pub(crate) device: u64,
    /// Its number there.
    pub(crate) inode: u64,
}

/// The regular file whose writes through this descriptor go to the page cache (opened without
/// `O_DIRECT`). `None` for everything else, and if the kernel does not say.
pub(crate) fn cached_file(fd: &OwnedFd) -> Option<FileKey> {
    use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
    let stat = fstat(fd).ok()?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let direct = fcntl_getfl(fd).ok()?.contains(OFlags::DIRECT);
    (regular && !direct).then_some(FileKey { device: stat.st_dev, inode: stat.st_ino })
}

/// Makes calls on the descriptor block, or not block.
pub(crate) fn set_nonblocking(fd: &OwnedFd, nonblocking: bool) -> Result<(), Errno> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let flags = fcntl_getfl(fd).map_err(|error| Errno(error.raw_os_error()))?;
    let mut wanted = flags;
    wanted.set(OFlags::NONBLOCK, nonblocking);
    if wanted == flags {
        return Ok(());
    }
    fcntl_setfl(fd, wanted).map_err(|error| Errno(error.raw_os_error()))
}

/// Adds one to an eventfd's counter. Nothing happens if it is full: it has been rung already.
pub(crate) fn ring(fd: &OwnedFd) {
    let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
}

/// Ends both directions of a socket; anything else is left alone.
pub(crate) fn shutdown_both(fd: &OwnedFd) {
    // Fails for a descriptor that is no socket, or for one whose peer has gone already; either
    // way nothing is left to shut down.
    let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
}

fn classify(raw: RawFd) -> Result<FileClass, Errno> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `fstat` checks the number itself and writes only into the buffer given.
    if unsafe { libc::fstat(raw, stat.as_mut_ptr()) } != 0 {
        return Err(last_errno());
    }
    // SAFETY: `fstat` succeeded, so it has filled the buffer.
    let stat = unsafe { stat.assume_init() };
    Ok(match stat.st_mode & libc::S_IFMT {
        libc::S_IFCHR if (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)) == FUSE_DEVICE => {
            FileClass::Messages
        }
        libc::S_IFREG | libc::S_IFBLK | libc::S_IFDIR | libc::S_IFLNK => FileClass::Storage,
        libc::S_IFSOCK => FileClass::Socket,
        libc::S_IFIFO => FileClass::Stream,
        // Anonymous inodes have no file type at all; of these, lanes are given eventfds only.
        0 => FileClass::Event,
        // Other character devices: those that can be waited for (tty) and those that cannot
        // (/dev/zero) both take plain offset calls.
        _ => FileClass::Storage,
    })
}

/// The calling thread's `errno`.
pub(crate) fn last_errno() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// The raw number, for the kernel.
pub(crate) fn raw_of(fd: &OwnedFd) -> RawFd {
    fd.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::{HandleTable, index_of, take_over};
    use udm_lane::{Errno, RawHandle};

    #[test]
    fn a_stale_handle_never_reaches_the_next_entry() {
        let mut table = HandleTable::new();
        let first = table.insert("first").unwrap();
        assert_eq!(table.remove(first), Some("first"));
        let second = table.insert("second").unwrap();
        assert_eq!(index_of(first), index_of(second));
        assert!(table.get_mut(first).is_none());
        assert!(table.remove(first).is_none());
        assert_eq!(table.get_mut(second).copied(), Some("second"));
    }

    #[test]
    fn a_number_that_is_no_descriptor_is_refused() {
        for raw in [-1, i32::MAX] {
            assert!(matches!(take_over(RawHandle(raw)), Err(Errno(libc::EBADF))));
        }
    }
}
