//! Checks of durability: flushes fan out, are awaited, and their failures are told.
//!
//! Each check runs twice: with the case's line alone, where a target may let flushes pass it by,
//! and between two `probe` lines, which forces every flush through `map`. The fake devices below
//! count what reaches them and put a common order on what they see.
//!
//! The tricky case is a pre-flush that travels with its write (one device below, nothing in between
//! that has to see it): then no separate flush is seen, and the write itself carries the flag.

use super::{Bench, Case, Kind};
use crate::io::Io;
use crate::mem_lower::{MemLower, Seen};
use udm_types::{BioFlags, Nanos, Op, OpSet, Sector, Status};

fn both<C: Case>() -> Vec<Bench<C>> {
    if C::SINGLETON { vec![Bench::alone()] } else { vec![Bench::alone(), Bench::between()] }
}

/// A flush from any lane reaches every device of the case, and completes after all of them have.
pub fn a_flush_reaches_every_device_below<C: Case>() {
    for mut bench in both::<C>() {
        for lane in 0..bench.world.lanes() {
            if C::KIND == Kind::Transforms {
                // It may know that there is nothing to flush.
                bench.write(bench.begin_sector, 8);
            }
            let before: Vec<usize> = bench.flushed().iter().map(MemLower::flushes).collect();
            let done = bench.world.io_on(lane, bench.device, Io::flush());
            assert_eq!(done.status, Status::Ok);
            for (lower, before) in bench.flushed().iter().zip(before) {
                assert!(lower.flushes() > before, "the flush must reach {}", lower.name());
                let late = |seen: &Seen| seen.op == Op::Flush && seen.completed > done.event;
                assert!(!lower.log().iter().any(late), "the flush completed too early");
            }
        }
        for lower in bench.lowers() {
            if !C::FLUSHED.contains(&lower.name()) {
                assert_eq!(lower.flushes(), 0, "{} is not said to be flushed", lower.name());
            }
        }
        bench.world.assert_quiet();
    }
}

/// A flush that fails on any one device fails.
pub fn a_failed_flush_is_reported<C: Case>() {
    if C::KIND == Kind::Transforms {
        return;
    }
    for mut bench in both::<C>() {
        for lower in bench.flushed() {
            lower.fail_flushes(Some(Status::Medium));
            let done = bench.world.io(bench.device, Io::flush());
            assert_eq!(done.status, Status::Medium, "a flush failed on {}", lower.name());
            lower.fail_flushes(None);
            assert!(bench.world.io(bench.device, Io::flush()).status.is_ok());
        }
        bench.world.assert_quiet();
    }
}

/// Data of a write with a pre-flush starts only when the flush is done everywhere.
pub fn a_preflush_comes_before_the_data<C: Case>() {
    if C::KIND != Kind::Stores {
        return;
    }
    for mut bench in both::<C>() {
        bench.write(0, bench.model.len_sectors());
        let devices = bench.flushed();
        devices.iter().for_each(MemLower::clear_log);
        devices.iter().for_each(|lower| lower.hold(OpSet::FLUSH));
        let sector = bench.begin_sector;
        let io = Io::write_pattern(sector, 16, 77).with(BioFlags::PREFLUSH);
        bench.model.write(sector, &io.bytes);
        let ticket = bench.world.submit(1, bench.device, io);
        bench.world.advance(Nanos::from_secs(5));
        devices.iter().for_each(MemLower::flow);
        bench.world.settle();
        let done = bench.world.done(ticket).expect("the write comes back");
        assert!(done.status.is_ok());
        for lower in &devices {
            let log = lower.log();
            for seen in log.iter().filter(|seen| seen.op == Op::Write) {
                assert_flushed_before(&devices, lower, seen);
            }
            assert!(lower.flushes() > 0, "the pre-flush must reach {}", lower.name());
        }
        bench.check_everything();
        bench.world.assert_quiet();
    }
}

/// A flush was done on every device before the data in `write` came to `own`. On `own` itself the
/// flush may travel with the data.
#[track_caller]
fn assert_flushed_before(devices: &[MemLower], own: &MemLower, write: &Seen) {
    for device in devices {
        let rides = write.flags.contains(BioFlags::PREFLUSH) && device.name() == own.name();
        let flushed = device.log().iter().any(|seen| {
            seen.op == Op::Flush && seen.completed != 0 && seen.completed < write.event
        });
        assert!(
            rides || flushed,
            "{write:?} on {} before {} was flushed",
            own.name(),
            device.name()
        );
    }
}

