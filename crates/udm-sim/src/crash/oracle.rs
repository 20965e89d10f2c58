//! The judge: what the device may hold after a crash.
//!
//! Accepted changes form one history. After a recovery the device must equal the state after the
//! first P of them, for one P that is no lower than what was promised: the last flush that was
//! acknowledged, each acknowledged FUA write and, if only the program died, each acknowledged
//! write of a subject that writes through. The state at P is the truth from then on, so nothing
//! can come back later.
//!
//! ```text
//! sector 5:  base a | 2: b | 7: c      found b  ->  P in 3..=7
//! sector 6:  base a | 3: d             found a  ->  P in 0..=3     together P = 3
//! ```
//!
//! Every sector gives the set of P that explain it; a P all sectors agree on is a legal state, and
//! since a request's sectors agree on one P, whole requests are old or new.
//!
//! The tricky case is values that occur twice (zeroes, fills): then a sector allows several
//! ranges, so all of them are counted, not just the newest.

use crate::crash::stamp::{self, Style, Value, ZEROES};
use std::collections::BTreeMap;
use udm_types::Status;

/// What a request does to its sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Data with its stamp.
    Data(Style),
    /// One word all through.
    Fill(u32),
    /// Zeroes.
    Zeroes,
}

/// A change as the history keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Number of the request.
    pub(crate) request: u32,
    /// First sector.
    pub(crate) first: usize,
    /// Sectors.
    pub(crate) len: usize,
    /// Contents.
    pub(crate) what: What,
}

impl Change {
    /// What one of its sectors holds.
    pub(crate) fn value(&self, sector: usize) -> Value {
        match self.what {
            What::Data(style) => stamp::data(self.request, sector, style),
            What::Fill(word) => stamp::fill(word),
            What::Zeroes => ZEROES,
        }
    }
}

/// What a change promises when it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Durability {
    /// It is durable itself.
    pub(crate) fua: bool,
    /// What was done before it was submitted is durable.
    pub(crate) preflush: bool,
}

/// A request that was submitted and is not done.
#[derive(Clone, Copy, Debug)]
enum Open {
    Change { change: Change, fua: bool, preflush: Option<usize>, accepted_at: Option<usize> },
    Flush { covers: usize },
    Read { first: usize, len: usize, since: usize },
}

/// The judge of one life.
#[derive(Default)]
pub(crate) struct Oracle {
    base: Vec<Value>,
    /// Of each sector, the changes since the base: place in the history, value.
    versions: Vec<Vec<(usize, Value)>>,
    history: Vec<Change>,
    open: BTreeMap<u64, Open>,
    /// One more than the newest change that was reported done.
    acknowledged: usize,
    /// What survives a power loss.
    flushed: usize,
    /// What survives the death of the program.
    written: usize,
    writes_through: bool,
}

impl Oracle {
    /// A device full of zeroes.
    pub(crate) fn new(len_sectors: usize, writes_through: bool) -> Oracle {
        Oracle {
            base: vec![ZEROES; len_sectors],
            versions: vec![Vec::new(); len_sectors],
            writes_through,
            ..Oracle::default()
        }
    }

    /// Changes accepted in this life.
    pub(crate) fn accepted_count(&self) -> usize {
        self.history.len()
    }

    /// True if this request is not done.
    pub(crate) fn is_open(&self, ticket: u64) -> bool {
        self.open.contains_key(&ticket)
    }

    /// Requests that are not done.
    pub(crate) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// What must at least be there after a crash of this kind.
    pub(crate) fn floor(&self, is_power: bool) -> usize {
        if is_power { self.flushed } else { self.written.max(self.flushed) }
    }

    /// A changing request is submitted.
    pub(crate) fn submit_change(&mut self, ticket: u64, change: Change, durability: Durability) {
        let Durability { fua, preflush } = durability;
        let preflush = preflush.then_some(self.acknowledged);
        self.open.insert(ticket, Open::Change { change, fua, preflush, accepted_at: None });
    }

    /// A flush is submitted.
    pub(crate) fn submit_flush(&mut self, ticket: u64) {
        self.open.insert(ticket, Open::Flush { covers: self.acknowledged });
    }

    /// A read is submitted.
    pub(crate) fn submit_read(&mut self, ticket: u64, first: usize, len: usize) {
        self.open.insert(ticket, Open::Read { first, len, since: self.acknowledged });
    }

    /// The subject says that a request has its place in the order.
    pub(crate) fn accept(&mut self, ticket: u64) -> Result<(), String> {
        let place = self.history.len();
        match self.open.get_mut(&ticket) {
            Some(Open::Change { change, accepted_at: accepted_at @ None, .. }) => {
                *accepted_at = Some(place);
                let change = *change;
                for sector in change.first..change.first + change.len {
                    self.versions[sector].push((place, change.value(sector)));
                }
                self.history.push(change);
                Ok(())
            }
            Some(Open::Change { .. }) => Err(format!("request {ticket} is accepted twice")),
            Some(Open::Flush { .. } | Open::Read { .. }) | None => {
                Err(format!("request {ticket} is accepted, but is no open change"))
            }
        }
    }

