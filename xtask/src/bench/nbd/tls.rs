//! `cargo xtask bench nbd --only tls`: udm's NBD server with TLS beside nbdkit's, and in the clear.
//!
//! Both serve memory of the same size with the same certificates and refuse clients without TLS.
//! fio's nbd engine (libnbd, GnuTLS) is the client, which has the ciphers that it offers in the
//! usual order, so each server gets what its own choice leads to; the page says which. One
//! connection is one job of fio. Rounds are interleaved, tables show medians.
//!
//! The tricky case is CPU time: nbdkit's threads end with their connection and take the time that
//! `schedstat` has of them along, so here it is read of the whole process, in the kernel's ticks.

use super::cpu;
use super::servers::{Server, Spec};
use crate::bench::lab::{Fio, machine, median, run_fio};
use crate::bench::progress;
use crate::certificates;
use crate::steps::{Failed, is_installed, release_udm};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// What is measured: connections, requests outstanding on each.
const SHAPES: [(u32, u32); 6] = [(1, 1), (1, 32), (1, 128), (4, 1), (4, 32), (4, 128)];
const KINDS: [&str; 2] = ["read", "write"];

/// How to measure.
pub(super) struct Order<'a> {
    pub(super) udm: Option<&'a PathBuf>,
    pub(super) rounds: u32,
    pub(super) window_ms: u64,
    pub(super) size_mib: u64,
    pub(super) case: &'a [String],
}

/// Medians of one server in one case.
struct Cell {
    cpu_us: f64,
    kiops: f64,
}

/// Measures, and tells it as a page.
pub(super) fn page(root: &Path, order: &Order<'_>) -> Result<String, Failed> {
    if let Some(missing) = ["fio", "nbdkit", certificates::TOOL].iter().find(|t| !is_installed(t)) {
        return Err(Failed::new(format!("{missing} is not installed")));
    }
    let udm = release_udm(root, order.udm)?;
    let dir = std::env::temp_dir().join(format!("udm-bench-tls-{}", std::process::id()));
    fs::create_dir_all(&dir).map_err(Failed::to("make a folder"))?;
    let outcome =
        certificates::make(&dir, "DNS:localhost").and_then(|()| measured(order, &udm, &dir));
    // It is ours; what cannot be removed is left to the operating system's cleaner.
    let _removed = fs::remove_dir_all(&dir);
    outcome
}

fn measured(order: &Order<'_>, udm: &Path, dir: &Path) -> Result<String, Failed> {
    let size_bytes = order.size_mib << 20;
    let mut servers = Vec::new();
    for spec in [
        Spec::udm_by_tls(udm, dir, size_bytes, true),
        Spec::nbdkit_by_tls(dir, size_bytes, true),
        Spec::udm_by_tls(udm, dir, size_bytes, false),
        Spec::nbdkit_by_tls(dir, size_bytes, false),
    ] {
        servers.extend(Server::start(spec)?);
    }
    for server in &servers {
        fio(dir, server, &["--rw=write", "--bs=1M", "--iodepth=8"])?;
    }
    let mut cases = Vec::new();
    for kind in KINDS {
        cases.extend(SHAPES.map(|(connections, depth)| (kind, connections, depth)));
    }
    let name =
        |(kind, connections, depth): &(&str, u32, u32)| format!("{kind} {connections}x{depth}");
    cases.retain(|case| {
        order.case.is_empty() || order.case.iter().any(|part| name(case).contains(part.as_str()))
    });
    let mut rounds = vec![vec![Vec::new(); cases.len()]; servers.len()];
    for round in 1..=order.rounds {
        for (at, case) in cases.iter().enumerate() {
            for (server, rounds) in servers.iter().zip(&mut rounds) {
                let (what, whom) = (name(case), server.spec.name);
                progress(&format!("round {round} of {}, {what}, {whom}", order.rounds));
                rounds[at].push(one(dir, server, order, *case)?);
            }
        }
    }
    progress("");
    let names: Vec<String> = cases.iter().map(name).collect();
    let rows: Vec<(&str, Vec<Cell>)> = servers
        .iter()
        .zip(&rounds)
        .map(|(server, rounds)| {
            (server.spec.name, rounds.iter().map(|windows| cell(windows)).collect())
        })
        .collect();
    Ok(introduction(order) + &tables(&names, &rows))
}

