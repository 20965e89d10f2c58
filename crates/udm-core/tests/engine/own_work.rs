//! Targets with work of their own: I/O, work between I/O, turns, hand-over, resumes that take time.
//!
//! Most of it on the test kit's `worker`; `busy`, below, computes for ever in turns, and `rude`
//! does what is forbidden.

use crate::rig::{accepted, key, noflush, refused, status, with_deadline};
use udm_core::bio::BioBox;
use udm_core::lifecycle::{OnTimeout, Request, StatusKind, SuspendOptions};
use udm_core::table::{Args, BuildCx, DeviceRef};
use udm_core::target::{DeviceUse, TargetTraits};
use udm_core::{
    ErrorCode, Mapped, Registry, Target, TargetConfig, TargetCx, TargetType, UserError,
};
use udm_testkit::{Io, Started, TestWorld, pattern, probe_type, worker_type};
use udm_types::{BioFlags, DeviceId, LaneId, Nanos, Op, OpSet, Status};

const LANES: u16 = 3;

fn world() -> TestWorld {
    let types = [worker_type(), &BusyType as &dyn TargetType, &RudeType, probe_type()];
    let mut world = TestWorld::new(Registry::new(types), LANES);
    for name in ["d0", "d1"] {
        world.add_lower(name, 4096);
    }
    world
}

/// What the worker's status says: handed over, own I/Os, turns, resumes, flushes, rounds.
#[track_caller]
fn worked(world: &mut TestWorld, dm: DeviceId) -> [u64; 6] {
    let args = world.line_args(dm, StatusKind::Info);
    let words: Vec<u64> = args.split(' ').map(|word| word.parse().unwrap()).collect();
    words.try_into().unwrap()
}

fn start_resume(world: &mut TestWorld, dm: DeviceId, options: SuspendOptions) -> Started {
    world.start(|ticket| Request::Resume { device: key(dm), options, ticket })
}

#[test]
fn bios_of_all_lanes_are_done_by_one_and_end_at_home() {
    let mut world = world();
    let dm = world.create("t", "0 512 worker d0 64 1 4");
    let tickets: Vec<_> = (0..30_u64)
        .map(|nr| {
            let io = Io::write_pattern(nr * 8, 8, nr);
            (nr, world.submit((nr % 3) as u16, dm, io))
        })
        .collect();
    world.run();
    for (nr, ticket) in tickets {
        assert_eq!(status(&mut world, ticket), Status::Ok);
        let lane = (nr % 3) as u16;
        assert_eq!(world.io_on(lane, dm, Io::read(nr * 8, 8)).bytes, pattern(nr * 8, 8, nr));
    }
    let on_home = |log: Vec<udm_testkit::Seen>| log.iter().all(|seen| seen.lane == LaneId(1));
    assert!(on_home(world.lower("d0").log()), "own I/O is done on the home lane");
    let [handed, own, turns, resumes, ..] = worked(&mut world, dm);
    assert_eq!((handed, own, resumes), (40, 61, 1));
    assert!(turns < 60, "several bios a turn, where several wait: {turns}");
    let gauges = world.gauges(dm);
    assert_eq!((gauges.in_flight, gauges.ios[Op::Write.index()]), (0, 30), "counted at home");
    world.assert_quiet();
}

#[test]
fn a_suspend_waits_for_bios_that_were_handed_over() {
    for with_noflush in [false, true] {
        let mut world = world();
        let dm = world.create("t", "0 512 worker d0 0 0 4");
        world.lower("d0").hold(OpSet::WRITE);
        let ticket = world.submit(2, dm, Io::write_pattern(8, 8, 1));
        world.run();
        assert_eq!(world.gauges(dm).in_flight, 1, "own I/O is not the users'");
        let options = SuspendOptions { noflush: with_noflush, ..noflush() };
        let suspend = world.start_suspend(dm, options);
        let held = world.submit(1, dm, Io::write_pattern(16, 8, 2));
        world.run();
        assert!(world.answer(suspend).is_none(), "in flight on another lane than its own");
        assert_eq!(world.gauges(dm).in_flight, 2, "what the suspend waits for: both");
        world.lower("d0").flow();
        world.run();
        accepted(world.answer(suspend));
        assert_eq!(status(&mut world, ticket), Status::Ok);
        assert_eq!(worked(&mut world, dm)[4], u64::from(!with_noflush), "the last flush");
        world.resume(dm);
        world.run();
        assert_eq!(status(&mut world, held), Status::Ok);
        assert_eq!(worked(&mut world, dm)[3], 1, "the same instance is still ready");
        world.assert_quiet();
    }
}

