//! A daemon made of a few variables, for the ioctl codec's fuzzer and tests.
//!
//! It takes every request the codec makes and answers as the life cycle would, without I/O, lanes
//! or waiting; tables are kept as the lines that came. It counts what it changed: an ioctl that
//! ends with an error must not have changed anything.
//!
//! The tricky case is a message: the word `say` answers the words after it, so that results of any
//! length can be had.

use crate::api::{ExportState, PathPolicy, PathStatus, TargetType};
use crate::dispatch::Asker;
use crate::ops::{ControlOps, ExportOrder};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::{
    DM_MAJOR, DeviceKey, DeviceStatus, Reply, ReplySink, Request, StatusLine, Ticket,
};
use udm_core::table::TableLine;
use udm_types::{DeviceId, DmName, DmUuid};

#[derive(Clone, Debug)]
struct Modelled {
    status: DeviceStatus,
    live: Vec<TableLine>,
    inactive: Vec<TableLine>,
}

#[derive(Debug, Default)]
struct State {
    devices: BTreeMap<String, Modelled>,
    changes: u64,
}

/// The daemon.
#[derive(Debug, Default)]
pub(crate) struct Model(Mutex<State>);

/// Waits for nothing.
pub(crate) struct AskModel<'a>(pub(crate) &'a Model);

/// A device's state without anything special.
pub(crate) fn device(name: &str, uuid: Option<&str>, minor: u32) -> DeviceStatus {
    DeviceStatus {
        id: DeviceId(minor),
        name: DmName::new(name).expect("invariant: the model's names are good"),
        uuid: uuid.map(|uuid| DmUuid::new(uuid).expect("invariant: so are its uuids")),
        major: DM_MAJOR,
        minor,
        suspended: false,
        suspend: None,
        read_only: false,
        live_present: false,
        inactive_present: false,
        deferred_remove: false,
        open_count: 0,
        event_nr: minor,
        target_count: 0,
        inactive_target_count: 0,
        inactive_read_only: false,
        len_sectors: 0,
        geometry: None,
        request_based: false,
        holds_writes: false,
    }
}

fn refuse(code: ErrorCode) -> UserError {
    UserError::new(code, "the model says no")
}

impl Model {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often something changed.
    pub(crate) fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Counts an opener of a device.
    #[cfg(test)]
    pub(crate) fn open(&self, name: &str) {
        self.lock().devices.get_mut(name).expect("there").status.open_count += 1;
    }
}

impl State {
    fn find(&mut self, key: &DeviceKey) -> Result<&mut Modelled, UserError> {
        let found = self.devices.values_mut().find(|device| match key {
            DeviceKey::Name(name) => device.status.name.as_str() == name,
            DeviceKey::Uuid(uuid) => {
                device.status.uuid.as_ref().is_some_and(|own| own.as_str() == uuid)
            }
            DeviceKey::Minor(minor) => device.status.minor == *minor,
            DeviceKey::Id(id) => device.status.id == *id,
        });
        found.ok_or_else(|| refuse(ErrorCode::NoSuchDevice))
    }

    fn change(
        &mut self,
        key: &DeviceKey,
        change: impl FnOnce(&mut Modelled) -> Result<(), UserError>,
    ) -> Result<Reply, UserError> {
        let device = self.find(key)?;
        change(device)?;
        let status = &mut device.status;
        status.inactive_present = !device.inactive.is_empty();
        status.inactive_target_count = device.inactive.len() as u32;
        status.live_present = !device.live.is_empty();
        status.target_count = device.live.len() as u32;
        let status = status.clone();
        self.changes += 1;
        Ok(Reply::Done(Some(Box::new(status))))
    }

