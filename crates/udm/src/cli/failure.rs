//! How a verb fails: the words for people and scripts, and the exit code.
//!
//! Verbs of dmsetup fail with dmsetup's lines first (`device-mapper: ... ioctl on ... failed: ...`,
//! `Command failed.`) and ours after them; our own verbs with ours only. With `--json` all of it is
//! one JSON object on the error stream. Exit codes: 1 for a failure, 2 for wrong usage (clap's
//! too), as for dmsetup where it agrees with itself.

use serde_json::json;
use udm_control::render::{COMMAND_FAILED, Subject, explained, failed_ioctl};
use udm_core::error::UserError;

/// Version of the JSON this binary prints.
pub const SCHEMA_VERSION: u32 = 1;

/// A failed verb.
#[derive(Debug, Default)]
pub struct Failure {
    /// dmsetup's lines before `Command failed.`; `None` for verbs dmsetup does not have.
    pub lines: Option<String>,
    /// What was wrong, if it was more than a line of dmsetup's says.
    pub error: Option<UserError>,
    /// The exit code.
    pub exit: u8,
}

impl From<UserError> for Failure {
    fn from(error: UserError) -> Failure {
        Failure { lines: None, error: Some(error), exit: 1 }
    }
}

impl Failure {
    /// A failed call on a device, as dmsetup reports it.
    pub fn ioctl(verb: &str, subject: &Subject<'_>, error: UserError) -> Failure {
        Failure::dm(failed_ioctl(verb, subject, &error), Some(error))
    }

    /// A failure with dmsetup's own line.
    pub fn dm(lines: impl Into<String>, error: Option<UserError>) -> Failure {
        Failure { lines: Some(lines.into()), error, exit: 1 }
    }

    /// Wrong usage that clap cannot see.
    pub fn usage(text: impl Into<String>) -> Failure {
        Failure { lines: Some(text.into()), error: None, exit: 2 }
    }

    /// Nothing to say, but another exit code (a command that `run` ran).
    pub fn silent(exit: u8) -> Failure {
        Failure { lines: None, error: None, exit }
    }

    /// The words for the error stream.
    pub fn text(&self) -> String {
        let mut text = self.lines.clone().unwrap_or_default();
        if self.lines.is_some() && self.exit == 1 {
            text += COMMAND_FAILED;
        }
        if let Some(error) = &self.error {
            text += &explained(error);
        }
        text
    }

    /// The same as JSON.
    pub fn json(&self) -> serde_json::Value {
        let error = match &self.error {
            Some(error) => serde_json::to_value(udm_control::api::to_wire(error))
                .expect("invariant: errors have string keys only"),
            None => json!({ "message": self.lines.as_deref().unwrap_or_default().trim_end() }),
        };
        json!({ "schema_version": SCHEMA_VERSION, "error": error })
    }
}
