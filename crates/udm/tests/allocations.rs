//! In steady state a lane allocates nothing, whatever passes through it: counted for each thread by
//! the allocator of this test program.
//!
//! A closed loop of bios runs on a lane until every pool and queue has grown to its size; then ten
//! thousand more must not allocate once. The loop counts on the lane's own thread, so that nothing
//! that other threads do is counted.

use std::sync::mpsc::{self, Sender};
use udm::runtime::{Runtime, RuntimeConfig};
use udm_core::lifecycle::{DeviceKey, Reply, Request, RequestGauges};
use udm_core::{Actor, ActorCx, BioBox};
use udm_driver::DriverChoice;
use udm_lane::{Buf, Payload};
use udm_testkit::{Counting, allocations_here};
use udm_types::{BioFlags, DeviceId, LaneId, Op};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MEASURED: u64 = 10_000;
const DEPTH: u64 = 32;
/// Sectors the loops use of their device; small, so that warming up touches all memory.
const USED_SECTORS: u64 = 2048;

/// What a loop does.
#[derive(Clone, Copy)]
struct Order {
    op: Op,
    flags: BioFlags,
    len_sectors: u64,
    /// One after the other, not anywhere.
    sequential: bool,
    warm_up: u64,
}

/// A closed loop that counts its lane's allocations.
struct Meter {
    device: DeviceId,
    order: Order,
    rng: fastrand::Rng,
    done: u64,
    next_sector: u64,
    before: u64,
    /// Allocations, or what went wrong.
    outcome: Result<u64, String>,
    report: Sender<Result<u64, String>>,
}

impl Meter {
    fn submit(&mut self, tag: u64, mut bio: BioBox, cx: &mut ActorCx<'_>) {
        let Order { op, flags, len_sectors, .. } = self.order;
        let sector = match op {
            Op::Flush => 0,
            _ if self.order.sequential => {
                let sector = self.next_sector;
                self.next_sector = (sector + len_sectors) % USED_SECTORS;
                sector
            }
            Op::Read | Op::Write | Op::Discard | Op::WriteZeroes => {
                self.rng.u64(..=(USED_SECTORS - len_sectors) / 8) * 8
            }
        };
        bio.ask(op, flags, sector, len_sectors);
        cx.submit(self.device, tag, bio);
    }
}

impl Actor for Meter {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        for tag in 0..DEPTH {
            let mut bio = cx.take_bio();
            if self.order.op.has_data() {
                bio.payload = Payload::from_buf(Buf::alloc(self.order.len_sectors as usize * 512));
            }
            self.submit(tag, bio, cx);
        }
    }

    fn on_bio(&mut self, tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        self.done += 1;
        if !bio.status.is_ok() {
            self.outcome = Err(format!("{:?}", bio.status));
        } else if self.done == self.order.warm_up {
            self.before = allocations_here();
        } else if self.done == self.order.warm_up + MEASURED && self.outcome.is_ok() {
            self.outcome = Ok(allocations_here() - self.before);
        }
        if self.outcome.is_ok() && self.done < self.order.warm_up + MEASURED {
            return self.submit(tag, bio, cx);
        }
        cx.recycle(bio);
        if cx.bios_in_flight() == 0 {
            cx.exit();
            // Only now, so that the end of this loop is not counted in the next one.
            let outcome = std::mem::replace(&mut self.outcome, Ok(0));
            drop(self.report.send(outcome));
        }
    }
}

fn start(choice: DriverChoice) -> Runtime {
    let config = RuntimeConfig { lanes: 1, driver: choice, ..RuntimeConfig::default() };
    Runtime::start(&config).expect("the portable driver works everywhere")
}

/// Allocations of a loop over a device.
fn measure(runtime: &Runtime, device: DeviceId, order: Order) -> u64 {
    let (report, outcome) = mpsc::channel();
    runtime.spawn_actor(LaneId(0), move || {
        let rng = fastrand::Rng::with_seed(7);
        Box::new(Meter {
            device,
            order,
            rng,
            done: 0,
            next_sector: 0,
            before: 0,
            outcome: Ok(u64::MAX),
            report,
        })
    });
    match outcome.recv() {
        Ok(Ok(allocations)) => allocations,
        other => panic!("{:?}: {other:?}", order.op),
    }
}

fn order(op: Op, len_sectors: u64) -> Order {
    Order { op, flags: BioFlags::empty(), len_sectors, sequential: false, warm_up: 20_000 }
}

/// Makes a device and runs loops over it.
#[track_caller]
fn check(runtime: &Runtime, name: &str, table: &str, orders: &[Order]) {
    let device = runtime.create(name, None, table, false).expect("the table is good").id;
    for order in orders {
        let allocations = measure(runtime, device, *order);
        let Order { op, flags, len_sectors, .. } = order;
        assert_eq!(allocations, 0, "{name}: {op:?} {flags:?} of {len_sectors} sectors");
    }
}

fn reads_and_writes(len_sectors: u64) -> [Order; 2] {
    [order(Op::Read, len_sectors), order(Op::Write, len_sectors)]
}

