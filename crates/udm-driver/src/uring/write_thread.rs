//! The threads that write into the page cache: one for each file, for all lanes of the process.
//!
//! Used by `writer.rs`, the lane's side. A file system lets one writer into a file at a time, and
//! others who want to write wait for it spinning, so a file has one thread, whichever lanes write
//! to it; a thread may have many files ([`threads_max`]).
//!
//! ```text
//!   lane:    queued[lane] <- jobs      one lock, one futex wake if the thread sleeps
//!   thread:  takes all queues, pwritev one after the other, lane by lane
//!            returns[lane] <- a batch  one lock, one ring of the doorbell if the lane sleeps
//! ```
//!
//! Rules. A job names memory and a descriptor that its lane keeps until it has taken the result,
//! or for ever. Without work a thread sleeps; it starts with the first write and ends when the
//! last driver that has used it is dropped. Nobody waits for that end.
//!
//! The tricky case is a write that is slow: a durable one, or one the kernel slows down because
//! too much is dirty. What was finished before a durable write is given back before it starts;
//! jobs behind a slow one wait, as they would for the lock of the same file.

use crate::calls::write_at;
use crate::handles::FileKey;
use crate::wake::{COMPLETED, EventWake};
use std::mem;
use std::os::fd::RawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::available_parallelism;
use udm_lane::OpResult;

/// Results given back together at most. Two wake-ups a batch cost some 5 us, which vanish among
/// 64 writes of 1.5 us; more would only make the first of them wait longer.
const BATCH_WRITES: usize = 64;

/// Bytes written before results are given back: some 200 us of copying.
const BATCH_BYTES: u64 = 1 << 20;

/// Threads of the process at most: what the cores can run, and a few of them can fill any disk.
fn threads_max() -> usize {
    available_parallelism().map_or(1, usize::from).min(16)
}

/// One write, as the thread does it.
pub(super) struct Job {
    pub(super) user_data: u64,
    pub(super) fd: RawFd,
    pub(super) offset_bytes: u64,
    pub(super) dsync: bool,
    pub(super) source: Source,
}

/// Where the bytes are.
pub(super) enum Source {
    /// One range of memory.
    One(libc::iovec),
    /// The address list of the job's slot.
    Many {
        /// Its first vector.
        start: *const libc::iovec,
        /// How many there are.
        count: i32,
    },
}

// SAFETY: a job only carries addresses; the thread that has it passes them to one system call.
// What they name belongs to the job's slot, which neither moves it (segments and the address list
// are on the heap) nor frees it before the result of the job is back with the lane.
unsafe impl Send for Job {}

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

/// The end of a write.
pub(super) struct Done {
    pub(super) user_data: u64,
    pub(super) result: OpResult,
}

/// Where a lane gets its results.
pub(super) struct Returns {
    done: Mutex<Vec<Done>>,
    wake: Arc<EventWake>,
}

impl Returns {
    pub(super) fn new(wake: Arc<EventWake>) -> Arc<Returns> {
        Arc::new(Returns { done: Mutex::default(), wake })
    }

    /// Swaps the empty `taken` for what has ended.
    pub(super) fn take(&self, taken: &mut Vec<Done>) {
        mem::swap(&mut *lock(&self.done), taken);
    }

    fn give_back(&self, done: &mut Vec<Done>) {
        if !done.is_empty() {
            lock(&self.done).append(done);
            self.wake.signal(COMPLETED);
        }
    }
}

/// A thread, as those see it who hand it work.
pub(super) struct WriteThread {
    shared: Arc<Shared>,
    started: Mutex<bool>,
}

struct Shared {
    lists: Mutex<Lists>,
    /// For the thread: a job has come, or the end.
    work: Condvar,
}

#[derive(Default)]
struct Lists {
    /// One queue for each lane that has work here now; the others are kept for their memory.
    queued: Vec<LaneQueue>,
    has_work: bool,
    /// The thread sleeps, and nobody has woken it yet.
    asleep: bool,
    ended: bool,
}

/// Jobs of one lane. Bounded by what the lane has in flight, which the fronts bound.
struct LaneQueue {
    returns: Option<Arc<Returns>>,
    jobs: Vec<Job>,
}

impl WriteThread {
    fn new() -> Arc<WriteThread> {
        let shared = Shared { lists: Mutex::default(), work: Condvar::new() };
        Arc::new(WriteThread { shared: Arc::new(shared), started: Mutex::new(false) })
    }

    /// Starts the thread unless it runs; false if the system gives none.
    pub(super) fn start(&self) -> bool {
        let mut started = lock(&self.started);
        if !*started {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("udm-write".to_owned());
            *started = thread.spawn(move || run(&shared)).is_ok();
        }
        *started
    }

    /// Takes over all `jobs` of the lane that gets its results from `returns`.
    pub(super) fn hand_over(&self, returns: &Arc<Returns>, jobs: &mut Vec<Job>) {
        let asleep = {
            let mut lists = lock(&self.shared.lists);
            lists.queue_of(returns).jobs.append(jobs);
            lists.has_work = true;
            mem::take(&mut lists.asleep)
        };
        if asleep {
            self.shared.work.notify_one();
        }
    }
}

