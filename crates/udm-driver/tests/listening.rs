//! Unix and TCP listeners: modes, dead and live sockets in the way, connection options.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use rustix::net::sockopt;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use udm_driver::{SOCKET_MODE_DEFAULT, listen_tcp, listen_unix, remove_orphan, tune_connection};
use udm_lane::Errno;

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_socket_has_its_mode_and_takes_clients() {
    let folder = tempfile::tempdir().unwrap();
    for mode in [SOCKET_MODE_DEFAULT, 0o666, 0o660] {
        let path = folder.path().join(format!("socket-{mode:o}"));
        let listener = UnixListener::from(listen_unix(&path, mode).unwrap());
        assert_eq!(mode_of(&path), mode);
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
    }
}

#[test]
fn a_dead_socket_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    let listener = UnixListener::from(listen_unix(&path, 0o600).unwrap());
    assert_eq!(mode_of(&path), 0o600);
    let _client = UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
}

#[test]
fn a_live_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    assert_eq!(listen_unix(&path, 0o600).err(), Some(Errno(libc::EADDRINUSE)));
    let _client = UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
}

/// Set for the process that only listens, on the socket that is its standard input.
const LISTEN_ONLY: &str = "UDM_TEST_LISTEN_ONLY";

#[test]
fn a_socket_outlives_its_dead_listener_no_longer_than_we_ask() {
    if std::env::var_os(LISTEN_ONLY).is_some() {
        rustix::net::listen(std::io::stdin(), 1).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let (family, kind) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM);
    let socket = rustix::net::socket(family, kind, None).unwrap();
    let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    // We keep the socket open, as the kernel does for a dead process.
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_socket_outlives_its_dead_listener_no_longer_than_we_ask"])
        .env(LISTEN_ONLY, "1")
        .stdin(socket.try_clone().unwrap())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    // Connecting works, so that by itself nothing is taken for dead.
    assert_eq!(listen_unix(&path, 0o600).err(), Some(Errno(libc::EADDRINUSE)));
    assert!(remove_orphan(&path));
    let listener = UnixListener::from(listen_unix(&path, 0o600).unwrap());
    assert!(!remove_orphan(&path), "a living listener stays");
    let _client = UnixStream::connect(&path).unwrap();
    listener.accept().unwrap();
}

#[test]
fn a_file_of_another_kind_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    fs::write(&path, b"data").unwrap();
    assert_eq!(listen_unix(&path, 0o600).err(), Some(Errno(libc::EADDRINUSE)));
    assert_eq!(fs::read(&path).unwrap(), b"data");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(listen_unix(&link, 0o600).err(), Some(Errno(libc::EADDRINUSE)));
    assert_eq!(fs::read(&path).unwrap(), b"data");
}

#[test]
fn of_many_that_start_at_once_exactly_one_listens() {
    for _ in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let listeners: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| listen_unix(&path, 0o600).ok())).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(listeners.len(), 1);
        assert!(fs::metadata(&path).unwrap().file_type().is_socket());
        UnixStream::connect(&path).unwrap();
    }
}

#[test]
fn a_path_too_long_is_refused() {
    let path = Path::new("/tmp").join("x".repeat(200));
    assert!(listen_unix(&path, 0o600).is_err());
}

#[test]
fn tcp_tells_the_port_it_got() {
    let (socket, address) = listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_ne!(address.port(), 0);
    let listener = TcpListener::from(socket);
    let client = TcpStream::connect(address).unwrap();
    let (server, _) = listener.accept().unwrap();
    assert!(!sockopt::tcp_nodelay(&server).unwrap());
    tune_connection(&server);
    assert!(sockopt::tcp_nodelay(&server).unwrap());
    drop(client);
    assert_eq!(listen_tcp(address).err(), Some(Errno(libc::EADDRINUSE)));
}

#[test]
fn a_unix_connection_never_gets_smaller_buffers() {
    let (socket, _peer) = UnixStream::pair().unwrap();
    let before = sockopt::socket_send_buffer_size(&socket).unwrap();
    tune_connection(&socket);
    assert!(sockopt::socket_send_buffer_size(&socket).unwrap() >= before);
}
