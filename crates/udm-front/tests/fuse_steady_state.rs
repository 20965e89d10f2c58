//! A mounted file at work allocates nothing: counted by the allocator of this test program.
//!
//! Lanes and clients share the allocator, and the clients allocate nothing either, so a window of
//! many requests without any allocation has to come soon after the start. Once with one lane, once
//! with two and more clients than one has slots for; and all again over the lanes' rings.
//! One test only, since other tests of the program would be counted, too. Mounting needs root.

mod fuse_rig;
#[path = "nbd/rig.rs"]
#[allow(dead_code, reason = "the tests of NBD use more of it")]
mod rig;

use fuse_rig::{fresh, is_able, serve};
use rig::Rig;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use udm_driver::DriverChoice;
use udm_front::fuse::order::MountEvent;
use udm_testkit::fuse_way::{Way, hold_way, over_rings, way};
use udm_testkit::{Counting, allocations};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests in a window.
const WINDOW: u64 = 5_000;
/// Windows until one has to be quiet.
const WINDOWS_MAX: usize = 100;

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
    if !is_able() {
        return;
    }
    allocates_nothing();
    over_rings(allocates_nothing);
}

fn allocates_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    for (lanes, clients) in [(1, 1), (1, 16), (2, 80)] {
        let rig = Rig::new(lanes, DriverChoice::Auto, "0 32768 linear mem:16M 0");
        let path = folder.path().join(format!("steady{lanes}"));
        let (sender, events) = channel();
        let held = hold_way();
        let served = serve(&rig, fresh(&path), &sender);
        assert_eq!(events.recv(), Ok(MountEvent::Ready { by_ring: way() == Way::Rings }));
        drop(held);
        let found = finds_a_quiet_window(&path, clients);
        served.end();
        assert!(
            found,
            "{:?}, {lanes} lanes, {clients} clients: never {WINDOW} requests without one",
            way()
        );
    }
}
