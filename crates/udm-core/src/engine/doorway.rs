//! The one doorway: every call from the core into a target goes through this file.
//!
//! It gives the target its view of the lane, and checks what comes back: the bio left through the
//! frame it came in by, was not sent to the device it is in, and its operation is one the target
//! takes. A target that breaks the contract loses that bio (it fails) and is counted; the daemon
//! and every other device go on.
//!
//! What a target does in a call (complete, dispatch, requeue, set a timer, raise an event) is
//! gathered in [`TargetParts`] and taken up by the loop afterwards, so a target can never re-enter
//! the engine.

use crate::bio::{BioBox, Dest, LostBios};
use crate::engine::device::DeviceLane;
use crate::engine::gate::Gate;
use crate::engine::parts::BioStock;
use crate::error::UserError;
use crate::target::{Ended, Mapped, Target};
use crate::target_cx::{TargetCx, TargetPlace};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use udm_lane::BufPool;
use udm_types::{DeviceId, LaneId, Nanos, Sector, Status};

/// What targets reach of their lane: its number and clock, and what they asked for during calls.
#[derive(Debug)]
pub(crate) struct TargetParts {
    pub(crate) lane: LaneId,
    pub(crate) lanes: usize,
    pub(crate) now: Nanos,
    pub(crate) done: VecDeque<BioBox>,
    pub(crate) dispatched: VecDeque<BioBox>,
    pub(crate) requeued: VecDeque<BioBox>,
    pub(crate) timers: Vec<(Nanos, TargetPlace, u64)>,
    pub(crate) events: Vec<DeviceId>,
    /// To whom, from which target, what.
    pub(crate) notes: Vec<(LaneId, TargetPlace, [u64; 3])>,
    /// Bios for the instance on another lane.
    pub(crate) handed: Vec<(LaneId, TargetPlace, BioBox)>,
    /// Bios of other lanes on their way back.
    pub(crate) homeward: Vec<(BioBox, Homecoming)>,
    /// Who wants a turn, each once, in the order they get it.
    pub(crate) turns: VecDeque<TargetPlace>,
    /// Who has ended its `preresume`, and how.
    pub(crate) resumed: Vec<(TargetPlace, Result<(), UserError>)>,
    /// Devices whose closed gate may be drained.
    pub(crate) settled: Vec<DeviceId>,
    /// Blank bios and buffers of the targets.
    pub(crate) stock: BioStock,
    pub(crate) bufs: BufPool,
}

/// What a lane decided about a bio of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Homecoming {
    /// It is done; its status is set.
    Completed,
    /// It goes on from home to its destination.
    Dispatched,
    /// It is pushed back.
    Requeued,
}

/// What one lane's instance of a target tells another's.
#[derive(Clone, Copy, Debug)]
pub struct TargetNote {
    pub(crate) from: LaneId,
    pub(crate) device: DeviceId,
    pub(crate) table_generation: u64,
    pub(crate) target: u32,
    pub(crate) words: [u64; 3],
}

/// What became of a bio that was mapped.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send it on. The destination beside it is the bio's own: carried in a register, it spares the
    /// next layer a wait for what this one has just stored.
    Onward(BioBox, Dest),
    /// The target has it.
    Kept,
    /// Push it back.
    Requeue(BioBox),
    /// Push it back for a while.
    DelayRequeue(BioBox),
    /// It failed; its status is set and `end_io` is not called.
    Dead(BioBox),
}

/// Frame target of a flush that goes past the targets.
pub(crate) const NO_TARGET: u32 = u32::MAX >> 1;

impl TargetParts {
    pub(crate) fn new(lane: LaneId, lanes: usize, lost: LostBios) -> TargetParts {
        TargetParts {
            lane,
            lanes,
            now: Nanos::ZERO,
            done: VecDeque::new(),
            dispatched: VecDeque::new(),
            requeued: VecDeque::new(),
            timers: Vec::new(),
            events: Vec::new(),
            notes: Vec::new(),
            handed: Vec::new(),
            homeward: Vec::new(),
            turns: VecDeque::new(),
            resumed: Vec::new(),
            settled: Vec::new(),
            stock: BioStock::new(lane, lost),
            bufs: BufPool::new(),
        }
    }

    /// True if nothing waits to be taken up (turns are no wish of this kind).
    pub(crate) fn is_empty(&self) -> bool {
        self.done.is_empty()
            && self.dispatched.is_empty()
            && self.requeued.is_empty()
            && self.timers.is_empty()
            && self.notes.is_empty()
            && self.events.is_empty()
            && self.handed.is_empty()
            && self.homeward.is_empty()
            && self.resumed.is_empty()
            && self.settled.is_empty()
    }
}

