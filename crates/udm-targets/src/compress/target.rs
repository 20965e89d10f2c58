//! A compress target at work: binds a [`Volume`] to the lanes of the engine.
//!
//! One instance, on the device's home lane, has the volume; those of other lanes hand their bios
//! over to it and have nothing else to do. A bio becomes a request of the volume, an operation of
//! the volume an I/O of the target's own, and the volume computes in turns:
//! ```text
//!   map --hand_over--> on_handed -> Volume::submit    want_turn
//!   on_turn -> Volume::turn -> operations: submit_own; ends: complete; events; timer
//!   on_own_bio -> Disk::complete                      want_turn
//! ```
//! Suspends: bios end by themselves, or go back to be mapped again if they were not accepted yet
//! and the suspend is noflush; `settle` stops the work in the background and brings what was
//! accepted into the log, and without noflush makes it durable. The instance keeps its volume, and
//! `resume` goes on. A new instance opens the volume anew in `preresume`, which is a recovery:
//! there is no other way to begin, so nothing has to be handed from table to table. Before the
//! resume is reported the volume also grows to what the table line and the device below are now.
//!
//! Rules. Nothing here decides anything about data. An own I/O that the device refuses is the
//! volume's business, too.
//!
//! The tricky case is a resume that is given up in the middle of a recovery: the volume is dropped,
//! which is a crash, and a crash is always safe; but its last writes may still be under way, and no
//! new recovery may begin before they have ended, or they would land on top of it.

use super::args::{Line, fits};
use super::format::BLOCK_BYTES;
use super::message::{Order, cannot_shrink};
use super::status;
use super::volume::{Done, Event, Request, ResizeFault, Sizes, State, Volume};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use udm_core::bio::BioBox;
use udm_core::{ErrorCode, Mapped, Preresume, Target, TargetCx, UserError};
use udm_lane::Payload;
use udm_meta::{Disk, DiskOp, DiskOpKind, DiskToken};
use udm_types::{BioFlags, Nanos, Op, SECTOR_BYTES, SECTOR_SHIFT, Status};

/// A device that is larger by less than this is not worth a resize: no segment would fit.
const GROWTH_MIN_BYTES: u64 = 1 << 16;

/// An instance on a lane.
pub(super) struct Compress {
    line: Arc<Line>,
    disk: Disk,
    volume: Option<Volume>,
    /// Tells operations of the volume that is open from those of one that was dropped.
    opened: u32,
    /// Own I/Os under way, of dropped volumes, too.
    ios: u64,
    /// Bios in the volume, by ticket.
    bios: Vec<Option<BioBox>>,
    free: Vec<u32>,
    stage: Stage,
    /// From `presuspend` to `resume`.
    is_suspending: bool,
    is_out_of_space: bool,
    /// How the last resize by message ended, if not well.
    resize_fault: Option<ResizeFault>,
    timer_at: Option<Nanos>,
}

/// What the target is at. All but `Running` and `Idle` count as a work at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No I/O and no turns: before the first resume, and while suspended.
    Idle,
    /// A resume waits for the volume to be recovered.
    Recovering,
    /// A resume waits for it to have its new sizes.
    Growing,
    /// Serving.
    Running,
    /// A suspend waits for the volume to stop.
    Stopping,
}

impl Compress {
    pub(super) fn new(line: Arc<Line>) -> Compress {
        Compress {
            line,
            disk: Disk::new(0),
            volume: None,
            opened: 0,
            ios: 0,
            bios: Vec::new(),
            free: Vec::new(),
            stage: Stage::Idle,
            is_suspending: false,
            is_out_of_space: false,
            resize_fault: None,
            timer_at: None,
        }
    }

    /// Opens the volume anew, once nothing of an earlier one is under way.
    fn open(&mut self, cx: &mut TargetCx<'_>) {
        if self.ios > 0 {
            return;
        }
        self.opened = self.opened.wrapping_add(1);
        self.disk = Disk::new(self.line.device.len_sectors * SECTOR_BYTES);
        let options = self.line.options.clone();
        self.volume = Some(Volume::open(self.disk.clone(), options, cx.now()));
        self.is_out_of_space = false;
        self.resize_fault = None;
        self.timer_at = None;
        cx.want_turn();
    }

