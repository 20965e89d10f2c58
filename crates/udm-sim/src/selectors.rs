//! All path selectors over a few kinds of bad paths, in simulated time: the table in
//! docs/benchmarks/multipath.md.
//!
//! The production engine and target on two lanes, over two paths that are only a model: each takes
//! so many I/Os at once, an I/O takes so long, and now and then the path stands still. Each lane
//! keeps a number of 4 KiB reads under way. There is no noise: the same program prints the same
//! table everywhere, so a difference is the selector's.
//!
//! `udm-sim --selectors` prints it. What counts as full speed is the good path alone.
//!
//! The tricky case is the warm-up: selectors that learn start knowing nothing, and the first tenth
//! of a second is counted like the rest.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use udm_core::engine::{COORDINATOR_LANE, MAILBOX_CAPACITY};
use udm_core::lifecycle::{DeviceKey, Reply, Request, SuspendOptions};
use udm_core::lower::{LowerCx, LowerDevice, LowerLane};
use udm_core::table::{TableBuilder, parse_table};
use udm_core::{
    Actor, ActorCx, BioBox, DeviceRef, DeviceResolver, Engine, EngineConfig, ErrorCode,
    LaneMessage, LowerRef, Registry, UserError,
};
use udm_lane::{Buf, Errno, Mailbox, Payload, mailbox};
use udm_testkit::FakeWorld;
use udm_types::{
    BioFlags, DeviceId, DmName, LaneId, LowerId, Nanos, Op, QueueLimits, Sector, Status,
};

const DEVICE_SECTORS: Sector = 1 << 16;
const BLOCK_SECTORS: Sector = 8;
const LANES: u16 = 2;
/// I/Os each lane keeps under way: together as many as both good paths take at once.
const DEPTH: u64 = 32;
/// What is simulated of each cell.
const SPAN: Nanos = Nanos(2_000_000_000);

/// How a path behaves.
#[derive(Clone, Copy, Debug)]
struct Model {
    /// I/Os it works on at once; the others wait.
    slots: usize,
    /// What one takes.
    service: Nanos,
    /// It stands still for so long, once in so long.
    stall: Option<(Nanos, Nanos)>,
}

const GOOD: Model = Model { slots: 32, service: Nanos(1_000_000), stall: None };

/// The second path of each scenario; the first is always good.
const SCENARIOS: [(&str, Model); 4] = [
    ("equal", GOOD),
    ("one slow", Model { service: Nanos(10_000_000), ..GOOD }),
    ("one stalls", Model { stall: Some((Nanos(100_000_000), Nanos(500_000_000))), ..GOOD }),
    ("one small queue", Model { slots: 2, ..GOOD }),
];

/// Selectors, with the arguments of the first and the second path.
const SELECTORS: [(&str, &str, &str); 6] = [
    ("round-robin", "", ""),
    ("queue-length", "", ""),
    ("service-time", "", ""),
    ("historical-service-time", "", ""),
    ("io-affinity", "1", "2"),
    ("latency", "", ""),
];

/// What a cell came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// I/Os done in the simulated time.
    pub ios: u64,
    /// 99 of 100 took no longer.
    pub p99: Nanos,
}

/// The whole table: for each selector its name and a cell for each scenario, and the good path
/// alone.
#[derive(Clone, Debug)]
pub struct SelectorTable {
    /// Names of the scenarios.
    pub scenarios: Vec<&'static str>,
    /// Rows.
    pub rows: Vec<(&'static str, Vec<Cell>)>,
    /// The good path alone.
    pub alone: Cell,
}

impl SelectorTable {
    /// Runs all of it.
    ///
    /// # Errors
    /// A table that the target refuses; its words.
    pub fn run() -> Result<SelectorTable, UserError> {
        let alone = run("service-time", &[(GOOD, "")])?;
        let mut rows = Vec::new();
        for (selector, first, second) in SELECTORS {
            let cells: Result<Vec<Cell>, UserError> = SCENARIOS
                .iter()
                .map(|(_, model)| run(selector, &[(GOOD, first), (*model, second)]))
                .collect();
            rows.push((selector, cells?));
        }
        let scenarios = SCENARIOS.iter().map(|(name, _)| *name).collect();
        Ok(SelectorTable { scenarios, rows, alone })
    }

    /// As Markdown: throughput in percent of the good path alone, and the 99th percentile.
    pub fn markdown(&self) -> String {
        let mut text = format!("| selector | {} |\n", self.scenarios.join(" | "));
        text += &format!("|---|{}\n", "--:|".repeat(self.scenarios.len()));
        for (selector, cells) in &self.rows {
            let cells: Vec<String> = cells.iter().map(|cell| self.cell(cell)).collect();
            // Writing to a string cannot fail.
            let _ = writeln!(text, "| {selector} | {} |", cells.join(" | "));
        }
        text
    }

