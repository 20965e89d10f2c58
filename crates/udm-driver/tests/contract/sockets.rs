//! Sockets: receive, send, accept, and every way they end.

use crate::rig::{Rig, bytes_of, pattern, payload_of, scattered};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use udm_lane::PeerAddress::{self, Tcp};
use udm_lane::{DriverOp, Errno, Handle, OpToken};

/// Takes the next accepted connection of a token.
fn accepted(rig: &mut Rig, token: OpToken) -> OwnedFd {
    let completion = rig.completion(token);
    assert!(completion.more, "the accept goes on");
    let raw = completion.result.unwrap() as i32;
    // SAFETY: by the contract an accept's result is a descriptor that now belongs to us.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

fn unix_listener(rig: &mut Rig) -> (Handle, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let handle = rig.register(UnixListener::bind(folder.path().join("socket")).unwrap());
    (handle, folder)
}

pub(crate) fn bytes_go_both_ways(mut rig: Rig) {
    let (handle, mut peer) = rig.socket_pair();
    peer.write_all(b"question").unwrap();
    let token = rig.receive(handle, 100);
    assert_eq!(bytes_of(&rig.completion(token)), b"question");
    let token = rig.send(handle, b"answer");
    assert_eq!(rig.result(token), Ok(6));
    let mut seen = [0; 6];
    peer.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"answer");
}

pub(crate) fn a_receive_waits_for_its_bytes(mut rig: Rig) {
    let (handle, mut peer) = rig.socket_pair();
    let token = rig.receive(handle, 100);
    assert_eq!(rig.leftover(token), 0);
    let thread = std::thread::spawn(move || peer.write_all(b"late").map(|()| peer));
    assert_eq!(bytes_of(&rig.completion(token)), b"late");
    thread.join().unwrap().unwrap();
}

pub(crate) fn many_segments_are_sent_in_order(mut rig: Rig) {
    let (handle, mut peer) = rig.socket_pair();
    let bytes = pattern(1, 3_000);
    let payload = scattered(&bytes, 97);
    let token = rig.submit(DriverOp::Send { handle, payload });
    assert_eq!(rig.result(token), Ok(3_000));
    let mut seen = vec![0; 3_000];
    peer.read_exact(&mut seen).unwrap();
    assert_eq!(seen, bytes);
}

pub(crate) fn a_closed_peer_reads_as_zero_bytes(mut rig: Rig) {
    let (handle, mut peer) = rig.socket_pair();
    let token = rig.receive(handle, 4);
    assert_eq!(rig.leftover(token), 0);
    peer.write_all(b"last").unwrap();
    drop(peer);
    assert_eq!(bytes_of(&rig.completion(token)), b"last");
    let token = rig.receive(handle, 4);
    assert_eq!(rig.result(token), Ok(0));
}

pub(crate) fn a_send_to_a_closed_peer_fails_without_a_signal(mut rig: Rig) {
    let (handle, peer) = rig.socket_pair();
    drop(peer);
    let token = rig.send(handle, b"nobody");
    assert_eq!(rig.result(token), Err(Errno(libc::EPIPE)));
}

pub(crate) fn a_slow_peer_gets_every_byte(mut rig: Rig) {
    let (handle, mut peer) = rig.socket_pair();
    let bytes = pattern(2, 4 << 20);
    let expected = bytes.clone();
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        peer.read_to_end(&mut seen).map(|_| seen)
    });
    let payload = payload_of(&bytes);
    let mut sent = 0;
    while sent < payload.len_bytes() {
        let rest = payload.slice(sent, payload.len_bytes() - sent);
        let token = rig.submit(DriverOp::Send { handle, payload: rest });
        let count = rig.result(token).unwrap();
        assert!(count > 0, "a send makes progress");
        sent += u64::from(count);
    }
    rig.driver.close(handle);
    assert_eq!(reader.join().unwrap().unwrap(), expected);
}

pub(crate) fn one_accept_takes_many_clients(mut rig: Rig) {
    let (handle, folder) = unix_listener(&mut rig);
    let path = folder.path().join("socket");
    let mut early = UnixStream::connect(&path).unwrap();
    let token = rig.submit(DriverOp::Accept { handle });
    let mut clients = vec![accepted(&mut rig, token)];
    for _ in 0..20 {
        let _client = UnixStream::connect(&path).unwrap();
        clients.push(accepted(&mut rig, token));
    }
    let first = rig.register(clients.remove(0));
    early.write_all(b"hi").unwrap();
    let receive = rig.receive(first, 10);
    assert_eq!(bytes_of(&rig.completion(receive)), b"hi");
    assert_eq!(rig.leftover(token), 0);
}

pub(crate) fn tcp_clients_are_accepted_too(mut rig: Rig) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let handle = rig.register(listener);
    let token = rig.submit(DriverOp::Accept { handle });
    for round in 0..3_u8 {
        let mut client = TcpStream::connect(address).unwrap();
        let server = accepted(&mut rig, token);
        let server = rig.register(server);
        let receive = rig.receive(server, 1);
        client.write_all(&[round]).unwrap();
        assert_eq!(bytes_of(&rig.completion(receive)), [round]);
        let send = rig.send(server, &[round + 100]);
        assert_eq!(rig.result(send), Ok(1));
        let mut seen = [0];
        client.read_exact(&mut seen).unwrap();
        assert_eq!(seen, [round + 100]);
    }
}

