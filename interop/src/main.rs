//! A vhost-user-blk client on libblkio's crate: verified load at depth 64 on several queues.
//!
//! ```text
//! udm-interop SOCKET LEN_BYTES
//! ```
//!
//! Run by `cargo xtask interop` on the socket of a device whose contents may be lost. Writes
//! blocks in an order without a pattern, half of them with FUA, flushes, reads them back and
//! compares; then zeroes and discards some and reads those. Prints one line of what was done.
//!
//! The tricky case is memory: requests name addresses in a region that is shared with the server.
//! We reach the same bytes through the region's file and never through the addresses, so nothing
//! here points into memory that another program writes.

use blkio::{Blkio, Blkioq, Completion, Error, MemoryRegion, ReqFlags};
use std::fs::{File, OpenOptions};
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const QUEUES: usize = 2;
const DEPTH: usize = 64;
const PASSES: u64 = 24;
const BLOCK_BYTES: usize = 4096;
/// A prime larger than any device here: every block comes once before any comes twice.
const STRIDE: u64 = 2_654_435_761;
/// How long a batch may take before it counts as hung.
const LIMIT: Duration = Duration::from_secs(20);

type Outcome<T> = Result<T, String>;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match &words[..] {
        [socket, len_bytes] => match len_bytes.parse() {
            Ok(len_bytes) => run(socket, len_bytes),
            Err(_) => Err(format!("not a number: {len_bytes}")),
        },
        _ => Err("usage: udm-interop SOCKET LEN_BYTES".to_owned()),
    };
    match outcome {
        Ok(told) => println!("{told}"),
        Err(why) => {
            eprintln!("error: {why}");
            std::process::exit(1);
        }
    }
}

fn run(socket: &str, len_bytes: u64) -> Outcome<String> {
    let mut device = Blkio::new("virtio-blk-vhost-user").map_err(told("make a client"))?;
    device.set_str("path", socket).map_err(told("set the path"))?;
    device.connect().map_err(told("connect"))?;
    device.set_i32("num-queues", QUEUES as i32).map_err(told("ask for queues"))?;
    let capacity = device.get_u64("capacity").map_err(told("ask for the size"))?;
    if capacity != len_bytes {
        return Err(format!("{capacity} bytes are offered, not {len_bytes}"));
    }
    let mut queues = device.start().map_err(told("start"))?.queues;
    let region = device.alloc_mem_region(DEPTH * BLOCK_BYTES).map_err(told("get memory"))?;
    device.map_mem_region(&region).map_err(told("share memory"))?;
    let memory = Memory::of(&region)?;
    let blocks = len_bytes / BLOCK_BYTES as u64;
    if blocks < 2 * DEPTH as u64 {
        return Err("the device is too small".to_owned());
    }
    for pass in 0..PASSES {
        let queue = &mut queues[pass as usize % QUEUES];
        verified(queue, &memory, pass, blocks)?;
    }
    emptied(&mut queues[0], &memory)?;
    let ios = PASSES * DEPTH as u64;
    Ok(format!("{ios} blocks at depth {DEPTH} on {QUEUES} queues verified, zeroed, discarded"))
}

/// Memory that the server sees, and how we see it.
struct Memory {
    addr: usize,
    file: File,
}

impl Memory {
    fn of(region: &MemoryRegion) -> Outcome<Memory> {
        let path = format!("/proc/self/fd/{}", region.fd);
        let file = OpenOptions::new().read(true).write(true).open(path);
        Ok(Memory { addr: region.addr, file: file.map_err(|e| format!("open the memory: {e}"))? })
    }

    fn slot(&self, index: usize) -> *mut u8 {
        (self.addr + index * BLOCK_BYTES) as *mut u8
    }

    fn put(&self, index: usize, bytes: &[u8]) -> Outcome<()> {
        let at = (index * BLOCK_BYTES) as u64;
        self.file.write_all_at(bytes, at).map_err(|e| format!("fill memory: {e}"))
    }

