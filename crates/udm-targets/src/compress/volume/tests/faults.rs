//! A disk that fails, lies, or does not answer; and stops.

use super::host::{BLOCK, World, data, formatted, noise, tiny_shape};
use crate::compress::volume::{Event, Options, State, Trouble};
use alloc::boxed::Box;
use udm_meta::DiskOpKind;
use udm_types::{BioFlags, Op, Status};

fn is_write(kind: DiskOpKind) -> bool {
    match kind {
        DiskOpKind::Write { .. } => true,
        DiskOpKind::Read | DiskOpKind::Flush | DiskOpKind::Discard => false,
    }
}

#[test]
fn a_record_that_cannot_be_written_ends_all_writing_and_is_still_read() {
    let mut world = World::small();
    world.write(0, &data(2, 1));
    world.script = Some(Box::new(|op| is_write(op.kind).then_some(Status::Medium)));
    let waiting = [world.submit_op(Op::Flush, 0, 0), world.submit_op(Op::Flush, 0, 0)];
    world.run();
    assert!(waiting.iter().all(|ticket| world.done.get(ticket) == Some(&Status::Medium)));
    assert!(matches!(world.volume.state(), State::ReadOnly(Trouble::Disk(_))));
    assert_eq!(world.read(0, 2 * BLOCK), Ok(data(2, 1)));
    assert_eq!(world.write(0, &data(1, 2)), Status::Medium);
    assert_eq!(world.flush(), Status::Medium, "it stays reported");
    world.script = None;
    let mut world = world.reopen();
    assert_eq!(world.read(0, BLOCK), Ok(alloc::vec![0; BLOCK as usize]));
    assert_eq!(world.write(0, &data(1, 2)), Status::Ok);
}

#[test]
fn a_failed_flush_is_reported_to_everybody_and_for_good() {
    let mut world = World::small();
    world.write(0, &data(2, 1));
    let fails = |op: &udm_meta::DiskOp| (op.kind == DiskOpKind::Flush).then_some(Status::Timeout);
    world.script = Some(Box::new(fails));
    let ticket = world.submit_write(BLOCK, &data(1, 3), BioFlags::FUA);
    assert_eq!(world.flush(), Status::Timeout);
    assert_eq!(world.done.remove(&ticket), Some(Status::Timeout));
    world.script = None;
    assert_eq!(world.flush(), Status::Timeout);
    assert_eq!(world.read(0, BLOCK).map(|bytes| bytes == data(2, 1)[..4096]), Ok(true));
}

#[test]
fn a_checkpoint_that_cannot_be_written_makes_the_volume_read_only() {
    let mut world = World::small();
    world.write(0, &data(2, 1));
    world.flush();
    world.script = Some(Box::new(|op| is_write(op.kind).then_some(Status::IoErr)));
    world.volume.checkpoint();
    world.run();
    assert!(matches!(world.volume.state(), State::ReadOnly(Trouble::Disk(_))));
    assert_eq!(world.write(0, &data(1, 1)), Status::ReadOnly);
    assert_eq!(world.flush(), Status::Ok, "all that was accepted is durable");
    assert_eq!(world.read(0, 2 * BLOCK), Ok(data(2, 1)));
}

#[test]
fn damage_to_an_extent_is_an_error_for_its_blocks_and_nothing_else() {
    let mut world = World::small();
    world.write(0, &noise(12, 1));
    world.flush();
    world.checkpoint();
    // The middle one of three extents of four raw blocks.
    let needle = &noise(12, 1)[5 * 4096..][..64];
    let at = world.media.bytes.windows(64).position(|bytes| bytes == needle).expect("raw");
    world.media.bytes[at] ^= 1;
    assert_eq!(world.read(0, 4 * BLOCK), Ok(noise(12, 1)[..4 * 4096].to_vec()));
    assert_eq!(world.read(0, 12 * BLOCK), Err(Status::IoErr));
    assert_eq!(world.read(8 * BLOCK, 4 * BLOCK), Ok(noise(12, 1)[8 * 4096..].to_vec()));
    assert!(world.events.contains(&Event::BlocksLost { first_block: 4, blocks: 4 }));
    assert_eq!(world.volume.state(), State::Serving);
    assert_eq!(world.write(4 * BLOCK, &data(4, 5)), Status::Ok);
    assert_eq!(world.read(4 * BLOCK, 4 * BLOCK), Ok(data(4, 5)));
}

