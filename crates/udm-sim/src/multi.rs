//! Multipath devices of a stack: their tables, the messages they get, and what they may answer.
//!
//! A multipath device stands on a LUN (`paths.rs`), from its first sector on, and is a node of one
//! part. Its tables name some of the paths, in any order and grouping, under any selector; mode
//! (bio or request) is drawn once, since it is fixed with the first table. A table may have no path
//! at all as long as it queues.
//!
//! When may an error of a path surface?
//!
//! | state | error |
//! |---|---|
//! | queue_if_no_path | never |
//! | queue_if_no_path, a suspend that flushes (or a resume with one) | until it is answered |
//! | without queue_if_no_path, by table or message | any time |
//!
//! The tricky case is the message that turns queueing off: errors are legal from before it is sent,
//! until the answer to one that turns it on again, or until the next table has its own setting.

use crate::director::{Director, Suspended, key};
use crate::dress::{Dress, Dresser, Inventor};
use crate::layout::{Below, Leg, Meaning, Multi, Part, Stack};
use crate::oracle::WindowId;
use crate::paths::Health;
use crate::volume::Volume;
use std::cell::Cell;
use std::rc::Rc;
use udm_core::ErrorCode;
use udm_core::lifecycle::{Request, SuspendOptions};
use udm_types::{Nanos, Sector};

/// How long a suspend may take in virtual time when nothing below hangs: late answers and retries
/// of the disk's own take less than half.
const SUSPEND_LIMIT: Nanos = Nanos(3_000_000_000);

/// The selectors, each with arguments of its own and of its paths.
const SELECTORS: [&str; 6] = [
    "round-robin",
    "queue-length",
    "service-time",
    "historical-service-time",
    "io-affinity",
    "latency",
];

impl Inventor<'_> {
    /// Makes a node a multipath device, if a LUN of the size is free.
    pub(crate) fn multipath(&mut self, stack: &mut Stack, node: usize, least: Sector) -> bool {
        let requests = self.rng.bool() && self.swarm.requests;
        let Some((lun, len)) = self.space.take_lun(least, self.rng) else { return false };
        let leg = Leg { below: Below::Disk(lun), start: 0 };
        stack.nodes[node].parts = vec![Part { len, meaning: Meaning::Linear(leg) }];
        stack.nodes[node].orderly = false;
        let (paths, groups) = (Vec::new(), 0);
        stack.nodes[node].multi = Some(Multi { lun, requests, paths, groups });
        true
    }
}

