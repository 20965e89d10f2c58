//! Notes between the instances of a target, and tables that show state.
//!
//! `teller` takes `tell FROM TO COUNT`: the instance on lane FROM sends COUNT numbered notes to
//! lane TO. Its counters, at three places for each lane that hears: how many it heard, how many out
//! of order, and the lane the last came from (plus one). `table` prints them.

use crate::rig::{key, noflush, refused};
use udm_core::bio::BioBox;
use udm_core::engine::MAILBOX_CAPACITY;
use udm_core::lifecycle::{Request, StatusKind};
use udm_core::table::{Args, BuildCx};
use udm_core::target::{DeviceUse, TargetTraits};
use udm_core::{
    ErrorCode, Mapped, Preresume, Registry, Target, TargetConfig, TargetCx, TargetType, UserError,
};
use udm_testkit::{Io, TestWorld};
use udm_types::{DeviceId, LaneId, Status};

struct TellerType;
struct TellerConfig;

struct Teller {
    lane: usize,
    sent: u64,
    heard: [u64; 3],
    next: [u64; LANES],
}

const LANES: usize = 3;
const PLACES: usize = 3 * LANES;

impl TargetType for TellerType {
    fn name(&self) -> &'static str {
        "teller"
    }

    fn version(&self) -> [u32; 3] {
        [1, 0, 0]
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        _cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        args.expect_count(&[0], "")?;
        Ok(Box::new(TellerConfig))
    }
}

fn shown(counters: &[u64]) -> String {
    let words: Vec<String> = counters.iter().map(u64::to_string).collect();
    words.join(" ")
}

impl TargetConfig for TellerConfig {
    fn traits(&self) -> TargetTraits {
        TargetTraits { live_table: true, ..TargetTraits::default() }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        Vec::new()
    }

    fn table_args(&self) -> String {
        String::from("as written")
    }

    fn live_table_args(&self, counters: &[u64]) -> String {
        shown(counters)
    }

    fn instantiate(&self, lane: LaneId) -> Box<dyn Target> {
        Box::new(Teller { lane: lane.index(), sent: 0, heard: [0; 3], next: [0; LANES] })
    }
}

impl Target for Teller {
    fn map(&mut self, mut bio: BioBox, _cx: &mut TargetCx<'_>) -> Mapped {
        bio.status = Status::IoErr;
        Mapped::Kill(bio)
    }

    fn preresume(&mut self, cx: &mut TargetCx<'_>) -> Result<Preresume, UserError> {
        // Every lane greets every other: some of them have not put the table in place yet.
        for lane in 0..cx.lanes() {
            cx.tell(LaneId(lane as u16), [self.sent, 0, 0]);
        }
        self.sent += 1;
        Ok(Preresume::Ready)
    }

    fn on_note(&mut self, from: LaneId, note: [u64; 3], _cx: &mut TargetCx<'_>) {
        self.heard[0] += 1;
        let next = &mut self.next[from.index()];
        self.heard[1] += u64::from(note[0] < *next);
        *next = note[0] + 1;
        self.heard[2] = from.index() as u64 + 1;
    }

    fn add_counters(&self, sum: &mut Vec<u64>) {
        sum.resize(PLACES, 0);
        sum[self.lane * 3..][..3].copy_from_slice(&self.heard);
    }

    fn message(
        &mut self,
        words: &[String],
        cx: &mut TargetCx<'_>,
    ) -> Result<Option<String>, UserError> {
        let numbers: Vec<u64> = words[1..].iter().map(|word| word.parse().unwrap()).collect();
        if cx.lane().index() as u64 == numbers[0] {
            for _ in 0..numbers[2] {
                cx.tell(LaneId(numbers[1] as u16), [self.sent, 0, 0]);
                self.sent += 1;
            }
        }
        Ok(None)
    }
}

fn world() -> (TestWorld, DeviceId) {
    let mut world = TestWorld::new(Registry::new([&TellerType as &dyn TargetType]), LANES as u16);
    let dm = world.create("t", "0 512 teller");
    (world, dm)
}

/// How many notes each lane has heard, none of them out of order, and from whom it heard last.
#[track_caller]
fn heard(world: &mut TestWorld, dm: DeviceId) -> ([u64; LANES], [u64; LANES]) {
    let args = world.line_args(dm, StatusKind::Table);
    let counters: Vec<u64> = args.split(' ').map(|word| word.parse().unwrap()).collect();
    let place = |nr: usize| [0, 1, 2].map(|lane| counters[lane * 3 + nr]);
    assert_eq!(place(1), [0; LANES], "notes came out of order");
    (place(0), place(2))
}

fn tell(world: &mut TestWorld, dm: DeviceId, from: &str, to: &str, count: &str) {
    world.message(dm, 0, &["tell", from, to, count]).unwrap();
    world.run();
}

#[test]
fn notes_reach_the_other_lanes_and_ones_own_while_tables_change() {
    let (mut world, dm) = world();
    world.run();
    assert_eq!(heard(&mut world, dm).0, [3; LANES], "greetings of preresume are not lost");
    tell(&mut world, dm, "2", "0", "5");
    tell(&mut world, dm, "1", "1", "2");
    assert_eq!(heard(&mut world, dm), ([8, 5, 3], [3, 2, 3]));
    world.assert_quiet();
}

#[test]
fn notes_survive_a_full_mailbox_in_order() {
    let (mut world, dm) = world();
    let count = (MAILBOX_CAPACITY * 2).to_string();
    tell(&mut world, dm, "0", "1", &count);
    assert_eq!(heard(&mut world, dm).0[1], 3 + MAILBOX_CAPACITY as u64 * 2);
    world.assert_quiet();
}

#[test]
fn notes_reach_a_suspended_device() {
    let (mut world, dm) = world();
    world.suspend(dm, true);
    tell(&mut world, dm, "0", "2", "4");
    assert_eq!(heard(&mut world, dm).0, [3, 3, 7]);
    world.resume(dm);
    world.run();
    assert_eq!(heard(&mut world, dm).0, [6, 6, 10], "the same instances");
}

#[test]
fn notes_to_a_replaced_table_or_a_removed_device_are_dropped() {
    let (mut world, dm) = world();
    world.load(dm, "0 512 teller");
    // Message and swap are asked for in one turn; the notes are under way when the table goes.
    let words = ["tell", "1", "0", "3"].map(String::from).into();
    let told = world.start(|_| Request::Message { device: key(dm), sector: 0, words });
    let swapped =
        world.start(|ticket| Request::Resume { device: key(dm), options: noflush(), ticket });
    world.run();
    assert!(world.answer(told).is_some_and(|answer| answer.is_ok()));
    assert!(world.answer(swapped).is_some_and(|answer| answer.is_ok()));
    assert_eq!(heard(&mut world, dm).0, [3; LANES], "the new table starts afresh");
    tell(&mut world, dm, "1", "0", "3");
    world.remove(dm);
    let gone = world.start(|_| Request::Gauges { device: key(dm) });
    assert_eq!(refused(world.answer(gone)), ErrorCode::NoSuchDevice);
    world.assert_quiet();
}

#[test]
fn only_the_live_table_shows_state() {
    let (mut world, dm) = world();
    world.load(dm, "0 512 teller");
    let device = key(dm);
    let kind = StatusKind::Table;
    let Ok(reply) = world.request(Request::TableStatus { device, inactive: true, kind }) else {
        panic!("the inactive table has lines")
    };
    assert!(format!("{reply:?}").contains("as written"));
    assert_eq!(world.io(dm, Io::read(0, 8)).status, Status::IoErr);
    assert_eq!(heard(&mut world, dm).0, [3; LANES]);
}