    fn cell(&self, cell: &Cell) -> String {
        let percent = cell.ios * 100 / self.alone.ios.max(1);
        let tenths_ms = cell.p99.0 / 100_000;
        format!("{percent} %, {}.{} ms", tenths_ms / 10, tenths_ms % 10)
    }
}

/// A path that is only a model. All lanes share what it is busy with.
struct ModelDevice {
    name: String,
    model: Model,
    free_at: Arc<Mutex<Vec<Nanos>>>,
}

impl LowerDevice for ModelDevice {
    fn shown(&self) -> String {
        self.name.clone()
    }
    fn len_sectors(&self) -> Sector {
        DEVICE_SECTORS
    }
    fn limits(&self) -> QueueLimits {
        QueueLimits::default()
    }
    fn open_lane(&self, _cx: &mut LowerCx<'_>) -> Result<Box<dyn LowerLane>, Errno> {
        Ok(Box::new(ModelLane {
            model: self.model,
            free_at: Arc::clone(&self.free_at),
            under_way: BTreeMap::new(),
            last_token: 0,
        }))
    }
}

struct ModelLane {
    model: Model,
    free_at: Arc<Mutex<Vec<Nanos>>>,
    under_way: BTreeMap<u64, BioBox>,
    last_token: u64,
}

impl Model {
    /// When an I/O that begins then ends. One that a stall falls into takes as much longer.
    fn end_of(&self, begin: Nanos) -> Nanos {
        let end = begin + self.service;
        let Some((stall, every)) = self.stall else { return end };
        // The last `stall` of each period stands still.
        let next = Nanos((begin.0 / every.0 + 1) * every.0);
        match end > next - stall {
            true => end.max(next - stall) + stall,
            false => end,
        }
    }
}

impl LowerLane for ModelLane {
    fn submit(&mut self, bio: BioBox, cx: &mut LowerCx<'_>) {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = free_at.iter_mut().min().expect("invariant: a path takes one I/O at least");
        let end = self.model.end_of((*slot).max(cx.now));
        *slot = end;
        self.last_token += 1;
        self.under_way.insert(self.last_token, bio);
        cx.set_timer(end, self.last_token);
    }

    fn on_timer(&mut self, token: u64, cx: &mut LowerCx<'_>) {
        if let Some(bio) = self.under_way.remove(&token) {
            cx.complete(bio, Status::Ok);
        }
    }
}

struct Paths(Vec<(String, LowerRef)>);

impl DeviceResolver for Paths {
    fn resolve(&mut self, name: &str, _read_only: bool) -> Result<DeviceRef, UserError> {
        let found = self.0.iter().find(|(known, _)| known == name).map(|(_, lower)| lower);
        let lower = found
            .ok_or_else(|| UserError::new(ErrorCode::DeviceNotFound, format!("no path {name}")))?;
        Ok(DeviceRef::of_lower(lower))
    }
}

/// Keeps reads under way and notes how long each took.
struct Load {
    device: DeviceId,
    random: fastrand::Rng,
    begun: Vec<Nanos>,
    took: Arc<Mutex<Vec<Nanos>>>,
}

impl Load {
    fn submit(&mut self, tag: u64, mut bio: BioBox, cx: &mut ActorCx<'_>) {
        let sector = self.random.u64(..DEVICE_SECTORS / BLOCK_SECTORS) * BLOCK_SECTORS;
        bio.ask(Op::Read, BioFlags::empty(), sector, BLOCK_SECTORS);
        self.begun[tag as usize] = cx.now();
        cx.submit(self.device, tag, bio);
    }
}

impl Actor for Load {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        for tag in 0..DEPTH {
            let mut bio = cx.take_bio();
            bio.payload = Payload::from_buf(Buf::alloc(4096));
            self.submit(tag, bio, cx);
        }
    }

    fn on_bio(&mut self, tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        let took = cx.now().since(self.begun[tag as usize]);
        self.took.lock().unwrap_or_else(PoisonError::into_inner).push(took);
        self.submit(tag, bio, cx);
    }
}

/// Lanes, their clock, and a way to ask.
struct Lanes {
    world: FakeWorld,
    engines: Vec<Engine>,
    coordinator: Mailbox<LaneMessage>,
}

impl Lanes {
    fn new() -> Lanes {
        let world = FakeWorld::default();
        let parts: Vec<_> = (0..LANES)
            .map(|_| {
                let (driver, _) = world.driver();
                let (sender, receiver) = mailbox(MAILBOX_CAPACITY, driver.waker());
                (driver, sender, receiver)
            })
            .collect();
        let peers: Vec<_> = parts.iter().map(|(_, sender, _)| sender.clone()).collect();
        let coordinator = peers[COORDINATOR_LANE.index()].clone();
        let make = |(lane, (driver, _, receiver)): (u16, (_, _, _))| {
            let lane = LaneId(lane);
            Engine::new(EngineConfig { lane, peers: peers.clone(), receiver, driver })
        };
        let engines = (0..LANES).zip(parts).map(make).collect();
        Lanes { world, engines, coordinator }
    }

    /// Turns all lanes until none has anything to do without the clock.
    fn rest(&mut self) {
        loop {
            let mut did = false;
            for engine in &mut self.engines {
                did |= engine.turn(true);
                did |= engine.has_work();
            }
            if !did {
                return;
            }
        }
    }

