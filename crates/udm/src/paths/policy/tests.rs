//! Every rule of the policy, with a fake target and a clock that the test turns.

use super::{Act, DevicePaths, PathState};
use crate::paths::config::{Failback, Marginal, NoPath, Policy};
use crate::paths::view::{GroupState, GroupView, PathView, View};
use udm_types::Nanos;

/// A target that does what messages say, and the policy under test.
struct World {
    now: Nanos,
    paths: DevicePaths,
    view: View,
    /// Paths whose checks fail.
    broken: Vec<&'static str>,
    /// Everything asked for, with the second it was asked in.
    log: Vec<(u64, Act)>,
}

fn secs(secs: u64) -> Nanos {
    Nanos::from_secs(secs)
}

impl World {
    /// Groups of paths, the first group in use.
    fn new(policy: Policy, groups: &[&[&str]]) -> World {
        let groups = groups.iter().enumerate().map(|(index, paths)| GroupView {
            state: if index == 0 { GroupState::Current } else { GroupState::Enabled },
            paths: paths
                .iter()
                .map(|path| PathView { path: (*path).into(), is_active: true, fail_count: 0 })
                .collect(),
        });
        let view = View { groups: groups.collect(), queues: true, is_suspended: false };
        let paths = DevicePaths::new(policy);
        let mut world = World { now: secs(100), paths, view, broken: Vec::new(), log: Vec::new() };
        world.step();
        world
    }

    /// Shows the target and does what is asked for, until nothing is.
    fn step(&mut self) {
        for _ in 0..20 {
            self.paths.observe(self.now, self.view.clone());
            let acts = self.paths.act(self.now);
            if acts.is_empty() {
                return;
            }
            for act in acts {
                self.log.push((self.now.0 / 1_000_000_000, act.clone()));
                self.obey(&act);
            }
        }
        panic!("never quiet: {:?}", self.log);
    }

    fn obey(&mut self, act: &Act) {
        match act {
            Act::Check(path) => {
                let is_broken = self.broken.iter().any(|broken| broken == path);
                let result = if is_broken { Err("no answer".to_owned()) } else { Ok(()) };
                self.paths.checked(self.now, path, result, None);
            }
            Act::Fail(path) => self.fail(path),
            Act::Reinstate(path) => self.set_active(path, true),
            Act::SwitchGroup(group) => self.use_group(group - 1),
            Act::Queue => self.view.queues = true,
            Act::FailIfNoPath => self.view.queues = false,
        }
    }

    fn set_active(&mut self, name: &str, is_active: bool) {
        for path in self.view.groups.iter_mut().flat_map(|group| &mut group.paths) {
            if path.path == name {
                path.is_active = is_active;
            }
        }
    }

    /// What the target does when I/O fails, and for `fail_path`.
    fn fail(&mut self, name: &str) {
        for path in self.view.groups.iter_mut().flat_map(|group| &mut group.paths) {
            if path.path == name && path.is_active {
                path.is_active = false;
                path.fail_count += 1;
            }
        }
    }

    fn use_group(&mut self, wanted: usize) {
        for (index, group) in self.view.groups.iter_mut().enumerate() {
            let is_wanted = index == wanted;
            group.state = if is_wanted { GroupState::Current } else { GroupState::Enabled };
        }
    }

    /// Lets time pass, with a step whenever the policy wants one.
    fn run(&mut self, span: Nanos) {
        let end = self.now + span;
        while let Some(wake) = self.paths.next_wake().filter(|wake| *wake <= end) {
            assert!(wake > self.now, "it wants to be called again at once");
            self.now = wake;
            self.step();
        }
        self.now = end;
    }

    fn checks_of(&self, name: &str) -> Vec<u64> {
        let is_check = |act: &Act| matches!(act, Act::Check(path) if path == name);
        self.log.iter().filter(|(_, act)| is_check(act)).map(|(at, _)| *at).collect()
    }

    fn messages(&mut self) -> Vec<Act> {
        let messages = self.log.iter().map(|(_, act)| act.clone());
        let messages = messages.filter(|act| !matches!(act, Act::Check(_))).collect();
        self.log.clear();
        messages
    }

