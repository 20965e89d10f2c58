//! One method call to one answer: parameters to requests, replies to answers.
//!
//! Called by a connection for each message, and by the fuzzer. Calls that wait (suspend, resume,
//! wait, events) go through [`Asker`], which the connection implements so that it can notice a
//! client that has gone; everything else is asked and answered at once.
//!
//! Changes nothing by itself: each method is one request to the life cycle, or one call of
//! [`ControlOps`]. A change is settled (made durable) before it is answered.
//!
//! The tricky case is `@cancel_deferred_remove`: to dmsetup it is a message, but it is meant for
//! the device and works without a table, so it is caught here and never reaches a target.

use crate::api::{self, Method};
use crate::ops::{ControlOps, ExportOrder};
use crate::place::{ExportKind, ExportPlace};
use crate::wire::Call;
use crate::{DRIVER_VERSION, INTERFACE, INTERFACE_TEXT, INTERFACE_VERSION};
use crate::{base64, ioctl};
use serde_json::{Value, json};
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::{
    DeviceKey, DeviceStatus, OnTimeout, Reply, Request, StatusKind, SuspendOptions, Ticket,
};
use udm_types::{DmName, DmUuid, Nanos};

/// Waits for answers on behalf of a client.
pub(crate) trait Asker {
    /// A fresh ticket.
    fn ticket(&mut self) -> Ticket;
    /// Posts a request and waits. If the client goes away meanwhile, the ticket is cancelled.
    fn ask(&mut self, request: Request, ticket: Option<Ticket>) -> Result<Reply, UserError>;
    /// As `ask`, but cancelled by anything the client sends as well.
    fn ask_while_idle(&mut self, request: Request, ticket: Ticket) -> Result<Reply, UserError>;
    /// Sends an answer that others will follow. False if nobody listens any more.
    fn emit(&mut self, parameters: Value) -> bool;
}

/// Why a call has no answer.
pub(crate) enum CallError {
    /// An error of our own interface.
    User(UserError),
    /// A standard error of varlink with its parameters.
    Varlink(&'static str, Value),
}

impl From<UserError> for CallError {
    fn from(error: UserError) -> CallError {
        CallError::User(error)
    }
}

const SERVICE: &str = "org.varlink.service";

/// Text of the standard interface, as `GetInterfaceDescription` returns it.
const SERVICE_TEXT: &str = "interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, \
interfaces: []string)

method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
";

/// Answers a call.
pub(crate) fn call(
    call: &Call,
    ops: &dyn ControlOps,
    asker: &mut dyn Asker,
) -> Result<Value, CallError> {
    let Some((interface, method)) = call.method.rsplit_once('.') else {
        return Err(CallError::Varlink("InterfaceNotFound", json!({ "interface": "" })));
    };
    match interface {
        SERVICE => service(method, call, ops),
        INTERFACE => Control { call, ops, asker }.method(method),
        _ => Err(CallError::Varlink("InterfaceNotFound", json!({ "interface": interface }))),
    }
}

fn service(method: &str, call: &Call, ops: &dyn ControlOps) -> Result<Value, CallError> {
    match method {
        "GetInfo" => Ok(json!({
            "vendor": "udm",
            "product": "udm",
            "version": ops.version(),
            "url": "",
            "interfaces": [SERVICE, INTERFACE],
        })),
        "GetInterfaceDescription" => {
            let wanted = call.parameters.as_ref().and_then(|map| map.get("interface"));
            match wanted.and_then(Value::as_str) {
                Some(INTERFACE) => Ok(json!({ "description": INTERFACE_TEXT })),
                Some(SERVICE) => Ok(json!({ "description": SERVICE_TEXT })),
                Some(other) => {
                    Err(CallError::Varlink("InterfaceNotFound", json!({ "interface": other })))
                }
                None => {
                    Err(CallError::Varlink("InvalidParameter", json!({ "parameter": "interface" })))
                }
            }
        }
        _ => Err(CallError::Varlink("MethodNotFound", json!({ "method": call.method }))),
    }
}

struct Control<'a> {
    call: &'a Call,
    ops: &'a dyn ControlOps,
    asker: &'a mut dyn Asker,
}

