//! The compress target in the engine: lanes, suspends, recoveries, troubles below.
//!
//! What the volume does by itself is tested beside it, and crashed by the crash enumerator; here is
//! what only the binding can break. After each test that ends well the production `check` must find
//! nothing on the device.

mod volumes;

use udm_core::ErrorCode;
use udm_core::lifecycle::{DeviceKey, OnTimeout, Request, StatusKind, SuspendOptions};
use udm_meta::host::MemoryHost;
use udm_targets::compress::tools::check::{CheckRequest, check};
use udm_testkit::{Io, IoTicket, MemLower, Model, Started, TestWorld, mix, pattern};
use udm_types::{BioFlags, DeviceId, Nanos, Op, OpSet, Sector, Status};

const DEVICE_SECTORS: Sector = 8800;
const LOGICAL_SECTORS: Sector = 2048;

fn world() -> TestWorld {
    let mut world = TestWorld::new(udm_targets::registry(), 3);
    for name in ["d0", "d1"] {
        let device = world.add_lower(name, DEVICE_SECTORS);
        volumes::prepare(&device, DEVICE_SECTORS, LOGICAL_SECTORS);
    }
    world
}

fn options(noflush: bool) -> SuspendOptions {
    SuspendOptions { noflush, reason: "test".into(), ..SuspendOptions::default() }
}

/// What the table line says the volume is: the last word of its status.
fn mode(world: &mut TestWorld, dm: DeviceId) -> String {
    let args = world.line_args(dm, StatusKind::Info);
    args.rsplit(' ').next().unwrap_or_default().to_owned()
}

/// The production check finds nothing.
#[track_caller]
fn assert_clean(device: &MemLower) {
    use udm_core::LowerDevice;
    let mut host = MemoryHost::from_bytes(device.bytes(0, device.len_sectors()));
    let request = CheckRequest::default();
    let report = host.run(|disk| async move { check(&disk, &request, &mut |_| ()).await });
    assert!(report.is_sound(), "{report:?}");
}

fn start_resume(world: &mut TestWorld, dm: DeviceId, options: SuspendOptions) -> Started {
    let device = DeviceKey::Id(dm);
    world.start(|ticket| Request::Resume { device, options, ticket })
}

#[track_caller]
fn refused(world: &mut TestWorld, started: Started) -> (ErrorCode, String) {
    match world.answer(started) {
        Some(Err(error)) => (error.code(), error.to_string()),
        other => panic!("expected an error, got {other:?}"),
    }
}

#[test]
fn all_lanes_see_one_volume_and_it_survives_its_table() {
    let mut world = world();
    let dm = world.create("t", "0 2048 compress d0");
    for nr in 0..30 {
        let lane = (nr % 3) as u16;
        let io = Io::write_pattern(nr * 16 + nr % 3, 13, nr);
        assert_eq!(world.io_on(lane, dm, io).status, Status::Ok);
    }
    for round in 0..2 {
        for nr in 0..30 {
            let lane = ((nr + 1) % 3) as u16;
            let read = world.io_on(lane, dm, Io::read(nr * 16 + nr % 3, 13));
            assert_eq!(read.bytes, pattern(nr * 16 + nr % 3, 13, nr), "round {round}");
        }
        world.swap(dm, "0 2048 compress d0 2 compressor zstd", round == 0);
    }
    assert!(world.lower("d0").log().iter().all(|seen| seen.lane.0 == 0), "one lane has it");
    world.remove(dm);
    world.assert_quiet();
    assert_clean(world.lower("d0"));
}

#[test]
fn a_flushing_suspend_flushes_once_and_a_noflush_one_only_writes() {
    for noflush in [false, true] {
        let mut world = world();
        let dm = world.create("t", "0 2048 compress d0");
        let write = world.submit(1, dm, Io::write_pattern(0, 16, 1));
        world.run();
        assert_eq!(world.done(write).expect("in memory").status, Status::Ok);
        world.lower("d0").clear_log();
        world.suspend(dm, noflush);
        let log = world.lower("d0").log();
        let count = |op| log.iter().filter(|seen| seen.op == op).count();
        assert_eq!((count(Op::Write), count(Op::Flush)), (1, usize::from(!noflush)));
        world.lower("d0").clear_log();
        world.resume(dm);
        assert_eq!(world.io(dm, Io::read(0, 16)).bytes, pattern(0, 16, 1));
        let log = world.lower("d0").log();
        let reads = log.iter().filter(|seen| seen.op == Op::Read).count();
        assert!(reads <= 2, "the same instance recovers nothing: {log:?}");
        world.assert_quiet();
    }
}

