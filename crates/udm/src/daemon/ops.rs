//! The daemon as the control side sees it: the engine, its exports and its journal together.
//!
//! Each call comes on a client's thread and may block it. Rules: what changes something is settled
//! (the users of exports can see a new size, it is written to the state file) before it is
//! answered; a table is built before the engine hears of
//! it, so that a bad one changes nothing.

use super::exports::{Exports, Patience};
use super::journal::{Journal, Served};
use super::nodes::{Links, block_of};
use super::state::StateDir;
use crate::paths::{self, PathWatch};
use crate::runtime::{Runtime, status_of};
use crate::signals::Ending;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use udm_control::api::{ExportState, PathPolicy, PathStatus, TargetType};
use udm_control::ops::{DeviceNode, ExportOrder};
use udm_control::{ControlOps, errno};
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::{DeviceKey, DeviceStatus, Reply, ReplySink, Request, Ticket};
use udm_core::table::TableLine;

/// The daemon.
pub struct DaemonOps {
    runtime: Arc<Runtime>,
    exports: Arc<Exports>,
    watch: PathWatch,
    journal: Option<Journal>,
    links: OnceLock<Links>,
    ending: Sender<Ending>,
}

impl DaemonOps {
    /// A daemon over a running engine; with a state directory, what is in it is brought back, and
    /// what cannot be is told to `warn`.
    ///
    /// # Errors
    /// `StateDamaged`.
    pub fn start(
        runtime: Arc<Runtime>,
        state: Option<StateDir>,
        ending: Sender<Ending>,
        warn: &mut dyn FnMut(&str),
    ) -> Result<DaemonOps, UserError> {
        let exports = Exports::new(Arc::clone(&runtime), state.is_some());
        let journal = state.map(Journal::new);
        let watch = PathWatch::new(Arc::clone(&runtime));
        let links = OnceLock::new();
        let ops = DaemonOps { runtime, exports, watch, journal, links, ending };
        if let Some(journal) = &ops.journal {
            let load = |key: &DeviceKey, text: &str, read_only: bool| {
                ops.load(key, text, read_only).map(drop)
            };
            let served = Served { exports: &ops.exports, watch: &ops.watch };
            journal.restore(&ops.runtime, served, &load, warn)?;
            journal.settle(&ops.runtime, served, None)?;
        }
        Ok(ops)
    }

    /// From now on an export that ends by itself is reported and no longer kept.
    pub fn watch_exports(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.exports.on_lapse(Box::new(move |name, why| {
            eprintln!("udm: warning: export '{name}' has ended: {why}");
            let Some(ops) = weak.upgrade() else { return };
            if let Err(error) = ops.settle(None) {
                eprintln!("udm: warning: {error}");
            }
        }));
    }

    /// The engine.
    pub fn runtime(&self) -> &Arc<Runtime> {
        &self.runtime
    }

    /// Ends the watch over paths. The state keeps it.
    pub fn end_paths(&self) {
        self.watch.stop();
    }

    /// Ends all exports; what is under way is answered first. The state keeps them.
    pub fn end_exports(&self) {
        self.exports.remove_all();
        self.update_links();
    }

    /// From now on each device that is a file has a link in this folder, under its name.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn link_in(&self, folder: &Path) -> Result<(), UserError> {
        let links = Links::new(folder).map_err(|error| {
            let what = format!("make the folder {}", folder.display());
            errno::system(ErrorCode::BadParameter, &what, &error)
        })?;
        // Called once, at the start.
        let _ = self.links.set(links);
        self.update_links();
        Ok(())
    }

    fn update_links(&self) {
        let Some(links) = self.links.get() else { return };
        let named: BTreeMap<String, PathBuf> = self
            .files()
            .into_iter()
            .map(|(device, file)| (device.name.as_str().to_owned(), file))
            .collect();
        links.update(named).iter().for_each(|what| eprintln!("udm: warning: {what}"));
    }

    /// The devices that are files, with those.
    fn files(&self) -> Vec<(Box<DeviceStatus>, PathBuf)> {
        let status = |(id, file)| {
            let request = Request::Status { device: DeviceKey::Id(id) };
            // Gone since: it is left out.
            let found = self.runtime.request(request).and_then(status_of).ok()?;
            Some((found, file))
        };
        self.exports.files().into_iter().filter_map(status).collect()
    }

    /// The lines with mapped devices as numbers, which a rename does not change.
    fn lasting(&self, lines: &[TableLine]) -> Vec<TableLine> {
        let mut lasting = lines.to_vec();
        for word in lasting.iter_mut().flat_map(|line| &mut line.args) {
            let name = word.strip_prefix("dm:").or_else(|| word.strip_prefix("/dev/mapper/"));
            let Some(name) = name else { continue };
            let request = Request::Lookup { device: DeviceKey::Name(name.to_owned()) };
            if let Ok(Reply::Device(found)) = self.runtime.request(request) {
                *word = found.shown;
            }
        }
        lasting
    }
}

