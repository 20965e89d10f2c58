//! Request-based devices: merging, sorting, what a failed request does to its bios, flushes.

use crate::rig::{status, submit_all, world, world_of, writes};
use udm_core::lifecycle::RequestGauges;
use udm_testkit::{Io, IoTicket, TestWorld, pattern};
use udm_types::{
    BioFlags, DeviceFeatures, DeviceId, Nanos, Op, OpSet, QueueLimits, Sector, Status,
};

fn device(world: &mut TestWorld) -> DeviceId {
    world.create("r", "0 4096 rprobe d0 0")
}

fn say(world: &mut TestWorld, dm: DeviceId, word: &str) {
    world.message(dm, 0, &[word]).unwrap();
}

fn write(sector: Sector) -> Io {
    Io::write_pattern(sector, 8, 1)
}

/// First sector and length of what a device got of an operation, in order.
fn seen(world: &TestWorld, op: Op) -> Vec<(Sector, Sector)> {
    let log = world.lower("d0").log();
    log.iter().filter(|seen| seen.op == op).map(|seen| (seen.sector, seen.len_sectors)).collect()
}

fn statuses(world: &mut TestWorld, tickets: Vec<IoTicket>) -> Vec<Status> {
    tickets.into_iter().map(|ticket| status(world, ticket)).collect()
}

fn counters(world: &mut TestWorld, dm: DeviceId) -> RequestGauges {
    world.gauges(dm).requests
}

#[test]
fn neighbours_that_come_in_one_turn_become_one_request() {
    let mut world = world();
    let dm = device(&mut world);
    let tickets = submit_all(&mut world, dm, [0, 8, 16, 24].map(write));
    assert_eq!(statuses(&mut world, tickets), [Status::Ok; 4]);
    assert_eq!(seen(&world, Op::Write), [(0, 32)]);
    assert!(world.lower("d0").bytes(0, 32) == pattern(0, 32, 1));
    let wanted = RequestGauges { bios: 4, requests: 1, back_merges: 3, ..RequestGauges::default() };
    assert_eq!(counters(&mut world, dm), wanted);
    assert_eq!(world.gauges(dm).ios[Op::Write.index()], 1, "requests are counted, as iostat does");
    world.assert_quiet();
}

#[test]
fn neighbours_that_come_backwards_are_merged_at_the_front() {
    let mut world = world();
    let dm = device(&mut world);
    submit_all(&mut world, dm, [24, 16, 8, 32].map(write));
    assert_eq!(seen(&world, Op::Write), [(8, 32)]);
    assert!(world.lower("d0").bytes(8, 32) == pattern(8, 32, 1));
    let counters = counters(&mut world, dm);
    assert_eq!((counters.front_merges, counters.back_merges), (2, 1));
}

#[test]
fn every_read_of_a_request_gets_its_own_part() {
    let mut world = world();
    let dm = device(&mut world);
    world.lower("d0").set_bytes(0, &pattern(0, 64, 7));
    let tickets =
        submit_all(&mut world, dm, [(40, 8), (0, 24), (24, 16)].map(|(s, l)| Io::read(s, l)));
    assert_eq!(seen(&world, Op::Read), [(0, 48)]);
    for (ticket, (sector, len)) in tickets.into_iter().zip([(40, 8), (0, 24), (24, 16)]) {
        assert!(world.done(ticket).unwrap().bytes == pattern(sector, len, 7));
    }
    world.assert_quiet();
}

#[test]
fn requests_go_out_sorted_and_only_like_is_joined_to_like() {
    let mut world = world();
    let dm = device(&mut world);
    let fua = |sector| write(sector).with(BioFlags::FUA);
    let ios =
        [write(400), Io::discard(8, 8), Io::read(16, 8), fua(24), write(0), write(200), fua(32)];
    submit_all(&mut world, dm, ios);
    assert_eq!(seen(&world, Op::Write), [(0, 8), (200, 8), (400, 8), (24, 16)]);
    assert_eq!((seen(&world, Op::Read), seen(&world, Op::Discard)), (vec![(16, 8)], vec![(8, 8)]));
    submit_all(&mut world, dm, [Io::discard(0, 8), Io::discard(8, 8)]);
    assert_eq!(seen(&world, Op::Discard).len(), 3, "discards stay as they are");
    world.assert_quiet();
}

