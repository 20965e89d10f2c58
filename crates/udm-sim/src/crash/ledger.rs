//! A small volume that exists to be crashed: the proof that the enumerator finds what is broken.
//!
//! It keeps the whole device in memory and, at a flush, writes all of it into one of two slots
//! with a checksum, then flushes. That is correct. Each [`Rule`] taken out makes one of the
//! mistakes that real formats make, and the tests want every one of them found.
//!
//! ```text
//! slot:  header 512 B (magic, generation, sum of what follows) | the device, 24 KiB
//! slot of generation g at (g mod 2) * 32 KiB
//! ```
//!
//! Rules. As simple as it can be: what is tested here is the test.
//!
//! The tricky case is a flush while another is under way: it joins the next write of the slots.

use crate::crash::image::SECTOR_BYTES;
use crate::crash::subject::{Busy, CrashSubject, Order, Request, Shape, Standing};
use fastrand::Rng;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use udm_lane::{Buf, Payload};
use udm_meta::{Disk, DiskError};
use udm_types::{BioFlags, Nanos, Op, Status};

const LEN_SECTORS: usize = 48;
const SLOT_BYTES: usize = 32 * 1024;
const MAGIC: u64 = 0x004c_4544_4745_5221;

/// A rule of the ledger that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A flush is answered after the disk has flushed.
    FlushBeforeAnswer,
    /// A flush is answered after the slot was written.
    WriteBeforeAnswer,
    /// The disk is flushed after the slot was written, not beside it.
    FlushAfterWrite,
    /// There are two slots.
    TwoSlots,
    /// A slot counts if its checksum is right.
    Checksum,
    /// Recovery flushes before it believes what it reads.
    RecoveryFlush,
    /// A request is applied as a whole.
    WholeRequests,
    /// A FUA write is a flush.
    HonestFua,
    /// The newer slot counts.
    NewestSlot,
}

impl Rule {
    /// All of them, with their names.
    pub const ALL: [(&'static str, Rule); 9] = [
        ("flush-before-answer", Rule::FlushBeforeAnswer),
        ("write-before-answer", Rule::WriteBeforeAnswer),
        ("flush-after-write", Rule::FlushAfterWrite),
        ("two-slots", Rule::TwoSlots),
        ("checksum", Rule::Checksum),
        ("recovery-flush", Rule::RecoveryFlush),
        ("whole-requests", Rule::WholeRequests),
        ("honest-fua", Rule::HonestFua),
        ("newest-slot", Rule::NewestSlot),
    ];
}

/// The ledger's options: the rule it is without.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LedgerSetup {
    pub(crate) without: Option<Rule>,
}

impl LedgerSetup {
    fn has(self, rule: Rule) -> bool {
        self.without != Some(rule)
    }
}

#[derive(Default)]
struct State {
    device: Vec<u8>,
    generation: u64,
    standing: Option<Standing>,
    accepted: VecDeque<u64>,
    done: VecDeque<(u64, Status)>,
    /// Flushes that nobody works on yet.
    waiting: Vec<u64>,
    /// The second half of a change, if requests are not applied as a whole.
    half: Option<(usize, Vec<u8>)>,
}

type Task = Pin<Box<dyn Future<Output = Result<(), DiskError>>>>;

/// The volume.
pub(crate) struct Ledger {
    setup: LedgerSetup,
    disk: Disk,
    state: Rc<RefCell<State>>,
    queue: VecDeque<Request>,
    task: Option<Task>,
    stop_wanted: bool,
}

impl CrashSubject for Ledger {
    type Setup = LedgerSetup;

    fn draw(_rng: &mut Rng) -> LedgerSetup {
        LedgerSetup::default()
    }

    fn shape(_setup: &LedgerSetup) -> Shape {
        Shape {
            disk_len_bytes: 2 * SLOT_BYTES as u64,
            len_sectors: LEN_SECTORS,
            first_len_sectors: LEN_SECTORS,
            growth_bytes: 0,
            island_sectors: LEN_SECTORS,
            stride_sectors: 0,
            start_sector: 0,
            block_sectors: 8,
            request_len_sectors: LEN_SECTORS,
            is_writethrough: false,
            has_background: false,
        }
    }

    async fn format(setup: &LedgerSetup, disk: Disk) -> Result<(), String> {
        let device = vec![0; LEN_SECTORS * SECTOR_BYTES];
        write_slot(*setup, &disk, 1, &device).await.map_err(|error| error.to_string())
    }

