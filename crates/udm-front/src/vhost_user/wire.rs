//! vhost-user messages: bytes to typed messages, replies to bytes. Nothing else.
//!
//! A message is a header (request u32, flags u32, size u32) and a body, in the machine's byte
//! order; descriptors travel beside it. Numbers are those of the vhost-user specification.
//!
//! Rules. A body has exactly the length its request needs; a length decides about memory only
//! after it was compared with [`BODY_BYTES_MAX`]. What is not understood is a [`Breach`]: the
//! protocol has no way to answer it.

use super::breach::Breach;
use super::config::CONFIG_BYTES;
use super::memory::RegionPlace;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 12;
/// The longest body we take; the longest known is that of a memory table.
pub const BODY_BYTES_MAX: usize = 1024;
/// Regions in one memory table; more are added one by one.
const TABLE_REGIONS_MAX: u32 = 8;

const FLAG_VERSION_MASK: u32 = 3;
const FLAG_VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
/// In the body of a message with a descriptor: there is none.
const NO_FD: u64 = 1 << 8;

/// Bits of the protocol features.
pub mod protocol {
    /// Several queues.
    pub const MQ: u64 = 1 << 0;
    /// Every message can be acknowledged.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// A second socket for requests of ours.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// The configuration space is ours.
    pub const CONFIG: u64 = 1 << 9;
    /// In-flight requests are recorded in shared memory.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    /// Memory regions can be added and removed one by one.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// All that we offer.
    pub const OFFERED: u64 =
        MQ | REPLY_ACK | BACKEND_REQ | CONFIG | INFLIGHT_SHMFD | CONFIGURE_MEM_SLOTS;
}

/// Request numbers.
mod request {
    pub(super) const GET_FEATURES: u32 = 1;
    pub(super) const SET_FEATURES: u32 = 2;
    pub(super) const SET_OWNER: u32 = 3;
    pub(super) const RESET_OWNER: u32 = 4;
    pub(super) const SET_MEM_TABLE: u32 = 5;
    pub(super) const SET_VRING_NUM: u32 = 8;
    pub(super) const SET_VRING_ADDR: u32 = 9;
    pub(super) const SET_VRING_BASE: u32 = 10;
    pub(super) const GET_VRING_BASE: u32 = 11;
    pub(super) const SET_VRING_KICK: u32 = 12;
    pub(super) const SET_VRING_CALL: u32 = 13;
    pub(super) const SET_VRING_ERR: u32 = 14;
    pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(super) const GET_QUEUE_NUM: u32 = 17;
    pub(super) const SET_VRING_ENABLE: u32 = 18;
    pub(super) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(super) const GET_CONFIG: u32 = 24;
    pub(super) const SET_CONFIG: u32 = 25;
    pub(super) const GET_INFLIGHT_FD: u32 = 31;
    pub(super) const SET_INFLIGHT_FD: u32 = 32;
    pub(super) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(super) const ADD_MEM_REG: u32 = 37;
    pub(super) const REM_MEM_REG: u32 = 38;
    /// Of ours, on the second socket.
    pub(super) const CONFIG_CHANGE_MSG: u32 = 2;
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    request: u32,
    /// The client waits for an answer even if the request has none of its own.
    pub needs_reply: bool,
    /// Bytes of the body.
    pub body_bytes: usize,
}

/// Where the parts of a ring lie, as user addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddress {
    /// The descriptor table.
    pub desc: u64,
    /// The used ring.
    pub used: u64,
    /// The available ring.
    pub avail: u64,
}