#[test]
fn a_device_without_a_volume_is_refused_when_it_is_loaded_or_else_when_resumed() {
    let mut world = TestWorld::new(udm_targets::registry(), 2);
    world.add_lower("d0", DEVICE_SECTORS);
    let error = world.build("0 2048 compress d0").expect_err("it is empty");
    assert_eq!((error.code(), error.line()), (ErrorCode::VolumeUnusable, Some(1)));
    assert!(error.to_string().contains("no compress volume"), "{error}");
    world.create("below", &format!("0 {DEVICE_SECTORS} linear d0 0"));
    let dm = world.create_empty("t");
    world.load(dm, "0 2048 compress dm:below");
    let resume = start_resume(&mut world, dm, options(true));
    let (code, text) = refused(&mut world, resume);
    assert_eq!(code, ErrorCode::VolumeUnusable, "{text}");
    assert!(world.status(dm).suspended && world.status(dm).live_present);
    // Formatted meanwhile: the same table can be resumed.
    volumes::prepare(&world.lower("d0").clone(), DEVICE_SECTORS, LOGICAL_SECTORS);
    world.resume(dm);
    assert_eq!(world.io(dm, Io::write_pattern(0, 8, 1)).status, Status::Ok);
    world.assert_quiet();
}

#[test]
fn the_volume_grows_to_the_line_under_load_and_shrinks_when_told() {
    let mut world = world();
    let dm = world.create("t", "0 2048 compress d0");
    let early = world.submit(1, dm, Io::write_pattern(2040, 8, 1));
    world.load(dm, "0 2053 compress d0");
    let swap = start_resume(&mut world, dm, options(true));
    world.run();
    assert!(world.answer(swap).is_some_and(|answer| answer.is_ok()));
    world.settle();
    assert_eq!(world.done(early).expect("back").status, Status::Ok);
    assert_eq!(world.status(dm).len_sectors, 2053);
    assert_eq!(world.io_on(2, dm, Io::write_pattern(2045, 8, 2)).status, Status::Ok);
    let blocks = |world: &mut TestWorld| number(world, dm, "logical_blocks");
    assert_eq!(blocks(&mut world), 257);
    // A shorter line hides the rest; only the message gives it up.
    world.swap(dm, "0 1024 compress d0", true);
    world.swap(dm, "0 2053 compress d0", true);
    assert_eq!(world.io(dm, Io::read(2045, 8)).bytes, pattern(2045, 8, 2));
    world.swap(dm, "0 1024 compress d0", true);
    assert!(world.message(dm, 0, &["shrink"]).is_ok());
    world.settle();
    assert_eq!(blocks(&mut world), 128);
    world.swap(dm, "0 2053 compress d0", true);
    assert_eq!(world.io(dm, Io::read(2045, 8)).bytes, vec![0; 4096]);
    world.assert_quiet();
    assert_clean(world.lower("d0"));
}

#[test]
fn the_volume_leaves_the_end_of_its_device_when_told_and_the_device_can_be_cut() {
    let mut world = world();
    let dm = world.create("t", "0 2048 compress d0");
    for sector in (0..2048).step_by(64) {
        assert_eq!(world.io(dm, Io::write(sector, noise(64, sector))).status, Status::Ok);
    }
    let refused = world.message(dm, 0, &["shrink_disk", "4400"]);
    assert_eq!(refused.map_err(|error| error.code()), Ok(None), "there is room for that");
    world.settle();
    assert_eq!(number(&mut world, dm, "device_sectors"), 4400);
    let error = world.message(dm, 0, &["shrink_disk", "1000"]).expect_err("too small");
    assert_eq!(error.code(), ErrorCode::VolumeSizes);
    assert!(error.to_string().contains("to 4400 sectors"), "{error}");
    // A new table leaves the rest of the device alone, so that nobody loses data by cutting it.
    world.swap(dm, "0 2048 compress d0 2 compressor zstd", false);
    assert_eq!(number(&mut world, dm, "device_sectors"), 4400);
    world.suspend(dm, false);
    world.lower("d0").set_len_sectors(4400);
    world.load(dm, "0 2048 compress d0");
    world.resume(dm);
    for sector in (0..2048).step_by(64) {
        assert!(world.io(dm, Io::read(sector, 64)).bytes == noise(64, sector));
    }
    // The device grows again: the volume when it is told.
    world.lower("d0").set_len_sectors(DEVICE_SECTORS);
    world.swap(dm, "0 2048 compress d0", false);
    assert_eq!(number(&mut world, dm, "device_sectors"), 4400);
    assert!(world.message(dm, 0, &["grow_disk"]).is_ok());
    world.settle();
    assert_eq!(number(&mut world, dm, "device_sectors"), DEVICE_SECTORS);
    assert_eq!(world.io(dm, Io::read(0, 64)).bytes, noise(64, 0));
    world.assert_quiet();
    assert_clean(world.lower("d0"));
}

