//! One truth over several lanes: nothing is lost, nothing counted twice, copies agree in the end.

use crate::rig::{TWO_GROUPS, back, disk, events, info, kill, one_group, seen, tell, world, write};
use udm_core::LaneMessage;
use udm_core::lifecycle::{DeviceKey, Request};
use udm_testkit::{TestWorld, mix};
use udm_types::{DeviceId, LaneId, OpSet, Status};

#[test]
fn a_failure_seen_by_all_lanes_counts_once() {
    let (mut world, dm) = world(3, &one_group("", "d0 d1"));
    let d0 = disk(&world, "d0");
    d0.hold(OpSet::all());
    let tickets: Vec<_> = (0..3)
        .flat_map(|lane| [0, 1].map(|slot| (lane, u64::from(lane) * 2 + slot)))
        .map(|(lane, slot)| world.submit(lane, dm, write(slot)))
        .collect();
    world.run();
    kill(&world, "d0", Status::Transport);
    d0.flow();
    world.run();
    assert!(tickets.into_iter().all(|ticket| back(&mut world, ticket).status.is_ok()));
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 0 d0 F 1 d1 A 0 ");
    assert_eq!(events(&mut world, dm), 1);
    world.assert_quiet();
}

#[test]
fn a_failure_on_one_lane_and_a_message_reach_the_others() {
    let (mut world, dm) = world(3, &one_group("", "d0 d1"));
    kill(&world, "d0", Status::Transport);
    for slot in 0..2 {
        assert!(world.io_on(2, dm, write(slot)).status.is_ok());
    }
    let before = seen(&world, "d0").len();
    for lane in 0..3 {
        for slot in 0..4 {
            world.io_on(lane, dm, write(slot));
        }
    }
    assert_eq!(seen(&world, "d0").len(), before, "no lane uses the dead path");
    disk(&world, "d0").heal();
    tell(&mut world, dm, "reinstate_path d0");
    for lane in 0..3 {
        let before = seen(&world, "d0").len();
        world.io_on(lane, dm, write(0));
        assert_eq!(seen(&world, "d0").len(), before + 1, "reinstated: the next one on lane {lane}");
        world.io_on(lane, dm, write(0));
    }
    world.assert_quiet();
}

#[test]
fn a_group_chosen_on_any_lane_is_current_on_all() {
    let (mut world, dm) = world(3, TWO_GROUPS);
    tell(&mut world, dm, "switch_group 2");
    world.io_on(1, dm, write(0));
    assert_eq!(info(&mut world, dm), "2 0 0 0 2 2 E 0 1 0 d0 A 0 A 0 1 0 d1 A 0 ");
    for lane in [2, 0] {
        world.io_on(lane, dm, write(0));
    }
    assert_eq!((seen(&world, "d0").len(), seen(&world, "d1").len()), (0, 3));
    // Lane 2 finds the group dead; the others follow without I/O errors of their own.
    kill(&world, "d1", Status::Transport);
    assert!(world.io_on(2, dm, write(0)).status.is_ok());
    disk(&world, "d1").heal();
    tell(&mut world, dm, "reinstate_path d1");
    world.io_on(1, dm, write(0));
    assert_eq!(seen(&world, "d0").len(), 2, "the group is kept, although the other recovered");
    assert_eq!(info(&mut world, dm), "2 0 0 0 2 1 A 0 1 0 d0 A 0 E 0 1 0 d1 A 1 ");
    world.assert_quiet();
}

/// Sends a message without letting any lane run.
fn send(world: &mut TestWorld, dm: DeviceId, words: &str) {
    let words = words.split(' ').map(String::from).collect();
    let request = Request::Message { device: DeviceKey::Id(dm), sector: 0, words };
    let message = LaneMessage::Request(Box::new(request), Box::new(|_| {}));
    world.engine(0).send(LaneId(0), message);
}

/// Sends a message and lets lane 0 run, no other.
fn tell_home_only(world: &mut TestWorld, dm: DeviceId, words: &str) {
    send(world, dm, words);
    for _ in 0..8 {
        world.turn(0);
    }
}