    fn state(&self, name: &str) -> PathState {
        let path = self.view.paths().find(|path| path.path == name).expect("known");
        self.paths.state(path)
    }
}

fn fail(path: &str) -> Act {
    Act::Fail(path.into())
}

fn reinstate(path: &str) -> Act {
    Act::Reinstate(path.into())
}

#[test]
fn intervals_of_good_paths_double_to_their_limit() {
    let mut world = World::new(Policy::default(), &[&["a"]]);
    world.run(secs(80));
    assert_eq!(world.checks_of("a"), [100, 105, 115, 135, 155, 175]);
}

#[test]
fn a_path_whose_check_fails_is_failed_once_and_reinstated_when_it_is_good() {
    let mut world = World::new(Policy::default(), &[&["a", "b"]]);
    world.run(secs(40));
    world.messages();
    world.broken = vec!["a"];
    world.run(secs(40));
    assert_eq!(world.messages(), [fail("a")]);
    assert_eq!(world.state("a"), PathState::Failed);
    world.log.clear();
    world.run(secs(20));
    assert_eq!(world.checks_of("a").len(), 4, "a failed path is checked at the short interval");
    assert_eq!(world.paths.record("a").expect("kept").last_error.as_deref(), Some("no answer"));
    world.broken.clear();
    world.run(secs(5));
    assert_eq!(world.messages(), [reinstate("a")]);
    assert_eq!(world.state("a"), PathState::Active);
}

#[test]
fn a_path_that_the_target_failed_is_looked_at_a_second_later() {
    let mut world = World::new(Policy::default(), &[&["a", "b"]]);
    world.run(secs(60));
    world.log.clear();
    world.fail("a");
    world.step();
    assert_eq!(world.messages(), [], "nothing is known of it now");
    world.run(secs(2));
    assert_eq!(world.checks_of("a"), [161]);
    assert_eq!(world.messages(), [reinstate("a")]);
}

#[test]
fn a_check_that_began_before_the_failure_does_not_bring_the_path_back() {
    let mut world = World::new(Policy::default(), &[&["a", "b"]]);
    world.run(secs(4));
    world.now = secs(106);
    assert_eq!(world.paths.act(world.now).len(), 2, "both are due");
    world.fail("a");
    world.paths.observe(world.now, world.view.clone());
    assert_eq!(world.state("a"), PathState::Checking);
    world.paths.checked(world.now, "a", Ok(()), None);
    world.paths.checked(world.now, "b", Ok(()), None);
    assert_eq!(world.paths.act(world.now), []);
    world.broken = vec!["a"];
    world.run(secs(10));
    assert!(!world.messages().contains(&reinstate("a")), "only a fresh check counts");
}

#[test]
fn a_device_that_knows_when_it_tries_again_is_checked_then() {
    let mut world = World::new(Policy::default(), &[&["a", "b"]]);
    world.now = secs(105);
    world.paths.act(world.now);
    world.paths.checked(world.now, "b", Ok(()), None);
    let retry_at = world.now + Nanos::from_millis(700);
    world.paths.checked(world.now, "a", Err("gone".into()), Some(retry_at));
    let next = |world: &World| world.paths.record("a").expect("kept").next_check;
    assert_eq!(next(&world), world.now + Nanos::from_millis(800));
    for retry_at in [Nanos::ZERO, secs(1_000)] {
        world.paths.act(secs(200));
        world.paths.checked(secs(200), "a", Err("gone".into()), Some(retry_at));
        let wait = next(&world) - secs(200);
        assert!(wait >= Nanos::from_millis(100) && wait <= secs(5), "{wait:?}");
    }
}

#[test]
fn failback_is_immediate_delayed_or_manual() {
    let back_after = |failback: Failback| {
        let policy = Policy { failback, ..Policy::default() };
        let mut world = World::new(policy, &[&["a"], &["b"]]);
        world.broken = vec!["a"];
        world.fail("a");
        world.use_group(1);
        world.step();
        world.run(secs(30));
        world.messages();
        world.broken.clear();
        world.run(secs(5));
        assert_eq!(world.view.paths().next().map(|path| path.is_active), Some(true));
        let begin = world.now;
        world.run(secs(60));
        let switch = world.log.iter().find(|(_, act)| matches!(act, Act::SwitchGroup(1)));
        switch.map(|(at, _)| *at >= begin.0 / 1_000_000_000 + 20)
    };
    assert_eq!(back_after(Failback::Immediate), Some(false));
    assert_eq!(back_after(Failback::After(secs(30))), Some(true));
    assert_eq!(back_after(Failback::FollowOver), Some(false));
    assert_eq!(back_after(Failback::Manual), None);
}