#[test]
fn a_line_longer_than_the_volume_can_become_is_refused() {
    let mut world = world();
    let dm = world.create_empty("t");
    world.load(dm, "0 20480000 compress d0");
    let resume = start_resume(&mut world, dm, options(true));
    let (code, text) = refused(&mut world, resume);
    assert_eq!(code, ErrorCode::VolumeUnusable, "{text}");
    assert!(text.contains("20480000"), "{text}");
    world.load(dm, "0 2048 compress d0");
    world.resume(dm);
    assert_eq!(mode(&mut world, dm), "ok");
    world.assert_quiet();
    assert_clean(world.lower("d0"));
}

/// Writes that wait for space hold no noflush suspend up: they are done on the new table.
#[test]
fn writes_that_wait_for_space_are_pushed_back_by_a_noflush_suspend() {
    let mut world = TestWorld::new(udm_targets::registry(), 2);
    let small = world.add_lower("small", 3000);
    volumes::prepare(&small, 3000, 4096);
    let dm = world.create("t", "0 4096 compress small 2 queue_if_no_space 3600");
    let mut waiting = Vec::new();
    for sector in (0..4096).step_by(64) {
        // Patterns do not compress to nothing, so the disk is full long before the volume.
        let io = Io::write(sector, noise(64, sector));
        waiting.push((sector, world.submit((sector / 64 % 2) as u16, dm, io)));
        world.run();
    }
    world.advance(Nanos::from_secs(60));
    let answered = |world: &mut TestWorld, ticket| world.done(ticket).map(|done| done.status);
    waiting.retain(|&(_, ticket)| match answered(&mut world, ticket) {
        Some(status) => {
            assert_eq!(status, Status::Ok);
            false
        }
        None => true,
    });
    assert!(waiting.len() > 4, "the disk is full");
    assert_eq!(mode(&mut world, dm), "out_of_space");
    world.suspend(dm, true);
    assert_eq!(world.census().held, waiting.len() as u64);
    world.load(dm, "0 4096 compress small 1 error_if_no_space");
    world.resume(dm);
    world.settle();
    for (sector, ticket) in waiting {
        let done = world.done(ticket).expect("by the new table's rule");
        assert_eq!(done.status, Status::NoSpace, "{sector}");
    }
    world.assert_quiet();
    assert_clean(world.lower("small"));
}

/// Bytes that do not compress.
fn noise(sectors: u64, seed: u64) -> Vec<u8> {
    let mut random = seed + 1;
    let words = (0..sectors * 64).flat_map(|_| {
        random = mix(random);
        random.to_le_bytes()
    });
    words.collect()
}

/// A number that `stats` tells.
#[track_caller]
fn number(world: &mut TestWorld, dm: DeviceId, name: &str) -> u64 {
    let stats = world.message(dm, 0, &["stats"]).expect("known").expect("an answer");
    let mut words = stats.split(' ').skip_while(|word| *word != name);
    words.nth(1).and_then(|word| word.parse().ok()).expect("a number")
}

