//! From meaning to table: which targets realise a node this time.
//!
//! The same parts can be said in many ways: one linear or several, a stripe of one, a delay, a
//! hold, a flakey that is always up, a striped part as a row of linears by chunk. Each swap draws
//! again, so data must survive every change of form. Some forms change what may be expected: a
//! delay or hold changes the order of I/O, a flakey that goes down makes it fail; the result says
//! so.
//!
//! `invent` draws new parts: for a new volume, for growing, and for moving data elsewhere.
//!
//! The tricky case is alignment. All lengths, starts and chunks are multiples of the world's
//! logical block, since a table that cuts a block is refused at load (and refusing is tested
//! elsewhere).

use crate::layout::{Below, Leg, Meaning, Node, Part, SpaceMap, Stack};
use crate::state::Canary;
use crate::swarm::Swarm;
use crate::vault;
use fastrand::Rng;
use std::fmt::Write;
use udm_types::Sector;

/// A table for a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dress {
    /// The table text.
    pub text: String,
    /// It keeps the order of I/O.
    pub orderly: bool,
    /// It may fail by design.
    pub may_fail: bool,
    /// The paths of a multipath table.
    pub paths: Vec<usize>,
    /// How many groups they are in.
    pub groups: usize,
    /// How often these paths had come back smaller when the table was drawn.
    pub misfits: u64,
}

/// Draws tables.
pub(crate) struct Dresser<'a> {
    /// The world's dice.
    pub rng: &'a mut Rng,
    /// What may happen.
    pub swarm: &'a Swarm,
    /// A planted bug.
    pub canary: Option<Canary>,
    /// Plain forms only.
    pub plain: bool,
    /// Paths a multipath table may name.
    pub ways: Vec<usize>,
    /// What is drawn so far.
    pub(crate) dress: Dress,
    begin: Sector,
}

