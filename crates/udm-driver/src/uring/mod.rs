//! The io_uring driver: one ring a lane, one system call a turn.
//!
//! `submit` only writes an entry into the shared queue. `wait` starts everything that was
//! submitted, waits if there is nothing to report, and collects completions, with a single
//! `io_uring_enter`; with completions at hand and nothing to start it needs none at all. Where
//! the queue is full, entries wait in a backlog and go in the same `wait`, a queue at a time.
//!
//! Rules. The ring is used by the thread that made it only (the type is not `Send`). An
//! operation's memory belongs to its slot until the kernel's last word on it, whatever happened
//! to the operation meanwhile (cancel, close, a failed `io_uring_enter`, the driver's own drop).
//! Nothing polls: an idle lane sleeps in the kernel with one poll armed, on the doorbell.
//! Writes into the page cache are the exception to the ring: see `writer.rs`.
//!
//! The tricky case is closing a file that still has operations. The entries in the queue name it
//! by its place in the ring's file table, so that place is kept until the last of them has
//! completed; receives and accepts are cancelled, since they might wait for ever; storage
//! operations and sends run to their end.

mod entry;
mod messages;
mod setup;
mod slots;
mod teardown;
mod write_thread;
mod writer;

use crate::calls::retry;
use crate::clock;
use crate::error::DriverError;
use crate::handles::{
    FileClass, HandleTable, cached_file, index_of, raw_of, ring, set_nonblocking, shutdown_both,
    take_over,
};
use crate::shape::{OpKind, Shape, split};
use crate::sockets::begin_connect;
use crate::vectors::Vectors;
use crate::wake::EventWake;
use entry::Target;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use slots::{POLL_BIT, Slots, USER_CANCEL, USER_WAKE};
use std::collections::VecDeque;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;
use udm_lane::{
    Completion, CopyWay, Driver, DriverOp, Errno, Handle, OpResult, OpToken, Payload, PeerAddress,
    RawHandle, Wake,
};
use udm_types::Nanos;
use writer::{CachedFile, Writer};

pub(crate) use setup::{Abilities, Age};

/// Flags of `io_uring_enter`.
const ENTER_GETEVENTS: u32 = 1;

/// A ring with room for the commands of FUSE.
type Ring = IoUring<squeue::Entry128>;

/// A lane's ring.
pub(crate) struct UringDriver {
    ring: Ring,
    abilities: Abilities,
    files: HandleTable<RingFile>,
    slots: Slots,
    /// Entries that found the submission queue full, in order. Bounded by what the lane has in
    /// flight, which the fronts bound.
    backlog: VecDeque<squeue::Entry128>,
    /// Completions of operations the kernel never saw.
    refused: Vec<Completion>,
    /// Files rung since the queue was last empty. Each counts as an operation of its file until
    /// the kernel has taken the entry, so that its place in the file table stays.
    signalled: Vec<Handle>,
    writer: Writer,
    /// How often the ring was entered.
    enters: u64,
    /// The address list of copies that are made at once.
    copies: Vectors,
    wake: Arc<EventWake>,
}

/// A descriptor of the ring.
struct RingFile {
    fd: OwnedFd,
    target: Target,
    class: FileClass,
    /// Set if writes go to the page cache, so to a thread.
    cached: Option<CachedFile>,
    /// Operations between `submit` and their last completion.
    in_flight: u32,
    /// Reads that wait for a message, if it is a queue of such.
    takes: messages::Takes,
    /// Memory that a device puts its messages into, until nothing is in flight on the closed file.
    lent: Vec<Payload>,
    /// Closed by the lane; goes when `in_flight` reaches zero.
    closing: bool,
}

impl UringDriver {
    /// Makes the ring of the calling thread.
    pub(crate) fn open(age: Age) -> Result<UringDriver, DriverError> {
        let (ring, abilities) = setup::open_ring(age)?;
        let wake = EventWake::new().map_err(|errno| DriverError::refused("eventfd", errno))?;
        let mut driver = UringDriver {
            ring,
            abilities,
            files: HandleTable::new(),
            slots: Slots::default(),
            backlog: VecDeque::new(),
            refused: Vec::new(),
            signalled: Vec::new(),
            writer: Writer::new(Arc::clone(&wake)),
            enters: 0,
            copies: Vectors::new(),
            wake,
        };
        driver.arm_doorbell();
        Ok(driver)
    }

