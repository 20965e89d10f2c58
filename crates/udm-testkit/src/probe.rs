//! `probe` and `rprobe`: targets for tests that hold and push back on command.
//!
//! Table line `DEVICE START`; they map like `linear`, but flushes pass through `map`, so a table
//! with a `probe` in it takes the slow route for flushes. `rprobe` maps requests: it is alone in
//! its table and cannot be replaced by another type. Commands are messages, so that they reach
//! every lane in the ordinary way:
//!
//! ```text
//! hold      keep every bio that comes from now on
//! flow      send on what is kept, keep nothing
//! return    push bios back when they return, while a noflush suspend allows it
//! insist    push bios back when they return, allowed or not
//! retry     push back the next bio that returns with an error, to be mapped again at once
//! pause     push back every bio that returns with an error, for 100 ms
//! full      answer `Requeue` to every bio
//! lost      answer `DelayRequeue` to every bio, as if there were no path
//! kill      fail every bio
//! drop      drop every bio, which no target may do
//! good      none of these
//! ```
//!
//! What is kept leaves at `presuspend`: pushed back under noflush, sent on otherwise. The status is
//! the number of bios kept. After a table swap every command is forgotten.

use std::collections::VecDeque;
use udm_core::bio::BioBox;
use udm_core::table::{Args, BuildCx, DeviceRef};
use udm_core::target::{DeviceUse, TargetTraits, TypeFeatures, remap_linear};
use udm_core::{Ended, MapMode, Mapped, Target, TargetConfig, TargetCx, TargetType, UserError};
use udm_types::{LaneId, Op, Sector};

/// The `probe` type, to add to a registry.
pub fn probe_type() -> &'static dyn TargetType {
    &ProbeType { request: false }
}

/// The `rprobe` type, to add to a registry.
pub fn request_probe_type() -> &'static dyn TargetType {
    &ProbeType { request: true }
}

struct ProbeType {
    request: bool,
}

struct ProbeConfig {
    device: DeviceRef,
    start_sector: Sector,
    len_sectors: Sector,
    request: bool,
}

/// What happens to bios.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Good,
    Retry,
    Pause,
    Full,
    Lost,
    Kill,
    Drop,
}

struct Probe {
    device: DeviceRef,
    start_sector: Sector,
    holding: bool,
    returning: bool,
    insisting: bool,
    mood: Mood,
    /// From presuspend to resume nothing may be kept, or the suspend would never end.
    suspending: bool,
    kept: VecDeque<BioBox>,
}

impl TargetType for ProbeType {
    fn name(&self) -> &'static str {
        if self.request { "rprobe" } else { "probe" }
    }

    fn version(&self) -> [u32; 3] {
        [1, 0, 0]
    }

    fn features(&self) -> TypeFeatures {
        let alone = self.request;
        TypeFeatures { singleton: alone, immutable: alone, ..TypeFeatures::default() }
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        args.expect_count(&[2], "DEVICE START_SECTOR")?;
        let device = cx.device(args, "the device")?;
        let start_sector = args.sector("the start sector on the device")?;
        let len_sectors = cx.len_sectors;
        Ok(Box::new(ProbeConfig { device, start_sector, len_sectors, request: self.request }))
    }
}

impl TargetConfig for ProbeConfig {
    fn traits(&self) -> TargetTraits {
        let mode = if self.request { MapMode::Request } else { MapMode::Bio };
        TargetTraits { wants_end_io: true, mode, ..TargetTraits::default() }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        let Self { device, start_sector, len_sectors, .. } = self;
        let (start_sector, len_sectors) = (*start_sector, *len_sectors);
        vec![DeviceUse { device: device.clone(), start_sector, len_sectors }]
    }

    fn table_args(&self) -> String {
        format!("{} {}", self.device.shown, self.start_sector)
    }

    fn status_args(&self, counters: &[u64]) -> String {
        counters.first().copied().unwrap_or(0).to_string()
    }

    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        Box::new(Probe {
            device: self.device.clone(),
            start_sector: self.start_sector,
            holding: false,
            returning: false,
            insisting: false,
            mood: Mood::Good,
            suspending: false,
            kept: VecDeque::new(),
        })
    }
}

impl Probe {
    fn aim(&self, mut bio: BioBox, cx: &TargetCx<'_>) -> BioBox {
        let sector = match bio.op {
            Op::Flush => 0,
            Op::Read | Op::Write | Op::Discard | Op::WriteZeroes => {
                self.start_sector + cx.offset_in_target(bio.sector)
            }
        };
        bio.remap(self.device.dest, sector);
        bio
    }

    fn send_kept(&mut self, cx: &mut TargetCx<'_>) {
        while let Some(bio) = self.kept.pop_front() {
            let bio = self.aim(bio, cx);
            cx.dispatch(bio);
        }
    }
}

impl Target for Probe {
    fn map(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        if self.holding && !self.suspending {
            self.kept.push_back(bio);
            return Mapped::Submitted;
        }
        match self.mood {
            Mood::Good | Mood::Retry | Mood::Pause => {}
            Mood::Full => return Mapped::Requeue(bio),
            Mood::Lost => return Mapped::DelayRequeue(bio),
            Mood::Kill => return Mapped::Kill(bio),
            Mood::Drop => {
                drop(bio);
                return Mapped::Submitted;
            }
        }
        if bio.op == Op::Flush {
            return Mapped::Remapped(self.aim(bio, cx));
        }
        remap_linear(bio, cx, self.device.dest, self.start_sector)
    }

    fn end_io(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Ended {
        if self.insisting || (self.returning && cx.noflush_suspending()) {
            return Ended::Requeue(bio);
        }
        match self.mood {
            Mood::Retry if !bio.status.is_ok() => {
                self.mood = Mood::Good;
                Ended::Requeue(bio)
            }
            Mood::Pause if !bio.status.is_ok() => Ended::DelayRequeue(bio),
            Mood::Good | Mood::Retry | Mood::Pause | Mood::Full => Ended::Done(bio),
            Mood::Lost | Mood::Kill | Mood::Drop => Ended::Done(bio),
        }
    }

    fn presuspend(&mut self, cx: &mut TargetCx<'_>) {
        self.holding = false;
        self.suspending = true;
        if !cx.noflush_suspending() {
            return self.send_kept(cx);
        }
        while let Some(bio) = self.kept.pop_front() {
            cx.requeue(bio);
        }
    }

    fn presuspend_undo(&mut self, _cx: &mut TargetCx<'_>) {
        self.suspending = false;
    }

    fn resume(&mut self, _cx: &mut TargetCx<'_>) {
        self.suspending = false;
    }

    fn add_counters(&self, sum: &mut Vec<u64>) {
        sum.resize(1, 0);
        sum[0] += self.kept.len() as u64;
    }

    fn message(
        &mut self,
        words: &[String],
        cx: &mut TargetCx<'_>,
    ) -> Result<Option<String>, UserError> {
        match words.first().map(String::as_str) {
            Some("hold") => self.holding = true,
            Some("flow") => {
                self.holding = false;
                self.send_kept(cx);
            }
            Some("return") => self.returning = true,
            Some("insist") => self.insisting = true,
            Some("retry") => self.mood = Mood::Retry,
            Some("pause") => self.mood = Mood::Pause,
            Some("full") => self.mood = Mood::Full,
            Some("lost") => self.mood = Mood::Lost,
            Some("kill") => self.mood = Mood::Kill,
            Some("drop") => self.mood = Mood::Drop,
            Some("good") => self.mood = Mood::Good,
            _ => return Err(UserError::unknown_message(words)),
        }
        Ok(None)
    }
}