    fn expect(&self, index: usize, bytes: &[u8], what: &str) -> Outcome<()> {
        let mut found = vec![0; BLOCK_BYTES];
        let at = (index * BLOCK_BYTES) as u64;
        self.file.read_exact_at(&mut found, at).map_err(|e| format!("read memory: {e}"))?;
        if found == bytes { Ok(()) } else { Err(format!("{what}: other bytes than written")) }
    }
}

/// Writes as many blocks as the depth has, flushes, reads them back.
fn verified(queue: &mut Blkioq, memory: &Memory, pass: u64, blocks: u64) -> Outcome<()> {
    let at = |index: usize| (pass * DEPTH as u64 + index as u64).wrapping_mul(STRIDE) % blocks;
    for index in 0..DEPTH {
        memory.put(index, &stamp(at(index), pass))?;
        let fua = if index % 2 == 0 { ReqFlags::FUA } else { ReqFlags::empty() };
        let start = at(index) * BLOCK_BYTES as u64;
        queue.write(start, memory.slot(index), BLOCK_BYTES, index, fua);
    }
    finish(queue, DEPTH, "write")?;
    queue.flush(0, ReqFlags::empty());
    finish(queue, 1, "flush")?;
    for index in 0..DEPTH {
        memory.put(index, &[0xee; BLOCK_BYTES])?;
        let start = at(index) * BLOCK_BYTES as u64;
        queue.read(start, memory.slot(index), BLOCK_BYTES, index, ReqFlags::empty());
    }
    finish(queue, DEPTH, "read")?;
    (0..DEPTH).try_for_each(|index| memory.expect(index, &stamp(at(index), pass), "read"))
}

/// Zeroes some blocks, discards others, and reads the zeroes.
fn emptied(queue: &mut Blkioq, memory: &Memory) -> Outcome<()> {
    let len_bytes = (DEPTH * BLOCK_BYTES) as u64;
    queue.write_zeroes(0, len_bytes, 0, ReqFlags::empty());
    finish(queue, 1, "write zeroes")?;
    queue.discard(len_bytes, len_bytes, 0, ReqFlags::empty());
    finish(queue, 1, "discard")?;
    for index in 0..DEPTH {
        memory.put(index, &[0xee; BLOCK_BYTES])?;
        let start = (index * BLOCK_BYTES) as u64;
        queue.read(start, memory.slot(index), BLOCK_BYTES, index, ReqFlags::empty());
    }
    finish(queue, DEPTH, "read of zeroes")?;
    (0..DEPTH).try_for_each(|index| memory.expect(index, &[0; BLOCK_BYTES], "zeroes"))
}

/// Waits for so many answers; each has to be a success, and each request answered once.
fn finish(queue: &mut Blkioq, count: usize, what: &str) -> Outcome<()> {
    let mut completions = [const { MaybeUninit::<Completion>::uninit() }; DEPTH];
    let mut left = LIMIT;
    let done =
        queue.do_io(&mut completions[..count], count, Some(&mut left), None).map_err(told(what))?;
    let mut seen = [false; DEPTH];
    for completion in &completions[..done] {
        // SAFETY: `do_io` says that it has filled the first `done` of them.
        let completion = unsafe { completion.assume_init_ref() };
        if completion.ret != 0 {
            return Err(format!("{what} {}: error {}", completion.user_data, completion.ret));
        }
        if std::mem::replace(&mut seen[completion.user_data], true) {
            return Err(format!("{what} {} was answered twice", completion.user_data));
        }
    }
    if done == count { Ok(()) } else { Err(format!("{what}: {done} of {count} answers")) }
}

/// What a block holds after a pass.
fn stamp(block: u64, pass: u64) -> Vec<u8> {
    let words = (0_u64..).flat_map(|word| {
        let mixed = (block << 20) ^ (pass << 52) ^ word;
        mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
    });
    words.take(BLOCK_BYTES).collect()
}

fn told(what: &str) -> impl FnOnce(Error) -> String {
    let what = what.to_owned();
    move |error| format!("{what}: {}", error.message())
}