impl Dresser<'_> {
    /// A multipath table over paths of the node's LUN.
    pub(crate) fn multipath(&mut self, multi: &Multi, len: Sector) {
        self.dress.orderly = false;
        let gives_up = self.rng.u32(0..3) == 0 && self.swarm.giving_up && !self.plain;
        let mut features = Vec::new();
        if !gives_up {
            features.push("queue_if_no_path");
        }
        if self.rng.u32(0..4) == 0 {
            features.push("retain_attached_hw_handler");
        }
        match (multi.requests, self.rng.u32(0..3)) {
            (false, _) => features.extend(["queue_mode", "bio"]),
            (true, 0) => {}
            (true, 1) => features.extend(["queue_mode", "rq"]),
            (true, _) => features.extend(["queue_mode", "mq"]),
        }
        if self.rng.u32(0..4) == 0 {
            features.extend(["pg_init_retries", "3"]);
        }
        self.dress.may_fail = gives_up;
        self.dress.paths = self.choose_paths(gives_up);
        let groups = self.groups();
        self.dress.groups = groups.len();
        let initial = if groups.is_empty() { 0 } else { self.rng.usize(1..=groups.len()) };
        let rest = format!(
            "multipath {} {} 0 {} {initial} {}",
            features.len(),
            features.join(" "),
            groups.len(),
            groups.join(" ")
        );
        self.line(len, &rest);
    }

    /// Some of the paths that may be loaded, shuffled; plain: all of them.
    fn choose_paths(&mut self, gives_up: bool) -> Vec<usize> {
        let mut paths = self.ways.clone();
        self.rng.shuffle(&mut paths);
        if self.plain || paths.is_empty() {
            return paths;
        }
        let none = self.rng.u32(0..16) == 0 && !gives_up;
        let count = self.rng.usize(1..=paths.len());
        paths.truncate(if none { 0 } else { count });
        paths
    }

    fn groups(&mut self) -> Vec<String> {
        let mut left = self.dress.paths.clone();
        let mut groups = Vec::new();
        while !left.is_empty() {
            let count = match self.rng.bool() {
                true => left.len(),
                false => self.rng.usize(1..=left.len()),
            };
            let members: Vec<usize> = left.drain(..count).collect();
            groups.push(self.group(&members));
        }
        groups
    }

    fn group(&mut self, members: &[usize]) -> String {
        let selector = SELECTORS[self.rng.usize(0..SELECTORS.len())];
        let (own, path_words) = match (selector, self.rng.bool()) {
            ("historical-service-time", true) => ("2 512 1", 0),
            ("latency", true) => ("2 8 2", 0),
            ("io-affinity", _) => ("0", 1),
            ("service-time", true) => ("0", 2),
            ("round-robin" | "queue-length", true) => ("0", 1),
            (_, _) => ("0", 0),
        };
        let mut text = format!("{selector} {own} {} {path_words}", members.len());
        for (place, path) in members.iter().enumerate() {
            text.push_str(&format!(" path{path}"));
            match (selector, path_words) {
                // Each path owns a lane; the last may own more, and some lanes have none.
                ("io-affinity", _) => text.push_str(&format!(" {:x}", 1_u32 << place)),
                ("service-time", 2) => text.push_str(&format!(" 1 {}", self.rng.u32(1..100))),
                (_, 1) => text.push_str(" 1"),
                (_, _) => {}
            }
        }
        text
    }
}

impl Director {
    /// The paths to a LUN that a table may name now.
    pub(crate) fn loadable_paths(&self, lun: usize) -> Vec<usize> {
        let state = self.stage.get();
        let fits = |path: &usize| state.paths[*path].health != Health::Misfit;
        state.paths_to(lun).into_iter().filter(fits).collect()
    }
}

impl Volume {
    /// Opens a window if a request about a node may end queueing: a suspend that flushes.
    pub(crate) fn open_flush_window(
        &self,
        node: usize,
        options: &SuspendOptions,
    ) -> Option<WindowId> {
        let ends_queueing = self.stack.nodes[node].multi.is_some() && !options.noflush;
        ends_queueing.then(|| self.director.stage.get().oracle.open_window(Some(self.index)))
    }

    /// The request has been answered.
    pub(crate) fn close_flush_window(&self, window: Option<WindowId>) {
        if let Some(window) = window {
            self.director.stage.get().oracle.close_window(window);
        }
    }

    /// A new table is live on a multipath node.
    pub(crate) fn note_paths(&mut self, node: usize, dress: &Dress) {
        let node = &mut self.stack.nodes[node];
        if let (Some(multi), Some(id)) = (&mut node.multi, node.id) {
            (multi.paths, multi.groups) = (dress.paths.clone(), dress.groups);
            // A lane that saw a path smaller than the table goes on refusing I/O there.
            let paths = if node.odd_sizes { Vec::new() } else { dress.paths.clone() };
            self.director.multis.borrow_mut().insert(id, paths);
        }
    }

    /// The node's device is about to go.
    pub(crate) fn forget_paths(&self, node: usize) {
        if let Some(id) = self.stack.nodes[node].id {
            self.director.multis.borrow_mut().remove(&id);
        }
    }

