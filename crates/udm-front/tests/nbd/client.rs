//! A small blocking NBD client that says exactly what a test wants said.

use std::io::{Read, Write};

/// Which header style to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Simple,
    Structured,
    Extended,
}

pub(crate) const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

/// A connection in the transmission phase.
pub(crate) struct Client<S> {
    pub(crate) stream: S,
    style: Style,
    pub(crate) size_bytes: u64,
    pub(crate) flags: u16,
}

/// A reply, whatever its style.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    /// The error number; 0 for success.
    pub(crate) error: u32,
    /// Data of a read, or extents of a block status without the context.
    pub(crate) data: Vec<u8>,
}

fn take<const N: usize, S: Read>(stream: &mut S) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).expect("the server answers");
    bytes
}

fn take_u16(stream: &mut impl Read) -> u16 {
    u16::from_be_bytes(take(stream))
}

fn take_u32(stream: &mut impl Read) -> u32 {
    u32::from_be_bytes(take(stream))
}

fn take_u64(stream: &mut impl Read) -> u64 {
    u64::from_be_bytes(take(stream))
}

/// Greets and sends the client flags.
pub(crate) fn greet(stream: &mut (impl Read + Write)) {
    assert_eq!(take::<18, _>(stream), *b"NBDMAGICIHAVEOPT\0\x03");
    stream.write_all(&3_u32.to_be_bytes()).expect("the server listens");
}

/// Sends an option and returns its replies up to the last: type and data.
pub(crate) fn option(
    stream: &mut (impl Read + Write),
    number: u32,
    body: &[u8],
) -> Vec<(u32, Vec<u8>)> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    stream.write_all(&bytes).expect("the server listens");
    let mut replies = Vec::new();
    loop {
        assert_eq!(take_u64(stream), 0x3_e889_0455_65a9);
        assert_eq!(take_u32(stream), number);
        let kind = take_u32(stream);
        let mut data = vec![0; take_u32(stream) as usize];
        stream.read_exact(&mut data).expect("the server answers");
        replies.push((kind, data));
        if kind == 1 || kind > 1 << 31 {
            return replies;
        }
    }
}

impl<S: Read + Write> Client<S> {
    /// Shakes hands and chooses an export.
    pub(crate) fn new(mut stream: S, style: Style, export: &str) -> Client<S> {
        greet(&mut stream);
        Client::secured(stream, style, export)
    }

    /// Chooses an export; the greeting was exchanged before TLS began.
    pub(crate) fn secured(mut stream: S, style: Style, export: &str) -> Client<S> {
        let mut name = (export.len() as u32).to_be_bytes().to_vec();
        name.extend(export.as_bytes());
        match style {
            Style::Simple => {}
            Style::Structured | Style::Extended => {
                let number = if style == Style::Structured { 8 } else { 11 };
                assert_eq!(option(&mut stream, number, b"")[0].0, 1);
                let select = [&name[..], b"\0\0\0\x01\0\0\0\x0fbase:allocation"].concat();
                assert_eq!(option(&mut stream, 10, &select).len(), 2);
            }
        }
        let replies = option(&mut stream, 7, &[&name[..], b"\0\0"].concat());
        let (kind, info) = &replies[0];
        assert_eq!(*kind, 3, "the export exists: {replies:?}");
        Client {
            stream,
            style,
            size_bytes: u64::from_be_bytes(info[2..10].try_into().expect("eight bytes")),
            flags: u16::from_be_bytes(info[10..12].try_into().expect("two bytes")),
        }
    }

    /// The bytes of a request.
    pub(crate) fn request(
        &self,
        command: u16,
        flags: u16,
        cookie: u64,
        offset: u64,
        len: u64,
    ) -> Vec<u8> {
        let extended = self.style == Style::Extended;
        let payload_flag = if extended && command == WRITE { 32 } else { 0 };
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend((flags | payload_flag).to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        if extended {
            bytes.extend(len.to_be_bytes());
        } else {
            bytes.extend((len as u32).to_be_bytes());
        }
        bytes
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server listens");
    }

    /// Receives a reply; `read_len` is the length of the read it answers, if it does.
    pub(crate) fn reply(&mut self, read_len: usize) -> Reply {
        let stream = &mut self.stream;
        match self.style {
            Style::Simple => {
                assert_eq!(take_u32(stream), 0x6744_6698);
                let (error, cookie) = (take_u32(stream), take_u64(stream));
                let mut data = vec![0; if error == 0 { read_len } else { 0 }];
                stream.read_exact(&mut data).expect("the server answers");
                Reply { cookie, error, data }
            }
            Style::Structured => {
                assert_eq!(take_u32(stream), 0x668e_33ef);
                let (flags, kind) = (take_u16(stream), take_u16(stream));
                let (cookie, len) = (take_u64(stream), take_u32(stream));
                self.chunk(flags, kind, cookie, len as usize)
            }
            Style::Extended => {
                assert_eq!(take_u32(stream), 0x6e8a_278c);
                let (flags, kind) = (take_u16(stream), take_u16(stream));
                let (cookie, _offset, len) = (take_u64(stream), take_u64(stream), take_u64(stream));
                self.chunk(flags, kind, cookie, len as usize)
            }
        }
    }

    fn chunk(&mut self, flags: u16, kind: u16, cookie: u64, len: usize) -> Reply {
        assert_eq!(flags, 1, "every reply is one chunk");
        let mut payload = vec![0; len];
        self.stream.read_exact(&mut payload).expect("the server answers");
        match kind {
            0 => Reply { cookie, error: 0, data: payload },
            1 => Reply { cookie, error: 0, data: payload[8..].to_vec() },
            5 => Reply { cookie, error: 0, data: payload[4..].to_vec() },
            6 => Reply { cookie, error: 0, data: payload[8..].to_vec() },
            0x8001 => {
                let error = u32::from_be_bytes(payload[..4].try_into().expect("four bytes"));
                Reply { cookie, error, data: Vec::new() }
            }
            other => panic!("chunk of type {other}"),
        }
    }

    /// Sends a request without payload and waits for its reply.
    pub(crate) fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u64) -> Reply {
        let bytes = self.request(command, flags, 77, offset, len);
        self.send(&bytes);
        let read_len = if command == READ { len as usize } else { 0 };
        let reply = self.reply(read_len);
        assert_eq!(reply.cookie, 77);
        reply
    }

    /// Writes and waits; the error number.
    pub(crate) fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        let mut bytes = self.request(WRITE, flags, 78, offset, data.len() as u64);
        bytes.extend(data);
        self.send(&bytes);
        let reply = self.reply(0);
        assert_eq!(reply.cookie, 78);
        reply.error
    }

    /// True if the server closes without saying more.
    pub(crate) fn ended_by_server(mut self) -> bool {
        let mut rest = Vec::new();
        // A reset instead of an orderly end counts: we may have sent what nobody read.
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
