//! Ordered barriers on real lanes, with ordinary I/O from all of them, suspends and table swaps.
//!
//! The engine's own tests show the order in a world of one thread. Here four lanes run on threads
//! of their own, over a device that answers a little later and notes when everything came and went.
//! Whatever the threads do: a barrier has the device to itself from its first flush to its last,
//! and on each lane nothing overtakes a barrier, in either direction.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use udm::runtime::{Runtime, RuntimeConfig};
use udm_core::lifecycle::{DeviceKey, Request, SuspendOptions};
use udm_core::lower::{LowerCx, LowerDevice, LowerLane};
use udm_core::table::{TableBuilder, parse_table};
use udm_core::{Actor, ActorCx, BioBox, DeviceRef, DeviceResolver, LowerRef, Table, UserError};
use udm_lane::{Buf, Errno, Payload};
use udm_types::{
    BioFlags, DeviceId, DmName, LaneId, LowerId, Nanos, Op, QueueLimits, Sector, Status,
};

const LANES: u64 = 4;
const IOS_A_LANE: u64 = 2_000;
const DEPTH: u64 = 12;
/// From here on every sector is written once, by a barrier.
const BARRIERS_AT: Sector = 1 << 16;
const LEN_SECTORS: Sector = 1 << 20;
/// How much later the device answers: long enough that lanes meet in it.
const LATER: Nanos = Nanos(30_000);

/// A bio came to the device, or was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    came: bool,
    op: Op,
    sector: Sector,
}

/// A device that notes everything.
#[derive(Default)]
struct Recorder {
    notes: Mutex<Vec<Note>>,
}

impl Recorder {
    fn note(&self, came: bool, bio: &BioBox) {
        let note = Note { came, op: bio.op, sector: bio.sector };
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }
}

struct Device(Arc<Recorder>);

struct Lane {
    recorder: Arc<Recorder>,
    waiting: VecDeque<(Nanos, BioBox)>,
}

impl LowerDevice for Device {
    fn shown(&self) -> String {
        "recorder".into()
    }

    fn len_sectors(&self) -> Sector {
        LEN_SECTORS
    }

    fn limits(&self) -> QueueLimits {
        QueueLimits::default()
    }

    fn open_lane(&self, _cx: &mut LowerCx<'_>) -> Result<Box<dyn LowerLane>, Errno> {
        Ok(Box::new(Lane { recorder: Arc::clone(&self.0), waiting: VecDeque::new() }))
    }
}

impl LowerLane for Lane {
    fn submit(&mut self, bio: BioBox, cx: &mut LowerCx<'_>) {
        self.recorder.note(true, &bio);
        let due = cx.now + LATER;
        self.waiting.push_back((due, bio));
        cx.set_timer(due, 0);
    }

    fn on_timer(&mut self, _token: u64, cx: &mut LowerCx<'_>) {
        while self.waiting.front().is_some_and(|(due, _)| *due <= cx.now) {
            let Some((_, bio)) = self.waiting.pop_front() else { return };
            self.recorder.note(false, &bio);
            cx.complete(bio, Status::Ok);
        }
    }
}

struct OnlyThis(LowerRef);

impl DeviceResolver for OnlyThis {
    fn resolve(&mut self, _name: &str, _read_only: bool) -> Result<DeviceRef, UserError> {
        Ok(DeviceRef::of_lower(&self.0))
    }
}

/// When a bio came back, in the order of submission.
struct Back {
    barrier: bool,
    at: u64,
    status: Status,
}

/// Writes and barriers from one lane.
struct Load {
    device: DeviceId,
    rng: fastrand::Rng,
    clock: Arc<AtomicU64>,
    sent: Vec<Option<Back>>,
    report: Sender<Vec<Option<Back>>>,
}

impl Load {
    fn submit(&mut self, mut bio: BioBox, cx: &mut ActorCx<'_>) {
        let number = self.sent.len() as u64;
        let lane = u64::from(cx.lane().0);
        if self.rng.u8(..8) == 0 {
            let sector = BARRIERS_AT + (lane * IOS_A_LANE + number) * 8;
            bio.ask(Op::Write, BioFlags::ORDERED, sector, 8);
        } else {
            bio.ask(Op::Write, BioFlags::empty(), self.rng.u64(..BARRIERS_AT / 8) * 8, 8);
        }
        self.sent.push(None);
        cx.submit(self.device, number, bio);
    }
}

impl Actor for Load {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        for _ in 0..DEPTH {
            let mut bio = cx.take_bio();
            bio.payload = Payload::from_buf(Buf::alloc(4096));
            self.submit(bio, cx);
        }
    }

    fn on_bio(&mut self, tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        let at = self.clock.fetch_add(1, Ordering::SeqCst);
        let barrier = bio.flags.contains(BioFlags::ORDERED);
        self.sent[tag as usize] = Some(Back { barrier, at, status: bio.status });
        if (self.sent.len() as u64) < IOS_A_LANE {
            return self.submit(bio, cx);
        }
        cx.recycle(bio);
        if cx.bios_in_flight() == 0 {
            // The test waits for it.
            drop(self.report.send(std::mem::take(&mut self.sent)));
            cx.exit();
        }
    }
}

