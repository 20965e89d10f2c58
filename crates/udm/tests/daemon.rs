//! The real binary as a daemon: what survives its end, what bad input does, what it serves.

mod common;

use common::{Place, Writer, state_of};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use udm_control::Client;
use udm_control::api::{self, Selector};

fn json_of(text: &str) -> Value {
    let value: Value = serde_json::from_str(text).expect("JSON");
    assert_eq!(value["schema_version"], 1);
    value
}

/// Devices a, b (on a, with an inactive table too) and c (suspended).
fn set_up(place: &Place) {
    let disk = place.file("disk.img", 8 << 20);
    let udm = |args: &[&str]| place.udm(args).ok();
    udm(&[
        "create",
        "a",
        "-u",
        "uuid-a",
        "-j",
        "254",
        "-m",
        "5",
        "--table",
        &format!("0 8192 linear {disk} 0"),
    ]);
    udm(&["create", "b", "--table", "0 4096 linear dm:a 0\n4096 8 zero"]);
    udm(&["load", "b", "--table", "0 16 error"]);
    udm(&["create", "c", "-r", "--table", "0 8 zero"]);
    udm(&["suspend", "c"]);
    udm(&["export", "b", "--nbd", &format!("unix:{}", place.text("b.sock")), "--name", "bee"]);
}

fn check_restored(place: &Place) {
    let udm = |args: &[&str]| place.udm(args).ok();
    let disk = place.text("disk.img");
    assert_eq!(
        udm(&["table"]),
        format!(
            "a: 0 8192 linear {disk} 0\nb: 0 4096 linear 254:5 0\nb: 4096 8 zero \nc: 0 8 zero \n"
        )
    );
    assert_eq!(udm(&["table", "--inactive", "b"]), "0 16 error \n");
    assert_eq!(
        udm(&["info", "-c", "--noheadings", "-o", "name,minor,attr,open,uuid"]),
        "a:5:L--w:1:uuid-a\nb:0:LI-w:1:\nc:1:L-sr:0:\n"
    );
    let exports = json_of(&udm(&["exports", "--json"]));
    assert_eq!(exports["exports"][0]["name"], "bee");
    assert_eq!(exports["exports"][0]["device"], "b");
    assert!(UnixStream::connect(place.path("b.sock")).is_ok(), "the export answers");
}

#[test]
fn names_uuids_minors_tables_and_exports_come_back_after_a_graceful_end() {
    let place = Place::new();
    let state = place.text("state");
    let daemon = place.daemon(&["--state", &state]);
    set_up(&place);
    assert_eq!(daemon.terminate(), "");
    assert!(!place.path("b.sock").exists() && !place.path("control.sock").exists());
    let _daemon = place.daemon(&["--state", &state]);
    check_restored(&place);
}

#[test]
fn they_come_back_after_kill_9_too() {
    let place = Place::new();
    let state = place.text("state");
    let daemon = place.daemon(&["--state", &state]);
    set_up(&place);
    daemon.kill();
    // A new file on its way when the daemon died is not taken for the state.
    fs::write(place.path("state/state.json.new"), b"{ half").expect("written");
    let _daemon = place.daemon(&["--state", &state]);
    check_restored(&place);
}

#[test]
fn kill_9_in_the_middle_of_loads_leaves_the_last_answered_table_or_the_next() {
    let place = Place::new();
    let state = place.text("state");
    let daemon = place.daemon(&["--state", &state]);
    place.udm(&["create", "t", "--table", "0 8 zero"]).ok();
    let (sender, answered) = std::sync::mpsc::channel();
    let socket = place.path("control.sock");
    let loader = std::thread::spawn(move || {
        let mut client = Client::connect(&socket).expect("connects");
        for len_sectors in 9_u64.. {
            let device = Selector::name("t");
            let table = format!("0 {len_sectors} zero");
            let load = api::Load { device: device.clone(), table, read_only: false };
            let resume = api::Resume { device, ..api::Resume::default() };
            if client.call(&load).is_err() || client.call(&resume).is_err() {
                break;
            }
            // The test may have ended with a failure.
            let _ = sender.send(len_sectors);
        }
    });
    for _ in 0..50 {
        answered.recv().expect("loads go on");
    }
    daemon.kill();
    loader.join().expect("ends with the daemon");
    let last = answered.try_iter().last().unwrap_or(58);
    let _daemon = place.daemon(&["--state", &state]);
    let table = place.udm(&["table", "t"]).ok();
    let possible = [format!("0 {last} zero \n"), format!("0 {} zero \n", last + 1)];
    assert!(possible.contains(&table), "{table}, answered: {last}");
}

