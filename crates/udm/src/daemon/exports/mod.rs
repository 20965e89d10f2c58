//! Exports: which device is served where.
//!
//! An export has a name, one place ([`ExportPlace`]) and counts as an opener of its device. This
//! file knows the names and does what is common to all kinds; what serves (a listener, a mount) is
//! a [`Front`], and each kind has its file beside this one: a [`Plan`] made from the address, and
//! the front it starts. To add a kind: a file, and an arm in [`plan`].
//!
//! Ending is graceful, then firm: requests under way are answered, but a device that is suspended
//! or dead never answers, so after [`DRAIN_LIMIT`] an export's clients are cut off.
//!
//! A front may also end by itself (a file is unmounted). It tells its [`Lapse`], from a thread of
//! its own; the export is forgotten then, unless it was being ended anyway.
//!
//! The tricky case is two calls at a time that want one name or address: the map is locked while
//! a front starts, so the second one finds the first.

mod address;
mod fuse;
mod nbd;
mod passed;
mod ublk;
mod vhost_user;

use super::state::SavedExport;
use crate::runtime::{Runtime, status_of};
use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use udm_control::api::{ExportState, Tls};
use udm_control::ops::ExportOrder;
use udm_control::place::{ExportKind, ExportPlace};
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::{DeviceKey, DeviceStatus, Request};
use udm_driver::become_io_flusher;
use udm_front::lanes::LaneShare;
use udm_types::{DeviceId, LaneId, Sector};

/// How long requests under way may take when an export ends. Longer than any healthy request,
/// shorter than a person's patience with Ctrl-C.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How long a resize may wait for a front to tell its users. None of them waits for I/O, so it is
/// a moment; a kernel or a client that does not answer must not hold what comes after the resize.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

/// What to do about an address that somebody uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Say so.
    None,
    /// Take it over from a daemon that has died, or wait for its end, but not longer than
    /// [`DRAIN_LIMIT`].
    OldDaemon,
}

/// An address that has been understood, before anything is done.
trait Plan {
    /// The address in its one spelling, to compare and to show.
    fn address(&self) -> String;

    /// Starts to serve.
    fn start(self: Box<Self>, start: Start<'_>) -> Result<Arc<dyn Front>, UserError>;
}

/// What a front is to serve.
struct Start<'a> {
    runtime: &'a Arc<Runtime>,
    device: DeviceId,
    name: &'a str,
    read_only: bool,
    /// The lanes it may use.
    lanes: LaneShare,
    /// The device holds all I/O.
    suspended: bool,
    /// A state directory keeps the export for the next daemon.
    is_kept: bool,
    patience: Patience,
    /// To be told if the front ends by itself.
    lapse: Lapse,
}

/// A front's word that it has ended by itself.
struct Lapse {
    exports: Weak<Exports>,
    name: String,
    number: u64,
}

impl Lapse {
    /// Forgets the export. Blocks: not to be called on a lane.
    fn tell(self, why: &str) {
        if let Some(exports) = self.exports.upgrade() {
            exports.lapsed(&self, why);
        }
    }
}

/// What to do when an export has ended by itself, with its name and the reason.
type OnLapse = Box<dyn Fn(&str, &str) + Send + Sync>;

/// What serves an export.
trait Front: Send + Sync {
    /// Where, in its one spelling; with what was chosen for the user (a port) filled in.
    fn address(&self) -> String;

    /// What clients type.
    fn uri(&self, name: &str) -> String;

    /// Clients connected now.
    fn client_count(&self) -> u32;

    /// The numbers of the kernel's block device, major and minor, if it is one.
    fn block_device(&self) -> Option<(u32, u32)> {
        None
    }

    /// How requests reach the daemon, where there is more than one way.
    fn transport(&self) -> Option<&'static str> {
        None
    }

    /// How its users learn of a new size.
    fn size_news(&self) -> SizeNews;

    /// Tells `done` when its users can see the size that the device has since the last resume.
    fn settle_size(&self, done: Sender<()>) {
        // Nothing has to be waited for unless a front says so; whoever waited may have given up.
        let _ = done.send(());
    }

    /// The size its users see, in sectors, if it is not the device's.
    fn kept_sectors(&self) -> Option<Sector> {
        None
    }

    /// Something its users should know.
    fn note(&self) -> Option<String> {
        None
    }

    /// Somebody depends on it in a way that its end would break (it is mounted).
    fn is_held(&self) -> bool {
        false
    }

    /// It is left as it is when the daemon ends, for the next daemon to take up.
    fn outlives(&self) -> bool {
        false
    }

    /// Answers what is under way and ends; with `cut`, ends at once. `done` is told when the last
    /// client is gone.
    fn stop(&self, cut: bool, done: Sender<()>);

    /// Removes what is left in the file system after the end.
    fn clean_up(&self);
}

