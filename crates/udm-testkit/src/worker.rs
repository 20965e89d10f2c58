//! `worker`: a target for tests that does all a target with work of its own may do.
//!
//! Table line `DEVICE START HOME BATCH [BACKGROUND_MS [LINGER_MS [RETRY_MS]]]`. It maps like
//! `linear`, the long way round: bios of all lanes are handed to the instance on lane HOME (modulo
//! the lanes), which queues them, starts BATCH of them a turn as I/Os of its own, and completes
//! each when its own has ended. Before a resume it reads a sector of the device, so a device that
//! does not answer holds the resume up, and one that fails fails it. (With RETRY_MS it flushes
//! instead of reading, always, and tries again once: for worlds where nobody may read what he does
//! not own, and where what is below may get well only after the resume.) A flushing suspend ends
//! with a flush of its own, and LINGER_MS of work after that. With BACKGROUND_MS it reads a sector
//! so long after a bio came, in two steps with a turn between, and nobody above knows; an idle one
//! does nothing.
//!
//! Status: `<bios handed over> <own I/Os ended> <turns> <resumes made ready> <last flushes>
//! <background rounds>`.
//!
//! Under noflush it pushes back what it has not started, and what fails below. The tricky case is a
//! resume that was given up while its read was under way: the next one waits for the same read.

use std::collections::VecDeque;
use udm_core::bio::BioBox;
use udm_core::table::{Args, BuildCx, DeviceRef};
use udm_core::target::{DeviceUse, TargetTraits};
use udm_core::{
    Dest, ErrorCode, Mapped, Preresume, Target, TargetConfig, TargetCx, TargetType, UserError,
};
use udm_types::{BioFlags, LaneId, Nanos, Op, Sector};

/// The `worker` type, to add to a registry.
pub fn worker_type() -> &'static dyn TargetType {
    &WorkerType
}

struct WorkerType;

const SYNTAX: &str = "DEVICE START HOME BATCH [BACKGROUND_MS [LINGER_MS [RETRY_MS]]]";

#[derive(Clone)]
struct WorkerConfig {
    device: DeviceRef,
    start_sector: Sector,
    len_sectors: Sector,
    home: usize,
    batch: usize,
    background_ms: u64,
    linger_ms: u64,
    retry_ms: u64,
}

/// What an I/O of its own was for; tags from `BIO` on are places in `under_way`.
const READY: u64 = 0;
const LAST_FLUSH: u64 = 1;
const BACKGROUND: u64 = 2;
const BIO: u64 = 3;

const COUNTERS: usize = 6;
const HANDED: usize = 0;
const OWN: usize = 1;
const TURNS: usize = 2;
const RESUMES: usize = 3;
const FLUSHES: usize = 4;
const ROUNDS: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ready {
    No,
    Reading,
    Yes,
}

struct Worker {
    config: WorkerConfig,
    lane: LaneId,
    queue: VecDeque<BioBox>,
    under_way: Vec<Option<BioBox>>,
    ready: Ready,
    retried: bool,
    suspending: bool,
    /// Background rounds that stand between their two steps.
    rounds_in_turn: u64,
    /// The timer of the next background round is set.
    timer_set: bool,
    counters: [u64; COUNTERS],
}

impl TargetType for WorkerType {
    fn name(&self) -> &'static str {
        "worker"
    }

    fn version(&self) -> [u32; 3] {
        [1, 0, 0]
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        args.expect_count(&[4, 5, 6, 7], SYNTAX)?;
        let device = cx.device(args, "the device")?;
        let start_sector = args.sector("the start sector on the device")?;
        let home = args.number("the home lane", 0..=63)? as usize;
        let batch = args.number("the batch", 1..=1024)? as usize;
        let mut optional = || match args.left() {
            0 => Ok(0),
            _ => args.number("milliseconds", 0..=60_000),
        };
        let (background_ms, linger_ms, retry_ms) = (optional()?, optional()?, optional()?);
        let len_sectors = cx.len_sectors;
        Ok(Box::new(WorkerConfig {
            device,
            start_sector,
            len_sectors,
            home,
            batch,
            background_ms,
            linger_ms,
            retry_ms,
        }))
    }
}