/// The ordered barrier: everything before it completes first, then a flush, then its data, then a
/// flush; nothing submitted after it starts before it is done. Also from another lane.
pub fn an_ordered_write_keeps_its_place<C: Case>() {
    if C::KIND != Kind::Stores {
        return;
    }
    for mut bench in both::<C>() {
        let devices = bench.flushed();
        let at = bench.begin_sector;
        devices.iter().for_each(|lower| lower.hold(OpSet::all()));
        let before: Vec<_> = (0..4).map(|index| bench.start_write(at + index * 8, 8)).collect();
        bench.world.advance(Nanos::from_secs(5));
        let io = Io::write_pattern(at + 40, 8, 99).with(BioFlags::ORDERED);
        bench.model.write(at + 40, &io.bytes);
        let barrier = bench.world.submit(1, bench.device, io);
        bench.world.advance(Nanos::from_secs(5));
        let after: Vec<_> = (0..4).map(|index| bench.start_write(at + 64 + index * 8, 8)).collect();
        bench.world.advance(Nanos::from_secs(5));
        assert_eq!(bench.world.pending(), 9, "everything is held");
        devices.iter().for_each(MemLower::flow);
        bench.world.settle();
        let event = |bench: &mut Bench<C>, ticket| {
            let done = bench.world.done(ticket).expect("everything comes back");
            assert!(done.status.is_ok());
            done.event
        };
        let barrier = event(&mut bench, barrier);
        for ticket in before {
            assert!(event(&mut bench, ticket) < barrier, "it was submitted before the barrier");
        }
        for ticket in after {
            assert!(event(&mut bench, ticket) > barrier, "it was submitted after the barrier");
        }
        assert_order_below(&devices, &C::place(40), &C::place(64));
        bench.check_everything();
        bench.world.assert_quiet();
    }
}

/// On the devices below: flush everywhere, the barrier's data, flush everywhere, then what follows.
fn assert_order_below(
    devices: &[MemLower],
    barrier: &(&'static str, Sector),
    next: &(&'static str, Sector),
) {
    let find = |place: &(&str, Sector)| {
        let device = devices.iter().find(|device| device.name() == place.0);
        let device = device.expect("a store is flushed");
        let hit = |seen: &&Seen| {
            seen.op == Op::Write && (seen.sector..seen.sector + seen.len_sectors).contains(&place.1)
        };
        device.log().iter().find(hit).expect("the write is below").clone()
    };
    let (barrier, next) = (find(barrier), find(next));
    for device in devices {
        let flushes = device
            .log()
            .into_iter()
            .filter(|seen| seen.op == Op::Flush || seen.flags.contains(BioFlags::PREFLUSH));
        let flushes: Vec<Seen> = flushes.collect();
        let name = device.name();
        assert!(
            flushes
                .iter()
                .any(|flush| flush.completed < barrier.event || flush.event == barrier.event),
            "{name} was not flushed before the barrier's data"
        );
        assert!(
            flushes
                .iter()
                .any(|flush| flush.event > barrier.completed && flush.completed < next.event),
            "{name} was not flushed between the barrier's data and what follows"
        );
    }
}

/// Every piece of a FUA write is a FUA write below.
pub fn fua_is_kept_on_the_way_down<C: Case>() {
    if C::KIND != Kind::Stores {
        return;
    }
    for mut bench in both::<C>() {
        let len = bench.model.len_sectors();
        for lane in 0..bench.world.lanes() {
            let io = Io::write_pattern(0, len, u64::from(lane) + 5).with(BioFlags::FUA);
            bench.model.write(0, &io.bytes);
            assert!(bench.world.io_on(lane, bench.device, io).status.is_ok());
        }
        let writes = bench.lowers().into_iter().flat_map(|lower| lower.log());
        for seen in writes.filter(|seen| seen.op == Op::Write) {
            assert!(seen.flags.contains(BioFlags::FUA), "FUA was lost: {seen:?}");
        }
        bench.check_everything();
        bench.world.assert_quiet();
    }
}
