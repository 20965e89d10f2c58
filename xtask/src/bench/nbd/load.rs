//! The load: connections that keep a number of random requests outstanding.
//!
//! Our own client, so that no peer's client is the bottleneck or the favourite. A connection is a
//! thread that sends all new requests with one call and takes as many replies as there are with
//! one call. Connections count what they finished; whoever measures reads the sum at two moments,
//! while all connections are running.
//!
//! Every reply must be a success and belong to a request that is outstanding; anything else ends
//! the run with an error. The data read is not compared here (tests do that).

use super::wire::{self, Op, REPLY_BYTES, Request};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Bytes of each request.
pub(crate) const BLOCK_BYTES: u32 = 4096;
/// Bytes of a request while a device is filled.
const FILL_BYTES: u32 = 64 << 10;
/// Room for what a socket holds, so that many replies come with one read.
const IN_BYTES: usize = 1 << 20;

/// A server that is silent for longer with requests outstanding has lost one.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// What the connections do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub(crate) op: Op,
    /// Requests outstanding on each connection.
    pub(crate) depth: usize,
    pub(crate) connections: usize,
}

/// An open connection, past the handshake.
pub(crate) struct Connection {
    stream: UnixStream,
    size_bytes: u64,
    output: Vec<u8>,
    input: Vec<u8>,
    filled: usize,
    /// By cookie: whether that request is outstanding.
    outstanding: Vec<bool>,
    payload: Vec<u8>,
}

impl Connection {
    /// Connects to a socket and opens an export.
    pub(crate) fn open(socket: &Path, export: &str) -> io::Result<Connection> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        let size_bytes = wire::connect(&mut stream, export)?;
        Ok(Connection {
            stream,
            size_bytes,
            output: Vec::new(),
            input: vec![0; IN_BYTES],
            filled: 0,
            outstanding: Vec::new(),
            payload: vec![0xa5; FILL_BYTES as usize],
        })
    }

    /// Writes the whole device once, so that no server answers from a hole.
    pub(crate) fn fill(&mut self) -> io::Result<()> {
        let mut next_bytes = 0;
        let (size_bytes, step) = (self.size_bytes, u64::from(FILL_BYTES));
        self.run(Op::Write, FILL_BYTES, 8, &AtomicU64::new(0), || {
            let offset_bytes = next_bytes;
            next_bytes += step;
            (next_bytes <= size_bytes).then_some(offset_bytes)
        })
    }

    /// Random requests until `stop`; `done` counts them.
    pub(crate) fn drive(
        &mut self,
        pattern: &Pattern,
        seed: u64,
        done: &AtomicU64,
        stop: &AtomicBool,
    ) -> io::Result<()> {
        let blocks = self.size_bytes / u64::from(BLOCK_BYTES);
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        self.run(pattern.op, BLOCK_BYTES, pattern.depth, done, || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let offset_bytes = (random >> 8) % blocks * u64::from(BLOCK_BYTES);
            (!stop.load(Ordering::Relaxed)).then_some(offset_bytes)
        })
    }

    /// Keeps `depth` requests outstanding until `next` has no more offsets, then waits for all.
    fn run(
        &mut self,
        op: Op,
        len_bytes: u32,
        depth: usize,
        done: &AtomicU64,
        mut next: impl FnMut() -> Option<u64>,
    ) -> io::Result<()> {
        self.outstanding = vec![false; depth];
        let mut free: Vec<usize> = (0..depth).rev().collect();
        let mut more = true;
        loop {
            while more && let Some(cookie) = free.pop() {
                match next() {
                    Some(offset_bytes) => self.push(op, cookie, offset_bytes, len_bytes),
                    None => {
                        more = false;
                        free.push(cookie);
                    }
                }
            }
            if free.len() == depth {
                return Ok(());
            }
            self.stream.write_all(&self.output)?;
            self.output.clear();
            let before = free.len();
            self.take_replies(if op == Op::Read { len_bytes as usize } else { 0 }, &mut free)?;
            done.fetch_add((free.len() - before) as u64, Ordering::Relaxed);
        }
    }

    fn push(&mut self, op: Op, cookie: usize, offset_bytes: u64, len_bytes: u32) {
        self.outstanding[cookie] = true;
        let request = Request { op, cookie: cookie as u64, offset_bytes, len_bytes };
        self.output.extend_from_slice(&request.encode());
        if op == Op::Write {
            self.output.extend_from_slice(&self.payload[..len_bytes as usize]);
        }
    }

    /// One read, then every complete reply in it.
    fn take_replies(&mut self, data_bytes: usize, free: &mut Vec<usize>) -> io::Result<()> {
        let got = self.stream.read(&mut self.input[self.filled..])?;
        if got == 0 {
            return Err(wire::broken("the server closed the connection"));
        }
        self.filled += got;
        let mut at = 0;
        while self.filled - at >= REPLY_BYTES + data_bytes {
            let head = self.input[at..].first_chunk::<REPLY_BYTES>();
            let cookie = wire::decode_reply(head.expect("invariant: its length was just checked"))?;
            let slot = usize::try_from(cookie).ok().and_then(|c| self.outstanding.get_mut(c));
            match slot {
                Some(slot) if *slot => *slot = false,
                _ => return Err(wire::broken("a reply to no request")),
            }
            free.push(cookie as usize);
            at += REPLY_BYTES + data_bytes;
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(())
    }

    /// Says good-bye; the server closes.
    pub(crate) fn close(mut self) -> io::Result<()> {
        let request = Request { op: Op::Disconnect, cookie: 0, offset_bytes: 0, len_bytes: 0 };
        self.stream.write_all(&request.encode())?;
        // The server's close, as end of file; some servers reset instead, which is as good.
        let _gone = self.stream.read(&mut [0]);
        Ok(())
    }
}