impl Control<'_> {
    fn method(&mut self, method: &str) -> Result<Value, CallError> {
        match method {
            "Ping" => self.answer(|_, _: api::Ping| Ok(api::Empty {})),
            "Version" => self.answer(Self::version),
            "Targets" => self.answer(|this, _: api::Targets| {
                Ok(api::TargetsAnswer { targets: this.ops.targets() })
            }),
            "List" => self.answer(Self::list),
            "Create" => self.answer(Self::create),
            "Load" => self.answer(Self::load),
            "Clear" => self.answer(|this, call: api::Clear| {
                this.change(Request::Clear { device: call.device.key()? }, None)
            }),
            "Suspend" => self.answer(Self::suspend),
            "Resume" => self.answer(Self::resume),
            "Remove" => self.answer(|this, call: api::Remove| {
                let device = call.device.key()?;
                this.change(Request::Remove { device, deferred: call.deferred }, None)
            }),
            "RemoveAll" => self.answer(|this, call: api::RemoveAll| {
                this.change(Request::RemoveAll { deferred: call.deferred }, None)
            }),
            "Rename" => self.answer(|this, call: api::Rename| {
                let name = name(&call.name)?;
                this.change(Request::Rename { device: call.device.key()?, name }, None)
            }),
            "SetUuid" => self.answer(|this, call: api::SetUuid| {
                let uuid = uuid(&call.uuid)?;
                this.change(Request::SetUuid { device: call.device.key()?, uuid }, None)
            }),
            "Message" => self.answer(Self::message),
            "Status" => self.answer(|this, call: api::Status| {
                this.done(Request::Status { device: call.device.key()? }, None)
            }),
            "TableStatus" => self.answer(Self::table_status),
            "Deps" => self.answer(Self::deps),
            "Info" => self.answer(Self::info),
            "Wait" => self.answer(|this, call: api::Wait| {
                let (device, ticket) = (call.device.key()?, this.asker.ticket());
                let request = Request::Wait { device, event_nr: call.event_nr, ticket };
                this.done(request, Some(ticket))
            }),
            "Events" => self.answer(Self::events),
            "Export" => self.answer(Self::export),
            "Unexport" => self.answer(Self::unexport),
            "Exports" => self.answer(|this, _: api::Exports| {
                Ok(api::ExportsAnswer { exports: this.ops.exports() })
            }),
            "Node" => self.answer(Self::node),
            "Paths" => self.answer(|this, call: api::Paths| {
                let device = call.device.map(|device| device.key()).transpose()?;
                Ok(api::PathsAnswer { paths: this.ops.paths(device.as_ref())? })
            }),
            "CheckPaths" => self.answer(|this, call: api::CheckPaths| {
                this.ops.check_paths(&call.device.key()?, call.policy)?;
                this.ops.settle(None)?;
                Ok(api::Empty {})
            }),
            "DmIoctl" => self.answer(Self::dm_ioctl),
            "DmPoll" => self.answer(Self::dm_poll),
            "Shutdown" => self.answer(|this, _: api::Shutdown| {
                this.ops.shutdown();
                Ok(api::Empty {})
            }),
            _ => Err(CallError::Varlink("MethodNotFound", json!({ "method": self.call.method }))),
        }
    }

    /// Parses the parameters, runs the method, wraps its answer.
    fn answer<M: Method>(
        &mut self,
        run: impl FnOnce(&mut Self, M) -> Result<M::Answer, UserError>,
    ) -> Result<Value, CallError> {
        let parameters = Value::Object(self.call.parameters.clone().unwrap_or_default());
        let parsed: M = serde_json::from_value(parameters)
            .map_err(|error| UserError::new(ErrorCode::BadParameter, error.to_string()))?;
        let answer = run(self, parsed)?;
        Ok(serde_json::to_value(answer).expect("invariant: answers have string keys only"))
    }

    fn done(
        &mut self,
        request: Request,
        ticket: Option<Ticket>,
    ) -> Result<api::DeviceAnswer, UserError> {
        match self.asker.ask(request, ticket)? {
            Reply::Done(device) => Ok(device_answer(device.as_deref())),
            other => Err(unexpected(&other)),
        }
    }

    fn change(
        &mut self,
        request: Request,
        ticket: Option<Ticket>,
    ) -> Result<api::DeviceAnswer, UserError> {
        let touched = touched_by(&request);
        let done = self.done(request, ticket);
        // A failed request may have changed something too (a resume whose swap went through).
        let settled = self.ops.settle(touched.as_ref());
        let done = done?;
        settled.map(|()| done)
    }

    fn version(&mut self, _: api::Version) -> Result<api::VersionAnswer, UserError> {
        Ok(api::VersionAnswer {
            version: self.ops.version(),
            interface_version: INTERFACE_VERSION.to_owned(),
            driver_version: DRIVER_VERSION.to_owned(),
        })
    }

    fn list(&mut self, _: api::List) -> Result<api::ListAnswer, UserError> {
        match self.asker.ask(Request::List, None)? {
            Reply::List(devices) => {
                Ok(api::ListAnswer { devices: devices.iter().map(api::Device::from).collect() })
            }
            other => Err(unexpected(&other)),
        }
    }

    fn create(&mut self, call: api::Create) -> Result<api::DeviceAnswer, UserError> {
        let name = name(&call.name)?;
        // The kernel takes an empty uuid as none.
        let uuid = call.uuid.as_deref().filter(|text| !text.is_empty()).map(uuid).transpose()?;
        self.change(Request::Create { name, uuid, minor: call.minor }, None)
    }

    fn load(&mut self, call: api::Load) -> Result<api::DeviceAnswer, UserError> {
        let key = call.device.key()?;
        let device = self.ops.load(&key, &call.table, call.read_only)?;
        self.ops.settle(Some(&key))?;
        Ok(device_answer(Some(&device)))
    }

    fn suspend(&mut self, call: api::Suspend) -> Result<api::DeviceAnswer, UserError> {
        let options =
            suspend_options(call.noflush, call.deadline_ms, call.on_timeout, call.reason)?;
        let (device, ticket) = (call.device.key()?, self.asker.ticket());
        self.change(Request::Suspend { device, options, ticket }, Some(ticket))
    }

    fn resume(&mut self, call: api::Resume) -> Result<api::DeviceAnswer, UserError> {
        let options =
            suspend_options(call.noflush, call.deadline_ms, call.on_timeout, call.reason)?;
        let (device, ticket) = (call.device.key()?, self.asker.ticket());
        self.change(Request::Resume { device, options, ticket }, Some(ticket))
    }

    fn message(&mut self, call: api::Message) -> Result<api::TextAnswer, UserError> {
        let device = call.device.key()?;
        if call.words.is_empty() {
            return Err(UserError::new(ErrorCode::BadMessage, "the message has no words"));
        }
        if call.words[0].eq_ignore_ascii_case("@cancel_deferred_remove") {
            if call.words.len() != 1 {
                let text = "@cancel_deferred_remove stands alone";
                return Err(UserError::new(ErrorCode::BadMessage, text));
            }
            self.change(Request::CancelDeferredRemove { device }, None)?;
            return Ok(api::TextAnswer { text: None });
        }
        let request = Request::Message { device, sector: call.sector, words: call.words };
        match self.asker.ask(request, None)? {
            Reply::Text(text) => Ok(api::TextAnswer { text }),
            Reply::Done(_) => Ok(api::TextAnswer { text: None }),
            other => Err(unexpected(&other)),
        }
    }

    fn table_status(&mut self, call: api::TableStatus) -> Result<api::LinesAnswer, UserError> {
        let kind = match call.kind.as_deref() {
            None | Some("table") => StatusKind::Table,
            Some("status") => StatusKind::Info,
            Some(_) => return Err(parameter("kind", "table or status")),
        };
        let device = call.device.key()?;
        let request = Request::TableStatus { device, inactive: call.inactive, kind };
        match self.asker.ask(request, None)? {
            Reply::Lines { device, lines } => Ok(api::LinesAnswer {
                device: api::Device::from(&*device),
                lines: lines.iter().map(api::Line::from).collect(),
            }),
            other => Err(unexpected(&other)),
        }
    }

    fn deps(&mut self, call: api::Deps) -> Result<api::DepsAnswer, UserError> {
        let request = Request::Deps { device: call.device.key()?, inactive: call.inactive };
        match self.asker.ask(request, None)? {
            Reply::Deps { device, deps } => Ok(api::DepsAnswer {
                device: api::Device::from(&*device),
                deps: deps
                    .into_iter()
                    .map(|(number, shown)| api::Dependency {
                        major: number.map(|(major, _)| major),
                        minor: number.map(|(_, minor)| minor),
                        shown,
                    })
                    .collect(),
            }),
            other => Err(unexpected(&other)),
        }
    }

    fn info(&mut self, call: api::Info) -> Result<api::InfoAnswer, UserError> {
        let key = call.device.key()?;
        let gauges = match self.asker.ask(Request::Gauges { device: key.clone() }, None)? {
            Reply::Gauges(gauges) => gauges,
            other => return Err(unexpected(&other)),
        };
        let device = match &gauges.device {
            Some(device) => api::Device::from(device),
            None => self
                .done(Request::Status { device: key }, None)?
                .device
                .ok_or_else(|| UserError::new(ErrorCode::NoSuchDevice, "the device is gone"))?,
        };
        Ok(api::InfoAnswer { device, gauges: api::Gauges::from(&*gauges) })
    }

    fn events(&mut self, call: api::Events) -> Result<api::DeviceAnswer, UserError> {
        if !self.call.more {
            return Err(parameter("more", "a call with \"more\": true, since answers follow"));
        }
        let key = call.device.key()?;
        let mut seen = match call.event_nr {
            Some(event_nr) => event_nr,
            None => {
                let now = self.done(Request::Status { device: key.clone() }, None)?;
                let event_nr = now.device.as_ref().map_or(0, |device| device.event_nr);
                if !self.emit_device(&now) {
                    return Ok(now);
                }
                event_nr
            }
        };
        loop {
            let ticket = self.asker.ticket();
            let request = Request::Wait { device: key.clone(), event_nr: seen, ticket };
            let answer = match self.done(request, Some(ticket)) {
                // Gone: the stream has its end.
                Err(error) if error.code() == ErrorCode::NoSuchDevice => {
                    return Ok(api::DeviceAnswer::default());
                }
                other => other?,
            };
            match &answer.device {
                Some(device) if device.event_nr != seen => seen = device.event_nr,
                Some(_) | None => return Ok(answer),
            }
            if !self.emit_device(&answer) {
                return Ok(answer);
            }
        }
    }

    fn unexport(&mut self, call: api::Unexport) -> Result<api::Empty, UserError> {
        self.ops.unexport(&call.name)?;
        self.ops.settle(None)?;
        Ok(api::Empty {})
    }

    fn node(&mut self, call: api::Node) -> Result<api::NodeAnswer, UserError> {
        let request = Request::Status { device: call.device.key()? };
        let Reply::Done(Some(device)) = self.asker.ask(request, None)? else {
            return Ok(api::NodeAnswer::default());
        };
        let found = self.ops.nodes().into_iter().find(|node| node.minor == device.minor);
        Ok(found.map_or_else(api::NodeAnswer::default, |node| {
            let (major, minor) = node.number.unzip();
            api::NodeAnswer { path: Some(node.path), major, minor }
        }))
    }

    fn dm_ioctl(&mut self, call: api::DmIoctl) -> Result<api::DmIoctlAnswer, UserError> {
        let input = base64::decode(&call.data).ok_or_else(|| parameter("data", "base64"))?;
        let ioctl::Outcome { errno, bytes, why } =
            ioctl::run(call.command, &input, self.ops, self.asker);
        Ok(api::DmIoctlAnswer { errno, data: base64::encode(&bytes), why })
    }

    fn dm_poll(&mut self, _: api::DmPoll) -> Result<api::DmPollAnswer, UserError> {
        if !self.call.more {
            return Err(parameter("more", "a call with \"more\": true, since answers follow"));
        }
        let number = |reply: Reply| match reply {
            Reply::Number(event_nr) => Ok(api::DmPollAnswer { event_nr }),
            other => Err(unexpected(&other)),
        };
        let now = number(self.asker.ask(Request::GlobalEvent, None)?)?;
        let value = serde_json::to_value(&now).expect("invariant: answers have string keys only");
        if !self.asker.emit(value) {
            return Ok(now);
        }
        let ticket = self.asker.ticket();
        let request = Request::WaitGlobal { event_nr: now.event_nr, ticket };
        match self.asker.ask_while_idle(request, ticket) {
            Err(error) if error.code() == ErrorCode::SuspendCancelled => Ok(now),
            other => number(other?),
        }
    }

    fn emit_device(&mut self, answer: &api::DeviceAnswer) -> bool {
        let value = serde_json::to_value(answer).expect("invariant: answers have string keys only");
        self.asker.emit(value)
    }

    fn export(&mut self, call: api::Export) -> Result<api::ExportAnswer, UserError> {
        let order = ExportOrder {
            device: call.device.key()?,
            place: ExportPlace::one_of(&[
                (ExportKind::Nbd, call.nbd.as_deref()),
                (ExportKind::Fuse, call.fuse.as_deref()),
                (ExportKind::VhostUser, call.vhost_user.as_deref()),
                (ExportKind::Ublk, call.ublk.as_deref()),
            ])?,
            name: call.name,
            read_only: call.read_only,
            tls: call.tls,
            lanes: call.lanes,
        };
        let export = self.ops.export(order)?;
        self.ops.settle(None)?;
        Ok(api::ExportAnswer { export })
    }
}

