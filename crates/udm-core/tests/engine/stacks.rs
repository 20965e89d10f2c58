//! Devices on devices: loops, depth, the way of a bio through all of it.

use crate::rig::{accepted, key, refused, world};
use udm_core::lifecycle::Request;
use udm_core::{ErrorCode, MAX_STACK_DEPTH};
use udm_testkit::{Io, TestWorld, pattern};
use udm_types::{DeviceId, Status};

fn load(world: &mut TestWorld, device: DeviceId, text: &str) -> Result<(), ErrorCode> {
    let table = world.build(text).unwrap();
    let answer = world.request(Request::Load { device: key(device), table });
    answer.map(drop).map_err(|error| error.code())
}

#[test]
fn loops_of_every_length_are_refused_and_change_nothing() {
    let mut world = world();
    let mut devices = Vec::new();
    for (name, below) in [("a", "d0"), ("b", "dm:a"), ("c", "dm:b"), ("d", "dm:c")] {
        devices.push(world.create(name, &format!("0 512 plain {below} 0")));
    }
    for above in ["a", "b", "c", "d"] {
        let text = format!("0 512 plain dm:{above} 0");
        assert_eq!(load(&mut world, devices[0], &text), Err(ErrorCode::SelfReference), "{above}");
    }
    assert!(!world.status(devices[0]).inactive_present);
    assert_eq!(world.status(devices[3]).open_count, 0);
    assert_eq!(world.io(devices[3], Io::write_pattern(0, 8, 1)).status, Status::Ok);
    world.assert_quiet();
}

#[test]
fn a_loop_through_an_inactive_table_is_refused() {
    let mut world = world();
    let a = world.create("a", "0 512 plain d0 0");
    let b = world.create("b", "0 512 plain d1 0");
    assert_eq!(load(&mut world, a, "0 512 plain dm:b 0"), Ok(()));
    assert_eq!(load(&mut world, b, "0 512 plain dm:a 0"), Err(ErrorCode::SelfReference));
    accepted(Some(world.request(Request::Clear { device: key(a) })));
    assert_eq!(load(&mut world, b, "0 512 plain dm:a 0"), Ok(()));
    world.assert_quiet();
}

#[test]
fn a_stack_of_the_greatest_depth_works_and_one_more_is_refused() {
    let mut world = world();
    let mut below = "d0".to_owned();
    let mut devices = Vec::new();
    for layer in 0..MAX_STACK_DEPTH {
        let name = format!("l{layer}");
        devices.push(world.create(&name, &format!("0 512 plain {below} 0")));
        below = format!("dm:{name}");
    }
    let top = *devices.last().unwrap();
    assert_eq!(world.io_on(1, top, Io::write_pattern(8, 16, 1)).status, Status::Ok);
    assert_eq!(world.io(top, Io::read(8, 16)).bytes, pattern(8, 16, 1));
    assert_eq!(world.io(top, Io::flush()).status, Status::Ok);
    assert_eq!(world.lower("d0").flushes(), 1);
    let over = world.create_empty("over");
    let text = format!("0 512 plain {below} 0");
    assert_eq!(load(&mut world, over, &text), Err(ErrorCode::StackTooDeep));
    // A layer pushed in at the bottom makes the top too deep as well.
    let bottom = world.create("bottom", "0 512 plain d1 0");
    assert_eq!(
        load(&mut world, devices[0], "0 512 plain dm:bottom 0"),
        Err(ErrorCode::StackTooDeep)
    );
    world.remove(bottom);
    world.assert_quiet();
}

#[test]
fn a_bio_is_split_at_every_layer_of_a_stack() {
    let mut world = world();
    world.create("a", "0 128 lab d0 0 max=4\n128 128 plain d1 0");
    let b = world.create("b", "0 64 plain dm:a 96\n64 96 lab dm:a 0 max=24");
    assert_eq!(world.io(b, Io::write_pattern(0, 160, 7)).status, Status::Ok);
    assert_eq!(world.io_on(1, b, Io::read(0, 160)).bytes, pattern(0, 160, 7));
    assert_eq!(world.census().parents, 0);
    world.assert_quiet();
}

#[test]
fn a_table_with_a_removed_device_below_is_refused() {
    let mut world = world();
    let a = world.create("a", "0 512 plain d0 0");
    let b = world.create_empty("b");
    let table = world.build("0 512 plain dm:a 0").unwrap();
    world.remove(a);
    let answer = world.request(Request::Load { device: key(b), table });
    assert_eq!(refused(Some(answer)), ErrorCode::NoSuchDevice);
    world.assert_quiet();
}
