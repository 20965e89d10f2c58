//! A virtual machine in miniature: guest memory, a driver's side of each ring, and the messages of
//! a front-end (by the crate `vhost`, so that somebody else's idea of the protocol meets ours).
//!
//! Guest memory is one file. Each queue has a piece of it: the rings, then for each request a slot
//! (an indirect table, header, status), then the data of each. Ring sizes are powers of two.
#![allow(dead_code, reason = "tests and the load generator use different parts")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use udm_driver::FileMapping;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE_S: i32 = 60;

/// Where guest memory begins, as the guest sees it.
pub(crate) const GUEST_BASE: u64 = 0x10_0000;
/// And as this process calls it; any number will do.
pub(crate) const USER_BASE: u64 = 0x7000_0000_0000;

/// Request types.
pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;

const EVENT_IDX: u64 = 1 << 29;
const PROTOCOL: u64 = 1 << 30;

/// Bytes of a slot: an indirect table of four (64), header (16), status.
const SLOT_HEAD_BYTES: usize = 128;

/// What kind of machine it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) queues: usize,
    pub(crate) ring_size: u16,
    /// Data of each slot.
    pub(crate) slot_bytes: usize,
    pub(crate) event_idx: bool,
    /// Feature bits that are not acknowledged although they are offered.
    pub(crate) without: u64,
}

impl Shape {
    pub(crate) const SMALL: Shape =
        Shape { queues: 1, ring_size: 64, slot_bytes: 16 << 10, event_idx: true, without: 0 };

    fn slots_at(&self) -> usize {
        (usize::from(self.ring_size) * 32 + 256).next_multiple_of(4096)
    }

    fn data_at(&self) -> usize {
        (self.slots_at() + usize::from(self.ring_size) * SLOT_HEAD_BYTES).next_multiple_of(4096)
    }

    fn queue_bytes(&self) -> usize {
        (self.data_at() + usize::from(self.ring_size) * self.slot_bytes).next_multiple_of(4096)
    }
}

/// The machine: what outlives a connection.
pub(crate) struct Machine {
    pub(crate) shape: Shape,
    pub(crate) memory: Arc<FileMapping>,
    file: OwnedFd,
    inflight: Option<(VhostUserInflight, File)>,
    pub(crate) queues: Vec<Driver>,
}

/// A connection of a machine.
pub(crate) struct Link {
    pub(crate) frontend: Frontend,
    pub(crate) features: u64,
    /// Where the server tells of changes.
    pub(crate) changes: UnixStream,
}

/// The driver's side of a ring.
pub(crate) struct Driver {
    pub(crate) memory: Arc<FileMapping>,
    pub(crate) base: usize,
    shape: Shape,
    kick: EventFd,
    call: EventFd,
    /// Waits for `call`.
    calls: Epoll,
    pub(crate) next_avail: u16,
    last_used: u16,
    kicked_at: u16,
}

impl Machine {
    pub(crate) fn new(shape: Shape) -> Machine {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("guest", flags).unwrap();
        let len = (shape.queue_bytes() * shape.queues) as u64;
        ftruncate(&file, len).unwrap();
        fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        let memory = FileMapping::map(file.as_fd(), 0, len).unwrap();
        let queues = (0..shape.queues)
            .map(|index| Driver::new(Arc::clone(&memory), index * shape.queue_bytes(), shape))
            .collect();
        Machine { shape, memory, file, inflight: None, queues }
    }

    /// Connects and starts all queues.
    pub(crate) fn connect(&mut self, path: &Path) -> Link {
        self.try_connect(UnixStream::connect(path).unwrap()).unwrap()
    }

    /// The region that is all of guest memory.
    pub(crate) fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST_BASE,
            memory_size: self.memory.len_bytes() as u64,
            userspace_addr: USER_BASE,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// As `connect`, over a socket; an error if the server hangs up amid the handshake.
    pub(crate) fn try_connect(&mut self, socket: UnixStream) -> vhost::Result<Link> {
        let mut frontend = Frontend::from_stream(socket, self.shape.queues as u64);
        let offered = frontend.get_features()?;
        frontend.set_owner()?;
        let mut features = offered & !self.shape.without;
        if !self.shape.event_idx {
            features &= !EVENT_IDX;
        }
        assert!(features & PROTOCOL != 0);
        let protocol = frontend.get_protocol_features()?;
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        let agreed = protocol & wanted;
        frontend.set_protocol_features(agreed)?;
        if agreed.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        frontend.set_features(features)?;
        let (ours, theirs) = UnixStream::pair().unwrap();
        if agreed.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            frontend.set_backend_request_fd(&theirs)?;
        }
        if agreed.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            self.share_records(&mut frontend)?;
        }
        frontend.set_mem_table(&[self.region()])?;
        for index in 0..self.queues.len() {
            self.start_queue(&mut frontend, index)?;
        }
        Ok(Link { frontend, features, changes: ours })
    }

    fn share_records(&mut self, frontend: &mut Frontend) -> vhost::Result<()> {
        if self.inflight.is_none() {
            let wish = VhostUserInflight::new(0, 0, self.shape.queues as u16, self.shape.ring_size);
            self.inflight = Some(frontend.get_inflight_fd(&wish)?);
        }
        let (place, file) = self.inflight.as_ref().unwrap();
        frontend.set_inflight_fd(place, file.as_raw_fd())
    }

    pub(crate) fn start_queue(&self, frontend: &mut Frontend, index: usize) -> vhost::Result<()> {
        let driver = &self.queues[index];
        frontend.set_vring_num(index, self.shape.ring_size)?;
        frontend.set_vring_addr(index, &driver.addresses())?;
        frontend.set_vring_base(index, driver.used_idx())?;
        frontend.set_vring_call(index, &driver.call)?;
        frontend.set_vring_kick(index, &driver.kick)?;
        frontend.set_vring_enable(index, true)
    }
}

