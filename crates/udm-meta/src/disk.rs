//! The port: how code with metadata of its own reaches the device below, wherever it runs.
//!
//! A [`Disk`] is a handle that the tasks of one thread share. An operation is a future; starting it
//! only queues a [`DiskOp`] for the *host*, which does it and answers with [`Disk::complete`].
//! There are three kinds of host: a target on a lane (an operation becomes a bio), a tool (a file),
//! and the crash enumerator (a simulated disk). So the code that is crashed a million times is the
//! code that runs in production, to the letter.
//!
//! Rules. Nothing here retries, splits or merges: limits are the host's business. Operations under
//! way at one time have no order among themselves; who needs one awaits. A write that completed is
//! not durable before a flush that was *started* after its completion has completed.
//!
//! The tricky case is a future dropped before its operation ended (a task that was aborted): the
//! operation cannot be recalled and may still reach the disk. Its place is kept until the host has
//! answered, [`Disk::in_flight`] counts it, and the answer is thrown away. An operation that no
//! host has taken yet is taken back, as if it had never been.

use crate::buffers::Buffers;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use udm_lane::{Buf, Payload};
use udm_types::Status;

/// What an operation asks of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskOpKind {
    /// Fill the payload.
    Read,
    /// Write the payload. With `fua` it is durable when it completes.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Make durable every write completed before this was started.
    Flush,
    /// The range holds nothing of worth any more; what it reads as is undefined.
    Discard,
}

/// An operation, for the host to do.
#[derive(Clone, Debug)]
pub struct DiskOp {
    /// For [`Disk::complete`].
    pub token: DiskToken,
    /// What to do.
    pub kind: DiskOpKind,
    /// Where it begins; 0 for a flush.
    pub offset_bytes: u64,
    /// How long it is; 0 for a flush.
    pub len_bytes: u64,
    /// The data, as long as the range; empty for flushes and discards.
    pub payload: Payload,
}

/// Names an operation under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskToken(u32);

impl DiskToken {
    /// As a number, for a host that has to keep it in a word.
    pub fn to_u32(self) -> u32 {
        self.0
    }

    /// The token that [`DiskToken::to_u32`] made a number of.
    pub fn from_u32(number: u32) -> DiskToken {
        DiskToken(number)
    }
}

/// Why an operation failed, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskError {
    /// The host's answer.
    pub status: Status,
    /// What was asked.
    pub kind: DiskOpKind,
    /// Where.
    pub offset_bytes: u64,
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            DiskOpKind::Read => "read",
            DiskOpKind::Write { .. } => "write",
            DiskOpKind::Flush => "flush",
            DiskOpKind::Discard => "discard",
        };
        write!(f, "{what} at byte {}: {:?}", self.offset_bytes, self.status)
    }
}

/// The handle; clones speak to the same disk.
#[derive(Clone)]
pub struct Disk {
    state: Rc<State>,
}

struct State {
    len_bytes: Cell<u64>,
    in_flight: Cell<usize>,
    wishes: RefCell<VecDeque<DiskOp>>,
    places: RefCell<Vec<Place>>,
    free: RefCell<Vec<u32>>,
    buffers: RefCell<Buffers>,
}

#[derive(Default)]
enum Place {
    /// Nobody uses it.
    #[default]
    Free,
    /// Under way; whom to wake.
    Waiting(Option<Waker>),
    /// Answered, not seen yet.
    Answered(Status, Payload),
    /// Under way, and nobody waits any more.
    Abandoned,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("len_bytes", &self.len_bytes())
            .field("in_flight", &self.in_flight())
            .finish()
    }
}

impl Disk {
    /// A disk of `len_bytes` with nothing under way.
    pub fn new(len_bytes: u64) -> Disk {
        Disk {
            state: Rc::new(State {
                len_bytes: Cell::new(len_bytes),
                in_flight: Cell::new(0),
                wishes: RefCell::default(),
                places: RefCell::default(),
                free: RefCell::default(),
                buffers: RefCell::default(),
            }),
        }
    }

    /// Its size now.
    pub fn len_bytes(&self) -> u64 {
        self.state.len_bytes.get()
    }

    /// The host: the disk has another size.
    pub fn set_len_bytes(&self, len_bytes: u64) {
        self.state.len_bytes.set(len_bytes);
    }

    /// Memory for an operation, of one segment, with anything in it; see [`Disk::give_back`].
    pub fn buffer(&self, len_bytes: usize) -> Payload {
        self.state.buffers.borrow_mut().take(len_bytes)
    }

