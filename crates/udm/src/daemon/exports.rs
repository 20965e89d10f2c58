//! Exports: which device is served where, and the listeners that do it.
//!
//! An export has an address of its own, a listener actor on a lane, and counts as an opener of its
//! device. The lane side (accepting, connections, draining) is `udm-front`'s; this file starts and
//! ends listeners and knows their names.
//!
//! Ending is graceful, then firm: requests under way are answered, but a device that is suspended
//! or dead never answers, so after [`DRAIN_LIMIT`] its connections are cut.
//!
//! The tricky case is a restart right after `kill -9`: the kernel takes a ring down after its
//! process, so the dead daemon's sockets still listen for a moment. When exports are brought back,
//! a unix socket whose listener has died is replaced, and any other address is waited for
//! ([`Patience`]): a connection to it hangs up when it goes.

use super::address::Address;
use crate::runtime::{Runtime, status_of};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use udm_control::api::ExportState;
use udm_control::errno;
use udm_control::ops::ExportOrder;
use udm_core::LaneMessage;
use udm_core::error::{ErrorCode, ErrorKind, UserError};
use udm_core::lifecycle::{DeviceKey, DeviceStatus, Request};
use udm_driver::{SOCKET_MODE_DEFAULT, listen_tcp, listen_unix, remove_orphan};
use udm_front::nbd::server::{Export, Listener, ListenerOrder};
use udm_lane::Errno;
use udm_types::{ActorId, DeviceId, LaneId};

/// How long requests under way may take when an export ends. Longer than any healthy request,
/// shorter than a person's patience with Ctrl-C.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How often to try for an old daemon's address. Each try but the last has waited for its end.
const OLD_DAEMON_TRIES: u32 = 3;

/// What to do about an address that somebody listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Say so.
    None,
    /// Wait for its end, but not longer than [`DRAIN_LIMIT`].
    OldDaemon,
}

/// One export.
#[derive(Clone, Debug)]
struct Served {
    device: DeviceId,
    address: Address,
    read_only: bool,
    lane: LaneId,
    actor: ActorId,
}

/// All exports of a daemon, by name.
pub(crate) struct Exports {
    runtime: Arc<Runtime>,
    served: Mutex<BTreeMap<String, Served>>,
}

impl Exports {
    pub(crate) fn new(runtime: Arc<Runtime>) -> Exports {
        Exports { runtime, served: Mutex::default() }
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
        let address = Address::parse(&order.address)?;
        let opened = self.runtime.request(Request::Open { device: order.device.clone() });
        let device = status_of(opened?)?;
        let started = self.start(order, &device, address, patience);
        if started.is_err() {
            self.close(device.id);
        }
        started
    }

    fn start(
        &self,
        order: &ExportOrder,
        device: &DeviceStatus,
        address: Address,
        patience: Patience,
    ) -> Result<ExportState, UserError> {
        let name = order.name.clone().unwrap_or_else(|| device.name.as_str().to_owned());
        // Held while the socket is made, so that two calls cannot take one name.
        let mut served = self.lock();
        if let Some(taken) = served.get(&name) {
            return Err(UserError::new(
                ErrorCode::ExportTaken,
                format!("an export '{name}' is served at {}", taken.address),
            )
            .hint("choose another --name, or end it with udm unexport"));
        }
        if let Some((other, _)) = served.iter().find(|(_, one)| one.address == address) {
            return Err(UserError::new(
                ErrorCode::ExportTaken,
                format!("{address} serves the export '{other}' already"),
            )
            .hint("choose another address"));
        }
        let (socket, address) = listen(address, patience)?;
        let export = Export {
            name: name.clone(),
            device: device.id,
            description: String::new(),
            read_only: order.read_only,
        };
        let lane = LaneId(0);
        let actor = self.runtime.on_lane(lane, move |engine| {
            engine.spawn_actor(Box::new(Listener::new(socket, vec![export])))
        });
        let read_only = order.read_only;
        let one = Served { device: device.id, address, read_only, lane, actor };
        let state = describe(&name, device.name.as_str(), &one, 0);
        served.insert(name, one);
        Ok(state)
    }

    /// Ends an export and waits until its connections are closed.
    pub(crate) fn remove(&self, name: &str) -> Result<(), UserError> {
        let Some(one) = self.lock().remove(name) else {
            return Err(UserError::new(
                ErrorCode::NoSuchExport,
                format!("there is no export '{name}'"),
            ));
        };
        self.end(&one);
        Ok(())
    }

    /// Ends all exports; they drain at the same time.
    pub(crate) fn remove_all(&self) {
        let all = std::mem::take(&mut *self.lock());
        std::thread::scope(|scope| {
            for one in all.values() {
                scope.spawn(|| self.end(one));
            }
        });
    }

    fn end(&self, one: &Served) {
        let (sender, receiver) = channel();
        self.stop(one, false, sender.clone());
        if receiver.recv_timeout(DRAIN_LIMIT) == Err(RecvTimeoutError::Timeout) {
            self.stop(one, true, sender);
            // A cut closes sockets and waits for nobody; it ends.
            let _ = receiver.recv();
        }
        if let Address::Unix(path) = &one.address {
            // Gone already, or in a directory that is: nothing is left to clean up.
            let _ = std::fs::remove_file(path);
        }
        self.close(one.device);
    }

