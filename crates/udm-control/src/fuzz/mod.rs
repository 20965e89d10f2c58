//! Entries for the fuzzer: any bytes as what a client sent.
//!
//! The bytes go through the reader, the parser and the dispatch, against a daemon that has no
//! engine and refuses every request; `ioctls.rs` has those of the ioctl face. What must hold: no
//! panic, no growth beyond the input, and every message gets an answer that parses again.

mod ioctls;
pub(crate) mod model;

pub use ioctls::ioctls;

use crate::api::{ExportState, PathPolicy, PathStatus, TargetType};
use crate::connection::answer_of;
use crate::dispatch::{Asker, CallError, call};
use crate::ops::{ControlOps, ExportOrder};
use crate::wire::{Answer, Call, MessageReader, encode};
use serde_json::Value;
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::{DeviceKey, DeviceStatus, Reply, ReplySink, Request, Ticket};
use udm_core::table::TableLine;

struct NoEngine;

fn refused() -> UserError {
    UserError::new(ErrorCode::NoSuchDevice, "there is no device here")
}

impl ControlOps for NoEngine {
    fn post(&self, request: Request, reply: ReplySink) {
        if matches!(request, Request::List) {
            reply(Ok(Reply::List(Vec::new())));
        } else {
            reply(Err(refused()));
        }
    }

    fn ticket(&self) -> Ticket {
        1
    }

    fn load_lines(
        &self,
        _: &DeviceKey,
        _: &[TableLine],
        _: bool,
    ) -> Result<Box<DeviceStatus>, UserError> {
        Err(refused())
    }

    fn targets(&self) -> Vec<TargetType> {
        Vec::new()
    }

    fn version(&self) -> String {
        String::new()
    }

    fn export(&self, _: ExportOrder) -> Result<ExportState, UserError> {
        Err(refused())
    }

    fn unexport(&self, _: &str) -> Result<(), UserError> {
        Err(refused())
    }

    fn exports(&self) -> Vec<ExportState> {
        Vec::new()
    }

    fn paths(&self, _: Option<&DeviceKey>) -> Result<Vec<PathStatus>, UserError> {
        Ok(Vec::new())
    }

    fn check_paths(&self, _: &DeviceKey, _: Option<PathPolicy>) -> Result<(), UserError> {
        Err(refused())
    }

    fn shutdown(&self) {}
}

struct Plain;

impl Asker for Plain {
    fn ticket(&mut self) -> Ticket {
        NoEngine.ticket()
    }

    fn ask(&mut self, request: Request, _: Option<Ticket>) -> Result<Reply, UserError> {
        NoEngine.request(request)
    }

    fn ask_while_idle(&mut self, request: Request, _: Ticket) -> Result<Reply, UserError> {
        NoEngine.request(request)
    }

    fn emit(&mut self, _: Value) -> bool {
        true
    }
}

/// Takes bytes as a client's stream.
///
/// # Panics
/// If an answer does not survive its own wire format: a bug.
pub fn message(bytes: &[u8]) {
    let mut reader = MessageReader::default();
    reader.push(bytes);
    reader.push(&[0]);
    while let Ok(Some(message)) = reader.next_message() {
        let result = match serde_json::from_slice::<Call>(&message) {
            Ok(parsed) => call(&parsed, &NoEngine, &mut Plain),
            Err(error) => {
                Err(CallError::User(UserError::new(ErrorCode::BadRequest, error.to_string())))
            }
        };
        let mut sent = encode(&answer_of(result));
        sent.pop();
        serde_json::from_slice::<Answer>(&sent).expect("invariant: our answers parse");
    }
}

#[cfg(test)]
mod tests {
    use super::message;
    use crate::api::METHODS;

    #[test]
    fn every_method_takes_odd_parameters_without_a_panic() {
        let odd = [
            "{}",
            "[]",
            "1",
            "null",
            r#"{"device":{}}"#,
            r#"{"device":{"name":"a"}}"#,
            r#"{"device":{"name":"a"},"sector":0,"words":[],"table":"0 8","name":"","uuid":"x"}"#,
            r#"{"device":{"name":"a"},"table":"0 8 zero"}"#,
        ];
        for name in METHODS.iter().chain(&["Nothing", ""]) {
            for parameters in odd {
                let text =
                    format!(r#"{{"method":"org.udm.control.{name}","parameters":{parameters}}}"#);
                message(text.as_bytes());
                for cut in 0..text.len() {
                    message(&text.as_bytes()[..cut]);
                }
            }
        }
    }
}
