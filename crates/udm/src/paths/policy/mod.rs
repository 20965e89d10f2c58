//! The part of multipathd that decides: when to check a path, when to fail, reinstate or set it
//! aside, when to go back to a better group. Pure: views and check results in with the time, what
//! to do out.
//!
//! The watcher (`watch.rs`) does what it says and tells it what came of it. Nothing here does I/O,
//! knows a clock, or talks to a target; so every rule is tested in `tests.rs` without either.
//!
//! Decisions follow from what is known now, never from what was said before: [`DevicePaths::act`]
//! may be called at any time and asks for the same thing again as long as the target does not
//! show it. A message that got lost or was refused is so repeated by itself.
//!
//! ```text
//!            check fails, or the target fails it           checked good
//!   active ---------------------------------------> failed -----------> active
//!                                                     |  N failures in the window
//!                                                     v
//!                                                  marginal  (good, but set aside; active only
//!                                                     |       while nothing better is left)
//!                                                     +-- hold is over, checked good --> active
//! ```
//!
//! The tricky case is a check that began before the target failed the path and comes back good: it
//! says nothing about the path as it is now. Such a result is dropped and the path checked again.

mod record;

#[cfg(test)]
mod tests;

pub use record::{CheckNote, IO_FAILED, PathRecord};

use super::config::{Failback, NoPath, Policy};
use super::view::{GroupState, GroupView, PathView, View};
use std::collections::{BTreeMap, BTreeSet};
use udm_types::Nanos;

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Check the path.
    Check(String),
    /// Send `fail_path`.
    Fail(String),
    /// Send `reinstate_path`.
    Reinstate(String),
    /// Send `switch_group` with this number, counted from 1.
    SwitchGroup(usize),
    /// Send `queue_if_no_path`.
    Queue,
    /// Send `fail_if_no_path`.
    FailIfNoPath,
}

/// How a path is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathState {
    /// It takes I/O.
    Active,
    /// It does not.
    Failed,
    /// It flapped and is set aside.
    Marginal,
    /// Failed, and being looked at right now.
    Checking,
}

impl PathState {
    /// The word people and programs read.
    pub fn word(self) -> &'static str {
        match self {
            PathState::Active => "active",
            PathState::Failed => "failed",
            PathState::Marginal => "marginal",
            PathState::Checking => "checking",
        }
    }
}

/// The paths of one device and all that is known of them.
#[derive(Debug)]
pub struct DevicePaths {
    policy: Policy,
    view: View,
    records: BTreeMap<String, PathRecord>,
    /// Groups that have gone from no active path to one since I/O last was where it belongs.
    risen: BTreeSet<usize>,
    /// When a delayed failback is due.
    failback_at: Option<Nanos>,
    /// Since when no path is left.
    no_path_since: Option<Nanos>,
    /// A message was refused; none is sent before.
    quiet_until: Option<Nanos>,
}

/// How long a refused message waits: what refuses them (a suspend) takes about as long.
const AFTER_REFUSAL: Nanos = Nanos(1_000_000_000);

impl DevicePaths {
    /// Of a device of which nothing is known yet.
    pub fn new(policy: Policy) -> DevicePaths {
        DevicePaths {
            policy,
            view: View::default(),
            records: BTreeMap::new(),
            risen: BTreeSet::new(),
            failback_at: None,
            no_path_since: None,
            quiet_until: None,
        }
    }

    /// How the paths are looked after.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Changes how. What is known of the paths stays; they are checked soon.
    pub fn set_policy(&mut self, policy: Policy, now: Nanos) {
        self.policy = policy;
        self.failback_at = None;
        for record in self.records.values_mut() {
            record.renew(&policy, now);
        }
    }

    /// What is known of a path.
    pub fn record(&self, path: &str) -> Option<&PathRecord> {
        self.records.get(path)
    }

    /// How a path of the view is shown.
    pub fn state(&self, path: &PathView) -> PathState {
        let record = self.records.get(&path.path);
        if record.is_some_and(|record| record.marginal_until.is_some()) {
            return PathState::Marginal;
        }
        if path.is_active {
            return PathState::Active;
        }
        match record.is_some_and(|record| record.checking_since.is_some()) {
            true => PathState::Checking,
            false => PathState::Failed,
        }
    }

