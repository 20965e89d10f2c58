//! A whole engine of several lanes in one thread, with a clock moved by hand.
//!
//! ```no_run
//! # use udm_testkit::{Io, TestWorld};
//! # let registry = udm_core::Registry::default();
//! let mut world = TestWorld::new(registry, 2);
//! let disk = world.add_lower("d0", 1024);
//! let dm = world.create("t", "0 512 linear d0 64");
//! assert!(world.io(dm, Io::write_pattern(0, 8, 1)).status.is_ok());
//! assert_eq!(disk.log()[0].sector, 64);
//! ```
//!
//! Nothing happens by itself: [`TestWorld::run`] turns all lanes round-robin until none has
//! anything to do; [`TestWorld::advance`] and [`TestWorld::settle`] also move the clock, from timer
//! to timer, so no deadline is jumped over. What a call starts ends in the call if it needs no
//! clock; everything else is started (`submit`, `start`) and looked at later (`done`, `answer`).
//!
//! Device names in tables: `NAME` of a lower device added here, or `dm:NAME` of a mapped device.
//!
//! The tricky case is waiting for something that never comes: there is no time-out. A call that
//! needs an answer panics when all lanes sleep without one, and names what it waited for.

mod requests;

use crate::fake_driver::{FakeWorld, LaneProbe, lock};
use crate::io::{Io, IoDone, IoTicket, Order, Results, Submitter};
use crate::mem_lower::MemLower;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use udm_core::actor::DeviceNotice;
use udm_core::engine::{EngineCensus, MAILBOX_CAPACITY};
use udm_core::lifecycle::{DeviceKey, Reply, Request};
use udm_core::table::{TableBuilder, parse_table};
use udm_core::{
    DeviceRef, DeviceResolver, Engine, EngineConfig, ErrorCode, LaneMessage, LowerRef, Registry,
    Table, UserError,
};
use udm_lane::mailbox;
use udm_types::{ActorId, DeviceId, LaneId, LowerId, Nanos, QueueLimits, Sector};

/// Turns a run may take; far more than any test needs, so that a lane that never rests is reported.
const ROUNDS_MAX: usize = 200_000;
/// Timers a `settle` may fire.
const TIMERS_MAX: usize = 100_000;

/// Engines, lower devices, clock. See the module's text.
pub struct TestWorld {
    world: FakeWorld,
    engines: Vec<Engine>,
    probes: Vec<LaneProbe>,
    submitters: Vec<ActorId>,
    results: Results,
    registry: Registry,
    lowers: BTreeMap<String, (LowerRef, MemLower)>,
    answers: Arc<Mutex<BTreeMap<u64, Result<Reply, UserError>>>>,
    next_number: u64,
    under_way: BTreeSet<u64>,
    seed: u64,
}

/// Names a request whose answer is looked at later; also the ticket to cancel it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started(u64);

