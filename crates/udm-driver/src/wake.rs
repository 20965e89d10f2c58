//! Waking a driver that sleeps in the kernel, from any thread.
//!
//! Both drivers use this. The driver announces that it is about to block; a waker that finds it
//! so writes to an eventfd the driver listens on, and nobody else makes a system call.
//!
//! ```text
//!          prepare_to_block              wake: write the eventfd
//!   0 ---------------------> BLOCKED ------------------------------> BLOCKED|WOKEN
//!   |  ^--------------------------------- settle ------------------------|
//!   '------------- wake: no system call -------------> WOKEN
//! ```
//!
//! Rules. A wake is never lost: every wake sets a flag, and only the driver takes it out. A
//! repeated wake costs one atomic operation. The eventfd is only a doorbell: it is never read
//! (both drivers listen edge-triggered), and a late ring from an earlier round is ignored,
//! because only a flag ends a wait.
//!
//! Threads that run file operations (the portable driver's pool, the ring's writer) ring too, with
//! a flag of their own ([`COMPLETED`]), so that a completion does not look like a wake.

use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use udm_lane::{Errno, Wake};

/// The driver sleeps, or is about to, and needs the eventfd to be written.
const BLOCKED: u8 = 1;
/// Somebody wants the driver's attention.
const WOKEN: u8 = 2;
/// A file thread has finished something.
pub(crate) const COMPLETED: u8 = 4;

/// The state and the doorbell, shared by a driver and everyone who may wake it.
#[derive(Debug)]
pub(crate) struct EventWake {
    state: AtomicU8,
    doorbell: OwnedFd,
}

impl EventWake {
    pub(crate) fn new() -> Result<Arc<EventWake>, Errno> {
        let doorbell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Errno(error.raw_os_error()))?;
        Ok(Arc::new(EventWake { state: AtomicU8::new(0), doorbell }))
    }

    /// What the driver listens on for readability, edge-triggered.
    pub(crate) fn doorbell(&self) -> RawFd {
        self.doorbell.as_raw_fd()
    }

    /// Announces that the driver will block. False if something has happened already.
    pub(crate) fn prepare_to_block(&self) -> bool {
        self.state.compare_exchange(0, BLOCKED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Announces that the driver runs. True if somebody has woken it since the last call.
    pub(crate) fn settle(&self) -> bool {
        // The load spares a locked instruction on turns that neither blocked nor were woken. It
        // may miss a wake of this instant; that wake is found by the next turn.
        self.state.load(Ordering::Acquire) != 0 && self.state.swap(0, Ordering::SeqCst) & WOKEN != 0
    }

    /// Sets a flag; rings if the driver sleeps and nobody has rung yet.
    pub(crate) fn signal(&self, flag: u8) {
        if self.state.fetch_or(flag, Ordering::SeqCst) == BLOCKED {
            // Fails only when the counter is full, and then the doorbell has rung already.
            let _ = rustix::io::write(&self.doorbell, &1_u64.to_ne_bytes());
        }
    }
}

impl Wake for EventWake {
    fn wake(&self) {
        self.signal(WOKEN);
    }
}

#[cfg(test)]
mod tests {
    use super::{COMPLETED, EventWake};
    use udm_lane::Wake;

    fn rings(wake: &EventWake) -> u64 {
        let mut count = [0_u8; 8];
        match rustix::io::read(&wake.doorbell, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    #[test]
    fn a_running_driver_is_woken_without_a_system_call() {
        let wake = EventWake::new().unwrap();
        wake.wake();
        wake.wake();
        assert_eq!(rings(&wake), 0);
        assert!(!wake.prepare_to_block(), "the wake must keep it from blocking");
        assert!(wake.settle());
        assert!(!wake.settle(), "a wake is taken once");
    }

    #[test]
    fn a_blocked_driver_gets_one_ring_for_many_wakes() {
        let wake = EventWake::new().unwrap();
        assert!(wake.prepare_to_block());
        wake.wake();
        wake.wake();
        assert_eq!(rings(&wake), 1);
        assert!(wake.settle());
    }

    #[test]
    fn a_completion_rings_but_is_no_wake() {
        let wake = EventWake::new().unwrap();
        assert!(wake.prepare_to_block());
        wake.signal(COMPLETED);
        wake.signal(COMPLETED);
        assert_eq!(rings(&wake), 1);
        assert!(!wake.settle());
        wake.signal(COMPLETED);
        assert!(!wake.prepare_to_block(), "the driver must look first");
    }

    #[test]
    fn a_wait_that_ends_by_itself_leaves_nothing_pending() {
        let wake = EventWake::new().unwrap();
        assert!(wake.prepare_to_block());
        assert!(!wake.settle());
        assert!(wake.prepare_to_block());
    }
}