    /// The target looks like this now.
    pub fn observe(&mut self, now: Nanos, view: View) {
        for (index, group) in view.groups.iter().enumerate() {
            let was_active = self.view.groups.get(index).is_none_or(has_active);
            if has_active(group) && !was_active {
                self.risen.insert(index);
            }
        }
        let merged = merged(&view);
        self.records.retain(|path, _| merged.contains_key(path.as_str()));
        for (path, merged) in merged {
            let policy = &self.policy;
            self.records
                .entry(path.to_owned())
                .and_modify(|record| record.observe(now, &merged, policy))
                .or_insert_with(|| PathRecord::new(now, &merged, policy));
        }
        let is_dead = !view.groups.is_empty() && !view.groups.iter().any(has_active);
        self.no_path_since = is_dead.then(|| self.no_path_since.unwrap_or(now));
        self.view = view;
    }

    /// A check ended. `retry_at` is when the device itself tries again, if it knows.
    pub fn checked(
        &mut self,
        now: Nanos,
        path: &str,
        result: Result<(), String>,
        retry_at: Option<Nanos>,
    ) {
        let is_active = self.view.paths().any(|view| view.path == path && view.is_active);
        if let Some(record) = self.records.get_mut(path) {
            record.checked(now, result, retry_at, is_active, &self.policy);
        }
    }

    /// The target as it was last seen.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// A message was refused: what it would have changed has not happened. No other is sent for a
    /// moment.
    pub fn refused(&mut self, now: Nanos, act: &Act) {
        self.quiet_until = Some(now + AFTER_REFUSAL);
        if let Act::Fail(path) = act
            && let Some(record) = self.records.get_mut(path)
        {
            record.own_fails = 0;
        }
    }

    /// What to do now, messages in the order to send them.
    pub fn act(&mut self, now: Nanos) -> Vec<Act> {
        let mut acts = Vec::new();
        for record in self.records.values_mut() {
            record.forgive(now);
        }
        self.quiet_until = self.quiet_until.filter(|until| *until > now);
        if !self.view.is_suspended && self.quiet_until.is_none() {
            self.reinstate_and_fail(&mut acts);
            self.fail_back(now, &mut acts);
            self.bound_queueing(now, &mut acts);
        }
        for (path, record) in &mut self.records {
            if record.checking_since.is_none() && record.next_check <= now {
                record.checking_since = Some(now);
                acts.push(Act::Check(path.clone()));
            }
        }
        acts
    }

    /// When [`DevicePaths::act`] has something to say again, if nothing happens before.
    pub fn next_wake(&self) -> Option<Nanos> {
        let checks = self.records.values().filter(|record| record.checking_since.is_none());
        let checks = checks.map(|record| record.next_check);
        let holds = self.records.values().filter_map(|record| record.marginal_until);
        let give_up = match self.policy.no_path {
            NoPath::QueueFor(span) if self.view.queues => {
                self.no_path_since.map(|since| since + span)
            }
            NoPath::QueueFor(_) | NoPath::Table | NoPath::Queue | NoPath::Fail => None,
        };
        // What would need a message waits for the resume, which is told.
        let messages = self.failback_at.into_iter().chain(give_up);
        let own = holds.chain(messages.filter(|_| !self.view.is_suspended));
        let own = own.map(|at| self.quiet_until.map_or(at, |until| at.max(until)));
        checks.chain(own).chain(self.quiet_until).min()
    }