impl Started {
    /// The number, as `Request::Cancel` wants it if the request was started with it.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl TestWorld {
    /// A world of `lanes` lanes that knows these target types.
    pub fn new(registry: Registry, lanes: u16) -> TestWorld {
        let world = FakeWorld::default();
        let mut parts = Vec::new();
        for _ in 0..lanes {
            let (driver, probe) = world.driver();
            let (sender, receiver) = mailbox(MAILBOX_CAPACITY, driver.waker());
            parts.push((driver, probe, sender, receiver));
        }
        let peers: Vec<_> = parts.iter().map(|(_, _, sender, _)| sender.clone()).collect();
        let results = Results::default();
        let (mut engines, mut probes, mut submitters) = (Vec::new(), Vec::new(), Vec::new());
        for (lane, (driver, probe, _, receiver)) in parts.into_iter().enumerate() {
            let lane = LaneId(u16::try_from(lane).expect("few lanes"));
            let config = EngineConfig { lane, peers: peers.clone(), receiver, driver };
            let mut engine = Engine::new(config);
            let submitter = Submitter::new(world.clone(), results.clone());
            submitters.push(engine.spawn_actor(Box::new(submitter)));
            engines.push(engine);
            probes.push(probe);
        }
        TestWorld {
            world,
            engines,
            probes,
            submitters,
            results,
            registry,
            lowers: BTreeMap::new(),
            answers: Arc::default(),
            next_number: 1,
            under_way: BTreeSet::new(),
            seed: 1,
        }
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> u16 {
        u16::try_from(self.engines.len()).expect("few lanes")
    }

    /// The lane's engine, for what this type does not offer.
    pub fn engine(&mut self, lane: u16) -> &mut Engine {
        &mut self.engines[usize::from(lane)]
    }

    /// What the lane's driver saw.
    pub fn probe(&self, lane: u16) -> &LaneProbe {
        &self.probes[usize::from(lane)]
    }

    /// The clock and latches, for lower devices made by hand.
    pub fn fake(&self) -> &FakeWorld {
        &self.world
    }

    /// The time.
    pub fn now(&self) -> Nanos {
        self.world.now()
    }

    /// The seed tables are built with from now on.
    pub fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    // --- lower devices and tables ---------------------------------------------------------------

    /// Adds an ordinary lower device (volatile cache, FUA, 512-byte blocks).
    pub fn add_lower(&mut self, name: &str, len_sectors: Sector) -> MemLower {
        self.add(MemLower::new(&self.world, name, len_sectors))
    }

    /// Adds a lower device with the given limits.
    pub fn add_lower_with(
        &mut self,
        name: &str,
        len_sectors: Sector,
        limits: QueueLimits,
    ) -> MemLower {
        self.add(MemLower::with_limits(&self.world, name, len_sectors, limits))
    }

    fn add(&mut self, lower: MemLower) -> MemLower {
        let id = LowerId(u32::try_from(self.lowers.len()).expect("few lower devices"));
        let device = LowerRef { id, device: Arc::new(lower.clone()) };
        let old = self.lowers.insert(lower.name().to_owned(), (device, lower.clone()));
        assert!(old.is_none(), "lower devices have different names");
        lower
    }

    /// The lower device of a name.
    ///
    /// # Panics
    /// If there is none.
    pub fn lower(&self, name: &str) -> &MemLower {
        &self.lowers.get(name).unwrap_or_else(|| panic!("no lower device {name}")).1
    }

    /// Builds a table.
    pub fn build(&mut self, text: &str) -> Result<Arc<Table>, UserError> {
        self.build_as(text, false)
    }

    /// Builds a read-only table.
    pub fn build_read_only(&mut self, text: &str) -> Result<Arc<Table>, UserError> {
        self.build_as(text, true)
    }

    fn build_as(&mut self, text: &str, read_only: bool) -> Result<Arc<Table>, UserError> {
        let lines = parse_table(text)?;
        let registry = self.registry.clone();
        let (now, seed) = (self.now(), self.seed);
        let builder = TableBuilder { registry: &registry, resolver: self, read_only, now, seed };
        Ok(Arc::new(builder.build(&lines)?))
    }

    // --- I/O ------------------------------------------------------------------------------------

    /// Submits a request on a lane; it starts when the world runs.
    pub fn submit(&mut self, lane: u16, device: DeviceId, io: Io) -> IoTicket {
        let ticket = self.take_number();
        self.under_way.insert(ticket);
        let actor = self.submitters[usize::from(lane)];
        let order = Box::new(Order { ticket, device, io });
        self.engines[usize::from(lane)].send(LaneId(lane), LaneMessage::ToActor(actor, order));
        IoTicket(ticket)
    }

    /// The result of a request, once; `None` while it is under way.
    pub fn done(&mut self, ticket: IoTicket) -> Option<IoDone> {
        let done = lock(&self.results.done).remove(&ticket.0);
        if done.is_some() {
            self.under_way.remove(&ticket.0);
        }
        done
    }

    /// Requests that have not come back.
    pub fn pending(&self) -> usize {
        let done = lock(&self.results.done);
        self.under_way.iter().filter(|ticket| !done.contains_key(ticket)).count()
    }

    /// Submits on lane 0 and lets the clock run until it is back.
    ///
    /// # Panics
    /// If nothing more happens and it has not come back.
    #[track_caller]
    pub fn io(&mut self, device: DeviceId, io: Io) -> IoDone {
        self.io_on(0, device, io)
    }

    /// Submits on a lane and lets the clock run until it is back.
    #[track_caller]
    pub fn io_on(&mut self, lane: u16, device: DeviceId, io: Io) -> IoDone {
        let text = format!("{:?} at {}+{}", io.op, io.sector, io.len_sectors);
        let ticket = self.submit(lane, device, io);
        self.settle();
        self.done(ticket).unwrap_or_else(|| panic!("{text} did not come back"))
    }

    /// What actors were told about devices since the last call.
    pub fn take_notices(&mut self) -> Vec<(LaneId, DeviceNotice)> {
        std::mem::take(&mut lock(&self.results.notices))
    }

    // --- time -----------------------------------------------------------------------------------

    /// Turns all lanes until none has anything to do without the clock.
    ///
    /// # Panics
    /// If that does not happen: a lane is busy for ever.
    #[track_caller]
    pub fn run(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut did = false;
            for engine in &mut self.engines {
                did |= engine.turn(true);
                did |= engine.has_work();
            }
            if !did {
                return;
            }
        }
        panic!("the lanes never come to rest");
    }

