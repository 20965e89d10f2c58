//! A virtual machine's disk: served beside NBD, under swaps and growth, and through kill -9.
//!
//! The machine is the one of `udm-front`'s tests: guest memory, rings, and a front-end by the
//! crate `vhost`. `UDM_KILLS` in the environment sets how often the daemon is killed.

#[path = "../../../udm-front/tests/vhost_user/client.rs"]
mod client;

use super::common::{Daemon, Place};
use super::nbd::NbdClient;
use super::verified::stamp;
use client::{IN, OUT};
pub(super) use client::{Machine, Shape};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

const BLOCK_BYTES: usize = 4096;
const SHAPE: Shape =
    Shape { queues: 2, ring_size: 32, slot_bytes: BLOCK_BYTES, event_idx: true, without: 0 };

#[test]
fn a_disk_of_a_machine_is_served_beside_nbd_and_follows_its_table() {
    let place = Place::new();
    let daemon = place.daemon(&["--lanes", "2"]);
    let disk = place.file("disk.img", 2 << 20);
    place.udm(&["create", "v", "--table", &format!("0 2048 linear {disk} 0")]).ok();
    let (socket, nbd) = (place.text("vm.sock"), place.text("nbd.sock"));
    let told = place.udm(&["export", "v", "--vhost-user", &socket]).ok();
    assert_eq!(told.trim_end(), socket);
    place.udm(&["export", "v", "--nbd", &format!("unix:{nbd}"), "--name", "n"]).ok();
    let mode = std::fs::metadata(&socket).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "its owner's alone");
    place.udm(&["export", "v", "--vhost-user", &socket, "--name", "w"]).fails("UDM-0501");
    let mut machine = Machine::new(SHAPE);
    let mut link = machine.connect(socket.as_ref());
    assert!(place.udm(&["exports"]).ok().contains(&socket));
    let listed: serde_json::Value =
        serde_json::from_str(&place.udm(&["--json", "exports"]).ok()).expect("JSON");
    assert_eq!(listed["exports"][1]["kind"], "vhost_user");
    assert_eq!(listed["exports"][1]["connections"], 1);
    // What one front end writes the other reads.
    let mut other = NbdClient::connect(nbd.as_ref(), "n").expect("connected");
    assert_eq!(machine.queues[0].write(8, &stamp(1, 7)), 0);
    assert_eq!(other.read(4096, BLOCK_BYTES).expect("connected").expect("read"), stamp(1, 7));
    other.write(8192, &stamp(2, 9), 0).expect("connected").expect("written");
    assert_eq!(machine.queues[1].read(16, BLOCK_BYTES), stamp(2, 9));
    // The disk grows, with the machine's I/O going on.
    for end in [3072_u64, 4096] {
        let table = format!("0 1024 linear {disk} 0\n1024 {} linear {disk} 1024", end - 1024);
        place.udm_with(&["load", "v"], &table).ok();
        machine.queues[0].transfer(3, OUT, 24, BLOCK_BYTES);
        machine.queues[0].expose();
        place.udm(&["resume", "--noflush", "v"]).ok();
        assert_eq!(machine.queues[0].next_used().0, 3);
        assert_eq!(machine.queues[0].status(3), 0);
        assert_eq!(link.capacity(), end);
        assert_eq!(machine.queues[1].write(end - 8, &stamp(3, end)), 0);
    }
    drop(link);
    place.udm(&["unexport", "v"]).ok();
    assert!(!std::path::Path::new(&socket).exists());
    daemon.terminate();
}

/// The machine's requests: at most one for each block, so every read has one right answer.
struct Load {
    machine: Machine,
    random: fastrand::Rng,
    /// Last version written, for each block.
    versions: Vec<u64>,
    /// What each slot of each queue is doing.
    slots: Vec<Option<Doing>>,
}

#[derive(Clone, Copy)]
struct Doing {
    kind: u32,
    block: u64,
    version: u64,
}

