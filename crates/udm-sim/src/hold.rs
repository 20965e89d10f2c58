//! Targets of the simulator only: `hold`, which keeps bios and pushes them back, and two planted
//! bugs.
//!
//! `hold DEV START EVERY MS` maps like linear, but keeps every EVERY-th bio until MS milliseconds
//! have passed or a `release` message comes. It is the target that needs a noflush suspend: when
//! one begins, it pushes everything back; a flushing suspend makes it send everything on. What
//! fails below while a noflush suspend is under way is pushed back from `end_io`, as a multipath
//! would.
//!
//! `sulk DEV START LANE` is linear, but refuses to resume on one lane.
//!
//! `skew DEV START BAD` is linear with one sector mapped to its neighbour (a canary). `hold` with
//! EVERY above [`STUBBORN`] does not let go at a suspend (a canary).
//!
//! The tricky case is a bio that arrives between `presuspend` and the closed gate, or is sent on by
//! another target meanwhile: while suspending, `map` pushes back (noflush) or passes through.

use std::collections::VecDeque;
use udm_core::ErrorCode;
use udm_core::table::{Args, BuildCx, DeviceRef};
use udm_core::target::{DeviceUse, TargetTraits, remap_linear};
use udm_core::{
    BioBox, Ended, Mapped, Preresume, Target, TargetConfig, TargetCx, TargetType, UserError,
};
use udm_types::{LaneId, Nanos, Op, Sector};

/// Added to EVERY by the canary.
pub(crate) const STUBBORN: u64 = 1000;

/// `hold`.
pub(crate) struct HoldType;

/// `skew`.
pub(crate) struct SkewType;

/// `sulk`.
pub(crate) struct SulkType;

#[derive(Clone)]
struct Leg {
    device: DeviceRef,
    start_sector: Sector,
    len_sectors: Sector,
}

impl Leg {
    fn parse(args: &mut Args<'_>, cx: &mut BuildCx<'_>) -> Result<Leg, UserError> {
        let device = cx.device(args, "device")?;
        let start_sector = args.sector("start")?;
        Ok(Leg { device, start_sector, len_sectors: cx.len_sectors })
    }

    fn uses(&self) -> Vec<DeviceUse> {
        vec![DeviceUse {
            device: self.device.clone(),
            start_sector: self.start_sector,
            len_sectors: self.len_sectors,
        }]
    }
}

impl TargetType for HoldType {
    fn name(&self) -> &'static str {
        "hold"
    }

    fn version(&self) -> [u32; 3] {
        [1, 0, 0]
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        args.expect_count(&[4], "DEV START EVERY MS")?;
        let leg = Leg::parse(args, cx)?;
        let every = args.number("every", 1..=2 * STUBBORN)?;
        let hold_ms = args.number("milliseconds", 1..=60_000)?;
        Ok(Box::new(HoldConfig { leg, every, hold_ms }))
    }
}

struct HoldConfig {
    leg: Leg,
    every: u64,
    hold_ms: u64,
}

impl TargetConfig for HoldConfig {
    fn traits(&self) -> TargetTraits {
        TargetTraits { wants_end_io: true, ..TargetTraits::default() }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        self.leg.uses()
    }

    fn table_args(&self) -> String {
        let Leg { device, start_sector, .. } = &self.leg;
        format!("{} {start_sector} {} {}", device.shown, self.every, self.hold_ms)
    }

    fn status_args(&self, counters: &[u64]) -> String {
        counters.first().map_or_else(String::new, |held| format!("held {held}"))
    }

    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        Box::new(Hold {
            leg: self.leg.clone(),
            every: self.every % STUBBORN,
            hold_ms: self.hold_ms,
            stubborn: self.every > STUBBORN,
            suspending: false,
            seen: 0,
            kept: VecDeque::new(),
        })
    }
}

struct Hold {
    leg: Leg,
    every: u64,
    hold_ms: u64,
    stubborn: bool,
    suspending: bool,
    seen: u64,
    kept: VecDeque<BioBox>,
}

impl Hold {
    fn aim(&self, bio: &mut BioBox, cx: &TargetCx<'_>) {
        let offset = bio.sector.wrapping_sub(cx.begin_sector());
        bio.remap(self.leg.device.dest, self.leg.start_sector.wrapping_add(offset));
    }

    fn send_on(&mut self, cx: &mut TargetCx<'_>) {
        while let Some(mut bio) = self.kept.pop_front() {
            self.aim(&mut bio, cx);
            cx.dispatch(bio);
        }
    }
}

