//! A small NBD client: what a test needs, and nothing a real client would do for it.
//!
//! It speaks fixed newstyle with simple replies over a unix socket, one request at a time, and
//! hands out the raw stream to tests that break the protocol on purpose. A connection that the
//! daemon drops is an `io::Error`; an error the daemon answers is its number ([`Answer`]).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Commands by their numbers on the wire.
pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const FLUSH: u16 = 3;
/// The flag that makes a write durable before its reply.
pub(crate) const FUA: u16 = 1;
/// `ENOSPC` on the wire.
pub(crate) const NO_SPACE: u32 = 28;

/// What the daemon answered: the bytes of a read (else none), or an error number.
pub(crate) type Answer = Result<Vec<u8>, u32>;

/// A connection that is ready for requests.
pub(crate) struct NbdClient {
    pub(crate) stream: UnixStream,
    pub(crate) len_bytes: u64,
    cookie: u64,
}

impl NbdClient {
    /// Connects and asks for an export.
    pub(crate) fn connect(socket: &Path, export: &str) -> io::Result<NbdClient> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(super::outside::LIMIT))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let name_len = u32::try_from(export.len()).expect("short");
        let mut go = 3_u32.to_be_bytes().to_vec();
        go.extend(OPTION_MAGIC.to_be_bytes());
        go.extend(7_u32.to_be_bytes());
        go.extend((name_len + 6).to_be_bytes());
        go.extend(name_len.to_be_bytes());
        go.extend(export.as_bytes());
        go.extend(0_u16.to_be_bytes());
        stream.write_all(&go)?;
        let mut len_bytes = 0;
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head)?;
            let kind = u32::from_be_bytes(head[12..16].try_into().expect("four bytes"));
            let len = u32::from_be_bytes(head[16..20].try_into().expect("four bytes"));
            let mut body = vec![0; len as usize];
            stream.read_exact(&mut body)?;
            match kind {
                1 => return Ok(NbdClient { stream, len_bytes, cookie: 0 }),
                3 if body[..2] == [0, 0] => {
                    len_bytes = u64::from_be_bytes(body[2..10].try_into().expect("eight bytes"));
                }
                3 => {}
                other => return Err(io::Error::other(format!("option refused: {other:#x}"))),
            }
        }
    }

    /// Sends a request without its payload.
    pub(crate) fn send(&mut self, op: u16, flags: u16, at: u64, len: u32) -> io::Result<()> {
        self.cookie += 1;
        let mut head = REQUEST_MAGIC.to_be_bytes().to_vec();
        head.extend(flags.to_be_bytes());
        head.extend(op.to_be_bytes());
        head.extend(self.cookie.to_be_bytes());
        head.extend(at.to_be_bytes());
        head.extend(len.to_be_bytes());
        self.stream.write_all(&head)
    }

    /// Takes the reply to the last request.
    pub(crate) fn reply(&mut self, read_len: usize) -> io::Result<Answer> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        assert_eq!(head[..4], REPLY_MAGIC.to_be_bytes(), "a simple reply");
        assert_eq!(head[8..], self.cookie.to_be_bytes(), "the reply to this request");
        let error = u32::from_be_bytes(head[4..8].try_into().expect("four bytes"));
        if error != 0 {
            return Ok(Err(error));
        }
        let mut bytes = vec![0; read_len];
        self.stream.read_exact(&mut bytes)?;
        Ok(Ok(bytes))
    }

    /// Reads.
    pub(crate) fn read(&mut self, at: u64, len: usize) -> io::Result<Answer> {
        self.send(READ, 0, at, u32::try_from(len).expect("short"))?;
        self.reply(len)
    }

    /// Writes.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8], flags: u16) -> io::Result<Answer> {
        self.send(WRITE, flags, at, u32::try_from(bytes.len()).expect("short"))?;
        self.stream.write_all(bytes)?;
        self.reply(0)
    }

    /// Flushes.
    pub(crate) fn flush(&mut self) -> io::Result<Answer> {
        self.send(FLUSH, 0, 0, 0)?;
        self.reply(0)
    }
}
