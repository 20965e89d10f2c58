//! The verbs of dmsetup against what dmsetup itself printed on a real kernel.
//!
//! `golden/dmsetup.cases` holds sessions recorded from dmsetup 1.02.185 on Linux 6.12. Each case
//! runs here with `udm` in dmsetup's place on a fresh daemon; output, error lines and exit codes
//! must be the same to the letter. Our own lines (`udm: ...`) come on top and are taken out; files
//! stand in for the block devices 1:0 to 1:3. Steps that are left out, because udm differs on
//! purpose, are listed with their reasons in docs/reference/dmsetup.md.

mod common;

use common::{Place, UDM};
use std::fmt::Write;
use std::process::{Command, Stdio};

/// One command and what it must do.
#[derive(Debug, Default)]
struct Step {
    command: String,
    out: String,
    err: String,
    code: i32,
}

#[derive(Debug, Default)]
struct Case {
    name: String,
    steps: Vec<Step>,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("golden/dmsetup.cases").lines() {
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(Case { name: name.to_owned(), steps: Vec::new() });
            continue;
        }
        let Some(case) = cases.last_mut() else { continue };
        if let Some(command) = line.strip_prefix("$ ") {
            case.steps.push(Step { command: command.to_owned(), ..Step::default() });
            continue;
        }
        let Some(step) = case.steps.last_mut() else { continue };
        if let Some(out) = line.strip_prefix("> ") {
            let out = out.strip_suffix('|').expect("ends with a bar").replace("\\t", "\t");
            step.out += &(out + "\n");
        } else if let Some(err) = line.strip_prefix("! ") {
            step.err += &(err.to_owned() + "\n");
        } else if let Some(code) = line.strip_prefix('[') {
            step.code = code.trim_end_matches(']').parse().expect("a number");
        }
    }
    cases
}

/// What the cases' commands use besides dmsetup.
const PRELUDE: &str = r#"
T() { for line in "$@"; do echo "$line"; done; }
try() { dmsetup create tried --table "$1" && { dmsetup table tried; dmsetup status tried; dmsetup remove tried; }; }
dmsetup() { "$UDM" "$@"; }
"#;

/// The part of a stream that belongs to a step, without our own lines.
fn part(stream: &str, step: usize) -> String {
    let begin = format!("@@{step}\n");
    let end = format!("@@{}\n", step + 1);
    let (_, rest) = stream.split_once(&begin).expect("the step began");
    let (text, _) = rest.split_once(&end).unwrap_or((rest, ""));
    text.lines()
        .filter(|line| !line.starts_with("udm: "))
        .fold(String::new(), |text, line| text + line + "\n")
}

/// The files' paths as the numbers of the block devices they stand for.
fn numbered(text: &str, files: &[String]) -> String {
    let mut text = text.to_owned();
    for (minor, path) in files.iter().enumerate() {
        text = text.replace(&format!(" ({path})\n"), &format!(" (1:{minor})\n"));
        text = text.replace(path, &format!("1:{minor}"));
    }
    text.lines()
        .map(|line| match line.split_once("dependencies\t:") {
            // `deps` puts a comma where `ls --tree` has a colon.
            Some((head, rest)) => {
                format!("{head}dependencies\t:{}\n", rest.replace("(1:", "(1, "))
            }
            None => format!("{line}\n"),
        })
        .collect()
}

fn run(case: &Case) -> String {
    let place = Place::new();
    let files: Vec<String> =
        (0..4).map(|minor| place.file(&format!("ram{minor}"), 16 << 20)).collect();
    let _daemon = place.daemon(&["--lanes", "1"]);
    let mut script = PRELUDE.to_owned();
    for (index, step) in case.steps.iter().enumerate() {
        let command = &step.command;
        let _ = write!(script, "echo @@{index}; echo @@{index} >&2\n{command}\necho \"@@rc $?\"\n");
    }
    let count = case.steps.len();
    let _ = writeln!(script, "echo @@{count}; echo @@{count} >&2");
    let mut bash = Command::new("bash");
    bash.arg("-c").arg(script).stdin(Stdio::null());
    bash.env("UDM", UDM).env("UDM_SOCKET", place.path("control.sock")).env("DMMAJ", "254");
    for (index, path) in files.iter().enumerate() {
        bash.env(format!("R{index}"), path);
    }
    let output = bash.output().expect("bash runs");
    let out = String::from_utf8(output.stdout).expect("UTF-8");
    let err = String::from_utf8(output.stderr).expect("UTF-8");
    let mut differences = String::new();
    for (index, step) in case.steps.iter().enumerate() {
        let mut expected = step.out.clone();
        let _ = writeln!(expected, "@@rc {}", step.code);
        expected += &step.err;
        let got = numbered(&part(&out, index), &files) + &part(&err, index);
        if got != expected {
            let _ = write!(
                differences,
                "\n== {} $ {}\nexpected:\n{expected}got:\n{got}",
                case.name, step.command
            );
        }
    }
    differences
}

#[test]
fn every_recorded_session_is_repeated_to_the_letter() {
    let cases = cases();
    assert!(cases.len() > 15, "the file was read");
    let differences: String = cases.iter().map(run).collect();
    assert!(differences.is_empty(), "{differences}");
}