#[test]
fn the_state_follows_every_change() {
    let place = Place::new();
    let dir = place.path("state");
    let daemon = place.daemon(&["--state", dir.to_str().expect("UTF-8")]);
    set_up(&place);
    let udm = |args: &[&str]| place.udm(args).ok();
    udm(&["rename", "a", "alpha"]);
    udm(&["rename", "c", "--setuuid", "uuid-c"]);
    udm(&["resume", "b", "c"]);
    udm(&["unexport", "bee"]);
    let state = state_of(&dir);
    assert_eq!(state["devices"][0]["name"], "alpha");
    assert_eq!(state["devices"][1]["live"]["lines"], json!(["0 16 error"]));
    assert_eq!(state["devices"][1]["inactive"], Value::Null);
    assert_eq!(state["devices"][2]["uuid"], "uuid-c");
    assert_eq!(state["devices"][2]["suspended"], false);
    assert_eq!(state["exports"], json!([]));
    udm(&["remove_all"]);
    assert_eq!(state_of(&dir)["devices"], json!([]));
    daemon.terminate();
}

#[test]
fn a_device_whose_disk_is_missing_comes_back_bare_and_is_kept() {
    let place = Place::new();
    let state = place.text("state");
    let daemon = place.daemon(&["--state", &state]);
    set_up(&place);
    daemon.terminate();
    let before = state_of(&place.path("state"));
    fs::rename(place.path("disk.img"), place.path("away.img")).expect("moved");
    let daemon = place.daemon(&["--state", &state]);
    let shown = place.udm(&["info", "-c", "--noheadings", "-o", "name,attr"]).ok();
    assert_eq!(shown, "a:---w\nb:---w\nc:L-sr\n");
    // A change elsewhere is written, and what could not be restored stays.
    place.udm(&["resume", "c"]).ok();
    place.udm(&["suspend", "c"]).ok();
    let told = daemon.terminate();
    assert!(told.contains("device 'a' is back without its table"), "{told}");
    assert_eq!(state_of(&place.path("state"))["devices"], before["devices"]);
    fs::rename(place.path("away.img"), place.path("disk.img")).expect("moved back");
    let _daemon = place.daemon(&["--state", &state]);
    check_restored(&place);
}

#[test]
fn a_damaged_state_stops_the_start_and_is_not_touched() {
    let place = Place::new();
    fs::create_dir(place.path("state")).expect("made");
    let file = place.path("state/state.json");
    fs::write(&file, b"{\"format\":\"udm-state\",").expect("written");
    let told = place.start(&["--state", &place.text("state")]).failed();
    assert!(told.contains("[UDM-0602]") && told.contains("line 1 column"), "{told}");
    assert_eq!(fs::read(&file).expect("there"), b"{\"format\":\"udm-state\",");
}

#[test]
fn a_second_daemon_is_refused_and_the_first_lives() {
    let place = Place::new();
    let _daemon = place.daemon(&["--state", &place.text("state")]);
    let told = place.start(&[]).failed();
    assert!(told.contains("[UDM-0405]"), "{told}");
    let elsewhere = Place::new();
    let told = elsewhere.start(&["--state", &place.text("state")]).failed();
    assert!(told.contains("another daemon uses the state directory"), "{told}");
    place.udm(&["ls"]).ok();
}

