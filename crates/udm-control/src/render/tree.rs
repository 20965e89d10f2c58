//! `ls --tree`: who stands on whom.
//!
//! Devices that nobody stands on come first, in the order of `ls`; what is below each follows,
//! indented by three columns a level. A device that several others use is printed below each.
//! Loops cannot be (the life cycle refuses them), and the depth is bounded with the stack's.
//!
//! ```text
//! t1 (254:1)
//!  `-t0 (254:0)
//!     |- (1:1)
//!     `- (1:0)
//! ```

use crate::api::{Dependency, Device};

/// A device with what is below it.
#[derive(Clone, Debug)]
pub struct Node {
    /// The device.
    pub device: Device,
    /// Its devices below, newest first.
    pub deps: Vec<Dependency>,
}

/// What to show beside the names (`ls --tree -o`).
#[derive(Clone, Copy, Debug)]
pub struct TreeOptions {
    /// The number in brackets.
    pub device: bool,
    /// `ACTIVE` or `SUSPENDED`.
    pub active: bool,
    /// The open count.
    pub open: bool,
    /// `RW` or `RO`.
    pub rw: bool,
    /// The uuid.
    pub uuid: bool,
    /// What stands on a device below it, instead of the other way round.
    pub inverted: bool,
    /// Box drawing characters instead of ASCII.
    pub utf: bool,
}

impl Default for TreeOptions {
    fn default() -> TreeOptions {
        TreeOptions {
            device: true,
            active: false,
            open: false,
            rw: false,
            uuid: false,
            inverted: false,
            utf: false,
        }
    }
}

/// A row of the tree: a mapped device by index, or what is no mapped device.
#[derive(Clone, Copy, PartialEq)]
enum Row<'a> {
    Mapped(usize),
    Other(&'a Dependency),
}

/// The whole tree.
pub fn tree(nodes: &[Node], options: TreeOptions) -> String {
    let forest = Forest { nodes, options };
    let mut text = String::new();
    for root in forest.roots() {
        forest.print(root, &mut Vec::new(), &mut text);
    }
    text
}

struct Forest<'a> {
    nodes: &'a [Node],
    options: TreeOptions,
}

impl<'a> Forest<'a> {
    fn row(&self, dep: &'a Dependency) -> Row<'a> {
        let found = self.nodes.iter().position(|node| {
            Some(node.device.major) == dep.major && Some(node.device.minor) == dep.minor
        });
        found.map_or(Row::Other(dep), Row::Mapped)
    }

    fn below(&self, row: Row<'a>) -> Vec<Row<'a>> {
        match row {
            Row::Mapped(index) => self.nodes[index].deps.iter().map(|dep| self.row(dep)).collect(),
            Row::Other(_) => Vec::new(),
        }
    }

    fn above(&self, row: Row<'a>) -> Vec<Row<'a>> {
        let uses = |index: &usize| {
            self.nodes[*index].deps.iter().any(|dep| match (self.row(dep), row) {
                (Row::Mapped(a), Row::Mapped(b)) => a == b,
                (Row::Other(a), Row::Other(b)) => a.shown == b.shown,
                (Row::Mapped(_), Row::Other(_)) | (Row::Other(_), Row::Mapped(_)) => false,
            })
        };
        (0..self.nodes.len()).filter(uses).map(Row::Mapped).collect()
    }

    fn children(&self, row: Row<'a>) -> Vec<Row<'a>> {
        if self.options.inverted { self.above(row) } else { self.below(row) }
    }

    fn roots(&self) -> Vec<Row<'a>> {
        let mapped = (0..self.nodes.len()).map(Row::Mapped);
        if !self.options.inverted {
            return mapped.filter(|row| self.above(*row).is_empty()).collect();
        }
        let mut roots: Vec<Row<'a>> = Vec::new();
        for dep in self.nodes.iter().flat_map(|node| &node.deps) {
            let row = self.row(dep);
            let known = roots.iter().any(|other| match (other, row) {
                (Row::Other(a), Row::Other(b)) => a.shown == b.shown,
                _ => false,
            });
            if matches!(row, Row::Other(_)) && !known {
                roots.push(row);
            }
        }
        roots.extend(mapped.filter(|row| self.below(*row).is_empty()));
        roots
    }

    /// `more` says for each level above whether rows follow on it.
    fn print(&self, row: Row<'a>, more: &mut Vec<bool>, text: &mut String) {
        let [empty, bar, middle, last] = if self.options.utf {
            ["  ", "\u{2502} ", "\u{251c}\u{2500}", "\u{2514}\u{2500}"]
        } else {
            ["  ", "| ", "|-", "`-"]
        };
        for (level, follows) in more.iter().enumerate() {
            let deepest = level + 1 == more.len();
            text.push(' ');
            text.push_str(match (deepest, *follows) {
                (true, true) => middle,
                (true, false) => last,
                (false, true) => bar,
                (false, false) => empty,
            });
        }
        text.push_str(&self.label(row));
        text.push('\n');
        let children = self.children(row);
        for (index, child) in children.iter().enumerate() {
            more.push(index + 1 < children.len());
            self.print(*child, more, text);
            more.pop();
        }
    }

    fn label(&self, row: Row<'a>) -> String {
        let index = match row {
            Row::Other(dep) => return format!(" ({})", dep.shown),
            Row::Mapped(index) => index,
        };
        let device = &self.nodes[index].device;
        let mut text = device.name.clone();
        if self.options.device {
            text += &format!(" ({}:{})", device.major, device.minor);
        }
        let mut parts: Vec<String> = Vec::new();
        if self.options.active {
            parts.push(if device.suspended { "SUSPENDED" } else { "ACTIVE" }.to_owned());
        }
        if self.options.rw {
            parts.push(if device.read_only { "RO" } else { "RW" }.to_owned());
        }
        if self.options.open {
            parts.push(device.open_count.to_string());
        }
        if self.options.uuid {
            parts.push(device.uuid.clone().unwrap_or_default());
        }
        if !parts.is_empty() {
            text += &format!(" [{}]", parts.join(", "));
        }
        text
    }
}
