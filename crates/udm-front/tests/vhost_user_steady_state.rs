//! A machine's disk at work allocates nothing: counted by the allocator of this test program.
//!
//! Lanes and machine share the allocator, and the machine allocates nothing either, so a window of
//! many requests without any allocation has to come soon after the start.
//! One test only, since other tests of the program would be counted, too.

#[path = "vhost_user/client.rs"]
mod client;
#[path = "nbd/rig.rs"]
#[allow(dead_code, reason = "made for the NBD tests, which use more of it")]
mod rig;

use client::{Driver, FLUSH, IN, Machine, OUT, Shape, WRITE_ZEROES};
use rig::{DEVICE, Rig};
use udm_driver::{DriverChoice, SOCKET_MODE_DEFAULT, listen_unix};
use udm_front::lanes::LaneShare;
use udm_front::vhost_user::server::{Disk, Server};
use udm_testkit::{Counting, allocations};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BLOCK_BYTES: usize = 4096;
/// Requests at a time; a slot each.
const DEPTH: u16 = 16;

/// Starts a request of every kind in turn, at a place of its slot's own.
fn start(queue: &mut Driver, slot: u16, turn: u16) {
    let sector = u64::from(slot) * 64;
    match turn % 8 {
        0 => {
            queue.write_header(slot, FLUSH, 0);
            queue.chain(slot, &[queue.header(slot), queue.status_piece(slot)]);
            queue.offer(slot);
        }
        1 => {
            let mut range = [0; 16];
            range[..8].copy_from_slice(&sector.to_le_bytes());
            range[8..12].copy_from_slice(&8_u32.to_le_bytes());
            queue.memory.write(queue.data_at(slot), &range);
            queue.write_header(slot, WRITE_ZEROES, 0);
            let range = queue.data(slot, range.len(), false);
            queue.chain(slot, &[queue.header(slot), range, queue.status_piece(slot)]);
            queue.offer(slot);
        }
        other => {
            let kind = if other % 2 == 0 { IN } else { OUT };
            queue.transfer(slot, kind, sector, BLOCK_BYTES);
        }
    }
}

/// Keeps all slots at work until this many requests are answered.
fn work(queue: &mut Driver, requests: u32) {
    for slot in 0..DEPTH {
        start(queue, slot, slot);
    }
    queue.expose();
    for answered in 0..requests {
        let (slot, _) = queue.next_used();
        assert_eq!(queue.status(slot), 0);
        if answered + u32::from(DEPTH) < requests {
            start(queue, slot, answered as u16);
            queue.expose();
        }
    }
}

#[test]
fn requests_in_steady_state_allocate_nothing() {
    for (driver, table) in [
        (DriverChoice::Auto, "0 32768 linear mem:16M 0"),
        (DriverChoice::Portable, "0 32768 linear null:16M 0"),
    ] {
        let rig = Rig::new(1, driver, table);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk.sock");
        let socket = listen_unix(&path, SOCKET_MODE_DEFAULT).expect("a socket");
        let disk = Disk {
            device: rig.device,
            name: DEVICE.to_owned(),
            read_only: false,
            lanes: LaneShare::new(rig.device, None),
        };
        let server = Server::start(socket, disk, rig.lanes.clone()).expect("a server");
        let shape = Shape { ring_size: 32, slot_bytes: BLOCK_BYTES, ..Shape::SMALL };
        let mut machine = Machine::new(shape);
        let link = machine.connect(&path);
        let found = (0..50).any(|_| {
            let before = allocations();
            work(&mut machine.queues[0], 5000);
            allocations() == before
        });
        assert!(found, "{table}: no 5000 requests in a row without an allocation");
        drop(link);
        let (sender, ended) = std::sync::mpsc::channel();
        server.stop(false, Box::new(move || sender.send(()).expect("the test waits")));
        ended.recv().expect("it ends");
    }
}
