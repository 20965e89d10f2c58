//! Workloads: what is done to a subject, drawn from a seed once and then fixed.
//!
//! A plan is a list of lives, each a list of steps, each an action and how many moves the disk and
//! the subject make after it. A step carries its own seed and number, so steps can be left out
//! without changing the others: that is what shrinking does, and what `--keep` names.
//!
//! Each plan has a mood (swarm): which actions are frequent, how deep requests are queued, how
//! many crashes are only deaths of the program. Bugs like company of the right kind; a mean of all
//! moods would find fewer.
//!
//! The tricky case is a life without a flush for long: most unflushed states are born there, so
//! one mood makes only those.

use crate::crash::stamp::Style;
use crate::crash::subject::Shape;
use fastrand::Rng;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Write data.
    Write { first: usize, len: usize, style: Style, fua: bool, preflush: bool },
    /// Write one word all through.
    Fill { first: usize, len: usize, word: u32, fua: bool },
    /// Write zeroes, as data or as an operation of its own.
    Zeroes { first: usize, len: usize, as_data: bool, fua: bool },
    /// Discard.
    Discard { first: usize, len: usize },
    /// Flush.
    Flush,
    /// Read.
    Read { first: usize, len: usize },
    /// Order a checkpoint.
    Checkpoint,
    /// Order cleaning.
    Clean(u32),
    /// Stop as for a suspend, and go on.
    Suspend { flush: bool },
    /// Let time pass.
    Wait { millis: u64 },
    /// The clock jumps: a machine that slept for years, or a clock that was set back.
    Jump { millis: u64, forward: bool },
    /// Order a scrub.
    Scrub,
    /// Give the device another size, and the disk below so many bytes more; with neither, let it
    /// use no more of the disk than it had at first.
    Resize { len: Option<usize>, disk_bytes: u64 },
}

/// An action, and what happens after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Its number in the plan; also the number of its request.
    pub(crate) nr: u32,
    /// What.
    pub(crate) action: Action,
    /// Seed of everything that happens until the next step.
    pub(crate) seed: u64,
    /// Moves of disk and subject after it.
    pub(crate) moves: u32,
}

/// From an opening to a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    /// In order.
    pub(crate) steps: Vec<Step>,
    /// Seed of the crash that ends it.
    pub(crate) seed: u64,
    /// Requests open at a time.
    pub(crate) depth: usize,
    /// Of a hundred crashes, how many are deaths of the program.
    pub(crate) process_percent: u32,
    /// Of a thousand writes, how many fail; only in the last life, since it may end read-only.
    pub(crate) faults_per_mille: u32,
    /// The disk takes as long over its discards as it can.
    pub(crate) is_lazy: bool,
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Where it came from.
    pub(crate) seed: u64,
    /// One after the other, on one disk.
    pub(crate) lives: Vec<Life>,
}

/// How frequent each kind of action is, in parts.
#[derive(Clone, Copy)]
struct Mood {
    write: u32,
    fill: u32,
    zeroes: u32,
    discard: u32,
    flush: u32,
    read: u32,
    checkpoint: u32,
    clean: u32,
    suspend: u32,
    wait: u32,
    jump: u32,
    scrub: u32,
    resize: u32,
    fua_percent: u32,
    moves_max: u32,
    depth_max: usize,
    process_percent: u32,
}

const EVERYDAY: Mood = Mood {
    write: 50,
    fill: 3,
    zeroes: 4,
    discard: 6,
    flush: 9,
    read: 8,
    checkpoint: 5,
    clean: 4,
    suspend: 2,
    wait: 3,
    jump: 1,
    scrub: 1,
    resize: 1,
    fua_percent: 5,
    moves_max: 12,
    depth_max: 8,
    process_percent: 25,
};
/// Long unflushed tails.
const CARELESS: Mood =
    Mood { flush: 1, fua_percent: 0, suspend: 0, wait: 14, moves_max: 24, ..EVERYDAY };
/// A data base: flush after each few writes.
const CAREFUL: Mood =
    Mood { flush: 35, fua_percent: 30, write: 40, discard: 2, depth_max: 4, ..EVERYDAY };
/// Mostly background work.
const TIDYING: Mood =
    Mood { checkpoint: 22, clean: 22, write: 60, moves_max: 30, depth_max: 3, ..EVERYDAY };
/// The program dies all the time.
const MORTAL: Mood =
    Mood { process_percent: 70, flush: 4, checkpoint: 8, moves_max: 16, ..EVERYDAY };
/// Space comes and goes.
const FORGETFUL: Mood =
    Mood { discard: 30, zeroes: 10, fill: 10, checkpoint: 10, clean: 8, ..EVERYDAY };
/// Sizes change all the time, above and below.
const GROWING: Mood =
    Mood { resize: 14, discard: 10, checkpoint: 8, flush: 5, moves_max: 24, ..EVERYDAY };

impl Mood {
    fn draw(rng: &mut Rng) -> Mood {
        [EVERYDAY, EVERYDAY, CARELESS, CAREFUL, TIDYING, MORTAL, FORGETFUL, GROWING]
            [rng.usize(0..8)]
    }