/// Shared memory for in-flight records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflightPlace {
    /// Its length.
    pub len_bytes: u64,
    /// Where in the file it begins.
    pub offset_bytes: u64,
    /// Records, one a queue.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Which features do you offer?
    GetFeatures,
    /// These features are used.
    SetFeatures(u64),
    /// The session begins. (Means nothing to us.)
    SetOwner,
    /// Obsolete; means nothing.
    ResetOwner,
    /// All the memory there is; a descriptor for each region.
    SetMemTable(Vec<RegionPlace>),
    /// Entries of a ring: queue, count.
    SetVringNum(u32, u32),
    /// Where a ring lies.
    SetVringAddr(u32, RingAddress),
    /// Where a ring goes on: queue, index.
    SetVringBase(u32, u32),
    /// Stop a ring and say where.
    GetVringBase(u32),
    /// The eventfd the guest kicks; if the flag is set, a descriptor comes along.
    SetVringKick(u8, bool),
    /// The eventfd the guest is called with.
    SetVringCall(u8, bool),
    /// The eventfd for errors.
    SetVringErr(u8, bool),
    /// Which protocol features do you offer?
    GetProtocolFeatures,
    /// These protocol features are used.
    SetProtocolFeatures(u64),
    /// How many queues can there be?
    GetQueueNum,
    /// Start or stop a ring: queue, whether.
    SetVringEnable(u32, bool),
    /// The second socket.
    SetBackendReqFd,
    /// Bytes of the configuration space: offset, length.
    GetConfig(u32, u32),
    /// Change the configuration space.
    SetConfig,
    /// Make memory for in-flight records.
    GetInflightFd(InflightPlace),
    /// Use this memory for in-flight records.
    SetInflightFd(InflightPlace),
    /// How many memory regions can there be?
    GetMaxMemSlots,
    /// One more region.
    AddMemReg(RegionPlace),
    /// One region less.
    RemMemReg(RegionPlace),
}

