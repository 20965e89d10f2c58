//! Writes into the page cache, done by one thread beside the ring.
//!
//! Most file systems (ext4 among them) refuse to write into the page cache without blocking, so
//! the ring hands each such write to a kernel worker of its own: one wake-up a write, more than
//! the write itself costs. They also let one writer into a file at a time, so several workers
//! gain nothing. Here the lane's writes of a turn go to one thread together:
//!
//! ```text
//!   submit:  pending <- job            (the lane's own list, no lock)
//!   wait:    queued  <- pending        one lock, one futex wake if the thread sleeps
//!   thread:  takes queued, pwritev one after the other
//!            done    <- a batch        one lock, one ring of the doorbell if the lane sleeps
//! ```
//!
//! Rules. A job names memory that its slot owns, and a descriptor whose file counts it in flight;
//! both stay until the lane has taken the job's result, or for ever. Without work the thread
//! sleeps; it starts with the first such write and ends with the driver. Where none can be
//! started, the ring does the write. A cancel reaches only what is still pending.
//!
//! The tricky case is a write that is slow: a durable one, or one the kernel slows down because
//! too much is dirty. What was finished before a durable write is given back before it starts;
//! jobs behind a slow one wait, as they would for the lock of the same file.

use super::slots::Slot;
use super::{UringDriver, entry};
use crate::calls::write_at;
use crate::wake::{COMPLETED, EventWake};
use std::mem;
use std::os::fd::RawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use udm_lane::{Completion, Errno, OpResult, OpToken};

/// Results given back together at most. Two wake-ups a batch cost some 5 us, which vanish among
/// 64 writes of 1.5 us; more would only make the first of them wait longer.
const BATCH_WRITES: usize = 64;

/// Bytes written before results are given back: some 200 us of copying.
const BATCH_BYTES: u64 = 1 << 20;

/// One write, as the thread does it.
struct Job {
    user_data: u64,
    fd: RawFd,
    offset_bytes: u64,
    dsync: bool,
    source: Source,
}

/// Where the bytes are.
enum Source {
    One(libc::iovec),
    /// The address list of the job's slot.
    Many {
        start: *const libc::iovec,
        count: i32,
    },
}

// SAFETY: a job only carries addresses; the thread that has it passes them to one system call.
// What they name belongs to the job's slot, which neither moves it (segments and the address list
// are on the heap) nor frees it before the result of the job is back with the lane.
unsafe impl Send for Job {}

/// The end of a write.
struct Done {
    user_data: u64,
    result: OpResult,
}

/// The thread as the lane sees it.
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Submitted since the last `wait`. As the lists below, bounded by what the lane has in
    /// flight, which the fronts bound.
    pending: Vec<Job>,
    /// Handed over, and the result not yet taken.
    inside: usize,
    /// Reused by every turn.
    taken: Vec<Done>,
}

struct Shared {
    lists: Mutex<Lists>,
    /// For the thread: a job has come, or the end.
    work: Condvar,
    wake: Arc<EventWake>,
}

#[derive(Default)]
struct Lists {
    queued: Vec<Job>,
    done: Vec<Done>,
    /// The thread sleeps, and nobody has woken it yet.
    asleep: bool,
    ended: bool,
}

impl Writer {
    pub(super) fn new(wake: Arc<EventWake>) -> Writer {
        let lists = Mutex::new(Lists::default());
        Writer {
            shared: Arc::new(Shared { lists, work: Condvar::new(), wake }),
            thread: None,
            pending: Vec::new(),
            inside: 0,
            taken: Vec::new(),
        }
    }

    /// True if the thread runs; the first call starts it.
    #[inline]
    pub(super) fn is_ready(&mut self) -> bool {
        self.thread.is_some() || self.start()
    }

    #[cold]
    fn start(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("udm-write".to_owned());
        self.thread = thread.spawn(move || run(&shared)).ok();
        self.thread.is_some()
    }

    /// Keeps a write for the next hand-over. Its bytes are the payload of `slot`.
    pub(super) fn add(
        &mut self,
        user_data: u64,
        slot: &mut Slot,
        fd: RawFd,
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
        self.pending.push(Job { user_data, fd, offset_bytes, dsync, source });
    }

    /// Gives everything pending to the thread.
    #[inline]
    pub(super) fn hand_over(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        self.inside += self.pending.len();
        let asleep = {
            let mut lists = self.shared.lock();
            lists.queued.append(&mut self.pending);
            mem::take(&mut lists.asleep)
        };
        if asleep {
            self.shared.work.notify_one();
        }
    }

    /// True if the thread may still use what a job names.
    pub(super) fn is_busy(&self) -> bool {
        self.inside > 0
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Lists> {
        // A panic cannot leave the lists half changed: each is changed by one call.
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Swaps the empty `jobs` for what is queued; sleeps until something is. False at the end.
    fn next(&self, jobs: &mut Vec<Job>) -> bool {
        let mut lists = self.lock();
        while lists.queued.is_empty() {
            if lists.ended {
                return false;
            }
            lists.asleep = true;
            lists = self.work.wait(lists).unwrap_or_else(PoisonError::into_inner);
        }
        mem::swap(&mut lists.queued, jobs);
        true
    }

    fn give_back(&self, done: &mut Vec<Done>) {
        if !done.is_empty() {
            self.lock().done.append(done);
            self.wake.signal(COMPLETED);
        }
    }
}

/// The thread's life.
fn run(shared: &Shared) {
    let mut jobs = Vec::new();
    let mut done = Vec::with_capacity(BATCH_WRITES);
    while shared.next(&mut jobs) {
        let mut batch_bytes = 0;
        for job in jobs.drain(..) {
            if job.dsync {
                shared.give_back(&mut done);
            }
            let result = job.run();
            done.push(Done { user_data: job.user_data, result });
            batch_bytes += u64::from(result.unwrap_or(0));
            if job.dsync || done.len() >= BATCH_WRITES || batch_bytes >= BATCH_BYTES {
                shared.give_back(&mut done);
                batch_bytes = 0;
            }
        }
        shared.give_back(&mut done);
    }
}

impl Job {
    fn run(&self) -> OpResult {
        let (start, count) = match &self.source {
            Source::One(vector) => (&raw const *vector, 1),
            Source::Many { start, count } => (*start, *count),
        };
        // SAFETY: the vectors are this job's own or its slot's, the memory is its slot's, and the
        // slot keeps both until the result is back with the lane, or for ever.
        unsafe { write_at(self.fd, start, count, self.offset_bytes, self.dsync) }
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
        mem::swap(&mut self.writer.shared.lock().done, &mut taken);
        self.writer.inside -= taken.len();
        for Done { user_data, result } in taken.drain(..) {
            self.end_write(user_data, result, completions);
        }
        self.writer.taken = taken;
    }

    /// Ends the pending writes of a token, which nobody has begun.
    pub(super) fn withdraw_writes(&mut self, token: OpToken) {
        if self.writer.pending.is_empty() {
            return;
        }
        for user_data in self.slots.find(|slot| slot.token == token) {
            let pending = &mut self.writer.pending;
            if let Some(index) = pending.iter().position(|job| job.user_data == user_data) {
                pending.remove(index);
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

impl Drop for Writer {
    fn drop(&mut self) {
        {
            let mut lists = self.shared.lock();
            lists.ended = true;
            lists.asleep = false;
        }
        self.shared.work.notify_one();
        if let (Some(thread), 0) = (self.thread.take(), self.inside) {
            // Nothing is left for it to do, so this takes no longer than its way out. Over a
            // dead disk nobody waits for it.
            let _ = thread.join();
        }
    }
}
