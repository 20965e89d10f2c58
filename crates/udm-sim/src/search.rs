//! Searching seeds: run many worlds, stop at the first failure, make it small.
//!
//! A panic inside a world (an assertion of the engine) counts as a failure of that seed like any
//! broken promise. A failing seed is made small by halving its steps as long as it still fails;
//! failures are not monotone in steps, so the result is small, not smallest.
//!
//! Worlds are independent; the binary runs two searches over disjoint seeds side by side.
//!
//! The tricky case is a panic's message: it must reach the report although the world is gone, so
//! the payload is taken apart here.

use crate::world::{Scenario, Verdict, run};
use crate::{Canary, Tally};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A seed that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What to run to see it again.
    pub scenario: Scenario,
    /// What was broken.
    pub violation: String,
}

/// What a search did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Worlds run.
    pub runs: u64,
    /// Steps of their safety phases.
    pub steps: u64,
    /// Events.
    pub events: u64,
    /// What happened how often.
    pub tally: Tally,
    /// The first failure.
    pub failure: Option<Failure>,
}

impl Outcome {
    /// Adds another search's work; the first failure stays.
    pub fn absorb(&mut self, other: Outcome) {
        self.runs += other.runs;
        self.steps += other.steps;
        self.events += other.events;
        self.tally.add(&other.tally);
        self.failure = self.failure.take().or(other.failure);
    }
}

/// Runs one world; a panic is a violation.
pub fn judge(scenario: &Scenario) -> Verdict {
    catch_unwind(AssertUnwindSafe(|| run(scenario))).unwrap_or_else(|payload| {
        let text = match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
            (Some(text), _) => text.clone(),
            (None, Some(text)) => (*text).to_owned(),
            (None, None) => "a panic without words".to_owned(),
        };
        Verdict {
            violation: Some(format!("panic: {text}")),
            hash: 0,
            events: 0,
            tally: Tally::default(),
            steps: scenario.steps,
        }
    })
}

/// Runs a world for each seed until one fails. `stop` ends the search early.
pub fn search(
    base: &Scenario,
    seeds: impl Iterator<Item = u64>,
    mut stop: impl FnMut(&Outcome) -> bool,
) -> Outcome {
    let mut outcome = Outcome::default();
    for seed in seeds {
        let scenario = Scenario { seed, ..base.clone() };
        let verdict = judge(&scenario);
        outcome.runs += 1;
        outcome.steps += verdict.steps;
        outcome.events += verdict.events;
        outcome.tally.add(&verdict.tally);
        if let Some(violation) = verdict.violation {
            let steps = verdict.steps;
            outcome.failure = Some(Failure { scenario: Scenario { steps, ..scenario }, violation });
            return outcome;
        }
        if stop(&outcome) {
            return outcome;
        }
    }
    outcome
}

/// Makes a failure small: fewer steps, as long as it still fails.
pub fn shrink(failure: Failure) -> Failure {
    let mut small = failure;
    let mut passes = 0;
    while small.scenario.steps > passes + 1 {
        let steps = passes + (small.scenario.steps - passes) / 2;
        let scenario = Scenario { steps, ..small.scenario.clone() };
        match judge(&scenario).violation {
            Some(violation) => small = Failure { scenario, violation },
            None => passes = steps,
        }
    }
    small
}

/// The seeds a canary needs until it is caught; `None` if it is not within `limit`.
pub fn seeds_to_catch(canary: Canary, limit: u64, steps: u64) -> Option<(u64, String)> {
    let base =
        Scenario { seed: 0, steps, lanes: None, only: None, canary: Some(canary), trace: false };
    let outcome = search(&base, 0..limit, |_| false);
    outcome.failure.map(|failure| (failure.scenario.seed + 1, failure.violation))
}
