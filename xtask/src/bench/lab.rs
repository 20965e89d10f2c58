//! What measurements share: a folder, how often, and running things.
//!
//! Used by `multipath/`, `compress/`, `fuse.rs` and `nbd/tls.rs`. Nothing here measures anything.
//! The tricky case is fio, which prints warnings before its JSON and reads half a second as none,
//! so it is given milliseconds.

use crate::steps::{Failed, is_installed};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What every part needs.
pub(crate) struct Bench<'a> {
    pub(crate) root: &'a Path,
    pub(crate) udm: PathBuf,
    /// For sockets and files.
    pub(crate) dir: PathBuf,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
}

/// A part: what `--only` calls it, and what measures it and tells it as Markdown.
pub(crate) type Part = (&'static str, fn(&Bench<'_>) -> Result<String, Failed>);

impl Bench<'_> {
    /// Measures the parts that are wanted, prints each, and puts them behind the introduction.
    pub(crate) fn page(
        &self,
        introduction: &str,
        parts: &[Part],
        only: &[String],
    ) -> Result<String, Failed> {
        if let Some(unknown) = only.iter().find(|only| parts.iter().all(|(name, _)| name != only)) {
            let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
            return Err(Failed::new(format!("no part {unknown}; there are {}", names.join(", "))));
        }
        let mut page = introduction.to_owned();
        for (name, part) in parts {
            if only.is_empty() || only.iter().any(|only| only == name) {
                let text = part(self)?;
                println!("{text}");
                page += &text;
            }
        }
        Ok(page)
    }

    /// Runs `udm` with these words and reads its JSON.
    pub(crate) fn json(&self, words: &[&str]) -> Result<Value, Failed> {
        let output = Command::new(&self.udm)
            .args(words)
            .stdin(Stdio::null())
            .output()
            .map_err(Failed::to("run udm"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(Failed::new(format!("udm {}: {why}", words.join(" "))));
        }
        serde_json::from_slice(&output.stdout).map_err(Failed::to("read udm's JSON"))
    }

    /// How long fio is to run: so many times as long as a measurement.
    pub(crate) fn runtime(&self, times: f64) -> String {
        format!("--runtime={:.0}ms", self.seconds * times * 1e3)
    }

    /// Whether programs are there; says what is left out if not.
    pub(crate) fn has(&self, programs: &[&str], lost: &str) -> bool {
        match programs.iter().find(|program| !is_installed(program)) {
            Some(missing) => {
                println!("{missing} is not installed; left out: {lost}");
                false
            }
            None => true,
        }
    }

    /// Makes the folder, and takes it away again after `run`.
    pub(crate) fn in_folder<T>(
        dir: &Path,
        run: impl FnOnce() -> Result<T, Failed>,
    ) -> Result<T, Failed> {
        fs::create_dir_all(dir).map_err(Failed::to("make a folder"))?;
        let outcome = run();
        // It is ours; what cannot be removed is left to the operating system's cleaner.
        let _removed = fs::remove_dir_all(dir);
        outcome
    }
}

/// The line of a page that says where it was measured.
pub(crate) fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "Machine: {cores} cores ({}), Linux {}. Load average at the end (1, 5, 15 minutes): {}.\n",
        cpu.map_or("unknown", |(_, name)| name),
        kernel.trim(),
        load.split(' ').take(3).collect::<Vec<_>>().join(" ")
    )
}

/// What fio says of a job, its reads and writes together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fio {
    pub(crate) ios: f64,
    pub(crate) iops: f64,
    /// Of the slower kind, if it does both.
    pub(crate) p99_ms: f64,
}

/// Runs fio on an export for the time of a measurement; `words` say what.
pub(crate) fn fio(bench: &Bench<'_>, uri: &str, words: &[&str]) -> Result<Fio, Failed> {
    let (uri, runtime) = (format!("--uri={uri}"), bench.runtime(1.0));
    let ours = ["--ioengine=nbd", &uri, "--bs=4k", "--size=64M", "--time_based", &runtime];
    run_fio(&bench.dir, &[&ours, words, &["--group_reporting"]].concat())
}

/// Reads or writes 4 KiB at random through a file with direct I/O. `more` are further words for
/// fio.
pub(crate) fn fio_on_file(
    bench: &Bench<'_>,
    file: &Path,
    (rw, depth): (&str, u32),
    more: &[String],
) -> Result<Fio, Failed> {
    let (file, rw) = (format!("--filename={}", file.display()), format!("--rw={rw}"));
    let (depth, runtime) = (format!("--iodepth={depth}"), bench.runtime(1.0));
    let mut words = vec!["--ioengine=libaio", "--direct=1", "--bs=4k", "--time_based"];
    words.extend(["--norandommap", "--randrepeat=0", &file, &rw, &depth, &runtime]);
    words.extend(more.iter().map(String::as_str));
    run_fio(&bench.dir, &words)
}

/// Runs fio in a folder, for whatever it leaves there; `words` say what.
pub(crate) fn run_fio(dir: &Path, words: &[&str]) -> Result<Fio, Failed> {
    let output = Command::new("fio")
        .args(["--name=m", "--output-format=json"])
        .args(words)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .map_err(Failed::to("run fio"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(Failed::new(format!("fio {}: {text}{why}", words.join(" "))));
    }
    told(&text)
}

/// Reads what fio has printed: warnings, then JSON with one job.
fn told(text: &str) -> Result<Fio, Failed> {
    let json = text.lines().position(|line| line.starts_with('{'));
    let json: Vec<&str> = text.lines().skip(json.unwrap_or(0)).collect();
    let told: Value =
        serde_json::from_str(&json.join("\n")).map_err(Failed::to("read fio's JSON"))?;
    let sides = [&told["jobs"][0]["read"], &told["jobs"][0]["write"]];
    let sum =
        |field: &str| -> f64 { sides.iter().map(|side| side[field].as_f64().unwrap_or(0.0)).sum() };
    let p99_ns = sides.map(|side| side["clat_ns"]["percentile"]["99.000000"].as_f64());
    Ok(Fio {
        ios: sum("total_ios"),
        iops: sum("iops"),
        p99_ms: p99_ns.into_iter().flatten().fold(0.0, f64::max) / 1e6,
    })
}

/// The middle one.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::{median, told};

    #[test]
    fn fio_is_heard_behind_its_warnings_with_both_kinds_together() {
        let text = "fio: {odd} is ignored\n{\"jobs\": [{\n\
                    \"read\": {\"total_ios\": 3, \"iops\": 1.5,\n\
                    \"clat_ns\": {\"percentile\": {\"99.000000\": 2000000}}},\n\
                    \"write\": {\"total_ios\": 4, \"iops\": 2.0}}]}\n";
        let fio = told(text).expect("JSON");
        assert_eq!((fio.ios, fio.iops, fio.p99_ms), (7.0, 3.5, 2.0));
        assert!(told("nothing was measured").is_err());
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
