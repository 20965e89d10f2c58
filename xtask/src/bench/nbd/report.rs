//! The tables of the NBD benchmark: medians, ratios, Markdown.
//!
//! Two tables of numbers (CPU for an I/O, I/Os a second), one row a server and one column a case,
//! and one of ratios: how many times less CPU udm (and the floor) needs than the cheapest peer with
//! the same backing, and how many times the floor's. A server that stores nothing is compared only
//! with others that store nothing, except in a line that says so. Ratios are made from medians of
//! the same run. The last table holds the ratios against what the project has promised
//! ([`Bar`]), and names every case where a promise is not kept.
//!
//! The same text goes to the terminal and into the page, so that what is published is what was
//! seen.

use super::load::Window;
use super::servers::{Backing, Role};
use crate::bench::engine::median;
use std::fmt::Write;

/// All rounds of one server in one case.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    windows: Vec<Window>,
}

impl Cell {
    /// Adds a round.
    pub(crate) fn push(&mut self, window: Window) {
        self.windows.push(window);
    }

    /// CPU microseconds for an I/O, which is CPU seconds for a million.
    fn cpu_us(&self) -> f64 {
        median(self.windows.iter().map(|w| w.cpu_s * 1e6 / w.ios.max(1) as f64))
    }

    fn kiops(&self) -> f64 {
        median(self.windows.iter().map(|w| w.ios as f64 / w.wall_s / 1e3))
    }
}

/// A server's results, a cell for each case.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) backing: Backing,
    pub(crate) role: Role,
    pub(crate) cells: Vec<Cell>,
    pub(crate) rss_mib: u64,
    pub(crate) threads: u64,
}

/// All tables as Markdown.
pub(crate) fn tables(cases: &[String], rows: &[Row]) -> String {
    let mut out = String::new();
    heading(&mut out, "Server CPU, microseconds for an I/O (lower is better)", cases, true);
    for row in rows {
        line(&mut out, row, |cell| format!("{:.2}", cell.cpu_us()));
    }
    heading(&mut out, "Thousand I/Os a second (higher is better)", cases, true);
    for row in rows {
        line(&mut out, row, |cell| format!("{:.0}", cell.kiops()));
    }
    let lines = ratios(rows, cases.len());
    if !lines.is_empty() {
        heading(&mut out, "Ratios of CPU for an I/O", cases, false);
    }
    for Ratios { name, numbers, .. } in &lines {
        let text: Vec<String> = numbers.iter().map(|number| format!("{number:.2}")).collect();
        push_line(&mut out, &format!("| {name} | {} |", text.join(" | ")));
    }
    bars(&mut out, cases, &lines);
    out
}

/// One line of ratios, a number for each case.
struct Ratios {
    name: String,
    numbers: Vec<f64>,
    bar: Option<Bar>,
}

/// What a ratio has to be.
#[derive(Clone, Copy)]
enum Bar {
    AtLeast(f64),
    AtMost(f64),
}

impl Bar {
    fn is_met(self, number: f64) -> bool {
        match self {
            Bar::AtLeast(least) => number >= least,
            Bar::AtMost(most) => number <= most,
        }
    }
}

fn ratios(rows: &[Row], cases: usize) -> Vec<Ratios> {
    let mut lines = Vec::new();
    if !rows.iter().any(|row| row.role == Role::Udm) {
        return lines;
    }
    for row in rows.iter().filter(|row| row.role != Role::Peer) {
        let mut against = vec![(row.backing, "the best peer")];
        if row.backing == Backing::Memory && row.role == Role::Udm {
            // Not the same work, but the strictest reading of the goal.
            against.push((Backing::Nothing, "the best peer that stores nothing"));
        }
        for (backing, whom) in against {
            let peers = rows.iter().filter(|r| r.role == Role::Peer && r.backing == backing);
            let peers: Vec<&Row> = peers.collect();
            if peers.is_empty() {
                continue;
            }
            let name = format!("{}: times cheaper than {whom}", row.name);
            let best = best(&peers, cases);
            let numbers = row.cells.iter().zip(best).map(|(cell, best)| best / cell.cpu_us());
            let bar = match (row.role, row.backing, backing) {
                (Role::Udm, Backing::Memory, Backing::Memory) => Some(Bar::AtLeast(4.0)),
                (Role::Udm, Backing::File, Backing::File) => Some(Bar::AtLeast(3.0)),
                (Role::Udm | Role::Floor | Role::Peer, _, _) => None,
            };
            lines.push(Ratios { name, numbers: numbers.collect(), bar });
        }
        let floors = rows.iter().filter(|r| r.role == Role::Floor && r.backing == row.backing);
        for floor in floors.filter(|_| row.role == Role::Udm) {
            let times = row.cells.iter().zip(&floor.cells).map(|(c, f)| c.cpu_us() / f.cpu_us());
            let name = format!("{}: times {}", row.name, floor.name);
            let bar = (row.backing == Backing::Memory).then_some(Bar::AtMost(1.6));
            lines.push(Ratios { name, numbers: times.collect(), bar });
        }
    }
    lines
}

