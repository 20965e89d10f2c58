//! What the control side needs of a daemon: the life cycle, table building, exports.
//!
//! The binary implements [`ControlOps`] over its running engine; tests and the fuzzer implement it
//! without one. Everything but [`ControlOps::post`] may block its caller (tables open files), so
//! it runs on the client's own thread and holds up nobody else.
//!
//! The tricky case is a request whose answer never comes because the engine has ended: the sink is
//! dropped unanswered then, and the caller gets an error instead of waiting for ever.

use crate::api::{ExportState, PathPolicy, PathStatus, TargetType, Tls};
use crate::place::ExportPlace;
use std::num::NonZeroU16;
use std::sync::mpsc;
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::{DeviceKey, DeviceStatus, Reply, ReplySink, Request, Ticket};
use udm_core::table::{TableLine, parse_table};

/// What to serve and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOrder {
    /// The device.
    pub device: DeviceKey,
    /// How and where.
    pub place: ExportPlace,
    /// Name of the export; the device's name if `None`.
    pub name: Option<String>,
    /// Refuse writes.
    pub read_only: bool,
    /// Speak TLS; over NBD only.
    pub tls: Option<Tls>,
    /// Use not more lanes than this; all if left out.
    pub lanes: Option<NonZeroU16>,
}

/// Where a mapped device can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNode {
    /// The mapped device's minor number.
    pub minor: u32,
    /// A block device of the kernel's if there is one on it, else a file with the device's bytes.
    pub path: String,
    /// Major and minor number of that block device.
    pub number: Option<(u32, u32)>,
}

/// A daemon as the control side sees it.
pub trait ControlOps: Send + Sync {
    /// Hands a request to the life cycle; the sink is called once, from another thread.
    fn post(&self, request: Request, reply: ReplySink);

    /// A number no other waiting request has, to cancel one by.
    fn ticket(&self) -> Ticket;

    /// Called after a request that may have changed something and before its caller hears of it:
    /// the moment to make the change durable. `touched` is the device whose tables may differ now.
    ///
    /// # Errors
    /// The change has happened but will not survive the daemon; the caller is told so.
    fn settle(&self, touched: Option<&DeviceKey>) -> Result<(), UserError> {
        let _ = touched;
        Ok(())
    }

    /// Builds a table from text and puts it into the inactive slot.
    ///
    /// # Errors
    /// Everything a table line can have wrong, with line and field; then nothing has changed.
    fn load(
        &self,
        device: &DeviceKey,
        text: &str,
        read_only: bool,
    ) -> Result<Box<DeviceStatus>, UserError> {
        // A wrong name is told before a wrong table.
        self.request(Request::Status { device: device.clone() })?;
        self.load_lines(device, &parse_table(text)?, read_only)
    }

    /// Builds a table from parsed lines and puts it into the inactive slot.
    ///
    /// # Errors
    /// As [`ControlOps::load`], without those of the text.
    fn load_lines(
        &self,
        device: &DeviceKey,
        lines: &[TableLine],
        read_only: bool,
    ) -> Result<Box<DeviceStatus>, UserError>;

    /// The target types, the last registered first.
    fn targets(&self) -> Vec<TargetType>;

    /// Version of the daemon.
    fn version(&self) -> String;

    /// Serves a device.
    ///
    /// # Errors
    /// `ExportTaken`, `BadAddress`, `ListenFailed`, or the device is not there.
    fn export(&self, order: ExportOrder) -> Result<ExportState, UserError>;

    /// Ends an export; requests under way are answered first.
    ///
    /// # Errors
    /// `NoSuchExport`.
    fn unexport(&self, name: &str) -> Result<(), UserError>;

    /// What is served where, ordered by name.
    fn exports(&self) -> Vec<ExportState>;

    /// The mapped devices that can be opened somewhere, at most one place each.
    fn nodes(&self) -> Vec<DeviceNode> {
        Vec::new()
    }

    /// The paths of one multipath device, or of all.
    ///
    /// # Errors
    /// The device is not there.
    fn paths(&self, device: Option<&DeviceKey>) -> Result<Vec<PathStatus>, UserError>;

    /// Has the paths of a device checked from now on as `policy` says, or not any more.
    ///
    /// # Errors
    /// The device is not there, or the policy makes no sense.
    fn check_paths(&self, device: &DeviceKey, policy: Option<PathPolicy>) -> Result<(), UserError>;

    /// Begins the end of the daemon; returns at once.
    fn shutdown(&self);

    /// Posts a request and waits for its answer.
    ///
    /// # Errors
    /// The request's own, or `Internal` if the engine ended without an answer.
    fn request(&self, request: Request) -> Result<Reply, UserError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.post(
            request,
            Box::new(move |reply| {
                // The receiver waits below, so the only way this fails is a caller that panicked.
                let _ = sender.send(reply);
            }),
        );
        receiver.recv().unwrap_or_else(|_| Err(ended()))
    }
}

/// The error of a request that the engine dropped.
pub(crate) fn ended() -> UserError {
    UserError::new(ErrorCode::NoDaemon, "the daemon is shutting down")
}