impl Load {
    fn new(random: fastrand::Rng) -> Load {
        let machine = Machine::new(SHAPE);
        let slots = SHAPE.queues * usize::from(SHAPE.ring_size);
        Load { machine, random, versions: vec![0; slots * 4], slots: vec![None; slots] }
    }

    /// Starts a request in every free slot of a queue.
    fn fill(&mut self, queue: usize) {
        for slot in 0..SHAPE.ring_size {
            let place = queue * usize::from(SHAPE.ring_size) + usize::from(slot);
            if self.slots[place].is_some() {
                continue;
            }
            // A slot has four blocks of its own, all over the disk.
            let block = (place + self.slots.len() * self.random.usize(..4)) as u64;
            let version = self.versions[block as usize];
            let driver = &mut self.machine.queues[queue];
            let doing = if self.random.bool() {
                let at = driver.data_at(slot);
                driver.memory.write(at, &stamp(block, version + 1));
                Doing { kind: OUT, block, version: version + 1 }
            } else {
                Doing { kind: IN, block, version }
            };
            driver.transfer(slot, doing.kind, block * 8, BLOCK_BYTES);
            self.slots[place] = Some(doing);
        }
        self.machine.queues[queue].expose();
    }

    /// Waits for an answer of a queue and checks it.
    fn answer(&mut self, queue: usize) {
        let driver = &mut self.machine.queues[queue];
        let (slot, _) = driver.next_used();
        assert_eq!(driver.status(slot), 0);
        let place = queue * usize::from(SHAPE.ring_size) + usize::from(slot);
        let doing = self.slots[place].take().expect("answered once");
        match doing.kind {
            OUT => self.versions[doing.block as usize] = doing.version,
            _ => {
                let seen = driver.bytes(driver.data_at(slot), BLOCK_BYTES);
                let fresh = doing.version == 0 && seen.iter().all(|byte| *byte == 0);
                let right = fresh || seen == stamp(doing.block, doing.version);
                assert!(right, "block {} is not version {}", doing.block, doing.version);
            }
        }
    }
}

#[test]
fn a_machine_survives_kill_9_of_the_daemon() {
    let kills = std::env::var("UDM_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let place = Place::new();
    let disk = place.file("disk.img", 1 << 20);
    let (state, socket) = (place.text("state"), place.text("vm.sock"));
    let start = || place.daemon(&["--state", &state, "--lanes", "2"]);
    let mut daemon: Daemon = start();
    place.udm(&["create", "v", "--table", &format!("0 2048 linear {disk} 0")]).ok();
    place.udm(&["export", "v", "--vhost-user", &socket]).ok();
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut load = Load::new(fastrand::Rng::with_seed(seed));
    let mut link = load.machine.connect(socket.as_ref());
    let mut stalls: Vec<Duration> = Vec::new();
    for _ in 0..kills {
        for _ in 0..load.random.usize(1..300) {
            for queue in 0..SHAPE.queues {
                load.fill(queue);
                load.answer(queue);
            }
        }
        (0..SHAPE.queues).for_each(|queue| load.fill(queue));
        daemon.kill();
        let killed = Instant::now();
        // As QEMU with `reconnect`: the same memory, rings and in-flight records.
        drop(link);
        daemon = start();
        link = load.machine.connect(socket.as_ref());
        (0..SHAPE.queues).for_each(|queue| load.answer(queue));
        stalls.push(killed.elapsed());
    }
    for queue in 0..SHAPE.queues {
        for _ in 0..load.slots.iter().skip(queue * 32).take(32).flatten().count() {
            load.answer(queue);
        }
    }
    assert!(load.slots.iter().all(Option::is_none) && load.versions.iter().any(|&one| one > 0));
    stalls.sort();
    let (middle, longest) = (stalls[stalls.len() / 2], stalls[stalls.len() - 1]);
    eprintln!("{kills} kills: stall p50 {middle:?}, max {longest:?}, restart included");
    drop(link);
    daemon.terminate();
}