    /// `device_len` is the size the device has if every resize ends well.
    fn action(&self, shape: &Shape, device_len: &mut usize, nr: u32, rng: &mut Rng) -> Action {
        let background = if shape.has_background { 1 } else { 0 };
        let sizes = if shape.growth_bytes > 0 { 1 } else { 0 };
        let parts = [
            self.write,
            self.fill,
            self.zeroes,
            self.discard,
            self.flush,
            self.read,
            self.checkpoint * background,
            self.clean * background,
            self.suspend,
            self.wait,
            self.jump,
            self.scrub * background,
            self.resize * sizes,
        ];
        let mut left = rng.u32(0..parts.iter().sum());
        let mut kind = 0;
        while left >= parts[kind] {
            left -= parts[kind];
            kind += 1;
        }
        let fua = rng.u32(0..100) < self.fua_percent;
        let (first, len) = range(shape, *device_len, rng);
        match kind {
            0 => {
                let style = [Style::Dense, Style::Half, Style::Half, Style::Noise][rng.usize(0..4)];
                Action::Write { first, len, style, fua, preflush: rng.u32(0..30) == 0 }
            }
            1 => Action::Fill { first, len, word: 0xf000_0000 | nr, fua },
            2 => Action::Zeroes { first, len, as_data: rng.bool(), fua },
            3 => Action::Discard { first, len },
            4 => Action::Flush,
            5 => Action::Read { first, len },
            6 => Action::Checkpoint,
            7 => Action::Clean(rng.u32(1..3)),
            8 => Action::Suspend { flush: rng.bool() },
            9 => Action::Wait { millis: rng.u64(1..1500) },
            10 => {
                let millis = 1 << rng.u32(0..40);
                Action::Jump { millis, forward: rng.bool() }
            }
            11 => Action::Scrub,
            _ => resize(shape, device_len, rng),
        }
    }
}

/// Another size above, more below, or both.
fn resize(shape: &Shape, device_len: &mut usize, rng: &mut Rng) -> Action {
    if rng.u32(0..3) == 0 {
        return Action::Resize { len: None, disk_bytes: 0 };
    }
    let grows = rng.u64(0..6);
    let disk_bytes = if rng.bool() { grows * shape.growth_bytes } else { 0 };
    if disk_bytes > 0 && rng.bool() {
        return Action::Resize { len: None, disk_bytes };
    }
    let blocks = rng.usize(1..=shape.len_sectors / shape.block_sectors);
    *device_len = blocks * shape.block_sectors;
    Action::Resize { len: Some(*device_len), disk_bytes }
}

/// A range: mostly a few whole blocks, at times odd sectors, seldom as long as it goes; a third of
/// all requests go to a hot sixteenth of the device, and few beyond its end.
fn range(shape: &Shape, device_len: usize, rng: &mut Rng) -> (usize, usize) {
    let block = shape.block_sectors;
    let len = if rng.u32(0..16) == 0 { shape.len_sectors } else { device_len };
    let blocks = len / block;
    let longest = shape.request_len_sectors.min(len);
    let place = if rng.u32(0..3) == 0 { blocks.div_ceil(16) } else { blocks };
    let first = rng.usize(0..place) * block;
    let (first, wanted) = match rng.u32(0..20) {
        0..=3 if block > 1 => (first + rng.usize(0..block), rng.usize(1..2 * block)),
        4 => (first, longest.min(block * rng.usize(1..64))),
        5 if block > 1 => (first + rng.usize(0..block), longest.min(rng.usize(1..64 * block))),
        _ => (first, block * rng.usize(1..7)),
    };
    let island_end = (first / shape.island_sectors + 1) * shape.island_sectors;
    (first, wanted.min(longest).min(len.min(island_end) - first))
}

/// How long lives are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Lives of a plan at most.
    pub(crate) lives: u32,
    /// Steps of a life at most.
    pub(crate) steps: u32,
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn draw(seed: u64, shape: &Shape, size: Size) -> Plan {
        let mut rng = Rng::with_seed(seed ^ 0x5eed_0001);
        let mood = Mood::draw(&mut rng);
        let lives = rng.u32(1..=size.lives);
        let is_faulty = rng.u32(0..12) == 0;
        let is_lazy = rng.u32(0..4) == 0;
        let mut nr = 0;
        let mut device_len = shape.first_len_sectors;
        let life = |last: bool, rng: &mut Rng| {
            let count = rng.u32(1..=size.steps);
            let mut steps = Vec::new();
            let depth = rng.usize(1..=mood.depth_max);
            for _ in 0..count {
                nr += 1;
                let action = mood.action(shape, &mut device_len, nr, rng);
                let moves = if rng.bool() { rng.u32(0..4) } else { rng.u32(0..=mood.moves_max) };
                steps.push(Step { nr, action, seed: rng.u64(..), moves });
            }
            Life {
                steps,
                seed: rng.u64(..),
                depth,
                process_percent: mood.process_percent,
                faults_per_mille: if last && is_faulty { 30 } else { 0 },
                is_lazy,
            }
        };
        let mut draw = life;
        let lives = (1..=lives).map(|at| draw(at == lives, &mut rng)).collect();
        Plan { seed, lives }
    }

    /// The same with only these steps.
    pub(crate) fn keep(&self, wanted: &[u32]) -> Plan {
        let mut plan = self.clone();
        for life in &mut plan.lives {
            life.steps.retain(|step| wanted.contains(&step.nr));
        }
        plan
    }

    /// The numbers of all steps.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.lives.iter().flat_map(|life| life.steps.iter().map(|step| step.nr)).collect()
    }
}
