//! Memory of somebody else, mapped from a descriptor they gave us: a guest's memory, its rings.
//!
//! The vhost-user front maps what its client sends. The other side reads and writes the same bytes
//! at any time, and is not trusted.
//!
//! Rules. Bytes go in and out by copying and by atomic words; no reference into the mapping is
//! ever handed out, and every place is checked against the mapping's length. [`FileMapping::buf`]
//! makes I/O memory of it in place; such a buffer keeps the mapping, so nothing is unmapped while
//! an operation may still touch it.
//!
//! The tricky case is a file that shrinks afterwards: touching a page behind its end kills the
//! process. So the file is sealed against it (`F_SEAL_SHRINK`) first, and its length looked at
//! then. A memfd that was made without seals, and a file of a file system, cannot be: there
//! the client's word is what counts.

use rustix::fs::{FileType, SealFlags, fcntl_add_seals, fstat};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use udm_lane::{Buf, Errno};

/// A shared mapping of a piece of a file.
#[derive(Debug)]
pub struct FileMapping {
    /// What the kernel mapped, on page borders.
    map_start: NonNull<u8>,
    map_len_bytes: usize,
    /// The piece that was asked for.
    start: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping belongs to this value until it is dropped and does not depend on the thread
// that made it; the fields never change.
unsafe impl Send for FileMapping {}
// SAFETY: shared access copies bytes through raw pointers or uses atomics. No reference into the
// mapping is handed out, and no byte read from it is trusted or read twice, so threads (and the
// other process) that touch one range at once get a mix of old and new bytes and nothing worse.
unsafe impl Sync for FileMapping {}

impl FileMapping {
    /// Maps `len_bytes` of a file from `offset_bytes` on, for reading and writing.
    ///
    /// # Errors
    /// `EINVAL` for no length, for a piece that does not lie inside the file, or for something
    /// that is no regular file; else the kernel's.
    pub fn map(
        fd: BorrowedFd<'_>,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Arc<FileMapping>, Errno> {
        let errno = |error: rustix::io::Errno| Errno(error.raw_os_error());
        let _unless_it_cannot_be = fcntl_add_seals(fd, SealFlags::SHRINK);
        let stat = fstat(fd).map_err(errno)?;
        let end = offset_bytes.checked_add(len_bytes).ok_or(Errno(libc::EINVAL))?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let inside = u64::try_from(stat.st_size).is_ok_and(|size| end <= size);
        if len_bytes == 0 || !regular || !inside {
            return Err(Errno(libc::EINVAL));
        }
        // Huge pages can be mapped on their own borders only; such a file says so by its blocks.
        let page = u64::try_from(stat.st_blksize).unwrap_or(0);
        let page =
            if page.is_power_of_two() { page } else { 0 }.max(rustix::param::page_size() as u64);
        let map_offset = offset_bytes & !(page - 1);
        let map_end = end.checked_next_multiple_of(page).ok_or(Errno(libc::EINVAL))?;
        let map_len_bytes =
            usize::try_from(map_end - map_offset).map_err(|_| Errno(libc::ENOMEM))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice replaces nothing.
        let mapped = unsafe {
            let flags = MapFlags::SHARED | MapFlags::NORESERVE;
            mmap(ptr::null_mut(), map_len_bytes, protection, flags, fd, map_offset)
        }
        .map_err(errno)?;
        let map_start = NonNull::new(mapped.cast::<u8>()).ok_or(Errno(libc::ENOMEM))?;
        // SAFETY: the mapping is ours; this advice does not change its contents. A wish: somebody
        // else's memory has no place in our core dumps.
        let _ = unsafe { madvise(mapped, map_len_bytes, Advice::LinuxDontDump) };
        // SAFETY: the offset is less than a page, and the mapping has at least that page.
        let start = unsafe { map_start.add((offset_bytes - map_offset) as usize) };
        let len_bytes = len_bytes as usize;
        Ok(Arc::new(FileMapping { map_start, map_len_bytes, start, len_bytes }))
    }

    /// Length in bytes.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// A piece as I/O memory, in place. It keeps the mapping.
    ///
    /// # Panics
    /// If the piece does not lie inside the mapping; so do all methods below.
    pub fn buf(self: &Arc<Self>, offset_bytes: usize, len_bytes: usize) -> Buf {
        let start = self.place(offset_bytes, len_bytes);
        let start = NonNull::new(start).expect("invariant: a mapping is not at address zero");
        // SAFETY: the piece was checked and is mapped until the owner, which is the mapping
        // itself, is dropped; nobody makes references into it.
        unsafe { Buf::from_external(start, len_bytes, Box::new(Arc::clone(self))) }
    }

    /// Copies `N` bytes out.
    #[inline]
    pub fn read<const N: usize>(&self, offset_bytes: usize) -> [u8; N] {
        let mut bytes = [0; N];
        let place = self.place(offset_bytes, N);
        // SAFETY: `place` has checked the range; a local array never overlaps the mapping.
        unsafe { ptr::copy_nonoverlapping(place, bytes.as_mut_ptr(), N) };
        bytes
    }