impl TargetConfig for WorkerConfig {
    fn traits(&self) -> TargetTraits {
        TargetTraits { own_work: true, ..TargetTraits::default() }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        let Self { device, start_sector, len_sectors, .. } = self.clone();
        vec![DeviceUse { device, start_sector, len_sectors }]
    }

    fn table_args(&self) -> String {
        let Self { device, start_sector, home, batch, .. } = self;
        let [background, linger, retry] = [self.background_ms, self.linger_ms, self.retry_ms];
        let text = format!("{} {start_sector} {home} {batch}", device.shown);
        match (background, linger, retry) {
            (0, 0, 0) => text,
            (_, _, 0) => format!("{text} {background} {linger}"),
            _ => format!("{text} {background} {linger} {retry}"),
        }
    }

    fn status_args(&self, counters: &[u64]) -> String {
        let words: Vec<String> = counters.iter().map(u64::to_string).collect();
        words.join(" ")
    }

    fn instantiate(&self, lane: LaneId) -> Box<dyn Target> {
        Box::new(Worker {
            config: self.clone(),
            lane,
            queue: VecDeque::new(),
            under_way: Vec::new(),
            ready: Ready::No,
            retried: false,
            suspending: false,
            rounds_in_turn: 0,
            timer_set: false,
            counters: [0; COUNTERS],
        })
    }
}

impl Worker {
    fn home(&self, cx: &TargetCx<'_>) -> LaneId {
        LaneId((self.config.home % cx.lanes()) as u16)
    }

    fn is_home(&self, cx: &TargetCx<'_>) -> bool {
        self.lane == self.home(cx)
    }

    fn dest(&self) -> Dest {
        self.config.device.dest
    }

    fn accept(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) {
        if self.suspending && cx.noflush_suspending() {
            return cx.requeue(bio);
        }
        self.queue.push_back(bio);
        cx.want_turn();
        if self.config.background_ms > 0 && !self.timer_set {
            self.timer_set = true;
            cx.set_timer(cx.now() + Nanos::from_millis(self.config.background_ms), ROUND);
        }
    }

    /// Starts the own I/O for a bio.
    fn begin(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) {
        let sector = match bio.op {
            Op::Flush => 0,
            Op::Read | Op::Write | Op::Discard | Op::WriteZeroes => {
                self.config.start_sector + cx.offset_in_target(bio.sector)
            }
        };
        let mut own = cx.take_bio();
        own.ask(bio.op, bio.flags, sector, bio.len_sectors);
        own.payload = bio.payload.clone();
        let place = match self.under_way.iter().position(Option::is_none) {
            Some(place) => place,
            None => {
                self.under_way.push(None);
                self.under_way.len() - 1
            }
        };
        self.under_way[place] = Some(bio);
        cx.submit_own(self.dest(), BIO + place as u64, own);
    }

    fn read_a_sector(&self, tag: u64, cx: &mut TargetCx<'_>) {
        let mut own = cx.take_bio();
        let len_sectors = self.config.device.limits.logical_block_sectors();
        if self.config.retry_ms > 0 {
            own.ask(Op::Flush, BioFlags::empty(), 0, 0);
            return cx.submit_own(self.dest(), tag, own);
        }
        own.ask(Op::Read, BioFlags::empty(), self.config.start_sector, len_sectors);
        let buf = cx.bufs().take(4096);
        own.payload = udm_lane::Payload::from_buf(buf).slice(0, len_sectors * 512);
        cx.submit_own(self.dest(), tag, own);
    }
}

/// Timers: a background round, the end of a suspend, the next try of the first read.
const ROUND: u64 = 0;
const LINGER: u64 = 1;
const RETRY: u64 = 2;

impl Target for Worker {
    fn map(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        if self.is_home(cx) {
            self.accept(bio, cx);
        } else {
            self.counters[HANDED] += 1;
            cx.hand_over(self.home(cx), bio);
        }
        Mapped::Submitted
    }

    fn on_handed(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) {
        self.accept(bio, cx);
    }

