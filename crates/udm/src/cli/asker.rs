//! The command's end of the conversation: connect once, ask, know the devices' names.
//!
//! Every dmsetup verb goes through here. The connection is made at the first question, so that
//! verbs that need no daemon (explain, completions) need none. [`Chosen`] turns dmsetup's ways
//! of naming a device into selectors and into the words of its error lines.
//!
//! Never retries a call by itself: after a lost connection nobody knows whether it was done.

use super::args::DeviceArgs;
use super::failure::Failure;
use std::path::PathBuf;
use udm_control::Client;
use udm_control::api::{self, Device, Method, Selector};
use udm_control::render::Subject;
use udm_core::error::UserError;
use udm_core::lifecycle::DM_MAJOR;

/// A connection that is made when it is first needed.
pub(crate) struct Daemon {
    socket: PathBuf,
    client: Option<Client>,
}

impl Daemon {
    pub(crate) fn new(socket: PathBuf) -> Daemon {
        Daemon { socket, client: None }
    }

    /// The connection.
    pub(crate) fn client(&mut self) -> Result<&mut Client, UserError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.socket)?,
        };
        Ok(self.client.insert(client))
    }

    /// Asks.
    pub(crate) fn ask<M: Method>(&mut self, method: &M) -> Result<M::Answer, UserError> {
        self.client()?.call(method)
    }

    /// Asks about a device; failures are in dmsetup's words.
    pub(crate) fn ask_dm<M: Method>(
        &mut self,
        verb: &str,
        subject: &Subject<'_>,
        method: &M,
    ) -> Result<M::Answer, Failure> {
        self.client()
            .map_err(Failure::from)?
            .call(method)
            .map_err(|error| Failure::ioctl(verb, subject, error))
    }

    /// All devices.
    pub(crate) fn devices(&mut self) -> Result<Vec<Device>, Failure> {
        Ok(self.ask(&api::List {})?.devices)
    }
}

/// One device as the user named it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) selector: Selector,
    name: String,
    uuid: String,
    number: Option<(u32, u32)>,
}

impl Chosen {
    pub(crate) fn named(name: &str) -> Chosen {
        Chosen { selector: Selector::name(name), name: name.to_owned(), ..Chosen::default() }
    }

    pub(crate) fn with_uuid(uuid: &str) -> Chosen {
        let selector = Selector { uuid: Some(uuid.to_owned()), ..Selector::default() };
        Chosen { selector, uuid: uuid.to_owned(), ..Chosen::default() }
    }

    pub(crate) fn with_minor(minor: u32) -> Chosen {
        let selector = Selector { minor: Some(minor), ..Selector::default() };
        Chosen { selector, number: Some((DM_MAJOR, minor)), ..Chosen::default() }
    }

    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject { name: &self.name, uuid: &self.uuid, number: self.number }
    }
}

impl DeviceArgs {
    /// The devices named; empty if none was.
    pub(crate) fn chosen(&self) -> Vec<Chosen> {
        match (&self.uuid, self.minor) {
            (Some(uuid), _) => vec![Chosen::with_uuid(uuid)],
            (None, Some(minor)) => vec![Chosen::with_minor(minor)],
            (None, None) => self.names.iter().map(|name| Chosen::named(name)).collect(),
        }
    }

    /// The devices named, of which there must be one at least.
    pub(crate) fn required(&self) -> Result<Vec<Chosen>, Failure> {
        let chosen = self.chosen();
        if chosen.is_empty() {
            return Err(Failure::usage("No device specified.\n"));
        }
        Ok(chosen)
    }
}