/// Builds a table over the recorder alone.
fn table(runtime: &Runtime, lower: &LowerRef, text: &str) -> Arc<Table> {
    let builder = TableBuilder {
        registry: runtime.registry(),
        resolver: &mut OnlyThis(lower.clone()),
        read_only: false,
        now: Nanos(0),
        seed: 1,
    };
    Arc::new(builder.build(&parse_table(text).expect("a table")).expect("a good table"))
}

/// Suspends, swaps and resumes until the loads are done; says how often.
fn disturb(runtime: &Runtime, device: &DeviceKey, tables: &[Arc<Table>], done: &AtomicU64) -> u64 {
    let mut rounds = 0;
    while done.load(Ordering::SeqCst) < LANES * IOS_A_LANE {
        let options = SuspendOptions { noflush: rounds % 3 != 0, ..SuspendOptions::default() };
        if rounds % 2 == 0 {
            let table = Arc::clone(&tables[rounds as usize / 2 % tables.len()]);
            runtime.request(Request::Load { device: device.clone(), table }).expect("it loads");
        }
        if rounds % 4 < 2 {
            runtime.suspend(device, options.clone()).expect("it suspends");
        }
        runtime.resume(device, options).expect("it resumes");
        rounds += 1;
    }
    rounds
}

/// A barrier has the device to itself: nothing is under way when its first flush comes, and nothing
/// comes until its last flush is done. Returns how many barriers there were.
fn check_device(notes: &[Note]) -> u64 {
    let mut barriers = 0;
    let mut under_way = 0_i64;
    for (index, note) in notes.iter().enumerate() {
        if note.came && note.op == Op::Write && note.sector >= BARRIERS_AT {
            let flush = |came| Note { came, op: Op::Flush, sector: 0 };
            let data = |came| Note { came, ..*note };
            let whole =
                [flush(true), flush(false), data(true), data(false), flush(true), flush(false)];
            let around = notes.get(index - 2..index + 4);
            assert_eq!(around, Some(&whole[..]), "barrier {barriers}: something came between");
            assert_eq!(under_way, 0, "barrier {barriers}: something was under way");
            barriers += 1;
        }
        under_way += if note.came { 1 } else { -1 };
    }
    assert_eq!(under_way, 0, "everything was answered");
    barriers
}

/// On a lane nothing overtakes a barrier. Returns how many barriers there were.
fn check_lane(sent: &[Option<Back>]) -> u64 {
    let (mut newest, mut newest_barrier, mut barriers) = (0, 0, 0);
    for back in sent {
        let back = back.as_ref().expect("everything came back");
        assert_eq!(back.status, Status::Ok);
        assert!(back.at >= newest_barrier, "something came back before an older barrier");
        if back.barrier {
            assert!(back.at >= newest, "a barrier came back before something older");
            newest_barrier = back.at;
            barriers += 1;
        }
        newest = newest.max(back.at);
    }
    barriers
}

#[test]
fn barriers_keep_their_order_on_real_lanes() {
    let config = RuntimeConfig { lanes: LANES as usize, ..RuntimeConfig::default() };
    let runtime = Runtime::start(&config).expect("some driver works everywhere");
    let recorder = Arc::new(Recorder::default());
    let lower = LowerRef { id: LowerId(50), device: Arc::new(Device(Arc::clone(&recorder))) };
    let half = LEN_SECTORS / 2;
    let tables = [
        format!("0 {LEN_SECTORS} linear recorder 0"),
        format!("0 {half} linear recorder 0\n{half} {half} linear recorder {half}"),
        format!("0 {LEN_SECTORS} striped 1 128 recorder 0"),
    ]
    .map(|text| table(&runtime, &lower, &text));
    let name = DmName::new("barriers").expect("a name");
    let create = Request::Create { name, uuid: None, minor: None };
    let id = udm::runtime::status_of(runtime.request(create).expect("created")).expect("it").id;
    let device = DeviceKey::Id(id);
    let first = Arc::clone(&tables[0]);
    runtime.request(Request::Load { device: device.clone(), table: first }).expect("it loads");
    runtime.resume(&device, SuspendOptions::default()).expect("it resumes");

    let clock = Arc::new(AtomicU64::new(0));
    let (report, reports) = mpsc::channel();
    for lane in 0..LANES {
        let (clock, report) = (Arc::clone(&clock), report.clone());
        runtime.spawn_actor(LaneId(lane as u16), move || {
            let rng = fastrand::Rng::with_seed(lane);
            Box::new(Load { device: id, rng, clock, sent: Vec::new(), report })
        });
    }
    drop(report);
    let rounds = disturb(&runtime, &device, &tables, &clock);
    assert!(rounds > 0, "there was something to disturb");
    let lanes: Vec<_> = reports.iter().collect();
    assert_eq!(reports.try_recv().err(), Some(TryRecvError::Disconnected));
    assert_eq!(lanes.len() as u64, LANES);
    let sent: u64 = lanes.iter().map(|sent| check_lane(sent)).sum();
    let notes = recorder.notes.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(check_device(&notes), sent, "each barrier wrote its data once");
    assert!(sent > LANES * IOS_A_LANE / 16, "{sent} barriers");
}
