//! Checks of data and ranges: where bytes land, how bios are cut, what happens at the end.
//!
//! The oracle is the byte model of [`Bench`] together with [`Case::place`]: after any mix of writes
//! every sector must be on the device and at the sector the case says, and read back through the
//! target as it was written. Ranges of a discard are collected from what the devices below were
//! asked, sector by sector, and must be exactly the places of the range, each once.

use super::bench::{SIDE_SECTORS, world_with};
use super::{Bench, Case, Kind, Ranged};
use crate::io::Io;
use std::collections::BTreeMap;
use udm_types::{Op, OpSet, Sector, Status};

/// Random writes and reads from every lane, then everything is read back and looked for below.
pub fn data_lands_where_the_case_says<C: Case>() {
    let mut bench = Bench::<C>::alone();
    for round in 0..150 {
        let (sector, len_sectors) = bench.some_range(if round % 10 == 0 { u64::MAX } else { 24 });
        bench.write(sector, len_sectors);
        if round % 5 == 0 {
            let (sector, len_sectors) = bench.some_range(64);
            bench.check(sector, len_sectors);
        }
    }
    bench.check_everything();
    bench.world.assert_quiet();
}

/// A table of three lines: bios over every border, up to the whole device at once; no piece below
/// is longer than the target allows.
pub fn large_bios_are_split_at_every_border<C: Case>() {
    if C::SINGLETON {
        return;
    }
    let mut bench = Bench::<C>::between();
    let len = bench.model.len_sectors();
    bench.write(0, len);
    bench.check_everything();
    let end = SIDE_SECTORS + C::LEN_SECTORS;
    for border in [SIDE_SECTORS, end] {
        for (before, after) in [(1, 1), (8, 3), (SIDE_SECTORS, SIDE_SECTORS)] {
            bench.write(border - before, before + after);
            bench.check(border - before, before + after);
        }
    }
    for _ in 0..60 {
        let (sector, len_sectors) = bench.some_range(len);
        bench.write(sector, len_sectors);
    }
    bench.check_everything();
    let table = bench.world.build(&super::bench::line::<C>(0)).expect("the case's own line");
    let max = table.targets[0].traits.max_io_len_sectors;
    for seen in bench.lowers().iter().flat_map(|lower| lower.log()) {
        assert!(max == 0 || seen.len_sectors <= max, "a piece is longer than {max}: {seen:?}");
    }
    bench.world.assert_quiet();
}

/// The last sector works; one further fails, and so does a range whose end overflows.
pub fn bios_at_and_beyond_the_end<C: Case>() {
    let mut bench = Bench::<C>::alone();
    let len = C::LEN_SECTORS;
    bench.write(len - 1, 1);
    bench.check(len - 1, 1);
    for (sector, len_sectors) in [(len, 1), (len - 1, 2), (len + 100, 8), (u64::MAX - 3, 8)] {
        let write = Io::write_pattern(0, len_sectors, 1);
        for io in [
            Io { sector, ..Io::read(0, len_sectors) },
            Io { sector, ..write },
            Io { sector, ..Io::discard(0, len_sectors) },
        ] {
            let text = format!("{:?} {sector}+{len_sectors}", io.op);
            assert_eq!(bench.world.io(bench.device, io).status, Status::IoErr, "{text}");
        }
    }
    bench.check_everything();
    bench.world.assert_quiet();
}

/// What a device below answers reaches the submitter unchanged, and the next I/O is not affected.
pub fn an_error_below_keeps_its_status<C: Case>() {
    let mut bench = Bench::<C>::alone();
    if C::KIND != Kind::Stores {
        return;
    }
    bench.write(0, C::LEN_SECTORS);
    for &status in C::ERRORS_KEPT {
        for lower in bench.lowers() {
            lower.fail(0..u64::MAX, OpSet::READ | OpSet::WRITE, status);
        }
        let read = bench.world.io(bench.device, Io::read(3, 2));
        assert_eq!(read.status, status);
        let lane = bench.next_lane();
        let write = Io::write_pattern(0, C::LEN_SECTORS, 9);
        assert_eq!(bench.world.io_on(lane, bench.device, write).status, status);
        bench.lowers().iter().for_each(crate::MemLower::heal);
    }
    bench.check_everything();
    bench.world.assert_quiet();
}

