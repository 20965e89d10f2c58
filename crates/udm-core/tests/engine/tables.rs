//! Tables at their limits: twenty thousand targets, and a lane that cannot open a device.

use crate::rig::{key, refused, registry, world};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use udm_core::bio::BioBox;
use udm_core::lifecycle::Request;
use udm_core::lower::{LowerCx, LowerDevice, LowerLane};
use udm_core::table::{TableBuilder, parse_table};
use udm_core::{DeviceRef, DeviceResolver, ErrorCode, LowerRef, UserError};
use udm_lane::Errno;
use udm_testkit::{Io, pattern};
use udm_types::{LaneId, LowerId, Op, OpSet, QueueLimits, Sector, Status};

/// Lines of one sector each, which go to `d0` and `d1` in turn, from the end to the start.
fn many(count: u64) -> String {
    let mut text = String::new();
    for line in 0..count {
        writeln!(text, "{line} 1 plain {} {}", ["big0", "big1"][(line % 2) as usize], count - line)
            .unwrap();
    }
    text
}

#[test]
fn twenty_thousand_targets_load_and_every_one_is_found() {
    const COUNT: u64 = 20_000;
    let mut world = world();
    for name in ["big0", "big1"] {
        world.add_lower(name, COUNT + 1);
    }
    let dm = world.create("t", &many(COUNT));
    assert_eq!(u64::from(world.status(dm).target_count), COUNT);
    for sector in [0, 1, 2, 9_999, 10_000, 16_383, 16_384, COUNT - 1] {
        assert_eq!(world.io(dm, Io::write_pattern(sector, 1, 3)).status, Status::Ok);
        let name = ["big0", "big1"][(sector % 2) as usize];
        assert_eq!(world.lower(name).bytes(COUNT - sector, 1), pattern(sector, 1, 3));
    }
    assert_eq!(world.io(dm, Io::flush()).status, Status::Ok);
    assert_eq!((world.lower("big0").flushes(), world.lower("big1").flushes()), (1, 1));
    world.swap(dm, &many(COUNT), true);
    assert_eq!(world.io(dm, Io::read(COUNT - 1, 1)).bytes, pattern(COUNT - 1, 1, 3));
    world.assert_quiet();
}

#[test]
fn a_bio_over_thousands_of_targets_has_few_pieces_under_way_at_once() {
    const COUNT: u64 = 4_000;
    let mut world = world();
    for name in ["big0", "big1"] {
        world.add_lower(name, COUNT + 1);
    }
    let dm = world.create("t", &many(COUNT));
    world.lower("big0").hold(OpSet::all());
    let ticket = world.submit(0, dm, Io::discard(0, COUNT));
    world.run();
    let under_way = world.lower("big0").held().len();
    assert!((1..=64).contains(&under_way), "{under_way} pieces are held below");
    world.lower("big0").flow();
    world.run();
    assert!(world.done(ticket).is_some_and(|done| done.status.is_ok()));
    for name in ["big0", "big1"] {
        let log = world.lower(name).log();
        assert_eq!(log.iter().filter(|seen| seen.op == Op::Discard).count() as u64, COUNT / 2);
    }
    world.assert_quiet();
}

/// A device that cannot be opened on lane 1.
struct OneLaneShort {
    open_lanes: Arc<AtomicUsize>,
}

struct OpenLane {
    open_lanes: Arc<AtomicUsize>,
}

impl LowerDevice for OneLaneShort {
    fn shown(&self) -> String {
        "short".into()
    }

    fn len_sectors(&self) -> Sector {
        4096
    }

    fn limits(&self) -> QueueLimits {
        QueueLimits::default()
    }

    fn open_lane(&self, cx: &mut LowerCx<'_>) -> Result<Box<dyn LowerLane>, Errno> {
        if cx.lane == LaneId(1) {
            return Err(Errno(24));
        }
        self.open_lanes.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(OpenLane { open_lanes: Arc::clone(&self.open_lanes) }))
    }
}

impl LowerLane for OpenLane {
    fn submit(&mut self, bio: BioBox, cx: &mut LowerCx<'_>) {
        cx.complete(bio, Status::Ok);
    }

    fn close(&mut self, _cx: &mut LowerCx<'_>) {
        self.open_lanes.fetch_sub(1, Ordering::SeqCst);
    }
}

struct OnlyThis(LowerRef);

impl DeviceResolver for OnlyThis {
    fn resolve(&mut self, _name: &str, _read_only: bool) -> Result<DeviceRef, UserError> {
        Ok(DeviceRef::of_lower(&self.0))
    }
}

#[test]
fn a_load_that_fails_on_one_lane_leaves_nothing_on_any() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    let open_lanes = Arc::new(AtomicUsize::new(0));
    let device = Arc::new(OneLaneShort { open_lanes: Arc::clone(&open_lanes) });
    let mut resolver = OnlyThis(LowerRef { id: LowerId(77), device });
    let registry = registry();
    let builder = TableBuilder {
        registry: &registry,
        resolver: &mut resolver,
        read_only: false,
        now: world.now(),
        seed: 1,
    };
    let lines = parse_table("0 256 plain short 0\n256 256 plain short 256").unwrap();
    let table = Arc::new(builder.build(&lines).unwrap());
    let answer = world.request(Request::Load { device: key(dm), table });
    assert_eq!(refused(Some(answer)), ErrorCode::DeviceOpen);
    assert_eq!(open_lanes.load(Ordering::SeqCst), 0, "lane 0 has closed it again");
    assert!(!world.status(dm).inactive_present);
    world.resume(dm);
    assert_eq!(world.io_on(1, dm, Io::write_pattern(0, 8, 1)).status, Status::Ok);
    world.load(dm, "0 512 plain d1 0");
    world.resume(dm);
    world.assert_quiet();
}
