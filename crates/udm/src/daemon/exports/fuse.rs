//! FUSE exports: a mount, the server of it on a lane, and a thread that looks after it.
//!
//! The lane side is `udm-front`'s. This file mounts, starts the server actor, and keeps a thread
//! for what may block: after a resize it has the kernel ask for the new size, so that everybody
//! who has the file open sees it, and when the mount has ended by itself (somebody unmounted it)
//! it says so. The thread sleeps until the lane tells it something.
//!
//! The tricky case is a restart after `kill -9`: the dead mount is still there, and whoever has
//! the file open keeps it, dead. The name is taken from it and mounted over anew; who opens it
//! again gets the device.

use super::{Front, Lapse, Patience, SizeNews, Start, flushing_lanes};
use crate::runtime::Runtime;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use udm_control::errno;
use udm_core::LaneMessage;
use udm_core::error::{ErrorCode, UserError};
use udm_front::fuse::mount::{self, Mount, MountError};
use udm_front::fuse::server::{MountEvent, MountOrder, MountServer, Served};
use udm_types::{ActorId, LaneId};

/// How long the kernel may take to begin the conversation; it does at once.
const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// Spreads exports over the lanes.
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
        let served = Served {
            device: start.device,
            read_only: start.read_only,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            since_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        };
        let (sender, events) = channel();
        let watcher = sender.clone();
        let lane = flushing_lane(start.runtime);
        let actor = start.runtime.spawn_actor(lane, move || {
            // The thread that listens may have ended before the mount.
            let tell = Box::new(move |event| {
                let _ = sender.send(Event::Mount(event));
            });
            Box::new(MountServer::new(connection, served, tell))
        });
        let runtime = Arc::clone(start.runtime);
        let mount_kept = Arc::clone(&mount);
        let front = FuseFront { runtime, path: self.path, lane, actor, mount: mount_kept, watcher };
        let started = hello(&events).and_then(|()| look_after(mount, events, start.lapse));
        if let Err(error) = started {
            let (done, ended) = channel();
            front.stop(true, done);
            let _ = ended.recv();
            front.clean_up();
            return Err(error);
        }
        Ok(Arc::new(front))
    }
}

fn refused(error: MountError) -> UserError {
    errno::system(ErrorCode::MountFailed, &error.what, &error.source).hint(error.hint)
}

/// The lane of the next export.
fn flushing_lane(runtime: &Runtime) -> LaneId {
    let count = runtime.lane_count() as u64;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    flushing_lanes(runtime);
    // Fits: there are at most 256 lanes.
    LaneId((number % count.max(1)) as u16)
}

/// Waits for the end of the handshake.
fn hello(events: &Receiver<Event>) -> Result<(), UserError> {
    let why = match events.recv_timeout(HELLO_LIMIT) {
        Ok(Event::Mount(MountEvent::Ready)) => return Ok(()),
        Ok(Event::Mount(MountEvent::Refused)) => "the kernel is older than Linux 5.4",
        Ok(Event::Mount(MountEvent::Resized | MountEvent::Ended) | Event::Settle(_))
        | Err(RecvTimeoutError::Disconnected) => "it ended before it began",
        Err(RecvTimeoutError::Timeout) => "the kernel does not begin",
    };
    Err(UserError::new(ErrorCode::MountFailed, format!("FUSE handshake: {why}")))
}

/// Starts the thread that looks after a mount.
fn look_after(mount: Arc<Mount>, events: Receiver<Event>, lapse: Lapse) -> Result<(), UserError> {
    let watch = move || {
        for event in events {
            match event {
                Event::Mount(MountEvent::Ready | MountEvent::Refused) => {}
                Event::Mount(MountEvent::Resized) => mount.refresh(),
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

/// A mount that is served.
struct FuseFront {
    runtime: Arc<Runtime>,
    path: PathBuf,
    lane: LaneId,
    actor: ActorId,
    mount: Arc<Mount>,
    watcher: Sender<Event>,
}

impl FuseFront {
    fn tell(&self, order: MountOrder) {
        self.runtime.send(self.lane, LaneMessage::ToActor(self.actor, Box::new(order)));
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
        let answer = Box::new(move |count| {
            // The receiver waits below.
            let _ = sender.send(count);
        });
        self.tell(MountOrder::Count(answer));
        // A server that has just ended drops the order.
        receiver.recv().unwrap_or(0)
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
        let done = Box::new(move || {
            // Whoever waited may have given up.
            let _ = done.send(());
        });
        self.tell(MountOrder::Stop { cut, done });
    }

    fn clean_up(&self) {
        self.mount.clean_up();
    }
}
