//! The messages of `multipath` that change something.
//!
//! | words | do |
//! |---|---|
//! | `queue_if_no_path`, `fail_if_no_path` | turn queueing on, off; off fails what waits |
//! | `disable_group N`, `enable_group N` | bypass a group or not; the next I/O chooses anew |
//! | `switch_group N` | no group is bypassed any more, N is the next one |
//! | `fail_path D`, `reinstate_path D` | all paths on device D |
//! | `queue_if_no_path_timeout_secs N` | the time limit of queueing, 0 for none; our own |
//!
//! Every lane gets every message, checks it alike and applies it; home decides and answers (see
//! `home.rs`). Words are compared without case, checks come in the kernel's order. `explain` and
//! `paths` change nothing and do not come here.
//!
//! The tricky case is the name of a device. Linux looks it up; a lane has no files to look in. So a
//! path is known by the name in the table line, by the name `table` shows, and by its number;
//! `dm:X` and `/dev/mapper/X` are one name.

use super::config::PathConfig;
use super::map::Multipath;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use udm_core::{ErrorCode, TargetCx, UserError};

/// A message, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Turn queueing on or off.
    Queueing(bool),
    /// Bypass a group or not.
    Bypass(u32, bool),
    /// Make a group the next one.
    Switch(u32),
    /// Fail or reinstate these paths.
    Paths(Vec<u32>, bool),
    /// The time limit of queueing in seconds.
    Timeout(u64),
}

/// The names a path is known by.
pub(super) fn names_of(path: &PathConfig) -> [String; 3] {
    let number = path.device.number.map(|(major, minor)| format!("{major}:{minor}"));
    let shown = plain_name(&path.device.shown);
    [plain_name(&path.written), number.unwrap_or_else(|| shown.clone()), shown]
}

/// A device name with one spelling for a mapped device.
pub(super) fn plain_name(name: &str) -> String {
    match name.strip_prefix("/dev/mapper/") {
        Some(rest) => format!("dm:{rest}"),
        None => name.to_string(),
    }
}

fn wrong(text: String) -> UserError {
    UserError::new(ErrorCode::BadMessage, text)
}

impl Message {
    pub(super) fn parse(words: &[String], target: &Multipath) -> Result<Message, UserError> {
        let first = words.first().map(|word| word.to_ascii_lowercase()).unwrap_or_default();
        if let [_] = words {
            match first.as_str() {
                "queue_if_no_path" => return Ok(Message::Queueing(true)),
                "fail_if_no_path" => return Ok(Message::Queueing(false)),
                _ => {}
            }
        }
        let known = matches!(
            first.as_str(),
            "queue_if_no_path"
                | "fail_if_no_path"
                | "disable_group"
                | "enable_group"
                | "switch_group"
                | "fail_path"
                | "reinstate_path"
                | "queue_if_no_path_timeout_secs"
        );
        if !known {
            return Err(UserError::unknown_message(words).hint(
                "messages: fail_path, reinstate_path, switch_group, disable_group, enable_group, \
                 queue_if_no_path, fail_if_no_path, queue_if_no_path_timeout_secs, explain, paths",
            ));
        }
        let [_, argument] = words else {
            let count = words.len();
            return Err(wrong(format!(
                "Invalid multipath message arguments. Expected 2 arguments, got {count}."
            )));
        };
        match first.as_str() {
            "disable_group" => Ok(Message::Bypass(group_of(argument, target)?, true)),
            "enable_group" => Ok(Message::Bypass(group_of(argument, target)?, false)),
            "switch_group" => Ok(Message::Switch(group_of(argument, target)?)),
            "fail_path" => Ok(Message::Paths(paths_of(argument, target)?, false)),
            "reinstate_path" => Ok(Message::Paths(paths_of(argument, target)?, true)),
            "queue_if_no_path_timeout_secs" => {
                Ok(Message::Timeout(u64::from(number_of(argument, "the time limit in seconds")?)))
            }
            _ => Err(wrong(format!("{first} takes no arguments"))),
        }
    }
}

fn number_of(word: &str, what: &str) -> Result<u32, UserError> {
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    let number = word.parse().ok().filter(|_| digits);
    number.ok_or_else(|| wrong(format!("{what}: expected a number, found '{word}'")))
}

fn group_of(word: &str, target: &Multipath) -> Result<u32, UserError> {
    let count = target.groups.groups.len() as u32;
    let number = number_of(word, "the priority group")?;
    match number.checked_sub(1) {
        Some(group) if group < count => Ok(group),
        Some(_) | None => {
            Err(wrong(format!("there is no priority group {number}: they are 1 to {count}")))
        }
    }
}

fn paths_of(word: &str, target: &Multipath) -> Result<Vec<u32>, UserError> {
    let paths = target.paths_called(word);
    if paths.is_empty() {
        return Err(wrong(format!("no path of this device is on '{word}'"))
            .hint("name it as `table` shows it or as MAJOR:MINOR"));
    }
    Ok(paths)
}

impl Multipath {
    pub(super) fn apply(&mut self, message: Message, cx: &mut TargetCx<'_>) {
        match message {
            Message::Queueing(true) => {
                self.set_queueing(true, false, cx);
                self.arm(cx);
            }
            Message::Queueing(false) => self.set_queueing(false, false, cx),
            Message::Bypass(group, bypassed) => self.set_bypassed(group, bypassed, cx),
            Message::Switch(group) => self.switch_group(group, cx),
            Message::Paths(paths, active) => {
                for path in paths {
                    self.set_path(path, active, cx);
                }
            }
            Message::Timeout(secs) => self.set_timeout(secs, cx),
        }
    }
}
