//! A host with a disk in memory: a volatile cache, torn writes, scripted failures, stalls.

use crate::compress::codec::CoderChoice;
use crate::compress::format::{Codec, Defaults, Shape};
use crate::compress::tools::check::{CheckReport, CheckRequest, check};
use crate::compress::tools::format::{FormatRequest, format};
use crate::compress::volume::{Done, Event, Options, Request, State, Volume};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use udm_lane::{Buf, Payload};
use udm_meta::host::MemoryHost;
use udm_meta::{Disk, DiskOp, DiskOpKind};
use udm_types::{BioFlags, Nanos, Op, Status};

pub(super) const BLOCK: u64 = 4096;
const SECTOR: usize = 512;

/// Says whether an operation fails.
pub(super) type Script = alloc::boxed::Box<dyn FnMut(&DiskOp) -> Option<Status>>;

/// What a disk counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ops {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) flushes: u64,
    pub(super) discards: u64,
}

/// A disk: what readers see, what a power cut leaves, and what was written in between.
pub(super) struct Media {
    pub(super) bytes: Vec<u8>,
    durable: Vec<u8>,
    unflushed: BTreeMap<usize, Vec<[u8; SECTOR]>>,
}

impl Media {
    pub(super) fn new(bytes: Vec<u8>) -> Media {
        Media { durable: bytes.clone(), bytes, unflushed: BTreeMap::new() }
    }

    fn write(&mut self, at: usize, data: &[u8]) {
        self.bytes[at..at + data.len()].copy_from_slice(data);
        for (index, sector) in data.chunks(SECTOR).enumerate() {
            let mut value = [0; SECTOR];
            value.copy_from_slice(sector);
            self.unflushed.entry(at / SECTOR + index).or_default().push(value);
        }
    }

    fn flush(&mut self) {
        self.unflushed.clear();
        self.durable.clone_from(&self.bytes);
    }

    /// A power cut: each sector written since the last flush keeps its durable value, or gets any
    /// of those that were written; a few are damaged.
    pub(super) fn cut(mut self, rng: &mut fastrand::Rng) -> Media {
        let percent = [0, 20, 50, 85, 100][rng.usize(..5)];
        for (sector, values) in core::mem::take(&mut self.unflushed) {
            if rng.u32(..100) >= percent {
                continue;
            }
            let which = if rng.u32(..5) > 0 { values.len() - 1 } else { rng.usize(..values.len()) };
            let place = &mut self.durable[sector * SECTOR..(sector + 1) * SECTOR];
            place.copy_from_slice(&values[which]);
            if rng.u32(..50) == 0 {
                place[rng.usize(..SECTOR)] ^= rng.u8(1..);
            }
        }
        Media::new(self.durable)
    }
}

/// A volume, its host, its disk.
pub(super) struct World {
    pub(super) volume: Volume,
    pub(super) disk: Disk,
    pub(super) media: Media,
    pub(super) now: Nanos,
    pub(super) ops: Ops,
    /// What ended requests gave back.
    pub(super) payloads: BTreeMap<u64, Payload>,
    pub(super) done: BTreeMap<u64, Status>,
    pub(super) events: Vec<Event>,
    pub(super) script: Option<Script>,
    /// Operations that may still be done; then the machine stops.
    pub(super) budget: u64,
    /// Operations are taken and not done.
    pub(super) is_stalled: bool,
    /// Flushes are taken and not done.
    pub(super) stalls_flushes: bool,
    /// Writes from this offset on are taken and not done.
    pub(super) stall_writes_from: Option<u64>,
    /// A discard is done when there is nothing else to do.
    pub(super) has_slow_discards: bool,
    /// Operations that were taken and are kept back.
    kept_back: Vec<DiskOp>,
    taken: VecDeque<DiskOp>,
    pub(super) options: Options,
    next_ticket: u64,
    pub(super) order: Option<fastrand::Rng>,
}

/// Small segments, so that everything happens often.
pub(super) fn tiny_shape() -> Shape {
    Shape {
        physical_shift: 9,
        segment_shift: 16,
        unit_shift: 6,
        record_limit_bytes: 32 << 10,
        extent_blocks: 4,
        reserve_segments: 3,
        growth: 2,
    }
}

/// A new volume of `logical_blocks` on `segments` segments.
pub(super) fn formatted(shape: Shape, segments: u64, logical_blocks: u64) -> Media {
    let mut host = MemoryHost::new(((segments + 2) << shape.segment_shift) as usize + (96 << 10));
    let request = FormatRequest {
        shape,
        logical_bytes: Some(logical_blocks * BLOCK),
        uuid: [7; 16],
        salt: 99,
        defaults: Defaults { codec: Codec::Lz4, level: 0 },
        is_discarded: false,
    };
    let plan = host.run(|disk| async move { format(&disk, &request, &mut |_| ()).await });
    plan.expect("formatted");
    Media::new(host.bytes)
}

