//! What a verb prints when it succeeds: text for people, or one JSON object.
//!
//! A verb collects; it is printed at its end, in one piece, so that a reader of a pipe never sees
//! half an answer followed by an error. A closed pipe (`udm ls | head`) is no error.

use super::failure::{Failure, SCHEMA_VERSION};
use serde_json::{Map, Value};
use std::io::Write;

/// Collects what goes to the output stream.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) json: bool,
    text: String,
    fields: Map<String, Value>,
}

impl Output {
    pub(crate) fn new(json: bool) -> Output {
        Output { json, ..Output::default() }
    }

    /// Adds text for people.
    pub(crate) fn text(&mut self, text: &str) {
        self.text += text;
    }

    /// Sets a field of the JSON object.
    pub(crate) fn field(&mut self, name: &str, value: &impl serde::Serialize) {
        let value = serde_json::to_value(value).expect("invariant: answers have string keys only");
        self.fields.insert(name.to_owned(), value);
    }

    /// Adds to an array of the JSON object.
    pub(crate) fn push(&mut self, name: &str, value: &impl serde::Serialize) {
        let value = serde_json::to_value(value).expect("invariant: answers have string keys only");
        let list = self.fields.entry(name).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(list) = list {
            list.push(value);
        }
    }

    /// What `--json` would print, taken; for tests of verbs.
    #[cfg(test)]
    pub(crate) fn take_json(&mut self) -> Value {
        Value::Object(std::mem::take(&mut self.fields))
    }

    /// Prints and forgets what was collected.
    pub(crate) fn print(&mut self) -> Result<(), Failure> {
        let mut text = std::mem::take(&mut self.text);
        if self.json {
            let mut object = Map::new();
            object.insert("schema_version".to_owned(), Value::from(SCHEMA_VERSION));
            object.append(&mut self.fields);
            text = serde_json::to_string_pretty(&object)
                .expect("invariant: answers have string keys only");
            text.push('\n');
        }
        let mut stream = std::io::stdout().lock();
        match stream.write_all(text.as_bytes()).and_then(|()| stream.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure {
                lines: Some(format!("cannot write the output: {error}\n")),
                error: None,
                exit: 1,
            }),
            _ => Ok(()),
        }
    }
}
