//! One world: a seed's lanes, disks, load and scripts, from the first turn to the verdict.
//!
//! Every lane is a production [`Engine`] with a simulated driver; all of them run in this one
//! thread. Each step, the seed chooses which lane turns, or how far time moves. The run has two
//! phases: in
//! *safety* anything may break; then everything is healed and *liveness* asks that all that was
//! held or begun completes, that devices can be read, flushed and removed, and that nothing is left
//! over.
//!
//! ```text
//!   Play (K steps) -> heal -> Calm -> Sweep -> Leave -> census
//! ```
//! The tricky case is telling "stuck" from "slow". Lanes sleep unless something woke them, and time
//! jumps to the next thing that can happen. When nothing can happen any more and something still
//! waits, that is a violation at once, with the list of what waits; so is too long a way to the
//! end.

use crate::control::Control;
use crate::director::{Act, Director, Progress};
use crate::disk::Disk;
use crate::driver::SimDriver;
use crate::hold::{HoldType, SkewType, SulkType};
use crate::lane_io::{LaneIo, Sleep};
use crate::layout::SpaceMap;
use crate::ops::Ops;
use crate::oracle::Oracle;
use crate::paths::{FIRST_PATH_HANDLE, Path};
use crate::state::{Canary, Phase, SimState, Stage};
use crate::swarm::Swarm;
use crate::tally::Tally;
use crate::trace::Trace;
use crate::{side, vault, volume, weather};
use fastrand::Rng;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use udm_core::engine::{EngineCensus, LaneMessage};
use udm_core::{Engine, EngineConfig, LowerRef, Registry, TargetType};
use udm_lane::{Executor, Mailbox, MailboxReceiver, NoWake, RawHandle, Wake, mailbox};
use udm_lower::RawFile;
use udm_types::{DeviceFeatures, LaneId, LowerId, Nanos, QueueLimits};

/// Steps the liveness phase may take before it counts as stuck.
const LIVENESS_STEPS_MAX: u64 = 400_000;

/// Steps until everything has come to rest after the last act: timers that nobody waits for any
/// more still fire, operations that were abandoned end.
const REST_STEPS_MAX: u64 = 100_000;

/// What to run.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// Steps of the safety phase.
    pub steps: u64,
    /// Lanes, if not drawn.
    pub lanes: Option<usize>,
    /// The only feature to leave on.
    pub only: Option<String>,
    /// A planted bug.
    pub canary: Option<Canary>,
    /// Print every event.
    pub trace: bool,
}

/// How a world ended.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The broken promise, if any.
    pub violation: Option<String>,
    /// Hash over all events.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// What happened how often.
    pub tally: Tally,
    /// Steps the safety phase took.
    pub steps: u64,
}

struct World {
    stage: Stage,
    engines: Vec<Engine>,
    coordinator: Mailbox<LaneMessage>,
    control: Control,
    director: Director,
    scripts: Executor,
    script_count: usize,
}

static HOLD: HoldType = HoldType;
static SKEW: SkewType = SkewType;
static SULK: SulkType = SulkType;

/// Runs a world to its end.
pub fn run(scenario: &Scenario) -> Verdict {
    let mut world = World::new(scenario);
    let steps = world.play(scenario.steps);
    if world.stage.get().oracle.violation().is_none() {
        world.settle();
    }
    let mut state = world.stage.get();
    let hash = state.trace.hash();
    Verdict {
        violation: state.oracle.violation().map(str::to_owned),
        hash,
        events: state.trace.events(),
        tally: std::mem::take(&mut state.tally),
        steps,
    }
}

