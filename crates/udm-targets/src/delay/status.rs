//! The status of `delay`: `READS WRITES FLUSHES`, the bios that wait at this moment.
//!
//! Three numbers always, whatever number of triples the table line has. The counters are the
//! lengths of the three queues, summed over the lanes before they come here; they are empty for a
//! table that no lane serves.
//!
//! The tricky case: lanes answer one after the other, so under load the sum may never have been
//! true at any one instant. It is exact when nothing moves.

use super::map::CLASSES;
use alloc::format;
use alloc::string::String;

/// The status line of these queue lengths.
pub(super) fn print(waiting: &[u64]) -> String {
    let mut counts = [0; CLASSES];
    for (count, waiting) in counts.iter_mut().zip(waiting) {
        *count = *waiting;
    }
    let [reads, writes, flushes] = counts;
    format!("{reads} {writes} {flushes}")
}

#[cfg(test)]
mod tests {
    use super::print;

    #[test]
    fn three_numbers_whatever_is_known() {
        assert_eq!(print(&[]), "0 0 0");
        assert_eq!(print(&[4, 0, 1]), "4 0 1");
    }
}
