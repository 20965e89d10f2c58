//! The rows of `udm paths`: the target's numbers and what the watcher knows, put together.
//!
//! The numbers come from the target's own report (`message DEV 0 paths`, see
//! docs/targets/multipath.md), which sums its lanes. It is read by key, so a newer target may say
//! more. A device that is not watched has its numbers all the same.

use super::policy::{IO_FAILED, PathState};
use super::watch::{PathNote, PathNotes, PathWatch};
use crate::runtime::Runtime;
use std::collections::BTreeMap;
use udm_control::api::PathStatus;
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::{DeviceKey, DeviceStatus, Reply, Request, StatusKind};
use udm_core::table::split_words;
use udm_driver::monotonic_ns;
use udm_types::Nanos;

/// A path's numbers, as the target reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PathNumbers {
    /// As the table names it.
    pub(crate) path: String,
    pub(crate) group: u32,
    pub(crate) is_active: bool,
    pub(crate) fail_count: u64,
    pub(crate) ios: u64,
    pub(crate) errors: u64,
    pub(crate) in_flight: u64,
    pub(crate) last_error: Option<String>,
    /// I/Os by latency: below 2^10 ns, then doubling.
    pub(crate) buckets: Vec<u64>,
}

/// A whole report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Of each group by its number: `current`, `enabled` or `disabled`.
    pub(crate) group_states: BTreeMap<u32, &'static str>,
    pub(crate) paths: Vec<PathNumbers>,
}

/// The upper end of the first bucket is 2 to this power, in nanoseconds.
const FIRST_BUCKET_LOG2: u32 = 10;

impl Report {
    /// Reads a report. What is not understood is left out.
    pub(crate) fn read(text: &str) -> Report {
        let mut report = Report::default();
        for line in text.lines() {
            let words = split_words(line);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["group", number, rest @ ..] => {
                    let state = match value(rest, "state") {
                        Some("A") => "current",
                        Some("D") => "disabled",
                        _ => "enabled",
                    };
                    if let Ok(number) = number.parse() {
                        report.group_states.insert(number, state);
                    }
                }
                ["path", _, rest @ ..] => report.paths.push(path(rest)),
                _ => {}
            }
        }
        report
    }
}

fn path(words: &[&str]) -> PathNumbers {
    let number = |key: &str| value(words, key).and_then(|word| word.parse().ok()).unwrap_or(0);
    let buckets = words.iter().position(|word| *word == "buckets");
    let buckets = buckets.map_or(&[][..], |at| &words[at + 1..]);
    PathNumbers {
        path: value(words, "device").unwrap_or_default().to_owned(),
        group: u32::try_from(number("group")).unwrap_or(0),
        is_active: value(words, "state") == Some("A"),
        fail_count: number("fail_count"),
        ios: number("ios"),
        errors: number("errors"),
        in_flight: number("in_flight"),
        last_error: value(words, "last_error").filter(|word| *word != "-").map(str::to_owned),
        buckets: buckets.iter().map_while(|word| word.parse().ok()).collect(),
    }
}

fn value<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.chunks_exact(2).find(|pair| pair[0] == key).map(|pair| pair[1])
}

/// So many microseconds, rounded up, at most, for this part of the I/Os: the upper end of the
/// bucket they end in.
pub(crate) fn quantile_us(buckets: &[u64], percent: u64) -> Option<u64> {
    let total: u64 = buckets.iter().sum();
    if total == 0 {
        return None;
    }
    let mut left = (total * percent).div_ceil(100).max(1);
    for (index, count) in buckets.iter().enumerate() {
        if left <= *count {
            let log2 = FIRST_BUCKET_LOG2 + u32::try_from(index).unwrap_or(u32::MAX);
            let end_ns = 1_u64.checked_shl(log2.min(63)).unwrap_or(u64::MAX);
            return Some(end_ns.div_ceil(1_000));
        }
        left -= count;
    }
    None
}

/// The paths of one device, or of all that have any.
///
/// # Errors
/// The device is not there, or is no multipath device.
pub(crate) fn paths(
    runtime: &Runtime,
    watch: &PathWatch,
    device: Option<&DeviceKey>,
) -> Result<Vec<PathStatus>, UserError> {
    let Some(key) = device else {
        let mut rows = Vec::new();
        for device in devices(runtime)? {
            match of_device(runtime, watch, &device) {
                Ok(Some(paths)) => rows.extend(paths),
                // Removed since the list was made.
                Err(error) if error.code() == ErrorCode::NoSuchDevice => {}
                Ok(None) => {}
                Err(error) => return Err(error),
            }
        }
        return Ok(rows);
    };
    let device =
        crate::runtime::status_of(runtime.request(Request::Status { device: key.clone() })?)?;
    of_device(runtime, watch, &device)?.ok_or_else(|| {
        let text = format!("'{}' is no multipath device", device.name);
        UserError::new(ErrorCode::BadParameter, text).hint("its live table has no multipath target")
    })
}

/// All devices.
pub(crate) fn devices(runtime: &Runtime) -> Result<Vec<DeviceStatus>, UserError> {
    match runtime.request(Request::List)? {
        Reply::List(devices) => Ok(devices),
        other => Err(UserError::new(ErrorCode::Internal, format!("no list: {other:?}"))),
    }
}

