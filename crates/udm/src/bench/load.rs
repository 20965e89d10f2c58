//! A closed loop of bios on one lane: keeps `depth` under way until the time is up.
//!
//! Each bio keeps its buffer and is submitted again when it comes back, so the loop allocates
//! nothing. One bio in [`SAMPLE_EVERY`] is timed with the real clock; the others are only counted
//! (the engine itself reads the clock once a turn, too coarse for single latencies).

use std::sync::mpsc::Sender;
use udm_core::{Actor, ActorCx, BioBox, Dest};
use udm_driver::{cpu_time_ns, monotonic_ns};
use udm_lane::{Buf, Payload};
use udm_types::{BioFlags, Op, SECTOR_BYTES, Sector};

/// One timed bio in this many; two clock readings then cost well under a nanosecond an I/O.
pub(super) const SAMPLE_EVERY: u64 = 509;

/// What to do.
#[derive(Clone, Debug)]
pub(super) struct LoadOrder {
    pub(super) dest: Dest,
    pub(super) op: Op,
    pub(super) len_sectors: Sector,
    pub(super) device_sectors: Sector,
    pub(super) depth: u32,
    /// One place after the other, beginning at a random one; else every place is random.
    pub(super) is_sequential: bool,
    pub(super) seconds: f64,
    pub(super) seed: u64,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub(super) struct LoadResult {
    pub(super) ios: u64,
    pub(super) errors: u64,
    pub(super) cpu_ns: u64,
    pub(super) wall_ns: u64,
    pub(super) latencies_ns: Vec<u64>,
}

/// The loop.
pub(super) struct Load {
    order: LoadOrder,
    rng: fastrand::Rng,
    blocks: u64,
    /// The next place of a sequential load.
    next_block: u64,
    end_ns: u64,
    started_ns: u64,
    started_cpu_ns: u64,
    countdown: u64,
    /// When the timed bio was submitted, and its tag.
    timed: Option<(u64, u64)>,
    result: LoadResult,
    report: Option<Sender<LoadResult>>,
}

impl Load {
    pub(super) fn new(order: LoadOrder, report: Sender<LoadResult>) -> Load {
        let blocks = (order.device_sectors / order.len_sectors.max(1)).max(1);
        let mut rng = fastrand::Rng::with_seed(order.seed);
        Load {
            next_block: rng.u64(..blocks),
            rng,
            blocks,
            order,
            end_ns: 0,
            started_ns: 0,
            started_cpu_ns: 0,
            countdown: SAMPLE_EVERY,
            timed: None,
            result: LoadResult::default(),
            report: Some(report),
        }
    }

    #[inline]
    fn submit(&mut self, tag: u64, mut bio: BioBox, cx: &mut ActorCx<'_>) {
        let (sector, len_sectors) = match self.order.op {
            Op::Flush => (0, 0),
            Op::Read | Op::Write | Op::Discard | Op::WriteZeroes => {
                (self.place() * self.order.len_sectors, self.order.len_sectors)
            }
        };
        bio.ask(self.order.op, BioFlags::empty(), sector, len_sectors);
        self.countdown -= 1;
        if self.countdown == 0 {
            self.sample(tag);
        }
        cx.submit_to(self.order.dest, tag, bio);
    }

    #[inline]
    fn place(&mut self) -> u64 {
        if !self.order.is_sequential {
            return self.rng.u64(..self.blocks);
        }
        let place = self.next_block;
        self.next_block = if place + 1 == self.blocks { 0 } else { place + 1 };
        place
    }

    /// Times the bio `tag`, unless one is being timed. Apart, as it is rare.
    #[cold]
    fn sample(&mut self, tag: u64) {
        self.countdown = SAMPLE_EVERY;
        if self.timed.is_none() {
            self.timed = Some((tag, monotonic_ns()));
        }
    }

    #[cold]
    fn sampled(&mut self, at: u64) {
        self.result.latencies_ns.push(monotonic_ns() - at);
        self.timed = None;
    }

    #[cold]
    fn finish(&mut self) {
        self.result.cpu_ns = cpu_time_ns() - self.started_cpu_ns;
        self.result.wall_ns = monotonic_ns() - self.started_ns;
        if let Some(report) = self.report.take() {
            // The bench waits for every lane; if it has gone nobody wants the figures.
            drop(report.send(core::mem::take(&mut self.result)));
        }
    }
}

impl Actor for Load {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        self.started_ns = monotonic_ns();
        self.started_cpu_ns = cpu_time_ns();
        self.end_ns = self.started_ns + (self.order.seconds * 1e9) as u64;
        for tag in 0..u64::from(self.order.depth) {
            let mut bio = cx.take_bio();
            if self.order.op.has_data() {
                let len_bytes = self.order.len_sectors * SECTOR_BYTES;
                bio.payload = Payload::from_buf(Buf::alloc(len_bytes as usize));
            }
            self.submit(tag, bio, cx);
        }
    }

    fn on_bio(&mut self, tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        self.result.ios += 1;
        self.result.errors += u64::from(!bio.status.is_ok());
        if let Some((timed, at)) = self.timed
            && timed == tag
        {
            self.sampled(at);
        }
        if cx.now().0 < self.end_ns {
            return self.submit(tag, bio, cx);
        }
        cx.recycle(bio);
        if cx.bios_in_flight() == 0 {
            self.finish();
            cx.exit();
        }
    }
}
