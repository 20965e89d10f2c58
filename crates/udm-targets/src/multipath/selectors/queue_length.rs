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
use super::{Finished, PathSelector, Selector, SelectorConfig, WORDS, WordGroup, repeat_of};
use crate::multipath::counters::PathView;
use alloc::string::String;
use alloc::vec;
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
    /// I/Os under way, by path.
    lengths: Vec<u32>,
}

impl QueueLength {
    fn new(count: usize) -> QueueLength {
        QueueLength { order: Order::new(count), lengths: vec![0; count] }
    }
}

impl PathSelector for QueueLength {
    #[inline]
    fn select(&mut self, _bytes: u64, _lane: LaneId, _now: Nanos) -> Option<u32> {
        let mut best = None;
        for (place, &path) in self.order.paths().iter().enumerate() {
            let length = self.lengths[path as usize];
            if best.is_none_or(|(_, least)| length < least) {
                best = Some((place, length));
            }
            if let Some((_, 0)) = best {
                break;
            }
        }
        best.map(|(place, _)| self.order.take(place))
    }

    #[inline]
    fn start_io(&mut self, path: u32, _bytes: u64, _now: Nanos) {
        self.lengths[path as usize] += 1;
    }

    #[inline]
    fn end_io(&mut self, path: u32, _io: Finished) {
        self.lengths[path as usize] -= 1;
    }

    fn fail_path(&mut self, path: u32) {
        self.order.remove(path);
    }

    fn reinstate_path(&mut self, path: u32) {
        self.order.restore(path);
    }

    fn words(&self, path: u32) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[0] = u64::from(self.lengths[path as usize]);
        words
    }
}

#[cfg(test)]
mod tests {
    use super::QueueLength;
    use crate::multipath::selectors::PathSelector;
    use crate::multipath::selectors::testing::{end, send};
    use alloc::vec::Vec;

    #[test]
    fn the_shortest_queue_is_chosen_and_equal_ones_take_turns() {
        let mut it = QueueLength::new(3);
        let chosen: Vec<u32> = (0..6).filter_map(|_| send(&mut it, 512, 0)).collect();
        assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
        end(&mut it, 1, 512, 0, 5);
        end(&mut it, 1, 512, 0, 5);
        end(&mut it, 2, 512, 0, 5);
        // Lengths 2 0 1; the order is 0 1 2: path 1 has none, so the scan ends there.
        assert_eq!(send(&mut it, 512, 5), Some(1));
        // Lengths 2 1 1, order 0 2 1.
        assert_eq!(send(&mut it, 512, 5), Some(2));
        assert_eq!(send(&mut it, 512, 5), Some(1));
    }

    #[test]
    fn a_failed_path_goes_on_counting_and_comes_back_at_the_tail() {
        let mut it = QueueLength::new(2);
        assert_eq!(send(&mut it, 512, 0), Some(0));
        it.fail_path(0);
        assert_eq!(send(&mut it, 512, 0), Some(1));
        end(&mut it, 0, 512, 0, 1);
        end(&mut it, 1, 512, 0, 1);
        assert_eq!((it.words(0)[0], it.words(1)[0]), (0, 0));
        it.reinstate_path(0);
        assert_eq!(send(&mut it, 512, 2), Some(1), "the tail is looked at last");
        assert_eq!(send(&mut it, 512, 2), Some(0));
    }
}
