//! Memory shared by all lanes: a private anonymous mapping that takes pages only when written.
//!
//! The `mem:` lower device keeps its bytes here. The mapping reserves nothing
//! (`MAP_NORESERVE`), so a device may be far larger than the machine's memory; [`zero`] gives
//! whole pages back.
//!
//! Rules. Bytes go in and out by copying only; no reference into the mapping is ever handed out.
//! There are no locks: two lanes that write one range at the same time leave some mix of both, as
//! a disk would, and callers that need more must order their I/O, as on a disk.
//!
//! The tricky case is [`zero`] while another lane reads. The kernel swaps the page for the zero
//! page under the reader, whose copy then holds old bytes up to some page and zeroes after, which
//! again is what a disk may answer.
//!
//! [`zero`]: SharedMemory::zero

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::ptr::{self, NonNull};
use udm_lane::{Errno, Payload};

/// A mapping of fixed length, all zeroes at first.
#[derive(Debug)]
pub struct SharedMemory {
    start: NonNull<u8>,
    len_bytes: usize,
    page_bytes: usize,
}

// SAFETY: the mapping belongs to this value until it is dropped and does not depend on the thread
// that made it; the fields never change.
unsafe impl Send for SharedMemory {}
// SAFETY: shared access only copies bytes through raw pointers. No reference into the mapping
// exists, and no byte read from it is trusted, so threads that copy the same range at once get a
// mix of old and new bytes and nothing worse (the argument of `udm_lane::Buf`).
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Maps `len_bytes` of zeroes. `EINVAL` for none at all, `ENOMEM` for more than the address
    /// space holds.
    pub fn new(len_bytes: u64) -> Result<SharedMemory, Errno> {
        let len_bytes = usize::try_from(len_bytes).map_err(|_| Errno(libc::ENOMEM))?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh anonymous mapping at a place of the kernel's choice replaces nothing.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len_bytes, protection, flags) }
            .map_err(|error| Errno(error.raw_os_error()))?;
        let start = NonNull::new(start.cast()).ok_or(Errno(libc::ENOMEM))?;
        let memory = SharedMemory { start, len_bytes, page_bytes: rustix::param::page_size() };
        // Huge pages would make a sparse device dense (2 MiB for a 4 KiB write), and a core dump
        // should not contain the disk. Both are wishes; a kernel that lacks them changes nothing.
        for advice in [Advice::LinuxNoHugepage, Advice::LinuxDontDump] {
            // SAFETY: the range is our own mapping and neither advice changes its contents.
            let _ = unsafe { madvise(memory.start.as_ptr().cast(), len_bytes, advice) };
        }
        Ok(memory)
    }

    /// Length in bytes.
    #[inline]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes as u64
    }

    /// Copies `from` into the memory at `offset_bytes`.
    ///
    /// # Panics
    /// If the range does not lie inside the memory; so do all methods below.
    #[inline]
    pub fn copy_in(&self, offset_bytes: u64, from: &[u8]) {
        let place = self.place(offset_bytes, from.len());
        // SAFETY: `place` has checked the range; a Rust slice never overlaps the mapping, since
        // no reference into it exists.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), place, from.len()) }
    }

    /// Copies bytes at `offset_bytes` out of the memory into `to`.
    #[inline]
    pub fn copy_out(&self, offset_bytes: u64, to: &mut [u8]) {
        let place = self.place(offset_bytes, to.len());
        // SAFETY: as in `copy_in`, with the direction reversed.
        unsafe { ptr::copy_nonoverlapping(place, to.as_mut_ptr(), to.len()) }
    }

    /// Fills the whole payload from the memory at `offset_bytes`.
    #[inline]
    pub fn read_into(&self, offset_bytes: u64, payload: &Payload) {
        let len = payload.len_bytes() as usize;
        let mut place = self.place(offset_bytes, len);
        for segment in payload.segments() {
            let len = segment.len_bytes as usize;
            // SAFETY: `place` has checked the sum of all segments. The segment lies inside its
            // buffer, which its handle keeps alive. `copy` allows the two to overlap, in case a
            // buffer was made over this very mapping.
            unsafe {
                ptr::copy(place, segment.as_ptr(), len);
                place = place.add(len);
            }
        }
    }

    /// Copies the whole payload into the memory at `offset_bytes`.
    #[inline]
    pub fn write_from(&self, offset_bytes: u64, payload: &Payload) {
        let len = payload.len_bytes() as usize;
        let mut place = self.place(offset_bytes, len);
        for segment in payload.segments() {
            let len = segment.len_bytes as usize;
            // SAFETY: as in `read_into`, with the direction reversed.
            unsafe {
                ptr::copy(segment.as_ptr(), place, len);
                place = place.add(len);
            }
        }
    }

    /// Makes a range read as zeroes; whole pages of it are given back to the system.
    pub fn zero(&self, offset_bytes: u64, len_bytes: u64) {
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        let place = self.place(offset_bytes, len);
        // The mapping starts on a page, so page borders are those of the offset.
        let head = (place.align_offset(self.page_bytes)).min(len);
        let whole = (len - head) / self.page_bytes * self.page_bytes;
        let tail = len - head - whole;
        // SAFETY: the three parts are, in order, exactly the range that `place` has checked.
        unsafe {
            ptr::write_bytes(place, 0, head);
            ptr::write_bytes(place.add(head + whole), 0, tail);
            if whole > 0 {
                let pages = place.add(head);
                // Fails for locked memory, which cannot be given back but can be overwritten.
                if madvise(pages.cast(), whole, Advice::LinuxDontNeed).is_err() {
                    ptr::write_bytes(pages, 0, whole);
                }
            }
        }
    }

    /// The address of a range that lies inside the memory.
    #[inline]
    fn place(&self, offset_bytes: u64, len: usize) -> *mut u8 {
        let end = usize::try_from(offset_bytes).ok().and_then(|start| start.checked_add(len));
        assert!(
            end.is_some_and(|end| end <= self.len_bytes),
            "memory access past its end: {offset_bytes}+{len} of {}",
            self.len_bytes
        );
        self.start.as_ptr().wrapping_add(offset_bytes as usize)
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length and unmapped once, here; no reference into the
        // mapping was ever handed out.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::SharedMemory;
    use udm_lane::{Buf, Payload, Segment};

    /// Pages of the mapping that exist.
    fn resident_pages(memory: &SharedMemory) -> usize {
        let mut pages = vec![0_u8; memory.len_bytes.div_ceil(memory.page_bytes)];
        let start = memory.start.as_ptr().cast();
        // SAFETY: the range is mapped and the vector has a byte for each of its pages.
        let code = unsafe { libc::mincore(start, memory.len_bytes, pages.as_mut_ptr()) };
        assert_eq!(code, 0);
        pages.iter().filter(|&&page| page & 1 == 1).count()
    }

    #[test]
    fn payloads_go_in_and_out_across_segments() {
        let memory = SharedMemory::new(1 << 20).unwrap();
        let mut payload = Payload::empty();
        for (byte, len_bytes) in [(1, 100), (2, 4_096), (3, 7)] {
            let buf = Buf::alloc(8_192);
            buf.fill(0, 8_192, byte);
            payload.push(Segment { buf, offset_bytes: 50, len_bytes });
        }
        memory.write_from(4_000, &payload);
        let mut seen = vec![9; 4_205];
        memory.copy_out(3_999, &mut seen);
        let mut expected = vec![0];
        expected.extend([1; 100]);
        expected.extend([2; 4_096]);
        expected.extend([3; 7]);
        expected.push(0);
        assert_eq!(seen, expected);
        payload.fill(0, payload.len_bytes(), 0);
        memory.read_into(4_000, &payload);
        let mut back = vec![0; 4_203];
        payload.copy_out(0, &mut back);
        assert_eq!(back, expected[1..4_204]);
    }

    #[test]
    fn a_huge_mapping_takes_only_what_is_written_and_zero_gives_it_back() {
        let memory = SharedMemory::new(64 << 20).unwrap();
        let page = memory.page_bytes as u64;
        for index in 0..10 {
            memory.copy_in(index * page, &vec![0xAA; page as usize]);
        }
        assert_eq!(resident_pages(&memory), 10);
        memory.zero(100, 9 * page);
        let mut seen = vec![1; 10 * page as usize];
        memory.copy_out(0, &mut seen);
        assert!(seen[..100].iter().all(|&byte| byte == 0xAA));
        assert!(seen[100..100 + 9 * page as usize].iter().all(|&byte| byte == 0));
        assert!(seen[100 + 9 * page as usize..].iter().all(|&byte| byte == 0xAA));
        assert_eq!(resident_pages(&memory) as u64, 10, "reading maps the zero page again");
        memory.zero(0, 64 << 20);
        assert_eq!(resident_pages(&memory), 0);
    }

    #[test]
    fn more_than_the_machine_has_can_be_mapped() {
        let memory = SharedMemory::new(1 << 44).unwrap();
        memory.copy_in((1 << 44) - 4, b"last");
        let mut seen = [0; 4];
        memory.copy_out((1 << 44) - 4, &mut seen);
        assert_eq!(&seen, b"last");
    }

    #[test]
    fn lanes_write_side_by_side() {
        let memory = SharedMemory::new(1 << 20).unwrap();
        std::thread::scope(|scope| {
            for lane in 0..4_u8 {
                let memory = &memory;
                scope.spawn(move || {
                    for index in 0..64_u64 {
                        memory.copy_in((index * 4 + u64::from(lane)) * 512, &[lane + 1; 512]);
                    }
                });
            }
        });
        let mut seen = vec![0; 64 * 4 * 512];
        memory.copy_out(0, &mut seen);
        for (index, piece) in seen.chunks(512).enumerate() {
            assert_eq!(piece, [(index % 4) as u8 + 1; 512]);
        }
    }

    #[test]
    fn an_empty_mapping_is_refused() {
        assert!(SharedMemory::new(0).is_err());
    }

    #[test]
    #[should_panic(expected = "memory access past its end")]
    fn access_past_the_end_is_refused() {
        SharedMemory::new(4_096).unwrap().zero(4_000, 97);
    }
}