#[test]
fn a_read_that_fails_once_is_tried_again() {
    let mut world = World::small();
    world.write(0, &noise(2, 1));
    world.flush();
    let mut failures = 1;
    world.script = Some(Box::new(move |op| {
        let fails = op.kind == DiskOpKind::Read && failures > 0;
        failures -= i32::from(fails);
        fails.then_some(Status::Transport)
    }));
    assert_eq!(world.read(0, 2 * BLOCK), Ok(noise(2, 1)));
    assert_eq!(world.volume.counters().counts.rereads, 1);
}

#[test]
fn flipped_bits_anywhere_never_give_wrong_data_and_never_panic() {
    let mut world = World::open(formatted(tiny_shape(), 20, 100), Options::default());
    world.run();
    for step in 0..30 {
        world.write(step * 3 * BLOCK, &data(3, step));
        if step % 7 == 0 {
            world.checkpoint();
        }
    }
    world.flush();
    let whole = world.media.bytes.clone();
    let mut rng = fastrand::Rng::with_seed(6);
    let used = whole.len() - whole.iter().rev().position(|byte| *byte != 0).unwrap_or(0);
    for _ in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(..used);
            bytes[at] ^= 1 << rng.u32(..8);
        }
        let mut world = World::open(super::host::Media::new(bytes), Options::default());
        world.run();
        if matches!(world.volume.state(), State::Failed(_)) {
            continue;
        }
        for step in 0..30 {
            if let Ok(found) = world.read(step * 3 * BLOCK, 3 * BLOCK) {
                let is_lost = found.iter().all(|byte| *byte == 0);
                assert!(is_lost || found == data(3, step), "step {step}");
            }
        }
        world.write(0, &data(3, 77));
        world.volume.checkpoint();
        world.run();
    }
}

#[test]
fn a_damaged_record_that_was_durable_is_no_end_of_the_log() {
    let mut world = World::small();
    for step in 0..4 {
        world.write(step * 4 * BLOCK, &noise(4, step));
        world.flush();
    }
    let needle = &noise(4, 1)[4096..][..64];
    let at = world.media.bytes.windows(64).position(|bytes| bytes == needle).expect("raw");
    world.media.bytes[at] ^= 1;
    let before = world.media.bytes.clone();
    let mut world = world.reopen();
    let state = world.volume.state();
    assert!(matches!(state, State::ReadOnly(Trouble::LogDamaged { .. })), "{state:?}");
    assert_eq!(world.read(0, 4 * BLOCK), Ok(noise(4, 0)));
    assert_eq!(world.write(0, &data(1, 1)), Status::ReadOnly);
    world.volume.checkpoint();
    world.run();
    assert!(world.media.bytes == before, "nothing is written to a damaged volume");
}

#[test]
fn a_stop_brings_everything_into_the_log_and_a_start_goes_on() {
    let mut world = World::small();
    world.write(0, &noise(40, 1));
    for flush in [false, true] {
        world.write(0, &data(1, u64::from(flush) + 2));
        world.volume.checkpoint();
        world.is_stalled = true;
        world.run();
        world.volume.request_stop(flush);
        world.run();
        assert!(!world.volume.is_stopped(), "the disk does not answer");
        world.is_stalled = false;
        world.run();
        assert!(world.volume.is_stopped());
        assert_eq!(world.disk.in_flight(), 0);
        let [appended, written, durable] = world.volume.counters().sequences;
        assert_eq!((appended, appended), (written, if flush { durable } else { written }));
        world.volume.start();
        world.run();
        assert!(!world.volume.is_stopped());
        assert!(!world.volume.counters().is_checkpointing, "the checkpoint was taken up again");
    }
    let mut world = world.reopen();
    assert_eq!(world.read(0, BLOCK), Ok(data(1, 3)));
    assert_eq!(world.read(BLOCK, BLOCK).map(|found| found == noise(40, 1)[4096..8192]), Ok(true));
}

