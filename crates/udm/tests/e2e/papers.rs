//! What needs no daemon: manual pages, completions, help, and the explanation of every code.

use super::common::Place;
use super::outside::{have, run};
use udm_core::error::ErrorCode;

const VERBS: [&str; 34] = [
    "daemon",
    "create",
    "load",
    "resume",
    "suspend",
    "clear",
    "remove",
    "remove_all",
    "rename",
    "resize",
    "message",
    "wipe_table",
    "wait",
    "status",
    "table",
    "info",
    "ls",
    "deps",
    "targets",
    "target-version",
    "version",
    "export",
    "unexport",
    "exports",
    "paths",
    "compress",
    "up",
    "run",
    "exec",
    "bench",
    "demo",
    "explain",
    "completions",
    "man",
];

#[test]
fn every_verb_has_a_manual_page_and_help() {
    let place = Place::new();
    place.udm(&["man", &place.text("man")]).ok();
    for verb in VERBS {
        let page = std::fs::read_to_string(place.path(&format!("man/udm-{verb}.1")));
        let page = page.unwrap_or_else(|error| panic!("udm-{verb}.1: {error}"));
        assert!(page.contains(".TH") && page.contains(".SH"), "{verb}");
        let help = place.udm(&[verb, "--help"]).ok();
        assert!(help.contains(&format!("Usage: udm {verb}")), "{verb}: {help}");
    }
    assert!(place.path("man/udm.1").exists());
}

#[test]
fn completions_are_made_for_every_shell_and_bash_takes_them() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = place.udm(&["completions", shell]).ok();
        assert!(VERBS.iter().all(|verb| script.contains(verb)), "{shell} lacks a verb");
        if shell == "bash" && have(&["bash"]) {
            std::fs::write(place.path("script"), script).expect("written");
            run("bash", &["-n", &place.text("script")]).ok();
        }
    }
}

#[test]
fn every_code_is_explained() {
    let place = Place::new();
    let all = place.udm(&["explain"]).ok();
    for code in ErrorCode::ALL {
        let code = code.as_str();
        assert!(all.contains(code), "{code} is not listed");
        let text = place.udm(&["explain", code]).ok();
        assert!(text.contains(code) && text.len() > 60, "{code}: {text}");
        let json = place.udm(&["--json", "explain", code]).ok();
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert!(json.to_string().contains(code), "{json}");
    }
    let told = place.udm(&["explain", "UDM-9999"]);
    assert_eq!(told.code, Some(1), "{}", told.err);
    assert!(told.err.contains("UDM-9999"), "{}", told.err);
}

#[test]
fn the_targets_have_pages() {
    let place = Place::new();
    for target in ["linear", "striped", "zero", "error", "delay", "flakey", "multipath", "compress"]
    {
        let page = place.udm(&["help", "target", target]).ok();
        assert!(page.contains(&format!("# {target}")), "{page}");
    }
    place.udm(&["help", "target", "nosuch"]).fails("UDM-0108");
}

#[test]
fn the_unit_of_systemd_is_one_that_it_takes() {
    if !have(&["systemd-analyze"]) {
        return;
    }
    let place = Place::new();
    let unit = include_str!("../../../../packaging/udm.service");
    let installed = "/usr/local/bin/udm";
    assert!(unit.contains(&format!("ExecStart={installed} daemon ")));
    // It has to be there for the check.
    let unit = unit.replace(installed, super::common::UDM);
    std::fs::write(place.path("udm.service"), unit).expect("written");
    let checked = run("systemd-analyze", &["verify", "--man=no", &place.text("udm.service")]);
    // A line that it does not know is no failure, but it says so.
    assert_eq!(checked.err, "");
    checked.ok();
}

#[test]
fn the_container_is_built_as_the_sources_ask_for() {
    let file = include_str!("../../../../packaging/Containerfile");
    let rust = format!("FROM rust:{}-", env!("CARGO_PKG_RUST_VERSION"));
    assert!(file.contains(&rust), "{rust}");
    // What the last line starts is a command line that is understood.
    let line = file.lines().find_map(|line| line.strip_prefix("CMD ")).expect("it has one");
    let words: Vec<String> = serde_json::from_str(line).expect("words");
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    words.push("--help");
    assert!(Place::new().udm(&words).ok().contains("Usage: udm daemon"));
}