#[test]
fn every_bad_table_names_its_place_and_changes_nothing() {
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let disk = place.file("disk.img", 1 << 20);
    place.udm(&["create", "t", "--table", "0 8 zero"]).ok();
    place.udm(&["load", "t", "--table", "0 16 zero"]).ok();
    let cases = [
        ("0 8 zero\n16 8 zero".to_owned(), "UDM-0105", "line 2, field 1"),
        ("0 8 zero\n4 8 zero".to_owned(), "UDM-0106", "line 2, field 1"),
        ("0 0 zero".to_owned(), "UDM-0104", "line 1, field 2"),
        ("0 18446744073709551616 zero".to_owned(), "UDM-0107", "line 1, field 2"),
        ("18014398509481983 8 zero".to_owned(), "UDM-0107", "line 1"),
        ("0 8 nosuch".to_owned(), "UDM-0108", "line 1, field 3"),
        ("0 8 linear".to_owned(), "UDM-0110", "line 1, field 4"),
        (format!("0 8 linear {disk} 0 0"), "UDM-0111", "line 1, field 6"),
        (format!("0 4096 linear {disk} 0"), "UDM-0113", "line 1"),
        ("0 8 linear /nonexistent 0".to_owned(), "UDM-0115", "line 1, field 4"),
        ("0 8 linear dm:t 0".to_owned(), "UDM-0117", ""),
    ];
    for (table, code, at) in cases {
        let err = place.udm(&["load", "t", "--table", &table]).fails(code);
        assert!(err.contains(at), "{table}: {err}");
        assert!(err.starts_with("device-mapper: reload ioctl on t  failed: "), "{err}");
        assert_eq!(place.udm(&["table", "t"]).ok(), "0 8 zero \n");
        assert_eq!(place.udm(&["table", "--inactive", "t"]).ok(), "0 16 zero \n");
        // create leaves nothing behind.
        if code != "UDM-0117" {
            place.udm(&["create", "new", "--table", &table]).fails(code);
        }
        assert_eq!(place.udm(&["ls"]).ok(), "t\t(254:0)\n");
    }
}

#[test]
fn names_and_states_that_forbid_something_say_so() {
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let udm = |args: &[&str]| place.udm(args);
    udm(&["create", "t", "-u", "u", "--table", "0 8 zero"]).ok();
    udm(&["create", "t", "-n"]).fails("UDM-0202");
    udm(&["create", "v", "-u", "u", "-n"]).fails("UDM-0203");
    udm(&["create", "..", "-n"]).fails("UDM-0204");
    udm(&["rename", "t", "--setuuid", "w"]).fails("UDM-0205");
    udm(&["create", "v", "-n"]).ok();
    udm(&["suspend", "v"]).ok();
    udm(&["resume", "v"]).fails("UDM-0207");
    udm(&["remove", "v"]).ok();
    udm(&["load", "v", "--table", "0 8 zero"]).fails("UDM-0201");
    udm(&["suspend", "t"]).ok();
    udm(&["suspend", "t"]).ok();
    udm(&["resume", "t"]).ok();
    udm(&["message", "t", "99", "hello"]).fails("UDM-0303");
    udm(&["message", "t", "0", "hello"]).fails("UDM-0301");
    udm(&["export", "t", "--nbd", "nowhere"]).fails("UDM-0503");
    udm(&["unexport", "t"]).fails("UDM-0502");
    let error = udm(&["--json", "load", "t", "--table", "0 8 zero\n9 8 zero"]);
    let parsed = json_of(&error.err);
    assert_eq!(parsed["error"]["code"], "UDM-0105");
    assert_eq!((&parsed["error"]["line"], &parsed["error"]["errno"]), (&json!(2), &json!(22)));
}

#[test]
fn large_tables_pass_up_to_their_limits() {
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let mut table = String::new();
    for index in 0..20_000_u64 {
        table += &format!("{} 8 {}\n", index * 8, ["zero", "error"][index as usize % 2]);
    }
    place.udm_with(&["create", "many"], &table).ok();
    assert_eq!(place.udm(&["info", "-c", "--noheadings", "-o", "segments"]).ok(), "20000\n");
    assert_eq!(place.udm(&["table", "many"]).ok().lines().count(), 20_000);
    let long = |len: usize| format!("0 8 zero {}", "x".repeat(len - "0 8 zero ".len()));
    place.udm_with(&["create", "long"], &long(1 << 20)).fails("UDM-0111");
    place.udm_with(&["create", "long"], &long((1 << 20) + 1)).fails("UDM-0120");
    assert_eq!(place.udm(&["ls"]).ok(), "many\t(254:0)\n");
}