impl ControlOps for DaemonOps {
    fn post(&self, request: Request, reply: ReplySink) {
        self.runtime.post(request, reply);
    }

    fn ticket(&self) -> Ticket {
        self.runtime.ticket()
    }

    fn settle(&self, touched: Option<&DeviceKey>) -> Result<(), UserError> {
        if let Some(device) = touched {
            self.exports.settle_sizes(device, &|what| eprintln!("udm: warning: {what}"));
        }
        self.update_links();
        if !self.watch.is_idle() {
            self.watch.settle(&paths::devices(&self.runtime)?);
        }
        let served = Served { exports: &self.exports, watch: &self.watch };
        match &self.journal {
            Some(journal) => journal.settle(&self.runtime, served, touched),
            None => Ok(()),
        }
    }

    fn load_lines(
        &self,
        device: &DeviceKey,
        lines: &[TableLine],
        read_only: bool,
    ) -> Result<Box<DeviceStatus>, UserError> {
        let Some(journal) = &self.journal else {
            return self.runtime.load_lines(device, lines, read_only);
        };
        let found = status_of(self.runtime.request(Request::Status { device: device.clone() })?)?;
        let table = self.runtime.build_lines(lines, read_only)?;
        journal.remember(found.id, &self.lasting(lines), &table);
        status_of(self.runtime.request(Request::Load { device: DeviceKey::Id(found.id), table })?)
    }

    fn targets(&self) -> Vec<TargetType> {
        let types = self.runtime.registry().types().iter().rev();
        types
            .map(|kind| TargetType { name: kind.name().to_owned(), version: kind.version() })
            .collect()
    }

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    fn export(&self, order: ExportOrder) -> Result<ExportState, UserError> {
        self.exports.add(&order, Patience::None)
    }

    fn unexport(&self, name: &str) -> Result<(), UserError> {
        let kept = self.journal.as_ref().is_some_and(|journal| journal.forget_export(name));
        match self.exports.remove(name) {
            Err(_) if kept => Ok(()),
            other => other,
        }
    }

    fn exports(&self) -> Vec<ExportState> {
        self.exports.list()
    }

    fn nodes(&self) -> Vec<DeviceNode> {
        let node = |(device, file): (Box<DeviceStatus>, PathBuf)| match block_of(&file) {
            Some((path, number)) => DeviceNode { minor: device.minor, path, number: Some(number) },
            None => {
                let path = file.display().to_string();
                DeviceNode { minor: device.minor, path, number: None }
            }
        };
        self.files().into_iter().map(node).collect()
    }

    fn paths(&self, device: Option<&DeviceKey>) -> Result<Vec<PathStatus>, UserError> {
        paths::paths(&self.runtime, &self.watch, device)
    }

    fn check_paths(&self, device: &DeviceKey, policy: Option<PathPolicy>) -> Result<(), UserError> {
        let request = Request::Status { device: device.clone() };
        let found = status_of(self.runtime.request(request)?)?;
        match policy {
            Some(policy) => self.watch.watch(found.id, policy),
            None => {
                self.watch.unwatch(found.id);
                Ok(())
            }
        }
    }

    fn shutdown(&self) {
        // Nobody waits any more: the end has begun already.
        let _ = self.ending.send(Ending::Asked);
    }
}
