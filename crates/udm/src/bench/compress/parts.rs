//! The measurements of `udm bench compress`, each on a volume of its own.
//!
//! Rules. A part makes its volume, measures, and takes it away; nothing of one part is in the
//! figures of another. Codec and volume are measured right after one another on the same bytes.
//!
//! The tricky case is the fill level of overwrites: it is that of the data area with what the codec
//! makes of single blocks, so the logical size follows from the sample.

use super::super::BenchError;
use super::Sample;
use super::bed::{Bed, Lowered, Volume};
use super::codec::{Alone, BLOCK_BYTES, alone, ancestor_cost};
use super::pass::{PassOrder, PassResult, Places};
use crate::runtime::RuntimeConfig;
use serde::Serialize;
use std::sync::mpsc;
use udm_lane::Payload;
use udm_targets::compress::codec::CoderChoice;
use udm_targets::compress::format::Shape;
use udm_targets::compress::format::geometry::Geometry;
use udm_types::{LaneId, Op};

pub(super) const LARGE_BYTES: u64 = 1 << 20;
pub(super) const SMALL_BYTES: u64 = BLOCK_BYTES as u64;
/// What the volume compresses together, as formatted.
const EXTENT_BYTES: usize = 8 * BLOCK_BYTES;
/// A header and what its table needs, for each extent.
const EXTENT_EXTRA_BYTES: u64 = 24;

/// What every part works with.
pub(super) struct Rig<'a> {
    pub(super) bed: &'a Bed,
    pub(super) sample: &'a Sample,
    pub(super) choice: CoderChoice,
    pub(super) words: &'a str,
}

/// A sequential pass beside the codec.
#[derive(Debug, Serialize)]
pub(super) struct Sequential {
    pub(super) op: &'static str,
    pub(super) len_bytes: u64,
    pub(super) mb_per_s: f64,
    /// By CPU time of the lane: what a worker does that nobody disturbs.
    pub(super) mb_per_cpu_s: f64,
    pub(super) codec_mb_per_s: f64,
    pub(super) codec_mb_per_cpu_s: f64,
    /// Of the codec's speed, by CPU time.
    pub(super) percent_of_codec: f64,
    /// What the codec worked on at once.
    pub(super) extent_bytes: usize,
}

/// Random reads with all map pages in memory.
#[derive(Debug, Serialize)]
pub(super) struct Random {
    pub(super) reads: u64,
    pub(super) lower_reads_per_read: f64,
    pub(super) lower_bytes_per_read: f64,
    pub(super) page_reads: u64,
    pub(super) cpu_us_per_read: f64,
}

/// Flushes after some writes, so many at once.
#[derive(Debug, Serialize)]
pub(super) struct Flush {
    pub(super) waiters: u32,
    pub(super) rounds: u32,
    pub(super) lower_writes_per_round: f64,
    pub(super) lower_flushes_per_round: f64,
}

/// Random overwrites in steady state.
#[derive(Debug, Serialize)]
pub(super) struct Overwrite {
    pub(super) places: &'static str,
    /// Stored bytes that are live, of what the data area has, in percent.
    pub(super) fill_percent: f64,
    pub(super) overwritten_bytes: u64,
    pub(super) below_per_byte: f64,
    /// Of those, by the volume's own counting: data for users, copies of the cleaner, map.
    pub(super) stored_per_byte: f64,
    pub(super) cleaned_per_byte: f64,
    pub(super) map_per_byte: f64,
    /// dm-insitu-comp in writethrough, computed from the same data with lz4.
    pub(super) ancestor_per_byte: f64,
    pub(super) kilo_ios_per_s: f64,
    pub(super) cpu_us_per_io: f64,
}

/// What data takes on the disk.
#[derive(Debug, Serialize)]
pub(super) struct Space {
    pub(super) logical_bytes: u64,
    pub(super) disk_bytes: u64,
    pub(super) used_bytes: u64,
    pub(super) ratio: f64,
    /// The codec's alone, sizes rounded to 64 bytes.
    pub(super) codec_ratio: f64,
    pub(super) percent_of_codec: f64,
}