    /// One turn of one lane. For tests about the order of lanes.
    pub fn turn(&mut self, lane: u16) -> bool {
        self.engines[usize::from(lane)].turn(true)
    }

    /// The earliest timer of any lane.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.engines.iter().filter_map(Engine::next_deadline).min()
    }

    /// Runs, and moves the clock on by `span`, stopping at every timer on the way.
    #[track_caller]
    pub fn advance(&mut self, span: Nanos) {
        let end = self.now() + span;
        self.run();
        while let Some(deadline) = self.next_deadline().filter(|&deadline| deadline <= end) {
            self.world.set_now(deadline.max(self.now()));
            self.run();
        }
        self.world.set_now(end);
        self.run();
    }

    /// Runs and moves the clock from timer to timer until none is left (deadlines of suspends too).
    #[track_caller]
    pub fn settle(&mut self) {
        self.run();
        for _ in 0..TIMERS_MAX {
            let Some(deadline) = self.next_deadline() else { return };
            self.world.set_now(deadline.max(self.now()));
            self.run();
        }
        panic!("there is always another timer");
    }

    // --- after a test ---------------------------------------------------------------------------

    /// What all lanes have open, summed.
    pub fn census(&self) -> EngineCensus {
        let mut sum = EngineCensus::default();
        for census in self.engines.iter().map(Engine::census) {
            sum.in_flight += census.in_flight;
            sum.held += census.held;
            sum.waiting += census.waiting;
            sum.requests += census.requests;
            sum.parents += census.parents;
            sum.lower_ops += census.lower_ops;
            sum.actors += census.actors;
            sum.bios_lost += census.bios_lost;
        }
        sum
    }

    /// Nothing is under way or held anywhere, no bio was dropped and no contract broken.
    #[track_caller]
    pub fn assert_quiet(&mut self) {
        self.settle();
        assert_eq!(self.pending(), 0, "requests have not come back");
        let actors = self.submitters.len();
        let quiet = EngineCensus { actors, ..EngineCensus::default() };
        assert_eq!(self.census(), quiet, "something is left behind");
        let Ok(Reply::List(devices)) = self.request(Request::List) else {
            panic!("the list of devices is answered")
        };
        for device in devices {
            assert_eq!(self.gauges(device.id).contract_breaches, 0, "a target broke its contract");
        }
    }

    fn take_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }
}

impl DeviceResolver for TestWorld {
    fn resolve(&mut self, name: &str, _read_only: bool) -> Result<DeviceRef, UserError> {
        if let Some(name) = name.strip_prefix("dm:") {
            let device = DeviceKey::Name(name.to_owned());
            return match self.request(Request::Lookup { device })? {
                Reply::Device(device) => Ok(*device),
                other => panic!("a lookup was answered with {other:?}"),
            };
        }
        let Some((lower, _)) = self.lowers.get(name) else {
            let text = format!("there is no device {name}");
            return Err(UserError::new(ErrorCode::DeviceNotFound, text));
        };
        Ok(DeviceRef { shown: name.to_owned(), ..DeviceRef::of_lower(lower) })
    }
}