impl<'a> Dresser<'a> {
    /// A dresser that takes nothing back.
    pub(crate) fn new(rng: &'a mut Rng, swarm: &'a Swarm, canary: Option<Canary>) -> Dresser<'a> {
        let dress = Dress { orderly: true, ..Dress::default() };
        Dresser { rng, swarm, canary, plain: false, ways: Vec::new(), dress, begin: 0 }
    }

    /// A table for a node of a stack.
    pub(crate) fn dress(mut self, stack: &Stack, node: usize) -> Dress {
        if let Some(multi) = &stack.nodes[node].multi {
            self.multipath(multi, stack.nodes[node].len_sectors());
            return self.dress;
        }
        for part in &stack.nodes[node].parts {
            self.part(stack, part);
        }
        if self.canary == Some(Canary::LongTable) && node == 0 {
            let block = self.swarm.block_sectors;
            self.line(block, "zero");
        }
        self.dress
    }

    pub(crate) fn line(&mut self, len: Sector, rest: &str) {
        let ok = writeln!(self.dress.text, "{} {len} {rest}", self.begin);
        debug_assert!(ok.is_ok(), "writing to a string cannot fail");
        self.begin += len;
    }

    fn part(&mut self, stack: &Stack, part: &Part) {
        match &part.meaning {
            Meaning::Zero => self.line(part.len, "zero"),
            Meaning::Error => self.line(part.len, "error"),
            Meaning::Linear(leg) => self.linear(stack, *leg, part.len),
            Meaning::Striped { chunk, legs } => self.striped(stack, *chunk, legs, part.len),
            Meaning::Vault { disk, is_tight } => {
                self.dress.orderly = false;
                let line = vault::line(*disk, *is_tight, self.rng);
                self.line(part.len, &line);
            }
        }
    }

    fn striped(&mut self, stack: &Stack, chunk: Sector, legs: &[Leg], len: Sector) {
        let chunks = len / chunk;
        if chunks <= 12 && self.rng.u32(0..3) == 0 {
            for index in 0..chunks {
                let count = legs.len() as u64;
                let leg = legs[(index % count) as usize];
                let leg = Leg { start: leg.start + index / count * chunk, ..leg };
                self.linear(stack, leg, chunk);
            }
            return;
        }
        let mut rest = format!("striped {} {chunk}", legs.len());
        for leg in legs {
            rest.push_str(&format!(" {}", shown(stack, *leg)));
        }
        self.line(len, &rest);
    }

    /// True if what a leg stands on answers every I/O in the end, whatever paths do.
    fn answers(&self, leg: Leg) -> bool {
        self.swarm.luns == 0 || matches!(leg.below, Below::Disk(_))
    }

    fn linear(&mut self, stack: &Stack, leg: Leg, len: Sector) {
        let block = self.swarm.block_sectors;
        let device = shown(stack, leg);
        let form = self.rng.u32(0..10);
        if self.canary == Some(Canary::WrongSector) && len > 2 * block && !self.plain {
            let bad = self.rng.u64(1..len / block) * block;
            return self.line(len, &format!("skew {device} {bad}"));
        }
        match form {
            0 | 1 if len >= 2 * block => {
                let cut = self.rng.u64(1..len / block) * block;
                self.line(cut, &format!("linear {device}"));
                let second = Leg { start: leg.start + cut, ..leg };
                self.linear(stack, second, len - cut);
            }
            2 => {
                let count = len / block;
                let rows = (1..=count.min(6)).filter(|&rows| count.is_multiple_of(rows));
                let rows: Vec<u64> = rows.collect();
                let chunk = len / rows[self.rng.usize(0..rows.len())];
                self.line(len, &format!("striped 1 {chunk} {device}"));
            }
            3 if self.swarm.delay && !self.plain => {
                self.dress.orderly = false;
                let (read, write) = (self.rng.u32(0..40), self.rng.u32(0..80));
                let rest = match self.rng.u32(0..3) {
                    0 => format!("delay {device} {read}"),
                    1 => format!("delay {device} {read} {device} {write}"),
                    _ => format!("delay {device} {read} {device} {write} {device} 3"),
                };
                self.line(len, &rest);
            }
            4 | 5
                if (self.swarm.hold || self.canary == Some(Canary::HoldForever)) && !self.plain =>
            {
                self.dress.orderly = false;
                let stubborn = self.canary == Some(Canary::HoldForever);
                let every = self.rng.u64(1..5) + u64::from(stubborn) * super::hold::STUBBORN;
                let hold_ms = self.rng.u32(1..200);
                self.line(len, &format!("hold {device} {every} {hold_ms}"));
            }
            6 => self.line(len, &format!("flakey {device} 1 0")),
            7 if self.swarm.flakey && !self.plain => {
                self.dress.may_fail = true;
                self.dress.orderly = false;
                let feature = ["", " 1 error_reads", " 1 error_writes"][self.rng.usize(0..3)];
                let (up, down) = (self.rng.u32(0..2), self.rng.u32(1..2));
                self.line(len, &format!("flakey {device} {up} {down}{feature}"));
            }
            // Its resume waits for an I/O of its own; one for a device whose paths are all gone
            // would wait until somebody gives it up, and this world waits for the resume.
            8 if self.swarm.hold && !self.plain && self.answers(leg) => {
                self.dress.orderly = false;
                let (home, batch) = (self.rng.u32(0..4), self.rng.u32(1..6));
                let background_ms = self.rng.u32(0..3) * 7;
                self.line(len, &format!("worker {device} {home} {batch} {background_ms} 1 5"));
            }
            _ => self.line(len, &format!("linear {device}")),
        }
    }
}

fn blank(name: String) -> Node {
    Node {
        name,
        id: None,
        parts: Vec::new(),
        orderly: true,
        window: None,
        multi: None,
        odd_sizes: false,
    }
}

fn shown(stack: &Stack, leg: Leg) -> String {
    match leg.below {
        Below::Disk(disk) => format!("disk{disk} {}", leg.start),
        Below::Node(node) => format!("dm:{} {}", stack.nodes[node].name, leg.start),
    }
}

/// Draws meanings.
pub(crate) struct Inventor<'a> {
    /// The world's dice.
    pub rng: &'a mut Rng,
    /// What may happen.
    pub swarm: &'a Swarm,
    /// Free space.
    pub space: &'a mut SpaceMap,
}