#[test]
fn two_writes_of_one_sector_keep_their_order() {
    let mut world = world();
    let dm = device(&mut world);
    submit_all(&mut world, dm, [1, 2, 3].map(|generation| Io::write_pattern(8, 8, generation)));
    assert_eq!(seen(&world, Op::Write), [(8, 8); 3]);
    assert!(world.lower("d0").bytes(8, 8) == pattern(8, 8, 3));
}

#[test]
fn requests_stay_within_the_length_and_segments_a_device_takes() {
    let mut world = world();
    let limits = QueueLimits { max_sectors: 24, ..QueueLimits::default() };
    world.add_lower_with("small", 512, limits);
    let dm = world.create("s", "0 512 rprobe small 0");
    submit_all(&mut world, dm, (0..8).map(|index| write(index * 8)));
    let lens: Vec<_> = world.lower("small").log().iter().map(|seen| seen.len_sectors).collect();
    assert_eq!(lens, [24, 24, 16]);
    world.lower("small").clear_log();
    assert!(world.io(dm, Io::write_pattern(100, 60, 4)).status.is_ok());
    let lens: Vec<_> = world.lower("small").log().iter().map(|seen| seen.len_sectors).collect();
    assert_eq!(lens, [24, 24, 12], "a long bio is cut first");
    assert!(world.lower("small").bytes(100, 60) == pattern(100, 60, 4));
    // A bio of the test kit has two segments, a request has at most 256.
    let dm = device(&mut world);
    submit_all(&mut world, dm, (0..200).map(|sector| Io::write_pattern(sector, 1, 1)));
    assert_eq!(seen(&world, Op::Write), [(0, 128), (128, 72)]);
    world.assert_quiet();
}

#[test]
fn more_requests_than_a_turn_takes_go_out_in_several() {
    let mut world = world();
    let dm = device(&mut world);
    let tickets = submit_all(&mut world, dm, (0..2000).map(|index| Io::read(index * 2, 1)));
    assert!(statuses(&mut world, tickets).iter().all(|status| status.is_ok()));
    assert_eq!(seen(&world, Op::Read).len(), 2000);
    world.assert_quiet();
}

#[test]
fn an_error_of_a_part_fails_only_the_bio_it_is_in() {
    let mut world = world();
    let dm = device(&mut world);
    world.lower("d0").fail(10..11, OpSet::all(), Status::Medium);
    let tickets = submit_all(&mut world, dm, [0, 8, 16, 24].map(write));
    let (ok, bad) = (Status::Ok, Status::Medium);
    assert_eq!(statuses(&mut world, tickets), [ok, bad, ok, ok]);
    assert_eq!(seen(&world, Op::Write), [(0, 32), (0, 8), (8, 8), (16, 8), (24, 8)]);
    world.assert_quiet();
}

#[test]
fn an_error_of_the_whole_fails_all_its_bios_at_once() {
    let mut world = world();
    let dm = device(&mut world);
    world.lower("d0").fail(10..11, OpSet::all(), Status::Transport);
    let tickets = submit_all(&mut world, dm, [0, 8, 16].map(write));
    assert_eq!(statuses(&mut world, tickets), [Status::Transport; 3]);
    assert_eq!(seen(&world, Op::Write), [(0, 24)]);
    say(&mut world, dm, "kill");
    let tickets = submit_all(&mut world, dm, [0, 8].map(write));
    assert_eq!(statuses(&mut world, tickets), [Status::IoErr; 2]);
    assert_eq!(counters(&mut world, dm).requests, 2, "what the target refuses is not repeated");
    world.assert_quiet();
}