#[test]
fn a_start_before_the_stop_is_through_gives_it_up() {
    let mut world = World::small();
    world.is_stalled = true;
    world.write(0, &data(4, 1));
    world.volume.checkpoint();
    world.run();
    world.volume.request_stop(true);
    world.run();
    world.volume.start();
    world.is_stalled = false;
    world.run();
    assert!(!world.volume.is_stopped());
    assert_eq!(world.write(BLOCK, &data(1, 4)), Status::Ok);
    assert_eq!(world.flush(), Status::Ok);
    world.checkpoint();
    world.assert_sound();
}

#[test]
fn a_checkpoint_waits_for_the_records_it_speaks_of() {
    let mut world = World::small();
    world.write(0, &data(2, 1));
    // The record is on its way and stays there; everything else is done.
    world.stall_writes_from = Some(world.data_offset());
    world.volume.checkpoint();
    world.run();
    assert_eq!(world.volume.counters().counts.checkpoints, 0);
    world.stall_writes_from = None;
    world.run();
    assert_eq!(world.volume.counters().counts.checkpoints, 1);
    assert_eq!(world.flush(), Status::Ok);
}

#[test]
fn damage_to_metadata_is_remembered_until_somebody_checks() {
    let mut world = World::small();
    world.write(0, &noise(4, 1));
    world.flush();
    // Pages cannot be written; the slots of checkpoints can.
    let pages = world.volume.superblock().expect("it serves").geometry.meta_offset_bytes();
    world.script = Some(Box::new(move |op| {
        (is_write(op.kind) && op.offset_bytes >= pages).then_some(Status::Medium)
    }));
    world.volume.checkpoint();
    world.run();
    assert!(matches!(world.volume.state(), State::ReadOnly(Trouble::Disk(_))));
    world.script = None;
    let mut world = world.reopen();
    assert_eq!(world.volume.state(), State::ReadOnly(Trouble::NeedsCheck));
    assert_eq!(world.read(0, 4 * BLOCK), Ok(noise(4, 1)));
    assert_eq!(world.write(0, &data(1, 1)), Status::ReadOnly);
}

#[test]
fn a_damaged_map_page_is_noticed_and_remembered() {
    let mut world = World::small();
    world.write(0, &noise(4, 1));
    world.checkpoint();
    let pages = world.volume.superblock().expect("it serves").geometry.meta_offset_bytes();
    let mut world = world.reopen();
    // Segment page and map page, both slots of each.
    world.media.bytes[pages as usize + 2 * 4096 + 100] ^= 1;
    world.media.bytes[pages as usize + 3 * 4096 + 100] ^= 1;
    assert_eq!(world.read(0, BLOCK), Err(Status::IoErr));
    assert!(matches!(world.volume.state(), State::ReadOnly(Trouble::Page(..))));
    world.run();
    let world = world.reopen();
    assert_eq!(world.volume.state(), State::ReadOnly(Trouble::NeedsCheck));
}

#[test]
fn a_scrub_finds_what_nobody_reads() {
    let mut world = World::small();
    world.write(100 * BLOCK, &noise(8, 1));
    world.checkpoint();
    world.volume.scrub();
    world.run();
    let counts = world.volume.counters().counts;
    assert_eq!((counts.scrubbed_blocks, counts.scrub_errors), (600, 0));
    let needle = &noise(8, 1)[5 * 4096..][..64];
    let at = world.media.bytes.windows(64).position(|bytes| bytes == needle).expect("raw");
    world.media.bytes[at] ^= 1;
    world.volume.scrub();
    world.run();
    assert_eq!(world.volume.counters().counts.scrub_errors, 1);
    assert!(world.events.contains(&Event::BlocksLost { first_block: 104, blocks: 4 }));
}

