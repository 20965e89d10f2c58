//! The demo tells its story to the end, in five seconds as in sixty, and loses nothing.

use serde_json::Value;
use std::process::{Command, Output};

fn demo(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_udm"))
        .arg("demo")
        .args(args)
        .output()
        .expect("the binary was built for this test")
}

#[test]
fn five_seconds_of_demo_lose_nothing() {
    let output = demo(&["--seconds", "5", "--json"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(errors, "", "nobody watches, so there is no live line");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name}: {report}"));
    assert_eq!((number("lost"), number("mismatches")), (0.0, 0.0));
    assert!(number("ios") > 10_000.0, "{report}");
    assert!(number("swaps") > 30.0, "{report}");
    assert_eq!(number("grown_to_sectors"), 2.0 * number("grown_from_sectors"));
    assert_eq!(number("suspends_given_up"), 1.0);
    assert_eq!(report["given_up_code"], "UDM-0210");
    assert!(number("dead_device_ios") > 0.0, "{report}");
    let pause = &report["pause_us"];
    assert!(pause["p50"].as_f64() <= pause["max"].as_f64() && pause["max"].as_f64() > Some(0.0));
}

#[test]
fn the_story_and_its_closing_table_are_for_people() {
    let output = demo(&["--seconds", "3"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    for act in ["create ", "load ", "swap ", "grow ", "dead ", "suspend ", "replace "] {
        assert!(text.lines().any(|line| line.starts_with(act)), "no line '{act}' in:\n{text}");
    }
    assert!(text.contains("given up: I/O was still under way"), "{text}");
    for zero in ["lost", "mismatches"] {
        let line = text.lines().find(|line| line.trim_start().starts_with(zero));
        assert_eq!(line.and_then(|line| line.split_whitespace().last()), Some("0"), "{text}");
    }
    assert!(!text.contains('\r'), "no live line in a pipe");
}
