//! The listener: an actor that accepts clients and spreads their connections over the lanes.
//!
//! The control side makes one with [`Listener::new`], installs it on some lane, and talks to it by
//! messages ([`ListenerOrder`]). It knows which connections live where, not what they do.
//!
//! Rules. Connections go round the lanes in turn. There are at most [`CONNECTIONS_MAX`]; one more
//! is closed at once. The listener outlives its connections: a stop is done when the last of them
//! is, and only then are the exports no longer in use.
//!
//! ```text
//! accept --spawn on lane n--> connection --Opened--> known --Closed--> forgotten
//! Stop --> no more accepts, orders to all known, later ones ordered as they report --> done()
//! ```
//!
//! The tricky case is a connection that is on its way to its lane when a stop or a change of the
//! exports comes: it has no address yet. It gets the order when it reports that it has started.

use super::connection::Connection;
use super::descriptor;
use super::tls::TlsSettings;
use crate::lanes::LaneShare;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::Arc;
use udm_core::LaneMessage;
use udm_core::actor::{Actor, ActorCx};
use udm_core::bio::BioBox;
use udm_lane::{Completion, DriverOp, Handle, RawHandle};
use udm_types::{ActorId, DeviceId, LaneId, Nanos};

/// Connections of one listener. Each may hold some megabytes; clients with many connections use a
/// few dozen.
pub const CONNECTIONS_MAX: usize = 1024;

/// How long to wait before accepting again after an error (out of descriptors, mostly).
const ACCEPT_RETRY_MS: u64 = 100;

/// Our word for the accept operation.
const OP_ACCEPT: u32 = 0;

/// A mapped device under a name that clients use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The name; may be empty.
    pub name: String,
    /// The device.
    pub device: DeviceId,
    /// A line for people; may be empty.
    pub description: String,
    /// Refuse every change, whatever the device allows.
    pub read_only: bool,
}

/// What the control side tells a listener; send it as the message of a `LaneMessage::ToActor`.
pub enum ListenerOrder {
    /// The exports from now on. Connections of exports that are gone are drained.
    SetExports(Vec<Export>),
    /// Stop listening and end all connections.
    Stop {
        /// Close at once instead of answering what is under way. For devices that will not answer
        /// (suspended, dead), and for users in a hurry.
        cut: bool,
        /// Called on the listener's lane when the last connection has closed its socket.
        done: Box<dyn FnOnce() + Send>,
    },
    /// Asks how many connections there are.
    Count(Box<dyn FnOnce(usize) + Send>),
}

impl fmt::Debug for ListenerOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenerOrder::SetExports(exports) => write!(f, "SetExports({exports:?})"),
            ListenerOrder::Stop { cut, .. } => write!(f, "Stop(cut: {cut})"),
            ListenerOrder::Count(_) => f.write_str("Count"),
        }
    }
}

/// A listener.
pub struct Listener {
    raw: Option<RawHandle>,
    handle: Option<Handle>,
    tune: fn(RawHandle),
    exports: Arc<[Export]>,
    tls: Option<TlsSettings>,
    /// Others listen on the same socket.
    is_shared: bool,
    lanes: LaneShare,
    /// The next connection's number in them.
    next_lane: usize,
    next_number: u64,
    /// Connections by number; `None` while one is on its way to its lane.
    connections: BTreeMap<u64, Option<Address>>,
    stopping: Option<Stopping>,
}

struct Stopping {
    cut: bool,
    done: Box<dyn FnOnce() + Send>,
}

/// Where an actor lives.
#[derive(Clone, Copy)]
struct Address {
    lane: LaneId,
    actor: ActorId,
}

/// What a listener tells a connection. Numbered, since an actor's id may belong to another one by
/// the time the order arrives.
pub(super) struct ConnectionOrder {
    pub(super) number: u64,
    pub(super) wish: ConnectionWish,
}

pub(super) enum ConnectionWish {
    /// The exports have changed.
    Exports(Arc<[Export]>),
    /// Answer what is under way, then close.
    Drain,
    /// Close.
    Cut,
}

/// What a connection tells its listener.
enum Report {
    Opened(u64, Address),
    Closed(u64),
}

/// A connection's way back to its listener.
pub(super) struct ListenerLink {
    listener: Address,
    pub(super) number: u64,
}

impl ListenerLink {
    pub(super) fn tell_opened(&self, cx: &mut ActorCx<'_>) {
        let address = Address { lane: cx.lane(), actor: cx.id() };
        self.tell(Report::Opened(self.number, address), cx);
    }

    pub(super) fn tell_closed(&self, cx: &mut ActorCx<'_>) {
        self.tell(Report::Closed(self.number), cx);
    }

    fn tell(&self, report: Report, cx: &mut ActorCx<'_>) {
        let Address { lane, actor } = self.listener;
        cx.send(lane, LaneMessage::ToActor(actor, Box::new(report)));
    }
}

impl Listener {
    /// Takes over a listening socket.
    pub fn new(socket: OwnedFd, exports: Vec<Export>) -> Listener {
        let raw = RawHandle(socket.into_raw_fd());
        Listener { tune: descriptor::tune, ..Listener::simulated(raw, exports) }
    }

    /// The same listener, whose socket is to go on listening after the end, for it is somebody
    /// else's, too: a service manager's.
    #[must_use]
    pub fn shared(self, is_shared: bool) -> Listener {
        Listener { is_shared, ..self }
    }

    /// The same listener, for clients that speak TLS.
    #[must_use]
    pub fn with_tls(self, tls: Option<TlsSettings>) -> Listener {
        Listener { tls, ..self }
    }

    /// The same listener, whose connections go round these lanes instead of all.
    #[must_use]
    pub fn on_lanes(self, lanes: LaneShare) -> Listener {
        Listener { lanes, ..self }
    }