#[test]
fn a_recovery_that_hangs_can_be_given_up_at_every_step() {
    // So many I/Os of the recovery are let through before it hangs.
    for steps in 0..8 {
        let mut world = world();
        let dm = world.create("t", "0 2048 compress d0");
        let io = Io::write_pattern(0, 512, 3).with(BioFlags::FUA);
        assert_eq!(world.io(dm, io).status, Status::Ok);
        world.load(dm, "0 2048 compress d0 1 writethrough");
        world.suspend(dm, true);
        world.lower("d0").hold(OpSet::all());
        let resume = start_resume(&mut world, dm, options(true));
        for _ in 0..steps {
            world.lower("d0").release(0);
            world.run();
        }
        if world.answer(resume).is_some() {
            assert!(steps > 3, "a recovery has some steps");
            world.lower("d0").flow();
            world.assert_quiet();
            continue;
        }
        assert!(world.request(Request::Cancel { ticket: resume.number() }).is_ok());
        assert_eq!(refused(&mut world, resume).0, ErrorCode::SuspendCancelled);
        // What hangs may land at any time; the next recovery waits for it.
        let again = start_resume(&mut world, dm, options(true));
        assert!(world.answer(again).is_none(), "step {steps}");
        world.lower("d0").flow();
        world.run();
        assert!(world.answer(again).is_some_and(|answer| answer.is_ok()), "step {steps}");
        assert_eq!(world.io(dm, Io::read(0, 512)).bytes, pattern(0, 512, 3), "step {steps}");
        world.suspend(dm, false);
        world.remove(dm);
        world.assert_quiet();
        assert_clean(world.lower("d0"));
    }
}

#[test]
fn a_suspend_over_a_stalled_disk_ends_by_its_deadline() {
    for (noflush, on_timeout) in
        [(false, OnTimeout::Fail), (true, OnTimeout::Fail), (true, OnTimeout::Resume)]
    {
        let mut world = world();
        let dm = world.create("t", "0 2048 compress d0 1 writethrough");
        world.lower("d0").hold(OpSet::all());
        let write = world.submit(1, dm, Io::write_pattern(0, 64, 1));
        world.run();
        let deadline = Some(Nanos::from_secs(2));
        let suspend =
            world.start_suspend(dm, SuspendOptions { deadline, on_timeout, ..options(noflush) });
        world.advance(Nanos::from_secs(2));
        let answer = world.answer(suspend).expect("the deadline has passed");
        let fails = on_timeout == OnTimeout::Fail;
        assert_eq!((answer.is_ok(), world.status(dm).suspended), (fails, fails), "{answer:?}");
        world.lower("d0").flow();
        world.run();
        let done = world.done(write).expect("it is back");
        assert_eq!(done.status.is_ok(), !fails);
        if fails {
            // The volume lost a write, so it reads only until the table is loaded again.
            world.resume(dm);
            assert_eq!(mode(&mut world, dm), "ro");
            assert!(!world.io(dm, Io::write_pattern(0, 8, 2)).status.is_ok());
            world.swap(dm, "0 2048 compress d0", true);
        }
        assert_eq!(world.io(dm, Io::write_pattern(0, 8, 3)).status, Status::Ok);
        assert_eq!(world.io(dm, Io::flush()).status, Status::Ok);
        world.assert_quiet();
        assert_clean(world.lower("d0"));
    }
}

#[test]
fn a_failed_write_below_raises_an_event_and_leaves_what_is_there_readable() {
    let mut world = world();
    let dm = world.create("t", "0 2048 compress d0");
    let io = Io::write_pattern(0, 64, 1).with(BioFlags::FUA);
    assert_eq!(world.io(dm, io).status, Status::Ok);
    let before = world.status(dm).event_nr;
    world.lower("d0").fail(0..u64::MAX, OpSet::WRITE, Status::Medium);
    let io = Io::write_pattern(128, 64, 1).with(BioFlags::FUA);
    assert!(!world.io(dm, io).status.is_ok());
    assert!(world.status(dm).event_nr > before);
    assert_eq!(mode(&mut world, dm), "ro");
    let stats = world.message(dm, 0, &["stats"]).expect("known").expect("an answer");
    assert!(stats.contains("trouble read-only"), "{stats}");
    assert_eq!(world.io(dm, Io::read(0, 64)).bytes, pattern(0, 64, 1));
    world.lower("d0").heal();
    world.swap(dm, "0 2048 compress d0", false);
    assert_eq!(mode(&mut world, dm), "ok");
    assert_eq!(world.io(dm, Io::read(0, 64)).bytes, pattern(0, 64, 1));
    world.assert_quiet();
    assert_clean(world.lower("d0"));
}

