//! Space: what three kinds of data take on the disk, beside the codec alone.
//!
//! `udm bench compress --only space` writes all of the data, folds the changes in, counts what is
//! used (the log, both slots of every map page, superblocks and checkpoints), reads everything back
//! and compares it. The same on a disk of half the size shows that the space is really there.
//!
//! The tricky case is data that does not compress to half: then the small disk is left out, and the
//! table says so.

use super::corpus::Corpus;
use super::{Bench, number};
use crate::bench::progress;
use crate::steps::Failed;
use std::fs;

/// Of the codec's own ratio.
const BAR_PERCENT: f64 = 97.0;
/// Data must shrink by so much to be tried on half the disk: fixed parts and the reserve are lost.
const HALF_RATIO_MIN: f64 = 2.25;

pub(super) fn run(bench: &Bench<'_>) -> Result<String, Failed> {
    let mut text = format!(
        "\n## Space\n\nLogical bytes for each byte used on the disk, metadata counted, beside the codec's own ratio on extents \
        of 32 KiB rounded to 64 bytes. Bar: {BAR_PERCENT} % of that. Everything is read back and compared. \"Half\" is the \
        same on a disk of half the size of the data (as far as the data compresses enough).\n\n\
        The data: an ext4 image of a part of this machine's `/usr` (Debian), the beginning of the sources of Linux 6.1 \
        (where Debian's package of them can be had; else of crates), and a SQLite table of orders with random UUIDs.\n\n\
        | data | codec | logical | ratio | codec alone | percent | bar kept | half |\n|---|---|--:|--:|--:|--:|---|---|\n"
    );
    for corpus in Corpus::ALL {
        let Some(file) = corpus.file(bench)? else { continue };
        let bytes = fs::metadata(&file).map_err(Failed::to("look at the data"))?.len();
        let (name, data) = (corpus.name(), file.display().to_string());
        for compressor in ["lz4", "zstd"] {
            progress(&format!("space: {name}, {compressor}"));
            let words = ["bench", "compress", "--json", "--only", "space", "--data", &data];
            let words = [&words[..], &["--whole", "--compressor", compressor]].concat();
            let told = bench.json(&words)?;
            let row = &told["space"];
            let ratio = number(row, "ratio")?;
            let half = match ratio >= HALF_RATIO_MIN {
                true => {
                    let disk = (bytes / 2 / 512 * 512).to_string();
                    bench.json(&[&words[..], &["--disk", &disk]].concat())?;
                    "full, verified"
                }
                false => "does not fit",
            };
            let percent = number(row, "percent_of_codec")?;
            let kept = if percent >= BAR_PERCENT { "yes" } else { "no" };
            text += &format!(
                "| {name} | {compressor} | {:.0} MiB | {ratio:.3} | {:.3} | {percent:.1} | {kept} | {half} |\n",
                number(row, "logical_bytes")? / f64::from(1 << 20),
                number(row, "codec_ratio")?,
            );
        }
    }
    progress("");
    Ok(text)
}
