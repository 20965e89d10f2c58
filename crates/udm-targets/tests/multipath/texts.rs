//! Status of every selector while I/O is under way, and the reports.

use crate::rig::{disk, info, kill, one_group, reported, table, tell, world, write};
use udm_testkit::Io;
use udm_types::{Nanos, OpSet, Status};

fn group(selector: &str) -> String {
    format!("2 queue_mode bio 0 1 1 {selector}")
}

#[test]
fn each_selector_shows_what_is_under_way_on_all_lanes() {
    for (selector, shown, during) in [
        ("round-robin 0 2 0 d0 d1", "round-robin 0 2 1 d0 1 d1 1 ", "0 2 0 d0 A 0 d1 A 0 "),
        ("queue-length 0 2 0 d0 d1", "queue-length 0 2 1 d0 1 d1 1 ", "0 2 1 d0 A 0 3 d1 A 0 1 "),
        (
            "service-time 0 2 2 d0 1 2 d1 1 1",
            "service-time 0 2 2 d0 1 2 d1 1 1 ",
            "0 2 2 d0 A 0 12288 2 d1 A 0 4096 1 ",
        ),
        (
            "historical-service-time 2 900 5 2 0 d0 d1",
            "historical-service-time 2 900 5 2 1 d0 0 d1 0 ",
            "2 900 5 2 3 d0 A 0 1024 3 0 d1 A 0 1024 1 0 ",
        ),
        ("io-affinity 0 2 1 d0 2 d1 4", "io-affinity 0 2 1 d0 2 d1 4 ", "0 2 1 d0 A 0 3 d1 A 0 3 "),
        (
            "latency 0 2 0 d0 d1",
            "latency 2 128 3 2 1 d0 0 d1 0 ",
            "2 128 3 2 3 d0 A 0 0 0 3 d1 A 0 0 0 1 ",
        ),
    ] {
        let (mut world, dm) = world(2, &group(selector));
        assert_eq!(table(&mut world, dm), group(shown));
        for name in ["d0", "d1"] {
            disk(&world, name).hold(OpSet::all());
        }
        for (lane, slot) in [(0, 0), (0, 1), (0, 2), (1, 3)] {
            world.submit(lane, dm, write(slot));
        }
        world.run();
        assert_eq!(info(&mut world, dm), format!("2 0 0 0 1 1 A {during}"), "{selector}");
        world.advance(Nanos(1000));
        for name in ["d0", "d1"] {
            disk(&world, name).flow();
        }
        world.assert_quiet();
    }
}

#[test]
fn learned_numbers_are_means_of_the_lanes_that_know() {
    let (mut world, dm) = world(3, &group("historical-service-time 0 1 0 d0"));
    let d0 = disk(&world, "d0");
    for (lane, took) in [(0, 100_000), (2, 300_000)] {
        d0.hold(OpSet::all());
        world.submit(lane, dm, write(0));
        world.run();
        world.advance(Nanos(took));
        d0.flow();
        world.run();
    }
    // 972 + 52 * 100000 and 972 + 52 * 300000; lane 1 knows nothing.
    let shown = info(&mut world, dm);
    assert!(shown.contains(&format!("d0 A 0 {} 0 ", 972 + 52 * 200_000)), "{shown}");
}

#[test]
fn the_report_has_every_number_of_every_lane() {
    let (mut world, dm) = world(2, &one_group("queue_if_no_path", "d0 d1"));
    disk(&world, "d1").hold(OpSet::all());
    world.submit(0, dm, write(0));
    world.submit(0, dm, write(1));
    world.run();
    world.io_on(1, dm, Io::read(0, 8));
    world.advance(Nanos(3000));
    kill(&world, "d1", Status::Medium);
    disk(&world, "d1").release(0);
    world.run();
    let mut get = |line: &str, key: &str| reported(&mut world, dm, line, key);
    assert_eq!(get("multipath", "mode"), "bio");
    assert_eq!(get("multipath", "queueing"), "1");
    assert_eq!((get("multipath", "lanes"), get("multipath", "valid")), ("2".into(), "2".into()));
    assert_eq!((get("multipath", "current"), get("multipath", "next")), ("1".into(), "0".into()));
    assert_eq!(get("group 1", "selector"), "round-robin");
    assert_eq!((get("group 1", "state"), get("group 1", "paths")), ("A".into(), "2".into()));
    assert_eq!((get("path 1", "device"), get("path 2", "device")), ("d0".into(), "d1".into()));
    assert_eq!((get("path 1", "ios"), get("path 1", "errors")), ("2".into(), "0".into()));
    assert_eq!((get("path 2", "ios"), get("path 2", "errors")), ("1".into(), "1".into()));
    assert_eq!(
        (get("path 1", "last_error"), get("path 2", "last_error")),
        ("-".into(), "medium".into())
    );
    assert_eq!((get("lane 1 0", "ios"), get("lane 1 1", "ios")), ("1".into(), "1".into()));
    assert_eq!(get("lane 2 0", "errors"), "1");
    // 3000 ns lie in bucket 2: from 2048 to below 4096.
    let text = world.message(dm, 0, &["paths"]).expect("a report").expect("with text");
    let path = text.lines().find(|line| line.starts_with("path 2")).expect("path 2");
    let buckets: Vec<&str> = path.split(" buckets ").nth(1).expect("buckets").split(' ').collect();
    assert_eq!(buckets.len(), 32);
    assert_eq!((buckets[1], buckets[2], buckets[3]), ("0", "1", "0"));
    world.settle();
}

#[test]
fn explain_says_state_share_and_terms() {
    let (mut world, dm) = world(2, &group("latency 0 2 0 d0 d1"));
    let text = |world: &mut udm_testkit::TestWorld| {
        world.message(dm, 0, &["explain"]).expect("an answer").expect("with text")
    };
    let before = text(&mut world);
    assert!(before.contains("bio mode; without a path I/O fails; 2 of 2 paths active"), "{before}");
    assert!(before.contains("no group is chosen until the next I/O"), "{before}");
    for round in 0..40 {
        for name in ["d0", "d1"] {
            disk(&world, name).hold(OpSet::all());
        }
        world.submit(0, dm, write(round));
        world.run();
        world.advance(Nanos(50_000));
        for name in ["d0", "d1"] {
            disk(&world, name).flow();
        }
        world.run();
    }
    kill(&world, "d1", Status::Transport);
    for slot in 0..2 {
        world.io_on(1, dm, write(slot));
    }
    tell(&mut world, dm, "queue_if_no_path");
    tell(&mut world, dm, "queue_if_no_path_timeout_secs 9");
    let after = text(&mut world);
    for part in [
        "without a path I/O waits (waiting is limited to 9 s); 1 of 2 paths active",
        "group 1 (latency): current",
        "path 1 d0: active, chosen",
        "path 2 d1: failed, chosen",
        "failed 1 times, last error transport",
        "    lane 0: predicted 50000 ns = base 0 + backlog 50000 + overdue 0; 4 KiB cost 50000 ns",
        "    lane 1: learning: ",
        "chosen last",
    ] {
        assert!(after.contains(part), "{part} in\n{after}");
    }
}
