//! A disk that becomes smaller, online.

use super::host::{BLOCK, Media, World, data, formatted, noise, tiny_shape};
use crate::compress::volume::{Event, NoSpace, Options, ResizeFault, Sizes, State};
use udm_types::{BioFlags, Op, Status};

/// Bytes of a segment.
const SEGMENT: u64 = 1 << 16;

/// A volume of 40 segments whose data lies all over the disk: written, and most of it discarded.
fn scattered() -> World {
    let mut world = World::small();
    for block in 0..480 {
        assert_eq!(world.write(block * BLOCK, &noise(1, block)), Status::Ok);
    }
    for block in (0..480).filter(|block| block % 4 != 0) {
        assert_eq!(world.op(Op::Discard, block * BLOCK, BLOCK), Status::Ok);
    }
    world.flush();
    world
}

#[track_caller]
fn assert_scattered(world: &mut World) {
    for block in 0..480 {
        let want = if block % 4 == 0 { noise(1, block) } else { alloc::vec![0; BLOCK as usize] };
        assert!(world.read(block * BLOCK, BLOCK).expect("read") == want, "block {block}");
    }
}

fn disk_of(world: &World, segments: u64) -> u64 {
    world.data_offset() + segments * SEGMENT + BLOCK
}

fn segments(world: &World) -> u64 {
    world.volume.counters().segments
}

/// The same volume on a disk that was cut.
fn cut_disk(world: World, bytes: u64) -> World {
    let mut media = world.media.bytes;
    media.truncate(bytes as usize);
    let mut world = World::open(Media::new(media), world.options);
    world.run();
    world
}

#[test]
fn a_volume_leaves_the_end_of_its_disk_and_lives_on_what_is_left() {
    let mut world = scattered();
    let small = disk_of(&world, 20) + 512;
    assert_eq!(world.volume.shrink_disk(small), Ok(()));
    assert_eq!(world.volume.shrink_disk(small), Err(ResizeFault::Busy));
    assert_eq!(world.volume.counters().shrinking_to_bytes, small - 512);
    world.run();
    assert_eq!(world.volume.next_resized(), Some(Ok(())));
    assert_eq!((segments(&world), world.volume.counters().disk_bytes), (20, small - 512));
    assert_scattered(&mut world);
    world.assert_sound();
    let mut world = cut_disk(world, small);
    assert_eq!((world.volume.state(), segments(&world)), (State::Serving, 20));
    world.assert_sound();
    assert_scattered(&mut world);
    for step in 0..400 {
        assert_eq!(world.write((480 + step % 100) * BLOCK, &noise(1, step)), Status::Ok);
    }
    world.checkpoint();
    world.assert_sound();
    assert_scattered(&mut world);
}

#[test]
fn a_disk_that_was_not_cut_is_used_again_when_asked_for() {
    let mut world = scattered();
    world.volume.shrink_disk(disk_of(&world, 20)).expect("begins");
    world.run();
    let mut world = world.reopen();
    assert_eq!(segments(&world), 20);
    assert!(world.volume.superblock().expect("it serves").is_sized);
    world.volume.resize(Sizes { logical_bytes: None, grows_to_disk: true });
    world.run();
    assert_eq!(world.volume.next_resized(), Some(Ok(())));
    assert!(segments(&world) >= 40 && !world.volume.superblock().expect("it serves").is_sized);
    for block in 480..600 {
        assert_eq!(world.write(block * BLOCK, &noise(1, block)), Status::Ok);
    }
    world.checkpoint();
    world.assert_sound();
    assert_scattered(&mut world);
}

#[test]
fn an_empty_volume_whose_log_is_at_the_end_leaves_it_too() {
    let mut world = World::small();
    // The log is in the middle of the disk, and nothing is alive.
    for round in 0..5 {
        world.write(0, &noise(60, round));
    }
    world.op(Op::Discard, 0, 60 * BLOCK);
    world.checkpoint();
    world.volume.shrink_disk(disk_of(&world, 8)).expect("begins");
    world.run();
    assert_eq!(world.volume.next_resized(), Some(Ok(())));
    assert_eq!(segments(&world), 8);
    world.assert_sound();
    let bytes = world.volume.counters().disk_bytes;
    let mut world = cut_disk(world, bytes);
    assert_eq!(world.write(0, &data(10, 1)), Status::Ok);
    world.checkpoint();
    world.assert_sound();
}