    /// A bio of any lane: becomes a request.
    fn accept(&mut self, mut bio: BioBox, cx: &mut TargetCx<'_>) {
        if self.is_suspending && cx.noflush_suspending() {
            return cx.requeue(bio);
        }
        let Some(volume) = &mut self.volume else {
            return cx.complete(bio, Status::IoErr);
        };
        let place = self.free.pop().unwrap_or_else(|| {
            self.bios.push(None);
            (self.bios.len() - 1) as u32
        });
        let offset_sectors = match bio.op {
            Op::Flush => 0,
            Op::Read | Op::Write | Op::Discard | Op::WriteZeroes => cx.offset_in_target(bio.sector),
        };
        volume.submit(Request {
            ticket: place.into(),
            op: bio.op,
            flags: bio.flags,
            offset_bytes: offset_sectors << SECTOR_SHIFT,
            len_bytes: bio.len_sectors << SECTOR_SHIFT,
            payload: core::mem::take(&mut bio.payload),
        });
        self.bios[place as usize] = Some(bio);
        cx.want_turn();
    }

    /// A request has ended.
    fn finish(&mut self, done: Done, cx: &mut TargetCx<'_>) {
        let Done { ticket, status, payload } = done;
        let place = ticket as usize;
        let Some(mut bio) = self.bios.get_mut(place).and_then(Option::take) else {
            debug_assert!(false, "a request ends once");
            return;
        };
        bio.payload = payload;
        self.free.push(place as u32);
        // Where no space is left, a larger device may be what the suspend is for.
        match status == Status::NoSpace && cx.noflush_suspending() {
            true => cx.requeue(bio),
            false => cx.complete(bio, status),
        }
    }

    /// Starts an operation of the volume.
    fn start(&mut self, op: DiskOp, cx: &mut TargetCx<'_>) {
        let (what, flags) = match op.kind {
            DiskOpKind::Read => (Op::Read, BioFlags::empty()),
            DiskOpKind::Write { fua: true } => (Op::Write, BioFlags::FUA),
            DiskOpKind::Write { fua: false } => (Op::Write, BioFlags::empty()),
            DiskOpKind::Flush => (Op::Flush, BioFlags::empty()),
            DiskOpKind::Discard => (Op::Discard, BioFlags::empty()),
        };
        let mut own = cx.take_bio();
        own.ask(what, flags, op.offset_bytes >> SECTOR_SHIFT, op.len_bytes >> SECTOR_SHIFT);
        own.payload = op.payload;
        let tag = u64::from(self.opened) << 32 | u64::from(op.token.to_u32());
        self.ios += 1;
        cx.submit_own(self.line.device.dest, tag, own);
    }

    /// Takes out what the volume has to say.
    fn drain(&mut self, cx: &mut TargetCx<'_>) {
        if self.stage == Stage::Running {
            // The end of a resize by message: sizes are in `stats`, and so is a fault, which left
            // everything as it was.
            while let Some(outcome) = self.volume.as_mut().and_then(Volume::next_resized) {
                self.resize_fault = outcome.err();
                cx.raise_event();
            }
        }
        while let Some(op) = self.disk.next_op() {
            self.start(op, cx);
        }
        while let Some(done) = self.volume.as_mut().and_then(Volume::next_done) {
            self.finish(done, cx);
        }
        while let Some(event) = self.volume.as_mut().and_then(Volume::next_event) {
            self.is_out_of_space = match event {
                Event::OutOfSpace => true,
                Event::SpaceAgain => false,
                Event::Recovered { .. }
                | Event::Troubled(_)
                | Event::BlocksLost { .. }
                | Event::LowSpace => self.is_out_of_space,
            };
            match event {
                // Every resume would be an event.
                Event::Recovered { .. } => {}
                Event::OutOfSpace
                | Event::SpaceAgain
                | Event::Troubled(_)
                | Event::BlocksLost { .. }
                | Event::LowSpace => cx.raise_event(),
            }
        }
        self.set_timer(cx);
    }

    fn set_timer(&mut self, cx: &mut TargetCx<'_>) {
        let Some(next) = self.volume.as_ref().and_then(Volume::next_timer) else { return };
        if self.timer_at.is_none_or(|set| next < set) {
            self.timer_at = Some(next);
            cx.set_timer(next, self.opened.into());
        }
    }

