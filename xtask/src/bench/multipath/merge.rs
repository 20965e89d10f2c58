//! What merging gives: sequential 4 KiB writes at depth 128 over two NBD paths, bio mode beside
//! request mode.
//!
//! Two nbdkit servers over one file, a udm daemon with a multipath device on them, fio on its
//! export. The target's own report says how many I/Os went to the paths. The modes take turns in
//! one run, each time with servers and a daemon of their own.

use super::selectors::{Device, Server};
use super::{Bench, fio, median};
use crate::steps::Failed;
use std::fs::File;

const WORDS: [&str; 2] = ["--rw=write", "--iodepth=128"];

/// What one round of a mode came to.
struct Round {
    iops: f64,
    lower_per_bio: f64,
}

pub(super) fn run(bench: &Bench<'_>) -> Result<String, Failed> {
    if !bench.has(&["nbdkit", "fio"], "merging over NBD paths") {
        return Ok(String::new());
    }
    let (mut bio, mut rq) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        bio.push(round(bench, "bio")?);
        rq.push(round(bench, "rq")?);
    }
    let mut text = "\n## Merging\n\nSequential 4 KiB writes, depth 128, fio over NBD to a multipath device on two nbdkit \
        servers over one file; medians. Bars: at most 0.1 lower I/Os a bio, at least twice the throughput.\n\n\
        | mode | I/Os a second | lower I/Os a bio | times bio mode |\n|---|--:|--:|--:|\n"
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
    let paths = [(servers[0].device(), ""), (servers[1].device(), "")];
    let device = Device::make(bench, mode, "service-time", &paths)?;
    let told = fio(bench, &device.uri, &WORDS)?;
    let lower = device.lower_ios()? as f64;
    Ok(Round { iops: told.iops, lower_per_bio: lower / told.ios.max(1.0) })
}
