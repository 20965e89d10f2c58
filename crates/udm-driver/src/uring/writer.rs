//! Writes into the page cache, done by threads beside the ring.
//!
//! Most file systems (ext4 among them) refuse to write into the page cache without blocking, so
//! the ring hands each such write to a kernel worker of its own: one wake-up a write, more than
//! the write itself costs. They also let one writer into a file at a time, so several workers
//! gain nothing. Here the lane's writes of a turn go to the file's thread together
//! (`write_thread.rs`), and their results come back in batches.
//!
//! Rules. A job names memory that its slot owns, and a descriptor whose file counts it in flight;
//! both stay until the lane has taken the job's result, or for ever. Where no thread can be
//! started, the ring does the write. A cancel reaches only what is still pending.
//!
//! The tricky case is the end of the driver with writes that hang: see `teardown.rs`.

use super::slots::Slot;
use super::write_thread::{Done, FileThread, Job, Returns, Source, WriteThread, thread_of};
use super::{UringDriver, entry};
use crate::handles::FileKey;
use crate::wake::EventWake;
use std::mem;
use std::os::fd::RawFd;
use std::sync::Arc;
use udm_lane::{Completion, Errno, OpResult, OpToken};

/// The lane's side of all threads it uses.
pub(super) struct Writer {
    returns: Arc<Returns>,
    /// Kept until the driver ends. At most as many as the process has.
    outlets: Vec<Outlet>,
    /// Jobs in all outlets.
    pending: usize,
    /// Handed over, and the result not yet taken.
    inside: usize,
    /// Reused by every turn.
    taken: Vec<Done>,
}

/// One thread.
struct Outlet {
    thread: Arc<WriteThread>,
    started: bool,
    /// Submitted since the last `wait`. Bounded by what the lane has in flight, which the fronts
    /// bound.
    pending: Vec<Job>,
}

/// A file of the lane whose writes go to a thread.
pub(super) struct CachedFile {
    /// Keeps the file with its thread while it is open here.
    _file: Arc<FileThread>,
    outlet: usize,
}

impl Writer {
    pub(super) fn new(wake: Arc<EventWake>) -> Writer {
        Writer {
            returns: Returns::new(wake),
            outlets: Vec::new(),
            pending: 0,
            inside: 0,
            taken: Vec::new(),
        }
    }

    /// Assigns a file that the lane has opened to its thread.
    pub(super) fn assign(&mut self, key: FileKey) -> CachedFile {
        let file = thread_of(key);
        let thread = &file.thread;
        let known = self.outlets.iter().position(|outlet| Arc::ptr_eq(&outlet.thread, thread));
        let outlet = known.unwrap_or_else(|| {
            let thread = Arc::clone(thread);
            self.outlets.push(Outlet { thread, started: false, pending: Vec::new() });
            self.outlets.len() - 1
        });
        CachedFile { _file: file, outlet }
    }

    /// True if the file's thread runs; the first call starts it.
    #[inline]
    pub(super) fn is_ready(&mut self, file: &CachedFile) -> bool {
        let outlet = &mut self.outlets[file.outlet];
        outlet.started = outlet.started || outlet.thread.start();
        outlet.started
    }

    /// Keeps a write for the next hand-over. Its bytes are the payload of `slot`.
    pub(super) fn add(
        &mut self,
        file: &CachedFile,
        fd: RawFd,
        (user_data, slot): (u64, &mut Slot),
        offset_bytes: u64,
        dsync: bool,
    ) {
        let source = match entry::single(slot) {
            Some((start, len_bytes)) => {
                Source::One(libc::iovec { iov_base: start.cast(), iov_len: len_bytes as usize })
            }
            None => {
                let list = slot.vectors().iovecs();
                Source::Many { start: list.as_ptr(), count: list.len() as i32 }
            }
        };
        let job = Job { user_data, fd, offset_bytes, dsync, source };
        self.outlets[file.outlet].pending.push(job);
        self.pending += 1;
    }

    /// Gives everything pending to the threads.
    #[inline]
    pub(super) fn hand_over(&mut self) {
        if self.pending == 0 {
            return;
        }
        self.inside += mem::take(&mut self.pending);
        for Outlet { thread, pending, .. } in &mut self.outlets {
            if !pending.is_empty() {
                thread.hand_over(&self.returns, pending);
            }
        }
    }

    /// True if a thread may still use what a job names.
    pub(super) fn is_busy(&self) -> bool {
        self.inside > 0
    }

    /// Takes back a write that nobody has begun.
    fn withdraw(&mut self, user_data: u64) -> bool {
        for Outlet { pending, .. } in &mut self.outlets {
            if let Some(index) = pending.iter().position(|job| job.user_data == user_data) {
                pending.remove(index);
                self.pending -= 1;
                return true;
            }
        }
        false
    }
}

impl UringDriver {
    /// Appends the writes that have ended.
    #[inline]
    pub(super) fn collect_writes(&mut self, completions: &mut Vec<Completion>) {
        if self.writer.inside == 0 {
            return;
        }
        let mut taken = mem::take(&mut self.writer.taken);
        self.writer.returns.take(&mut taken);
        self.writer.inside -= taken.len();
        for Done { user_data, result } in taken.drain(..) {
            self.end_write(user_data, result, completions);
        }
        self.writer.taken = taken;
    }

    /// Ends the pending writes of a token, which nobody has begun.
    pub(super) fn withdraw_writes(&mut self, token: OpToken) {
        if self.writer.pending == 0 {
            return;
        }
        for user_data in self.slots.find(|slot| slot.token == token) {
            if self.writer.withdraw(user_data) {
                let mut refused = mem::take(&mut self.refused);
                self.end_write(user_data, Err(Errno(libc::ECANCELED)), &mut refused);
                self.refused = refused;
            }
        }
    }

    fn end_write(&mut self, user_data: u64, result: OpResult, completions: &mut Vec<Completion>) {
        let Some((token, handle, payload)) = self.slots.remove(user_data) else { return };
        completions.push(Completion { token, result, payload, more: false });
        self.ended_on(handle);
    }
}
