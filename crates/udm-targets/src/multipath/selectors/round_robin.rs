//! `round-robin`: each path in turn.
//!
//! The head of the list is chosen and goes to the tail. It takes no notice of load, so a slow path
//! slows everything; it is there because tables name it.
//!
//! Selector arguments: any, ignored. Path argument: a repeat count, of which only 0 and 1 are left
//! (a larger one means 1). INFO has no words for a path, TABLE one.
//!
//! The tricky case: a reinstated path goes to the *head* and is the next one used.

use super::{Load, PathSelector, Selector, SelectorConfig, WordGroup, repeat_of};
use crate::multipath::counters::PathView;
use alloc::collections::VecDeque;
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
        "round-robin"
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
        0
    }

    fn print_table(&self, path: usize, text: &mut String) {
        write!(text, "{} ", self.repeats[path]).expect("invariant: writing to a string succeeds");
    }

    fn print_info(&self, _path: usize, _view: &PathView<'_>, _text: &mut String) {}

    fn start(&self) -> Selector {
        Selector::RoundRobin(RoundRobin { order: (0..self.repeats.len() as u32).collect() })
    }
}

/// At work on one lane.
pub(crate) struct RoundRobin {
    order: VecDeque<u32>,
}

impl PathSelector for RoundRobin {
    #[inline]
    fn select(&mut self, _bytes: u64, _: &[Load], _lane: LaneId, _now: Nanos) -> Option<u32> {
        let path = self.order.pop_front()?;
        self.order.push_back(path);
        Some(path)
    }

    fn fail_path(&mut self, path: u32) {
        self.order.retain(|&known| known != path);
    }

    fn reinstate_path(&mut self, path: u32) {
        debug_assert!(!self.order.contains(&path), "a path is reinstated once");
        self.order.push_front(path);
    }
}

#[cfg(test)]
mod tests {
    use super::RoundRobin;
    use crate::multipath::selectors::PathSelector;
    use crate::multipath::selectors::testing::Rig;

    #[test]
    fn paths_take_turns_and_a_reinstated_one_is_next() {
        let mut rig = Rig::new(RoundRobin { order: (0..3).collect() }, 3);
        assert_eq!(rig.sent(4096, 3, 0), [0, 1, 2]);
        rig.it.fail_path(1);
        assert_eq!(rig.sent(4096, 3, 0), [0, 2, 0]);
        rig.it.reinstate_path(1);
        assert_eq!(rig.sent(4096, 3, 0), [1, 2, 0]);
        for path in 0..3 {
            rig.it.fail_path(path);
        }
        assert_eq!(rig.send(4096, 0), None);
    }
}
