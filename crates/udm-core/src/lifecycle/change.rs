//! Suspend, resume and remove: the changes that take rounds, one at a time for each device.
//!
//! ```text
//!   suspend   Suspend (drain) -> [Settle] -> Postsuspend -> suspended
//!   resume    [Suspend -> [Settle] -> Postsuspend, if running and there is a table to swap in]
//!             -> Bind (swap, preresume) -> Resume -> running
//!   remove    [Suspend -> [Settle] -> Postsuspend, if running] -> Destroy -> gone
//! ```
//! `Settle` is for tables whose targets have work of their own: a lane that has drained may have
//! got some since, for a bio of another lane.
//!
//! Only draining (with settling) and the `Bind` of such a table can take long. Draining ends by
//! itself, by its deadline (run on, or fail what hangs and go on; if even that does not end it
//! within another deadline, run on), by the asker going away, or by a resume: a suspend always has
//! a way out. Until it has ended nothing was changed, so giving it up is opening the gates again.
//! A `Bind` has the same ways out, but they lead to a suspended device with the new table; what its
//! targets have under way is drained before anything else is put in its place (`unsettled`).
//!
//! The tricky case is a resume whose own drain is given up: the table it had taken out of the
//! inactive slot goes back there, unless the slot was filled meanwhile.

use super::coordinator::{After, Coordinator};
use super::device::{Loaded, Suspension};
use super::request::{OnTimeout, Reply, ReplySink, Request, SuspendOptions, Ticket};
use crate::engine::LaneStep;
use crate::error::{ErrorCode, UserError};
use alloc::format;
use udm_types::{DeviceId, Nanos};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Suspend,
    Resume,
    Remove,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Draining,
    /// All bios are back; the targets finish what they do of their own.
    Settling,
    Postsuspending,
    /// Targets may take their time here, too.
    Binding,
    Resuming,
    Destroying,
}

/// A change under way.
pub(super) struct Change {
    goal: Goal,
    stage: Stage,
    options: SuspendOptions,
    ticket: Option<Ticket>,
    started: Nanos,
    round: u64,
    /// The table to put in place.
    swap: Option<Loaded>,
    resized: bool,
    /// The table to be live has targets that may take their time to get ready.
    recovers: bool,
    aborted: bool,
    sink: Option<ReplySink>,
}

impl Change {
    pub(super) fn is_draining(&self) -> bool {
        matches!(self.stage, Stage::Draining | Stage::Settling)
    }

    /// True while a resume waits for targets with work of their own.
    fn is_recovering(&self) -> bool {
        self.stage == Stage::Binding && self.recovers
    }

    pub(super) fn options(&self) -> &SuspendOptions {
        &self.options
    }

    pub(super) fn started(&self) -> Nanos {
        self.started
    }
}

impl Coordinator {
    /// Takes a suspend, resume or remove: starts it, or queues it behind the one under way.
    pub(super) fn change(&mut self, id: DeviceId, request: Request, sink: ReplySink) {
        let Some(device) = self.device_mut(id) else { return };
        let draining_suspend = device
            .change
            .as_ref()
            .is_some_and(|change| change.goal == Goal::Suspend && change.is_draining());
        if draining_suspend && matches!(request, Request::Resume { .. }) {
            self.give_up_change(id, ErrorCode::SuspendCancelled, "ended by a resume");
        }
        let Some(device) = self.device_mut(id) else { return };
        if device.change.is_some() {
            device.queue.push_back((request, sink));
            return;
        }
        self.start_change(id, request, sink);
    }

    fn start_change(&mut self, id: DeviceId, request: Request, sink: ReplySink) {
        match request {
            Request::Suspend { options, ticket, .. } => {
                if self.device(id).is_some_and(|device| device.suspended.is_some()) {
                    return sink(Ok(self.done(id)));
                }
                let change = self.new_change(Goal::Suspend, options, Some(ticket), None, sink);
                self.drain(id, change);
            }
            Request::Resume { options, ticket, .. } => {
                self.start_resume(id, options, ticket, sink);
            }
            Request::Remove { deferred, .. } => self.start_remove(id, deferred, sink),
            // Only the three above are ever queued here.
            other => sink(Err(UserError::new(
                ErrorCode::Internal,
                format!("not a change of a device: {other:?}"),
            ))),
        }
    }