#[test]
fn a_size_that_cannot_be_is_refused_with_those_that_can() {
    let mut world = scattered();
    world.checkpoint();
    let most = world.volume.counters().disk_bytes;
    let Err(ResizeFault::Disk { least_bytes, most_bytes }) = world.volume.shrink_disk(1 << 20)
    else {
        panic!("it is too small")
    };
    assert_eq!(most_bytes, most);
    assert!((disk_of(&world, 10)..disk_of(&world, 25)).contains(&least_bytes), "{least_bytes}");
    let over = world.volume.shrink_disk(most + BLOCK);
    assert_eq!(over, Err(ResizeFault::Disk { least_bytes, most_bytes }));
    assert!(world.volume.shrink_disk(least_bytes - BLOCK).is_err());
    // What is named as the least is possible.
    assert_eq!(world.volume.shrink_disk(least_bytes), Ok(()));
    world.run();
    assert_eq!(world.volume.next_resized(), Some(Ok(())));
    assert_scattered(&mut world);
    let mut world = cut_disk(world, least_bytes);
    assert_scattered(&mut world);
    world.assert_sound();
}

#[test]
fn map_pages_at_the_end_of_the_disk_keep_it() {
    let mut world = World::open(formatted(tiny_shape(), 40, 600), Options::default());
    world.run();
    world.write(0, &noise(30, 1));
    world.volume.resize(Sizes { logical_bytes: Some(8000 * BLOCK), grows_to_disk: false });
    world.run();
    assert_eq!(world.volume.next_resized(), Some(Ok(())));
    assert_eq!(world.write(7990 * BLOCK, &noise(4, 2)), Status::Ok);
    world.checkpoint();
    let Err(ResizeFault::Disk { least_bytes, .. }) = world.volume.shrink_disk(1 << 18) else {
        panic!("it is too small")
    };
    // The first free segments were taken for them, so they are not in the way.
    assert!(least_bytes < disk_of(&world, 14), "{least_bytes}");
    assert_eq!(world.volume.shrink_disk(least_bytes), Ok(()));
    world.run();
    assert_eq!(world.volume.next_resized(), Some(Ok(())));
    let mut world = cut_disk(world, least_bytes);
    assert_eq!(world.read(7990 * BLOCK, 4 * BLOCK), Ok(noise(4, 2)));
    assert_eq!(world.read(0, 30 * BLOCK), Ok(noise(30, 1)));
    world.assert_sound();
}

/// Users come first: the shrink is given up before a write is refused, and leaves nothing behind.
#[test]
fn a_shrink_is_given_up_when_users_need_the_space() {
    let options = Options { no_space: NoSpace::Error, ..Options::default() };
    let mut world = World::open(formatted(tiny_shape(), 40, 600), options);
    world.run();
    world.write(0, &noise(100, 1));
    world.checkpoint();
    for first in (100..400).step_by(50) {
        world.write(first * BLOCK, &noise(50, first));
    }
    world.op(Op::Discard, 100 * BLOCK, 250 * BLOCK);
    world.checkpoint();
    let used = world.volume.counters().segments_used;
    world.is_stalled = true;
    world.volume.shrink_disk(disk_of(&world, 18)).expect("begins");
    world.run();
    world.is_stalled = false;
    let tickets: alloc::vec::Vec<u64> = (400..550)
        .map(|block| world.submit_write(block * BLOCK, &noise(1, block), BioFlags::empty()))
        .collect();
    world.run();
    for ticket in tickets {
        assert_eq!(world.done.remove(&ticket), Some(Status::Ok));
    }
    assert_eq!(world.volume.next_resized(), Some(Err(ResizeFault::NoRoom)));
    assert!(!world.events.contains(&Event::OutOfSpace), "{:?}", world.events);
    assert!(world.volume.counters().segments_used > used && segments(&world) >= 40);
    assert_eq!(world.read(0, 100 * BLOCK), Ok(noise(100, 1)));
    for block in 400..550 {
        assert!(world.read(block * BLOCK, BLOCK).expect("read") == noise(1, block));
    }
    world.checkpoint();
    world.assert_sound();
}