    fn on_turn(&mut self, cx: &mut TargetCx<'_>) {
        self.counters[TURNS] += 1;
        for _ in 0..std::mem::take(&mut self.rounds_in_turn) {
            self.counters[ROUNDS] += 1;
            cx.end_work();
        }
        for _ in 0..self.config.batch {
            let Some(bio) = self.queue.pop_front() else { return };
            self.begin(bio, cx);
        }
        cx.want_turn();
    }

    fn on_own_bio(&mut self, tag: u64, mut own: BioBox, cx: &mut TargetCx<'_>) {
        self.counters[OWN] += 1;
        let status = own.status;
        match tag {
            READY if !status.is_ok() && self.config.retry_ms > 0 && !self.retried => {
                self.retried = true;
                cx.begin_work();
                cx.set_timer(cx.now() + Nanos::from_millis(self.config.retry_ms), RETRY);
            }
            READY => {
                let is_good = status.is_ok() || self.retried;
                self.retried = false;
                self.ready = if is_good { Ready::Yes } else { Ready::No };
                self.counters[RESUMES] += u64::from(is_good);
                cx.resume_ready(match is_good {
                    true => Ok(()),
                    false => {
                        let text = format!("the worker's first read failed: {status:?}");
                        Err(UserError::new(ErrorCode::PreresumeFailed, text))
                    }
                });
            }
            LAST_FLUSH => {
                self.counters[FLUSHES] += 1;
                if self.config.linger_ms > 0 {
                    cx.begin_work();
                    cx.set_timer(cx.now() + Nanos::from_millis(self.config.linger_ms), LINGER);
                }
            }
            BACKGROUND => {
                cx.begin_work();
                self.rounds_in_turn += 1;
                cx.want_turn();
            }
            _ => {
                let place = (tag - BIO) as usize;
                let bio = self.under_way[place].take().expect("an own I/O ends once");
                match !status.is_ok() && self.suspending && cx.noflush_suspending() {
                    true => cx.requeue(bio),
                    false => cx.complete(bio, status),
                }
            }
        }
        own.payload.clear();
        cx.recycle(own);
    }

    fn on_timer(&mut self, token: u64, cx: &mut TargetCx<'_>) {
        match token {
            LINGER => cx.end_work(),
            RETRY => {
                self.read_a_sector(READY, cx);
                cx.end_work();
            }
            _ => {
                self.timer_set = false;
                if !self.suspending {
                    self.read_a_sector(BACKGROUND, cx);
                }
            }
        }
    }

    fn presuspend(&mut self, cx: &mut TargetCx<'_>) {
        self.suspending = true;
        if cx.noflush_suspending() {
            while let Some(bio) = self.queue.pop_front() {
                cx.requeue(bio);
            }
        }
    }

    fn presuspend_undo(&mut self, cx: &mut TargetCx<'_>) {
        self.resume(cx);
    }

    fn settle(&mut self, cx: &mut TargetCx<'_>) {
        assert!(self.queue.is_empty() && self.under_way.iter().all(Option::is_none), "drained");
        if self.is_home(cx) && !cx.noflush_suspending() {
            let mut own = cx.take_bio();
            own.ask(Op::Flush, BioFlags::empty(), 0, 0);
            cx.submit_own(self.dest(), LAST_FLUSH, own);
        }
    }

    fn preresume(&mut self, cx: &mut TargetCx<'_>) -> Result<Preresume, UserError> {
        if !self.is_home(cx) {
            return Ok(Preresume::Ready);
        }
        match self.ready {
            Ready::Yes => return Ok(Preresume::Ready),
            Ready::Reading => {}
            Ready::No => {
                self.ready = Ready::Reading;
                self.read_a_sector(READY, cx);
            }
        }
        Ok(Preresume::Later)
    }

    fn resume(&mut self, _cx: &mut TargetCx<'_>) {
        self.suspending = false;
    }

    fn add_counters(&self, sum: &mut Vec<u64>) {
        sum.resize(COUNTERS, 0);
        sum.iter_mut().zip(self.counters).for_each(|(sum, own)| *sum += own);
    }
}
