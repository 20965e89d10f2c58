//! The floor: the least an NBD server can do, to measure the others against.
//!
//! One thread, one loop. It reads as much as a socket has, and sends all answers of a batch with
//! one call. No options but `NBD_OPT_GO`, no errors worth the name: a client that does anything
//! else is disconnected. What a real server costs above this is what it does for its users, and
//! what it wastes.
//!
//! There are three. The first answers all reads from one block, which stays in the processor's
//! cache, and throws writes away: the cost of the protocol and the socket alone. The second has
//! memory of the device's size and reads and writes it in place: what a bare loop costs that
//! really stores. The third makes one `pread` or `pwrite` for each request, right in the loop, and
//! so may block there, which no server should: what the same loop costs over the page cache.
//!
//! It runs as a process of its own (`cargo xtask bench floor`), so that its CPU time can be read
//! like that of every other server.

use super::wire::{self, Op, REPLY_BYTES, REQUEST_BYTES, Request};
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};

/// The longest request.
const LEN_BYTES_MAX: usize = 64 << 10;
/// Room for whatever a socket may hold, so that a batch is one read.
const IN_BYTES: usize = 1 << 20;
/// Slices the kernel takes in one call.
const IOV_MAX: usize = 1024;

/// What the floor answers from.
pub(crate) enum Store {
    /// One block for all offsets.
    Block,
    /// Memory of the device's size.
    Memory,
    /// A file of the device's size.
    File(File),
}

/// A store at work.
struct Bytes {
    /// Only for a file.
    file: Option<File>,
    /// Where answers are sent from: the store itself, or what a batch has read from the file.
    memory: Vec<u8>,
    size: usize,
}

impl Bytes {
    fn new(store: Store, size_bytes: u64) -> io::Result<Bytes> {
        let size = match store {
            Store::Block => LEN_BYTES_MAX,
            Store::Memory | Store::File(_) => {
                usize::try_from(size_bytes).map_err(|_| wire::broken("a huge device"))?
            }
        };
        Ok(match store {
            Store::Block | Store::Memory => Bytes { file: None, memory: vec![0x5a; size], size },
            Store::File(file) => Bytes { file: Some(file), memory: Vec::new(), size },
        })
    }

    /// Where a range can be sent from; `used` bytes of this batch are there already.
    fn read(&mut self, range: Range<usize>, used: &mut usize) -> io::Result<Range<usize>> {
        let Some(file) = &self.file else { return Ok(range) };
        let place = *used..*used + range.len();
        if self.memory.len() < place.end {
            self.memory.resize(place.end, 0);
        }
        file.read_exact_at(&mut self.memory[place.clone()], range.start as u64)?;
        *used = place.end;
        Ok(place)
    }

    fn write(&mut self, range: Range<usize>, bytes: &[u8]) -> io::Result<()> {
        match &self.file {
            Some(file) => file.write_all_at(bytes, range.start as u64),
            None => {
                self.memory[range].copy_from_slice(bytes);
                Ok(())
            }
        }
    }
}

/// An answer: its head, and the range of the store that follows it.
type Answer = ([u8; REPLY_BYTES], Range<usize>);

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    filled: usize,
    answers: Vec<Answer>,
}

/// Serves until the process is killed or the listener breaks.
pub(crate) fn serve(listener: &UnixListener, size_bytes: u64, store: Store) -> io::Result<()> {
    let mut bytes = Bytes::new(store, size_bytes)?;
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let ready = wait(listener, &connections)?;
        let mut flags = ready.iter();
        let someone_new = flags.next().is_some_and(|flag| *flag);
        let mut gone = Vec::new();
        for (index, _) in flags.enumerate().filter(|(_, ready)| **ready) {
            if !matches!(connections[index].turn(&mut bytes), Ok(true)) {
                gone.push(index);
            }
        }
        for index in gone.into_iter().rev() {
            connections.swap_remove(index);
        }
        if someone_new {
            let (mut stream, _) = listener.accept()?;
            if wire::accept(&mut stream, size_bytes).is_ok() {
                let (input, answers) = (vec![0; IN_BYTES], Vec::new());
                connections.push(Connection { stream, input, filled: 0, answers });
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
    fn turn(&mut self, store: &mut Bytes) -> io::Result<bool> {
        let got = self.stream.read(&mut self.input[self.filled..])?;
        if got == 0 {
            return Ok(false);
        }
        self.filled += got;
        let (mut at, mut used) = (0, 0);
        let mut goes_on = true;
        while let Some(head) = self.input[at..self.filled].first_chunk::<REQUEST_BYTES>() {
            let request = Request::decode(head)?;
            let range = place(&request, store.size)?;
            let data = at + REQUEST_BYTES;
            let (whole, answer) = match request.op {
                Op::Read => (REQUEST_BYTES, store.read(range, &mut used)?),
                Op::Write if self.filled - data < range.len() => break,
                Op::Write => {
                    let len = range.len();
                    store.write(range, &self.input[data..data + len])?;
                    (REQUEST_BYTES + len, 0..0)
                }
                Op::Flush => (REQUEST_BYTES, 0..0),
                Op::Disconnect => {
                    goes_on = false;
                    break;
                }
            };
            self.answers.push((wire::encode_reply(request.cookie), answer));
            at += whole;
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        self.answer(&store.memory)?;
        Ok(goes_on)
    }

    fn answer(&mut self, store: &[u8]) -> io::Result<()> {
        for batch in self.answers.chunks(IOV_MAX / 2) {
            let mut slices = Vec::with_capacity(batch.len() * 2);
            for (head, range) in batch {
                slices.push(IoSlice::new(head));
                if !range.is_empty() {
                    slices.push(IoSlice::new(&store[range.clone()]));
                }
            }
            let mut left: &mut [IoSlice<'_>] = &mut slices;
            while !left.is_empty() {
                let done = self.stream.write_vectored(left)?;
                IoSlice::advance_slices(&mut left, done);
            }
        }
        self.answers.clear();
        Ok(())
    }
}

/// Where in the store a request's data is: at its offset, or at 0 of the single block.
fn place(request: &Request, store_bytes: usize) -> io::Result<Range<usize>> {
    let len = request.len_bytes as usize;
    if len > LEN_BYTES_MAX {
        return Err(wire::broken("a long request"));
    }
    if store_bytes == LEN_BYTES_MAX {
        return Ok(0..len);
    }
    let begin = usize::try_from(request.offset_bytes).ok();
    begin
        .and_then(|begin| Some(begin..begin.checked_add(len)?))
        .filter(|range| range.end <= store_bytes)
        .ok_or_else(|| wire::broken("a request beyond the end"))
}
