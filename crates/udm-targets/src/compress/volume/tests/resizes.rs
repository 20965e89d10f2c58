//! Other sizes, online.

use super::host::{BLOCK, World, data, formatted, noise, tiny_shape};
use crate::compress::volume::{Options, ResizeFault, Sizes};
use udm_types::{BioFlags, Op, Status};

/// Blocks of a larger volume: more than META has pages for.
const LARGER: u64 = 8000;

fn resize(world: &mut World, blocks: u64, grows_to_disk: bool) -> Result<(), ResizeFault> {
    world.volume.resize(Sizes { logical_bytes: Some(blocks * BLOCK), grows_to_disk });
    world.run();
    world.volume.next_resized().expect("it ends")
}

#[test]
fn the_logical_size_grows_past_the_room_for_map_pages_and_shrinks_again() {
    let mut world = World::small();
    world.write(599 * BLOCK, &data(1, 1));
    let limit = LARGER;
    let used = world.volume.counters().segments_used;
    assert_eq!(resize(&mut world, limit, false), Ok(()));
    assert!(world.volume.counters().segments_used > used, "map pages lie in segments");
    assert_eq!(world.volume.logical_bytes(), Some(limit * BLOCK));
    assert_eq!(world.write((limit - 3) * BLOCK, &noise(3, 2)), Status::Ok);
    world.checkpoint();
    world.assert_sound();
    let mut world = world.reopen();
    assert_eq!(world.read((limit - 3) * BLOCK, 3 * BLOCK), Ok(noise(3, 2)));
    assert_eq!(world.read(599 * BLOCK, BLOCK), Ok(data(1, 1)));
    assert_eq!(resize(&mut world, 599, false), Ok(()));
    assert_eq!(world.op(Op::Discard, 599 * BLOCK, BLOCK), Status::Invalid);
    world.assert_sound();
    assert_eq!(resize(&mut world, limit, false), Ok(()));
    let zeroes = alloc::vec![0; BLOCK as usize];
    assert_eq!(world.read(599 * BLOCK, BLOCK).as_ref(), Ok(&zeroes), "what was cut off is gone");
    assert_eq!(world.read((limit - 1) * BLOCK, BLOCK), Ok(zeroes));
    world.checkpoint();
    world.assert_sound();
    let limit = world.volume.superblock().expect("it serves").geometry.logical_limit_blocks();
    assert_eq!(resize(&mut world, limit, false), Err(ResizeFault::NoRoomForMap));
    let over = resize(&mut world, limit + 1, false);
    assert_eq!(over, Err(ResizeFault::Logical { limit_bytes: limit * BLOCK }));
}

#[test]
fn a_disk_that_grew_gives_more_segments() {
    let mut world = World::open(formatted(tiny_shape(), 20, 600), Options::default());
    world.run();
    world.write(0, &noise(20, 1));
    let before = world.volume.counters().segments;
    world.media = super::host::Media::new({
        let mut bytes = world.media.bytes.clone();
        bytes.resize(bytes.len() + (10 << 16), 0);
        bytes
    });
    world.disk.set_len_bytes(world.media.bytes.len() as u64);
    assert_eq!(resize(&mut world, 600, true), Ok(()));
    assert_eq!(world.volume.counters().segments, before + 10);
    world.assert_sound();
    let mut world = world.reopen();
    assert_eq!(world.volume.counters().segments, before + 10);
    for first in (0..280).step_by(4) {
        assert_eq!(world.write(first * BLOCK, &noise(4, first)), Status::Ok);
    }
    world.checkpoint();
    world.assert_sound();
}

#[test]
fn a_crash_in_a_resize_leaves_the_old_size_or_the_new_one() {
    let mut sizes = [0, 0];
    for step in 0..60 {
        let mut rng = fastrand::Rng::with_seed(step);
        let mut world = World::small();
        world.write(0, &data(1, 1));
        world.flush();
        let target = if step % 2 == 0 { LARGER } else { 100 };
        world.budget = step / 2;
        world.volume.resize(Sizes { logical_bytes: Some(target * BLOCK), grows_to_disk: false });
        world.run();
        let mut world = world.cut(&mut rng);
        world.run();
        let blocks = world.volume.logical_bytes().expect("it serves") / BLOCK;
        assert!([600, target].contains(&blocks));
        sizes[usize::from(blocks == target)] += 1;
        assert_eq!(world.read(0, BLOCK), Ok(data(1, 1)));
        assert_eq!(world.write((blocks - 1) * BLOCK, &data(1, 2)), Status::Ok);
        world.assert_sound();
        world.checkpoint();
        world.assert_sound();
    }
    assert!(sizes[0] > 5 && sizes[1] > 5, "{sizes:?}");
}

#[test]
fn writes_behind_the_new_end_of_a_shrink_are_refused() {
    let mut world = World::small();
    world.is_stalled = true;
    world.volume.resize(Sizes { logical_bytes: Some(100 * BLOCK), grows_to_disk: false });
    world.run();
    let ticket = world.submit_write(200 * BLOCK, &data(1, 1), BioFlags::empty());
    assert_eq!(world.end(ticket), Some(Status::Invalid));
    world.volume.resize(Sizes { logical_bytes: Some(200 * BLOCK), grows_to_disk: false });
    world.run();
    assert_eq!(world.volume.next_resized(), Some(Err(ResizeFault::Busy)));
    world.is_stalled = false;
    world.run();
    assert_eq!(world.volume.next_resized(), Some(Ok(())));
    assert_eq!(world.volume.logical_bytes(), Some(100 * BLOCK));
    assert_eq!(world.write(99 * BLOCK, &data(1, 1)), Status::Ok);
    world.checkpoint();
    world.assert_sound();
}

#[test]
fn of_two_resizes_asked_for_at_once_one_is_busy_and_changes_nothing() {
    let mut world = World::small();
    world.write(300 * BLOCK, &data(1, 7));
    let to = |blocks: u64| Sizes { logical_bytes: Some(blocks * BLOCK), grows_to_disk: true };
    world.volume.resize(to(500));
    world.volume.resize(to(100));
    world.run();
    let outcomes = [world.volume.next_resized(), world.volume.next_resized()];
    assert_eq!(outcomes, [Some(Err(ResizeFault::Busy)), Some(Ok(()))]);
    assert_eq!(world.volume.logical_bytes(), Some(500 * BLOCK));
    assert_eq!(world.read(300 * BLOCK, BLOCK).expect("read"), data(1, 7));
    assert_eq!(resize(&mut world, 100, false), Ok(()), "and the next one is not");
}
