//! Isolation: `udm bench compress --only isolation`, as a row beside its bar.
//!
//! Measures nothing itself; rounds with the other volume idle and stalled are interleaved there, on
//! one lane. The tricky case is the machine's own noise, which hits speed by the clock and hardly
//! the CPU time; both are shown.

use super::corpus::Corpus;
use super::{Bench, number};
use crate::bench::progress;
use crate::steps::Failed;

/// Of the speed with the other volume idle.
const BAR_PERCENT: f64 = 95.0;

pub(super) fn run(bench: &Bench<'_>) -> Result<String, Failed> {
    let Some(data) = Corpus::Ext4.file(bench)? else { return Ok(String::new()) };
    progress("isolation");
    let data = data.display().to_string();
    let words = ["bench", "compress", "--json", "--only", "isolation", "--data", &data];
    let told = bench.json(&[&words[..], &["--size", "64M"]].concat())?;
    progress("");
    let row = &told["isolation"];
    Ok(format!(
        "\n## Isolation\n\nTwo volumes on one lane, the worst case. Random 4 KiB writes to one of them while the other, under \
        a full load, stands on a disk that holds every I/O; medians of {} interleaved rounds. When the disk went on, all \
        I/O of the stalled volume ended well. Bar: {BAR_PERCENT} %.\n\n| | idle neighbour | stalled neighbour | percent |\n\
        |---|--:|--:|--:|\n| MB a second by the clock | {:.1} | {:.1} | {:.1} |\n| by CPU time of the lane | | | {:.1} \
        |\n",
        row["rounds"],
        number(row, "idle_mb_per_s")?,
        number(row, "stalled_mb_per_s")?,
        number(row, "percent")?,
        number(row, "percent_by_cpu")?,
    ))
}