    fn run_until(&mut self, end: Nanos) {
        self.rest();
        let next = |lanes: &Lanes| lanes.engines.iter().filter_map(Engine::next_deadline).min();
        while let Some(at) = next(self).filter(|at| *at <= end) {
            self.world.set_now(at.max(self.world.now()));
            self.rest();
        }
    }

    fn ask(&mut self, request: Request) -> Result<Reply, UserError> {
        let answer = Arc::new(Mutex::new(None));
        let place = Arc::clone(&answer);
        let sink = move |reply| {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(reply);
        };
        let message = LaneMessage::Request(Box::new(request), Box::new(sink));
        assert!(self.coordinator.send(message).is_ok(), "invariant: one request at a time");
        self.rest();
        let answer = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        answer.expect("invariant: nothing under way keeps these requests")
    }
}

/// One cell: this selector over these paths.
fn run(selector: &str, paths: &[(Model, &str)]) -> Result<Cell, UserError> {
    let mut lanes = Lanes::new();
    let registry: Registry = udm_targets::registry();
    let mut resolver = Paths(Vec::new());
    let mut words = Vec::new();
    for (index, (model, args)) in paths.iter().enumerate() {
        let name = format!("p{index}");
        let free_at = Arc::new(Mutex::new(vec![Nanos::ZERO; model.slots]));
        let device = Arc::new(ModelDevice { name: name.clone(), model: *model, free_at });
        let id = LowerId(u32::try_from(index).unwrap_or(u32::MAX));
        words.push(format!("{name} {args}").trim_end().to_owned());
        resolver.0.push((name, LowerRef { id, device }));
    }
    let arg_count = usize::from(paths.iter().any(|(_, args)| !args.is_empty()));
    let text = format!(
        "0 {DEVICE_SECTORS} multipath 2 queue_mode bio 0 1 1 {selector} 0 {} {arg_count} {}",
        paths.len(),
        words.join(" ")
    );
    let builder = TableBuilder {
        registry: &registry,
        resolver: &mut resolver,
        read_only: false,
        now: Nanos::ZERO,
        seed: 1,
    };
    let table = Arc::new(builder.build(&parse_table(&text)?)?);
    let name = DmName::new("bench").expect("invariant: a valid name");
    let created = lanes.ask(Request::Create { name, uuid: None, minor: None })?;
    let Reply::Done(Some(status)) = created else {
        return Err(UserError::new(ErrorCode::Internal, "no device was made"));
    };
    let device = status.id;
    let key = DeviceKey::Id(device);
    lanes.ask(Request::Load { device: key.clone(), table })?;
    lanes.ask(Request::Resume { device: key, options: SuspendOptions::default(), ticket: 1 })?;
    let took = Arc::new(Mutex::new(Vec::new()));
    for (lane, engine) in lanes.engines.iter_mut().enumerate() {
        engine.spawn_actor(Box::new(Load {
            device,
            random: fastrand::Rng::with_seed(lane as u64),
            begun: vec![Nanos::ZERO; DEPTH as usize],
            took: Arc::clone(&took),
        }));
    }
    lanes.run_until(SPAN);
    let mut took = took.lock().unwrap_or_else(PoisonError::into_inner).clone();
    took.sort_unstable();
    let p99 = took.get(took.len() * 99 / 100).copied().unwrap_or_default();
    Ok(Cell { ios: took.len() as u64, p99 })
}

#[cfg(test)]
mod tests {
    use super::{GOOD, Model, SCENARIOS, SelectorTable, run};
    use udm_types::Nanos;

    #[test]
    fn a_stall_makes_what_falls_into_it_later() {
        let (_, model) = SCENARIOS[2];
        let ms = Nanos::from_millis;
        assert_eq!(model.end_of(ms(10)), ms(11));
        assert_eq!(model.end_of(ms(399)), ms(400));
        assert_eq!(model.end_of(ms(400)), ms(501));
        assert_eq!(Model { stall: None, ..model }.end_of(ms(400)), ms(401));
    }

    #[test]
    fn the_good_path_alone_works_at_its_own_speed() {
        let cell = run("service-time", &[(GOOD, "")]).expect("a good table");
        // 32 at once, 1 ms each, for 2 s.
        assert!((63_000..=64_000).contains(&cell.ios), "{cell:?}");
    }

    /// What the issue asks of one path slowed to a tenth.
    #[test]
    fn adaptive_selectors_keep_the_good_paths_speed_and_round_robin_does_not() {
        let table = SelectorTable::run().expect("good tables");
        let slow = |wanted: &str| {
            let row = table.rows.iter().find(|(name, _)| *name == wanted).expect("a row");
            row.1[1].ios * 100 / table.alone.ios
        };
        for selector in ["service-time", "historical-service-time", "latency"] {
            assert!(slow(selector) >= 90, "{selector}: {} %\n{}", slow(selector), table.markdown());
        }
        assert!(slow("round-robin") < 50, "{}", table.markdown());
        let again = SelectorTable::run().expect("good tables");
        assert_eq!(table.rows, again.rows, "the same program prints the same table");
    }
}