impl Link {
    /// The configuration space as the server tells it now.
    pub(crate) fn config(&mut self) -> Vec<u8> {
        let flags = VhostUserConfigFlags::WRITABLE;
        self.frontend.get_config(0, 60, flags, &[0; 60]).unwrap().1
    }

    /// The capacity in sectors as the server tells it now.
    pub(crate) fn capacity(&mut self) -> u64 {
        u64::from_le_bytes(self.config()[..8].try_into().unwrap())
    }
}

/// One buffer of a chain, by its place in guest memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) writable: bool,
}

impl Driver {
    fn new(memory: Arc<FileMapping>, base: usize, shape: Shape) -> Driver {
        let (kick, call) =
            (EventFd::new(EFD_NONBLOCK).unwrap(), EventFd::new(EFD_NONBLOCK).unwrap());
        let calls = Epoll::new().unwrap();
        let interest = EpollEvent::new(EventSet::IN, 0);
        calls.ctl(ControlOperation::Add, call.as_raw_fd(), interest).unwrap();
        let (next_avail, last_used, kicked_at) = (0, 0, 0);
        Driver { memory, base, shape, kick, call, calls, next_avail, last_used, kicked_at }
    }

    fn size(&self) -> usize {
        usize::from(self.shape.ring_size)
    }

    fn avail_at(&self) -> usize {
        self.base + 16 * self.size()
    }

    fn used_at(&self) -> usize {
        (self.avail_at() + 6 + 2 * self.size()).next_multiple_of(64)
    }

    fn addresses(&self) -> VringConfigData {
        let user = |at: usize| USER_BASE + at as u64;
        VringConfigData {
            queue_max_size: self.shape.ring_size,
            queue_size: self.shape.ring_size,
            flags: 0,
            desc_table_addr: user(self.base),
            used_ring_addr: user(self.used_at()),
            avail_ring_addr: user(self.avail_at()),
            log_addr: None,
        }
    }

    /// The used ring's index as the device has written it.
    pub(crate) fn used_idx(&self) -> u16 {
        self.memory.load_u16(self.used_at() + 2, Ordering::Acquire)
    }

    fn slot_at(&self, slot: u16) -> usize {
        self.base + self.shape.slots_at() + usize::from(slot) * SLOT_HEAD_BYTES
    }

    /// Where the data of a slot lies in the machine's memory.
    pub(crate) fn data_at(&self, slot: u16) -> usize {
        self.base + self.shape.data_at() + usize::from(slot) * self.shape.slot_bytes
    }

    pub(crate) fn guest_addr(at: usize) -> u64 {
        GUEST_BASE + at as u64
    }

    pub(crate) fn write_header(&self, slot: u16, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory.write(self.slot_at(slot) + 64, &header);
        self.memory.write(self.slot_at(slot) + 80, &[0xFF]);
    }

    pub(crate) fn header(&self, slot: u16) -> Piece {
        let addr = Driver::guest_addr(self.slot_at(slot) + 64);
        Piece { addr, len: 16, writable: false }
    }

    pub(crate) fn status_piece(&self, slot: u16) -> Piece {
        let addr = Driver::guest_addr(self.slot_at(slot) + 80);
        Piece { addr, len: 1, writable: true }
    }

    /// The status byte of a slot; 255 if nobody has written it.
    pub(crate) fn status(&self, slot: u16) -> u8 {
        self.memory.read::<1>(self.slot_at(slot) + 80)[0]
    }

    pub(crate) fn data(&self, slot: u16, len: usize, writable: bool) -> Piece {
        Piece { addr: Driver::guest_addr(self.data_at(slot)), len: len as u32, writable }
    }