#[test]
fn what_another_lane_pushes_back_is_held_at_home_and_replayed_on_the_new_table() {
    let mut world = world();
    let dm = world.create("t", "0 512 worker d0 0 0 1");
    world.lower("d0").hold(OpSet::WRITE);
    let tickets = [1, 2, 0].map(|lane| {
        let io = Io::write_pattern(u64::from(lane) * 8, 8, 1);
        world.submit(lane, dm, io)
    });
    world.run();
    // What is under way fails while the suspend waits, so it is pushed back, too.
    world.lower("d0").fail(0..16, OpSet::WRITE, Status::Medium);
    world.load(dm, "0 512 worker d1 0 2 1");
    let suspend = world.start_suspend(dm, noflush());
    world.lower("d0").flow();
    world.run();
    accepted(world.answer(suspend));
    assert_eq!(status(&mut world, tickets[1]), Status::Ok, "what went well is over");
    assert_eq!(world.census().held, 2);
    world.resume(dm);
    world.run();
    for ticket in [tickets[0], tickets[2]] {
        assert_eq!(status(&mut world, ticket), Status::Ok);
    }
    assert_eq!(world.io(dm, Io::read(0, 16)).bytes[..4096], pattern(0, 8, 1));
    world.assert_quiet();
}

#[test]
fn a_barrier_waits_for_bios_but_not_for_background_work() {
    let mut world = world();
    let dm = world.create("t", "0 512 worker d0 0 0 4 10");
    world.lower("d0").hold(OpSet::READ);
    let first = world.submit(1, dm, Io::write_pattern(8, 8, 1));
    world.advance(Nanos::from_millis(10));
    assert_eq!(status(&mut world, first), Status::Ok);
    assert_eq!(world.census().in_flight, 1, "a background read");
    let write = world.submit(1, dm, Io::write_pattern(0, 8, 1));
    let barrier = world.submit(1, dm, Io::write_pattern(0, 8, 2).with(BioFlags::ORDERED));
    world.run();
    assert_eq!(status(&mut world, write), Status::Ok);
    assert_eq!(status(&mut world, barrier), Status::Ok);
    let suspend = world.start_suspend(dm, noflush());
    world.run();
    assert!(world.answer(suspend).is_none(), "a suspend does wait for it");
    world.lower("d0").flow();
    world.run();
    accepted(world.answer(suspend));
    assert_eq!(worked(&mut world, dm)[5], 1);
    world.remove(dm);
    world.assert_quiet();
}

#[test]
fn work_that_is_no_io_holds_a_suspend_up_and_a_deadline_ends_it() {
    let mut world = world();
    let dm = world.create("t", "0 512 worker d0 0 1 4 0 500");
    let suspend = world.start_suspend(dm, SuspendOptions { noflush: false, ..noflush() });
    world.advance(Nanos::from_millis(499));
    assert!(world.answer(suspend).is_none());
    assert!(world.status(dm).suspend.is_some_and(|suspend| suspend.draining));
    world.advance(Nanos::from_millis(1));
    accepted(world.answer(suspend));
    world.resume(dm);
    // The same with less time than it takes: the device runs on.
    let options = SuspendOptions { noflush: false, ..with_deadline(0, OnTimeout::Resume) };
    let options = SuspendOptions { deadline: Some(Nanos::from_millis(100)), ..options };
    let suspend = world.start_suspend(dm, options);
    world.advance(Nanos::from_millis(100));
    assert_eq!(refused(world.answer(suspend)), ErrorCode::SuspendTimedOut);
    assert_eq!(world.io_on(2, dm, Io::write_pattern(0, 8, 1)).status, Status::Ok);
    world.assert_quiet();
}

