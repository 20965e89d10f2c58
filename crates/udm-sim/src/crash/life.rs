//! Lives: a plan carried out, with crashes taken at its points.
//!
//! A *point* is a moment right after a write, flush or discard has begun or ended. At the points
//! the depth asks for, the disk is forked, crashed in several ways, recovered and judged, while
//! the life itself goes on as if nothing had happened. So one run of a workload pays for many
//! crashes. At its end a life is crashed for good, and the next life starts on what was recovered,
//! with the oracle's word for what is there.
//!
//! Rules. A fork never touches the life it came from. All chances of a fork come from the step's
//! seed and the point's number, so a plan with fewer steps crashes the rest in the same ways.
//!
//! The tricky case is the order inside one turn: what a subject accepted in it is told to the
//! oracle before the operations it asked for in the same turn reach the disk.

use crate::crash::Depth;
use crate::crash::after::{echo, settle};
use crate::crash::disk::{CrashDisk, Faults};
use crate::crash::host::{Host, Move};
use crate::crash::image::SECTOR_BYTES;
use crate::crash::oracle::{Change, Durability, Oracle, What};
use crate::crash::outcome::Crash;
use crate::crash::plan::{Action, Life, Step};
use crate::crash::recover::{Nesting, Recovered, Recovery};
use crate::crash::sizes::Sizes;
use crate::crash::stamp;
use crate::crash::subject::{
    Busy, CUT_TICKET, CrashSubject, Order, Request, Shape, Standing, Unresized,
};
use crate::crash::totals::Totals;
use fastrand::Rng;
use std::collections::BTreeMap;
use udm_lane::{Buf, Payload};
use udm_types::{BioFlags, Nanos, Op, Status};

/// Moves a suspend or a full queue may take before it counts as stuck.
pub(crate) const MOVES_MAX: u32 = 50_000;
/// Writes whose loss and survival is tried one by one at a point, in the exhaustive depth.
const SYSTEMATIC_WRITES: usize = 4;

/// A life under way.
pub(crate) struct Run<'a, S: CrashSubject> {
    pub(crate) setup: &'a S::Setup,
    pub(crate) shape: Shape,
    pub(crate) depth: Depth,
    pub(crate) oracle: Oracle,
    sizes: Sizes,
    pub(crate) totals: Totals,
    pub(crate) host: Host<S>,
    life: &'a Life,
    life_nr: usize,
    reads: BTreeMap<u64, Payload>,
    step_seed: u64,
    step_nr: u32,
    point_nr: u64,
    /// The subject had a faulty disk and may refuse.
    is_faulty: bool,
}

