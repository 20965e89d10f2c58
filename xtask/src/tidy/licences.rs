//! Licences and banned packages, from the dependency graph. `deny.toml` says the same for those
//! who have cargo-deny; this check needs no tool and runs in every `cargo test`.
//!
//! The product is Apache-2.0 OR MIT, so everything in it must be at least as free. A licence text
//! is an SPDX expression (or the old form with `/` for OR): it passes if one choice of its ORs
//! uses allowed licences only.
//!
//! An async runtime belongs to the control thread alone: the data path has its own executor, and
//! a runtime that sneaks in below it would bring a clock, threads and an I/O path the simulator
//! does not see.

use super::Finding;
use super::graph::Graph;

/// What may be in the product.
const ALLOWED: [&str; 16] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "WTFPL",
    "0BSD",
    "Unlicense",
];

/// Async runtimes, and the crates that may have one below them.
const RUNTIMES: [&str; 4] = ["tokio", "async-std", "smol", "async-executor"];
const MAY_HAVE_RUNTIME: [&str; 3] = ["udm-control", "udm", "udm-preload"];

/// Checks every package of the graph.
pub(crate) fn check(graph: &Graph, found: &mut Vec<Finding>) {
    for package in &graph.foreign {
        if !is_allowed(&package.licence) {
            let what = format!("package {} is under \"{}\"", package.name, package.licence);
            let remedy = "use another package; the allowed licences are in xtask's licences.rs";
            found.push(Finding::new("licence", "Cargo.lock", 1, what).remedy(remedy));
        }
    }
    for member in &graph.members {
        if MAY_HAVE_RUNTIME.contains(&member.name.as_str()) {
            continue;
        }
        for runtime in RUNTIMES.iter().filter(|runtime| member.reached.contains(**runtime)) {
            let what = format!("{} brings the async runtime {runtime} with it", member.name);
            let remedy = "only the control thread has a runtime; use the lane's executor";
            found.push(Finding::new("runtime", &member.manifest, 1, what).remedy(remedy));
        }
    }
}

/// Whether one choice of the expression's ORs is allowed in all its ANDs.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let allowed = any_of(&words, &mut at);
    allowed && at == words.len()
}

fn any_of(words: &[&str], at: &mut usize) -> bool {
    let mut allowed = all_of(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        allowed |= all_of(words, at);
    }
    allowed
}

fn all_of(words: &[&str], at: &mut usize) -> bool {
    let mut allowed = one(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        allowed &= one(words, at);
    }
    allowed
}

fn one(words: &[&str], at: &mut usize) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let allowed = any_of(words, at);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return allowed && closed;
    }
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).unwrap_or(&"");
        *at += 2;
        return ALLOWED.contains(&format!("{word} WITH {exception}").as_str());
    }
    ALLOWED.contains(word)
}

#[cfg(test)]
mod tests {
    use super::{check, is_allowed};
    use crate::tidy::graph::{Foreign, Graph, Member};

    #[test]
    fn expressions_are_read() {
        assert!(is_allowed("MIT OR Apache-2.0"));
        assert!(is_allowed("MIT/Apache-2.0"));
        assert!(is_allowed("(MIT OR GPL-2.0) AND Unicode-3.0"));
        assert!(is_allowed("Apache-2.0 WITH LLVM-exception OR MIT"));
        assert!(is_allowed("GPL-3.0 OR MIT"));
        for bad in ["", "GPL-3.0-only", "MPL-2.0", "AGPL-3.0", "MIT AND GPL-2.0", "(MIT", "MIT MIT"]
        {
            assert!(!is_allowed(bad), "{bad}");
        }
    }

    #[test]
    fn a_foreign_licence_is_caught() {
        let foreign = vec![Foreign { name: "x".to_owned(), licence: "MPL-2.0".to_owned() }];
        let mut found = Vec::new();
        check(&Graph { members: vec![], foreign }, &mut found);
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_runtime_below_the_data_path_is_caught() {
        let with = |name: &str| Member {
            name: name.to_owned(),
            reached: ["tokio".to_owned()].into(),
            ..Member::default()
        };
        let members = vec![with("udm-front"), with("udm-control"), with("udm")];
        let mut found = Vec::new();
        check(&Graph { members, foreign: vec![] }, &mut found);
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("udm-front"));
    }
}
