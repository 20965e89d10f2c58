//! The watcher: one thread that looks after the paths of all devices whose owners asked for it.
//!
//! It sleeps until something is due or happens: a check, an event of a device, a change made by a
//! user, a question. Then it looks at the target (`view.rs`), asks the policy what to do, and does
//! it: checks through the lane's checker, everything else by the messages anybody could send. There
//! is no thread before the first device is watched, and no wake-up while none is.
//!
//! Rules. Nothing here waits for a path: checks answer later, and what a dead device keeps is one
//! read. Requests to the life cycle are the quick ones. A refused message (the device is about to
//! be suspended) is tried again a second later.
//!
//! The tricky case is a device that goes away: its event wait fails with "no such device", and that
//! is when it is forgotten, so that a new device with the same number does not inherit its policy.

use super::checker::{self, CheckNews, CheckOrder, Checker};
use super::config::{Policy, policy_of};
use super::policy::{Act, CheckNote, DevicePaths, PathState};
use super::view::View;
use crate::runtime::Runtime;
use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use udm_control::api::PathPolicy;
use udm_core::engine::COORDINATOR_LANE;
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::{DeviceKey, DeviceStatus, Reply, Request, StatusKind, Ticket};
use udm_core::table::split_words;
use udm_core::{DeviceRef, LinkState, Table};
use udm_driver::monotonic_ns;
use udm_types::{ActorId, DeviceId, Nanos, Status};

/// What the watcher knows of a path beyond what the target shows.
#[derive(Clone, Debug)]
pub struct PathNote {
    /// How it is.
    pub state: PathState,
    /// Why it last failed.
    pub last_error: Option<String>,
    /// The last check.
    pub last_check: Option<CheckNote>,
    /// When the next begins.
    pub next_check: Nanos,
}

/// What is known of the paths of a device, by the path's name.
pub type PathNotes = BTreeMap<String, PathNote>;

enum Mail {
    Watch(DeviceId, Policy),
    Unwatch(DeviceId),
    /// Something may have changed: a table, a suspend.
    Poke,
    Event(DeviceId, Ticket, Result<u32, ErrorCode>),
    News(CheckNews),
    Notes(DeviceId, SyncSender<PathNotes>),
    Stop,
}

impl From<CheckNews> for Mail {
    fn from(news: CheckNews) -> Mail {
        Mail::News(news)
    }
}

struct Thread {
    mail: Sender<Mail>,
    thread: JoinHandle<()>,
}

type Book = Arc<Mutex<BTreeMap<DeviceId, PathPolicy>>>;

/// The watcher as the daemon holds it.
pub struct PathWatch {
    runtime: Arc<Runtime>,
    thread: Mutex<Option<Thread>>,
    book: Book,
}

impl PathWatch {
    /// A watcher of nothing.
    pub fn new(runtime: Arc<Runtime>) -> PathWatch {
        PathWatch { runtime, thread: Mutex::default(), book: Book::default() }
    }

    /// Watches a device from now on, or in another way than before.
    ///
    /// # Errors
    /// The policy makes no sense, or there is no thread to be had.
    pub fn watch(&self, device: DeviceId, words: PathPolicy) -> Result<(), UserError> {
        let policy = policy_of(&words)?;
        let mut thread = lock(&self.thread);
        let running = match thread.take() {
            Some(running) => running,
            None => start(&self.runtime, &self.book)?,
        };
        lock(&self.book).insert(device, words);
        // The thread ends only when it is told to.
        drop(running.mail.send(Mail::Watch(device, policy)));
        *thread = Some(running);
        Ok(())
    }

    /// Watches a device no more.
    pub fn unwatch(&self, device: DeviceId) {
        lock(&self.book).remove(&device);
        self.send(Mail::Unwatch(device));
    }

    /// Forgets devices that are gone; looks at the others again soon.
    pub fn settle(&self, devices: &[DeviceStatus]) {
        let mut gone = Vec::new();
        lock(&self.book).retain(|id, _| {
            let is_there = devices.iter().any(|device| device.id == *id);
            if !is_there {
                gone.push(*id);
            }
            is_there
        });
        for device in gone {
            self.send(Mail::Unwatch(device));
        }
        self.send(Mail::Poke);
    }

    /// Nothing is watched.
    pub fn is_idle(&self) -> bool {
        lock(&self.book).is_empty()
    }

