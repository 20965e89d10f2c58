//! Memory as the socket of s2n-tls: what it reads was received before, what it writes waits.
//!
//! s2n-tls asks for its bytes by callbacks with a pointer of ours. This file owns that pointer: the
//! memory it points to, the two callbacks, and the connection that calls them, in one value, so
//! that neither outlives the other. It knows nothing of NBD and does no I/O.
//!
//! Rules. The callbacks are called only from inside a call of the connection, on the thread that
//! makes it, and nobody else looks at the memory meanwhile: [`Piped::tls`] borrows the whole value.
//!
//! The tricky case is the end: the connection is freed first (fields are dropped in their order),
//! the memory after it.
#![allow(unsafe_code)]

use s2n_tls::connection::Connection;
use s2n_tls::error::Error;
use std::ffi::{c_int, c_void};
use std::slice;

/// What is between a connection and its socket.
#[derive(Default)]
pub(crate) struct Pipes {
    /// Received; read from `start`.
    pub(crate) incoming: Vec<u8>,
    pub(crate) start: usize,
    /// To be sent.
    pub(crate) outgoing: Vec<u8>,
}

/// The memory of the pipes, which this value alone owns.
struct Memory(*mut Pipes);

// SAFETY: nobody else has the pointer but the connection beside it, which moves with it.
unsafe impl Send for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it came from `Box::into_raw` and is freed once. The connection is gone by now.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// A connection and its pipes. Fields are dropped in their order.
pub(crate) struct Piped {
    tls: Connection,
    memory: Memory,
}

impl Piped {
    /// Gives a connection pipes of its own.
    ///
    /// # Errors
    /// The library's, if it refuses.
    pub(crate) fn new(tls: Connection) -> Result<Piped, Error> {
        let memory = Memory(Box::into_raw(Box::default()));
        let mut piped = Piped { tls, memory };
        let context = piped.memory.0.cast();
        piped.tls.set_receive_callback(Some(receive))?;
        piped.tls.set_send_callback(Some(send))?;
        // SAFETY: the memory lives as long as the connection, since it is dropped after it.
        unsafe {
            piped.tls.set_receive_context(context)?;
            piped.tls.set_send_context(context)?;
        }
        Ok(piped)
    }

    /// The connection, to be called.
    pub(crate) fn tls(&mut self) -> &mut Connection {
        &mut self.tls
    }

    /// The connection, to be asked; asking reads and writes nothing.
    pub(crate) fn state(&self) -> &Connection {
        &self.tls
    }

    /// The pipes, between calls.
    pub(crate) fn pipes(&mut self) -> &mut Pipes {
        // SAFETY: it is ours, and no call of the connection is under way, since that would have
        // borrowed this value, too.
        unsafe { &mut *self.memory.0 }
    }

    /// As [`Self::pipes`], to look.
    pub(crate) fn look(&self) -> &Pipes {
        // SAFETY: as above; callbacks run only while the value is borrowed for a call.
        unsafe { &*self.memory.0 }
    }
}

/// Gives the library what was received; "would block" if nothing is left.
unsafe extern "C" fn receive(context: *mut c_void, to: *mut u8, len_bytes: u32) -> c_int {
    // SAFETY: the context is the one that `Piped::new` set, and the caller is inside a call of its
    // connection, so nobody else has a reference.
    let pipes = unsafe { &mut *context.cast::<Pipes>() };
    let waiting = pipes.incoming.get(pipes.start..).unwrap_or_default();
    let count = waiting.len().min(len_bytes as usize);
    if count == 0 {
        // SAFETY: errno is the thread's own.
        unsafe { *libc::__errno_location() = libc::EWOULDBLOCK };
        return -1;
    }
    // SAFETY: the library has room for `len_bytes` there, and it is not our memory.
    unsafe { slice::from_raw_parts_mut(to, count) }.copy_from_slice(&waiting[..count]);
    pipes.start += count;
    // Fits: the library asks for a record at most, and a larger number would only say less.
    c_int::try_from(count).unwrap_or(c_int::MAX)
}

/// Takes what the library has to send.
unsafe extern "C" fn send(context: *mut c_void, from: *const u8, len_bytes: u32) -> c_int {
    // SAFETY: as in `receive`.
    let pipes = unsafe { &mut *context.cast::<Pipes>() };
    // SAFETY: the library has `len_bytes` there for as long as the call lasts.
    let bytes = unsafe { slice::from_raw_parts(from, len_bytes as usize) };
    pipes.outgoing.extend_from_slice(bytes);
    // Fits: as in `receive`, a record at most.
    c_int::try_from(len_bytes).unwrap_or(c_int::MAX)
}
