//! Links between documents: none leads nowhere, and every page and crate can be found.
//!
//! A reader starts at README.md or ARCHITECTURE.md. Every page below `docs/` must be reachable
//! from there by links between Markdown files, and every crate must be linked or named with its
//! path in one of the two. Until one of the two exists there is nothing to start from, and only
//! broken links are reported.
//!
//! Only links of the form `[text](target)` are read. Addresses with a scheme, and anchors within a
//! page, are left alone; code blocks are skipped.

use super::Finding;
use super::tree::Tree;
use std::collections::BTreeSet;

const STARTS: [&str; 2] = ["README.md", "ARCHITECTURE.md"];

/// Checks every Markdown file.
pub(crate) fn check(tree: &Tree, found: &mut Vec<Finding>) {
    for (path, text) in tree.files().filter(|(path, _)| path.ends_with(".md")) {
        for (line, target) in links(text) {
            let resolved = resolve(path, target);
            if tree.text(&resolved).is_none() && !tree.has_folder(&resolved) {
                let what = format!("the link to {target} leads nowhere");
                let remedy = format!("there is no {resolved}; mend the link or write the page");
                found.push(Finding::new("links", path, line, what).remedy(remedy));
            }
        }
    }
    if STARTS.iter().any(|start| tree.text(start).is_some()) {
        pages_reached(tree, found);
        crates_named(tree, found);
    }
}

fn pages_reached(tree: &Tree, found: &mut Vec<Finding>) {
    let mut reached: BTreeSet<String> = BTreeSet::new();
    let mut open: Vec<String> = STARTS.iter().map(|start| (*start).to_owned()).collect();
    while let Some(page) = open.pop() {
        let Some(text) = tree.text(&page) else { continue };
        if page.ends_with(".md") && reached.insert(page.clone()) {
            open.extend(links(text).into_iter().map(|(_, target)| resolve(&page, target)));
        }
    }
    for (path, _) in tree.files() {
        if path.starts_with("docs/") && path.ends_with(".md") && !reached.contains(path) {
            let what = "no chain of links leads here from README.md or ARCHITECTURE.md";
            let remedy = "link the page from where a reader would look for it";
            found.push(Finding::new("links", path, 1, what).remedy(remedy));
        }
    }
}

fn crates_named(tree: &Tree, found: &mut Vec<Finding>) {
    for name in tree.folders_in("crates") {
        let manifest = format!("crates/{name}/Cargo.toml");
        let named = STARTS.iter().filter_map(|start| tree.text(start)).any(|text| {
            text.match_indices(&format!("crates/{name}")).any(|(at, hit)| {
                // crates/udm is not named by crates/udm-core.
                !text[at + hit.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '-')
            })
        });
        if tree.text(&manifest).is_some() && !named {
            let what = format!("neither README.md nor ARCHITECTURE.md leads to crates/{name}");
            let remedy = "add it to the crate map";
            found.push(Finding::new("links", &manifest, 1, what).remedy(remedy));
        }
    }
}

/// Targets of relative links, without anchors, with their lines.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let Some((target, _)) = part.split_once(')') else { continue };
            let target = target.split(['#', ' ']).next().unwrap_or("");
            if !target.is_empty() && !target.contains(':') {
                found.push((index + 1, target));
            }
        }
    }
    found
}

/// A link's target as a path from the root.
fn resolve(page: &str, target: &str) -> String {
    let mut parts: Vec<&str> = if target.starts_with('/') {
        Vec::new()
    } else {
        page.split('/').rev().skip(1).collect::<Vec<_>>().into_iter().rev().collect()
    };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::{check, resolve};
    use crate::tidy::tree::Tree;

    fn found(files: &[(&str, &str)]) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        check(&Tree::of(files), &mut found);
        found.into_iter().map(|finding| (finding.path, finding.line)).collect()
    }

    #[test]
    fn targets_are_resolved_from_the_page() {
        assert_eq!(resolve("docs/a/b.md", "../c.md"), "docs/c.md");
        assert_eq!(resolve("README.md", "docs/c.md"), "docs/c.md");
        assert_eq!(resolve("docs/b.md", "/LICENSE-MIT"), "LICENSE-MIT");
        assert_eq!(resolve("docs/b.md", "./targets/"), "docs/targets");
    }

    #[test]
    fn a_broken_link_is_caught() {
        let page = "x\n[a](b.md) [c](https://x.y/z) [d](#e) `[`\n```\n[f](g.md)\n```\n";
        assert_eq!(found(&[("docs/a.md", page)]), [("docs/a.md".to_owned(), 2)]);
        assert_eq!(found(&[("docs/a.md", page), ("docs/b.md", "")]), []);
    }

    #[test]
    fn a_page_nobody_links_is_caught() {
        let readme = ("README.md", "[a](docs/a.md)\n");
        let files = [readme, ("docs/a.md", "[b](b.md)\n"), ("docs/b.md", "")];
        assert_eq!(found(&files), []);
        let more = [readme, ("docs/a.md", ""), ("docs/b.md", "")];
        assert_eq!(found(&more), [("docs/b.md".to_owned(), 1)]);
    }

    #[test]
    fn a_crate_nobody_names_is_caught() {
        let manifest = ("crates/udm/Cargo.toml", "");
        let other = ("crates/udm-core/Cargo.toml", "");
        let readme = ("README.md", "[core](crates/udm-core)\n");
        assert_eq!(found(&[readme, manifest, other]), [("crates/udm/Cargo.toml".to_owned(), 1)]);
        let both = ("README.md", "[core](crates/udm-core) and `crates/udm`\n");
        assert_eq!(found(&[both, manifest, other]), []);
    }
}
