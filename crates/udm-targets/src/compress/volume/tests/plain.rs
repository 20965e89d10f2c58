//! A volume over plain memory, for measurements: no lost writes, no failures, nothing compared.
//!
//! What is measured is exact and the same in every run: bytes and operations, never time. The data
//! looks like files to a compressor: literals between copies of what came shortly before.

use crate::compress::codec::CoderChoice;
use crate::compress::format::{Codec, Defaults, Shape};
use crate::compress::tools::format::{FormatRequest, format};
use crate::compress::volume::{Counters, Options, Request, State, Volume};
use alloc::vec::Vec;
use udm_lane::{Buf, Payload};
use udm_meta::host::MemoryHost;
use udm_meta::{Disk, DiskOpKind};
use udm_types::{BioFlags, Nanos, Op, Status};

/// A volume, and its disk.
pub(super) struct Plain {
    pub(super) volume: Volume,
    disk: Disk,
    bytes: Vec<u8>,
    /// Bytes written below.
    pub(super) written_below: u64,
    /// Reads below.
    pub(super) reads_below: u64,
    next_ticket: u64,
    under_way: u64,
}

impl Plain {
    /// A new volume of `logical_bytes` on a disk of `device_bytes`.
    pub(super) fn new(device_bytes: u64, shape: Shape, logical_bytes: u64, codec: Codec) -> Plain {
        let mut host = MemoryHost::new(device_bytes as usize);
        let request = FormatRequest {
            shape,
            logical_bytes: Some(logical_bytes),
            uuid: [7; 16],
            salt: 99,
            defaults: Defaults { codec, level: 0 },
            is_discarded: false,
        };
        let plan = host.run(|disk| async move { format(&disk, &request, &mut |_| ()).await });
        plan.expect("formatted");
        let disk = Disk::new(device_bytes);
        let mut plain = Plain {
            volume: Volume::open(disk.clone(), Options::default(), Nanos(1)),
            disk,
            bytes: host.bytes,
            written_below: 0,
            reads_below: 0,
            next_ticket: 0,
            under_way: 0,
        };
        plain.idle();
        assert_eq!(plain.volume.state(), State::Serving);
        plain
    }

    /// One turn; true if anything moved.
    fn turn(&mut self) -> bool {
        let mut has_moved = self.volume.turn(Nanos(1));
        while let Some(done) = self.volume.next_done() {
            assert_eq!(done.status, Status::Ok);
            self.under_way -= 1;
            has_moved = true;
        }
        while let Some(op) = self.disk.next_op() {
            let range = op.offset_bytes as usize..(op.offset_bytes + op.len_bytes) as usize;
            match op.kind {
                DiskOpKind::Read => {
                    self.reads_below += 1;
                    op.payload.copy_in(0, &self.bytes[range]);
                }
                DiskOpKind::Write { .. } => {
                    self.written_below += op.len_bytes;
                    op.payload.copy_out(0, &mut self.bytes[range]);
                }
                DiskOpKind::Flush | DiskOpKind::Discard => {}
            }
            self.disk.complete(op.token, Status::Ok, op.payload);
            has_moved = true;
        }
        has_moved
    }

    /// Until nothing moves.
    pub(super) fn idle(&mut self) {
        while self.turn() {}
    }

    /// Submits, and waits while more than `depth` are under way.
    pub(super) fn submit(&mut self, op: Op, offset_bytes: u64, payload: Payload, depth: u64) {
        self.next_ticket += 1;
        self.under_way += 1;
        let len_bytes = payload.len_bytes();
        let flags = BioFlags::empty();
        let ticket = self.next_ticket;
        self.volume.submit(Request { ticket, op, flags, offset_bytes, len_bytes, payload });
        while self.under_way > depth {
            assert!(self.turn(), "requests hang: {:?}", self.volume.counters());
        }
    }

    /// Writes, up to 16 at a time.
    pub(super) fn write(&mut self, offset_bytes: u64, data: &[u8]) {
        let buf = Buf::alloc(data.len());
        buf.copy_in(0, data);
        self.submit(Op::Write, offset_bytes, Payload::from_buf(buf), 15);
    }

    /// Makes everything durable, folds it into the map, and says how things are.
    pub(super) fn settle(&mut self) -> Counters {
        self.idle();
        self.volume.checkpoint();
        self.idle();
        self.volume.counters()
    }
}

/// Data in kinds of 32 KiB that lz4 and zstd find about what they find in files: half like text,
/// a third like programs, the rest like archives.
pub(super) fn files(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes: Vec<u8> = Vec::with_capacity(len + (64 << 10));
    while bytes.len() < len {
        let end = bytes.len() + (32 << 10);
        let (symbols, literals, copied, far) = match rng.u32(..20) {
            0..10 => (24, 2..8, 8..32, 1200),
            10..17 => (160, 3..14, 6..26, 800),
            _ => (256, 64..65, 0..1, 1),
        };
        while bytes.len() < end {
            let run = rng.usize(literals.clone());
            bytes.extend((0..run).map(|_| rng.u32(..symbols) as u8));
            let run = rng.usize(copied.clone());
            let from = bytes.len().saturating_sub(rng.usize(..far) + run);
            bytes.extend_from_within(from..(from + run).min(bytes.len()));
        }
        bytes.truncate(end);
    }
    bytes.truncate(len);
    bytes
}

/// What the codec alone makes of it: payloads of extents of `extent_bytes`, rounded to 64 bytes.
pub(super) fn packed_bytes(data: &[u8], extent_bytes: usize, codec: Codec) -> u64 {
    let mut coder = crate::compress::codec::Coder::new();
    let choice = CoderChoice { codec, level: 0 };
    let extents = data.chunks(extent_bytes);
    extents.map(|extent| (coder.pack(choice, extent).1.len() as u64).next_multiple_of(64)).sum()
}