/// Over devices that cannot discard or zero, nothing of the kind is passed down.
pub fn operations_the_devices_cannot_do_are_refused<C: Case>() {
    let mut world = world_with::<C>(|_, len_sectors, mut limits| {
        limits.forbid_discard();
        limits.max_write_zeroes_sectors = 0;
        (len_sectors, limits)
    });
    let device = world.create("t", &super::bench::line::<C>(0));
    if C::KIND == Kind::Transforms {
        // It does both by itself.
        assert_eq!(world.io(device, Io::discard(0, 8)).status, Status::Ok);
        assert_eq!(world.io(device, Io::write_zeroes(0, 8)).status, Status::Ok);
        let passed = |name| world.lower(name).log().iter().any(|seen| seen.op == Op::Discard);
        assert!(!C::DEVICES.iter().any(|(name, _)| passed(name)), "they cannot discard");
        return world.assert_quiet();
    }
    let wanted = |ranged| match ranged {
        Ranged::Passes | Ranged::Refuses => Status::NotSupported,
        Ranged::Drops => Status::Ok,
        Ranged::Fails(status) => status,
    };
    assert_eq!(world.io(device, Io::discard(0, 8)).status, wanted(C::DISCARD));
    // A target that zeroes by itself where its devices cannot is not known yet.
    assert_eq!(world.io(device, Io::write_zeroes(0, 8)).status, Status::NotSupported);
    for (name, _) in C::DEVICES {
        // A target may have read something of its own.
        let passed = world.lower(name).log().iter().any(|seen| seen.op != Op::Read);
        assert!(!passed, "nothing may reach {name}");
    }
    world.assert_quiet();
}

/// Each range of `op` reaches exactly the places it should.
fn ranged_op_reaches_its_places<C: Case>(op: Op, ranged: Ranged) {
    if C::KIND == Kind::Transforms {
        return;
    }
    let mut bench = Bench::<C>::alone();
    bench.write(0, C::LEN_SECTORS);
    for round in 0..80 {
        let (sector, len_sectors) = match round {
            0 => (0, C::LEN_SECTORS),
            1 => (C::LEN_SECTORS - 1, 1),
            _ => bench.some_range(C::LEN_SECTORS),
        };
        bench.lowers().iter().for_each(crate::MemLower::clear_log);
        let lane = bench.next_lane();
        let io = Io { op, ..Io::discard(sector, len_sectors) };
        let done = bench.world.io_on(lane, bench.device, io);
        let passes = match ranged {
            Ranged::Passes => true,
            Ranged::Drops => false,
            Ranged::Fails(status) => {
                assert_eq!(done.status, status);
                continue;
            }
            Ranged::Refuses => {
                assert_eq!(done.status, Status::NotSupported);
                continue;
            }
        };
        assert!(done.status.is_ok(), "{op:?} {sector}+{len_sectors}: {:?}", done.status);
        let mut places: BTreeMap<(String, Sector), usize> = BTreeMap::new();
        for lower in bench.lowers() {
            for seen in lower.log().into_iter().filter(|seen| seen.op == op) {
                for at in seen.sector..seen.sector + seen.len_sectors {
                    *places.entry((lower.name().to_owned(), at)).or_default() += 1;
                }
            }
        }
        let range = if passes { sector..sector + len_sectors } else { 0..0 };
        let wanted: BTreeMap<_, _> = range
            .map(|offset| C::place(offset))
            .map(|(name, at)| ((name.to_owned(), at), 1))
            .collect();
        assert_eq!(places, wanted, "{op:?} {sector}+{len_sectors}");
        match (op, passes) {
            (Op::WriteZeroes, true) => bench.model.zero(sector, len_sectors),
            (Op::Discard, true) => bench.model.discard(sector, len_sectors),
            _ => {}
        }
        if round % 8 == 0 {
            bench.check(0, C::LEN_SECTORS);
            bench.write(sector, len_sectors);
        }
    }
    bench.check_everything();
    bench.world.assert_quiet();
}

/// A discard reaches each place of its range once, is dropped, fails or is refused, as the case
/// says.
pub fn discards_do_what_the_case_says<C: Case>() {
    ranged_op_reaches_its_places::<C>(Op::Discard, C::DISCARD);
}

/// The same for write-zeroes; afterwards the range reads as zeroes.
pub fn write_zeroes_does_what_the_case_says<C: Case>() {
    ranged_op_reaches_its_places::<C>(Op::WriteZeroes, C::WRITE_ZEROES);
}
