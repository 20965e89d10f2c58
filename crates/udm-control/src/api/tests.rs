//! The published interface file and the Rust types must say the same.

use super::{
    Counter, Dependency, Device, ExportState, Gauges, Line, METHODS, PathPolicy, PathStatus,
    RequestCounters, Selector, SuspendState, TargetType, Tls, field_names,
};
use crate::INTERFACE_TEXT;
use serde::Serialize;
use std::collections::BTreeMap;
use std::num::NonZeroU16;

/// Names of the fields between the brackets that follow `keyword Name`.
fn fields_in_file(keyword: &str) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    let text: String = INTERFACE_TEXT
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect::<Vec<_>>()
        .join("\n");
    for part in text.split(keyword).skip(1) {
        let (name, rest) = part.split_once('(').expect("brackets");
        let (fields, _) = rest.split_once(')').expect("closed");
        let names = fields
            .split(',')
            .filter(|field| !field.trim().is_empty())
            .map(|field| field.split(':').next().expect("a name").trim().to_owned())
            .collect();
        found.insert(name.trim().to_owned(), names);
    }
    found
}

fn keys<T: Serialize>(value: &T) -> Vec<String> {
    let json = serde_json::to_value(value).expect("plain");
    let mut keys: Vec<String> = json.as_object().expect("object").keys().cloned().collect();
    keys.sort();
    keys
}

#[test]
fn methods_of_file_and_code_have_the_same_parameters() {
    let file = fields_in_file("\nmethod ");
    let code: BTreeMap<String, Vec<String>> = field_names()
        .into_iter()
        .map(|(name, fields)| (name.to_owned(), fields.into_iter().map(str::to_owned).collect()))
        .collect();
    assert_eq!(file, code);
    assert_eq!(METHODS.len(), code.len());
}

#[test]
fn types_of_file_and_code_have_the_same_fields() {
    let file = fields_in_file("\ntype ");
    let full = Selector { name: Some(String::new()), uuid: Some(String::new()), minor: Some(0) };
    let some = || Some(String::new());
    let full_export = ExportState {
        block_device: some(),
        transport: some(),
        lanes: NonZeroU16::new(1),
        note: some(),
        ..ExportState::default()
    };
    let yes = Some(true);
    let full_tls = Tls { certificates: some(), psk: some(), required: yes, verify_peer: yes };
    let code = [
        ("Selector", keys(&full)),
        ("SuspendState", keys(&SuspendState::default())),
        ("Device", keys(&Device::default())),
        ("Line", keys(&Line::default())),
        ("Dependency", keys(&Dependency::default())),
        ("Counter", keys(&Counter::default())),
        ("RequestCounters", keys(&RequestCounters::default())),
        ("Gauges", keys(&Gauges::default())),
        ("TargetType", keys(&TargetType::default())),
        ("ExportState", keys(&full_export)),
        ("Tls", keys(&full_tls)),
        ("PathPolicy", keys(&full_policy())),
        ("PathStatus", keys(&PathStatus::default())),
    ];
    assert_eq!(file.len(), code.len());
    for (name, fields) in code {
        let mut expected = file[name].clone();
        expected.sort();
        assert_eq!(fields, expected, "{name}");
    }
}

#[test]
fn a_selector_takes_exactly_one_way() {
    assert!(Selector::default().key().is_err());
    assert!(Selector::name("a").key().is_ok());
    assert!(Selector { minor: Some(3), ..Selector::name("a") }.key().is_err());
}

fn full_policy() -> PathPolicy {
    let word = || Some(String::new());
    PathPolicy {
        check_interval: word(),
        check_interval_max: word(),
        check_timeout: word(),
        failback: word(),
        marginal_failures: Some(0),
        marginal_window: word(),
        marginal_hold: word(),
        no_path: word(),
    }
}