impl Drop for WriteThread {
    fn drop(&mut self) {
        lock(&self.shared.lists).ended = true;
        self.shared.work.notify_one();
    }
}

impl Lists {
    fn queue_of(&mut self, returns: &Arc<Returns>) -> &mut LaneQueue {
        let is_ours = |queue: &LaneQueue| {
            queue.returns.as_ref().is_some_and(|other| Arc::ptr_eq(other, returns))
        };
        let place = self.queued.iter().position(is_ours);
        let place = place.or_else(|| self.queued.iter().position(|queue| queue.returns.is_none()));
        let place = place.unwrap_or_else(|| {
            self.queued.push(LaneQueue { returns: None, jobs: Vec::new() });
            self.queued.len() - 1
        });
        let queue = &mut self.queued[place];
        if queue.returns.is_none() {
            queue.returns = Some(Arc::clone(returns));
        }
        queue
    }
}

impl Shared {
    /// Swaps the empty `queues` for what is queued; sleeps until something is. False at the end.
    fn next(&self, queues: &mut Vec<LaneQueue>) -> bool {
        let mut lists = lock(&self.lists);
        while !lists.has_work {
            if lists.ended {
                return false;
            }
            lists.asleep = true;
            lists = self.work.wait(lists).unwrap_or_else(PoisonError::into_inner);
        }
        lists.has_work = false;
        mem::swap(&mut lists.queued, queues);
        true
    }
}

/// A thread's life.
fn run(shared: &Shared) {
    let mut queues = Vec::new();
    let mut done = Vec::with_capacity(BATCH_WRITES);
    while shared.next(&mut queues) {
        for queue in &mut queues {
            if let Some(returns) = queue.returns.take() {
                write_all(&returns, &mut queue.jobs, &mut done);
            }
        }
    }
}

/// Does the jobs of one lane, and empties both lists.
fn write_all(returns: &Returns, jobs: &mut Vec<Job>, done: &mut Vec<Done>) {
    let mut batch_bytes = 0;
    for job in jobs.drain(..) {
        if job.dsync {
            returns.give_back(done);
        }
        let result = job.run();
        done.push(Done { user_data: job.user_data, result });
        batch_bytes += u64::from(result.unwrap_or(0));
        if job.dsync || done.len() >= BATCH_WRITES || batch_bytes >= BATCH_BYTES {
            returns.give_back(done);
            batch_bytes = 0;
        }
    }
    returns.give_back(done);
}

/// A file's thread, kept by everybody who has the file open.
pub(super) struct FileThread {
    pub(super) thread: Arc<WriteThread>,
}

/// All files open in this process whose writes go to threads.
static FILES: Mutex<Vec<(FileKey, Weak<FileThread>)>> = Mutex::new(Vec::new());

/// The thread of a file: the one it has, or that with the fewest files.
pub(super) fn thread_of(key: FileKey) -> Arc<FileThread> {
    let mut files = lock(&FILES);
    files.retain(|(_, file)| file.strong_count() > 0);
    let mut loads: Vec<(Arc<WriteThread>, usize)> = Vec::new();
    for (other, file) in &*files {
        let Some(file) = file.upgrade() else { continue };
        if *other == key {
            return file;
        }
        match loads.iter_mut().find(|(thread, _)| Arc::ptr_eq(thread, &file.thread)) {
            Some((_, load)) => *load += 1,
            None => loads.push((Arc::clone(&file.thread), 1)),
        }
    }
    let thread = if loads.len() < threads_max() {
        None
    } else {
        loads.into_iter().min_by_key(|(_, load)| *load).map(|(thread, _)| thread)
    };
    let thread = thread.unwrap_or_else(WriteThread::new);
    let file = Arc::new(FileThread { thread });
    files.push((key, Arc::downgrade(&file)));
    file
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic cannot leave a list half changed: each is changed by one call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{thread_of, threads_max};
    use crate::handles::FileKey;
    use std::sync::Arc;

    fn key(inode: u64) -> FileKey {
        // No file system has this number, so no other test of this process has the file.
        FileKey { device: u64::MAX, inode }
    }

    #[test]
    fn a_file_has_one_thread_and_threads_share_the_files() {
        let first = thread_of(key(1));
        assert!(Arc::ptr_eq(&first, &thread_of(key(1))), "one file, one thread");
        let files: Vec<_> = (2..100).map(|inode| thread_of(key(inode))).collect();
        let mut threads: Vec<_> = files.iter().map(|file| Arc::as_ptr(&file.thread)).collect();
        threads.sort();
        threads.dedup();
        assert!(threads.len() <= threads_max(), "{} threads", threads.len());
        drop(first);
        let again = thread_of(key(50));
        assert!(Arc::ptr_eq(&again, &files[48]), "a file keeps its thread while it is open");
    }
}
