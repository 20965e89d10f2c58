//! A resize is a transaction: when it is reported done, the users of every front can see it.
//!
//! One device is served by NBD, as a file and as the disk of a machine, with a client on each.
//! Nothing here waits for a size: what the answer promises has to be there when it comes.

use super::common::Place;
use super::fuse::{can_mount, served};
use super::nbd::NbdClient;
use super::outside::have;
use super::vhost_user::{Machine, Shape};
use std::io::Read;

const MIB: u64 = 1 << 20;

/// What `udm --json ARGS` prints.
fn json(place: &Place, args: &[&str]) -> serde_json::Value {
    let printed = place.udm(&[&["--json"], args].concat()).ok();
    serde_json::from_str(&printed).expect("JSON")
}

/// The messages that the server has sent on its second socket by now, 12 bytes each.
fn messages(socket: &mut std::os::unix::net::UnixStream) -> usize {
    socket.set_nonblocking(true).expect("set");
    let mut bytes = [0; 120];
    socket.read(&mut bytes).map_or(0, |len| len / 12)
}

#[test]
fn users_of_every_front_can_see_a_resize_that_is_reported_done() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&["--lanes", "2"]);
    let (path, _guard) = served(&place, 4 * MIB, 2048, &[]);
    let (nbd, machine) = (place.text("n.sock"), place.text("vm.sock"));
    place.udm(&["export", "d", "--nbd", &format!("unix:{nbd}"), "--name", "n"]).ok();
    place.udm(&["export", "d", "--vhost-user", &machine, "--name", "vm"]).ok();
    let file = std::fs::File::open(&path).expect("opens");
    let mut disk = Machine::new(Shape { queues: 1, ..Shape::SMALL });
    let mut link = disk.connect(machine.as_ref());
    let first = NbdClient::connect(nbd.as_ref(), "n").expect("connected");
    assert_eq!(first.len_bytes, MIB);
    let mut size = MIB;
    for (wanted, more) in [("2M", MIB), ("+1M", MIB), ("4M", MIB)] {
        let told = place.udm(&["resize", "d", wanted]).ok();
        // Before anything else: what was promised to be there.
        assert_eq!(messages(&mut link.changes), 1, "the machine was told once");
        size += more;
        assert_eq!(file.metadata().expect("size").len(), size, "an open file sees it");
        assert_eq!(link.capacity() * 512, size);
        let again = NbdClient::connect(nbd.as_ref(), "n").expect("connected");
        assert_eq!(again.len_bytes, size);
        assert_eq!(disk.queues[0].write(size / 512 - 8, &[7; 4096]), 0, "its new end is there");
        assert!(told.starts_with(&format!(
            "d: {} -> {} sectors\n",
            (size - more) / 512,
            size / 512
        )));
        assert!(told.contains("(nbd): its client must connect anew to see it\n"), "{told}");
        assert!(told.contains("(fuse): seen by whoever looks\n"), "{told}");
        assert!(told.contains("(vhost_user): told\n"), "{told}");
    }
    let listed = json(&place, &["exports"]);
    let news: Vec<(&str, u64)> = listed["exports"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| (one["on_resize"].as_str(), one["size_sectors"].as_u64()))
        .map(|(news, size)| (news.expect("a word"), size.expect("a size")))
        .collect();
    assert_eq!(news, [("seen", 8192), ("ask", 8192), ("told", 8192)]);
}

#[test]
fn a_resize_that_cannot_be_changes_nothing() {
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let disk = place.file("disk.img", MIB);
    let table = format!("0 1024 linear {disk} 0\n1024 1024 striped 2 8 {disk} 0 {disk} 1024\n");
    place.udm_with(&["create", "d"], &table).ok();
    let before = place.udm(&["table", "d"]).ok();
    let refused = place.udm(&["resize", "d", "2M"]).fails("UDM-0113");
    assert!(refused.contains("disk.img"), "it says what is too small: {refused}");
    place.udm(&["resize", "d", "512K"]).fails("UDM-0403");
    place.udm(&["resize", "d", "-512K"]).fails("UDM-0403");
    place.udm(&["resize", "d", "big"]).fails("UDM-0122");
    place.udm(&["resize", "nothing", "1M"]).fails("UDM-0201");
    place.udm(&["suspend", "d"]).ok();
    place.udm(&["resize", "d", "512K", "--unsafe-shrink"]).fails("UDM-0213");
    place.udm(&["resume", "d"]).ok();
    place.udm(&["load", "d", "--table", "0 8 zero"]).ok();
    place.udm(&["resize", "d", "512K", "--unsafe-shrink"]).fails("UDM-0403");
    place.udm(&["clear", "d"]).ok();
    assert_eq!(place.udm(&["table", "d"]).ok(), before);
    // With the word it is done; the line that is beyond the new end is gone.
    let done = json(&place, &["resize", "d", "512K", "--unsafe-shrink"]);
    let resized = &done["resized"];
    assert_eq!((&resized["from_sectors"], &resized["to_sectors"]), (&2048.into(), &1024.into()));
    let table = place.udm(&["table", "d"]).ok();
    assert!(table.starts_with("0 1024 linear ") && table.lines().count() == 1, "{table}");
}

#[test]
fn a_loop_device_on_a_file_is_named_with_what_it_needs() {
    if !can_mount() || !have(&["losetup"]) {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&[]);
    let (path, _guard) = served(&place, 4 * MIB, 2048, &[]);
    let device = super::fuse::Loop::attach(&path);
    let told = place.udm(&["resize", "d", "4M"]).ok();
    assert!(told.contains(&format!("losetup --set-capacity {}\n", device.0)), "{told}");
}