#[test]
fn reads_and_writes_through_one_and_four_layers_allocate_nothing() {
    for (below, memory) in [("null", "null:64M"), ("mem", "mem:64M:layers")] {
        let runtime = start(DriverChoice::Auto);
        let mut device = memory.to_owned();
        for layer in 1..=4 {
            let name = format!("{below}{layer}");
            let table = format!("0 131072 linear {device} 0");
            let orders: &[Order] = if matches!(layer, 1 | 4) { &reads_and_writes(8) } else { &[] };
            check(&runtime, &name, &table, orders);
            device = format!("dm:{name}");
        }
    }
}

#[test]
fn bios_that_are_split_and_copied_allocate_nothing() {
    let runtime = start(DriverChoice::Auto);
    let stripes = "0 4096 striped 2 8 mem:4M:one 0 mem:4M:two 0";
    check(&runtime, "striped", stripes, &reads_and_writes(64));
    let lines =
        "0 12 linear mem:4M:one 0\n12 500 linear mem:4M:two 0\n512 1536 linear mem:4M:one 512";
    check(&runtime, "lines", lines, &reads_and_writes(256));
    let discards = "0 4096 striped 2 8 null:4M 0 null:4M 2048";
    let ranged = [order(Op::Discard, 64), order(Op::WriteZeroes, 64)];
    check(&runtime, "discards", discards, &ranged);
}

#[test]
fn flushes_on_every_route_allocate_nothing() {
    let runtime = start(DriverChoice::Auto);
    let flush = order(Op::Flush, 0);
    let preflush = Order { flags: BioFlags::PREFLUSH | BioFlags::FUA, ..order(Op::Write, 8) };
    let both = [flush, preflush];
    check(&runtime, "one", "0 4096 linear mem:4M:a 0", &both);
    let two = "0 1024 linear mem:4M:a 0\n1024 3072 linear mem:4M:b 0";
    check(&runtime, "two", two, &both);
    let through = "0 1024 flakey mem:4M:a 0 3600 0\n1024 1024 linear mem:4M:b 0\n\
                   2048 2048 flakey mem:4M:a 2048 3600 0";
    check(&runtime, "through", through, &both);
}

#[test]
fn multipath_in_bio_mode_allocates_nothing_with_any_selector() {
    let runtime = start(DriverChoice::Auto);
    for selector in
        ["round-robin", "queue-length", "service-time", "historical-service-time", "latency"]
    {
        let table =
            format!("0 2048 multipath 2 queue_mode bio 0 1 1 {selector} 0 2 0 mem:1M:a mem:1M:a");
        check(&runtime, selector, &table, &reads_and_writes(8));
    }
}

#[test]
fn barriers_allocate_nothing() {
    let runtime = start(DriverChoice::Auto);
    let barrier = Order { flags: BioFlags::ORDERED, ..order(Op::Write, 8) };
    let two = "0 1024 linear mem:4M:a 0\n1024 3072 linear mem:4M:b 0";
    check(&runtime, "two", two, &[barrier]);
}

#[test]
fn requests_of_one_bio_and_of_several_allocate_nothing() {
    let runtime = start(DriverChoice::Auto);
    let table = "0 2048 multipath 0 0 1 1 queue-length 0 2 0 mem:1M:a mem:1M:a";
    let flush = order(Op::Flush, 0);
    let preflush = Order { flags: BioFlags::PREFLUSH | BioFlags::FUA, ..order(Op::Write, 8) };
    let [read, write] = reads_and_writes(8);
    check(&runtime, "request", table, &[read, write, flush, preflush, order(Op::Discard, 64)]);
    let device = runtime.create("merge", None, table, false).expect("the table is good").id;
    let sequential = Order { sequential: true, ..write };
    assert_eq!(measure(&runtime, device, sequential), 0, "bios that are merged");
    let key = DeviceKey::Id(device);
    match runtime.request(Request::Gauges { device: key }) {
        Ok(Reply::Gauges(gauges)) => {
            let RequestGauges { bios, back_merges, .. } = gauges.requests;
            assert!(back_merges > bios / 2, "{back_merges} of {bios} were merged");
        }
        other => panic!("no gauges: {other:?}"),
    }
}

#[test]
fn a_delay_in_steady_state_allocates_nothing() {
    let runtime = start(DriverChoice::Auto);
    let orders = reads_and_writes(8).map(|order| Order { warm_up: 5_000, ..order });
    check(&runtime, "delay", "0 4096 delay mem:4M:a 0 1 mem:4M:a 0 2", &orders);
    check(&runtime, "no-delay", "0 4096 delay mem:4M:a 0 0", &orders);
}

#[test]
fn a_file_below_allocates_nothing_with_either_driver() {
    for choice in [DriverChoice::Auto, DriverChoice::Portable] {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(4 << 20).expect("room for a sparse file");
        let runtime = start(choice);
        let table = format!("0 8192 linear {} 0", file.path().display());
        let orders = reads_and_writes(8).map(|order| Order { warm_up: 5_000, ..order });
        check(&runtime, "file", &table, &orders);
    }
}
