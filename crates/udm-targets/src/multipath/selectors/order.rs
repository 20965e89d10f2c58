//! The order of a selector's valid paths: a short list that a choice rotates.
//!
//! Used by every selector that scans. A chosen path goes to the tail, so equal paths take turns.
//! A failed path leaves the list and comes back at the tail.
//!
//! Rules. Never allocates after it was made: it holds each path at most once.
//!
//! The tricky case is the group of one path: choosing must not move anything.

use alloc::vec::Vec;

/// Paths in the order in which they are looked at.
#[derive(Debug)]
pub(super) struct Order(Vec<u32>);

impl Order {
    /// All of `count` paths, in table order.
    pub(super) fn new(count: usize) -> Order {
        Order((0..count as u32).collect())
    }

    /// The paths, in order.
    #[inline]
    pub(super) fn paths(&self) -> &[u32] {
        &self.0
    }

    /// Moves the path at a place to the tail and returns it.
    #[inline(always)]
    pub(super) fn take(&mut self, place: usize) -> u32 {
        let tail = &mut self.0[place..];
        let path = tail[0];
        for at in 1..tail.len() {
            tail[at - 1] = tail[at];
        }
        if let Some(last) = tail.last_mut() {
            *last = path;
        }
        path
    }

    /// Takes a path out.
    pub(super) fn remove(&mut self, path: u32) {
        self.0.retain(|&known| known != path);
    }

    /// Puts a path back, at the tail.
    pub(super) fn restore(&mut self, path: u32) {
        debug_assert!(!self.0.contains(&path), "a path is reinstated once");
        self.0.push(path);
    }
}

#[cfg(test)]
mod tests {
    use super::Order;

    #[test]
    fn a_taken_path_goes_to_the_tail() {
        let mut order = Order::new(4);
        assert_eq!(order.take(1), 1);
        assert_eq!(order.paths(), [0, 2, 3, 1]);
        order.remove(2);
        assert_eq!(order.take(0), 0);
        order.restore(2);
        assert_eq!(order.paths(), [3, 1, 0, 2]);
    }
}
