//! The table line of `flakey`: `DEVICE START UP_S DOWN_S [COUNT FEATURE...]`.
//!
//! COUNT is the number of words that follow, not of features. Features, in any order and case:
//!
//! ```text
//! error_reads                                reads fail
//! error_writes | drop_writes                 writes fail | complete and are not written
//! corrupt_bio_byte NTH r|w VALUE FLAGS       byte NTH (from 1) becomes VALUE
//! random_read_corrupt P                      with probability P billionths a random byte changes
//! random_write_corrupt P                     the same for writes
//! ```
//!
//! Without a feature that has an effect the line means `error_reads error_writes`, and is printed
//! so. Features that make each other pointless are refused: what drops or fails writes cannot also
//! corrupt them.

use super::corrupt::{FixedByte, PROBABILITY_BASE, Spoiler};
use super::map::{Flakey, Phases};
use crate::leg::Leg;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use udm_core::table::{Args, BuildCx};
use udm_core::target::{DeviceUse, TargetConfig, TargetTraits};
use udm_core::{ErrorCode, Target, UserError};
use udm_types::{LaneId, Sector};

/// Most feature words: every feature that can stand together, with its arguments.
const FEATURE_WORDS_MAX: u32 = 11;

/// What happens to writes while down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum WriteFault {
    /// They pass (perhaps corrupted).
    #[default]
    None,
    /// They complete and are not written.
    Drop,
    /// They fail.
    Error,
}

/// What the device does while down.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) error_reads: bool,
    pub(super) writes: WriteFault,
    fixed: Option<FixedByte>,
    random_read: Option<u32>,
    random_write: Option<u32>,
}

/// A parsed `flakey` line.
pub(super) struct FlakeyConfig {
    leg: Leg,
    len_sectors: Sector,
    phases: Phases,
    faults: Faults,
    seed: u64,
}

impl FlakeyConfig {
    pub(super) fn parse(
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<FlakeyConfig, UserError> {
        // Linux looks for the device when all behind it is right.
        let mut pair = args.clone();
        Leg::skip(args)?;
        let up_s = args.number32("the up interval in seconds", 0..=u32::MAX)?;
        let down_s = args.number32("the down interval in seconds", 0..=u32::MAX)?;
        match up_s.checked_add(down_s) {
            Some(0) => return Err(args.bad("both intervals are 0 seconds")),
            Some(_) => {}
            None => {
                return Err(args.bad(format!("up + down does not fit 32 bits: {up_s} + {down_s}")));
            }
        }
        let mut faults = Faults::default();
        if args.left() > 0 {
            faults.parse(args)?;
        }
        args.end()?;
        let leg = Leg::parse(&mut pair, cx)?;
        faults.fill_in();
        let phases = Phases { built_at: cx.now, up_s, down_s };
        Ok(FlakeyConfig { leg, len_sectors: cx.len_sectors, phases, faults, seed: cx.seed })
    }
}

/// Walks the feature words, knowing how many of the announced ones are left.
struct FeatureWords<'w, 'a> {
    args: &'w mut Args<'a>,
    left: u32,
    /// Where the feature's own word stands in the line.
    field: u32,
}

impl<'a> FeatureWords<'_, 'a> {
    fn next_feature(&mut self) -> Result<Option<&'a str>, UserError> {
        if self.left == 0 {
            return Ok(None);
        }
        let word = self.args.word("a feature")?;
        self.left -= 1;
        // Fields 1 to 3 are START, LENGTH and TYPE.
        let taken = self.args.line().args.len() - self.args.left();
        self.field = 3 + u32::try_from(taken).unwrap_or(u32::MAX - 3);
        Ok(Some(word))
    }

    fn number(&mut self, what: &str, min: u32, max: u32) -> Result<u32, UserError> {
        self.take(what)?;
        self.args.number32(what, min..=max)
    }

    fn word(&mut self, what: &str) -> Result<&'a str, UserError> {
        self.take(what)?;
        self.args.word(what)
    }

    /// Counts a word of the group off.
    fn take(&mut self, what: &str) -> Result<(), UserError> {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                Err(self.refuse(format!("{what} is missing: the count of features ends before")))
            }
        }
    }

    /// An error about the feature as a whole.
    fn refuse(&self, message: String) -> UserError {
        UserError::new(ErrorCode::BadArgument, message)
            .at_line(self.args.line().line)
            .at_field(self.field)
    }
}

impl Faults {
    fn parse(&mut self, args: &mut Args<'_>) -> Result<(), UserError> {
        let left = args.number32("the number of feature words", 0..=FEATURE_WORDS_MAX)?;
        if left as usize > args.left() {
            let found = args.left();
            return Err(args.bad(format!("{left} feature words announced, {found} follow")));
        }
        let mut words = FeatureWords { args, left, field: 0 };
        while let Some(word) = words.next_feature()? {
            self.parse_feature(word, &mut words)?;
            if let Some(conflict) = self.conflict() {
                return Err(words.refuse(conflict.into()));
            }
        }
        Ok(())
    }

