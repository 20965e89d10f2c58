//! One sector's legal values: a register under concurrent writes.
//!
//! A write that is under way may be seen or not. One that was acknowledged puts an end to every
//! value that was finished before it began; values of writes that overlapped it in time stay
//! possible, for either may have come last. A write that failed may or may not have happened, until
//! a later one is acknowledged. A discard counts as a write of zeroes that may not have happened.
//!
//! ```text
//! time     ----w1----|                         w1 acknowledged
//!               ----w2--------|                overlaps w1: either may be last
//!                       ----w3----x            failed: may have happened
//!                                    --w4--|   acknowledged: ends w1, w2, w3
//! legal          w1?w2?  w1|w2|w3     +w4    w4
//! ```
//!
//! A read pins: whatever it found was there last, so values finished before the read began and not
//! found cannot come back. A write applied a second time, or data from before a swap, is caught by
//! that. Pins hold for what reads see, not for what is durable: a value seen may still be in a
//! cache.

use crate::value::{Tag, write_of};

/// Ticks of the oracle's clock; every submission and completion has its own.
pub(crate) type Tick = u64;

/// Not yet.
pub(crate) const NEVER: Tick = Tick::MAX;

/// A value that may be in the sector.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    write: u32,
    /// The sector holds zeroes, not the write's tag.
    zeroes: bool,
    start: Tick,
    end: Tick,
    /// When an acknowledged write ended it.
    superseded: Tick,
    /// When a read showed that it is not there any more.
    pinned_out: Tick,
}

/// The candidates of one sector.
#[derive(Clone, Debug)]
pub(crate) struct Register {
    candidates: Vec<Candidate>,
}

/// The write number that stands for fresh space.
const FRESH: u32 = 0;

impl Register {
    /// A sector of zeroes.
    pub(crate) fn fresh(now: Tick) -> Register {
        Register { candidates: vec![Candidate::zeroes(FRESH, now, now)] }
    }

    /// The sector becomes fresh space; writes under way may still land. A read under way may have
    /// found here what was there before the sector went away, if another of its pieces is late.
    pub(crate) fn renew(&mut self, now: Tick) {
        for candidate in &mut self.candidates {
            if candidate.end != NEVER {
                candidate.superseded = candidate.superseded.min(now);
            }
        }
        self.candidates.push(Candidate::zeroes(FRESH, now, now));
    }

    /// A write begins.
    pub(crate) fn begin(&mut self, write: u32, zeroes: bool, now: Tick) {
        self.candidates.push(Candidate { zeroes, ..Candidate::zeroes(write, now, NEVER) });
    }

    /// A write that began at `start` may land here, if that is not known yet.
    pub(crate) fn begin_once(&mut self, write: u32, zeroes: bool, start: Tick) {
        if self.candidates.iter().all(|candidate| candidate.write != write) {
            self.begin(write, zeroes, start);
        }
    }

    /// A write ended; `certain` if it was acknowledged and surely did its work. `oldest` is the
    /// start of the oldest I/O under way: what ended before is no longer asked for.
    pub(crate) fn end(&mut self, write: u32, certain: bool, now: Tick, oldest: Tick) {
        let Some(own) = self.candidates.iter_mut().find(|candidate| candidate.write == write)
        else {
            return;
        };
        own.end = now;
        let start = own.start;
        if certain {
            for candidate in &mut self.candidates {
                if candidate.end < start {
                    candidate.superseded = candidate.superseded.min(now);
                }
            }
        }
        self.candidates.retain(|candidate| candidate.superseded >= oldest);
    }

    /// Whether a read that began at `since` may find this tag.
    pub(crate) fn may_be_read(&self, tag: Tag, since: Tick) -> bool {
        self.candidates.iter().any(|candidate| {
            candidate.shows(tag) && candidate.superseded >= since && candidate.pinned_out >= since
        })
    }

    /// Whether this tag may be durable after a flush that began at `since`.
    pub(crate) fn may_be_durable(&self, tag: Tag, since: Tick) -> bool {
        self.candidates
            .iter()
            .any(|candidate| candidate.shows(tag) && candidate.superseded >= since)
    }

