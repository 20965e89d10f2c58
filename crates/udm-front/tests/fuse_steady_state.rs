//! A mounted file at work allocates nothing: counted by the allocator of this test program.
//!
//! Lanes and clients share the allocator, and the clients allocate nothing either, so a window of
//! many requests without any allocation has to come soon after the start. Once with one lane, once
//! with two and more clients than one has slots for.
//! One test only, since other tests of the program would be counted, too. Mounting needs root.

#[path = "counting/mod.rs"]
mod counting;
#[path = "nbd/rig.rs"]
#[allow(dead_code, reason = "the tests of NBD use more of it")]
mod rig;

use counting::allocations;
use rig::Rig;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use udm_core::LaneMessage;
use udm_core::actor::Actor;
use udm_driver::{DriverChoice, clone_fuse};
use udm_front::fuse::mount::{Mount, MountOrder as Order, mount};
use udm_front::fuse::server::{MountCall, MountEvent, MountOrder, MountServer, Served};
use udm_types::{ActorId, LaneId};

/// Requests in a window.
const WINDOW: u64 = 5_000;
/// Windows until one has to be quiet.
const WINDOWS_MAX: usize = 100;
const MOUNT: u64 = 7;

/// A device of a rig as a file.
struct Steady<'a> {
    rig: &'a Rig,
    mount: Mount,
    home: ActorId,
}

fn spawn(
    rig: &Rig,
    lane: usize,
    make: impl FnOnce() -> Box<dyn Actor> + Send + 'static,
) -> ActorId {
    let (out, answer) = channel();
    let run = move |engine: &mut udm_core::Engine| {
        out.send(engine.spawn_actor(make())).expect("the test waits");
    };
    assert!(rig.lanes[lane].send(LaneMessage::Run(Box::new(run))).is_ok(), "it has room");
    answer.recv().expect("the lane answers")
}

/// Mounts over a file: the home on lane 0, mates on the others.
fn serve<'a>(rig: &'a Rig, path: &Path, events: &Sender<MountEvent>) -> Steady<'a> {
    let order = Order { path, source: "udm:steady", read_only: false };
    let (connection, mount) = mount(&order).expect("root mounts");
    let device = rig.device;
    let served = Served { mount: MOUNT, device, read_only: false, uid: 0, gid: 0, since_s: 0 };
    let tell = |events: Sender<MountEvent>| {
        move |event| {
            // The test may have stopped to listen.
            let _ = events.send(event);
        }
    };
    let mut mates = Vec::new();
    for lane in 1..rig.lanes.len() {
        let clone = clone_fuse(connection.as_fd()).expect("a connection");
        let (served, tell) = (served.clone(), Box::new(tell(events.clone())));
        let mate = u16::try_from(lane - 1).expect("few");
        let actor =
            spawn(rig, lane, move || Box::new(MountServer::mate(mate, clone, served, tell)));
        mates.push((LaneId(mate + 1), actor));
    }
    let tell = Box::new(tell(events.clone()));
    let home = spawn(rig, 0, move || Box::new(MountServer::new(connection, served, mates, tell)));
    Steady { rig, mount, home }
}

impl Steady<'_> {
    fn end(self) {
        self.mount.detach();
        let (out, ended) = channel();
        // Nobody may have the file open any more; then it ends before it is told to, and the order
        // is dropped.
        let done = Box::new(move || out.send(()).expect("the test waits"));
        let order = MountOrder::Stop { cut: false, done };
        let call = Box::new(MountCall { mount: MOUNT, order });
        assert!(self.rig.lanes[0].send(LaneMessage::ToActor(self.home, call)).is_ok());
        let _ = ended.recv();
        self.mount.clean_up();
    }
}

/// Reads and writes of a page, and a flush now and then, until told to stop.
fn client(file: &File, place: u64, stop: &AtomicBool, count: &AtomicU64) {
    let mut page = [place as u8; 4096];
    while !stop.load(Ordering::Relaxed) {
        let done = count.fetch_add(1, Ordering::Relaxed);
        match done % 64 {
            0 => file.sync_data().expect("flushed"),
            1..32 => file.write_all_at(&page, place * 4096).expect("written"),
            _ => file.read_exact_at(&mut page, place * 4096).expect("read"),
        }
    }
}

/// Whether a window of requests of so many clients passes without an allocation.
fn finds_a_quiet_window(path: &Path, clients: u64) -> bool {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for place in 0..clients {
            let (stop, count) = (&stop, &count);
            let file = OpenOptions::new().read(true).write(true).open(path).expect("opens");
            scope.spawn(move || client(&file, place, stop, count));
        }
        let found = (0..WINDOWS_MAX).any(|_| {
            let (before, begin) = (allocations(), count.load(Ordering::Relaxed));
            while count.load(Ordering::Relaxed) < begin + WINDOW {
                std::thread::yield_now();
            }
            allocations() == before
        });
        stop.store(true, Ordering::Relaxed);
        found
    })
}

#[test]
fn a_file_in_steady_state_allocates_nothing() {
    if std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) != 0)
        || !Path::new("/dev/fuse").exists()
    {
        eprintln!("not checked: mounting needs root and /dev/fuse here");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (lanes, clients) in [(1, 1), (1, 16), (2, 80)] {
        let rig = Rig::new(lanes, DriverChoice::Auto, "0 32768 linear mem:16M 0");
        let path = folder.path().join(format!("steady{lanes}"));
        let (sender, events) = channel();
        let served = serve(&rig, &path, &sender);
        assert_eq!(events.recv(), Ok(MountEvent::Ready));
        let found = finds_a_quiet_window(&path, clients);
        served.end();
        assert!(found, "{lanes} lanes, {clients} clients: never {WINDOW} requests without one");
    }
}
