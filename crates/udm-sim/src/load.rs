//! The load: actors that read and write a volume and hand every result to the oracle.
//!
//! One actor lives on one lane and uses one volume. In the safety phase it draws operations of all
//! kinds, ranges that overlap those of others and cross every border, and keeps a few bios in
//! flight. For the last check a *sweep* reads the whole volume and flushes it.
//!
//! Each bio is compared on its way back with what was asked: sector, length, operation and device
//! must be as submitted. Read buffers start poisoned, so that a part nobody filled shows.
//!
//! The tricky case is the end: a stopped actor waits for its last bio, whatever becomes of it, and
//! counts itself out only then; the world's liveness check rests on that.

use crate::oracle::Submission;
use crate::state::{Canary, SimState, Stage};
use crate::value::{POISON, SECTOR_LEN, fill};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use udm_core::{Actor, ActorCx, BioBox, Dest};
use udm_lane::{Buf, Payload, Segment};
use udm_types::{BioFlags, DeviceId, Nanos, Op, Sector, Status};

/// What actors of a volume and its script know of each other.
#[derive(Debug, Default)]
pub(crate) struct Crew {
    /// No new I/O.
    pub stopped: bool,
    /// Actors that have not gone yet.
    pub working: usize,
}

/// What an actor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Random I/O until stopped.
    Mixed,
    /// Reads everything once, in order, then flushes.
    Sweep {
        /// The next sector to read.
        next: Sector,
        /// The flush has been sent.
        flushed: bool,
    },
    /// These, all at once, in this order (for tests).
    #[cfg(test)]
    Plan(&'static [(Op, BioFlags, Sector, Sector)]),
}

/// An actor of the load.
pub(crate) struct LoadActor {
    stage: Stage,
    crew: Rc<RefCell<Crew>>,
    volume: usize,
    device: DeviceId,
    task: Task,
    asked: BTreeMap<u32, Submission>,
    gone: bool,
}

/// How long a sweep reads at once.
const SWEEP_SECTORS: Sector = 24;

impl LoadActor {
    /// An actor; it is counted into its crew at once.
    pub(crate) fn new(
        stage: Stage,
        crew: Rc<RefCell<Crew>>,
        volume: usize,
        device: DeviceId,
        task: Task,
    ) -> LoadActor {
        crew.borrow_mut().working += 1;
        LoadActor { stage, crew, volume, device, task, asked: BTreeMap::new(), gone: false }
    }

    fn work(&mut self, cx: &mut ActorCx<'_>) {
        self.check_view(cx);
        match self.task {
            Task::Mixed => {
                let depth = self.stage.get().swarm.depth as usize;
                let burst = self.stage.get().rng.usize(0..=depth);
                for _ in 0..burst {
                    if self.asked.len() >= depth || self.crew.borrow().stopped {
                        break;
                    }
                    let drawn = self.stage.get().draw_io(self.volume, cx.lane().index());
                    self.submit(drawn, cx);
                }
            }
            Task::Sweep { next, flushed } => self.sweep(next, flushed, cx),
            #[cfg(test)]
            Task::Plan(plan) => {
                self.task = Task::Plan(&[]);
                let (volume, lane) = (self.volume, cx.lane().index());
                for &(op, flags, sector, len_sectors) in plan {
                    self.submit(Submission { volume, op, flags, sector, len_sectors, lane }, cx);
                }
            }
        }
        self.leave_if_done(cx);
    }

    fn sweep(&mut self, next: Sector, flushed: bool, cx: &mut ActorCx<'_>) {
        if !self.asked.is_empty() {
            return;
        }
        let len_sectors = self.stage.get().oracle.len_sectors(self.volume);
        let lane = cx.lane().index();
        let volume = self.volume;
        let flags = BioFlags::empty();
        if next < len_sectors {
            let block = self.stage.get().swarm.block_sectors;
            let len = (SWEEP_SECTORS * block).min(len_sectors - next);
            self.task = Task::Sweep { next: next + len, flushed };
            let (op, sector) = (Op::Read, next);
            self.submit(Submission { volume, op, flags, sector, len_sectors: len, lane }, cx);
        } else if !flushed {
            self.task = Task::Sweep { next, flushed: true };
            let op = Op::Flush;
            self.submit(Submission { volume, op, flags, sector: 0, len_sectors: 0, lane }, cx);
        }
    }