impl Target for Hold {
    fn map(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        self.seen += 1;
        match bio.op {
            Op::Read | Op::Write | Op::Flush | Op::Discard | Op::WriteZeroes => {}
        }
        if self.suspending && cx.noflush_suspending() {
            return Mapped::Requeue(bio);
        }
        if !self.seen.is_multiple_of(self.every) || (self.suspending && !self.stubborn) {
            return remap_linear(bio, cx, self.leg.device.dest, self.leg.start_sector);
        }
        self.kept.push_back(bio);
        if !self.stubborn {
            cx.set_timer(cx.now() + Nanos::from_millis(self.hold_ms), 0);
        }
        Mapped::Submitted
    }

    fn end_io(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Ended {
        match cx.noflush_suspending() && !bio.status.is_ok() {
            true => Ended::Requeue(bio),
            false => Ended::Done(bio),
        }
    }

    fn presuspend(&mut self, cx: &mut TargetCx<'_>) {
        self.suspending = true;
        if self.stubborn {
            return;
        }
        match cx.noflush_suspending() {
            true => {
                while let Some(bio) = self.kept.pop_front() {
                    cx.requeue(bio);
                }
            }
            false => self.send_on(cx),
        }
    }

    fn presuspend_undo(&mut self, _cx: &mut TargetCx<'_>) {
        self.suspending = false;
    }

    fn resume(&mut self, _cx: &mut TargetCx<'_>) {
        self.suspending = false;
    }

    fn on_timer(&mut self, token: u64, cx: &mut TargetCx<'_>) {
        // An event now and then, for those who wait for one.
        if token.is_multiple_of(4) {
            cx.raise_event();
        }
        self.send_on(cx);
    }

    fn add_counters(&self, sum: &mut Vec<u64>) {
        if sum.is_empty() {
            sum.push(0);
        }
        sum[0] += self.kept.len() as u64;
    }

    fn message(
        &mut self,
        words: &[String],
        cx: &mut TargetCx<'_>,
    ) -> Result<Option<String>, UserError> {
        match words {
            [word] if word == "release" => {
                if !self.stubborn {
                    self.send_on(cx);
                }
                Ok(None)
            }
            _ => Err(UserError::unknown_message(words)),
        }
    }
}

impl TargetType for SkewType {
    fn name(&self) -> &'static str {
        "skew"
    }

    fn version(&self) -> [u32; 3] {
        [1, 0, 0]
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        args.expect_count(&[3], "DEV START BAD")?;
        let leg = Leg::parse(args, cx)?;
        let bad = args.sector("bad sector")?;
        Ok(Box::new(Skew { leg, bad }))
    }
}

#[derive(Clone)]
struct Skew {
    leg: Leg,
    bad: Sector,
}

impl TargetConfig for Skew {
    fn traits(&self) -> TargetTraits {
        TargetTraits::default()
    }

    fn devices(&self) -> Vec<DeviceUse> {
        self.leg.uses()
    }

    fn table_args(&self) -> String {
        format!("{} {} {}", self.leg.device.shown, self.leg.start_sector, self.bad)
    }

    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        Box::new(self.clone())
    }
}

impl Target for Skew {
    fn map(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        let bad = bio.sector.wrapping_sub(cx.begin_sector()) == self.bad && self.bad > 0;
        let start = self.leg.start_sector - u64::from(bad);
        remap_linear(bio, cx, self.leg.device.dest, start)
    }
}

impl TargetType for SulkType {
    fn name(&self) -> &'static str {
        "sulk"
    }

    fn version(&self) -> [u32; 3] {
        [1, 0, 0]
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        args.expect_count(&[3], "DEV START LANE")?;
        let leg = Leg::parse(args, cx)?;
        let lane = args.number("lane", 0..=63)?;
        Ok(Box::new(Sulk { leg, lane }))
    }
}

#[derive(Clone)]
struct Sulk {
    leg: Leg,
    lane: u64,
}

impl TargetConfig for Sulk {
    fn traits(&self) -> TargetTraits {
        TargetTraits::default()
    }

    fn devices(&self) -> Vec<DeviceUse> {
        self.leg.uses()
    }

    fn table_args(&self) -> String {
        format!("{} {} {}", self.leg.device.shown, self.leg.start_sector, self.lane)
    }

    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        Box::new(self.clone())
    }
}

impl Target for Sulk {
    fn map(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        remap_linear(bio, cx, self.leg.device.dest, self.leg.start_sector)
    }

    fn preresume(&mut self, cx: &mut TargetCx<'_>) -> Result<Preresume, UserError> {
        match u64::from(cx.lane().0) == self.lane {
            true => Err(UserError::new(ErrorCode::PreresumeFailed, "it sulks")),
            false => Ok(Preresume::Ready),
        }
    }
}
