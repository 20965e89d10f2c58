//! Eventfds: watching one that another process rings, and ringing one for another process.

use crate::rig::Rig;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::OwnedFd;
use udm_lane::{DriverOp, Errno, Handle, OpToken};
use udm_types::Nanos;

/// An eventfd of which the driver has one end and the test another.
fn event(rig: &mut Rig) -> (Handle, OwnedFd) {
    let ours = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let theirs = ours.try_clone().unwrap();
    (rig.register(ours), theirs)
}

fn ring(fd: &OwnedFd) {
    rustix::io::write(fd, &1_u64.to_ne_bytes()).unwrap();
}

fn rings(fd: &OwnedFd) -> u64 {
    let mut count = [0_u8; 8];
    rustix::io::read(fd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

/// Takes the result that may come with the start of a watch.
fn settle(rig: &mut Rig, token: OpToken) {
    if rig.leftover(token) > 0 {
        rig.completion(token);
    }
    assert_eq!(rig.leftover(token), 0, "an idle watch is silent");
}

pub(crate) fn every_ring_is_reported_and_an_idle_watch_is_silent(mut rig: Rig) {
    let (handle, peer) = event(&mut rig);
    let token = rig.submit(DriverOp::Watch { handle });
    settle(&mut rig, token);
    for _ in 0..3 {
        ring(&peer);
        assert!(rig.completion(token).more);
        assert_eq!(rig.leftover(token), 0);
    }
    assert_eq!(rings(&peer), 3, "the counter is left alone");
}

pub(crate) fn a_ring_before_the_watch_is_reported(mut rig: Rig) {
    let (handle, peer) = event(&mut rig);
    ring(&peer);
    let token = rig.submit(DriverOp::Watch { handle });
    assert!(rig.completion(token).more);
}

pub(crate) fn a_cancelled_or_closed_watch_ends_once(mut rig: Rig) {
    for close in [false, true] {
        let (handle, _peer) = event(&mut rig);
        let token = rig.submit(DriverOp::Watch { handle });
        settle(&mut rig, token);
        if close {
            rig.driver.close(handle)
        } else {
            rig.driver.cancel(token)
        }
        assert_eq!(rig.result(token), Err(Errno(libc::ECANCELED)));
        assert_eq!(rig.leftover(token), 0);
    }
}

pub(crate) fn a_signal_rings_and_reports_nothing(mut rig: Rig) {
    let (handle, peer) = event(&mut rig);
    rig.driver.signal(handle);
    rig.driver.signal(handle);
    assert_eq!(rig.turn(Some(Nanos::ZERO)), 0);
    assert_eq!(rings(&peer), 2);
}

pub(crate) fn a_signal_just_before_a_close_still_rings(mut rig: Rig) {
    let (handle, peer) = event(&mut rig);
    rig.driver.signal(handle);
    rig.driver.close(handle);
    // What is registered next must not get the ring, whatever place it has.
    let (other, other_peer) = event(&mut rig);
    assert_eq!(rig.turn(Some(Nanos::ZERO)), 0);
    assert_eq!((rings(&peer), rings(&other_peer)), (1, 0));
    rig.driver.signal(handle);
    rig.driver.signal(other);
    rig.turn(Some(Nanos::ZERO));
    assert_eq!((rings(&peer), rings(&other_peer)), (0, 1), "a closed handle rings nothing");
}
