//! What every target owes: a page, a line in the conformance battery, independence.
//!
//! The feature list is `ls crates/udm-targets/src`: a folder there is a target. Its page is
//! `docs/targets/NAME.md` with the same headings for all, so that a reader who knows one page knows
//! where to look in the next. It is enrolled when a file in `crates/udm-targets/tests` that runs
//! the conformance battery names it.
//!
//! A target may not use another target; what two share belongs into a crate above. A folder can
//! be excused from the first two with the rule `target-page` or `target-enrolled` on its `mod.rs`.

use super::tree::Tree;
use super::{Finding, Sources};

const FOLDER: &str = "crates/udm-targets/src";
const TESTS: &str = "crates/udm-targets/tests";

/// Headings of a target's page, in this order.
const HEADINGS: [&str; 8] = [
    "## Table line",
    "## Status",
    "## Messages",
    "## Examples",
    "## Flush, FUA and discard",
    "## Suspend",
    "## Failure modes",
    "## Differences from the kernel",
];

/// Checks every target folder.
pub(crate) fn check(tree: &Tree, sources: &Sources, found: &mut Vec<Finding>) {
    let names = tree.folders_in(FOLDER);
    for name in &names {
        page(tree, name, found);
        enrolled(tree, sources, name, found);
        independent(sources, name, &names, found);
    }
}

fn page(tree: &Tree, name: &str, found: &mut Vec<Finding>) {
    let path = format!("docs/targets/{name}.md");
    let Some(text) = tree.text(&path) else {
        let source = format!("{FOLDER}/{name}/mod.rs");
        let what = format!("target {name} has no page");
        let remedy = format!("write {path} with the headings of its neighbours");
        found.push(Finding::new("target-page", &source, 1, what).remedy(remedy));
        return;
    };
    let mut from = 0;
    for heading in HEADINGS {
        let place = text.lines().enumerate().position(|(at, line)| at >= from && line == heading);
        match place {
            Some(at) => from = at + 1,
            None => {
                let what = format!("the heading \"{heading}\" is missing or out of order");
                let remedy = format!("the headings are: {}", HEADINGS.join(", "));
                found.push(Finding::new("target-page", &path, from + 1, what).remedy(remedy));
            }
        }
    }
}

/// A test file runs the battery for a target if it has an identifier with "conformance" in it
/// and the target's name, as an identifier or in a string.
fn enrolled(tree: &Tree, sources: &Sources, name: &str, found: &mut Vec<Finding>) {
    if !tree.has_folder(TESTS) && tree.folders_in(FOLDER).is_empty() {
        return;
    }
    let quoted = format!("\"{name}\"");
    let is_enrolled = sources.below(TESTS).any(|(_, file)| {
        let runs_battery =
            file.tokens.iter().any(|t| !t.is_literal && t.text.contains("conformance"));
        runs_battery && file.tokens.iter().any(|t| t.text == *name || t.text == quoted)
    });
    if !is_enrolled {
        let source = format!("{FOLDER}/{name}/mod.rs");
        let what = format!("target {name} is not in the conformance battery");
        let remedy = format!("add its line to the conformance test in {TESTS}");
        found.push(Finding::new("target-enrolled", &source, 1, what).remedy(remedy));
    }
}

fn independent(sources: &Sources, name: &str, names: &[String], found: &mut Vec<Finding>) {
    let folder = format!("{FOLDER}/{name}");
    for (path, file) in sources.below(&folder) {
        for other in names.iter().filter(|other| *other != name) {
            for root in ["crate", "super"] {
                for line in file.find(&[root, ":", ":", other]) {
                    let what = format!("target {name} uses target {other}");
                    let remedy = "move what they share to udm-core or udm-meta";
                    found.push(Finding::new("target-alone", path, line, what).remedy(remedy));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADINGS, check};
    use crate::tidy::Sources;
    use crate::tidy::tree::Tree;

    fn rules(files: &[(&str, &str)]) -> Vec<(&'static str, usize)> {
        let tree = Tree::of(files);
        let mut found = Vec::new();
        let sources = Sources::parse(&tree, &mut found);
        check(&tree, &sources, &mut found);
        found.iter().map(|finding| (finding.rule, finding.line)).collect()
    }

    const SOURCE: (&str, &str) = ("crates/udm-targets/src/zero/mod.rs", "fn a() {}\n");
    const BATTERY: (&str, &str) =
        ("crates/udm-targets/tests/battery.rs", "conformance! { zero: \"zero\" }\n");

    #[test]
    fn a_missing_page_or_heading_is_caught() {
        let page = HEADINGS.join("\n\ntext\n\n");
        assert_eq!(rules(&[SOURCE, BATTERY, ("docs/targets/zero.md", &page)]), []);
        assert_eq!(rules(&[SOURCE, BATTERY]), [("target-page", 1)]);
        let short = page.replace("## Suspend\n", "");
        let found = rules(&[SOURCE, BATTERY, ("docs/targets/zero.md", &short)]);
        assert_eq!(found, [("target-page", 18)]);
    }

    #[test]
    fn a_target_outside_the_battery_is_caught() {
        let page = HEADINGS.join("\n");
        let page = ("docs/targets/zero.md", page.as_str());
        assert_eq!(rules(&[SOURCE, page]), [("target-enrolled", 1)]);
        let other = ("crates/udm-targets/tests/battery.rs", "conformance! { linear }\n");
        assert_eq!(rules(&[SOURCE, page, other]), [("target-enrolled", 1)]);
        let talk = ("crates/udm-targets/tests/other.rs", "fn zero() { a(\"conformance\") }\n");
        assert_eq!(rules(&[SOURCE, page, talk]), [("target-enrolled", 1)]);
    }

    #[test]
    fn a_target_that_uses_another_is_caught() {
        let page = HEADINGS.join("\n");
        let files = [
            ("crates/udm-targets/src/zero/mod.rs", "use crate::error::Error;\n"),
            ("crates/udm-targets/src/error/mod.rs", "use crate::error::Error;\n"),
            ("crates/udm-targets/tests/battery.rs", "conformance! { zero, error }\n"),
            ("docs/targets/zero.md", page.as_str()),
            ("docs/targets/error.md", page.as_str()),
        ];
        assert_eq!(rules(&files), [("target-alone", 1)]);
    }
}
