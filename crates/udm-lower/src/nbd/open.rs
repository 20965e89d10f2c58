//! Opening an export: the first connection and its handshake, with a deadline.
//!
//! Runs on the control side when a table is loaded, so it may wait; for [`OPEN_MS`] at the most,
//! over all addresses of the host. What it learns decides the device's size and limits. The
//! connection is not thrown away: the first lane that opens the device takes it over, so a server
//! that serves one client and then ends (`qemu-nbd` without `--persistent`) is enough.
//!
//! The name of a host is resolved here, once: a lane must not wait for that. A server that moves to
//! another address is found by the next table that names it when nobody has the device open.

use super::handshake::{Agreed, Handshake, Progress};
use super::state::{NbdShared, Promise};
use super::uri::{NbdName, Server, unreachable};
use super::wire::READ_ONLY;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno as OsErrno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};
use std::net::ToSocketAddrs;
use udm_core::{ErrorKind, UserError};
use udm_driver::{begin_connect, monotonic_ns};
use udm_lane::{Errno, PeerAddress};

/// How long opening may take in all: a server across the world answers, and whoever loads the table
/// is not kept waiting for a dead one.
const OPEN_MS: u64 = 10_000;

/// Bytes received at a time; handshakes are short.
const RECV_BYTES: usize = 4096;

/// Why no connection came about.
struct Failure {
    what: String,
    kind: ErrorKind,
}

/// Opens what a name says.
pub(super) fn open(shown: &str, name: &NbdName, read_only: bool) -> Result<NbdShared, UserError> {
    let told = |failure: Failure| unreachable(shown, &failure.what, failure.kind);
    let peers = addresses(&name.server).map_err(told)?;
    let deadline_ns = monotonic_ns() + OPEN_MS * 1_000_000;
    let mut last = Failure { what: "the host has no address".into(), kind: ErrorKind::NoDevice };
    for (index, peer) in peers.iter().enumerate() {
        // An address that swallows everything must leave time for the others.
        let left = deadline_ns.saturating_sub(monotonic_ns());
        let share = left / (peers.len() - index) as u64;
        match shake_hands(peer, &name.export, monotonic_ns() + share) {
            Ok((socket, agreed)) => {
                check(shown, &agreed, read_only)?;
                let promise = Promise { agreed, read_only };
                let export = name.export.clone();
                return Ok(NbdShared::new(peers, export, name.options, promise, socket));
            }
            Err(failure) => last = failure,
        }
    }
    Err(told(last).hint("is the server running? `nbdinfo` with the same name shows what it says"))
}

/// Refuses what cannot be used as it was asked for.
fn check(shown: &str, agreed: &Agreed, read_only: bool) -> Result<(), UserError> {
    if agreed.has(READ_ONLY) && !read_only {
        let error = unreachable(shown, "the export is read-only", ErrorKind::ReadOnly);
        return Err(error.hint("load the table with --readonly"));
    }
    if super::state::len_sectors(agreed) == 0 {
        return Err(unreachable(shown, "the export holds less than one block", ErrorKind::Invalid));
    }
    Ok(())
}

fn addresses(server: &Server) -> Result<Vec<PeerAddress>, Failure> {
    match server {
        Server::Unix(path) => Ok(vec![PeerAddress::Unix(path.as_bytes().to_vec())]),
        Server::Tcp(host, port) => {
            let found = (host.as_str(), *port).to_socket_addrs().map_err(|error| Failure {
                what: format!("the host {host} is not known: {error}"),
                kind: ErrorKind::NoDevice,
            })?;
            Ok(found.map(PeerAddress::Tcp).collect())
        }
    }
}

