//! `flakey` beyond the battery: its phases, what happens while down, and the bytes it changes.
//!
//! The test world's submitter checks on every write that its own data came back unchanged, so each
//! write here also proves that corruption happens on a copy.

use udm_core::lifecycle::SuspendOptions;
use udm_testkit::{Io, MemLower, Model, SECTOR_LEN, TestWorld, pattern};
use udm_types::{BioFlags, DeviceId, Nanos, OpSet, Status};

/// A device that is always down, with these features.
fn down(features: &str) -> (TestWorld, DeviceId, MemLower) {
    down_with_seed(features, 1)
}

fn down_with_seed(features: &str, seed: u64) -> (TestWorld, DeviceId, MemLower) {
    let mut world = TestWorld::new(udm_targets::registry(), 2);
    world.set_seed(seed);
    let disk = world.add_lower("d0", 4096);
    let count = features.split_whitespace().count();
    let device = world.create("t", &format!("0 2048 flakey d0 0 0 9 {count} {features}"));
    (world, device, disk)
}

/// Where two byte strings differ.
fn differences(a: &[u8], b: &[u8]) -> Vec<usize> {
    assert_eq!(a.len(), b.len());
    (0..a.len()).filter(|&at| a[at] != b[at]).collect()
}

#[test]
fn up_and_down_follow_the_clock_from_construction() {
    let mut world = TestWorld::new(udm_targets::registry(), 2);
    world.add_lower("d0", 64);
    world.advance(Nanos::from_millis(700));
    let device = world.create("t", "0 64 flakey d0 0 2 1");
    let born = world.now();
    for (millis, works) in
        [(0, true), (1_999, true), (2_000, false), (2_999, false), (3_000, true), (5_000, false)]
    {
        world.advance((born + Nanos::from_millis(millis)).since(world.now()));
        for lane in 0..2 {
            let wanted = if works { Status::Ok } else { Status::IoErr };
            assert_eq!(world.io_on(lane, device, Io::read(0, 8)).status, wanted, "{millis} ms");
            let write = Io::write_pattern(0, 8, 1);
            assert_eq!(world.io_on(lane, device, write).status, wanted, "{millis} ms");
        }
    }
    // A reload starts over: it is up again for two seconds.
    world.swap(device, "0 64 flakey d0 0 2 1", true);
    assert!(world.io(device, Io::read(0, 8)).status.is_ok());
}

#[test]
fn without_features_everything_fails_and_nothing_gets_below() {
    let (mut world, device, disk) = down("");
    for io in [Io::read(0, 8), Io::write_pattern(0, 8, 1), Io::discard(0, 8), Io::flush()] {
        assert_eq!(world.io(device, io.clone()).status, Status::IoErr, "{:?}", io.op);
    }
    assert!(disk.log().is_empty());
    world.assert_quiet();
}

#[test]
fn dropped_writes_complete_and_vanish() {
    let (mut world, device, disk) = down("drop_writes");
    for io in [Io::write_pattern(0, 8, 1), Io::discard(0, 8), Io::flush()] {
        assert!(world.io(device, io.clone()).status.is_ok(), "{:?}", io.op);
    }
    assert!(disk.log().is_empty());
    assert_eq!(world.io(device, Io::read(0, 8)).bytes, vec![0; 8 * SECTOR_LEN]);
    world.assert_quiet();
}

#[test]
fn failing_writes_leave_reads_alone_and_the_other_way_round() {
    let (mut world, device, _) = down("error_writes");
    assert_eq!(world.io(device, Io::write_pattern(0, 8, 1)).status, Status::IoErr);
    assert_eq!(world.io(device, Io::discard(0, 8)).status, Status::IoErr);
    assert_eq!(world.io(device, Io::flush()).status, Status::IoErr);
    assert!(world.io(device, Io::read(0, 8)).status.is_ok());
    let (mut world, device, disk) = down("error_reads");
    assert_eq!(world.io(device, Io::read(0, 8)).status, Status::IoErr);
    assert!(world.io(device, Io::write_pattern(0, 8, 1)).status.is_ok());
    assert!(world.io(device, Io::flush()).status.is_ok());
    assert_eq!(disk.bytes(0, 8), pattern(0, 8, 1));
    assert_eq!(disk.flushes(), 1);
}

