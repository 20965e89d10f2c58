//! One entry that drives messages, memory and rings with bytes somebody else chose.
//!
//! Used by libFuzzer, by the seeded test below and by nothing in production. The input is a list
//! of steps: a message of any kind with descriptors of any kind, a change of the guest's memory, a
//! look into the rings. One step brings up a working queue, so that what follows meets deep code.
//!
//! It checks what must hold for *every* input: no panic, no access outside of memory, requests
//! inside of their chain, a taken request is answered at most once, and a session that was broken
//! can still be ended.
//!
//! The tricky case is what runs while a queue runs: the model host takes and answers requests as
//! the real queue does, but at once and without a device.

use super::breach::Breach;
use super::config::DiskShape;
use super::memory::{GuestMemory, Span};
use super::request::{self, Ask, STATUS_OK};
use super::ring::Chain;
use super::session::{Host, QueueSetup, Session};
use super::wire::{HEADER_BYTES, Header};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use udm_driver::FileMapping;
use udm_lane::Payload;
use udm_types::QueueLimits;

/// Guest memory of the model.
const MEMORY_BYTES: usize = 32 << 10;
/// Its first guest address and user address.
const GUEST: u64 = 0x1000;
const USER: u64 = 0x10_0000;
/// Ring of the working queue: where its parts are, and its size.
const RING_SIZE: u16 = 16;
const RING_PARTS: [u64; 3] = [0, 0x200, 0x400];
/// Requests taken at one look; a ring that is refilled by nobody is empty by then.
const LOOK_MAX: usize = 64;

/// Feeds `bytes` to a session.
///
/// # Panics
/// If one of the properties of the module header does not hold, or without descriptors left.
pub fn connection(bytes: &[u8]) {
    let mut machine = Machine::new();
    let mut session = Session::default();
    let mut input = Input(bytes);
    while let Some(step) = input.byte() {
        let done = match step % 8 {
            0..4 => machine.message(&mut session, &mut input),
            4 | 5 => machine.poke(&mut input),
            6 => machine.host.look(),
            _ => machine.bring_up(&mut session, step / 8),
        };
        if done.is_err() {
            break;
        }
    }
    session.end(&mut machine.host);
    assert!(machine.host.queues.is_empty(), "an ended session has no queues");
}

/// The input, taken from the front; zeroes behind its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let (now, later) = self.0.split_at(len.min(self.0.len()));
        self.0 = later;
        let mut bytes = now.to_vec();
        bytes.resize(len, 0);
        bytes
    }
}

/// A client and its guest.
struct Machine {
    file: OwnedFd,
    memory: Arc<FileMapping>,
    records: OwnedFd,
    event: OwnedFd,
    host: Model,
}

fn memfd(len_bytes: usize) -> OwnedFd {
    let fd = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("invariant: descriptors are left");
    ftruncate(&fd, len_bytes as u64).expect("invariant: memory is left");
    fd
}

impl Machine {
    fn new() -> Machine {
        let file = memfd(MEMORY_BYTES);
        let memory = FileMapping::map(file.as_fd(), 0, MEMORY_BYTES as u64)
            .expect("invariant: a file just made can be mapped");
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .expect("invariant: descriptors are left");
        Machine { file, memory, records: memfd(4096), event, host: Model::default() }
    }

    fn fd(&self, kind: u8) -> OwnedFd {
        let fd = match kind % 4 {
            0 => &self.file,
            1 | 2 => &self.event,
            _ => &self.records,
        };
        fd.try_clone().expect("invariant: descriptors are left")
    }

    /// A message made of the input.
    fn message(&mut self, session: &mut Session, input: &mut Input<'_>) -> Result<(), Breach> {
        let (request, flags, fds) = (input.number(), input.number(), input.number());
        let len = usize::from(input.number());
        let body = input.take(len);
        // Version 1 most of the time; nothing else gets far.
        let flags = if flags & 0xF0 == 0 { u32::from(flags) } else { 1 | u32::from(flags & 8) };
        let fds = (0..fds % 4).map(|at| self.fd(fds >> (2 + at))).collect();
        self.send(session, u32::from(request % 48), flags, &body, fds)
    }