/// Reads a body's fields one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Breach> {
        let (now, later) =
            self.0.split_first_chunk::<N>().ok_or(Breach::Message("a body is too short"))?;
        self.0 = later;
        Ok(*now)
    }

    fn u16(&mut self) -> Result<u16, Breach> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, Breach> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Breach> {
        self.take().map(u64::from_ne_bytes)
    }

    fn region(&mut self) -> Result<RegionPlace, Breach> {
        Ok(RegionPlace {
            guest_addr: self.u64()?,
            len_bytes: self.u64()?,
            user_addr: self.u64()?,
            file_offset_bytes: self.u64()?,
        })
    }

    fn inflight(&mut self) -> Result<InflightPlace, Breach> {
        Ok(InflightPlace {
            len_bytes: self.u64()?,
            offset_bytes: self.u64()?,
            queues: self.u16()?,
            queue_size: self.u16()?,
        })
    }

    /// A queue's number, and whether a descriptor comes along.
    fn queue_fd(&mut self) -> Result<(u8, bool), Breach> {
        let word = self.u64()?;
        Ok((word as u8, word & NO_FD == 0))
    }
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// For another version, a reply, or a body that is too long.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Breach> {
        let mut fields = Fields(bytes);
        let (request, flags, size) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if flags & FLAG_VERSION_MASK != FLAG_VERSION || flags & FLAG_REPLY != 0 {
            return Err(Breach::Message("a header of another version, or a reply"));
        }
        let body_bytes = size as usize;
        if body_bytes > BODY_BYTES_MAX {
            return Err(Breach::Message("a body is too long"));
        }
        Ok(Header { request, needs_reply: flags & FLAG_NEED_REPLY != 0, body_bytes })
    }

    /// Reads the body that belongs to this header.
    ///
    /// # Errors
    /// For a request that is not known, or a body that does not fit it.
    pub fn message(&self, body: &[u8]) -> Result<Message, Breach> {
        let mut fields = Fields(body);
        let message = match self.request {
            request::GET_FEATURES => Message::GetFeatures,
            request::SET_FEATURES => Message::SetFeatures(fields.u64()?),
            request::SET_OWNER => Message::SetOwner,
            request::RESET_OWNER => Message::ResetOwner,
            request::SET_MEM_TABLE => mem_table(&mut fields)?,
            request::SET_VRING_NUM => Message::SetVringNum(fields.u32()?, fields.u32()?),
            request::SET_VRING_ADDR => vring_addr(&mut fields)?,
            request::SET_VRING_BASE => Message::SetVringBase(fields.u32()?, fields.u32()?),
            request::GET_VRING_BASE => {
                let index = fields.u32()?;
                fields.u32()?;
                Message::GetVringBase(index)
            }
            request::SET_VRING_KICK => {
                let (queue, has_fd) = fields.queue_fd()?;
                Message::SetVringKick(queue, has_fd)
            }
            request::SET_VRING_CALL => {
                let (queue, has_fd) = fields.queue_fd()?;
                Message::SetVringCall(queue, has_fd)
            }
            request::SET_VRING_ERR => {
                let (queue, has_fd) = fields.queue_fd()?;
                Message::SetVringErr(queue, has_fd)
            }
            request::GET_PROTOCOL_FEATURES => Message::GetProtocolFeatures,
            request::SET_PROTOCOL_FEATURES => Message::SetProtocolFeatures(fields.u64()?),
            request::GET_QUEUE_NUM => Message::GetQueueNum,
            request::SET_VRING_ENABLE => match (fields.u32()?, fields.u32()?) {
                (index, whether @ (0 | 1)) => Message::SetVringEnable(index, whether == 1),
                _ => return Err(Breach::Message("a ring can be on or off")),
            },
            request::SET_BACKEND_REQ_FD => Message::SetBackendReqFd,
            request::GET_CONFIG | request::SET_CONFIG => self.config(&mut fields)?,
            request::GET_INFLIGHT_FD => Message::GetInflightFd(fields.inflight()?),
            request::SET_INFLIGHT_FD => Message::SetInflightFd(fields.inflight()?),
            request::GET_MAX_MEM_SLOTS => Message::GetMaxMemSlots,
            request::ADD_MEM_REG => {
                fields.u64()?;
                Message::AddMemReg(fields.region()?)
            }
            request::REM_MEM_REG => {
                fields.u64()?;
                Message::RemMemReg(fields.region()?)
            }
            _ => return Err(Breach::Message("an unknown request")),
        };
        // In-flight places are padded by some compilers, and a ring's end by some clients.
        let padded = matches!(message, Message::GetInflightFd(_) | Message::SetInflightFd(_));
        let rest_max = if padded { 4 } else { 0 };
        if fields.0.len() > rest_max {
            return Err(Breach::Message("a body is too long for its request"));
        }
        Ok(message)
    }

    fn config(&self, fields: &mut Fields<'_>) -> Result<Message, Breach> {
        let (offset, size, _flags) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let inside = offset.checked_add(size).is_some_and(|end| end as usize <= CONFIG_BYTES);
        if !inside || fields.0.len() != size as usize {
            return Err(Breach::Message("outside of the configuration space"));
        }
        fields.0 = &[];
        let get = self.request == request::GET_CONFIG;
        Ok(if get { Message::GetConfig(offset, size) } else { Message::SetConfig })
    }

    /// A reply to this request with these bytes of body.
    pub fn reply(&self, body: &[u8]) -> Vec<u8> {
        message_bytes(self.request, FLAG_VERSION | FLAG_REPLY, body)
    }

    /// A reply that carries a piece of the configuration space.
    pub fn config_reply(&self, offset: u32, piece: &[u8]) -> Vec<u8> {
        let mut body = Vec::with_capacity(12 + piece.len());
        body.extend(offset.to_ne_bytes());
        // Fits: a piece of the configuration space.
        body.extend((piece.len() as u32).to_ne_bytes());
        body.extend(0_u32.to_ne_bytes());
        body.extend(piece);
        self.reply(&body)
    }

    /// A reply that carries a ring's index.
    pub fn vring_reply(&self, index: u32, value: u32) -> Vec<u8> {
        self.reply(&[index.to_ne_bytes(), value.to_ne_bytes()].concat())
    }

    /// A reply that describes the memory for in-flight records.
    pub fn inflight_reply(&self, place: InflightPlace) -> Vec<u8> {
        let mut body = Vec::with_capacity(24);
        body.extend(place.len_bytes.to_ne_bytes());
        body.extend(place.offset_bytes.to_ne_bytes());
        body.extend(place.queues.to_ne_bytes());
        body.extend(place.queue_size.to_ne_bytes());
        // The structure ends on a multiple of eight, and clients compare the length.
        body.resize(if self.body_bytes == 24 { 24 } else { 20 }, 0);
        self.reply(&body)
    }
}