#[test]
fn an_exported_device_is_busy_until_it_is_unexported() {
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let address = format!("unix:{}", place.text("t.sock"));
    place.udm(&["create", "t", "--table", "0 8 zero"]).ok();
    let uri = place.udm(&["export", "t", "--nbd", &address]).ok();
    assert!(uri.starts_with("nbd+unix:///t?socket=/"), "{uri}");
    place.udm(&["export", "t", "--nbd", &address, "--name", "other"]).fails("UDM-0501");
    place.udm(&["export", "t", "--nbd", "tcp:127.0.0.1:0"]).fails("UDM-0501");
    let tcp = place.udm(&["export", "t", "--nbd", "tcp:127.0.0.1:0", "--name", "u"]).ok();
    assert!(tcp.starts_with("nbd://127.0.0.1:") && !tcp.contains(":0/"), "{tcp}");
    let mut client = UnixStream::connect(place.path("t.sock")).expect("connects");
    let mut greeting = [0; 8];
    client.read_exact(&mut greeting).expect("greets");
    assert_eq!(&greeting, b"NBDMAGIC");
    place.udm(&["remove", "t"]).fails("UDM-0206");
    place.udm(&["remove", "--deferred", "t"]).ok();
    assert!(place.udm(&["info", "t"]).ok().contains("(DEFERRED REMOVE)"));
    place.udm(&["unexport", "t"]).ok();
    place.udm(&["unexport", "u"]).ok();
    assert_eq!(place.udm(&["ls"]).ok(), "No devices found\n");
    assert!(!place.path("t.sock").exists());
}

/// Device `top` with a write that hangs below it, since `below` is suspended.
fn hang(place: &Place) -> Writer {
    let udm = |args: &[&str]| place.udm(args).ok();
    udm(&["create", "below", "--table", "0 2048 linear mem:1M 0"]);
    udm(&["create", "top", "--table", "0 2048 linear dm:below 0"]);
    udm(&["export", "top", "--nbd", &format!("unix:{}", place.text("top.sock"))]);
    udm(&["suspend", "below", "--reason", "array upgrade"]);
    let writer = Writer::start(&place.path("top.sock"), "top");
    place.await_field("below", "held", "1");
    writer
}

fn await_text(place: &Place, args: &[&str], wanted: bool, words: &str) {
    for _ in 0..10_000 {
        if place.udm(args).ok().contains(words) == wanted {
            return;
        }
    }
    panic!("{args:?}: {words} expected to be there: {wanted}");
}

#[test]
fn a_suspend_that_hangs_is_seen_timed_out_given_up_or_ended_by_a_resume() {
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let writer = hang(&place);
    let below = place.udm(&["info", "below"]).ok();
    assert!(below.contains("reason: array upgrade\nIn flight, held:   0, 1\n"), "{below}");
    // Timed out: the device runs on.
    place.udm(&["suspend", "top", "--deadline", "20ms"]).fails("UDM-0210");
    place.await_field("top", "suspended", "Active");
    // Given up by its asker's end.
    let mut asker = place.spawn(&["suspend", "top", "--reason", "maintenance"]);
    await_text(&place, &["info", "top"], true, "draining");
    let top = place.udm(&["info", "top"]).ok();
    assert!(top.contains("reason: maintenance\nIn flight, held:   1, 0\n"), "{top}");
    asker.kill().expect("killed");
    asker.wait().expect("ended");
    await_text(&place, &["info", "top"], false, "draining");
    // Ended by somebody else's resume.
    let asker = place.spawn(&["suspend", "top"]);
    await_text(&place, &["info", "-v", "top"], true, "draining");
    place.udm(&["resume", "top"]).ok();
    let ended = asker.wait_with_output().expect("ended");
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("[UDM-0211]"));
    // Nothing of this was seen by the client.
    place.udm(&["resume", "below"]).ok();
    assert_eq!(writer.error(), 0);
}