    fn send(
        &mut self,
        session: &mut Session,
        request: u32,
        flags: u32,
        body: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<(), Breach> {
        let mut head = [0; HEADER_BYTES];
        head[..4].copy_from_slice(&request.to_ne_bytes());
        head[4..8].copy_from_slice(&flags.to_ne_bytes());
        // Fits: bodies of the input have a length of one byte.
        head[8..].copy_from_slice(&(body.len() as u32).to_ne_bytes());
        let header = Header::parse(&head)?;
        assert_eq!(header.body_bytes, body.len());
        let (reply, done) = session.handle(&header, body, fds, &mut self.host);
        let acknowledges = reply.bytes.len() >= HEADER_BYTES || reply.bytes.is_empty();
        assert!(acknowledges && reply.bytes.len() < 600, "a reply of no sensible length");
        done
    }

    /// Changes some bytes of the guest's memory.
    fn poke(&mut self, input: &mut Input<'_>) -> Result<(), Breach> {
        let at = usize::from(u16::from_le_bytes([input.number(), input.number()]));
        let len = usize::from(input.number() % 64);
        let bytes = input.take(len);
        self.memory.write(at % (MEMORY_BYTES - 64), &bytes);
        Ok(())
    }

    /// The messages that start a queue, with or without in-flight records.
    fn bring_up(&mut self, session: &mut Session, variant: u8) -> Result<(), Breach> {
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let pair = |a: u32, b: u32| -> Vec<u8> { [a.to_ne_bytes(), b.to_ne_bytes()].concat() };
        let index = u32::from(variant & 1);
        let mut table: Vec<u8> = pair(1, 0);
        let region: Vec<u8> = words(&[GUEST, MEMORY_BYTES as u64, USER, 0]);
        table.extend(&region);
        let mut address = pair(index, 0);
        let [desc, avail, used] = RING_PARTS.map(|at| USER + u64::from(index) * 0x800 + at);
        let parts: Vec<u8> = words(&[desc, used, avail, 0]);
        address.extend(&parts);
        let features = self.host.shape().features() & !(u64::from(variant & 6) << 28);
        self.send(session, 2, 1, &features.to_ne_bytes(), vec![])?;
        self.send(session, 16, 1, &super::wire::protocol::OFFERED.to_ne_bytes(), vec![])?;
        self.send(session, 5, 9, &table, vec![self.fd(0)])?;
        if variant & 8 != 0 {
            let mut place: Vec<u8> = words(&[4096, 0]);
            place.extend([2_u16.to_ne_bytes(), RING_SIZE.to_ne_bytes()].concat());
            self.send(session, 32, 1, &place, vec![self.fd(3)])?;
        }
        self.send(session, 11, 1, &pair(index, 0), vec![])?;
        self.send(session, 8, 1, &pair(index, u32::from(RING_SIZE)), vec![])?;
        self.send(session, 9, 1, &address, vec![])?;
        self.send(session, 10, 1, &pair(index, 0), vec![])?;
        self.send(session, 13, 1, &u64::from(index).to_ne_bytes(), vec![self.fd(1)])?;
        self.send(session, 12, 1, &u64::from(index).to_ne_bytes(), vec![self.fd(1)])?;
        self.send(session, 18, 1, &pair(index, 1), vec![])
    }
}

/// A host without lanes.
#[derive(Default)]
struct Model {
    queues: BTreeMap<u16, QueueSetup>,
    chain: Chain,
}

impl Model {
    /// Takes and answers what is in the rings.
    fn look(&mut self) -> Result<(), Breach> {
        let Model { queues, chain } = self;
        for setup in queues.values_mut() {
            let again = std::mem::take(&mut setup.again);
            for head in again {
                serve(setup, head, chain)?;
            }
            for _ in 0..LOOK_MAX {
                let Some(head) = setup.ring.pop()? else { break };
                serve(setup, head, chain)?;
            }
            if setup.ring.has_unpublished() {
                setup.ring.publish();
                if let Some(record) = &mut setup.inflight {
                    record.published(setup.ring.published());
                }
            }
            setup.ring.arm()?;
        }
        Ok(())
    }
}

/// One request, from the chain to the used ring.
fn serve(setup: &mut QueueSetup, head: u16, chain: &mut Chain) -> Result<(), Breach> {
    if let Some(record) = &mut setup.inflight {
        record.taken(head);
    }
    setup.ring.walk(head, &setup.memory, chain)?;
    let mut payload = Payload::empty();
    let request = request::parse(chain, &setup.memory, &mut payload)?;
    match request.ask {
        Ask::Read(_) | Ask::Write(_) => {
            assert!(payload.len_bytes() > 0 && payload.len_bytes().is_multiple_of(512));
            // Every segment can be touched.
            let len = payload.len_bytes().min(4096);
            payload.fill(0, len, 7);
        }
        Ask::GetId(range) => {
            setup.memory.write(range.addr, &[1; 20][..range.len_bytes as usize])?
        }
        Ask::Flush | Ask::Discard(..) | Ask::WriteZeroes { .. } | Ask::Answer(_) => {
            assert!(payload.is_empty());
        }
    }
    setup.memory.write(request.status_addr, &[STATUS_OK])?;
    if let Some(record) = &mut setup.inflight {
        record.answered(head);
    }
    setup.ring.push_used(head, request.written_bytes);
    Ok(())
}

impl Host for Model {
    fn shape(&mut self) -> DiskShape {
        DiskShape { len_sectors: 128, limits: QueueLimits::default(), read_only: false }
    }

    fn start(&mut self, queue: u16, setup: QueueSetup) -> Result<(), Breach> {
        assert!(self.queues.insert(queue, setup).is_none(), "a queue is started once");
        Ok(())
    }

    fn stop(&mut self, queue: u16) -> Result<u16, Breach> {
        let setup = self.queues.remove(&queue).expect("invariant: a queue that runs is stopped");
        Ok(setup.ring.next_avail())
    }

    fn set_call(&mut self, queue: u16, call: Option<OwnedFd>) {
        let setup = self.queues.get_mut(&queue);
        setup.expect("invariant: only a queue that runs is told").call = call;
    }

    fn set_memory(&mut self, queue: u16, memory: GuestMemory, parts: [Span; 3]) {
        let setup = self.queues.get_mut(&queue);
        let setup = setup.expect("invariant: only a queue that runs is told");
        if setup.ring.set_parts(parts).is_ok() {
            setup.memory = memory;
        }
    }

    fn tell_changes(&mut self, socket: OwnedFd) {
        drop(socket);
    }
}

#[cfg(test)]
mod tests;
