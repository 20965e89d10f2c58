//! Sockets that were made by somebody else: `udm up` and the daemon started as systemd starts them.
//!
//! The starter is a shell of one line: it inherits the socket, says by the environment who it is,
//! and becomes udm, so the process number is right.

use super::common::{Place, UDM};
use super::outside::{have, run, until};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

/// A running udm; killed on drop.
struct Served(Child);

impl Served {
    fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("asked").is_none()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts udm with one socket as descriptor 3, called `disk`.
fn start_with(socket: OwnedFd, place: &Place, args: &[&str]) -> Served {
    // Standard input becomes the socket in the child; the shell moves it to 3.
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=disk exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", UDM]).args(args);
    command.env("UDM_SOCKET", place.path("control.sock"));
    command.stdin(Stdio::from(socket)).stdout(Stdio::null());
    Served(command.spawn().expect("started"))
}

fn await_export(place: &Place, served: &mut Served, words: &str) {
    until("it is served", || {
        assert!(served.is_running(), "it has ended");
        place.udm(&["exports"]).out.contains(words).then_some(())
    });
}

#[test]
fn up_serves_on_a_socket_it_was_given() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let place = Place::new();
    let path = place.path("given.sock");
    let socket = UnixListener::bind(&path).expect("a socket");
    let text = "[[device]]\nname = \"disk\"\ntable = \"0 8192 linear mem:4M 0\"\n\n\
        [[export]]\ndevice = \"disk\"\nnbd = \"fd:3\"\n";
    std::fs::write(place.path("up.toml"), text).expect("written");
    let file = place.text("up.toml");
    let mut served = start_with(OwnedFd::from(socket), &place, &["up", &file]);
    await_export(&place, &mut served, "nbd+unix");
    let uri = format!("nbd+unix:///disk?socket={}", path.display());
    assert_eq!(run("nbdinfo", &["--size", &uri]).ok(), "4194304\n");
    drop(served);
    assert!(path.exists(), "the socket's file is not udm's to remove");
}

#[test]
fn a_socket_goes_on_listening_after_its_export() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let place = Place::new();
    let socket = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let port = socket.local_addr().expect("known").port();
    let mut daemon = start_with(OwnedFd::from(socket), &place, &["daemon"]);
    await_export(&place, &mut daemon, "No exports");
    place.udm(&["create", "disk", "--table", "0 8192 linear mem:4M 0"]).ok();
    // By its name, by its number, and again: the socket is the service manager's as well.
    for address in ["fd:disk", "fd:3", "fd:3"] {
        let uri = place.udm(&["export", "disk", "--nbd", address]).ok();
        assert_eq!(uri.trim(), format!("nbd://127.0.0.1:{port}/disk"));
        assert_eq!(run("nbdinfo", &["--size", uri.trim()]).ok(), "4194304\n");
        place.udm(&["unexport", "disk"]).ok();
    }
    for address in ["fd:4", "fd:0", "fd:nobody"] {
        let error = place.udm(&["export", "disk", "--nbd", address]).fails("UDM-0503");
        assert!(error.contains("names: 'disk'"), "{error}");
    }
}

#[test]
fn without_passed_sockets_there_is_none() {
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    place.udm(&["create", "disk", "--table", "0 8192 linear mem:4M 0"]).ok();
    let error = place.udm(&["export", "disk", "--nbd", "fd:3"]).fails("UDM-0503");
    assert!(error.contains("LISTEN_FDS"), "{error}");
}
