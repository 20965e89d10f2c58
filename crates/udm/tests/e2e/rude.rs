//! Bad input of every kind, while another client's verified I/O goes on.
//!
//! Each case is given twice, for its words and for its JSON; both must name the code, and line and
//! field where there is one. After each case every table, name and export is as it was, and the
//! verified client has made further rounds.

use super::common::{Daemon, Place};
use super::nbd::{NbdClient, WRITE};
use super::outside::{LIMIT, until};
use super::verified::Verified;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

/// A daemon with two devices, both exported, and a client on one.
struct Scene {
    place: Place,
    daemon: Daemon,
    disk: String,
    verified: Verified,
    before: Value,
}

impl Scene {
    fn start() -> Scene {
        let place = Place::new();
        let daemon = place.daemon(&["--lanes", "2"]);
        let disk = place.file("disk.img", 4 << 20);
        place.udm(&["create", "good", "--table", &format!("0 8192 linear {disk} 0")]).ok();
        place.udm(&["load", "good", "--table", "0 16 zero"]).ok();
        place.udm(&["create", "other", "--table", "0 8192 linear mem:4M 0"]).ok();
        place.udm(&["create", "above", "--table", "0 8192 linear dm:other 0"]).ok();
        place.udm(&["export", "good", "--nbd", &format!("unix:{}", place.text("g.sock"))]).ok();
        place.udm(&["export", "above", "--nbd", &format!("unix:{}", place.text("a.sock"))]).ok();
        let verified = Verified::start(&place.path("g.sock"), "good");
        let before = told(&place);
        Scene { place, daemon, disk, verified, before }
    }

    /// Nothing has changed and the verified client goes on.
    #[track_caller]
    fn is_untouched(&self, after: &str) {
        assert_eq!(told(&self.place), self.before, "after {after}");
        self.verified.goes_on();
    }

    /// One case, in words and in JSON.
    #[track_caller]
    fn refuses(&self, args: &[&str], input: &str, case: Case) {
        let Case { code, line, field, words } = case;
        let what: String = args.join(" ").chars().take(80).collect();
        let ran = self.place.udm_with(args, input);
        assert_eq!(ran.code, Some(1), "{what}: {}", ran.err);
        assert!(ran.err.contains(&format!("[{code}]")), "{what}, {code}: {}", ran.err);
        assert!(ran.err.contains(words), "{what}, {words}: {}", ran.err);
        let at = match (line, field) {
            (Some(line), Some(field)) => format!("line {line}, field {field}: "),
            (Some(line), None) => format!("line {line}: "),
            (None, _) => String::new(),
        };
        assert!(ran.err.contains(&at), "{what}, {at}: {}", ran.err);
        assert!(ran.out.is_empty(), "{what}: {}", ran.out);
        let ran = self.place.udm_with(&[&["--json"], args].concat(), input);
        assert_eq!(ran.code, Some(1), "{what}: {}", ran.err);
        let error: Value = serde_json::from_str(&ran.err).expect("JSON");
        let error = &error["error"];
        assert_eq!(error["code"], code, "{what}: {error}");
        assert_eq!(error["line"].as_u64(), line, "{what}: {error}");
        assert_eq!(error["field"].as_u64(), field, "{what}: {error}");
        assert!(error["errno"].as_i64() > Some(0), "{what}: {error}");
        self.is_untouched(&what);
    }

    fn end(self) {
        self.verified.end();
        self.daemon.terminate();
    }
}

/// Tables, names and exports, without what is counted.
fn told(place: &Place) -> Value {
    let ask =
        |args: &[&str]| -> Value { serde_json::from_str(&place.udm(args).ok()).expect("JSON") };
    let mut live = ask(&["--json", "table"]);
    for device in live["devices"].as_array_mut().expect("devices") {
        device["device"].as_object_mut().expect("a device").remove("open_count");
    }
    let mut exports = ask(&["--json", "exports"]);
    for export in exports["exports"].as_array_mut().expect("exports") {
        export.as_object_mut().expect("an export").remove("connections");
    }
    serde_json::json!([live, ask(&["--json", "table", "--inactive", "good"])["lines"], exports])
}

/// What is expected of a case.
struct Case {
    code: &'static str,
    line: Option<u64>,
    field: Option<u64>,
    words: &'static str,
}

fn at(code: &'static str, line: u64, field: u64, words: &'static str) -> Case {
    Case { code, line: Some(line), field: Some(field), words }
}

fn whole(code: &'static str, words: &'static str) -> Case {
    Case { code, line: None, field: None, words }
}