fn draw_state(scenario: &Scenario) -> SimState {
    let mut rng = Rng::with_seed(scenario.seed);
    let mut swarm = Swarm::draw(&mut rng);
    swarm.adjust(scenario.lanes, scenario.only.as_deref(), scenario.canary);
    let block = swarm.block_sectors;
    let units = if block == 1 { 1536 } else { 768 };
    let mut disks: Vec<Disk> =
        (0..swarm.disks).map(|_| Disk::new(units * block, swarm.fallocate)).collect();
    let mut paths = Vec::new();
    for _ in 0..swarm.luns {
        let len = rng.u64(24..160) * block;
        paths.extend((0..swarm.paths_each).map(|_| Path::new(disks.len(), len)));
        disks.push(Disk::new(len, swarm.fallocate));
    }
    if swarm.compress {
        disks.push(vault::disk(swarm.fallocate, &mut rng));
    }
    let lanes = (0..swarm.lanes).map(|_| LaneIo::new()).collect();
    let mut trace = Trace::new(scenario.trace);
    trace.note_text(Nanos::ZERO, "world", &format!("{swarm:?}"));
    let mut oracle = Oracle::new();
    oracle.swap_order = scenario.canary == Some(Canary::SwappedOrder);
    SimState {
        now: Nanos(1_000_000),
        rng,
        swarm,
        trace,
        disks,
        paths,
        pinned: BTreeSet::new(),
        resuming: 0,
        ops: Ops::default(),
        lanes,
        oracle,
        tally: Tally::default(),
        phase: Phase::Safety,
        canary: scenario.canary,
    }
}

fn make_lowers(state: &mut SimState) -> Vec<LowerRef> {
    let block_bytes = state.swarm.block_sectors as u32 * 512;
    let mut lowers = Vec::new();
    let limits = QueueLimits {
        logical_block_bytes: block_bytes,
        physical_block_bytes: block_bytes,
        io_min_bytes: block_bytes,
        features: DeviceFeatures::WRITE_CACHE | DeviceFeatures::FUA,
        ..QueueLimits::default()
    };
    for index in 0..state.disks.len() {
        let direct = state.rng.u32(0..3) == 0;
        if direct {
            // Past the page cache a disk does whole blocks or nothing.
            state.disks[index].unit_bytes = u64::from(block_bytes);
        }
        let len_sectors = state.disks[index].len_sectors();
        let raw = RawHandle(index as i32);
        let file = RawFile::new(&format!("disk{index}"), len_sectors, limits.clone(), direct, raw);
        lowers.push(LowerRef { id: LowerId(index as u32), device: Arc::new(file) });
    }
    for (index, path) in state.paths.iter().enumerate() {
        let raw = RawHandle(FIRST_PATH_HANDLE + index as i32);
        let (disk, len_sectors) = (&state.disks[path.disk], path.len_sectors());
        let direct = disk.unit_bytes > 8;
        let file = RawFile::new(&format!("path{index}"), len_sectors, limits.clone(), direct, raw);
        let id = LowerId((state.disks.len() + index) as u32);
        lowers.push(LowerRef { id, device: Arc::new(path.device(file)) });
    }
    lowers
}

fn make_engines(stage: &Stage) -> (Vec<Engine>, Mailbox<LaneMessage>) {
    let lanes = stage.get().lanes.len();
    let mut boxes: Vec<(Mailbox<LaneMessage>, MailboxReceiver<LaneMessage>)> = Vec::new();
    for lane in 0..lanes {
        let wake = Arc::clone(&stage.get().lanes[lane].wake) as Arc<dyn Wake>;
        // Small enough that a full mailbox happens.
        let capacity = stage.get().rng.usize(4..64);
        boxes.push(mailbox(capacity, wake));
    }
    let peers: Vec<Mailbox<LaneMessage>> = boxes.iter().map(|(sender, _)| sender.clone()).collect();
    let coordinator = peers[0].clone();
    let engines = boxes
        .into_iter()
        .enumerate()
        .map(|(lane, (_, receiver))| {
            Engine::new(EngineConfig {
                lane: LaneId(lane as u16),
                peers: peers.clone(),
                receiver,
                driver: Box::new(SimDriver::new(stage.clone(), lane)),
            })
        })
        .collect();
    (engines, coordinator)
}

impl World {
    fn new(scenario: &Scenario) -> World {
        let mut world = World::empty(draw_state(scenario));
        let swarm = world.stage.get().swarm.clone();
        for index in 0..swarm.volumes {
            world.spawn(volume::live(world.director.clone(), index));
        }
        if swarm.scratch {
            world.spawn(side::scratch(world.director.clone()));
        }
        if swarm.luns > 0 {
            world.spawn(weather::blow(world.director.clone()));
            world.spawn(weather::check_paths(world.director.clone()));
        }
        if swarm.races {
            world.director.progress.meddlers.set(1);
            world.spawn(side::meddle(world.director.clone()));
        }
        world
    }