#[test]
fn a_delayed_failback_starts_anew_when_the_group_dies_meanwhile() {
    let policy = Policy { failback: Failback::After(secs(8)), ..Policy::default() };
    let mut world = World::new(policy, &[&["a"], &["b"]]);
    world.use_group(1);
    world.step();
    world.run(secs(6));
    world.fail("a");
    world.step();
    world.run(secs(4));
    assert!(!world.messages().contains(&Act::SwitchGroup(1)), "10 s, but not 8 in a row");
    world.run(secs(8));
    assert!(world.messages().contains(&Act::SwitchGroup(1)));
}

#[test]
fn followover_leaves_a_switch_made_by_hand_alone() {
    let policy = Policy { failback: Failback::FollowOver, ..Policy::default() };
    let mut world = World::new(policy, &[&["a"], &["b"]]);
    world.use_group(1);
    world.step();
    world.run(secs(60));
    assert_eq!(world.messages(), []);
    world.fail("a");
    world.step();
    world.run(secs(10));
    assert_eq!(world.messages(), [reinstate("a"), Act::SwitchGroup(1)]);
}

#[test]
fn no_failback_while_a_group_is_disabled_by_hand() {
    let mut world = World::new(Policy::default(), &[&["a"], &["b"]]);
    world.use_group(1);
    world.view.groups[0].state = GroupState::Disabled;
    world.step();
    world.run(secs(60));
    assert_eq!(world.messages(), []);
}

fn flapping(hold: Nanos) -> World {
    let marginal = Marginal { failures: 3, window: secs(60), hold };
    let policy = Policy { marginal: Some(marginal), ..Policy::default() };
    let mut world = World::new(policy, &[&["a", "b"]]);
    for _ in 0..3 {
        world.fail("a");
        world.step();
        world.run(secs(3));
    }
    world
}

#[test]
fn a_flapping_path_is_set_aside_and_comes_back_after_its_hold() {
    let mut world = flapping(secs(120));
    assert_eq!(world.state("a"), PathState::Marginal);
    assert_eq!(world.messages(), [reinstate("a"), reinstate("a")], "not a third time");
    world.run(secs(100));
    assert_eq!(world.messages(), []);
    assert!(!world.view.groups[0].paths[0].is_active);
    world.run(secs(30));
    assert_eq!(world.messages(), [reinstate("a")]);
    assert_eq!(world.state("a"), PathState::Active);
}

#[test]
fn failures_far_apart_do_not_make_a_path_marginal() {
    let marginal = Marginal { failures: 3, window: secs(60), hold: secs(120) };
    let mut world =
        World::new(Policy { marginal: Some(marginal), ..Policy::default() }, &[&["a", "b"]]);
    for _ in 0..5 {
        world.fail("a");
        world.step();
        world.run(secs(40));
    }
    assert_eq!(world.state("a"), PathState::Active);
    // Found by checks instead of I/O, they count the same.
    for _ in 0..3 {
        world.broken = vec!["a"];
        world.run(secs(20));
        world.broken.clear();
        world.run(secs(5));
    }
    assert_eq!(world.state("a"), PathState::Marginal);
}

#[test]
fn a_marginal_path_is_the_last_resort_and_only_that() {
    let mut world = flapping(secs(1_000));
    world.messages();
    world.broken = vec!["b"];
    world.fail("b");
    world.step();
    world.run(secs(10));
    assert_eq!(world.messages(), [reinstate("a")], "nothing else is left");
    assert_eq!(world.state("a"), PathState::Marginal);
    world.broken.clear();
    world.run(secs(10));
    assert_eq!(world.messages(), [reinstate("b"), fail("a")], "there is always one");
    world.run(secs(100));
    assert_eq!(world.messages(), [], "our own fail_path is no flap");
}