    /// Takes memory back, to be used again unless somebody else has a handle on it.
    pub fn give_back(&self, payload: Payload) {
        if let Some(buf) = payload.into_first_buf() {
            self.state.buffers.borrow_mut().give_back(buf);
        }
    }

    /// Lets go of memory that is kept to be used again.
    pub fn forget_buffers(&self) {
        self.state.buffers.borrow_mut().clear();
    }

    /// Bytes that are kept to be used again.
    pub fn kept_bytes(&self) -> usize {
        self.state.buffers.borrow().kept_bytes()
    }

    /// Reads into a new buffer.
    pub fn read(&self, offset_bytes: u64, len_bytes: usize) -> DiskFuture {
        self.read_into(offset_bytes, Payload::from_buf(Buf::alloc(len_bytes)))
    }

    /// Reads into all of `payload`, which comes back.
    pub fn read_into(&self, offset_bytes: u64, payload: Payload) -> DiskFuture {
        self.start(DiskOpKind::Read, offset_bytes, payload.len_bytes(), payload)
    }

    /// Writes all of `payload`.
    pub fn write(&self, offset_bytes: u64, payload: Payload) -> DiskFuture {
        let kind = DiskOpKind::Write { fua: false };
        self.start(kind, offset_bytes, payload.len_bytes(), payload)
    }

    /// Writes all of `payload`; durable at the end.
    pub fn write_fua(&self, offset_bytes: u64, payload: Payload) -> DiskFuture {
        let kind = DiskOpKind::Write { fua: true };
        self.start(kind, offset_bytes, payload.len_bytes(), payload)
    }

    /// Makes every completed write durable.
    pub fn flush(&self) -> DiskFuture {
        self.start(DiskOpKind::Flush, 0, 0, Payload::empty())
    }

    /// Says that a range is worth nothing any more.
    pub fn discard(&self, offset_bytes: u64, len_bytes: u64) -> DiskFuture {
        self.start(DiskOpKind::Discard, offset_bytes, len_bytes, Payload::empty())
    }

    fn start(
        &self,
        kind: DiskOpKind,
        offset_bytes: u64,
        len_bytes: u64,
        payload: Payload,
    ) -> DiskFuture {
        let mut places = self.state.places.borrow_mut();
        let place = self.state.free.borrow_mut().pop().unwrap_or_else(|| {
            places.push(Place::Free);
            u32::try_from(places.len() - 1).expect("invariant: operations are bounded by memory")
        });
        places[place as usize] = Place::Waiting(None);
        let token = DiskToken(place);
        let op = DiskOp { token, kind, offset_bytes, len_bytes, payload };
        self.state.wishes.borrow_mut().push_back(op);
        self.state.in_flight.set(self.state.in_flight.get() + 1);
        DiskFuture { disk: self.clone(), token, kind, offset_bytes, is_ended: false }
    }

    /// The host: the next operation to do, in the order they were started.
    pub fn next_op(&self) -> Option<DiskOp> {
        self.state.wishes.borrow_mut().pop_front()
    }

    /// The host: an operation has ended. `payload` is what came with it (the data of a read).
    pub fn complete(&self, token: DiskToken, status: Status, payload: Payload) {
        let mut places = self.state.places.borrow_mut();
        let Some(place) = places.get_mut(token.0 as usize) else { return };
        match core::mem::take(place) {
            Place::Waiting(waker) => {
                *place = Place::Answered(status, payload);
                drop(places);
                self.state.in_flight.set(self.state.in_flight.get() - 1);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Place::Abandoned => {
                self.state.in_flight.set(self.state.in_flight.get() - 1);
                self.state.free.borrow_mut().push(token.0);
            }
            kept @ (Place::Free | Place::Answered(..)) => {
                debug_assert!(false, "an operation is answered once");
                *place = kept;
            }
        }
    }

    /// Operations started and not answered, also of tasks that are gone.
    pub fn in_flight(&self) -> usize {
        self.state.in_flight.get()
    }
}

/// An operation under way: `Ok` with the payload, or why not.
#[must_use = "an operation nobody awaits is taken back"]
#[derive(Debug)]
pub struct DiskFuture {
    disk: Disk,
    token: DiskToken,
    kind: DiskOpKind,
    offset_bytes: u64,
    is_ended: bool,
}

impl Future for DiskFuture {
    type Output = Result<Payload, DiskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Polled again after its end: stays pending, as the contract of futures allows.
        if self.is_ended {
            return Poll::Pending;
        }
        let state = Rc::clone(&self.disk.state);
        let mut places = state.places.borrow_mut();
        let place = &mut places[self.token.0 as usize];
        match core::mem::take(place) {
            Place::Answered(status, payload) => {
                self.is_ended = true;
                state.free.borrow_mut().push(self.token.0);
                let (kind, offset_bytes) = (self.kind, self.offset_bytes);
                Poll::Ready(match status.is_ok() {
                    true => Ok(payload),
                    false => Err(DiskError { status, kind, offset_bytes }),
                })
            }
            Place::Waiting(_) => {
                *place = Place::Waiting(Some(cx.waker().clone()));
                Poll::Pending
            }
            kept @ (Place::Free | Place::Abandoned) => {
                *place = kept;
                Poll::Pending
            }
        }
    }
}