    fn submit(&mut self, asked: Submission, cx: &mut ActorCx<'_>) {
        let mut state = self.stage.get();
        let state = &mut *state;
        let number = state.oracle.submit(asked);
        state.tally.count(counter(asked));
        let numbers = [
            u64::from(number),
            asked.volume as u64,
            asked.op as u64,
            u64::from(asked.flags.bits()),
            asked.sector,
            asked.len_sectors,
            asked.lane as u64,
        ];
        state.note("bio", &numbers);
        if state.canary == Some(Canary::FakeFlush) && asked.op == Op::Flush {
            state.oracle.complete(number, Status::Ok, &[], &state.disks);
            return;
        }
        let mut flags = asked.flags;
        if state.canary == Some(Canary::FakeBarrier) {
            flags.remove(BioFlags::ORDERED);
        }
        let mut bio = cx.take_bio();
        bio.ask(asked.op, flags, asked.sector, asked.len_sectors);
        if asked.op.has_data() {
            bio.payload = payload_of(asked, number, state);
        }
        self.asked.insert(number, asked);
        cx.submit(self.device, u64::from(number), bio);
    }

    /// The device's size as lanes show it must be one that the oracle knows.
    fn check_view(&self, cx: &ActorCx<'_>) {
        let Some(view) = cx.device(self.device) else { return };
        let mut state = self.stage.get();
        if state.canary.is_none() && !state.oracle.may_have_len(self.volume, view.len_sectors) {
            let text = format!(
                "lane {} shows volume {} with {} sectors",
                cx.lane().index(),
                self.volume,
                view.len_sectors
            );
            state.oracle.violate(text);
        }
    }

    fn leave_if_done(&mut self, cx: &mut ActorCx<'_>) {
        let swept = matches!(self.task, Task::Sweep { flushed: true, .. });
        #[cfg(test)]
        let swept = swept || matches!(self.task, Task::Plan(&[]));
        let stopped = self.crew.borrow().stopped || swept;
        if stopped && self.asked.is_empty() && !self.gone {
            self.gone = true;
            self.crew.borrow_mut().working -= 1;
            cx.exit();
        }
    }
}

impl Actor for LoadActor {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        let wait = self.stage.get().rng.u64(0..2_000_000);
        cx.set_timer(cx.now() + Nanos(wait), 0);
    }

    fn on_timer(&mut self, _token: u64, cx: &mut ActorCx<'_>) {
        self.work(cx);
        if !self.gone {
            let wait = self.stage.get().draw_pause();
            cx.set_timer(cx.now() + wait, 0);
        }
    }

    fn on_bio(&mut self, tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        let number = tag as u32;
        let mut found = Vec::new();
        let Some(asked) = self.asked.remove(&number) else {
            self.stage.get().oracle.violate(format!("bio {number} came back to nobody"));
            return;
        };
        if asked.op == Op::Read && bio.status.is_ok() {
            found.resize(asked.len_sectors as usize * SECTOR_LEN, 0);
            bio.payload.copy_out(0, &mut found);
        }
        let as_sent = bio.op == asked.op
            && bio.sector == asked.sector
            && bio.len_sectors == asked.len_sectors
            && bio.dest == Dest::Device(self.device);
        {
            let mut state = self.stage.get();
            let state = &mut *state;
            state.note("bio ends", &[tag, bio.status as u64]);
            state.tally.count(if bio.status.is_ok() { "bios ok" } else { "bios failed" });
            if bio.status == Status::NoSpace {
                state.tally.count("bios without space");
            }
            if !as_sent {
                state.oracle.violate(format!("bio {number} came back as another: {bio:?}"));
            }
            state.oracle.complete(number, bio.status, &found, &state.disks);
        }
        // A device that fails at once must not keep the world busy with nothing else.
        let eager = bio.status.is_ok() && self.stage.get().rng.bool();
        cx.recycle(bio);
        let again = matches!(self.task, Task::Sweep { .. }) || eager;
        if again {
            self.work(cx);
        } else {
            self.leave_if_done(cx);
        }
    }
}