    pub(crate) fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn arm_doorbell(&mut self) {
        let poll = opcode::PollAdd::new(types::Fd(self.wake.doorbell()), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(USER_WAKE);
        self.push(poll);
    }

    /// Queues an entry. Every address in it points into a slot (see `entry.rs`), or it has none.
    #[inline]
    fn push(&mut self, entry: impl Into<squeue::Entry128>) {
        let entry = entry.into();
        if self.backlog.is_empty() {
            let mut queue = self.ring.submission();
            // SAFETY: the memory the entry names belongs to a slot, which is freed only when the
            // operation's final completion entry has been read, or never.
            if unsafe { queue.push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    /// Moves entries from the backlog to the queue while there is room.
    fn refill(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: as in `push`.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Starts what is queued; with `block`, waits for a completion or the deadline.
    fn enter(&mut self, block: bool, deadline: Option<Nanos>) {
        let (submitter, mut queue, _) = self.ring.split();
        queue.sync();
        let started = queue.len();
        if !block && started == 0 && !queue.taskrun() && !queue.cq_overflow() {
            return;
        }
        drop(queue);
        self.enters += 1;
        let result = match (block, deadline) {
            (true, None) => submitter.submit_and_wait(1),
            (true, Some(deadline)) => {
                let left = deadline.since(clock::now()).0;
                let span = types::Timespec::new()
                    .sec(left / 1_000_000_000)
                    .nsec((left % 1_000_000_000) as u32);
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&span))
            }
            // SAFETY: no argument is passed, and the count is what the queue holds.
            (false, _) => unsafe {
                submitter.enter::<libc::sigset_t>(started as u32, 0, ENTER_GETEVENTS, None)
            },
        };
        let Err(error) = result else { return };
        match error.raw_os_error() {
            // The deadline, a signal, or a full completion queue: the caller looks at the
            // completions and comes again.
            Some(libc::ETIME | libc::EINTR | libc::EBUSY) => {}
            // No memory for the operations. They stay queued; what is in flight frees some.
            Some(libc::EAGAIN | libc::ENOMEM) => std::thread::yield_now(),
            other => panic!("invariant: a ring that worked keeps working (enter: {other:?})"),
        }
    }

    /// Appends what has completed; arms again what has to go on.
    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let mut rearm = false;
        loop {
            // Copied out one at a time: ending an operation needs the rest of the driver.
            let Some(entry) = self.ring.completion().next() else { break };
            match entry.user_data() {
                USER_WAKE => rearm |= !cqueue::more(entry.flags()),
                USER_CANCEL => {}
                // The read behind it says what came of it.
                user_data if user_data & POLL_BIT != 0 => {}
                user_data => self.complete(user_data, &entry, completions),
            }
        }
        if rearm {
            self.arm_doorbell();
        }
    }

    fn complete(
        &mut self,
        user_data: u64,
        ended: &cqueue::Entry,
        completions: &mut Vec<Completion>,
    ) {
        let Some(slot) = self.slots.get_mut(user_data) else { return };
        let result = op_result(ended.result());
        let (kind, handle) = (slot.kind, slot.handle);
        let many = matches!(kind, OpKind::Accept | OpKind::Watch);
        if many && self.goes_on(user_data, ended, result) {
            if let (Ok(_), Some(slot)) = (result, self.slots.get_mut(user_data)) {
                let token = slot.token;
                completions.push(Completion {
                    token,
                    result,
                    payload: Payload::empty(),
                    more: true,
                });
            }
            return;
        }
        if kind == OpKind::Take && self.take_goes_on(handle, user_data, result, completions) {
            return;
        }
        let Some((token, handle, mut payload)) = self.slots.remove(user_data) else { return };
        if kind == OpKind::Lend
            && let Some(file) = self.files.get_mut(handle)
        {
            file.lent.push(std::mem::take(&mut payload));
        }
        completions.push(Completion { token, result, payload, more: false });
        self.ended_on(handle);
    }

    /// True if an accept or a watch has more to come; arms it again where the kernel has stopped.
    fn goes_on(&mut self, user_data: u64, ended: &cqueue::Entry, result: OpResult) -> bool {
        if cqueue::more(ended.flags()) {
            return true;
        }
        let Some(slot) = self.slots.get_mut(user_data) else { return false };
        let passing = match result {
            Ok(_) => true,
            // The client went before it was accepted, or a signal came.
            Err(Errno(code)) => matches!(code, libc::ECONNABORTED | libc::EINTR | libc::EAGAIN),
        };
        if slot.cancelled || !passing {
            return false;
        }
        let handle = slot.handle;
        let Some(file) = self.files.get_mut(handle) else { return false };
        let multishot = self.abilities.multishot_accept;
        let shape = if slot.kind == OpKind::Watch { Shape::Watch } else { Shape::Accept };
        let again = entry::entry(shape, file.target, slot, multishot).user_data(user_data);
        self.push(again);
        true
    }

    /// Counts an operation's end; the last one of a closed file lets it go.
    #[inline]
    fn ended_on(&mut self, handle: Handle) {
        let Some(file) = self.files.get_mut(handle) else { return };
        file.in_flight -= 1;
        if file.closing && file.in_flight == 0 {
            self.release(handle);
        }
    }

    fn release(&mut self, handle: Handle) {
        let Some(file) = self.files.remove(handle) else { return };
        if file.target.fixed {
            // Cannot fail for a place inside the table; if it did, the place would be overwritten
            // by the next file that gets it.
            let _ = self.ring.submitter().register_files_update(index_of(handle), &[-1]);
        }
    }

    fn cancel_all(&mut self, matches: impl FnMut(&slots::Slot) -> bool) {
        for user_data in self.slots.find(matches) {
            let Some(slot) = self.slots.get_mut(user_data) else { continue };
            slot.cancelled = true;
            if slot.kind == OpKind::Take {
                let handle = slot.handle;
                self.cancel_take(handle, user_data);
                continue;
            }
            self.push(opcode::AsyncCancel::new(user_data).build().user_data(USER_CANCEL));
        }
    }

    /// Lets go of the files that were rung, once the kernel has all entries.
    #[inline]
    fn settle_signals(&mut self) {
        if self.signalled.is_empty()
            || !self.backlog.is_empty()
            || !self.ring.submission().is_empty()
        {
            return;
        }
        let mut signalled = std::mem::take(&mut self.signalled);
        signalled.drain(..).for_each(|handle| self.ended_on(handle));
        self.signalled = signalled;
    }

    fn refuse(&mut self, token: OpToken, payload: Payload, errno: Errno) {
        self.refused.push(Completion { token, result: Err(errno), payload, more: false });
    }
}

impl Driver for UringDriver {
    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn register(&mut self, raw: RawHandle) -> Result<Handle, Errno> {
        let (fd, class) = take_over(raw)?;
        match class {
            FileClass::Storage => {}
            // On a non-blocking descriptor the ring would report EAGAIN instead of waiting.
            FileClass::Socket | FileClass::Stream => set_nonblocking(&fd, false)?,
            // On one that may block, the ring would leave a signal to a thread.
            FileClass::Event => set_nonblocking(&fd, true)?,
            // A blocking read would stop the lane if the message it saw was called off.
            FileClass::Messages => set_nonblocking(&fd, true)?,
        }
        let number = raw_of(&fd);
        let target = Target { number, fixed: false };
        let key = if class == FileClass::Storage { cached_file(&fd) } else { None };
        let cached = key.map(|key| self.writer.assign(key));
        let takes = messages::Takes::default();
        let (lent, in_flight, closing) = (Vec::new(), 0, false);
        let file = RingFile { fd, target, class, cached, in_flight, takes, lent, closing };
        let handle = self.files.insert(file)?;
        let place = index_of(handle);
        if place < self.abilities.fixed_files
            && self.ring.submitter().register_files_update(place, &[number]).is_ok()
            && let (Some(file), Ok(number)) = (self.files.get_mut(handle), i32::try_from(place))
        {
            file.target = Target { number, fixed: true };
        }
        Ok(handle)
    }

    fn connect(&mut self, peer: &PeerAddress) -> Result<Handle, Errno> {
        let socket = begin_connect(peer)?;
        self.register(RawHandle(socket.into_raw_fd()))
    }

    fn close(&mut self, handle: Handle) {
        let Some(file) = self.files.get_mut(handle) else { return };
        file.closing = true;
        if file.in_flight == 0 {
            self.release(handle);
        } else {
            self.cancel_all(|slot| {
                slot.handle == handle
                    && matches!(
                        slot.kind,
                        OpKind::Recv | OpKind::Take | OpKind::Accept | OpKind::Watch
                    )
            });
        }
    }

    fn shutdown(&mut self, handle: Handle) {
        let Some(file) = self.files.get_mut(handle) else { return };
        shutdown_both(&file.fd);
        if file.in_flight > 0 {
            // A unix socket that is shut down tells a waiting accept nothing (the kernel answers
            // "try again" for ever), so accepts are ended by hand.
            self.cancel_all(|slot| slot.handle == handle && slot.kind == OpKind::Accept);
        }
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
        file.in_flight += 1;
        let target = file.target;
        let (user_data, slot) = self.slots.insert(token, handle, shape.kind(file.class), payload);
        if let Shape::Write { offset_bytes, dsync } = shape
            && let Some(cached) = &file.cached
            && self.writer.is_ready(cached)
        {
            let (fd, write) = (raw_of(&file.fd), (user_data, slot));
            return self.writer.add(cached, fd, write, offset_bytes, dsync);
        }
        let multishot = self.abilities.multishot_accept;
        if slot.kind == OpKind::Take {
            return self.offer_take(handle, user_data);
        }
        let entry = entry::entry(shape, target, slot, multishot).user_data(user_data);
        self.push(entry);
    }

    fn signal(&mut self, handle: Handle) {
        let Some(file) = self.files.get_mut(handle).filter(|file| !file.closing) else { return };
        if !self.abilities.skips_success {
            return ring(&file.fd);
        }
        file.in_flight += 1;
        let entry = entry::signal(file.target).user_data(USER_CANCEL);
        self.signalled.push(handle);
        self.push(entry);
    }

    fn copy_now(
        &mut self,
        handle: Handle,
        offset_bytes: u64,
        payload: &Payload,
        way: CopyWay,
    ) -> OpResult {
        let file = self.files.get_mut(handle).filter(|file| !file.closing);
        let file = file.ok_or(Errno(libc::EBADF))?;
        let fd = raw_of(&file.fd);
        let list = self.copies.fill(payload);
        let (start, count) = (list.as_ptr(), list.len() as i32);
        let offset = i64::try_from(offset_bytes).map_err(|_| Errno(libc::EINVAL))?;
        // SAFETY: the list points into the payload, which the caller keeps for the call.
        retry(|| unsafe {
            match way {
                CopyWay::Out => libc::preadv(fd, start, count, offset),
                CopyWay::In => libc::pwritev(fd, start, count, offset),
            }
        })
    }

    fn cancel(&mut self, token: OpToken) {
        self.withdraw_writes(token);
        self.cancel_all(|slot| slot.token == token);
    }

    fn wait(&mut self, deadline: Option<Nanos>, completions: &mut Vec<Completion>) {
        let before = completions.len();
        completions.append(&mut self.refused);
        loop {
            self.refill();
            self.writer.hand_over();
            let passed = deadline
                .is_some_and(|deadline| deadline == Nanos::ZERO || deadline <= clock::now());
            let block = !passed
                && completions.len() == before
                && self.backlog.is_empty()
                && self.ring.completion().is_empty()
                && self.wake.prepare_to_block();
            self.enter(block, deadline);
            self.settle_signals();
            self.reap(completions);
            let woken = self.wake.settle();
            // After `settle`: what is given back from here on keeps the next turn from blocking.
            self.collect_writes(completions);
            if !self.backlog.is_empty() {
                continue;
            }
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

fn op_result(code: i32) -> OpResult {
    u32::try_from(code).map_err(|_| Errno(-code))
}
