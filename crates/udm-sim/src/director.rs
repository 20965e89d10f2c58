//! The steps scripts are made of: build a table, load, suspend, resume, and what the oracle is
//! told.
//!
//! A [`Director`] is a handle on everything a script needs. Its methods ask the life cycle what a
//! user would ask and hold the answers against what must be: a suspend succeeds unless it had a
//! deadline, a load of a good table succeeds, a resume succeeds. In worlds with races other askers
//! interfere, and any refusal is accepted; what may never happen is no answer.
//!
//! The tricky case is the suspend that fails what hangs. From its request until every abandoned
//! operation has ended, devices are fenced and anybody's I/O may be refused; a watcher keeps that
//! window of the oracle open for exactly so long.

use crate::control::{Answer, Control};
use crate::dress::{Dress, Dresser};
use crate::layout::{SpaceMap, Stack};
use crate::multi::excused_by_size;
use crate::oracle::WindowId;
use crate::state::Stage;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use udm_core::lifecycle::{DeviceKey, DeviceStatus, OnTimeout, Reply, Request, SuspendOptions};
use udm_core::table::{Table, TableBuilder, parse_table};
use udm_core::{DeviceRef, DeviceResolver, ErrorCode, LowerRef, Registry, UserError};
use udm_types::{DeviceId, Nanos};

/// The acts of a run, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Act {
    /// Anything goes.
    Play,
    /// Scripts finish what they began and leave every device running.
    Calm,
    /// Everything is read once more and flushed.
    Sweep,
    /// Everything is removed.
    Leave,
}

/// What scripts and world tell each other.
#[derive(Debug)]
pub(crate) struct Progress {
    /// The act.
    pub act: Cell<Act>,
    /// Scripts that have not finished the act.
    pub busy: Cell<usize>,
    /// Scripts that interfere with others and have not ended.
    pub meddlers: Cell<usize>,
}

/// A task for the world's executor.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()>>>;

/// What a script needs.
#[derive(Clone)]
pub(crate) struct Director {
    /// Time, dice, oracle.
    pub stage: Stage,
    /// The way to the life cycle.
    pub control: Control,
    /// Target types.
    pub registry: Rc<Registry>,
    /// The disks and paths as lower devices.
    pub disks: Rc<Vec<LowerRef>>,
    /// Multipath devices with a live table, and the paths of it that I/O can come by.
    pub multis: Rc<RefCell<BTreeMap<DeviceId, Vec<usize>>>>,
    /// Tickets of suspends without an answer, of those that scripts make up.
    pub waiting: Rc<RefCell<BTreeSet<u64>>>,
    /// Their free space.
    pub space: Rc<RefCell<SpaceMap>>,
    /// Acts.
    pub progress: Rc<Progress>,
    /// Tasks to start.
    pub tasks: Rc<RefCell<Vec<Task>>>,
    /// Last ticket given out.
    pub last_ticket: Rc<Cell<u64>>,
}

/// How a suspend ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suspended {
    /// The device is suspended.
    Yes,
    /// It runs on: the deadline passed, or somebody interfered.
    No,
}

/// Finds simulated disks and paths, and mapped devices that were looked up before.
struct SimResolver<'a> {
    disks: &'a [LowerRef],
    mapped: BTreeMap<String, DeviceRef>,
}

impl DeviceResolver for SimResolver<'_> {
    fn resolve(&mut self, name: &str, _read_only: bool) -> Result<DeviceRef, UserError> {
        if let Some(found) = self.mapped.get(name) {
            return Ok(found.clone());
        }
        let Some(lower) = self.disks.iter().find(|lower| lower.device.shown() == name) else {
            let text = format!("there is no '{name}'");
            return Err(UserError::new(ErrorCode::DeviceNotFound, text));
        };
        Ok(DeviceRef::of_lower(lower))
    }
}

impl Director {
    /// True while anything goes.
    pub(crate) fn playing(&self) -> bool {
        self.progress.act.get() == Act::Play
    }

    /// Waits for an act.
    pub(crate) async fn until(&self, act: Act) {
        while self.progress.act.get() < act {
            self.control.sleep(Nanos::from_millis(1)).await;
        }
    }

    /// Tells the world that this script has finished the act.
    pub(crate) fn finished(&self) {
        self.progress.busy.set(self.progress.busy.get() - 1);
    }

    /// Sleeps up to so long.
    pub(crate) async fn nap(&self, most_ms: u64) {
        let span = Nanos(self.stage.get().rng.u64(0..most_ms.max(1) * 1_000_000));
        self.control.sleep(span).await;
    }

    /// A number below `end`.
    pub(crate) fn pick(&self, end: usize) -> usize {
        self.stage.get().rng.usize(0..end)
    }

