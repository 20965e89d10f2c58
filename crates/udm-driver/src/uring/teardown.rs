//! The end of a ring: nothing is freed that the kernel may still write into.
//!
//! Dropping the driver cancels what waits for others (receives, sends, accepts) and lets storage
//! operations finish, those included that were submitted but never started: every write the lane
//! has handed over reaches its file. What has not ended after [`DROP_WAIT_MS`] (a hung disk) is
//! left behind with its memory, on purpose: a leak at the end of a lane is harmless, a write into
//! memory that somebody else uses is not.
//!
//! Commands of devices end with the ring itself; nobody waits for them, and their memory is left.
//! What was lent before is left with the file it was lent to.
//!
//! A connection accepted meanwhile is closed, since nobody will ever learn of it.

use super::UringDriver;
use super::slots::USER_WAKE;
use crate::clock;
use crate::handles::HandleTable;
use crate::shape::OpKind;
use io_uring::cqueue;
use std::os::fd::{FromRawFd, OwnedFd};
use udm_types::Nanos;

/// How long a dropped driver waits for operations that cannot be cancelled. Long enough for any
/// healthy disk; a daemon that ends must not hang on a dead one.
const DROP_WAIT_MS: u64 = 2_000;

impl Drop for UringDriver {
    fn drop(&mut self) {
        let deadline = clock::now() + Nanos::from_millis(DROP_WAIT_MS);
        let has_lent = !self.slots.find(|slot| slot.kind == OpKind::Exchange).is_empty();
        self.slots
            .forget(|slot| matches!(slot.kind, OpKind::Command | OpKind::Lend | OpKind::Exchange));
        self.cancel_all(|slot| slot.kind != OpKind::Storage);
        while self.slots.live_count() > 0 && clock::now() < deadline {
            self.refill();
            self.writer.hand_over();
            let block = self.backlog.is_empty()
                && self.ring.completion().is_empty()
                && self.wake.prepare_to_block();
            self.enter(block, Some(deadline));
            self.wake.settle();
            self.discard();
        }
        if self.writer.is_busy() || has_lent {
            // The thread names files by their descriptors, whose numbers must not be used again;
            // and the memory that a device has is theirs.
            std::mem::forget(std::mem::replace(&mut self.files, HandleTable::new()));
        }
        if self.slots.live_count() > 0 {
            // The kernel may still write into this memory, so it must never be reused.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

impl UringDriver {
    /// Ends operations nobody waits for any more; closes connections nobody will take.
    fn discard(&mut self) {
        self.collect_writes(&mut Vec::new());
        while let Some(entry) = { self.ring.completion().next() } {
            if entry.user_data() == USER_WAKE && !cqueue::more(entry.flags()) {
                self.arm_doorbell();
            }
            let Some(slot) = self.slots.get_mut(entry.user_data()) else { continue };
            if slot.kind == OpKind::Accept && entry.result() >= 0 {
                // SAFETY: an accept's result is a descriptor made for this driver, and since the
                // completion goes no further, nobody else owns it.
                drop(unsafe { OwnedFd::from_raw_fd(entry.result()) });
            }
            if !cqueue::more(entry.flags()) {
                self.slots.remove(entry.user_data());
            }
        }
    }
}