#[test]
fn bad_tables_name_their_place_and_touch_nothing() {
    let scene = Scene::start();
    let disk = &scene.disk;
    let small = scene.place.file("small.img", 4096);
    let linear = |rest: &str| format!("0 8 linear {rest}");
    let cases = [
        (
            format!("0 8 zero\n16 8 linear {disk} 0"),
            at("UDM-0105", 2, 1, "starts at 16, expected 8"),
        ),
        (format!("0 8 zero\n4 8 linear {disk} 0"), at("UDM-0106", 2, 1, "overlaps")),
        ("0 0 zero".to_owned(), at("UDM-0104", 1, 2, "length is 0")),
        ("0 18446744073709551616 zero".to_owned(), at("UDM-0107", 1, 2, "64 bits")),
        ("0 18446744073709551615 zero".to_owned(), at("UDM-0107", 1, 2, "is beyond")),
        (linear(&format!("{disk} 99999999999999999999")), at("UDM-0107", 1, 5, "64 bits")),
        ("0 8 linnear x 0".to_owned(), at("UDM-0108", 1, 3, "did you mean 'linear'?")),
        (linear(disk), at("UDM-0110", 1, 5, "usage: START LENGTH linear")),
        (linear(&format!("{disk} 0 7")), at("UDM-0111", 1, 6, "3 arguments")),
        (linear(&format!("{disk}.not 0")), at("UDM-0115", 1, 4, "there is no")),
        (linear("dm:nosuch 0"), at("UDM-0201", 1, 4, "'nosuch'")),
        (linear(&format!("{disk} x")), at("UDM-0103", 1, 5, "found 'x'")),
        ("0 16 striped 0 8".to_owned(), at("UDM-0112", 1, 4, "the number of stripes")),
    ];
    for (table, case) in cases {
        let Case { code, line, field, words } = case;
        let case = || Case { code, line, field, words };
        scene.refuses(&["load", "good", "--table", &table], "", case());
        scene.refuses(&["create", "new", "--table", &table], "", case());
    }
    let table = format!("0 16 linear {small} 0");
    let ran = scene.place.udm(&["load", "good", "--table", &table]).fails("UDM-0113");
    assert!(ran.contains("line 1") && ran.contains("has 8 sectors"), "{ran}");
    scene.is_untouched("a device that is too small");
    for (name, below) in [("good", "good"), ("other", "above")] {
        let table = linear(&format!("dm:{below} 0"));
        let ran = scene.place.udm(&["load", name, "--table", &table]).fails("UDM-0117");
        assert!(ran.contains("below itself"), "{ran}");
        scene.is_untouched("a device below itself");
    }
    scene.end();
}

#[test]
fn bad_names_and_states_and_sizes_touch_nothing() {
    let scene = Scene::start();
    let one = ["--table", "0 8 zero"];
    let create = |name| [&["create", name][..], &one].concat();
    scene.refuses(&create("good"), "", whole("UDM-0202", "a device named 'good' exists"));
    scene.refuses(&create("control"), "", whole("UDM-0204", "reserved"));
    scene.refuses(&create(""), "", whole("UDM-0204", "empty"));
    scene.refuses(&create("a/b"), "", whole("UDM-0204", "invalid. It contains \"/\"."));
    let long = "n".repeat(128);
    scene.refuses(&create(&long), "", whole("UDM-0204", "too long"));
    scene.refuses(&["rename", "good", "other"], "", whole("UDM-0202", "'other'"));
    scene.place.udm(&create("gone")).ok();
    scene.place.udm(&["remove", "gone"]).ok();
    scene.refuses(&["load", "gone", one[0], one[1]], "", whole("UDM-0201", "'gone'"));
    scene.refuses(&["suspend", "gone"], "", whole("UDM-0201", "No such device or address"));
    scene.refuses(&["remove", "good"], "", whole("UDM-0206", "open"));
    scene.refuses(&["load", "good"], "", whole("UDM-0101", "no lines"));
    scene.refuses(&["unexport", "gone"], "", whole("UDM-0502", "'gone'"));
    let taken = format!("unix:{}", scene.place.text("g.sock"));
    scene.refuses(&["export", "good", "--nbd", &taken], "", whole("UDM-0501", "export"));
    // A table of one line, longer than any may be, and one of the longest with too many words.
    let long = |len: usize| format!("0 8 zero {}", "x ".repeat(len / 2));
    let too_large = Case { code: "UDM-0120", line: Some(1), field: None, words: "the limit is" };
    scene.refuses(&["load", "good"], &long((1 << 20) + 2), too_large);
    scene.refuses(&["load", "good"], &long((1 << 20) - 16), at("UDM-0111", 1, 4, "arguments"));
    // Many lines are fine, unless one is not.
    let many = |count: u64| -> String {
        (0..count).map(|line| format!("{} 1 linear {} 0\n", line, scene.disk)).collect()
    };
    let gap = many(20_000) + "20001 1 zero\n";
    scene.refuses(&["load", "good"], &gap, at("UDM-0105", 20_001, 1, "a gap"));
    scene.place.udm_with(&["create", "many"], &many(20_000)).ok();
    scene.verified.goes_on();
    scene.place.udm(&["remove", "many"]).ok();
    // Suspending twice is no mistake in Linux; resuming with nothing to resume is one.
    scene.place.udm(&["create", "bare", "--notable"]).ok();
    scene.place.udm(&["suspend", "bare"]).ok();
    scene.place.udm(&["suspend", "bare"]).ok();
    scene.place.udm(&["resume", "bare"]).fails("UDM-0207");
    scene.place.udm(&["remove", "bare"]).ok();
    scene.is_untouched("all of it");
    let usage = scene.place.udm(&["frobnicate"]);
    assert_eq!(usage.code, Some(2), "wrong usage is 2");
    scene.end();
}

