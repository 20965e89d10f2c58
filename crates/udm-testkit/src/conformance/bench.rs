//! What the checks share: a world with the case's device in it, and a model of what it must hold.
//!
//! [`Bench`] submits through all lanes in turn, expects of each I/O what the case's kind promises,
//! and keeps the byte model up to date. `alone` puts the case's line into a table by itself;
//! `between` puts it between two `probe` lines on a device of their own (`side`), so that it
//! neither begins at sector 0 nor is flushed past `map`.
//!
//! Ranges of the checks come from a fixed generator, so a failure repeats.

use super::{Case, Kind};
use crate::io::{Io, IoTicket};
use crate::mem_lower::MemLower;
use crate::pattern::{Model, mix, pattern};
use crate::probe::{probe_type, request_probe_type};
use crate::world::TestWorld;
use std::marker::PhantomData;
use udm_core::Registry;
use udm_types::{DeviceId, QueueLimits, Sector, Status};

/// Length of each probe line around the case's line in [`Bench::between`].
pub(super) const SIDE_SECTORS: Sector = 32;

/// A device of the case under test.
pub struct Bench<C> {
    /// The engine.
    pub world: TestWorld,
    /// The mapped device.
    pub device: DeviceId,
    /// What it must hold.
    pub model: Model,
    /// Where the case's line begins.
    pub begin_sector: Sector,
    random: u64,
    generation: u64,
    lane: u16,
    case: PhantomData<C>,
}

/// The probe that may stand below the case's line.
pub(super) fn probe_below<C: Case>() -> &'static str {
    if C::REQUEST_BASED { "rprobe" } else { "probe" }
}

/// The case's types and the probes.
pub(super) fn registry<C: Case>() -> Registry {
    let known = C::registry();
    let probes = [probe_type(), request_probe_type()];
    let probes = probes.into_iter().filter(|probe| known.find(probe.name()).is_none());
    Registry::new(known.types().iter().copied().chain(probes))
}

/// A world of two lanes with the case's devices, each changed by `adapt`.
pub(super) fn world_with<C: Case>(
    adapt: impl Fn(&str, Sector, QueueLimits) -> (Sector, QueueLimits),
) -> TestWorld {
    let mut world = TestWorld::new(registry::<C>(), 2);
    let features = udm_types::DeviceFeatures::WRITE_CACHE | udm_types::DeviceFeatures::FUA;
    for (name, len_sectors) in C::DEVICES {
        let limits = QueueLimits { features, ..QueueLimits::default() };
        let (len_sectors, limits) = adapt(name, *len_sectors, limits);
        let lower = world.add_lower_with(name, len_sectors, limits);
        C::prepare(&lower);
    }
    world
}

/// A world of two lanes with the case's devices as they are.
pub(super) fn world<C: Case>() -> TestWorld {
    world_with::<C>(|_, len_sectors, limits| (len_sectors, limits))
}

/// The case's line at a begin.
pub(super) fn line<C: Case>(begin_sector: Sector) -> String {
    format!("{begin_sector} {} {} {}", C::LEN_SECTORS, C::TARGET, C::ARGS)
}

/// The case's line between two `probe` lines.
pub(super) fn lines_between<C: Case>() -> String {
    let end = SIDE_SECTORS + C::LEN_SECTORS;
    format!(
        "0 {SIDE_SECTORS} probe side 0\n{}\n{end} {SIDE_SECTORS} probe side {SIDE_SECTORS}",
        line::<C>(SIDE_SECTORS)
    )
}

/// A table that keeps data exactly where the case keeps it, made of `probe` lines.
pub(super) fn lines_as_probes<C: Case>() -> String {
    let mut runs: Vec<(Sector, Sector, &str, Sector)> = Vec::new();
    for offset in 0..C::LEN_SECTORS {
        let (name, sector) = C::place(offset);
        match runs.last_mut() {
            Some((_, len, last, start)) if *last == name && *start + *len == sector => *len += 1,
            _ => runs.push((offset, 1, name, sector)),
        }
    }
    let lines =
        runs.iter().map(|(begin, len, name, start)| format!("{begin} {len} probe {name} {start}"));
    lines.collect::<Vec<_>>().join("\n")
}

impl<C: Case> Bench<C> {
    /// The line alone in a table.
    pub fn alone() -> Bench<C> {
        let mut world = world::<C>();
        let device = world.create("t", &line::<C>(0));
        Bench::over(world, device, 0, C::LEN_SECTORS)
    }

    /// The line between two `probe` lines.
    pub fn between() -> Bench<C> {
        let mut world = world::<C>();
        world.add_lower("side", 2 * SIDE_SECTORS);
        let device = world.create("t", &lines_between::<C>());
        Bench::over(world, device, SIDE_SECTORS, C::LEN_SECTORS + 2 * SIDE_SECTORS)
    }