    fn start_resume(
        &mut self,
        id: DeviceId,
        options: SuspendOptions,
        ticket: Ticket,
        sink: ReplySink,
    ) {
        let Some(device) = self.device_mut(id) else { return };
        let swap = device.inactive.take();
        let suspended = device.suspended.is_some();
        let drained = suspended && !device.unsettled;
        match (swap, suspended) {
            (None, false) => sink(Ok(self.done(id))),
            (None, true) if device.live.is_none() => {
                let text = format!("'{}' has no table to resume with", device.name);
                sink(Err(UserError::new(ErrorCode::NoTable, text)));
            }
            (swap, true) if swap.is_none() || drained => {
                let change = self.new_change(Goal::Resume, options, Some(ticket), swap, sink);
                self.bind(id, change);
            }
            (swap, true | false) => {
                let change = self.new_change(Goal::Resume, options, Some(ticket), swap, sink);
                self.drain(id, change);
            }
        }
    }

    fn start_remove(&mut self, id: DeviceId, deferred: bool, sink: ReplySink) {
        let Some(device) = self.device_mut(id) else { return };
        if device.open_count() > 0 {
            if deferred {
                device.deferred_remove = true;
                self.events.raise();
                return sink(Ok(self.done(id)));
            }
            let text = format!("'{}' is open {} time(s)", device.name, device.open_count());
            self.wave.answered(id);
            return sink(Err(UserError::new(ErrorCode::InUse, text)));
        }
        device.deleting = true;
        device.deferred_remove = false;
        let drained = device.suspended.is_some() && !device.unsettled;
        self.raise_if_live(id);
        self.unlink(id);
        if let Some(loaded) = self.device_mut(id).and_then(|device| device.inactive.take()) {
            self.discard_table(id, loaded);
        }
        let options = SuspendOptions { reason: "remove".into(), ..SuspendOptions::default() };
        let change = self.new_change(Goal::Remove, options, None, None, sink);
        if drained {
            self.destroy(id, change);
        } else {
            self.drain(id, change);
        }
    }

    fn new_change(
        &self,
        goal: Goal,
        options: SuspendOptions,
        ticket: Option<Ticket>,
        swap: Option<Loaded>,
        sink: ReplySink,
    ) -> Change {
        Change {
            goal,
            stage: Stage::Draining,
            options,
            ticket,
            started: self.now,
            round: 0,
            swap,
            resized: false,
            recovers: false,
            aborted: false,
            sink: Some(sink),
        }
    }

    fn drain(&mut self, id: DeviceId, mut change: Change) {
        let noflush = change.options.noflush;
        change.round = self.round(id, LaneStep::Suspend { noflush }, After::Change);
        if let Some(deadline) = change.options.deadline {
            self.set_timer(self.now + deadline, change.round);
        }
        self.put(id, change);
    }

    fn put(&mut self, id: DeviceId, change: Change) {
        if let Some(device) = self.device_mut(id) {
            device.change = Some(change);
        }
    }

    fn next_stage(&mut self, id: DeviceId, mut change: Change, stage: Stage, step: LaneStep) {
        change.stage = stage;
        change.round = self.round(id, step, After::Change);
        self.put(id, change);
    }

    fn bind(&mut self, id: DeviceId, mut change: Change) {
        let generation = change.swap.as_ref().map(|loaded| loaded.generation);
        if let (Some(swap), Some(device)) = (&change.swap, self.device(id)) {
            change.resized = device.live.as_ref().is_none_or(|live| {
                live.table.len_sectors != swap.table.len_sectors
                    || live.table.limits != swap.table.limits
            });
        }
        let next = change.swap.as_ref().or(self.device(id).and_then(|device| device.live.as_ref()));
        change.recovers = next.is_some_and(|loaded| loaded.table.has_own_work());
        change.aborted = false;
        let deadline = change.options.deadline.filter(|_| change.recovers);
        self.next_stage(id, change, Stage::Binding, LaneStep::Bind { generation });
        self.set_deadline(id, deadline.map(|deadline| self.now + deadline));
    }

