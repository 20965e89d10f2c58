//! Rules for whole crates: `no_std`, where unsafe code may be, workspace lints.
//!
//! `no_std` lets the compiler keep clock, threads and hash order out of the engine. `unsafe` is
//! forbidden by attribute in every crate but five, and there the files that hold it are listed
//! here by name, each with its reason; the list is checked against the tokens, so that an
//! `allow(unsafe_code)` in a new file cannot slip in.
//!
//! A crate that does not exist yet breaks no rule.

use super::calls::crate_of;
use super::tree::Tree;
use super::{Finding, Sources};

/// Crates the compiler keeps free of std.
const NO_STD: [&str; 5] = ["udm-types", "udm-lane", "udm-core", "udm-meta", "udm-targets"];

/// Where unsafe code may be: a file, or a folder with `/` at its end, and the reason.
const UNSAFE_PLACES: [(&str, &str); 8] = [
    ("crates/udm-driver/", "hands addresses to the kernel"),
    ("crates/udm-preload/", "stands in for C functions"),
    ("crates/udm-lane/src/buffer.rs", "memory the kernel writes into"),
    ("crates/udm-lane/src/waker.rs", "the raw waker of the executor"),
    ("crates/udm-front/src/nbd/descriptor.rs", "owns the sockets"),
    ("crates/udm-front/src/nbd/tls/pipes.rs", "s2n-tls asks for its bytes by callbacks"),
    ("interop/src/main.rs", "blkio hands its answers out as memory to be taken for filled"),
    ("crates/udm-testkit/src/counting.rs", "a global allocator that counts"),
];

/// Crates whose root says `deny` instead of `forbid`, so that the listed files can allow it.
const DENY_IS_ENOUGH: [&str; 5] =
    ["udm-driver", "udm-preload", "udm-lane", "udm-front", "udm-testkit"];

/// Checks every crate.
pub(crate) fn check(tree: &Tree, sources: &Sources, found: &mut Vec<Finding>) {
    let mut roots: Vec<(String, String)> =
        tree.folders_in("crates").into_iter().map(|n| (format!("crates/{n}"), n)).collect();
    roots.push(("xtask".to_owned(), "xtask".to_owned()));
    for (folder, name) in &roots {
        let manifest = format!("{folder}/Cargo.toml");
        let Some(text) = tree.text(&manifest) else { continue };
        if !has_workspace_lints(text) {
            let what = "does not take the workspace's lints";
            let remedy = "add a section [lints] with workspace = true";
            found.push(Finding::new("lints", &manifest, 1, what).remedy(remedy));
        }
        for root in ["src/lib.rs", "src/main.rs"] {
            crate_root(sources, name, &format!("{folder}/{root}"), found);
        }
    }
    unsafe_tokens(sources, found);
}

fn has_workspace_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.any(|line| line == "[lints]") && lines.next() == Some("workspace = true")
}

fn crate_root(sources: &Sources, name: &str, path: &str, found: &mut Vec<Finding>) {
    let Some(file) = sources.files.get(path) else { return };
    let has = |wanted: &str| file.inner_attributes.iter().any(|attribute| attribute == wanted);
    let no_std = has("no_std") || has("cfg_attr(not(test),no_std)");
    if NO_STD.contains(&name) && !no_std {
        let what = "this crate is run by the simulator and must be #![no_std]";
        let remedy = "add #![no_std]; what needs the standard library belongs into a lower crate";
        found.push(Finding::new("no-std", path, 1, what).remedy(remedy));
    }
    let enough = DENY_IS_ENOUGH.contains(&name) && has("deny(unsafe_code)")
        // The crates that are unsafe as a whole (drivers, the shim) need no attribute.
        || UNSAFE_PLACES.iter().any(|(place, _)| path.starts_with(place) && place.ends_with('/'));
    if !has("forbid(unsafe_code)") && !enough {
        let what = "unsafe code is not forbidden in this crate";
        let remedy = "add #![forbid(unsafe_code)]";
        found.push(Finding::new("unsafe", path, 1, what).remedy(remedy));
    }
}

fn unsafe_tokens(sources: &Sources, found: &mut Vec<Finding>) {
    for (path, file) in sources.all() {
        let allowed = UNSAFE_PLACES
            .iter()
            .any(|(place, _)| path == *place || (place.ends_with('/') && path.starts_with(place)));
        if allowed || crate_of(path) == "fuzz" {
            continue;
        }
        let unsafe_lines = file.find(&["unsafe"]);
        let allow_lines = file.find(&["allow", "(", "unsafe_code"]);
        if let Some(line) = unsafe_lines.into_iter().chain(allow_lines).next() {
            let what = "unsafe code in a file that is not listed for it";
            let remedy = "use a safe interface, or list the file and the reason in xtask's \
                          crate_rules.rs";
            found.push(Finding::new("unsafe", path, line, what).remedy(remedy));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::tidy::Sources;
    use crate::tidy::tree::Tree;

    const MANIFEST: &str = "[package]\n\n[lints]\nworkspace = true\n";

    fn rules(krate: &str, files: &[(&str, &str)]) -> Vec<(&'static str, String)> {
        let manifest = format!("crates/{krate}/Cargo.toml");
        let mut all = vec![(manifest.as_str(), MANIFEST)];
        all.extend(files);
        let tree = Tree::of(&all);
        let mut found = Vec::new();
        let sources = Sources::parse(&tree, &mut found);
        check(&tree, &sources, &mut found);
        found.iter().map(|finding| (finding.rule, finding.path.clone())).collect()
    }

    #[test]
    fn a_crate_without_the_workspace_lints_is_caught() {
        let none = rules("x", &[("crates/x/Cargo.toml", "[package]\n")]);
        assert_eq!(none, [("lints", "crates/x/Cargo.toml".to_owned())]);
        let other = rules("x", &[("crates/x/Cargo.toml", "[lints]\nworkspace = false\n")]);
        assert_eq!(other.len(), 1);
    }

    #[test]
    fn a_core_crate_with_std_is_caught() {
        let root = "crates/udm-core/src/lib.rs";
        let both = "#![no_std]\n#![forbid(unsafe_code)]\n";
        assert_eq!(rules("udm-core", &[(root, both)]), []);
        let with_std = rules("udm-core", &[(root, "#![forbid(unsafe_code)]\n")]);
        assert_eq!(with_std, [("no-std", root.to_owned())]);
    }

    #[test]
    fn a_crate_that_may_be_unsafe_is_caught() {
        let root = "crates/udm-control/src/lib.rs";
        assert_eq!(rules("udm-control", &[(root, "")]), [("unsafe", root.to_owned())]);
        let denied = rules("udm-control", &[(root, "#![deny(unsafe_code)]\n")]);
        assert_eq!(denied, [("unsafe", root.to_owned())]);
        let lane = "crates/udm-lane/src/lib.rs";
        assert_eq!(rules("udm-lane", &[(lane, "#![no_std]\n#![deny(unsafe_code)]\n")]), []);
    }

    #[test]
    fn unsafe_code_outside_the_list_is_caught() {
        let text = "#![allow(unsafe_code)]\nfn a() {}\n";
        let found = rules("udm-lane", &[("crates/udm-lane/src/pool.rs", text)]);
        assert_eq!(found, [("unsafe", "crates/udm-lane/src/pool.rs".to_owned())]);
        let block = "fn a() { unsafe { b() } }\n";
        assert_eq!(rules("udm", &[("crates/udm/tests/a.rs", block)]).len(), 1);
        assert_eq!(rules("udm-lane", &[("crates/udm-lane/src/buffer.rs", block)]), []);
    }
}
