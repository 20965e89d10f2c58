//! Sixty-four processes at once: creating, loading, waiting, removing, and nothing left behind.
//!
//! Each does so twice; `UDM_MANY_TURNS=12` makes it take a minute or more.

use crate::common::Place;
use crate::{dmsetup, exec, has};
use std::fs;
use std::thread;

const PROCESSES: usize = 64;
const TURNS: usize = 2;

/// How often each process does it.
fn turns() -> usize {
    match std::env::var("UDM_MANY_TURNS") {
        Ok(turns) => turns.parse().expect("UDM_MANY_TURNS is a number"),
        Err(_) => TURNS,
    }
}

fn count(pid: u32, what: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/{what}")).expect("a process").count()
}

/// One after the other, and a wait beside it that must not miss its event.
fn life(place: &Place, name: &str) {
    let run = |args: &[&str]| dmsetup(place, args).ok();
    run(&["create", name, "--table", "0 8 zero"]);
    let waiting = exec(place, &["dmsetup", "wait", name, "0"]).spawn().expect("started");
    run(&["load", name, "--table", "0 16 error"]);
    run(&["resume", name]);
    run(&["rename", name, "--setuuid", &format!("U-{name}")]);
    let waited = waiting.wait_with_output().expect("ended");
    assert!(waited.status.success(), "{waited:?}");
    assert_eq!(run(&["table", name]), "0 16 error \n");
    run(&["remove", name]);
}

#[test]
fn sixty_four_processes_lose_no_event_and_leave_nothing() {
    if !has("dmsetup") {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon(&[]);
    let pid = daemon.child.id();
    dmsetup(&place, &["ls"]).ok();
    // The first of its clients may still be leaving: what is counted is taken when it is quiet.
    let quiet = || (count(pid, "fd"), count(pid, "task"));
    let before = quiet();
    thread::scope(|scope| {
        for number in 0..PROCESSES {
            let place = &place;
            scope.spawn(move || {
                for turn in 0..turns() {
                    life(place, &format!("d{number:02}-{turn}"));
                }
            });
        }
    });
    assert_eq!(dmsetup(&place, &["ls"]).ok(), "No devices found\n");
    let mut after = quiet();
    for _ in 0..10_000 {
        if after.0 <= before.0 && after.1 <= before.1 {
            return;
        }
        dmsetup(&place, &["ls"]).ok();
        after = quiet();
    }
    panic!("descriptors and threads: {before:?} before, {after:?} after");
}

#[test]
fn names_are_listed_in_the_kernels_order() {
    if !has("dmsetup") {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    for name in ["b", "a_b", "B", "a", "a-b", "aa", "10", "9"] {
        dmsetup(&place, &["create", name, "--table", "0 8 zero"]).ok();
    }
    let listed = dmsetup(&place, &["info", "-c", "--noheadings", "-o", "name"]).ok();
    let listed: Vec<&str> = listed.lines().collect();
    assert_eq!(listed, ["10", "9", "B", "a", "a-b", "a_b", "aa", "b"]);
}
