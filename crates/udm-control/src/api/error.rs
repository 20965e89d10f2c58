//! The one error of the interface, `org.udm.control.Error`, and the way there and back.
//!
//! A [`UserError`] loses nothing on the wire: code, class, place, message and hint arrive at the
//! client as they were made, so a command prints the same words whether the daemon runs in the
//! same process or not. A daemon that is newer than its client may send a code the client does not
//! know; the message then carries it and the class is kept.

use crate::errno;
use serde::{Deserialize, Serialize};
use udm_core::error::{ErrorCode, ErrorKind, UserError};

/// The parameters of the error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// Stable code.
    pub code: String,
    /// Class, for instance `EINVAL`.
    pub kind: String,
    /// The class's number.
    pub errno: i32,
    /// Table line, counted from 1.
    pub line: Option<u32>,
    /// Field of the line, counted from 1.
    pub field: Option<u32>,
    /// What is wrong.
    pub message: String,
    /// What to try next; may be empty.
    pub hint: String,
}

/// An error as it goes out.
pub fn to_wire(error: &UserError) -> WireError {
    WireError {
        code: error.code().as_str().to_owned(),
        kind: errno::name(error.kind()).to_owned(),
        errno: errno::number(error.kind()),
        line: error.line(),
        field: error.field(),
        message: error.message().to_owned(),
        hint: error.hint_text().to_owned(),
    }
}

/// An error as it came in.
pub fn from_wire(wire: &WireError) -> UserError {
    let known = ErrorCode::ALL.iter().copied().find(|code| code.as_str() == wire.code);
    let mut error = match known {
        Some(code) => UserError::new(code, &*wire.message),
        None => UserError::new(
            ErrorCode::Internal,
            format!("{} ({}, a code this udm does not know)", wire.message, wire.code),
        ),
    };
    if let Some(line) = wire.line {
        error = error.at_line(line);
    }
    if let Some(field) = wire.field {
        error = error.at_field(field);
    }
    let kind = errno::kind_named(&wire.kind).unwrap_or(ErrorKind::Io);
    error.hint(&*wire.hint).of_kind(kind)
}

#[cfg(test)]
mod tests {
    use super::{WireError, from_wire, to_wire};
    use udm_core::error::{ErrorCode, ErrorKind, UserError};

    #[test]
    fn an_error_comes_back_as_it_went() {
        let error = UserError::new(ErrorCode::Gap, "a gap")
            .at_line(3)
            .at_field(1)
            .hint("try this")
            .of_kind(ErrorKind::NoSpace);
        assert_eq!(from_wire(&to_wire(&error)), error);
    }

    #[test]
    fn a_code_of_a_newer_daemon_keeps_its_class_and_words() {
        let wire = WireError {
            code: "XYZ-1".into(),
            kind: "EBUSY".into(),
            message: "no time".into(),
            ..WireError::default()
        };
        let error = from_wire(&wire);
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.message().contains("XYZ-1") && error.message().contains("no time"));
    }
}