/// How the users of an export learn that their disk has another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SizeNews {
    /// They are told before the resize is reported done.
    Told,
    /// Whoever looks sees it, from before the resize is reported done.
    Seen,
    /// They learn it when they ask again: by connecting anew.
    Ask,
    /// Not while they use it; it keeps the size it has.
    Kept,
}

impl SizeNews {
    fn word(self) -> &'static str {
        match self {
            SizeNews::Told => "told",
            SizeNews::Seen => "seen",
            SizeNews::Ask => "ask",
            SizeNews::Kept => "kept",
        }
    }
}

/// Understands an address.
///
/// # Errors
/// `BadAddress`, or what is wrong with TLS.
fn plan(place: &ExportPlace, tls: Option<&Tls>) -> Result<Box<dyn Plan>, UserError> {
    if tls.is_some() && place.kind != ExportKind::Nbd {
        let what = format!("{} has no TLS", place.kind.word());
        return Err(UserError::new(ErrorCode::BadParameter, what).hint("TLS is for nbd"));
    }
    match place.kind {
        ExportKind::Nbd => Ok(Box::new(nbd::Plan::parse(&place.address, tls)?)),
        ExportKind::Fuse => Ok(Box::new(fuse::Plan::parse(&place.address)?)),
        ExportKind::VhostUser => Ok(Box::new(vhost_user::Plan::parse(&place.address)?)),
        ExportKind::Ublk => Ok(Box::new(ublk::Plan::parse(&place.address)?)),
    }
}

/// Whether an address could be served at.
///
/// # Errors
/// `BadAddress`.
pub(crate) fn check_place(place: &ExportPlace) -> Result<(), UserError> {
    plan(place, None).map(drop)
}

/// One export.
#[derive(Clone)]
struct Served {
    /// Tells it from others that had its name.
    number: u64,
    device: DeviceId,
    kind: ExportKind,
    read_only: bool,
    tls: Option<Tls>,
    lanes: Option<NonZeroU16>,
    front: Arc<dyn Front>,
    /// The device's size that the front has settled.
    settled_sectors: Arc<AtomicU64>,
}

/// All exports of a daemon, by name.
pub(crate) struct Exports {
    me: Weak<Exports>,
    runtime: Arc<Runtime>,
    /// A state directory keeps exports for the next daemon.
    is_kept: bool,
    served: Mutex<BTreeMap<String, Served>>,
    started: AtomicU64,
    on_lapse: OnceLock<OnLapse>,
}

impl Exports {
    pub(crate) fn new(runtime: Arc<Runtime>, is_kept: bool) -> Arc<Exports> {
        Arc::new_cyclic(|me| Exports {
            me: Weak::clone(me),
            runtime,
            is_kept,
            served: Mutex::default(),
            started: AtomicU64::new(0),
            on_lapse: OnceLock::new(),
        })
    }

    /// Has `listener` called after an export has ended by itself. Only the first call counts.
    pub(crate) fn on_lapse(&self, listener: OnLapse) {
        // A second listener would be a mistake without harm.
        let _ = self.on_lapse.set(listener);
    }

