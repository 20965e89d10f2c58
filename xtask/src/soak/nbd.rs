//! `cargo xtask soak nbd`: kill -9 of a daemon under NBD clients with many writes under way.
//!
//! What writers do and what has to hold is in `kills.rs`; here is what an export is to them. Each
//! has a connection of its own, sends a batch of writes with one call and takes the replies as they
//! come. When the connection ends, it connects again until the daemon is back, as clients do that
//! are told to (the kernel's with a time-out, QEMU with `reconnect-delay`, ours below a device).
//!
//! The tricky case is a reply that was cut in the middle: it acknowledges nothing.

use super::kills::{self, Args, Disk, Front, LIMIT, Place, SIZE_BYTES, Write as Order};
use crate::bench::wire::{self, Op, REPLY_BYTES, Request};
use crate::steps::Failed;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

const FRONT: Front = Front {
    name: "nbd",
    export: |place| vec!["--nbd".to_owned(), format!("unix:{}", place.path("nbd.sock").display())],
    takes_odd_places: false,
    depth: 32,
};

/// Soaks, and says what was done.
pub(super) fn run(root: &Path, args: &Args) -> Result<(), Failed> {
    kills::run::<Connection>(root, args, &FRONT, |_| {})
}

/// A connection past its handshake.
struct Connection(UnixStream);

impl Connection {
    fn ask(&mut self, op: Op, at: u64, len: usize) -> io::Result<()> {
        let len_bytes = u32::try_from(len).map_err(|_| ErrorKind::InvalidInput)?;
        let request = Request { op, cookie: 0, offset_bytes: at, len_bytes };
        self.0.write_all(&request.encode())?;
        self.reply().map(drop)
    }

    fn reply(&mut self) -> io::Result<u64> {
        let mut head = [0; REPLY_BYTES];
        self.0.read_exact(&mut head)?;
        wire::decode_reply(&head)
    }
}

impl Disk for Connection {
    fn open(place: &Place) -> io::Result<Connection> {
        let mut stream = UnixStream::connect(place.path("nbd.sock"))?;
        // Silence for so long is a hang, which is no way for a daemon to be dead.
        stream.set_read_timeout(Some(LIMIT))?;
        if wire::connect(&mut stream, "d")? != SIZE_BYTES {
            return Err(wire::broken("another size"));
        }
        Ok(Connection(stream))
    }

    fn read(&mut self, at: u64, to: &mut [u8]) -> io::Result<()> {
        self.ask(Op::Read, at, to.len())?;
        self.0.read_exact(to)
    }

    fn write(&mut self, writes: &[Order], acknowledged: &mut dyn FnMut(usize)) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (nth, (at, data)) in writes.iter().enumerate() {
            let len_bytes = u32::try_from(data.len()).map_err(|_| ErrorKind::InvalidInput)?;
            let (op, cookie) = (Op::Write, nth as u64);
            bytes.extend(Request { op, cookie, offset_bytes: *at, len_bytes }.encode());
            bytes.extend(data);
        }
        // The daemon may die while we send; what it has answered before still counts.
        let sent = self.0.write_all(&bytes);
        for _ in writes {
            let cookie = self.reply()?;
            if cookie >= writes.len() as u64 {
                return Err(wire::broken("a reply to nothing"));
            }
            acknowledged(cookie as usize);
        }
        sent
    }

    fn sync(&mut self) -> io::Result<()> {
        self.ask(Op::Flush, 0, 0)
    }

    fn is_death(error: &io::Error) -> bool {
        matches!(
            error.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
        )
    }
}