    fn create(
        &mut self,
        name: &DmName,
        uuid: Option<&DmUuid>,
        minor: Option<u32>,
    ) -> Result<Reply, UserError> {
        let taken = |minor: &u32| self.devices.values().any(|device| device.status.minor == *minor);
        let minor = match minor {
            Some(minor) if taken(&minor) || minor >= 1 << 20 => {
                return Err(refuse(ErrorCode::MinorTaken));
            }
            Some(minor) => minor,
            None => (0..).find(|minor| !taken(minor)).unwrap_or(0),
        };
        if self.devices.contains_key(name.as_str()) {
            return Err(refuse(ErrorCode::NameTaken));
        }
        if uuid.is_some_and(|uuid| self.find(&DeviceKey::Uuid(uuid.to_string())).is_ok()) {
            return Err(refuse(ErrorCode::UuidTaken));
        }
        let status = device(name.as_str(), uuid.map(DmUuid::as_str), minor);
        let made = Modelled { status, live: Vec::new(), inactive: Vec::new() };
        self.devices.insert(name.to_string(), made);
        self.change(&DeviceKey::Name(name.to_string()), |_| Ok(()))
    }

    fn remove(&mut self, key: &DeviceKey, deferred: bool) -> Result<Reply, UserError> {
        let device = self.find(key)?;
        if device.status.open_count > 0 {
            if !deferred {
                return Err(refuse(ErrorCode::InUse));
            }
            return self.change(key, |device| {
                device.status.deferred_remove = true;
                Ok(())
            });
        }
        let name = device.status.name.to_string();
        self.devices.remove(&name);
        self.changes += 1;
        Ok(Reply::Done(None))
    }

    fn rename(&mut self, key: &DeviceKey, name: &DmName) -> Result<Reply, UserError> {
        if self.devices.contains_key(name.as_str()) {
            return Err(refuse(ErrorCode::NameTaken));
        }
        let old = self.find(key)?.status.name.to_string();
        if let Some(mut device) = self.devices.remove(&old) {
            device.status.name = name.clone();
            self.devices.insert(name.to_string(), device);
        }
        self.change(&DeviceKey::Name(name.to_string()), |_| Ok(()))
    }

    fn lines(&mut self, key: &DeviceKey, inactive: bool) -> Result<Reply, UserError> {
        let device = self.find(key)?;
        let lines = if inactive { &device.inactive } else { &device.live };
        let lines = lines.iter().map(|line| StatusLine {
            begin_sector: line.begin_sector,
            len_sectors: line.len_sectors,
            target: line.target.clone(),
            args: line.args.join(" "),
        });
        Ok(Reply::Lines { lines: lines.collect(), device: Box::new(device.status.clone()) })
    }

    fn message(&mut self, key: &DeviceKey, words: &[String]) -> Result<Reply, UserError> {
        self.find(key)?;
        let (first, rest) = words.split_first().ok_or_else(|| refuse(ErrorCode::BadMessage))?;
        match first.as_str() {
            "say" => Ok(Reply::Text(Some(rest.join(" ")))),
            "hush" => Ok(Reply::Text(None)),
            _ => Err(refuse(ErrorCode::UnknownMessage)),
        }
    }

