//! Checks on the characters of a file: white space, lengths, foreign characters, leftovers.
//!
//! Lines are checked as text, but inside a literal of several lines anything goes (expected
//! output of another program has the white space it has), and a line may be too long where a
//! string or an address is what makes it so. Which lines those are comes from the tokens.
//!
//! The words these checks look for are written in two halves here, since this file is checked too.

use super::tree::Tree;
use super::{Finding, Sources};

/// Columns a line of Rust may have; `rustfmt.toml` says the same.
const LINE_LEN_MAX: usize = 100;
/// Lines a Rust file may have. 400 are wanted; past 800 nobody holds a file in mind.
const FILE_LEN_LINES_MAX: usize = 800;

const LEFTOVER: &str = concat!("FIX", "ME");
const MACHINE_PATH: &str = concat!("/wo", "rk/");
const SCRATCH_PATH: &str = concat!("/tm", "p/");

/// Checks every file of the tree.
pub(crate) fn check(tree: &Tree, sources: &Sources, found: &mut Vec<Finding>) {
    for (path, text) in tree.files() {
        let is_rust = path.ends_with(".rs");
        for (index, line) in text.lines().enumerate() {
            every_file(path, index + 1, line, found);
            if is_rust {
                rust_line(sources, path, index + 1, line, found);
            }
        }
        let count = text.lines().count();
        if is_rust && count > FILE_LEN_LINES_MAX {
            let what = format!("{count} lines, the limit is {FILE_LEN_LINES_MAX}");
            let remedy = "split the file by what its parts are about";
            found.push(Finding::new("file-length", path, count, what).remedy(remedy));
        }
        if is_rust && !text.is_empty() && !text.ends_with('\n') {
            let what = "the last line has no line end";
            found.push(Finding::new("white-space", path, count, what).remedy("add one"));
        }
    }
}

fn every_file(path: &str, line: usize, text: &str, found: &mut Vec<Finding>) {
    if text.contains(MACHINE_PATH) {
        let what = format!("names a path of somebody's machine ({MACHINE_PATH}...)");
        let remedy = "say it relative to the repository, or leave it out";
        found.push(Finding::new("machine-path", path, line, what).remedy(remedy));
    }
    if text.contains(LEFTOVER) {
        let remedy = "mend it, or file an issue and describe the limit in words";
        let what = format!("{LEFTOVER} is left over");
        found.push(Finding::new("leftover", path, line, what).remedy(remedy));
    }
}

fn rust_line(sources: &Sources, path: &str, line: usize, text: &str, found: &mut Vec<Finding>) {
    if let Some(column) = text.chars().position(|c| !c.is_ascii()) {
        let what = format!("a character outside ASCII in column {}", column + 1);
        let remedy = "write it in ASCII, or as \\u{...} in a string";
        found.push(Finding::new("ascii", path, line, what).remedy(remedy));
    }
    if text.contains(SCRATCH_PATH) && !sources.is_test(path, line) {
        let what = format!("names a path below {SCRATCH_PATH}");
        let remedy = "take the path as an argument, or ask std::env::temp_dir";
        found.push(Finding::new("machine-path", path, line, what).remedy(remedy));
    }
    let within_literal = is_within_literal(sources, path, line);
    if within_literal {
        return;
    }
    if text.contains('\t') {
        found.push(Finding::new("white-space", path, line, "a tab").remedy("use four spaces"));
    }
    if text.ends_with(char::is_whitespace) {
        let what = "white space at the end of the line";
        found.push(Finding::new("white-space", path, line, what).remedy("cargo fmt removes it"));
    }
    let len = text.chars().count();
    if len > LINE_LEN_MAX && !text.contains("://") && !is_long_by_literal(sources, path, line) {
        let what = format!("{len} columns, the limit is {LINE_LEN_MAX}");
        found.push(Finding::new("line-length", path, line, what).remedy("break the line"));
    }
}

/// Whether the line lies in a literal that spans several lines.
fn is_within_literal(sources: &Sources, path: &str, line: usize) -> bool {
    let Some(file) = sources.files.get(path) else { return false };
    file.tokens.iter().any(|token| {
        token.is_literal
            && token.line_end > token.line
            && (token.line..=token.line_end).contains(&line)
    })
}

/// Whether a literal reaches over the limit on this line.
fn is_long_by_literal(sources: &Sources, path: &str, line: usize) -> bool {
    let Some(file) = sources.files.get(path) else { return false };
    file.tokens.iter().any(|token| {
        token.is_literal
            && token.line == line
            && token.column < LINE_LEN_MAX
            && token.column_end > LINE_LEN_MAX
    })
}

#[cfg(test)]
mod tests {
    use super::{LEFTOVER, MACHINE_PATH, SCRATCH_PATH, check};
    use crate::tidy::Sources;
    use crate::tidy::tree::Tree;

    fn rules(path: &str, text: &str) -> Vec<(&'static str, usize)> {
        let tree = Tree::of(&[(path, text)]);
        let mut found = Vec::new();
        let sources = Sources::parse(&tree, &mut found);
        check(&tree, &sources, &mut found);
        found.iter().map(|finding| (finding.rule, finding.line)).collect()
    }

    #[test]
    fn white_space_is_caught() {
        assert_eq!(rules("a.rs", "fn a() {}\n\tfn b() {}\n"), [("white-space", 2)]);
        assert_eq!(rules("a.rs", "fn a() {} \n"), [("white-space", 1)]);
        assert_eq!(rules("a.rs", "fn a() {}"), [("white-space", 1)]);
        assert_eq!(rules("a.md", "a \n\tb"), []);
        assert_eq!(rules("a.rs", "const A: &str = \"x \n\ty\";\n"), []);
    }

    #[test]
    fn long_lines_are_caught_unless_a_literal_is_the_reason() {
        let long = format!("// {}\n", "x".repeat(98));
        assert_eq!(rules("a.rs", &long), [("line-length", 1)]);
        let fits = format!("// {}\n", "x".repeat(97));
        assert_eq!(rules("a.rs", &fits), []);
        let literal = format!("const A: &str = \"{}\";\n", "x".repeat(120));
        assert_eq!(rules("a.rs", &literal), []);
        let address = format!("// https://{}\n", "x".repeat(120));
        assert_eq!(rules("a.rs", &address), []);
    }

    #[test]
    fn long_files_are_caught() {
        assert_eq!(rules("a.rs", &"// x\n".repeat(800)), []);
        assert_eq!(rules("a.rs", &"// x\n".repeat(801)), [("file-length", 801)]);
    }

    #[test]
    fn foreign_characters_are_caught() {
        assert_eq!(rules("a.rs", "// caf\u{e9}\n"), [("ascii", 1)]);
        assert_eq!(rules("a.md", "caf\u{e9}\n"), []);
    }

    #[test]
    fn leftovers_and_machine_paths_are_caught() {
        assert_eq!(rules("a.md", &format!("x\n{LEFTOVER}: y\n")), [("leftover", 2)]);
        assert_eq!(rules("a.sh", &format!("cd {MACHINE_PATH}x\n")), [("machine-path", 1)]);
        assert_eq!(rules("a.rs", &format!("// {SCRATCH_PATH}x\n")), [("machine-path", 1)]);
        assert_eq!(rules("tests/a.rs", &format!("// {SCRATCH_PATH}x\n")), []);
    }
}