    /// True once in `of`.
    pub(crate) fn once_in(&self, of: u32) -> bool {
        self.stage.get().once_in(of)
    }

    /// A ticket nobody else has.
    pub(crate) fn ticket(&self) -> u64 {
        self.last_ticket.set(self.last_ticket.get() + 1);
        self.last_ticket.get()
    }

    /// A broken promise.
    pub(crate) fn violate(&self, text: String) {
        self.stage.get().oracle.violate(text);
    }

    /// An answer that must be good, unless others interfere.
    pub(crate) fn expect(&self, what: &str, answer: Answer) -> Option<Reply> {
        match answer {
            Ok(reply) => Some(reply),
            Err(error) => {
                if !self.stage.get().swarm.races {
                    self.violate(format!("{what} was refused: {error}"));
                }
                None
            }
        }
    }

    /// An answer that must be a refusal with this code, unless others interfere.
    pub(crate) fn expect_refusal(&self, what: &str, code: ErrorCode, answer: Answer) {
        let races = self.stage.get().swarm.races;
        match answer {
            Err(error) if error.code() == code || races => {}
            Err(error) => self.violate(format!("{what}: expected {}, got {error}", code.as_str())),
            Ok(_) if races => {}
            Ok(_) => self.violate(format!("{what} succeeded, expected {}", code.as_str())),
        }
    }

    /// A device's state.
    pub(crate) async fn status(&self, name: &str) -> Option<DeviceStatus> {
        let answer = self.control.ask(Request::Status { device: key(name) }).await;
        match self.expect("status", answer) {
            Some(Reply::Done(Some(status))) => Some(*status),
            Some(_) => {
                self.violate("status answered something else".into());
                None
            }
            None => None,
        }
    }

    /// Draws a table for a node.
    pub(crate) fn dress(&self, stack: &Stack, node: usize, plain: bool, first: bool) -> Dress {
        let ways = stack.nodes[node].multi.as_ref().map(|multi| self.loadable_paths(multi.lun));
        let mut state = self.stage.get();
        let state = &mut *state;
        let canary =
            state.canary.filter(|canary| *canary != crate::state::Canary::WrongSector || !first);
        let mut dresser = Dresser::new(&mut state.rng, &state.swarm, canary);
        dresser.plain = plain;
        dresser.ways = ways.unwrap_or_default();
        let mut dress = dresser.dress(stack, node);
        dress.misfits = state.misfits_of(&dress.paths);
        state.note_text("table", &dress.text);
        dress
    }

    /// Builds a table from text.
    pub(crate) async fn build(&self, text: &str) -> Option<Arc<Table>> {
        let mut mapped = BTreeMap::new();
        for word in text.split_ascii_whitespace() {
            let Some(name) = word.strip_prefix("dm:") else { continue };
            if mapped.contains_key(word) {
                continue;
            }
            let answer = self.control.ask(Request::Lookup { device: key(name) }).await;
            match self.expect("lookup", answer)? {
                Reply::Device(device) => mapped.insert(word.to_owned(), *device),
                other => {
                    self.violate(format!("lookup answered {other:?}"));
                    return None;
                }
            };
        }
        let mut resolver = SimResolver { disks: &self.disks, mapped };
        let (now, seed) = {
            let mut state = self.stage.get();
            (state.now, state.rng.u64(..))
        };
        let built = parse_table(text).and_then(|lines| {
            let registry = &self.registry;
            let resolver = &mut resolver;
            TableBuilder { registry, resolver, read_only: false, now, seed }.build(&lines)
        });
        match built {
            Ok(table) => Some(Arc::new(table)),
            Err(error) if excused_by_size(self, text, error.code()) => {
                self.stage.get().tally.count("tables refused for the size of a path");
                None
            }
            Err(error) => {
                self.violate(format!("a good table was refused: {error}\n{text}"));
                None
            }
        }
    }

    /// Text that must not become a table.
    pub(crate) fn expect_bad_table(&self, text: &str, code: ErrorCode) {
        let mut resolver = SimResolver { disks: &self.disks, mapped: BTreeMap::new() };
        let now = self.stage.get().now;
        let built = parse_table(text).and_then(|lines| {
            let (registry, resolver) = (&self.registry, &mut resolver);
            TableBuilder { registry, resolver, read_only: false, now, seed: 0 }.build(&lines)
        });
        match built {
            Err(error) if error.code() == code => {}
            Err(error) => self.violate(format!("{text}: expected {}, got {error}", code.as_str())),
            Ok(_) => self.violate(format!("a bad table was taken: {text}")),
        }
    }