/// Which promises are kept, and where not.
fn bars(out: &mut String, cases: &[String], lines: &[Ratios]) {
    if !lines.iter().any(|line| line.bar.is_some()) {
        return;
    }
    push_line(out, "\n## What was promised\n");
    push_line(out, "| ratio | promised | kept in | not kept in |");
    push_line(out, "|---|---|--:|---|");
    for Ratios { name, numbers, bar } in lines {
        let Some(bar) = *bar else { continue };
        let promised = match bar {
            Bar::AtLeast(least) => format!("at least {least}"),
            Bar::AtMost(most) => format!("at most {most}"),
        };
        let missed = cases.iter().zip(numbers).filter(|(_, number)| !bar.is_met(**number));
        let missed: Vec<String> =
            missed.map(|(case, number)| format!("{case} ({number:.2})")).collect();
        let kept = cases.len() - missed.len();
        let missed = if missed.is_empty() { "-".to_owned() } else { missed.join(", ") };
        let line = format!("| {name} | {promised} | {kept} of {} | {missed} |", cases.len());
        push_line(out, &line);
    }
}

/// The cheapest of these rows for each case.
fn best(rows: &[&Row], cases: usize) -> Vec<f64> {
    (0..cases)
        .map(|case| rows.iter().map(|row| row.cells[case].cpu_us()).fold(f64::INFINITY, f64::min))
        .collect()
}

fn heading(out: &mut String, title: &str, cases: &[String], with_size: bool) {
    push_line(out, &format!("\n## {title}\n"));
    let size = if with_size { " memory | threads |" } else { "" };
    push_line(out, &format!("| server | {} |{size}", cases.join(" | ")));
    let more = if with_size { "--:|--:|" } else { "" };
    push_line(out, &format!("|---|{}{more}", "--:|".repeat(cases.len())));
}

fn line(out: &mut String, row: &Row, text: impl Fn(&Cell) -> String) {
    let cells: Vec<String> = row.cells.iter().map(text).collect();
    let size = format!("{} MiB | {}", row.rss_mib, row.threads);
    push_line(out, &format!("| {} | {} | {size} |", row.name, cells.join(" | ")));
}

fn push_line(out: &mut String, line: &str) {
    writeln!(out, "{line}").expect("invariant: writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use super::{Cell, Row, tables};
    use crate::bench::nbd::load::Window;
    use crate::bench::nbd::servers::{Backing, Role};

    fn row(name: &'static str, role: Role, cpu_s: f64) -> Row {
        let mut cell = Cell::default();
        cell.push(Window { ios: 1_000_000, wall_s: 2.0, cpu_s });
        let (backing, cells) = (Backing::Memory, vec![cell]);
        Row { name, backing, role, cells, rss_mib: 7, threads: 2 }
    }

    #[test]
    fn ratios_are_against_the_cheapest_peer_and_the_floor() {
        let rows = [
            row("floor", Role::Floor, 0.5),
            row("udm", Role::Udm, 0.75),
            row("slow", Role::Peer, 6.0),
            row("fast", Role::Peer, 3.0),
        ];
        let text = tables(&["read".to_owned()], &rows);
        assert!(text.contains("| udm: times cheaper than the best peer | 4.00 |"), "{text}");
        assert!(text.contains("| udm: times floor | 1.50 |"), "{text}");
        assert!(text.contains("| udm | 0.75 | 7 MiB | 2 |"), "{text}");
        assert!(text.contains("| floor: times cheaper than the best peer | 6.00 |"), "{text}");
        assert!(
            text.contains("| udm: times cheaper than the best peer | at least 4 | 1 of 1 | - |"),
            "{text}"
        );
        assert!(text.contains("| fast | 500 | 7 MiB | 2 |"), "{text}");
    }

    #[test]
    fn a_promise_that_is_not_kept_is_named_with_its_case() {
        let rows = [
            row("floor", Role::Floor, 0.5),
            row("udm", Role::Udm, 1.0),
            row("fast", Role::Peer, 3.0),
        ];
        let text = tables(&["read".to_owned()], &rows);
        for line in [
            "| udm: times cheaper than the best peer | at least 4 | 0 of 1 | read (3.00) |",
            "| udm: times floor | at most 1.6 | 0 of 1 | read (2.00) |",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