    /// Copies bytes in.
    #[inline]
    pub fn write(&self, offset_bytes: usize, bytes: &[u8]) {
        let place = self.place(offset_bytes, bytes.len());
        // SAFETY: as in `read`; a Rust slice never overlaps the mapping.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    /// Reads a 16-bit word at an even place.
    #[inline]
    pub fn load_u16(&self, offset_bytes: usize, ordering: Ordering) -> u16 {
        self.word_u16(offset_bytes).load(ordering)
    }

    /// Writes a 16-bit word at an even place.
    #[inline]
    pub fn store_u16(&self, offset_bytes: usize, value: u16, ordering: Ordering) {
        self.word_u16(offset_bytes).store(value, ordering);
    }

    /// Reads a 64-bit word at a place that is a multiple of eight.
    #[inline]
    pub fn load_u64(&self, offset_bytes: usize, ordering: Ordering) -> u64 {
        self.word_u64(offset_bytes).load(ordering)
    }

    /// Writes a 64-bit word at a place that is a multiple of eight.
    #[inline]
    pub fn store_u64(&self, offset_bytes: usize, value: u64, ordering: Ordering) {
        self.word_u64(offset_bytes).store(value, ordering);
    }

    /// True if a place is a multiple of `align` in memory, which atomic words need.
    pub fn is_aligned(&self, offset_bytes: usize, align: usize) -> bool {
        (self.start.as_ptr() as usize).wrapping_add(offset_bytes).is_multiple_of(align)
    }

    #[inline]
    fn word_u16(&self, offset_bytes: usize) -> &AtomicU16 {
        let place = self.place(offset_bytes, 2).cast::<u16>();
        assert!(place.is_aligned(), "a word at an odd place: {offset_bytes}");
        // SAFETY: inside the mapping and aligned, both checked; the reference lives as long as the
        // borrow of the mapping, does not leave this file, and an atomic may be shared.
        unsafe { AtomicU16::from_ptr(place) }
    }

    #[inline]
    fn word_u64(&self, offset_bytes: usize) -> &AtomicU64 {
        let place = self.place(offset_bytes, 8).cast::<u64>();
        assert!(place.is_aligned(), "a word at an odd place: {offset_bytes}");
        // SAFETY: as for `word_u16`.
        unsafe { AtomicU64::from_ptr(place) }
    }

    #[inline]
    fn place(&self, offset_bytes: usize, len: usize) -> *mut u8 {
        let end = offset_bytes.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.len_bytes),
            "mapping access past its end: {offset_bytes}+{len} of {}",
            self.len_bytes
        );
        self.start.as_ptr().wrapping_add(offset_bytes)
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length and unmapped once, here; buffers made of it
        // hold a reference, so none is left.
        let _ = unsafe { munmap(self.map_start.as_ptr().cast(), self.map_len_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::FileMapping;
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_get_seals, ftruncate, memfd_create};
    use std::os::fd::{AsFd, OwnedFd};
    use std::sync::atomic::Ordering;
    use udm_lane::Errno;

    fn memory(len_bytes: u64) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("mapping", flags).unwrap();
        ftruncate(&fd, len_bytes).unwrap();
        fd
    }

    #[test]
    fn two_mappings_of_one_file_see_the_same_bytes_at_any_offset() {
        let fd = memory(64 << 10);
        let all = FileMapping::map(fd.as_fd(), 0, 64 << 10).unwrap();
        let part = FileMapping::map(fd.as_fd(), 5_000, 100).unwrap();
        assert_eq!(part.len_bytes(), 100);
        all.write(5_000, b"hello");
        assert_eq!(part.read::<5>(0), *b"hello");
        part.store_u16(10, 0xABCD, Ordering::Release);
        assert_eq!(all.load_u16(5_010, Ordering::Acquire), 0xABCD);
        part.store_u64(16, u64::MAX - 1, Ordering::Release);
        assert_eq!(all.read::<8>(5_016), (u64::MAX - 1).to_ne_bytes());
        assert!(part.is_aligned(0, 8) && !part.is_aligned(1, 2));
    }

    #[test]
    fn a_buffer_keeps_the_mapping() {
        let fd = memory(8 << 10);
        let mapping = FileMapping::map(fd.as_fd(), 0, 8 << 10).unwrap();
        let buf = mapping.buf(4_096, 1_024);
        drop(mapping);
        buf.copy_in(1, b"still there");
        let again = FileMapping::map(fd.as_fd(), 0, 8 << 10).unwrap();
        assert_eq!(again.read::<11>(4_097), *b"still there");
    }

    #[test]
    fn only_what_lies_inside_a_file_is_mapped() {
        let fd = memory(8 << 10);
        for (offset, len) in [(0, 0), (0, 8_193), (8_192, 1), (u64::MAX, 2), (4_096, u64::MAX)] {
            let refused = FileMapping::map(fd.as_fd(), offset, len);
            assert_eq!(refused.err(), Some(Errno(libc::EINVAL)), "{offset}+{len}");
        }
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert!(FileMapping::map(pipe.as_fd(), 0, 1).is_err());
    }

    #[test]
    fn what_is_mapped_cannot_shrink_any_more_if_it_can_be_sealed() {
        let sealed = |seals: SealFlags| seals.contains(SealFlags::SHRINK);
        let fd = memory(4 << 10);
        FileMapping::map(fd.as_fd(), 0, 1).unwrap();
        assert!(fcntl_get_seals(&fd).is_ok_and(sealed));
        assert!(ftruncate(&fd, 0).is_err(), "a client that wants to kill us");
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        FileMapping::map(file.as_fd(), 0, 1).unwrap();
        assert!(!fcntl_get_seals(&file).is_ok_and(sealed));
    }

    #[test]
    #[should_panic(expected = "mapping access past its end")]
    fn access_past_the_end_is_refused() {
        let fd = memory(4 << 10);
        FileMapping::map(fd.as_fd(), 0, 100).unwrap().read::<8>(93);
    }

    #[test]
    #[should_panic(expected = "a word at an odd place")]
    fn a_word_at_an_odd_place_is_refused() {
        let fd = memory(4 << 10);
        FileMapping::map(fd.as_fd(), 0, 100).unwrap().load_u16(1, Ordering::Relaxed);
    }
}