impl Inventor<'_> {
    /// A new stack; `None` if the disks are full. `name` begins the names of its devices.
    pub(crate) fn stack(&mut self, name: &str) -> Option<Stack> {
        let mut stack = Stack::default();
        let depth = self.rng.usize(1..=self.swarm.stack_depth);
        self.node(&mut stack, name, depth, 0)?;
        Some(stack)
    }

    /// A compress volume on this disk.
    pub(crate) fn vault(&mut self, name: &str, disk: usize, is_tight: bool) -> Stack {
        let len = self.rng.u64(1..=vault::BLOCKS_MAX) * vault::BLOCK_SECTORS;
        let parts = vec![Part { len, meaning: Meaning::Vault { disk, is_tight } }];
        Stack { nodes: vec![Node { parts, ..blank(format!("{name}n0")) }] }
    }

    /// Adds a node of at least `least` sectors and what it stands on; returns its index.
    fn node(
        &mut self,
        stack: &mut Stack,
        name: &str,
        depth: usize,
        least: Sector,
    ) -> Option<usize> {
        let index = stack.nodes.len();
        let own_name = format!("{name}n{index}");
        stack.nodes.push(blank(own_name));
        if depth == 1 && self.rng.u32(0..4) != 0 && self.multipath(stack, index, least) {
            return Some(index);
        }
        let parts = self.rng.usize(1..=3);
        let mut count = 0;
        while count < parts || stack.nodes[index].len_sectors() < least {
            let part = self.part(stack, name, depth)?;
            stack.nodes[index].parts.push(part);
            count += 1;
        }
        Some(index)
    }

    fn part(&mut self, stack: &mut Stack, name: &str, depth: usize) -> Option<Part> {
        let units = match self.rng.u32(0..4) {
            0 => self.rng.u64(1..6),
            _ => self.rng.u64(6..72),
        };
        if depth > 1 && self.rng.u32(0..5) != 0 {
            let len = units * self.swarm.block_sectors;
            let node = self.node(stack, name, depth - 1, len)?;
            let room = (stack.nodes[node].len_sectors() - len) / self.swarm.block_sectors;
            let start = self.rng.u64(0..=room) * self.swarm.block_sectors;
            let leg = Leg { below: Below::Node(node), start };
            return Some(Part { len, meaning: Meaning::Linear(leg) });
        }
        if self.swarm.regions && self.rng.u32(0..6) == 0 {
            let meaning = if self.rng.bool() { Meaning::Zero } else { Meaning::Error };
            return Some(Part { len: units.min(12) * self.swarm.block_sectors, meaning });
        }
        self.on_disks(units)
    }

    /// A part on fresh disk space, of about so many units.
    pub(crate) fn on_disks(&mut self, units: u64) -> Option<Part> {
        let block = self.swarm.block_sectors;
        if self.swarm.striped && self.rng.u32(0..3) == 0 {
            let legs = self.rng.u64(2..=4);
            let chunk_units = self.rng.u64(1..=8).min(units);
            let rows = (units / (legs * chunk_units)).max(1);
            let chunk = chunk_units * block;
            return self.striped_on_disks(legs * rows * chunk, chunk, legs);
        }
        self.linear_on_disks(units * block)
    }

    /// Another part of the same length on fresh disk space.
    pub(crate) fn replacement(&mut self, len: Sector) -> Option<Part> {
        let units = len / self.swarm.block_sectors;
        let legs = self.rng.u64(2..=4);
        if !self.swarm.striped || !units.is_multiple_of(legs) || self.rng.bool() {
            return self.linear_on_disks(len);
        }
        let row_units = units / legs;
        let divisors: Vec<u64> =
            (1..=row_units).filter(|&part| row_units.is_multiple_of(part)).collect();
        let chunk = divisors[self.rng.usize(0..divisors.len())] * self.swarm.block_sectors;
        self.striped_on_disks(len, chunk, legs)
    }

    fn linear_on_disks(&mut self, len: Sector) -> Option<Part> {
        let leg = self.space.take(len, self.rng)?;
        Some(Part { len, meaning: Meaning::Linear(leg) })
    }

    fn striped_on_disks(&mut self, len: Sector, chunk: Sector, count: u64) -> Option<Part> {
        let mut legs = Vec::new();
        for _ in 0..count {
            legs.push(self.space.take(len / count, self.rng)?);
        }
        Some(Part { len, meaning: Meaning::Striped { chunk, legs } })
    }
}
