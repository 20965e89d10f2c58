//! The watch over paths in the real binary: a path that breaks is failed, one that is mended comes
//! back, `udm paths` says so, and the state keeps the policy.
//!
//! Paths are mapped devices, broken by `wipe_table` and mended by a load. Nothing here waits by
//! sleeping: what the target does raises an event, and `udm wait` returns.

mod common;

use common::{Place, state_of};
use serde_json::Value;

/// Two paths over one file and a device on them.
struct Paths {
    place: Place,
    _daemon: common::Daemon,
}

const POLICY: [&str; 5] = ["disk", "--check", "--check-interval", "100ms", "--failback"];

impl Paths {
    fn new() -> Paths {
        let place = Place::new();
        let state = place.text("state");
        let daemon = place.daemon(&["--lanes", "2", "--state", &state]);
        let paths = Paths { place, _daemon: daemon };
        paths.place.file("disk.img", 8 << 20);
        let linear = paths.linear();
        for name in ["a", "b"] {
            paths.udm(&["create", name, "--table", &linear]);
        }
        let table = "0 16384 multipath 3 queue_if_no_path queue_mode bio 0 2 1 \
            service-time 0 1 2 dm:a 1 1 service-time 0 1 2 dm:b 1 1";
        paths.udm(&["create", "disk", "--table", table]);
        paths
    }

    fn udm(&self, args: &[&str]) -> String {
        self.place.udm(args).ok()
    }

    fn linear(&self) -> String {
        format!("0 16384 linear {} 0", self.place.text("disk.img"))
    }

    fn mend(&self, name: &str) {
        self.udm(&["load", name, "--table", &self.linear()]);
        self.udm(&["resume", name]);
    }

    fn rows(&self) -> Vec<Value> {
        let text = self.udm(&["paths", "disk", "--json"]);
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        answer["paths"].as_array().expect("rows").clone()
    }

    fn event_nr(&self) -> u64 {
        let text = self.udm(&["info", "-c", "--noheadings", "-o", "events", "disk"]);
        text.trim().parse().expect("a number")
    }

    /// Waits for events until the first path is in this state.
    fn await_state(&self, state: &str) -> Value {
        loop {
            let seen = self.event_nr();
            let row = self.rows().swap_remove(0);
            if row["state"] == state {
                return row;
            }
            self.udm(&["wait", "disk", &seen.to_string()]);
        }
    }
}

#[test]
fn a_path_that_breaks_is_failed_and_comes_back_when_it_is_mended() {
    let paths = Paths::new();
    let rows = paths.rows();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["is_checked"], false);
    assert_eq!(rows[0]["next_check_ms"], Value::Null);
    paths.udm(&[&["paths"], &POLICY[..], &["immediate"]].concat());
    paths.udm(&["wipe_table", "a"]);
    let row = paths.await_state("failed");
    let error = row["last_error"].as_str().expect("a reason");
    assert!(error.contains("first block"), "no I/O was needed to notice: {error}");
    assert_eq!(row["last_check_good"], false);
    assert_eq!(row["fail_count"], 1);
    paths.mend("a");
    let row = paths.await_state("active");
    assert_eq!(row["is_checked"], true);
    let table = paths.udm(&["paths"]);
    assert!(table.starts_with("Device") && table.lines().count() == 3, "{table}");
}

#[test]
fn a_policy_is_refused_by_name_and_kept_by_the_state() {
    let paths = Paths::new();
    let ran = paths.place.udm(&[&["paths"], &POLICY[..], &["soon"]].concat());
    assert!(ran.fails("UDM-0403").contains("failback: expected immediate"));
    paths.place.udm(&["paths", "a"]).fails("UDM-0403");
    paths.udm(&[&["paths"], &POLICY[..], &["10s"]].concat());
    let kept = |state: &Value| {
        let devices = state["devices"].as_array().expect("devices");
        let disk = devices.iter().find(|device| device["name"] == "disk").expect("kept");
        disk.get("paths").cloned()
    };
    let dir = paths.place.path("state");
    let policy = kept(&state_of(&dir)).expect("in the file");
    assert_eq!(policy["failback"], "10s");
    let Paths { place, _daemon } = paths;
    _daemon.kill();
    let daemon = place.daemon(&["--lanes", "2", "--state", &place.text("state")]);
    let paths = Paths { place, _daemon: daemon };
    assert_eq!(paths.rows()[0]["is_checked"], true, "the next daemon goes on");
    paths.udm(&["paths", "disk", "--no-check"]);
    assert_eq!(paths.rows()[0]["is_checked"], false);
    assert_eq!(kept(&state_of(&dir)), None);
}

#[test]
fn a_new_device_of_the_same_name_is_not_watched() {
    let paths = Paths::new();
    paths.udm(&["paths", "disk", "--check"]);
    paths.udm(&["remove", "disk"]);
    let table = "0 16384 multipath 2 queue_mode bio 0 1 1 round-robin 0 1 1 dm:a 1";
    paths.udm(&["create", "disk", "--table", table]);
    assert_eq!(paths.rows()[0]["is_checked"], false);
}

/// The example file works as it is, in an empty directory.
#[test]
fn the_example_is_served_and_its_paths_are_checked() {
    use std::io::BufRead;
    use std::process::{Command, Stdio};
    let place = Place::new();
    let example =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/multipath.toml");
    std::fs::copy(example, place.path("multipath.toml")).expect("copied");
    let mut up = Command::new(common::UDM)
        .args(["up", "--json", &place.text("multipath.toml")])
        .env("UDM_SOCKET", place.path("control.sock"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut line = String::new();
    let out = up.stdout.take().expect("piped");
    std::io::BufReader::new(out).read_line(&mut line).expect("its line");
    let text = place.udm(&["paths", "--json"]).ok();
    let answer: Value = serde_json::from_str(&text).expect("JSON");
    let rows = answer["paths"].as_array().expect("rows");
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["state"] == "active" && row["is_checked"] == true));
    let pid = rustix::process::Pid::from_child(&up);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signalled");
    assert!(up.wait().expect("ended").success());
}
