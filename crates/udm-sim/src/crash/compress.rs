//! The volume of the compress target as something to crash: the production code, made small.
//!
//! Segments of 16 to 64 KiB, records of 8 KiB and more, a disk of some hundred KiB: everything
//! that takes hours on a large disk (a full log, a freed segment, a map page written for the
//! second time) happens every few requests here. Some setups spread the blocks over islands that
//! lie across the borders of map pages, so that a few requests touch several pages.
//!
//! Rules. Nothing is done here that the target does not do. The options are those of a table line,
//! with small budgets, so that checkpoints and cleaning happen by themselves as well.
//!
//! The tricky case is the size: the physical space is drawn just above what the islands can need
//! without compression, so writes wait for the cleaner, but are not refused for want of space.

use crate::crash::subject::{
    Busy, CUT_TICKET, CrashSubject, Order, Request, Shape, Standing, Unresized,
};
use fastrand::Rng;
use std::collections::BTreeMap;
use udm_lane::{Buf, Payload};
use udm_meta::Disk;
use udm_targets::compress::codec::CoderChoice;
use udm_targets::compress::format::{Codec, Defaults, Shape as FormatShape};
use udm_targets::compress::tools::check::{CheckRequest, check};
use udm_targets::compress::tools::format::{FormatRequest, format};
use udm_targets::compress::volume;
use udm_targets::compress::volume::{
    Done, Event, NoSpace, Options, ResizeFault, Sizes, State, TICKET_OF_CUT, Volume,
};
use udm_types::{Nanos, Op, Status};

/// Blocks of a map page.
const PAGE_BLOCKS: usize = 504;
/// Bytes an incompressible block takes at most, its share of tables and padding included: a record
/// of its own is rounded up to the physical alignment, and the end of a segment stays empty.
const BLOCK_COST_BYTES: [u64; 2] = [4096 + 1536, 2 * 4096 + 2048];
/// How many times larger disk and map can become. A map that is small at first can have all the
/// pages the islands need; the disk grows by what one life asks for.
const GROWTH: u64 = 8;
/// Sectors of a block.
const BLOCK_SECTORS: usize = 8;

/// Geometry and options.
#[derive(Clone, Debug)]
pub(crate) struct CompressSetup {
    format: FormatRequest,
    options: Options,
    shape: Shape,
    /// Shrinks go to the smallest disk that the volume allows, not to the first size.
    shrinks_to_least: bool,
}

/// The volume.
pub(crate) struct Compress {
    volume: Volume,
    is_told_to_stop: bool,
    alarm: Option<String>,
    /// A resize that did not begin.
    refused: Option<ResizeFault>,
    /// What a shrink leaves of the disk; nothing for as little as possible.
    shrunk_disk_bytes: Option<u64>,
    /// Where those who read want it, by ticket.
    readers: BTreeMap<u64, Payload>,
}

impl CrashSubject for Compress {
    type Setup = CompressSetup;

    fn draw(rng: &mut Rng) -> CompressSetup {
        let segment_shift = rng.u8(14..=16);
        let physical_shift = [9, 9, 12][rng.usize(0..3)];
        let segment_bytes = 1_u64 << segment_shift;
        let extent_blocks = rng.u8(1..=8).min(if segment_shift == 14 { 2 } else { 6 });
        let record_limit = (segment_bytes as u32 >> rng.u32(0..2))
            .max((u32::from(extent_blocks) * 4096 + 4096).next_power_of_two());
        let islands = rng.usize(1..=4);
        let island_blocks = if islands == 1 { rng.usize(16..64) } else { rng.usize(8..24) };
        let used_blocks = (islands * island_blocks) as u64;
        let first_blocks = match rng.bool() {
            true => used_blocks as usize,
            false => rng.usize(1..=used_blocks as usize),
        };
        let cost_bytes = BLOCK_COST_BYTES[usize::from(physical_shift == 12)];
        let needed = (used_blocks * cost_bytes).div_ceil(segment_bytes);
        let reserve_segments = rng.u64(4..=6);
        // Three may become map pages. Where there is little more, segments are soon used again.
        let spare = if rng.u32(0..3) == 0 { 0 } else { needed / 4 + 4 + rng.u64(0..12) };
        let segments = needed + reserve_segments + 3 + spare;
        let meta_bytes = 8192 * (islands as u64 + 7) + (6 << 12);
        let disk_len_bytes =
            (meta_bytes.next_multiple_of(segment_bytes)) + (segments + 1) * segment_bytes;
        let options = draw_options(segment_bytes, rng);
        let mut uuid = [0; 16];
        rng.fill(&mut uuid);
        let start = if islands == 1 { 0 } else { PAGE_BLOCKS - island_blocks / 2 };
        let shape = Shape {
            disk_len_bytes,
            len_sectors: islands * island_blocks * BLOCK_SECTORS,
            first_len_sectors: first_blocks * BLOCK_SECTORS,
            growth_bytes: segment_bytes,
            island_sectors: island_blocks * BLOCK_SECTORS,
            stride_sectors: PAGE_BLOCKS * BLOCK_SECTORS,
            start_sector: start * BLOCK_SECTORS,
            block_sectors: BLOCK_SECTORS,
            request_len_sectors: 16 * BLOCK_SECTORS,
            is_writethrough: options.writeback.is_none(),
            has_background: true,
        };
        let format = FormatRequest {
            shape: FormatShape {
                physical_shift,
                segment_shift,
                unit_shift: 6,
                record_limit_bytes: record_limit.min(segment_bytes as u32),
                extent_blocks,
                reserve_segments,
                growth: GROWTH,
            },
            logical_bytes: Some(shape.len_bytes(shape.first_len_sectors)),
            uuid,
            salt: rng.u32(..),
            defaults: Defaults { codec: Codec::Lz4, level: 0 },
            is_discarded: rng.bool(),
        };
        CompressSetup { format, options, shape, shrinks_to_least: rng.bool() }
    }