impl Rig<'_> {
    pub(super) fn volume(&self, logical_bytes: u64) -> Result<Volume<'_>, BenchError> {
        self.bed.create(self.choice, logical_bytes, self.words)
    }

    pub(super) fn pass(
        &self,
        volume: &Volume<'_>,
        op: Op,
        len_bytes: u64,
    ) -> Result<PassResult, BenchError> {
        let shape = (len_bytes, self.sample.len_bytes());
        self.bed.run(PassOrder::sequential(volume.id, op, shape, &self.sample.buf))
    }

    fn alone(&self, extent_bytes: usize) -> Result<Alone, BenchError> {
        alone(self.choice, &self.sample.bytes, extent_bytes)
    }
}

fn mb_per_s(bytes: u64, ns: u64) -> f64 {
    bytes as f64 * 1e3 / ns.max(1) as f64
}

/// Writes and reads from the beginning to the end.
pub(super) fn sequential(rig: &Rig<'_>) -> Result<Vec<Sequential>, BenchError> {
    let row = |op: Op, len_bytes: u64, pass: PassResult, alone: &Alone| {
        let bytes = alone.sample_bytes;
        let (cpu_ns, wall_ns) = match op {
            Op::Write => (alone.pack_cpu_ns, alone.pack_wall_ns),
            Op::Read | Op::Flush | Op::Discard | Op::WriteZeroes => {
                (alone.unpack_cpu_ns, alone.unpack_wall_ns)
            }
        };
        let mb_per_cpu_s = mb_per_s(bytes, pass.cpu_ns);
        let codec_mb_per_cpu_s = mb_per_s(bytes, cpu_ns);
        Sequential {
            op: if op == Op::Write { "write" } else { "read" },
            len_bytes,
            mb_per_s: mb_per_s(bytes, pass.wall_ns),
            mb_per_cpu_s,
            codec_mb_per_s: mb_per_s(bytes, wall_ns),
            codec_mb_per_cpu_s,
            percent_of_codec: 100.0 * mb_per_cpu_s / codec_mb_per_cpu_s,
            extent_bytes: alone.extent_bytes,
        }
    };
    let mut rows = Vec::new();
    let extents = rig.alone(EXTENT_BYTES)?;
    let volume = rig.volume(rig.sample.len_bytes())?;
    rows.push(row(Op::Write, LARGE_BYTES, rig.pass(&volume, Op::Write, LARGE_BYTES)?, &extents));
    volume.checkpoint()?;
    for len_bytes in [LARGE_BYTES, SMALL_BYTES] {
        rows.push(row(Op::Read, len_bytes, rig.pass(&volume, Op::Read, len_bytes)?, &extents));
    }
    volume.remove()?;
    let blocks = rig.alone(BLOCK_BYTES)?;
    let volume = rig.volume(rig.sample.len_bytes())?;
    rows.push(row(Op::Write, SMALL_BYTES, rig.pass(&volume, Op::Write, SMALL_BYTES)?, &blocks));
    volume.remove()?;
    Ok(rows)
}

/// Reads of single blocks anywhere.
pub(super) fn random(rig: &Rig<'_>) -> Result<Random, BenchError> {
    /// Enough that chance does not show, and seconds at most.
    const READS: u64 = 50_000;
    let volume = rig.volume(rig.sample.len_bytes())?;
    rig.pass(&volume, Op::Write, LARGE_BYTES)?;
    volume.checkpoint()?;
    // Brings all map pages into the cache.
    rig.pass(&volume, Op::Read, LARGE_BYTES)?;
    let (before, pages) = (rig.bed.lowered()?, volume.stat("page_reads")?);
    let order = PassOrder {
        places: Places::Uniform,
        ios: READS,
        ..PassOrder::sequential(
            volume.id,
            Op::Read,
            (SMALL_BYTES, rig.sample.len_bytes()),
            &rig.sample.buf,
        )
    };
    let pass = rig.bed.run(order)?;
    let lowered = rig.bed.lowered()?.since(before);
    let page_reads = volume.stat("page_reads")? - pages;
    volume.remove()?;
    Ok(Random {
        reads: pass.ios,
        lower_reads_per_read: lowered.reads as f64 / pass.ios as f64,
        lower_bytes_per_read: lowered.read_bytes as f64 / pass.ios as f64,
        page_reads,
        cpu_us_per_read: pass.cpu_ns as f64 / 1e3 / pass.ios as f64,
    })
}

