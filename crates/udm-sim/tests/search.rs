//! The simulation itself on trial: it is deterministic, it is busy, and its alarms work.
//!
//! A search that finds nothing proves something only if worlds with one seed are the same world, if
//! everything that should happen in them does, and if a planted bug is found. These tests are that
//! proof; the long search is `cargo xtask sim --seeds 5000`.
//!
//! The short search here runs with every change of the repository. Its seeds are fixed, so that a
//! failure is the change's and not the day's.

use udm_sim::Canary;
use udm_sim::search::{search, seeds_to_catch};
use udm_sim::world::{Scenario, run};

fn scenario(seed: u64, steps: u64) -> Scenario {
    Scenario { seed, steps, lanes: None, only: None, canary: None, trace: false }
}

#[test]
fn the_same_seed_twice_gives_the_same_trace() {
    let mut hashes = Vec::new();
    for seed in 1..=12 {
        let (once, again) = (run(&scenario(seed, 1500)), run(&scenario(seed, 1500)));
        assert!(once.events > 300, "seed {seed} did nothing");
        assert_eq!((once.hash, once.events), (again.hash, again.events), "seed {seed}");
        hashes.push(once.hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 12, "other seeds are other worlds");
}

#[test]
fn a_short_search_breaks_no_promise_and_leaves_nothing_out() {
    let outcome = search(&scenario(0, 2500), 1..=150, |_| false);
    if let Some(failure) = outcome.failure {
        panic!("seed {}: {}", failure.scenario.seed, failure.violation);
    }
    for what in [
        "bio read",
        "bio write",
        "bio fua",
        "bio preflush",
        "bio barrier",
        "bio empty barrier",
        "bio flush",
        "bio discard",
        "bio write-zeroes",
        "bios ok",
        "bios failed",
        "fault eio",
        "fault enospc",
        "fault short",
        "fault eintr",
        "fault eagain",
        "fault slow",
        "fault hang",
        "suspend flush",
        "suspend noflush",
        "suspend given up",
        "suspends that may abort",
        "compress volumes",
        "bios without space",
        "swaps",
        "relayouts",
        "grows",
        "shrinks",
        "deaths",
        "stack pauses",
        "upside-down pauses",
        "suspends taken back",
        "bad tables",
        "refused resumes",
        "cascades of removals",
        "clears",
        "meddlings",
        "scratch devices",
        "volumes removed",
    ] {
        assert!(outcome.tally.of(what) > 0, "'{what}' never happened: {}", outcome.tally);
    }
}

#[test]
fn a_short_search_over_multipath_breaks_no_promise_and_leaves_nothing_out() {
    let base = Scenario { only: Some("multipath".into()), ..scenario(0, 3000) };
    let outcome = search(&base, 1..=60, |_| false);
    if let Some(failure) = outcome.failure {
        panic!("seed {}: {}", failure.scenario.seed, failure.violation);
    }
    for what in [
        "bios ok",
        "path deaths",
        "path stalls",
        "path flaps",
        "path misfits",
        "path returns",
        "all paths dead",
        "operations on a dead path",
        "late answers of a dead path",
        "new paths for held I/O",
        "suspends without a path",
        "path messages",
        "paths checked",
        "queueing turned off and on",
        "suspend flush",
        "suspend noflush",
        "bios without space",
        "swaps",
        "tables refused for the size of a path",
    ] {
        assert!(outcome.tally.of(what) > 0, "'{what}' never happened: {}", outcome.tally);
    }
}

#[test]
fn every_canary_is_caught_within_200_seeds() {
    for (name, canary) in Canary::ALL {
        let caught = seeds_to_catch(canary, 200, 1500);
        assert!(caught.is_some(), "canary {name} lives");
    }
}