    fn shape(setup: &CompressSetup) -> Shape {
        setup.shape
    }

    async fn format(setup: &CompressSetup, disk: Disk) -> Result<(), String> {
        let made = format(&disk, &setup.format, &mut |_| {}).await;
        made.map(drop).map_err(|error| error.to_string())
    }

    fn open(setup: &CompressSetup, disk: Disk, now: Nanos) -> Compress {
        let volume = Volume::open(disk, setup.options.clone(), now);
        let shrunk_disk_bytes = (!setup.shrinks_to_least).then_some(setup.shape.disk_len_bytes);
        Compress {
            volume,
            is_told_to_stop: false,
            alarm: None,
            refused: None,
            shrunk_disk_bytes,
            readers: BTreeMap::new(),
        }
    }

    fn standing(&self) -> Standing {
        match self.volume.state() {
            State::ReadOnly(trouble) | State::Failed(trouble) => {
                Standing::Refusing(format!("{trouble} ({trouble:?})"))
            }
            State::Recovering => Standing::Recovering,
            State::Serving if self.is_told_to_stop && self.volume.is_stopped() => Standing::Stopped,
            State::Serving => Standing::Serving,
        }
    }

    fn submit(&mut self, request: Request) {
        let Request { ticket, op, flags, offset_bytes, len_bytes, mut payload } = request;
        if op == Op::Read && len_bytes > 0 {
            // Memory that nobody else holds, as a front gives it: what is read is made in place.
            let own = Payload::from_buf(Buf::alloc(len_bytes as usize));
            own.fill(0, len_bytes, 0xee);
            self.readers.insert(ticket, std::mem::replace(&mut payload, own));
        }
        let request = volume::Request { ticket, op, flags, offset_bytes, len_bytes, payload };
        self.volume.submit(request);
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Checkpoint => self.volume.checkpoint(),
            Order::Clean(segments) => self.volume.gc(segments),
            Order::Scrub => self.volume.scrub(),
            Order::Resize { len_bytes: None, grows_to_disk: false } => self.shrink_disk(),
            Order::Resize { len_bytes, grows_to_disk } => {
                self.volume.resize(Sizes { logical_bytes: len_bytes, grows_to_disk });
            }
            Order::Stop { flush } => {
                self.is_told_to_stop = true;
                self.volume.request_stop(flush);
            }
            Order::Start => {
                self.is_told_to_stop = false;
                self.volume.start();
            }
        }
    }

    fn turn(&mut self, now: Nanos) -> bool {
        let has_more = self.volume.turn(now);
        while let Some(event) = self.volume.next_event() {
            match event {
                Event::BlocksLost { .. } | Event::Troubled(_) => {
                    self.alarm = Some(format!("{event:?}"));
                }
                Event::Recovered { .. }
                | Event::LowSpace
                | Event::OutOfSpace
                | Event::SpaceAgain => {}
            }
        }
        has_more
    }

    fn next_timer(&self) -> Option<Nanos> {
        self.volume.next_timer()
    }

    fn next_accepted(&mut self) -> Option<u64> {
        let ticket = self.volume.next_accepted();
        ticket.map(|ticket| if ticket == TICKET_OF_CUT { CUT_TICKET } else { ticket })
    }

    fn next_done(&mut self) -> Option<(u64, Status)> {
        let Done { ticket, status, payload } = self.volume.next_done()?;
        if let Some(reader) = self.readers.remove(&ticket) {
            payload.for_range(0, payload.len_bytes(), |piece, start, len, done| {
                let mut bytes = vec![0; len as usize];
                piece.buf.copy_out((piece.offset_bytes + start) as usize, &mut bytes);
                reader.copy_in(done as u64, &bytes);
            });
        }
        Some((ticket, status))
    }

    fn next_resized(&mut self) -> Option<Result<(), Unresized>> {
        let outcome = self.refused.take().map(Err).or_else(|| self.volume.next_resized())?;
        Some(outcome.map_err(|fault| match fault {
            ResizeFault::NoRoomForMap
            | ResizeFault::NoRoom
            | ResizeFault::Disk { .. }
            | ResizeFault::Failed(Status::NoSpace) => Unresized::NoRoom,
            ResizeFault::NotServing
            | ResizeFault::Busy
            | ResizeFault::Logical { .. }
            | ResizeFault::Stuck
            | ResizeFault::GivenUp
            | ResizeFault::DiskTooLarge
            | ResizeFault::Failed(_) => Unresized::Failed(fault.to_string()),
        }))
    }

    fn len_bytes(&self) -> Option<u64> {
        self.volume.logical_bytes()
    }

    fn has_copies(&self, offset_bytes: u64) -> bool {
        let Some(superblock) = self.volume.superblock() else { return false };
        let copies = superblock.geometry.superblock_offsets();
        let slots = superblock.geometry.checkpoint_offset_bytes;
        let slots = slots..slots + 2 * superblock.geometry.checkpoint_len_bytes;
        let is_in = |at: u64| (at..at + 4096).contains(&offset_bytes);
        copies.into_iter().any(is_in) || slots.contains(&offset_bytes)
    }

    fn is_log(&self, offset_bytes: u64) -> bool {
        let superblock = self.volume.superblock();
        superblock.is_some_and(|it| offset_bytes >= it.geometry.data_offset_bytes)
    }

    fn next_alarm(&mut self) -> Option<String> {
        self.alarm.take()
    }

    fn busy(&self) -> Busy {
        let counters = self.volume.counters();
        let (checkpoint, cleaning) = (counters.is_checkpointing, counters.is_cleaning);
        Busy { checkpoint, cleaning, resize: false }
    }

    fn describe(&self) -> String {
        format!("{:?}, {:?}", self.volume.state(), self.volume.counters())
    }

    async fn check(_setup: &CompressSetup, disk: Disk) -> Result<(), String> {
        let report = check(&disk, &CheckRequest::default(), &mut |_| {}).await;
        match report.is_sound() {
            true => Ok(()),
            false => Err(format!("{:?}", report.findings)),
        }
    }
}

