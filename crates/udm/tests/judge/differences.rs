//! Accepted differences: what we answer otherwise than Linux, each with its reason.
//!
//! `tests/oracle/differences.txt` has a line for each: `CASE STEP FIELD...: REASON`, steps counted
//! from 0, `*` for any step. What stands there has to differ (a `*` at least once), so that the
//! list cannot outlive its reasons.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The list.
pub(crate) struct Accepted {
    /// `CASE STEP FIELD` and the reason.
    entries: BTreeMap<String, String>,
}

impl Accepted {
    /// Reads the list.
    pub(crate) fn load(oracle: &Path) -> Result<Accepted, String> {
        let path = oracle.join("differences.txt");
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        let mut entries = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (whats, reason) = line
                .split_once(": ")
                .ok_or_else(|| format!("CASE STEP FIELD...: REASON: {line}"))?;
            let words: Vec<&str> = whats.split(' ').collect();
            let [case, step, fields @ ..] = words.as_slice() else {
                return Err(format!("CASE STEP FIELD...: {line}"));
            };
            for field in fields {
                let what = format!("{case} {step} {field}");
                if entries.insert(what, reason.to_owned()).is_some() {
                    return Err(format!("twice: {line}"));
                }
            }
        }
        Ok(Accepted { entries })
    }

    /// Whether `CASE STEP FIELD` may differ.
    pub(crate) fn covers(&self, what: &str) -> bool {
        self.entries.contains_key(what) || self.entries.contains_key(&any_step(what))
    }

    /// Entries, of these cases, that none of the differences found needs.
    pub(crate) fn unneeded(&self, cases: &[String], found: &[String]) -> Vec<String> {
        let is_used =
            |entry: &String| found.iter().any(|what| what == entry || any_step(what) == *entry);
        let is_run = |entry: &String| {
            let case = entry.split(' ').next().unwrap_or_default();
            cases.iter().any(|id| id == case)
        };
        self.entries.keys().filter(|entry| is_run(entry) && !is_used(entry)).cloned().collect()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

fn any_step(what: &str) -> String {
    let words: Vec<&str> = what.split(' ').collect();
    match words.as_slice() {
        [case, _, field] => format!("{case} * {field}"),
        _ => what.to_owned(),
    }
}