#[test]
fn a_suspend_with_on_timeout_fail_fails_what_hangs_and_is_done() {
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let writer = hang(&place);
    place.udm(&["suspend", "top", "--deadline", "20ms", "--on-timeout", "fail"]).ok();
    assert_ne!(writer.error(), 0);
    place.await_field("top", "suspended", "Suspended");
    place.udm(&["resume", "top", "below"]).ok();
    let again = Writer::start(&place.path("top.sock"), "top");
    assert_eq!(again.error(), 0);
}

#[test]
fn the_daemon_ends_although_a_device_never_answers() {
    let place = Place::new();
    let daemon = place.daemon(&[]);
    let _writer = hang(&place);
    daemon.terminate();
    assert!(!place.path("top.sock").exists());
}

#[test]
fn wait_returns_when_its_device_goes() {
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    place.udm(&["create", "t", "--table", "0 8 zero"]).ok();
    // The call is on its way before the removal, so it either waits already or is answered that
    // there is no such device; it never hangs.
    let mut stream = UnixStream::connect(place.path("control.sock")).expect("connects");
    let call = json!({
        "method": "org.udm.control.Wait",
        "parameters": { "device": { "name": "t" }, "event_nr": 0 },
    });
    stream.write_all(format!("{call}\0").as_bytes()).expect("sent");
    place.udm(&["remove", "t"]).ok();
    let mut byte = [0];
    stream.read_exact(&mut byte).expect("answered");
}

