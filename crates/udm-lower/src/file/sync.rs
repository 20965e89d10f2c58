//! The flushes of one lane's part: at most one sync with the kernel, everybody else waits for the
//! next.
//!
//! A flush must cover every write that was completed before the flush was submitted, so one that
//! arrives while a sync runs cannot share it: the sync may have passed those writes already. It
//! joins the group of the next one, together with all others that come meanwhile. Under a load of
//! flushes this costs one sync for many of them.
//!
//! One at a time has a second reason, and it is the tricky case. The kernel reports a write-back
//! error once for each open file description. With two syncs under way on one description, one
//! would get the error and the other, covering the same lost write, would be told that all is
//! well. Each lane has a description of its own (`mod.rs`), so between lanes that cannot happen
//! either.

use super::state::SyncGeneration;

/// The `user` word of a lane's sync; all others are slot numbers.
pub(crate) const SYNC_USER: u32 = u32::MAX;

/// Who waits for which sync.
#[derive(Debug, Default)]
pub(crate) struct SyncGroups {
    running: bool,
    /// Slots that get the running sync's result.
    current: Vec<u32>,
    /// Slots that wait for the next one.
    next: Vec<u32>,
    /// The failures known when the running sync began.
    began: SyncGeneration,
    /// The running sync has lost a bio to an abort, and the device is fenced until it ends.
    pub(crate) abandoned: bool,
    /// How often the running sync was tried again.
    pub(crate) retries: u32,
}

impl SyncGroups {
    /// A bio waits for the next sync.
    pub(crate) fn join(&mut self, slot: u32) {
        self.next.push(slot);
    }

    /// Begins the next sync if there is a reason to and none runs. The caller starts it.
    pub(crate) fn begin(&mut self, generation: SyncGeneration) -> bool {
        if self.running || self.next.is_empty() {
            return false;
        }
        self.running = true;
        self.retries = 0;
        self.began = generation;
        std::mem::swap(&mut self.current, &mut self.next);
        true
    }

    /// The running sync has ended: who waited for it, and the generation it began in. Give the
    /// list back with [`SyncGroups::recycle`].
    pub(crate) fn end(&mut self) -> (Vec<u32>, SyncGeneration) {
        self.running = false;
        (std::mem::take(&mut self.current), self.began)
    }

    /// Takes a list back to use its memory again.
    pub(crate) fn recycle(&mut self, mut list: Vec<u32>) {
        list.clear();
        if self.current.capacity() == 0 {
            self.current = list;
        }
    }

    /// True if the slot waits for the sync that runs.
    pub(crate) fn is_current(&self, slot: u32) -> bool {
        self.running && self.current.contains(&slot)
    }
}