/// What a window of load measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) ios: u64,
    pub(crate) wall_s: f64,
    /// CPU seconds, as `cpu_s` told.
    pub(crate) cpu_s: f64,
}

/// Runs the pattern; after `warm_up` looks at counters and clock, after `window` again.
pub(crate) fn measure(
    socket: &Path,
    export: &str,
    pattern: &Pattern,
    (warm_up, window): (Duration, Duration),
    mut cpu_s: impl FnMut() -> io::Result<f64>,
) -> io::Result<Window> {
    let connections = (0..pattern.connections)
        .map(|_| Connection::open(socket, export))
        .collect::<io::Result<Vec<Connection>>>()?;
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (report, reports) = mpsc::channel();
    std::thread::scope(|scope| {
        for (seed, mut connection) in (1..).zip(connections) {
            let (done, stop, report) = (&done, &stop, report.clone());
            scope.spawn(move || {
                let result = connection.drive(pattern, seed, done, stop);
                let closed = result.and_then(|()| connection.close());
                // The receiver is gone only if the measurement was given up.
                let _unheard = report.send(closed);
            });
        }
        drop(report);
        // A connection reports before its time only if it failed.
        let pause = |length| match reports.recv_timeout(length) {
            Err(_) => Ok(()),
            Ok(result) => result.and(Err(wire::broken("a connection ended early"))),
        };
        let mut look =
            || Ok::<_, io::Error>((cpu_s()?, done.load(Ordering::Relaxed), Instant::now()));
        let looked = pause(warm_up).and_then(|()| look()).and_then(|first| {
            pause(window)?;
            Ok((first, look()?))
        });
        stop.store(true, Ordering::Relaxed);
        let ((cpu_first, ios_first, start), (cpu_last, ios_last, end)) = looked?;
        reports.iter().collect::<io::Result<Vec<()>>>()?;
        Ok(Window {
            ios: ios_last - ios_first,
            wall_s: (end - start).as_secs_f64(),
            cpu_s: cpu_last - cpu_first,
        })
    })
}
