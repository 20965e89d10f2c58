//! An export of another server as the device below, in the real binary, with both drivers.
//!
//! The server below is a second udm daemon, so that no other program is needed; `udm-lower`'s
//! tests use nbdkit and qemu-nbd. What is checked here is the whole way: the name in a table, the
//! state that is restored, a server that dies and comes back, and what a user is told.

use super::common::{Daemon, Place};
use super::nbd::NbdClient;

/// A daemon that serves a file as export `e` on `s`; its own folder has another control socket.
fn server(below: &Place, disk: &str) -> Daemon {
    let daemon = below.daemon(&[]);
    below.udm(&["create", "e", "--table", &format!("0 4096 linear {disk} 0")]).ok();
    below.udm(&["export", "e", "--nbd", &format!("unix:{}", below.text("s"))]).ok();
    daemon
}

fn table(below: &Place) -> String {
    let socket = below.text("s");
    format!("0 4096 linear nbd+unix:///e?socket={socket}&reconnect=0.01-0.05 0")
}

fn through(driver: &str) {
    let (below, place) = (Place::new(), Place::new());
    let disk = below.file("disk.img", 2 << 20);
    let (state, socket) = (place.text("state"), place.path("nbd.sock"));
    let options = ["--state", &state, "--driver", driver];
    let served = server(&below, &disk);
    let daemon = place.daemon(&options);
    place.udm(&["create", "v", "--table", &table(&below)]).ok();
    assert_eq!(place.udm(&["table", "v"]).ok().trim_end(), table(&below));
    place.udm(&["export", "v", "--nbd", &format!("unix:{}", socket.display())]).ok();
    let mut client = NbdClient::connect(&socket, "v").expect("connected");
    let data = vec![0x5a; 256 << 10];
    client.write(4096, &data, 0).expect("connected").expect("written");
    client.flush().expect("connected").expect("flushed");
    let on_disk = std::fs::read(&disk).expect("the disk below");
    assert!(on_disk[4096..][..data.len()] == data, "a flush reaches the file below");
    // The server dies: an error at once, not a hang. It comes back: all is well again.
    served.kill();
    assert!(client.read(4096, 512).expect("connected").is_err());
    let served = server(&below, &disk);
    while client.read(4096, 512).expect("connected").is_err() {
        std::thread::yield_now();
    }
    // A restart with the state, while the server is up.
    daemon.kill();
    let daemon = place.daemon(&options);
    assert_eq!(place.udm(&["table", "v"]).ok().trim_end(), table(&below));
    let mut client = NbdClient::connect(&socket, "v").expect("connected");
    assert!(client.read(4096, 256 << 10).expect("connected").expect("read") == data);
    place.udm(&["unexport", "v"]).ok();
    place.udm(&["remove", "v"]).ok();
    daemon.terminate();
    served.terminate();
}

#[test]
fn an_export_below_works_over_io_uring() {
    through("auto");
}

#[test]
fn an_export_below_works_over_the_portable_driver() {
    through("portable");
}

#[test]
fn a_server_that_is_not_there_is_named_when_the_table_is_loaded() {
    let place = Place::new();
    let daemon = place.daemon(&[]);
    let error = place.udm(&["create", "v", "--table", &table(&place)]).fails("UDM-0116");
    assert!(error.contains("there is no socket") && error.contains("line 1"), "{error}");
    let nameless = "0 8 linear nbd+unix:///e 0";
    let error = place.udm(&["create", "v", "--table", nameless]).fails("UDM-0112");
    assert!(error.contains("socket=PATH is missing"), "{error}");
    daemon.terminate();
}
