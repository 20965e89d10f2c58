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
use udm_types::{BioFlags, Nanos, Op, OpSet, Status};

fn both<C: Case>() -> [Bench<C>; 2] {
    [Bench::alone(), Bench::between()]
}

fn flushed<C: Case>(bench: &Bench<C>) -> Vec<MemLower> {
    C::FLUSHED.iter().map(|name| bench.world.lower(name).clone()).collect()
}

/// A flush from any lane reaches every device of the case, and completes after all of them have.
pub fn a_flush_reaches_every_device_below<C: Case>() {
    for mut bench in both::<C>() {
        for lane in 0..bench.world.lanes() {
            let before: Vec<usize> = flushed(&bench).iter().map(MemLower::flushes).collect();
            let done = bench.world.io_on(lane, bench.device, Io::flush());
            assert_eq!(done.status, Status::Ok);
            for (lower, before) in flushed(&bench).iter().zip(before) {
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
    for mut bench in both::<C>() {
        for lower in flushed(&bench) {
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
        bench.lowers().iter().for_each(MemLower::clear_log);
        bench.lowers().iter().for_each(|lower| lower.hold(OpSet::FLUSH));
        let sector = bench.begin_sector;
        let io = Io::write_pattern(sector, 16, 77).with(BioFlags::PREFLUSH);
        bench.model.write(sector, &io.bytes);
        let ticket = bench.world.submit(1, bench.device, io);
        bench.world.advance(Nanos::from_secs(5));
        for lower in bench.lowers() {
            let early = lower
                .log()
                .into_iter()
                .find(|seen| seen.op == Op::Write && !seen.flags.contains(BioFlags::PREFLUSH));
            assert_eq!(early, None, "data before its flush on {}", lower.name());
        }
        bench.lowers().iter().for_each(MemLower::flow);
        bench.world.settle();
        let done = bench.world.done(ticket).expect("the write comes back");
        assert!(done.status.is_ok());
        for lower in flushed(&bench) {
            assert!(lower.flushes() > 0, "the pre-flush must reach {}", lower.name());
        }
        bench.check_everything();
        bench.world.assert_quiet();
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