#[test]
fn queueing_is_bounded_and_comes_back_with_a_path() {
    let policy = Policy { no_path: NoPath::QueueFor(secs(30)), ..Policy::default() };
    let mut world = World::new(policy, &[&["a", "b"]]);
    world.broken = vec!["a", "b"];
    world.fail("a");
    world.fail("b");
    world.step();
    world.run(secs(29));
    assert_eq!(world.messages(), []);
    world.run(secs(2));
    assert_eq!(world.messages(), [Act::FailIfNoPath]);
    world.run(secs(60));
    assert_eq!(world.messages(), []);
    world.broken = vec!["a"];
    world.run(secs(10));
    assert_eq!(world.messages(), [reinstate("b"), Act::Queue]);
}

#[test]
fn a_way_out_taken_by_hand_is_left_alone_until_a_path_is_back() {
    let policy = Policy { no_path: NoPath::Queue, ..Policy::default() };
    let mut world = World::new(policy, &[&["a"]]);
    world.broken = vec!["a"];
    world.fail("a");
    world.step();
    world.view.queues = false;
    world.run(secs(60));
    assert_eq!(world.messages(), []);
    world.broken.clear();
    world.run(secs(10));
    assert_eq!(world.messages(), [reinstate("a"), Act::Queue]);
}

#[test]
fn the_policy_may_want_failing_or_leave_it_to_the_table() {
    let mut world = World::new(Policy { no_path: NoPath::Fail, ..Policy::default() }, &[&["a"]]);
    assert_eq!(world.messages(), [Act::FailIfNoPath]);
    let mut world = World::new(Policy::default(), &[&["a"]]);
    world.view.queues = false;
    world.run(secs(60));
    assert_eq!(world.messages(), []);
}

#[test]
fn a_suspended_device_gets_no_messages_but_its_paths_are_checked() {
    let mut world = World::new(Policy::default(), &[&["a", "b"]]);
    world.view.is_suspended = true;
    world.broken = vec!["a"];
    world.run(secs(60));
    assert_eq!(world.messages(), []);
    world.view.is_suspended = false;
    world.step();
    assert_eq!(world.messages(), [fail("a")]);
}

#[test]
fn a_new_table_keeps_what_is_known_of_paths_that_stay() {
    let mut world = World::new(Policy::default(), &[&["a", "b"]]);
    world.broken = vec!["a"];
    world.run(secs(30));
    world.messages();
    let fresh = |path: &str| PathView { path: path.into(), is_active: true, fail_count: 0 };
    world.view.groups[0].paths = vec![fresh("a"), fresh("c")];
    world.step();
    assert_eq!(world.log.len(), 2, "{:?}", world.log);
    assert_eq!(world.checks_of("c").len(), 1, "a path that is new is checked at once");
    assert_eq!(world.messages(), [fail("a")], "one known to be bad is failed at once");
    assert!(world.paths.record("b").is_none());
}

#[test]
fn a_device_in_two_groups_is_one_path() {
    let mut world = World::new(Policy::default(), &[&["a"], &["a", "b"]]);
    world.broken = vec!["a"];
    world.run(secs(30));
    assert_eq!(world.messages(), [fail("a")]);
    world.broken.clear();
    world.run(secs(10));
    assert_eq!(world.messages(), [reinstate("a")]);
}

#[test]
fn a_refused_message_is_sent_again_and_still_not_counted() {
    let marginal = Marginal { failures: 1, window: secs(60), hold: secs(60) };
    let policy = Policy { marginal: Some(marginal), ..Policy::default() };
    let mut world = World::new(policy, &[&["a", "b"]]);
    world.now = secs(105);
    world.paths.act(world.now);
    world.paths.checked(world.now, "b", Ok(()), None);
    world.paths.checked(world.now, "a", Err("x".into()), None);
    let asked = world.paths.act(world.now);
    assert_eq!(asked, [fail("a")]);
    world.paths.refused(world.now, &asked[0]);
    assert_eq!(world.paths.act(world.now), [], "not at once");
    assert_eq!(world.paths.next_wake(), Some(secs(106)));
    assert_eq!(world.paths.act(secs(106)), [fail("a")]);
}