    /// How each device is watched, in its users' words.
    pub fn policies(&self) -> BTreeMap<DeviceId, PathPolicy> {
        lock(&self.book).clone()
    }

    /// What is known of the paths of a device; nothing if it is not watched.
    pub fn notes(&self, device: DeviceId) -> PathNotes {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.send(Mail::Notes(device, sender));
        receiver.recv().unwrap_or_default()
    }

    /// Ends the thread. What was watched is not forgotten: the state file keeps it.
    pub fn stop(&self) {
        let running = lock(&self.thread).take();
        if let Some(Thread { mail, thread }) = running {
            drop(mail.send(Mail::Stop));
            // If it has panicked, it has said why.
            drop(thread.join());
        }
    }

    fn send(&self, mail: Mail) {
        if let Some(running) = &*lock(&self.thread) {
            drop(running.mail.send(mail));
        }
    }
}

impl Drop for PathWatch {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic leaves behind here is whole: single insertions and removals.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(runtime: &Arc<Runtime>, book: &Book) -> Result<Thread, UserError> {
    let (mail, inbox) = mpsc::channel();
    let (runtime, book, own_mail) = (Arc::clone(runtime), Arc::clone(book), mail.clone());
    let thread = std::thread::Builder::new().name("udm-paths".into()).spawn(move || {
        let news = own_mail.clone();
        let actor = runtime.spawn_actor(COORDINATOR_LANE, move || {
            Box::new(Checker::new(checker::to_channel(news)))
        });
        let watcher = Watcher {
            runtime,
            actor,
            book,
            mail: own_mail,
            watched: BTreeMap::new(),
            checks: BTreeMap::new(),
            last_check: 0,
        };
        watcher.run(&inbox);
    });
    let thread = thread.map_err(|error| {
        UserError::new(ErrorCode::Internal, format!("no thread for path checks: {error}"))
    })?;
    Ok(Thread { mail, thread })
}

/// A device under watch.
struct Watched {
    paths: DevicePaths,
    /// The event wait under way, and the last number seen.
    wait: Option<Ticket>,
    event_nr: Option<u32>,
}

struct Watcher {
    runtime: Arc<Runtime>,
    actor: ActorId,
    book: Book,
    mail: Sender<Mail>,
    watched: BTreeMap<DeviceId, Watched>,
    /// Checks whose reads have not come back: whose they are.
    checks: BTreeMap<u64, (DeviceId, String)>,
    last_check: u64,
}

/// Rounds of looking and acting at one device before the others have their turn. Two are usual:
/// act, then see that it is done.
const ROUNDS_MAX: usize = 8;

/// Shortest sleep, so that a target that does not do what its messages say costs little.
const PAUSE_MIN: Duration = Duration::from_millis(10);

impl Watcher {
    fn run(mut self, inbox: &Receiver<Mail>) {
        loop {
            let begin = now();
            let due: Vec<DeviceId> = self
                .watched
                .iter()
                .filter(|(_, watched)| watched.paths.next_wake().is_some_and(|at| at <= begin))
                .map(|(device, _)| *device)
                .collect();
            for device in due {
                self.look_after(device);
            }
            let wake = self.watched.values().filter_map(|watched| watched.paths.next_wake()).min();
            let mail = match wake {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => {
                    let pause = Duration::from_nanos(at.since(now()).0);
                    inbox.recv_timeout(pause.max(PAUSE_MIN))
                }
            };
            match mail {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Mail::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(mail) => self.take(mail),
            }
        }
    }

    fn take(&mut self, mail: Mail) {
        match mail {
            Mail::Watch(device, policy) => {
                self.watched
                    .entry(device)
                    .and_modify(|watched| watched.paths.set_policy(policy, now()))
                    .or_insert_with(|| Watched {
                        paths: DevicePaths::new(policy),
                        wait: None,
                        event_nr: None,
                    });
                self.look_after(device);
            }
            Mail::Unwatch(device) => self.forget(device),
            Mail::Poke => {
                let devices: Vec<DeviceId> = self.watched.keys().copied().collect();
                for device in devices {
                    self.look_after(device);
                }
            }
            Mail::Event(device, ticket, outcome) => self.on_event(device, ticket, outcome),
            Mail::News(CheckNews::Answered(check, status)) => self.answered(check, status),
            Mail::News(CheckNews::Ended(check)) => drop(self.checks.remove(&check)),
            Mail::Notes(device, reply) => {
                let notes = self.watched.get(&device).map(notes).unwrap_or_default();
                // The asker waits for it.
                drop(reply.send(notes));
            }
            Mail::Stop => {}
        }
    }

