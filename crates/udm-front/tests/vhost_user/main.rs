//! The vhost-user server on real lanes, with a machine in miniature as its client.

mod client;
mod hostile;
mod recovery;
#[path = "../nbd/rig.rs"]
#[allow(dead_code, reason = "made for the NBD tests, which use more of it")]
mod rig;

use client::{DISCARD, Driver, FLUSH, GET_ID, IN, Link, Machine, OUT, Piece, Shape, WRITE_ZEROES};
use rig::{DEVICE, Rig};
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;
use udm_driver::{DriverChoice, SOCKET_MODE_DEFAULT, listen_unix};
use udm_front::lanes::LaneShare;
use udm_front::vhost_user::server::{Disk, Server};
use udm_types::{BioFlags, Op, Status};

/// 16 MiB of memory under a linear target.
pub(crate) const MEMORY: &str = "0 32768 linear mem:16M 0";

const DRIVERS: [DriverChoice; 2] = [DriverChoice::Auto, DriverChoice::Portable];

/// A server of a rig's device.
pub(crate) struct Served {
    pub(crate) server: Server,
    pub(crate) path: PathBuf,
    _folder: tempfile::TempDir,
}

pub(crate) fn serve(rig: &Rig, read_only: bool) -> Served {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.sock");
    let socket = listen_unix(&path, SOCKET_MODE_DEFAULT).expect("a socket");
    let disk = Disk {
        device: rig.device,
        name: DEVICE.to_owned(),
        read_only,
        lanes: LaneShare::new(rig.device, None),
    };
    let server = Server::start(socket, disk, rig.lanes.clone()).expect("a server");
    Served { server, path, _folder: folder }
}

/// Ends a server; what is under way is answered first.
pub(crate) fn end(served: Served) {
    stop(served, false);
}

/// Ends a server and waits for its end.
pub(crate) fn stop(served: Served, cut: bool) {
    let (sender, ended) = std::sync::mpsc::channel();
    served.server.stop(cut, Box::new(move || sender.send(()).expect("the test waits")));
    ended.recv().expect("it ends");
}

/// A machine with one queue, connected.
pub(crate) fn machine(served: &Served, shape: Shape) -> (Machine, Link) {
    let mut machine = Machine::new(shape);
    let link = machine.connect(&served.path);
    (machine, link)
}

pub(crate) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed as u8).collect()
}

#[test]
fn every_request_on_every_driver_with_and_without_event_index() {
    for (choice, event_idx) in [(DRIVERS[0], true), (DRIVERS[0], false), (DRIVERS[1], true)] {
        let rig = Rig::new(2, choice, MEMORY);
        let served = serve(&rig, false);
        let (mut machine, mut link) = machine(&served, Shape { event_idx, ..Shape::SMALL });
        assert_eq!(link.capacity(), 32768);
        let queue = &mut machine.queues[0];
        let data = pattern(1, 8192);
        assert_eq!(queue.write(8, &data), 0);
        assert_eq!(queue.read(8, 8192), data);
        assert_eq!(queue.read(9, 512), data[512..1024]);
        assert_eq!(queue.run(1, FLUSH, 0, &[]), 0);
        assert_eq!(queue.range(WRITE_ZEROES, 8, 1, 1), 0);
        assert_eq!(queue.read(8, 512), [0; 512]);
        assert_eq!(queue.range(DISCARD, 9, 1, 0), 0);
        assert_eq!(queue.read(9, 512), [0; 512]);
        assert_eq!(queue.read(10, 512), data[1024..1536]);
        assert_eq!(queue.range(DISCARD, 9, 1, 1), 2, "a flag nobody knows");
        assert_eq!(queue.range(DISCARD, 32768, 1, 0), 1, "beyond the end");
        assert_eq!(queue.run(2, GET_ID, 0, &[0; 20]), 0);
        let id = queue.bytes(queue.data_at(2), 20);
        assert_eq!(id, [DEVICE.as_bytes(), &[0; 17]].concat());
        assert_eq!(queue.write(32768, &data[..512]), 1, "beyond the end");
        assert_eq!(queue.write(0, &data[..100]), 1, "no whole sectors");
        assert_eq!(queue.run(3, 77, 0, &[]), 2, "unknown");
        assert_eq!(served.server.clients(), 1);
        drop(link);
        end(served);
    }
}

#[test]
fn borders_between_buffers_mean_nothing() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = serve(&rig, false);
    let (mut machine, _link) = machine(&served, Shape::SMALL);
    let queue = &mut machine.queues[0];
    let data = pattern(7, 1024);
    let at = queue.data_at(1);
    let addr = Driver::guest_addr(at);
    // The header in three pieces, the last together with the first of the data.
    queue.write_header(0, OUT, 40);
    let header = queue.header(0);
    queue.memory.write(at, &queue.bytes((header.addr - client::GUEST_BASE) as usize, 16));
    queue.memory.write(at + 16, &data);
    let piece = |from: u64, len: u32, writable| Piece { addr: addr + from, len, writable };
    let pieces = [
        piece(0, 3, false),
        piece(3, 10, false),
        piece(13, 0, false),
        piece(13, 104, false),
        piece(117, 923, false),
        queue.status_piece(0),
    ];
    queue.direct_chain(&[5, 9, 2, 7, 1, 0], &pieces);
    queue.offer(5);
    queue.expose();
    assert_eq!(queue.next_used(), (5, 1));
    assert_eq!(queue.status(0), 0);
    // Read back in odd pieces, the status behind the data in one of them.
    queue.write_header(0, IN, 40);
    let back = Driver::guest_addr(queue.data_at(2));
    let pieces = [
        queue.header(0),
        Piece { addr: back, len: 511, writable: true },
        Piece { addr: back + 511, len: 2, writable: true },
        Piece { addr: back + 513, len: 512, writable: true },
    ];
    queue.chain(0, &pieces);
    queue.offer(0);
    queue.expose();
    assert_eq!(queue.next_used(), (0, 1025));
    assert_eq!(queue.bytes(queue.data_at(2), 1024), data);
    assert_eq!(queue.bytes(queue.data_at(2) + 1024, 1), [0], "the status");
    end(served);
}