/// Bytes that mean nothing, of a seed.
fn garbage(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Reads until the other side closes; a reset is an end too.
fn drained(stream: &mut UnixStream) -> Vec<u8> {
    stream.set_read_timeout(Some(LIMIT)).expect("set");
    let (mut all, mut some) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut some) {
            Ok(0) => return all,
            Ok(len) => all.extend(&some[..len]),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                return all;
            }
        }
    }
}

#[test]
fn rude_nbd_clients_lose_their_connection_and_nothing_else() {
    let scene = Scene::start();
    let socket = scene.place.path("g.sock");
    let connections = || -> Value {
        let told = scene.place.udm(&["--json", "exports"]).ok();
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let exports = told["exports"].as_array().expect("exports").clone();
        let good = exports.into_iter().find(|export| export["name"] == "good");
        good.expect("exported")["connections"].clone()
    };
    for seed in 0..8 {
        // Garbage instead of the flags, and instead of a request.
        let mut stream = UnixStream::connect(&socket).expect("connected");
        // The other side may close before it has read all.
        let _ = stream.write_all(&garbage(seed, 64 << 10));
        drained(&mut stream);
        let mut client = NbdClient::connect(&socket, "good").expect("connected");
        let _ = client.stream.write_all(&garbage(seed, 64 << 10));
        drained(&mut client.stream);
        // Half a write, then gone.
        let mut client = NbdClient::connect(&socket, "good").expect("connected");
        client.send(WRITE, 0, 2 << 20, 1 << 20).expect("sent");
        client.stream.write_all(&[0xEE; 500_000]).expect("sent");
        drop(client);
        // Replies nobody takes.
        let mut client = NbdClient::connect(&socket, "good").expect("connected");
        for _ in 0..64 {
            if client.send(super::nbd::READ, 0, 0, 1 << 20).is_err() {
                break;
            }
        }
        drop(client);
        scene.is_untouched("a rude client");
    }
    // A name nobody knows is refused; a length beyond the end is an error, not an end.
    assert!(NbdClient::connect(&socket, "nosuch").is_err());
    let mut client = NbdClient::connect(&socket, "good").expect("connected");
    assert!(client.read(4 << 20, 512).expect("connected").is_err());
    client.read(0, 512).expect("connected").expect("the connection goes on");
    drop(client);
    until("all rude clients are gone", || (connections() == 1).then_some(()));
    let tcp = ["export", "other", "--nbd", "tcp:127.0.0.1:0", "--name", "tcp"];
    let uri = scene.place.udm(&tcp).ok();
    let host = uri.trim().trim_start_matches("nbd://").split('/').next().expect("a host");
    let mut stream = TcpStream::connect(host).expect("connected");
    let _ = stream.write_all(&garbage(99, 1 << 20));
    drop(stream);
    scene.place.udm(&["unexport", "tcp"]).ok();
    scene.is_untouched("garbage over TCP");
    scene.end();
}

#[test]
fn garbage_on_the_control_socket_is_answered_or_hung_up_on() {
    let scene = Scene::start();
    let socket = scene.place.path("control.sock");
    let connect = || UnixStream::connect(&socket).expect("connected");
    let calls = [
        "{}",
        "[]",
        "7",
        "{\"method\":7}",
        "{\"method\":\"org.udm.control.Nothing\",\"parameters\":{}}",
        "{\"method\":\"org.udm.control.Load\",\"parameters\":{\"table\":[]}}",
        "{\"method\":\"org.udm.control.Remove\",\"parameters\":{\"device\":{}}}",
        "{\"method\":\"org.udm.control.Remove\"",
    ];
    for call in calls {
        let mut stream = connect();
        stream.write_all(call.as_bytes()).expect("sent");
        stream.write_all(&[0]).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("shut");
        let answer = String::from_utf8(drained(&mut stream)).expect("UTF-8");
        assert!(answer.is_empty() || answer.contains("\"error\""), "{call}: {answer}");
        scene.is_untouched(call);
    }
    for seed in 0..8 {
        let mut stream = connect();
        // The other side may close before it has read all.
        let _ = stream.write_all(&garbage(seed, 256 << 10));
        let _ = stream.shutdown(std::net::Shutdown::Write);
        drained(&mut stream);
        // A message that never ends.
        let mut stream = connect();
        let _ = stream.write_all(&vec![b'x'; 32 << 20]);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        drained(&mut stream);
        // Half a call, then gone.
        connect().write_all(b"{\"method\":\"org.udm").expect("sent");
        scene.is_untouched("garbage");
    }
    scene.end();
}