    fn forget(&mut self, device: DeviceId) {
        lock(&self.book).remove(&device);
        if let Some(Watched { wait: Some(ticket), .. }) = self.watched.remove(&device) {
            drop(self.runtime.request(Request::Cancel { ticket }));
        }
    }

    fn on_event(&mut self, device: DeviceId, ticket: Ticket, outcome: Result<u32, ErrorCode>) {
        let Some(watched) = self.watched.get_mut(&device) else { return };
        if watched.wait != Some(ticket) {
            return;
        }
        watched.wait = None;
        match outcome {
            Ok(event_nr) => {
                watched.event_nr = Some(event_nr);
                self.look_after(device);
            }
            Err(ErrorCode::NoSuchDevice) => self.forget(device),
            // The engine is ending, or somebody cancelled: without events, checks go on.
            Err(_) => {}
        }
    }

    fn answered(&mut self, check: u64, status: Status) {
        let Some((device, path)) = self.checks.get(&check).cloned() else { return };
        let result = match status.is_ok() {
            true => Ok(()),
            false => Err(format!("reading the first block: {}", status.describe())),
        };
        if let Some(watched) = self.watched.get_mut(&device) {
            watched.paths.checked(now(), &path, result, None);
            self.look_after(device);
        }
    }

    /// Looks at the target and does what the policy says, until it says nothing.
    fn look_after(&mut self, device: DeviceId) {
        for _ in 0..ROUNDS_MAX {
            let (status, view) = match self.look(device) {
                Ok(seen) => seen,
                Err(error) if error.code() == ErrorCode::NoSuchDevice => {
                    return self.forget(device);
                }
                // The engine is ending.
                Err(_) => return,
            };
            let now = now();
            let Some(watched) = self.watched.get_mut(&device) else { return };
            watched.paths.observe(now, view);
            let acts = watched.paths.act(now);
            self.wait_for_events(device, status.event_nr);
            if acts.is_empty() {
                return;
            }
            self.carry_out(device, &acts);
        }
    }

    /// The target as it is now. A device without a multipath target has no paths.
    fn look(&self, device: DeviceId) -> Result<(Box<DeviceStatus>, View), UserError> {
        let (status, info) = multipath_args(&self.runtime, device, StatusKind::Info)?;
        let (_, table) = multipath_args(&self.runtime, device, StatusKind::Table)?;
        let mut view = View::read(&info.unwrap_or_default(), &table.unwrap_or_default());
        let mut view = view.take().unwrap_or_default();
        view.is_suspended = status.suspended || status.suspend.is_some();
        Ok((status, view))
    }

    fn wait_for_events(&mut self, device: DeviceId, event_nr: u32) {
        let Some(watched) = self.watched.get_mut(&device) else { return };
        if watched.wait.is_some() {
            return;
        }
        let ticket = self.runtime.ticket();
        watched.wait = Some(ticket);
        let seen = *watched.event_nr.insert(event_nr);
        let mail = self.mail.clone();
        let sink = move |reply: Result<Reply, UserError>| {
            let outcome = match reply {
                Ok(Reply::Done(Some(status))) => Ok(status.event_nr),
                Ok(_) => Err(ErrorCode::Internal),
                Err(error) => Err(error.code()),
            };
            drop(mail.send(Mail::Event(device, ticket, outcome)));
        };
        let device = DeviceKey::Id(device);
        self.runtime.post(Request::Wait { device, event_nr: seen, ticket }, Box::new(sink));
    }

    fn carry_out(&mut self, device: DeviceId, acts: &[Act]) {
        let table = match self.runtime.request(Request::LiveTable { device: DeviceKey::Id(device) })
        {
            Ok(Reply::Table { table, .. }) => table,
            _ => None,
        };
        for act in acts {
            let words: Vec<String> = match act {
                Act::Check(path) => {
                    self.check(device, path, table.as_deref());
                    continue;
                }
                Act::Fail(path) => vec!["fail_path".into(), path.clone()],
                Act::Reinstate(path) => vec!["reinstate_path".into(), path.clone()],
                Act::SwitchGroup(group) => vec!["switch_group".into(), group.to_string()],
                Act::Queue => vec!["queue_if_no_path".into()],
                Act::FailIfNoPath => vec!["fail_if_no_path".into()],
            };
            let request = Request::Message { device: DeviceKey::Id(device), sector: 0, words };
            if self.runtime.request(request).is_err()
                && let Some(watched) = self.watched.get_mut(&device)
            {
                watched.paths.refused(now(), act);
            }
        }
    }

