//! The weather: scripts that change the health of paths, and one that plays multipathd.
//!
//! `blow` lets paths die, stall, flap, come back, come back as another size, one by one or all
//! ways to a LUN at once. `check_paths` does what a path checker does: it reinstates paths that are
//! alive again, now and then one that is not (a checker may be wrong), and fails one that is dead
//! before I/O finds out. In liveness it goes on, so that what is held must come to its end as soon
//! as one path is alive.
//!
//! The tricky case is the checker's message to a device that is suspended, changing its table or
//! gone: it is refused, and tried again.

use crate::director::{Act, Director};
use crate::paths::Health;
use udm_core::lifecycle::{DeviceKey, Request};
use udm_types::Nanos;

/// Changes the paths' health until liveness begins.
pub(crate) async fn blow(director: Director) {
    let pace_ms = director.stage.get().swarm.weather_ms;
    while director.playing() && pace_ms > 0 {
        director.nap(pace_ms).await;
        if director.playing() {
            change_one(&director).await;
        }
    }
    director.finished();
    director.until(Act::Sweep).await;
    director.finished();
    director.until(Act::Leave).await;
    director.finished();
}

async fn change_one(director: &Director) {
    let paths = director.stage.get().paths.len();
    let path = director.pick(paths);
    match director.pick(16) {
        0..=5 => set(director, path, Health::Alive),
        6..=8 => set(director, path, Health::Dead),
        9 | 10 => set(director, path, Health::Stalled),
        11 => set(director, path, Health::Misfit),
        12 | 13 => flap(director, path).await,
        14 => set_all(director, path, Health::Dead),
        _ => set_all(director, path, Health::Alive),
    }
}

fn set(director: &Director, path: usize, health: Health) {
    // Nobody may touch what liveness has settled.
    if director.playing() {
        let mut state = director.stage.get();
        if !state.pinned.contains(&state.paths[path].disk) {
            state.set_health(path, health);
        }
    }
}

/// The same for every path to the LUN of `path`.
fn set_all(director: &Director, path: usize, health: Health) {
    let all = {
        let state = director.stage.get();
        state.paths_to(state.paths[path].disk)
    };
    for path in all {
        set(director, path, health);
    }
}

async fn flap(director: &Director, path: usize) {
    director.stage.get().tally.count("path flaps");
    for _ in 0..2 + director.pick(4) {
        set(director, path, Health::Dead);
        director.nap(2).await;
        set(director, path, Health::Alive);
        director.nap(2).await;
    }
}

/// Plays multipathd until everything is removed.
pub(crate) async fn check_paths(director: Director) {
    let mut act = Act::Play;
    loop {
        let now = director.progress.act.get();
        if now != act {
            act = now;
            // Its part of an act is never what others wait for.
            director.finished();
        }
        if act == Act::Leave {
            return;
        }
        let pace_ms = if act == Act::Play { 25 } else { 8 };
        director.nap(pace_ms).await;
        if act != Act::Play {
            rescue(&director).await;
        }
        check_all(&director).await;
    }
}

/// A suspend of a device above waits for I/O that a device without living paths holds. Whoever
/// asked for it in play gives up, so that the script can bring other paths.
async fn rescue(director: &Director) {
    let starved = {
        let state = director.stage.get();
        let multis = director.multis.borrow();
        let alive = |path: &usize| state.paths[*path].health == Health::Alive;
        multis.values().any(|paths| !paths.iter().any(alive))
    };
    let tickets = match starved {
        true => director.waiting.take(),
        false => Default::default(),
    };
    for ticket in tickets {
        let answer = director.control.ask(Request::Cancel { ticket }).await;
        director.expect("cancel", answer);
        director.stage.get().tally.count("suspends given up for want of paths");
    }
}

async fn check_all(director: &Director) {
    let devices: Vec<_> = {
        let multis = director.multis.borrow();
        multis.iter().map(|(&id, paths)| (id, paths.clone())).collect()
    };
    for (id, paths) in devices {
        for path in paths {
            let (health, whim) = {
                let mut state = director.stage.get();
                let health = state.paths[path].health;
                (health, state.rng.u32(0..24))
            };
            let word = match (health, director.playing(), whim) {
                // Some checkers are slow.
                (_, true, 4..) => continue,
                (Health::Alive, _, _) | (_, true, 0) => "reinstate_path",
                (Health::Dead, true, _) => "fail_path",
                (Health::Dead | Health::Stalled | Health::Misfit, _, _) => continue,
            };
            let words = vec![word.to_owned(), format!("path{path}")];
            let request = Request::Message { device: DeviceKey::Id(id), sector: 0, words };
            if director.control.ask(request).await.is_ok() {
                director.stage.get().tally.count("paths checked");
            }
            director.control.sleep(Nanos(1_000)).await;
        }
    }
}