    /// Whether this tag may be durable once a durable write that began at `since` has ended: it is
    /// that write's, or of one that had not ended before.
    pub(crate) fn is_not_older(&self, tag: Tag, since: Tick) -> bool {
        self.candidates.iter().any(|candidate| candidate.shows(tag) && candidate.end >= since)
    }

    /// A read that began at `since` found this tag.
    pub(crate) fn pin(&mut self, tag: Tag, since: Tick, now: Tick) {
        for candidate in &mut self.candidates {
            if !candidate.shows(tag) && candidate.end < since {
                candidate.pinned_out = candidate.pinned_out.min(now);
            }
        }
    }

    /// The candidates for a report: write numbers, the newest last.
    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        for candidate in &self.candidates {
            let state = match (candidate.end, candidate.superseded, candidate.pinned_out) {
                (NEVER, ..) => "under way",
                (_, NEVER, NEVER) => "ended",
                (_, NEVER, _) => "not seen by a later read",
                (..) => "superseded",
            };
            let what = if candidate.zeroes { "zeroes" } else { "write" };
            text.push_str(&format!(" {what} {} ({state});", candidate.write));
        }
        text
    }
}

impl Candidate {
    fn zeroes(write: u32, start: Tick, end: Tick) -> Candidate {
        Candidate { write, zeroes: true, start, end, superseded: NEVER, pinned_out: NEVER }
    }

    fn shows(&self, tag: Tag) -> bool {
        match self.zeroes {
            true => tag == 0,
            false => tag != 0 && write_of(tag) == self.write,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{NEVER, Register};
    use crate::value::tag;

    fn seen(register: &Register, write: u32, since: u64) -> bool {
        register.may_be_read(if write == 0 { 0 } else { tag(write, 0, 5) }, since)
    }

    #[test]
    fn an_acknowledged_write_ends_what_was_before() {
        let mut register = Register::fresh(0);
        register.begin(1, false, 1);
        assert!(seen(&register, 0, 1) && seen(&register, 1, 1));
        register.end(1, true, 2, 0);
        assert!(seen(&register, 0, 2), "a read that overlapped the write may find either");
        assert!(!seen(&register, 0, 3), "a later one may not");
        assert!(seen(&register, 1, 3));
    }

    #[test]
    fn of_two_concurrent_writes_either_may_stay_until_a_read_has_found_one() {
        let mut register = Register::fresh(0);
        register.begin(1, false, 1);
        register.begin(2, false, 2);
        register.end(1, true, 3, 0);
        register.end(2, true, 4, 0);
        assert!(seen(&register, 1, 5) && seen(&register, 2, 5) && !seen(&register, 0, 5));
        register.pin(tag(2, 0, 5), 5, 6);
        assert!(!seen(&register, 1, 7), "write 1 applied again");
        assert!(register.may_be_durable(tag(1, 0, 5), 7), "the cache may be ahead of the medium");
    }

    #[test]
    fn a_failed_write_may_have_happened_until_the_next_good_one() {
        let mut register = Register::fresh(0);
        register.begin(1, false, 1);
        register.end(1, false, 2, 0);
        assert!(seen(&register, 0, 3) && seen(&register, 1, 3));
        register.begin(2, false, 4);
        register.end(2, true, 5, NEVER);
        assert!(!seen(&register, 0, 6) && !seen(&register, 1, 6) && seen(&register, 2, 6));
    }

    #[test]
    fn a_read_from_before_a_shrink_may_bring_what_was_there_then() {
        let mut register = Register::fresh(0);
        register.begin(1, false, 1);
        register.end(1, true, 2, 0);
        register.renew(5);
        assert!(seen(&register, 1, 4), "its piece here was done before the shrink");
        assert!(!seen(&register, 1, 6), "a read of the new space");
        assert!(seen(&register, 0, 6));
    }

    #[test]
    fn a_discard_leaves_the_old_value_possible() {
        let mut register = Register::fresh(0);
        register.begin(1, false, 1);
        register.end(1, true, 2, 0);
        register.begin(2, true, 3);
        register.end(2, false, 4, 0);
        assert!(seen(&register, 0, 5) && seen(&register, 1, 5));
    }
}