    fn open(setup: &LedgerSetup, disk: Disk, _now: Nanos) -> Ledger {
        let state = Rc::new(RefCell::new(State {
            standing: Some(Standing::Recovering),
            ..State::default()
        }));
        let task: Task = Box::pin(recover(*setup, disk.clone(), Rc::clone(&state)));
        let (queue, stop_wanted) = (VecDeque::new(), false);
        Ledger { setup: *setup, disk, state, queue, task: Some(task), stop_wanted }
    }

    fn standing(&self) -> Standing {
        self.state.borrow().standing.clone().unwrap_or(Standing::Serving)
    }

    fn submit(&mut self, request: Request) {
        self.queue.push_back(request);
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Checkpoint | Order::Clean(_) | Order::Scrub | Order::Resize { .. } => {}
            Order::Stop { .. } => self.stop_wanted = true,
            Order::Start if self.standing() == Standing::Stopped => {
                self.state.borrow_mut().standing = None;
            }
            Order::Start => {}
        }
    }

    fn turn(&mut self, _now: Nanos) -> bool {
        if let Some(task) = &mut self.task {
            let mut cx = Context::from_waker(Waker::noop());
            match task.as_mut().poll(&mut cx) {
                Poll::Pending => {}
                Poll::Ready(result) => {
                    self.task = None;
                    if let Err(error) = result {
                        self.state.borrow_mut().standing =
                            Some(Standing::Refusing(error.to_string()));
                    }
                }
            }
        }
        match self.standing() {
            Standing::Recovering => return false,
            Standing::Refusing(_) => return self.refuse(),
            Standing::Serving | Standing::Stopped => {}
        }
        let half = self.state.borrow_mut().half.take();
        if let Some((at, bytes)) = half {
            self.state.borrow_mut().device[at..at + bytes.len()].copy_from_slice(&bytes);
        } else if let Some(request) = self.queue.pop_front() {
            self.serve(&request);
        }
        // A task that has just begun has asked the disk for nothing yet.
        let is_begun = self.start_flush();
        let is_half = self.state.borrow().half.is_some();
        !self.queue.is_empty() || is_half || is_begun
    }

    fn next_timer(&self) -> Option<Nanos> {
        None
    }

    fn next_accepted(&mut self) -> Option<u64> {
        self.state.borrow_mut().accepted.pop_front()
    }

    fn next_done(&mut self) -> Option<(u64, Status)> {
        self.state.borrow_mut().done.pop_front()
    }

    fn busy(&self) -> Busy {
        Busy::default()
    }

    fn describe(&self) -> String {
        format!("generation {}, {:?}", self.state.borrow().generation, self.standing())
    }

    async fn check(_setup: &LedgerSetup, disk: Disk) -> Result<(), String> {
        for slot in 0..2 {
            if read_slot(&disk, slot, true).await.map_err(|error| error.to_string())?.is_some() {
                return Ok(());
            }
        }
        Err("no slot is whole".to_owned())
    }
}

impl Ledger {
    /// Fails everything: a slot that could not be written must not cost the other one.
    fn refuse(&mut self) -> bool {
        let mut state = self.state.borrow_mut();
        let flushes = std::mem::take(&mut state.waiting);
        let requests = self.queue.drain(..).map(|request| request.ticket);
        let failed = flushes.into_iter().chain(requests).map(|ticket| (ticket, Status::IoErr));
        state.done.extend(failed);
        false
    }

    fn serve(&mut self, request: &Request) {
        let mut state = self.state.borrow_mut();
        let (at, len) = (request.offset_bytes as usize, request.len_bytes as usize);
        let ticket = request.ticket;
        let (at, len, bytes) = match request.op {
            Op::Read => {
                request.payload.copy_in(0, &state.device[at..at + len]);
                return state.done.push_back((ticket, Status::Ok));
            }
            Op::Flush => return state.waiting.push(ticket),
            Op::Write => {
                let mut bytes = vec![0; len];
                request.payload.copy_out(0, &mut bytes);
                (at, len, bytes)
            }
            Op::WriteZeroes => (at, len, vec![0; len]),
            Op::Discard => {
                let first = at.next_multiple_of(4096);
                let len = ((at + len) / 4096 * 4096).saturating_sub(first);
                (first.min(LEN_SECTORS * SECTOR_BYTES), len, vec![0; len])
            }
        };
        if len > 0 {
            state.accepted.push_back(ticket);
        }
        if self.setup.has(Rule::WholeRequests) || len <= SECTOR_BYTES {
            state.device[at..at + len].copy_from_slice(&bytes);
        } else {
            let cut = len / 2 / SECTOR_BYTES * SECTOR_BYTES;
            state.device[at..at + cut].copy_from_slice(&bytes[..cut]);
            state.half = Some((at + cut, bytes[cut..].to_vec()));
        }
        // Everything is written at once here, so a pre-flush comes with it.
        let is_durable = request.flags.intersects(BioFlags::FUA | BioFlags::PREFLUSH);
        match is_durable && self.setup.has(Rule::HonestFua) {
            true => state.waiting.push(ticket),
            false => state.done.push_back((ticket, Status::Ok)),
        }
    }