/// Maps a bio through target `index` of a device; counts it in flight.
#[inline(always)]
pub(crate) fn map(
    device: &mut DeviceLane,
    parts: &mut TargetParts,
    index: usize,
    seq: u64,
    mut bio: BioBox,
) -> Next {
    let id = device.id;
    let Some(target) = device.table.targets.get_mut(index) else { return refuse(device, bio) };
    if !bio.has_room() {
        return refuse(device, bio);
    }
    debug_assert!(target.ops.has(bio.op), "dispatch asks the target's traits first");
    device.gate.in_flight += 1;
    if let Some((dest, distance)) = target.shift
        && bio.op.has_data()
    {
        let sector = bio.sector.wrapping_add(distance);
        // A target with a shift never wants `end_io`.
        bio.push_frame(id, index as u32, false, seq);
        if cfg!(debug_assertions) {
            let mut cx = TargetCx { parts, place: &target.place, gate: &mut device.gate };
            bio = same_by_map(&mut *target.instance, bio, &mut cx, (dest, sector));
        }
        bio.remap(dest, sector);
        return Next::Onward(bio, dest);
    }
    bio.push_frame(id, index as u32, target.wants_end_io, seq);
    let mut cx = TargetCx { parts, place: &target.place, gate: &mut device.gate };
    match target.instance.map(bio, &mut cx) {
        Mapped::Remapped(bio) if bio.dest != Dest::Device(id) => {
            let dest = bio.dest;
            Next::Onward(bio, dest)
        }
        Mapped::Remapped(bio) => {
            device.stats.contract_breaches += 1;
            dead(device, bio, parts.now)
        }
        Mapped::Submitted => Next::Kept,
        Mapped::Requeue(bio) => Next::Requeue(bio),
        Mapped::DelayRequeue(bio) => Next::DelayRequeue(bio),
        Mapped::Kill(bio) => dead(device, bio, parts.now),
    }
}

/// Debug builds: a target's `map` must say what its `shift` says.
#[cold]
fn same_by_map(
    target: &mut dyn Target,
    bio: BioBox,
    cx: &mut TargetCx<'_>,
    expected: (Dest, Sector),
) -> BioBox {
    match target.map(bio, cx) {
        Mapped::Remapped(bio) => {
            assert_eq!((bio.dest, bio.sector), expected, "map and shift disagree");
            bio
        }
        other => unreachable!("a target with a shift only remaps, not {other:?}"),
    }
}

/// Fails a bio inside the target: leaves the frame, uncounts it.
#[cold]
fn dead(device: &mut DeviceLane, mut bio: BioBox, now: Nanos) -> Next {
    if bio.status.is_ok() {
        bio.status = Status::IoErr;
    }
    let frame = bio.pop_frame();
    device.gate.in_flight -= 1;
    device.stats.count(&bio, Nanos::ZERO);
    if let Some(frame) = frame {
        device.region_end(frame, &bio, Nanos::ZERO, now);
    }
    Next::Dead(bio)
}

/// Fails a bio that never got to the target because a rule was broken.
#[cold]
fn refuse(device: &mut DeviceLane, mut bio: BioBox) -> Next {
    device.stats.contract_breaches += 1;
    bio.status = Status::IoErr;
    Next::Dead(bio)
}

/// Calls `end_io` of the target in the newest frame, which the bio has not left yet.
pub(crate) fn end_io(device: &mut DeviceLane, parts: &mut TargetParts, bio: BioBox) -> Ended {
    let index = bio.frame().target() as usize;
    // The table is bound while bios are in flight, so the target is there.
    let Some(target) = device.table.targets.get_mut(index) else { return Ended::Done(bio) };
    let mut cx = TargetCx { parts, place: &target.place, gate: &mut device.gate };
    target.instance.end_io(bio, &mut cx)
}

/// Calls a target of the live table with its view of the lane; `None` if there is no such target.
pub(crate) fn call<R>(
    device: &mut DeviceLane,
    parts: &mut TargetParts,
    index: usize,
    visit: impl FnOnce(&mut dyn Target, &mut TargetCx<'_>) -> R,
) -> Option<R> {
    let target = device.table.targets.get_mut(index)?;
    let mut cx = TargetCx { parts, place: &target.place, gate: &mut device.gate };
    Some(visit(&mut *target.instance, &mut cx))
}

/// Delivers a timer, if the table it was set by is still live.
pub(crate) fn timer(
    device: &mut DeviceLane,
    parts: &mut TargetParts,
    table_generation: u64,
    index: usize,
    token: u64,
) {
    if device.table.generation == table_generation {
        call(device, parts, index, |target, cx| target.on_timer(token, cx));
    }
}

/// Delivers a note to the instance of its table, live or staged; dropped if there is none.
pub(crate) fn note(device: &mut DeviceLane, parts: &mut TargetParts, note: &TargetNote) {
    let gate: &mut Gate = &mut device.gate;
    let mut tables = core::iter::once(&mut device.table).chain(&mut device.staged);
    let Some(table) = tables.find(|table| table.generation == note.table_generation) else {
        return;
    };
    if let Some(target) = table.targets.get_mut(note.target as usize) {
        let mut cx = TargetCx { parts, place: &target.place, gate };
        target.instance.on_note(note.from, note.words, &mut cx);
    }
}

/// Delivers a message to the target at `index`.
pub(crate) fn message(
    device: &mut DeviceLane,
    parts: &mut TargetParts,
    index: usize,
    words: &[String],
) -> Result<Option<String>, UserError> {
    call(device, parts, index, |target, cx| target.message(words, cx)).unwrap_or(Ok(None))
}
