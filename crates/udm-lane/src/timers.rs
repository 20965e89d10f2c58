//! Timers of one lane: a heap of deadlines with a value each.
//!
//! The lane asks for the next deadline before it blocks and takes what is due each turn. Timers
//! with equal deadlines fire in the order they were set, so a run is reproducible.
//!
//! There is no cancel: an owner whose wish has changed ignores the timer when it fires (it knows
//! what it is waiting for). That keeps setting a timer free of bookkeeping.

use alloc::collections::BinaryHeap;
use core::cmp::Ordering;
use udm_types::Nanos;

/// A heap of deadlines.
#[derive(Debug)]
pub struct Timers<T> {
    heap: BinaryHeap<Entry<T>>,
    next_seq: u64,
}

#[derive(Debug)]
struct Entry<T> {
    deadline: Nanos,
    seq: u64,
    value: T,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Timers { heap: BinaryHeap::new(), next_seq: 0 }
    }
}

impl<T> Timers<T> {
    /// Sets a timer.
    pub fn set(&mut self, deadline: Nanos, value: T) {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.heap.push(Entry { deadline, seq, value });
    }

    /// The earliest deadline.
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.heap.peek().map(|entry| entry.deadline)
    }

    /// Takes one timer that is due at `now`.
    pub fn pop_due(&mut self, now: Nanos) -> Option<T> {
        if self.next_deadline()? > now {
            return None;
        }
        self.heap.pop().map(|entry| entry.value)
    }

    /// How many are set.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// True if none is set.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

// The heap is a max-heap; the order is reversed so that the earliest deadline comes first.
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.deadline, other.seq).cmp(&(self.deadline, self.seq))
    }
}
impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl<T> Eq for Entry<T> {}

#[cfg(test)]
mod tests {
    use super::Timers;
    use udm_types::Nanos;

    #[test]
    fn timers_fire_in_order_and_equal_ones_as_set() {
        let mut timers = Timers::default();
        for (deadline, value) in [(30, 'c'), (10, 'a'), (20, 'b'), (10, 'A')] {
            timers.set(Nanos(deadline), value);
        }
        assert_eq!(timers.next_deadline(), Some(Nanos(10)));
        assert_eq!(timers.pop_due(Nanos(9)), None);
        let mut fired = alloc::vec::Vec::new();
        while let Some(value) = timers.pop_due(Nanos(25)) {
            fired.push(value);
        }
        assert_eq!(fired, ['a', 'A', 'b']);
        assert_eq!(timers.len(), 1);
    }
}
