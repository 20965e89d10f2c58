//! The running engine: lane threads, the registries, and a way to ask things of them.
//!
//! Used by the daemon, by `up`, `run`, `demo` and `bench`, and by Rust programs that embed udm. A
//! [`Runtime`] starts one thread a lane, each with its own driver and [`Engine`], and joins them
//! when it is shut down. Requests go to the coordinator on lane 0; answers come back through a
//! channel.
//!
//! Nothing here is on the I/O path. Building a table opens files and may block, so it happens on
//! the thread of whoever asked, never on a lane.
//!
//! The tricky case is shutting down while I/O is stuck below: the lanes are told to stop and end
//! after their current turn; operations still in the kernel are then the driver's to wait for.

mod lanes;
mod resolver;

pub use resolver::RuntimeResolver;

use lanes::Lane;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use udm_core::lifecycle::{DeviceKey, DeviceStatus, Reply, ReplySink, Request, SuspendOptions};
use udm_core::table::{TableBuilder, TableLine, parse_table};
use udm_core::{
    Actor, Engine, ErrorCode, LaneMessage, Registry, Table, UserError, engine::COORDINATOR_LANE,
};
use udm_driver::{DriverChoice, DriverError, DriverReport, monotonic_ns};
use udm_lane::{Mailbox, MailboxFull};
use udm_lower::LowerRegistry;
use udm_types::{ActorId, DmName, DmUuid, LaneId, Nanos};

/// How to start.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Lanes to run; 0 for one a processor.
    pub lanes: usize,
    /// Which driver.
    pub driver: DriverChoice,
    /// Keep each lane on a processor of its own.
    pub pin: bool,
    /// Seed for targets that draw random numbers.
    pub seed: u64,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        RuntimeConfig { lanes: 0, driver: DriverChoice::Auto, pin: false, seed: 1 }
    }
}

/// Most lanes: one a processor of a large machine.
const LANES_MAX: usize = 256;

/// The engine at work.
pub struct Runtime {
    lanes: Vec<Lane>,
    report: DriverReport,
    lowers: Arc<LowerRegistry>,
    registry: Registry,
    seed: AtomicU64,
    tickets: AtomicU64,
}

impl Runtime {
    /// Starts the lanes.
    ///
    /// # Errors
    /// If a thread or its driver cannot be had; lanes already started are stopped again.
    pub fn start(config: &RuntimeConfig) -> Result<Runtime, DriverError> {
        let processors = udm_driver::allowed_cpus();
        let wanted = match config.lanes {
            0 => processors.len().max(1),
            lanes => lanes,
        };
        let count = wanted.min(LANES_MAX);
        let pins = |index: usize| {
            config.pin.then(|| processors.get(index % processors.len().max(1)).copied()).flatten()
        };
        let (lanes, report) = lanes::start(count, config.driver, pins)?;
        Ok(Runtime {
            lanes,
            report,
            lowers: Arc::new(LowerRegistry::new(count)),
            registry: udm_targets::registry(),
            seed: AtomicU64::new(config.seed),
            tickets: AtomicU64::new(1),
        })
    }

    /// Which driver the lanes got, and why.
    pub fn driver(&self) -> &DriverReport {
        &self.report
    }

    /// How many lanes run.
    pub fn lane_count(&self) -> usize {
        self.lanes.len()
    }

    /// The target types.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The lower devices that are open.
    pub fn lowers(&self) -> &Arc<LowerRegistry> {
        &self.lowers
    }

    /// A number no other request of this daemon uses, to cancel a waiting one by.
    pub fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a message to a lane; waits while its mailbox is full.
    pub fn send(&self, lane: LaneId, message: LaneMessage) {
        let mut message = message;
        while let Err(MailboxFull(back)) = self.lanes[lane.index()].mailbox.send(message) {
            message = back;
            std::thread::yield_now();
        }
    }

    /// Hands a request to the coordinator; the sink is called once, from a lane's thread.
    pub fn post(&self, request: Request, sink: ReplySink) {
        self.send(COORDINATOR_LANE, LaneMessage::Request(Box::new(request), sink));
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// The request's own, or that the engine ended without an answer.
    pub fn request(&self, request: Request) -> Result<Reply, UserError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        // The receiver waits below; sending fails only if this thread has panicked.
        let sink: ReplySink = Box::new(move |reply| drop(sender.send(reply)));
        self.post(request, sink);
        receiver.recv().unwrap_or_else(|mpsc::RecvError| {
            Err(UserError::new(ErrorCode::NoDaemon, "the engine is shutting down"))
        })
    }