    /// Goes to the next stage if what this one waits for is there.
    fn look(&mut self, cx: &mut TargetCx<'_>) {
        match self.stage {
            Stage::Recovering => {
                let Some(volume) = &self.volume else { return };
                match volume.state() {
                    State::Recovering => {}
                    State::Serving | State::ReadOnly(_) => self.recovered(cx),
                    State::Failed(trouble) => {
                        self.ready(Err(self.refuse(&format!("{trouble}"))), cx);
                    }
                }
            }
            Stage::Growing => match self.volume.as_mut().and_then(Volume::next_resized) {
                None => {}
                Some(Ok(())) => self.ready(Ok(()), cx),
                // It serves as it was; that it could be larger is no reason to stop it.
                Some(Err(ResizeFault::DiskTooLarge)) if self.missing_sectors(cx) == 0 => {
                    self.ready(Ok(()), cx);
                }
                Some(Err(fault)) => {
                    let why = format!("it cannot have {} sectors: {fault}", cx.len_sectors());
                    self.ready(Err(self.refuse(&why)), cx);
                }
            },
            Stage::Stopping if self.volume.as_ref().is_none_or(Volume::is_stopped) => {
                self.stage = Stage::Idle;
                cx.end_work();
            }
            Stage::Stopping | Stage::Idle | Stage::Running => {}
        }
    }

    /// The volume was recovered: it has to fit, and to be as large as the line.
    fn recovered(&mut self, cx: &mut TargetCx<'_>) {
        let missing = self.missing_sectors(cx);
        let Some(volume) = &mut self.volume else { return };
        let Some(superblock) = volume.superblock() else { return };
        if let Err(error) = fits(&self.line.device, &superblock) {
            return self.ready(Err(error), cx);
        }
        let geometry = &superblock.geometry;
        // It also grows if a crash ended a shrink before anybody was told that it was done.
        let is_larger = self.line.device.len_sectors * SECTOR_BYTES
            >= geometry.device_bytes + GROWTH_MIN_BYTES
            || volume.counters().segments < geometry.segment_limit();
        let can_grow = matches!(volume.state(), State::Serving) && !superblock.is_sized;
        let grows_to_disk = can_grow && is_larger;
        if missing == 0 && !grows_to_disk {
            return self.ready(Ok(()), cx);
        }
        let len_bytes = (cx.len_sectors() * SECTOR_BYTES).next_multiple_of(BLOCK_BYTES);
        let logical_bytes = (missing > 0).then_some(len_bytes);
        volume.resize(Sizes { logical_bytes, grows_to_disk });
        self.stage = Stage::Growing;
        cx.want_turn();
    }

    /// Sectors of the line that the volume does not have.
    fn missing_sectors(&self, cx: &TargetCx<'_>) -> u64 {
        let have = self.volume.as_ref().and_then(Volume::logical_bytes).unwrap_or(0);
        cx.len_sectors().saturating_sub(have >> SECTOR_SHIFT)
    }

    /// Ends the wait of a resume.
    fn ready(&mut self, outcome: Result<(), UserError>, cx: &mut TargetCx<'_>) {
        if outcome.is_err() {
            self.volume = None;
        }
        self.stage = Stage::Idle;
        cx.end_work();
        cx.resume_ready(outcome);
    }

    fn refuse(&self, why: &str) -> UserError {
        let shown = &self.line.device.shown;
        UserError::new(ErrorCode::VolumeUnusable, format!("{shown} cannot be used: {why}"))
            .hint(format!("`udm compress check {shown}` says more"))
    }

    /// Goes on, or begins, after a suspend that is over or was given up.
    fn run(&mut self, cx: &mut TargetCx<'_>) {
        if self.stage == Stage::Stopping {
            cx.end_work();
        }
        self.stage = Stage::Running;
        self.is_suspending = false;
        if let Some(volume) = &mut self.volume {
            volume.start();
            cx.want_turn();
        }
    }
}

impl Target for Compress {
    fn map(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        let home = cx.home_lane();
        match cx.lane() == home {
            true => self.accept(bio, cx),
            false => cx.hand_over(home, bio),
        }
        Mapped::Submitted
    }

    fn on_handed(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) {
        self.accept(bio, cx);
    }

