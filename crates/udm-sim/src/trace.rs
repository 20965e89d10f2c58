//! The trace of a world: a hash over everything that happened, and the event log of a replay.
//!
//! Each event is a word and a few numbers. The hash (FNV-1a, 64 bits) is always kept: the same seed
//! twice must give the same hash, which is how a hidden clock, an address or a hash order would
//! show. Text is made only when somebody wants to read it (`--trace`), so that a search stays fast.
//!
//! The tricky case is an event that carries something that differs between two runs of one seed (a
//! pointer, a length of time by the wall clock): it must not be noted. Everything noted here comes
//! from the world's own numbers.

use udm_types::Nanos;

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// The trace of one world.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    events: u64,
    log: bool,
}

impl Trace {
    /// An empty trace; `log` prints every event to standard output.
    pub(crate) fn new(log: bool) -> Trace {
        Trace { hash: FNV_OFFSET, events: 0, log }
    }

    /// Notes an event.
    pub(crate) fn note(&mut self, now: Nanos, what: &str, numbers: &[u64]) {
        self.events += 1;
        for byte in what.bytes() {
            self.mix(u64::from(byte));
        }
        self.mix(now.0);
        for &number in numbers {
            self.mix(number);
        }
        if self.log {
            println!("{:>14.6} ms  {what} {numbers:?}", now.0 as f64 / 1e6);
        }
    }

    /// Notes an event of words, such as a table.
    pub(crate) fn note_text(&mut self, now: Nanos, what: &str, text: &str) {
        self.events += 1;
        self.mix(now.0);
        for byte in what.bytes().chain(text.bytes()) {
            self.mix(u64::from(byte));
        }
        if self.log {
            println!("{:>14.6} ms  {what} {text}", now.0 as f64 / 1e6);
        }
    }

    /// The hash so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Events so far.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    fn mix(&mut self, word: u64) {
        // A word at a time: this hash is compared, never attacked.
        self.hash = (self.hash ^ word).wrapping_mul(FNV_PRIME).rotate_left(23);
    }
}

#[cfg(test)]
mod tests {
    use super::Trace;
    use udm_types::Nanos;

    #[test]
    fn the_hash_depends_on_words_numbers_time_and_order() {
        let hash = |events: &[(u64, &str, u64)]| {
            let mut trace = Trace::new(false);
            for &(now, what, number) in events {
                trace.note(Nanos(now), what, &[number]);
            }
            trace.hash()
        };
        let base = hash(&[(1, "a", 1), (2, "b", 2)]);
        assert_eq!(base, hash(&[(1, "a", 1), (2, "b", 2)]));
        for other in [
            hash(&[(2, "b", 2), (1, "a", 1)]),
            hash(&[(1, "a", 1), (3, "b", 2)]),
            hash(&[(1, "a", 1), (2, "c", 2)]),
            hash(&[(1, "a", 1), (2, "b", 3)]),
        ] {
            assert_ne!(base, other);
        }
    }
}