    /// A listener on a handle that is no descriptor, for drivers that simulate sockets.
    pub fn simulated(raw: RawHandle, exports: Vec<Export>) -> Listener {
        Listener {
            raw: Some(raw),
            handle: None,
            tune: |_| {},
            exports: exports.into(),
            tls: None,
            is_shared: false,
            lanes: LaneShare::new(DeviceId(0), None),
            next_lane: 0,
            next_number: 0,
            connections: BTreeMap::new(),
            stopping: None,
        }
    }

    fn accept(&mut self, cx: &mut ActorCx<'_>) {
        if let Some(handle) = self.handle {
            cx.submit_op(OP_ACCEPT, DriverOp::Accept { handle });
        }
    }

    fn accepted(&mut self, raw: RawHandle, cx: &mut ActorCx<'_>) {
        if self.stopping.is_some() || self.connections.len() >= CONNECTIONS_MAX {
            // Registering is how a descriptor gets an owner who can close it.
            if let Ok(handle) = cx.driver().register(raw) {
                cx.driver().close(handle);
            }
            return;
        }
        (self.tune)(raw);
        let number = self.next_number;
        self.next_number += 1;
        self.connections.insert(number, None);
        let lane = self.lanes.lane(self.next_lane, cx.lane_count());
        self.next_lane = self.next_lane.wrapping_add(1);
        let link = ListenerLink { listener: Address { lane: cx.lane(), actor: cx.id() }, number };
        let (exports, tls) = (Arc::clone(&self.exports), self.tls.clone());
        cx.spawn_on(lane, move || Box::new(Connection::new(raw, exports, tls, link)));
    }

    fn tell_all(&self, wish: impl Fn() -> ConnectionWish, cx: &mut ActorCx<'_>) {
        for (&number, address) in &self.connections {
            if let Some(address) = address {
                tell(*address, number, wish(), cx);
            }
        }
    }

    fn obey(&mut self, order: ListenerOrder, cx: &mut ActorCx<'_>) {
        match order {
            ListenerOrder::SetExports(exports) => {
                self.exports = exports.into();
                self.tell_all(|| ConnectionWish::Exports(Arc::clone(&self.exports)), cx);
            }
            ListenerOrder::Stop { cut, done } => self.stop(cut, done, cx),
            ListenerOrder::Count(answer) => answer(self.connections.len()),
        }
    }

    /// A second stop may be less patient than the first; both are told when it is done.
    fn stop(&mut self, cut: bool, done: Box<dyn FnOnce() + Send>, cx: &mut ActorCx<'_>) {
        let stopping = match self.stopping.take() {
            None => Stopping { cut, done },
            Some(earlier) => {
                let both = move || {
                    (earlier.done)();
                    done();
                };
                Stopping { cut: cut || earlier.cut, done: Box::new(both) }
            }
        };
        self.tell_all(|| ConnectionWish::of_stop(stopping.cut), cx);
        self.stopping = Some(stopping);
        if let Some(handle) = self.handle.take() {
            // To shut it down would end the listening for everybody who has the socket.
            if !self.is_shared {
                cx.driver().shutdown(handle);
            }
            cx.driver().close(handle);
        }
        self.end_if_done(cx);
    }

    fn noted(&mut self, report: Report, cx: &mut ActorCx<'_>) {
        match report {
            Report::Opened(number, address) => {
                self.connections.insert(number, Some(address));
                let wish = match &self.stopping {
                    Some(stopping) => ConnectionWish::of_stop(stopping.cut),
                    // It may have been made with the exports before the last change.
                    None => ConnectionWish::Exports(Arc::clone(&self.exports)),
                };
                tell(address, number, wish, cx);
            }
            Report::Closed(number) => {
                self.connections.remove(&number);
                self.end_if_done(cx);
            }
        }
    }

    fn end_if_done(&mut self, cx: &mut ActorCx<'_>) {
        if self.connections.is_empty()
            && let Some(stopping) = self.stopping.take()
        {
            (stopping.done)();
            cx.exit();
        }
    }
}

impl ConnectionWish {
    fn of_stop(cut: bool) -> ConnectionWish {
        if cut { ConnectionWish::Cut } else { ConnectionWish::Drain }
    }
}

fn tell(address: Address, number: u64, wish: ConnectionWish, cx: &mut ActorCx<'_>) {
    let order = Box::new(ConnectionOrder { number, wish });
    cx.send(address.lane, LaneMessage::ToActor(address.actor, order));
}

impl Actor for Listener {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        self.handle = self.raw.take().and_then(|raw| cx.driver().register(raw).ok());
        self.accept(cx);
    }

    fn on_bio(&mut self, _tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        debug_assert!(false, "a listener submits no bios");
        cx.recycle(bio);
    }

    fn on_op(&mut self, _user: u32, completion: Completion, cx: &mut ActorCx<'_>) {
        if let Ok(raw) = completion.result {
            // A descriptor fits: the kernel's are non-negative 32-bit numbers.
            self.accepted(RawHandle(raw as i32), cx);
        }
        if !completion.more && self.handle.is_some() {
            cx.set_timer(cx.now() + Nanos::from_millis(ACCEPT_RETRY_MS), 0);
        }
    }

    fn on_timer(&mut self, _token: u64, cx: &mut ActorCx<'_>) {
        self.accept(cx);
    }

    fn on_message(&mut self, message: Box<dyn Any + Send>, cx: &mut ActorCx<'_>) {
        match message.downcast::<ListenerOrder>() {
            Ok(order) => self.obey(*order, cx),
            Err(message) => {
                if let Ok(report) = message.downcast::<Report>() {
                    self.noted(*report, cx);
                }
            }
        }
    }
}
