//! Waiting: wakes, deadlines, and doing nothing while there is nothing to do.

use crate::rig::{PATIENCE_S, Rig, payload_of, scratch_file};
use std::time::{Duration, Instant};
use udm_lane::DriverOp;
use udm_types::Nanos;

/// The calling thread's number, as `/proc` names it.
fn thread_id() -> String {
    let link = std::fs::read_link("/proc/thread-self").unwrap();
    link.file_name().unwrap().to_str().unwrap().to_owned()
}

/// Returns once a thread of this test sleeps in the kernel.
fn until_blocked(thread: &str) {
    let give_up = Instant::now() + Duration::from_secs(PATIENCE_S);
    loop {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
        let state = stat.rsplit(')').next().unwrap().trim_start();
        if state.starts_with('S') {
            return;
        }
        assert!(Instant::now() < give_up, "the thread never blocks");
        std::thread::yield_now();
    }
}

/// How often the calling thread has given up the processor by itself.
fn voluntary_switches() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

pub(crate) fn a_wake_from_another_thread_ends_a_blocked_wait(mut rig: Rig) {
    for _ in 0..20 {
        let (waker, sleeper) = (rig.driver.waker(), thread_id());
        let thread = std::thread::spawn(move || {
            until_blocked(&sleeper);
            waker.wake();
        });
        let deadline = rig.driver.now() + Nanos::from_secs(PATIENCE_S);
        assert_eq!(rig.turn(Some(deadline)), 0);
        assert!(rig.driver.now() < deadline, "the wake was lost");
        thread.join().unwrap();
    }
}

pub(crate) fn a_wake_before_the_wait_is_not_lost(mut rig: Rig) {
    rig.driver.waker().wake();
    assert_eq!(rig.turn(None), 0);
}

pub(crate) fn many_wakes_end_one_wait(mut rig: Rig) {
    let waker = rig.driver.waker();
    for _ in 0..1_000 {
        waker.wake();
    }
    assert_eq!(rig.turn(None), 0);
    let start = rig.driver.now();
    let deadline = start + Nanos::from_millis(20);
    rig.turn(Some(deadline));
    assert!(rig.driver.now() >= deadline, "the repeated wakes must count as one");
}

pub(crate) fn a_deadline_ends_the_wait_and_never_early(mut rig: Rig) {
    for span_ns in [1, 50_000, 999_999, 1_000_001, 20_000_000] {
        let deadline = rig.driver.now() + Nanos(span_ns);
        assert_eq!(rig.turn(Some(deadline)), 0);
        let now = rig.driver.now();
        assert!(now >= deadline, "early by {} ns", (deadline - now).0);
        assert!(
            now < deadline + Nanos::from_secs(10),
            "late by {} ms",
            (now - deadline).as_millis()
        );
    }
}

pub(crate) fn a_past_deadline_never_blocks(mut rig: Rig) {
    let (handle, _peer) = rig.socket_pair();
    rig.receive(handle, 100);
    let before = voluntary_switches();
    for _ in 0..100 {
        let now = rig.driver.now();
        assert_eq!(rig.turn(Some(now)), 0);
        assert_eq!(rig.turn(Some(Nanos::ZERO)), 0);
    }
    assert!(voluntary_switches() - before < 10, "a wait that must not block blocked");
}

pub(crate) fn a_completion_ends_a_wait_before_its_deadline(mut rig: Rig) {
    let handle = rig.register(scratch_file());
    let deadline = rig.driver.now() + Nanos::from_secs(PATIENCE_S);
    rig.submit(DriverOp::Sync { handle });
    assert_eq!(rig.turn(Some(deadline)), 1);
    assert!(rig.driver.now() < deadline);
}

pub(crate) fn an_idle_driver_does_not_wake_up(mut rig: Rig) {
    // Everything a lane has while idle: files, listening sockets, quiet connections, a past wake.
    let file = rig.register(scratch_file());
    rig.run(DriverOp::Sync { handle: file }).unwrap();
    let payload = payload_of(&[1; 512]);
    let op = DriverOp::Write { handle: file, offset_bytes: 0, payload, dsync: false };
    assert_eq!(rig.run(op), Ok(512));
    let mut peers = Vec::new();
    for _ in 0..50 {
        let (handle, peer) = rig.socket_pair();
        rig.receive(handle, 100);
        peers.push(peer);
    }
    rig.driver.waker().wake();
    rig.turn(None);
    let deadline = rig.driver.now() + Nanos::from_millis(1);
    rig.turn(Some(deadline));
    let before = voluntary_switches();
    let deadline = rig.driver.now() + Nanos::from_millis(300);
    assert_eq!(rig.turn(Some(deadline)), 0);
    let switches = voluntary_switches() - before;
    assert!(rig.driver.now() >= deadline);
    assert!(switches <= 2, "{switches} sleeps where one is enough");
}