#[test]
fn an_error_from_before_a_reinstate_does_not_undo_it() {
    let (mut world, dm) = world(2, &one_group("", "d0 d1"));
    let d0 = disk(&world, "d0");
    d0.hold(OpSet::all());
    let ticket = world.submit(1, dm, write(0));
    world.run();
    // Lane 1's I/O fails; before home hears of it, it fails and reinstates the path itself.
    d0.fail(0..8, OpSet::all(), Status::Transport);
    d0.flow();
    while world.turn(1) {}
    send(&mut world, dm, "fail_path d0");
    send(&mut world, dm, "reinstate_path d0");
    world.run();
    assert!(back(&mut world, ticket).status.is_ok());
    assert_eq!(info(&mut world, dm), "2 0 0 0 1 1 A 0 2 0 d0 A 1 d1 A 0 ");
    assert_eq!(events(&mut world, dm), 2);
    d0.heal();
    let before = seen(&world, "d0").len();
    for slot in 0..2 {
        assert!(world.io_on(1, dm, write(slot)).status.is_ok());
    }
    assert_eq!(seen(&world, "d0").len(), before + 1, "lane 1 uses it again");
    world.assert_quiet();
}

#[test]
fn a_failure_on_a_lane_that_home_has_not_heard_of_is_not_lost() {
    let (mut world, dm) = world(2, &one_group("", "d0 d1"));
    kill(&world, "d0", Status::Transport);
    let ticket = world.submit(1, dm, write(0));
    // Lane 1 fails its path; home has not run. Then a reinstate of the path, which home finds
    // active still.
    for _ in 0..4 {
        world.turn(1);
    }
    tell(&mut world, dm, "reinstate_path d0");
    assert!(back(&mut world, ticket).status.is_ok());
    let shown = info(&mut world, dm);
    let failed = shown.contains("d0 F 1");
    assert!(failed || shown.contains("d0 A 1"), "it was counted: {shown}");
    if !failed {
        assert!(world.io_on(1, dm, write(0)).status.is_ok());
        assert!(world.io_on(1, dm, write(0)).status.is_ok());
        assert!(info(&mut world, dm).contains("d0 F 2"));
    }
    world.assert_quiet();
}

/// The paths that a lane's next I/Os use, by what the disks see.
fn used_by(world: &mut TestWorld, dm: DeviceId, lane: u16) -> Vec<&'static str> {
    let names = ["d0", "d1", "d2"];
    let before = names.map(|name| seen(world, name).len());
    for slot in 0..6 {
        assert!(world.io_on(lane, dm, write(slot)).status.is_ok());
    }
    let used =
        names.into_iter().zip(before).filter(|(name, before)| seen(world, name).len() > *before);
    used.map(|(name, _)| name).collect()
}

#[test]
fn whatever_happens_all_lanes_agree_with_the_status_in_the_end() {
    for seed in 1..40_u64 {
        let (mut world, dm) = world(3, &one_group("queue_if_no_path", "d0 d1 d2"));
        let mut random = seed;
        let mut below = |limit: u64| {
            random = mix(random);
            random % limit
        };
        for _ in 0..120 {
            let name = ["d0", "d1", "d2"][below(3) as usize];
            match below(8) {
                0 => kill(&world, name, Status::Transport),
                1 => disk(&world, name).heal(),
                2 => tell_home_only(&mut world, dm, &format!("fail_path {name}")),
                3 => tell_home_only(&mut world, dm, &format!("reinstate_path {name}")),
                4 => {
                    for _ in 0..below(4) {
                        world.turn(below(3) as u16);
                    }
                }
                _ => {
                    world.submit(below(3) as u16, dm, write(below(64)));
                }
            }
        }
        for name in ["d0", "d1", "d2"] {
            disk(&world, name).heal();
        }
        world.run();
        tell(&mut world, dm, "fail_path d1");
        let shown = info(&mut world, dm);
        let names = ["d0", "d1", "d2"].into_iter();
        let active: Vec<&str> = names.filter(|name| shown.contains(&format!("{name} A"))).collect();
        if !active.is_empty() {
            for lane in 0..3 {
                assert_eq!(used_by(&mut world, dm, lane), active, "seed {seed} lane {lane}");
            }
        }
        for name in ["d0", "d2"] {
            tell(&mut world, dm, &format!("reinstate_path {name}"));
        }
        assert_eq!(
            {
                world.settle();
                world.census().in_flight
            },
            0,
            "seed {seed}"
        );
        for lane in 0..3 {
            assert_eq!(used_by(&mut world, dm, lane), ["d0", "d2"], "seed {seed} lane {lane}");
        }
    }
}
