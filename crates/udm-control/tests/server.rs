//! The control socket with real sockets and a daemon that has no engine: what clients can do to it,
//! and what they cannot.

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use udm_control::api::{self, ExportState, PathPolicy, PathStatus, Selector, TargetType};
use udm_control::ops::ExportOrder;
use udm_control::server::CLIENTS_MAX;
use udm_control::{Client, ControlOps, INTERFACE_TEXT, Server};
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::{DM_MAJOR, DeviceKey, DeviceStatus, Reply, ReplySink, Request, Ticket};
use udm_core::table::TableLine;
use udm_types::{DeviceId, DmName};

/// What the daemon was asked that a test waits for.
#[derive(Debug, PartialEq)]
enum Seen {
    Waiting(Ticket),
    Cancelled(Ticket),
}

/// A daemon with one device, whose event number tests raise.
struct Fake {
    waiting: Mutex<BTreeMap<Ticket, ReplySink>>,
    seen: Mutex<Sender<Seen>>,
    tickets: AtomicU64,
}

fn device(event_nr: u32) -> Box<DeviceStatus> {
    Box::new(DeviceStatus {
        id: DeviceId(0),
        name: DmName::new("d").expect("a name"),
        uuid: None,
        major: DM_MAJOR,
        minor: 0,
        suspended: false,
        suspend: None,
        read_only: false,
        live_present: true,
        inactive_present: false,
        deferred_remove: false,
        open_count: 0,
        event_nr,
        target_count: 1,
        inactive_target_count: 0,
        inactive_read_only: false,
        len_sectors: 8,
        geometry: None,
        request_based: false,
        holds_writes: false,
    })
}

impl Fake {
    fn see(&self, seen: Seen) {
        self.seen.lock().expect("whole").send(seen).expect("the test listens");
    }

    /// Ends what waits under a ticket.
    fn finish(&self, ticket: Ticket, result: Result<Reply, UserError>) {
        let sink = self.waiting.lock().expect("whole").remove(&ticket);
        sink.expect("it waits")(result);
    }
}

impl ControlOps for Fake {
    fn post(&self, request: Request, reply: ReplySink) {
        match request {
            Request::List => reply(Ok(Reply::List(vec![*device(0)]))),
            Request::Status { .. } => reply(Ok(Reply::Done(Some(device(0))))),
            Request::GlobalEvent => reply(Ok(Reply::Number(5))),
            Request::Wait { ticket, .. }
            | Request::WaitGlobal { event_nr: 5, ticket }
            | Request::Suspend { ticket, .. } => {
                self.waiting.lock().expect("whole").insert(ticket, reply);
                self.see(Seen::Waiting(ticket));
            }
            Request::Cancel { ticket } => {
                let error = UserError::new(ErrorCode::SuspendCancelled, "given up");
                self.finish(ticket, Err(error));
                self.see(Seen::Cancelled(ticket));
            }
            other => {
                let text = format!("not expected: {other:?}");
                reply(Err(UserError::new(ErrorCode::Internal, text)));
            }
        }
    }

    fn ticket(&self) -> Ticket {
        self.tickets.fetch_add(1, Ordering::Relaxed)
    }

    fn load_lines(
        &self,
        _: &DeviceKey,
        _: &[TableLine],
        _: bool,
    ) -> Result<Box<DeviceStatus>, UserError> {
        Err(UserError::new(ErrorCode::Gap, "a gap").at_line(2).at_field(1).hint("close it"))
    }

    fn targets(&self) -> Vec<TargetType> {
        Vec::new()
    }

    fn version(&self) -> String {
        "0".into()
    }

    fn export(&self, _: ExportOrder) -> Result<ExportState, UserError> {
        Err(UserError::new(ErrorCode::BadAddress, "no"))
    }

    fn unexport(&self, _: &str) -> Result<(), UserError> {
        Ok(())
    }

    fn exports(&self) -> Vec<ExportState> {
        Vec::new()
    }

    fn paths(&self, _: Option<&DeviceKey>) -> Result<Vec<PathStatus>, UserError> {
        Ok(Vec::new())
    }

    fn check_paths(&self, _: &DeviceKey, _: Option<PathPolicy>) -> Result<(), UserError> {
        Ok(())
    }

    fn shutdown(&self) {}
}

struct World {
    _dir: TempDir,
    path: PathBuf,
    fake: Arc<Fake>,
    seen: Receiver<Seen>,
    server: Server,
}

