//! The functions ours stand before.
//!
//! Found with `dlsym(RTLD_NEXT)` at the first call and remembered; two threads that look at the
//! same time find the same. [`interpose`] makes an exported function: ours first, then the next
//! one.
//!
//! The tricky case is a panic, which must not cross into C: it becomes `EIO` of this one call.

use rustix::io::Errno;
use std::ffi::{CStr, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The next function of a name.
pub(crate) struct Next {
    name: &'static CStr,
    address: AtomicPtr<c_void>,
}

impl Next {
    pub(crate) const fn new(name: &'static CStr) -> Next {
        Next { name, address: AtomicPtr::new(null_mut()) }
    }

    /// Its address; null if there is none.
    pub(crate) fn address(&self) -> *mut c_void {
        let known = self.address.load(Ordering::Relaxed);
        if !known.is_null() {
            return known;
        }
        // SAFETY: the name is a C string that lives for ever; dlsym only reads it.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.address.store(found, Ordering::Relaxed);
        found
    }
}

/// Sets the C library's `errno`.
pub(crate) fn set_errno(errno: Errno) {
    // SAFETY: the address is this thread's own errno, valid for as long as the thread.
    unsafe { *libc::__errno_location() = errno.raw_os_error() };
}

/// Runs our part of a function. `None` means that it is not our business.
pub(crate) fn ours<R>(run: impl FnOnce() -> Option<Result<R, Errno>>) -> Option<Result<R, Errno>> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(Some(Err(Errno::IO)))
}

/// An exported function: `interpose!(NAME(ARGS) -> RESULT, FAILED, OURS)`.
macro_rules! interpose {
    ($name:ident($($arg:ident: $kind:ty),* $(,)?) -> $result:ty, $failed:expr, $ours:expr) => {
        /// Stands before the C library's function of the same name.
        ///
        /// # Safety
        /// As that function's.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $kind),*) -> $result {
            static NEXT: $crate::next::Next = $crate::next::Next::new(
                match ::std::ffi::CStr::from_bytes_with_nul(
                    concat!(stringify!($name), "\0").as_bytes(),
                ) {
                    Ok(name) => name,
                    Err(_) => c"",
                },
            );
            match $crate::next::ours(|| $ours) {
                Some(Ok(value)) => value,
                Some(Err(errno)) => {
                    $crate::next::set_errno(errno);
                    $failed
                }
                None => {
                    let next = NEXT.address();
                    if next.is_null() {
                        $crate::next::set_errno(rustix::io::Errno::NOSYS);
                        return $failed;
                    }
                    // SAFETY: the address is that of the function of this name in the next library,
                    // which has this signature; the arguments are our caller's, unchanged, so
                    // whatever it promised to us holds for that function.
                    unsafe {
                        let next: unsafe extern "C" fn($($kind),*) -> $result =
                            ::std::mem::transmute(next);
                        next($($arg),*)
                    }
                }
            }
        }
    };
}
pub(crate) use interpose;