#[test]
fn a_request_is_tried_again_whole_and_none_of_its_bios_completes_before() {
    let mut world = world();
    let dm = device(&mut world);
    say(&mut world, dm, "pause");
    world.lower("d0").fail(0..64, OpSet::all(), Status::Transport);
    let tickets = submit_all(&mut world, dm, [0, 8, 16].map(write));
    world.advance(Nanos::from_millis(250));
    assert_eq!(seen(&world, Op::Write), [(0, 24); 3], "at 0, 100 and 200 ms");
    assert_eq!((world.pending(), world.census().waiting), (3, 1));
    assert_eq!(world.census().in_flight, 0, "what waits is not started");
    world.lower("d0").heal();
    world.advance(Nanos::from_millis(49));
    assert_eq!(world.pending(), 3);
    world.advance(Nanos::from_millis(1));
    assert_eq!(statuses(&mut world, tickets), [Status::Ok; 3]);
    assert_eq!(counters(&mut world, dm).requeues, 3);
    world.assert_quiet();
}

#[test]
fn a_requeue_is_tried_again_without_the_clock() {
    let mut world = world();
    let dm = device(&mut world);
    say(&mut world, dm, "retry");
    world.lower("d0").fail(0..64, OpSet::all(), Status::Transport);
    let tickets = submit_all(&mut world, dm, [0, 8].map(write));
    assert_eq!(statuses(&mut world, tickets), [Status::Transport; 2], "the second time it failed");
    assert_eq!(seen(&world, Op::Write), [(0, 16); 2]);
    assert_eq!((counters(&mut world, dm).requeues, world.now()), (1, Nanos::ZERO));
    world.assert_quiet();
}

#[test]
fn a_target_without_room_is_asked_again_soon_and_does_not_keep_the_lane_busy() {
    let mut world = world();
    let dm = device(&mut world);
    for (word, pause) in [("full", 3), ("lost", 100)] {
        say(&mut world, dm, word);
        let ticket = world.submit(0, dm, write(0));
        world.run();
        assert_eq!(
            world.next_deadline(),
            Some(world.now() + Nanos::from_millis(pause)),
            "one timer"
        );
        say(&mut world, dm, "good");
        world.advance(Nanos::from_millis(pause - 1));
        assert_eq!(world.pending(), 1);
        world.advance(Nanos::from_millis(1));
        assert_eq!(status(&mut world, ticket), Status::Ok);
    }
    world.assert_quiet();
}

#[test]
fn many_delayed_requests_share_one_timer_and_go_out_in_order() {
    let mut world = world();
    let dm = device(&mut world);
    say(&mut world, dm, "lost");
    for sector in [300, 100, 200] {
        world.submit(0, dm, write(sector));
        world.advance(Nanos::from_millis(1));
    }
    say(&mut world, dm, "good");
    world.advance(Nanos::from_millis(96));
    assert!(writes(world.lower("d0")).is_empty());
    world.advance(Nanos::from_millis(1));
    assert_eq!(writes(world.lower("d0")), [300]);
    world.advance(Nanos::from_millis(2));
    assert_eq!(writes(world.lower("d0")), [300, 100, 200]);
    world.assert_quiet();
}

#[test]
fn a_flush_passes_the_target_once_and_comes_before_its_data() {
    let mut world = world();
    let dm = device(&mut world);
    assert!(world.io(dm, Io::flush()).status.is_ok());
    assert_eq!(world.lower("d0").flushes(), 1);
    world.lower("d0").clear_log();
    let both = BioFlags::PREFLUSH | BioFlags::FUA;
    assert!(world.io(dm, write(8).with(both)).status.is_ok());
    let log: Vec<_> = world.lower("d0").log().iter().map(|seen| (seen.op, seen.flags)).collect();
    assert_eq!(log, [(Op::Flush, BioFlags::empty()), (Op::Write, BioFlags::FUA)]);
    world.lower("d0").fail_flushes(Some(Status::Medium));
    assert_eq!(world.io(dm, write(8).with(both)).status, Status::Medium);
    assert_eq!(world.io(dm, Io::flush()).status, Status::Medium);
    world.assert_quiet();
}