fn of_device(
    runtime: &Runtime,
    watch: &PathWatch,
    device: &DeviceStatus,
) -> Result<Option<Vec<PathStatus>>, UserError> {
    let (_, line) = super::watch::multipath_args(runtime, device.id, StatusKind::Table)?;
    if line.is_none() {
        return Ok(None);
    }
    let key = DeviceKey::Id(device.id);
    let request = Request::Message { device: key, sector: 0, words: vec!["paths".into()] };
    let report = match runtime.request(request)? {
        Reply::Text(Some(text)) => Report::read(&text),
        other => {
            return Err(UserError::new(ErrorCode::Internal, format!("no report: {other:?}")));
        }
    };
    let is_checked = watch.policies().contains_key(&device.id);
    let notes = if is_checked { watch.notes(device.id) } else { PathNotes::new() };
    let now = Nanos(monotonic_ns());
    let row = |numbers: &PathNumbers| {
        let mut row = row(numbers, &report, notes.get(&numbers.path), now);
        device.name.as_str().clone_into(&mut row.device);
        row.is_checked = is_checked;
        row
    };
    Ok(Some(report.paths.iter().map(row).collect()))
}

fn row(numbers: &PathNumbers, report: &Report, note: Option<&PathNote>, now: Nanos) -> PathStatus {
    // The report is newer than the note: what the target says of active and failed counts.
    let state = match (numbers.is_active, note.map(|note| note.state)) {
        (_, Some(PathState::Marginal)) => PathState::Marginal,
        (true, _) => PathState::Active,
        (false, Some(PathState::Checking)) => PathState::Checking,
        (false, Some(PathState::Active | PathState::Failed) | None) => PathState::Failed,
    };
    let last_check = note.and_then(|note| note.last_check.as_ref());
    let group_state = report.group_states.get(&numbers.group).copied().unwrap_or("enabled");
    PathStatus {
        group: numbers.group,
        group_state: group_state.to_owned(),
        path: numbers.path.clone(),
        state: state.word().to_owned(),
        fail_count: numbers.fail_count,
        ios: numbers.ios,
        errors: numbers.errors,
        in_flight: numbers.in_flight,
        latency_p50_us: quantile_us(&numbers.buckets, 50),
        latency_p99_us: quantile_us(&numbers.buckets, 99),
        last_error: last_error(numbers, note),
        last_check_ms: last_check.map(|check| now.since(check.at).as_millis()),
        last_check_good: last_check.map(|check| check.is_good),
        next_check_ms: note.map(|note| note.next_check.since(now).as_millis()),
        ..PathStatus::default()
    }
}

/// A check's words, or what the target says of the I/O that failed.
fn last_error(numbers: &PathNumbers, note: Option<&PathNote>) -> Option<String> {
    let noted = note.and_then(|note| note.last_error.as_deref());
    match (noted, &numbers.last_error) {
        (None | Some(IO_FAILED), Some(word)) => Some(format!("{IO_FAILED}: {word}")),
        (noted, _) => noted.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::{Report, quantile_us};

    const TEXT: &str = "multipath mode rq queueing 1 timeout_secs 0 expired 0 held 3 valid 1\n\
        group 1 selector service-time bypassed 0 state A paths 2 colour red\n\
        path 1 group 1 device 8:16 state A fail_count 0 ios 100 errors 0 in_flight 4 \
        last_error - last_error_at 0 last_chosen_at 5 buckets 0 50 40 10 0\n\
        lane 1 0 ios 100 errors 0 in_flight 4\n\
        path 2 group 1 device a\\ b state F fail_count 2 ios 7 errors 2 in_flight 0 \
        last_error transport last_error_at 9 last_chosen_at 5 buckets 0 0";

    #[test]
    fn a_report_is_read_by_key() {
        let report = Report::read(TEXT);
        assert_eq!(report.group_states.get(&1), Some(&"current"));
        let [first, second] = &report.paths[..] else { panic!("two paths: {report:?}") };
        assert_eq!((first.path.as_str(), first.ios, first.in_flight), ("8:16", 100, 4));
        assert!(first.is_active && first.last_error.is_none());
        assert_eq!(first.buckets, [0, 50, 40, 10, 0]);
        assert_eq!((second.path.as_str(), second.fail_count, second.errors), ("a b", 2, 2));
        assert_eq!(second.last_error.as_deref(), Some("transport"));
        assert_eq!(Report::read("nonsense\npath\ngroup x"), Report::default());
    }

    #[test]
    fn quantiles_are_the_ends_of_their_buckets() {
        let buckets = [0, 50, 40, 10, 0];
        assert_eq!(quantile_us(&buckets, 50), Some(3), "below 2048 ns");
        assert_eq!(quantile_us(&buckets, 51), Some(5));
        assert_eq!(quantile_us(&buckets, 99), Some(9));
        assert_eq!(quantile_us(&[0, 0], 50), None);
        assert_eq!(quantile_us(&[1], 50), Some(2));
    }
}
