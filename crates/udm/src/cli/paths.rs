//! The verb about paths: shows them, and has them checked or not.
//!
//! `udm paths` is a table for people, `--json` the same rows with everything in them. `--check`
//! takes the words of an `up` file's multipath section as options, so that both mean the same; the
//! daemon reads them, and what is wrong with one is reported with its name.

use super::args::PathsArgs;
use super::asker::Daemon;
use super::failure::Failure;
use super::output::Output;
use udm_control::api::{self, PathPolicy, PathStatus, Selector};

pub(crate) fn paths(
    daemon: &mut Daemon,
    args: &PathsArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    let device = args.device.as_deref().map(Selector::name);
    if args.check || args.no_check {
        let device = device.clone().ok_or_else(|| Failure::usage("No device specified.\n"))?;
        let policy = args.check.then(|| policy(args));
        daemon.ask(&api::CheckPaths { device, policy })?;
    }
    let paths = daemon.ask(&api::Paths { device })?.paths;
    output.text(&table(&paths));
    output.field("paths", &paths);
    Ok(())
}

fn policy(args: &PathsArgs) -> PathPolicy {
    PathPolicy {
        check_interval: args.check_interval.clone(),
        check_interval_max: args.check_interval_max.clone(),
        check_timeout: args.check_timeout.clone(),
        failback: args.failback.clone(),
        marginal_failures: args.marginal_failures,
        marginal_window: args.marginal_window.clone(),
        marginal_hold: args.marginal_hold.clone(),
        no_path: args.no_path.clone(),
    }
}

const HEADINGS: [&str; 13] = [
    "Device",
    "Group",
    "State",
    "I/Os",
    "Errors",
    "Queued",
    "p50",
    "p99",
    "Fails",
    "Checked",
    "Next",
    "Path",
    "Last error",
];
/// Columns of numbers, set to the right.
const NUMBERS: std::ops::Range<usize> = 3..11;

fn table(paths: &[PathStatus]) -> String {
    if paths.is_empty() {
        return "No paths found\n".to_owned();
    }
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(paths.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..HEADINGS.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            match NUMBERS.contains(&column) {
                true => line += &format!("{cell:>width$} "),
                false => line += &format!("{cell:<width$} "),
            }
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn row(path: &PathStatus) -> [String; 13] {
    let mark = match path.group_state.as_str() {
        "current" => "*",
        "disabled" => "-",
        _ => " ",
    };
    let checked = match (path.is_checked, path.last_check_ms, path.last_check_good) {
        (false, ..) => "off".to_owned(),
        (true, Some(ago_ms), Some(true)) => format!("ok {}", span(ago_ms)),
        (true, Some(ago_ms), _) => format!("bad {}", span(ago_ms)),
        (true, None, _) => "-".to_owned(),
    };
    [
        path.device.clone(),
        format!("{}{mark}", path.group),
        path.state.clone(),
        path.ios.to_string(),
        path.errors.to_string(),
        path.in_flight.to_string(),
        path.latency_p50_us.map_or_else(|| "-".into(), latency),
        path.latency_p99_us.map_or_else(|| "-".into(), latency),
        path.fail_count.to_string(),
        checked,
        path.next_check_ms.map_or_else(|| "-".into(), span),
        path.path.clone(),
        path.last_error.clone().unwrap_or_default(),
    ]
}

fn span(span_ms: u64) -> String {
    match span_ms {
        0..1_000 => format!("{span_ms}ms"),
        1_000..600_000 => format!("{}s", span_ms / 1_000),
        _ => format!("{}m", span_ms / 60_000),
    }
}

fn latency(us: u64) -> String {
    match us {
        0..10_000 => format!("{us}us"),
        10_000..10_000_000 => format!("{}ms", us / 1_000),
        _ => format!("{}s", us / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::{PathStatus, table};

    #[test]
    fn the_table_lines_up_and_marks_the_group_in_use() {
        let path = |group: u32, group_state: &str, state: &str| PathStatus {
            device: "disk".into(),
            group,
            group_state: group_state.into(),
            path: "8:16".into(),
            state: state.into(),
            ..PathStatus::default()
        };
        let first = PathStatus {
            ios: 12_345,
            latency_p50_us: Some(131),
            latency_p99_us: Some(16_778),
            is_checked: true,
            last_check_ms: Some(1_200),
            last_check_good: Some(true),
            next_check_ms: Some(300),
            ..path(1, "current", "active")
        };
        let second = PathStatus { last_error: Some("gone".into()), ..path(2, "enabled", "failed") };
        let expected = "\
Device Group State   I/Os Errors Queued   p50  p99 Fails Checked  Next Path Last error
disk   1*    active 12345      0      0 131us 16ms     0   ok 1s 300ms 8:16
disk   2     failed     0      0      0     -    -     0     off     - 8:16 gone
";
        assert_eq!(table(&[first, second]), expected);
        assert_eq!(table(&[]), "No paths found\n");
    }
}
