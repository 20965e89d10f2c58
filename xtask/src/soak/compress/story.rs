//! The story: one life after the other, each ended by a crash, each crash judged.
//!
//! Between two lives the disk is a file. A life over the recorded disk takes it into memory and
//! puts what is left of it into the next file; a life over the file has it below directly.
//!
//! Rules. A life ends in one of three ways (`End`), and what it leaves is the truth: the judge
//! looks at a copy of it, and the next life looks again, through the device and the kernel. A life
//! that ends otherwise is a finding.
//!
//! Two cases are tricky. The kernel may keep the files of a killed daemon open, and locked, for
//! minutes, and an operation of the dead may still land; so the file is copied, as it is at that
//! moment, and nobody opens it again. What had not landed was not done, so that is a legal state.
//! The other is the last cut of a life: the disk is copied, switched off and the ledgers are
//! copied under both locks at once, so nothing that happened later counts.

use super::Args;
use super::disk::RecordedDisk;
use super::judge::Judge;
use super::ledger::Ledger;
use super::life::{Begin, DISK_BYTES, LEN_SECTORS, Life, format};
use super::load::Ledgers;
use super::server::Shared;
use crate::soak::chaos::Random;
use crate::steps::Failed;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Workloads side by side.
const WORKLOADS: u64 = 2;
/// Power cuts of a life, at most.
const CUTS_MAX: u64 = 8;
/// How often each thing was done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    lives: u64,
    /// Power cuts that a life went on after, and those that ended one.
    cuts: u64,
    last_cuts: u64,
    /// Kills of the daemon over a file, and over the recorded disk.
    kills_file: u64,
    kills_recorded: u64,
    steps: u64,
    /// Swaps that were under way or done when the power was cut.
    changes: u64,
}

impl Counts {
    fn crashes(&self) -> u64 {
        self.cuts + self.last_cuts + self.kills_file + self.kills_recorded
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { lives, cuts, last_cuts, kills_file, kills_recorded, steps, changes } = self;
        write!(
            f,
            "{} crashes judged, nothing lost: {} power cuts ({last_cuts} of them ended a life), \
             kill -9 {kills_file} times over a file and {kills_recorded} over the recorded disk; \
             {lives} lives, {steps} steps of the workloads, {changes} swaps and resizes",
            self.crashes(),
            cuts + last_cuts
        )
    }
}

/// Crashes so often, and judges each time.
pub(super) fn crashes(udm: &Path, dir: &Path, args: &Args) -> Result<Counts, Failed> {
    let mut story = Story {
        udm: udm.to_owned(),
        dir: dir.to_owned(),
        judge: Judge::start(udm, dir)?,
        random: Random::new(args.seed),
        is_lying: args.lying_disk,
        ledgers: Arc::new(Ledgers::new(WORKLOADS)),
        counts: Counts::default(),
    };
    format(udm, dir, Path::new(&story.image()), DISK_BYTES, LEN_SECTORS)?;
    while story.counts.crashes() < args.kills {
        story.live(args.kills)?;
        story.counts.lives += 1;
        if story.counts.lives.is_multiple_of(10) {
            println!("{}", story.counts);
        }
    }
    Ok(story.counts)
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    KillOverFile,
    KillOverRecorded,
    PowerCut,
}

struct Story {
    udm: PathBuf,
    dir: PathBuf,
    judge: Judge,
    random: Random,
    ledgers: Arc<Ledgers>,
    counts: Counts,
    is_lying: bool,
}

impl Story {
    /// The disk of the life under way.
    fn image(&self) -> String {
        self.image_of(self.counts.lives)
    }

    fn image_of(&self, life: u64) -> String {
        self.dir.join(format!("disk-{life}.img")).display().to_string()
    }

    fn live(&mut self, kills: u64) -> Result<(), Failed> {
        let end = match self.random.below(6) {
            0 | 1 => End::KillOverFile,
            2 | 3 => End::KillOverRecorded,
            _ => End::PowerCut,
        };
        self.live_so(end, kills)
            .map_err(|failed| Failed::new(format!("life {}, {end:?}: {failed}", self.counts.lives)))
    }

    fn live_so(&mut self, end: End, kills: u64) -> Result<(), Failed> {
        let recorded = match end {
            End::KillOverFile => None,
            End::KillOverRecorded | End::PowerCut => {
                let bytes = fs::read(self.image()).map_err(Failed::to("read the disk"))?;
                let mut disk = RecordedDisk::new(bytes);
                disk.is_lying = self.is_lying;
                Some(disk)
            }
        };
        let begin = Begin {
            udm: &self.udm,
            dir: &self.dir,
            image: self.image(),
            recorded,
            ledgers: &self.ledgers,
            nr: self.counts.lives,
        };
        let mut life = Life::begin(begin, &mut self.random)?;
        let shared = life.disk();
        let cuts_max = if shared.is_some() { CUTS_MAX } else { 3 };
        let cuts = self.random.below(cuts_max).min(kills - self.counts.crashes());
        for _ in 0..cuts {
            life.disturb(&mut self.random)?;
            if let Some(shared) = &shared {
                self.cut(shared)?;
            }
            life.check()?;
        }
        life.disturb(&mut self.random)?;
        life.check_load()?;
        let last = match (end, &shared) {
            (End::PowerCut, Some(shared)) => Some(self.moment(shared, true)),
            (End::PowerCut | End::KillOverFile | End::KillOverRecorded, _) => None,
        };
        let is_written_through = life.is_written_through();
        self.counts.changes += life.changes;
        self.counts.steps += life.kill();
        let left = match last {
            Some((left, ledgers)) => {
                self.counts.last_cuts += 1;
                *self.ledgers.lock() = ledgers;
                left
            }
            None => self.after_kill(is_written_through, shared.as_deref())?,
        };
        self.take_stock(&left)
    }

    /// A power cut that the life does not notice.
    fn cut(&mut self, shared: &Shared) -> Result<(), Failed> {
        let (left, mut ledgers) = self.moment(shared, false);
        self.counts.cuts += 1;
        self.judge.judge(&left, LEN_SECTORS, &mut ledgers)
    }

    /// A legal state of the disk, and what is known at the same moment. With `is_last` the disk
    /// does nothing any more.
    fn moment(&mut self, shared: &Shared, is_last: bool) -> (Vec<u8>, Vec<Ledger>) {
        let ledgers = self.ledgers.lock();
        let mut disk = shared.disk();
        disk.is_off |= is_last;
        (disk.after_cut(&mut self.random), ledgers.clone())
    }

    /// What a killed daemon has left on the disk.
    fn after_kill(
        &mut self,
        is_written_through: bool,
        shared: Option<&Shared>,
    ) -> Result<Vec<u8>, Failed> {
        if is_written_through {
            self.ledgers.lock().iter_mut().for_each(Ledger::keep_written);
        }
        match shared {
            Some(shared) => {
                self.counts.kills_recorded += 1;
                Ok(shared.disk().after_death(&mut self.random))
            }
            None => {
                self.counts.kills_file += 1;
                fs::read(self.image()).map_err(Failed::to("read the disk"))
            }
        }
    }

    /// The disk a life left, and what is true from now on.
    fn take_stock(&mut self, left: &[u8]) -> Result<(), Failed> {
        let next = self.image_of(self.counts.lives + 1);
        fs::write(next, left).map_err(Failed::to("keep the disk"))?;
        let mut ledgers = self.ledgers.lock().clone();
        self.judge.judge(left, LEN_SECTORS, &mut ledgers)?;
        fs::remove_file(self.image()).map_err(Failed::to("remove the disk"))
    }
}