fn cell(windows: &[(f64, f64)]) -> Cell {
    Cell {
        cpu_us: median(windows.iter().map(|(cpu_us, _)| *cpu_us).collect()),
        kiops: median(windows.iter().map(|(_, kiops)| *kiops).collect()),
    }
}

/// One window: CPU microseconds for an I/O, thousand I/Os a second.
fn one(
    dir: &Path,
    server: &Server,
    order: &Order<'_>,
    (kind, connections, depth): (&str, u32, u32),
) -> Result<(f64, f64), Failed> {
    let words = [
        format!("--rw=rand{kind}"),
        format!("--numjobs={connections}"),
        format!("--iodepth={depth}"),
        format!("--runtime={}ms", order.window_ms),
    ];
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    words.extend(["--bs=4k", "--time_based", "--norandommap", "--group_reporting"]);
    let read_cpu = || cpu::process_seconds(server.pid()).map_err(Failed::to("read the CPU time"));
    let before_s = read_cpu()?;
    let Fio { ios, iops, .. } = fio(dir, server, &words)?;
    let used_s = read_cpu()? - before_s;
    Ok((used_s * 1e6 / ios.max(1.0), iops / 1e3))
}

/// Runs fio on a server.
fn fio(dir: &Path, server: &Server, words: &[&str]) -> Result<Fio, Failed> {
    let socket = server.socket().display().to_string();
    let export = server.export();
    // fio lets libnbd read no files of ours, so the client does not look at the certificate.
    let uri = match server.spec.is_secret() {
        true => format!("--uri=nbds+unix:///{export}?socket={socket}&tls-verify-peer=false"),
        false => format!("--uri=nbd+unix:///{export}?socket={socket}"),
    };
    let ours = ["--ioengine=nbd", "--thread", "--size=100%", "--randrepeat=0", &uri];
    run_fio(dir, &[&ours, words].concat())
}

fn introduction(order: &Order<'_>) -> String {
    format!(
        "# NBD with TLS beside nbdkit\n\n\
         Written by `cargo xtask bench nbd --only tls --write docs/benchmarks/nbd-tls.md`: memory of {} MiB\n\
         over a unix socket, the same certificates, fio's nbd engine (libnbd, GnuTLS) as the client, 4 KiB at\n\
         random, medians of {} interleaved rounds of {} ms. CPU is that of the server's process, in user and\n\
         kernel. \"read 4x32\" is reads on 4 connections with 32 requests outstanding on each. The servers in the\n\
         clear show what TLS adds; the client's own TLS takes the other half of the machine.\n\n{}",
        order.size_mib,
        order.rounds,
        order.window_ms,
        machine()
    )
}

fn tables(names: &[String], rows: &[(&str, Vec<Cell>)]) -> String {
    let mut text = String::new();
    let mut table = |title: &str, lines: &[(String, Vec<String>)]| {
        let head = format!(
            "\n## {title}\n\n| | {} |\n|---|{}\n",
            names.join(" | "),
            "--:|".repeat(names.len())
        );
        text += &head;
        for (name, cells) in lines {
            writeln!(text, "| {name} | {} |", cells.join(" | "))
                .expect("invariant: writing to a string does not fail");
        }
    };
    let of = |show: &dyn Fn(&Cell) -> String| -> Vec<(String, Vec<String>)> {
        rows.iter()
            .map(|(name, cells)| ((*name).to_owned(), cells.iter().map(show).collect()))
            .collect()
    };
    table(
        "Server CPU, microseconds for an I/O (lower is better)",
        &of(&|cell| format!("{:.2}", cell.cpu_us)),
    );
    table("Thousand I/Os a second (higher is better)", &of(&|cell| format!("{:.0}", cell.kiops)));
    if let [(_, ours), (_, theirs), ..] = rows {
        let times: Vec<String> = ours
            .iter()
            .zip(theirs)
            .map(|(ours, theirs)| format!("{:.2}", theirs.cpu_us / ours.cpu_us))
            .collect();
        table("With TLS, times cheaper than nbdkit", &[("udm".to_owned(), times)]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Cell, tables};

    #[test]
    fn ratios_are_nbdkits_cost_by_ours() {
        let row = |cpu_us| vec![Cell { cpu_us, kiops: 7.0 }];
        let text = tables(&["read 1x1".to_owned()], &[("udm", row(2.0)), ("nbdkit", row(5.0))]);
        assert!(text.contains("| udm | 2.50 |"), "{text}");
        assert!(text.contains("| nbdkit | 5.00 |"), "{text}");
    }
}