#[test]
fn damage_at_the_end_of_the_disk_ends_a_shrink_and_nothing_else() {
    let mut world = scattered();
    world.checkpoint();
    let victim = disk_of(&world, 30) as usize;
    world.media.bytes[victim..victim + 6 * SEGMENT as usize].fill(0x55);
    world.volume.shrink_disk(disk_of(&world, 20)).expect("begins");
    world.run();
    assert_eq!(world.volume.next_resized(), Some(Err(ResizeFault::Stuck)));
    assert_eq!(world.volume.state(), State::Serving);
    assert!(segments(&world) >= 40);
    assert_eq!(world.write(0, &data(4, 1)), Status::Ok);
    assert_eq!(world.read(0, 4 * BLOCK), Ok(data(4, 1)));
}

#[test]
fn a_stop_ends_the_work_and_a_start_goes_on_with_it() {
    let mut done = 0;
    for step in 0..60 {
        let mut world = scattered();
        world.volume.shrink_disk(disk_of(&world, 20)).expect("begins");
        world.budget = step * 3;
        world.run();
        world.budget = u64::MAX;
        world.volume.request_stop(step % 2 == 0);
        world.run();
        assert!(world.volume.is_stopped());
        let ops = world.ops;
        world.run();
        assert_eq!(ops, world.ops, "a stop is a stop");
        done += u64::from(world.volume.next_resized().is_some());
        world.assert_sound();
        world.volume.start();
        world.run();
        if segments(&world) != 20 || world.volume.counters().shrinking_to_bytes > 0 {
            panic!("step {step}: {:?}", world.volume.counters());
        }
        assert_scattered(&mut world);
        world.assert_sound();
    }
    assert!((1..59).contains(&done), "{done}");
}

#[test]
fn it_can_be_given_up_until_its_checkpoint() {
    let mut world = scattered();
    world.volume.shrink_disk(disk_of(&world, 20)).expect("begins");
    world.is_stalled = true;
    world.run();
    world.volume.stop_shrinking();
    world.is_stalled = false;
    world.run();
    assert_eq!(world.volume.next_resized(), Some(Err(ResizeFault::GivenUp)));
    assert!(segments(&world) >= 40);
    assert_eq!(world.volume.shrink_disk(disk_of(&world, 20)), Ok(()));
    world.run();
    world.volume.stop_shrinking();
    assert_eq!(world.volume.next_resized(), Some(Ok(())));
    assert_scattered(&mut world);
}

#[test]
fn a_crash_anywhere_leaves_the_old_size_or_the_new_one() {
    let mut seen = [0; 3];
    let mut total: u64 = 0;
    for step in 0.. {
        let mut rng = fastrand::Rng::with_seed(step);
        let mut world = scattered();
        let (old, small) = (segments(&world), disk_of(&world, 20));
        let before = world.ops;
        world.volume.shrink_disk(small).expect("begins");
        // The last steps, one by one: checkpoint and superblock are there.
        world.budget = if total == 0 { u64::MAX } else { (total + 2).saturating_sub(step) };
        world.run();
        let is_told = world.volume.next_resized().is_some();
        if total == 0 {
            let ops = world.ops;
            total = ops.reads + ops.writes + ops.flushes + ops.discards;
            total -= before.reads + before.writes + before.flushes + before.discards;
            assert!(is_told && total > 60, "{total}");
        }
        let mut world = world.cut(&mut rng);
        world.run();
        let disk_bytes = world.volume.counters().disk_bytes;
        let kind = usize::from(segments(&world) != old) + usize::from(disk_bytes == small);
        assert!([old, 20].contains(&segments(&world)), "step {step}");
        assert!(!is_told || kind == 2, "step {step}: what was told holds");
        seen[kind] += 1;
        world.assert_sound();
        assert_scattered(&mut world);
        if kind == 2 {
            world = cut_disk(world, small);
            assert_scattered(&mut world);
        }
        assert_eq!(world.write(500 * BLOCK, &data(4, 7)), Status::Ok);
        world.checkpoint();
        world.assert_sound();
        if step >= 90 {
            break;
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}
