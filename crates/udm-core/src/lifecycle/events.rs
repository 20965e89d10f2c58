//! The global event number, who waits for it, and a device's geometry.
//!
//! The number is what a poll of the kernel's control node compares: it grows with every event of
//! any device, every create, remove and rename, and every table swap. Only "it is another one"
//! means anything; how far it went does not.
//!
//! The tricky case is a waiter that went away: it is cancelled by its ticket, as any other wait.

use super::coordinator::Coordinator;
use super::request::{DeviceKey, Geometry, Reply, ReplySink, Ticket};
use crate::error::{ErrorCode, UserError};
use alloc::vec::Vec;

/// Somebody waits for the number to differ from what it was.
pub(super) struct GlobalWait {
    ticket: Ticket,
    sink: ReplySink,
}

/// The number and its waiters.
#[derive(Default)]
pub(super) struct GlobalEvents {
    number: u32,
    waits: Vec<GlobalWait>,
}

impl GlobalEvents {
    /// Something happened.
    pub(super) fn raise(&mut self) {
        self.number = self.number.wrapping_add(1);
        for wait in core::mem::take(&mut self.waits) {
            (wait.sink)(Ok(Reply::Number(self.number)));
        }
    }

    /// The number now.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Answers at once if the number differs, else when it does.
    pub(super) fn wait(&mut self, seen: u32, ticket: Ticket, sink: ReplySink) {
        if seen == self.number {
            self.waits.push(GlobalWait { ticket, sink });
        } else {
            sink(Ok(Reply::Number(self.number)));
        }
    }

    /// Ends the wait of a ticket, if it is one.
    pub(super) fn cancel(&mut self, ticket: Ticket) {
        if let Some(at) = self.waits.iter().position(|wait| wait.ticket == ticket) {
            let wait = self.waits.remove(at);
            let text = "the wait was given up";
            (wait.sink)(Err(UserError::new(ErrorCode::SuspendCancelled, text)));
        }
    }
}

impl Coordinator {
    /// Keeps a geometry for the device until its size changes.
    pub(super) fn set_geometry(
        &mut self,
        key: &DeviceKey,
        geometry: Geometry,
    ) -> Result<Reply, UserError> {
        let id = self.find(key)?;
        if geometry.start_sector > geometry.len_sectors() {
            let text = "the start lies beyond the end of the geometry";
            return Err(UserError::new(ErrorCode::BadParameter, text));
        }
        if let Some(device) = self.device_mut(id) {
            device.geometry = Some(geometry);
        }
        Ok(self.done(id))
    }
}
