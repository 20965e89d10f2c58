//! `cargo xtask tidy`: the rules of this repository that a program can check.
//!
//! Called by `main` and, as a test, by `cargo test` (`tests.rs`), so nobody can forget it. Each
//! check is a function from the tree (and the dependency graph) to findings; it reads no file and
//! prints nothing, and a unit test beside it shows that it catches its case.
//!
//! | check | file |
//! |---|---|
//! | white space, line and file length, foreign characters, leftovers, machine paths | `text.rs` |
//! | module headers, function length, file names | `shape.rs` |
//! | banned calls and types | `calls.rs` |
//! | `no_std`, unsafe code, workspace lints | `crate_rules.rs` |
//! | which crate may use which | `layers.rs` |
//! | licences, banned packages | `licences.rs` |
//! | target pages and enrolment, no target uses another | `targets.rs` |
//! | links between documents | `links.rs` |
//! | error codes | `codes.rs` |
//!
//! An exception is a line in `xtask/tidy-allow.txt` with its reason (`allow.rs`). An exception
//! that excuses nothing is itself a finding, so the list cannot rot.

mod allow;
mod calls;
mod codes;
mod crate_rules;
mod graph;
mod layers;
mod licences;
mod links;
mod rust_file;
mod shape;
mod targets;
#[cfg(test)]
mod tests;
mod text;
mod tree;

use crate::steps::Failed;
use graph::Graph;
use rust_file::RustFile;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use tree::Tree;

/// Something that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    rule: &'static str,
    /// What is wrong.
    what: String,
    /// What to do about it.
    remedy: String,
}

impl Finding {
    fn new(rule: &'static str, path: &str, line: usize, what: impl Into<String>) -> Finding {
        let what = what.into();
        Finding { path: path.to_owned(), line, rule, what, remedy: String::new() }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Finding {
        self.remedy = remedy.into();
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.path, self.line, self.rule, self.what)?;
        if !self.remedy.is_empty() {
            write!(f, "\n    {}", self.remedy)?;
        }
        Ok(())
    }
}

/// The parsed Rust files by path, and which of them are tests as a whole.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    files: BTreeMap<String, RustFile>,
    test_files: BTreeSet<String>,
}

impl Sources {
    /// Parses every Rust file of the tree; what does not parse is a finding.
    fn parse(tree: &Tree, findings: &mut Vec<Finding>) -> Sources {
        let mut sources = Sources::default();
        for (path, text) in tree.rust_files() {
            match RustFile::parse(text) {
                Ok(file) => {
                    sources.files.insert(path.to_owned(), file);
                }
                Err((line, why)) => findings.push(Finding::new("parse", path, line, why)),
            }
        }
        for (path, file) in &sources.files {
            if rust_file::is_test_path(path) {
                sources.test_files.insert(path.clone());
            }
            for module in &file.test_modules {
                let folder = module_folder(path);
                sources.test_files.insert(format!("{folder}/{module}.rs"));
                sources.test_files.insert(format!("{folder}/{module}/mod.rs"));
            }
        }
        sources
    }

    /// Every file below this folder.
    fn below<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = (&'a str, &'a RustFile)> {
        self.files
            .iter()
            .filter(move |(path, _)| {
                path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
            })
            .map(|(path, file)| (path.as_str(), file))
    }

    /// Every file.
    fn all(&self) -> impl Iterator<Item = (&str, &RustFile)> {
        self.files.iter().map(|(path, file)| (path.as_str(), file))
    }

    /// Whether this line is test code.
    fn is_test(&self, path: &str, line: usize) -> bool {
        self.test_files.contains(path)
            || self.files.get(path).is_some_and(|file| file.is_test_line(line))
    }
}

/// The folder in which the modules declared by this file lie.
fn module_folder(path: &str) -> String {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "mod.rs" | "lib.rs" | "main.rs" => folder.to_owned(),
        name => format!("{folder}/{}", name.trim_end_matches(".rs")),
    }
}

/// Runs every check on the repository at `root`; findings in path and line order.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>, Failed> {
    let tree = Tree::read(root)
        .map_err(|error| Failed::new(format!("cannot read {}: {error}", root.display())))?;
    let graph = Graph::read(root)?;
    let mut findings = check_tree(&tree, &graph);
    findings.sort();
    Ok(findings)
}

/// Every check, on a tree and a graph already read.
fn check_tree(tree: &Tree, graph: &Graph) -> Vec<Finding> {
    let mut found = Vec::new();
    let sources = Sources::parse(tree, &mut found);
    text::check(tree, &sources, &mut found);
    shape::check(tree, &sources, &mut found);
    calls::check(&sources, &mut found);
    crate_rules::check(tree, &sources, &mut found);
    layers::check(graph, &mut found);
    licences::check(graph, &mut found);
    targets::check(tree, &sources, &mut found);
    links::check(tree, &mut found);
    codes::check(tree, &sources, &mut found);
    allow::apply(tree, found)
}

/// The command: prints findings, fails if there are any.
pub(crate) fn run(root: &Path) -> Result<(), Failed> {
    let findings = check(root)?;
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => {
            println!("tidy: nothing to report");
            Ok(())
        }
        1 => Err(Failed::new("tidy: 1 finding")),
        count => Err(Failed::new(format!("tidy: {count} findings"))),
    }
}