    /// A message a person might send to a multipath device.
    pub(crate) async fn path_message(&mut self) {
        let director = self.director.clone();
        let nodes: Vec<usize> = (0..self.stack.nodes.len())
            .filter(|&node| self.stack.nodes[node].multi.is_some())
            .collect();
        if nodes.is_empty() {
            return;
        }
        let node = nodes[director.pick(nodes.len())];
        let Some(multi) = self.stack.nodes[node].multi.clone() else { return };
        let giving_up = director.stage.get().swarm.giving_up;
        let path = |director: &Director| match multi.paths.len() {
            0 => "path0".to_owned(),
            count => format!("path{}", multi.paths[director.pick(count)]),
        };
        let group = |director: &Director| (1 + director.pick(multi.groups.max(1))).to_string();
        let words: Vec<String> = match director.pick(8) {
            0 | 1 => vec!["fail_path".into(), path(&director)],
            2 => vec!["reinstate_path".into(), path(&director)],
            3 => vec!["switch_group".into(), group(&director)],
            4 => vec!["disable_group".into(), group(&director)],
            5 => vec!["enable_group".into(), group(&director)],
            6 if giving_up => return self.stop_queueing(node).await,
            _ => return self.nonsense_message(node).await,
        };
        let answer = self.send_words(node, words.clone()).await;
        let known = !multi.paths.is_empty();
        if let Err(error) = answer
            && known
            && !director.stage.get().swarm.races
        {
            director.violate(format!("{words:?} was refused: {error}"));
        }
        director.stage.get().tally.count("path messages");
    }

    async fn send_words(&self, node: usize, words: Vec<String>) -> crate::control::Answer {
        let device = key(&self.stack.nodes[node].name);
        self.director.control.ask(Request::Message { device, sector: 0, words }).await
    }

    /// queue_if_no_path off for a while, and on again.
    async fn stop_queueing(&mut self, node: usize) {
        let director = self.director.clone();
        let window = director.stage.get().oracle.open_window(Some(self.index));
        let answer = self.send_words(node, vec!["fail_if_no_path".into()]).await;
        director.expect("fail_if_no_path", answer);
        director.nap(40).await;
        let answer = self.send_words(node, vec!["queue_if_no_path".into()]).await;
        director.expect("queue_if_no_path", answer);
        director.stage.get().oracle.close_window(window);
        // A table that did not queue does now.
        if let Some(window) = self.stack.nodes[node].window.take() {
            director.stage.get().oracle.close_window(window);
        }
        director.stage.get().tally.count("queueing turned off and on");
    }

    /// Messages that must be refused, and change nothing.
    async fn nonsense_message(&self, node: usize) {
        let words: &[&str] = match self.director.pick(5) {
            0 => &["fail_path", "disk0"],
            1 => &["switch_group", "99"],
            2 => &["switch_group", "0"],
            3 => &["reinstate_path"],
            _ => &["no_such_word"],
        };
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        if self.send_words(node, words.clone()).await.is_ok() {
            self.director.violate(format!("{words:?} was taken"));
        }
    }

    /// Every path of a multipath device dies, I/O waits, and a noflush swap brings others in.
    pub(crate) async fn starve(&mut self) {
        let director = self.director.clone();
        let nodes: Vec<usize> = (0..self.stack.nodes.len())
            .filter(|&node| self.stack.nodes[node].multi.is_some())
            .collect();
        if nodes.is_empty() {
            return;
        }
        let node = nodes[director.pick(nodes.len())];
        let Some(multi) = self.stack.nodes[node].multi.clone() else { return };
        {
            let mut state = director.stage.get();
            for path in state.paths_to(multi.lun) {
                state.set_health(path, Health::Dead);
            }
            state.tally.count("all paths dead");
        }
        director.nap(150).await;
        if !director.playing() {
            // From now on nobody changes a path's health.
            return;
        }
        if director.once_in(2) {
            self.new_paths_for_what_waits(node, multi.lun).await;
        } else {
            self.suspend_without_paths(node, multi.lun).await;
        }
    }

