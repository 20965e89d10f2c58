//! Checks of suspend and resume: drain, push-back, swaps under I/O.
//!
//! I/O is kept in flight by holding it at the devices below, so "in flight" is a fact and not a
//! matter of timing. A suspend must then not end before it is let go, new I/O must wait at the
//! gate, and after the resume everything completes with the right data.
//!
//! A target that holds I/O itself (`delay`) must give it back at `presuspend` without the help of
//! the clock: `a_noflush_suspend_needs_no_clock` runs with a clock that stands still.

use super::bench::{line, lines_as_probes, lines_between, probe_below, world};
use super::{Bench, Case, Kind};
use crate::io::Io;
use crate::mem_lower::MemLower;
use udm_core::lifecycle::{DeviceKey, OnTimeout, Reply, Request, SuspendOptions};
use udm_types::{BioFlags, Nanos, Op, OpSet, Sector, Status};

fn options(noflush: bool) -> SuspendOptions {
    SuspendOptions { noflush, reason: "conformance".into(), ..SuspendOptions::default() }
}

fn drains<C: Case>(noflush: bool) {
    let mut bench = Bench::<C>::alone();
    bench.lowers().iter().for_each(|lower| lower.hold(OpSet::all()));
    let before: Vec<_> = (0..4).map(|index| (index * 8, bench.start_write(index * 8, 8))).collect();
    bench.world.advance(Nanos::from_secs(60));
    let held: usize = bench.lowers().iter().map(|lower| lower.held().len()).sum();
    let keeps = matches!(C::KIND, Kind::Stores | Kind::Transforms);
    assert_eq!(held > 0, keeps, "the writes are under way below");
    let suspend = bench.world.start_suspend(bench.device, options(noflush));
    bench.world.run();
    let during = bench.start_write(40, 8);
    bench.world.run();
    if held > 0 {
        assert!(bench.world.answer(suspend).is_none(), "it ended with I/O in flight");
        let status = bench.world.status(bench.device);
        let suspend = status.suspend.expect("a suspend is under way");
        assert!(suspend.draining && suspend.noflush == noflush);
        assert_eq!(suspend.reason, "conformance");
    }
    for lower in bench.lowers() {
        while !lower.held().is_empty() {
            assert!(bench.world.answer(suspend).is_none(), "it ended with I/O in flight");
            lower.release(0);
            bench.world.run();
        }
    }
    bench.lowers().iter().for_each(MemLower::flow);
    if held > 0 {
        assert!(bench.world.answer(suspend).is_some_and(|answer| answer.is_ok()));
    }
    assert!(bench.world.status(bench.device).suspended);
    assert_eq!(bench.world.census().in_flight, 0, "nothing is inside a suspended device");
    assert!(bench.world.done(during).is_none(), "new I/O waits");
    bench.world.resume(bench.device);
    bench.world.settle();
    for (sector, ticket) in before.into_iter().chain([(40, during)]) {
        let done = bench.world.done(ticket).expect("everything comes back");
        assert_eq!(done.status, bench.expected(sector, 8), "write at {sector}");
    }
    bench.check_everything();
    bench.world.assert_quiet();
}

/// A flushing suspend waits for what is in flight; what comes meanwhile waits for the resume.
pub fn a_flushing_suspend_drains<C: Case>() {
    drains::<C>(false);
}

/// So does a noflush suspend, where the devices below work.
pub fn a_noflush_suspend_drains<C: Case>() {
    drains::<C>(true);
}

/// Whatever the target holds leaves it at `presuspend`: done or pushed back, but without a timer.
pub fn a_noflush_suspend_needs_no_clock<C: Case>() {
    for noflush in [true, false] {
        let mut bench = Bench::<C>::alone();
        let tickets: Vec<_> =
            (0..6).map(|index| (index * 8, bench.start_write(index * 8, 8))).collect();
        bench.world.run();
        bench.world.suspend(bench.device, noflush);
        assert_eq!(bench.world.census().in_flight, 0);
        bench.world.resume(bench.device);
        bench.world.settle();
        for (sector, ticket) in tickets {
            let done = bench.world.done(ticket).expect("everything comes back");
            assert_eq!(done.status, bench.expected(sector, 8), "write at {sector}");
        }
        bench.check_everything();
        bench.world.assert_quiet();
    }
}

/// One bio over three lines; its piece in the first line is pushed back, the others complete. After
/// the swap only that piece runs again, and the bio completes once.
pub fn a_push_back_beside_the_target_replays_only_its_piece<C: Case>() {
    if C::SINGLETON {
        return;
    }
    let mut bench = Bench::<C>::between();
    let len = bench.model.len_sectors();
    assert!(bench.world.message(bench.device, 0, &["hold"]).is_ok());
    let ticket = bench.start_write(0, len);
    bench.world.advance(Nanos::from_secs(60));
    assert!(bench.world.done(ticket).is_none(), "a piece is held");
    // Writes only: a target may read at resume.
    let of = |lower: &MemLower| lower.log().iter().filter(|seen| seen.op == Op::Write).count();
    let pieces = |bench: &Bench<C>| -> usize { bench.lowers().iter().map(of).sum() };
    let before = pieces(&bench);
    bench.world.load(bench.device, &lines_between::<C>());
    bench.world.suspend(bench.device, true);
    assert_eq!(bench.world.census().in_flight, 0);
    assert!(bench.world.census().held > 0, "the piece is held at the gate");
    bench.world.resume(bench.device);
    bench.world.settle();
    let done = bench.world.done(ticket).expect("the bio comes back");
    assert_eq!(done.status, bench.expected(0, len));
    if C::KIND != Kind::Transforms {
        assert_eq!(pieces(&bench), before, "pieces that were done ran again");
    }
    bench.check_everything();
    bench.world.assert_quiet();
}

