//! An NBD server that does what a test tells it: serves memory, holds answers back, errs, hangs up.
//!
//! Written for tests only, from the protocol and not from our server or client, so that a mistake
//! in either shows. One thread for each connection; a test ends it by shutting its socket down.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const ZEROES: u16 = 6;

/// Flush, FUA, trim, write-zeroes, several connections as one.
pub(crate) const ALL: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8;

/// How the server frames its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Simple,
    Structured,
    Extended,
}

/// What the server does with requests.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// As it should.
    Serve,
    /// Keeps the answers until told.
    Hold,
    /// With this error.
    Error(u32),
    /// With these bytes; `{cookie}` is replaced at the given place.
    Raw(Vec<u8>, usize),
    /// Closes the connection.
    HangUp,
}

/// What a test may change while the server runs.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) style: Style,
    pub(crate) size_bytes: u64,
    pub(crate) flags: u16,
    pub(crate) block_sizes: Option<[u32; 3]>,
    pub(crate) answer: Answer,
    /// Shakes no hands: accepts and is silent.
    pub(crate) silent: bool,
}

impl Default for Script {
    fn default() -> Self {
        Script {
            style: Style::Structured,
            size_bytes: 1 << 20,
            flags: ALL,
            block_sizes: None,
            answer: Answer::Serve,
            silent: false,
        }
    }
}

/// A request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) connection: usize,
    pub(crate) command: u16,
    pub(crate) flags: u16,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

#[derive(Default)]
struct Shared {
    script: Mutex<Script>,
    memory: Mutex<Vec<u8>>,
    seen: Mutex<Vec<Seen>>,
    held: Mutex<Vec<(UnixStream, Vec<u8>)>>,
    streams: Mutex<Vec<UnixStream>>,
    stopped: AtomicBool,
}

/// A running server.
pub(crate) struct Server {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at a path, where nobody else does.
    pub(crate) fn start(path: &Path, script: Script) -> Server {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let shared = Arc::new(Shared::default());
        *shared.memory.lock().unwrap() = vec![0; script.size_bytes as usize];
        *shared.script.lock().unwrap() = script;
        let inner = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut threads = Vec::new();
            for (number, stream) in listener.incoming().enumerate() {
                let stream = stream.unwrap();
                if inner.stopped.load(Ordering::SeqCst) {
                    break;
                }
                inner.streams.lock().unwrap().push(stream.try_clone().unwrap());
                let inner = Arc::clone(&inner);
                threads.push(std::thread::spawn(move || {
                    // A client that goes away ends its connection, nothing else.
                    let _ = converse(number, stream, &inner);
                }));
            }
            for thread in threads {
                thread.join().unwrap();
            }
        });
        Server { path: path.to_owned(), shared, thread: Some(thread) }
    }

    pub(crate) fn script(&self, change: impl FnOnce(&mut Script)) {
        let mut script = self.shared.script.lock().unwrap();
        change(&mut script);
        self.shared.memory.lock().unwrap().resize(script.size_bytes as usize, 0);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub(crate) fn forget_seen(&self) {
        self.shared.seen.lock().unwrap().clear();
    }

    pub(crate) fn held_count(&self) -> usize {
        self.shared.held.lock().unwrap().len()
    }

    /// Connections made so far.
    pub(crate) fn connection_count(&self) -> usize {
        self.shared.streams.lock().unwrap().len()
    }

    /// Sends the answers held back, the newest first, each in two halves. On a thread: the client
    /// may be the caller's own.
    pub(crate) fn release(&self) {
        let held = std::mem::take(&mut *self.shared.held.lock().unwrap());
        std::thread::spawn(move || {
            for (mut stream, bytes) in held.into_iter().rev() {
                let (front, back) = bytes.split_at(bytes.len() / 2);
                // The client may have closed it.
                let _ = stream.write_all(front).and_then(|()| stream.write_all(back));
            }
        });
    }

    /// Ends all connections, as a server that dies.
    pub(crate) fn cut(&self) {
        for stream in self.shared.streams.lock().unwrap().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
        self.cut();
        let ended = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || ended.is_ok());
    }
}

