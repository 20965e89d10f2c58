//! What the coordinator tells lanes to do with a device, and how lanes answer.
//!
//! Every change of a device is a round: the coordinator sends a command to all lanes, each answers
//! when it has done it. Commands of one sender arrive in order. A lane never waits inside a
//! command; the answer of `Suspend` comes when the gate has drained, which may be much later.

use super::device::{DeviceLane, TableLane};
use super::doorway;
use super::gate::{Resuming, SuspendMark};
use super::parent::passes_through;
use super::{BarrierMessage, Engine, LaneMessage, RegionNumbers, RegionSpec};
use crate::actor::DeviceNotice;
use crate::error::UserError;
use crate::lifecycle::Gauges;
use crate::table::Table;
use crate::target::{MapMode, Preresume, Target, TargetCx};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use udm_types::{DeviceId, LaneId, Status};

/// The lane the coordinator lives on.
pub const COORDINATOR_LANE: LaneId = LaneId(0);

/// A step of a round, for one lane.
#[derive(Clone, Debug)]
pub struct LaneCommand {
    /// The device.
    pub device: DeviceId,
    /// To answer by; `None` if no answer is wanted.
    pub round: Option<u64>,
    /// What to do.
    pub step: LaneStep,
}

/// What a lane does.
#[derive(Clone, Debug)]
pub enum LaneStep {
    /// Make the device.
    Create,
    /// Forget the device; nothing is in flight.
    Destroy,
    /// Make instances of a table and keep them aside.
    Stage {
        /// Number of the load.
        generation: u64,
        /// The table.
        table: Arc<Table>,
        /// Bio or request, as the device is.
        mode: MapMode,
    },
    /// Drop a table kept aside.
    Unstage {
        /// Number of the load.
        generation: u64,
    },
    /// Call `presuspend`, close the gate, answer when nothing is in flight.
    Suspend {
        /// Targets may push back.
        noflush: bool,
    },
    /// No bio is in flight on any lane: call `settle`, answer when the targets have nothing of
    /// their own under way either.
    Settle,
    /// The suspend was abandoned: `presuspend_undo`, open the gate.
    Unsuspend,
    /// Nothing is in flight anywhere: `postsuspend`.
    Postsuspend,
    /// Put a staged table in place (if any) and call `preresume`.
    Bind {
        /// Number of the load; `None` to keep the live table.
        generation: Option<u64>,
    },
    /// The resume that waits for targets was given up: `resume_given_up`.
    GiveUpResume,
    /// `resume`, then let held bios in and open the gate.
    Resume {
        /// Tell actors that size or limits changed.
        resized: bool,
    },
    /// Fail what hangs below.
    Abort,
    /// A message for a target.
    Message {
        /// Index of the target.
        target: u32,
        /// The words.
        words: Arc<[String]>,
    },
    /// Counters of the targets of a live table; none if another is live by now.
    Counters {
        /// Number of its load.
        generation: u64,
    },
    /// Counters of the device.
    Gauges,
    /// Count a region from now on.
    StatsCreate {
        /// What it is.
        spec: Arc<RegionSpec>,
    },
    /// Forget a region.
    StatsDelete {
        /// Its number.
        region: u32,
    },
    /// The numbers of some areas of a region.
    StatsRead {
        /// Its number.
        region: u32,
        /// Which areas.
        areas: Range<usize>,
        /// Begin anew with them.
        clear: bool,
    },
}

/// A lane's answer.
#[derive(Debug)]
pub struct LaneAnswer {
    /// Who answers.
    pub lane: LaneId,
    /// The device.
    pub device: DeviceId,
    /// The round.
    pub round: u64,
    /// The outcome.
    pub outcome: Result<AnswerBody, UserError>,
}

/// What an answer carries.
#[derive(Debug)]
pub enum AnswerBody {
    /// Nothing.
    Done,
    /// A message's text.
    Text(Option<String>),
    /// Counters by target.
    Counters(Vec<Vec<u64>>),
    /// Counters of the device.
    Gauges(Box<Gauges>),
    /// Numbers of a statistics region.
    Region(Box<RegionNumbers>),
}