/// A flush is held in one line and pushed back: all of it runs again, so that it covers the new
/// table.
pub fn a_flush_that_is_pushed_back_is_repeated_whole<C: Case>() {
    if C::SINGLETON {
        return;
    }
    let mut bench = Bench::<C>::between();
    assert!(bench.world.message(bench.device, 0, &["hold"]).is_ok());
    let ticket = bench.world.submit(1, bench.device, Io::flush());
    bench.world.advance(Nanos::from_secs(60));
    assert!(bench.world.done(ticket).is_none(), "the probe holds its copy");
    bench.world.load(bench.device, &lines_between::<C>());
    bench.world.suspend(bench.device, true);
    bench.flushed().iter().for_each(MemLower::clear_log);
    bench.world.resume(bench.device);
    bench.world.settle();
    assert!(bench.world.done(ticket).is_some_and(|done| done.status.is_ok()));
    for lower in bench.flushed() {
        assert!(lower.flushes() > 0, "{} is flushed again", lower.name());
    }
    bench.world.assert_quiet();
}

/// A barrier is pushed back in the middle: after the swap it still comes before what followed it.
pub fn a_barrier_that_is_pushed_back_keeps_its_place<C: Case>() {
    if C::SINGLETON {
        return;
    }
    for noflush in [true, false] {
        let mut bench = Bench::<C>::between();
        let end = bench.model.len_sectors();
        assert!(bench.world.message(bench.device, 0, &["hold"]).is_ok());
        let io = Io::write_pattern(end - 8, 8, 99).with(BioFlags::ORDERED);
        bench.model.write(end - 8, &io.bytes);
        let barrier = bench.world.submit(1, bench.device, io);
        bench.world.advance(Nanos::from_secs(60));
        // On the barrier's own lane; two lanes that do not wait for each other have no order.
        let after: Vec<_> = (0..2)
            .map(|index| {
                let io = Io::write_pattern(end - 24 + index * 8, 8, 100);
                bench.model.write(io.sector, &io.bytes);
                bench.world.submit(1, bench.device, io)
            })
            .collect();
        bench.world.advance(Nanos::from_secs(60));
        assert_eq!(bench.world.pending(), 3, "the barrier's flush is held by the probe");
        bench.world.load(bench.device, &lines_between::<C>());
        bench.world.suspend(bench.device, noflush);
        assert_eq!(bench.world.census().in_flight, 0);
        bench.world.resume(bench.device);
        bench.world.settle();
        let barrier = bench.world.done(barrier).expect("the barrier comes back");
        assert!(barrier.status.is_ok());
        for ticket in after {
            let done = bench.world.done(ticket).expect("everything comes back");
            assert!(done.status.is_ok() && done.event > barrier.event, "it overtook the barrier");
        }
        bench.check_everything();
        bench.world.assert_quiet();
    }
}

/// Resume of a running device and suspend of a suspended one succeed and change nothing.
pub fn resuming_and_suspending_twice_is_harmless<C: Case>() {
    let mut bench = Bench::<C>::alone();
    bench.write(0, C::LEN_SECTORS);
    bench.world.resume(bench.device);
    bench.world.resume(bench.device);
    for noflush in [false, true] {
        bench.world.suspend(bench.device, noflush);
        bench.world.suspend(bench.device, noflush);
        let ticket = bench.start_write(0, 8);
        bench.world.run();
        assert!(bench.world.done(ticket).is_none(), "it is suspended");
        bench.world.resume(bench.device);
        bench.world.resume(bench.device);
        bench.world.settle();
        assert!(bench.world.done(ticket).is_some());
    }
    bench.check_everything();
    bench.world.assert_quiet();
}