impl World {
    pub(super) fn open(media: Media, options: Options) -> World {
        let disk = Disk::new(media.bytes.len() as u64);
        let volume = Volume::open(disk.clone(), options.clone(), Nanos(1));
        World {
            volume,
            disk,
            media,
            now: Nanos(1),
            ops: Ops::default(),
            done: BTreeMap::new(),
            payloads: BTreeMap::new(),
            events: Vec::new(),
            script: None,
            budget: u64::MAX,
            is_stalled: false,
            stalls_flushes: false,
            stall_writes_from: None,
            has_slow_discards: false,
            kept_back: Vec::new(),
            taken: VecDeque::new(),
            options,
            next_ticket: 0,
            order: None,
        }
    }

    /// A small volume that serves.
    pub(super) fn small() -> World {
        let mut world = World::open(formatted(tiny_shape(), 40, 600), Options::default());
        world.run();
        assert_eq!(world.volume.state(), State::Serving);
        world
    }

    /// Until nothing moves any more. False if the machine stopped.
    pub(super) fn run(&mut self) -> bool {
        loop {
            let more = self.volume.turn(self.now);
            while let Some(Done { ticket, status, payload }) = self.volume.next_done() {
                self.payloads.insert(ticket, payload);
                let before = self.done.insert(ticket, status);
                assert_eq!(before, None, "request {ticket} ended twice");
            }
            while let Some(event) = self.volume.next_event() {
                self.events.push(event);
            }
            while let Some(op) = self.disk.next_op() {
                self.taken.push_back(op);
            }
            if let Some(op) = self.next_taken() {
                if self.budget == 0 {
                    self.taken.push_front(op);
                    return false;
                }
                self.budget -= 1;
                self.serve(op);
            } else if !more {
                return true;
            }
        }
    }

    fn next_taken(&mut self) -> Option<DiskOp> {
        let from = self.stall_writes_from.unwrap_or(u64::MAX);
        let stalls_flushes = self.stalls_flushes;
        let has_others = self.taken.iter().any(|op| op.kind != DiskOpKind::Discard);
        let holds_discards = self.has_slow_discards && has_others;
        let is_held = |op: &DiskOp| match op.kind {
            DiskOpKind::Write { .. } => op.offset_bytes >= from,
            DiskOpKind::Flush => stalls_flushes,
            DiskOpKind::Discard => holds_discards,
            DiskOpKind::Read => false,
        };
        let (held, free): (VecDeque<_>, VecDeque<_>) =
            self.taken.drain(..).partition(|op| is_held(op));
        self.taken = free;
        let op = match self.is_stalled || self.taken.is_empty() {
            true => None,
            false => {
                let at = self.order.as_mut().map_or(0, |rng| rng.usize(..self.taken.len()));
                self.taken.remove(at)
            }
        };
        self.taken.extend(held);
        op
    }

    /// Keeps what was taken from being done, until it is let go.
    pub(super) fn keep_back(&mut self) {
        self.kept_back.extend(self.taken.drain(..));
    }

    /// Lets go what was kept back.
    pub(super) fn let_go(&mut self) {
        self.taken.extend(self.kept_back.drain(..));
    }

    /// Where segments begin.
    pub(super) fn data_offset(&self) -> u64 {
        self.volume.superblock().expect("it serves").geometry.data_offset_bytes
    }

    fn serve(&mut self, op: DiskOp) {
        let failure = self.script.as_mut().and_then(|script| script(&op));
        let (at, len) = (op.offset_bytes as usize, op.len_bytes as usize);
        if failure.is_none() {
            assert!(at + len <= self.media.bytes.len(), "outside: {op:?}");
        }
        match op.kind {
            DiskOpKind::Read => self.ops.reads += 1,
            DiskOpKind::Write { .. } => self.ops.writes += 1,
            DiskOpKind::Flush => self.ops.flushes += 1,
            DiskOpKind::Discard => self.ops.discards += 1,
        }
        if failure.is_none() {
            match op.kind {
                DiskOpKind::Read => op.payload.copy_in(0, &self.media.bytes[at..at + len]),
                DiskOpKind::Write { .. } => {
                    let mut data = alloc::vec![0; len];
                    op.payload.copy_out(0, &mut data);
                    self.media.write(at, &data);
                }
                DiskOpKind::Flush => self.media.flush(),
                // What was there is gone; what reads will find is anybody's guess.
                DiskOpKind::Discard => self.media.write(at, &alloc::vec![0xdd; len]),
            }
        }
        self.disk.complete(op.token, failure.unwrap_or_default(), op.payload);
    }