fn world() -> World {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("run").join("control.sock");
    let (sender, seen) = channel();
    let fake = Arc::new(Fake {
        waiting: Mutex::default(),
        seen: Mutex::new(sender),
        tickets: AtomicU64::new(1),
    });
    let ops: Arc<dyn ControlOps> = Arc::<Fake>::clone(&fake);
    let server = Server::start(&path, ops).expect("starts");
    World { _dir: dir, path, fake, seen, server }
}

/// Sends raw bytes, and reads one answer.
fn raw(stream: &mut UnixStream, bytes: &[u8]) -> Value {
    stream.write_all(bytes).expect("sent");
    answer(stream)
}

fn answer(stream: &mut UnixStream) -> Value {
    let mut message = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        if byte[0] == 0 {
            return serde_json::from_slice(&message).expect("JSON");
        }
        message.push(byte[0]);
    }
}

fn call(method: &str, parameters: Value) -> Vec<u8> {
    let mut bytes = json!({ "method": method, "parameters": parameters }).to_string().into_bytes();
    bytes.push(0);
    bytes
}

fn is_closed(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_))
}

#[test]
fn garbage_is_answered_and_cut_off_and_harms_nobody_else() {
    let world = world();
    let mut other = Client::connect(&world.path).expect("connects");
    for garbage in [&b"\xff\xfe\0"[..], b"{\0", b"GET / HTTP/1.1\r\n\r\n\0", b"[]\0", b"7\0", b"\0"]
    {
        let mut stream = UnixStream::connect(&world.path).expect("connects");
        let error = raw(&mut stream, garbage);
        assert_eq!(error["error"], "org.udm.control.Error", "{garbage:?}");
        assert_eq!(error["parameters"]["code"], "UDM-0401");
        assert!(is_closed(&mut stream), "{garbage:?}");
        assert_eq!(other.call(&api::List {}).expect("lives").devices.len(), 1);
    }
    // Half a message and gone.
    let mut stream = UnixStream::connect(&world.path).expect("connects");
    stream.write_all(b"{\"method\":").expect("sent");
    drop(stream);
    other.call(&api::Ping {}).expect("lives");
}

#[test]
fn mistakes_in_a_call_are_answered_and_the_connection_lives() {
    let world = world();
    let mut stream = UnixStream::connect(&world.path).expect("connects");
    let mut ask = |method: &str, parameters: Value| raw(&mut stream, &call(method, parameters));
    let unknown = ask("org.udm.control.Nothing", json!({}));
    assert_eq!(unknown["error"], "org.varlink.service.MethodNotFound");
    assert_eq!(unknown["parameters"]["method"], "org.udm.control.Nothing");
    let elsewhere = ask("com.example.Thing", json!({}));
    assert_eq!(elsewhere["error"], "org.varlink.service.InterfaceNotFound");
    let misspelt = ask("org.udm.control.Create", json!({ "name": "a", "uid": "b" }));
    assert_eq!(misspelt["parameters"]["code"], "UDM-0403");
    assert!(misspelt["parameters"]["message"].as_str().expect("text").contains("`uid`"));
    let nobody = ask("org.udm.control.Status", json!({ "device": {} }));
    assert_eq!(nobody["parameters"]["code"], "UDM-0403");
    for name in ["", "a/b", "control", "..", &"n".repeat(128)] {
        let bad = ask("org.udm.control.Create", json!({ "name": name }));
        assert_eq!(bad["parameters"]["code"], "UDM-0204", "{name}");
        assert_eq!(bad["parameters"]["errno"], 22);
    }
    let info = ask("org.varlink.service.GetInfo", json!({}));
    assert_eq!(info["parameters"]["interfaces"][1], "org.udm.control");
    let text = ask(
        "org.varlink.service.GetInterfaceDescription",
        json!({ "interface": "org.udm.control" }),
    );
    assert_eq!(text["parameters"]["description"], INTERFACE_TEXT);
}

#[test]
fn an_error_arrives_with_its_place_and_its_hint() {
    let world = world();
    let mut client = Client::connect(&world.path).expect("connects");
    let load =
        api::Load { device: Selector::name("d"), table: "0 8 zero".into(), ..api::Load::default() };
    let error = client.call(&load).expect_err("a gap");
    assert_eq!(error.code(), ErrorCode::Gap);
    assert_eq!((error.line(), error.field(), error.hint_text()), (Some(2), Some(1), "close it"));
}

