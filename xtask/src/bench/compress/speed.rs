//! Speed: `udm bench compress` on the ext4 image, round after round.
//!
//! Measures nothing itself. The tricky case is a shared machine: what counts is CPU time of the
//! lane beside CPU time of the codec, measured in the same process right before.

use super::corpus::Corpus;
use super::{Bench, median, number};
use crate::bench::progress;
use crate::steps::Failed;
use serde_json::Value;

/// Data of a round, so that it takes seconds.
const SIZE: &str = "128M";
/// Of the codec's speed.
const SEQUENTIAL_BAR_PERCENT: f64 = 70.0;
/// Bytes below for each above.
const OVERWRITE_BAR: f64 = 0.9;
const COMPRESSORS: [&str; 2] = ["lz4", "zstd"];

pub(super) fn run(bench: &Bench<'_>) -> Result<String, Failed> {
    let Some(data) = Corpus::Ext4.file(bench)? else { return Ok(String::new()) };
    let data = data.display().to_string();
    let mut rounds = COMPRESSORS.map(|_| Vec::new());
    for round in 1..=bench.rounds {
        for (compressor, told) in COMPRESSORS.iter().zip(&mut rounds) {
            progress(&format!("speed: round {round} of {}, {compressor}", bench.rounds));
            let words = ["bench", "compress", "--json", "--data", &data, "--size", SIZE];
            let only = ["--only", "sequential", "--only", "random", "--only", "flush"];
            let words = [&words[..], &only, &["--compressor", compressor]].concat();
            told.push(bench.json(&words)?);
        }
    }
    progress("");
    let mut text = format!(
        "\n## Sequential I/O\n\n`udm bench compress`, one lane, a volume over memory, {SIZE} of the ext4 image; MB a second \
        of CPU time (and by the clock) beside the codec alone on the same extents, in percent of it; medians of {}. \
        Bar: {SEQUENTIAL_BAR_PERCENT} %.\n\n| codec | I/O | volume | by the clock | codec alone | percent | bar kept |\n\
        |---|---|--:|--:|--:|--:|---|\n",
        bench.rounds
    );
    for (compressor, told) in COMPRESSORS.iter().zip(&rounds) {
        text += &sequential(compressor, told)?;
    }
    text += "\n## Random reads and flushes\n\nRandom reads of 4 KiB from extents of 32 KiB with all pages of the map in \
        memory (bar: one lower read each), and flushes after 16 written blocks, so many waiting at once (bar: one lower \
        write and one lower flush, however many). Counted by a layer below the volume.\n\n| codec | what | below | CPU \
        |\n|---|---|---|--:|\n";
    for (compressor, told) in COMPRESSORS.iter().zip(&rounds) {
        text += &counted(compressor, told)?;
    }
    Ok(text)
}

fn sequential(compressor: &str, told: &[Value]) -> Result<String, Failed> {
    let mut text = String::new();
    let cases = told[0]["sequential"].as_array().map_or(0, Vec::len);
    for case in 0..cases {
        let middle = |name: &str| -> Result<f64, Failed> {
            let numbers: Result<Vec<f64>, Failed> =
                told.iter().map(|round| number(&round["sequential"][case], name)).collect();
            Ok(median(numbers?))
        };
        let row = &told[0]["sequential"][case];
        let op = row["op"].as_str().unwrap_or_default();
        let percent = middle("percent_of_codec")?;
        let kept = if percent >= SEQUENTIAL_BAR_PERCENT { "yes" } else { "no" };
        text += &format!(
            "| {compressor} | {op} {} KiB, extents of {} KiB | {:.0} | {:.0} | {:.0} | {percent:.0} | {kept} |\n",
            number(row, "len_bytes")? / 1024.0,
            number(row, "extent_bytes")? / 1024.0,
            middle("mb_per_cpu_s")?,
            middle("mb_per_s")?,
            middle("codec_mb_per_cpu_s")?,
        );
    }
    Ok(text)
}

fn counted(compressor: &str, told: &[Value]) -> Result<String, Failed> {
    let random = |name: &str| -> Result<f64, Failed> {
        let numbers: Result<Vec<f64>, Failed> =
            told.iter().map(|round| number(&round["random"], name)).collect();
        Ok(median(numbers?))
    };
    let mut text = format!(
        "| {compressor} | random read | {:.3} reads of {:.0} bytes | {:.1} us |\n",
        random("lower_reads_per_read")?,
        random("lower_bytes_per_read")?,
        random("cpu_us_per_read")?
    );
    for row in told[0]["flush"].as_array().into_iter().flatten() {
        text += &format!(
            "| {compressor} | {} flushes at once | {:.2} writes, {:.2} flushes |  |\n",
            row["waiters"],
            number(row, "lower_writes_per_round")?,
            number(row, "lower_flushes_per_round")?
        );
    }
    Ok(text)
}

/// Overwrites: bytes, not times, so once is enough.
pub(super) fn run_overwrite(bench: &Bench<'_>) -> Result<String, Failed> {
    let mut text = format!(
        "\n## Random overwrites of 4 KiB\n\nBytes below for each byte above, counted by a layer below the volume, on a disk \
        of 1 GiB whose data area holds 60 % of live data, after overwriting twice the live size. Bar: {OVERWRITE_BAR} for \
        lz4 on the ext4 image, uniform; the ancestor's layout (dm-insitu-comp in writethrough) is computed from the same \
        data.\n\n| data, codec | places | full | below for each byte | data | cleaner | map | ancestor | CPU |\n\
        |---|---|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    for (corpus, compressor) in
        [(Corpus::Ext4, "lz4"), (Corpus::Ext4, "zstd"), (Corpus::Text, "lz4")]
    {
        let Some(data) = corpus.file(bench)? else { continue };
        let (name, data) = (corpus.name(), data.display().to_string());
        progress(&format!("overwrites: {name}, {compressor}"));
        let words = ["bench", "compress", "--json", "--only", "overwrite", "--data", &data];
        let told = bench.json(
            &[&words[..], &["--size", SIZE, "--disk", "1G", "--compressor", compressor]].concat(),
        )?;
        progress("");
        for row in told["overwrite"].as_array().into_iter().flatten() {
            text += &format!(
                "| {name}, {compressor} | {} | {:.0} % | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} | {:.1} us |\n",
                row["places"].as_str().unwrap_or_default(),
                number(row, "fill_percent")?,
                number(row, "below_per_byte")?,
                number(row, "stored_per_byte")?,
                number(row, "cleaned_per_byte")?,
                number(row, "map_per_byte")?,
                number(row, "ancestor_per_byte")?,
                number(row, "cpu_us_per_io")?,
            );
        }
    }
    Ok(text)
}
