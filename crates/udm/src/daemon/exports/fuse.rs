//! FUSE exports: a mount, the servers of it on the lanes, and a thread that looks after it.
//!
//! The lane side is `udm-front`'s. This file mounts, starts the server actor, and keeps a thread
//! for what may block: after a resize it has the kernel ask for the new size, so that everybody
//! who has the file open sees it, and when the mount has ended by itself (somebody unmounted it)
//! it says so. The thread sleeps until the lane tells it something.
//!
//! The tricky case is a restart after `kill -9`: the dead mount is still there, and whoever has
//! the file open keeps it, dead. The name is taken from it and mounted over anew; who opens it
//! again gets the device.

use super::{Front, Lapse, Patience, SizeNews, Start, flushing_lanes, telling};
use crate::runtime::Runtime;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use udm_control::errno;
use udm_core::LaneMessage;
use udm_core::actor::Actor;
use udm_core::error::{ErrorCode, UserError};
use udm_driver::clone_fuse;
use udm_front::fuse::abort::{Connection, ring_queues};
use udm_front::fuse::mount::{self, Mount, MountError};
use udm_front::fuse::order::{MountCall, MountEvent, MountOrder, Served};
use udm_front::fuse::server::MountServer;
use udm_front::lanes::LaneShare;
use udm_types::{ActorId, LaneId};

/// How long the kernel may take to begin the conversation; it does at once.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// Numbers the mounts, and spreads their homes over the lanes.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A FUSE export to be.
pub(super) struct Plan {
    path: PathBuf,
}

impl Plan {
    /// Understands a path.
    ///
    /// # Errors
    /// `BadAddress`.
    pub(super) fn parse(path: &str) -> Result<Plan, UserError> {
        let path = PathBuf::from(path);
        if path.file_name().is_none() {
            return Err(UserError::new(
                ErrorCode::BadAddress,
                format!("'{}': it is no path of a file", path.display()),
            )
            .hint("give the path of a file; it is made if it is missing"));
        }
        // The state has to mean the same file wherever the next daemon is started.
        let path = std::path::absolute(&path).unwrap_or(path);
        Ok(Plan { path })
    }
}

impl super::Plan for Plan {
    fn address(&self) -> String {
        self.path.display().to_string()
    }

    fn start(self: Box<Self>, start: Start<'_>) -> Result<Arc<dyn Front>, UserError> {
        let patient = start.patience == Patience::OldDaemon;
        mount::clear_stale(&self.path, patient).map_err(refused)?;
        let source = format!("udm:{}", start.name);
        let order =
            mount::MountOrder { path: &self.path, source: &source, read_only: start.read_only };
        let (connection, mount) = mount::mount(&order).map_err(refused)?;
        let mount = Arc::new(mount);
        // Without a way to abort it a connection stays off the rings.
        let has_rings = start.runtime.driver().name == "io_uring";
        let queues = if has_rings { ring_queues() } else { None };
        let connection_ring = queues.and_then(|_| Connection::at(mount.path()));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let served = Served {
            mount: number,
            device: start.device,
            read_only: start.read_only,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            since_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
            ring_queues: connection_ring.as_ref().and(queues),
        };
        flushing_lanes(start.runtime);
        let (sender, events) = channel();
        let watcher = sender.clone();
        let servers = spawn(start.runtime, connection, &served, start.lanes, &sender);
        let runtime = Arc::clone(start.runtime);
        let front = FuseFront {
            runtime,
            path: self.path,
            number,
            servers,
            mount,
            watcher,
            connection: connection_ring,
            by_ring: AtomicBool::new(false),
        };
        match hello(&events) {
            Ok(by_ring) => front.by_ring.store(by_ring, Ordering::Relaxed),
            Err(error) => return Err(front.given_up(error)),
        }
        let front = Arc::new(front);
        look_after(&front, events, start.lapse).map_err(|error| front.given_up(error))?;
        Ok(front)
    }
}

/// Puts a server on each of the lanes, and the home last: it is told of the others.
fn spawn(
    runtime: &Runtime,
    connection: OwnedFd,
    served: &Served,
    lanes: LaneShare,
    sender: &Sender<Event>,
) -> Servers {
    let tell = || {
        let sender = sender.clone();
        move |event| {
            // The thread that listens may have ended before the mount.
            let _ = sender.send(Event::Mount(event));
        }
    };
    let lane_of = |index: usize| lanes.lane(index, runtime.lane_count());
    let mut mates = Vec::new();
    for index in 1..lanes.count(runtime.lane_count()) {
        // Without it the mount has fewer lanes.
        let Ok(clone) = clone_fuse(connection.as_fd()) else { break };
        // Fits: there are at most 256 lanes.
        let (mate, served, tell) = (mates.len() as u16, served.clone(), Box::new(tell()));
        let lane = lane_of(index);
        let make =
            move || -> Box<dyn Actor> { Box::new(MountServer::mate(mate, clone, served, tell)) };
        mates.push((lane, runtime.spawn_actor(lane, make)));
    }
    let (served, tell, others) = (served.clone(), Box::new(tell()), mates.clone());
    let lane = lane_of(0);
    let make =
        move || -> Box<dyn Actor> { Box::new(MountServer::new(connection, served, others, tell)) };
    Servers { home: (lane, runtime.spawn_actor(lane, make)), mates }
}

