//! The caller's end: a blocking client for commands and tests.
//!
//! One connection, one call at a time. Every method of `api/` is a struct; [`Client::call`] sends
//! it and gives back its own answer type or the daemon's error as it was made there.
//!
//! Never retries by itself: after a broken connection nobody knows whether the call was done.
//!
//! The tricky case is an answer in several messages (`Events`): [`Client::stream`] hands out each
//! one and stops at the last, or when its callback says enough; the connection is of no further
//! use in that case and is dropped with the client.

use crate::api::{Method, WireError, from_wire};
use crate::errno;
use crate::wire::{Answer, Call, MessageReader, encode};
use serde_json::Value;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::Path;
use udm_core::error::{ErrorCode, UserError};

/// Bytes read at once.
const READ_LEN_BYTES: usize = 64 << 10;

/// A connection to a daemon.
pub struct Client {
    stream: UnixStream,
    reader: MessageReader,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// `NoDaemon` with the system's reason.
    pub fn connect(path: &Path) -> Result<Client, UserError> {
        let stream = UnixStream::connect(path).map_err(|error| {
            let what = format!("connect to {}", path.display());
            errno::system(ErrorCode::NoDaemon, &what, &error)
                .hint("start a daemon with: udm daemon; or name its socket with --socket")
        })?;
        Ok(Client { stream, reader: MessageReader::default() })
    }

    /// Calls a method and waits for its answer.
    ///
    /// # Errors
    /// The daemon's own error, or `NoDaemon` if it went away.
    pub fn call<M: Method>(&mut self, method: &M) -> Result<M::Answer, UserError> {
        self.send(method, false)?;
        let answer = self.receive()?;
        parse::<M>(answer)
    }

    /// Calls a method that answers more than once. `each` may end it early.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn stream<M: Method>(
        &mut self,
        method: &M,
        mut each: impl FnMut(M::Answer) -> ControlFlow<()>,
    ) -> Result<(), UserError> {
        self.send(method, true)?;
        loop {
            let answer = self.receive()?;
            let last = !answer.continues;
            if each(parse::<M>(answer)?).is_break() || last {
                return Ok(());
            }
        }
    }

    /// The connection, to wait on together with other things.
    pub fn socket(&self) -> &UnixStream {
        &self.stream
    }

    fn send<M: Method>(&mut self, method: &M, more: bool) -> Result<(), UserError> {
        let parameters = match serde_json::to_value(method) {
            Ok(Value::Object(map)) => Some(map),
            Ok(_) | Err(_) => None,
        };
        let call = Call {
            method: format!("{}.{}", crate::INTERFACE, M::NAME),
            parameters,
            more,
            ..Call::default()
        };
        self.stream.write_all(&encode(&call)).map_err(|error| lost(&error))
    }

    fn receive(&mut self) -> Result<Answer, UserError> {
        let mut bytes = vec![0; READ_LEN_BYTES];
        loop {
            let message =
                self.reader.next_message().map_err(|error| strange(&error.to_string()))?;
            if let Some(message) = message {
                return serde_json::from_slice(&message)
                    .map_err(|error| strange(&error.to_string()));
            }
            let count = self.stream.read(&mut bytes).map_err(|error| lost(&error))?;
            if count == 0 {
                return Err(UserError::new(
                    ErrorCode::NoDaemon,
                    "the daemon closed the connection before it answered",
                ));
            }
            self.reader.push(&bytes[..count]);
        }
    }
}

fn parse<M: Method>(answer: Answer) -> Result<M::Answer, UserError> {
    let parameters = answer.parameters.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    let Some(name) = answer.error else {
        return serde_json::from_value(parameters).map_err(|error| strange(&error.to_string()));
    };
    match serde_json::from_value::<WireError>(parameters.clone()) {
        Ok(wire) if name == format!("{}.Error", crate::INTERFACE) => Err(from_wire(&wire)),
        Ok(_) | Err(_) => Err(UserError::new(
            ErrorCode::UnknownMethod,
            format!("the daemon answered {name} {parameters}"),
        )
        .hint("is the daemon older than this udm?")),
    }
}

fn lost(error: &std::io::Error) -> UserError {
    errno::system(ErrorCode::NoDaemon, "talk to the daemon", error)
}

fn strange(what: &str) -> UserError {
    UserError::new(ErrorCode::BadRequest, format!("the daemon's answer is not understood: {what}"))
}
