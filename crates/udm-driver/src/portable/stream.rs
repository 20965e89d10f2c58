//! Sockets and pipes without a ring: try, and if it would block, wait for epoll and try again.
//!
//! Each descriptor has two queues, one for what waits for bytes to come (receive, read, accept),
//! one for what waits for room (send, write). The front of a queue is tried when it is submitted
//! and whenever epoll reports the descriptor; epoll is edge-triggered, so a queue is worked off
//! until it is empty or the kernel says "would block". An idle descriptor costs nothing.
//!
//! Nothing here blocks: receives and sends say so with every call, everything else runs on
//! descriptors that were set non-blocking when they were registered.

use crate::calls::retry;
use crate::handles::{FileClass, raw_of};
use crate::shape::Shape;
use crate::vectors::Vectors;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use udm_lane::{Completion, Errno, OpResult, OpToken, Payload};

/// A registered descriptor.
pub(crate) struct PortableFile {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) class: FileClass,
    /// Closed by the lane; goes when `outbound` is empty.
    pub(crate) closing: bool,
    pub(crate) inbound: VecDeque<StreamOp>,
    pub(crate) outbound: VecDeque<StreamOp>,
}

/// An operation that waits for its descriptor.
pub(crate) struct StreamOp {
    pub(crate) token: OpToken,
    pub(crate) shape: Shape,
    pub(crate) payload: Payload,
}

impl StreamOp {
    /// The operation's end.
    pub(crate) fn ended(self, result: OpResult) -> Completion {
        Completion { token: self.token, result, payload: self.payload, more: false }
    }
}

impl PortableFile {
    pub(crate) fn new(fd: OwnedFd, class: FileClass) -> PortableFile {
        let (inbound, outbound) = (VecDeque::new(), VecDeque::new());
        PortableFile { fd: Arc::new(fd), class, closing: false, inbound, outbound }
    }

    /// Works off what waits for bytes or connections.
    pub(crate) fn work_inbound(&mut self, vectors: &mut Vectors, ready: &mut Vec<Completion>) {
        while let Some(op) = self.inbound.front() {
            let result = attempt(&self.fd, self.class, op, vectors);
            match (op.shape, result) {
                (_, Err(Errno(libc::EAGAIN))) => return,
                (Shape::Accept, Ok(_)) => ready.push(Completion {
                    token: op.token,
                    result,
                    payload: Payload::empty(),
                    more: true,
                }),
                // The descriptor is reported once for a ring, and it stays readable.
                (Shape::Watch, _) => {
                    let (token, payload) = (op.token, Payload::empty());
                    ready.push(Completion { token, result: Ok(0), payload, more: true });
                    return;
                }
                // The client went before it was accepted.
                (Shape::Accept, Err(Errno(libc::ECONNABORTED))) => {}
                _ => ready.extend(self.inbound.pop_front().map(|op| op.ended(result))),
            }
        }
    }

    /// Works off what waits for room.
    pub(crate) fn work_outbound(&mut self, vectors: &mut Vectors, ready: &mut Vec<Completion>) {
        while let Some(op) = self.outbound.front() {
            let result = attempt(&self.fd, self.class, op, vectors);
            if result == Err(Errno(libc::EAGAIN)) {
                return;
            }
            ready.extend(self.outbound.pop_front().map(|op| op.ended(result)));
        }
    }

    /// Ends waiting operations that `matches`, unsuccessfully.
    pub(crate) fn cancel(
        &mut self,
        mut matches: impl FnMut(&StreamOp) -> bool,
        ready: &mut Vec<Completion>,
    ) {
        for queue in [&mut self.inbound, &mut self.outbound] {
            while let Some(index) = queue.iter().position(&mut matches) {
                let cancelled = Err(Errno(libc::ECANCELED));
                ready.extend(queue.remove(index).map(|op| op.ended(cancelled)));
            }
        }
    }
}

/// One try. `EAGAIN` if the operation has to wait.
fn attempt(fd: &OwnedFd, class: FileClass, op: &StreamOp, vectors: &mut Vectors) -> OpResult {
    let raw = raw_of(fd);
    match op.shape {
        Shape::Recv => {
            let segment = op.payload.segments().next();
            let (start, len) = segment.map_or((std::ptr::null_mut(), 0), |segment| {
                (segment.as_ptr(), segment.len_bytes as usize)
            });
            // SAFETY: the address range is the segment's, which the operation owns.
            retry(|| unsafe { libc::recv(raw, start.cast(), len, libc::MSG_DONTWAIT) })
        }
        Shape::Send => send(fd, &op.payload, vectors),
        Shape::Write { .. } if class == FileClass::Socket => send(fd, &op.payload, vectors),
        Shape::Accept => {
            let (address, len) = (std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: null means that the peer's address is not wanted.
            retry(|| unsafe { libc::accept4(raw, address, len, libc::SOCK_CLOEXEC) } as isize)
        }
        Shape::Read { .. } => {
            let list = vectors.fill(&op.payload);
            let (start, count) = (list.as_ptr(), list.len() as i32);
            // SAFETY: the list points into the payload, which the operation owns.
            retry(|| unsafe { libc::readv(raw, start, count) })
        }
        Shape::Write { .. } => {
            let list = vectors.fill(&op.payload);
            let (start, count) = (list.as_ptr(), list.len() as i32);
            // SAFETY: as for the read.
            retry(|| unsafe { libc::writev(raw, start, count) })
        }
        // There is nothing to do but to tell.
        Shape::Watch => Ok(0),
        // The driver hands these to the pool.
        Shape::Sync
        | Shape::Fallocate { .. }
        | Shape::Command { .. }
        | Shape::Lend { .. }
        | Shape::Exchange { .. } => Err(Errno(libc::EINVAL)),
    }
}

fn send(fd: &OwnedFd, payload: &Payload, vectors: &mut Vectors) -> OpResult {
    vectors.fill(payload);
    let message = vectors.message();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message points at the list just filled, and the list into the payload.
    retry(|| unsafe { libc::sendmsg(raw_of(fd), message, flags) })
}
