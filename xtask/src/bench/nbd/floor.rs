//! The floor: the least an NBD server can do, to measure the others against.
//!
//! One thread, one loop. It reads as much as a socket has, answers reads from one static block and
//! throws writes away, and sends all answers of a batch with one call. No device, no options but
//! `NBD_OPT_GO`, no errors worth the name: a client that does anything else is disconnected. What a
//! real server costs above this is what it does for its users, and what it wastes.
//!
//! It runs as a process of its own (`cargo xtask bench floor`), so that its CPU time can be read
//! like that of every other server.

use super::wire::{self, Op, REPLY_BYTES, REQUEST_BYTES, Request};
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

/// What every read is answered with; also the longest request.
static BLOCK: [u8; 64 << 10] = [0x5a; 64 << 10];
/// Room for whatever a socket may hold, so that a batch is one read.
const IN_BYTES: usize = 1 << 20;
/// Slices the kernel takes in one call.
const IOV_MAX: usize = 1024;

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    filled: usize,
    heads: Vec<([u8; REPLY_BYTES], usize)>,
}

/// Serves until the process is killed or the listener breaks.
pub(crate) fn serve(listener: &UnixListener, size_bytes: u64) -> io::Result<()> {
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let ready = wait(listener, &connections)?;
        let mut flags = ready.iter();
        let someone_new = flags.next().is_some_and(|flag| *flag);
        let mut gone = Vec::new();
        for (index, _) in flags.enumerate().filter(|(_, ready)| **ready) {
            if !matches!(connections[index].turn(), Ok(true)) {
                gone.push(index);
            }
        }
        for index in gone.into_iter().rev() {
            connections.swap_remove(index);
        }
        if someone_new {
            let (mut stream, _) = listener.accept()?;
            if wire::accept(&mut stream, size_bytes).is_ok() {
                let (input, heads) = (vec![0; IN_BYTES], Vec::new());
                connections.push(Connection { stream, input, filled: 0, heads });
            }
        }
    }
}

/// Which of the listener and the connections are readable.
fn wait(listener: &UnixListener, connections: &[Connection]) -> io::Result<Vec<bool>> {
    let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
    fds.extend(connections.iter().map(|c| PollFd::new(&c.stream, PollFlags::IN)));
    poll(&mut fds, None)?;
    Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect())
}

impl Connection {
    /// Reads once, answers all that is complete; whether the connection goes on.
    fn turn(&mut self) -> io::Result<bool> {
        let got = self.stream.read(&mut self.input[self.filled..])?;
        if got == 0 {
            return Ok(false);
        }
        self.filled += got;
        let mut at = 0;
        let mut goes_on = true;
        while let Some(head) = self.input[at..self.filled].first_chunk::<REQUEST_BYTES>() {
            let request = Request::decode(head)?;
            let len_bytes = request.len_bytes as usize;
            if len_bytes > BLOCK.len() {
                return Err(wire::broken("a long request"));
            }
            let (whole, answer_bytes) = match request.op {
                Op::Read => (REQUEST_BYTES, len_bytes),
                Op::Write => (REQUEST_BYTES + len_bytes, 0),
                Op::Disconnect => (REQUEST_BYTES, 0),
            };
            if request.op == Op::Disconnect {
                goes_on = false;
                break;
            }
            if self.filled - at < whole {
                break;
            }
            self.heads.push((wire::encode_reply(request.cookie), answer_bytes));
            at += whole;
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        self.answer()?;
        Ok(goes_on)
    }

    fn answer(&mut self) -> io::Result<()> {
        for batch in self.heads.chunks(IOV_MAX / 2) {
            let mut slices = Vec::with_capacity(batch.len() * 2);
            for (head, answer_bytes) in batch {
                slices.push(IoSlice::new(head));
                if *answer_bytes > 0 {
                    slices.push(IoSlice::new(&BLOCK[..*answer_bytes]));
                }
            }
            let mut left: &mut [IoSlice<'_>] = &mut slices;
            while !left.is_empty() {
                let done = self.stream.write_vectored(left)?;
                IoSlice::advance_slices(&mut left, done);
            }
        }
        self.heads.clear();
        Ok(())
    }
}