fn take<const N: usize>(stream: &mut UnixStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn converse(number: usize, mut stream: UnixStream, shared: &Shared) -> std::io::Result<()> {
    let script = shared.script.lock().unwrap().clone();
    if script.silent {
        let mut byte = [0];
        while stream.read(&mut byte)? > 0 {}
        return Ok(());
    }
    shake_hands(&mut stream, &script)?;
    loop {
        let head: [u8; 24] = take(&mut stream)?;
        let len = match script.style {
            Style::Simple | Style::Structured => {
                assert_eq!(head[..4], 0x2560_9513_u32.to_be_bytes());
                u64::from(u32::from_be_bytes(take(&mut stream)?))
            }
            Style::Extended => {
                assert_eq!(head[..4], 0x21e4_1c71_u32.to_be_bytes());
                u64::from_be_bytes(take(&mut stream)?)
            }
        };
        let seen = Seen {
            connection: number,
            command: u16::from_be_bytes([head[6], head[7]]),
            flags: u16::from_be_bytes([head[4], head[5]]),
            offset: u64::from_be_bytes(head[16..24].try_into().unwrap()),
            len,
        };
        let mut data = vec![0; if seen.command == WRITE { len as usize } else { 0 }];
        stream.read_exact(&mut data)?;
        shared.seen.lock().unwrap().push(seen);
        if seen.command == DISC {
            return Ok(());
        }
        let cookie: [u8; 8] = head[8..16].try_into().unwrap();
        let answer = shared.script.lock().unwrap().answer.clone();
        let reply = match answer {
            Answer::HangUp => return stream.shutdown(Shutdown::Both),
            Answer::Error(code) => error_reply(script.style, cookie, code),
            Answer::Raw(ref bytes, at) => {
                let mut bytes = bytes.clone();
                bytes[at..at + 8].copy_from_slice(&cookie);
                bytes
            }
            Answer::Serve | Answer::Hold => {
                let read = act(&seen, &data, &mut shared.memory.lock().unwrap());
                reply(script.style, cookie, &seen, &read)
            }
        };
        if matches!(answer, Answer::Hold) {
            shared.held.lock().unwrap().push((stream.try_clone()?, reply));
        } else {
            stream.write_all(&reply)?;
        }
    }
}

/// Does what is asked; what was read.
fn act(seen: &Seen, data: &[u8], memory: &mut [u8]) -> Vec<u8> {
    let range = seen.offset as usize..(seen.offset + seen.len) as usize;
    match seen.command {
        READ => return memory[range].to_vec(),
        WRITE => memory[range].copy_from_slice(data),
        ZEROES | TRIM => memory[range].fill(0),
        FLUSH => assert_eq!((seen.offset, seen.len), (0, 0)),
        other => panic!("command {other}"),
    }
    Vec::new()
}

fn shake_hands(stream: &mut UnixStream, script: &Script) -> std::io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
    assert_eq!(take(stream)?, 3_u32.to_be_bytes());
    loop {
        let head: [u8; 16] = take(stream)?;
        assert_eq!(&head[..8], b"IHAVEOPT");
        let option = u32::from_be_bytes(head[8..12].try_into().unwrap());
        let mut body = vec![0; u32::from_be_bytes(head[12..16].try_into().unwrap()) as usize];
        stream.read_exact(&mut body)?;
        let mut say = |kind: u32, body: &[u8]| {
            let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            bytes.extend(option.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend((body.len() as u32).to_be_bytes());
            bytes.extend(body);
            stream.write_all(&bytes)
        };
        let unsupported = (1 << 31) + 1;
        match option {
            11 if script.style == Style::Extended => say(1, b"")?,
            8 if script.style == Style::Structured => say(1, b"")?,
            7 => {
                let mut info = vec![0, 0];
                info.extend(script.size_bytes.to_be_bytes());
                info.extend(script.flags.to_be_bytes());
                say(3, &info)?;
                if let Some(sizes) = script.block_sizes {
                    let mut info = vec![0, 3];
                    sizes.iter().for_each(|size| info.extend(size.to_be_bytes()));
                    say(3, &info)?;
                }
                return say(1, b"");
            }
            _ => say(unsupported, b"not here")?,
        }
    }
}

fn chunk(style: Style, cookie: [u8; 8], kind: u16, done: bool, body: &[u8]) -> Vec<u8> {
    let magic: u32 = if style == Style::Extended { 0x6e8a_278c } else { 0x668e_33ef };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(u16::from(done).to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie);
    if style == Style::Extended {
        bytes.extend(0_u64.to_be_bytes());
        bytes.extend((body.len() as u64).to_be_bytes());
    } else {
        bytes.extend((body.len() as u32).to_be_bytes());
    }
    bytes.extend(body);
    bytes
}

fn error_reply(style: Style, cookie: [u8; 8], code: u32) -> Vec<u8> {
    if style == Style::Simple {
        return [&0x6744_6698_u32.to_be_bytes(), &code.to_be_bytes(), &cookie[..]].concat();
    }
    let body = [&code.to_be_bytes()[..], &[0, 5], b"sorry"].concat();
    chunk(style, cookie, (1 << 15) + 1, true, &body)
}

/// A good answer. Chunked reads come the second half first, zeroes as a hole.
fn reply(style: Style, cookie: [u8; 8], seen: &Seen, read: &[u8]) -> Vec<u8> {
    if style == Style::Simple {
        let head = [&0x6744_6698_u32.to_be_bytes(), &[0; 4], &cookie[..]].concat();
        return [&head, read].concat();
    }
    if seen.command != READ {
        return chunk(style, cookie, 0, true, b"");
    }
    let half = read.len() / 1024 * 512;
    let mut bytes = Vec::new();
    let parts = [(half, &read[half..]), (0, &read[..half])];
    for (at, data) in parts.into_iter().filter(|(_, data)| !data.is_empty()) {
        let offset = (seen.offset + at as u64).to_be_bytes();
        if data.iter().all(|&byte| byte == 0) {
            let body = [&offset[..], &(data.len() as u32).to_be_bytes()].concat();
            bytes.extend(chunk(style, cookie, 2, false, &body));
        } else {
            bytes.extend(chunk(style, cookie, 1, false, &[&offset[..], data].concat()));
        }
    }
    bytes.extend(chunk(style, cookie, 0, true, b""));
    bytes
}