    pub(crate) fn put_descriptor(&self, at: usize, piece: Piece, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&piece.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&piece.len.to_le_bytes());
        let flags = flags | if piece.writable { 2 } else { 0 };
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write(at, &bytes);
    }

    /// Makes an indirect chain of a slot, in the descriptor of its number. At most four pieces.
    pub(crate) fn chain(&self, slot: u16, pieces: &[Piece]) {
        let table = self.slot_at(slot);
        for (index, piece) in pieces.iter().enumerate() {
            let last = index + 1 == pieces.len();
            let flags = if last { 0 } else { 1 };
            self.put_descriptor(table + 16 * index, *piece, flags, index as u16 + 1);
        }
        let addr = Driver::guest_addr(table);
        let whole = Piece { addr, len: 16 * pieces.len() as u32, writable: false };
        self.put_descriptor(self.base + 16 * usize::from(slot), whole, 4, 0);
    }

    /// Makes a chain of descriptors of the ring's own table.
    pub(crate) fn direct_chain(&self, descriptors: &[u16], pieces: &[Piece]) {
        for (index, piece) in pieces.iter().enumerate() {
            let next = descriptors.get(index + 1).copied();
            let at = self.base + 16 * usize::from(descriptors[index]);
            self.put_descriptor(at, *piece, u16::from(next.is_some()), next.unwrap_or(0));
        }
    }

    /// Puts a request into the available ring; seen by the device after `expose`.
    pub(crate) fn offer(&mut self, head: u16) {
        let place = usize::from(self.next_avail) % self.size();
        self.memory.write(self.avail_at() + 4 + 2 * place, &head.to_le_bytes());
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows the device what was offered, and kicks it if it wants that.
    pub(crate) fn expose(&mut self) {
        let (old, new) = (self.kicked_at, self.next_avail);
        self.memory.store_u16(self.avail_at() + 2, new, Ordering::Release);
        fence(Ordering::SeqCst);
        self.kicked_at = new;
        let wanted = if self.shape.event_idx {
            let at = self.used_at() + 4 + 8 * self.size();
            let event = self.memory.load_u16(at, Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.memory.load_u16(self.used_at(), Ordering::Relaxed) & 1 == 0
        };
        if wanted {
            self.kick();
        }
    }

    pub(crate) fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Starts a read or write of a slot's data.
    pub(crate) fn transfer(&mut self, slot: u16, kind: u32, sector: u64, len: usize) {
        self.write_header(slot, kind, sector);
        let data = self.data(slot, len, kind == IN);
        self.chain(slot, &[self.header(slot), data, self.status_piece(slot)]);
        self.offer(slot);
    }

    /// Takes the next answer, if there is one: the request's number and the bytes written.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.last_used == self.used_idx() {
            return None;
        }
        let place = usize::from(self.last_used) % self.size();
        let entry = self.memory.read::<8>(self.used_at() + 4 + 8 * place);
        self.last_used = self.last_used.wrapping_add(1);
        let [h0, h1, _, _, l0, l1, l2, l3] = entry;
        Some((u16::from_le_bytes([h0, h1]), u32::from_le_bytes([l0, l1, l2, l3])))
    }

    /// Waits until the device has called. False if it has not in `PATIENCE_S`.
    pub(crate) fn wait_call(&self) -> bool {
        let mut events = [EpollEvent::default()];
        let called = self.calls.wait(PATIENCE_S * 1000, &mut events).unwrap() > 0;
        // Fails if somebody has read it meanwhile.
        let _ = self.call.read();
        called
    }

    /// Asks to be called with the next answer; true if one is there already.
    pub(crate) fn want_call(&self) -> bool {
        if self.shape.event_idx {
            let at = self.avail_at() + 4 + 2 * self.size();
            self.memory.store_u16(at, self.last_used, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
        self.last_used != self.used_idx()
    }

    /// Waits for the next answer.
    pub(crate) fn next_used(&mut self) -> (u16, u32) {
        loop {
            if let Some(answer) = self.take_used() {
                return answer;
            }
            if !self.want_call() {
                assert!(self.wait_call(), "the device does not answer");
            }
        }
    }

    /// One request of a slot, from start to end: its status byte.
    pub(crate) fn run(&mut self, slot: u16, kind: u32, sector: u64, data: &[u8]) -> u8 {
        match kind {
            OUT | DISCARD | WRITE_ZEROES => self.memory.write(self.data_at(slot), data),
            _ => {}
        }
        self.write_header(slot, kind, sector);
        let mut pieces = vec![self.header(slot)];
        if !data.is_empty() {
            pieces.push(self.data(slot, data.len(), matches!(kind, IN | GET_ID)));
        }
        pieces.push(self.status_piece(slot));
        self.chain(slot, &pieces);
        self.offer(slot);
        self.expose();
        assert_eq!(self.next_used().0, slot);
        self.status(slot)
    }

    pub(crate) fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.run(0, OUT, sector, data)
    }

    pub(crate) fn read(&mut self, sector: u64, len: usize) -> Vec<u8> {
        assert_eq!(self.run(0, IN, sector, &vec![0; len]), 0);
        self.bytes(self.data_at(0), len)
    }

    pub(crate) fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        (0..len).map(|byte| self.memory.read::<1>(at + byte)[0]).collect()
    }

    /// A discard or write-zeroes of one range.
    pub(crate) fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend(sectors.to_le_bytes());
        range.extend(flags.to_le_bytes());
        self.run(0, kind, 0, &range)
    }
}
