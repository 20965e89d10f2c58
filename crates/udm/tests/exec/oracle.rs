//! Linux's own answers: recorded sessions of dmsetup, repeated against us and compared.
//!
//! `tests/oracle/cases` holds what dmsetup 1.02.185 printed on Linux 6.12 for every step of a case:
//! exit code, both streams, and after it `info`, `table` (live and inactive) and `status` of all
//! devices. Each case runs in a daemon of its own through `udm exec`. What differs has to stand in
//! `tests/oracle/differences.txt` with its reason, and what stands there has to differ.
//!
//! The kernel's `/dev/ramN` (1:N), `/dev/loopN` (7:N) and SCSI disks (8:N) are files here, `$RN`,
//! `$LN` and `$SN` in the steps. A file has no number: where a step gives one (`$S0N`) it gets the
//! path, and where the path is shown it is read as the number before comparing. Steps that do I/O
//! on a node were left out when the cases were taken over, and cases that cannot go on without
//! them.
//!
//! The tricky case is a field that is not recorded: it is as after the step before.

use crate::common::Place;
use crate::{exec, has};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

const FIELDS: [&str; 7] = ["rc", "out", "err", "info", "table", "inactive", "status"];
/// What is as after the step before unless the case says otherwise.
const LASTING: [&str; 4] = ["info", "table", "inactive", "status"];
/// As large as the kernel's.
const DISK_LEN_BYTES: u64 = 16 << 20;
const DISKS: usize = 8;

/// A command and what it printed.
struct Step {
    command: String,
    fields: BTreeMap<String, String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle")
}

fn cases() -> Vec<PathBuf> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).expect("a folder");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    };
    let mut cases: Vec<PathBuf> =
        list(&folder().join("cases")).iter().flat_map(|area| list(area)).collect();
    cases.sort();
    cases
}

/// The steps of a case, each with all its fields.
fn recorded(path: &Path) -> Vec<Step> {
    let text = fs::read_to_string(path).expect("a case");
    let mut steps: Vec<Step> = Vec::new();
    for part in text.split("\n$ ").skip(1) {
        let mut lines = part.lines();
        let command = lines.next().expect("a command").to_owned();
        let mut fields: BTreeMap<String, String> = BTreeMap::new();
        for line in lines {
            let (field, text) = line.split_once('|').expect("FIELD| TEXT");
            assert!(FIELDS.contains(&field), "{line}");
            let whole = fields.entry(field.to_owned()).or_default();
            whole.push_str(text.strip_prefix(' ').unwrap_or(text));
            whole.push('\n');
        }
        for field in LASTING {
            let before = steps.last().and_then(|step| step.fields.get(field));
            if let Some(text) = before.filter(|_| !fields.contains_key(field)) {
                fields.insert(field.to_owned(), text.clone());
            }
        }
        steps.push(Step { command, fields });
    }
    steps
}

/// Differences of one case: step and field, with both texts.
fn replay(path: &Path) -> Vec<(String, String)> {
    let name = path.file_stem().and_then(|name| name.to_str()).expect("a name");
    let steps = recorded(path);
    let place = Place::new();
    let daemon = place.daemon(&["--lanes", "1"]);
    let mut disks: Vec<(String, String, String)> = Vec::new();
    for (number, minor) in [0, 32, 16, 48].into_iter().enumerate() {
        let path = place.file(&format!("disk-S{number}"), DISK_LEN_BYTES);
        disks.push((format!("S{number}"), format!("8:{minor}"), path));
    }
    for number in 0..DISKS {
        for (letter, major) in [("R", 1), ("L", 7)] {
            let path = place.file(&format!("disk-{letter}{number}"), DISK_LEN_BYTES);
            disks.push((format!("{letter}{number}"), format!("{major}:{number}"), path));
        }
    }
    let commands: String = steps.iter().map(|step| format!("{}\n", step.command)).collect();
    fs::write(place.path("steps"), commands).expect("written");
    let script = folder().join("replay.sh");
    let script = script.to_str().expect("UTF-8");
    let mut command = exec(&place, &["bash", script, &place.text("")]);
    for (variable, _, path) in &disks {
        command.env(variable, path).env(format!("{variable}N"), path);
    }
    let ran = command.env("DMMAJ", "254").output().expect("ran");
    assert!(ran.status.success(), "{name}: {}", String::from_utf8_lossy(&ran.stderr));
    let mut found = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        for field in FIELDS {
            let bytes = fs::read(place.path(&format!("{number}.{field}"))).expect("a result");
            let mut ours = String::from_utf8_lossy(&bytes).into_owned();
            for (_, number, path) in &disks {
                ours = ours.replace(path, number);
            }
            let theirs = step.fields.get(field).map_or("", String::as_str);
            if ours.trim_end_matches('\n') != theirs.trim_end_matches('\n') {
                let text = format!("$ {}\n- {theirs}+ {ours}", step.command);
                found.push((format!("{name} {number} {field}"), text));
            }
        }
    }
    daemon.kill();
    found
}

/// Accepted differences: what, and the reason.
fn accepted() -> BTreeMap<String, String> {
    let text = fs::read_to_string(folder().join("differences.txt")).expect("a list");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut accepted = BTreeMap::new();
    for line in lines {
        let (whats, reason) = line.split_once(": ").expect("CASE STEP FIELD...: REASON");
        let words: Vec<&str> = whats.split(' ').collect();
        let [case, step, fields @ ..] = words.as_slice() else { panic!("{line}") };
        for field in fields {
            let before = accepted.insert(format!("{case} {step} {field}"), reason.to_owned());
            assert!(before.is_none(), "twice: {line}");
        }
    }
    accepted
}

#[test]
fn recorded_sessions_agree_with_the_kernel() {
    if !has("dmsetup") {
        return;
    }
    let cases = cases();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    let todo = Mutex::new(cases.iter());
    let found = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(case) = todo.lock().expect("whole").next() else { return };
                    found.lock().expect("whole").extend(replay(case));
                }
            });
        }
    });
    let (found, accepted) = (found.into_inner().expect("whole"), accepted());
    let mut wrong: Vec<String> = found
        .iter()
        .filter(|(what, _)| !accepted.contains_key(*what))
        .map(|(what, text)| format!("{what}\n{text}"))
        .collect();
    let gone: BTreeSet<&String> =
        accepted.keys().filter(|what| !found.contains_key(*what)).collect();
    wrong.extend(gone.iter().map(|what| format!("{what}: accepted, but it agrees")));
    if let Ok(path) = std::env::var("UDM_ORACLE_REPORT") {
        fs::write(path, wrong.join("\n")).expect("written");
    }
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}
