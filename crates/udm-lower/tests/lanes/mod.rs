//! A lane without an engine: one real driver and one device's part, for the tests of this folder.
//!
//! The test submits bios and takes them when they are done; in between the lane passes the
//! driver's completions on, as the engine would. The low 32 bits of a token are the operation's
//! `user` word.

use std::sync::Arc;
use udm_core::{Bio, BioBox, LowerBench, LowerCx, LowerDevice, LowerLane};
use udm_driver::{DriverChoice, open_driver};
use udm_lane::{Buf, Completion, Driver, Payload};
use udm_types::{BioFlags, LaneId, Nanos, Op};

/// A lane.
pub(crate) struct Lane {
    number: LaneId,
    driver: Box<dyn Driver>,
    bench: LowerBench,
    part: Option<Box<dyn LowerLane>>,
    completions: Vec<Completion>,
    /// Set and not fired yet.
    timers: Vec<(Nanos, u64)>,
}

impl Lane {
    /// Opens the device's part of this lane; `None`, with the reason printed, if there is no such
    /// driver here.
    pub(crate) fn open(
        number: u16,
        choice: DriverChoice,
        device: &Arc<dyn LowerDevice>,
    ) -> Option<Lane> {
        let driver = match open_driver(choice) {
            Ok((driver, _)) => driver,
            Err(error) => {
                println!("skipped: {error}");
                return None;
            }
        };
        let (mut driver, mut bench) = (driver, LowerBench::default());
        let number = LaneId(number);
        let now = driver.now();
        let part = device.open_lane(&mut bench.cx(&mut *driver, number, now)).unwrap();
        Some(Lane {
            number,
            driver,
            bench,
            part: Some(part),
            completions: Vec::new(),
            timers: Vec::new(),
        })
    }

    fn part(&mut self, call: impl FnOnce(&mut dyn LowerLane, &mut LowerCx<'_>)) {
        let now = self.driver.now();
        let part = self.part.as_mut().unwrap();
        call(&mut **part, &mut self.bench.cx(&mut *self.driver, self.number, now));
    }

    /// Submits a bio.
    pub(crate) fn submit(&mut self, bio: BioBox) {
        self.part(|part, cx| part.submit(bio, cx));
    }

    /// Waits until at least one bio is done.
    pub(crate) fn turn(&mut self) -> Vec<BioBox> {
        self.end_turn();
        while self.bench.done.is_empty() {
            self.step(true);
        }
        self.bench.done.drain(..).collect()
    }

    /// One turn of the lane's loop; waits for something to happen if `may_block`.
    pub(crate) fn step(&mut self, may_block: bool) {
        let mut completions = std::mem::take(&mut self.completions);
        let earliest = self.timers.iter().map(|(deadline, _)| *deadline).min();
        let deadline = if may_block { earliest } else { Some(Nanos::ZERO) };
        self.driver.wait(deadline, &mut completions);
        for completion in completions.drain(..) {
            let user = completion.token.0 as u32;
            self.bench.ops_in_flight -= 1;
            self.part(|part, cx| part.on_op(user, completion, cx));
        }
        self.completions = completions;
        let now = self.driver.now();
        while let Some(due) = self.timers.iter().position(|(deadline, _)| *deadline <= now) {
            let (_, token) = self.timers.swap_remove(due);
            self.part(|part, cx| part.on_timer(token, cx));
        }
        self.end_turn();
    }

    /// Turns until `wanted` holds; a minute without it fails the test.
    #[allow(dead_code, reason = "not every test program waits for something else than a bio")]
    pub(crate) fn turn_until(&mut self, mut wanted: impl FnMut() -> bool) {
        let deadline = self.driver.now() + Nanos::from_secs(60);
        while !wanted() {
            assert!(self.driver.now() < deadline, "what the test waits for does not come");
            self.step(false);
            std::thread::yield_now();
        }
    }

    fn end_turn(&mut self) {
        self.collect_timers();
        if !self.bench.turn_enders.is_empty() {
            self.bench.turn_enders.clear();
            self.part(|part, cx| part.on_turn_end(cx));
            self.collect_timers();
        }
    }

    fn collect_timers(&mut self) {
        self.timers
            .extend(self.bench.timers.drain(..).map(|(deadline, _, token)| (deadline, token)));
    }

    /// Takes what is done, without waiting.
    #[allow(dead_code, reason = "not every test program looks without waiting")]
    pub(crate) fn done(&mut self) -> Vec<BioBox> {
        self.bench.done.drain(..).collect()
    }

    /// Takes the bio that was done first, turning until there is one; allocates nothing.
    #[allow(dead_code, reason = "not every test program counts allocations")]
    pub(crate) fn next_done(&mut self) -> BioBox {
        loop {
            if let Some(bio) = self.bench.done.pop_front() {
                return bio;
            }
            self.end_turn();
            self.step(true);
        }
    }

    /// Answers bios early.
    #[allow(dead_code, reason = "not every test program aborts")]
    pub(crate) fn abort(&mut self, mut select: impl FnMut(&Bio) -> bool) {
        self.part(|part, cx| part.abort(&mut select, cx));
    }

    /// One bio, there and back.
    pub(crate) fn one(
        &mut self,
        op: Op,
        flags: BioFlags,
        sector: u64,
        len_sectors: u64,
        byte: u8,
    ) -> BioBox {
        let bio = self.bio(op, flags, sector, len_sectors, byte);
        self.submit(bio);
        self.turn().pop().unwrap()
    }

    /// A bio whose data is all `byte`.
    pub(crate) fn bio(
        &self,
        op: Op,
        flags: BioFlags,
        sector: u64,
        len_sectors: u64,
        byte: u8,
    ) -> BioBox {
        let mut bio = self.bench.bio();
        bio.ask(op, flags, sector, len_sectors);
        if op.has_data() {
            let buf = Buf::alloc(len_sectors as usize * 512);
            buf.fill(0, buf.len_bytes(), byte);
            bio.payload = Payload::from_buf(buf);
        }
        bio
    }

    /// No table wants the part any more.
    #[allow(dead_code, reason = "not every test program lets go apart from closing")]
    pub(crate) fn let_go(&mut self) {
        self.part(|part, cx| part.let_go(cx));
        self.end_turn();
    }

    /// Closes the part as the engine does: it lets go, and goes when its last operation has ended.
    pub(crate) fn close(&mut self) {
        self.part(|part, cx| part.let_go(cx));
        self.end_turn();
        while self.bench.ops_in_flight > 0 {
            self.step(true);
        }
        self.part(|part, cx| part.close(cx));
        self.part = None;
    }
}
