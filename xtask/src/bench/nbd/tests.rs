//! The load client and the floor server against each other, and the report.

use super::floor::{self, Store};
use super::load::{BLOCK_BYTES, Connection, Pattern, measure};
use super::wire::Op;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

/// A floor server in this process, on a socket of its own; the thread ends with the process.
fn floor_server(name: &str, size_bytes: u64) -> PathBuf {
    let socket = std::env::temp_dir().join(format!("udm-{name}-{}.sock", std::process::id()));
    let _absent = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("the socket is free");
    std::thread::spawn(move || floor::serve(&listener, size_bytes, Store::Memory));
    socket
}

#[test]
fn the_client_measures_the_floor() {
    let socket = floor_server("floor-measure", 1 << 20);
    for (op, connections) in [(Op::Read, 1), (Op::Write, 4)] {
        let pattern = Pattern { op, depth: 32, connections };
        let times = (Duration::from_millis(10), Duration::from_millis(50));
        let window = measure(&socket, "any", &pattern, times, || Ok(1.0)).expect("it runs");
        assert!(window.ios > 0 && window.wall_s >= 0.05, "{window:?}");
        assert_eq!(window.cpu_s, 0.0);
    }
    std::fs::remove_file(socket).expect("the socket was made");
}

#[test]
fn filling_writes_the_whole_device() {
    let socket = floor_server("floor-fill", 1 << 20);
    let mut connection = Connection::open(&socket, "").expect("the floor accepts");
    connection.fill().expect("the floor takes writes");
    connection.close().expect("the floor lets go");
    std::fs::remove_file(socket).expect("the socket was made");
}

#[test]
fn a_server_that_goes_away_is_an_error() {
    let socket = std::env::temp_dir().join(format!("udm-gone-{}.sock", std::process::id()));
    let _absent = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("the socket is free");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the client connects");
        super::wire::accept(&mut stream, u64::from(BLOCK_BYTES)).expect("the client asks");
    });
    let pattern = Pattern { op: Op::Read, depth: 1, connections: 1 };
    let times = (Duration::from_secs(5), Duration::from_secs(5));
    assert!(measure(&socket, "", &pattern, times, || Ok(1.0)).is_err());
    std::fs::remove_file(socket).expect("the socket was made");
}
