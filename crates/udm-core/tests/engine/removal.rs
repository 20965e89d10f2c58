//! Removal: open, deferred, stacked, suspended, all at once, and what it must not leave behind.
//!
//! Trap: a device left suspended after a remove that failed.

use crate::rig::{accepted, key, noflush, refused, remove, status, world};
use udm_core::ErrorCode;
use udm_core::lifecycle::{DeviceKey, Reply, Request};
use udm_testkit::{Io, TestWorld};
use udm_types::{DmName, OpSet, Status};

fn names(world: &mut TestWorld) -> Vec<String> {
    match world.request(Request::List) {
        Ok(Reply::List(devices)) => devices.iter().map(|device| device.name.to_string()).collect(),
        other => panic!("no list: {other:?}"),
    }
}

#[test]
fn a_remove_of_an_open_device_fails_and_leaves_it_running() {
    let mut world = world();
    let below = world.create("below", "0 512 plain d0 0");
    let top = world.create("top", "0 512 plain dm:below 0");
    assert_eq!(remove(&mut world, below, false), Some(ErrorCode::InUse));
    assert!(!world.status(below).suspended);
    assert_eq!(world.io(top, Io::write_pattern(0, 8, 1)).status, Status::Ok);
    world.assert_quiet();
}

#[test]
fn a_deferred_remove_goes_down_a_stack_at_the_last_close() {
    let mut world = world();
    let c = world.create("c", "0 512 plain d0 0");
    let b = world.create("b", "0 512 plain dm:c 0");
    let a = world.create("a", "0 512 plain dm:b 0");
    accepted(Some(world.request(Request::Open { device: key(a) })));
    for device in [c, b, a] {
        assert_eq!(remove(&mut world, device, true), None);
        assert!(world.status(device).deferred_remove);
    }
    assert_eq!(world.io(a, Io::write_pattern(0, 8, 1)).status, Status::Ok, "it is in use");
    accepted(Some(world.request(Request::Close { device: a })));
    assert!(names(&mut world).is_empty());
    assert_eq!(world.lower("d0").open_lanes(), 0);
    world.assert_quiet();
}

#[test]
fn a_deferred_remove_can_be_taken_back() {
    let mut world = world();
    let below = world.create("below", "0 512 plain d0 0");
    let top = world.create("top", "0 512 plain dm:below 0");
    assert_eq!(remove(&mut world, below, true), None);
    world.message(below, 0, &["@cancel_deferred_remove"]).unwrap();
    assert!(!world.status(below).deferred_remove);
    world.remove(top);
    assert_eq!(names(&mut world), ["below"]);
    world.assert_quiet();
}

#[test]
fn a_table_swap_that_lets_go_of_a_device_ends_its_deferred_life() {
    let mut world = world();
    let below = world.create("below", "0 512 plain d0 0");
    let top = world.create("top", "0 512 plain dm:below 0");
    assert_eq!(remove(&mut world, below, true), None);
    world.swap(top, "0 512 plain d1 0", true);
    assert_eq!(names(&mut world), ["top"]);
    world.assert_quiet();
}

#[test]
fn removing_a_suspended_device_fails_what_it_holds() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.suspend(dm, false);
    let held = [0, 1].map(|lane| world.submit(lane, dm, Io::write_pattern(0, 8, 1)));
    world.run();
    world.remove(dm);
    for ticket in held {
        assert_eq!(status(&mut world, ticket), Status::Offline);
    }
    assert!(world.lower("d0").log().is_empty());
    assert_eq!(world.lower("d0").open_lanes(), 0);
    let late = world.io(dm, Io::read(0, 8));
    assert_eq!(late.status, Status::Offline, "a client that has not heard yet gets an answer");
    world.assert_quiet();
}

#[test]
fn a_remove_waits_for_io_below_and_frees_the_name_at_once() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.lower("d0").hold(OpSet::all());
    let ticket = world.submit(1, dm, Io::write_pattern(0, 8, 1));
    world.run();
    let removal = world.start(|_| Request::Remove { device: key(dm), deferred: false });
    assert!(world.answer(removal).is_none(), "I/O is under way below");
    let again = world.create("t", "0 512 plain d1 0");
    assert_ne!(again, dm, "the number is not free yet");
    world.lower("d0").flow();
    world.run();
    accepted(world.answer(removal));
    assert_eq!(status(&mut world, ticket), Status::Ok);
    assert_eq!(world.io(again, Io::write_pattern(0, 8, 1)).status, Status::Ok);
    world.assert_quiet();
}