    /// Runs something on a lane and waits for its result.
    ///
    /// # Panics
    /// If the lane ended before it could run it; a runtime's lanes live as long as it does.
    pub fn on_lane<R: Send + 'static>(
        &self,
        lane: LaneId,
        run: impl FnOnce(&mut Engine) -> R + Send + 'static,
    ) -> R {
        let (sender, receiver) = mpsc::sync_channel(1);
        let message = LaneMessage::Run(Box::new(move |engine| drop(sender.send(run(engine)))));
        self.send(lane, message);
        receiver.recv().expect("invariant: lanes run until the runtime is dropped")
    }

    /// Installs an actor on a lane; `make` runs there.
    pub fn spawn_actor(
        &self,
        lane: LaneId,
        make: impl FnOnce() -> Box<dyn Actor> + Send + 'static,
    ) -> ActorId {
        self.on_lane(lane, move |engine| engine.spawn_actor(make()))
    }

    /// A way for other threads to send messages to a lane.
    pub fn mailbox(&self, lane: LaneId) -> Mailbox<LaneMessage> {
        self.lanes[lane.index()].mailbox.clone()
    }

    /// Builds a table from text on the calling thread.
    ///
    /// # Errors
    /// Whatever is wrong with the text, with line and field.
    pub fn build_table(&self, text: &str, read_only: bool) -> Result<Arc<Table>, UserError> {
        self.build_lines(&parse_table(text)?, read_only)
    }

    /// As [`Runtime::build_table`], from lines that are parsed already.
    ///
    /// # Errors
    /// Whatever is wrong with a line.
    pub fn build_lines(
        &self,
        lines: &[TableLine],
        read_only: bool,
    ) -> Result<Arc<Table>, UserError> {
        let mut resolver = RuntimeResolver::new(self);
        let builder = TableBuilder {
            registry: &self.registry,
            resolver: &mut resolver,
            read_only,
            now: Nanos(monotonic_ns()),
            seed: self.seed.fetch_add(1, Ordering::Relaxed),
        };
        builder.build(lines).map(Arc::new)
    }

    /// Builds a table and puts it into the inactive slot.
    ///
    /// # Errors
    /// Whatever is wrong with the text or the device; then nothing has changed.
    pub fn load(
        &self,
        device: &DeviceKey,
        text: &str,
        read_only: bool,
    ) -> Result<Box<DeviceStatus>, UserError> {
        // A wrong name is reported before files are opened for nothing.
        status_of(self.request(Request::Status { device: device.clone() })?)?;
        let table = self.build_table(text, read_only)?;
        status_of(self.request(Request::Load { device: device.clone(), table })?)
    }

    /// As [`Runtime::load`], from lines that are parsed already.
    ///
    /// # Errors
    /// As [`Runtime::load`].
    pub fn load_lines(
        &self,
        device: &DeviceKey,
        lines: &[TableLine],
        read_only: bool,
    ) -> Result<Box<DeviceStatus>, UserError> {
        status_of(self.request(Request::Status { device: device.clone() })?)?;
        let table = self.build_lines(lines, read_only)?;
        status_of(self.request(Request::Load { device: device.clone(), table })?)
    }

    /// Suspends.
    ///
    /// # Errors
    /// As the request.
    pub fn suspend(
        &self,
        device: &DeviceKey,
        options: SuspendOptions,
    ) -> Result<Box<DeviceStatus>, UserError> {
        let ticket = self.ticket();
        status_of(self.request(Request::Suspend { device: device.clone(), options, ticket })?)
    }

    /// Resumes, with a table swap if one is loaded.
    ///
    /// # Errors
    /// As the request.
    pub fn resume(
        &self,
        device: &DeviceKey,
        options: SuspendOptions,
    ) -> Result<Box<DeviceStatus>, UserError> {
        let ticket = self.ticket();
        status_of(self.request(Request::Resume { device: device.clone(), options, ticket })?)
    }

    /// Creates a device and brings it up with a table; leaves nothing behind if that fails.
    ///
    /// # Errors
    /// Whatever is wrong with name or table.
    pub fn create(
        &self,
        name: &str,
        uuid: Option<&str>,
        table: &str,
        read_only: bool,
    ) -> Result<Box<DeviceStatus>, UserError> {
        let bad = |error: udm_types::NameError| {
            UserError::new(ErrorCode::BadName, format!("'{name}': {error}"))
        };
        let request = Request::Create {
            name: DmName::new(name).map_err(bad)?,
            uuid: uuid.map(DmUuid::new).transpose().map_err(bad)?,
            minor: None,
        };
        let status = status_of(self.request(request)?)?;
        let key = DeviceKey::Id(status.id);
        let up = self
            .load(&key, table, read_only)
            .and_then(|_| self.resume(&key, SuspendOptions::default()));
        if up.is_err() {
            // The device was made a moment ago; if it cannot go, the first error says more.
            drop(self.request(Request::Remove { device: key, deferred: false }));
        }
        up
    }

    /// Stops the lanes and waits for their threads.
    pub fn shutdown(mut self) {
        lanes::stop(&mut self.lanes);
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        lanes::stop(&mut self.lanes);
    }
}

/// The device in a `Done` reply.
///
/// # Errors
/// If the reply carries none, which would be a bug.
pub fn status_of(reply: Reply) -> Result<Box<DeviceStatus>, UserError> {
    match reply {
        Reply::Done(Some(status)) => Ok(status),
        other => Err(UserError::new(
            ErrorCode::Internal,
            format!("expected a device's state, got {other:?}"),
        )),
    }
}
