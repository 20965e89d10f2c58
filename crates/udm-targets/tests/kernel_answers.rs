//! The kernel as oracle, on paper: recorded answers of Linux's own targets to table lines.
//!
//! `kernel_answers.txt` holds tables that were loaded into Linux's device mapper, with what
//! `dmsetup table` and `dmsetup status` printed, or the errno of the refusal. The same text is
//! loaded here, over devices with the same names and sizes, and has to give the same answer. What
//! differs on purpose is in [`DIFFERENCES`] with its reason, and nowhere else: an entry that no
//! longer differs fails the test.

use udm_core::lifecycle::{StatusKind, StatusLine};
use udm_core::{ErrorKind, UserError};
use udm_testkit::TestWorld;

const ANSWERS: &str = include_str!("kernel_answers.txt");

/// Tables for which udm answers otherwise, and why.
const DIFFERENCES: &[(&str, &str)] = &[
    ("0 1024 delay 1:0 0 5000000000", "a number that does not fit is refused, not wrapped"),
    ("0 8192 multipath 2 queue_mode bio 0 1 1 round-robin 0 1 1 7:3 1", RETAIN),
    ("0 8192 multipath 1 retain_attached_hw_handler 0 1 1 round-robin 0 1 1 7:5 1", RETAIN),
];

const RETAIN: &str =
    "Linux 6.12 has multipath 1.14, which prints retain_attached_hw_handler; 1.15 does not";

/// One recorded case.
#[derive(Debug, Default)]
struct Case {
    name: String,
    load: Vec<String>,
    answer: Answer,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    table: Vec<String>,
    status: Vec<String>,
    refused: Option<String>,
}

fn cases() -> Vec<Case> {
    let blocks = ANSWERS.split("\n\n").filter(|block| block.starts_with("case "));
    blocks
        .map(|block| {
            let mut case = Case::default();
            for line in block.lines() {
                let (word, rest) = line.split_once(' ').expect("a word and the rest");
                let text = rest.trim_start().to_owned();
                match word {
                    "case" => case.name = text,
                    "load" => case.load.push(text),
                    "table" => case.answer.table.push(text),
                    "status" => case.answer.status.push(text),
                    "refuse" => case.answer.refused = Some(text),
                    other => panic!("what is '{other}'?"),
                }
            }
            case
        })
        .collect()
}

fn errno(error: &UserError) -> String {
    let name = match error.kind() {
        ErrorKind::Invalid => "EINVAL",
        ErrorKind::NoEntry => "ENOENT",
        ErrorKind::Overflow => "EOVERFLOW",
        ErrorKind::NoDevice
        | ErrorKind::Busy
        | ErrorKind::NotBlock
        | ErrorKind::Access
        | ErrorKind::ReadOnly
        | ErrorKind::Interrupted
        | ErrorKind::TimedOut
        | ErrorKind::Io
        | ErrorKind::NoSpace
        | ErrorKind::Unsupported
        | ErrorKind::Again => "something else",
    };
    name.to_owned()
}

fn texts(lines: &[StatusLine]) -> Vec<String> {
    let text = |line: &StatusLine| {
        format!("{} {} {} {}", line.begin_sector, line.len_sectors, line.target, line.args)
    };
    lines.iter().map(text).collect()
}

/// Loads a table here.
fn ask(load: &str) -> Answer {
    let mut world = TestWorld::new(udm_targets::registry(), 1);
    let names = (0..8).flat_map(|number| [format!("1:{number}"), format!("7:{number}")]);
    let names = names.chain(["8:0".into(), "8:32".into()]);
    for name in names.filter(|name| load.split_whitespace().any(|word| word == name)) {
        world.add_lower(&name, 32768);
    }
    if let Err(error) = world.build(load) {
        return Answer { refused: Some(errno(&error)), ..Answer::default() };
    }
    let device = world.create("t", load);
    let mut shown = |kind| texts(&world.lines(device, kind));
    Answer { table: shown(StatusKind::Table), status: shown(StatusKind::Info), refused: None }
}

#[test]
fn tables_get_the_kernels_answers() {
    let cases = cases();
    assert!(cases.len() > 90, "the recorded answers are there");
    for case in cases {
        let load = case.load.join("\n");
        let same = ask(&load) == case.answer;
        let known = DIFFERENCES.iter().find(|(text, _)| *text == load);
        match known {
            None => assert!(
                same,
                "{}: {load}\nhere {:?}\nLinux {:?}",
                case.name,
                ask(&load),
                case.answer
            ),
            Some((_, reason)) => assert!(!same, "no difference any more: {load} ({reason})"),
        }
    }
}

#[test]
fn every_difference_is_about_a_recorded_case() {
    let cases = cases();
    for (text, _) in DIFFERENCES {
        assert!(cases.iter().any(|case| case.load == [*text]), "{text} was never recorded");
    }
}
