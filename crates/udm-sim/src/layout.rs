//! What the tables mean: the model of a volume's stack, and where each of its sectors lives.
//!
//! A stack is a tree of mapped devices ([`Node`]); node 0 is the top, which the load uses. A node
//! is a row of [`Part`]s, each with a meaning (linear, striped, zero, error) whatever target
//! realises it in a table; `dress.rs` turns parts into table lines. So a swap can change every
//! target and keep the meaning, and the world knows at any time what a sector's place is without
//! asking the engine.
//!
//! Space on the disks comes from a [`SpaceMap`]. Space given back is not used again while
//! operations that are older may still land in it (an abandoned write that hangs).
//!
//! A compress volume has no places that the world could know: its sectors are data without a spot,
//! so what is read is judged, and what lies on its disk is not.
//!
//! The tricky case is a node used only in part by the node above: such sectors have no owner, and
//! I/O that reaches them is a violation.

use crate::oracle::Class;
use fastrand::Rng;
use udm_types::{DeviceId, Sector};

/// What a part stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    /// A simulated disk.
    Disk(usize),
    /// Another node of the stack.
    Node(usize),
}

/// A stretch of something below.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leg {
    /// What.
    pub below: Below,
    /// From where.
    pub start: Sector,
}

/// What a part of a node means.
#[derive(Clone, Debug)]
pub(crate) enum Meaning {
    /// One stretch.
    Linear(Leg),
    /// Chunks in turn.
    Striped {
        /// Chunk length.
        chunk: Sector,
        /// The stripes.
        legs: Vec<Leg>,
    },
    /// Zeroes.
    Zero,
    /// Errors.
    Error,
    /// A compress volume on a disk of its own: where a sector lies there is its own business.
    Vault {
        /// The disk.
        disk: usize,
        /// It is too small for what can be written.
        is_tight: bool,
    },
}

/// A part of a node.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Length.
    pub len: Sector,
    /// Meaning.
    pub meaning: Meaning,
}

/// One mapped device of a stack.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Its name now.
    pub name: String,
    /// The engine's number, once created.
    pub id: Option<DeviceId>,
    /// What it consists of.
    pub parts: Vec<Part>,
    /// Its live table keeps the order of I/O.
    pub orderly: bool,
    /// Its live table may fail by design.
    pub window: Option<crate::oracle::WindowId>,
    /// It is a multipath device over a LUN.
    pub multi: Option<Multi>,
    /// A path had another size while its live table came: lanes may have noted that.
    pub odd_sizes: bool,
}

/// What is fixed about a multipath device, and what its live table has.
#[derive(Clone, Debug)]
pub(crate) struct Multi {
    /// The LUN, a disk.
    pub lun: usize,
    /// Request mode.
    pub requests: bool,
    /// Paths of the live table.
    pub paths: Vec<usize>,
    /// Priority groups of the live table.
    pub groups: usize,
}

/// The devices of a volume.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stack {
    /// The nodes; a node stands only on nodes behind it.
    pub nodes: Vec<Node>,
}

/// A sector's place.
pub(crate) type Spot = Option<(usize, Sector)>;

impl Node {
    /// Its size.
    pub(crate) fn len_sectors(&self) -> Sector {
        self.parts.iter().map(|part| part.len).sum()
    }

    /// True if a part of it stands on a disk.
    pub(crate) fn on_disks(&self) -> bool {
        self.parts.iter().any(|part| part.legs().iter().any(|leg| !leg.is_node()))
    }
}

impl Leg {
    /// True if it stands on another node.
    pub(crate) fn is_node(&self) -> bool {
        matches!(self.below, Below::Node(_))
    }
}

impl Part {
    /// What it stands on.
    pub(crate) fn legs(&self) -> &[Leg] {
        match &self.meaning {
            Meaning::Linear(leg) => std::slice::from_ref(leg),
            Meaning::Striped { legs, .. } => legs,
            Meaning::Zero | Meaning::Error | Meaning::Vault { .. } => &[],
        }
    }