#[test]
fn an_aborted_suspend_fails_own_io_that_hangs() {
    let mut world = world();
    let dm = world.create("t", "0 512 worker d0 0 1 4");
    world.lower("d0").hold(OpSet::all());
    let ticket = world.submit(0, dm, Io::write_pattern(0, 8, 1));
    world.run();
    let options = SuspendOptions { noflush: false, ..with_deadline(5, OnTimeout::Fail) };
    let suspend = world.start_suspend(dm, options.clone());
    world.advance(Nanos::from_secs(5));
    accepted(world.answer(suspend));
    assert_eq!(status(&mut world, ticket), Status::Timeout);
    world.lower("d0").flow();
    world.resume(dm);
    assert_eq!(world.io(dm, Io::write_pattern(0, 8, 1)).status, Status::Ok);
    // Now only the last flush hangs: it has its own wait, with what is left of the deadline.
    world.lower("d0").hold(OpSet::FLUSH);
    let suspend = world.start_suspend(dm, options);
    world.advance(Nanos::from_millis(4999));
    assert!(world.answer(suspend).is_none());
    world.advance(Nanos::from_millis(1));
    accepted(world.answer(suspend));
    world.lower("d0").flow();
    world.assert_quiet();
}

#[test]
fn a_resume_waits_until_the_target_is_ready() {
    let mut world = world();
    let dm = world.create_empty("t");
    world.load(dm, "0 256 worker d0 0 1 4\n256 256 worker d1 0 2 4");
    world.lower("d0").hold(OpSet::READ);
    world.lower("d1").hold(OpSet::READ);
    let resume = start_resume(&mut world, dm, noflush());
    let held = world.submit(0, dm, Io::write_pattern(0, 8, 1));
    world.lower("d1").flow();
    world.run();
    assert!(world.answer(resume).is_none(), "one of two");
    assert!(world.status(dm).suspended);
    world.lower("d0").flow();
    world.run();
    accepted(world.answer(resume));
    assert_eq!(status(&mut world, held), Status::Ok);
    world.assert_quiet();
}

#[test]
fn a_target_that_cannot_get_ready_leaves_the_device_suspended_with_its_message() {
    let mut world = world();
    let dm = world.create_empty("t");
    world.load(dm, "0 256 worker d0 0 1 4\n256 256 worker d1 0 2 4");
    world.lower("d0").fail(0..1, OpSet::READ, Status::Medium);
    let answer = start_resume(&mut world, dm, noflush());
    assert_eq!(refused(world.answer(answer)), ErrorCode::PreresumeFailed);
    assert!(world.status(dm).suspended && world.status(dm).live_present);
    world.lower("d0").heal();
    world.resume(dm);
    assert_eq!(world.io(dm, Io::write_pattern(0, 8, 1)).status, Status::Ok);
    world.remove(dm);
    world.assert_quiet();
}

#[test]
fn a_resume_that_is_given_up_leaves_the_device_suspended_and_free_to_be_changed() {
    let mut world = world();
    // Given up three ways, then: resumed again, another table, removed.
    for (way, then) in (0..9).map(|nr| (nr / 3, nr % 3)) {
        let dm = world.create_empty("t");
        world.load(dm, "0 512 worker d0 0 1 4");
        world.lower("d0").hold(OpSet::READ);
        let options = match way {
            0 => noflush(),
            1 => with_deadline(5, OnTimeout::Resume),
            _ => with_deadline(5, OnTimeout::Fail),
        };
        let resume = start_resume(&mut world, dm, options);
        match way {
            0 => {
                let cancelled = world.request(Request::Cancel { ticket: resume.number() });
                assert!(cancelled.is_ok());
            }
            _ => world.advance(Nanos::from_secs(5)),
        }
        let code = refused(world.answer(resume));
        let expected = [
            ErrorCode::SuspendCancelled,
            ErrorCode::SuspendTimedOut,
            // What hung was failed, and the target says what it makes of that.
            ErrorCode::PreresumeFailed,
        ];
        assert_eq!(code, expected[way]);
        assert!(world.status(dm).suspended && world.status(dm).live_present);
        assert_eq!(world.gauges(dm).in_flight, u64::from(way < 2), "the read hangs on");
        match then {
            0 => {
                let again = start_resume(&mut world, dm, noflush());
                assert_eq!(world.answer(again).is_none(), way < 2);
                world.lower("d0").flow();
                world.run();
                if way == 2 {
                    world.resume(dm);
                } else {
                    accepted(world.answer(again));
                }
                assert_eq!(world.io(dm, Io::write_pattern(0, 8, 1)).status, Status::Ok);
                world.remove(dm);
            }
            1 => {
                world.load(dm, "0 512 worker d1 0 2 4");
                let swap = start_resume(&mut world, dm, noflush());
                assert_eq!(world.answer(swap).is_none(), way < 2, "drained first");
                world.lower("d0").flow();
                world.run();
                assert_eq!(world.io(dm, Io::write_pattern(0, 8, 1)).status, Status::Ok);
                world.remove(dm);
            }
            _ => {
                let device = key(dm);
                let removed = world.start(|_| Request::Remove { device, deferred: false });
                world.lower("d0").flow();
                world.run();
                accepted(world.answer(removed));
            }
        }
        world.assert_quiet();
    }
}

