//! The files of the repository as tidy sees them: a map from path to text.
//!
//! Read once from disk by `Tree::read`, or made by hand in a test from a few short strings, so
//! that each check can be shown to catch its case without touching a disk. Checks take a `&Tree`
//! and never read a file themselves.
//!
//! Paths are relative to the repository's root, with `/` between the parts. Build output, fuzz
//! corpora and hidden folders other than `.ci` and `.cargo` are not part of the tree. Files that
//! are not UTF-8 (pictures, test data) are left out: no check has a rule about them.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Folders that hold what a build or a fuzz run left behind.
const LEFT_BEHIND: [&str; 3] = ["fuzz/corpus", "fuzz/artifacts", "fuzz/target"];

/// Path to text, in path order.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    files: BTreeMap<String, String>,
}

impl Tree {
    /// Reads the repository at `root`.
    pub(crate) fn read(root: &Path) -> io::Result<Tree> {
        let mut tree = Tree::default();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(root.join(&folder))? {
                let entry = entry?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    if !skipped(&path) {
                        folders.push(path);
                    }
                } else if kind.is_file() {
                    // A file may vanish between listing and reading: somebody is working here.
                    if let Ok(text) = std::fs::read_to_string(entry.path()) {
                        tree.files.insert(path, text);
                    }
                }
            }
        }
        Ok(tree)
    }

    /// A tree made by hand.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Tree {
        Tree { files: files.iter().map(|(p, t)| ((*p).to_owned(), (*t).to_owned())).collect() }
    }

    /// Every file, in path order.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// Every Rust source file.
    pub(crate) fn rust_files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files().filter(|(path, _)| path.ends_with(".rs"))
    }

    /// The text of one file.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// Whether anything lies below this folder.
    pub(crate) fn has_folder(&self, folder: &str) -> bool {
        let prefix = format!("{folder}/");
        self.files.keys().any(|path| path.starts_with(&prefix))
    }

    /// Names of the folders directly below `folder`, each once, in order.
    pub(crate) fn folders_in(&self, folder: &str) -> Vec<String> {
        let prefix = format!("{folder}/");
        let mut names: Vec<String> = self
            .files
            .keys()
            .filter_map(|path| path.strip_prefix(&prefix)?.split_once('/'))
            .map(|(name, _)| name.to_owned())
            .collect();
        names.dedup();
        names
    }
}

fn skipped(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let hidden = name.starts_with('.') && name != ".ci" && name != ".cargo";
    let build = name == "target" || (name.starts_with("target-") && !path.contains('/'));
    hidden || build || LEFT_BEHIND.contains(&path)
}