impl Compress {
    /// Begins to use no more of the disk than the workload needs, or than is live now.
    fn shrink_disk(&mut self) {
        let begun = match self.shrunk_disk_bytes {
            Some(disk_bytes) => self.volume.shrink_disk(disk_bytes),
            None => match self.volume.shrink_disk(0) {
                Err(ResizeFault::Disk { least_bytes, .. }) => self.volume.shrink_disk(least_bytes),
                other => other,
            },
        };
        self.refused = begun.err();
    }
}

/// Small budgets, so that everything happens by itself as well.
fn draw_options(segment_bytes: u64, rng: &mut Rng) -> Options {
    let coder = CoderChoice {
        codec: [Codec::Lz4, Codec::Lz4, Codec::Zstd, Codec::Raw][rng.usize(0..4)],
        level: 0,
    };
    let writeback = [None, Some(Nanos::from_millis(20)), Some(Nanos::from_secs(1))];
    Options {
        writeback: writeback[rng.usize(0..3)],
        coder: Some(coder),
        extent_blocks: None,
        delta_bytes: [16 << 10, 64 << 10, 1 << 20][rng.usize(0..3)],
        cache_bytes: [8 << 10, 256 << 10][rng.usize(0..2)],
        buffer_bytes: [96 << 10, 1 << 20][rng.usize(0..2)],
        checkpoint_log_bytes: segment_bytes * rng.u64(2..40),
        discard_passdown: rng.bool(),
        quiet_before_checkpoint: Nanos::from_millis([10, 200, 5000][rng.usize(0..3)]),
        punch_granularity_bytes: [None, None, Some(512), Some(4096)][rng.usize(0..4)],
        no_space: match rng.bool() {
            true => NoSpace::Error,
            false => NoSpace::Queue { timeout: Nanos::from_secs(5) },
        },
        tells_accepts: true,
        ..Options::default()
    }
}
