//! Clients and guests that break the rules: their connection ends, the device and its other users
//! go on.

use crate::client::{Driver, GUEST_BASE, IN, Machine, OUT, PATIENCE_S, Piece, Shape};
use crate::rig::Rig;
use crate::{MEMORY, Served, end, machine, serve};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use udm_driver::DriverChoice;
use vhost::VhostBackend;

/// True once the server has hung up; also over bytes that it sent before.
fn is_ended(mut socket: &UnixStream) -> bool {
    socket.set_read_timeout(Some(Duration::from_secs(PATIENCE_S as u64))).expect("a timeout");
    let mut byte = [0; 64];
    loop {
        match socket.read(&mut byte) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// Connects a machine of its own, lets the guest do something, and expects the end.
fn breaks(served: &Served, what: &str, misdeed: impl FnOnce(&mut Driver)) {
    let mut machine = Machine::new(Shape::SMALL);
    let socket = UnixStream::connect(&served.path).expect("a socket");
    let watched = socket.try_clone().expect("a copy");
    let link = machine.try_connect(socket).expect("a connection");
    misdeed(&mut machine.queues[0]);
    assert!(is_ended(&watched), "{what}: the connection goes on");
    drop(link);
}

/// Offers a chain and kicks.
fn offer(queue: &mut Driver, pieces: &[Piece]) {
    queue.chain(0, pieces);
    queue.offer(0);
    queue.expose();
}

#[test]
fn guests_that_break_the_rules_lose_their_connection_only() {
    let rig = Rig::new(2, DriverChoice::Auto, MEMORY);
    let (served, other) = (serve(&rig, false), serve(&rig, false));
    let (mut good, _link) = machine(&other, Shape::SMALL);
    let far = Piece { addr: 0xFFFF_0000_0000, len: 512, writable: false };
    breaks(&served, "an index that jumps", |queue| {
        queue.next_avail = queue.next_avail.wrapping_add(65);
        queue.expose();
        queue.kick();
    });
    breaks(&served, "a descriptor beyond the table", |queue| {
        queue.offer(64);
        queue.expose();
    });
    breaks(&served, "a loop", |queue| {
        let header = queue.header(0);
        queue.direct_chain(&[0, 1, 2, 0], &[header; 4]);
        queue.put_descriptor(queue.base + 32, header, 1, 0);
        queue.offer(0);
        queue.expose();
    });
    breaks(&served, "a chain that leaves its table", |queue| {
        queue.put_descriptor(queue.base, queue.header(0), 1, 64);
        queue.offer(0);
        queue.expose();
    });
    breaks(&served, "data outside of memory", |queue| {
        queue.write_header(0, OUT, 0);
        offer(queue, &[queue.header(0), far, queue.status_piece(0)]);
    });
    breaks(&served, "data that runs out of memory", |queue| {
        queue.write_header(0, IN, 0);
        let last = GUEST_BASE + queue.memory.len_bytes() as u64 - 512;
        let data = Piece { addr: last, len: 1024, writable: true };
        offer(queue, &[queue.header(0), data, queue.status_piece(0)]);
    });
    breaks(&served, "an address that wraps", |queue| {
        queue.write_header(0, IN, 0);
        let data = Piece { addr: u64::MAX - 100, len: 512, writable: true };
        offer(queue, &[queue.header(0), data, queue.status_piece(0)]);
    });
    breaks(&served, "a header outside of memory", |queue| offer(queue, &[far]));
    breaks(&served, "no status", |queue| offer(queue, &[queue.header(0)]));
    breaks(&served, "no header", |queue| offer(queue, &[queue.status_piece(0)]));
    breaks(&served, "reads behind writes", |queue| {
        offer(queue, &[queue.header(0), queue.status_piece(0), queue.header(0)]);
    });
    breaks(&served, "an indirect table in an indirect table", |queue| {
        queue.chain(0, &[queue.header(0), queue.status_piece(0)]);
        let table = queue.header(0).addr - 64;
        let at = (table - GUEST_BASE) as usize;
        queue.put_descriptor(at, Piece { addr: table, len: 32, writable: false }, 4, 0);
        queue.offer(0);
        queue.expose();
    });
    breaks(&served, "an indirect table of odd length", |queue| {
        let table = Piece { addr: GUEST_BASE, len: 17, writable: false };
        queue.put_descriptor(queue.base, table, 4, 0);
        queue.offer(0);
        queue.expose();
    });
    assert_eq!(good.queues[0].write(5, &[5; 512]), 0, "the other client goes on");
    let (mut next, _next_link) = machine(&served, Shape::SMALL);
    assert_eq!(next.queues[0].read(5, 512), [5; 512], "so does the export");
    end(other);
    end(served);
}

#[test]
fn a_request_used_twice_at_once_ends_the_connection() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = serve(&rig, false);
    rig.suspend(true);
    let socket = UnixStream::connect(&served.path).expect("a socket");
    let watched = socket.try_clone().expect("a copy");
    let mut machine = Machine::new(Shape::SMALL);
    let link = machine.try_connect(socket).expect("a connection");
    let queue = &mut machine.queues[0];
    queue.transfer(0, OUT, 0, 512);
    queue.offer(0);
    queue.expose();
    // The first of the two is held by the device; its queue ends when it is back.
    rig.wait_for(|lanes| lanes[0].held == 1);
    rig.resume(true);
    assert!(is_ended(&watched));
    drop(link);
    end(served);
}

#[test]
fn messages_that_break_the_rules_end_the_connection() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = serve(&rig, false);
    let message = |request: u32, flags: u32, body: &[u8]| {
        let head = [request, flags, body.len() as u32];
        [head.into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<u8>>(), body.to_vec()].concat()
    };
    let wrong = [
        message(0, 1, &[]),
        message(200, 1, &[]),
        message(1, 2, &[]),
        message(1, 1 | 4, &[]),
        message(2, 1, &[0; 4]),
        message(2, 1, &u64::MAX.to_ne_bytes()),
        message(8, 1, &[0, 0, 0, 0, 3, 0, 0, 0]),
        message(8, 1, &[64, 0, 0, 0, 4, 0, 0, 0]),
        message(12, 1, &0_u64.to_ne_bytes()),
        message(12, 1, &0x100_u64.to_ne_bytes()),
        message(5, 1, &[1, 0, 0, 0, 0, 0, 0, 0]),
        message(16, 1, &u64::MAX.to_ne_bytes()),
        message(31, 1, &[0; 20]),
        message(37, 1, &[0; 40]),
        [1_u32, 1, 1 << 20].into_iter().flat_map(u32::to_ne_bytes).collect(),
    ];
    for bytes in wrong {
        let mut socket = UnixStream::connect(&served.path).expect("a socket");
        socket.write_all(&bytes).expect("it listens");
        assert!(is_ended(&socket), "{bytes:?}");
    }
    // Half a message, and the client is gone.
    let mut socket = UnixStream::connect(&served.path).expect("a socket");
    socket.write_all(&message(1, 1, &[])[..7]).expect("it listens");
    drop(socket);
    let (mut machine, _link) = machine(&served, Shape::SMALL);
    assert_eq!(machine.queues[0].write(0, &[1; 512]), 0);
    end(served);
}

#[test]
fn memory_that_cannot_be_is_refused() {
    let rig = Rig::new(1, DriverChoice::Auto, MEMORY);
    let served = serve(&rig, false);
    let refused = |change: fn(&mut Vec<vhost::VhostUserMemoryRegionInfo>)| {
        let (machine, link) = machine(&served, Shape::SMALL);
        let mut regions = vec![machine.region(), machine.region()];
        regions[1].guest_phys_addr += 1 << 30;
        regions[1].userspace_addr += 1 << 30;
        change(&mut regions);
        link.frontend.set_mem_table(&regions).is_err()
    };
    assert!(!refused(|_| {}), "two mappings of one file are fine");
    assert!(refused(|regions| regions[1].guest_phys_addr = regions[0].guest_phys_addr + 4096));
    assert!(refused(|regions| regions[1].userspace_addr = regions[0].userspace_addr));
    assert!(refused(|regions| regions[1].memory_size += 1 << 20), "past the end of its file");
    assert!(refused(|regions| regions[1].mmap_offset = u64::MAX - 4095));
    assert!(refused(|regions| regions[1].guest_phys_addr = u64::MAX - 4095));
    assert!(refused(|regions| regions[0].userspace_addr += 4096), "a ring is outside now");
    end(served);
}