    fn answer(&mut self, request: Request) -> Result<Reply, UserError> {
        match request {
            Request::Create { name, uuid, minor } => self.create(&name, uuid.as_ref(), minor),
            Request::Remove { device, deferred } => self.remove(&device, deferred),
            Request::Rename { device, name } => self.rename(&device, &name),
            Request::RemoveAll { .. } => {
                self.devices.retain(|_, device| device.status.open_count > 0);
                self.changes += 1;
                Ok(Reply::Done(None))
            }
            Request::SetUuid { device, uuid } => self.change(&device, |device| {
                if device.status.uuid.is_some() {
                    return Err(refuse(ErrorCode::UuidAlreadySet));
                }
                device.status.uuid = Some(uuid);
                Ok(())
            }),
            Request::Clear { device } => self.change(&device, |device| {
                device.inactive.clear();
                Ok(())
            }),
            Request::Suspend { device, .. } => self.change(&device, |device| {
                device.status.suspended = true;
                Ok(())
            }),
            Request::Resume { device, .. } => self.change(&device, |device| {
                if !device.inactive.is_empty() {
                    device.live = std::mem::take(&mut device.inactive);
                }
                device.status.suspended = false;
                Ok(())
            }),
            Request::SetGeometry { device, geometry } => self.change(&device, |device| {
                device.status.geometry = Some(geometry);
                Ok(())
            }),
            Request::CancelDeferredRemove { device } => self.change(&device, |device| {
                device.status.deferred_remove = false;
                Ok(())
            }),
            Request::Status { device } | Request::Wait { device, .. } => {
                let device = self.find(&device)?;
                Ok(Reply::Done(Some(Box::new(device.status.clone()))))
            }
            Request::List => {
                let devices = self.devices.values().map(|device| device.status.clone());
                Ok(Reply::List(devices.collect()))
            }
            Request::TableStatus { device, inactive, .. } => self.lines(&device, inactive),
            Request::Deps { device, .. } => {
                let device = self.find(&device)?;
                let deps = vec![(Some((DM_MAJOR, 7)), "254:7".into()), (None, "file".into())];
                Ok(Reply::Deps { device: Box::new(device.status.clone()), deps })
            }
            Request::Message { device, words, .. } => self.message(&device, &words),
            other @ (Request::Load { .. }
            | Request::LiveTable { .. }
            | Request::GlobalEvent
            | Request::WaitGlobal { .. }
            | Request::Gauges { .. }
            | Request::Lookup { .. }
            | Request::Open { .. }
            | Request::Close { .. }
            | Request::Cancel { .. }) => {
                Err(UserError::new(ErrorCode::Internal, format!("no ioctl asks {other:?}")))
            }
        }
    }
}

impl ControlOps for Model {
    fn post(&self, request: Request, reply: ReplySink) {
        let answer = self.lock().answer(request);
        reply(answer);
    }

    fn ticket(&self) -> Ticket {
        1
    }

    fn load_lines(
        &self,
        device: &DeviceKey,
        lines: &[TableLine],
        read_only: bool,
    ) -> Result<Box<DeviceStatus>, UserError> {
        if lines.iter().any(|line| line.target == "bad") {
            return Err(refuse(ErrorCode::UnknownTarget));
        }
        let reply = self.lock().change(device, |device| {
            device.inactive = lines.to_vec();
            device.status.inactive_read_only = read_only;
            Ok(())
        })?;
        match reply {
            Reply::Done(Some(device)) => Ok(device),
            _ => Err(refuse(ErrorCode::Internal)),
        }
    }

    fn targets(&self) -> Vec<TargetType> {
        let kind = |name: &str, version| TargetType { name: name.into(), version };
        vec![kind("zero", [1, 2, 0]), kind("linear", [1, 5, 0])]
    }

    fn version(&self) -> String {
        String::new()
    }

    fn export(&self, _: ExportOrder) -> Result<ExportState, UserError> {
        Err(refuse(ErrorCode::Internal))
    }

    fn unexport(&self, _: &str) -> Result<(), UserError> {
        Err(refuse(ErrorCode::NoSuchExport))
    }

    fn exports(&self) -> Vec<ExportState> {
        Vec::new()
    }

    fn paths(&self, _: Option<&DeviceKey>) -> Result<Vec<PathStatus>, UserError> {
        Ok(Vec::new())
    }

    fn check_paths(&self, _: &DeviceKey, _: Option<PathPolicy>) -> Result<(), UserError> {
        Err(refuse(ErrorCode::NoSuchDevice))
    }

    fn shutdown(&self) {}
}

impl Asker for AskModel<'_> {
    fn ticket(&mut self) -> Ticket {
        1
    }

    fn ask(&mut self, request: Request, _: Option<Ticket>) -> Result<Reply, UserError> {
        self.0.request(request)
    }

    fn ask_while_idle(&mut self, request: Request, _: Ticket) -> Result<Reply, UserError> {
        self.0.request(request)
    }

    fn emit(&mut self, _: Value) -> bool {
        true
    }
}