#[test]
fn four_queues_at_full_depth_lose_nothing() {
    for choice in DRIVERS {
        let rig = Rig::new(2, choice, MEMORY);
        let served = serve(&rig, false);
        let shape = Shape { queues: 4, slot_bytes: 4096, ..Shape::SMALL };
        let (mut machine, _link) = machine(&served, shape);
        std::thread::scope(|scope| {
            for (index, queue) in machine.queues.iter_mut().enumerate() {
                scope.spawn(move || hammer(queue, index));
            }
        });
        end(served);
    }
}

/// Writes and reads back a part of the disk of its own, 64 requests at a time.
fn hammer(queue: &mut Driver, index: usize) {
    let base = index as u64 * 8192;
    for round in 0..20_usize {
        for kind in [OUT, IN] {
            for slot in 0..64_u16 {
                let fill = if kind == OUT {
                    pattern(round + usize::from(slot), 4096)
                } else {
                    vec![0; 4096]
                };
                queue.memory.write(queue.data_at(slot), &fill);
                queue.transfer(slot, kind, base + u64::from(slot) * 8, 4096);
                if slot % 7 == 0 {
                    queue.expose();
                }
            }
            queue.expose();
            for _ in 0..64 {
                let (slot, written) = queue.next_used();
                assert_eq!(queue.status(slot), 0);
                assert_eq!(written, if kind == OUT { 1 } else { 4097 });
            }
        }
        for slot in 0..64_u16 {
            let seen = queue.bytes(queue.data_at(slot), 4096);
            assert_eq!(seen, pattern(round + usize::from(slot), 4096));
        }
    }
}

#[test]
fn a_resize_is_told_before_it_is_done() {
    let rig = Rig::new(2, DriverChoice::Auto, MEMORY);
    let served = serve(&rig, false);
    let (mut machine, mut link) = machine(&served, Shape::SMALL);
    rig.load("0 65536 linear mem:32M 0");
    rig.resume(true);
    // It was sent before the resume was reported: a read without patience may miss nothing but
    // the lane's next system call.
    link.changes.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let mut message = [0; 12];
    link.changes.read_exact(&mut message).expect("a notice");
    let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| message[at + byte]));
    assert_eq!((word(0), word(4), word(8)), (2, 1, 0));
    assert_eq!(link.capacity(), 65536);
    assert_eq!(machine.queues[0].write(65535, &[7; 512]), 0);
    end(served);
}

#[test]
fn a_read_only_export_refuses_changes_and_says_so() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = serve(&rig, true);
    let (mut machine, link) = machine(&served, Shape::SMALL);
    assert_eq!(link.features & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    let queue = &mut machine.queues[0];
    assert_eq!(queue.write(0, &[1; 512]), 1);
    assert_eq!(queue.range(DISCARD, 0, 8, 0), 1);
    assert_eq!(queue.range(WRITE_ZEROES, 0, 8, 0), 1);
    assert_eq!(queue.read(0, 512), [0; 512]);
    end(served);
}

#[test]
fn a_flush_reaches_the_device_and_a_guest_without_flush_writes_through() {
    let rig = Rig::new(1, DriverChoice::Auto, "0 32768 linear recorder 0");
    for without in [0, 1 << 9] {
        let served = serve(&rig, false);
        let (mut machine, _link) = machine(&served, Shape { without, ..Shape::SMALL });
        let queue = &mut machine.queues[0];
        assert_eq!(queue.write(0, &[1; 512]), 0);
        assert_eq!(queue.run(0, FLUSH, 0, &[]), 0);
        let flags = if without == 0 { BioFlags::empty() } else { BioFlags::FUA };
        let none = BioFlags::empty();
        assert_eq!(rig.recorder.take(), [(Op::Write, flags, 0, 1), (Op::Flush, none, 0, 0)]);
        end(served);
    }
    let served = serve(&rig, false);
    let (mut machine, _link) = machine(&served, Shape::SMALL);
    rig.recorder.answer(Op::Flush, Status::IoErr);
    rig.recorder.answer(Op::Discard, Status::NotSupported);
    let queue = &mut machine.queues[0];
    assert_eq!(queue.run(0, FLUSH, 0, &[]), 1, "a failed flush is told");
    assert_eq!(queue.range(DISCARD, 0, 1, 0), 2);
    end(served);
}

#[test]
fn the_next_client_is_served_when_the_first_has_gone() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = serve(&rig, false);
    for round in 0..5 {
        let (mut machine, link) = machine(&served, Shape::SMALL);
        assert_eq!(machine.queues[0].write(round, &pattern(round as usize, 512)), 0);
        drop(link);
    }
    let (mut machine, _link) = machine(&served, Shape::SMALL);
    for round in 0..5 {
        assert_eq!(machine.queues[0].read(round, 512), pattern(round as usize, 512));
    }
    end(served);
    rig.wait_for(|lanes| lanes.iter().all(|lane| lane.in_flight == 0));
}
