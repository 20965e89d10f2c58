//! A thousand idle devices cost nothing: no lane wakes up, none uses the processor. Nor does a
//! connected virtual machine that is idle.
//!
//! Counted by the kernel, as context switches of the lanes' threads and the time they ran. This is
//! the one test that has to let time pass, since it is about what happens when nothing does; it
//! waits on a channel that nobody sends on. One test only, since it looks at all lanes' threads of
//! this process.

#[path = "../../udm-front/tests/vhost_user/client.rs"]
mod client;

use client::{Machine, Shape};
use std::collections::BTreeMap;
use std::fs;
use std::sync::mpsc;
use std::time::Duration;
use udm::runtime::{Runtime, RuntimeConfig};
use udm_core::lifecycle::{Reply, Request};
use udm_driver::{DriverChoice, SOCKET_MODE_DEFAULT, listen_unix};
use udm_front::lanes::LaneShare;
use udm_front::vhost_user::server::{Disk, Server};
use udm_types::LaneId;

const DEVICES: usize = 1_000;
const WINDOW: Duration = Duration::from_secs(1);

/// What the kernel says of a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Activity {
    name: String,
    switches: u64,
    ran_ns: u64,
}

/// Threads of this process by number, those of `lanes` only.
fn activity(lanes: &[u32]) -> BTreeMap<u32, Activity> {
    let read = |thread: u32, file: &str| {
        fs::read_to_string(format!("/proc/self/task/{thread}/{file}")).expect("the thread lives")
    };
    let of = |thread: u32| {
        let status = read(thread, "status");
        let field = |wanted: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(wanted));
            line.expect("the kernel counts it").trim().to_owned()
        };
        let number = |text: &str| text.parse::<u64>().expect("a number");
        Activity {
            name: field("Name:"),
            switches: number(&field("voluntary_ctxt_switches:"))
                + number(&field("nonvoluntary_ctxt_switches:")),
            ran_ns: number(read(thread, "schedstat").split_whitespace().next().expect("a number")),
        }
    };
    lanes.iter().map(|thread| (*thread, of(*thread))).collect()
}

/// Numbers of the lanes' threads.
fn lane_threads(runtime: &Runtime) -> Vec<u32> {
    (0..runtime.lane_count())
        .map(|lane| {
            let lane = LaneId(u16::try_from(lane).expect("few lanes"));
            runtime.on_lane(lane, |_| rustix::thread::gettid().as_raw_pid().unsigned_abs())
        })
        .collect()
}

/// A virtual machine whose disk is one of the devices, and which has used it.
fn machine(runtime: &Runtime) -> (Machine, client::Link, Server) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("vm.sock");
    let socket = listen_unix(&path, SOCKET_MODE_DEFAULT).expect("a socket");
    let key = udm_core::lifecycle::DeviceKey::Name("idle1".to_owned());
    let found = runtime.request(Request::Status { device: key }).expect("it is there");
    let device = udm::runtime::status_of(found).expect("its state").id;
    let lanes = (0..2).map(|lane| runtime.mailbox(LaneId(lane))).collect();
    let lanes_used = LaneShare::new(device, None);
    let disk = Disk { device, name: "idle1".to_owned(), read_only: false, lanes: lanes_used };
    let server = Server::start(socket, disk, lanes).expect("a server");
    let mut machine = Machine::new(Shape { queues: 2, ..Shape::SMALL });
    let link = machine.connect(&path);
    for queue in &mut machine.queues {
        assert_eq!(queue.write(0, &[1; 512]), 0);
    }
    (machine, link, server)
}

/// Threads that read vhost-user messages.
fn server_threads() -> Vec<u32> {
    let tasks = fs::read_dir("/proc/self/task").expect("it lists");
    let number = |name: std::ffi::OsString| name.to_str()?.parse().ok();
    tasks
        .filter_map(|task| number(task.ok()?.file_name()))
        .filter(|task| {
            let name = fs::read_to_string(format!("/proc/self/task/{task}/comm"));
            name.is_ok_and(|name| name.trim() == "udm-vhost-user")
        })
        .collect()
}

fn idle(choice: DriverChoice) {
    let config = RuntimeConfig { lanes: 2, driver: choice, ..RuntimeConfig::default() };
    let runtime = Runtime::start(&config).expect("some driver works everywhere");
    for number in 0..DEVICES {
        let below = if number % 2 == 0 { "null:64M" } else { "mem:1M:shared" };
        let table = match number % 4 {
            0 | 1 => format!("0 2048 linear {below} 0"),
            2 => format!("0 1024 linear {below} 0\n1024 1024 delay {below} 1024 10"),
            _ => format!("0 2048 striped 1 8 {below} 0"),
        };
        runtime.create(&format!("idle{number}"), None, &table, false).expect("the table is good");
    }
    match runtime.request(Request::List) {
        Ok(Reply::List(devices)) => assert_eq!(devices.len(), DEVICES),
        other => panic!("no list: {other:?}"),
    }
    let mut lanes = lane_threads(&runtime);
    let (machine, link, server) = machine(&runtime);
    lanes.extend(server_threads());
    let (silent, never) = mpsc::channel::<()>();
    // After its last answer a lane goes to sleep within a moment, and then stays asleep.
    assert!(never.recv_timeout(WINDOW / 4).is_err());
    let before = activity(&lanes);
    assert_eq!(before.len(), 3, "two lanes and a server of a machine");
    assert!(never.recv_timeout(WINDOW).is_err(), "nobody sends");
    let driver = runtime.driver().name;
    assert_eq!(activity(&lanes), before, "{driver}: a lane woke up although nothing happened");
    drop((silent, link, machine));
    let (ended, end) = mpsc::channel();
    server.stop(false, Box::new(move || ended.send(()).expect("waited for")));
    end.recv().expect("the server ends");
    runtime.shutdown();
}

#[test]
fn a_thousand_idle_devices_do_not_wake_a_lane() {
    for choice in [DriverChoice::Auto, DriverChoice::Portable] {
        idle(choice);
    }
}
