//! `udm daemon`: the engine, its control socket and its exports, in the foreground.
//!
//! Start: engine, state (devices and exports back), control socket, then the one line that says it
//! is ready, to people and to a service manager. From then on this thread sleeps until the end.
//!
//! End (SIGTERM, SIGINT, or `Shutdown`): the control socket answers what is under way and closes,
//! exports answer what is under way and close, devices write out what they hold, path checks end,
//! the lanes stop. What is in the state directory stays as it was, since nothing was taken down on
//! purpose.
//!
//! `up` and `run` use the same parts ([`Service`]), without a state directory.

mod control_device;
mod exports;
mod goodbye;
mod journal;
mod lines;
mod nodes;
mod notify;
mod ops;
pub mod state;

pub(crate) use exports::check_place;
pub(crate) use lines::with_absolute_paths;
pub use ops::DaemonOps;

use crate::cli::args::{DaemonArgs, DriverArg, EngineArgs};
use crate::cli::{Failure, SCHEMA_VERSION};
use crate::privileges::{Keep, give_up, serve_file_systems};
use crate::runtime::{Runtime, RuntimeConfig};
use crate::signals::{EndWatch, Second};
use state::StateDir;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use udm_control::server::Bound;
use udm_control::{ControlOps, Server};
use udm_core::error::{ErrorCode, UserError};
use udm_driver::DriverChoice;

/// A running daemon.
pub struct Service {
    ops: Arc<DaemonOps>,
    server: Option<Server>,
}

impl Service {
    /// Starts the engine, brings the state back, and listens.
    ///
    /// # Errors
    /// If the socket or the state directory is another daemon's, the state is damaged, or the
    /// system refuses what the engine needs.
    pub fn start(
        engine: &EngineArgs,
        socket: &Path,
        state: Option<&Path>,
        end: &EndWatch,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Service, UserError> {
        // Before the engine and the state: whoever comes second must not touch anything.
        let bound = Bound::open(socket)?;
        let state = state.map(StateDir::open).transpose()?;
        let runtime = Arc::new(start_engine(engine)?);
        let ops = Arc::new(DaemonOps::start(runtime, state, end.asker(), warn)?);
        ops.watch_exports();
        let shared: Arc<dyn ControlOps> = Arc::<DaemonOps>::clone(&ops);
        let server = Server::serve(bound, shared)?;
        Ok(Service { ops, server: Some(server) })
    }

    /// The daemon's operations.
    pub fn ops(&self) -> &Arc<DaemonOps> {
        &self.ops
    }

    /// The control socket.
    pub fn socket(&self) -> Option<&Path> {
        self.server.as_ref().map(Server::path)
    }

    /// Answers what is under way and ends.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop();
            self.ops.end_exports();
            goodbye::write_out(self.ops.runtime());
            self.ops.end_paths();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts an engine as the options say.
fn start_engine(args: &EngineArgs) -> Result<Runtime, UserError> {
    let config = RuntimeConfig {
        lanes: args.lanes.map_or(0, usize::from),
        driver: match args.driver {
            DriverArg::Auto => DriverChoice::Auto,
            DriverArg::Uring => DriverChoice::Uring,
            DriverArg::Portable => DriverChoice::Portable,
        },
        seed: seed(),
        ..RuntimeConfig::default()
    };
    Runtime::start(&config).map_err(|error| {
        UserError::new(ErrorCode::Internal, format!("the engine did not start: {error}"))
            .hint("try --driver portable")
    })
}

/// A seed for targets that draw random numbers: another one at each start.
fn seed() -> u64 {
    fastrand::u64(..)
}

/// Tells the user something while serving; a closed stream is no reason to stop.
pub(crate) fn say(text: &str) {
    let mut stream = std::io::stdout().lock();
    let _ = writeln!(stream, "{text}").and_then(|()| stream.flush());
}

/// Runs the daemon until it is told to end.
///
/// # Errors
/// As [`Service::start`].
pub fn run(args: &DaemonArgs, socket: &Path, json: bool) -> Result<(), Failure> {
    crate::open_files::allow_all();
    let keep = if args.no_privileges { Keep::Nothing } else { Keep::Needed };
    give_up(keep)?;
    serve_file_systems();
    let end = EndWatch::start(Second::Ends)?;
    let mut warn = |text: &str| eprintln!("udm: warning: {text}");
    let service = Service::start(&args.engine, socket, args.state.as_deref(), &end, &mut warn)?;
    if let (Some(name), Some(socket)) = (&args.control_device, service.socket()) {
        control_device::start(name, socket)?;
    }
    if let Some(folder) = &args.links {
        service.ops().link_in(folder)?;
    }
    let runtime = service.ops().runtime();
    if json {
        let ready = serde_json::json!({
            "schema_version": SCHEMA_VERSION,
            "ready": true,
            "socket": socket,
            "lanes": runtime.lane_count(),
            "driver": runtime.driver().name,
        });
        say(&ready.to_string());
    } else {
        say(&format!(
            "udm: ready on {}, lanes: {}, {}",
            socket.display(),
            runtime.lane_count(),
            runtime.driver()
        ));
    }
    notify::notify("READY=1");
    end.wait();
    notify::notify("STOPPING=1");
    service.stop();
    Ok(())
}
