//! Bio-based or request-based: fixed at the first load; who may stand on whom.

use crate::rig::{accepted, key, refused, status, submit_all, world};
use udm_core::ErrorCode;
use udm_core::lifecycle::Request;
use udm_testkit::{Io, TestWorld};
use udm_types::{DeviceId, Status};

/// Loads a table; the code if it is refused.
fn load(world: &mut TestWorld, device: DeviceId, text: &str) -> Option<ErrorCode> {
    let table = world.build(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    world.request(Request::Load { device: key(device), table }).err().map(|error| error.code())
}

const RULE: Option<ErrorCode> = Some(ErrorCode::MapModeRule);
const BIO: &str = "0 512 plain d0 0";
const REQUEST: &str = "0 512 rprobe d0 0";

#[test]
fn the_first_load_decides_and_no_later_one_changes_it() {
    for (first, second, request_based) in [(BIO, REQUEST, false), (REQUEST, BIO, true)] {
        let mut world = world();
        let dm = world.create_empty("t");
        assert!(!world.status(dm).request_based);
        assert_eq!(load(&mut world, dm, first), None);
        assert_eq!(world.status(dm).request_based, request_based);
        assert_eq!(load(&mut world, dm, second), RULE);
        accepted(Some(world.request(Request::Clear { device: key(dm) })));
        assert_eq!(load(&mut world, dm, second), RULE, "not even without any table");
        assert_eq!(load(&mut world, dm, first), None);
        world.resume(dm);
        assert!(world.io(dm, Io::write_pattern(0, 8, 1)).status.is_ok());
        world.remove(dm);
        let dm = world.create_empty("t");
        assert_eq!(load(&mut world, dm, second), None, "a new device is open to both");
    }
}

#[test]
fn a_load_that_fails_decides_nothing() {
    let mut world = world();
    let dm = world.create_empty("t");
    assert_eq!(load(&mut world, dm, "0 512 lab d0 0 request max=8"), RULE);
    assert_eq!(load(&mut world, dm, BIO), None);
}

#[test]
fn of_two_first_loads_at_once_the_second_has_to_fit() {
    let mut world = world();
    let dm = world.create_empty("t");
    let tables = [BIO, REQUEST].map(|text| world.build(text).unwrap());
    let mut answers = Vec::new();
    for table in tables {
        let sink = |answers: &std::sync::Arc<std::sync::Mutex<Vec<_>>>| {
            let answers = std::sync::Arc::clone(answers);
            Box::new(move |answer| answers.lock().unwrap().push(answer))
        };
        let seen = std::sync::Arc::default();
        let request = Box::new(Request::Load { device: key(dm), table });
        let message = udm_core::LaneMessage::Request(request, sink(&seen));
        world.engine(0).send(udm_types::LaneId(0), message);
        answers.push(seen);
    }
    world.run();
    accepted(answers[0].lock().unwrap().pop());
    assert_eq!(refused(answers[1].lock().unwrap().pop()), ErrorCode::MapModeRule);
    world.resume(dm);
    assert!(world.io(dm, Io::write_pattern(0, 8, 1)).status.is_ok());
    world.remove(dm);
    world.assert_quiet();
}

#[test]
fn a_target_that_does_either_does_what_the_device_does() {
    let mut world = world();
    let dm = world.create("t", REQUEST);
    world.swap(dm, "0 512 either", false);
    let tickets = submit_all(&mut world, dm, [Io::write_pattern(0, 8, 1), Io::flush()]);
    for ticket in tickets {
        assert_eq!(status(&mut world, ticket), Status::IoErr);
    }
    assert_eq!(world.gauges(dm).requests.requests, 2, "it has seen requests");
    assert_eq!(load(&mut world, dm, BIO), RULE);
    world.swap(dm, REQUEST, false);
    assert!(world.io(dm, Io::write_pattern(0, 8, 1)).status.is_ok());
    let dm = world.create("bio", "0 512 either");
    assert!(!world.status(dm).request_based);
    assert_eq!(load(&mut world, dm, REQUEST), RULE, "bio is what it is where nothing says more");
    assert_eq!(load(&mut world, dm, BIO), None);
    world.assert_quiet();
}

#[test]
fn a_request_based_table_is_one_target_of_a_type_that_keeps_its_place() {
    let mut world = world();
    let dm = world.create("t", REQUEST);
    for text in [
        "0 256 either\n256 256 either",
        "0 512 lab d0 0 request max=8",
        "0 512 lab d0 0 request",
        "0 256 lab d0 0 request\n256 256 lab d0 256 request",
    ] {
        assert!(matches!(
            load(&mut world, dm, text),
            Some(ErrorCode::MapModeRule | ErrorCode::TypeRule)
        ));
    }
    let empty = world.create_empty("e");
    for text in ["0 512 lab d0 0 request max=8", "0 512 lab d0 0 request"] {
        assert_eq!(load(&mut world, empty, text), RULE, "{text}");
    }
    let mixed = world.build("0 256 lab d0 0 request\n256 256 plain d0 256");
    assert_eq!(mixed.unwrap_err().code(), ErrorCode::MapModeRule);
}

#[test]
fn a_request_based_device_stands_on_no_bio_based_one() {
    let mut world = world();
    world.create("bio", BIO);
    world.create("request", REQUEST);
    let dm = world.create_empty("t");
    assert_eq!(load(&mut world, dm, "0 256 rprobe dm:bio 0"), RULE);
    assert_eq!(load(&mut world, dm, "0 256 rprobe dm:request 0"), None);
    world.resume(dm);
    assert!(world.io(dm, Io::write_pattern(0, 8, 1)).status.is_ok());
    let top = world.create("top", "0 256 plain dm:t 0");
    assert!(world.io(top, Io::write_pattern(0, 8, 1)).status.is_ok());
    world.assert_quiet();
}

#[test]
fn every_request_that_an_immutable_type_refuses_is_told_so() {
    let mut world = world();
    let dm = world.create("t", REQUEST);
    // The live type cannot be replaced by another; that is said first.
    assert_eq!(load(&mut world, dm, BIO), Some(ErrorCode::TypeRule));
}