#[test]
fn a_drain_of_a_suspended_device_that_is_given_up_leaves_it_suspended() {
    let mut world = world();
    let dm = world.create_empty("t");
    world.load(dm, "0 512 worker d0 0 1 4");
    world.lower("d0").hold(OpSet::READ);
    let resume = start_resume(&mut world, dm, noflush());
    assert!(world.request(Request::Cancel { ticket: resume.number() }).is_ok());
    world.load(dm, "0 512 worker d1 0 2 4");
    let swap = start_resume(&mut world, dm, with_deadline(5, OnTimeout::Resume));
    let held = world.submit(0, dm, Io::write_pattern(0, 8, 1));
    world.advance(Nanos::from_secs(5));
    assert_eq!(refused(world.answer(swap)), ErrorCode::SuspendTimedOut);
    let seen = world.status(dm);
    assert!(seen.suspended && seen.inactive_present, "the table is there for the next try");
    assert!(world.done(held).is_none());
    world.lower("d0").flow();
    world.resume(dm);
    world.run();
    assert_eq!(status(&mut world, held), Status::Ok);
    assert_eq!(world.lower("d1").log().len(), 2, "on the new table");
    world.assert_quiet();
}

// --- turns --------------------------------------------------------------------------------------

/// `busy`: takes turns for ever, once it has seen a bio; its status counts them. Stops at suspend.
struct BusyType;
struct Busy {
    turns: u64,
    busy: bool,
}

/// `rude DEVICE WHAT`: does what is forbidden when a bio comes (`self`, `end`) or a message after a
/// suspend (`late`).
struct RudeType;
#[derive(Clone)]
struct Rude {
    device: DeviceRef,
    what: String,
}

impl TargetType for BusyType {
    fn name(&self) -> &'static str {
        "busy"
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
        Ok(Box::new(BusyType))
    }
}

impl TargetConfig for BusyType {
    fn traits(&self) -> TargetTraits {
        TargetTraits { own_work: true, ..TargetTraits::default() }
    }
    fn devices(&self) -> Vec<DeviceUse> {
        Vec::new()
    }
    fn table_args(&self) -> String {
        String::new()
    }
    fn status_args(&self, counters: &[u64]) -> String {
        counters[0].to_string()
    }
    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        Box::new(Busy { turns: 0, busy: false })
    }
}

impl Target for Busy {
    fn map(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        self.busy = true;
        // Asked twice, given once.
        cx.want_turn();
        cx.want_turn();
        cx.complete(bio, Status::Ok);
        Mapped::Submitted
    }
    fn on_turn(&mut self, cx: &mut TargetCx<'_>) {
        self.turns += 1;
        if self.busy {
            cx.want_turn();
        }
    }
    fn presuspend(&mut self, _cx: &mut TargetCx<'_>) {
        self.busy = false;
    }
    fn add_counters(&self, sum: &mut Vec<u64>) {
        sum.resize(1, 0);
        sum[0] += self.turns;
    }
}

