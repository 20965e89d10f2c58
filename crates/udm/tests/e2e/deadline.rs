//! A suspend whose I/O hangs below: it has a reason, an age, a deadline and a way out.
//!
//! A device below hangs because it is suspended itself; the write of a client to the device above
//! then stays in flight for as long as the test wants.

use super::common::{Daemon, Place, UDM};
use super::nbd::{NbdClient, WRITE};
use super::outside::{Running, until};
use serde_json::Value;
use std::io::Write;
use std::process::Command;

/// Two devices, the lower suspended, and a client whose write hangs in the upper.
fn hanging() -> (Place, Daemon, NbdClient) {
    let place = Place::new();
    let daemon = place.daemon(&["--lanes", "2"]);
    place.udm(&["create", "low", "--table", "0 2048 linear mem:1M 0"]).ok();
    place.udm(&["create", "up", "--table", "0 2048 linear dm:low 0"]).ok();
    place.udm(&["export", "up", "--nbd", &format!("unix:{}", place.text("nbd.sock"))]).ok();
    place.udm(&["suspend", "low"]).ok();
    let mut client = NbdClient::connect(&place.path("nbd.sock"), "up").expect("connected");
    client.send(WRITE, 0, 0, 4096).expect("sent");
    client.stream.write_all(&[9; 4096]).expect("sent");
    until("the write is in flight", || {
        (asked(&place, "up")["gauges"]["in_flight"] == 1).then_some(())
    });
    (place, daemon, client)
}

fn asked(place: &Place, name: &str) -> Value {
    let told: Value =
        serde_json::from_str(&place.udm(&["--json", "info", name]).ok()).expect("JSON");
    told["devices"][0].clone()
}

#[test]
fn a_suspend_gives_up_at_its_deadline_and_says_why() {
    let (place, daemon, mut client) = hanging();
    let told = place.udm(&["suspend", "--deadline", "200ms", "up"]).fails("UDM-0210");
    assert!(told.contains("Connection timed out") && told.contains("under way"), "{told}");
    let told = place.udm(&["--json", "suspend", "--deadline", "100ms", "up"]);
    assert_eq!(told.code, Some(1));
    let error: Value = serde_json::from_str(&told.err).expect("JSON");
    assert_eq!(error["error"]["code"], "UDM-0210");
    assert_eq!(error["error"]["kind"], "ETIMEDOUT");
    assert_eq!(asked(&place, "up")["device"]["suspended"], false, "it runs on");
    place.udm(&["resume", "low"]).ok();
    client.reply(0).expect("connected").expect("written after all");
    place.udm(&["suspend", "--deadline", "10s", "up"]).ok();
    place.udm(&["resume", "up"]).ok();
    daemon.terminate();
}

#[test]
fn a_suspend_that_drains_shows_itself_and_a_resume_ends_it() {
    let (place, daemon, mut client) = hanging();
    let suspend = Running::start(
        Command::new(UDM)
            .args(["suspend", "--deadline", "90s", "--reason", "nightly copy", "up"])
            .env("UDM_SOCKET", place.path("control.sock")),
    );
    let shown = until("the suspend drains", || {
        let shown = asked(&place, "up");
        (shown["device"]["suspend"]["draining"] == true).then_some(shown)
    });
    let state = &shown["device"]["suspend"];
    assert_eq!(state["reason"], "nightly copy");
    assert_eq!(state["deadline_ms"], 90_000);
    assert!(state["age_ms"].is_u64(), "{state}");
    assert_eq!(shown["gauges"]["in_flight"], 1);
    let text = place.udm(&["info", "up"]).ok();
    assert!(text.contains("draining") && text.contains("nightly copy"), "{text}");
    place.udm(&["resume", "up"]).ok();
    let ended = suspend.wait();
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("[UDM-0211]"), "{}", ended.err);
    place.udm(&["resume", "low"]).ok();
    client.reply(0).expect("connected").expect("written after all");
    daemon.terminate();
}

#[test]
fn a_suspend_that_may_fail_what_hangs_ends_too() {
    let (place, daemon, mut client) = hanging();
    let suspend = ["suspend", "--deadline", "200ms", "--on-timeout", "fail", "up"];
    // What hangs here is held by a device below, which nobody may fail behind its back: the
    // suspend either gets it failed or says that it cannot. It never stays.
    let told = place.udm(&suspend);
    let suspended = asked(&place, "up")["device"]["suspended"] == true;
    assert_eq!(told.code == Some(0), suspended, "{}", told.err);
    assert!(suspended || told.err.contains("[UDM-0210]"), "{}", told.err);
    place.udm(&["resume", "low"]).ok();
    place.udm(&["resume", "up"]).ok();
    let answer = client.reply(0).expect("connected");
    assert_eq!(answer.is_err(), suspended, "failed if and only if it was said");
    daemon.terminate();
}