impl Engine {
    pub(crate) fn on_command(&mut self, command: LaneCommand) {
        let LaneCommand { device: id, round, step } = command;
        let outcome = match step {
            LaneStep::Create => {
                self.devices.create(id);
                Ok(AnswerBody::Done)
            }
            LaneStep::Destroy => self.destroy(id),
            LaneStep::Stage { generation, table, mode } => self.stage(id, generation, table, mode),
            LaneStep::Unstage { generation } => self.unstage(id, generation),
            // Answers for itself, when drained.
            LaneStep::Suspend { noflush } => return self.suspend(id, noflush, round),
            LaneStep::Settle => return self.settle_own(id, round),
            LaneStep::Unsuspend => self.unsuspend(id),
            LaneStep::Postsuspend => self.postsuspend(id),
            // Answers for itself, when all targets are ready.
            LaneStep::Bind { generation } => return self.bind(id, generation, round),
            LaneStep::GiveUpResume => {
                self.give_up_resume(id);
                Ok(AnswerBody::Done)
            }
            LaneStep::Resume { resized } => self.resume(id, resized),
            LaneStep::Abort => {
                self.abort_lowers(id);
                self.abort_held(id);
                Ok(AnswerBody::Done)
            }
            LaneStep::Message { target, words } => self.message(id, target, &words),
            LaneStep::Counters { generation } => {
                Ok(AnswerBody::Counters(self.counters(id, generation)))
            }
            LaneStep::Gauges => {
                let mut gauges = Gauges::default();
                if let Some(device) = self.devices.get(id) {
                    device.add_gauges(&mut gauges);
                }
                Ok(AnswerBody::Gauges(Box::new(gauges)))
            }
            LaneStep::StatsCreate { spec } => {
                let now = self.shared.now;
                self.with_device(id, |device| device.add_region(spec, now));
                Ok(AnswerBody::Done)
            }
            LaneStep::StatsDelete { region } => {
                self.with_device(id, |device| device.remove_region(region));
                Ok(AnswerBody::Done)
            }
            LaneStep::StatsRead { region, areas, clear } => {
                let now = self.shared.now;
                let read = |device: &mut DeviceLane| device.read_region(region, areas, clear, now);
                let numbers = self.with_device(id, read).unwrap_or_default();
                Ok(AnswerBody::Region(Box::new(numbers)))
            }
        };
        if let Some(round) = round {
            self.answer(id, round, outcome);
        }
    }

    fn with_device<R>(
        &mut self,
        id: DeviceId,
        run: impl FnOnce(&mut DeviceLane) -> R,
    ) -> Option<R> {
        self.devices.get_mut(id).map(run)
    }

    pub(super) fn answer(
        &mut self,
        device: DeviceId,
        round: u64,
        outcome: Result<AnswerBody, UserError>,
    ) {
        let answer = LaneAnswer { lane: self.shared.lane, device, round, outcome };
        self.shared.send(COORDINATOR_LANE, LaneMessage::Answer(answer));
    }

    fn stage(
        &mut self,
        id: DeviceId,
        generation: u64,
        table: Arc<Table>,
        mode: MapMode,
    ) -> Result<AnswerBody, UserError> {
        for (count, lower) in table.lowers.iter().enumerate() {
            if let Err(error) = self.attach_lower(lower) {
                for lower in &table.lowers[..count] {
                    self.detach_lower(lower.id);
                }
                return Err(error);
            }
        }
        let lane = self.shared.lane;
        if let Some(device) = self.devices.get_mut(id) {
            device.staged.push(TableLane::new(id, generation, table, mode, lane));
        }
        Ok(AnswerBody::Done)
    }

    fn unstage(&mut self, id: DeviceId, generation: u64) -> Result<AnswerBody, UserError> {
        if let Some(table) = self.take_staged(id, generation) {
            self.drop_table(table);
        }
        Ok(AnswerBody::Done)
    }

