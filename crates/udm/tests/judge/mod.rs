//! The judge: recorded answers of Linux, and ours to the same commands.
//!
//! A case (`tests/oracle/cases/TOPIC/NAME.case`) is a list of shell commands with what each printed
//! on Linux: exit code, both streams, and after it `info`, `table` (live and inactive) and `status`
//! of all devices. `ours.rs` runs the commands against a daemon of its own, through `udm exec`
//! and the unmodified dmsetup; `differences.rs` knows what may differ, and why. Both `cargo test`
//! (which needs no guest) and `cargo xtask oracle` (which records) use this folder.
//!
//! The kernel's `/dev/ramN` (1:N), `/dev/loopN` (7:N) and SCSI disks (8:N) are files here, `$RN`,
//! `$LN` and `$SN` in the commands. A file has no number: where a command gives one (`$S0N`) it
//! gets the path, and where the path is shown it is read as the number before comparing.
//!
//! The tricky case is a field that is not recorded: it is as after the step before, or empty.

#![allow(dead_code, reason = "the test and the command each use their own part")]

pub(crate) mod differences;
pub(crate) mod ours;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// What is recorded of a step, in the order it is written.
pub(crate) const FIELDS: [&str; 7] = ["rc", "out", "err", "info", "table", "inactive", "status"];
/// What is as after the step before unless the case says otherwise.
const LASTING: [&str; 4] = ["info", "table", "inactive", "status"];

/// A command and what it printed, without the last line's end.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Step {
    pub(crate) command: String,
    pub(crate) fields: BTreeMap<String, String>,
}

/// A recorded session.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Case {
    pub(crate) id: String,
    /// Lines before the first step: what it is about, where it was recorded.
    pub(crate) notes: Vec<String>,
    pub(crate) steps: Vec<Step>,
}

impl Case {
    /// Reads a case; every step has all lasting fields then.
    pub(crate) fn parse(id: &str, text: &str) -> Result<Case, String> {
        let mut case = Case { id: id.to_owned(), ..Case::default() };
        let mut fresh: Vec<&str> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(command) = line.strip_prefix("$ ") {
                let mut step = Step { command: command.to_owned(), ..Step::default() };
                if let Some(before) = case.steps.last() {
                    step.fields.extend(before.fields.clone());
                    step.fields.retain(|field, _| LASTING.contains(&field.as_str()));
                }
                case.steps.push(step);
                fresh.clear();
                continue;
            }
            let field = line.split_once('|').filter(|(field, _)| FIELDS.contains(field));
            match (case.steps.last_mut(), field, line.strip_prefix("# ")) {
                (Some(step), Some((field, text)), _) => {
                    let text = text.strip_prefix(' ').unwrap_or(text);
                    let whole = step.fields.entry(field.to_owned()).or_default();
                    if fresh.contains(&field) {
                        whole.push('\n');
                    } else {
                        whole.clear();
                        fresh.push(field);
                    }
                    whole.push_str(text);
                }
                (None, _, Some(note)) => case.notes.push(note.to_owned()),
                (_, _, _) => return Err(format!("{id}: what is this: {line}")),
            }
        }
        Ok(case)
    }

    /// Writes a case: of the lasting fields only what has changed.
    pub(crate) fn render(&self) -> String {
        let mut text: String = self.notes.iter().map(|note| format!("# {note}\n")).collect();
        let nothing = String::new();
        let mut before: Option<&Step> = None;
        for step in &self.steps {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "$ {}", step.command);
            for field in FIELDS {
                let now = step.fields.get(field).unwrap_or(&nothing);
                let was = match before {
                    Some(before) if LASTING.contains(&field) => before.fields.get(field),
                    Some(_) | None => None,
                };
                if now != was.unwrap_or(&nothing) {
                    for line in now.split('\n') {
                        let space = if line.is_empty() { "" } else { " " };
                        let _ = writeln!(text, "{field}|{space}{line}");
                    }
                }
            }
            before = Some(step);
        }
        text
    }

    /// What `replay.sh` left in a folder; `names` are texts to be replaced, longest first.
    pub(crate) fn collect(
        id: &str,
        commands: &[String],
        folder: &Path,
        names: &[(String, String)],
    ) -> Result<Case, String> {
        let mut case = Case { id: id.to_owned(), ..Case::default() };
        for (number, command) in commands.iter().enumerate() {
            let mut step = Step { command: command.clone(), ..Step::default() };
            for field in FIELDS {
                let Ok(bytes) = fs::read(folder.join(format!("{number}.{field}"))) else {
                    if !LASTING.contains(&field) {
                        return Err(format!("{id}: no {field} of step {number}: {command}"));
                    }
                    let before = case.steps.last().and_then(|step| step.fields.get(field));
                    step.fields.insert(field.to_owned(), before.cloned().unwrap_or_default());
                    continue;
                };
                let mut text = String::from_utf8_lossy(&bytes).into_owned();
                for (from, to) in names {
                    text = replace_word(&text, from, to);
                }
                step.fields.insert(field.to_owned(), text.trim_end_matches('\n').to_owned());
            }
            case.steps.push(step);
        }
        Ok(case)
    }

    /// The fields that differ, as `ID STEP FIELD`, with both texts.
    pub(crate) fn compare(&self, ours: &Case) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for (number, (theirs, ours)) in self.steps.iter().zip(&ours.steps).enumerate() {
            for field in FIELDS {
                let text = |step: &Step| step.fields.get(field).cloned().unwrap_or_default();
                let (theirs, ours) = (text(theirs), text(ours));
                if theirs.trim_end_matches('\n') != ours.trim_end_matches('\n') {
                    let command = &self.steps.get(number).map_or("", |step| &step.command);
                    let both = format!("$ {command}\n- {theirs}\n+ {ours}");
                    found.push((format!("{} {number} {field}", self.id), both));
                }
            }
        }
        found
    }
}

/// Replaces `from` where no digit touches it.
fn replace_word(text: &str, from: &str, to: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(from) {
        let (before, behind) = (&rest[..at], &rest[at + from.len()..]);
        let touched = before.ends_with(|c: char| c.is_ascii_digit())
            || behind.starts_with(|c: char| c.is_ascii_digit());
        result.push_str(before);
        result.push_str(if touched { from } else { to });
        rest = behind;
    }
    result.push_str(rest);
    result
}

/// All case files below `tests/oracle/cases`, in order of their paths.
pub(crate) fn case_files(oracle: &Path) -> Result<Vec<PathBuf>, String> {
    let list = |folder: &Path| -> Result<Vec<PathBuf>, String> {
        let entries = fs::read_dir(folder).map_err(|error| error.to_string())?;
        Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
    };
    let mut files = Vec::new();
    for topic in list(&oracle.join("cases"))? {
        files.extend(list(&topic)?);
    }
    files.sort();
    Ok(files)
}

/// Reads a case file.
pub(crate) fn load(path: &Path) -> Result<Case, String> {
    let id = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let text = fs::read_to_string(path).map_err(|error| format!("{id}: {error}"))?;
    Case::parse(id, &text)
}