    /// How much of each leg it uses.
    pub(crate) fn leg_len(&self) -> Sector {
        self.len / self.legs().len().max(1) as Sector
    }

    fn at(&self, offset: Sector) -> Result<(Below, Sector), Class> {
        match &self.meaning {
            Meaning::Linear(leg) => Ok((leg.below, leg.start + offset)),
            Meaning::Striped { chunk, legs } => {
                let (index, rest) = (offset / chunk, offset % chunk);
                let leg = legs[(index % legs.len() as u64) as usize];
                Ok((leg.below, leg.start + index / legs.len() as u64 * chunk + rest))
            }
            Meaning::Zero => Err(Class::Zero),
            Meaning::Error => Err(Class::Error),
            Meaning::Vault { .. } => Err(Class::Data),
        }
    }
}

impl Stack {
    /// Where a sector of a node lives.
    fn locate(&self, node: usize, sector: Sector) -> Result<(usize, Sector), Class> {
        let (mut node, mut sector) = (node, sector);
        loop {
            let mut offset = sector;
            let part = self.nodes[node].parts.iter().find(|part| {
                let inside = offset < part.len;
                offset -= if inside { 0 } else { part.len };
                inside
            });
            match part.ok_or(Class::Error)?.at(offset)? {
                (Below::Disk(disk), place) => return Ok((disk, place)),
                (Below::Node(below), place) => (node, sector) = (below, place),
            }
        }
    }

    /// The class and place of every sector of the top.
    pub(crate) fn map(&self) -> (Vec<Class>, Vec<Spot>) {
        (0..self.nodes[0].len_sectors())
            .map(|sector| match self.locate(0, sector) {
                Ok(spot) => (Class::Data, Some(spot)),
                Err(class) => (class, None),
            })
            .unzip()
    }

    /// The disk of its compress volume, if it is one.
    pub(crate) fn vault(&self) -> Option<usize> {
        self.nodes[0].parts.iter().find_map(|part| match part.meaning {
            Meaning::Vault { disk, .. } => Some(disk),
            Meaning::Linear(_) | Meaning::Striped { .. } | Meaning::Zero | Meaning::Error => None,
        })
    }

    /// True if no live table of the stack changes the order of I/O.
    pub(crate) fn is_orderly(&self) -> bool {
        self.nodes.iter().all(|node| node.orderly)
    }

    /// Every stretch of disk it uses.
    pub(crate) fn disk_legs(&self) -> Vec<(Leg, Sector)> {
        let parts = self.nodes.iter().flat_map(|node| &node.parts);
        parts
            .flat_map(|part| part.legs().iter().map(|leg| (*leg, part.leg_len())))
            .filter(|(leg, _)| !leg.is_node())
            .collect()
    }
}

/// Which space of the disks is taken.
#[derive(Debug)]
pub(crate) struct SpaceMap {
    unit: Sector,
    taken: Vec<Vec<bool>>,
    /// Space given back, with the operation number below which old ones may still land there.
    graves: Vec<(Leg, Sector, u64)>,
    /// The disks behind the others that only paths lead to: their size, and whether one is taken.
    /// Each is one device's alone.
    luns: Vec<(Sector, bool)>,
}

impl SpaceMap {
    /// Disks of so many units each.
    pub(crate) fn new(disks: usize, units: usize, unit: Sector) -> SpaceMap {
        let taken = vec![vec![false; units]; disks];
        SpaceMap { unit, taken, graves: Vec::new(), luns: Vec::new() }
    }

    /// The same with disks of these sizes that only paths lead to.
    pub(crate) fn with_luns(mut self, sizes: Vec<Sector>) -> SpaceMap {
        self.luns = sizes.into_iter().map(|size| (size, false)).collect();
        self
    }

