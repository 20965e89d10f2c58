//! An allocator that counts, for tests that show that something at work allocates nothing.
//!
//! A test program makes it its own and has no other test, since the allocator is the whole
//! program's:
//!
//! ```
//! use udm_testkit::{Counting, allocations_here};
//!
//! #[global_allocator]
//! static ALLOCATOR: Counting = Counting;
//!
//! let before = allocations_here();
//! let boxed = Box::new(1);
//! assert_eq!(allocations_here() - before, *boxed);
//! ```
//!
//! Rules. It passes every call on to the system's allocator and adds to two counters, which
//! themselves never allocate. A larger piece for a smaller one counts, memory given back does not.
//!
//! The tricky case is a thread that ends: its own counter may be gone while it still allocates, and
//! nobody is left to ask for it.
#![allow(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator, counted.
#[derive(Clone, Copy, Debug)]
pub struct Counting;

static EVERYWHERE: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static HERE: Cell<u64> = const { Cell::new(0) };
}

/// Allocations so far, of every thread.
pub fn allocations() -> u64 {
    EVERYWHERE.load(Ordering::Relaxed)
}

/// Allocations so far, of the calling thread.
pub fn allocations_here() -> u64 {
    HERE.get()
}

fn count() {
    EVERYWHERE.fetch_add(1, Ordering::Relaxed);
    let _ = HERE.try_with(|here| here.set(here.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged; only counters are added, and they
// allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise about the layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, len_bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the memory came from the system's allocator; the caller's promise is passed on.
        unsafe { System.realloc(start, layout, len_bytes) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the memory came from the system's allocator.
        unsafe { System.dealloc(start, layout) }
    }
}
