//! Which record comes next: the rules that make a log of self-validating records a chain.
//!
//! Recovery starts at a place that a checkpoint names and follows the log as long as records are
//! accepted. A record is accepted if all of this holds:
//!
//! | rule | keeps out |
//! |---|---|
//! | its sequence is the next one | gaps: what follows a lost record is lost too |
//! | it names the hash of the record before it | records of an earlier life of the segment |
//! | its epoch is not below its predecessor's, and not above the volume's | the same |
//! | behind the fence's sequence its epoch is at least the fence's | tails that were given up |
//!
//! Whether header, table and body are whole has been checked before. The next record lies right
//! behind the last one, or at the start of the segment that the last one named as next; the first
//! place is tried first.
//!
//! The tricky case is the fence. A recovery that ends at record P writes "behind P only epoch E or
//! later" into a checkpoint, with E one more than any epoch before. Without it, a record P+1 of
//! the old life that surfaces later (it was in a cache, its neighbours were not) could be chained
//! to by nothing but luck; with it, it is refused by rule.

use crate::record::{LogPlace, Record, RecordHead, RecordRules};
use core::fmt;

/// Records behind `sequence` count only from `epoch` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    /// The last record of the life before.
    pub sequence: u64,
    /// The first epoch that may go on.
    pub epoch: u32,
}

/// Where the log stands: what the next record must be, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The sequence it must have.
    pub next_sequence: u64,
    /// The hash it must name.
    pub previous_hash: u64,
    /// The lowest epoch it may have: its predecessor's.
    pub epoch_floor: u32,
    /// The highest epoch it may have: the volume's.
    pub epoch_ceiling: u32,
    /// The fence.
    pub fence: Fence,
    /// Where it may lie, right behind the last record.
    pub place: LogPlace,
    /// The segment where it may begin otherwise.
    pub next_segment: u32,
}

/// Why a whole record does not continue the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainFault {
    /// Another sequence.
    Sequence,
    /// It follows another record.
    Hash,
    /// An epoch below the predecessor's or above the volume's.
    Epoch,
    /// A lost tail, shut out by an earlier recovery.
    Fence,
}

/// Which rules hold. All of them, except in the tests that show what each is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainRules {
    /// The previous record's hash is compared.
    pub hash: bool,
    /// Epochs are compared.
    pub epoch: bool,
    /// The fence is respected.
    pub fence: bool,
}

impl Default for ChainRules {
    fn default() -> ChainRules {
        ChainRules { hash: true, epoch: true, fence: true }
    }
}

impl Chain {
    /// Whether a record with this header is the next one.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check(&self, head: &RecordHead) -> Result<(), ChainFault> {
        self.check_with(head, ChainRules::default())
    }

    /// As [`Chain::check`], with some of the rules.
    ///
    /// # Errors
    /// Why it is not the next one.
    pub fn check_with(&self, head: &RecordHead, rules: ChainRules) -> Result<(), ChainFault> {
        if head.sequence != self.next_sequence {
            return Err(ChainFault::Sequence);
        }
        if rules.hash && head.previous_hash != self.previous_hash {
            return Err(ChainFault::Hash);
        }
        if rules.epoch && !(self.epoch_floor..=self.epoch_ceiling).contains(&head.epoch) {
            return Err(ChainFault::Epoch);
        }
        let is_behind = head.sequence > self.fence.sequence;
        if rules.fence && is_behind && head.epoch < self.fence.epoch {
            return Err(ChainFault::Fence);
        }
        Ok(())
    }

    /// The places where the next record may lie, in the order they are tried.
    pub fn places(&self, rules: &RecordRules) -> impl Iterator<Item = LogPlace> + use<> {
        let here = rules.has_room(self.place.offset_bytes).then_some(self.place);
        here.into_iter().chain([LogPlace { segment: self.next_segment, offset_bytes: 0 }])
    }

    /// Goes on behind `record`, which was accepted at `place`.
    pub fn follow(&mut self, place: LogPlace, record: &Record<'_>) {
        self.next_sequence = record.head.sequence.wrapping_add(1);
        self.previous_hash = record.hash;
        self.epoch_floor = record.head.epoch;
        self.next_segment = record.head.next_segment;
        let offset_bytes = place.offset_bytes + record.total_bytes;
        self.place = LogPlace { segment: place.segment, offset_bytes };
    }
}

impl fmt::Display for ChainFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ChainFault::Sequence => "has another sequence",
            ChainFault::Hash => "follows another record",
            ChainFault::Epoch => "is of another epoch",
            ChainFault::Fence => "is of a tail that an earlier recovery gave up",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Chain, ChainFault, ChainRules, Fence};
    use crate::record::tests::{RULES, record};
    use crate::record::{LogPlace, Record, RecordHead};
    use alloc::vec::Vec;

    const CHAIN: Chain = Chain {
        next_sequence: 10,
        previous_hash: 77,
        epoch_floor: 2,
        epoch_ceiling: 5,
        fence: Fence { sequence: 12, epoch: 5 },
        place: LogPlace { segment: 1, offset_bytes: 16384 - 512 },
        next_segment: 6,
    };
    const HEAD: RecordHead = RecordHead {
        sequence: 10,
        epoch: 3,
        next_segment: 8,
        previous_hash: 77,
        durable_sequence: 0,
        flags: 0,
        segment: 6,
    };

    #[test]
    fn every_rule_refuses_and_only_while_it_holds() {
        let off = ChainRules { hash: false, epoch: false, fence: false };
        let cases = [
            (RecordHead { previous_hash: 78, ..HEAD }, ChainFault::Hash),
            (RecordHead { epoch: 1, ..HEAD }, ChainFault::Epoch),
            (RecordHead { epoch: 6, ..HEAD }, ChainFault::Epoch),
        ];
        for (head, fault) in cases {
            assert_eq!(CHAIN.check(&head), Err(fault));
            assert_eq!(CHAIN.check_with(&head, off), Ok(()));
        }
        for sequence in [9, 11] {
            let head = RecordHead { sequence, ..HEAD };
            assert_eq!(CHAIN.check_with(&head, off), Err(ChainFault::Sequence));
        }
        assert_eq!(CHAIN.check(&HEAD), Ok(()));
    }

    #[test]
    fn behind_the_fence_only_the_new_epoch_counts() {
        let chain = Chain { next_sequence: 13, ..CHAIN };
        let old = RecordHead { sequence: 13, epoch: 4, ..HEAD };
        assert_eq!(chain.check(&old), Err(ChainFault::Fence));
        assert_eq!(chain.check(&RecordHead { epoch: 5, ..old }), Ok(()));
        let before = Chain { next_sequence: 12, ..CHAIN };
        assert_eq!(before.check(&RecordHead { sequence: 12, ..old }), Ok(()));
    }

    #[test]
    fn the_chain_goes_on_in_the_segment_that_was_named() {
        let mut chain = CHAIN;
        let places: Vec<_> = chain.places(&RULES).collect();
        assert_eq!(places, [chain.place, LogPlace { segment: 6, offset_bytes: 0 }]);
        let (bytes, sealed) = record(&HEAD, 1);
        let parsed = Record::parse(&RULES, places[1], &bytes).expect("whole");
        chain.follow(places[1], &parsed);
        assert_eq!(chain.place, LogPlace { segment: 6, offset_bytes: sealed.total_bytes });
        assert_eq!((chain.next_sequence, chain.next_segment, chain.epoch_floor), (11, 8, 3));
        assert_eq!(chain.previous_hash, sealed.hash);
        chain.place.offset_bytes = 16384;
        assert_eq!(chain.places(&RULES).count(), 1);
    }
}
