//! An idle daemon sleeps: with clients on every front, not one of its threads wakes up.
//!
//! Counted by the kernel, which knows how often each thread has gone to sleep. The window in which
//! nothing must happen is the one time that a test here waits for time to pass.

use super::common::Place;
use super::fuse::{can_mount, served, transport};
use super::nbd::NbdClient;
use super::vhost_user::{Machine, Shape};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;
use udm_testkit::fuse_way::{over_rings, way};

/// Long enough for a timer of once a second to show.
const WINDOW: Duration = Duration::from_secs(2);
/// After its last answer a thread goes to sleep within a moment.
const SETTLE: Duration = Duration::from_millis(500);

/// How often each thread of a process has gone to sleep, by its number and name.
fn sleeps(pid: u32) -> BTreeMap<String, u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    tasks
        .map(|task| {
            let task = task.expect("listed");
            let status = fs::read_to_string(task.path().join("status")).expect("it is there");
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.expect("the kernel tells it").trim().to_owned()
            };
            let thread = format!("{} {}", task.file_name().display(), field("Name:"));
            let count = field("voluntary_ctxt_switches:").parse().expect("a number");
            (thread, count)
        })
        .collect()
}

#[test]
fn a_daemon_with_idle_clients_on_every_front_does_not_wake_up() {
    if can_mount() {
        idles();
    }
}

#[test]
fn a_daemon_with_an_idle_mount_over_rings_does_not_wake_up() {
    if can_mount() {
        over_rings(idles);
    }
}

fn idles() {
    for driver in ["auto", "portable"] {
        let place = Place::new();
        let state = place.text("state");
        let daemon = place.daemon(&["--lanes", "2", "--state", &state, "--driver", driver]);
        let (path, _guard) = served(&place, 4 << 20, 2048, &[]);
        let (nbd, machine) = (place.text("n.sock"), place.text("vm.sock"));
        if driver == "auto" {
            assert_eq!(transport(&place), way().word());
        }
        place.udm(&["export", "d", "--nbd", &format!("unix:{nbd}"), "--name", "n"]).ok();
        place.udm(&["export", "d", "--vhost-user", &machine, "--name", "vm"]).ok();
        // Each has done something, so that whatever begins with the first request has begun.
        let file = fs::OpenOptions::new().read(true).write(true).open(&path).expect("opens");
        file.write_all_at(&[1; 4096], 0).expect("written");
        file.sync_all().expect("synced");
        let mut client = NbdClient::connect(nbd.as_ref(), "n").expect("connected");
        client.write(4096, &[2; 4096], 0).expect("connected").expect("written");
        let mut disk = Machine::new(Shape { queues: 2, ..Shape::SMALL });
        let _link = disk.connect(machine.as_ref());
        for queue in &mut disk.queues {
            assert_eq!(queue.write(16, &[3; 512]), 0);
        }
        // Somebody who watches events sits on the control socket as well.
        let mut watcher = UnixStream::connect(place.path("control.sock")).expect("connected");
        let call = concat!(
            r#"{"method":"org.udm.control.Events","more":true,"#,
            r#""parameters":{"device":{"name":"d"}}}"#,
            "\0"
        );
        watcher.write_all(call.as_bytes()).expect("sent");
        let first = watcher.read(&mut [0; 4096]).expect("the device as it is");
        assert!(first > 0);
        let (_silent, never) = mpsc::channel::<()>();
        assert!(never.recv_timeout(SETTLE).is_err());
        let threads = sleeps(daemon.child.id());
        assert!(threads.len() >= 5, "lanes, fronts and a server: {threads:?}");
        // A machine short of memory may wake anybody once; a timer is there each time.
        let mut seen = Vec::new();
        let slept = (0..3).any(|_| {
            let before = sleeps(daemon.child.id());
            assert!(never.recv_timeout(WINDOW).is_err(), "nobody sends");
            let after = sleeps(daemon.child.id());
            let slept = before == after;
            seen.push((before, after));
            slept
        });
        assert!(slept, "{driver}: threads wake up: {seen:?}");
    }
}