    fn take_staged(&mut self, id: DeviceId, generation: u64) -> Option<TableLane> {
        let device = self.devices.get_mut(id)?;
        let at = device.staged.iter().position(|staged| staged.generation == generation)?;
        Some(device.staged.remove(at))
    }

    fn drop_table(&mut self, table: TableLane) {
        let TableLane { table, targets, .. } = table;
        drop(targets);
        for lower in table.iter().flat_map(|table| &table.lowers) {
            self.detach_lower(lower.id);
        }
    }

    fn destroy(&mut self, id: DeviceId) -> Result<AnswerBody, UserError> {
        if let Some(mut device) = self.devices.destroy(id) {
            debug_assert!(device.gate.is_drained(), "a device is destroyed when drained");
            for held in device.gate.held.drain(..) {
                self.give_up(held.bio, Status::Offline);
            }
            for bio in device.requests.take().into_iter().flat_map(|queue| queue.into_bios()) {
                self.give_up(bio, Status::Offline);
            }
            // A barrier may wait for requests that are gone now.
            if device.gate.barrier.answer_due
                && let Some(ticket) = device.gate.barrier.closed_by
            {
                self.tell_barrier_home(id, BarrierMessage::Closed(id, ticket));
            }
            for table in device.staged.drain(..).chain([device.table]) {
                self.drop_table(table);
            }
            self.next_turn(id);
            self.notify_actors(DeviceNotice::Removed(id));
        }
        Ok(AnswerBody::Done)
    }

    fn suspend(&mut self, id: DeviceId, noflush: bool, round: Option<u64>) {
        if let Some(device) = self.devices.get_mut(id) {
            device.gate.noflush = noflush;
            device.gate.set_open(false);
            device.gate.suspend = Some(SuspendMark { answer_round: round });
        }
        self.each_target(id, |target, cx| target.presuspend(cx));
        // What presuspend let go of has to move before the gate can be found drained.
        self.run_parts();
        self.suspend_requests(id);
        self.check_drained(id);
    }

    fn settle_own(&mut self, id: DeviceId, round: Option<u64>) {
        if let Some(device) = self.devices.get_mut(id) {
            device.gate.suspend = Some(SuspendMark { answer_round: round });
        }
        self.each_target(id, |target, cx| target.settle(cx));
        self.run_parts();
        self.check_drained(id);
    }

    fn postsuspend(&mut self, id: DeviceId) -> Result<AnswerBody, UserError> {
        self.each_target(id, |target, cx| target.postsuspend(cx));
        if let Some(device) = self.devices.get_mut(id) {
            debug_assert!(device.gate.is_drained(), "no work is begun in postsuspend");
            device.gate.own.allowed = false;
        }
        Ok(AnswerBody::Done)
    }

    fn unsuspend(&mut self, id: DeviceId) -> Result<AnswerBody, UserError> {
        if let Some(device) = self.devices.get_mut(id) {
            device.gate.noflush = false;
            device.gate.suspend = None;
        }
        self.each_target(id, |target, cx| target.presuspend_undo(cx));
        self.resume_requests(id);
        self.let_flow(id);
        Ok(AnswerBody::Done)
    }

    fn bind(&mut self, id: DeviceId, generation: Option<u64>, round: Option<u64>) {
        if let Some(generation) = generation
            && let Some(table) = self.take_staged(id, generation)
            && let Some(device) = self.devices.get_mut(id)
        {
            let old = device.bind(table);
            self.drop_table(old);
        }
        let outcome = self.preresume(id, round);
        if let (Some(round), Some(outcome)) = (round, outcome) {
            self.answer(id, round, outcome.map(|()| AnswerBody::Done));
        }
    }

