//! The portable driver, for where io_uring is refused: epoll, and threads for files.
//!
//! Same contract, same tests. Sockets and pipes are tried at once and wait for epoll if they have
//! to (`stream.rs`, `poll.rs`); files go to a small pool of threads (`pool.rs`, `storage.rs`),
//! whose results come back in batches and ring the same doorbell as a wake.
//!
//! Rules. The lane's thread never blocks outside `wait`. Nothing polls: without work the lane
//! sleeps in epoll and the file threads on their condition variable. An operation's memory is
//! owned by its queue or by the thread that runs it, so nothing can outlive it.
//!
//! The tricky case is closing. Waiting receives and accepts end at once; waiting sends go on, and
//! the descriptor with them; file operations hold the descriptor themselves, so its number cannot
//! be used again before they are through.

mod poll;
mod pool;
mod storage;
mod stream;

use crate::clock;
use crate::error::DriverError;
use crate::handles::{
    FileClass, HandleTable, raw_of, ring, set_nonblocking, shutdown_both, take_over,
};
use crate::shape::{OpKind, Shape, split};
use crate::sockets::begin_connect;
use crate::vectors::Vectors;
use crate::wake::EventWake;
use poll::{DOORBELL, Poller};
use pool::{Done, Job, Pool};
use std::collections::VecDeque;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use stream::{PortableFile, StreamOp};
use udm_lane::{
    Completion, Driver, DriverOp, Errno, Handle, OpToken, Payload, PeerAddress, RawHandle, Wake,
};
use udm_types::Nanos;

/// How long a dropped driver waits for file operations. Long enough for any healthy disk; a
/// daemon that ends must not hang on a dead one.
const DROP_WAIT_MS: u64 = 2_000;

/// A lane's epoll instance and file threads.
pub(crate) struct PortableDriver {
    poller: Poller,
    pool: Pool,
    files: HandleTable<PortableFile>,
    /// File operations for which the pool has no room yet. Bounded by what the lane has in
    /// flight, which the fronts bound.
    waiting: VecDeque<Job>,
    /// Completions for the next `wait`.
    ready: Vec<Completion>,
    /// Reused by every turn.
    done: Vec<Done>,
    vectors: Vectors,
    wake: Arc<EventWake>,
}

impl PortableDriver {
    /// Makes the driver of the calling thread.
    pub(crate) fn open() -> Result<PortableDriver, DriverError> {
        let wake = EventWake::new().map_err(|errno| DriverError::refused("eventfd", errno))?;
        let poller = Poller::new().map_err(|errno| DriverError::refused("epoll", errno))?;
        poller
            .add(wake.doorbell(), DOORBELL)
            .map_err(|errno| DriverError::refused("epoll", errno))?;
        let pool = Pool::new(Arc::clone(&wake))
            .map_err(|errno| DriverError::refused("starting a thread", errno))?;
        Ok(PortableDriver {
            poller,
            pool,
            files: HandleTable::new(),
            waiting: VecDeque::new(),
            ready: Vec::new(),
            done: Vec::new(),
            vectors: Vectors::new(),
            wake,
        })
    }

    fn refuse(&mut self, token: OpToken, payload: Payload, errno: Errno) {
        self.ready.push(Completion { token, result: Err(errno), payload, more: false });
    }

    /// Starts waiting file operations and appends everything that has completed.
    fn collect(&mut self, completions: &mut Vec<Completion>) {
        self.pool.take(&mut self.done);
        self.pool.give(&mut self.waiting);
        completions.append(&mut self.ready);
        completions.extend(self.done.drain(..).map(|Done { token, result, payload }| Completion {
            token,
            result,
            payload,
            more: false,
        }));
    }

    /// Asks epoll, and works off the descriptors it reports.
    fn poll(&mut self, span_ns: Option<u64>) {
        let PortableDriver { poller, files, vectors, ready, .. } = self;
        let mut emptied = Vec::new();
        poller.wait(span_ns, |event| {
            // The doorbell has no handle, and a handle may have been closed in this very turn.
            let Ok(number) = u32::try_from(event.key) else { return };
            let handle = Handle(number);
            let Some(file) = files.get_mut(handle) else { return };
            if event.inbound {
                file.work_inbound(vectors, ready);
            }
            if event.outbound {
                file.work_outbound(vectors, ready);
            }
            if file.closing && file.outbound.is_empty() {
                emptied.push(handle);
            }
        });
        for handle in emptied {
            self.release(handle);
        }
    }

    fn release(&mut self, handle: Handle) {
        if let Some(file) = self.files.remove(handle) {
            self.poller.remove(raw_of(&file.fd));
        }
    }
}

