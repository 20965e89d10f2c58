//! The epoll instance of a portable driver: which descriptors can go on.
//!
//! Every socket and pipe is added once, for both directions, edge-triggered, and never changed;
//! so waiting costs one system call a turn, and an operation none. Each event carries the handle
//! (or [`DOORBELL`]).
//!
//! The tricky case is the deadline. `epoll_pwait2` takes nanoseconds; kernels before 5.11 and
//! some sandboxes lack it, and `epoll_wait` takes milliseconds, which are then rounded up: a wait
//! may end late, never early.

use crate::handles::{last_errno, raw_of};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use udm_lane::Errno;

/// Events fetched a call. More stay with the kernel for the next turn.
const EVENTS_MAX: usize = 64;

/// The event data of the driver's doorbell. Handles are 32 bits, so none equals it.
pub(crate) const DOORBELL: u64 = u64::MAX;

/// A descriptor that can go on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Readiness {
    pub(crate) key: u64,
    pub(crate) inbound: bool,
    pub(crate) outbound: bool,
}

/// The epoll instance.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    /// `epoll_pwait2` works here.
    precise: bool,
}

impl Poller {
    pub(crate) fn new() -> Result<Poller, Errno> {
        // SAFETY: takes no memory.
        let raw = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if raw < 0 {
            return Err(last_errno());
        }
        // SAFETY: a descriptor just made, which nobody else knows.
        let epoll = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Poller { epoll, precise: true })
    }

    /// Watches a descriptor. `EPERM` if it is always ready (files).
    pub(crate) fn add(&self, fd: RawFd, key: u64) -> Result<(), Errno> {
        let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event { events: interest as u32, u64: key };
        // SAFETY: the event is read during the call only.
        let code =
            unsafe { libc::epoll_ctl(raw_of(&self.epoll), libc::EPOLL_CTL_ADD, fd, &mut event) };
        if code == 0 { Ok(()) } else { Err(last_errno()) }
    }

    /// Stops watching. Needed even before a close: a duplicate of the descriptor elsewhere would
    /// keep the watch alive.
    pub(crate) fn remove(&self, fd: RawFd) {
        let null = std::ptr::null_mut();
        // SAFETY: no event is passed. Fails for descriptors never added, which is fine.
        let _ = unsafe { libc::epoll_ctl(raw_of(&self.epoll), libc::EPOLL_CTL_DEL, fd, null) };
    }

    /// Waits for at most `span_ns` (`None`: without limit; zero: not at all).
    pub(crate) fn wait(&mut self, span_ns: Option<u64>, mut found: impl FnMut(Readiness)) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        let count = self.wait_once(span_ns, &mut events);
        // Negative for a signal, and zero when the time is over: nothing was found.
        for event in events.iter().take(usize::try_from(count).unwrap_or(0)) {
            let flags = event.events as i32;
            let gone = flags & (libc::EPOLLHUP | libc::EPOLLERR) != 0;
            found(Readiness {
                key: event.u64,
                inbound: gone || flags & (libc::EPOLLIN | libc::EPOLLRDHUP) != 0,
                outbound: gone || flags & libc::EPOLLOUT != 0,
            });
        }
    }

    fn wait_once(&mut self, span_ns: Option<u64>, events: &mut [libc::epoll_event]) -> i64 {
        let (epoll, room) = (raw_of(&self.epoll), EVENTS_MAX as i32);
        let start = events.as_mut_ptr();
        let imprecise = match span_ns {
            None => -1,
            Some(0) => 0,
            Some(span_ns) => {
                if self.precise {
                    let span = libc::timespec {
                        tv_sec: (span_ns / 1_000_000_000) as i64,
                        tv_nsec: (span_ns % 1_000_000_000) as i64,
                    };
                    let mask: *const libc::sigset_t = std::ptr::null();
                    // SAFETY: `start` has room for that many events, `span` lives through the
                    // call, and no signal mask is passed.
                    let count = unsafe {
                        libc::syscall(libc::SYS_epoll_pwait2, epoll, start, room, &span, mask, 0)
                    };
                    if count >= 0 || !matches!(last_errno().0, libc::ENOSYS | libc::EPERM) {
                        return count;
                    }
                    self.precise = false;
                }
                i32::try_from(span_ns.div_ceil(1_000_000)).unwrap_or(i32::MAX)
            }
        };
        // SAFETY: `start` has room for that many events.
        i64::from(unsafe { libc::epoll_wait(epoll, start, room, imprecise) })
    }
}

#[cfg(test)]
mod tests {
    use super::Poller;
    use crate::clock::monotonic_ns;

    #[test]
    fn without_nanoseconds_a_wait_is_late_but_never_early() {
        let mut poller = Poller::new().unwrap();
        poller.precise = false;
        for span_ns in [1, 999_999, 1_000_001] {
            let start = monotonic_ns();
            poller.wait(Some(span_ns), |_| {});
            assert!(monotonic_ns() - start >= span_ns);
        }
    }
}