/// Some writes, then flushes at once, again and again. On a file: memory has no cache to flush.
pub(super) fn flush(rig: &Rig<'_>, config: &RuntimeConfig) -> Result<Vec<Flush>, BenchError> {
    const ROUNDS: u32 = 100;
    // Sparse; large enough for segments of the usual length.
    const DISK_BYTES: u64 = 1 << 30;
    let file = tempfile::Builder::new().prefix("udm-bench-").tempfile()?;
    file.as_file().set_len(DISK_BYTES)?;
    let bed = Bed::on(config, &file.path().display().to_string(), DISK_BYTES)?;
    let rig = Rig { bed: &bed, ..*rig };
    let volume = rig.volume(DISK_BYTES / 2)?;
    let mut rows = Vec::new();
    for waiters in [1, 8, 64] {
        let before = bed.lowered()?;
        flush_rounds(&rig, &volume, waiters, ROUNDS)?;
        let Lowered { writes, flushes, .. } = bed.lowered()?.since(before);
        let a_round = |count: u64| count as f64 / f64::from(ROUNDS);
        rows.push(Flush {
            waiters,
            rounds: ROUNDS,
            lower_writes_per_round: a_round(writes),
            lower_flushes_per_round: a_round(flushes),
        });
    }
    volume.remove()?;
    Ok(rows)
}

/// In each round 16 blocks are written, and `waiters` flushes are submitted in one step.
fn flush_rounds(
    rig: &Rig<'_>,
    volume: &Volume<'_>,
    waiters: u32,
    rounds: u32,
) -> Result<(), BenchError> {
    const WRITES: u64 = 16;
    let (sender, receiver) = mpsc::channel();
    let (device, data) = (volume.id, Payload::from_buf(rig.sample.buf.clone()));
    rig.bed.runtime.on_lane(LaneId(0), move |engine| {
        let io = engine.async_io();
        engine.spawn_task(async move {
            let mut is_ok = true;
            for round in 0..u64::from(rounds) {
                let blocks = (data.len_bytes() / SMALL_BYTES).min(2048);
                let mut under_way: Vec<_> = (0..WRITES)
                    .map(|write| {
                        let block = (round * WRITES + write) % blocks;
                        let piece = data.slice(block * SMALL_BYTES, SMALL_BYTES);
                        io.write(device, block * SMALL_BYTES / 512, piece)
                    })
                    .collect();
                for write in under_way.drain(..) {
                    is_ok &= write.await.0.is_ok();
                }
                under_way.extend((0..waiters).map(|_| io.flush(device)));
                for flush in under_way {
                    is_ok &= flush.await.0.is_ok();
                }
            }
            // Whoever ordered this waits below.
            let _ = sender.send(is_ok);
        });
    });
    match receiver.recv() {
        Ok(true) => Ok(()),
        Ok(false) => Err("I/O failed".into()),
        Err(mpsc::RecvError) => Err("the lane ended early".into()),
    }
}