    /// Loads a table into the inactive slot.
    pub(crate) async fn load(&self, name: &str, text: &str) -> bool {
        let Some(table) = self.build(text).await else { return false };
        let answer = self.control.ask(Request::Load { device: key(name), table }).await;
        self.stage.get().tally.count("loads");
        self.expect("load", answer).is_some()
    }

    /// Draws how to suspend.
    pub(crate) fn draw_options(&self) -> SuspendOptions {
        let mut state = self.stage.get();
        let noflush = state.swarm.noflush && state.rng.bool();
        let (with_deadline, fail) = (state.rng.u32(0..5) < 2, state.rng.bool());
        let deadline = Nanos::from_millis(state.rng.u64(1..400));
        let limited = state.swarm.deadlines && with_deadline;
        SuspendOptions {
            noflush,
            deadline: limited.then_some(deadline),
            on_timeout: if fail { OnTimeout::Fail } else { OnTimeout::Resume },
            reason: "sim".into(),
        }
    }

    /// Suspends a device.
    pub(crate) async fn suspend(&self, name: &str, options: SuspendOptions) -> Suspended {
        let kind = if options.noflush { "suspend noflush" } else { "suspend flush" };
        self.stage.get().tally.count(kind);
        let ticket = self.ticket();
        let request = Request::Suspend { device: key(name), options: options.clone(), ticket };
        let answer = self.guarded(&options, ticket, request).await;
        match answer {
            Ok(_) => Suspended::Yes,
            Err(error) => {
                self.stage.get().tally.count("suspend given up");
                self.check_given_up(&options, &error);
                Suspended::No
            }
        }
    }

    /// Resumes a device, swapping the inactive table in; true if it did.
    pub(crate) async fn resume(&self, name: &str, options: SuspendOptions) -> bool {
        self.stage.get().tally.count("resumes");
        let ticket = self.ticket();
        let request = Request::Resume { device: key(name), options: options.clone(), ticket };
        self.stage.get().resuming += 1;
        let answer = self.guarded(&options, ticket, request).await;
        self.stage.get().resuming -= 1;
        match answer {
            Ok(_) => true,
            Err(error) => {
                self.check_given_up(&options, &error);
                false
            }
        }
    }

    fn check_given_up(&self, options: &SuspendOptions, error: &UserError) {
        // Also with `fail`: what a device below keeps (a delay, a hold) cannot be failed from
        // above.
        let timed_out = error.code() == ErrorCode::SuspendTimedOut && options.deadline.is_some();
        // The rescue of devices that have no path any more (`weather.rs`).
        let rescued = error.code() == ErrorCode::SuspendCancelled && !self.playing();
        if !timed_out && !rescued && !self.stage.get().swarm.races {
            self.violate(format!("a suspend or resume was refused: {error}"));
        }
    }

    /// Asks, with the window of an abort open if there may be one.
    async fn guarded(&self, options: &SuspendOptions, ticket: u64, request: Request) -> Answer {
        let window = self.open_abort(options);
        if options.reason == "sim" {
            self.waiting.borrow_mut().insert(ticket);
        }
        let answer = self.control.ask(request).await;
        self.waiting.borrow_mut().remove(&ticket);
        self.close_abort(window);
        answer
    }

    /// A suspend that may fail what hangs is about to be asked for.
    pub(crate) fn open_abort(&self, options: &SuspendOptions) -> Option<WindowId> {
        let may_abort = options.deadline.is_some() && options.on_timeout == OnTimeout::Fail;
        let mut state = self.stage.get();
        if may_abort {
            state.tally.count("suspends that may abort");
        }
        // Scripts that know the device do better than this; a meddler does not know.
        let may_flush = !options.noflush && state.swarm.races && state.swarm.luns > 0;
        (may_abort || may_flush).then(|| state.oracle.open_window(None))
    }

    /// It has been answered: the window closes when every operation of that time has ended.
    pub(crate) fn close_abort(&self, window: Option<WindowId>) {
        let Some(window) = window else { return };
        let director = self.clone();
        self.tasks.borrow_mut().push(Box::pin(async move {
            let serial = director.stage.get().ops.next_serial();
            loop {
                director.control.sleep(Nanos::from_millis(1)).await;
                let state = director.stage.get();
                let delivered = state.lanes.iter().all(|lane| lane.ended.is_empty());
                if delivered && !state.ops.any_older_than(serial) {
                    break;
                }
            }
            director.stage.get().oracle.close_window(window);
        }));
    }

    /// Empties the inactive slot.
    pub(crate) async fn clear(&self, name: &str) {
        let answer = self.control.ask(Request::Clear { device: key(name) }).await;
        self.stage.get().tally.count("clears");
        self.expect("clear", answer);
    }
}

/// A device by name.
pub(crate) fn key(name: &str) -> DeviceKey {
    DeviceKey::Name(name.to_owned())
}