    fn lapsed(&self, lapse: &Lapse, why: &str) {
        let mut served = self.lock();
        if served.get(&lapse.name).is_none_or(|one| one.number != lapse.number) {
            return;
        }
        let Some(one) = served.remove(&lapse.name) else { return };
        drop(served);
        one.front.clean_up();
        self.close(one.device);
        if let Some(listener) = self.on_lapse.get() {
            listener(&lapse.name, why);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Served>> {
        // A panic in here cannot leave the map half changed.
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to serve a device.
    pub(crate) fn add(
        &self,
        order: &ExportOrder,
        patience: Patience,
    ) -> Result<ExportState, UserError> {
        let plan = plan(&order.place, order.tls.as_ref())?;
        let opened = self.runtime.request(Request::Open { device: order.device.clone() });
        let device = status_of(opened?)?;
        let started = self.start(order, &device, plan, patience);
        if started.is_err() {
            self.close(device.id);
        }
        started
    }

    fn start(
        &self,
        order: &ExportOrder,
        device: &DeviceStatus,
        plan: Box<dyn Plan>,
        patience: Patience,
    ) -> Result<ExportState, UserError> {
        let name = order.name.clone().unwrap_or_else(|| device.name.as_str().to_owned());
        let kind = order.place.kind;
        // Held while the front starts, so that two calls cannot take one name.
        let mut served = self.lock();
        if let Some(taken) = served.get(&name) {
            return Err(UserError::new(
                ErrorCode::ExportTaken,
                format!("an export '{name}' is served at {}", taken.front.address()),
            )
            .hint("choose another --name, or end it with udm unexport"));
        }
        let address = plan.address();
        let is_same = |one: &Served| one.kind == kind && one.front.address() == address;
        if let Some((other, _)) = served.iter().find(|(_, one)| is_same(one)) {
            return Err(UserError::new(
                ErrorCode::ExportTaken,
                format!("{address} serves the export '{other}' already"),
            )
            .hint("choose another address"));
        }
        let read_only = order.read_only;
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let front = plan.start(Start {
            runtime: &self.runtime,
            device: device.id,
            name: &name,
            read_only,
            lanes: LaneShare::new(device.id, order.lanes),
            suspended: device.suspended,
            is_kept: self.is_kept,
            patience,
            lapse: Lapse { exports: Weak::clone(&self.me), name: name.clone(), number },
        })?;
        let (tls, lanes) = (order.tls.clone(), order.lanes);
        let settled_sectors = Arc::new(AtomicU64::new(device.len_sectors));
        let one = Served {
            number,
            device: device.id,
            kind,
            read_only,
            tls,
            lanes,
            front,
            settled_sectors,
        };
        let state = describe(&name, Some(device), &one, 0);
        served.insert(name, one);
        Ok(state)
    }

    /// Ends an export and waits until its clients are gone. Also gives up a disk of the kernel that
    /// a daemon has left, by the disk's path.
    pub(crate) fn remove(&self, name: &str) -> Result<(), UserError> {
        let mut served = self.lock();
        if let Some(one) = served.get(name).filter(|one| one.front.is_held()) {
            let what = format!("{} is mounted, or used by something else", one.front.address());
            return Err(UserError::new(ErrorCode::InUse, what).hint("unmount it first"));
        }
        let Some(one) = served.remove(name) else {
            drop(served);
            let missing = || {
                let what = format!("there is no export '{name}'");
                Err(UserError::new(ErrorCode::NoSuchExport, what))
            };
            return ublk::give_up(name).unwrap_or_else(missing);
        };
        drop(served);
        self.end(&one);
        Ok(())
    }

    /// Ends all exports but those that outlive the daemon; they drain at the same time.
    pub(crate) fn remove_all(&self) {
        let mut all = std::mem::take(&mut *self.lock());
        all.retain(|_, one| !one.front.outlives());
        std::thread::scope(|scope| {
            for one in all.values() {
                scope.spawn(|| self.end(one));
            }
        });
    }

    fn end(&self, one: &Served) {
        drain_or_cut(|cut, done| one.front.stop(cut, done), DRAIN_LIMIT);
        one.front.clean_up();
        self.close(one.device);
    }

    fn close(&self, device: DeviceId) {
        // Fails only for a device that is gone, which cannot be while it is open.
        drop(self.runtime.request(Request::Close { device }));
    }

    /// What is served, ordered by name.
    pub(crate) fn list(&self) -> Vec<ExportState> {
        let served = self.lock().clone();
        let state = |name: &String, one: &Served| {
            describe(name, self.device(one.device).as_deref(), one, one.front.client_count())
        };
        served.iter().map(|(name, one)| state(name, one)).collect()
    }

    /// What a restart has to bring back, ordered by name.
    pub(crate) fn saved(&self) -> Vec<SavedExport> {
        let served = self.lock().clone();
        let saved = |name: &String, one: &Served| {
            let place = ExportPlace { kind: one.kind, address: one.front.address() };
            let device = self
                .device(one.device)
                .map_or_else(String::new, |device| device.name.as_str().to_owned());
            let saved = SavedExport::at(place, name.clone(), device, one.read_only);
            SavedExport { tls: one.tls.clone(), lanes: one.lanes, ..saved }
        };
        served.iter().map(|(name, one)| saved(name, one)).collect()
    }

    /// The files that devices are, by device: a disk of the kernel before any other, else the
    /// first export of each.
    pub(crate) fn files(&self) -> BTreeMap<DeviceId, PathBuf> {
        let (mut disks, mut files) = (BTreeMap::new(), BTreeMap::new());
        for one in self.lock().values() {
            let found = match one.kind {
                ExportKind::Ublk => &mut disks,
                ExportKind::Fuse => &mut files,
                ExportKind::Nbd | ExportKind::VhostUser => continue,
            };
            found.entry(one.device).or_insert_with(|| PathBuf::from(one.front.address()));
        }
        files.extend(disks);
        files
    }

    /// Waits until the users of all exports of a device can see its size. What takes longer than
    /// [`SETTLE_LIMIT`] is told to `warn`.
    pub(crate) fn settle_sizes(&self, device: &DeviceKey, warn: &dyn Fn(&str)) {
        if self.lock().is_empty() {
            return;
        }
        let found = self.runtime.request(Request::Status { device: device.clone() });
        // Removed, or renamed by what was just done: then its size is what it was.
        let Ok(device) = found.and_then(status_of) else { return };
        let len_sectors = device.len_sectors;
        let is_late = |one: &Served| {
            one.device == device.id
                && one.settled_sectors.swap(len_sectors, Ordering::Relaxed) != len_sectors
        };
        let late: Vec<(String, Served)> = self
            .lock()
            .iter()
            .filter(|(_, one)| is_late(one))
            .map(|(name, one)| (name.clone(), one.clone()))
            .collect();
        let settle = |(name, one): (String, Served)| {
            let (sender, receiver) = channel();
            one.front.settle_size(sender);
            (name, receiver)
        };
        // All are asked before any is waited for.
        let waiting: Vec<_> = late.into_iter().map(settle).collect();
        let limit = Instant::now() + SETTLE_LIMIT;
        for (name, receiver) in waiting {
            let left = limit.saturating_duration_since(Instant::now());
            if receiver.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                warn(&format!("export '{name}' has not told its users of the new size yet"));
            }
        }
    }

    fn device(&self, id: DeviceId) -> Option<Box<DeviceStatus>> {
        let found = self.runtime.request(Request::Status { device: DeviceKey::Id(id) });
        found.and_then(status_of).ok()
    }
}

/// Has something end that answers what is under way first, or is cut off after `limit`.
///
/// Whoever is asked drops the sender if it has ended by itself meanwhile (a file whose mount was
/// taken away), and that is an end like any other: so nobody else may hold one.
fn drain_or_cut(stop: impl Fn(bool, Sender<()>), limit: Duration) {
    let (sender, receiver) = channel();
    stop(false, sender);
    if receiver.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
        let (sender, receiver) = channel();
        stop(true, sender);
        // A cut waits for nobody; it ends.
        let _ = receiver.recv();
    }
}

/// What to call when somebody's wait is over.
fn telling(done: Sender<()>) -> Box<dyn FnOnce() + Send> {
    Box::new(move || {
        // Whoever waited may have given up.
        let _ = done.send(());
    })
}

/// Tells all lanes that file systems depend on them: a mount on a loop device, or on the kernel's
/// disk, must not wait for memory that only its own writes can free.
fn flushing_lanes(runtime: &Runtime) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for lane in 0..runtime.lane_count() {
            // Without the right to it things work as for any other program. Fits: there are at
            // most 256 lanes.
            let _ = runtime.on_lane(LaneId(lane as u16), |_| become_io_flusher());
        }
    });
}

