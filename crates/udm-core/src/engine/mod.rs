//! A lane at work: the loop, and what passes through it.
//!
//! One [`Engine`] runs on each lane. A turn takes completions and messages in, runs timers, tasks
//! and bios, and ends by telling actors, so that what was gathered goes out in one system call:
//! ```text
//!   wait -> completions -> messages -> timers -> tasks -> bios -> turns -> end of turn -> (again)
//! ```
//! Files: `dispatch` (the way of a bio), `parent` (split and fan-out), `barrier`, `request/` (what
//! request-based devices do), `doorway` (calls into targets), `device` and `gate`, `own` (what
//! targets do of their own), `commands` (what the coordinator asks), `lowers`, `actors`, `parts`
//! (what actors reach), `tokens`.
//!
//! Rules: nothing here blocks except the driver's `wait`, and that only when there is nothing to
//! do; nothing allocates on the path of a bio; no lock is taken.

mod actors;
mod barrier;
mod commands;
mod device;
mod dispatch;
pub(crate) mod doorway;
pub(crate) mod gate;
mod lowers;
mod own;
mod parent;
pub(crate) mod parts;
mod regions;
mod request;
pub(crate) mod tokens;

pub use barrier::BarrierMessage;
pub use commands::{AnswerBody, COORDINATOR_LANE, LaneAnswer, LaneCommand, LaneStep};
pub use device::DeviceView;
pub(crate) use device::Devices;
pub use doorway::TargetNote;
pub use own::{HandedBio, HomingBio};
pub use regions::{Area, AreaWay, RegionNumbers, RegionSpec};

use crate::bio::BioBox;
use crate::lifecycle::{Coordinator, ReplySink, Request};
use actors::Actors;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use barrier::BarrierHomes;
use core::any::Any;
use core::fmt;
use core::future::Future;
use doorway::TargetParts;
use lowers::Lowers;
use parent::Parents;
use parts::{Shared, TimerFor};
use request::{Again, Requests};
use tokens::OpOwner;
use udm_lane::{Completion, Driver, Executor, Mailbox, MailboxReceiver, TaskId, Wake};
use udm_types::{ActorId, DeviceId, LaneId, LowerId, Nanos, Status};

/// Messages a lane's mailbox holds: control traffic, and bios that targets hand over (a pointer
/// each). A sender that finds it full keeps its message and tries again next turn; what it keeps is
/// bounded by the bios in flight.
pub const MAILBOX_CAPACITY: usize = 1024;

/// Bios started in one turn at the most, so that a submitter whose I/O completes at once (null,
/// memory) cannot keep messages and timers waiting.
const BIOS_PER_TURN_MAX: usize = 512;

/// Bios between two looks into the mailbox, so that a table swap under full load waits for a few
/// bios and not for a turn's share of them.
const BIOS_PER_LOOK: usize = 16;

/// Messages taken in one turn at the most, for the same reason the other way round.
const MESSAGES_PER_TURN_MAX: usize = 256;

/// A message to a lane.
pub enum LaneMessage {
    /// From the coordinator: a step of a round.
    Command(LaneCommand),
    /// To the coordinator: a lane's answer.
    Answer(LaneAnswer),
    /// To the coordinator: a request, and where its answer goes.
    Request(Box<Request>, ReplySink),
    /// To the coordinator: a target raised an event.
    Event(DeviceId),
    /// Between lanes: barriers.
    Barrier(BarrierMessage),
    /// Between the instances of a target.
    Note(TargetNote),
    /// Between the instances of a target: a bio to work on.
    Handed(HandedBio),
    /// A bio that was handed over, back to its lane.
    Homing(HomingBio),
    /// For an actor.
    ToActor(ActorId, Box<dyn Any + Send>),
    /// Runs on the lane: to install actors, and for tests.
    Run(Box<dyn FnOnce(&mut Engine) + Send>),
}

impl fmt::Debug for LaneMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LaneMessage::Command(command) => write!(f, "Command({command:?})"),
            LaneMessage::Answer(answer) => write!(f, "Answer({answer:?})"),
            LaneMessage::Request(request, _) => write!(f, "Request({request:?})"),
            LaneMessage::Event(device) => write!(f, "Event({device:?})"),
            LaneMessage::Barrier(message) => write!(f, "Barrier({message:?})"),
            LaneMessage::Note(note) => write!(f, "Note({note:?})"),
            LaneMessage::Handed(handed) => write!(f, "Handed({handed:?})"),
            LaneMessage::Homing(homing) => write!(f, "Homing({homing:?})"),
            LaneMessage::ToActor(actor, _) => write!(f, "ToActor({actor:?})"),
            LaneMessage::Run(_) => f.write_str("Run"),
        }
    }
}