    fn start_flush(&mut self) -> bool {
        let mut state = self.state.borrow_mut();
        let is_quiet = self.task.is_none() && self.queue.is_empty() && state.half.is_none();
        if is_quiet && state.waiting.is_empty() && self.stop_wanted {
            self.stop_wanted = false;
            // The last answer of all: nobody waits for this ticket but the stop itself.
            state.waiting.push(u64::MAX);
        }
        if self.task.is_some() || state.waiting.is_empty() {
            return false;
        }
        let waiting = std::mem::take(&mut state.waiting);
        state.generation += 1;
        let (device, generation) = (state.device.clone(), state.generation);
        drop(state);
        let (setup, disk, state) = (self.setup, self.disk.clone(), Rc::clone(&self.state));
        self.task = Some(Box::pin(async move {
            if !setup.has(Rule::WriteBeforeAnswer) {
                answer(&state, &waiting);
            }
            write_slot(setup, &disk, generation, &device).await?;
            if setup.has(Rule::WriteBeforeAnswer) {
                answer(&state, &waiting);
            }
            Ok(())
        }));
        true
    }
}

fn answer(state: &RefCell<State>, waiting: &[u64]) {
    let mut state = state.borrow_mut();
    for &ticket in waiting {
        match ticket {
            u64::MAX => state.standing = Some(Standing::Stopped),
            ticket => state.done.push_back((ticket, Status::Ok)),
        }
    }
}

async fn write_slot(
    setup: LedgerSetup,
    disk: &Disk,
    generation: u64,
    device: &[u8],
) -> Result<(), DiskError> {
    let payload = Payload::from_buf(Buf::alloc(SECTOR_BYTES + device.len()));
    payload.fill(0, SECTOR_BYTES as u64, 0);
    for (at, word) in [MAGIC, generation, sum(generation, device)].into_iter().enumerate() {
        payload.copy_in(at as u64 * 8, &word.to_le_bytes());
    }
    payload.copy_in(SECTOR_BYTES as u64, device);
    let slot = if setup.has(Rule::TwoSlots) { generation % 2 } else { 0 };
    let written = disk.write(slot * SLOT_BYTES as u64, payload);
    if setup.has(Rule::FlushAfterWrite) {
        written.await?;
        if setup.has(Rule::FlushBeforeAnswer) {
            disk.flush().await?;
        }
        return Ok(());
    }
    let flushed = disk.flush();
    written.await?;
    flushed.await?;
    Ok(())
}

async fn read_slot(
    disk: &Disk,
    slot: u64,
    is_checked: bool,
) -> Result<Option<(u64, Vec<u8>)>, DiskError> {
    let len = SECTOR_BYTES + LEN_SECTORS * SECTOR_BYTES;
    let payload = disk.read(slot * SLOT_BYTES as u64, len).await?;
    let mut bytes = vec![0; len];
    payload.copy_out(0, &mut bytes);
    let word = |at: usize| {
        let word = &bytes[at * 8..at * 8 + 8];
        word.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte))
    };
    let (magic, generation, found) = (word(0), word(1), word(2));
    let device = bytes.split_off(SECTOR_BYTES);
    let is_good = magic == MAGIC && (!is_checked || found == sum(generation, &device));
    Ok(is_good.then_some((generation, device)))
}

async fn recover(
    setup: LedgerSetup,
    disk: Disk,
    state: Rc<RefCell<State>>,
) -> Result<(), DiskError> {
    if setup.has(Rule::RecoveryFlush) {
        disk.flush().await?;
    }
    let is_checked = setup.has(Rule::Checksum);
    let mut slots =
        [read_slot(&disk, 0, is_checked).await?, read_slot(&disk, 1, is_checked).await?];
    slots.sort_by_key(|slot| slot.as_ref().map_or(0, |(generation, _)| *generation));
    let [older, newer] = slots;
    let best = match setup.has(Rule::NewestSlot) {
        true => newer.or(older),
        false => older.or(newer),
    };
    let mut state = state.borrow_mut();
    match best {
        Some((generation, device)) => {
            state.generation = generation;
            state.device = device;
            state.standing = None;
        }
        None => state.standing = Some(Standing::Refusing("no slot is whole".to_owned())),
    }
    Ok(())
}

fn sum(generation: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(generation ^ 0xcbf2_9ce4_8422_2325, |sum, chunk| {
        let word = chunk.iter().fold(0_u64, |value, &byte| value << 8 | u64::from(byte));
        (sum ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
    })
}
