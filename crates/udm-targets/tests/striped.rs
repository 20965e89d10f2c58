//! `striped` beyond the battery: recorded layouts of Linux, health letters, events, hints.
//!
//! The layouts are those of the kernel's own answers for the same table lines: what one large write
//! leaves on each leg.

use udm_core::lifecycle::StatusKind;
use udm_testkit::{Io, Stamp, TestWorld, probe_type, stamp};
use udm_types::{OpSet, Status};

fn world(lanes: u16) -> TestWorld {
    let known = udm_targets::registry();
    let types = known.types().iter().copied().chain([probe_type()]);
    let mut world = TestWorld::new(udm_core::Registry::new(types), lanes);
    for name in ["d0", "d1", "d2"] {
        world.add_lower(name, 4096);
    }
    world
}

/// Which sector of the mapped device stands at the start of each chunk of a leg.
fn chunks(world: &TestWorld, name: &str, first: u64, chunk: u64, count: u64) -> Vec<u64> {
    (0..count)
        .map(|index| match stamp(&world.lower(name).bytes(first + index * chunk, 1)) {
            Stamp::Written { sector, .. } => sector,
            other => panic!("{name} chunk {index}: {other:?}"),
        })
        .collect()
}

#[test]
fn two_stripes_of_eight_lie_as_linux_puts_them() {
    let mut world = world(1);
    let device = world.create("t", "0 4096 striped 2 8 d0 0 d1 64");
    assert!(world.io(device, Io::write_pattern(0, 64, 1)).status.is_ok());
    assert_eq!(chunks(&world, "d0", 0, 8, 4), [0, 16, 32, 48]);
    assert_eq!(chunks(&world, "d1", 64, 8, 4), [8, 24, 40, 56]);
}

#[test]
fn three_stripes_of_twenty_four_lie_as_linux_puts_them() {
    let mut world = world(1);
    let device = world.create("t", "0 2160 striped 3 24 d0 0 d1 0 d2 8");
    assert!(world.io(device, Io::write_pattern(0, 216, 1)).status.is_ok());
    assert_eq!(chunks(&world, "d0", 0, 24, 3), [0, 72, 144]);
    assert_eq!(chunks(&world, "d1", 0, 24, 3), [24, 96, 168]);
    assert_eq!(chunks(&world, "d2", 8, 24, 3), [48, 120, 192]);
}

#[test]
fn an_error_marks_every_leg_on_its_device_and_is_passed_on() {
    let mut world = world(2);
    let device = world.create("t", "0 96 striped 3 8 d0 0 d1 0 d0 512");
    world.lower("d0").fail(0..8, OpSet::WRITE, Status::Medium);
    // On lane 1: the letters are summed over the lanes.
    let done = world.io_on(1, device, Io::write_pattern(0, 8, 1));
    assert_eq!(done.status, Status::Medium);
    assert_eq!(world.line_args(device, StatusKind::Info), "3 d0 d1 d0 1 DAD");
    assert_eq!(world.status(device).event_nr, 1, "one error, one event");
    world.lower("d0").heal();
    assert!(world.io(device, Io::write_pattern(0, 8, 1)).status.is_ok());
    assert_eq!(world.line_args(device, StatusKind::Info), "3 d0 d1 d0 1 DAD", "it stays marked");
    world.swap(device, "0 96 striped 3 8 d0 0 d1 0 d0 512", true);
    assert_eq!(world.line_args(device, StatusKind::Info), "3 d0 d1 d0 1 AAA", "a reload forgets");
    world.assert_quiet();
}

#[test]
fn events_stop_before_the_fifteenth_error() {
    let mut world = world(1);
    let device = world.create("t", "0 64 striped 2 8 d0 0 d1 0");
    world.lower("d1").fail(0..u64::MAX, OpSet::READ, Status::IoErr);
    for _ in 0..20 {
        assert_eq!(world.io(device, Io::read(8, 8)).status, Status::IoErr);
    }
    assert_eq!(world.status(device).event_nr, 14);
    assert_eq!(world.line_args(device, StatusKind::Info), "2 d0 d1 1 AD");
}

#[test]
fn not_supported_is_no_damage() {
    let mut world = world(1);
    let device = world.create("t", "0 64 striped 2 8 d0 0 d1 0");
    world.lower("d0").fail(0..u64::MAX, OpSet::DISCARD, Status::NotSupported);
    assert_eq!(world.io(device, Io::discard(0, 64)).status, Status::NotSupported);
    assert_eq!(world.line_args(device, StatusKind::Info), "2 d0 d1 1 AA");
    assert_eq!(world.status(device).event_nr, 0);
}

#[test]
fn flushes_through_map_reach_each_leg_and_count_errors() {
    let mut world = world(1);
    // The probe beside it makes flushes go through map: one for each leg, though two share a
    // device.
    let device = world.create("t", "0 96 striped 3 8 d0 0 d1 0 d0 512\n96 8 probe d2 0");
    assert!(world.io(device, Io::flush()).status.is_ok());
    assert_eq!([world.lower("d0").flushes(), world.lower("d1").flushes()], [2, 1]);
    world.lower("d1").fail_flushes(Some(Status::IoErr));
    assert_eq!(world.io(device, Io::flush()).status, Status::IoErr);
    let lines = world.lines(device, StatusKind::Info);
    assert_eq!(lines[0].args, "3 d0 d1 d0 1 ADA");
}

#[test]
fn hints_tell_chunk_and_stripe() {
    let mut world = world(1);
    let table = world.build("0 4096 striped 2 8 d0 0 d1 64").expect("a good line");
    assert_eq!(table.limits.chunk_sectors, 8);
    assert_eq!((table.limits.io_min_bytes, table.limits.io_opt_bytes), (4096, 8192));
    assert_eq!(table.targets[0].traits.max_io_len_sectors, 8);
}

#[test]
fn discards_may_be_as_large_as_all_legs_together() {
    let mut world = world(1);
    let limits =
        udm_types::QueueLimits { max_discard_sectors: 100, ..udm_types::QueueLimits::default() };
    for name in ["e0", "e1", "e2"] {
        world.add_lower_with(name, 4096, limits.clone());
    }
    let table = world.build("0 2400 striped 3 8 e0 0 e1 0 e2 0").expect("a good line");
    assert_eq!(table.limits.max_discard_sectors, 288, "300, rounded down to whole stripes");
    let device = world.create("t", "0 2400 striped 3 8 e0 0 e1 0 e2 0");
    assert!(world.io(device, Io::discard(0, 2400)).status.is_ok());
    for name in ["e0", "e1", "e2"] {
        let log = world.lower(name).log();
        assert_eq!(log.iter().map(|seen| seen.len_sectors).sum::<u64>(), 800, "{name}");
        assert!(log.iter().all(|seen| seen.len_sectors <= 100), "{name}");
    }
}

#[test]
fn a_copy_for_the_second_leg_is_no_second_copy_one_layer_down() {
    let mut world = world(1);
    world.create("below0", "0 64 striped 1 8 d0 0");
    world.create("below1", "0 64 striped 1 8 d1 0");
    let device = world.create("t", "0 128 striped 2 8 dm:below0 0 dm:below1 0");
    assert!(world.io(device, Io::write_zeroes(0, 128)).status.is_ok());
    assert!(world.io(device, Io::discard(8, 8)).status.is_ok());
    let discarded = |name: &str| {
        let log = world.lower(name).log();
        log.iter().filter(|seen| seen.op == udm_types::Op::Discard).count()
    };
    assert_eq!([discarded("d0"), discarded("d1")], [0, 1]);
    world.assert_quiet();
}
