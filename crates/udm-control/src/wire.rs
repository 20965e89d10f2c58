//! The varlink wire: JSON objects, each ended by a NUL byte, on a byte stream.
//!
//! Pure code used by both ends. [`MessageReader`] takes bytes as they come and gives whole
//! messages; [`Call`] and [`Answer`] are the two shapes a message has. Descriptors that arrive
//! with bytes are the connection's business, not this file's.
//!
//! Bounds: a message has at most [`MESSAGE_LEN_BYTES_MAX`] bytes. Beyond it the stream is given up,
//! since nothing that follows can be trusted to begin at a message's begin.
//!
//! ```text
//! {"method":"org.udm.control.List","parameters":{}}\0
//! {"parameters":{"devices":[]}}\0
//! ```
//!
//! The tricky case is a NUL that comes one byte at a time: the reader remembers how far it has
//! searched, so a slow sender does not make it search the same megabytes again and again.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;

/// Longest message in bytes without its NUL. 64 MiB of table text is the most a load may carry.
pub const MESSAGE_LEN_BYTES_MAX: usize = (64 << 20) + (1 << 16);

/// A method call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Interface and method: `org.udm.control.List`.
    pub method: String,
    /// Its parameters, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Map<String, Value>>,
    /// The caller takes several answers.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more: bool,
    /// The caller wants no answer.
    #[serde(default, skip_serializing_if = "is_false")]
    pub oneway: bool,
    /// The caller wants to take the connection over; no method of ours does that.
    #[serde(default, skip_serializing_if = "is_false")]
    pub upgrade: bool,
}

/// An answer to a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// What was asked for, or the details of the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    /// More answers follow.
    #[serde(default, skip_serializing_if = "is_false")]
    pub continues: bool,
    /// The name of the error, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// A message longer than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a message has more than {MESSAGE_LEN_BYTES_MAX} bytes")
    }
}

impl std::error::Error for TooLong {}

/// Bytes to messages.
#[derive(Debug, Default)]
pub struct MessageReader {
    bytes: Vec<u8>,
    /// Where the first message not yet given begins.
    start: usize,
    /// No NUL lies between `start` and here.
    searched: usize,
}

impl MessageReader {
    /// Adds bytes from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
            self.searched = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message without its NUL; `None` if more bytes are needed.
    pub fn next_message(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let found = self.bytes[self.searched..].iter().position(|byte| *byte == 0);
        let end = found.map_or(self.bytes.len(), |offset| self.searched + offset);
        if end - self.start > MESSAGE_LEN_BYTES_MAX {
            return Err(TooLong);
        }
        self.searched = end;
        if found.is_none() {
            self.compact();
            return Ok(None);
        }
        let message = self.bytes[self.start..end].to_vec();
        self.start = end + 1;
        self.searched = self.start;
        Ok(Some(message))
    }

    /// True if a message has begun and not ended.
    pub fn in_message(&self) -> bool {
        self.start < self.bytes.len()
    }

    /// Drops what was given away, so that the buffer holds one message at most.
    fn compact(&mut self) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
    }
}

/// A message's bytes with its NUL.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec(message).expect("invariant: our messages have string keys only");
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::{Answer, Call, MESSAGE_LEN_BYTES_MAX, MessageReader, TooLong, encode};
    use serde_json::json;

    #[test]
    fn messages_come_whole_however_the_bytes_are_cut() {
        let stream = b"{\"a\":1}\0\0{\"b\":2}\0{\"c\"";
        for cut in 1..stream.len() {
            let mut reader = MessageReader::default();
            let mut messages = Vec::new();
            for chunk in stream.chunks(cut) {
                reader.push(chunk);
                while let Some(message) = reader.next_message().expect("short") {
                    messages.push(message);
                }
            }
            assert_eq!(messages, [&b"{\"a\":1}"[..], b"", b"{\"b\":2}"], "cut {cut}");
            assert!(reader.in_message());
        }
    }

    #[test]
    fn a_message_at_the_limit_passes_and_one_byte_more_does_not() {
        let mut reader = MessageReader::default();
        reader.push(&vec![b' '; MESSAGE_LEN_BYTES_MAX]);
        assert_eq!(reader.next_message(), Ok(None));
        reader.push(&[0]);
        assert_eq!(
            reader.next_message().expect("fits").map(|m| m.len()),
            Some(MESSAGE_LEN_BYTES_MAX)
        );
        reader.push(&vec![b' '; MESSAGE_LEN_BYTES_MAX + 1]);
        assert_eq!(reader.next_message(), Err(TooLong));
    }

    #[test]
    fn calls_and_answers_leave_out_what_is_not_said() {
        let call = Call { method: "x.Y".into(), ..Call::default() };
        assert_eq!(encode(&call), b"{\"method\":\"x.Y\"}\0");
        let answer = Answer { parameters: Some(json!({})), ..Answer::default() };
        assert_eq!(encode(&answer), b"{\"parameters\":{}}\0");
        let full: Call =
            serde_json::from_str(r#"{"method":"a.B","parameters":{"x":1},"more":true}"#)
                .expect("ok");
        assert!(full.more && !full.oneway);
    }
}