#[test]
fn a_stalled_disk_below_one_device_leaves_another_alone() {
    let mut world = world();
    let stalled = world.create("s", "0 2048 compress d0 1 writethrough");
    let other = world.create("o", "0 2048 compress d1 1 writethrough");
    world.lower("d0").hold(OpSet::all());
    let waiting = world.submit(0, stalled, Io::write_pattern(0, 64, 1));
    for nr in 0..40 {
        let io = Io::write_pattern(nr * 16, 16, nr);
        assert_eq!(world.io_on((nr % 3) as u16, other, io).status, Status::Ok);
    }
    assert!(world.done(waiting).is_none());
    world.lower("d0").flow();
    world.run();
    assert_eq!(world.done(waiting).expect("back").status, Status::Ok);
    world.assert_quiet();
}

#[test]
fn messages_reach_the_volume_and_not_a_suspended_one() {
    let mut world = world();
    let dm = world.create("t", "0 2048 compress d0");
    assert_eq!(world.io(dm, Io::write_pattern(0, 64, 1)).status, Status::Ok);
    let checkpoint = |world: &mut TestWorld| number(world, dm, "checkpoint");
    let before = checkpoint(&mut world);
    assert!(world.message(dm, 0, &["checkpoint"]).is_ok());
    world.settle();
    assert_eq!(checkpoint(&mut world), before + 1);
    for words in [&["gc", "1"][..], &["scrub"]] {
        assert!(world.message(dm, 0, words).is_ok());
        world.settle();
    }
    for bad in [&["gc"][..], &["gc", "x"], &["gc", "0"], &["checkpoint", "now"]] {
        assert!(world.message(dm, 0, bad).is_err(), "{bad:?}");
    }
    world.suspend(dm, false);
    let error = world.message(dm, 0, &["checkpoint"]).expect_err("suspended");
    assert_eq!(error.code(), ErrorCode::Suspended);
    assert!(world.message(dm, 0, &["stats"]).is_ok());
    world.resume(dm);
    world.assert_quiet();
    assert_clean(world.lower("d0"));
}

/// Writes, write-zeroes and flushes from all lanes, among suspends, swaps, shorter and longer
/// tables, and disks that hold everything for a while and answer in another order.
#[test]
fn a_thousand_changes_under_load_lose_nothing() {
    const LINES: [&str; 5] = [
        "0 2048 compress d0",
        "0 2048 compress d0 1 writethrough",
        "0 1024 compress d0 2 compressor zstd",
        "0 2048 compress d0 4 max_extent 2 delta_mb 1",
        "0 1536 insitu-comp d0 writeback 3",
    ];
    let mut world = world();
    let dm = world.create("t", LINES[0]);
    let mut soak = Soak { dm, model: Model::new(LOGICAL_SECTORS), random: 1, len: 2048 };
    for round in 0..1000 {
        let holds = soak.below(4) == 0;
        if holds {
            world.lower("d0").hold(OpSet::WRITE | OpSet::FLUSH);
        }
        let next = (soak.below(3) == 0).then(|| soak.below(LINES.len() as u64) as usize);
        // What is held while a shorter table comes fails beyond its end, as it should.
        let limit = if next.is_some() { 1024 } else { soak.len };
        let tickets = soak.submit_some(&mut world, round, limit);
        if let Some(next) = next {
            world.load(dm, LINES[next]);
        }
        let suspend = world.start_suspend(dm, options(soak.below(2) == 0));
        if holds {
            world.lower("d0").release_newest_first();
            world.lower("d0").flow();
        }
        world.run();
        assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()), "round {round}");
        world.resume(dm);
        soak.len = world.status(dm).len_sectors;
        match soak.below(4) {
            0 => world.advance(Nanos::from_millis(soak.below(3000))),
            _ => world.run(),
        }
        for ticket in tickets {
            world.settle();
            assert_eq!(world.done(ticket).expect("back").status, Status::Ok, "round {round}");
        }
        soak.check_some(&mut world, round);
    }
    world.swap(dm, LINES[0], false);
    let all = world.io(dm, Io::read(0, LOGICAL_SECTORS));
    soak.model.check(0, &all.bytes).expect("all of it");
    world.remove(dm);
    world.assert_quiet();
    assert_clean(world.lower("d0"));
}

