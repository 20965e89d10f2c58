//! Crash enumeration: production code on a simulated disk, crashed everywhere, and judged.
//!
//! [`judge`] runs one seed: it draws a setup and a plan, formats a disk, carries the plan out and
//! takes crashes on the way. Start reading at `life.rs` (lives and their crash points), then
//! `recover.rs`, `disk.rs` and `outcome.rs` (what a crash leaves), `oracle.rs` (who judges),
//! `plan.rs` (workloads). `subject.rs` is what can be crashed; `ledger.rs` is a small one with
//! rules that can be taken out, so that the alarm itself is tested.
//!
//! Everything is a function of the scenario: no clock, no threads, no hash order. The binary runs
//! several seeds side by side. docs/internals/crash.md is the guide.
//!
//! The tricky case is a failure's size: [`shrink()`] leaves steps out as long as anything at all is
//! still broken, so the small plan may break in another way than the first.

mod after;
mod compress;
mod damage;
mod direct;
mod disk;
mod host;
mod image;
mod ledger;
mod life;
mod oracle;
mod outcome;
mod plan;
mod recover;
mod shrink;
mod sizes;
mod stamp;
mod subject;
mod totals;

pub use ledger::Rule;
pub use totals::Totals;

use crate::crash::compress::Compress;
use crate::crash::disk::{CrashDisk, DiscardReads};
use crate::crash::ledger::Ledger;
use crate::crash::life::Run;
use crate::crash::plan::{Plan, Size};
use crate::crash::subject::CrashSubject;
use fastrand::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How many of the possible crashes are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// At every point, each unflushed write alone and left out, and drawn mixtures.
    Exhaustive,
    /// At some points a few drawn ones.
    Sampled {
        /// Points of a thousand.
        points_per_mille: u32,
        /// Crashes at each.
        outcomes: u32,
    },
}

impl Depth {
    pub(crate) fn points_per_mille(self) -> u32 {
        match self {
            Depth::Exhaustive => 1000,
            Depth::Sampled { points_per_mille, .. } => points_per_mille,
        }
    }

    /// Recoveries of a hundred that are crashed: enough that a tenth of all crashes is there.
    pub(crate) fn nested_percent(self) -> u32 {
        match self {
            Depth::Exhaustive => 40,
            Depth::Sampled { .. } => 30,
        }
    }
}

/// Who is crashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The small volume that tests the enumerator, perhaps without one of its rules.
    Ledger(Option<Rule>),
    /// The volume of the compress target.
    Compress,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Who is crashed.
    pub which: Which,
    /// Of everything.
    pub seed: u64,
    /// How many crashes.
    pub depth: Depth,
    /// Steps of a life at most.
    pub steps: u32,
    /// Only these steps of the plan.
    pub keep: Option<Vec<u32>>,
    /// Keep a trace.
    pub trace: bool,
}

/// What a run found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What was done.
    pub totals: Totals,
    /// What was broken.
    pub broken: Option<String>,
    /// What happened until then, if asked for.
    pub trace: Vec<String>,
}

/// Lives of a plan at most.
const LIVES_MAX: u32 = 5;

/// Runs one seed; a panic of the subject is a failure like any other.
pub fn judge(scenario: &Scenario) -> Verdict {
    match scenario.which {
        Which::Ledger(rule) => judge_subject::<Ledger>(scenario, |setup| setup.without = rule),
        Which::Compress => judge_subject::<Compress>(scenario, |_| {}),
    }
}

/// Makes a failing scenario smaller, and says how many steps are left.
pub fn shrink(scenario: &Scenario) -> (Scenario, usize) {
    let plan = match scenario.which {
        Which::Ledger(_) => plan_of::<Ledger>(scenario),
        Which::Compress => plan_of::<Compress>(scenario),
    };
    shrink::shrink(scenario, plan.numbers())
}

fn setup_of<S: CrashSubject>(scenario: &Scenario) -> (S::Setup, Rng) {
    let mut rng = Rng::with_seed(scenario.seed ^ 0x5e7_0000);
    (S::draw(&mut rng), rng)
}

fn plan_of<S: CrashSubject>(scenario: &Scenario) -> Plan {
    let (setup, _) = setup_of::<S>(scenario);
    let size = Size { lives: LIVES_MAX, steps: scenario.steps.max(1) };
    let plan = Plan::draw(scenario.seed, &S::shape(&setup), size);
    match &scenario.keep {
        Some(wanted) => plan.keep(wanted),
        None => plan,
    }
}

fn judge_subject<S: CrashSubject>(scenario: &Scenario, adjust: impl Fn(&mut S::Setup)) -> Verdict {
    let (mut setup, mut rng) = setup_of::<S>(scenario);
    adjust(&mut setup);
    let plan = plan_of::<S>(scenario);
    let reads =
        [DiscardReads::Zeroes, DiscardReads::Garbage, DiscardReads::Kept, DiscardReads::Mixed]
            [rng.usize(0..4)];
    let shape = S::shape(&setup);
    let mut disk = CrashDisk::new(shape.disk_len_bytes, reads);
    let port = udm_meta::Disk::new(shape.disk_len_bytes);
    let formatted = catch_unwind(AssertUnwindSafe(|| {
        udm_meta::host::run_on(&port, &mut disk, S::format(&setup, port.clone()))
    }));
    match formatted {
        Ok(Ok(())) => {}
        Ok(Err(why)) => return broken(format!("format: {why}")),
        Err(payload) => return broken(format!("format: panic: {}", words(&*payload))),
    }
    let mut run = Run::<S>::new(&setup, disk, scenario.depth, &plan.lives[0], scenario.trace);
    let result = catch_unwind(AssertUnwindSafe(|| run.lives(&plan.lives)));
    let mut verdict = Verdict { totals: run.totals.clone(), ..Verdict::default() };
    verdict.totals.plans = 1;
    verdict.trace = run.host.trace.take().unwrap_or_default();
    if scenario.trace {
        verdict.trace.insert(0, format!("{setup:?}"));
    }
    verdict.broken = match result {
        Ok(Ok(())) => None,
        Ok(Err(what)) => Some(what),
        Err(payload) => Some(format!("panic: {} {}", run.place(), words(&*payload))),
    };
    verdict
}

fn broken(what: String) -> Verdict {
    Verdict { broken: Some(what), ..Verdict::default() }
}

/// What a panic said.
fn words(payload: &(dyn std::any::Any + Send)) -> String {
    match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (None, Some(text)) => (*text).to_owned(),
        (None, None) => "without words".to_owned(),
    }
}

#[cfg(test)]
mod tests;
