//! Memory that I/O reads from and writes into: 4 KiB aligned, counted, shared by handle.
//!
//! Used by payloads (`payload.rs`) and by the drivers, which hand the address to the kernel. A
//! handle is cheap to clone; the memory lives until the last handle is gone, so an operation that
//! was abandoned (its device died) can never write into memory somebody else reuses.
//!
//! Rules. Data is reached by *copying* in and out, never by a shared `&[u8]`: two I/Os over one
//! range may overlap, as on a disk, and references would make that undefined behaviour. The only
//! slice handed out is `get_mut`, which needs the sole handle. This is the one file of the crate
//! with `unsafe` in it.
//!
//! The tricky case is concurrent copying of the same bytes by two lanes (or by the kernel and a
//! lane). Only whole-range byte copies through raw pointers happen here, no value is ever read
//! twice or trusted, so the outcome is what a disk gives: some mix of old and new bytes.
#![allow(unsafe_code)]

use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::any::Any;
use core::fmt;
use core::ptr::{self, NonNull};

/// Alignment of memory from [`Buf::alloc`]: a page, so that `O_DIRECT` always accepts it.
pub const BUF_ALIGN_BYTES: usize = 4096;

/// A handle on a piece of I/O memory.
#[derive(Clone)]
pub struct Buf {
    memory: Arc<Memory>,
}

struct Memory {
    start: NonNull<u8>,
    len_bytes: usize,
    owner: Owner,
}

/// Who gives the memory back.
enum Owner {
    /// Allocated here with this layout.
    Heap(Layout),
    /// Kept alive by something else (guest memory, a mapping); dropped with the last handle.
    External(#[allow(dead_code, reason = "held only to be dropped")] Box<dyn Any + Send + Sync>),
}

// SAFETY: `Memory` is an address range that stays valid until drop, and all access goes through
// raw-pointer copies that do not assume exclusive use (see the module header); the owner is itself
// `Send + Sync`.
unsafe impl Send for Memory {}
// SAFETY: as above: no method of a shared `Memory` creates a reference into the range.
unsafe impl Sync for Memory {}

impl Buf {
    /// Allocates `len_bytes` zeroed bytes, page aligned.
    ///
    /// # Panics
    /// If `len_bytes` is zero or rounds past `isize::MAX`; callers bound sizes far below.
    pub fn alloc(len_bytes: usize) -> Buf {
        assert!(len_bytes > 0, "a buffer holds at least one byte");
        let layout = Layout::from_size_align(len_bytes, BUF_ALIGN_BYTES)
            .expect("invariant: buffer sizes are bounded by the fronts");
        // SAFETY: the layout has a non-zero size, checked above.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Buf { memory: Arc::new(Memory { start, len_bytes, owner: Owner::Heap(layout) }) }
    }

    /// Takes a handle on memory that `owner` keeps valid.
    ///
    /// # Safety
    /// `start..start + len_bytes` must be valid for reads and writes until `owner` is dropped, and
    /// no Rust reference may exist into it while handles are in use.
    pub unsafe fn from_external(
        start: NonNull<u8>,
        len_bytes: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Buf {
        Buf { memory: Arc::new(Memory { start, len_bytes, owner: Owner::External(owner) }) }
    }

    /// Length in bytes.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.memory.len_bytes
    }

    /// The address, for a driver to hand to the kernel. Keep a handle for as long as it is used.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.start.as_ptr()
    }

