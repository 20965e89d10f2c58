//! Which lanes serve an export: all, or not more than it was given.
//!
//! Seen in the processor time that the kernel counts for each thread, which does not depend on what
//! else the machine does.

use super::common::{Daemon, Place};
use super::fuse::{can_mount, served};
use super::nbd::NbdClient;
use super::vhost_user::{Machine, Shape};
use std::os::unix::fs::FileExt;

/// Requests of each queue or connection: far more work than anything else a lane does meanwhile.
const REQUESTS: u64 = 2000;

/// How long each lane of a daemon has run, in nanoseconds, by number.
pub(super) fn lanes_ran(daemon: &Daemon) -> Vec<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.child.id())).expect("it lives");
    let mut lanes: Vec<(String, u64)> = tasks
        .filter_map(|task| {
            let path = task.ok()?.path();
            let name = std::fs::read_to_string(path.join("comm")).ok()?;
            let ran = std::fs::read_to_string(path.join("schedstat")).ok()?;
            let ran = ran.split(' ').next()?.parse().ok()?;
            name.starts_with("udm-lane-").then_some((name, ran))
        })
        .collect();
    lanes.sort();
    lanes.into_iter().map(|(_, ran)| ran).collect()
}

/// How many lanes did a good part of `use_it`'s work. The least that any does which is used is a
/// fourth.
fn busy_lanes(daemon: &Daemon, use_it: impl FnOnce()) -> usize {
    let before = lanes_ran(daemon);
    use_it();
    let after = lanes_ran(daemon);
    let ran: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
    let whole: u64 = ran.iter().sum();
    ran.iter().filter(|ran| **ran > whole / 10).count()
}

/// Four connections.
fn over_nbd(socket: &str) {
    let mut clients: Vec<NbdClient> =
        (0..4).map(|_| NbdClient::connect(socket.as_ref(), "d").expect("connected")).collect();
    for turn in 0..REQUESTS {
        for client in &mut clients {
            client.read(turn % 2000 * 512, 512).expect("connected").expect("read");
        }
    }
}

/// Four queues.
fn over_vhost_user(socket: &str) {
    let mut disk = Machine::new(Shape { queues: 4, ..Shape::SMALL });
    let _link = disk.connect(socket.as_ref());
    for turn in 0..REQUESTS {
        for queue in &mut disk.queues {
            assert_eq!(queue.write(turn, &[turn as u8; 512]), 0);
        }
    }
}

#[test]
fn an_export_uses_the_lanes_it_was_given() {
    let place = Place::new();
    let daemon = place.daemon(&["--lanes", "3"]);
    place.udm(&["create", "first", "--table", "0 8 zero"]).ok();
    // The second device begins at the second lane.
    place.udm(&["create", "d", "--table", "0 2048 linear mem:1M 0"]).ok();
    let socket = place.text("d.sock");
    for (kind, address, use_it) in [
        ("--nbd", format!("unix:{socket}"), over_nbd as fn(&str)),
        ("--vhost-user", socket.clone(), over_vhost_user),
    ] {
        for (limit, expected) in [(&["--lanes", "1"][..], 1), (&["--lanes=2"], 2), (&[], 3)] {
            place.udm(&[&["export", "d", kind, &address], limit].concat()).ok();
            let busy = busy_lanes(&daemon, || use_it(&socket));
            assert_eq!(busy, expected, "{kind} {limit:?}");
            place.udm(&["unexport", "d"]).ok();
        }
    }
    daemon.terminate();
}

#[test]
fn a_mount_on_one_lane_of_several_works() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon(&["--lanes", "3"]);
    let (path, _guard) = served(&place, 1 << 20, 2048, &["--lanes", "1"]);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("opens");
    let busy = busy_lanes(&daemon, || {
        for turn in 0..REQUESTS {
            file.write_all_at(&[turn as u8; 512], turn % 300 * 512).expect("written");
        }
    });
    assert_eq!(busy, 1);
    let mut read = [0; 512];
    file.read_exact_at(&mut read, 0).expect("read");
    // The last turn that wrote there was 1800.
    assert_eq!(read, [1800_u64 as u8; 512]);
    drop(file);
    place.udm(&["unexport", "d"]).ok();
    daemon.terminate();
}

#[test]
fn the_limit_is_shown_and_comes_back_with_the_export() {
    let place = Place::new();
    let state = place.text("state");
    let daemon = place.daemon(&["--state", &state, "--lanes", "2"]);
    place.udm(&["create", "d", "--table", "0 8 zero"]).ok();
    let address = format!("unix:{}", place.text("d.sock"));
    let refused = place.udm(&["export", "d", "--nbd", &address, "--lanes", "0"]);
    assert!(refused.err.contains("0 is not in 1..=256"), "{}", refused.err);
    place.udm(&["export", "d", "--nbd", &address, "--lanes", "1"]).ok();
    let limit = || {
        let listed = place.udm(&["--json", "exports"]).ok();
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
        listed["exports"][0]["lanes"].as_u64()
    };
    assert_eq!(limit(), Some(1));
    daemon.kill();
    let daemon = place.daemon(&["--state", &state, "--lanes", "2"]);
    assert_eq!(limit(), Some(1));
    daemon.terminate();
}