    fn stop(&self, one: &Served, cut: bool, done: std::sync::mpsc::Sender<()>) {
        let told = Box::new(move || {
            // Whoever waited may have given up.
            let _ = done.send(());
        });
        self.tell(one, ListenerOrder::Stop { cut, done: told });
    }

    fn tell(&self, one: &Served, order: ListenerOrder) {
        self.runtime.send(one.lane, LaneMessage::ToActor(one.actor, Box::new(order)));
    }

    fn close(&self, device: DeviceId) {
        // Fails only for a device that is gone, which cannot be while it is open.
        drop(self.runtime.request(Request::Close { device }));
    }

    /// What is served, ordered by name.
    pub(crate) fn list(&self) -> Vec<ExportState> {
        let served = self.lock().clone();
        served
            .iter()
            .map(|(name, one)| describe(name, &self.device_name(one.device), one, self.count(one)))
            .collect()
    }

    fn device_name(&self, id: DeviceId) -> String {
        let found = self.runtime.request(Request::Status { device: DeviceKey::Id(id) });
        found.and_then(status_of).map(|status| status.name.as_str().to_owned()).unwrap_or_default()
    }

    fn count(&self, one: &Served) -> u32 {
        let (sender, receiver) = channel();
        let answer = Box::new(move |count| {
            // The receiver waits below.
            let _ = sender.send(count);
        });
        self.tell(one, ListenerOrder::Count(answer));
        // A listener that has just ended drops the order, and has no connections.
        receiver.recv().map_or(0, |count| u32::try_from(count).unwrap_or(u32::MAX))
    }
}

fn describe(name: &str, device: &str, one: &Served, connections: u32) -> ExportState {
    ExportState {
        name: name.to_owned(),
        device: device.to_owned(),
        kind: "nbd".to_owned(),
        address: one.address.to_string(),
        uri: one.address.uri(name),
        read_only: one.read_only,
        connections,
    }
}

/// Listens; with port 0 the address that comes back has the port taken.
fn listen(address: Address, patience: Patience) -> Result<(OwnedFd, Address), UserError> {
    if let Address::Unix(path) = &address
        && let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty())
        && !parent.is_dir()
    {
        return Err(UserError::new(
            ErrorCode::ListenFailed,
            format!("listen on {address}: there is no directory {}", parent.display()),
        )
        .of_kind(ErrorKind::NoEntry));
    }
    let found = match &address {
        Address::Unix(_) => None,
        Address::Tcp(host, port) => Some(Address::look_up(host, *port)?),
    };
    let mut tries_left = match patience {
        Patience::None => 0,
        Patience::OldDaemon => OLD_DAEMON_TRIES,
    };
    loop {
        match listen_once(&address, found) {
            Ok((socket, port)) => {
                let bound = match (address, port) {
                    (Address::Tcp(host, _), Some(port)) => Address::Tcp(host, port),
                    (other, _) => other,
                };
                return Ok((socket, bound));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries_left > 0 => {
                // Still there when the time is over: then it is no dead daemon.
                let is_free = is_orphan_removed(&address) || await_end(&address, found);
                tries_left = if is_free { tries_left - 1 } else { 0 };
            }
            Err(error) => {
                let what = format!("listen on {address}");
                return Err(errno::system(ErrorCode::ListenFailed, &what, &error));
            }
        }
    }
}

fn listen_once(address: &Address, found: Option<SocketAddr>) -> io::Result<(OwnedFd, Option<u16>)> {
    let system = |errno: Errno| io::Error::from_raw_os_error(errno.0);
    match (address, found) {
        (Address::Unix(path), _) => {
            let socket = listen_unix(path, SOCKET_MODE_DEFAULT).map_err(system)?;
            Ok((socket, None))
        }
        (Address::Tcp(..), Some(found)) => {
            let (socket, bound) = listen_tcp(found).map_err(system)?;
            Ok((socket, Some(bound.port())))
        }
        (Address::Tcp(..), None) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

/// Frees an address of an old daemon that has died, where that can be told.
fn is_orphan_removed(address: &Address) -> bool {
    match address {
        Address::Unix(path) => remove_orphan(path),
        Address::Tcp(..) => false,
    }
}

/// Waits until whoever listens at an address hangs up. False if [`DRAIN_LIMIT`] passes before.
fn await_end(address: &Address, found: Option<SocketAddr>) -> bool {
    let connection: Option<OwnedFd> = match address {
        Address::Unix(path) => UnixStream::connect(path).ok().map(OwnedFd::from),
        Address::Tcp(..) => found
            .and_then(|found| TcpStream::connect_timeout(&found, DRAIN_LIMIT).ok())
            .map(OwnedFd::from),
    };
    // Refused: it has gone meanwhile.
    let Some(connection) = connection else { return true };
    let mut polled = [PollFd::new(&connection, PollFlags::empty())];
    let span = Timespec { tv_sec: DRAIN_LIMIT.as_secs() as i64, tv_nsec: 0 };
    // An error (a signal, say) is worth another try; the tries are counted.
    poll(&mut polled, Some(&span)) != Ok(0)
}
