//! `io-affinity`: each CPU has its path. A "CPU" is a lane here, by number.
//!
//! The path of the submitting lane is chosen if it has one that has not failed; otherwise the first
//! path that has not failed, by the lowest lane that is mapped to one (udm knows no NUMA nodes: all
//! lanes count as one).
//!
//! Selector arguments: any, ignored. Path argument: exactly one mask, hexadecimal words separated
//! by commas, the last word holding lanes 0 to 31. A lane that another path owns already is
//! skipped; a path for which none is left is refused. INFO shows how often a lane without a path
//! submitted (one count for the whole selector, repeated for each path), TABLE the mask.
//!
//! The tricky case is the mask's width: Linux pads it to the number of CPUs. A table line does not
//! know how many lanes there are, so only words after the first are padded.

use super::{Load, PathSelector, Selector, SelectorConfig, WordGroup};
use crate::multipath::counters::PathView;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;
use udm_core::{ErrorCode, UserError};
use udm_types::{LaneId, Nanos};

/// Words in a mask: as many lanes as a lane's number can name.
const MASK_WORDS_MAX: usize = (u16::MAX as usize + 1) / 32;

/// The part of the table line.
#[derive(Default)]
pub(super) struct Config {
    /// The masks as given, lowest word first.
    masks: Vec<Vec<u32>>,
    /// The path that owns a lane, by lane.
    owners: Vec<Option<u32>>,
}

/// Parses `1f,00000001` to words, lowest first.
fn parse_mask(text: &str) -> Option<Vec<u32>> {
    let mut words = Vec::new();
    for word in text.rsplit(',') {
        let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !digits || word.len() > 8 || words.len() == MASK_WORDS_MAX {
            return None;
        }
        words.push(u32::from_str_radix(word, 16).ok()?);
    }
    while words.len() > 1 && words.last() == Some(&0) {
        words.pop();
    }
    Some(words)
}

/// The lanes of a mask.
fn lanes_of(mask: &[u32]) -> impl Iterator<Item = usize> {
    let set = |(word, bits): (usize, &u32)| {
        let bits = *bits;
        (0..32).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word * 32 + bit)
    };
    mask.iter().enumerate().flat_map(set)
}

impl SelectorConfig for Config {
    fn name(&self) -> &'static str {
        "io-affinity"
    }

    fn add_path(&mut self, words: &mut WordGroup<'_, '_>) -> Result<(), UserError> {
        if words.count() != 1 {
            let count = words.count();
            return Err(
                words.refuse(format!("io-affinity: invalid number of arguments ({count}, not 1)"))
            );
        }
        let text = words.word("the cpumask")?.unwrap_or_default();
        let Some(mask) = parse_mask(text) else {
            let text = format!("io-affinity: invalid cpumask '{text}'");
            return Err(words.args.previous(UserError::new(ErrorCode::BadNumber, text)));
        };
        let path = self.masks.len() as u32;
        let mut owned = false;
        for lane in lanes_of(&mask) {
            if self.owners.len() <= lane {
                self.owners.resize(lane + 1, None);
            }
            if self.owners[lane].is_none() {
                self.owners[lane] = Some(path);
                owned = true;
            }
        }
        if !owned {
            return Err(words.refuse("io-affinity: No new/valid CPU mapping found".into()));
        }
        self.masks.push(mask);
        Ok(())
    }

    fn table_words(&self) -> usize {
        1
    }

    fn info_words(&self) -> usize {
        1
    }

    fn print_table(&self, path: usize, text: &mut String) {
        let mut words = self.masks[path].iter().rev();
        if let Some(word) = words.next() {
            write!(text, "{word:x}").expect("invariant: writing to a string succeeds");
        }
        for word in words {
            write!(text, ",{word:08x}").expect("invariant: writing to a string succeeds");
        }
        text.push(' ');
    }

    fn print_info(&self, _path: usize, view: &PathView<'_>, text: &mut String) {
        write!(text, "{} ", view.own_count()).expect("invariant: writing to a string succeeds");
    }

    fn explain(&self, path: usize, _words: &[u64]) -> String {
        let owners = self.owners.iter().enumerate();
        let lanes: Vec<String> = owners
            .filter(|(_, owner)| **owner == Some(path as u32))
            .map(|(lane, _)| format!("{lane}"))
            .collect();
        format!("the path of lanes {}", lanes.join(","))
    }

    fn start(&self) -> Selector {
        Selector::IoAffinity(IoAffinity::new(self.owners.clone(), self.masks.len()))
    }
}

/// At work on one lane.
pub(crate) struct IoAffinity {
    owners: Vec<Option<u32>>,
    failed: Vec<bool>,
    misses: u64,
}

impl IoAffinity {
    fn new(owners: Vec<Option<u32>>, paths: usize) -> IoAffinity {
        IoAffinity { owners, failed: vec![false; paths], misses: 0 }
    }
}

impl PathSelector for IoAffinity {
    #[inline]
    fn select(&mut self, _bytes: u64, _: &[Load], lane: LaneId, _now: Nanos) -> Option<u32> {
        match self.owners.get(lane.index()).copied().flatten() {
            Some(path) if !self.failed[path as usize] => return Some(path),
            Some(_) => {}
            None => self.misses += 1,
        }
        self.owners.iter().flatten().copied().find(|&path| !self.failed[path as usize])
    }

    fn fail_path(&mut self, path: u32) {
        self.failed[path as usize] = true;
    }

    fn reinstate_path(&mut self, path: u32) {
        self.failed[path as usize] = false;
    }

    fn own_count(&self) -> u64 {
        self.misses
    }
}

#[cfg(test)]
mod tests {
    use super::{IoAffinity, lanes_of, parse_mask};
    use crate::multipath::selectors::PathSelector;
    use alloc::vec;
    use alloc::vec::Vec;
    use udm_types::{LaneId, Nanos};

    fn select(it: &mut IoAffinity, lane: u16) -> Option<u32> {
        it.select(512, &[], LaneId(lane), Nanos::ZERO)
    }

    #[test]
    fn masks_are_hexadecimal_words() {
        assert_eq!(parse_mask("1"), Some(vec![1]));
        assert_eq!(parse_mask("1,0"), Some(vec![0, 1]));
        assert_eq!(parse_mask("00000000,0000000F"), Some(vec![15]));
        for bad in ["", ",", "1,", "x", "123456789", "-1", "0x1"] {
            assert_eq!(parse_mask(bad), None, "{bad}");
        }
        let lanes: Vec<usize> = lanes_of(&[0x8000_0001, 2]).collect();
        assert_eq!(lanes, [0, 31, 33]);
    }

    #[test]
    fn each_lane_uses_its_path_and_the_first_other_if_that_has_failed() {
        let mut it = IoAffinity::new(vec![Some(1), Some(0), Some(1)], 2);
        assert_eq!([0, 1, 2].map(|lane| select(&mut it, lane)), [Some(1), Some(0), Some(1)]);
        assert_eq!(it.own_count(), 0);
        it.fail_path(1);
        assert_eq!([0, 1, 2].map(|lane| select(&mut it, lane)), [Some(0); 3]);
        assert_eq!(it.own_count(), 0, "a lane whose path has failed is no miss");
        it.reinstate_path(1);
        assert_eq!(select(&mut it, 7), Some(1), "the path of the lowest lane");
        assert_eq!(it.own_count(), 1);
        it.fail_path(0);
        it.fail_path(1);
        assert_eq!(select(&mut it, 0), None);
    }
}
