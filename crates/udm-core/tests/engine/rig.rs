//! Worlds for the engine's tests, and two targets of their own.
//!
//! `plain DEVICE START` is `linear` in the least possible code: flushes bypass it. `lab DEVICE
//! START [OPTION...]` does what no good target does, by option (`flush=N`, `discards=N`, `max=N`,
//! `refuses`, `request`) or on a message: `drop`, `loop`, `requeue`, `good`. `event` raises an
//! event. Its status counts `presuspend`, `presuspend_undo`, `postsuspend`, `preresume`, `resume`,
//! over all lanes.
//!
//! `either` fails everything, in a device of any kind, and stands in for any type, like `error`.
//!
//! The testkit's `probe` and `rprobe` are there too: they hold and push back on command.

use udm_core::bio::BioBox;
use udm_core::lifecycle::{DeviceKey, OnTimeout, Reply, Request, SuspendOptions};
use udm_core::table::{Args, BuildCx, DeviceRef};
use udm_core::target::{DeviceUse, TargetTraits, TypeFeatures, remap_linear};
use udm_core::{
    Dest, ErrorCode, MapMode, Mapped, Preresume, Registry, Target, TargetConfig, TargetCx,
    TargetType, UserError,
};
use udm_testkit::{Io, IoTicket, MemLower, TestWorld, probe_type, request_probe_type};
use udm_types::{DeviceId, LaneId, Nanos, Op, Sector, Status};

/// Two lanes and three devices, `d0` to `d2`, of 4096 sectors.
pub(crate) fn world() -> TestWorld {
    world_of(2)
}

pub(crate) fn world_of(lanes: u16) -> TestWorld {
    let mut world = TestWorld::new(registry(), lanes);
    for name in ["d0", "d1", "d2"] {
        world.add_lower(name, 4096);
    }
    world
}

pub(crate) fn registry() -> Registry {
    let types =
        [&PlainType as &dyn TargetType, &LabType, &EitherType, probe_type(), request_probe_type()];
    Registry::new(types)
}

pub(crate) fn key(device: DeviceId) -> DeviceKey {
    DeviceKey::Id(device)
}

pub(crate) fn noflush() -> SuspendOptions {
    SuspendOptions { noflush: true, reason: "test".into(), ..SuspendOptions::default() }
}

pub(crate) fn with_deadline(secs: u64, on_timeout: OnTimeout) -> SuspendOptions {
    SuspendOptions { deadline: Some(Nanos::from_secs(secs)), on_timeout, ..noflush() }
}

/// The code of a request that must fail.
#[track_caller]
pub(crate) fn refused(answer: Option<Result<Reply, UserError>>) -> ErrorCode {
    match answer {
        Some(Err(error)) => error.code(),
        other => panic!("expected an error, got {other:?}"),
    }
}

#[track_caller]
pub(crate) fn accepted(answer: Option<Result<Reply, UserError>>) {
    assert!(matches!(answer, Some(Ok(_))), "expected success, got {answer:?}");
}

/// The status of an I/O that must be back.
#[track_caller]
pub(crate) fn status(world: &mut TestWorld, ticket: IoTicket) -> Status {
    world.done(ticket).expect("it is back").status
}

/// Writes a device got, by first sector, in the order they came.
pub(crate) fn writes(lower: &MemLower) -> Vec<Sector> {
    let log = lower.log();
    log.iter().filter(|seen| seen.op == Op::Write).map(|seen| seen.sector).collect()
}

/// Removes a device.
pub(crate) fn remove(world: &mut TestWorld, device: DeviceId, deferred: bool) -> Option<ErrorCode> {
    world.request(Request::Remove { device: key(device), deferred }).err().map(|e| e.code())
}

/// Lets requests of several bios and bios that cannot be merged pile up and go out together.
pub(crate) fn submit_all(
    world: &mut TestWorld,
    device: DeviceId,
    ios: impl IntoIterator<Item = Io>,
) -> Vec<IoTicket> {
    let tickets = ios.into_iter().map(|io| world.submit(0, device, io)).collect();
    world.run();
    tickets
}

struct PlainType;
struct PlainConfig(DeviceRef, Sector, Sector);
struct Plain(Dest, Sector);

impl TargetType for PlainType {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn version(&self) -> [u32; 3] {
        [1, 0, 0]
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        args.expect_count(&[2], "DEVICE START_SECTOR")?;
        let device = cx.device(args, "the device")?;
        Ok(Box::new(PlainConfig(device, args.sector("the start")?, cx.len_sectors)))
    }
}

impl TargetConfig for PlainConfig {
    fn traits(&self) -> TargetTraits {
        TargetTraits { flush_bypasses_map: true, ..TargetTraits::default() }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        vec![DeviceUse { device: self.0.clone(), start_sector: self.1, len_sectors: self.2 }]
    }

    fn table_args(&self) -> String {
        format!("{} {}", self.0.shown, self.1)
    }

    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        Box::new(Plain(self.0.dest, self.1))
    }
}

impl Target for Plain {
    fn map(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        aim(bio, cx, self.0, self.1)
    }
}

fn aim(mut bio: BioBox, cx: &TargetCx<'_>, dest: Dest, start: Sector) -> Mapped {
    if bio.op == Op::Flush {
        bio.remap(dest, 0);
        return Mapped::Remapped(bio);
    }
    remap_linear(bio, cx, dest, start)
}