fn counter(asked: Submission) -> &'static str {
    match asked.op {
        Op::Read => "bio read",
        Op::Write if asked.flags.contains(BioFlags::ORDERED) => "bio barrier",
        Op::Write if asked.flags.contains(BioFlags::PREFLUSH) => "bio preflush",
        Op::Write if asked.flags.contains(BioFlags::FUA) => "bio fua",
        Op::Write => "bio write",
        Op::Flush if asked.flags.contains(BioFlags::ORDERED) => "bio empty barrier",
        Op::Flush => "bio flush",
        Op::Discard => "bio discard",
        Op::WriteZeroes => "bio write-zeroes",
    }
}

/// A payload in one to three pieces: tags for a write, poison for a read.
fn payload_of(asked: Submission, number: u32, state: &mut SimState) -> Payload {
    let len = asked.len_sectors as usize * SECTOR_LEN;
    let mut bytes = vec![POISON; len];
    if asked.op == Op::Write {
        fill(&mut bytes, number, asked.volume, asked.sector);
    }
    let mut payload = Payload::empty();
    let mut at = 0;
    for piece in (1..=state.rng.usize(1..=3)).rev() {
        let left = (len - at) / SECTOR_LEN;
        let take = if piece == 1 { left } else { state.rng.usize(0..=left) } * SECTOR_LEN;
        if take == 0 {
            continue;
        }
        let lead = state.rng.usize(0..3) * SECTOR_LEN;
        let buf = Buf::alloc(lead + take);
        buf.copy_in(lead, &bytes[at..at + take]);
        payload.push(Segment { buf, offset_bytes: lead as u32, len_bytes: take as u32 });
        at += take;
    }
    payload
}

impl SimState {
    fn draw_pause(&mut self) -> Nanos {
        match self.rng.u32(0..20) {
            0 => Nanos::from_millis(self.rng.u64(5..60)),
            _ => Nanos(self.rng.u64(50_000..3_000_000)),
        }
    }

    fn draw_io(&mut self, volume: usize, lane: usize) -> Submission {
        let load = self.swarm.load.clone();
        let weights = [
            (load.read, Op::Read, BioFlags::empty()),
            (load.write, Op::Write, BioFlags::empty()),
            (load.fua, Op::Write, BioFlags::FUA),
            (load.preflush, Op::Write, BioFlags::PREFLUSH),
            (load.preflush / 2, Op::Write, BioFlags::PREFLUSH.union(BioFlags::FUA)),
            (load.ordered, Op::Write, BioFlags::ORDERED),
            (load.ordered / 2, Op::Flush, BioFlags::ORDERED),
            (load.flush, Op::Flush, BioFlags::empty()),
            (load.discard, Op::Discard, BioFlags::empty()),
            (load.zeroes, Op::WriteZeroes, BioFlags::empty()),
            (load.zeroes / 2, Op::WriteZeroes, BioFlags::NO_UNMAP),
        ];
        let total: u32 = weights.iter().map(|(weight, ..)| weight).sum();
        let mut pick = self.rng.u32(0..total);
        let mut chosen = (Op::Read, BioFlags::empty());
        for (weight, op, flags) in weights {
            if pick < weight {
                chosen = (op, flags);
                break;
            }
            pick -= weight;
        }
        let (op, flags) = chosen;
        let (sector, len_sectors) = match op {
            Op::Flush => (0, 0),
            Op::Read | Op::Write | Op::Discard | Op::WriteZeroes => self.draw_range(volume),
        };
        Submission { volume, op, flags, sector, len_sectors, lane }
    }

    fn draw_range(&mut self, volume: usize) -> (Sector, Sector) {
        let block = self.swarm.block_sectors;
        let blocks = self.oracle.len_sectors(volume) / block;
        let beyond = self.rng.u32(0..1000) < self.swarm.load.beyond_end;
        let len = match self.rng.u32(0..16) {
            0..=7 => self.rng.u64(1..=4),
            8..=13 => self.rng.u64(1..=16),
            14 => self.rng.u64(1..=64),
            // More pieces than the engine has under way of one bio, if chunks are small.
            _ => self.rng.u64(64..=160),
        };
        // A few hot places, so that overlapping writes are common.
        let hot = self.rng.u32(0..3) == 0;
        let sector = match (beyond, hot) {
            (true, _) => (blocks + self.rng.u64(0..8)).saturating_sub(len / 2),
            (false, true) => self.rng.u64(0..4) * (blocks / 4),
            (false, false) => self.rng.u64(0..blocks.max(1)),
        };
        let len = if beyond { len } else { len.min(blocks.saturating_sub(sector).max(1)) };
        (sector * block, len * block)
    }
}