#[test]
fn a_corrupted_read_changes_the_byte_counted_from_one() {
    let (mut world, device, disk) = down("corrupt_bio_byte 1000 r 7 0");
    disk.set_bytes(0, &pattern(0, 64, 3));
    for sector in [0, 16] {
        let read = world.io(device, Io::read(sector, 8)).bytes;
        assert_eq!(differences(&read, &pattern(sector, 8, 3)), [999]);
        assert_eq!(read[999], 7);
    }
    assert_eq!(disk.bytes(0, 64), pattern(0, 64, 3), "the device is untouched");
    let short = world.io(device, Io::read(0, 1)).bytes;
    assert_eq!(short, pattern(0, 1, 3), "byte 1000 is beyond this bio");
    assert!(world.io(device, Io::write_pattern(0, 8, 4)).status.is_ok());
    assert_eq!(disk.bytes(0, 8), pattern(0, 8, 4), "writes pass");
}

#[test]
fn a_read_that_fails_below_is_not_touched() {
    let (mut world, device, disk) = down("corrupt_bio_byte 1 r 7 0");
    disk.fail(0..8, OpSet::READ, Status::Medium);
    assert_eq!(world.io(device, Io::read(0, 8)).status, Status::Medium);
}

#[test]
fn a_corrupted_write_changes_the_copy_only() {
    let (mut world, device, disk) = down("corrupt_bio_byte 513 w 199 0");
    assert!(world.io(device, Io::write_pattern(8, 8, 5)).status.is_ok());
    let written = disk.bytes(8, 8);
    assert_eq!(differences(&written, &pattern(8, 8, 5)), [512]);
    assert_eq!(written[512], 199);
    assert_eq!(world.io(device, Io::read(8, 8)).bytes, written, "reads pass");
    assert!(world.io(device, Io::discard(8, 8)).status.is_ok());
    assert!(world.io(device, Io::flush()).status.is_ok());
    world.assert_quiet();
}

#[test]
fn the_byte_counts_from_each_piece_of_a_split_bio() {
    let mut world = TestWorld::new(udm_targets::registry(), 1);
    let disk = world.add_lower("d0", 64);
    let line = |begin: u64| format!("{begin} 16 flakey d0 {begin} 0 9 5 corrupt_bio_byte 1 w 0 0");
    let device = world.create("t", &format!("{}\n{}", line(0), line(16)));
    assert!(world.io(device, Io::write_pattern(8, 16, 0x0101_0101)).status.is_ok());
    // Sector numbers stand in the first byte of each sector, so byte 1 of both pieces differs.
    let found = differences(&disk.bytes(8, 16), &pattern(8, 16, 0x0101_0101));
    assert_eq!(found, [0, 8 * SECTOR_LEN]);
}

#[test]
fn the_flag_mask_picks_bios() {
    // 131072 is Linux's FUA bit.
    let (mut world, device, disk) = down("corrupt_bio_byte 513 w 199 131072");
    assert!(world.io(device, Io::write_pattern(8, 8, 5)).status.is_ok());
    assert_eq!(disk.bytes(8, 8), pattern(8, 8, 5), "no FUA, no damage");
    let io = Io::write_pattern(8, 8, 5).with(BioFlags::FUA);
    assert!(world.io(device, io).status.is_ok());
    assert_eq!(differences(&disk.bytes(8, 8), &pattern(8, 8, 5)), [512]);
}

/// The damage of 50 writes on each of two lanes.
fn random_damage(features: &str, seed: u64) -> Vec<(u64, usize, u8)> {
    let (mut world, device, disk) = down_with_seed(features, seed);
    let mut damage = Vec::new();
    for index in 0..100 {
        let sector = index * 8;
        let io = Io::write_pattern(sector, 8, 1);
        assert!(world.io_on((index % 2) as u16, device, io).status.is_ok());
        let written = disk.bytes(sector, 8);
        let found = differences(&written, &pattern(sector, 8, 1));
        assert!(found.len() <= 1, "one byte at the most");
        damage.extend(found.into_iter().map(|at| (index, at, written[at])));
    }
    world.assert_quiet();
    damage
}