    pub(super) fn submit_with(
        &mut self,
        op: Op,
        flags: BioFlags,
        offset_bytes: u64,
        payload: Payload,
        len_bytes: u64,
    ) -> u64 {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.volume.submit(Request { ticket, op, flags, offset_bytes, len_bytes, payload });
        ticket
    }

    pub(super) fn submit_write(&mut self, offset_bytes: u64, data: &[u8], flags: BioFlags) -> u64 {
        let buf = Buf::alloc(data.len());
        buf.copy_in(0, data);
        let len = data.len() as u64;
        self.submit_with(Op::Write, flags, offset_bytes, Payload::from_buf(buf), len)
    }

    pub(super) fn submit_op(&mut self, op: Op, offset_bytes: u64, len_bytes: u64) -> u64 {
        self.submit_with(op, BioFlags::empty(), offset_bytes, Payload::empty(), len_bytes)
    }

    /// Ends a request; its status, if it has ended.
    pub(super) fn end(&mut self, ticket: u64) -> Option<Status> {
        self.run();
        self.done.remove(&ticket)
    }

    pub(super) fn write(&mut self, offset_bytes: u64, data: &[u8]) -> Status {
        let ticket = self.submit_write(offset_bytes, data, BioFlags::empty());
        self.end(ticket).expect("a write ends")
    }

    pub(super) fn op(&mut self, op: Op, offset_bytes: u64, len_bytes: u64) -> Status {
        let ticket = self.submit_op(op, offset_bytes, len_bytes);
        self.end(ticket).expect("it ends")
    }

    pub(super) fn flush(&mut self) -> Status {
        self.op(Op::Flush, 0, 0)
    }

    pub(super) fn read(&mut self, offset_bytes: u64, len_bytes: u64) -> Result<Vec<u8>, Status> {
        let payload = Payload::from_buf(Buf::alloc(len_bytes as usize));
        payload.fill(0, len_bytes, 0xee);
        let flags = BioFlags::empty();
        let ticket = self.submit_with(Op::Read, flags, offset_bytes, payload, len_bytes);
        let status = self.end(ticket).expect("a read ends");
        let mut data = alloc::vec![0; len_bytes as usize];
        self.payloads[&ticket].copy_out(0, &mut data);
        if status.is_ok() { Ok(data) } else { Err(status) }
    }

    /// A checkpoint, through.
    pub(super) fn checkpoint(&mut self) {
        let before = self.volume.counters().counts.checkpoints;
        self.volume.checkpoint();
        self.run();
        assert!(self.volume.counters().counts.checkpoints > before, "{:?}", self.volume.state());
    }

    /// The daemon dies; the disk lives on.
    pub(super) fn reopen(self) -> World {
        let mut world = World::open(self.media, self.options);
        world.run();
        world
    }

    /// The power is cut.
    pub(super) fn cut(self, rng: &mut fastrand::Rng) -> World {
        World::open(self.media.cut(rng), self.options)
    }

    /// What `check` finds on the disk as it is now.
    pub(super) fn check(&self) -> CheckReport {
        let mut host = MemoryHost::from_bytes(self.media.bytes.clone());
        let request = CheckRequest::default();
        host.run(|disk| async move { check(&disk, &request, &mut |_| ()).await })
    }

    /// `check` finds nothing wrong.
    pub(super) fn assert_sound(&self) {
        let report = self.check();
        assert!(report.is_sound(), "{:?}", report.findings);
    }
}

/// Data that compresses to about half, and says whose it is.
pub(super) fn data(blocks: usize, tag: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(tag);
    let mut bytes = Vec::with_capacity(blocks * BLOCK as usize);
    while bytes.len() < blocks * BLOCK as usize {
        let run = rng.usize(1..24);
        match rng.bool() {
            true => bytes.extend((0..run).map(|_| rng.u8(..))),
            false => bytes.extend(core::iter::repeat_n(tag as u8, run)),
        }
    }
    bytes.truncate(blocks * BLOCK as usize);
    bytes[..8].copy_from_slice(&tag.to_le_bytes());
    bytes
}

/// Data that does not compress.
pub(super) fn noise(blocks: usize, tag: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(tag);
    (0..blocks * BLOCK as usize).map(|_| rng.u8(..)).collect()
}

/// zstd, for a change.
pub(super) fn zstd() -> Options {
    Options { coder: Some(CoderChoice { codec: Codec::Zstd, level: 3 }), ..Options::default() }
}