#[test]
fn up_serves_what_the_file_says_and_ends_on_request() {
    let place = Place::new();
    let config = place.path("up.toml");
    let text = "[[file]]\npath = \"sub/d.img\"\nsize = \"1M\"\n[[device]]\nname = \"d\"\n\
        table = \"0 2048 linear sub/d.img 0\"\n[[export]]\ndevice = \"d\"\nnbd = \"unix:sub/d.sock\"\n";
    fs::write(&config, text).expect("written");
    let mut up = Command::new(common::UDM)
        .args(["up", "--json", config.to_str().expect("UTF-8")])
        .env("UDM_SOCKET", place.path("control.sock"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut out = std::io::BufReader::new(up.stdout.take().expect("piped"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).expect("its line");
    let ready = json_of(&line);
    assert_eq!(ready["exports"][0]["device"], "d");
    assert_eq!(place.udm(&["status", "d"]).ok(), "0 2048 linear \n");
    assert!(UnixStream::connect(place.path("sub/d.sock")).is_ok());
    let pid = rustix::process::Pid::from_child(&up);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signalled");
    assert!(up.wait().expect("ended").success());
    assert_eq!(fs::metadata(place.path("sub/d.img")).expect("kept").len(), 1 << 20);
    assert!(!place.path("sub/d.sock").exists());
}

#[test]
fn run_gives_the_command_its_device_and_takes_its_exit_code() {
    let place = Place::new();
    let script = format!("test -n \"$UDM_NBD_URI\" && {} table && exit 7", common::UDM);
    let ran = place.udm(&["run", "--table", "0 64 zero", "--", "sh", "-c", &script]);
    assert_eq!((ran.out.as_str(), ran.code), ("run: 0 64 zero \n", Some(7)));
    place.udm(&["run", "--table", "0 64", "--", "true"]).fails("UDM-0102");
}

#[test]
fn forced_removal_of_a_busy_device_leaves_an_error_table() {
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    place.udm(&["create", "t", "--table", "0 8 zero"]).ok();
    place.udm(&["export", "t", "--nbd", &format!("unix:{}", place.text("t.sock"))]).ok();
    place.udm(&["suspend", "t"]).ok();
    place.udm(&["remove", "--force", "t"]).fails("UDM-0206");
    assert_eq!(place.udm(&["table", "t"]).ok(), "0 8 error \n");
    assert_eq!(place.udm(&["info", "-c", "--noheadings", "-o", "suspended"]).ok(), "Active\n");
    place.udm(&["unexport", "t"]).ok();
    place.udm(&["remove", "--force", "--retry", "t"]).ok();
}

#[test]
fn a_service_manager_is_told_when_the_daemon_is_ready_and_when_it_ends() {
    let place = Place::new();
    let manager = UnixDatagram::bind(place.path("notify")).expect("binds");
    let mut daemon = Command::new(common::UDM)
        .args(["daemon", "--socket", &place.text("control.sock")])
        .env("NOTIFY_SOCKET", place.path("notify"))
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    let mut bytes = [0; 64];
    let mut heard = || {
        let count = manager.recv(&mut bytes).expect("told");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    assert_eq!(heard(), "READY=1");
    place.udm(&["ls"]).ok();
    let pid = rustix::process::Pid::from_child(&daemon);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    assert_eq!(heard(), "STOPPING=1");
    assert!(daemon.wait().expect("ended").success());
}

#[test]
fn tools_and_daemon_keep_off_each_others_files() {
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let volume = place.text("volume");
    fs::File::create(&volume).and_then(|file| file.set_len(32 << 20)).expect("a file");
    place.udm(&["compress", "format", &volume]).ok();
    place.udm(&["create", "d", "--table", &format!("0 65536 linear {volume} 0")]).ok();
    let refused = place.udm(&["compress", "check", &volume]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("UDM-0116"), "{}", refused.err);
    place.udm(&["remove", "d"]).ok();
    place.udm(&["compress", "check", &volume]).ok();
    // A tool at work is somebody with the file's lock.
    let tool = fs::File::open(&volume).expect("opened");
    tool.try_lock().expect("locked");
    let line = format!("0 65536 linear {volume} 0");
    let refused = place.udm(&["create", "d", "--table", &line]);
    assert!(refused.err.contains("UDM-0116"), "{}", refused.err);
    drop(tool);
    place.udm(&["create", "d", "--table", &line]).ok();
}

#[test]
fn json_of_every_verb_keeps_to_the_published_schema() {
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let schema: Value =
        serde_json::from_str(include_str!("../../../docs/formats/cli.schema.json")).expect("JSON");
    let address = format!("unix:{}", place.text("t.sock"));
    let lines: &[&[&str]] = &[
        &["create", "t", "-u", "u", "--table", "0 8 zero"],
        &["create", "s", "--table", "0 8 linear dm:t 0"],
        &["load", "t", "--table", "0 8 error"],
        &["suspend", "t", "--reason", "test"],
        &["info"],
        &["info", "-c"],
        &["resume", "t"],
        &["clear", "t"],
        &["rename", "s", "r"],
        &["status"],
        &["table", "t"],
        &["ls"],
        &["ls", "--tree"],
        &["deps"],
        &["targets"],
        &["version"],
        &["export", "t", "--nbd", &address],
        &["exports"],
        &["resize", "t", "8K"],
        &["unexport", "t"],
        &[
            "create",
            "m",
            "--table",
            "0 8 multipath 2 queue_mode bio 0 1 1 round-robin 0 1 1 dm:t 1",
        ],
        &["paths"],
        &["paths", "m", "--check"],
        &["paths", "m", "--no-check"],
        &["remove", "m"],
        &["explain"],
        &["explain", "UDM-0105"],
        &["wait", "t", "99"],
        &["message", "t", "0", "@cancel_deferred_remove"],
        &["remove", "r"],
        &["remove_all"],
    ];
    for line in lines {
        let ran = place.udm(&[&["--json"], *line].concat());
        let value = json_of(&ran.ok());
        check_schema(&schema, &schema, &value, &line.join(" "));
    }
    let volume = place.text("volume");
    fs::File::create(&volume).and_then(|file| file.set_len(32 << 20)).expect("a file");
    for tool in ["format", "check", "stat", "dump", "repair"] {
        let value = json_of(&place.udm(&["--json", "compress", tool, &volume]).ok());
        check_schema(&schema, &schema, &value, tool);
    }
    for line in [&["table", "nope"][..], &["create", "a/b", "-n"]] {
        let ran = place.udm(&[&["--json"], line].concat());
        assert_eq!(ran.code, Some(1));
        check_schema(&schema, &schema, &json_of(&ran.err), &line.join(" "));
    }
}

/// The part of JSON Schema that the published file uses.
fn check_schema(root: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let target = name.strip_prefix("#/$defs/").expect("a local reference");
        let found = root["$defs"].get(target).expect("defined");
        return check_schema(root, found, value, place);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        let fits = |choice: &Value| match choice["type"].as_str() {
            Some("null") => value.is_null(),
            _ => !value.is_null(),
        };
        let choice = choices.iter().find(|choice| fits(choice)).expect("a choice");
        return check_schema(root, choice, value, place);
    }
    let fits = match schema["type"].as_str().expect("a type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the checker does not know {other}"),
    };
    assert!(fits, "{place}: {value} is no {}", schema["type"]);
    for key in schema["required"].as_array().into_iter().flatten() {
        let key = key.as_str().expect("a name");
        assert!(value.get(key).is_some(), "{place}: {key} is missing in {value}");
    }
    for (key, inner) in value.as_object().into_iter().flatten() {
        let known = schema["properties"].get(key);
        let known = known.unwrap_or_else(|| panic!("{place}: {key} is not published"));
        check_schema(root, known, inner, &format!("{place}: {key}"));
    }
    for inner in value.as_array().into_iter().flatten() {
        check_schema(root, &schema["items"], inner, place);
    }
}

/// The masks of capabilities of all threads of a process, by name, and `no_new_privs`.
fn rights(pid: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it lists");
    let statuses = tasks.map(|task| {
        fs::read_to_string(task.expect("listed").path().join("status")).expect("it is there")
    });
    let is_right = |line: &&str| line.starts_with("Cap") || line.starts_with("NoNewPrivs");
    let pair = |line: &str| {
        let (name, value) = line.split_once(":\t").expect("a name and a value");
        (name.to_owned(), value.to_owned())
    };
    statuses
        .flat_map(|status| status.lines().filter(is_right).map(pair).collect::<Vec<_>>())
        .collect()
}

#[test]
fn a_daemon_gives_up_what_it_does_not_need() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not checked: who is not root has nothing to give up");
        return;
    }
    const SYS_ADMIN: u64 = 1 << 21;
    const SYS_RESOURCE: u64 = 1 << 24;
    const NEEDED: u64 = SYS_ADMIN | SYS_RESOURCE | 1 << 14 | 1 << 10 | 1 << 3 | 1 << 1;
    for (more, may) in [(&[][..], NEEDED), (&["--no-privileges"][..], 0)] {
        let place = Place::new();
        let daemon = place.daemon(more);
        let found = rights(daemon.child.id());
        assert!(found.len() >= 12, "every thread is looked at");
        for (name, value) in found {
            if name == "NoNewPrivs" {
                assert_eq!(value, "1");
                continue;
            }
            let mask = u64::from_str_radix(&value, 16).expect("a mask");
            assert_eq!(mask & !may, 0, "{name} of a thread is {mask:x}");
        }
        place.udm(&["create", "d", "--table", "0 8 zero"]).ok();
        place.udm(&["export", "d", "--nbd", &format!("unix:{}", place.text("n"))]).ok();
        let low = place.udm(&["export", "d", "--nbd", "tcp:127.0.0.1:9", "--name", "low"]);
        match (may, low.code) {
            // Whoever may do more than udm knows of (a sysctl) may do this, too.
            (_, Some(0)) => {}
            _ => assert!(low.fails("UDM-0504").contains("CAP_NET_BIND_SERVICE"), "it says why"),
        }
        if may == 0 && std::path::Path::new("/dev/fuse").exists() {
            let refused = place.udm(&["export", "d", "--fuse", &place.text("f"), "--name", "f"]);
            assert!(refused.fails("UDM-0505").contains("--no-privileges"), "it says why");
        }
    }
}