#[test]
fn random_damage_repeats_with_the_seed_and_differs_without() {
    let always = "random_write_corrupt 1000000000";
    let first = random_damage(always, 7);
    assert!(first.len() > 90, "nearly every write: {}", first.len());
    assert_eq!(first, random_damage(always, 7));
    assert_ne!(first, random_damage(always, 8));
    let lanes = |lane: u64| first.iter().filter(move |hit| hit.0 % 2 == lane).map(|hit| hit.1);
    assert!(!lanes(0).eq(lanes(1)), "lanes draw their own numbers");
}

#[test]
fn random_damage_keeps_to_its_probability() {
    let half = random_damage("random_write_corrupt 500000000", 3).len();
    assert!((25..75).contains(&half), "{half} of 100");
    assert_eq!(random_damage("random_write_corrupt 1 error_reads", 3).len(), 0);
}

#[test]
fn random_reads_are_damaged_on_the_way_back() {
    let (mut world, device, disk) = down("random_read_corrupt 1000000000");
    disk.set_bytes(0, &pattern(0, 64, 3));
    let mut hits = 0;
    for _ in 0..50 {
        let read = world.io(device, Io::read(0, 64)).bytes;
        let found = differences(&read, &pattern(0, 64, 3));
        assert!(found.len() <= 1);
        hits += found.len();
    }
    assert!(hits > 40, "{hits} of 50");
    assert_eq!(disk.bytes(0, 64), pattern(0, 64, 3));
}

#[test]
fn whether_a_read_is_damaged_is_decided_when_it_arrives() {
    let mut world = TestWorld::new(udm_targets::registry(), 1);
    let disk = world.add_lower("d0", 64);
    let device = world.create("t", "0 64 flakey d0 0 1 1 5 corrupt_bio_byte 1 r 7 0");
    disk.hold(OpSet::READ);
    let early = world.submit(0, device, Io::read(0, 8));
    world.advance(Nanos::from_millis(1500));
    let late = world.submit(0, device, Io::read(0, 8));
    world.advance(Nanos::from_millis(1000));
    disk.flow();
    world.run();
    let first_byte = |world: &mut TestWorld, ticket| world.done(ticket).map(|done| done.bytes[0]);
    assert_eq!(first_byte(&mut world, early), Some(0), "arrived up, returned up again");
    assert_eq!(first_byte(&mut world, late), Some(7), "arrived down, returned up");
}

#[test]
fn more_corrupted_writes_than_copies_wait_and_all_arrive() {
    let (mut world, device, disk) = down("corrupt_bio_byte 513 w 199 0");
    disk.hold(OpSet::WRITE);
    let tickets: Vec<_> =
        (0..200).map(|index| world.submit(0, device, Io::write_pattern(index * 8, 8, 6))).collect();
    world.run();
    assert_eq!(disk.held().len(), 64, "as many as there are copies");
    disk.flow();
    world.run();
    let mut model = Model::new(1600);
    for (index, ticket) in tickets.into_iter().enumerate() {
        assert!(world.done(ticket).is_some_and(|done| done.status.is_ok()));
        let mut bytes = pattern(index as u64 * 8, 8, 6);
        bytes[512] = 199;
        model.write(index as u64 * 8, &bytes);
    }
    assert_eq!(model.check(0, &disk.bytes(0, 1600)), Ok(()));
    world.assert_quiet();
}

#[test]
fn writes_that_wait_for_a_copy_do_not_hold_up_a_noflush_suspend() {
    let (mut world, device, disk) = down("corrupt_bio_byte 513 w 199 0");
    disk.hold(OpSet::WRITE);
    let tickets: Vec<_> =
        (0..100).map(|index| world.submit(0, device, Io::write_pattern(index * 8, 8, 6))).collect();
    world.run();
    let options = SuspendOptions { noflush: true, ..SuspendOptions::default() };
    let suspend = world.start_suspend(device, options);
    for _ in 0..64 {
        disk.release(0);
    }
    world.run();
    assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
    assert_eq!(world.census().held, 36, "the others were pushed back");
    disk.flow();
    // They are mapped again by the new table, which changes nothing.
    world.load(device, "0 2048 linear d0 0");
    world.resume(device);
    world.settle();
    for ticket in tickets {
        assert!(world.done(ticket).is_some_and(|done| done.status.is_ok()));
    }
    assert_eq!(disk.bytes(99 * 8, 8), pattern(99 * 8, 8, 6));
    world.assert_quiet();
}
