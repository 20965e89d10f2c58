//! What a test submits and what comes back, and the actor that carries it.
//!
//! [`Io`] is a request in plain bytes; [`IoDone`] its result. One [`Submitter`] actor lives on each
//! lane of a [`crate::TestWorld`]; it turns requests into bios and remembers results until the test
//! asks for them. A write's data is checked when it comes back: nobody may have changed it.
//!
//! The payload is cut into two segments at an odd place, so that every target and lower device
//! meets payloads that are not in one piece.

use crate::fake_driver::{FakeWorld, lock};
use crate::pattern::{SECTOR_LEN, pattern};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use udm_core::actor::DeviceNotice;
use udm_core::bio::BioBox;
use udm_core::{Actor, ActorCx};
use udm_lane::{Buf, Payload, Segment};
use udm_types::{BioFlags, DeviceId, LaneId, Nanos, Op, Sector, Status};

/// A request of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Io {
    /// What is asked.
    pub op: Op,
    /// With which modifiers.
    pub flags: BioFlags,
    /// First sector.
    pub sector: Sector,
    /// Length.
    pub len_sectors: Sector,
    /// What to write; empty for everything else.
    pub bytes: Vec<u8>,
}

impl Io {
    fn new(op: Op, sector: Sector, len_sectors: Sector) -> Io {
        Io { op, flags: BioFlags::empty(), sector, len_sectors, bytes: Vec::new() }
    }

    /// A read.
    pub fn read(sector: Sector, len_sectors: Sector) -> Io {
        Io::new(Op::Read, sector, len_sectors)
    }

    /// A write of whole sectors.
    pub fn write(sector: Sector, bytes: Vec<u8>) -> Io {
        let len_sectors = (bytes.len() / SECTOR_LEN) as Sector;
        Io { bytes, ..Io::new(Op::Write, sector, len_sectors) }
    }

    /// A write of stamped sectors; see [`pattern`].
    pub fn write_pattern(sector: Sector, len_sectors: Sector, generation: u64) -> Io {
        Io::write(sector, pattern(sector, len_sectors, generation))
    }

    /// A flush.
    pub fn flush() -> Io {
        Io::new(Op::Flush, 0, 0)
    }

    /// A discard.
    pub fn discard(sector: Sector, len_sectors: Sector) -> Io {
        Io::new(Op::Discard, sector, len_sectors)
    }

    /// A write-zeroes.
    pub fn write_zeroes(sector: Sector, len_sectors: Sector) -> Io {
        Io::new(Op::WriteZeroes, sector, len_sectors)
    }

    /// Adds modifiers.
    #[must_use]
    pub fn with(mut self, flags: BioFlags) -> Io {
        self.flags |= flags;
        self
    }
}

/// The result of an [`Io`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoDone {
    /// How it ended.
    pub status: Status,
    /// What was read; empty for everything else.
    pub bytes: Vec<u8>,
    /// Its place among all events of the test (compare with [`crate::Seen::completed`]).
    pub event: u64,
    /// When it came back.
    pub at: Nanos,
}

/// Names a request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IoTicket(pub(crate) u64);

/// Results and notices of all submitters.
#[derive(Clone, Default)]
pub(crate) struct Results {
    pub(crate) done: Arc<Mutex<BTreeMap<u64, IoDone>>>,
    pub(crate) notices: Arc<Mutex<Vec<(LaneId, DeviceNotice)>>>,
}

/// A request on its way to a submitter.
pub(crate) struct Order {
    pub(crate) ticket: u64,
    pub(crate) device: DeviceId,
    pub(crate) io: Io,
}

/// Submits bios on one lane.
pub(crate) struct Submitter {
    world: FakeWorld,
    results: Results,
    /// What was written, to compare when it comes back.
    written: BTreeMap<u64, Vec<u8>>,
}

impl Submitter {
    pub(crate) fn new(world: FakeWorld, results: Results) -> Submitter {
        Submitter { world, results, written: BTreeMap::new() }
    }
}

/// A payload of two segments that meet at an odd byte.
fn payload_of(len_bytes: usize) -> Payload {
    if len_bytes == 0 {
        return Payload::empty();
    }
    let first = len_bytes / 3 + 1;
    let mut payload = Payload::empty();
    for len in [first, len_bytes - first] {
        let buf = Buf::alloc(len + 7);
        let len_bytes = u32::try_from(len).expect("test requests are small");
        payload.push(Segment { buf, offset_bytes: 7, len_bytes });
    }
    payload
}

fn bytes_of(payload: &Payload) -> Vec<u8> {
    let mut bytes = vec![0; payload.len_bytes() as usize];
    payload.copy_out(0, &mut bytes);
    bytes
}

impl Actor for Submitter {
    fn on_message(&mut self, message: Box<dyn Any + Send>, cx: &mut ActorCx<'_>) {
        let order = message.downcast::<Order>().expect("submitters get orders only");
        let Order { ticket, device, io } = *order;
        let mut bio = cx.take_bio();
        bio.ask(io.op, io.flags, io.sector, io.len_sectors);
        if io.op.has_data() {
            bio.payload = payload_of(io.len_sectors as usize * SECTOR_LEN);
        }
        if io.op == Op::Write {
            bio.payload.copy_in(0, &io.bytes);
            self.written.insert(ticket, io.bytes);
        }
        cx.submit(device, ticket, bio);
    }

    fn on_bio(&mut self, tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        if let Some(written) = self.written.remove(&tag) {
            assert!(bytes_of(&bio.payload) == written, "a write came back with other data");
        }
        let bytes = if bio.op == Op::Read { bytes_of(&bio.payload) } else { Vec::new() };
        let done =
            IoDone { status: bio.status, bytes, event: self.world.next_event(), at: cx.now() };
        let twice = lock(&self.results.done).insert(tag, done);
        assert!(twice.is_none(), "a bio came back twice");
        cx.recycle(bio);
    }

    fn on_notice(&mut self, notice: DeviceNotice, cx: &mut ActorCx<'_>) {
        lock(&self.results.notices).push((cx.lane(), notice));
    }
}
