//! What merging gives: sequential 4 KiB writes at depth 128 over two NBD paths, bio mode beside
//! request mode.
//!
//! Two nbdkit servers over one file and `udm bench` with its multipath device on them, which counts
//! the requests. A client of an export of ours would cost both modes the same for each I/O, and so
//! hide the difference. The modes take turns in one run, each time with servers of their own.

use super::selectors::Server;
use super::{Bench, median};
use crate::steps::Failed;
use std::fs::File;

const WORDS: [&str; 11] = [
    "bench",
    "--json",
    "--target",
    "multipath",
    "--sequential",
    "--op",
    "write",
    "--depth",
    "128",
    "--selector",
    "service-time",
];

/// What one round of a mode came to.
struct Round {
    iops: f64,
    lower_per_bio: f64,
}

pub(super) fn run(bench: &Bench<'_>) -> Result<String, Failed> {
    if !bench.has(&["nbdkit"], "merging over NBD paths") {
        return Ok(String::new());
    }
    let (mut bio, mut rq) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        bio.push(round(bench, "bio")?);
        rq.push(round(bench, "rq")?);
    }
    let mut text = "\n## Merging\n\nSequential 4 KiB writes, depth 128, one lane, `udm bench` on a multipath device over \
        two nbdkit servers with one file; medians. Bars: at most 0.1 lower I/Os a bio, at least twice the \
        throughput.\n\n| mode | I/Os a second | lower I/Os a bio | times bio mode |\n|---|--:|--:|--:|\n"
        .to_owned();
    let ratios = bio.iter().zip(&rq).map(|(bio, rq)| rq.iops / bio.iops).collect();
    let ratio = median(ratios);
    for (name, rounds, ratio) in [("bio", bio, 1.0), ("request", rq, ratio)] {
        let iops = median(rounds.iter().map(|round| round.iops).collect());
        let lower = median(rounds.iter().map(|round| round.lower_per_bio).collect());
        text += &format!("| {name} | {iops:.0} | {lower:.3} | {ratio:.2} |\n");
    }
    Ok(text)
}

fn round(bench: &Bench<'_>, mode: &str) -> Result<Round, Failed> {
    let image = bench.dir.join("merge.img");
    let made = File::create(&image).and_then(|file| file.set_len(64 << 20));
    made.map_err(Failed::to("make an image"))?;
    let backing = format!("file {}", image.display());
    let servers = [
        Server::start(bench, "a", &["-t", "16"], &backing)?,
        Server::start(bench, "b", &["-t", "16"], &backing)?,
    ];
    let [first, second] = servers.each_ref().map(Server::device);
    let seconds = bench.seconds.to_string();
    let own =
        ["--queue-mode", mode, "--seconds", &seconds, "--device", &first, "--device", &second];
    let told = bench.json(&[&WORDS[..], &own].concat())?;
    if told["errors"].as_u64() != Some(0) {
        return Err(Failed::new(format!("I/O errors in {mode} mode")));
    }
    let iops = told["iops"].as_f64();
    Ok(Round {
        iops: iops.ok_or_else(|| Failed::new("udm bench told no rate"))?,
        // Without merging every bio is an I/O below.
        lower_per_bio: told["requests_per_io"].as_f64().unwrap_or(1.0),
    })
}