impl Drop for DiskFuture {
    fn drop(&mut self) {
        if self.is_ended {
            return;
        }
        let state = &self.disk.state;
        let place = &mut state.places.borrow_mut()[self.token.0 as usize];
        match core::mem::take(place) {
            Place::Waiting(_) => {
                let mut wishes = state.wishes.borrow_mut();
                let untaken = wishes.iter().position(|op| op.token == self.token);
                match untaken.and_then(|at| wishes.remove(at)) {
                    Some(_never_begun) => {
                        state.in_flight.set(state.in_flight.get() - 1);
                        state.free.borrow_mut().push(self.token.0);
                    }
                    None => *place = Place::Abandoned,
                }
            }
            Place::Answered(..) => state.free.borrow_mut().push(self.token.0),
            kept @ (Place::Free | Place::Abandoned) => *place = kept,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Disk, DiskOpKind};
    use alloc::rc::Rc;
    use alloc::sync::Arc;
    use core::cell::RefCell;
    use udm_lane::{Buf, Executor, NoWake, Payload};
    use udm_types::Status;

    fn executor() -> Executor {
        Executor::new(Arc::new(NoWake))
    }

    #[test]
    fn operations_reach_the_host_in_order_and_their_ends_reach_the_task() {
        let (disk, mut tasks) = (Disk::new(1 << 20), executor());
        let seen = Rc::new(RefCell::new(None));
        let (handle, told) = (disk.clone(), Rc::clone(&seen));
        tasks.spawn(async move {
            let payload = handle.read(4096, 512).await.expect("read");
            let written = handle.write_fua(0, payload).await;
            *told.borrow_mut() = Some(written.map(|_| ()));
        });
        tasks.run_ready();
        let read = disk.next_op().expect("asked for");
        assert_eq!((read.kind, read.offset_bytes, read.len_bytes), (DiskOpKind::Read, 4096, 512));
        assert!(disk.next_op().is_none() && disk.in_flight() == 1);
        disk.complete(read.token, Status::Ok, read.payload);
        tasks.run_ready();
        let write = disk.next_op().expect("asked for");
        assert_eq!(write.kind, DiskOpKind::Write { fua: true });
        disk.complete(write.token, Status::IoErr, write.payload);
        tasks.run_ready();
        let error = seen.borrow_mut().take().expect("ended").expect_err("failed");
        assert_eq!((error.status, error.offset_bytes), (Status::IoErr, 0));
        assert_eq!((disk.in_flight(), tasks.len()), (0, 0));
    }

    #[test]
    fn an_aborted_tasks_operation_keeps_its_place_until_the_host_has_answered() {
        let (disk, mut tasks) = (Disk::new(1 << 20), executor());
        let handle = disk.clone();
        let task = tasks.spawn(async move {
            let _end = handle.flush().await;
        });
        tasks.run_ready();
        let flush = disk.next_op().expect("asked for");
        tasks.abort(task);
        assert_eq!(disk.in_flight(), 1);
        let other = disk.write(0, Payload::from_buf(Buf::alloc(512)));
        assert_ne!(disk.next_op().expect("asked for").token, flush.token);
        disk.complete(flush.token, Status::Ok, Payload::empty());
        assert_eq!(disk.in_flight(), 1);
        drop(other);
        assert_eq!(disk.in_flight(), 1, "its host has it");
    }

    #[test]
    fn what_no_host_has_taken_is_taken_back() {
        let disk = Disk::new(1 << 20);
        drop(disk.discard(0, 4096));
        assert_eq!(disk.in_flight(), 0);
        assert!(disk.next_op().is_none());
    }
}