    /// Brings the target's paths to what the checks say.
    fn reinstate_and_fail(&mut self, acts: &mut Vec<Act>) {
        let is_usable = |path: &PathView| {
            let record = self.records.get(&path.path);
            record.is_some_and(|record| {
                let is_good = record.good.unwrap_or(path.is_active);
                is_good && record.marginal_until.is_none()
            })
        };
        let has_better = self.view.paths().any(is_usable);
        let mut fails = Vec::new();
        for path in self.view.paths() {
            let Some(record) = self.records.get(&path.path) else { continue };
            let is_wanted = match (record.good, record.marginal_until) {
                (None, None) => continue,
                (Some(good), None) => good,
                // Set aside, unless there is nothing else.
                (None, Some(_)) => path.is_active && !has_better,
                (Some(good), Some(_)) => good && !has_better,
            };
            match (path.is_active, is_wanted) {
                (false, true) => acts.push(Act::Reinstate(path.path.clone())),
                (true, false) => fails.push(path.path.clone()),
                (true, true) | (false, false) => {}
            }
        }
        // Reinstating first, so that there is no moment without a path.
        for path in fails {
            if let Some(record) = self.records.get_mut(&path) {
                record.own_fails += 1;
            }
            acts.push(Act::Fail(path));
        }
        // A device may be a path of several groups; a message reaches all of them.
        let mut seen = BTreeSet::new();
        acts.retain(|act| match act {
            Act::Fail(path) | Act::Reinstate(path) => seen.insert(path.clone()),
            Act::Check(_) | Act::SwitchGroup(_) | Act::Queue | Act::FailIfNoPath => true,
        });
    }

    /// Goes back to the best group that has a path worth using.
    fn fail_back(&mut self, now: Nanos, acts: &mut Vec<Act>) {
        let Some((best, current)) = self.best_and_current() else {
            self.failback_at = None;
            return;
        };
        if best >= current {
            self.failback_at = None;
            self.risen.clear();
            return;
        }
        let is_due = match self.policy.failback {
            Failback::Immediate => true,
            Failback::Manual => false,
            Failback::FollowOver => self.risen.contains(&best),
            Failback::After(span) => *self.failback_at.get_or_insert(now + span) <= now,
        };
        if is_due {
            self.failback_at = None;
            acts.push(Act::SwitchGroup(best + 1));
        }
    }

    /// Indices of the best group and of the one in use. `None` while no group is in use, and while
    /// one is disabled: that is somebody's hand, and `switch_group` would enable it again.
    fn best_and_current(&self) -> Option<(usize, usize)> {
        let groups = &self.view.groups;
        if groups.iter().any(|group| group.state == GroupState::Disabled) {
            return None;
        }
        let current = groups.iter().position(|group| group.state == GroupState::Current)?;
        let is_worth = |path: &PathView| {
            let record = self.records.get(&path.path);
            path.is_active && record.is_some_and(|record| record.marginal_until.is_none())
        };
        let best = groups.iter().position(|group| group.paths.iter().any(is_worth))?;
        Some((best, current))
    }

    /// Turns queueing on and off as the policy says.
    fn bound_queueing(&mut self, now: Nanos, acts: &mut Vec<Act>) {
        if self.view.groups.is_empty() {
            return;
        }
        let queues = self.view.queues;
        let wanted = match (self.policy.no_path, self.no_path_since) {
            (NoPath::Table, _) => queues,
            (NoPath::Fail, _) => false,
            (NoPath::Queue | NoPath::QueueFor(_), None) => true,
            (NoPath::QueueFor(span), Some(since)) if since + span <= now => false,
            // With no path left, `fail_if_no_path` is somebody's way out: it is left alone.
            (NoPath::Queue | NoPath::QueueFor(_), Some(_)) => queues,
        };
        match (queues, wanted) {
            (false, true) => acts.push(Act::Queue),
            (true, false) => acts.push(Act::FailIfNoPath),
            (true, true) | (false, false) => {}
        }
    }
}

/// The paths by name. A device that is a path of several groups is one path here: active where
/// it is active everywhere, with all its failures.
fn merged(view: &View) -> BTreeMap<&str, PathView> {
    let mut merged: BTreeMap<&str, PathView> = BTreeMap::new();
    for path in view.paths() {
        merged
            .entry(&path.path)
            .and_modify(|known| {
                known.is_active &= path.is_active;
                known.fail_count += path.fail_count;
            })
            .or_insert_with(|| path.clone());
    }
    merged
}

fn has_active(group: &GroupView) -> bool {
    group.paths.iter().any(|path| path.is_active)
}