    /// The line alone, on mapped devices (`probe` or `rprobe` each) instead of the lower ones.
    pub fn stacked() -> Bench<C> {
        let mut world = world::<C>();
        for (name, len_sectors) in C::DEVICES {
            let probe = probe_below::<C>();
            world.create(name, &format!("0 {len_sectors} {probe} {name} 0"));
        }
        let args =
            C::ARGS.split(' ').map(|word| match C::DEVICES.iter().any(|(name, _)| *name == word) {
                true => format!("dm:{word}"),
                false => word.to_owned(),
            });
        let args = args.collect::<Vec<_>>().join(" ");
        let device = world.create("t", &format!("0 {} {} {args}", C::LEN_SECTORS, C::TARGET));
        Bench::over(world, device, 0, C::LEN_SECTORS)
    }

    /// A device that was made by hand.
    pub fn over(
        world: TestWorld,
        device: DeviceId,
        begin_sector: Sector,
        len_sectors: Sector,
    ) -> Bench<C> {
        let model = Model::new(len_sectors);
        let case = PhantomData;
        Bench { world, device, model, begin_sector, random: 1, generation: 0, lane: 0, case }
    }

    /// The devices of the case.
    pub fn lowers(&self) -> Vec<MemLower> {
        C::DEVICES.iter().map(|(name, _)| self.world.lower(name).clone()).collect()
    }

    /// The devices every flush must reach: the case's, and `side` if it is there.
    pub fn flushed(&self) -> Vec<MemLower> {
        let side = (self.begin_sector > 0).then_some("side");
        let names = C::FLUSHED.iter().copied().chain(side);
        names.map(|name| self.world.lower(name).clone()).collect()
    }

    /// A number below `below`, the same in every run.
    pub fn below(&mut self, below: u64) -> u64 {
        self.random = mix(self.random);
        self.random % below
    }

    /// The lanes in turn.
    pub fn next_lane(&mut self) -> u16 {
        self.lane = (self.lane + 1) % self.world.lanes();
        self.lane
    }

    /// True if a sector belongs to the case's line.
    fn is_inside(&self, sector: Sector) -> bool {
        (self.begin_sector..self.begin_sector + C::LEN_SECTORS).contains(&sector)
    }

    /// How a read or write of this range must end.
    pub fn expected(&self, sector: Sector, len_sectors: Sector) -> Status {
        let touches = (sector..sector + len_sectors).any(|sector| self.is_inside(sector));
        match C::KIND {
            Kind::Fails(status) if touches => status,
            Kind::Fails(_) | Kind::Stores | Kind::Transforms | Kind::Zeroes => Status::Ok,
        }
    }

    /// Notes in the model what a write of this range leaves behind.
    fn note_write(&mut self, sector: Sector, bytes: &[u8]) {
        for (index, bytes) in bytes.chunks(crate::SECTOR_LEN).enumerate() {
            let sector = sector + index as Sector;
            let keeps = matches!(C::KIND, Kind::Stores | Kind::Transforms);
            if keeps || !self.is_inside(sector) {
                self.model.write(sector, bytes);
            }
        }
    }

    /// Starts a write of fresh data; the model has it at once.
    pub fn start_write(&mut self, sector: Sector, len_sectors: Sector) -> IoTicket {
        self.generation += 1;
        let bytes = pattern(sector, len_sectors, self.generation);
        self.note_write(sector, &bytes);
        let lane = self.next_lane();
        self.world.submit(lane, self.device, Io::write(sector, bytes))
    }

    /// Writes fresh data and waits.
    #[track_caller]
    pub fn write(&mut self, sector: Sector, len_sectors: Sector) {
        let expected = self.expected(sector, len_sectors);
        let ticket = self.start_write(sector, len_sectors);
        self.world.settle();
        let done = self.world.done(ticket).expect("a write comes back");
        assert_eq!(done.status, expected, "write at {sector}+{len_sectors}");
    }

    /// Reads a range and compares it with the model.
    #[track_caller]
    pub fn check(&mut self, sector: Sector, len_sectors: Sector) {
        let expected = self.expected(sector, len_sectors);
        let lane = self.next_lane();
        let done = self.world.io_on(lane, self.device, Io::read(sector, len_sectors));
        assert_eq!(done.status, expected, "read at {sector}+{len_sectors}");
        if expected.is_ok()
            && let Err(text) = self.model.check(sector, &done.bytes)
        {
            panic!("{text}");
        }
    }

    /// Reads everything back, in one piece and lane by lane, and looks at the devices below.
    #[track_caller]
    pub fn check_everything(&mut self) {
        for _ in 0..self.world.lanes() {
            self.check(0, self.model.len_sectors());
        }
        if C::KIND != Kind::Stores {
            return;
        }
        for offset in 0..C::LEN_SECTORS {
            let (name, sector) = C::place(offset);
            let found = self.world.lower(name).bytes(sector, 1);
            if let Err(text) = self.model.check(self.begin_sector + offset, &found) {
                panic!("on {name} at {sector}: {text}");
            }
        }
    }

    /// Some range inside the device, not longer than `max_sectors`.
    pub fn some_range(&mut self, max_sectors: Sector) -> (Sector, Sector) {
        let len_sectors = 1 + self.below(max_sectors.min(self.model.len_sectors()));
        let sector = self.below(self.model.len_sectors() - len_sectors + 1);
        (sector, len_sectors)
    }
}
