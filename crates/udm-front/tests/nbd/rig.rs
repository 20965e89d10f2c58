//! Lanes with a real driver, a device on them, and an NBD listener on a unix socket.

#[path = "recorder.rs"]
mod recorder;

use recorder::{RECORDER, Recorder};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use udm_core::engine::{COORDINATOR_LANE, EngineCensus, EngineConfig, MAILBOX_CAPACITY};
use udm_core::lifecycle::{DeviceKey, Reply, Request, SuspendOptions};
use udm_core::table::{DeviceRef, DeviceResolver, TableBuilder, parse_table};
use udm_core::{Engine, LaneMessage, UserError};
use udm_driver::{DriverChoice, SOCKET_MODE_DEFAULT, listen_tcp, listen_unix, spawn_lane};
use udm_front::nbd::server::{Export, Listener, ListenerOrder};
use udm_front::nbd::tls::TlsSettings;
use udm_lane::{Mailbox, mailbox};
use udm_lower::LowerRegistry;
use udm_types::{ActorId, DeviceId, DmName, LaneId, Nanos};

/// The name of the only device.
pub(crate) const DEVICE: &str = "vol";

/// A running set of lanes with one device.
pub(crate) struct Rig {
    pub(crate) lanes: Vec<Mailbox<LaneMessage>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    lowers: LowerRegistry,
    folder: tempfile::TempDir,
    pub(crate) device: DeviceId,
    /// The device `recorder` in tables.
    pub(crate) recorder: Recorder,
}

/// A listener of a rig, on lane 0.
pub(crate) struct Served {
    pub(crate) path: PathBuf,
    actor: ActorId,
}

struct Resolver<'a>(&'a LowerRegistry, &'a Recorder);

impl DeviceResolver for Resolver<'_> {
    fn resolve(&mut self, name: &str, read_only: bool) -> Result<DeviceRef, UserError> {
        if name == RECORDER { Ok(self.1.device()) } else { self.0.open(name, read_only) }
    }
}

impl Rig {
    /// Lanes, and a device with this table that is running.
    pub(crate) fn new(lane_count: usize, choice: DriverChoice, table: &str) -> Rig {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut threads, mut wakers, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for lane in 0..lane_count {
            let (waker_out, waker_in) = channel();
            let (part_out, part_in) = channel::<(Vec<Mailbox<LaneMessage>>, _)>();
            let stop = Arc::clone(&stop);
            let body = move |driver: Box<dyn udm_lane::Driver>| {
                waker_out.send(driver.waker()).expect("the rig waits for it");
                let Ok((peers, receiver)) = part_in.recv() else { return };
                let lane = LaneId(lane as u16);
                let mut engine = Engine::new(EngineConfig { lane, peers, receiver, driver });
                while !stop.load(Ordering::SeqCst) {
                    engine.turn(true);
                }
            };
            let (thread, _) = spawn_lane(lane, choice, None, body).expect("the lane starts");
            threads.push(thread);
            wakers.push(waker_in.recv().expect("the lane sends its waker"));
            parts.push(part_out);
        }
        let boxes: Vec<_> =
            wakers.into_iter().map(|waker| mailbox(MAILBOX_CAPACITY, waker)).collect();
        let lanes: Vec<_> = boxes.iter().map(|(sender, _)| sender.clone()).collect();
        for (part, (_, receiver)) in parts.into_iter().zip(boxes) {
            part.send((lanes.clone(), receiver)).expect("the lane waits for it");
        }
        let folder = tempfile::tempdir().expect("a folder for sockets");
        let lowers = LowerRegistry::new(lane_count);
        let (device, recorder) = (DeviceId(0), Recorder::default());
        let mut rig = Rig { lanes, threads, stop, lowers, folder, device, recorder };
        let name = DmName::new(DEVICE).expect("a valid name");
        match rig.ask(Request::Create { name, uuid: None, minor: None }) {
            Reply::Done(Some(status)) => rig.device = status.id,
            other => panic!("not created: {other:?}"),
        }
        rig.load(table);
        rig.resume(false);
        rig
    }

    /// Asks the coordinator and waits for the answer.
    pub(crate) fn ask(&self, request: Request) -> Reply {
        let (out, answer) = channel();
        let sink = Box::new(move |reply| out.send(reply).expect("the test waits"));
        self.tell(COORDINATOR_LANE, LaneMessage::Request(Box::new(request), sink));
        answer.recv().expect("an answer").expect("the request is fine")
    }

    fn tell(&self, lane: LaneId, message: LaneMessage) {
        assert!(self.lanes[lane.index()].send(message).is_ok(), "the mailbox has room");
    }

    pub(crate) fn key(&self) -> DeviceKey {
        DeviceKey::Id(self.device)
    }

