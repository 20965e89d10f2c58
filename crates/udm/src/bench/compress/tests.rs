//! What `udm bench compress` counts, on small volumes: counts are exact, times are not looked at.

use super::Sample;
use super::bed::Bed;
use super::isolation::isolation;
use super::parts::{Rig, flush, random, space};
use crate::runtime::RuntimeConfig;
use udm_driver::DriverChoice;
use udm_targets::compress::codec::CoderChoice;
use udm_targets::compress::format::Codec;

const LZ4: CoderChoice = CoderChoice { codec: Codec::Lz4, level: 0 };

fn config() -> RuntimeConfig {
    RuntimeConfig { lanes: 1, driver: DriverChoice::Portable, ..RuntimeConfig::default() }
}

/// Words, and a number now and then: less than a third with lz4.
fn text(len_bytes: usize) -> Sample {
    let words: [&[u8]; 8] =
        [b"device ", b"mapper ", b"extent ", b"segment ", b"of ", b"the ", b"is ", b"compressed "];
    let mut rng = fastrand::Rng::with_seed(4);
    let mut bytes = Vec::with_capacity(len_bytes + 16);
    while bytes.len() < len_bytes {
        bytes.extend_from_slice(words[rng.usize(..words.len())]);
        if rng.u8(..48) == 0 {
            bytes.extend_from_slice(&rng.u32(..).to_le_bytes());
        }
    }
    bytes.truncate(len_bytes);
    Sample::new(bytes)
}

#[test]
fn a_device_of_twice_the_size_of_its_disk_is_filled_and_read_back() {
    let sample = text(128 << 20);
    let bed = Bed::make(&config(), 64 << 20).expect("a bed");
    let rig = Rig { bed: &bed, sample: &sample, choice: LZ4, words: "error_if_no_space" };
    let told = space(&rig).expect("all of it is written, and comes back as it was");
    assert_eq!((told.logical_bytes, told.disk_bytes), (128 << 20, 64 << 20));
    assert!(told.used_bytes < told.disk_bytes, "{told:?}");
    assert!(told.ratio > 2.0 && told.ratio <= told.codec_ratio * 1.01, "{told:?}");
}

#[test]
fn a_random_read_is_one_read_below_and_flushes_share_one() {
    let sample = text(8 << 20);
    let bed = Bed::make(&config(), 64 << 20).expect("a bed");
    let rig = Rig { bed: &bed, sample: &sample, choice: LZ4, words: "" };
    let told = random(&rig).expect("reads");
    assert_eq!(told.page_reads, 0, "all pages are in memory");
    assert!(told.lower_reads_per_read <= 1.0, "{told:?}");
    for row in flush(&rig, &config()).expect("flushes") {
        assert_eq!(row.lower_flushes_per_round, 1.0, "{row:?}");
        // More where a segment ends in the middle of a round.
        assert!((1.0..1.2).contains(&row.lower_writes_per_round), "{row:?}");
    }
}

#[test]
fn a_volume_goes_on_while_the_disk_of_another_one_stalls() {
    let sample = text(16 << 20);
    let bed = Bed::make(&config(), 64 << 20).expect("a bed");
    let rig = Rig { bed: &bed, sample: &sample, choice: LZ4, words: "" };
    // Each round ends only if the free volume got everything done during the stall.
    let told = isolation(&rig, 2).expect("both end well");
    assert!(told.held > 0, "the disk was stalled to the end: {told:?}");
    assert_eq!(told.stalled_ios, 2 * (32 << 20) / 4096);
}
