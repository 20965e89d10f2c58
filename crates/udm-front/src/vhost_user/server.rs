//! The socket of an export: a thread that reads messages and carries them out on the lanes.
//!
//! Control messages are rare and may wait (a queue stops when its last request is back), so they
//! have a thread of their own instead of an actor; one an export, asleep in `poll` when there is
//! nothing to say. It touches no I/O: rings, requests and eventfds are the lanes'.
//!
//! Rules. One client at a time, as the protocol wants it; others wait in the listen queue. Queues
//! are spread over the lanes. When a connection ends, for whatever reason, its queues are stopped
//! and waited for before the next client is heard: a write of the old connection must not land
//! after one of the new.
//!
//! The tricky case is waiting for a queue while the device is suspended: only a cut
//! ([`Server::stop`]) ends such a wait. The queues then end by themselves when their bios return;
//! guest memory stays mapped until then.

use super::breach::Breach;
use super::changes::{Changes, EndChanges, WhenTold};
use super::config::DiskShape;
use super::link::{Incoming, send};
use super::memory::{GuestMemory, Span};
use super::queue::{Queue, QueueDisk, QueueOrder, QueueReport, QueueWish};
use super::request::ID_BYTES;
use super::session::{Host, QueueSetup, Session};
use crate::lanes::{HOME_LANE, LaneShare, Lanes};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno as OsErrno;
use rustix::net::{SocketFlags, accept_with};
use std::any::Any;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use udm_core::LaneMessage;
use udm_core::actor::Actor;
use udm_lane::Mailbox;
use udm_types::{ActorId, DeviceId, LaneId};

/// What to serve.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The device.
    pub device: DeviceId,
    /// The name the guest sees as the disk's id; cut to 20 bytes.
    pub name: String,
    /// Refuse every change, whatever the device allows.
    pub read_only: bool,
    /// The lanes of its queues.
    pub lanes: LaneShare,
}

/// The server of one export.
#[derive(Debug)]
pub struct Server {
    events: Sender<Event>,
    bell: Arc<OwnedFd>,
    clients: Arc<AtomicU32>,
    tells_changes: Arc<AtomicBool>,
}

/// What the thread waits for beside its sockets.
enum Event {
    Queue(u64, QueueReport),
    Stop { cut: bool, done: Done },
    Settle(Done),
}

/// Called when a server has ended, or has done what was asked.
type Done = Box<dyn FnOnce() + Send>;

impl Server {
    /// Serves a device on a listening socket. `lanes` are the mailboxes of all lanes.
    ///
    /// # Errors
    /// The system's, if it has no thread or eventfd left.
    pub fn start(
        socket: OwnedFd,
        disk: Disk,
        lanes: Vec<Mailbox<LaneMessage>>,
    ) -> std::io::Result<Server> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (events, inbox) = channel();
        let clients = Arc::new(AtomicU32::new(0));
        let tells_changes = Arc::new(AtomicBool::new(false));
        let mut served = Served {
            disk,
            lanes: Lanes::new(lanes),
            events: events.clone(),
            bell: Arc::clone(&bell),
            inbox,
            running: BTreeMap::new(),
            changes: None,
            tells_changes: Arc::clone(&tells_changes),
            next_number: 0,
            stop: None,
            done: Vec::new(),
            broken: None,
        };
        let count = Arc::clone(&clients);
        std::thread::Builder::new().name("udm-vhost-user".to_owned()).spawn(move || {
            serve(&socket, &mut served, &count);
            drop(socket);
            served.done.drain(..).for_each(|done| done());
        })?;
        Ok(Server { events, bell, clients, tells_changes })
    }

    /// How many clients there are: none or one.
    pub fn clients(&self) -> u32 {
        self.clients.load(Ordering::Relaxed)
    }

    /// Whether the client there is has a socket on which it is told of a new size.
    pub fn tells_changes(&self) -> bool {
        self.tells_changes.load(Ordering::Relaxed)
    }

    /// Calls `done`, or drops it, when the client has been told of the size that the device has.
    pub fn settle(&self, done: Box<dyn FnOnce() + Send>) {
        // Fails if the thread has ended: there is no client.
        let _ = self.events.send(Event::Settle(done));
        ring(&self.bell);
    }

    /// Asks the server to end: no more clients, and the one there is loses its connection when its
    /// requests are answered, or with `cut` at once. `done` is called, or dropped, at the end.
    pub fn stop(&self, cut: bool, done: Box<dyn FnOnce() + Send>) {
        // Fails if the thread has ended, which is what is wanted.
        let _ = self.events.send(Event::Stop { cut, done });
        ring(&self.bell);
    }
}