impl<'a, S: CrashSubject> Run<'a, S> {
    /// A first life on a formatted disk.
    pub(crate) fn new(
        setup: &'a S::Setup,
        disk: CrashDisk,
        depth: Depth,
        life: &'a Life,
        with_trace: bool,
    ) -> Run<'a, S> {
        let shape = S::shape(setup);
        let mut host = Host::open(setup, disk, Nanos::ZERO);
        host.trace = with_trace.then(Vec::new);
        Run {
            setup,
            shape,
            depth,
            oracle: Oracle::new(shape.len_sectors, shape.is_writethrough),
            sizes: Sizes::new(shape.first_len_sectors),
            totals: Totals::default(),
            host,
            life,
            life_nr: 0,
            reads: BTreeMap::new(),
            step_seed: 0,
            step_nr: 0,
            point_nr: 0,
            is_faulty: false,
        }
    }

    /// Carries out the lives one after the other.
    pub(crate) fn lives(&mut self, lives: &'a [Life]) -> Result<(), String> {
        for (nr, life) in lives.iter().enumerate() {
            self.life = life;
            self.life_nr = nr;
            self.say(|| format!("life {nr}, faults {} of 1000", life.faults_per_mille));
            self.live().map_err(|what| format!("life {nr}, step {}: {what}", self.step_nr))?;
            self.die().map_err(|what| format!("end of life {nr}: {what}"))?;
        }
        Ok(())
    }

    /// Where it is, for a panic's report.
    pub(crate) fn place(&self) -> String {
        format!("in life {}, step {}, point {}:", self.life_nr, self.step_nr, self.point_nr)
    }

    fn live(&mut self) -> Result<(), String> {
        let faults_per_mille = self.life.faults_per_mille;
        if faults_per_mille > 0 {
            self.is_faulty = true;
            self.host.disk.faults =
                Faults { write_per_mille: faults_per_mille, read_per_mille: faults_per_mille / 3 };
        }
        self.host.is_lazy = self.life.is_lazy;
        for step in &self.life.steps {
            (self.step_seed, self.step_nr, self.point_nr) = (step.seed, step.nr, 0);
            let mut rng = Rng::with_seed(step.seed);
            self.say(|| format!("step {}: {:?}", step.nr, step.action));
            self.totals.steps += 1;
            self.begin(step, &mut rng)?;
            self.host.is_unhurried = true;
            for _ in 0..step.moves {
                if self.advance(&mut rng)? == Move::Idle {
                    break;
                }
            }
            self.host.is_unhurried = false;
        }
        Ok(())
    }

    fn say(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.host.trace {
            trace.push(line());
        }
    }

    fn begin(&mut self, step: &Step, rng: &mut Rng) -> Result<(), String> {
        let mut moves = 0;
        while self.oracle.open_count() >= self.life.depth {
            moves += 1;
            let made = self.advance(rng)?;
            if made == Move::Idle || moves > MOVES_MAX {
                return self.stuck(&format!("requests are not answered ({made:?})"));
            }
        }
        let request = |first, len, what| Change { request: step.nr, first, len, what };
        match step.action {
            Action::Write { first, len, style, fua, preflush } => {
                let durability = Durability { fua, preflush };
                self.change(Op::Write, request(first, len, What::Data(style)), durability);
            }
            Action::Fill { first, len, word, fua } => {
                let durability = Durability { fua, preflush: false };
                self.change(Op::Write, request(first, len, What::Fill(word)), durability);
            }
            Action::Zeroes { first, len, as_data, fua } => {
                let op = if as_data { Op::Write } else { Op::WriteZeroes };
                let durability = Durability { fua, preflush: false };
                self.change(op, request(first, len, What::Zeroes), durability);
            }
            Action::Discard { first, len } => {
                let change = request(first, len, What::Zeroes);
                self.change(Op::Discard, change, Durability::default());
            }
            Action::Flush => {
                let ticket = u64::from(step.nr);
                self.oracle.submit_flush(ticket);
                self.submit(ticket, Op::Flush, (0, 0), BioFlags::empty(), Payload::empty());
            }
            Action::Read { first, len } => {
                let ticket = u64::from(step.nr);
                let payload = Payload::from_buf(Buf::alloc(len * SECTOR_BYTES));
                self.oracle.submit_read(ticket, first, len);
                self.reads.insert(ticket, payload.clone());
                self.submit(ticket, Op::Read, (first, len), BioFlags::empty(), payload);
            }
            Action::Checkpoint => self.order(Order::Checkpoint),
            Action::Clean(segments) => self.order(Order::Clean(segments)),
            Action::Scrub => self.order(Order::Scrub),
            Action::Resize { len, disk_bytes } => self.resize(step.nr, len, disk_bytes, rng)?,
            Action::Suspend { flush } => self.suspend(flush, rng)?,
            Action::Wait { millis } | Action::Jump { millis, forward: true } => {
                self.host.now = self.host.now + Nanos::from_millis(millis);
                self.host.stir();
            }
            Action::Jump { millis, forward: false } => {
                self.host.now = self.host.now.since(Nanos::from_millis(millis));
                self.host.stir();
            }
        }
        Ok(())
    }

    fn order(&mut self, order: Order) {
        self.host.subject.order(order);
        self.host.stir();
    }

    /// Another size for the device, and a longer disk below: one resize at a time, of a device that
    /// serves.
    fn resize(
        &mut self,
        nr: u32,
        len: Option<usize>,
        disk_bytes: u64,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let mut moves = 0;
        while self.sizes.is_changing() || self.host.subject.standing() == Standing::Recovering {
            moves += 1;
            if self.advance(rng)? == Move::Idle || moves > MOVES_MAX {
                return self.stuck("a resize does not end");
            }
        }
        let Some(old) = self.sizes.certain() else { return Ok(()) };
        if disk_bytes > 0 {
            self.host.grow_disk(disk_bytes, rng);
        }
        self.sizes.ask(len);
        if let Some(first) = len.filter(|len| *len < old) {
            let cut = Change { request: nr, first, len: old - first, what: What::Zeroes };
            let durability = Durability { fua: true, preflush: true };
            self.oracle.submit_change(CUT_TICKET, cut, durability);
        }
        let len_bytes = len.map(|len| self.shape.len_bytes(len));
        self.order(Order::Resize { len_bytes, grows_to_disk: disk_bytes > 0 });
        Ok(())
    }

    /// A resize has ended.
    fn resized(&mut self, outcome: Result<(), Unresized>) -> Result<(), String> {
        self.say(|| format!("  resized: {outcome:?}"));
        let (is_done, status) = match outcome {
            Ok(()) => (Some(true), Status::Ok),
            Err(Unresized::NoRoom) => (Some(false), Status::NoSpace),
            Err(Unresized::Failed(_)) if self.is_faulty => (None, Status::IoErr),
            Err(Unresized::Failed(why)) => return Err(format!("a resize fails: {why}")),
        };
        self.sizes.end(is_done);
        match self.oracle.is_open(CUT_TICKET) {
            true => self.oracle.done(CUT_TICKET, status, &[]),
            false => Ok(()),
        }
    }

    fn change(&mut self, op: Op, change: Change, durability: Durability) {
        let ticket = u64::from(change.request);
        let range = (change.first, change.len);
        let payload = match op {
            Op::Write => {
                let mut bytes = vec![0; change.len * SECTOR_BYTES];
                for (at, sector) in bytes.chunks_exact_mut(SECTOR_BYTES).zip(change.first..) {
                    stamp::write(change.value(sector), at);
                }
                let payload = Payload::from_buf(Buf::alloc(bytes.len()));
                payload.copy_in(0, &bytes);
                payload
            }
            Op::Read | Op::Flush | Op::Discard | Op::WriteZeroes => Payload::empty(),
        };
        let effect = match op {
            Op::Discard => whole_blocks(change, self.shape.block_sectors),
            Op::Read | Op::Write | Op::Flush | Op::WriteZeroes => change,
        };
        self.oracle.submit_change(ticket, effect, durability);
        let mut flags = BioFlags::empty();
        flags.set(BioFlags::FUA, durability.fua);
        flags.set(BioFlags::PREFLUSH, durability.preflush);
        self.submit(ticket, op, range, flags, payload);
    }

    fn submit(
        &mut self,
        ticket: u64,
        op: Op,
        range: (usize, usize),
        flags: BioFlags,
        payload: Payload,
    ) {
        self.sizes.submit(ticket, range.0 + range.1);
        self.host.subject.submit(Request {
            ticket,
            op,
            flags,
            offset_bytes: self.shape.offset_bytes(range.0),
            len_bytes: (range.1 * SECTOR_BYTES) as u64,
            payload,
        });
        self.host.stir();
    }

    /// All that is open is answered first, as a suspend does it; then stop, then start.
    fn suspend(&mut self, flush: bool, rng: &mut Rng) -> Result<(), String> {
        let mut moves = 0;
        while self.oracle.open_count() > 0 {
            moves += 1;
            if self.advance(rng)? == Move::Idle || moves > MOVES_MAX {
                return self.stuck("a suspend waits for requests");
            }
        }
        self.order(Order::Stop { flush });
        while self.host.subject.standing() != Standing::Stopped {
            moves += 1;
            if let (true, Standing::Refusing(_)) = (self.is_faulty, self.host.subject.standing()) {
                return Ok(());
            }
            if self.advance(rng)? == Move::Idle || moves > MOVES_MAX {
                return self.stuck("the subject does not stop");
            }
        }
        if !self.is_faulty {
            self.oracle.stopped(flush);
            self.point()?;
        }
        self.order(Order::Start);
        Ok(())
    }

    fn stuck(&self, what: &str) -> Result<(), String> {
        match (self.host.subject.standing(), self.is_faulty) {
            (Standing::Refusing(_), true) => Ok(()),
            _ => Err(format!("stuck: {what}; {}", self.host.subject.describe())),
        }
    }

    /// One move, its answers, and its crashes.
    fn advance(&mut self, rng: &mut Rng) -> Result<Move, String> {
        let made = self.host.step(rng)?;
        match made {
            Move::Turned => self.collect()?,
            Move::Changed => self.point()?,
            Move::Quiet | Move::Idle => {}
        }
        if let (Standing::Refusing(why), false) = (self.host.subject.standing(), self.is_faulty) {
            return Err(format!("refuses although nothing failed: {why}"));
        }
        Ok(made)
    }

    fn collect(&mut self) -> Result<(), String> {
        while let Some(ticket) = self.host.subject.next_accepted() {
            self.say(|| format!("  accepted {ticket}"));
            self.oracle.accept(ticket)?;
        }
        while let Some(outcome) = self.host.subject.next_resized() {
            self.resized(outcome)?;
        }
        if let (Some(what), false) = (self.host.subject.next_alarm(), self.is_faulty) {
            return Err(format!("damage is met where there is none: {what}"));
        }
        while let Some((ticket, status)) = self.host.subject.next_done() {
            self.say(|| format!("  done {ticket}: {}", status.describe()));
            self.totals.no_space += u64::from(status == Status::NoSpace);
            let is_refused = self.sizes.done(ticket, status)?;
            let is_expected = status.is_ok() || status == Status::NoSpace || is_refused;
            if !is_expected && !self.is_faulty {
                return Err(format!("request {ticket} failed: {}", status.describe()));
            }
            let bytes = match self.reads.remove(&ticket) {
                Some(payload) => {
                    let mut bytes = vec![0; payload.len_bytes() as usize];
                    payload.copy_out(0, &mut bytes);
                    bytes
                }
                None => Vec::new(),
            };
            self.oracle.done(ticket, status, &bytes)?;
        }
        Ok(())
    }

    fn recovery(&self) -> Recovery<'_, S> {
        Recovery {
            setup: self.setup,
            shape: &self.shape,
            nesting: Nesting {
                percent: self.depth.nested_percent(),
                process_percent: self.life.process_percent,
            },
            may_refuse: self.is_faulty,
            now: self.host.now,
            with_trace: self.host.trace.is_some(),
        }
    }

    /// A place where the world may end.
    fn point(&mut self) -> Result<(), String> {
        self.totals.points += 1;
        self.point_nr += 1;
        let key = self.step_seed ^ self.point_nr.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut rng = Rng::with_seed(key);
        if self.point_nr == 0 || rng.u32(0..1000) >= self.depth.points_per_mille() {
            return Ok(());
        }
        let disk = &self.host.disk;
        let crashes = match self.depth {
            Depth::Exhaustive => Crash::systematic(disk, SYSTEMATIC_WRITES, &mut rng),
            Depth::Sampled { outcomes, .. } => {
                let draw = |_| Crash::draw(disk, self.life.process_percent, &mut rng);
                (0..outcomes).map(draw).collect()
            }
        };
        let busy = Busy { resize: self.sizes.is_changing(), ..self.host.subject.busy() };
        for crash in crashes {
            self.fork(crash, busy, &mut rng)?;
        }
        Ok(())
    }

    /// Crashes a copy of the world and judges what comes back.
    fn fork(&mut self, crash: Crash, busy: Busy, rng: &mut Rng) -> Result<(), String> {
        let mut totals = Totals::default();
        totals.crash(crash, false);
        totals.busy(busy);
        let result = self.fork_and_judge(crash, rng, &mut totals);
        self.totals.absorb(&totals);
        result.map_err(|what| format!("crash {crash:?} at point {}: {what}", self.point_nr))
    }

    fn fork_and_judge(
        &self,
        crash: Crash,
        rng: &mut Rng,
        totals: &mut Totals,
    ) -> Result<(), String> {
        let disk = healed(crash.strike(&self.host.disk, rng));
        let recovery = self.recovery();
        let recovered = recovery.run(disk, crash.is_power(), rng, totals)?;
        let (kept, _) = self.judge(&recovered, totals)?;
        match rng.u32(0..16) {
            0 | 1 => echo(&recovery, recovered, rng, totals),
            2 => settle(&recovery, recovered, rng, totals),
            _ => Ok(()),
        }
        .map_err(|what| format!("{what} (after {kept} changes were kept)"))
    }

    /// How many changes were kept, and the size.
    fn judge(
        &self,
        recovered: &Recovered<S>,
        totals: &mut Totals,
    ) -> Result<(usize, usize), String> {
        let len = match recovered.len_bytes {
            Some(bytes) => self.sizes.judge(bytes, |len| self.shape.len_bytes(len))?,
            None => self.shape.len_sectors,
        };
        let floor = self.oracle.floor(recovered.was_power);
        let kept = self.oracle.judge(&recovered.found, floor)?;
        totals.verdict(kept, self.oracle.accepted_count(), floor);
        Ok((kept, len))
    }

    /// The life ends for good, and the next begins on what is left.
    fn die(&mut self) -> Result<(), String> {
        let mut rng = Rng::with_seed(self.life.seed);
        let crash = Crash::draw(&self.host.disk, self.life.process_percent, &mut rng);
        self.say(|| format!("crash {crash:?}"));
        self.totals.crash(crash, false);
        let disk = healed(crash.strike(&self.host.disk, &mut rng));
        let mut totals = Totals::default();
        let recovered = self.recovery().run(disk, crash.is_power(), &mut rng, &mut totals)?;
        let (kept, len) = self.judge(&recovered, &mut totals)?;
        self.totals.absorb(&totals);
        self.oracle.rebase(kept);
        self.sizes.rebase(len);
        self.reads.clear();
        let trace = self.host.trace.take();
        self.host = recovered.host;
        self.host.trace = trace;
        self.say(|| format!("recovered, the first {kept} changes were kept"));
        Ok(())
    }
}

/// A disk that does not fail any more.
fn healed(mut disk: CrashDisk) -> CrashDisk {
    disk.faults = Faults::default();
    disk
}

/// The whole blocks of a discard; what it leaves out stays as it was.
fn whole_blocks(change: Change, block: usize) -> Change {
    let first = change.first.next_multiple_of(block);
    let end = (change.first + change.len) / block * block;
    Change { first, len: end.saturating_sub(first), ..change }
}