struct Soak {
    dm: DeviceId,
    model: Model,
    random: u64,
    len: Sector,
}

impl Soak {
    fn below(&mut self, limit: u64) -> u64 {
        self.random = mix(self.random);
        self.random % limit
    }

    /// Eight requests, each in its own eighth of the first `limit` sectors, so that the model knows
    /// the outcome.
    fn submit_some(&mut self, world: &mut TestWorld, round: u64, limit: Sector) -> Vec<IoTicket> {
        let mut tickets = Vec::new();
        for slot in 0..8 {
            let part = limit / 8;
            let len_sectors = 1 + self.below(part.min(40));
            let sector = slot * part + self.below(part - len_sectors + 1);
            let io = match self.below(10) {
                0 => Io::flush(),
                1 => {
                    self.model.zero(sector, len_sectors);
                    Io::write_zeroes(sector, len_sectors)
                }
                kind => {
                    let flags = match kind {
                        2 => BioFlags::ORDERED,
                        3 => BioFlags::FUA,
                        4 => BioFlags::PREFLUSH | BioFlags::FUA,
                        _ => BioFlags::empty(),
                    };
                    let io = Io::write_pattern(sector, len_sectors, round * 8 + slot).with(flags);
                    self.model.write(sector, &io.bytes);
                    io
                }
            };
            tickets.push(world.submit(self.below(3) as u16, self.dm, io));
        }
        world.run();
        tickets
    }

    fn check_some(&mut self, world: &mut TestWorld, round: u64) {
        let len_sectors = 1 + self.below(64);
        let sector = self.below(self.len - len_sectors + 1);
        let lane = self.below(3) as u16;
        let read = world.io_on(lane, self.dm, Io::read(sector, len_sectors));
        let fits = self.model.check(sector, &read.bytes);
        fits.unwrap_or_else(|text| panic!("round {round}: {text}"));
    }
}

/// Suspends and resumes that are given up in the middle, at every step of draining, settling and
/// recovering, over a disk that answers only so many operations.
#[test]
fn changes_that_are_given_up_lose_nothing() {
    const LINES: [&str; 2] = ["0 2048 compress d0", "0 2048 compress d0 1 writethrough"];
    let mut world = world();
    let dm = world.create("t", LINES[0]);
    let mut soak = Soak { dm, model: Model::new(LOGICAL_SECTORS), random: 7, len: 2048 };
    let (mut given_up, mut gone_through) = (0, 0);
    for round in 0..400 {
        world.lower("d0").hold(OpSet::all());
        let tickets = soak.submit_some(&mut world, round, LOGICAL_SECTORS);
        let swaps = soak.below(2) == 0;
        if swaps {
            world.load(dm, LINES[soak.below(2) as usize]);
        }
        let noflush = soak.below(2) == 0;
        let change = match swaps || soak.below(2) == 0 {
            true => start_resume(&mut world, dm, options(noflush)),
            false => world.start_suspend(dm, options(noflush)),
        };
        // A swap needs some twenty: writes, the last flush, the recovery.
        for _ in 0..soak.below(24) {
            world.lower("d0").release(0);
            world.run();
        }
        match world.answer(change) {
            Some(answer) => {
                assert!(answer.is_ok(), "round {round}: {answer:?}");
                gone_through += 1;
            }
            None => {
                assert!(world.request(Request::Cancel { ticket: change.number() }).is_ok());
                assert_eq!(refused(&mut world, change).0, ErrorCode::SuspendCancelled);
                given_up += 1;
            }
        }
        world.lower("d0").flow();
        world.run();
        world.resume(dm);
        world.settle();
        for ticket in tickets {
            assert_eq!(world.done(ticket).expect("back").status, Status::Ok, "round {round}");
        }
        soak.check_some(&mut world, round);
    }
    assert!(given_up > 100 && gone_through > 100, "{given_up} and {gone_through}");
    let all = world.io(dm, Io::read(0, LOGICAL_SECTORS));
    soak.model.check(0, &all.bytes).expect("all of it");
    world.remove(dm);
    world.assert_quiet();
    assert_clean(world.lower("d0"));
}
