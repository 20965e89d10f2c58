//! Reads of a queue of messages (`/dev/fuse`): many are offered, one waits.
//!
//! A front offers a read for every request it could take. If each of them waited in the kernel,
//! every message would wake all of them. So of all reads of a queue one is with the kernel (the
//! *sentinel*), and the others are parked here. The descriptor is non-blocking: the ring tries a
//! read of it at once and waits for a message by itself if there is none, so no lane ever blocks.
//!
//! ```text
//! submit --> parked --> sentinel --- a message ---> completion, and the next one is sentinel
//!              `--- the message was there already: more may be; read, without the ring, until
//!                   one finds nothing
//! ```
//!
//! Rule: while reads of a queue are outstanding and the queue lives, one of them is with the
//! kernel.
//!
//! The tricky case is a kernel (before Linux 5.19 or so) whose ring answers "nothing there" for a
//! non-blocking descriptor instead of waiting. A poll is put before the read then.

use super::UringDriver;
use super::entry::{entry, wait_for_message};
use super::slots::{POLL_BIT, USER_CANCEL};
use crate::calls::retry;
use crate::handles::raw_of;
use crate::shape::Shape;
use io_uring::opcode;
use std::collections::VecDeque;
use udm_lane::{Completion, Errno, Handle, OpResult};

/// Reads without the ring at a time: enough to share the cost of a turn, few enough for the
/// answers of the first of them not to wait long (some 0.5 us each).
const BURST: usize = 16;

/// The reads of one queue.
#[derive(Debug, Default)]
pub(super) struct Takes {
    /// Not in the kernel. Bounded by what the front offers.
    parked: VecDeque<u64>,
    /// With the kernel.
    sentinel: Option<u64>,
    /// How often the ring had been entered when the sentinel was queued.
    queued_at: u64,
}

impl UringDriver {
    /// A read of a queue was submitted; its slot is made.
    pub(super) fn offer_take(&mut self, handle: Handle, user_data: u64) {
        let Some(file) = self.files.get_mut(handle) else { return };
        file.takes.parked.push_back(user_data);
        self.next_take(handle);
    }

    /// Gives the kernel a read if it has none.
    fn next_take(&mut self, handle: Handle) {
        let Some(file) = self.files.get_mut(handle) else { return };
        if file.takes.sentinel.is_none()
            && let Some(next) = file.takes.parked.pop_front()
        {
            self.push_take(handle, next, false);
        }
    }

    fn push_take(&mut self, handle: Handle, user_data: u64, after_poll: bool) {
        let (Some(file), Some(slot)) = (self.files.get_mut(handle), self.slots.get_mut(user_data))
        else {
            return;
        };
        let target = file.target;
        let read = entry(Shape::Read { offset_bytes: 0 }, target, slot, false).user_data(user_data);
        file.takes.sentinel = Some(user_data);
        file.takes.queued_at = self.enters;
        if after_poll {
            self.push(wait_for_message(target, user_data));
        }
        self.push(read);
    }

    /// The sentinel came back. True if it goes on waiting, else it has ended.
    pub(super) fn take_goes_on(
        &mut self,
        handle: Handle,
        user_data: u64,
        result: OpResult,
        completions: &mut Vec<Completion>,
    ) -> bool {
        let Some(slot) = self.slots.get_mut(user_data) else { return false };
        let is_cancelled = slot.cancelled;
        let Some(file) = self.files.get_mut(handle) else { return false };
        if result == Err(Errno(libc::EAGAIN)) && !is_cancelled && !file.closing {
            self.push_take(handle, user_data, true);
            return true;
        }
        file.takes.sentinel = None;
        let was_there = file.takes.queued_at + 1 == self.enters;
        if result.is_ok() && was_there && !file.closing {
            self.take_burst(handle, completions);
        }
        self.next_take(handle);
        false
    }

    /// Reads what else is there, without waiting.
    fn take_burst(&mut self, handle: Handle, completions: &mut Vec<Completion>) {
        for _ in 0..BURST {
            let Some(file) = self.files.get_mut(handle) else { return };
            let Some(user_data) = file.takes.parked.pop_front() else { return };
            let raw = raw_of(&file.fd);
            let Some(slot) = self.slots.get_mut(user_data) else { continue };
            let list = slot.vectors().iovecs();
            let (start, count) = (list.as_ptr(), list.len() as i32);
            // SAFETY: the list points into the slot's payload, which the slot keeps until after
            // the call; the descriptor does not block.
            let result = retry(|| unsafe { libc::readv(raw, start, count) });
            if result == Err(Errno(libc::EAGAIN)) {
                if let Some(file) = self.files.get_mut(handle) {
                    file.takes.parked.push_front(user_data);
                }
                return;
            }
            let Some((token, _, payload)) = self.slots.remove(user_data) else { continue };
            completions.push(Completion { token, result, payload, more: false });
            self.ended_on(handle);
        }
    }

    /// Ends a read that somebody does not want any more.
    pub(super) fn cancel_take(&mut self, handle: Handle, user_data: u64) {
        let Some(file) = self.files.get_mut(handle) else { return };
        let parked = &mut file.takes.parked;
        if let Some(at) = parked.iter().position(|parked| *parked == user_data) {
            parked.remove(at);
            let Some((token, _, payload)) = self.slots.remove(user_data) else { return };
            self.refuse(token, payload, Errno(libc::ECANCELED));
            return self.ended_on(handle);
        }
        // Behind a poll the read is out of reach until the poll has ended.
        for ended in [user_data | POLL_BIT, user_data] {
            self.push(opcode::AsyncCancel::new(ended).build().user_data(USER_CANCEL));
        }
    }
}