impl Driver for PortableDriver {
    fn name(&self) -> &'static str {
        "portable"
    }

    fn register(&mut self, raw: RawHandle) -> Result<Handle, Errno> {
        let (fd, class) = take_over(raw)?;
        if class != FileClass::Storage {
            set_nonblocking(&fd, true)?;
        }
        let number = raw_of(&fd);
        let handle = self.files.insert(PortableFile::new(fd, class))?;
        if class != FileClass::Storage
            && let Err(errno) = self.poller.add(number, u64::from(handle.0))
        {
            self.files.remove(handle);
            return Err(errno);
        }
        Ok(handle)
    }

    fn connect(&mut self, peer: &PeerAddress) -> Result<Handle, Errno> {
        let socket = begin_connect(peer)?;
        self.register(RawHandle(socket.into_raw_fd()))
    }

    fn close(&mut self, handle: Handle) {
        let Some(file) = self.files.get_mut(handle) else { return };
        let inbound = |op: &StreamOp| !matches!(op.shape, Shape::Send | Shape::Write { .. });
        file.cancel(inbound, &mut self.ready);
        file.closing = true;
        if file.outbound.is_empty() {
            self.release(handle);
        }
    }

    fn shutdown(&mut self, handle: Handle) {
        let Some(file) = self.files.get_mut(handle) else { return };
        shutdown_both(&file.fd);
        // A unix socket that is shut down tells a waiting accept nothing (the kernel answers "try
        // again" for ever), so accepts are ended by hand.
        file.cancel(|op| matches!(op.shape, Shape::Accept), &mut self.ready);
        file.work_inbound(&mut self.vectors, &mut self.ready);
        file.work_outbound(&mut self.vectors, &mut self.ready);
    }

    fn submit(&mut self, token: OpToken, op: DriverOp) {
        let (handle, shape, payload) = split(op);
        let file = match self.files.get_mut(handle) {
            Some(file) if !file.closing => file,
            _ => return self.refuse(token, payload, Errno(libc::EBADF)),
        };
        if let Err(errno) = shape.check() {
            return self.refuse(token, payload, errno);
        }
        let op = StreamOp { token, shape, payload };
        let (vectors, ready) = (&mut self.vectors, &mut self.ready);
        match shape.kind(file.class) {
            OpKind::Recv | OpKind::Take | OpKind::Accept | OpKind::Watch => {
                file.inbound.push_back(op);
                if file.inbound.len() == 1 {
                    file.work_inbound(vectors, ready);
                }
            }
            OpKind::Send => {
                file.outbound.push_back(op);
                if file.outbound.len() == 1 {
                    file.work_outbound(vectors, ready);
                }
            }
            // Only a ring can carry them.
            OpKind::Command | OpKind::Lend | OpKind::Exchange => {
                self.refuse(token, op.payload, Errno(libc::ENOSYS))
            }
            OpKind::Storage => {
                let file = Arc::clone(&file.fd);
                self.waiting.push_back(Job { token, file, shape, payload: op.payload });
            }
        }
    }

    fn signal(&mut self, handle: Handle) {
        if let Some(file) = self.files.get_mut(handle).filter(|file| !file.closing) {
            ring(&file.fd);
        }
    }

    fn cancel(&mut self, token: OpToken) {
        while let Some(index) = self.waiting.iter().position(|job| job.token == token) {
            if let Some(job) = self.waiting.remove(index) {
                self.refuse(job.token, job.payload, Errno(libc::ECANCELED));
            }
        }
        for file in self.files.iter_mut() {
            file.cancel(|op| op.token == token, &mut self.ready);
        }
    }

    fn wait(&mut self, deadline: Option<Nanos>, completions: &mut Vec<Completion>) {
        let before = completions.len();
        loop {
            self.collect(completions);
            let left = deadline.map(|deadline| match deadline {
                Nanos::ZERO => 0,
                later => later.since(clock::now()).0,
            });
            let passed = left == Some(0);
            let block = !passed && completions.len() == before && self.wake.prepare_to_block();
            self.poll(if block { left } else { Some(0) });
            let woken = self.wake.settle();
            self.collect(completions);
            if woken || passed || completions.len() > before {
                return;
            }
        }
    }

    fn now(&mut self) -> Nanos {
        clock::now()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.wake) as Arc<dyn Wake>
    }
}

impl Drop for PortableDriver {
    fn drop(&mut self) {
        // As the io_uring driver: what waits for others ends here, storage operations finish.
        let deadline = clock::now() + Nanos::from_millis(DROP_WAIT_MS);
        let mut ended = Vec::new();
        loop {
            self.collect(&mut ended);
            ended.drain(..).for_each(close_accepted);
            let left = deadline.since(clock::now());
            if left == Nanos::ZERO || (self.waiting.is_empty() && self.pool.is_empty()) {
                break;
            }
            let block = self.wake.prepare_to_block();
            self.poll(Some(if block { left.0 } else { 0 }));
            self.wake.settle();
        }
    }
}

/// Closes a connection that was accepted and that nobody will take any more.
fn close_accepted(completion: Completion) {
    if let (true, Ok(raw)) = (completion.more, completion.result) {
        // SAFETY: `more` is set for accepts only, whose result is a descriptor made for this
        // driver; the completion goes no further, so nobody else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(raw as i32) });
    }
}