    /// Sets the deadline of the round the change is in now.
    fn set_deadline(&mut self, id: DeviceId, deadline: Option<Nanos>) {
        let round = self.device(id).and_then(|device| device.change.as_ref()).map(|now| now.round);
        if let (Some(deadline), Some(round)) = (deadline, round) {
            self.set_timer(deadline, round);
        }
    }

    /// All bios are back; targets with work of their own finish it before the suspend is over.
    fn drained(&mut self, id: DeviceId, change: Change) {
        let live = self.device(id).and_then(|device| device.live.as_ref());
        if !live.is_some_and(|live| live.table.has_own_work()) {
            return self.next_stage(id, change, Stage::Postsuspending, LaneStep::Postsuspend);
        }
        let from = if change.aborted { self.now } else { change.started };
        let deadline = change.options.deadline.map(|deadline| from + deadline);
        self.next_stage(id, change, Stage::Settling, LaneStep::Settle);
        self.set_deadline(id, deadline);
    }

    fn destroy(&mut self, id: DeviceId, change: Change) {
        self.next_stage(id, change, Stage::Destroying, LaneStep::Destroy);
    }

    /// All lanes have answered the round of a change.
    pub(super) fn change_step(&mut self, id: DeviceId, error: Option<UserError>) {
        let now = self.now;
        let Some(device) = self.device_mut(id) else { return };
        let Some(mut change) = device.change.take() else { return };
        match change.stage {
            Stage::Draining => self.drained(id, change),
            Stage::Settling => {
                self.next_stage(id, change, Stage::Postsuspending, LaneStep::Postsuspend);
            }
            Stage::Postsuspending => {
                device.unsettled = false;
                // One that was suspended, but not settled, stays suspended for the old reason.
                device.suspended.get_or_insert_with(|| Suspension {
                    since: now,
                    noflush: change.options.noflush,
                    reason: change.options.reason.clone(),
                });
                match change.goal {
                    Goal::Suspend => self.end_change(id, change, None),
                    Goal::Resume => self.bind(id, change),
                    Goal::Remove => self.destroy(id, change),
                }
            }
            Stage::Binding => {
                self.went_live(id, &mut change);
                match error {
                    Some(error) => {
                        if let Some(device) = self.device_mut(id) {
                            device.unsettled |= change.recovers;
                        }
                        self.end_change(id, change, Some(error));
                    }
                    None => {
                        let resized = change.resized;
                        self.next_stage(id, change, Stage::Resuming, LaneStep::Resume { resized });
                    }
                }
            }
            Stage::Resuming => {
                device.suspended = None;
                self.end_change(id, change, error);
            }
            Stage::Destroying => self.destroyed(id, change),
        }
    }

    fn destroyed(&mut self, id: DeviceId, mut change: Change) {
        let gone = |text: &str| Err(UserError::new(ErrorCode::BeingRemoved, text));
        if let Some(device) = self.device_mut(id) {
            for (_, sink) in core::mem::take(&mut device.queue) {
                sink(gone("the device was removed"));
            }
            for wait in core::mem::take(&mut device.waits) {
                (wait.sink)(gone("the device was removed"));
            }
            if let Some(live) = device.live.take() {
                self.release_uses(id, &live.table);
            }
        }
        self.forget(id);
        self.events.raise();
        if let Some(sink) = change.sink.take() {
            sink(Ok(Reply::Done(None)));
        }
    }

    fn end_change(&mut self, id: DeviceId, mut change: Change, error: Option<UserError>) {
        if let Some(sink) = change.sink.take() {
            sink(match error {
                Some(error) => Err(error),
                None => Ok(self.done(id)),
            });
        }
        self.next_change(id);
    }

    fn next_change(&mut self, id: DeviceId) {
        while let Some(device) = self.device_mut(id) {
            if device.change.is_some() {
                return;
            }
            let Some((request, sink)) = device.queue.pop_front() else { return };
            if device.deleting {
                let text = "the device is being removed";
                sink(Err(UserError::new(ErrorCode::BeingRemoved, text)));
                continue;
            }
            self.start_change(id, request, sink);
        }
    }