#[test]
fn a_durable_write_is_followed_by_a_flush_where_the_device_cannot() {
    let mut world = world();
    let features = DeviceFeatures::WRITE_CACHE;
    let limits = QueueLimits { features, max_sectors: 16, ..QueueLimits::default() };
    world.add_lower_with("nofua", 512, limits);
    let dm = world.create("n", "0 512 rprobe nofua 0");
    let fua = |sector| Io::write_pattern(sector, 24, 1).with(BioFlags::FUA);
    assert!(world.io(dm, fua(8)).status.is_ok());
    let log = world.lower("nofua").log();
    let ops: Vec<_> = log.iter().map(|seen| (seen.op, seen.len_sectors)).collect();
    assert_eq!(ops, [(Op::Write, 16), (Op::Write, 8), (Op::Flush, 0)]);
    assert!(log.iter().all(|seen| seen.flags.is_empty()));
    world.lower("nofua").fail_flushes(Some(Status::Medium));
    assert_eq!(world.io(dm, fua(8)).status, Status::Medium);
    world.lower("nofua").heal();
    world.lower("nofua").fail(8..9, OpSet::all(), Status::NoSpace);
    world.lower("nofua").clear_log();
    assert_eq!(world.io(dm, fua(8)).status, Status::NoSpace);
    assert_eq!(world.lower("nofua").flushes(), 0, "what failed needs no flush");
    world.assert_quiet();
}

#[test]
fn a_dropped_request_brings_all_its_bios_home() {
    let mut world = world();
    let dm = device(&mut world);
    say(&mut world, dm, "drop");
    let tickets = submit_all(&mut world, dm, [0, 8].map(write));
    assert_eq!(statuses(&mut world, tickets), [Status::IoErr; 2]);
    assert_eq!(world.census().bios_lost, 3, "the request, and each bio when it went alone");
    assert_eq!((world.census().in_flight, world.census().requests), (0, 0));
}

#[test]
fn a_bio_based_device_may_sit_on_a_request_based_one_and_its_io_is_merged_there() {
    let mut world = world();
    device(&mut world);
    let top = world.create("top", "0 100 plain dm:r 0\n100 156 plain dm:r 104");
    let other = world.create("other", "0 64 plain dm:r 400");
    let mut ios: Vec<_> = [0, 8, 16].map(write).into();
    ios.push(Io::write_pattern(92, 16, 1));
    let tickets: Vec<_> = ios.into_iter().map(|io| world.submit(0, top, io)).collect();
    world.submit(0, other, write(0));
    world.run();
    assert_eq!(statuses(&mut world, tickets), [Status::Ok; 4]);
    assert_eq!(seen(&world, Op::Write), [(0, 24), (92, 8), (104, 8), (400, 8)]);
    world.assert_quiet();
}

#[test]
fn io_of_different_devices_above_is_not_joined() {
    let mut world = world();
    device(&mut world);
    let one = world.create("one", "0 64 plain dm:r 0");
    let two = world.create("two", "0 64 plain dm:r 8");
    world.submit(0, one, write(0));
    world.submit(0, two, write(0));
    world.run();
    assert_eq!(seen(&world, Op::Write), [(0, 8), (8, 8)]);
    world.assert_quiet();
}

