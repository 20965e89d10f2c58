//! Removing every device that nobody has open: a wave from the tops of all stacks to their bottoms.
//!
//! A removal takes rounds, and only when it is over are the devices below it closed. So this is not
//! a loop but a job: it asks for the removal of what is closed, and is looked at again whenever
//! something has happened (`settle`). It answers when nothing it asked for is under way and nothing
//! closed is left.
//!
//! A device is asked once. Its removal may have to queue behind a suspend that hangs, and asking
//! again and again would never end; if it turns out to be open by then, it is simply not removed.

use super::coordinator::Coordinator;
use super::request::{DeviceKey, Reply, ReplySink, Request};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use udm_types::DeviceId;

/// One `RemoveAll` under way.
pub(super) struct RemoveAll {
    deferred: bool,
    sink: ReplySink,
}

/// All of them, and the devices they have asked to go. Shared: two waves are one.
#[derive(Default)]
pub(super) struct RemovalWave {
    jobs: Vec<RemoveAll>,
    asked: BTreeSet<DeviceId>,
}

impl RemovalWave {
    /// The removal of a device is over, one way or the other.
    pub(super) fn answered(&mut self, id: DeviceId) {
        self.asked.remove(&id);
    }
}

impl Coordinator {
    /// Starts the wave; it rolls on in `settle`.
    pub(super) fn remove_all(&mut self, deferred: bool, sink: ReplySink) {
        self.wave.jobs.push(RemoveAll { deferred, sink });
    }

    /// Removes what is closed by now; answers when there is nothing more to wait for.
    pub(super) fn roll_wave(&mut self) {
        if self.wave.jobs.is_empty() {
            return;
        }
        let closed: Vec<DeviceId> = self
            .devices
            .iter()
            .flatten()
            .filter(|device| device.open_count() == 0 && !device.deleting)
            .map(|device| device.id)
            .filter(|id| !self.wave.asked.contains(id))
            .collect();
        for id in closed {
            self.wave.asked.insert(id);
            let request = Request::Remove { device: DeviceKey::Id(id), deferred: false };
            self.change(id, request, Box::new(|_| {}));
        }
        if !self.wave.asked.is_empty() {
            return;
        }
        for RemoveAll { deferred, sink } in core::mem::take(&mut self.wave.jobs) {
            if deferred {
                for device in self.devices.iter_mut().flatten() {
                    device.deferred_remove = true;
                }
            }
            self.events.raise();
            sink(Ok(Reply::Done(None)));
        }
    }
}
