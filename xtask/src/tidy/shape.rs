//! Checks on the shape of Rust files: module header, function length, file names.
//!
//! Every file opens with a header that says what the file is and where it sits; outside tests it
//! has at least three lines of prose that say more than the file's name does. Functions fit on a
//! screen. Names that mean nothing ("everything that did not fit elsewhere") are refused.
//!
//! A function's length counts from the line with `fn` to the one with the closing brace;
//! attributes and comments above it are free. Bodies of `macro_rules!` are not looked into.

use super::tree::Tree;
use super::{Finding, Sources};
use std::collections::BTreeSet;

/// Lines a function may have: one screen.
const FUNCTION_LEN_LINES_MAX: usize = 70;
/// Lines of prose in the header of a file in `src` that is not a test.
const HEADER_LEN_LINES_MIN: usize = 3;
/// Different words in a header, not counting those of the file's name: less is no explanation.
const HEADER_WORDS_MIN: usize = 12;
/// Names that say nothing about what is inside, also in the plural.
const EMPTY_NAMES: [&str; 6] = ["manager", "helper", "util", "utility", "context", "misc"];

/// Checks every Rust file.
pub(crate) fn check(tree: &Tree, sources: &Sources, found: &mut Vec<Finding>) {
    for (path, text) in tree.rust_files() {
        header(path, text, sources.is_test(path, 1), found);
        file_name(path, found);
    }
    for (path, file) in sources.all() {
        for function in &file.functions {
            if function.len_lines > FUNCTION_LEN_LINES_MAX {
                let what = format!(
                    "function {} has {} lines, the limit is {FUNCTION_LEN_LINES_MAX}",
                    function.name, function.len_lines
                );
                let remedy = "keep the branches, move straight-line work into functions of its own";
                found.push(
                    Finding::new("function-length", path, function.line, what).remedy(remedy),
                );
            }
        }
    }
}

fn header(path: &str, text: &str, is_test: bool, found: &mut Vec<Finding>) {
    let remedy = "say what the file is, who calls it, what it must never do, and the tricky case";
    let first = text.lines().next().unwrap_or("");
    if !first.starts_with("//! ") {
        let what = "the first line is no module header (//! ...)";
        found.push(Finding::new("header", path, 1, what).remedy(remedy));
        return;
    }
    if is_test || !path.contains("/src/") {
        return;
    }
    let prose: Vec<&str> = text
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let of_the_name: BTreeSet<String> = words(path).collect();
    let distinct: BTreeSet<String> =
        prose.iter().flat_map(|line| words(line)).filter(|w| !of_the_name.contains(w)).collect();
    if prose.len() < HEADER_LEN_LINES_MIN || distinct.len() < HEADER_WORDS_MIN {
        let what = format!(
            "the module header has {} lines and {} words of its own, at least \
             {HEADER_LEN_LINES_MIN} and {HEADER_WORDS_MIN} are needed",
            prose.len(),
            distinct.len()
        );
        found.push(Finding::new("header", path, 1, what).remedy(remedy));
    }
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase)
}

fn file_name(path: &str, found: &mut Vec<Finding>) {
    for part in path.trim_end_matches(".rs").split('/') {
        let empty = part.split(['_', '-']).find(|word| {
            EMPTY_NAMES.contains(word)
                || word.strip_suffix('s').is_some_and(|one| EMPTY_NAMES.contains(&one))
        });
        if let Some(word) = empty {
            let what = format!("\"{word}\" in a name says nothing about what is inside");
            let remedy = "name it after the thing it holds or the question it answers";
            found.push(Finding::new("file-name", path, 1, what).remedy(remedy));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::tidy::Sources;
    use crate::tidy::tree::Tree;

    const HEADER: &str = "//! Says what this file is for, in a sentence of several words.\n\
        //! Then says who calls it and what it calls, so that a reader finds the way.\n\
        //! Then names the one case which is hard.\n";

    fn rules(path: &str, text: &str) -> Vec<(&'static str, usize)> {
        let tree = Tree::of(&[(path, text)]);
        let mut found = Vec::new();
        let sources = Sources::parse(&tree, &mut found);
        check(&tree, &sources, &mut found);
        found.iter().map(|finding| (finding.rule, finding.line)).collect()
    }

    #[test]
    fn a_missing_or_empty_header_is_caught() {
        assert_eq!(rules("crates/x/src/gate.rs", HEADER), []);
        assert_eq!(rules("crates/x/src/gate.rs", "fn a() {}\n"), [("header", 1)]);
        assert_eq!(rules("crates/x/src/gate.rs", &format!("\n{HEADER}")), [("header", 1)]);
        assert_eq!(rules("crates/x/src/gate.rs", "//! The gate.\n"), [("header", 1)]);
        let hollow = "//! Gate.\n//! The gate.\n//! Gate gate.\n";
        assert_eq!(rules("crates/x/src/gate.rs", hollow), [("header", 1)]);
        assert_eq!(rules("crates/x/tests/gate.rs", "//! The gate, end to end.\n"), []);
        assert_eq!(rules("crates/x/tests/gate.rs", "fn a() {}\n"), [("header", 1)]);
    }

    #[test]
    fn a_long_function_is_caught_wherever_it_hides() {
        let body = "    a();\n".repeat(68);
        let fits = format!("{HEADER}fn a() {{\n{body}}}\n");
        assert_eq!(rules("crates/x/src/a.rs", &fits), []);
        let long = format!("{HEADER}fn a() {{\n{body}    a();\n}}\n");
        assert_eq!(rules("crates/x/src/a.rs", &long), [("function-length", 4)]);
        let method = format!("{HEADER}impl A {{\nfn a() {{\n{body}    a();\n}}\n}}\n");
        assert_eq!(rules("crates/x/src/a.rs", &method), [("function-length", 5)]);
        let default = format!("{HEADER}trait A {{\nfn a() {{\n{body}    a();\n}}\n}}\n");
        assert_eq!(rules("crates/x/src/a.rs", &default), [("function-length", 5)]);
        let nested = format!("{HEADER}mod b {{ fn a() {{\n{body}    a();\n}}\n}}\n");
        assert_eq!(rules("crates/x/src/a.rs", &nested), [("function-length", 4)]);
    }

    #[test]
    fn empty_names_are_caught() {
        assert_eq!(rules("crates/x/src/io_helpers.rs", HEADER), [("file-name", 1)]);
        assert_eq!(rules("crates/x/src/utils/a.rs", HEADER), [("file-name", 1)]);
        assert_eq!(rules("crates/x/src/contextual.rs", HEADER), []);
    }
}
