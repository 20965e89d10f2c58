//! The one doorway: every call from the core into a target goes through this file.
//!
//! It gives the target its view of the lane, and checks what comes back: the bio left through the
//! frame it came in by, was not sent to the device it is in, and its operation is one the target
//! takes. A target that breaks the contract loses that bio (it fails) and is counted; the daemon and
//! every other device go on.
//!
//! What a target does in a call (complete, dispatch, requeue, set a timer, raise an event) is
//! gathered in [`TargetParts`] and taken up by the loop afterwards, so a target can never re-enter
//! the engine.

use crate::bio::{BioBox, Dest};
use crate::engine::device::DeviceLane;
use crate::error::UserError;
use crate::target::{Ended, Mapped, Target, TargetCx};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use udm_types::{DeviceId, LaneId, Nanos, Status};

/// What targets asked for during calls.
#[derive(Debug, Default)]
pub(crate) struct TargetParts {
    pub(crate) done: VecDeque<BioBox>,
    pub(crate) dispatched: VecDeque<BioBox>,
    pub(crate) requeued: VecDeque<BioBox>,
    pub(crate) timers: Vec<(Nanos, DeviceId, u64, u32, u64)>,
    pub(crate) events: Vec<DeviceId>,
}

/// The lane's side of a call: parts, clock, lane.
pub(crate) struct Caller<'a> {
    pub(crate) parts: &'a mut TargetParts,
    pub(crate) now: Nanos,
    pub(crate) lane: LaneId,
}

/// What became of a bio that was mapped.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send it on.
    Onward(BioBox),
    /// The target has it.
    Kept,
    /// Push it back.
    Requeue(BioBox),
    /// It failed; its status is set and `end_io` is not called.
    Dead(BioBox),
}

/// Frame target of a flush that goes past the targets.
pub(crate) const NO_TARGET: u32 = u32::MAX;

/// Maps a bio through target `index` of a device; counts it in flight.
#[inline]
pub(crate) fn map(
    device: &mut DeviceLane,
    caller: Caller<'_>,
    index: usize,
    seq: u64,
    mut bio: BioBox,
) -> Next {
    let id = device.id;
    if !bio.has_room() {
        return refuse(device, bio, Status::IoErr);
    }
    let Some(live) = device.table.as_mut() else { return refuse(device, bio, Status::IoErr) };
    let target = &mut live.targets[index];
    if !target.ops.has(bio.op) {
        bio.status = Status::NotSupported;
        return Next::Dead(bio);
    }
    bio.push_frame(id, index as u32, seq);
    device.gate.in_flight += 1;
    let depth = bio.depth();
    let mut cx = TargetCx {
        parts: caller.parts,
        now: caller.now,
        lane: caller.lane,
        begin_sector: target.begin_sector,
        len_sectors: target.end_sector - target.begin_sector,
        noflush_suspending: device.gate.noflush,
        device: id,
        target: index as u32,
        table_generation: live.generation,
    };
    match target.instance.map(bio, &mut cx) {
        Mapped::Remapped(bio) => {
            if bio.depth() == depth && bio.dest != Dest::Device(id) {
                return Next::Onward(bio);
            }
            device.stats.contract_breaches += 1;
            dead(device, bio, Status::IoErr)
        }
        Mapped::Submitted => Next::Kept,
        Mapped::Requeue(bio) => Next::Requeue(bio),
        Mapped::Kill(bio, status) => dead(device, bio, status),
    }
}

/// Fails a bio inside the target: leaves the frame, uncounts it.
fn dead(device: &mut DeviceLane, mut bio: BioBox, status: Status) -> Next {
    bio.status = if status.is_ok() { Status::IoErr } else { status };
    bio.pop_frame();
    device.gate.in_flight -= 1;
    device.stats.count(&bio, Nanos::ZERO);
    Next::Dead(bio)
}

/// Fails a bio that never got to the target because a rule was broken.
#[cold]
fn refuse(device: &mut DeviceLane, mut bio: BioBox, status: Status) -> Next {
    device.stats.contract_breaches += 1;
    bio.status = status;
    Next::Dead(bio)
}

/// Calls `end_io` of the target in the newest frame, which the bio has not left yet.
pub(crate) fn end_io(device: &mut DeviceLane, caller: Caller<'_>, bio: BioBox) -> Ended {
    let index = bio.frame().target as usize;
    let mut bio = Some(bio);
    let ended =
        call(device, caller, index, |target, cx| bio.take().map(|bio| target.end_io(bio, cx)));
    match (ended.flatten(), bio) {
        (Some(ended), _) => ended,
        // The table is bound while bios are in flight, so this arm only guards the type.
        (None, Some(bio)) => Ended::Done(bio),
        (None, None) => Ended::Incomplete,
    }
}

/// Calls a target of the live table with its view of the lane; `None` if there is no such target.
pub(crate) fn call<R>(
    device: &mut DeviceLane,
    caller: Caller<'_>,
    index: usize,
    visit: impl FnOnce(&mut dyn Target, &mut TargetCx<'_>) -> R,
) -> Option<R> {
    let noflush_suspending = device.gate.noflush;
    let live = device.table.as_mut()?;
    let target = live.targets.get_mut(index)?;
    let mut cx = TargetCx {
        parts: caller.parts,
        now: caller.now,
        lane: caller.lane,
        begin_sector: target.begin_sector,
        len_sectors: target.end_sector - target.begin_sector,
        noflush_suspending,
        device: device.id,
        target: index as u32,
        table_generation: live.generation,
    };
    Some(visit(&mut *target.instance, &mut cx))
}

/// Delivers a timer, if the table it was set by is still live.
pub(crate) fn timer(
    device: &mut DeviceLane,
    caller: Caller<'_>,
    table_generation: u64,
    index: usize,
    token: u64,
) {
    let live = device.table.as_ref().map(|live| live.generation);
    if live == Some(table_generation) {
        call(device, caller, index, |target, cx| target.on_timer(token, cx));
    }
}

/// Delivers a message to the target at `index`.
pub(crate) fn message(
    device: &mut DeviceLane,
    caller: Caller<'_>,
    index: usize,
    words: &[String],
) -> Result<Option<String>, UserError> {
    call(device, caller, index, |target, cx| target.message(words, cx)).unwrap_or(Ok(None))
}
