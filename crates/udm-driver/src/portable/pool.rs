//! A few threads for file operations, which can block and have no readiness to wait for.
//!
//! Each portable driver has its own, so lanes share nothing here either. Jobs go in a batch a
//! turn, results come back in a batch and ring the lane's doorbell. Threads are started when they
//! are first needed and sleep on a condition variable while there is nothing to do.
//!
//! Rules. A job owns its descriptor and its memory; the thread that runs it holds both until the
//! call has returned, so nothing can be freed or reused under the kernel's hands, even if the
//! driver is gone by then. At most [`JOBS_MAX`] jobs are inside; the rest waits with the driver,
//! where it can still be cancelled.
//!
//! The tricky case is dropping the pool over a dead disk. The driver has given healthy disks the
//! time to finish by then, so the pool does not wait: jobs not begun are dropped, and the threads
//! are let go with what they hold. Each ends after its call, whenever that returns.

use super::storage;
use crate::shape::Shape;
use crate::vectors::Vectors;
use crate::wake::{COMPLETED, EventWake};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use udm_lane::{Errno, OpResult, OpToken, Payload};

/// Threads of a lane's pool: the depth a disk sees. Enough to keep a disk busy beside the page
/// cache, few enough that eight lanes stay below a hundred threads.
const THREADS_MAX: usize = 8;

/// Jobs inside the pool: a short queue a thread, so that none runs dry between two turns of the
/// lane.
const JOBS_MAX: usize = 8 * THREADS_MAX;

/// One file operation.
pub(crate) struct Job {
    pub(crate) token: OpToken,
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) shape: Shape,
    pub(crate) payload: Payload,
}

/// A finished one.
pub(crate) struct Done {
    pub(crate) token: OpToken,
    pub(crate) result: OpResult,
    pub(crate) payload: Payload,
}

/// The pool as the driver holds it.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    /// Jobs given and not yet taken back.
    inside: usize,
}

struct Shared {
    state: Mutex<State>,
    /// For threads: a job has come, or the end.
    work: Condvar,
    wake: Arc<EventWake>,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    done: Vec<Done>,
    idle: usize,
    running: usize,
    ended: bool,
}

impl Pool {
    /// A pool with its first thread, so that later there is always one to run a job.
    pub(crate) fn new(wake: Arc<EventWake>) -> Result<Pool, Errno> {
        let jobs = VecDeque::with_capacity(JOBS_MAX);
        let done = Vec::with_capacity(JOBS_MAX);
        let state = Mutex::new(State { jobs, done, ..State::default() });
        let shared = Shared { state, work: Condvar::new(), wake };
        let pool = Pool { shared: Arc::new(shared), threads: 1, inside: 0 };
        pool.start_thread()?;
        Ok(pool)
    }

    /// Takes jobs from the front of `waiting` while there is room.
    pub(crate) fn give(&mut self, waiting: &mut VecDeque<Job>) {
        let count = waiting.len().min(JOBS_MAX - self.inside);
        if count == 0 {
            return;
        }
        self.inside += count;
        let (idle, wanted) = {
            let mut state = self.shared.lock();
            state.jobs.extend(waiting.drain(..count));
            (state.idle, THREADS_MAX.min(state.running + state.jobs.len()))
        };
        for _ in 0..idle.min(count) {
            self.shared.work.notify_one();
        }
        // A thread that cannot be started now is tried again with the next jobs; the threads
        // there are will do it all, more slowly.
        while self.threads < wanted && self.start_thread().is_ok() {
            self.threads += 1;
        }
    }

    /// Moves what has finished into `done`.
    pub(crate) fn take(&mut self, done: &mut Vec<Done>) {
        if self.inside == 0 {
            return;
        }
        let before = done.len();
        done.append(&mut self.shared.lock().done);
        self.inside -= done.len() - before;
    }

    /// Nothing is inside, running or finished.
    pub(crate) fn is_empty(&self) -> bool {
        self.inside == 0
    }

    fn start_thread(&self) -> Result<(), Errno> {
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new()
            .name("udm-file".to_owned())
            .spawn(move || run(&shared))
            .map(drop)
            .map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EAGAIN)))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave the lists half changed: each is changed by one call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's life: jobs, one after the other.
fn run(shared: &Shared) {
    let mut vectors = Vectors::new();
    let mut state = shared.lock();
    loop {
        if state.ended {
            return;
        }
        let Some(job) = state.jobs.pop_front() else {
            state.idle += 1;
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            continue;
        };
        state.running += 1;
        drop(state);
        let done = finish(job, &mut vectors);
        state = shared.lock();
        state.running -= 1;
        if !state.ended {
            state.done.push(done);
            shared.wake.signal(COMPLETED);
        }
    }
}

fn finish(job: Job, vectors: &mut Vectors) -> Done {
    let Job { token, file, shape, payload } = job;
    let result = storage::run(&file, shape, &payload, vectors);
    Done { token, result, payload }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        state.jobs.clear();
        state.done.clear();
        self.shared.work.notify_all();
    }
}
