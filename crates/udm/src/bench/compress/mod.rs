//! `udm bench compress`: what a compress volume costs and saves, beside its codec alone.
//!
//! | file | holds |
//! |---|---|
//! | `parts.rs` | the measurements: sequential, random, flush, overwrite, space |
//! | `isolation.rs` | a volume while another one's disk stalls |
//! | `bed.rs` | a volume over memory, and counting what reaches it |
//! | `pass.rs` | a pass of I/Os with real data |
//! | `codec.rs` | the codec alone; the ancestor's layout |
//! | `print.rs` | the figures for people |
//!
//! One lane, in this process, over memory, so that nothing but udm is measured. The data is a file,
//! since no generated data compresses as real data does; without one it is this program itself.
//! `cargo xtask bench compress` runs this round after round on several kinds of data.

mod bed;
mod codec;
mod isolation;
mod parts;
mod pass;
mod print;
#[cfg(test)]
mod tests;

use super::{BenchError, Driver};
use crate::compress::{parse_bytes, parse_codec};
use crate::runtime::RuntimeConfig;
use bed::Bed;
use clap::{Args, ValueEnum};
use codec::BLOCK_BYTES;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use udm_lane::Buf;
use udm_targets::compress::codec::CoderChoice;
use udm_targets::compress::format::Codec;

/// A compress volume over memory, with real data.
#[derive(Clone, Debug, Args)]
pub(super) struct CompressBenchArgs {
    /// What to measure; may be repeated. If left out: everything but space
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// A file to take data from; if left out, this program
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Bytes of data: so much of the file, or the file again and again
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_bytes)]
    size: u64,
    /// All of the file, and only once
    #[arg(long, requires = "data", conflicts_with = "size")]
    whole: bool,
    /// Size of the disk below; if left out, enough
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    disk: Option<u64>,
    /// lz4, zstd, zstd:LEVEL or none
    #[arg(long, value_name = "NAME[:LEVEL]", default_value = "lz4", value_parser = parse_codec)]
    compressor: (Codec, i8),
    /// Live data in percent of what the disk has room for, for overwrites
    #[arg(long, value_name = "PERCENT", default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=90))]
    fill: u64,
    /// Further arguments of the table line
    #[arg(long, value_name = "WORDS", default_value = "")]
    words: String,
    /// Driver of the lane
    #[arg(long, value_enum, default_value_t = Driver::Auto)]
    driver: Driver,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Sequential writes and reads, beside the codec alone
    Sequential,
    /// Random reads of 4 KiB: what they cost below
    Random,
    /// What a flush costs below, for one and for many who wait
    Flush,
    /// Random overwrites of 4 KiB at a fill level, steady state: bytes below for each above
    Overwrite,
    /// Random writes while the disk of another volume on the same lane stalls
    Isolation,
    /// All of the data written, folded in, and read back: what it takes on the disk
    Space,
}

/// Data to write, in one piece of memory.
struct Sample {
    buf: Buf,
    bytes: Vec<u8>,
}

impl Sample {
    fn read(args: &CompressBenchArgs) -> Result<Sample, BenchError> {
        let path = match &args.data {
            Some(path) => path.clone(),
            None => std::env::current_exe()?,
        };
        let mut source = Vec::new();
        let limit = if args.whole { u64::from(u32::MAX) } else { args.size };
        File::open(&path)?.take(limit).read_to_end(&mut source)?;
        let wanted = if args.whole { source.len() as u64 } else { args.size };
        // A buffer is below 4 GiB, and the codec's own copy is as long.
        let len = (wanted.min(3 << 30) as usize / SIZE_STEP).max(1) * SIZE_STEP;
        if source.is_empty() {
            return Err(format!("{} is empty", path.display()).into());
        }
        // Whole blocks, so that the file again and again is not shifted.
        source.resize(source.len().next_multiple_of(BLOCK_BYTES), 0);
        Ok(Sample::new(source.iter().copied().cycle().take(len).collect()))
    }

    fn new(bytes: Vec<u8>) -> Sample {
        let buf = Buf::alloc(bytes.len());
        buf.copy_in(0, &bytes);
        Sample { buf, bytes }
    }

    fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// Rounds of two cases that are compared within a run.
const ROUNDS: u32 = 7;

/// Samples have whole large I/Os.
const SIZE_STEP: usize = 1 << 20;

/// Measures and prints.
pub(super) fn run(args: &CompressBenchArgs) -> Result<(), BenchError> {
    let sample = Sample::read(args)?;
    let (codec, level) = args.compressor;
    let choice = CoderChoice { codec, level };
    // Twice: even what does not compress fits, with room to clean.
    let disk_bytes = args.disk.unwrap_or(sample.len_bytes() * 2 + (256 << 20));
    let config = RuntimeConfig { lanes: 1, driver: args.driver.into(), ..RuntimeConfig::default() };
    let bed = Bed::make(&config, disk_bytes / SIZE_STEP as u64 * SIZE_STEP as u64)?;
    let words = format!("no_discard_passdown {}", args.words);
    let rig = parts::Rig { bed: &bed, sample: &sample, choice, words: &words };
    let all = [Part::Sequential, Part::Random, Part::Flush, Part::Overwrite, Part::Isolation];
    let wanted = if args.only.is_empty() { &all[..] } else { &args.only[..] };
    let mut report = print::Report::new(args, &sample, disk_bytes);
    for part in wanted {
        match part {
            Part::Sequential => report.sequential = Some(parts::sequential(&rig)?),
            Part::Random => report.random = Some(parts::random(&rig)?),
            Part::Flush => report.flush = Some(parts::flush(&rig, &config)?),
            Part::Overwrite => report.overwrite = Some(parts::overwrite(&rig, args.fill)?),
            Part::Isolation => report.isolation = Some(isolation::isolation(&rig, ROUNDS)?),
            Part::Space => report.space = Some(parts::space(&rig)?),
        }
    }
    report.print(args.json)
}