    /// Both suspends end while every path stays dead: one fails what waits, one pushes it back.
    async fn suspend_without_paths(&mut self, node: usize, lun: usize) {
        let director = self.director.clone();
        {
            let mut state = director.stage.get();
            state.pinned.insert(lun);
            for path in state.paths_to(lun) {
                state.set_health(path, Health::Dead);
            }
        }
        let ended = Rc::new(Cell::new(false));
        let (watch, seen) = (director.clone(), Rc::clone(&ended));
        let name = self.stack.nodes[node].name.clone();
        director.tasks.borrow_mut().push(Box::pin(async move {
            watch.control.sleep(SUSPEND_LIMIT).await;
            if !seen.get() && watch.playing() {
                watch.violate(format!("a suspend of {name} waits for paths that are dead"));
            }
        }));
        let noflush = director.stage.get().swarm.noflush && director.once_in(2);
        let reason = "sim".into();
        let options = SuspendOptions { noflush, reason, ..SuspendOptions::default() };
        let outcome = self.suspend(node, options).await;
        ended.set(true);
        director.stage.get().tally.count("suspends without a path");
        if outcome == Suspended::Yes {
            director.nap(30).await;
            self.resume(node, SuspendOptions::default()).await;
        }
        director.stage.get().pinned.remove(&lun);
    }

    /// A noflush swap to a table with a living path lets what waits flow again.
    async fn new_paths_for_what_waits(&mut self, node: usize, lun: usize) {
        let director = self.director.clone();
        let options = SuspendOptions { noflush: true, ..SuspendOptions::default() };
        if self.suspend(node, options).await == Suspended::No {
            return;
        }
        let lucky = {
            let mut state = director.stage.get();
            let all = state.paths_to(lun);
            let lucky = all[state.rng.usize(0..all.len())];
            state.set_health(lucky, Health::Alive);
            lucky
        };
        let name = self.stack.nodes[node].name.clone();
        let mut dress = director.dress(&self.stack, node, false, false);
        if !dress.paths.contains(&lucky) {
            dress = director.dress(&self.stack, node, true, false);
        }
        if !director.load(&name, &dress.text).await {
            self.resume(node, SuspendOptions::default()).await;
            return;
        }
        let window = self.expect_dress(node, &dress);
        let done = self.resume(node, SuspendOptions::default()).await;
        self.dressed(node, &dress, window, done);
        director.stage.get().tally.count("new paths for held I/O");
    }

    /// Liveness: a device none of whose paths will live again gets others, without a flush.
    pub(crate) async fn bring_paths(&mut self, node: usize) {
        let director = self.director.clone();
        let Some(multi) = self.stack.nodes[node].multi.clone() else { return };
        let alive = |path: &usize| director.stage.get().paths[*path].health == Health::Alive;
        let has_one = multi.paths.iter().any(alive) && !self.stack.nodes[node].odd_sizes;
        if has_one && self.stack.nodes[node].window.is_none() {
            return;
        }
        let name = self.stack.nodes[node].name.clone();
        let dress = director.dress(&self.stack, node, true, false);
        if !director.load(&name, &dress.text).await {
            return director.violate(format!("{name} gets no paths"));
        }
        let window = self.expect_dress(node, &dress);
        let options = SuspendOptions { noflush: true, ..SuspendOptions::default() };
        let done = self.resume(node, options).await;
        self.dressed(node, &dress, window, done);
    }
}

/// True if a refusal of this table may be the weather's doing: a path came back as another size.
pub(crate) fn excused_by_size(director: &Director, text: &str, code: ErrorCode) -> bool {
    let state = director.stage.get();
    let misfit = text.split_ascii_whitespace().any(|word| {
        let path = word.strip_prefix("path").and_then(|number| number.parse::<usize>().ok());
        path.and_then(|path| state.paths.get(path))
            .is_some_and(|path| path.health == Health::Misfit)
    });
    misfit && code == ErrorCode::DeviceTooSmall
}
