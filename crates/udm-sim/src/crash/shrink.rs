//! Making a failure small: steps are left out as long as anything is still broken.
//!
//! Halves first, then quarters, down to single steps (delta debugging), with a bound on the runs,
//! since each may take a while. Steps carry their own seeds, so the rest of a plan behaves as it
//! did, as far as it can.
//!
//! Rules. The result fails: the scenario that is returned was run. It is searched in the
//! exhaustive depth if that fails too, because sampled points move when steps go.
//!
//! The tricky case is a failure that needs luck: then nothing can be left out, and the first
//! scenario comes back as it was.

use crate::crash::{Depth, Scenario, judge};

/// Runs at most.
const RUNS_MAX: u32 = 400;

/// Leaves out what can be left out; returns the scenario and how many steps it has.
pub(crate) fn shrink(scenario: &Scenario, all: Vec<u32>) -> (Scenario, usize) {
    let mut runs = 0;
    let mut fails = |depth, keep: &[u32]| {
        runs += 1;
        let trial = Scenario { depth, keep: Some(keep.to_vec()), trace: false, ..scenario.clone() };
        runs <= RUNS_MAX && judge(&trial).broken.is_some()
    };
    let mut kept = all;
    let depth = match fails(Depth::Exhaustive, &kept) {
        true => Depth::Exhaustive,
        false => scenario.depth,
    };
    let mut part = kept.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < kept.len() {
            let end = (at + part).min(kept.len());
            let fewer: Vec<u32> = kept[..at].iter().chain(&kept[end..]).copied().collect();
            if fails(depth, &fewer) {
                kept = fewer;
            } else {
                at = end;
            }
        }
        if part == 1 {
            break;
        }
        part = part.div_ceil(2);
    }
    let count = kept.len();
    (Scenario { depth, keep: Some(kept), ..scenario.clone() }, count)
}
