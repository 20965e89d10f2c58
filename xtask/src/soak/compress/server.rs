//! The recorded disk over NBD: what the daemon has below.
//!
//! One listener for a life, two threads a connection: one reads requests, the other does them, in
//! any order among those that are there (the protocol promises none), a flush like any other. So
//! there are changes under way at any moment, which a cut may do in part.
//!
//! Rules. One connection is all the server promises to keep in order, so it says nothing of several
//! (no CAN_MULTI_CONN), and the daemon uses one. Requests outside of the disk or across sectors get
//! EINVAL; a client that breaks the protocol is left.
//!
//! The tricky case is a disk that is switched off or stalled while requests are there: switched
//! off, the connection ends without an answer; stalled, nothing ends until it goes on.

use super::super::chaos::Random;
use super::disk::{RecordedDisk, SECTOR_BYTES};
use crate::steps::Failed;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Fixed newstyle, no zeroes behind an old answer.
const SERVER_FLAGS: u16 = 3;
/// Flags are there; flush, FUA, trim and write-zeroes are understood.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6;
const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
const EINVAL: u32 = 22;
/// Longest request that is understood: more than any client of ours sends.
const REQUEST_BYTES_MAX: usize = 32 << 20;
/// How long the disk waits for more requests, now and then, so that some are under way together.
const GATHER: Duration = Duration::from_micros(300);

/// The disk and who waits for it to go on.
pub(super) struct Shared {
    disk: Mutex<RecordedDisk>,
    goes_on: Condvar,
}

impl Shared {
    pub(super) fn disk(&self) -> MutexGuard<'_, RecordedDisk> {
        // A panic in another thread is its own finding; the disk is whole between its calls.
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds everything, or lets it go.
    pub(super) fn stall(&self, is_stalled: bool) {
        self.disk().is_stalled = is_stalled;
        self.goes_on.notify_all();
    }
}

/// A listener with a disk behind it.
pub(super) struct Server {
    pub(super) shared: Arc<Shared>,
    socket: PathBuf,
}

impl Server {
    /// Serves the disk at this socket until it is dropped.
    pub(super) fn start(disk: RecordedDisk, socket: &Path, seed: u64) -> Result<Server, Failed> {
        // What another life left; if it cannot be removed, listening fails and says so.
        let _gone = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).map_err(Failed::to("listen"))?;
        let shared = Arc::new(Shared { disk: Mutex::new(disk), goes_on: Condvar::new() });
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for (nr, stream) in (0..).zip(listener.incoming()) {
                if served.disk().is_off {
                    return;
                }
                let (served, random) = (Arc::clone(&served), Random::new(seed ^ nr << 32));
                // A client that goes away ends its threads, nothing else.
                if let Ok(stream) = stream {
                    std::thread::spawn(move || drop(serve(stream, &served, random)));
                }
            }
        });
        Ok(Server { shared, socket: socket.to_owned() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.disk().is_off = true;
        self.shared.stall(false);
        // Wakes the listener, which sees that the power is off and ends.
        drop(UnixStream::connect(&self.socket));
    }
}

/// What is asked of the disk.
struct Asked {
    flags: u16,
    command: u16,
    cookie: u64,
    offset_bytes: u64,
    len_bytes: u32,
    data: Vec<u8>,
    /// What the disk said when it began: the name of a change, what a flush covers.
    begun: u64,
}

fn serve(mut stream: UnixStream, shared: &Arc<Shared>, mut random: Random) -> io::Result<()> {
    greet(&mut stream, shared.disk().len_bytes() as u64)?;
    let (sender, receiver) = channel();
    let mut input = stream.try_clone()?;
    std::thread::spawn(move || {
        while let Ok(Some(asked)) = read_request(&mut input) {
            if sender.send(asked).is_err() {
                return;
            }
        }
    });
    let ended = work(&mut stream, &receiver, shared, &mut random);
    // The reader of requests ends with the connection.
    drop(stream.shutdown(std::net::Shutdown::Both));
    ended
}

