//! kill -9 of the daemon during load: what had been flushed is there, and so are names and tables.
//!
//! Two clients stamp blocks of their own ranges with versions, flush now and then, and remember
//! which version a flush or a FUA write had covered. The test counts their acknowledgements and
//! kills after a number drawn at random. Then each block must hold one version, whole, not
//! older than the one covered and not newer than the last one sent.
//!
//! The tricky case is a version sent but not acknowledged: old and new are both right.

use super::common::{Daemon, Place};
use super::nbd::{FUA, NbdClient};
use super::outside::until;
use super::verified::stamp;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};

const BLOCKS: u64 = 64;
const BLOCK_BYTES: u64 = 4096;
const ROUNDS: usize = 5;

/// What one client knows of its blocks.
#[derive(Clone)]
struct Book {
    first: u64,
    /// Last version sent, acknowledged and durable, for each block.
    blocks: Vec<(u64, u64, u64)>,
}

impl Book {
    fn new(first: u64) -> Book {
        Book { first, blocks: vec![(0, 0, 0); usize::try_from(BLOCKS).expect("small")] }
    }

    /// Writes and flushes until the connection breaks.
    fn load(&mut self, socket: PathBuf, mut random: fastrand::Rng, acks: Sender<()>) {
        let mut client = NbdClient::connect(&socket, "v").expect("connected");
        loop {
            if random.u8(..8) == 0 {
                let Ok(answer) = client.flush() else { return };
                answer.expect("flushed");
                for block in &mut self.blocks {
                    block.2 = block.1;
                }
                continue;
            }
            let index = random.usize(..self.blocks.len());
            let fua = random.u8(..8) == 0;
            let block = self.first + index as u64;
            let version = self.blocks[index].0 + 1;
            self.blocks[index].0 = version;
            let bytes = stamp(block, version);
            let flags = if fua { FUA } else { 0 };
            let Ok(answer) = client.write(block * BLOCK_BYTES, &bytes, flags) else { return };
            answer.expect("written");
            self.blocks[index].1 = version;
            if fua {
                self.blocks[index].2 = version;
            }
            // Nobody counts any more when the daemon is dead.
            let _ = acks.send(());
        }
    }

    /// Compares with what is there, and starts the next round from it.
    fn check(&mut self, client: &mut NbdClient) {
        for (index, known) in self.blocks.iter_mut().enumerate() {
            let block = self.first + index as u64;
            let len = usize::try_from(BLOCK_BYTES).expect("small");
            let read = client.read(block * BLOCK_BYTES, len).expect("connected").expect("read");
            let (sent, _, durable) = *known;
            let fresh = durable == 0 && read.iter().all(|byte| *byte == 0);
            let found = (durable.max(1)..=sent).find(|version| stamp(block, *version) == read);
            assert!(
                fresh || found.is_some(),
                "block {block} is none of the versions {durable}..={sent}"
            );
            let found = found.unwrap_or(0);
            *known = (sent, found, found);
        }
    }
}

/// What must be the same after a restart.
fn told(place: &Place) -> serde_json::Value {
    let ask = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(&place.udm(args).ok()).expect("JSON")
    };
    let mut devices = ask(&["--json", "table"]);
    for device in devices["devices"].as_array_mut().expect("devices") {
        let device = device["device"].as_object_mut().expect("a device");
        for passing in ["id", "open_count", "event_nr"] {
            device.remove(passing);
        }
    }
    let mut exports = ask(&["--json", "exports"]);
    for export in exports["exports"].as_array_mut().expect("exports") {
        export.as_object_mut().expect("an export").remove("connections");
    }
    serde_json::json!([devices, exports])
}

#[test]
fn what_was_flushed_survives_kill_9_and_so_does_the_set_up() {
    let place = Place::new();
    let (one, two) = (place.file("one.img", 1 << 20), place.file("two.img", 1 << 20));
    let daemon = place.daemon(&["--state", &place.text("state")]);
    let pool = format!("0 2048 linear {one} 0\n2048 2048 linear {two} 0");
    place
        .udm(&["create", "pool", "-u", "uuid-pool", "-j", "254", "-m", "9", "--table", &pool])
        .ok();
    let tables = [
        "0 2048 striped 2 8 dm:pool 0 dm:pool 2048".to_owned(),
        (0..256).map(piece).collect::<Vec<_>>().join("\n"),
    ];
    kill_and_compare(&place, daemon, &tables);
}