#[test]
fn devices_that_compute_for_ever_share_the_lane_and_leave_room_for_the_rest() {
    let mut world = world();
    let devices: Vec<_> = (0..12).map(|nr| world.create(&format!("b{nr}"), "0 8 busy")).collect();
    let other = world.create("other", "0 512 probe d0 0");
    let tickets: Vec<_> =
        devices.iter().map(|&device| world.submit(0, device, Io::read(0, 8))).collect();
    for _ in 0..300 {
        world.turn(0);
    }
    // The lane does not sleep, but it still does I/O.
    let ticket = world.submit(0, other, Io::write_pattern(0, 8, 1));
    for _ in 0..3 {
        assert!(world.turn(0), "there is always something to do");
    }
    assert_eq!(status(&mut world, ticket), Status::Ok);
    for ticket in tickets {
        assert_eq!(status(&mut world, ticket), Status::Ok);
    }
    // A suspend of each stops it; the world cannot come to rest before.
    let suspends: Vec<_> = devices
        .iter()
        .map(|&device| {
            let device = key(device);
            world.start_quietly(|ticket| Request::Suspend { device, options: noflush(), ticket })
        })
        .collect();
    world.run();
    let turns: Vec<u64> = devices
        .iter()
        .zip(suspends)
        .map(|(&device, suspend)| {
            accepted(world.answer(suspend));
            world.line_args(device, StatusKind::Info).parse().unwrap()
        })
        .collect();
    let (least, most) = (turns.iter().min().unwrap(), turns.iter().max().unwrap());
    assert!(*least >= 150 && most - least <= 2, "unfair: {turns:?}");
    world.assert_quiet();
}

impl TargetType for RudeType {
    fn name(&self) -> &'static str {
        "rude"
    }
    fn version(&self) -> [u32; 3] {
        [1, 0, 0]
    }
    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        args.expect_count(&[2], "DEVICE WHAT")?;
        let device = cx.device(args, "the device")?;
        let what = args.word("what it does")?.to_owned();
        let head = cx.read_head(&device, 512, 512)?;
        assert_eq!(head.map(|bytes| bytes.len()), Some(512), "read when the table was built");
        Ok(Box::new(Rude { device, what }))
    }
}

impl TargetConfig for Rude {
    fn traits(&self) -> TargetTraits {
        TargetTraits { own_work: true, ..TargetTraits::default() }
    }
    fn devices(&self) -> Vec<DeviceUse> {
        vec![DeviceUse { device: self.device.clone(), start_sector: 0, len_sectors: 8 }]
    }
    fn table_args(&self) -> String {
        self.what.clone()
    }
    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        Box::new(self.clone())
    }
}

impl Rude {
    fn own_read(&self, dest: udm_core::Dest, cx: &mut TargetCx<'_>) {
        let mut own = cx.take_bio();
        own.ask(Op::Flush, BioFlags::empty(), 0, 0);
        cx.submit_own(dest, 7, own);
    }
}

impl Target for Rude {
    fn map(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        match self.what.as_str() {
            "self" => self.own_read(bio.dest, cx),
            "end" => cx.end_work(),
            _ => {}
        }
        cx.complete(bio, Status::Ok);
        Mapped::Submitted
    }
    fn on_own_bio(&mut self, tag: u64, bio: BioBox, cx: &mut TargetCx<'_>) {
        assert_eq!((tag, bio.status), (7, Status::IoErr), "it never got anywhere");
        cx.recycle(bio);
    }
    fn message(
        &mut self,
        _words: &[String],
        cx: &mut TargetCx<'_>,
    ) -> Result<Option<String>, UserError> {
        self.own_read(self.device.dest, cx);
        Ok(None)
    }
}

#[test]
fn what_a_target_may_not_do_fails_and_is_counted() {
    let mut world = world();
    for what in ["self", "end", "late"] {
        let dm = world.create(what, &format!("0 8 rude d0 {what}"));
        assert_eq!(world.io(dm, Io::read(0, 8)).status, Status::Ok);
        if what == "late" {
            assert_eq!(world.gauges(dm).contract_breaches, 0);
            world.suspend(dm, true);
            // One on each lane.
            assert!(world.message(dm, 0, &["late"]).is_ok());
            assert_eq!(world.gauges(dm).contract_breaches, u64::from(LANES));
        } else {
            assert_eq!(world.gauges(dm).contract_breaches, 1);
        }
        world.remove(dm);
    }
    assert_eq!(world.lower("d0").flushes(), 0);
    world.assert_quiet();
}