fn describe(
    name: &str,
    device: Option<&DeviceStatus>,
    one: &Served,
    connections: u32,
) -> ExportState {
    let size_sectors = one.front.kept_sectors().or_else(|| device.map(|device| device.len_sectors));
    ExportState {
        name: name.to_owned(),
        device: device.map_or_else(String::new, |device| device.name.as_str().to_owned()),
        kind: one.kind.word().to_owned(),
        address: one.front.address(),
        uri: one.front.uri(name),
        read_only: one.read_only,
        connections,
        size_sectors: size_sectors.unwrap_or(0),
        on_resize: one.front.size_news().word().to_owned(),
        block_device: one.front.block_device().map(|(major, minor)| format!("{major}:{minor}")),
        transport: one.front.transport().map(str::to_owned),
        lanes: one.lanes,
        note: one.front.note(),
    }
}

#[cfg(test)]
mod tests {
    use super::drain_or_cut;
    use std::cell::RefCell;
    use std::time::Duration;

    /// An unexport of a file took five seconds, about every other time: its mount had ended before
    /// it was asked to.
    #[test]
    fn what_has_ended_before_it_is_asked_is_not_waited_for() {
        let asked = RefCell::new(Vec::new());
        let gone = |cut, done| {
            asked.borrow_mut().push(cut);
            drop(done);
        };
        drain_or_cut(gone, Duration::MAX);
        assert_eq!(asked.take(), [false]);
    }

    #[test]
    fn what_does_not_drain_is_cut() {
        let (asked, kept) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let stop = |cut, done: std::sync::mpsc::Sender<()>| {
            asked.borrow_mut().push(cut);
            if cut {
                done.send(()).expect("somebody waits");
            } else {
                kept.borrow_mut().push(done);
            }
        };
        drain_or_cut(stop, Duration::from_millis(1));
        assert_eq!(asked.take(), [false, true]);
    }
}