#[test]
fn a_client_that_leaves_while_it_waits_is_cancelled_by_its_ticket() {
    let world = world();
    let mut stream = UnixStream::connect(&world.path).expect("connects");
    let parameters = json!({ "device": { "name": "d" } });
    stream.write_all(&call("org.udm.control.Suspend", parameters)).expect("sent");
    let Seen::Waiting(ticket) = world.seen.recv().expect("asked") else {
        panic!("expected a wait");
    };
    drop(stream);
    assert_eq!(world.seen.recv().expect("told"), Seen::Cancelled(ticket));
}

#[test]
fn a_client_that_only_stopped_sending_still_gets_its_answer() {
    let world = world();
    let mut stream = UnixStream::connect(&world.path).expect("connects");
    let parameters = json!({ "device": { "name": "d" }, "event_nr": 0 });
    stream.write_all(&call("org.udm.control.Wait", parameters)).expect("sent");
    stream.shutdown(Shutdown::Write).expect("half closed");
    let Seen::Waiting(ticket) = world.seen.recv().expect("asked") else {
        panic!("expected a wait");
    };
    world.fake.finish(ticket, Ok(Reply::Done(Some(device(1)))));
    assert_eq!(answer(&mut stream)["parameters"]["device"]["event_nr"], 1);
}

