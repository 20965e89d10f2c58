//! The list of target types. One line a type, in the binary; no registration behind the scenes.
//!
//! Used when a table is built, to find the type a line names, and by the commands that list types.
//! It is made once and never changes while a daemon runs.
//!
//! The tricky case is a mistyped name: the nearest known one is offered only if it is near enough
//! to be what was meant.

use crate::target::TargetType;
use alloc::string::String;
use alloc::vec::Vec;

/// The target types a daemon knows.
#[derive(Clone, Default)]
pub struct Registry {
    types: Vec<&'static dyn TargetType>,
}

impl Registry {
    /// A registry of these types.
    pub fn new(types: impl IntoIterator<Item = &'static dyn TargetType>) -> Registry {
        Registry { types: types.into_iter().collect() }
    }

    /// Finds a type by its word in table lines.
    pub fn find(&self, name: &str) -> Option<&'static dyn TargetType> {
        self.types.iter().copied().find(|known| known.name() == name)
    }

    /// All types, in the order of registration.
    pub fn types(&self) -> &[&'static dyn TargetType] {
        &self.types
    }

    /// The known name nearest to a mistyped one, if any is near.
    pub fn nearest(&self, name: &str) -> Option<&'static str> {
        self.types
            .iter()
            .map(|known| (distance(known.name(), name), known.name()))
            .filter(|&(distance, known)| distance <= 1 + known.len() / 4)
            .min()
            .map(|(_, known)| known)
    }

    /// All names, for messages.
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.types.iter().map(|known| known.name()).collect();
        names.join(", ")
    }
}

/// Edit distance of two short words (insert, delete, replace).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(32).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("linear", "linear"), 0);
        assert_eq!(distance("linear", "liner"), 1);
        assert_eq!(distance("zero", "hero"), 1);
        assert_eq!(distance("striped", "linear"), 6);
    }
}