/// What a lane is made of.
pub struct EngineConfig {
    /// Which lane this is.
    pub lane: LaneId,
    /// The mailboxes of all lanes, this one's too, by number.
    pub peers: Vec<Mailbox<LaneMessage>>,
    /// This lane's receiving end.
    pub receiver: MailboxReceiver<LaneMessage>,
    /// The world.
    pub driver: Box<dyn Driver>,
}

/// One lane.
pub struct Engine {
    pub(crate) shared: Shared,
    pub(crate) devices: Devices,
    lowers: Lowers,
    actors: Actors,
    parents: Parents,
    requests: Requests,
    /// Request-based devices with requests that go out at the end of the turn.
    plugged: Vec<DeviceId>,
    /// Request-based devices with requests that wait for more of their stream.
    growing: Vec<DeviceId>,
    /// One of them has so many that they go out now.
    plug_full: bool,
    /// Request-based devices with requests to map again.
    kicked: VecDeque<DeviceId>,
    parts: TargetParts,
    lower_timers: Vec<(Nanos, LowerId, u64)>,
    lower_turn_enders: Vec<LowerId>,
    barrier_homes: BarrierHomes,
    last_ticket: u64,
    coordinator: Option<Box<Coordinator>>,
    receiver: MailboxReceiver<LaneMessage>,
    executor: Executor,
    completions: Vec<Completion>,
    turn_enders: Vec<ActorId>,
    /// Actors behind the tasks' I/O handles, called after tasks have run.
    pub(crate) task_actors: Vec<ActorId>,
    bios_lost: u64,
}

/// What a lane has open; all zero on an idle lane without devices. For tests and simulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineCensus {
    /// Bios in tables, over all devices, with I/Os and works of the targets' own.
    pub in_flight: u64,
    /// Bios held at gates.
    pub held: u64,
    /// Requests of request-based devices that have not been started.
    pub waiting: u64,
    /// Requests of several bios.
    pub requests: usize,
    /// Bios that wait for pieces or copies.
    pub parents: usize,
    /// Operations of lower devices under way.
    pub lower_ops: u64,
    /// Actors installed.
    pub actors: usize,
    /// Bios somebody dropped (a bug), ever.
    pub bios_lost: u64,
}

/// Wakes a lane through its mailbox: only if it sleeps.
struct NudgeMailbox(Mailbox<LaneMessage>);

impl Wake for NudgeMailbox {
    fn wake(&self) {
        self.0.nudge();
    }
}

impl Engine {
    /// Makes a lane. Lane 0 hosts the coordinator.
    pub fn new(config: EngineConfig) -> Engine {
        let EngineConfig { lane, peers, receiver, driver } = config;
        let lanes = peers.len();
        let wake = Arc::new(NudgeMailbox(receiver.sender()));
        let shared = Shared::new(lane, peers, driver);
        let parts = TargetParts::new(lane, lanes, shared.lost.clone());
        Engine {
            shared,
            devices: Devices::default(),
            lowers: Lowers::default(),
            actors: Actors::default(),
            parents: Parents::default(),
            requests: Requests::default(),
            plugged: Vec::new(),
            growing: Vec::new(),
            plug_full: false,
            kicked: VecDeque::new(),
            parts,
            lower_timers: Vec::new(),
            lower_turn_enders: Vec::new(),
            barrier_homes: BarrierHomes::new(),
            last_ticket: 0,
            coordinator: (lane == COORDINATOR_LANE).then(|| Box::new(Coordinator::new(lanes))),
            receiver,
            executor: Executor::new(wake),
            completions: Vec::new(),
            turn_enders: Vec::new(),
            task_actors: Vec::new(),
            bios_lost: 0,
        }
    }

    /// One turn of the loop. Blocks only if `may_block` and there is nothing to do. True if
    /// anything was done.
    pub fn turn(&mut self, may_block: bool) -> bool {
        let mut did = self.wait(may_block);
        self.shared.flush_outboxes();
        did |= self.take_messages();
        did |= self.fire_timers();
        did |= self.run_tasks();
        did |= self.run_bios();
        did |= self.run_turns();
        did |= !self.shared.turn_enders.is_empty() || !self.lower_turn_enders.is_empty();
        self.end_turn();
        self.end_lower_turns();
        self.reap_actors();
        self.run_coordinator();
        self.collect_lost();
        did
    }

