//! The little of the NBD protocol that the load client, the floor server and the soak need.
//!
//! Fixed newstyle handshake with `NBD_OPT_GO`, then READ and WRITE with simple replies, which
//! every server speaks. Written against the protocol's text and sharing nothing with `udm-front`,
//! so that a mistake there cannot hide here. No TLS, no structured replies: those are for tests,
//! not for measuring.
//!
//! Numbers are big-endian on the wire. The client reads a handshake with blocking reads; speed
//! matters only after it.

use std::io::{self, Read, Write};

const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
/// Fixed newstyle, no zeroes.
const HANDSHAKE_FLAGS: u16 = 3;
/// `HAS_FLAGS`, `SEND_FLUSH`, `CAN_MULTI_CONN`.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 8;
/// The longest option or option reply anybody sends here.
const OPTION_LEN_BYTES_MAX: u32 = 64 << 10;

const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;

/// Bytes of a request without its payload.
pub(crate) const REQUEST_BYTES: usize = 28;
/// Bytes of a simple reply without its payload.
pub(crate) const REPLY_BYTES: usize = 16;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write,
    Disconnect,
    Flush,
}

/// A request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) op: Op,
    pub(crate) cookie: u64,
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u32,
}

impl Request {
    /// As it goes over the wire.
    pub(crate) fn encode(&self) -> [u8; REQUEST_BYTES] {
        let op: u16 = match self.op {
            Op::Read => 0,
            Op::Write => 1,
            Op::Disconnect => 2,
            Op::Flush => 3,
        };
        let mut bytes = [0; REQUEST_BYTES];
        bytes[0..4].copy_from_slice(&REQUEST.to_be_bytes());
        bytes[6..8].copy_from_slice(&op.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset_bytes.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.len_bytes.to_be_bytes());
        bytes
    }

    /// From the wire.
    pub(crate) fn decode(bytes: &[u8; REQUEST_BYTES]) -> io::Result<Request> {
        if be32(&bytes[0..4]) != REQUEST {
            return Err(broken("not a request"));
        }
        let op = match be16(&bytes[6..8]) {
            0 => Op::Read,
            1 => Op::Write,
            2 => Op::Disconnect,
            3 => Op::Flush,
            _ => return Err(broken("a command this server does not know")),
        };
        Ok(Request {
            op,
            cookie: be64(&bytes[8..16]),
            offset_bytes: be64(&bytes[16..24]),
            len_bytes: be32(&bytes[24..28]),
        })
    }
}

/// A successful simple reply's head.
pub(crate) fn encode_reply(cookie: u64) -> [u8; REPLY_BYTES] {
    let mut bytes = [0; REPLY_BYTES];
    bytes[0..4].copy_from_slice(&SIMPLE_REPLY.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The cookie of a simple reply; any error in it is an error here.
pub(crate) fn decode_reply(bytes: &[u8; REPLY_BYTES]) -> io::Result<u64> {
    if be32(&bytes[0..4]) != SIMPLE_REPLY {
        return Err(broken("not a simple reply"));
    }
    match be32(&bytes[4..8]) {
        0 => Ok(be64(&bytes[8..16])),
        error => Err(broken(&format!("the server answered with error {error}"))),
    }
}

/// The client's half of the handshake; gives the export's size in bytes.
pub(crate) fn connect(stream: &mut (impl Read + Write), export: &str) -> io::Result<u64> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if be64(&greeting[0..8]) != NBDMAGIC || be64(&greeting[8..16]) != IHAVEOPT {
        return Err(broken("no newstyle greeting"));
    }
    let client_flags = u32::from(be16(&greeting[16..18]) & HANDSHAKE_FLAGS);
    let mut ask = client_flags.to_be_bytes().to_vec();
    let name_len = u32::try_from(export.len()).map_err(|_| broken("a long name"))?;
    ask.extend(IHAVEOPT.to_be_bytes());
    ask.extend(OPT_GO.to_be_bytes());
    ask.extend((name_len + 6).to_be_bytes());
    ask.extend(name_len.to_be_bytes());
    ask.extend(export.as_bytes());
    ask.extend(0_u16.to_be_bytes());
    stream.write_all(&ask)?;
    let mut size_bytes = None;
    loop {
        let mut head = [0; 20];
        stream.read_exact(&mut head)?;
        let (kind, len) = (be32(&head[12..16]), be32(&head[16..20]));
        if be64(&head[0..8]) != OPTION_REPLY || len > OPTION_LEN_BYTES_MAX {
            return Err(broken("not an option reply"));
        }
        let mut rest = vec![0; len as usize];
        stream.read_exact(&mut rest)?;
        if kind & REP_ERROR != 0 {
            let why = String::from_utf8_lossy(&rest).into_owned();
            return Err(broken(&format!("export \"{export}\" refused: {kind:#x} {why}")));
        }
        if kind == REP_INFO && rest.len() == 12 && be16(&rest[0..2]) == INFO_EXPORT {
            size_bytes = Some(be64(&rest[2..10]));
        }
        if kind == REP_ACK {
            return size_bytes.ok_or_else(|| broken("the server told no size"));
        }
    }
}

/// The server's half: accepts `NBD_OPT_GO` for any name, with a device of this size.
pub(crate) fn accept(stream: &mut (impl Read + Write), size_bytes: u64) -> io::Result<()> {
    let mut greeting = NBDMAGIC.to_be_bytes().to_vec();
    greeting.extend(IHAVEOPT.to_be_bytes());
    greeting.extend(HANDSHAKE_FLAGS.to_be_bytes());
    stream.write_all(&greeting)?;
    let mut head = [0; 20];
    stream.read_exact(&mut head)?;
    let (option, len) = (be32(&head[12..16]), be32(&head[16..20]));
    if be64(&head[4..12]) != IHAVEOPT || option != OPT_GO || len > OPTION_LEN_BYTES_MAX {
        return Err(broken("the floor server knows only NBD_OPT_GO"));
    }
    stream.read_exact(&mut vec![0; len as usize])?;
    let mut info = INFO_EXPORT.to_be_bytes().to_vec();
    info.extend(size_bytes.to_be_bytes());
    info.extend(EXPORT_FLAGS.to_be_bytes());
    let mut reply = Vec::new();
    for (kind, rest) in [(REP_INFO, info), (REP_ACK, Vec::new())] {
        reply.extend(OPTION_REPLY.to_be_bytes());
        reply.extend(OPT_GO.to_be_bytes());
        reply.extend(kind.to_be_bytes());
        let rest_len = u32::try_from(rest.len()).map_err(|_| broken("a long reply"))?;
        reply.extend(rest_len.to_be_bytes());
        reply.extend(rest);
    }
    stream.write_all(&reply)
}

fn be16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |number, byte| number << 8 | u16::from(*byte))
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn be64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The other side broke the protocol.
pub(crate) fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Op, Request, decode_reply, encode_reply};

    #[test]
    fn requests_and_replies_survive_the_wire() {
        for op in [Op::Read, Op::Write, Op::Disconnect, Op::Flush] {
            let request = Request { op, cookie: 7 << 40, offset_bytes: 1 << 33, len_bytes: 4096 };
            assert_eq!(Request::decode(&request.encode()).ok(), Some(request));
        }
        assert_eq!(decode_reply(&encode_reply(9)).ok(), Some(9));
        let mut refused = encode_reply(9);
        refused[7] = 5;
        assert!(decode_reply(&refused).is_err());
    }
}