fn shake_hands(
    peer: &PeerAddress,
    export: &str,
    deadline_ns: u64,
) -> Result<(OwnedFd, Agreed), Failure> {
    let socket = begin_connect(peer).map_err(|errno| refused(errno, peer))?;
    wait(&socket, PollFlags::OUT, deadline_ns)?;
    if let Ok(Err(error)) = sockopt::socket_error(&socket) {
        return Err(refused(Errno(error.raw_os_error()), peer));
    }
    let mut handshake = Handshake::new(export);
    let (mut window, mut out) = (Vec::new(), Vec::new());
    loop {
        let (consumed, progress) = handshake.step(&window, &mut out);
        window.drain(..consumed);
        send_all(&socket, &mut out, deadline_ns)?;
        match progress {
            Progress::Continue => {}
            Progress::NeedMore => receive(&socket, &mut window, deadline_ns)?,
            Progress::Agreed(agreed) if window.is_empty() => return Ok((socket, agreed)),
            Progress::Agreed(_) => {
                return Err(failure("the server broke the protocol: bytes nobody asked for"));
            }
            Progress::Failed(what) => return Err(failure(&what)),
        }
    }
}

fn failure(what: &str) -> Failure {
    Failure { what: what.to_owned(), kind: ErrorKind::Io }
}

fn send_all(socket: &OwnedFd, out: &mut Vec<u8>, deadline_ns: u64) -> Result<(), Failure> {
    while !out.is_empty() {
        match send(socket, out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(len) => {
                out.drain(..len);
            }
            Err(OsErrno::AGAIN) => wait(socket, PollFlags::OUT, deadline_ns)?,
            Err(OsErrno::INTR) => {}
            Err(error) => return Err(failure(&format!("the handshake failed: {error}"))),
        }
    }
    Ok(())
}

fn receive(socket: &OwnedFd, window: &mut Vec<u8>, deadline_ns: u64) -> Result<(), Failure> {
    let mut bytes = [0; RECV_BYTES];
    loop {
        match recv(socket, &mut bytes[..], RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Err(failure("the server closed the connection at once")),
            Ok((_, len)) => {
                window.extend_from_slice(&bytes[..len]);
                return Ok(());
            }
            Err(OsErrno::AGAIN) => wait(socket, PollFlags::IN, deadline_ns)?,
            Err(OsErrno::INTR) => {}
            Err(error) => return Err(failure(&format!("the handshake failed: {error}"))),
        }
    }
}

/// Waits until the socket can go on.
fn wait(socket: &OwnedFd, wanted: PollFlags, deadline_ns: u64) -> Result<(), Failure> {
    loop {
        let left_ns = deadline_ns.saturating_sub(monotonic_ns());
        if left_ns == 0 {
            let what = "the server does not answer".to_owned();
            return Err(Failure { what, kind: ErrorKind::TimedOut });
        }
        // Both parts fit: the deadline is seconds away.
        let span = Timespec {
            tv_sec: (left_ns / 1_000_000_000) as i64,
            tv_nsec: (left_ns % 1_000_000_000) as i64,
        };
        match poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), wanted)], Some(&span)) {
            Ok(0) | Err(OsErrno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(failure(&format!("waiting for the server: {error}"))),
        }
    }
}

fn refused(errno: Errno, peer: &PeerAddress) -> Failure {
    let kind = match OsErrno::from_raw_os_error(errno.0) {
        OsErrno::ACCESS | OsErrno::PERM => ErrorKind::Access,
        OsErrno::NOENT | OsErrno::NOTDIR => ErrorKind::NoEntry,
        OsErrno::TIMEDOUT => ErrorKind::TimedOut,
        OsErrno::AGAIN => ErrorKind::Again,
        _ => ErrorKind::NoDevice,
    };
    Failure { what: connect_error(errno, peer), kind }
}

/// What a failed connect means, for people.
pub(super) fn connect_error(errno: Errno, peer: &PeerAddress) -> String {
    let place = match peer {
        PeerAddress::Unix(path) => String::from_utf8_lossy(path).into_owned(),
        PeerAddress::Tcp(address) => address.to_string(),
    };
    match OsErrno::from_raw_os_error(errno.0) {
        OsErrno::NOENT | OsErrno::NOTDIR => format!("there is no socket {place}"),
        OsErrno::CONNREFUSED => format!("nobody listens at {place}"),
        OsErrno::AGAIN => format!("the server at {place} takes no more connections now"),
        _ => {
            let error = std::io::Error::from_raw_os_error(errno.0);
            format!("no connection to {place}: {error}")
        }
    }
}