    fn on_turn(&mut self, cx: &mut TargetCx<'_>) {
        for _ in 0..self.line.workers {
            let Some(volume) = &mut self.volume else { return };
            let is_more = volume.turn(cx.now());
            self.drain(cx);
            if !is_more {
                return self.look(cx);
            }
        }
        self.look(cx);
        cx.want_turn();
    }

    fn on_own_bio(&mut self, tag: u64, mut own: BioBox, cx: &mut TargetCx<'_>) {
        self.ios -= 1;
        let payload = core::mem::replace(&mut own.payload, Payload::empty());
        let (opened, token) = ((tag >> 32) as u32, DiskToken::from_u32(tag as u32));
        if opened == self.opened && self.volume.is_some() {
            self.disk.complete(token, own.status, payload);
            cx.want_turn();
        } else if self.stage == Stage::Recovering && self.volume.is_none() {
            self.open(cx);
        }
        cx.recycle(own);
    }

    fn on_timer(&mut self, token: u64, cx: &mut TargetCx<'_>) {
        if token == u64::from(self.opened) {
            self.timer_at = None;
            if self.stage != Stage::Idle {
                cx.want_turn();
            }
        }
    }

    fn presuspend(&mut self, cx: &mut TargetCx<'_>) {
        self.is_suspending = true;
        if !cx.noflush_suspending() {
            return;
        }
        // What has no place in the log yet may wait for space that only the new table has.
        let Some(volume) = &mut self.volume else { return };
        for (place, slot) in self.bios.iter_mut().enumerate() {
            if slot.is_some()
                && let Some(payload) = volume.take_back(place as u64)
                && let Some(mut bio) = slot.take()
            {
                bio.payload = payload;
                self.free.push(place as u32);
                cx.requeue(bio);
            }
        }
        cx.want_turn();
    }

    fn settle(&mut self, cx: &mut TargetCx<'_>) {
        let Some(volume) = &mut self.volume else { return };
        volume.request_stop(!cx.noflush_suspending());
        self.stage = Stage::Stopping;
        cx.begin_work();
        cx.want_turn();
    }

    fn presuspend_undo(&mut self, cx: &mut TargetCx<'_>) {
        self.run(cx);
    }

    fn preresume(&mut self, cx: &mut TargetCx<'_>) -> Result<Preresume, UserError> {
        if cx.lane() != cx.home_lane() || self.volume.is_some() {
            return Ok(Preresume::Ready);
        }
        self.stage = Stage::Recovering;
        cx.begin_work();
        self.open(cx);
        Ok(Preresume::Later)
    }

    fn resume_given_up(&mut self, cx: &mut TargetCx<'_>) {
        self.volume = None;
        self.stage = Stage::Idle;
        cx.end_work();
    }

    fn resume(&mut self, cx: &mut TargetCx<'_>) {
        self.run(cx);
    }

    fn add_counters(&self, sum: &mut Vec<u64>) {
        if let Some(volume) = &self.volume {
            status::add(volume, self.is_out_of_space, sum);
        }
    }

    fn message(
        &mut self,
        words: &[String],
        cx: &mut TargetCx<'_>,
    ) -> Result<Option<String>, UserError> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let order = Order::parse(&words)?;
        let Some(volume) = &mut self.volume else { return Ok(None) };
        if order == Order::Stats {
            return Ok(Some(status::stats(volume, self.resize_fault)));
        }
        if self.stage != Stage::Running {
            let text = "the device is suspended: there is no work in the background";
            return Err(UserError::new(ErrorCode::Suspended, text));
        }
        match order {
            Order::Gc(segments) => volume.gc(segments),
            Order::Scrub => volume.scrub(),
            Order::Shrink => {
                let len_bytes = (cx.len_sectors() * SECTOR_BYTES).next_multiple_of(BLOCK_BYTES);
                let logical_bytes = Some(len_bytes);
                volume.resize(Sizes { logical_bytes, grows_to_disk: false });
            }
            Order::ShrinkDisk(sectors) => {
                let bytes = sectors.saturating_mul(SECTOR_BYTES);
                volume.shrink_disk(bytes).map_err(cannot_shrink)?;
            }
            Order::StopShrinking => volume.stop_shrinking(),
            Order::GrowDisk => volume.resize(Sizes { logical_bytes: None, grows_to_disk: true }),
            Order::Checkpoint => volume.checkpoint(),
            Order::Stats => {}
        }
        cx.want_turn();
        Ok(None)
    }
}
