//! The page: tables of each placement, and how to read them.
//!
//! A cell is the median of all rounds. Under the servers stands the floor: what a server that
//! sleeps between batches cannot go below, so also what the ratio to a peer cannot exceed. It has a
//! cell only on one queue; where several queues may share a wake-up nobody knows how many do.

use super::{Args, Case, NULL_PEER, Placement, Server};
use crate::bench::lab::{machine, median};

/// What explains the numbers, whatever they are this time.
pub(super) const READING: &str = "
## How to read it

- **The floor** is a thread that sleeps until it is kicked, and calls; nothing else. Its guest runs on another processor
  in the first tables, on the same in the later ones. On two processors each kick and each call interrupts a processor that
  has gone to sleep, which takes long where it leaves a virtual machine. On one processor client and server take turns, and
  that is a change of threads.
- **Where they run** decides more than who serves. If somebody else keeps the processors awake, the first tables look
  like the later ones; so compare within a column.
- **Depth 1** is two wake-ups and little else. Nothing in udm polls.
- **Depth 32 and 128 on one queue**: a batch shares the wake-up, whoever serves.
- **Four queues** are served by one thread of qemu-storage-daemon, where one wake-up often finds requests of several
  queues; udm has them on all its lanes, each woken by itself. That answers more at once and costs more for each. \"udm
  on one lane\" was exported with `--lanes 1` and has them on one, too.
- **Memory.** qemu-storage-daemon has none that stores; a file in shared memory stands in for it, and its reads and
  writes are system calls.

What of the promises is kept: [fronts/vhost-user.md](../fronts/vhost-user.md#what-was-promised).
";

/// The page's head: how and where it was measured.
pub(super) fn introduction(args: &Args) -> String {
    format!(
        "# vhost-user-blk servers side by side\n\n\
         Written by `cargo xtask bench vhost --write docs/benchmarks/vhost-user.md`: 4 KiB random \
         I/O by our own client\n(`crates/udm-front/examples/vhost_load.rs`: split rings, indirect \
         descriptors, event index), device of {} MiB\nwritten once before, medians of {} \
         interleaved rounds of {} s. CPU is that of all threads of the\nserver's process, in user \
         and kernel. \"read 4x32\" is reads on 4 queues with 32 requests outstanding on\neach. \
         Files are in the page cache.\n\n{}",
        args.size_mib,
        args.rounds,
        args.seconds,
        machine()
    )
}

/// The tables of a placement.
pub(super) fn section(
    placement: Placement,
    cases: &[Case],
    servers: &[Server],
    floor_us: f64,
) -> String {
    let wanted: Vec<usize> =
        (0..cases.len()).filter(|index| cases[*index].placement == placement).collect();
    let names: Vec<String> = wanted
        .iter()
        .map(|index| cases[*index])
        .map(|Case { what, queues, depth, .. }| format!("{what} {queues}x{depth}"))
        .collect();
    let cells = |server: &Server, pick: fn(&(f64, f64)) -> f64| -> Vec<f64> {
        let cells = wanted.iter().filter_map(|index| server.cells.get(*index));
        cells.map(|cell| median(cell.iter().map(pick).collect())).collect()
    };
    // One kick and one call for all that is outstanding; queues that share a wake-up have no floor.
    let floor = wanted.iter().map(|index| match cases[*index] {
        Case { queues: 1, depth, .. } => floor_us / f64::from(depth),
        Case { .. } => f64::NAN,
    });
    let floor: Vec<f64> = floor.collect();
    let rows = |pick| -> Vec<(String, Vec<f64>)> {
        servers.iter().map(|server| (server.name.to_owned(), cells(server, pick))).collect()
    };
    let where_to = match placement {
        Placement::Anywhere => "where the kernel puts client and server",
        Placement::OneProcessor => "client and server on one processor",
    };
    let mut costs = rows(|cell| cell.0);
    costs.push(("the floor".to_owned(), floor.clone()));
    let over = |ours: &[f64], theirs: &[f64]| -> Vec<f64> {
        ours.iter().zip(theirs).map(|(ours, theirs)| theirs / ours).collect()
    };
    let cost = |server: &Server| cells(server, |cell| cell.0);
    let mut ratios = Vec::new();
    for ours in servers {
        let peer = servers.iter().find(|theirs| ours.peer == Some(theirs.name));
        let Some(theirs) = peer else { continue };
        let ratio = over(&cost(ours), &cost(theirs));
        ratios.push((format!("{} : {}", theirs.name, ours.name), ratio));
    }
    if let Some(theirs) = servers.iter().find(|server| server.name == NULL_PEER) {
        ratios.push((format!("{NULL_PEER} : the floor"), over(&floor, &cost(theirs))));
    }
    [
        table(&format!("Server CPU, microseconds for an I/O, {where_to}"), &names, &costs),
        table("Thousand I/Os a second", &names, &rows(|cell| cell.1)),
        table("I/Os for a CPU-second, udm's over the peer's", &names, &ratios),
    ]
    .concat()
}

fn table(title: &str, names: &[String], rows: &[(String, Vec<f64>)]) -> String {
    let mut text = format!("\n## {title}\n\n| | {} |\n|---|", names.join(" | "));
    text += &"--:|".repeat(names.len());
    for (name, numbers) in rows {
        let numbers: Vec<String> = numbers
            .iter()
            .map(|one| if one.is_nan() { "-".to_owned() } else { format!("{one:.2}") })
            .collect();
        text += &format!("\n| {name} | {} |", numbers.join(" | "));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::{Case, PLACEMENTS, Placement, cases};
    use super::{section, table};

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let rows = [("the floor".to_owned(), vec![0.625, f64::NAN])];
        let text = table("Costs", &["read 1x32".to_owned(), "read 4x1".to_owned()], &rows);
        assert!(text.contains("## Costs"), "{text}");
        assert!(text.contains("| the floor | 0.62 | - |"), "{text}");
    }

    #[test]
    fn each_placement_has_its_own_columns_and_floor() {
        let [anywhere, one] = PLACEMENTS.map(|place| section(place, &cases(), &[], 20.0));
        assert!(anywhere.contains("write 4x128"), "{anywhere}");
        assert!(anywhere.contains("| the floor | 20.00 | 0.62 | 0.16 | - |"), "{anywhere}");
        assert!(!one.contains("4x"), "{one}");
        let is_there = |case: &Case| case.placement == Placement::OneProcessor;
        assert_eq!(cases().iter().filter(|case| is_there(case)).count(), 6);
    }
}
