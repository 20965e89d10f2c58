//! A device of a rig, served as a file: mounted by this process, without a daemon around it.
//!
//! The tricky case is the end: over rings only an abort of the connection ends what the kernel has
//! of the lanes.

use crate::rig::Rig;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use udm_core::LaneMessage;
use udm_core::actor::Actor;
use udm_driver::clone_fuse;
use udm_front::fuse::abort::{Connection, ring_queues};
use udm_front::fuse::mount::{Mount, MountOrder as Order, mount};
use udm_front::fuse::order::{MountCall, MountEvent, MountOrder, Served};
use udm_front::fuse::server::MountServer;
use udm_types::{ActorId, LaneId};

const MOUNT: u64 = 7;

/// Whether this process may mount; says so if not.
pub(crate) fn is_able() -> bool {
    let me = std::fs::metadata("/proc/self").map(|me| std::os::unix::fs::MetadataExt::uid(&me));
    let is_able = me.is_ok_and(|uid| uid == 0) && Path::new("/dev/fuse").exists();
    if !is_able {
        eprintln!("not checked: mounting needs root and /dev/fuse here");
    }
    is_able
}

/// A mount that nobody serves yet.
pub(crate) struct Fresh {
    connection: OwnedFd,
    mount: Mount,
    queues: Option<u16>,
}

/// Mounts. The kernel decides now whether it offers rings.
pub(crate) fn fresh(path: &Path) -> Fresh {
    let order = Order { path, source: "udm:test", read_only: false };
    let (connection, mount) = mount(&order).expect("root mounts");
    Fresh { connection, mount, queues: ring_queues() }
}

/// A device of a rig as a file.
pub(crate) struct Mounted<'a> {
    rig: &'a Rig,
    mount: Mount,
    home: ActorId,
    connection: Connection,
}

fn spawn(
    rig: &Rig,
    lane: usize,
    make: impl FnOnce() -> Box<dyn Actor> + Send + 'static,
) -> ActorId {
    let (out, answer) = channel();
    let run = move |engine: &mut udm_core::Engine| {
        out.send(engine.spawn_actor(make())).expect("the test waits");
    };
    assert!(rig.lanes[lane].send(LaneMessage::Run(Box::new(run))).is_ok(), "it has room");
    answer.recv().expect("the lane answers")
}

/// Serves a mount: the home on lane 0, mates on the others.
pub(crate) fn serve<'a>(rig: &'a Rig, fresh: Fresh, events: &Sender<MountEvent>) -> Mounted<'a> {
    let Fresh { connection, mount, queues } = fresh;
    let served = Served {
        mount: MOUNT,
        device: rig.device,
        read_only: false,
        uid: 0,
        gid: 0,
        since_s: 0,
        ring_queues: queues,
    };
    let connection_ring = Connection::at(mount.path());
    let tell = |events: Sender<MountEvent>| {
        move |event| {
            // The test may have stopped to listen.
            let _ = events.send(event);
        }
    };
    let mut mates = Vec::new();
    for lane in 1..rig.lanes.len() {
        let clone = clone_fuse(connection.as_fd()).expect("a connection");
        let (served, tell) = (served.clone(), Box::new(tell(events.clone())));
        let mate = u16::try_from(lane - 1).expect("few");
        let actor =
            spawn(rig, lane, move || Box::new(MountServer::mate(mate, clone, served, tell)));
        mates.push((LaneId(mate + 1), actor));
    }
    let tell = Box::new(tell(events.clone()));
    let home = spawn(rig, 0, move || Box::new(MountServer::new(connection, served, mates, tell)));
    Mounted { rig, mount, home, connection: connection_ring.expect("root may abort it") }
}

impl Mounted<'_> {
    fn tell(&self, order: MountOrder) {
        let call = Box::new(MountCall { mount: MOUNT, order });
        assert!(self.rig.lanes[0].send(LaneMessage::ToActor(self.home, call)).is_ok());
    }

    pub(crate) fn end(self) {
        self.mount.detach();
        let (out, ended) = channel();
        // Nobody may have the file open any more; then it ends before it is told to, and the order
        // is dropped.
        let done = Box::new(move || out.send(()).expect("the test waits"));
        self.tell(MountOrder::Stop { cut: false, done });
        // What the lanes' rings have of it ends by this alone; the others have nothing left.
        self.connection.abort().expect("aborted");
        self.tell(MountOrder::Close);
        let _ = ended.recv();
        self.mount.clean_up();
    }
}
