//! The repository itself is tidy: `cargo xtask tidy` as a test, so that `cargo test` includes it.
//! Each check's own cases are beside the check.

use super::check;
use crate::steps::root;

#[test]
fn the_repository_is_tidy() {
    let findings = check(&root()).expect("tidy runs");
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "cargo xtask tidy reports:\n{}", lines.join("\n"));
}