#[test]
fn events_come_one_by_one_until_the_caller_has_enough() {
    let world = world();
    let fake = Arc::clone(&world.fake);
    let path = world.path.clone();
    let caller = std::thread::spawn(move || {
        let mut seen = Vec::new();
        let mut client = Client::connect(&path).expect("connects");
        let call = api::Events { device: Selector::name("d"), event_nr: None };
        let streamed = client.stream(&call, |answer: api::DeviceAnswer| {
            seen.push(answer.device.map(|device| device.event_nr));
            if seen.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        streamed.expect("streams");
        seen
    });
    for event_nr in [1, 2] {
        let Seen::Waiting(ticket) = world.seen.recv().expect("asked") else {
            panic!("expected a wait");
        };
        fake.finish(ticket, Ok(Reply::Done(Some(device(event_nr)))));
    }
    assert_eq!(caller.join().expect("ends"), [Some(0), Some(1), Some(2)]);
}

#[test]
fn the_end_of_the_server_answers_those_who_wait_and_removes_the_socket() {
    let world = world();
    let mut stream = UnixStream::connect(&world.path).expect("connects");
    let idle = UnixStream::connect(&world.path).expect("connects");
    let parameters = json!({ "device": { "name": "d" }, "event_nr": 0 });
    stream.write_all(&call("org.udm.control.Wait", parameters)).expect("sent");
    world.seen.recv().expect("asked");
    world.server.stop();
    assert_eq!(answer(&mut stream)["parameters"]["code"], "UDM-0211");
    assert!(is_closed(&mut stream));
    assert!(!world.path.exists());
    drop(idle);
}

#[test]
fn socket_and_directory_are_their_owners_alone() {
    let world = world();
    let mode = |path: &std::path::Path| fs::metadata(path).expect("there").permissions().mode();
    assert_eq!(mode(&world.path) & 0o777, 0o600);
    assert_eq!(mode(world.path.parent().expect("has one")) & 0o777, 0o700);
}

#[test]
fn a_live_socket_is_left_alone_and_a_dead_one_is_replaced() {
    let world = world();
    let second: Arc<dyn ControlOps> = Arc::<Fake>::clone(&world.fake);
    let error = Server::start(&world.path, Arc::clone(&second)).err().expect("taken");
    assert_eq!(error.code(), ErrorCode::SocketInUse);
    Client::connect(&world.path).expect("lives").call(&api::Ping {}).expect("answers");
    let path = world.path.clone();
    world.server.stop();
    // What a killed daemon leaves: a socket file that nobody listens on.
    drop(UnixListener::bind(&path).expect("binds"));
    assert!(path.exists());
    let third = Server::start(&path, second).expect("replaces it");
    Client::connect(&path).expect("connects").call(&api::Ping {}).expect("answers");
    third.stop();
}

/// As many clients as there may be.
fn crowd(world: &World) -> Vec<Client> {
    // Both ends of every connection are in this process.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("allowed");
    let admitted = |_| {
        let mut client = Client::connect(&world.path).expect("connects");
        client.call(&api::Ping {}).expect("is admitted");
        client
    };
    (0..CLIENTS_MAX).map(admitted).collect()
}

#[test]
fn one_client_too_many_is_told_so() {
    let world = world();
    let mut clients = crowd(&world);
    // The first has waited for room in vain; whoever comes after it does not wait.
    for _ in 0..2 {
        let mut late = UnixStream::connect(&world.path).expect("connects");
        assert_eq!(answer(&mut late)["parameters"]["code"], "UDM-0406");
        assert!(is_closed(&mut late));
    }
    clients[0].call(&api::Ping {}).expect("the others live");
    clients.truncate(CLIENTS_MAX / 2);
    let admitted = |_| Client::connect(&world.path).expect("connects").call(&api::Ping {}).is_ok();
    assert!((0..1000).any(admitted), "the door stays shut");
}

/// Sixty-four programs at once were refused on a busy machine: the threads of a thousand clients
/// had not yet noticed that their clients had gone.
#[test]
fn one_client_too_many_waits_for_one_who_leaves() {
    let world = world();
    let mut clients = crowd(&world);
    for _ in 0..20 {
        let mut late = UnixStream::connect(&world.path).expect("connects");
        late.write_all(&call("org.udm.control.Ping", json!({}))).expect("sent");
        late.set_read_timeout(Some(Duration::from_millis(5))).expect("set");
        late.read(&mut [0]).expect_err("it is neither served nor refused yet");
        late.set_read_timeout(None).expect("set");
        drop(clients.pop());
        assert_eq!(answer(&mut late)["error"], Value::Null);
        drop(late);
        clients.push(Client::connect(&world.path).expect("connects"));
        clients[CLIENTS_MAX - 1].call(&api::Ping {}).expect("there is room");
    }
}

#[test]
fn a_server_whose_clients_are_too_many_ends_at_once() {
    let world = world();
    let clients = crowd(&world);
    let late = UnixStream::connect(&world.path).expect("connects");
    world.server.stop();
    assert!(!world.path.exists());
    drop((clients, late));
}

#[test]
fn a_client_that_never_reads_does_not_keep_the_server_from_its_end() {
    let world = world();
    let mut stream = UnixStream::connect(&world.path).expect("connects");
    stream.set_nonblocking(true).expect("set");
    let parameters = json!({ "interface": "org.udm.control" });
    let call = call("org.varlink.service.GetInterfaceDescription", parameters);
    // Until the server has stopped reading, because nobody takes its answers.
    while stream.write_all(&call).is_ok() {}
    world.server.stop();
    assert!(!world.path.exists());
}

#[test]
fn descriptors_nobody_asked_for_are_closed() {
    let world = world();
    let mut stream = UnixStream::connect(&world.path).expect("connects");
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let fds = [writer.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let bytes = call("org.udm.control.Ping", json!({}));
    sendmsg(&stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty()).expect("sent");
    assert_eq!(answer(&mut stream)["parameters"], json!({}));
    drop(writer);
    // Every writing end is closed, so the pipe is at its end instead of blocking.
    let mut byte = [0];
    assert_eq!(rustix::io::read(&reader, &mut byte).expect("read"), 0);
}

/// Reads one more answer.
fn next(stream: &mut UnixStream) -> Value {
    raw(stream, b"")
}

#[test]
fn a_poll_tells_the_number_now_and_once_it_has_changed() {
    let world = world();
    let mut stream = UnixStream::connect(&world.path).expect("connects");
    let poll = b"{\"method\":\"org.udm.control.DmPoll\",\"more\":true}\0";
    let now = raw(&mut stream, poll);
    assert_eq!((&now["parameters"]["event_nr"], &now["continues"]), (&json!(5), &json!(true)));
    let Seen::Waiting(ticket) = world.seen.recv().expect("asked") else { panic!("no wait") };
    world.fake.finish(ticket, Ok(Reply::Number(7)));
    let then = next(&mut stream);
    assert_eq!((&then["parameters"]["event_nr"], &then["continues"]), (&json!(7), &Value::Null));
    // A poll while another one waits ends that one and counts anew; two in one go as well.
    raw(&mut stream, poll);
    stream.write_all(&[&poll[..], poll].concat()).expect("sent");
    for _ in 0..2 {
        assert_eq!(next(&mut stream)["continues"], Value::Null);
        assert_eq!(next(&mut stream)["continues"], json!(true));
    }
    let mut waiting = 0_i32;
    for _ in 0..5 {
        waiting += match world.seen.recv().expect("seen") {
            Seen::Waiting(_) => 1,
            Seen::Cancelled(_) => -1,
        };
    }
    assert_eq!(waiting, 1);
    let alone = raw(&mut stream, &call("org.udm.control.DmPoll", json!({})));
    assert_eq!(alone["continues"], Value::Null);
    assert_eq!(next(&mut stream)["parameters"]["code"], "UDM-0403");
}
