//! Memory that the kernel writes and we read: the requests of a ublk queue.
//!
//! Rules. The mapping cannot be written; bytes are copied out, and no reference is handed out,
//! since the kernel changes them at any time.
//!
//! The tricky case is its end: a mapping keeps the file open, and who waits until the file is
//! closed waits for its drop.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use udm_lane::Errno;

/// A mapping of a piece of a device.
#[derive(Debug)]
pub struct KernelView {
    start: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping belongs to this value until it is dropped, whichever thread has it; bytes
// are only copied out of it.
unsafe impl Send for KernelView {}

impl KernelView {
    /// Maps `len_bytes` of a device from `offset_bytes` on. Both are whole pages.
    ///
    /// # Errors
    /// The kernel's.
    pub fn map(
        fd: BorrowedFd<'_>,
        offset_bytes: u64,
        len_bytes: usize,
    ) -> Result<KernelView, Errno> {
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at a place of the kernel's choice replaces nothing.
        let mapped =
            unsafe { mmap(ptr::null_mut(), len_bytes, ProtFlags::READ, flags, fd, offset_bytes) };
        let mapped = mapped.map_err(|error| Errno(error.raw_os_error()))?;
        let start = NonNull::new(mapped.cast::<u8>()).ok_or(Errno(libc::ENOMEM))?;
        Ok(KernelView { start, len_bytes })
    }

    /// Copies `N` bytes out.
    ///
    /// # Panics
    /// If they do not lie inside the mapping.
    #[inline]
    pub fn read<const N: usize>(&self, offset_bytes: usize) -> [u8; N] {
        let end = offset_bytes.checked_add(N);
        assert!(end.is_some_and(|end| end <= self.len_bytes), "a read past the end of a mapping");
        let mut bytes = [0; N];
        // SAFETY: the range was checked; a local array never overlaps the mapping.
        unsafe {
            ptr::copy_nonoverlapping(self.start.as_ptr().add(offset_bytes), bytes.as_mut_ptr(), N);
        }
        bytes
    }
}

impl Drop for KernelView {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length and unmapped once, here; nothing refers to it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::KernelView;
    use std::io::{Seek, SeekFrom, Write};
    use std::os::fd::AsFd;

    #[test]
    fn what_is_written_later_is_seen() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let view = KernelView::map(file.as_fd(), 4096, 4096).unwrap();
        assert_eq!(view.read::<2>(4094), [0, 0]);
        file.seek(SeekFrom::Start(4096 + 24)).unwrap();
        file.write_all(b"request").unwrap();
        assert_eq!(&view.read::<7>(24), b"request");
    }

    #[test]
    #[should_panic(expected = "past the end")]
    fn nothing_behind_the_end_is_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        KernelView::map(file.as_fd(), 0, 4096).unwrap().read::<8>(4089);
    }
}