    /// A script of three acts: it tells when it has finished each.
    fn spawn(&mut self, script: impl Future<Output = ()> + 'static) {
        self.script_count += 1;
        self.director.progress.busy.set(self.script_count);
        self.scripts.spawn(script);
    }

    /// A world in which nobody does anything yet.
    fn empty(mut state: SimState) -> World {
        let lowers = make_lowers(&mut state);
        let swarm = state.swarm.clone();
        let units = (state.disks[0].len_sectors() / swarm.block_sectors) as usize;
        let luns = state.disks.iter().skip(swarm.disks).take(swarm.luns);
        let luns = luns.map(Disk::len_sectors).collect();
        let space = SpaceMap::new(swarm.disks, units, swarm.block_sectors).with_luns(luns);
        let stage = Stage::new(state);
        let (engines, coordinator) = make_engines(&stage);
        let control = Control::new(stage.clone());
        let own: [&'static dyn TargetType; 4] = [&HOLD, &SKEW, &SULK, udm_testkit::worker_type()];
        let registry = Registry::new(udm_targets::all().into_iter().chain(own));
        let director = Director {
            stage: stage.clone(),
            control: control.clone(),
            registry: Rc::new(registry),
            disks: Rc::new(lowers),
            multis: Rc::default(),
            waiting: Rc::default(),
            space: Rc::new(RefCell::new(space)),
            progress: Rc::new(Progress {
                act: Cell::new(Act::Play),
                busy: Cell::new(0),
                meddlers: Cell::new(0),
            }),
            tasks: Rc::default(),
            last_ticket: Rc::default(),
        };
        let scripts = Executor::new(Arc::new(NoWake));
        World { stage, engines, coordinator, control, director, scripts, script_count: 0 }
    }

    /// The safety phase; returns the steps it took.
    fn play(&mut self, steps: u64) -> u64 {
        for step in 0..steps {
            if self.stage.get().once_in(1500) {
                self.stage.get().heal_hung(false);
            }
            if !self.step() {
                let mut state = self.stage.get();
                match state.ops.any_hung() {
                    true => state.heal_hung(true),
                    // Only liveness may judge that nothing moves any more.
                    false => return step,
                }
            }
            if self.stage.get().oracle.violation().is_some() {
                return step + 1;
            }
        }
        steps
    }

    /// The liveness phase and the last census.
    fn settle(&mut self) {
        {
            let mut state = self.stage.get();
            state.note("heal", &[]);
            state.phase = Phase::Liveness;
            let in_use: Vec<usize> =
                self.director.multis.borrow().values().flatten().copied().collect();
            state.leave_one_path_each(&in_use);
            state.heal_hung(true);
        }
        self.director.progress.act.set(Act::Calm);
        for next in [Some(Act::Sweep), Some(Act::Leave), None] {
            if !self.run_act() {
                return;
            }
            // What was begun before the healing may still be slow; devices are fenced until it
            // ends.
            self.drain_disks();
            if let Some(act) = next {
                self.director.progress.busy.set(self.script_count);
                self.director.progress.act.set(act);
            }
        }
        self.rest();
    }

    /// Runs until all scripts have finished the act; false if they cannot.
    fn run_act(&mut self) -> bool {
        for _ in 0..LIVENESS_STEPS_MAX {
            if self.director.progress.busy.get() == 0 {
                return true;
            }
            let moved = self.step();
            if self.stage.get().oracle.violation().is_some() {
                return false;
            }
            if !moved {
                break;
            }
        }
        self.report_stuck();
        false
    }

    fn drain_disks(&mut self) {
        for _ in 0..LIVENESS_STEPS_MAX {
            let quiet = {
                let state = self.stage.get();
                state.ops.is_empty() && state.lanes.iter().all(|lane| lane.ended.is_empty())
            };
            if quiet || !self.step() {
                return;
            }
        }
    }

    fn report_stuck(&self) {
        let census: Vec<EngineCensus> = self.engines.iter().map(Engine::census).collect();
        let waiting = self.control.unanswered();
        let mut state = self.stage.get();
        let bios = state.oracle.bios_under_way();
        let text = format!(
            "stuck in act {:?}: {bios} bios under way ({}), {} disk operations, requests without \
             an answer: {waiting:?}, lanes {census:?}",
            self.director.progress.act.get(),
            state.oracle.describe_oldest(),
            state.ops.len(),
        );
        state.oracle.violate(text);
    }

    /// Lets the lanes come to rest and looks for what was left behind.
    fn rest(&mut self) {
        for _ in 0..REST_STEPS_MAX {
            if !self.step() {
                break;
            }
        }
        let idle = EngineCensus::default();
        for (lane, engine) in self.engines.iter().enumerate() {
            let census = engine.census();
            if census != idle {
                let text = format!("lane {lane} has something left over: {census:?}");
                self.stage.get().oracle.violate(text);
            }
        }
        let mut state = self.stage.get();
        let open: u32 = state.disks.iter().map(|disk| disk.open_handles).sum();
        if open != 0 || !state.ops.is_empty() || state.oracle.bios_under_way() != 0 {
            let text = format!(
                "left over: {open} disk handles, {} operations, {} bios",
                state.ops.len(),
                state.oracle.bios_under_way()
            );
            state.oracle.violate(text);
        }
    }

    /// One step of the world; false if nothing can happen any more.
    fn step(&mut self) -> bool {
        self.control.pump(&self.coordinator);
        for task in self.director.tasks.take() {
            self.scripts.spawn(task);
        }
        let mut moved = self.scripts.run_ready();
        for (lane, actor) in self.control.take_newcomers() {
            self.engines[lane].spawn_actor(actor);
            self.stage.get().lanes[lane].sleep = Sleep::Awake;
        }
        moved |= self.turn_or_wait();
        moved
    }

    fn turn_or_wait(&mut self) -> bool {
        let now = self.stage.get().now;
        let ready: Vec<usize> = {
            let state = self.stage.get();
            (0..self.engines.len()).filter(|&lane| state.lanes[lane].has_reason(now)).collect()
        };
        let (spurious, wait_first) = {
            let mut state = self.stage.get();
            let spurious = state.once_in(50) && state.swarm.spurious_turns;
            (spurious, state.once_in(5))
        };
        if spurious {
            let lane = self.stage.get().rng.usize(0..self.engines.len());
            self.turn(lane);
            return true;
        }
        if ready.is_empty() {
            return self.wait_for_next();
        }
        if wait_first {
            let mut state = self.stage.get();
            let span = state.rng.u64(0..150_000);
            state.advance(Nanos(now.0 + span));
        }
        let lane = ready[self.stage.get().rng.usize(0..ready.len())];
        self.turn(lane);
        true
    }

    fn turn(&mut self, lane: usize) {
        let may_block = {
            let mut state = self.stage.get();
            state.oracle.turn += 1;
            state.lanes[lane].sleep = Sleep::Awake;
            state.note("turn", &[lane as u64]);
            state.rng.u32(0..4) != 0
        };
        self.engines[lane].turn(may_block);
        let engine = &self.engines[lane];
        let mut state = self.stage.get();
        let slept = state.lanes[lane].sleep != Sleep::Awake;
        // The driver could not really block, so the lane is awake again; its wish to sleep is
        // renewed here, by the same protocol.
        state.lanes[lane].sleep = match engine.next_deadline() {
            _ if !slept || !engine.fall_asleep() => Sleep::Awake,
            Some(deadline) => Sleep::Until(deadline),
            None => Sleep::ForEver,
        };
    }

    /// Moves time to the next thing that can happen.
    fn wait_for_next(&mut self) -> bool {
        let mut state = self.stage.get();
        let lanes = state.lanes.iter().filter_map(|lane| match lane.sleep {
            Sleep::Until(deadline) => Some(deadline),
            Sleep::Awake | Sleep::ForEver => None,
        });
        let next = lanes.chain(state.ops.next_moment()).chain(self.control.next_wake()).min();
        match next {
            Some(when) => {
                let jitter = state.rng.u64(0..20_000);
                let to = Nanos(when.0.max(state.now.0) + jitter);
                state.advance(to);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
#[path = "regress.rs"]
mod regress;