fn refused(error: MountError) -> UserError {
    errno::system(ErrorCode::MountFailed, &error.what, &error.source).hint(error.hint)
}

/// Waits for the end of the handshake. True if requests come through the rings.
fn hello(events: &Receiver<Event>) -> Result<bool, UserError> {
    let why = loop {
        match events.recv_timeout(HELLO_LIMIT) {
            Ok(Event::Mount(MountEvent::Ready { by_ring })) => return Ok(by_ring),
            // Nobody has the file open yet, nor waits for anything.
            Ok(
                Event::Mount(MountEvent::Resized | MountEvent::RingsRefused | MountEvent::Abort)
                | Event::Settle(_),
            ) => {}
            Ok(Event::Mount(MountEvent::Refused)) => break "the kernel is older than Linux 5.4",
            Ok(Event::Mount(MountEvent::Ended)) | Err(RecvTimeoutError::Disconnected) => {
                break "it ended before it began";
            }
            Err(RecvTimeoutError::Timeout) => break "the kernel does not begin",
        }
    };
    Err(UserError::new(ErrorCode::MountFailed, format!("FUSE handshake: {why}")))
}

/// Starts the thread that looks after a mount.
fn look_after(
    front: &Arc<FuseFront>,
    events: Receiver<Event>,
    lapse: Lapse,
) -> Result<(), UserError> {
    let front = Arc::clone(front);
    let watch = move || {
        for event in events {
            match event {
                Event::Mount(MountEvent::Ready { .. } | MountEvent::Refused) => {}
                Event::Mount(MountEvent::RingsRefused) => {
                    front.by_ring.store(false, Ordering::Relaxed);
                }
                Event::Mount(MountEvent::Resized) => front.mount.refresh(),
                Event::Mount(MountEvent::Abort) => front.abort(),
                Event::Mount(MountEvent::Ended) => return lapse.tell("it was unmounted"),
                // The lane spoke of the new size before anybody could ask for this.
                // Whoever waits may have given up.
                Event::Settle(done) => {
                    let _ = done.send(());
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("udm-fuse".into()).spawn(watch);
    thread.map(drop).map_err(|error| {
        errno::system(ErrorCode::MountFailed, "start a thread for the mount", &error)
    })
}

/// What the thread that looks after a mount waits for.
enum Event {
    Mount(MountEvent),
    /// Wanted to know: when all of before is done.
    Settle(Sender<()>),
}

/// Where the servers of a mount are.
struct Servers {
    home: (LaneId, ActorId),
    mates: Vec<(LaneId, ActorId)>,
}

/// A mount that is served.
struct FuseFront {
    runtime: Arc<Runtime>,
    path: PathBuf,
    number: u64,
    servers: Servers,
    mount: Arc<Mount>,
    watcher: Sender<Event>,
    /// To be aborted at its end, if requests may come through the rings.
    connection: Option<Connection>,
    /// They do.
    by_ring: AtomicBool,
}

impl FuseFront {
    /// Takes down what nobody looks after yet; gives back why.
    fn given_up(&self, error: UserError) -> UserError {
        let (done, ended) = channel();
        self.stop(true, done);
        self.abort();
        // An error is as good: nobody is left who would tell.
        let _ = ended.recv();
        self.clean_up();
        error
    }

    /// Has the kernel let go of what was lent to it, then ends.
    fn abort(&self) {
        if let Some(Err(error)) = self.connection.as_ref().map(Connection::abort) {
            let path = self.path.display();
            eprintln!("udm: warning: abort the connection of {path}: {error}");
        }
        self.tell(self.servers.home, MountOrder::Close);
    }

    fn tell(&self, (lane, actor): (LaneId, ActorId), order: MountOrder) {
        let call = MountCall { mount: self.number, order };
        self.runtime.send(lane, LaneMessage::ToActor(actor, Box::new(call)));
    }
}

impl Front for FuseFront {
    fn address(&self) -> String {
        self.path.display().to_string()
    }

    fn uri(&self, _name: &str) -> String {
        self.address()
    }

    fn client_count(&self) -> u32 {
        let (sender, receiver) = channel();
        for place in [self.servers.home].iter().chain(&self.servers.mates) {
            let sender = sender.clone();
            let answer = Box::new(move |count| {
                // The receiver waits below.
                let _ = sender.send(count);
            });
            self.tell(*place, MountOrder::Count(answer));
        }
        drop(sender);
        // A server that has just ended drops the order. The lanes answer one after the other, so
        // a file that is being opened or closed may be counted wrong once.
        receiver.iter().sum::<i32>().max(0).unsigned_abs()
    }

    fn transport(&self) -> Option<&'static str> {
        Some(if self.by_ring.load(Ordering::Relaxed) { "io_uring" } else { "read" })
    }

    fn size_news(&self) -> SizeNews {
        SizeNews::Seen
    }

    fn settle_size(&self, done: Sender<()>) {
        // Dropped if the thread has ended, which is as good as an answer.
        let _ = self.watcher.send(Event::Settle(done));
    }

    fn stop(&self, cut: bool, done: Sender<()>) {
        // First the name, so that nobody new comes.
        self.mount.detach();
        self.tell(self.servers.home, MountOrder::Stop { cut, done: telling(done) });
    }

    fn clean_up(&self) {
        self.mount.clean_up();
    }
}
