//! The enumerator proven: a correct volume passes, and each rule it loses is noticed.

use super::{Depth, Rule, Scenario, Which, judge, shrink};

fn scenario(rule: Option<Rule>, seed: u64, depth: Depth) -> Scenario {
    Scenario { which: Which::Ledger(rule), seed, depth, steps: 30, keep: None, trace: false }
}

const SAMPLED: Depth = Depth::Sampled { points_per_mille: 500, outcomes: 2 };

#[test]
fn a_correct_volume_survives_everything() {
    let mut crashes = 0;
    let mut in_recovery = 0;
    let (mut checked, mut spoiled) = (0, 0);
    for seed in 0..60 {
        let verdict = judge(&scenario(None, seed, SAMPLED));
        assert_eq!(verdict.broken, None, "seed {seed}");
        crashes += verdict.totals.crashes;
        in_recovery += verdict.totals.in_recovery;
        checked += verdict.totals.checked;
        spoiled += verdict.totals.spoiled;
    }
    assert!(crashes > 2000, "{crashes} crashes are too few to say anything");
    assert!(in_recovery * 10 > crashes, "{in_recovery} of {crashes} inside recovery");
    let verdict = judge(&scenario(None, 1, Depth::Exhaustive));
    assert_eq!(verdict.broken, None);
    assert!(checked > 0 && spoiled > 0, "the checker never ran, or no bit was flipped");
}

#[test]
fn every_rule_taken_out_is_noticed() {
    for (name, rule) in Rule::ALL {
        let caught =
            (0..60).find(|&seed| judge(&scenario(Some(rule), seed, SAMPLED)).broken.is_some());
        assert!(caught.is_some(), "nobody misses the rule {name}");
    }
}

#[test]
fn the_same_scenario_does_the_same() {
    for rule in [None, Some(Rule::TwoSlots)] {
        let scenario = Scenario { trace: true, ..scenario(rule, 5, SAMPLED) };
        assert_eq!(judge(&scenario), judge(&scenario));
    }
}

#[test]
fn a_failure_shrinks_to_a_few_steps() {
    let first = (0..60)
        .map(|seed| scenario(Some(Rule::FlushBeforeAnswer), seed, SAMPLED))
        .find(|scenario| judge(scenario).broken.is_some())
        .expect("it is noticed");
    let (small, steps) = shrink(&first);
    assert!(judge(&small).broken.is_some(), "what is left fails");
    assert!(steps <= 3, "a write and a flush are enough, and {steps} steps are left");
}

#[test]
fn a_clock_that_went_back_an_hour_leaves_nobody_stuck() {
    // The clock jumps ahead by more than an hour and back, then writers wait five seconds for
    // space: their timer is far from the time, and near to what the volume takes for the time.
    let verdict = judge(&Scenario {
        which: Which::Compress,
        seed: 2310406089013282,
        depth: Depth::Sampled { points_per_mille: 20, outcomes: 1 },
        steps: 40,
        keep: Some(vec![2, 12, 15, 21, 22, 27, 28, 33, 34, 35]),
        trace: false,
    });
    assert_eq!(verdict.broken, None);
    assert!(verdict.totals.no_space > 0, "the writers were to wait for space");
}
