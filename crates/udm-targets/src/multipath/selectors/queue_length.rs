//! `queue-length`: the path with the fewest I/Os under way.
//!
//! The list is scanned in order; a strictly smaller count replaces the best so far, and the scan
//! ends as soon as the best has none. The chosen path goes to the tail, so equal ones take turns.
//!
//! Selector arguments: any, ignored. Path argument: a repeat count as for `round-robin`. INFO shows
//! the I/Os under way (summed over the lanes), TABLE the repeat count.
//!
//! The tricky case: the count goes on while a path is failed, since its I/Os are still under way.

use super::order::Order;
use super::{Load, PathSelector, Selector, SelectorConfig, WordGroup, repeat_of};
use crate::multipath::counters::PathView;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use udm_core::UserError;
use udm_types::{LaneId, Nanos};

/// The part of the table line.
#[derive(Default)]
pub(super) struct Config {
    repeats: Vec<u32>,
}

impl SelectorConfig for Config {
    fn name(&self) -> &'static str {
        "queue-length"
    }

    fn add_path(&mut self, words: &mut WordGroup<'_, '_>) -> Result<(), UserError> {
        words.expect_at_most(1, self.name())?;
        self.repeats.push(repeat_of(words)?);
        Ok(())
    }

    fn table_words(&self) -> usize {
        1
    }

    fn info_words(&self) -> usize {
        1
    }

    fn print_table(&self, path: usize, text: &mut String) {
        write!(text, "{} ", self.repeats[path]).expect("invariant: writing to a string succeeds");
    }

    fn print_info(&self, _path: usize, view: &PathView<'_>, text: &mut String) {
        write!(text, "{} ", view.sum_of_word(0)).expect("invariant: writing to a string succeeds");
    }

    fn start(&self) -> Selector {
        Selector::QueueLength(QueueLength::new(self.repeats.len()))
    }
}

/// At work on one lane.
pub(crate) struct QueueLength {
    order: Order,
}

impl QueueLength {
    fn new(count: usize) -> QueueLength {
        QueueLength { order: Order::new(count) }
    }
}

impl PathSelector for QueueLength {
    #[inline(always)]
    fn select(&mut self, _bytes: u64, loads: &[Load], _lane: LaneId, _now: Nanos) -> Option<u32> {
        let mut best = None;
        for (place, &path) in self.order.paths().iter().enumerate() {
            let ios = loads[path as usize].ios;
            if best.is_none_or(|(_, least)| ios < least) {
                best = Some((place, ios));
                if ios == 0 {
                    break;
                }
            }
        }
        best.map(|(place, _)| self.order.take(place))
    }

    fn fail_path(&mut self, path: u32) {
        self.order.remove(path);
    }

    fn reinstate_path(&mut self, path: u32) {
        self.order.restore(path);
    }
}

#[cfg(test)]
mod tests {
    use super::QueueLength;
    use crate::multipath::selectors::PathSelector;
    use crate::multipath::selectors::testing::Rig;

    #[test]
    fn the_shortest_queue_is_chosen_and_equal_ones_take_turns() {
        let mut rig = Rig::new(QueueLength::new(3), 3);
        assert_eq!(rig.sent(512, 6, 0), [0, 1, 2, 0, 1, 2]);
        rig.end(1, 512, 0, 5);
        rig.end(1, 512, 0, 5);
        rig.end(2, 512, 0, 5);
        // Lengths 2 0 1; the order is 0 1 2: path 1 has none, so the scan ends there.
        assert_eq!(rig.send(512, 5), Some(1));
        // Lengths 2 1 1, order 0 2 1.
        assert_eq!(rig.sent(512, 2, 5), [2, 1]);
    }

    #[test]
    fn a_failed_path_goes_on_counting_and_comes_back_at_the_tail() {
        let mut rig = Rig::new(QueueLength::new(2), 2);
        assert_eq!(rig.send(512, 0), Some(0));
        rig.it.fail_path(0);
        assert_eq!(rig.send(512, 0), Some(1));
        rig.end(0, 512, 0, 1);
        rig.end(1, 512, 0, 1);
        rig.it.reinstate_path(0);
        assert_eq!(rig.sent(512, 2, 2), [1, 0], "the tail is looked at last");
    }
}