fn ring(bell: &OwnedFd) {
    // Fails if the counter is full: then it rings already.
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

fn silence(bell: &OwnedFd) {
    let mut count = [0; 8];
    // Fails if it has not rung.
    let _ = rustix::io::read(bell, &mut count);
}

/// The thread: one client after the other.
fn serve(listener: &OwnedFd, served: &mut Served, clients: &AtomicU32) {
    while served.stop.is_none() {
        match wait(listener, &served.bell) {
            Ok(true) => {}
            Ok(false) => {
                served.read_events();
                continue;
            }
            Err(_) => return,
        }
        // An error is that of a client that has gone before it was accepted.
        let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC) else { continue };
        clients.store(1, Ordering::Relaxed);
        let mut session = Session::default();
        // Why it ended is the client's business, which it can see.
        let _ = converse(&socket, &mut session, served);
        if let Some((queue, _)) = served.broken.take()
            && let Some(fd) = session.error_fd(queue)
        {
            ring(fd);
        }
        session.end(served);
        served.end_changes();
        drop(socket);
        clients.store(0, Ordering::Relaxed);
    }
}

/// Waits for a socket or the bell; true if it is the socket.
fn wait(socket: &OwnedFd, bell: &OwnedFd) -> Result<bool, OsErrno> {
    let mut polled = [PollFd::new(socket, PollFlags::IN), PollFd::new(bell, PollFlags::IN)];
    loop {
        match poll(&mut polled, None) {
            Ok(_) => break,
            Err(OsErrno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    let (spoken, rung) = (!polled[0].revents().is_empty(), !polled[1].revents().is_empty());
    if rung {
        silence(bell);
    }
    Ok(spoken && !rung)
}

/// Reads messages and answers them until the connection ends.
fn converse(socket: &OwnedFd, session: &mut Session, served: &mut Served) -> Result<(), Breach> {
    let mut incoming = Incoming::default();
    loop {
        if !wait(socket, &served.bell).map_err(|_| Breach::Message("the socket failed"))? {
            served.read_events();
            if served.stop.is_some() || served.broken.is_some() {
                return Ok(());
            }
            continue;
        }
        let Some((header, fds)) = incoming.receive(socket)? else { continue };
        let (reply, done) = session.handle(&header, &incoming.body, fds, served);
        send(socket, &reply)?;
        done?;
        incoming = Incoming::default();
    }
}

/// A queue on its lane.
#[derive(Clone, Copy, Debug)]
struct Running {
    queue: u16,
    lane: LaneId,
    actor: ActorId,
}

/// What is served, as the session's host.
struct Served {
    disk: Disk,
    lanes: Lanes,
    events: Sender<Event>,
    bell: Arc<OwnedFd>,
    inbox: Receiver<Event>,
    /// By number.
    running: BTreeMap<u64, Running>,
    changes: Option<(u64, ActorId)>,
    tells_changes: Arc<AtomicBool>,
    next_number: u64,
    /// Somebody asked the server to end; whether at once.
    stop: Option<bool>,
    done: Vec<Done>,
    /// A queue that was broken off.
    broken: Option<(u16, Breach)>,
}

impl Served {
    /// Installs an actor and waits until it is there.
    fn spawn(
        &self,
        lane: LaneId,
        make: impl FnOnce() -> Box<dyn Actor> + Send + 'static,
    ) -> Result<ActorId, Breach> {
        self.lanes.spawn(lane, make).ok_or(Breach::System("the lanes have ended", 0))
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn order(&self, running: Running, number: u64, wish: QueueWish) {
        let order: Box<dyn Any + Send> = Box::new(QueueOrder { number, wish });
        self.lanes.tell(running.lane, LaneMessage::ToActor(running.actor, order));
    }

    fn find(&self, queue: u16) -> Option<(u64, Running)> {
        let found = self.running.iter().find(|(_, running)| running.queue == queue)?;
        Some((*found.0, *found.1))
    }

    fn read_events(&mut self) {
        while let Ok(event) = self.inbox.try_recv() {
            self.note(event);
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Stop { cut, done } => {
                self.stop = Some(self.stop.unwrap_or(false) || cut);
                self.done.push(done);
            }
            Event::Settle(done) => match self.changes {
                Some((number, actor)) => {
                    let order: Box<dyn Any + Send> = Box::new(WhenTold { number, done });
                    self.lanes.tell(HOME_LANE, LaneMessage::ToActor(actor, order));
                }
                None => done(),
            },
            Event::Queue(number, QueueReport::Broken(breach)) => {
                if let Some(running) = self.running.get(&number) {
                    self.broken.get_or_insert((running.queue, breach));
                }
            }
            Event::Queue(number, QueueReport::Stopped(_)) => {
                self.running.remove(&number);
            }
        }
    }

    fn end_changes(&mut self) {
        self.tells_changes.store(false, Ordering::Relaxed);
        if let Some((number, actor)) = self.changes.take() {
            let end: Box<dyn Any + Send> = Box::new(EndChanges { number });
            self.lanes.tell(HOME_LANE, LaneMessage::ToActor(actor, end));
        }
    }
}

impl Host for Served {
    fn shape(&mut self) -> DiskShape {
        let read_only = self.disk.read_only;
        let view = self.lanes.view(self.disk.device);
        // A device without a table has no size.
        let (len_sectors, limits) =
            view.map_or_else(Default::default, |view| (view.len_sectors, view.limits));
        DiskShape { len_sectors, limits, read_only }
    }

    fn start(&mut self, queue: u16, setup: QueueSetup) -> Result<(), Breach> {
        let number = self.number();
        let mut id = [0; ID_BYTES];
        let name = self.disk.name.as_bytes();
        let len = name.len().min(ID_BYTES);
        id[..len].copy_from_slice(&name[..len]);
        let disk = QueueDisk { device: self.disk.device, read_only: self.disk.read_only, id };
        let lane = self.lanes.lane_of(self.disk.lanes, queue);
        let (events, bell) = (self.events.clone(), Arc::clone(&self.bell));
        let report = Box::new(move |report| {
            // Fails if the server has ended, which then waits for nobody.
            let _ = events.send(Event::Queue(number, report));
            ring(&bell);
        });
        let actor = self.spawn(lane, move || Box::new(Queue::new(number, disk, setup, report)))?;
        self.running.insert(number, Running { queue, lane, actor });
        Ok(())
    }

    fn stop(&mut self, queue: u16) -> Result<u16, Breach> {
        let (number, running) =
            self.find(queue).ok_or(Breach::Message("a queue that does not run"))?;
        self.order(running, number, QueueWish::Stop);
        loop {
            if self.stop == Some(true) {
                return Err(Breach::Message("the export was cut"));
            }
            let event = self.inbox.recv().map_err(|_| Breach::System("the lanes have ended", 0))?;
            let ended = match event {
                Event::Queue(stopped, QueueReport::Stopped(next)) if stopped == number => {
                    Some(next)
                }
                Event::Queue(..) | Event::Stop { .. } | Event::Settle(_) => None,
            };
            self.note(event);
            if let Some(next_avail) = ended {
                return Ok(next_avail);
            }
        }
    }

    fn set_call(&mut self, queue: u16, call: Option<OwnedFd>) {
        if let Some((number, running)) = self.find(queue) {
            self.order(running, number, QueueWish::Call(call));
        }
    }

    fn set_memory(&mut self, queue: u16, memory: GuestMemory, parts: [Span; 3]) {
        let Some((number, running)) = self.find(queue) else { return };
        let (sender, receiver) = sync_channel(1);
        let done = Box::new(move || {
            let _ = sender.send(());
        });
        self.order(running, number, QueueWish::Memory(memory, parts, done));
        // Fails if the queue has ended meanwhile; then nobody uses the old memory either.
        let _ = receiver.recv();
    }

    fn tell_changes(&mut self, socket: OwnedFd) {
        self.end_changes();
        let (number, device) = (self.number(), self.disk.device);
        let make = move || -> Box<dyn Actor> { Box::new(Changes::new(number, device, socket)) };
        if let Ok(actor) = self.spawn(HOME_LANE, make) {
            self.changes = Some((number, actor));
            self.tells_changes.store(true, Ordering::Relaxed);
        }
    }
}