    /// Starts a check, or answers it at once where its end is known.
    fn check(&mut self, device: DeviceId, path: &str, table: Option<&Table>) {
        let Some(watched) = self.watched.get_mut(&device) else { return };
        let policy = *watched.paths.policy();
        let hangs = self.checks.values().any(|(of, what)| *of == device && what == path);
        let found = table.and_then(|table| device_of(table, path));
        let verdict = match &found {
            _ if hangs => Err(("the last check has not come back".to_owned(), None)),
            None => Err(("it is not in the live table any more".to_owned(), None)),
            Some((_, Err(why))) => Err((why.clone(), None)),
            Some((below, Ok(()))) => link_error(below),
        };
        if let Err((why, retry_at)) = verdict {
            return watched.paths.checked(now(), path, Err(why), retry_at);
        }
        let Some((below, _)) = found else { return };
        self.last_check += 1;
        let check = self.last_check;
        self.checks.insert(check, (device, path.to_owned()));
        let order = CheckOrder {
            check,
            dest: below.dest,
            lower: below.lower,
            len_sectors: below.limits.logical_block_sectors().max(1),
            timeout: policy.timeout,
        };
        let actor = self.actor;
        let started = self
            .runtime
            .on_lane(COORDINATOR_LANE, move |engine| checker::start(engine, actor, order));
        if let Err(why) = started {
            self.checks.remove(&check);
            if let Some(watched) = self.watched.get_mut(&device) {
                watched.paths.checked(now(), path, Err(why), None);
            }
        }
    }
}

/// The device a path of a table is, and whether it is still large enough.
fn device_of(table: &Table, path: &str) -> Option<(DeviceRef, Result<(), String>)> {
    let mut uses = table.targets.iter().flat_map(|target| &target.devices);
    let found = uses.find(|used| is_named(&used.device.shown, path))?;
    let needed = found.start_sector + found.len_sectors;
    let lower = found.device.lower.as_ref();
    let is_short = lower.map(|lower| lower.device.len_sectors()).filter(|len| *len < needed);
    let fits = match is_short {
        Some(len) => Err(format!("it has {len} sectors now, the table needs {needed}")),
        None => Ok(()),
    };
    Some((found.device.clone(), fits))
}

/// Whether a device is the one a view calls `path`: tables print names escaped.
fn is_named(shown: &str, path: &str) -> bool {
    shown == path || split_words(shown).first().is_some_and(|word| word == path)
}

/// A device behind a connection that is down needs no read to be known bad: why, and when it tries
/// again.
fn link_error(device: &DeviceRef) -> Result<(), (String, Option<Nanos>)> {
    let link = device.lower.as_ref().and_then(|lower| lower.device.link());
    match link {
        // Not connected yet is no failure; the read waits for the connection.
        Some(link) if !link.is_up() && (link.failures > 0 || link.is_misfit) => {
            let LinkState { last_error, next_try_at, .. } = link;
            Err((last_error.unwrap_or_else(|| "not connected".into()), next_try_at))
        }
        Some(_) | None => Ok(()),
    }
}

fn notes(watched: &Watched) -> PathNotes {
    let note = |view: &super::view::PathView| {
        let record = watched.paths.record(&view.path)?;
        let note = PathNote {
            state: watched.paths.state(view),
            last_error: record.last_error.clone(),
            last_check: record.last_check.clone(),
            next_check: record.next_check,
        };
        Some((view.path.clone(), note))
    };
    watched.paths.view().paths().filter_map(note).collect()
}

/// The arguments of a device's multipath line, if it has one.
pub(super) fn multipath_args(
    runtime: &Runtime,
    device: DeviceId,
    kind: StatusKind,
) -> Result<(Box<DeviceStatus>, Option<String>), UserError> {
    let device = DeviceKey::Id(device);
    match runtime.request(Request::TableStatus { device, inactive: false, kind })? {
        Reply::Lines { device, lines } => {
            let line = lines.into_iter().find(|line| line.target == "multipath");
            Ok((device, line.map(|line| line.args)))
        }
        other => Err(UserError::new(ErrorCode::Internal, format!("no lines: {other:?}"))),
    }
}

fn now() -> Nanos {
    Nanos(monotonic_ns())
}