/// Overwrites single blocks of a volume that is `fill` percent full, long enough to forget its
/// beginning.
pub(super) fn overwrite(rig: &Rig<'_>, fill: u64) -> Result<Vec<Overwrite>, BenchError> {
    let disk_bytes = rig.bed.disk_bytes();
    let blocks = rig.alone(BLOCK_BYTES)?;
    let stored = blocks.packed_bytes as f64 / (blocks.sample_bytes / SMALL_BYTES) as f64
        + EXTENT_EXTRA_BYTES as f64;
    // The sizes of the layout hardly depend on the logical size, so a first guess will do.
    let shape = Shape::for_device(disk_bytes);
    let geometry = Geometry::plan(disk_bytes, Some(disk_bytes * 2), &shape)
        .map_err(|fault| fault.to_string())?;
    let data_bytes = geometry.segment_limit() * geometry.segment_bytes();
    let live_blocks = data_bytes as f64 * fill as f64 / 100.0 / stored;
    let span_bytes = live_blocks as u64 * SMALL_BYTES / LARGE_BYTES * LARGE_BYTES;
    let ancestor_per_byte = ancestor_cost(&rig.sample.bytes);
    let mut rows = Vec::new();
    for (name, places) in [("uniform", Places::Uniform), ("80/20", Places::Skewed)] {
        let volume = rig.volume(span_bytes)?;
        let fill_order =
            PassOrder::sequential(volume.id, Op::Write, (SMALL_BYTES, span_bytes), &rig.sample.buf);
        rig.bed.run(fill_order.clone())?;
        let order = |ios: u64, seed: u64| PassOrder { places, ios, seed, ..fill_order.clone() };
        // Twice the size: cleaning has been over everything.
        rig.bed.run(order(2 * fill_order.ios, 1))?;
        let (before, counted) = (rig.bed.lowered()?, counted(&volume)?);
        let pass = rig.bed.run(order(fill_order.ios, 2))?;
        let below = rig.bed.lowered()?.since(before);
        let counts = self::counted(&volume)?;
        volume.checkpoint()?;
        let live_bytes: f64 = volume.status(5)?.parse()?;
        volume.remove()?;
        let bytes = pass.ios * SMALL_BYTES;
        let per_byte = |count: u64| count as f64 / bytes as f64;
        rows.push(Overwrite {
            places: name,
            fill_percent: 100.0 * live_bytes / data_bytes as f64,
            overwritten_bytes: bytes,
            below_per_byte: per_byte(below.written_bytes),
            stored_per_byte: per_byte(counts[0] - counted[0]),
            cleaned_per_byte: per_byte(counts[1] - counted[1]),
            map_per_byte: per_byte(counts[2] - counted[2]),
            ancestor_per_byte,
            kilo_ios_per_s: pass.ios as f64 * 1e6 / pass.wall_ns as f64,
            cpu_us_per_io: pass.cpu_ns as f64 / 1e3 / pass.ios as f64,
        });
    }
    Ok(rows)
}

/// Bytes stored for users, moved by the cleaner, and of the map.
fn counted(volume: &Volume<'_>) -> Result<[u64; 3], BenchError> {
    let word = |place| Ok::<u64, BenchError>(volume.status(place)?.parse()?);
    Ok([word(1)?, word(6)?, word(7)?])
}

/// Writes the sample, folds it in, reads it back.
pub(super) fn space(rig: &Rig<'_>) -> Result<Space, BenchError> {
    let logical_bytes = rig.sample.len_bytes();
    let extents = rig.alone(EXTENT_BYTES)?;
    let volume = rig.volume(logical_bytes)?;
    rig.pass(&volume, Op::Write, LARGE_BYTES)?;
    volume.checkpoint()?;
    let used_bytes = volume.used_bytes()?;
    let shape = (LARGE_BYTES, logical_bytes);
    let order = PassOrder::sequential(volume.id, Op::Read, shape, &rig.sample.buf);
    rig.bed.run(PassOrder { is_verified: true, ..order })?;
    volume.remove()?;
    let ratio = logical_bytes as f64 / used_bytes as f64;
    Ok(Space {
        logical_bytes,
        disk_bytes: rig.bed.disk_bytes(),
        used_bytes,
        ratio,
        codec_ratio: extents.ratio(),
        percent_of_codec: 100.0 * ratio / extents.ratio(),
    })
}