    /// A request is done; `bytes` is what a read brought.
    pub(crate) fn done(&mut self, ticket: u64, status: Status, bytes: &[u8]) -> Result<(), String> {
        let Some(open) = self.open.remove(&ticket) else {
            return Err(format!("request {ticket} is done twice or was never submitted"));
        };
        if !status.is_ok() {
            return Ok(());
        }
        match open {
            Open::Change { change, fua, preflush, accepted_at } => {
                self.flushed = self.flushed.max(preflush.unwrap_or(0));
                let Some(place) = accepted_at else {
                    return match change.len {
                        0 => Ok(()),
                        _ => Err(format!("request {ticket} is done and was never accepted")),
                    };
                };
                self.acknowledged = self.acknowledged.max(place + 1);
                if fua {
                    self.flushed = self.flushed.max(place + 1);
                }
                if self.writes_through {
                    self.written = self.written.max(place + 1);
                }
                Ok(())
            }
            Open::Flush { covers } => {
                self.flushed = self.flushed.max(covers);
                Ok(())
            }
            Open::Read { first, len, since } => self.judge_read(ticket, first, len, since, bytes),
        }
    }

    /// The subject has stopped: all it accepted is in the disk's cache, with a flush durable.
    pub(crate) fn stopped(&mut self, flush: bool) {
        self.written = self.history.len();
        if flush {
            self.flushed = self.history.len();
        }
    }

    /// A read may show each sector as it was at any moment between submission and end.
    fn judge_read(
        &self,
        ticket: u64,
        first: usize,
        len: usize,
        since: usize,
        bytes: &[u8],
    ) -> Result<(), String> {
        for (offset, content) in (0..len).zip(bytes.chunks_exact(512)) {
            let sector = first + offset;
            let found = stamp::read(content);
            let versions = &self.versions[sector];
            let start = versions.partition_point(|&(place, _)| place < since);
            let before = match start {
                0 => self.base[sector],
                _ => versions[start - 1].1,
            };
            let mut legal = std::iter::once(before).chain(versions[start..].iter().map(|v| v.1));
            if !legal.any(|value| Some(value) == found) {
                return Err(format!(
                    "read {ticket} of sector {sector} gives {}; the newest is {}",
                    stamp::describe(found),
                    stamp::describe(Some(versions.last().map_or(self.base[sector], |v| v.1)))
                ));
            }
        }
        Ok(())
    }

    /// The device was found to hold this after a crash: the newest P that explains it.
    pub(crate) fn judge(&self, found: &[Option<Value>], floor: usize) -> Result<usize, String> {
        let states = self.history.len() + 1;
        let mut edges = vec![0_i64; states + 1];
        let mut everywhere = 0;
        for (sector, &value) in found.iter().enumerate() {
            let mut from = 0;
            let mut current = self.base[sector];
            let mut is_explained = false;
            let versions = &self.versions[sector];
            if versions.is_empty() {
                is_explained = value == Some(current);
                everywhere += i64::from(is_explained);
            } else {
                let ends = versions.iter().map(|&(place, next)| (place + 1, next));
                for (to, next) in ends.chain(std::iter::once((states, ZEROES))) {
                    if value == Some(current) {
                        edges[from] += 1;
                        edges[to] -= 1;
                        is_explained = true;
                    }
                    (from, current) = (to, next);
                }
            }
            if !is_explained {
                return Err(self.unexplained(sector, value));
            }
        }
        let mut sum = everywhere;
        let mut newest = None;
        for (p, edge) in edges[..states].iter().enumerate() {
            sum += edge;
            if sum == found.len() as i64 {
                newest = Some(p);
            }
        }
        match newest {
            Some(p) if p >= floor => Ok(p),
            Some(p) => Err(format!(
                "the device holds the first {p} of {} changes, but {floor} were promised: \
                 change {p} is lost ({:?})",
                states - 1,
                self.history.get(p)
            )),
            None => Err(self.no_prefix(found, floor)),
        }
    }

    fn unexplained(&self, sector: usize, value: Option<Value>) -> String {
        let versions: Vec<String> =
            self.versions[sector].iter().map(|v| stamp::describe(Some(v.1))).collect();
        format!(
            "sector {sector} holds {}, which was never there since the last crash; it began with \
             {}, then came: {}",
            stamp::describe(value),
            stamp::describe(Some(self.base[sector])),
            if versions.is_empty() { "nothing".to_owned() } else { versions.join(", ") }
        )
    }

    /// Says which state comes nearest, and where it differs.
    fn no_prefix(&self, found: &[Option<Value>], floor: usize) -> String {
        let mut state = self.base.clone();
        let mut best = (usize::MAX, 0, 0);
        for p in 0..=self.history.len() {
            if let Some(change) = p.checked_sub(1).map(|at| self.history[at]) {
                let range = change.first..change.first + change.len;
                for (value, sector) in state[range].iter_mut().zip(change.first..) {
                    *value = change.value(sector);
                }
            }
            let is_wrong = |&(value, found): &(&Value, &Option<Value>)| Some(*value) != *found;
            let wrong = state.iter().zip(found).filter(is_wrong).count();
            let first = state.iter().zip(found).position(|pair| is_wrong(&pair));
            if wrong <= best.0 {
                best = (wrong, p, first.unwrap_or(0));
            }
        }
        let (wrong, p, sector) = best;
        format!(
            "no prefix of the {} changes ({floor} promised) explains the device; nearest is the \
             first {p}, wrong in {wrong} sectors, at first in sector {sector}, which holds {}",
            self.history.len(),
            stamp::describe(found[sector])
        )
    }

    /// The state after the first `kept` changes is the truth; what was open is forgotten.
    pub(crate) fn rebase(&mut self, kept: usize) {
        for (place, change) in self.history.iter().enumerate() {
            for sector in change.first..change.first + change.len {
                self.versions[sector].clear();
                if place < kept {
                    self.base[sector] = change.value(sector);
                }
            }
        }
        self.history.clear();
        self.open.clear();
        (self.acknowledged, self.flushed, self.written) = (0, 0, 0);
    }
}

#[cfg(test)]
#[path = "oracle_tests.rs"]
mod tests;
