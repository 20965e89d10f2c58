//! What happened how often: the counters a run reports.
//!
//! Part of the proof: a search that never suspended anything, or never injected a fault, finds
//! nothing and must not look like success. Worlds add up into one tally for the run's last lines,
//! and a test asserts that every kind of event occurs in a short search.
//!
//! Counters are a map by word, so that a new event needs no new field; the words come from the
//! source and the order is the map's, so the printed lines are stable.
//!
//! The tricky case is a counter that stays at zero: it would simply be missing here. The list of
//! counters that a search must have moved is in `tests/search.rs`.

use std::collections::BTreeMap;
use std::fmt;

/// Counters by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    /// Counts one event.
    pub fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    /// How often it happened.
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// Adds another world's counters.
    pub fn add(&mut self, other: &Tally) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_default() += count;
        }
    }

    /// The sum of all counters whose name begins so.
    pub fn sum_of(&self, prefix: &str) -> u64 {
        self.0.iter().filter(|(what, _)| what.starts_with(prefix)).map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (what, count)) in self.0.iter().enumerate() {
            let gap = if index == 0 { "" } else { ", " };
            write!(f, "{gap}{what} {count}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn tallies_add_up_and_print_in_order() {
        let mut one = Tally::default();
        one.count("fault eio");
        one.count("fault short");
        let mut two = Tally::default();
        two.count("fault eio");
        two.count("bios");
        one.add(&two);
        assert_eq!(one.to_string(), "bios 1, fault eio 2, fault short 1");
        assert_eq!((one.of("fault eio"), one.sum_of("fault"), one.of("none")), (2, 3, 0));
    }
}