/// The device whose tables a request may change.
pub(crate) fn touched_by(request: &Request) -> Option<DeviceKey> {
    match request {
        Request::Load { device, .. }
        | Request::Clear { device }
        | Request::Suspend { device, .. }
        | Request::Resume { device, .. } => Some(device.clone()),
        Request::Create { .. }
        | Request::Remove { .. }
        | Request::RemoveAll { .. }
        | Request::CancelDeferredRemove { .. }
        | Request::Rename { .. }
        | Request::SetUuid { .. }
        | Request::Message { .. }
        | Request::Status { .. }
        | Request::TableStatus { .. }
        | Request::Deps { .. }
        | Request::LiveTable { .. }
        | Request::List
        | Request::GlobalEvent
        | Request::WaitGlobal { .. }
        | Request::SetGeometry { .. }
        | Request::Wait { .. }
        | Request::Gauges { .. }
        | Request::Lookup { .. }
        | Request::Open { .. }
        | Request::Close { .. }
        | Request::Cancel { .. } => None,
    }
}

fn device_answer(device: Option<&DeviceStatus>) -> api::DeviceAnswer {
    api::DeviceAnswer { device: device.map(api::Device::from) }
}

fn name(text: &str) -> Result<DmName, UserError> {
    DmName::new(text).map_err(|error| {
        UserError::new(ErrorCode::BadName, format!("'{text}' is no valid name: {error}"))
    })
}

fn uuid(text: &str) -> Result<DmUuid, UserError> {
    DmUuid::new(text).map_err(|error| {
        UserError::new(ErrorCode::BadName, format!("'{text}' is no valid uuid: {error}"))
    })
}

fn parameter(field: &str, expected: &str) -> UserError {
    UserError::new(ErrorCode::BadParameter, format!("{field}: expected {expected}"))
}

fn suspend_options(
    noflush: bool,
    deadline_ms: Option<u64>,
    on_timeout: Option<String>,
    reason: Option<String>,
) -> Result<SuspendOptions, UserError> {
    let on_timeout = match on_timeout.as_deref() {
        None | Some("resume") => OnTimeout::Resume,
        Some("fail") => OnTimeout::Fail,
        Some(_) => return Err(parameter("on_timeout", "resume or fail")),
    };
    Ok(SuspendOptions {
        noflush,
        deadline: deadline_ms.map(Nanos::from_millis),
        on_timeout,
        reason: reason.unwrap_or_default(),
    })
}

pub(crate) fn unexpected(reply: &Reply) -> UserError {
    UserError::new(
        ErrorCode::Internal,
        format!("the life cycle answered something else: {reply:?}"),
    )
}