    /// Takes a LUN of at least this size: its disk number and size.
    pub(crate) fn take_lun(&mut self, least: Sector, rng: &mut Rng) -> Option<(usize, Sector)> {
        let first = rng.usize(0..self.luns.len().max(1));
        let count = self.luns.len();
        let found = (0..count)
            .map(|turn| (first + turn) % count)
            .find(|&lun| !self.luns[lun].1 && self.luns[lun].0 >= least)?;
        self.luns[found].1 = true;
        Some((self.taken.len() + found, self.luns[found].0))
    }

    /// Takes a free stretch; `None` if the disks are full.
    pub(crate) fn take(&mut self, len: Sector, rng: &mut Rng) -> Option<Leg> {
        let units = len.div_ceil(self.unit) as usize;
        let first_disk = rng.usize(0..self.taken.len());
        for turn in 0..self.taken.len() {
            let disk = (first_disk + turn) % self.taken.len();
            let room = self.taken[disk].len();
            let from = rng.usize(0..room);
            for start in (from..room).chain(0..from) {
                let end = start + units;
                if end <= room && !self.taken[disk][start..end].contains(&true) {
                    self.taken[disk][start..end].fill(true);
                    let start = start as Sector * self.unit;
                    return Some(Leg { below: Below::Disk(disk), start });
                }
            }
        }
        None
    }

    /// Gives a stretch back once no operation older than `serial` is left.
    pub(crate) fn bury(&mut self, leg: Leg, len: Sector, serial: u64) {
        self.graves.push((leg, len, serial));
    }

    /// Frees what no old operation can reach any more.
    pub(crate) fn reclaim(&mut self, any_older_than: impl Fn(u64) -> bool) {
        let mut free = Vec::new();
        self.graves.retain(|&(leg, len, serial)| {
            let waits = any_older_than(serial);
            if !waits {
                free.push((leg, len));
            }
            waits
        });
        for (leg, len) in free {
            if let Below::Disk(disk) = leg.below {
                if let Some(lun) = disk.checked_sub(self.taken.len()) {
                    self.luns[lun].1 = false;
                    continue;
                }
                let first = (leg.start / self.unit) as usize;
                let units = len.div_ceil(self.unit) as usize;
                self.taken[disk][first..first + units].fill(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Below, Leg, Meaning, Node, Part, SpaceMap, Stack};
    use crate::oracle::Class;
    use fastrand::Rng;

    fn node(parts: Vec<Part>) -> Node {
        Node {
            name: String::new(),
            id: None,
            parts,
            orderly: true,
            window: None,
            multi: None,
            odd_sizes: false,
        }
    }

    fn disk(disk: usize, start: u64) -> Leg {
        Leg { below: Below::Disk(disk), start }
    }

    #[test]
    fn a_stack_says_where_each_sector_lives() {
        let striped = Meaning::Striped { chunk: 2, legs: vec![disk(0, 10), disk(1, 20)] };
        let below = Leg { below: Below::Node(1), start: 3 };
        let stack = Stack {
            nodes: vec![
                node(vec![
                    Part { len: 1, meaning: Meaning::Zero },
                    Part { len: 4, meaning: Meaning::Linear(below) },
                    Part { len: 1, meaning: Meaning::Error },
                ]),
                node(vec![Part { len: 8, meaning: striped }]),
            ],
        };
        let (classes, spots) = stack.map();
        assert_eq!((classes[0], classes[1], classes[5]), (Class::Zero, Class::Data, Class::Error));
        let expected = [None, Some((1, 21)), Some((0, 12)), Some((0, 13)), Some((1, 22)), None];
        assert_eq!(spots, expected);
        assert_eq!(stack.disk_legs().len(), 2);
    }

    #[test]
    fn space_given_back_rests_while_old_operations_may_land_in_it() {
        let mut space = SpaceMap::new(1, 4, 8);
        let mut rng = Rng::with_seed(1);
        let whole = space.take(32, &mut rng).expect("empty");
        assert!(space.take(1, &mut rng).is_none());
        space.bury(whole, 32, 7);
        space.reclaim(|serial| serial == 7);
        assert!(space.take(1, &mut rng).is_none());
        space.reclaim(|_| false);
        assert!(space.take(1, &mut rng).is_some());
    }
}