#[test]
fn what_was_flushed_survives_kill_9_in_a_compress_volume() {
    let place = Place::new();
    let disk = place.file("disk.img", 32 << 20);
    place.udm(&["compress", "format", &disk]).ok();
    let daemon = place.daemon(&["--state", &place.text("state"), "--lanes", "2"]);
    let tables = [
        format!("0 2048 compress {disk}"),
        format!("0 2048 compress {disk} 3 writethrough compressor zstd"),
    ];
    kill_and_compare(&place, daemon, &tables);
    // The kernel lets go of the ring's file some time after the daemon's end.
    let told = until("the disk is free", || {
        let told = place.udm(&["compress", "check", &disk]);
        (!told.err.contains("in use")).then_some(told)
    });
    told.ok();
}

#[test]
fn an_orderly_end_loses_nothing_that_a_compress_volume_has_in_memory() {
    let place = Place::new();
    let disk = place.file("disk.img", 32 << 20);
    place.udm(&["compress", "format", &disk]).ok();
    let socket = place.path("nbd.sock");
    let state = place.text("state");
    let mut daemon = place.daemon(&["--state", &state]);
    // So long that only the daemon's end can be what writes the data out.
    let volume = format!("0 2048 compress {disk} 2 writeback 3600");
    place.udm(&["create", "below", "--table", &volume]).ok();
    place.udm(&["create", "v", "--table", "0 2048 linear dm:below 0"]).ok();
    place.udm(&["export", "v", "--nbd", &format!("unix:{}", socket.display())]).ok();
    for version in 1..4 {
        let mut client = NbdClient::connect(&socket, "v").expect("connected");
        for block in 0..32 {
            let bytes = stamp(block, version);
            client.write(block * BLOCK_BYTES, &bytes, 0).expect("connected").expect("written");
        }
        drop(client);
        daemon.terminate();
        daemon = place.daemon(&["--state", &state]);
        let mut client = NbdClient::connect(&socket, "v").expect("connected");
        for block in 0..32 {
            let len = usize::try_from(BLOCK_BYTES).expect("small");
            let read = client.read(block * BLOCK_BYTES, len).expect("connected").expect("read");
            assert!(read == stamp(block, version), "block {block} of version {version}");
        }
    }
    let told = place.udm(&["info", "below", "--json"]).ok();
    assert!(told.contains("\"suspended\": false"), "{told}");
}

/// Device `v` with one table or the other, under load, among swaps and kills.
fn kill_and_compare(place: &Place, mut daemon: Daemon, tables: &[String; 2]) {
    let state = place.text("state");
    let socket = place.path("nbd.sock");
    place.udm(&["create", "v", "-u", "uuid-v", "--table", &tables[0]]).ok();
    place.udm(&["export", "v", "--nbd", &format!("unix:{}", socket.display())]).ok();
    let mut books = [Book::new(0), Book::new(BLOCKS)];
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..ROUNDS {
        let (acks, counted) = channel();
        let clients = books.clone().map(|mut book| {
            let (socket, random, acks) = (socket.clone(), random.fork(), acks.clone());
            std::thread::spawn(move || {
                book.load(socket, random, acks);
                book
            })
        });
        for _ in 0..random.usize(50..300) {
            counted.recv().expect("the clients go on");
        }
        place.udm_with(&["load", "v"], &tables[(round + 1) % 2]).ok();
        place.udm(&["resume", "--noflush", "v"]).ok();
        let before = told(place);
        for _ in 0..random.usize(0..100) {
            counted.recv().expect("the clients go on");
        }
        daemon.kill();
        books = clients.map(|client| client.join().expect("it met no error before the end"));
        daemon = place.daemon(&["--state", &state]);
        let after = told(place);
        assert!(after == before, "round {round}: {after}\n{before}\n{}", daemon.terminate());
        let mut client = NbdClient::connect(&socket, "v").expect("connected");
        assert_eq!(client.len_bytes, 1 << 20);
        books.iter_mut().for_each(|book| book.check(&mut client));
    }
    assert!(books.iter().flat_map(|book| &book.blocks).any(|block| block.2 > 0));
    daemon.terminate();
}

/// One chunk of the stripe above, as a line of its own.
fn piece(chunk: u64) -> String {
    format!("{} 8 linear dm:pool {}", chunk * 8, (chunk / 2) * 8 + (chunk % 2) * 2048)
}
