//! The one place of this front that touches a descriptor itself.
//!
//! Accepted sockets arrive as plain numbers from the driver, which is to own them a moment later.
//! In between, their options are set here.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;
use udm_lane::RawHandle;

/// Sets the options of an accepted connection.
pub(super) fn tune(raw: RawHandle) {
    // SAFETY: the number was just handed to us by the driver's accept; it is open, and nobody
    // closes it before it is registered, which happens after this call.
    let socket = unsafe { BorrowedFd::borrow_raw(raw.0) };
    udm_driver::tune_connection(socket);
}
