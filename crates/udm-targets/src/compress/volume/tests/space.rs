//! What data takes: the ratio, and what is written below for what is written above.
//!
//! Nothing here depends on time; the numbers are those of this data, and the same in every run.

extern crate std;

use super::plain::{Plain, files, packed_bytes};
use crate::compress::format::{Codec, Shape};
use alloc::vec::Vec;

const MIB: usize = 1 << 20;

/// The ratio of a volume filled with requests of these lengths, as percent of the codec's own.
fn percent_of_codec(codec: Codec, lengths: &[usize]) -> f64 {
    let data = files(48 * MIB, 3);
    let device_bytes = 96 * MIB as u64;
    let shape = Shape::for_device(device_bytes);
    let mut plain = Plain::new(device_bytes, shape, data.len() as u64, codec);
    let (mut at, mut request) = (0, 0);
    while at < data.len() {
        let end = (at + lengths[request % lengths.len()]).min(data.len());
        plain.write(at as u64, &data[at..end]);
        (at, request) = (end, request + 1);
    }
    let counters = plain.settle();
    let alone = packed_bytes(&data, usize::from(shape.extent_blocks) * 4096, codec);
    let percent = alone as f64 * 100.0 / counters.used_bytes as f64;
    std::println!(
        "{codec:?} {lengths:?}: alone {alone} ({:.3}; blocks alone {:.3}), payload {}, records {} of {} bytes, \
         used {}: {percent:.2} %",
        data.len() as f64 / alone as f64,
        data.len() as f64 / packed_bytes(&data, 4096, codec) as f64,
        counters.counts.stored_bytes,
        counters.records,
        counters.record_bytes,
        counters.used_bytes,
    );
    percent
}

/// Issue 4: within 3 %, metadata counted.
#[test]
fn data_takes_hardly_more_than_its_codec_makes_of_it() {
    let sizes: [&[usize]; 3] = [&[MIB], &[128 << 10], &[32 << 10, 64 << 10, 256 << 10]];
    let mut found: Vec<f64> = Vec::new();
    for codec in [Codec::Lz4, Codec::Zstd] {
        found.extend(sizes.map(|lengths| percent_of_codec(codec, lengths)));
    }
    assert!(found.iter().all(|percent| *percent >= 97.0), "{found:?}");
}

/// What random overwrites of 4 KiB write below.
struct Overwriting {
    /// Live bytes, of those of all segments.
    fill: f64,
    /// Of a byte written above, and what it is made of: payloads of users, of the cleaner, pages
    /// and checkpoints, and of records tables, heads and rounding.
    below: f64,
    users: f64,
    cleaner: f64,
    map: f64,
    tables: f64,
    cleaned: u64,
    checkpoints: u64,
}

/// Where the next write goes.
#[derive(Clone, Copy, Debug)]
enum Traffic {
    Uniform,
    /// Four fifths of the writes to a fifth of the blocks.
    Skewed,
}

fn overwrite(shape: Shape, segments: u64, fill: f64, traffic: Traffic) -> Overwriting {
    let pool = files(8 * MIB, 5);
    let blocks_of_pool = pool.len() / 4096;
    let stored = |count: u64| (packed_bytes(&pool, 4096, Codec::Lz4) + 16 * count) as f64;
    let stored_block = stored(blocks_of_pool as u64) / blocks_of_pool as f64;
    let area = (segments << shape.segment_shift) as f64;
    let blocks = (area * fill / stored_block) as u64;
    let device_bytes = ((segments + 4) << shape.segment_shift) + blocks * 8 * 2 + (512 << 10);
    let mut plain = Plain::new(device_bytes, shape, blocks * 4096, Codec::Lz4);
    let mut rng = fastrand::Rng::with_seed(9);
    let block_of = |rng: &mut fastrand::Rng, at: u64, plain: &mut Plain| {
        let from = rng.usize(..blocks_of_pool) * 4096;
        plain.write(at * 4096, &pool[from..from + 4096]);
    };
    (0..blocks).for_each(|at| block_of(&mut rng, at, &mut plain));
    let next = |rng: &mut fastrand::Rng| match traffic {
        Traffic::Uniform => rng.u64(..blocks),
        Traffic::Skewed if rng.u32(..5) > 0 => rng.u64(..blocks / 5),
        Traffic::Skewed => rng.u64(blocks / 5..blocks),
    };
    let mut run = |plain: &mut Plain, count: u64| {
        for _ in 0..count {
            let at = next(&mut rng);
            block_of(&mut rng, at, plain);
        }
        plain.idle();
        (plain.volume.counters(), plain.written_below)
    };
    let (before, below_before) = run(&mut plain, blocks * 5 / 2);
    let (after, below_after) = run(&mut plain, blocks);
    let above = (blocks * 4096) as f64;
    let of = |of: fn(&super::super::Counts) -> u64| {
        (of(&after.counts) - of(&before.counts)) as f64 / above
    };
    let (users, cleaner) = (of(|counts| counts.stored_bytes), of(|counts| counts.gc_bytes));
    Overwriting {
        fill: after.live_bytes as f64 / (after.segments << shape.segment_shift) as f64,
        below: (below_after - below_before) as f64 / above,
        users,
        cleaner,
        map: of(|counts| counts.map_bytes),
        tables: (after.record_bytes - before.record_bytes) as f64 / above - users - cleaner,
        cleaned: after.counts.segments_cleaned - before.counts.segments_cleaned,
        checkpoints: after.counts.checkpoints - before.counts.checkpoints,
    }
}

/// Issue 4 wants 0.9 of random overwrites; docs/internals/compress.md says what the rest is.
#[test]
fn overwriting_at_random_writes_about_as_much_below_as_above() {
    let shape =
        Shape { segment_shift: 18, record_limit_bytes: 256 << 10, ..Shape::for_device(128 << 20) };
    for traffic in [Traffic::Uniform, Traffic::Skewed] {
        let found = overwrite(shape, 512, 0.6, traffic);
        std::println!(
            "{traffic:?}: {:.3} below, users {:.3}, cleaner {:.3}, map {:.3}, tables {:.3}; \
             {} cleaned, {} checkpoints, fill {:.3}",
            found.below,
            found.users,
            found.cleaner,
            found.map,
            found.tables,
            found.cleaned,
            found.checkpoints,
            found.fill
        );
        assert!((0.59..0.61).contains(&found.fill), "not the fill that was meant");
        assert!(found.below < 1.04, "{traffic:?}: {:.3}", found.below);
    }
}