    fn parse_feature(
        &mut self,
        word: &str,
        words: &mut FeatureWords<'_, '_>,
    ) -> Result<(), UserError> {
        let lower = word.to_ascii_lowercase();
        let twice = |words: &FeatureWords<'_, '_>| words.refuse(format!("{lower} is given twice"));
        match lower.as_str() {
            "error_reads" => {
                if core::mem::replace(&mut self.error_reads, true) {
                    return Err(twice(words));
                }
            }
            "drop_writes" => self.set_writes(WriteFault::Drop, words)?,
            "error_writes" => self.set_writes(WriteFault::Error, words)?,
            "corrupt_bio_byte" => {
                if self.fixed.replace(parse_fixed(words)?).is_some() {
                    return Err(twice(words));
                }
            }
            "random_read_corrupt" => {
                let p = words.number("the probability in billionths", 0, PROBABILITY_BASE)?;
                if self.random_read.replace(p).is_some() {
                    return Err(twice(words));
                }
            }
            "random_write_corrupt" => {
                let p = words.number("the probability in billionths", 0, PROBABILITY_BASE)?;
                if self.random_write.replace(p).is_some() {
                    return Err(twice(words));
                }
            }
            _ => {
                return Err(words.refuse(format!("there is no feature '{word}'")).hint(
                    "features: error_reads, error_writes, drop_writes, corrupt_bio_byte, \
                     random_read_corrupt, random_write_corrupt",
                ));
            }
        }
        Ok(())
    }

    fn set_writes(
        &mut self,
        fault: WriteFault,
        words: &FeatureWords<'_, '_>,
    ) -> Result<(), UserError> {
        if self.writes == fault {
            return Err(words.refuse("the feature is given twice".into()));
        }
        if self.writes != WriteFault::None {
            return Err(words.refuse("drop_writes and error_writes exclude each other".into()));
        }
        self.writes = fault;
        Ok(())
    }

    /// Why the features so far cannot stand together.
    fn conflict(&self) -> Option<&'static str> {
        let (reads, writes) = self.spoilers();
        if self.error_reads && !reads.is_idle() {
            return Some("reads that fail cannot be corrupted");
        }
        match self.writes {
            WriteFault::None => None,
            WriteFault::Drop | WriteFault::Error if writes.is_idle() => None,
            WriteFault::Drop => Some("writes that are dropped cannot be corrupted"),
            WriteFault::Error => Some("writes that fail cannot be corrupted"),
        }
    }

    /// No feature with an effect means: everything fails.
    fn fill_in(&mut self) {
        let (reads, writes) = self.spoilers();
        let corrupts = !reads.is_idle() || !writes.is_idle();
        if !corrupts && !self.error_reads && self.writes == WriteFault::None {
            self.error_reads = true;
            self.writes = WriteFault::Error;
        }
    }

    /// What is corrupted on reads and on writes.
    pub(super) fn spoilers(&self) -> (Spoiler, Spoiler) {
        let fixed = |on_write: bool| self.fixed.filter(|fixed| fixed.on_write == on_write);
        (
            Spoiler { fixed: fixed(false), random: self.random_read.unwrap_or(0) },
            Spoiler { fixed: fixed(true), random: self.random_write.unwrap_or(0) },
        )
    }

    /// The feature words as `table` prints them.
    fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        if self.error_reads {
            words.push("error_reads".into());
        }
        match self.writes {
            WriteFault::None => {}
            WriteFault::Drop => words.push("drop_writes".into()),
            WriteFault::Error => words.push("error_writes".into()),
        }
        if let Some(fixed) = self.fixed {
            let direction = if fixed.on_write { "w" } else { "r" };
            words.extend(["corrupt_bio_byte".into(), fixed.nth.to_string(), direction.into()]);
            words.extend([fixed.value.to_string(), fixed.flags.to_string()]);
        }
        for (word, p) in
            [("random_read_corrupt", self.random_read), ("random_write_corrupt", self.random_write)]
        {
            if let Some(p) = p.filter(|&p| p > 0) {
                words.extend([word.into(), p.to_string()]);
            }
        }
        words
    }
}

fn parse_fixed(words: &mut FeatureWords<'_, '_>) -> Result<FixedByte, UserError> {
    let nth = words.number("the byte to corrupt, counted from 1", 1, u32::MAX)?;
    let direction = words.word("the direction, r or w")?;
    let on_write = match direction {
        "w" | "W" => true,
        "r" | "R" => false,
        _ => return Err(words.args.bad(format!("expected r or w, found '{direction}'"))),
    };
    let value = words.number("the byte's new value", 0, u32::from(u8::MAX))?;
    let value = u8::try_from(value).expect("invariant: the range was checked");
    let flags = words.number("the mask of bio flags", 0, u32::MAX)?;
    Ok(FixedByte { nth, on_write, value, flags })
}

impl TargetConfig for FlakeyConfig {
    fn traits(&self) -> TargetTraits {
        let (reads, writes) = self.faults.spoilers();
        TargetTraits {
            write_zeroes_bios: 0,
            wants_end_io: !reads.is_idle() || !writes.is_idle(),
            ..TargetTraits::default()
        }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        vec![self.leg.part(self.len_sectors)]
    }

    fn table_args(&self) -> String {
        let words = self.faults.words();
        let Phases { up_s, down_s, .. } = self.phases;
        let mut text = format!("{} {up_s} {down_s} {}", self.leg.print(), words.len());
        for word in words {
            text.push(' ');
            text.push_str(&word);
        }
        text
    }

    fn instantiate(&self, lane: LaneId) -> Box<dyn Target> {
        Box::new(Flakey::new(self.leg.at(), self.phases, self.faults, self.seed, lane))
    }
}