    /// True if this is the only handle, so that the memory may be reused.
    #[inline]
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.memory) == 1
    }

    /// True if the memory is our own and this is the only handle: [`Buf::get_mut`] gives it.
    #[inline]
    pub fn is_own(&self) -> bool {
        self.is_unique() && !matches!(self.memory.owner, Owner::External(_))
    }

    /// The bytes as a slice, if this is the only handle and the memory is our own: a guest or
    /// another process may write into other memory at any time.
    #[inline]
    pub fn get_mut(&mut self) -> Option<&mut [u8]> {
        let memory = Arc::get_mut(&mut self.memory)?;
        if matches!(memory.owner, Owner::External(_)) {
            return None;
        }
        // SAFETY: the range is valid for `len_bytes`, was allocated here, and `Arc::get_mut` proved
        // that no other handle (and so no other accessor, drivers included) exists while the slice
        // lives.
        Some(unsafe { core::slice::from_raw_parts_mut(memory.start.as_ptr(), memory.len_bytes) })
    }

    /// Copies `from` into the buffer at `offset_bytes`.
    ///
    /// # Panics
    /// If the range does not lie inside the buffer.
    #[inline]
    pub fn copy_in(&self, offset_bytes: usize, from: &[u8]) {
        self.check(offset_bytes, from.len());
        // SAFETY: the range was checked; `from` is a Rust slice and cannot overlap memory that is
        // reached only through raw pointers.
        unsafe {
            ptr::copy_nonoverlapping(from.as_ptr(), self.as_ptr().add(offset_bytes), from.len());
        }
    }

    /// Copies bytes at `offset_bytes` out of the buffer into `to`.
    ///
    /// # Panics
    /// If the range does not lie inside the buffer.
    #[inline]
    pub fn copy_out(&self, offset_bytes: usize, to: &mut [u8]) {
        self.check(offset_bytes, to.len());
        // SAFETY: as in `copy_in`, with the direction reversed.
        unsafe {
            ptr::copy_nonoverlapping(self.as_ptr().add(offset_bytes), to.as_mut_ptr(), to.len());
        }
    }

    /// Copies between two buffers (or within one; overlap is allowed).
    ///
    /// # Panics
    /// If either range does not lie inside its buffer.
    #[inline]
    pub fn copy_to(&self, offset_bytes: usize, to: &Buf, to_offset_bytes: usize, len: usize) {
        self.check(offset_bytes, len);
        to.check(to_offset_bytes, len);
        // SAFETY: both ranges were checked; `ptr::copy` allows overlap.
        unsafe {
            ptr::copy(self.as_ptr().add(offset_bytes), to.as_ptr().add(to_offset_bytes), len);
        }
    }

    /// Sets `len` bytes at `offset_bytes` to `byte`.
    ///
    /// # Panics
    /// If the range does not lie inside the buffer.
    #[inline]
    pub fn fill(&self, offset_bytes: usize, len: usize, byte: u8) {
        self.check(offset_bytes, len);
        // SAFETY: the range was checked.
        unsafe { ptr::write_bytes(self.as_ptr().add(offset_bytes), byte, len) }
    }

    #[inline]
    fn check(&self, offset_bytes: usize, len: usize) {
        let end = offset_bytes.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.len_bytes()),
            "buffer access past its end: {offset_bytes}+{len} of {}",
            self.len_bytes()
        );
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match self.owner {
            // SAFETY: allocated in `Buf::alloc` with exactly this layout, freed once, here.
            Owner::Heap(layout) => unsafe { dealloc(self.start.as_ptr(), layout) },
            Owner::External(_) => {}
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::{BUF_ALIGN_BYTES, Buf};
    use alloc::boxed::Box;
    use core::ptr::NonNull;

    #[test]
    fn memory_is_aligned_zeroed_and_copied() {
        let buf = Buf::alloc(8192);
        assert_eq!(buf.as_ptr() as usize % BUF_ALIGN_BYTES, 0);
        let mut out = [7_u8; 4];
        buf.copy_out(100, &mut out);
        assert_eq!(out, [0; 4]);
        buf.copy_in(100, &[1, 2, 3, 4]);
        let other = Buf::alloc(16);
        buf.copy_to(99, &other, 8, 6);
        let mut out = [0_u8; 16];
        other.copy_out(0, &mut out);
        assert_eq!(out, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0]);
    }

    #[test]
    fn only_the_sole_handle_gives_a_slice() {
        let mut buf = Buf::alloc(512);
        let clone = buf.clone();
        assert!(buf.get_mut().is_none());
        assert!(!buf.is_unique());
        drop(clone);
        assert_eq!(buf.get_mut().map(|slice| slice.len()), Some(512));
    }

    #[test]
    fn memory_of_others_gives_no_slice() {
        let memory = Box::into_raw(Box::new([0_u8; 64]));
        let start = NonNull::new(memory.cast()).unwrap();
        // SAFETY: nobody frees the memory, and nobody has a reference into it.
        let mut buf = unsafe { Buf::from_external(start, 64, Box::new(())) };
        assert!(buf.is_unique() && !buf.is_own() && buf.get_mut().is_none());
        buf.copy_in(60, &[1, 2, 3, 4]);
        drop(buf);
        // SAFETY: it came from a box, and the last handle is gone.
        assert_eq!(unsafe { Box::from_raw(memory) }[60..], [1, 2, 3, 4]);
    }

    #[test]
    #[should_panic(expected = "buffer access past its end")]
    fn access_past_the_end_is_refused() {
        Buf::alloc(512).copy_in(510, &[0; 3]);
    }
}