#[test]
fn a_request_based_device_on_another_merges_what_the_first_has_merged() {
    let mut world = world();
    device(&mut world);
    let top = world.create("top", "0 512 rprobe dm:r 0");
    let tickets = submit_all(&mut world, top, [8, 0, 16].map(write));
    assert_eq!(statuses(&mut world, tickets), [Status::Ok; 3]);
    assert_eq!(seen(&world, Op::Write), [(0, 24)]);
    world.lower("d0").fail(9..10, OpSet::all(), Status::Medium);
    let tickets = submit_all(&mut world, top, [0, 8, 16].map(write));
    assert_eq!(statuses(&mut world, tickets), [Status::Ok, Status::Medium, Status::Ok]);
    world.assert_quiet();
}

#[test]
fn every_lane_has_a_queue_of_its_own() {
    let mut world = world_of(3);
    let dm = device(&mut world);
    for lane in 0..3 {
        world.submit(lane, dm, write(Sector::from(lane) * 8));
    }
    world.run();
    assert_eq!(seen(&world, Op::Write).len(), 3);
    assert_eq!(counters(&mut world, dm).requests, 3, "counters are summed");
    world.assert_quiet();
}

#[test]
fn a_stream_on_a_deep_queue_grows_while_others_are_under_way() {
    let mut world = world();
    let dm = device(&mut world);
    world.lower("d0").hold(OpSet::all());
    for index in 0..16 {
        world.submit(0, dm, write(index * 8));
        world.run();
    }
    let wanted = [(0, 8), (8, 8), (16, 16), (32, 32), (64, 64)];
    assert_eq!(seen(&world, Op::Write), wanted, "each has half of what is outstanding");
    world.submit(0, dm, write(128));
    world.run();
    assert_eq!((seen(&world, Op::Write).len(), world.census().waiting), (5, 1));
    // What is no stream does not wait, and neither does what is alone.
    world.submit(0, dm, write(1000));
    world.run();
    assert_eq!(seen(&world, Op::Write).last(), Some(&(1000, 8)));
    world.lower("d0").flow();
    world.run();
    assert_eq!(seen(&world, Op::Write).last(), Some(&(128, 8)), "nothing is under way any more");
    assert_eq!((world.pending(), world.census().waiting), (0, 0));
    world.assert_quiet();
}

#[test]
fn a_stream_over_a_device_that_hangs_waits_a_millisecond() {
    let mut world = world();
    let dm = device(&mut world);
    world.lower("d0").hold(OpSet::all());
    for index in 0..3 {
        world.submit(0, dm, write(index * 8));
        world.run();
    }
    assert_eq!(seen(&world, Op::Write).len(), 2);
    world.advance(Nanos(999_999));
    assert_eq!(seen(&world, Op::Write).len(), 2);
    world.advance(Nanos(1));
    assert_eq!(seen(&world, Op::Write).len(), 3);
    world.lower("d0").flow();
    world.assert_quiet();
}

#[test]
fn a_request_that_waits_to_grow_does_not_keep_a_suspend_or_a_barrier() {
    let mut world = world();
    let dm = device(&mut world);
    world.lower("d0").hold(OpSet::all());
    for index in 0..3 {
        world.submit(0, dm, write(index * 8));
        world.run();
    }
    let ordered = world.submit(1, dm, write(100).with(BioFlags::ORDERED));
    world.lower("d0").flow();
    world.run();
    assert_eq!(status(&mut world, ordered), Status::Ok);
    assert_eq!(writes(world.lower("d0")), [0, 8, 16, 100]);
    world.lower("d0").hold(OpSet::WRITE);
    for index in 0..3 {
        world.submit(0, dm, write(index * 8));
        world.run();
    }
    let suspend = world.start_suspend(dm, udm_core::lifecycle::SuspendOptions::default());
    world.lower("d0").flow();
    world.run();
    assert!(world.answer(suspend).is_some_and(|answer| answer.is_ok()));
    assert_eq!((world.pending(), world.census().waiting), (1, 1));
    world.resume(dm);
    assert_eq!(world.pending(), 0);
    world.assert_quiet();
}