    /// The deadline of a drain has passed.
    pub(super) fn deadline_passed(&mut self, id: DeviceId) {
        let Some(change) = self.device_mut(id).and_then(|device| device.change.as_mut()) else {
            return;
        };
        if !change.is_draining() && !change.is_recovering() {
            return;
        }
        match (change.options.on_timeout, change.aborted, change.options.deadline) {
            (OnTimeout::Fail, false, Some(deadline)) => {
                change.aborted = true;
                let round = change.round;
                self.tell(id, LaneStep::Abort);
                // What hangs in a lower device has failed now; a target below may keep I/O that
                // nobody can fail, and then this suspend, too, has to end.
                self.set_timer(self.now + deadline, round);
            }
            (OnTimeout::Fail, true | false, Some(_) | None) => {
                let text = "a device below keeps I/O that cannot be failed";
                self.give_up_change(id, ErrorCode::SuspendTimedOut, text);
            }
            (OnTimeout::Resume, ..) => {
                self.give_up_change(id, ErrorCode::SuspendTimedOut, "I/O was still under way");
            }
        }
    }

    /// The asker of a change has gone.
    pub(super) fn cancel_change(&mut self, id: DeviceId, ticket: Ticket) {
        let Some(device) = self.device_mut(id) else { return };
        let of_ticket = device
            .change
            .as_ref()
            .filter(|change| change.is_draining() || change.is_recovering())
            .is_some_and(|change| change.ticket == Some(ticket));
        if of_ticket {
            return self.give_up_change(id, ErrorCode::SuspendCancelled, "its asker has gone");
        }
        let queued = device.queue.iter().position(|(request, _)| match request {
            Request::Suspend { ticket: of, .. } | Request::Resume { ticket: of, .. } => {
                *of == ticket
            }
            _ => false,
        });
        if let Some((_, sink)) = queued.and_then(|at| device.queue.remove(at)) {
            let text = "given up before it began";
            sink(Err(UserError::new(ErrorCode::SuspendCancelled, text)));
        }
    }

    /// Ends a drain without effect: the gates open again, unless they were closed before. Ends the
    /// wait for a new table's targets: the device stays suspended with it.
    fn give_up_change(&mut self, id: DeviceId, code: ErrorCode, text: &str) {
        let Some(device) = self.device_mut(id) else { return };
        let Some(mut change) = device.change.take() else { return };
        if change.is_recovering() {
            return self.give_up_recovery(id, change, UserError::new(code, text));
        }
        let stays_suspended = device.suspended.is_some();
        let swap = change.swap.take();
        let mut unused = None;
        match swap {
            Some(swap) if device.inactive.is_none() => device.inactive = Some(swap),
            other => unused = other,
        }
        self.drop_round(change.round);
        if !stays_suspended {
            self.tell(id, LaneStep::Unsuspend);
        }
        if let Some(unused) = unused {
            self.discard_table(id, unused);
        }
        self.end_change(id, change, Some(UserError::new(code, text)));
    }

    /// Ends a resume whose new table is on all lanes, but not ready on some.
    fn give_up_recovery(&mut self, id: DeviceId, mut change: Change, error: UserError) {
        self.drop_round(change.round);
        self.tell(id, LaneStep::GiveUpResume);
        self.went_live(id, &mut change);
        if let Some(device) = self.device_mut(id) {
            device.unsettled = true;
        }
        let error =
            error.hint("the device stays suspended; resume it again, or load another table");
        self.end_change(id, change, Some(error));
    }

    /// The table of a change is in its place on all lanes (or will be, before any later command).
    fn went_live(&mut self, id: DeviceId, change: &mut Change) {
        let Some(swap) = change.swap.take() else { return };
        self.events.raise();
        let len_sectors = swap.table.len_sectors;
        let Some(device) = self.device_mut(id) else { return };
        let old = device.live.replace(swap);
        if old.as_ref().map_or(0, |old| old.table.len_sectors) != len_sectors {
            device.geometry = None;
        }
        if let Some(old) = old {
            self.release_uses(id, &old.table);
        }
    }
}