fn greet(stream: &mut UnixStream, len_bytes: u64) -> io::Result<()> {
    let mut hello = b"NBDMAGIC".to_vec();
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend(SERVER_FLAGS.to_be_bytes());
    stream.write_all(&hello)?;
    let _client_flags: [u8; 4] = take(stream)?;
    loop {
        let head: [u8; 16] = take(stream)?;
        let (option, len) = (be_u32(&head[8..]), be_u32(&head[12..]));
        let mut words = vec![0; len.min(1 << 16) as usize];
        stream.read_exact(&mut words)?;
        let reply = |kind: u32, body: &[u8]| {
            let mut bytes = REPLY_MAGIC.to_be_bytes().to_vec();
            bytes.extend(option.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend((body.len() as u32).to_be_bytes());
            bytes.extend(body);
            bytes
        };
        match option {
            OPTION_GO => {
                let mut export = vec![0, 0];
                export.extend(len_bytes.to_be_bytes());
                export.extend(EXPORT_FLAGS.to_be_bytes());
                stream.write_all(&reply(REPLY_INFO, &export))?;
                return stream.write_all(&reply(REPLY_ACK, &[]));
            }
            OPTION_ABORT => return Err(io::Error::other("the client has left")),
            _other => stream.write_all(&reply(REPLY_UNSUPPORTED, &[]))?,
        }
    }
}

/// The next request; none if the client says good-bye.
fn read_request(stream: &mut UnixStream) -> io::Result<Option<Asked>> {
    let head: [u8; 28] = take(stream)?;
    let len_bytes = be_u32(&head[24..]);
    let command = u16::from_be_bytes([head[6], head[7]]);
    if command == 2 || len_bytes as usize > REQUEST_BYTES_MAX {
        return Ok(None);
    }
    let mut data = vec![0; if command == 1 { len_bytes as usize } else { 0 }];
    stream.read_exact(&mut data)?;
    Ok(Some(Asked {
        flags: u16::from_be_bytes([head[4], head[5]]),
        command,
        cookie: be_u64(&head[8..]),
        offset_bytes: be_u64(&head[16..]),
        len_bytes,
        data,
        begun: 0,
    }))
}

/// Does requests until the client is gone or the power is off.
fn work(
    stream: &mut UnixStream,
    requests: &Receiver<Asked>,
    shared: &Shared,
    random: &mut Random,
) -> io::Result<()> {
    let mut under_way: Vec<Asked> = Vec::new();
    loop {
        let next = match (under_way.is_empty(), random.below(4) == 0) {
            (true, _) => requests.recv().map_err(|_| TryRecvError::Disconnected),
            (false, true) => requests.recv_timeout(GATHER).map_err(|error| match error {
                RecvTimeoutError::Timeout => TryRecvError::Empty,
                RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
            }),
            (false, false) => requests.try_recv(),
        };
        match next {
            Ok(mut asked) => {
                begin(&mut asked, &mut shared.disk(), random);
                under_way.push(asked);
            }
            Err(TryRecvError::Disconnected) if under_way.is_empty() => return Ok(()),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                let which = random.below(under_way.len() as u64) as usize;
                let asked = under_way.swap_remove(which);
                let Some(answer) = end(&asked, shared) else { return Ok(()) };
                stream.write_all(&answer)?;
            }
        }
    }
}

fn begin(asked: &mut Asked, disk: &mut RecordedDisk, random: &mut Random) {
    let len = asked.len_bytes as usize;
    let bytes = match asked.command {
        _outside if !is_inside(asked, disk) => return,
        1 => std::mem::take(&mut asked.data),
        3 => {
            asked.begun = disk.begin_flush();
            return;
        }
        // Discarded sectors hold anything: zeroes, what they held, or bytes that never were.
        4 => match random.below(3) {
            0 => vec![0; len],
            1 => disk.read(asked.offset_bytes as usize..asked.offset_bytes as usize + len).to_vec(),
            _ => (0..len).map(|_| random.below(256) as u8).collect(),
        },
        6 => vec![0; len],
        _read => return,
    };
    asked.begun = disk.begin(asked.offset_bytes as usize, bytes);
}

/// Ends a request; its answer, or none if the power is off.
fn end(asked: &Asked, shared: &Shared) -> Option<Vec<u8>> {
    let mut disk = shared.disk();
    while disk.is_stalled && !disk.is_off {
        disk = shared.goes_on.wait(disk).unwrap_or_else(PoisonError::into_inner);
    }
    if disk.is_off {
        return None;
    }
    let at = asked.offset_bytes as usize;
    let (mut error, mut data) = (0, Vec::new());
    match asked.command {
        _outside if !is_inside(asked, &disk) => error = EINVAL,
        0 => data = disk.read(at..at + asked.len_bytes as usize).to_vec(),
        1 | 4 | 6 => disk.finish(asked.begun, asked.flags & 1 != 0),
        3 => disk.finish_flush(asked.begun),
        _unknown => error = EINVAL,
    }
    let mut answer = 0x6744_6698_u32.to_be_bytes().to_vec();
    answer.extend(error.to_be_bytes());
    answer.extend(asked.cookie.to_be_bytes());
    answer.extend(data);
    Some(answer)
}

fn is_inside(asked: &Asked, disk: &RecordedDisk) -> bool {
    let is_whole = asked.offset_bytes.is_multiple_of(SECTOR_BYTES as u64)
        && (asked.len_bytes as usize).is_multiple_of(SECTOR_BYTES);
    let end = asked.offset_bytes.checked_add(u64::from(asked.len_bytes));
    is_whole && end.is_some_and(|end| end <= disk.len_bytes() as u64)
}

fn take<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn be_u32(bytes: &[u8]) -> u32 {
    bytes[..4].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

fn be_u64(bytes: &[u8]) -> u64 {
    bytes[..8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
