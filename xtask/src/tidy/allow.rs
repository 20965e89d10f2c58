//! Exceptions to tidy's rules, each with its reason: `xtask/tidy-allow.txt`.
//!
//! A line is `RULE PATH -- REASON` and excuses every finding of that rule in that file. There are
//! no patterns and no line numbers: a file is excused by name or not at all.
//!
//! An exception that excuses nothing (the code was mended, the file moved) is a finding, and so is
//! one without a reason. That keeps the list as short as the truth.

use super::Finding;
use super::tree::Tree;

/// Where the exceptions are listed.
pub(crate) const LIST: &str = "xtask/tidy-allow.txt";

struct Exception<'a> {
    rule: &'a str,
    path: &'a str,
    line: usize,
    used: bool,
}

/// Removes excused findings; adds findings about the list itself.
pub(crate) fn apply(tree: &Tree, found: Vec<Finding>) -> Vec<Finding> {
    let mut kept = Vec::new();
    let mut exceptions = Vec::new();
    for (index, text) in tree.text(LIST).unwrap_or("").lines().enumerate() {
        let line = index + 1;
        if text.trim().is_empty() || text.starts_with('#') {
            continue;
        }
        match parse(text) {
            Some((rule, path)) => exceptions.push(Exception { rule, path, line, used: false }),
            None => kept.push(
                Finding::new("allow", LIST, line, "not of the form RULE PATH -- REASON")
                    .remedy("every exception names one rule, one file and why it must be"),
            ),
        }
    }
    for finding in found {
        let excuse =
            exceptions.iter_mut().find(|e| e.rule == finding.rule && e.path == finding.path);
        match excuse {
            Some(exception) => exception.used = true,
            None => kept.push(finding),
        }
    }
    for unused in exceptions.iter().filter(|exception| !exception.used) {
        let what = format!("nothing in {} breaks [{}] any more", unused.path, unused.rule);
        kept.push(Finding::new("allow", LIST, unused.line, what).remedy("delete the line"));
    }
    kept
}

fn parse(text: &str) -> Option<(&str, &str)> {
    let (left, reason) = text.split_once(" -- ")?;
    let (rule, path) = left.trim().split_once(' ')?;
    (!reason.trim().is_empty()).then_some((rule, path.trim()))
}

#[cfg(test)]
mod tests {
    use super::{LIST, apply};
    use crate::tidy::Finding;
    use crate::tidy::tree::Tree;

    fn finding() -> Finding {
        Finding::new("calls", "a.rs", 3, "bad")
    }

    #[test]
    fn an_exception_excuses_its_rule_in_its_file_only() {
        let tree = Tree::of(&[(LIST, "# a note\n\ncalls a.rs -- it has to\n")]);
        assert_eq!(apply(&tree, vec![finding()]), vec![]);
        let other = Finding::new("calls", "b.rs", 3, "bad");
        assert_eq!(apply(&tree, vec![finding(), other.clone()]), vec![other]);
    }

    #[test]
    fn unused_and_unreasoned_exceptions_are_findings() {
        let unused = Tree::of(&[(LIST, "calls a.rs -- it has to\n")]);
        assert_eq!(apply(&unused, vec![]).len(), 1);
        let bare = Tree::of(&[(LIST, "calls a.rs\ncalls a.rs -- \n")]);
        assert_eq!(apply(&bare, vec![finding()]).len(), 3);
    }
}