#[test]
fn what_was_not_accepted_can_be_taken_back() {
    let options = Options { buffer_bytes: 64 << 10, ..Options::default() };
    let mut world = World::open(formatted(tiny_shape(), 40, 600), options);
    let early = world.submit_write(0, &data(1, 1), BioFlags::empty());
    assert!(world.volume.take_back(early).is_some(), "the volume does not serve yet");
    world.run();
    world.is_stalled = true;
    let tickets: alloc::vec::Vec<u64> = (0..8)
        .map(|n| world.submit_write(n * 8 * BLOCK, &noise(8, n), BioFlags::empty()))
        .collect();
    world.run();
    let waiting: alloc::vec::Vec<u64> =
        tickets.iter().copied().filter(|ticket| !world.done.contains_key(ticket)).collect();
    assert!(!waiting.is_empty() && waiting.len() < 8, "{waiting:?}");
    assert!(world.volume.take_back(tickets[0]).is_none(), "it has ended");
    assert!(waiting.iter().all(|ticket| world.volume.take_back(*ticket).is_some()));
    world.is_stalled = false;
    world.run();
    assert!(waiting.iter().all(|ticket| !world.done.contains_key(ticket)));
    assert_eq!(world.read(7 * 8 * BLOCK, BLOCK), Ok(alloc::vec![0; BLOCK as usize]));
    assert_eq!(world.read(0, 8 * BLOCK), Ok(noise(8, 0)));
    // Accepted, not written: it has its place.
    world.is_stalled = true;
    let flagged = world.submit_write(0, &data(1, 5), BioFlags::FUA);
    world.run();
    assert!(world.volume.take_back(flagged).is_none());
}

#[test]
fn after_a_failed_record_no_checkpoint_is_made() {
    let mut world = World::small();
    world.write(0, &data(2, 1));
    let from = world.data_offset();
    world.script = Some(Box::new(move |op| {
        (is_write(op.kind) && op.offset_bytes >= from).then_some(Status::Medium)
    }));
    world.volume.checkpoint();
    world.run();
    assert!(matches!(world.volume.state(), State::ReadOnly(Trouble::Disk(_))));
    world.script = None;
    world.volume.checkpoint();
    world.run();
    assert_eq!(world.volume.counters().counts.checkpoints, 0);
    let mut world = world.reopen();
    assert_eq!(world.read(0, BLOCK), Ok(alloc::vec![0; BLOCK as usize]));
    world.assert_sound();
}

/// Found by the crash enumerator: a commit may end inside a group, and a power cut lose its end.
#[test]
fn a_group_that_was_cut_at_a_commit_is_dropped_and_no_damage() {
    let mut world = World::small();
    world.write(0, &data(1, 1));
    world.is_stalled = true;
    world.submit_op(Op::Flush, 0, 0);
    world.run();
    // While one commit is under way: the reason for the next one, then a group, its end still open.
    world.submit_write(0, &data(1, 2), BioFlags::empty());
    world.submit_op(Op::Flush, 0, 0);
    world.run();
    world.submit_write(BLOCK, &[noise(7, 2), data(3, 3)].concat(), BioFlags::empty());
    world.run();
    world.is_stalled = false;
    world.run();
    let [appended, written, durable] = world.volume.counters().sequences;
    assert!(durable == written && written + 1 == appended, "the end of the group is open");
    // The record with the end is lost, the next one, which knows of the others, is not.
    let mut records = 0;
    world.script = Some(Box::new(move |op| {
        records += u32::from(is_write(op.kind));
        (is_write(op.kind) && records == 1).then_some(Status::Ok)
    }));
    world.write(30 * BLOCK, &noise(4, 4));
    world.write(40 * BLOCK, &noise(4, 5));
    world.write(50 * BLOCK, &noise(4, 6));
    world.run();
    assert!(world.volume.counters().sequences[1] > appended);
    let mut world = world.reopen();
    assert_eq!(world.volume.state(), State::Serving);
    assert_eq!(world.read(0, BLOCK), Ok(data(1, 2)));
    assert_eq!(world.read(BLOCK, BLOCK), Ok(alloc::vec![0; BLOCK as usize]));
}

#[test]
fn a_stop_waits_for_the_flush_of_somebody_who_was_taken_back() {
    let mut world = World::small();
    world.stalls_flushes = true;
    let mut flushes = alloc::vec::Vec::new();
    for tag in 1..3 {
        assert_eq!(world.write(0, &data(1, tag)), Status::Ok);
        flushes.push(world.submit_op(Op::Flush, 0, 0));
        world.run();
    }
    assert!(flushes.iter().all(|ticket| world.volume.take_back(*ticket).is_some()));
    world.volume.request_stop(false);
    world.run();
    assert!(!world.volume.is_stopped(), "a flush is on its way below");
    world.stalls_flushes = false;
    world.run();
    assert!(world.volume.is_stopped());
    world.volume.start();
    assert_eq!(world.flush(), Status::Ok);
}
