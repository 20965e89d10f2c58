//! Random 4 KiB load on a vhost-user-blk server, of whatever make; for `cargo xtask bench vhost`.
//!
//! ```text
//! vhost_load SOCKET PID QUEUES DEPTH SECONDS read|write|fill SIZE_MIB
//! ```
//!
//! Prints JSON: I/Os, seconds, and the CPU seconds that process PID used meanwhile. Each queue has
//! a thread and DEPTH requests outstanding; it takes all answers there are, offers as many new
//! requests, and shows them at once, as a guest's driver does. The first fifth of a second is not
//! counted.
#[path = "../tests/vhost_user/client.rs"]
mod client;

use client::{Driver, IN, Machine, OUT, Shape};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;
use udm_driver::monotonic_ns;

const WARM_UP: Duration = Duration::from_millis(200);
const BLOCK_BYTES: usize = 4096;
const BLOCK_SECTORS: u64 = 8;

struct Orders {
    kind: u32,
    depth: u16,
    blocks: u64,
    stop: AtomicBool,
    done: AtomicU64,
    start: Barrier,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, pid, queues, depth, seconds, what, size_mib] = &words[..] else {
        panic!("usage: vhost_load SOCKET PID QUEUES DEPTH SECONDS read|write|fill SIZE_MIB");
    };
    let queues: usize = queues.parse().expect("QUEUES is a number");
    let depth: u16 = depth.parse().expect("DEPTH is a number");
    let span: f64 = seconds.parse().expect("SECONDS is a number");
    let shape =
        Shape { queues, ring_size: 256, slot_bytes: BLOCK_BYTES, event_idx: true, without: 0 };
    let mut machine = Machine::new(shape);
    let link = machine.connect(Path::new(socket));
    let orders = Orders {
        kind: if what == "read" { IN } else { OUT },
        depth,
        blocks: size_mib.parse::<u64>().expect("SIZE_MIB is a number") << 8,
        stop: AtomicBool::new(false),
        done: AtomicU64::new(0),
        start: Barrier::new(queues + 1),
    };
    if what == "fill" {
        fill(&mut machine.queues[0], orders.blocks);
        return;
    }
    std::thread::scope(|scope| {
        for (index, queue) in machine.queues.iter_mut().enumerate() {
            let orders = &orders;
            scope.spawn(move || load(queue, index as u64, orders));
        }
        orders.start.wait();
        let (_silent, never) = channel::<()>();
        // Nobody sends: these two only let time pass.
        let _ = never.recv_timeout(WARM_UP);
        let (begin_ns, ios) = (monotonic_ns(), orders.done.load(Ordering::Relaxed));
        let cpu = cpu_s(pid);
        let _ = never.recv_timeout(Duration::from_secs_f64(span));
        let ios = orders.done.load(Ordering::Relaxed) - ios;
        let (cpu, seconds) = (cpu_s(pid) - cpu, (monotonic_ns() - begin_ns) as f64 / 1e9);
        orders.stop.store(true, Ordering::Relaxed);
        println!("{{\"ios\": {ios}, \"cpu_s\": {cpu}, \"seconds\": {seconds}}}");
    });
    drop(link);
}

fn start(queue: &mut Driver, slot: u16, random: &mut fastrand::Rng, orders: &Orders) {
    let sector = random.u64(..orders.blocks) * BLOCK_SECTORS;
    queue.transfer(slot, orders.kind, sector, BLOCK_BYTES);
}

fn load(queue: &mut Driver, seed: u64, orders: &Orders) {
    let mut random = fastrand::Rng::with_seed(seed);
    orders.start.wait();
    (0..orders.depth).for_each(|slot| start(queue, slot, &mut random, orders));
    queue.expose();
    let mut under_way = u64::from(orders.depth);
    while under_way > 0 {
        let mut taken = 0;
        while let Some((slot, _)) = queue.take_used() {
            assert_eq!(queue.status(slot), 0);
            taken += 1;
            if orders.stop.load(Ordering::Relaxed) {
                under_way -= 1;
            } else {
                start(queue, slot, &mut random, orders);
            }
        }
        if taken > 0 {
            orders.done.fetch_add(taken, Ordering::Relaxed);
            queue.expose();
        } else if !queue.want_call() {
            assert!(queue.wait_call(), "the server does not answer");
        }
    }
}

/// Writes every block once.
fn fill(queue: &mut Driver, blocks: u64) {
    for block in (0..blocks).step_by(64) {
        for slot in 0..64 {
            queue.transfer(slot, OUT, (block + u64::from(slot)) * BLOCK_SECTORS, BLOCK_BYTES);
        }
        queue.expose();
        for _ in 0..64 {
            let (slot, _) = queue.next_used();
            assert_eq!(queue.status(slot), 0);
        }
    }
}

/// CPU seconds of all threads of a process so far, in user and kernel.
fn cpu_s(pid: &str) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("PID is a process");
    let of = |task: std::io::Result<std::fs::DirEntry>| -> u64 {
        let text = task.and_then(|task| std::fs::read_to_string(task.path().join("schedstat")));
        // A thread may end between the listing and the reading.
        let text = text.unwrap_or_default();
        text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
    };
    tasks.map(of).sum::<u64>() as f64 / 1e9
}
