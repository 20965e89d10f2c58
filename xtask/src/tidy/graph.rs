//! The packages of the workspace and what they depend on, as cargo tells it.
//!
//! `Graph::read` runs `cargo metadata`, which resolves features and kinds; nothing here parses a
//! manifest. The checks in `layers.rs` and `licences.rs` use the result and read nothing.
//!
//! Two views are kept apart. `direct` is what a workspace member writes into its manifest, by kind
//! (normal, development, build). `reached` is the closure over normal and build dependencies of
//! what was resolved: what ends up in the product.

use crate::steps::{Failed, cargo};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// One dependency as a member's manifest has it.
#[derive(Clone, Debug)]
pub(crate) struct Direct {
    pub(crate) name: String,
    /// Only for tests, benches and examples.
    pub(crate) is_dev: bool,
}

/// A member of the workspace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Member {
    pub(crate) name: String,
    /// Path of its manifest, relative to the root.
    pub(crate) manifest: String,
    pub(crate) direct: Vec<Direct>,
    /// Names of all packages in its product, itself left out.
    pub(crate) reached: BTreeSet<String>,
}

/// A package from elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Foreign {
    pub(crate) name: String,
    /// As in its manifest; empty if it has none.
    pub(crate) licence: String,
}

/// Members and foreign packages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    pub(crate) members: Vec<Member>,
    pub(crate) foreign: Vec<Foreign>,
}

impl Graph {
    /// Asks cargo.
    pub(crate) fn read(root: &Path) -> Result<Graph, Failed> {
        let output = cargo(&["metadata", "--format-version", "1"])
            .current_dir(root)
            .output()
            .map_err(|error| Failed::new(format!("cannot run cargo metadata: {error}")))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(Failed::new(format!("cargo metadata failed: {why}")));
        }
        let value: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| Failed::new(format!("cargo metadata gave no JSON: {error}")))?;
        Ok(Graph::of(&value, root))
    }

    fn of(value: &Value, root: &Path) -> Graph {
        let mut graph = Graph::default();
        let edges = edges(value);
        let mut names = BTreeMap::new();
        for package in items(&value["packages"]) {
            names.insert(text(&package["id"]), text(&package["name"]));
        }
        for package in items(&value["packages"]) {
            if package["source"].is_string() {
                let licence = text(&package["license"]).to_owned();
                graph.foreign.push(Foreign { name: text(&package["name"]).to_owned(), licence });
                continue;
            }
            let reached = closure(text(&package["id"]), &edges)
                .into_iter()
                .filter_map(|id| names.get(id))
                .map(|name| (*name).to_owned())
                .collect();
            let path = Path::new(text(&package["manifest_path"]));
            let manifest = path.strip_prefix(root).unwrap_or(path).display().to_string();
            let direct = items(&package["dependencies"])
                .map(|dependency| Direct {
                    name: text(&dependency["name"]).to_owned(),
                    is_dev: dependency["kind"] == "dev",
                })
                .collect();
            let name = text(&package["name"]).to_owned();
            graph.members.push(Member { name, manifest, direct, reached });
        }
        graph
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

/// Package id to the ids it needs in the product (development dependencies left out).
fn edges(value: &Value) -> BTreeMap<&str, Vec<&str>> {
    items(&value["resolve"]["nodes"])
        .map(|node| {
            let needs = items(&node["deps"])
                .filter(|dep| items(&dep["dep_kinds"]).any(|kind| kind["kind"] != "dev"))
                .map(|dep| text(&dep["pkg"]))
                .collect();
            (text(&node["id"]), needs)
        })
        .collect()
}

fn closure<'a>(start: &'a str, edges: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![start];
    while let Some(id) = open.pop() {
        for next in edges.get(id).into_iter().flatten() {
            if reached.insert(*next) {
                open.push(next);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::Graph;
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn development_dependencies_are_not_in_the_product() {
        let metadata = json!({
            "packages": [
                {"id": "a", "name": "udm-a", "source": null, "manifest_path": "/r/crates/a/Cargo.toml",
                 "dependencies": [{"name": "b", "kind": null}, {"name": "c", "kind": "dev"}]},
                {"id": "b", "name": "b", "source": "registry", "license": "MIT"},
                {"id": "c", "name": "c", "source": "registry", "license": null},
                {"id": "d", "name": "d", "source": "registry", "license": "ISC"},
            ],
            "resolve": {"nodes": [
                {"id": "a", "deps": [
                    {"pkg": "b", "dep_kinds": [{"kind": null}]},
                    {"pkg": "c", "dep_kinds": [{"kind": "dev"}]}]},
                {"id": "b", "deps": [{"pkg": "d", "dep_kinds": [{"kind": "build"}]}]},
                {"id": "c", "deps": []},
                {"id": "d", "deps": []},
            ]},
        });
        let graph = Graph::of(&metadata, Path::new("/r"));
        assert_eq!(graph.members.len(), 1);
        assert_eq!(graph.members[0].manifest, "crates/a/Cargo.toml");
        let reached: Vec<&str> = graph.members[0].reached.iter().map(String::as_str).collect();
        assert_eq!(reached, ["b", "d"]);
        assert_eq!(graph.members[0].direct.iter().filter(|direct| direct.is_dev).count(), 1);
        assert_eq!(graph.foreign.len(), 3);
        assert_eq!(graph.foreign[1].licence, "");
    }
}
