//! What is remembered of one path: its last checks, its recent failures, whether it is set aside.
//!
//! Part of the policy and as pure. The counting rule: a failure is a path that went from good to
//! bad, whoever noticed it; what our own `fail_path` adds to the target's count is none.

use crate::paths::config::Policy;
use crate::paths::view::PathView;
use std::collections::VecDeque;
use udm_types::Nanos;

/// A path that the target failed is looked at again after this long, or sooner with a shorter
/// interval: most failures are over at once or not for long.
const AFTER_FAILURE: Nanos = Nanos(1_000_000_000);
/// Why a path failed, if the target failed it and it is not known more exactly.
pub const IO_FAILED: &str = "an I/O failed";
/// Shortest time between two checks, whatever a device says about its next try.
const BETWEEN_CHECKS: Nanos = Nanos(100_000_000);

/// A check that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckNote {
    /// When.
    pub at: Nanos,
    /// It was good.
    pub is_good: bool,
}

/// One path.
#[derive(Clone, Debug)]
pub struct PathRecord {
    /// What the last check that counts said; `None` before the first, and after the target failed
    /// the path.
    pub good: Option<bool>,
    /// When the check under way began.
    pub checking_since: Option<Nanos>,
    /// When the next begins.
    pub next_check: Nanos,
    /// The last one.
    pub last_check: Option<CheckNote>,
    /// Why the path last failed.
    pub last_error: Option<String>,
    /// It is set aside until then.
    pub marginal_until: Option<Nanos>,
    /// `fail_path` messages of ours that the target's count does not show yet.
    pub(super) own_fails: u64,
    interval: Nanos,
    was_active: bool,
    fail_count: u64,
    /// The check under way began before the path failed.
    is_stale: bool,
    failures: VecDeque<Nanos>,
}

impl PathRecord {
    /// Of a path that was not there before; it is checked at once.
    pub(super) fn new(now: Nanos, view: &PathView, policy: &Policy) -> PathRecord {
        PathRecord {
            good: None,
            checking_since: None,
            next_check: now,
            last_check: None,
            last_error: None,
            marginal_until: None,
            own_fails: 0,
            interval: policy.interval,
            was_active: view.is_active,
            fail_count: view.fail_count,
            is_stale: false,
            failures: VecDeque::new(),
        }
    }

    /// Other intervals from now on.
    pub(super) fn renew(&mut self, policy: &Policy, now: Nanos) {
        self.interval = policy.interval;
        self.next_check = self.next_check.min(now + policy.interval);
        if policy.marginal.is_none() {
            self.marginal_until = None;
            self.failures.clear();
        }
    }

    /// The target says this of the path.
    pub(super) fn observe(&mut self, now: Nanos, view: &PathView, policy: &Policy) {
        // A smaller count is a new table's, which knows nothing of the old failures.
        let grown = view.fail_count.saturating_sub(self.fail_count);
        let own = grown.min(self.own_fails);
        let foreign = grown - own;
        self.own_fails = 0;
        self.fail_count = view.fail_count;
        if foreign > 0 {
            for _ in 0..foreign {
                self.count_failure(now, policy);
            }
            self.last_error = Some(IO_FAILED.to_owned());
        }
        if foreign > 0 || (self.was_active && !view.is_active && own == 0) {
            self.good = None;
            self.is_stale = self.checking_since.is_some();
            self.interval = policy.interval;
            self.next_check = now + policy.interval.min(AFTER_FAILURE);
        }
        self.was_active = view.is_active;
    }

    /// A check ended.
    pub(super) fn checked(
        &mut self,
        now: Nanos,
        result: Result<(), String>,
        retry_at: Option<Nanos>,
        is_active: bool,
        policy: &Policy,
    ) {
        self.checking_since = None;
        self.last_check = Some(CheckNote { at: now, is_good: result.is_ok() });
        let is_stale = std::mem::take(&mut self.is_stale);
        match result {
            Ok(()) if is_stale => {
                self.next_check = now + policy.interval.min(AFTER_FAILURE);
            }
            Ok(()) => {
                if self.good == Some(true) {
                    self.interval = Nanos(self.interval.0.saturating_mul(2));
                    self.interval = self.interval.min(policy.interval_max);
                }
                self.good = Some(true);
                self.next_check = now + self.interval;
            }
            Err(error) => {
                // A path that the target has failed already was counted then.
                if is_active && self.good != Some(false) {
                    self.count_failure(now, policy);
                }
                self.good = Some(false);
                self.last_error = Some(error);
                self.interval = policy.interval;
                let usual = now + policy.interval;
                let retry_at = retry_at.map_or(usual, |at| at + BETWEEN_CHECKS);
                self.next_check = retry_at.min(usual).max(now + BETWEEN_CHECKS);
            }
        }
    }

    /// Ends being set aside if its time is over.
    pub(super) fn forgive(&mut self, now: Nanos) {
        if self.marginal_until.is_some_and(|until| until <= now) {
            self.marginal_until = None;
            self.failures.clear();
        }
    }

    fn count_failure(&mut self, now: Nanos, policy: &Policy) {
        let Some(marginal) = policy.marginal else { return };
        while self.failures.front().is_some_and(|at| *at + marginal.window < now) {
            self.failures.pop_front();
        }
        // Bounded by the number that sets the path aside.
        if self.failures.len() < marginal.failures as usize {
            self.failures.push_back(now);
        }
        if self.failures.len() >= marginal.failures as usize || self.marginal_until.is_some() {
            self.marginal_until = Some(now + marginal.hold);
        }
    }
}
