//! Waking a driver that sleeps in the kernel, from any thread.
//!
//! Both drivers use this. The driver announces that it is about to block; a waker that finds it
//! so writes to an eventfd the driver listens on, and nobody else makes a system call.
//!
//! ```text
//!             prepare_to_block            wake: write the eventfd
//!   RUNNING -------------------> BLOCKED ------------------------> PENDING
//!      |  ^---------------------------- settle ----------------------|
//!      '------------ wake: no system call -------------> PENDING
//! ```
//!
//! Rules. A wake is never lost: every wake swaps `PENDING` in, and only the driver takes it out.
//! A repeated wake costs one atomic swap. The eventfd is only a doorbell: it is never read (both
//! drivers listen edge-triggered), and a late ring from an earlier round is ignored, because only
//! `PENDING` ends a wait.

use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use udm_lane::{Errno, Wake};

/// The driver runs: it will look at the state before it blocks.
const RUNNING: u8 = 0;
/// The driver sleeps, or is about to, and needs the eventfd to be written.
const BLOCKED: u8 = 1;
/// Somebody wants the driver's attention.
const PENDING: u8 = 2;

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
        Ok(Arc::new(EventWake { state: AtomicU8::new(RUNNING), doorbell }))
    }

    /// What the driver listens on for readability, edge-triggered.
    pub(crate) fn doorbell(&self) -> RawFd {
        self.doorbell.as_raw_fd()
    }

    /// Announces that the driver will block. False if somebody has woken it already.
    pub(crate) fn prepare_to_block(&self) -> bool {
        self.state.compare_exchange(RUNNING, BLOCKED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Announces that the driver runs. True if somebody has woken it since the last call.
    pub(crate) fn settle(&self) -> bool {
        // The load spares a locked instruction on turns that neither blocked nor were woken. It
        // may miss a wake of this instant; that wake is found by the next turn.
        self.state.load(Ordering::Acquire) != RUNNING
            && self.state.swap(RUNNING, Ordering::SeqCst) == PENDING
    }
}

impl Wake for EventWake {
    fn wake(&self) {
        if self.state.swap(PENDING, Ordering::SeqCst) == BLOCKED {
            // Fails only when the counter is full, and then the doorbell has rung already.
            let _ = rustix::io::write(&self.doorbell, &1_u64.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::EventWake;
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
    fn a_wait_that_ends_by_itself_leaves_nothing_pending() {
        let wake = EventWake::new().unwrap();
        assert!(wake.prepare_to_block());
        assert!(!wake.settle());
        assert!(wake.prepare_to_block());
    }
}
