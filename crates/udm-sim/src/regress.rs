//! Bugs the simulation found, as small worlds of their own.
//!
//! A seed means something else as soon as a generator changes; these worlds are written out: one
//! device, a table, a few bios, and a script that brings about the state the bug needed. They run
//! on the same engine, disks and oracle as the search, and pass when no promise is broken.
//!
//! To hold an operation where the bug needs it, every disk operation is made to hang, and is healed
//! when the script says so.
//!
//! Names: `regress_ISSUE_what`. A new finding of the search becomes one of these.

use super::{Scenario, World, draw_state};
use crate::director::{Act, Director};
use crate::dress::Dress;
use crate::layout::{Below, Leg, Meaning, Node, Part, Stack};
use crate::load::Task;
use crate::swarm::FaultRates;
use crate::volume::Volume;
use std::future::Future;
use udm_core::lifecycle::{OnTimeout, SuspendOptions};
use udm_types::{BioFlags, Nanos, Op};

fn quiet_world() -> World {
    let scenario =
        Scenario { seed: 1, steps: 0, lanes: Some(1), only: None, canary: None, trace: false };
    let mut state = draw_state(&scenario);
    state.swarm.faults = FaultRates::default();
    state.swarm.block_sectors = 1;
    state.swarm.races = false;
    World::empty(state)
}

/// Runs a world with one script; what was broken, if anything.
fn verdict<F: Future<Output = ()> + 'static>(script: impl FnOnce(Director) -> F) -> Option<String> {
    let mut world = quiet_world();
    world.spawn(script(world.director.clone()));
    world.play(3_000);
    if world.stage.get().oracle.violation().is_none() {
        world.settle();
    }
    let state = world.stage.get();
    state.oracle.violation().map(str::to_owned)
}

/// Two parts of eight sectors: on the first disk, and what `second` means.
fn two_parts(second: Meaning) -> Stack {
    let first = Meaning::Linear(Leg { below: Below::Disk(0), start: 0 });
    let parts = vec![Part { len: 8, meaning: first }, Part { len: 8, meaning: second }];
    let (name, orderly) = ("r".into(), false);
    let (id, window, multi, odd_sizes) = (None, None, None, false);
    let node = Node { name, id, parts, orderly, window, multi, odd_sizes };
    Stack { nodes: vec![node] }
}

fn second_on_disk() -> Meaning {
    Meaning::Linear(Leg { below: Below::Disk(0), start: 8 })
}

async fn start(director: &Director, second: Meaning, table: &str) -> Option<Volume> {
    let mut volume = Volume::over(director, 0, two_parts(second));
    volume.create_device(0).await?;
    let dress = Dress { text: table.into(), ..Dress::default() };
    volume.first_dress(0, dress).await?;
    Some(volume)
}

async fn finish(director: Director, mut volume: Volume) {
    director.until(Act::Calm).await;
    volume.calm().await;
    director.finished();
    director.until(Act::Sweep).await;
    volume.sweep().await;
    director.finished();
    director.until(Act::Leave).await;
    volume.remove().await;
    director.finished();
}

fn hang_everything(director: &Director) {
    director.stage.get().swarm.faults.hang = 1000;
}

fn heal(director: &Director) {
    let mut state = director.stage.get();
    state.swarm.faults.hang = 0;
    state.heal_hung(true);
}

const NONE: BioFlags = BioFlags::empty();

/// The flush of a PREFLUSH write was lost when the write went into a zero target beside one device.
#[test]
fn regress_2_preflush_write_into_a_zero_region_flushes() {
    let broken = verdict(|director| async move {
        let table = "0 8 linear disk0 0\n8 8 zero";
        let Some(mut volume) = start(&director, Meaning::Zero, table).await else { return };
        volume.install(0, Task::Plan(&[(Op::Write, NONE, 0, 8)]));
        volume.stop_load().await;
        volume.install(0, Task::Plan(&[(Op::Write, BioFlags::PREFLUSH, 8, 8)]));
        volume.stop_load().await;
        finish(director, volume).await;
    });
    assert_eq!(broken, None);
}

/// A piece of a barrier, pushed back at once, finished its parent under the loop that cut it.
#[test]
fn regress_2_pieces_of_a_barrier_pushed_back_while_they_are_cut() {
    let broken = verdict(|director| async move {
        let table = "0 8 hold disk0 0 999 50\n8 8 hold disk0 8 999 50";
        let Some(mut volume) = start(&director, second_on_disk(), table).await else { return };
        hang_everything(&director);
        volume.install(0, Task::Plan(&[(Op::Write, BioFlags::ORDERED, 4, 8)]));
        director.control.sleep(Nanos::from_millis(5)).await;
        let helper = director.clone();
        director.tasks.borrow_mut().push(Box::pin(async move {
            helper.control.sleep(Nanos::from_millis(5)).await;
            heal(&helper);
        }));
        let options = SuspendOptions { noflush: true, ..SuspendOptions::default() };
        volume.suspend(0, options).await;
        volume.resume(0, SuspendOptions::default()).await;
        finish(director, volume).await;
    });
    assert_eq!(broken, None);
}

/// A flush of which one copy was pushed back stayed held after the suspend had been given up.
#[test]
fn regress_2_fan_out_pushed_back_by_a_suspend_that_was_given_up() {
    let broken = verdict(|director| async move {
        let table = "0 8 hold disk0 0 1 50\n8 8 hold disk0 8 999 50";
        let Some(mut volume) = start(&director, second_on_disk(), table).await else { return };
        hang_everything(&director);
        volume.install(0, Task::Plan(&[(Op::Flush, NONE, 0, 0)]));
        director.control.sleep(Nanos::from_millis(5)).await;
        let options = SuspendOptions {
            noflush: true,
            deadline: Some(Nanos::from_millis(5)),
            on_timeout: OnTimeout::Resume,
            reason: String::new(),
        };
        volume.suspend(0, options).await;
        heal(&director);
        finish(director, volume).await;
    });
    assert_eq!(broken, None);
}