    /// True if a turn has something to do without waiting.
    pub fn has_work(&self) -> bool {
        !self.shared.incoming.is_empty()
            || !self.shared.loopback.is_empty()
            || !self.shared.turn_enders.is_empty()
            || !self.lower_turn_enders.is_empty()
            || !self.parts.is_empty()
            || !self.parts.turns.is_empty()
            || !self.kicked.is_empty()
            || !self.plugged.is_empty()
            || !self.shared.lost.is_empty()
            || self.shared.has_unsent()
            || self.executor.has_ready()
    }

    /// For whoever turns lanes without blocking (the simulator): announces that this lane is not
    /// turned again before its driver is woken or a deadline or completion is there. False if it
    /// has something to do after all.
    pub fn fall_asleep(&self) -> bool {
        !self.has_work() && self.receiver.prepare_to_sleep()
    }

    /// When the earliest timer is due.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.shared.timers.next_deadline()
    }

    /// The lane's number.
    pub fn lane(&self) -> LaneId {
        self.shared.lane
    }

    /// The clock of the current turn.
    pub fn now(&self) -> Nanos {
        self.shared.now
    }

    /// The driver's name.
    pub fn driver_name(&self) -> &'static str {
        self.shared.driver.name()
    }

    /// The driver, for set-up that runs on the lane.
    pub fn driver(&mut self) -> &mut dyn Driver {
        &mut *self.shared.driver
    }

    /// Sends a message to a lane.
    pub fn send(&mut self, lane: LaneId, message: LaneMessage) {
        self.shared.send(lane, message);
    }

    /// Starts a task on this lane's executor.
    pub fn spawn_task(&mut self, future: impl Future<Output = ()> + 'static) -> TaskId {
        self.executor.spawn(future)
    }

    /// What the lane has open.
    pub fn census(&self) -> EngineCensus {
        let mut census = EngineCensus {
            parents: self.parents.len(),
            requests: self.requests.len(),
            lower_ops: self.lowers.ops_in_flight(),
            actors: self.actors.len(),
            bios_lost: self.bios_lost,
            ..EngineCensus::default()
        };
        for device in self.devices.iter() {
            census.in_flight += device.gate.in_flight + device.gate.own.count();
            census.held += device.gate.held.len() as u64;
            census.waiting += device.requests.as_ref().map_or(0, |queue| queue.waiting());
        }
        census
    }

    fn wait(&mut self, may_block: bool) -> bool {
        let idle = may_block && !self.has_work() && self.receiver.prepare_to_sleep();
        let deadline = if idle { self.next_deadline() } else { Some(Nanos::ZERO) };
        let mut completions = core::mem::take(&mut self.completions);
        self.shared.driver.wait(deadline, &mut completions);
        if idle {
            self.receiver.awake();
        }
        self.shared.now = self.shared.driver.now();
        self.parts.now = self.shared.now;
        let did = !completions.is_empty();
        for completion in completions.drain(..) {
            match tokens::owner(completion.token) {
                Some(OpOwner::Actor(id, user)) => self.on_actor_op(id, user, completion),
                Some(OpOwner::Lower(id, user)) => self.on_lower_op(id, user, completion),
                None => debug_assert!(false, "a completion nobody asked for"),
            }
        }
        self.completions = completions;
        did
    }

    fn take_messages(&mut self) -> bool {
        let mut did = false;
        for _ in 0..MESSAGES_PER_TURN_MAX {
            let message = match self.shared.loopback.pop_front() {
                Some(message) => message,
                None => match self.receiver.receive() {
                    Some(message) => message,
                    None => break,
                },
            };
            did = true;
            self.on_message(message);
        }
        did
    }

    fn on_message(&mut self, message: LaneMessage) {
        match message {
            LaneMessage::Command(command) => self.on_command(command),
            LaneMessage::Barrier(message) => self.on_barrier_message(message),
            LaneMessage::Note(note) => {
                if let Some(device) = self.devices.get_mut(note.device) {
                    doorway::note(device, &mut self.parts, &note);
                }
            }
            LaneMessage::Handed(handed) => self.on_handed(handed),
            LaneMessage::Homing(homing) => self.on_homing(homing),
            LaneMessage::ToActor(actor, message) => self.on_actor_message(actor, message),
            LaneMessage::Run(run) => run(self),
            LaneMessage::Answer(answer) => {
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.on_answer(answer, self.shared.now);
                }
            }
            LaneMessage::Request(request, sink) => {
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.on_request(*request, sink, self.shared.now);
                }
            }
            LaneMessage::Event(device) => {
                if let Some(coordinator) = &mut self.coordinator {
                    coordinator.on_event(device);
                }
            }
        }
        // What a message set going comes before the next message, so that order is kept.
        self.run_coordinator();
    }

    fn fire_timers(&mut self) -> bool {
        let mut did = false;
        let now = self.shared.now;
        while let Some(timer) = self.shared.timers.pop_due(now) {
            did = true;
            match timer {
                TimerFor::Actor { actor, token } => {
                    self.with_actor(actor, |actor, cx| actor.on_timer(token, cx));
                }
                TimerFor::Lower { lower, token } => {
                    if self.lowers.get(lower).is_some() {
                        self.with_lower(lower, |lane, cx| lane.on_timer(token, cx));
                    }
                }
                TimerFor::Target { device, table_generation, target, token } => {
                    if let Some(device) = self.devices.get_mut(device) {
                        doorway::timer(
                            device,
                            &mut self.parts,
                            table_generation,
                            target as usize,
                            token,
                        );
                    }
                }
                TimerFor::Growth { device } => self.growth_timer(device),
                TimerFor::Requests { device } => self.requests_due(device),
                TimerFor::Coordinator { token } => {
                    if let Some(coordinator) = &mut self.coordinator {
                        coordinator.on_timer(token, now);
                    }
                }
            }
        }
        did
    }

    fn run_tasks(&mut self) -> bool {
        if !self.executor.run_ready() {
            return false;
        }
        for index in 0..self.task_actors.len() {
            self.with_actor(self.task_actors[index], |actor, cx| actor.on_turn_end(cx));
        }
        true
    }

    /// Runs bios until nothing moves or the turn's share is used up.
    fn run_bios(&mut self) -> bool {
        let mut did = self.run_kicked();
        did |= self.run_parts();
        for count in 1..=BIOS_PER_TURN_MAX {
            let Some(bio) = self.shared.incoming.pop_front() else { break };
            did = true;
            self.enter(bio);
            if self.shared.incoming.is_empty() {
                self.run_parts();
            }
            if count % BIOS_PER_LOOK == 0 {
                if self.plug_full {
                    self.unplug_all();
                }
                if self.receiver.has_message() {
                    break;
                }
            }
        }
        did |= self.run_parts();
        did | self.unplug_all()
    }

    /// Takes up what targets and lower devices asked for, until they ask for nothing more.
    fn run_parts(&mut self) -> bool {
        let mut did = false;
        loop {
            if let Some(bio) = self.parts.done.pop_front() {
                self.finish(bio);
            } else if let Some(bio) = self.parts.dispatched.pop_front() {
                self.enter(bio);
            } else if let Some(bio) = self.parts.requeued.pop_front() {
                self.requeue(bio, Again::NextTurn);
            } else {
                break;
            }
            did = true;
        }
        self.take_wishes();
        did
    }

    fn take_wishes(&mut self) {
        for (deadline, place, token) in self.parts.timers.drain(..) {
            let timer = TimerFor::Target {
                device: place.device,
                table_generation: place.table_generation,
                target: place.target,
                token,
            };
            self.shared.timers.set(deadline, timer);
        }
        for (deadline, lower, token) in self.lower_timers.drain(..) {
            self.shared.timers.set(deadline, TimerFor::Lower { lower, token });
        }
        for (lane, place, words) in self.parts.notes.drain(..) {
            let note = TargetNote {
                from: self.shared.lane,
                device: place.device,
                table_generation: place.table_generation,
                target: place.target,
                words,
            };
            self.shared.send(lane, LaneMessage::Note(note));
        }
        self.take_own_wishes();
        while let Some(device) = self.parts.events.pop() {
            self.shared.send(COORDINATOR_LANE, LaneMessage::Event(device));
        }
    }

    fn run_coordinator(&mut self) {
        let Some(coordinator) = &mut self.coordinator else { return };
        coordinator.settle();
        let lanes = self.shared.peers.len();
        while let Some(command) = coordinator.next_command() {
            for lane in 0..lanes {
                let lane = LaneId(lane as u16);
                self.shared.send(lane, LaneMessage::Command(command.clone()));
            }
        }
        while let Some((deadline, token)) = coordinator.next_timer() {
            self.shared.timers.set(deadline, TimerFor::Coordinator { token });
        }
    }

    /// Completes bios that somebody dropped. A bug, but not one the submitter should hang on.
    fn collect_lost(&mut self) {
        while let Some(bio) = self.shared.lost.pop() {
            self.bios_lost += 1;
            let mut bio: BioBox = bio;
            bio.set_live(true);
            self.give_up(bio, Status::IoErr);
        }
    }
}