    /// Asks the targets whether I/O may flow; `None` if some of them will say so later.
    fn preresume(&mut self, id: DeviceId, round: Option<u64>) -> Option<Result<(), UserError>> {
        let device = self.devices.get_mut(id)?;
        device.gate.own.allowed = true;
        device.gate.own.resuming = Some(Box::new(Resuming { round, targets: Vec::new() }));
        for index in 0..device.table.targets.len() {
            let visit = |target: &mut dyn Target, cx: &mut TargetCx<'_>| target.preresume(cx);
            match doorway::call(device, &mut self.parts, index, visit) {
                Some(Ok(Preresume::Ready)) | None => {}
                Some(Ok(Preresume::Later)) => {
                    if let Some(resuming) = &mut device.gate.own.resuming {
                        resuming.targets.push(index as u32);
                    }
                }
                Some(Err(error)) => {
                    self.give_up_resume(id);
                    return Some(Err(error));
                }
            }
        }
        let waits = |resuming: &Resuming| !resuming.targets.is_empty();
        if device.gate.own.resuming.as_deref().is_some_and(waits) {
            return None;
        }
        device.gate.own.resuming = None;
        Some(Ok(()))
    }

    fn resume(&mut self, id: DeviceId, resized: bool) -> Result<AnswerBody, UserError> {
        self.each_target(id, |target, cx| target.resume(cx));
        if let Some(device) = self.devices.get_mut(id) {
            device.gate.noflush = false;
            device.gate.suspend = None;
        }
        if resized {
            self.notify_actors(DeviceNotice::Resized(id));
        }
        self.resume_requests(id);
        self.let_flow(id);
        Ok(AnswerBody::Done)
    }

    /// Fails what came through a device and waits at the gate, or in the queue, of one below.
    fn abort_held(&mut self, id: DeviceId) {
        let mut aborted = Vec::new();
        let (parents, requests) = (&self.parents, &self.requests);
        let mut queues = Vec::new();
        for below in self.devices.iter_mut().filter(|below| below.id != id) {
            for held in core::mem::take(&mut below.gate.held) {
                if passes_through(parents, requests, &held.bio, id) {
                    aborted.push(held.bio);
                } else {
                    below.gate.held.push_back(held);
                }
            }
            queues.extend(below.requests.as_ref().map(|_| below.id));
        }
        for bio in aborted {
            self.give_up(bio, Status::Timeout);
        }
        for below in queues {
            self.abort_requests(below, id);
        }
    }

    fn message(
        &mut self,
        id: DeviceId,
        target: u32,
        words: &[String],
    ) -> Result<AnswerBody, UserError> {
        let Some(device) = self.devices.get_mut(id) else { return Ok(AnswerBody::Text(None)) };
        doorway::message(device, &mut self.parts, target as usize, words).map(AnswerBody::Text)
    }

    fn counters(&self, id: DeviceId, generation: u64) -> Vec<Vec<u64>> {
        let device = self.devices.get(id).filter(|device| device.table.generation == generation);
        let Some(device) = device else { return Vec::new() };
        device
            .table
            .targets
            .iter()
            .map(|target| {
                let mut sum = Vec::new();
                target.instance.add_counters(&mut sum);
                sum
            })
            .collect()
    }

    fn each_target(
        &mut self,
        id: DeviceId,
        mut visit: impl FnMut(&mut dyn Target, &mut TargetCx<'_>),
    ) {
        let Some(device) = self.devices.get_mut(id) else { return };
        let count = device.table.targets.len();
        for index in 0..count {
            if let Some(device) = self.devices.get_mut(id) {
                doorway::call(device, &mut self.parts, index, &mut visit);
            }
        }
    }

    /// Tells whoever closed the gate that nothing is in flight, once.
    pub(crate) fn check_drained(&mut self, id: DeviceId) {
        let Some(device) = self.devices.get_mut(id) else { return };
        let gate = &mut device.gate;
        if gate.in_flight != 0 {
            return;
        }
        if gate.barrier.answer_due
            && device.requests.as_ref().is_none_or(|queue| queue.is_idle())
            && let Some(ticket) = gate.barrier.closed_by
        {
            gate.barrier.answer_due = false;
            self.tell_barrier_home(id, BarrierMessage::Closed(id, ticket));
        }
        let Some(device) = self.devices.get_mut(id) else { return };
        if device.gate.own.is_idle()
            && let Some(mark) = &mut device.gate.suspend
            && let Some(round) = mark.answer_round.take()
        {
            self.answer(id, round, Ok(AnswerBody::Done));
        }
    }
}
