//! The ring itself: its queues, and the entries that wait for room in the submission queue.
//!
//! Entries have 64 bytes, or 128 where the kernel has rings of such (Linux 5.19): the commands of
//! FUSE's queues do not fit into the small ones, and a second ring would cost a system call more
//! for each turn. Every other entry is the same in both, with 64 bytes of zeroes behind it.
//!
//! Rule. Every address in an entry points into a slot (`slots.rs`), which is freed only when the
//! final completion of its operation has been read, or never; or into something static.
//!
//! The tricky case is the backlog: it holds what the kernel has not seen, so a lane must not sleep
//! while there is any.

use io_uring::squeue::{Entry, Entry128, EntryMarker};
use io_uring::{CompletionQueue, IoUring, Submitter, cqueue, types};
use std::collections::VecDeque;
use std::io;

/// Flags of `io_uring_enter`.
const ENTER_GETEVENTS: u32 = 1;

/// A ring of either kind.
pub(crate) enum Ring {
    /// Entries of 64 bytes.
    Narrow(Queues<Entry>),
    /// Entries of 128 bytes.
    Wide(Queues<Entry128>),
}

/// A ring, and what found its submission queue full, in order. Bounded by what the lane has in
/// flight, which the fronts bound.
pub(crate) struct Queues<S: EntryMarker> {
    ring: IoUring<S>,
    backlog: VecDeque<S>,
}

/// How to enter the ring.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Enter {
    /// Only if there is something to start or to fetch.
    Look,
    /// Wait for a completion.
    Wait,
    /// Wait for a completion, or for so long.
    WaitFor(types::Timespec),
}

impl<S: EntryMarker> Queues<S> {
    pub(crate) fn new(ring: IoUring<S>) -> Queues<S> {
        Queues { ring, backlog: VecDeque::new() }
    }

    #[inline]
    fn push(&mut self, entry: S) {
        if self.backlog.is_empty() {
            let mut queue = self.ring.submission();
            // SAFETY: by the rule of this file, the memory the entry names outlives the operation.
            if unsafe { queue.push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

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

    /// Nothing if there was no reason to enter.
    fn enter(&mut self, how: Enter) -> Option<io::Result<usize>> {
        let (submitter, mut queue, _) = self.ring.split();
        queue.sync();
        let started = queue.len();
        let has_reason = started > 0 || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        match how {
            Enter::Look if !has_reason => None,
            // SAFETY: no argument is passed, and the count is what the queue holds.
            Enter::Look => Some(unsafe {
                submitter.enter::<libc::sigset_t>(started as u32, 0, ENTER_GETEVENTS, None)
            }),
            Enter::Wait => Some(submitter.submit_and_wait(1)),
            Enter::WaitFor(span) => {
                Some(submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&span)))
            }
        }
    }
}

impl Ring {
    /// Whether it takes entries of 128 bytes.
    pub(crate) fn is_wide(&self) -> bool {
        match self {
            Ring::Narrow(_) => false,
            Ring::Wide(_) => true,
        }
    }

    /// Queues an entry.
    #[inline]
    pub(crate) fn push(&mut self, entry: Entry) {
        match self {
            Ring::Narrow(queues) => queues.push(entry),
            Ring::Wide(queues) => queues.push(entry.into()),
        }
    }

    /// Queues an entry of 128 bytes. False if the ring takes none.
    pub(crate) fn push_wide(&mut self, entry: Entry128) -> bool {
        match self {
            Ring::Narrow(_) => false,
            Ring::Wide(queues) => {
                queues.push(entry);
                true
            }
        }
    }

    /// Moves entries from the backlog to the queue while there is room.
    pub(crate) fn refill(&mut self) {
        match self {
            Ring::Narrow(queues) => queues.refill(),
            Ring::Wide(queues) => queues.refill(),
        }
    }

    /// Entries wait that do not fit into the queue.
    #[inline]
    pub(crate) fn has_backlog(&self) -> bool {
        match self {
            Ring::Narrow(queues) => !queues.backlog.is_empty(),
            Ring::Wide(queues) => !queues.backlog.is_empty(),
        }
    }

    /// The kernel has taken all entries.
    pub(crate) fn all_started(&mut self) -> bool {
        !self.has_backlog()
            && match self {
                Ring::Narrow(queues) => queues.ring.submission().is_empty(),
                Ring::Wide(queues) => queues.ring.submission().is_empty(),
            }
    }

    /// Starts what is queued, and waits if it should. Nothing if there was no reason to enter.
    pub(crate) fn enter(&mut self, how: Enter) -> Option<io::Result<usize>> {
        match self {
            Ring::Narrow(queues) => queues.enter(how),
            Ring::Wide(queues) => queues.enter(how),
        }
    }

    /// What has completed.
    #[inline]
    pub(crate) fn completion(&mut self) -> CompletionQueue<'_, cqueue::Entry> {
        match self {
            Ring::Narrow(queues) => queues.ring.completion(),
            Ring::Wide(queues) => queues.ring.completion(),
        }
    }

    pub(crate) fn submitter(&self) -> Submitter<'_> {
        match self {
            Ring::Narrow(queues) => queues.ring.submitter(),
            Ring::Wide(queues) => queues.ring.submitter(),
        }
    }
}