#[test]
fn changes_queued_behind_a_remove_are_told() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.lower("d0").hold(OpSet::all());
    world.submit(1, dm, Io::write_pattern(0, 8, 1));
    world.run();
    let suspend = world.start_suspend(dm, noflush());
    let removal = world.start(|_| Request::Remove { device: key(dm), deferred: false });
    let resume =
        world.start(|ticket| Request::Resume { device: key(dm), options: noflush(), ticket });
    // The resume ends the suspend; the remove comes first then, and the resume finds it gone.
    assert_eq!(refused(world.answer(suspend)), ErrorCode::SuspendCancelled);
    world.lower("d0").flow();
    world.run();
    accepted(world.answer(removal));
    assert_eq!(refused(world.answer(resume)), ErrorCode::BeingRemoved);
    world.assert_quiet();
}

#[test]
fn those_who_wait_for_an_event_hear_of_a_removal() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    let event_nr = world.status(dm).event_nr;
    let wait = world.start(|ticket| Request::Wait { device: key(dm), event_nr, ticket });
    assert!(world.answer(wait).is_none());
    world.remove(dm);
    assert!(world.answer(wait).is_some(), "nobody waits for a device that is gone");
    world.assert_quiet();
}

#[test]
fn remove_all_takes_whole_stacks_and_leaves_what_is_open() {
    let mut world = world();
    for (name, below) in [("a", "d0"), ("b", "dm:a"), ("c", "dm:b"), ("x", "d1"), ("y", "dm:x")] {
        world.create(name, &format!("0 512 plain {below} 0"));
    }
    let y = DeviceKey::Name("y".into());
    let Ok(Reply::Done(Some(opened))) = world.request(Request::Open { device: y }) else {
        panic!("y can be opened")
    };
    accepted(Some(world.request(Request::RemoveAll { deferred: false })));
    assert_eq!(names(&mut world), ["x", "y"]);
    accepted(Some(world.request(Request::RemoveAll { deferred: true })));
    assert_eq!(names(&mut world), ["x", "y"], "they go at the last close");
    accepted(Some(world.request(Request::Close { device: opened.id })));
    assert!(names(&mut world).is_empty());
    world.assert_quiet();
}

#[test]
fn remove_all_ends_with_a_suspended_device_among_them() {
    let mut world = world();
    let a = world.create("a", "0 512 plain d0 0");
    world.create("b", "0 512 plain dm:a 0");
    world.suspend(a, true);
    accepted(Some(world.request(Request::RemoveAll { deferred: false })));
    assert!(names(&mut world).is_empty());
    world.assert_quiet();
}

#[test]
fn remove_all_waits_for_a_suspend_that_hangs_and_does_not_spin() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.create("other", "0 512 plain d1 0");
    world.lower("d0").hold(OpSet::all());
    world.submit(0, dm, Io::write_pattern(0, 8, 1));
    world.run();
    let suspend = world.start_suspend(dm, noflush());
    let all = world.start(|_| Request::RemoveAll { deferred: false });
    assert!(world.answer(all).is_none());
    assert_eq!(names(&mut world), ["t"], "the others do not wait");
    world.lower("d0").flow();
    world.run();
    accepted(world.answer(suspend));
    accepted(world.answer(all));
    assert!(names(&mut world).is_empty());
    world.assert_quiet();
}

#[test]
fn remove_all_ends_although_a_device_was_opened_meanwhile() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    world.lower("d0").hold(OpSet::all());
    world.submit(0, dm, Io::write_pattern(0, 8, 1));
    world.run();
    let suspend = world.start_suspend(dm, noflush());
    let all = world.start(|_| Request::RemoveAll { deferred: false });
    accepted(Some(world.request(Request::Open { device: key(dm) })));
    world.lower("d0").flow();
    world.run();
    accepted(world.answer(suspend));
    accepted(world.answer(all));
    assert_eq!(names(&mut world), ["t"]);
    world.resume(dm);
    world.assert_quiet();
}

#[test]
fn a_load_that_meets_a_removal_is_refused() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    let table = world.build("0 512 plain d1 0").unwrap();
    world.remove(dm);
    let load = world.request(Request::Load { device: key(dm), table });
    assert_eq!(refused(Some(load)), ErrorCode::NoSuchDevice);
    assert_eq!(world.lower("d1").open_lanes(), 0);
    world.assert_quiet();
}

#[test]
fn a_rename_keeps_the_device_and_its_io() {
    let mut world = world();
    let dm = world.create("t", "0 512 plain d0 0");
    let event_nr = world.status(dm).event_nr;
    let name = DmName::new("u").unwrap();
    accepted(Some(world.request(Request::Rename { device: key(dm), name: name.clone() })));
    assert_eq!(world.status(dm).event_nr, event_nr + 1);
    let taken = world.request(Request::Rename { device: key(dm), name });
    assert_eq!(refused(Some(taken)), ErrorCode::NameTaken);
    assert_eq!(world.io(dm, Io::write_pattern(0, 8, 1)).status, Status::Ok);
    assert_eq!(names(&mut world), ["u"]);
    world.assert_quiet();
}