/// Tables are swapped back and forth with I/O from every lane in flight: between the case's line
/// and a table of other targets that keeps data in the same places.
pub fn table_swaps_under_io_lose_nothing<C: Case>() {
    let mut world = world::<C>();
    let tables = match C::KIND {
        Kind::Stores if !C::SINGLETON => [line::<C>(0), lines_as_probes::<C>()],
        Kind::Stores | Kind::Transforms | Kind::Zeroes | Kind::Fails(_) => {
            [line::<C>(0), line::<C>(0)]
        }
    };
    let device = world.create("t", &tables[0]);
    let mut bench = Bench::<C>::over(world, device, 0, C::LEN_SECTORS);
    let slot = C::LEN_SECTORS / 8;
    for round in 0..48_u64 {
        if bench.below(2) == 0 {
            bench.lowers().iter().for_each(|lower| lower.hold(OpSet::all()));
        }
        // Writes under way at the same time do not overlap, so the model knows the outcome.
        let tickets: Vec<_> = (0..8)
            .map(|index| {
                let len_sectors = 1 + bench.below(slot);
                let sector = index * slot + bench.below(slot - len_sectors + 1);
                (sector, len_sectors, bench.start_write(sector, len_sectors))
            })
            .collect();
        if bench.below(3) == 0 {
            bench.world.advance(Nanos::from_millis(3));
        } else {
            bench.world.run();
        }
        bench.world.load(device, &tables[(round as usize + 1) % 2]);
        let suspend = bench.world.start_suspend(device, options(round % 3 != 0));
        bench.lowers().iter().for_each(MemLower::release_newest_first);
        bench.lowers().iter().for_each(|lower| lower.hold(OpSet::empty()));
        bench.world.run();
        bench.lowers().iter().for_each(MemLower::flow);
        bench.world.run();
        assert!(bench.world.answer(suspend).is_some_and(|answer| answer.is_ok()));
        bench.world.resume(device);
        bench.world.settle();
        for (sector, len_sectors, ticket) in tickets {
            let done = bench.world.done(ticket).expect("everything comes back");
            assert_eq!(done.status, bench.expected(sector, len_sectors), "round {round}");
        }
        let (sector, len_sectors): (Sector, Sector) = bench.some_range(32);
        bench.check(sector, len_sectors);
    }
    bench.check_everything();
    let flush = bench.world.io(device, Io::flush());
    assert!(flush.status.is_ok());
    bench.world.assert_quiet();
}

/// A suspend over a device that hangs ends at its deadline: given up, or with the I/O failed.
pub fn a_suspend_with_a_deadline_ends_although_the_device_below_hangs<C: Case>() {
    if C::KIND != Kind::Stores {
        return;
    }
    for on_timeout in [OnTimeout::Resume, OnTimeout::Fail] {
        let mut bench = Bench::<C>::alone();
        bench.lowers().iter().for_each(|lower| lower.hold(OpSet::all()));
        let tickets: Vec<_> = (0..4).map(|index| bench.start_write(index * 8, 8)).collect();
        bench.world.advance(Nanos::from_secs(1));
        let deadline = Some(Nanos::from_secs(2));
        let suspend = bench
            .world
            .start_suspend(bench.device, SuspendOptions { deadline, on_timeout, ..options(true) });
        bench.world.advance(Nanos::from_millis(1999));
        assert!(bench.world.answer(suspend).is_none(), "the deadline has not come");
        bench.world.advance(Nanos::from_millis(1));
        let answer = bench.world.answer(suspend).expect("the deadline has come");
        let fails = on_timeout == OnTimeout::Fail;
        assert_eq!(answer.is_ok(), fails, "{answer:?}");
        assert_eq!(bench.world.status(bench.device).suspended, fails);
        // The device comes back to life; what was failed has not been written.
        bench.lowers().iter().for_each(MemLower::flow);
        bench.world.run();
        if fails {
            bench.world.resume(bench.device);
        }
        bench.world.settle();
        for ticket in tickets {
            let done = bench.world.done(ticket).expect("everything comes back");
            assert_eq!(done.status, if fails { C::ABANDONED } else { Status::Ok });
        }
        for words in C::HEALED_BY {
            assert!(bench.world.message(bench.device, 0, words).is_ok());
        }
        bench.write(0, C::LEN_SECTORS);
        bench.check_everything();
        bench.world.assert_quiet();
    }
}

/// On mapped devices that are suspended and swapped underneath: the I/O waits there and nothing is
/// lost.
pub fn suspends_of_the_devices_below_are_only_a_pause<C: Case>() {
    let mut bench = Bench::<C>::stacked();
    for round in 0..12 {
        let (name, below_len) = match C::DEVICES {
            [] => return,
            devices => devices[round % devices.len()],
        };
        let key = DeviceKey::Name(name.to_owned());
        let Ok(Reply::Device(below)) = bench.world.request(Request::Lookup { device: key }) else {
            panic!("{name} is a mapped device");
        };
        let below = below.mapped().expect("it is mapped");
        if round % 2 == 0 {
            assert!(bench.world.message(below, 0, &["hold"]).is_ok());
        }
        let tickets: Vec<_> = (0..6).map(|index| bench.start_write(index * 32, 24)).collect();
        bench.world.advance(Nanos::from_millis(3));
        let probe = probe_below::<C>();
        bench.world.load(below, &format!("0 {below_len} {probe} {name} 0"));
        bench.world.suspend(below, round % 3 != 0);
        bench.world.advance(Nanos::from_millis(50));
        bench.world.resume(below);
        bench.world.settle();
        for (index, ticket) in tickets.into_iter().enumerate() {
            let done = bench.world.done(ticket).expect("everything comes back");
            assert_eq!(done.status, bench.expected(index as Sector * 32, 24), "round {round}");
        }
        assert_eq!(bench.world.io(bench.device, Io::flush()).status, Status::Ok);
    }
    bench.check_everything();
    bench.world.assert_quiet();
}