pub(crate) fn a_cancelled_accept_ends_once(mut rig: Rig) {
    let (handle, folder) = unix_listener(&mut rig);
    let token = rig.submit(DriverOp::Accept { handle });
    let _client = UnixStream::connect(folder.path().join("socket")).unwrap();
    drop(accepted(&mut rig, token));
    rig.driver.cancel(token);
    rig.driver.cancel(token);
    assert_eq!(rig.result(token), Err(Errno(libc::ECANCELED)));
    let _client = UnixStream::connect(folder.path().join("socket")).unwrap();
    assert_eq!(rig.leftover(token), 0);
    let token = rig.submit(DriverOp::Accept { handle });
    drop(accepted(&mut rig, token));
}

pub(crate) fn shutdown_ends_a_pending_receive(mut rig: Rig) {
    let (handle, mut peer) = rig.socket_pair();
    let token = rig.receive(handle, 100);
    assert_eq!(rig.leftover(token), 0);
    rig.driver.shutdown(handle);
    assert_eq!(rig.result(token), Ok(0));
    let mut seen = Vec::new();
    assert_eq!(peer.read_to_end(&mut seen).unwrap(), 0, "the peer sees the end too");
}

pub(crate) fn shutdown_ends_a_pending_accept(mut rig: Rig) {
    let (handle, _folder) = unix_listener(&mut rig);
    let token = rig.submit(DriverOp::Accept { handle });
    assert_eq!(rig.leftover(token), 0);
    rig.driver.shutdown(handle);
    let result = rig.result(token);
    assert!(matches!(result, Err(Errno(libc::EINVAL | libc::ECANCELED))), "{result:?}");
    assert_eq!(rig.leftover(token), 0);
}

pub(crate) fn a_cancelled_receive_ends_once_and_eats_nothing(mut rig: Rig) {
    let (handle, mut peer) = rig.socket_pair();
    let token = rig.receive(handle, 100);
    assert_eq!(rig.leftover(token), 0);
    rig.driver.cancel(token);
    assert_eq!(rig.result(token), Err(Errno(libc::ECANCELED)));
    rig.driver.cancel(token);
    peer.write_all(b"kept").unwrap();
    assert_eq!(rig.leftover(token), 0);
    let next = rig.receive(handle, 100);
    assert_eq!(bytes_of(&rig.completion(next)), b"kept");
}

pub(crate) fn a_cancel_of_something_unknown_changes_nothing(mut rig: Rig) {
    let (handle, mut peer) = rig.socket_pair();
    let token = rig.receive(handle, 100);
    rig.driver.cancel(OpToken(u64::MAX));
    assert_eq!(rig.leftover(token), 0);
    peer.write_all(b"still").unwrap();
    assert_eq!(bytes_of(&rig.completion(token)), b"still");
}

pub(crate) fn close_ends_a_pending_receive(mut rig: Rig) {
    let (handle, mut peer) = rig.socket_pair();
    let token = rig.receive(handle, 100);
    assert_eq!(rig.leftover(token), 0);
    rig.driver.close(handle);
    assert_eq!(rig.result(token), Err(Errno(libc::ECANCELED)));
    let mut seen = Vec::new();
    assert_eq!(peer.read_to_end(&mut seen).unwrap(), 0, "the descriptor is really closed");
}

pub(crate) fn a_non_blocking_socket_waits_like_any_other(mut rig: Rig) {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let handle = rig.register(ours);
    let token = rig.receive(handle, 100);
    assert_eq!(rig.leftover(token), 0);
    peer.write_all(b"ready").unwrap();
    assert_eq!(bytes_of(&rig.completion(token)), b"ready");
}

pub(crate) fn a_connection_can_be_used_before_it_stands(mut rig: Rig) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (unix, tcp) = (UnixListener::bind(&path), TcpListener::bind(("127.0.0.1", 0)));
    let (unix, tcp) = (unix.unwrap(), tcp.unwrap());
    let tcp_address = tcp.local_addr().unwrap();
    for peer in [PeerAddress::Unix(path.as_os_str().as_bytes().to_vec()), Tcp(tcp_address)] {
        let handle = rig.driver.connect(&peer).unwrap();
        let receive = rig.receive(handle, 10);
        let send = rig.send(handle, b"first");
        let mut server: Box<dyn ReadWrite> = match peer {
            PeerAddress::Unix(_) => Box::new(unix.accept().unwrap().0),
            Tcp(_) => Box::new(tcp.accept().unwrap().0),
        };
        assert_eq!(rig.result(send), Ok(5));
        let mut seen = [0; 5];
        server.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"first");
        server.write_all(b"reply").unwrap();
        assert_eq!(bytes_of(&rig.completion(receive)), b"reply");
        rig.driver.close(handle);
        assert_eq!(server.read(&mut seen).unwrap(), 0, "the descriptor is closed");
    }
}

pub(crate) fn a_connection_nobody_takes_says_so(mut rig: Rig) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let unix = PeerAddress::Unix(path.as_os_str().as_bytes().to_vec());
    assert_eq!(rig.driver.connect(&unix), Err(Errno(libc::ENOENT)));
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(rig.driver.connect(&unix), Err(Errno(libc::ECONNREFUSED)));
    let long = PeerAddress::Unix(vec![b'x'; 109]);
    assert_eq!(rig.driver.connect(&long), Err(Errno(libc::ENAMETOOLONG)));
    // A port that was free a moment ago, so nobody listens there.
    let address = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    match rig.driver.connect(&Tcp(address)) {
        Err(errno) => assert_eq!(errno, Errno(libc::ECONNREFUSED)),
        Ok(handle) => {
            let receive = rig.receive(handle, 10);
            assert_eq!(rig.result(receive), Err(Errno(libc::ECONNREFUSED)));
            rig.driver.close(handle);
        }
    }
}

/// Either kind of stream.
trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}