    pub(crate) fn load(&self, table: &str) {
        let registry = udm_targets::registry();
        let mut resolver = Resolver(&self.lowers, &self.recorder);
        let builder = TableBuilder {
            registry: &registry,
            resolver: &mut resolver,
            read_only: false,
            now: Nanos::ZERO,
            seed: 1,
        };
        let lines = parse_table(table).expect("the text is fine");
        let table = Arc::new(builder.build(&lines).expect("the table is fine"));
        self.ask(Request::Load { device: self.key(), table });
    }

    pub(crate) fn resume(&self, noflush: bool) {
        let options = SuspendOptions { noflush, ..SuspendOptions::default() };
        self.ask(Request::Resume { device: self.key(), options, ticket: 1 });
    }

    pub(crate) fn suspend(&self, noflush: bool) {
        let options = SuspendOptions { noflush, ..SuspendOptions::default() };
        self.ask(Request::Suspend { device: self.key(), options, ticket: 2 });
    }

    /// An export of the device.
    pub(crate) fn export(&self, name: &str, read_only: bool) -> Export {
        Export {
            name: name.to_owned(),
            device: self.device,
            description: "a test".to_owned(),
            read_only,
        }
    }

    /// Starts a listener for these exports on a unix socket.
    pub(crate) fn serve(&self, exports: Vec<Export>) -> Served {
        let path = self.folder.path().join(format!("{}.sock", exports.len()));
        let socket = listen_unix(&path, SOCKET_MODE_DEFAULT).expect("a socket");
        Served { path, actor: self.install(socket, exports, None) }
    }

    /// As `serve`, for clients that speak TLS.
    pub(crate) fn serve_tls(&self, exports: Vec<Export>, tls: TlsSettings) -> Served {
        let path = self.folder.path().join("tls.sock");
        let socket = listen_unix(&path, SOCKET_MODE_DEFAULT).expect("a socket");
        Served { path, actor: self.install(socket, exports, Some(tls)) }
    }

    /// Starts a listener for these exports on a free TCP port.
    pub(crate) fn serve_tcp(&self, exports: Vec<Export>) -> SocketAddr {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (socket, address) = listen_tcp(any).expect("a socket");
        self.install(socket, exports, None);
        address
    }

    fn install(&self, socket: OwnedFd, exports: Vec<Export>, tls: Option<TlsSettings>) -> ActorId {
        let (out, actor) = channel();
        let install = move |engine: &mut Engine| {
            let actor = engine.spawn_actor(Box::new(Listener::new(socket, exports).with_tls(tls)));
            out.send(actor).expect("the test waits");
        };
        self.tell(LaneId(0), LaneMessage::Run(Box::new(install)));
        actor.recv().expect("installed")
    }

    pub(crate) fn order(&self, served: &Served, order: ListenerOrder) {
        self.tell(LaneId(0), LaneMessage::ToActor(served.actor, Box::new(order)));
    }

    /// Stops a listener and waits until its connections are closed.
    pub(crate) fn stop(&self, served: &Served, cut: bool) {
        let (out, done) = channel();
        let done_box = Box::new(move || out.send(()).expect("the test waits"));
        self.order(served, ListenerOrder::Stop { cut, done: done_box });
        done.recv().expect("stopped");
    }

    /// What every lane has open.
    pub(crate) fn census(&self) -> Vec<EngineCensus> {
        (0..self.lanes.len())
            .map(|lane| {
                let (out, census) = channel();
                let look = move |engine: &mut Engine| {
                    out.send(engine.census()).expect("the test waits");
                };
                self.tell(LaneId(lane as u16), LaneMessage::Run(Box::new(look)));
                census.recv().expect("a census")
            })
            .collect()
    }

    /// Asks for the census until it says what is wanted; every question is a turn of the lanes, so
    /// this waits for the thing itself.
    pub(crate) fn wait_for(&self, wanted: impl Fn(&[EngineCensus]) -> bool) {
        while !wanted(&self.census()) {
            std::thread::yield_now();
        }
    }

    /// True if no lane has more than so many bios anywhere.
    pub(crate) fn lanes_hold_at_most(&self, count: u64) -> bool {
        self.census().iter().all(|lane| lane.held + lane.in_flight <= count)
    }

    pub(crate) fn connect(&self, served: &Served) -> UnixStream {
        UnixStream::connect(&served.path).expect("somebody listens")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for lane in &self.lanes {
            lane.nudge();
            // A message, so that a lane that is about to sleep sees the flag too.
            let _ = lane.send(LaneMessage::Run(Box::new(|_| {})));
        }
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.is_ok(), "a lane panicked");
        }
    }
}