struct EitherType;
struct EitherConfig;
struct Either;

impl TargetType for EitherType {
    fn name(&self) -> &'static str {
        "either"
    }

    fn version(&self) -> [u32; 3] {
        [1, 0, 0]
    }

    fn features(&self) -> TypeFeatures {
        TypeFeatures { wildcard: true, ..TypeFeatures::default() }
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        _cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        args.expect_count(&[0], "")?;
        Ok(Box::new(EitherConfig))
    }
}

impl TargetConfig for EitherConfig {
    fn traits(&self) -> TargetTraits {
        TargetTraits { flush_bios: 0, mode: MapMode::Either, ..TargetTraits::default() }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        Vec::new()
    }

    fn table_args(&self) -> String {
        String::new()
    }

    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        Box::new(Either)
    }
}

impl Target for Either {
    fn map(&mut self, bio: BioBox, _cx: &mut TargetCx<'_>) -> Mapped {
        Mapped::Kill(bio)
    }
}

struct LabType;

struct LabConfig {
    device: DeviceRef,
    start: Sector,
    len: Sector,
    traits: TargetTraits,
    refuses: bool,
}

struct Lab {
    dest: Dest,
    start: Sector,
    mood: Mood,
    refuses: bool,
    calls: [u64; 5],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Good,
    Drops,
    Loops,
    Requeues,
}

impl TargetType for LabType {
    fn name(&self) -> &'static str {
        "lab"
    }

    fn version(&self) -> [u32; 3] {
        [1, 0, 0]
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        let device = cx.device(args, "the device")?;
        let start = args.sector("the start")?;
        let mut traits = TargetTraits::default();
        let mut refuses = false;
        while args.left() > 0 {
            let word = args.word("an option")?;
            let (option, number) = word.split_once('=').unwrap_or((word, "0"));
            let number: u32 = number.parse().map_err(|_| args.bad("a number"))?;
            match option {
                "flush" => traits.flush_bios = number,
                "discards" => traits.discard_bios = number,
                "max" => traits.max_io_len_sectors = Sector::from(number),
                "refuses" => refuses = true,
                "request" => traits.mode = MapMode::Request,
                _ => return Err(args.bad("no such option")),
            }
        }
        Ok(Box::new(LabConfig { device, start, len: cx.len_sectors, traits, refuses }))
    }
}

impl TargetConfig for LabConfig {
    fn traits(&self) -> TargetTraits {
        self.traits.clone()
    }

    fn devices(&self) -> Vec<DeviceUse> {
        let (device, start_sector) = (self.device.clone(), self.start);
        vec![DeviceUse { device, start_sector, len_sectors: self.len }]
    }

    fn table_args(&self) -> String {
        format!("{} {}", self.device.shown, self.start)
    }

    fn status_args(&self, counters: &[u64]) -> String {
        let words: Vec<String> = counters.iter().map(u64::to_string).collect();
        words.join(" ")
    }

    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        let LabConfig { start, refuses, .. } = *self;
        Box::new(Lab { dest: self.device.dest, start, mood: Mood::Good, refuses, calls: [0; 5] })
    }
}

impl Target for Lab {
    fn map(&mut self, mut bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        match self.mood {
            Mood::Good => aim(bio, cx, self.dest, self.start),
            Mood::Drops => {
                drop(bio);
                Mapped::Submitted
            }
            Mood::Loops => {
                let own = Dest::Device(bio.frame().device);
                bio.remap(own, 0);
                Mapped::Remapped(bio)
            }
            Mood::Requeues => Mapped::Requeue(bio),
        }
    }

    fn presuspend(&mut self, _cx: &mut TargetCx<'_>) {
        self.calls[0] += 1;
    }

    fn presuspend_undo(&mut self, _cx: &mut TargetCx<'_>) {
        self.calls[1] += 1;
    }

    fn postsuspend(&mut self, _cx: &mut TargetCx<'_>) {
        self.calls[2] += 1;
    }

    fn preresume(&mut self, _cx: &mut TargetCx<'_>) -> Result<Preresume, UserError> {
        self.calls[3] += 1;
        if self.refuses {
            return Err(UserError::new(ErrorCode::PreresumeFailed, "the lab refuses"));
        }
        Ok(Preresume::Ready)
    }

    fn resume(&mut self, _cx: &mut TargetCx<'_>) {
        self.calls[4] += 1;
    }

    fn add_counters(&self, sum: &mut Vec<u64>) {
        sum.resize(self.calls.len(), 0);
        sum.iter_mut().zip(self.calls).for_each(|(sum, calls)| *sum += calls);
    }

    fn message(
        &mut self,
        words: &[String],
        cx: &mut TargetCx<'_>,
    ) -> Result<Option<String>, UserError> {
        self.mood = match words.first().map(String::as_str) {
            Some("good") => Mood::Good,
            Some("drop") => Mood::Drops,
            Some("loop") => Mood::Loops,
            Some("requeue") => Mood::Requeues,
            Some("event") => {
                if cx.lane() == LaneId(0) {
                    cx.raise_event();
                }
                self.mood
            }
            _ => return Err(UserError::unknown_message(words)),
        };
        Ok(None)
    }
}