fn mem_table(fields: &mut Fields<'_>) -> Result<Message, Breach> {
    let (count, _padding) = (fields.u32()?, fields.u32()?);
    if count > TABLE_REGIONS_MAX {
        return Err(Breach::Message("a memory table is too long"));
    }
    let regions = (0..count).map(|_| fields.region()).collect::<Result<_, _>>()?;
    // Some clients always send the whole table; the rest of it means nothing.
    if fields.0.len().is_multiple_of(32) {
        fields.0 = &[];
    }
    Ok(Message::SetMemTable(regions))
}

fn vring_addr(fields: &mut Fields<'_>) -> Result<Message, Breach> {
    let (index, _flags) = (fields.u32()?, fields.u32()?);
    let (desc, used, avail, _log) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
    Ok(Message::SetVringAddr(index, RingAddress { desc, used, avail }))
}

fn message_bytes(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend(request.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Fits: replies are short.
    bytes.extend((body.len() as u32).to_ne_bytes());
    bytes.extend(body);
    bytes
}

/// What we say on the second socket when the configuration space has changed.
pub fn config_changed() -> Vec<u8> {
    message_bytes(request::CONFIG_CHANGE_MSG, FLAG_VERSION, &[])
}

#[cfg(test)]
mod tests {
    use super::{Breach, HEADER_BYTES, Header, InflightPlace, Message, message_bytes};

    fn parse(request: u32, body: &[u8]) -> Result<Message, Breach> {
        let bytes = message_bytes(request, 1, body);
        let (head, body) = bytes.split_first_chunk::<HEADER_BYTES>().unwrap();
        Header::parse(head)?.message(body)
    }

    #[test]
    fn bodies_have_the_length_of_their_request() {
        assert_eq!(parse(1, &[]), Ok(Message::GetFeatures));
        assert!(parse(1, &[0]).is_err());
        assert_eq!(parse(2, &7_u64.to_ne_bytes()), Ok(Message::SetFeatures(7)));
        assert!(parse(2, &[0; 7]).is_err() && parse(2, &[0; 9]).is_err());
        assert!(parse(99, &[]).is_err());
        assert!(parse(18, &[0, 0, 0, 0, 2, 0, 0, 0]).is_err(), "neither on nor off");
        assert_eq!(parse(12, &0x103_u64.to_ne_bytes()), Ok(Message::SetVringKick(3, false)));
    }

    #[test]
    fn headers_of_another_kind_are_refused() {
        for (flags, len) in [(0, 0), (2, 0), (5, 0), (1, 5_000_u32)] {
            let mut head = [0; HEADER_BYTES];
            head[0] = 1;
            head[4..8].copy_from_slice(&u32::to_ne_bytes(flags));
            head[8..].copy_from_slice(&len.to_ne_bytes());
            assert!(Header::parse(&head).is_err(), "{flags} {len}");
        }
    }

    #[test]
    fn a_memory_table_holds_what_it_says() {
        let mut body = vec![0; 8 + 32];
        body[0] = 1;
        body[8 + 8] = 5;
        let Ok(Message::SetMemTable(regions)) = parse(5, &body) else { panic!("not a table") };
        assert_eq!((regions.len(), regions[0].len_bytes), (1, 5));
        body[0] = 2;
        assert!(parse(5, &body).is_err(), "one region is missing");
        body.resize(8 + 32 * 9, 0);
        body[0] = 9;
        assert!(parse(5, &body).is_err(), "too many");
    }

    #[test]
    fn the_configuration_space_has_an_end() {
        let body = |offset: u32, size: u32| {
            let mut body: Vec<u8> =
                [offset, size, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
            body.resize(12 + (size as usize).min(300), 0);
            body
        };
        assert_eq!(parse(24, &body(200, 56)), Ok(Message::GetConfig(200, 56)));
        assert!(parse(24, &body(200, 57)).is_err());
        assert!(parse(24, &body(u32::MAX, 8)).is_err());
    }

    #[test]
    fn an_inflight_reply_is_as_long_as_its_question() {
        let place = InflightPlace { len_bytes: 64, offset_bytes: 0, queues: 1, queue_size: 4 };
        for len in [20, 24] {
            let head = message_bytes(31, 1, &vec![0; len]);
            let header = Header::parse(head.first_chunk().unwrap()).unwrap();
            assert!(header.message(&vec![0; len]).is_ok());
            assert_eq!(header.inflight_reply(place).len(), HEADER_BYTES + len);
        }
    }
}
