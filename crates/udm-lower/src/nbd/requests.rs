//! The requests of one lane that the server has not answered yet.
//!
//! A slot holds a bio from the moment it gets a connection until it is answered, over all of its
//! stages and pieces; each piece is one request on the wire. Used by `lane` (which starts and ends
//! them) and by `replies` (which looks a cookie up and notes what has come).
//!
//! Rules. A cookie is the slot's number and a generation that every request on the wire changes, so
//! a reply can be taken for no other request: not for a later piece, not for the slot's next bio.
//! Slots are kept and used again, so that steady state allocates nothing.
//!
//! The tricky case is a bio that was answered early (aborted): its slot stays, without it, until
//! the server's answer comes or the connection ends. Data that still comes for it is thrown away.

use super::relay::Job;
use super::wire::CMD_READ;
use udm_core::BioBox;
use udm_lane::Payload;
use udm_types::{BioFlags, Nanos, Op};

/// What a slot works for.
#[derive(Debug)]
pub(super) enum Owner {
    /// Nothing: the slot is free.
    Nobody,
    /// A bio of this lane.
    Bio(BioBox),
    /// A bio of another lane (see `relay`).
    Relayed(Job),
    /// A bio that has been answered already; true if it changes the device, which is fenced.
    Abandoned(bool),
}

/// Where a bio is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A flush before the bio's own work.
    FlushFirst,
    /// The bio's own work, in pieces.
    Work,
    /// A flush after it, where the server has no FUA.
    FlushAfter,
}

/// A request on the wire.
#[derive(Debug)]
pub(super) struct Request {
    /// `CMD_*`.
    pub(super) command: u16,
    /// Which connection.
    pub(super) connection: u16,
    /// Where in the export.
    pub(super) offset_bytes: u64,
    /// How much.
    pub(super) len_bytes: u32,
    /// The first error its reply told; 0 for none.
    pub(super) error: u32,
    covered: Covered,
}

/// A place for a bio.
#[derive(Debug)]
pub(super) struct Slot {
    generation: u32,
    is_awaited: bool,
    /// The request on the wire.
    pub(super) request: Request,
    /// Whose it is.
    pub(super) owner: Owner,
    /// What is under way.
    pub(super) stage: Stage,
    /// What the bio asks.
    pub(super) op: Op,
    /// Its modifiers.
    pub(super) flags: BioFlags,
    /// Where its range starts.
    pub(super) start_bytes: u64,
    /// How long its range is.
    pub(super) total_bytes: u64,
    /// How much of it is done.
    pub(super) done_bytes: u64,
    /// When the request on the wire was made.
    pub(super) started_at: Nanos,
}

/// Why data that came has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CoverError {
    /// Outside the range asked for.
    Outside,
    /// Some of it has come before.
    Twice,
}

/// Which bytes of a read have come. Usually they come in order, and one number says it all.
#[derive(Debug, Default)]
struct Covered {
    /// Everything up to here has come.
    front_bytes: u32,
    /// What has come beyond, sorted, not touching.
    beyond: Vec<(u32, u32)>,
}

/// All slots of a lane.
#[derive(Debug, Default)]
pub(super) struct Requests {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Requests {
    /// How many slots are taken.
    #[inline]
    pub(super) fn taken_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many slots there are, taken or not; all numbers are below.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        // A lane has at most `lane::SLOTS_MAX`.
        self.slots.len() as u32
    }

    /// Takes a slot for somebody's work on a connection.
    pub(super) fn insert(&mut self, owner: Owner, connection: u16) -> u32 {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot::new());
                self.slots.len() as u32 - 1
            }
        };
        let slot = &mut self.slots[index as usize];
        if let Some(asks) = owner.asks() {
            (slot.op, slot.flags, slot.start_bytes, slot.total_bytes) = asks;
        }
        slot.done_bytes = 0;
        slot.owner = owner;
        slot.request.connection = connection;
        index
    }

    /// A slot by its number.
    ///
    /// # Panics
    /// If there never was one: numbers come from here only.
    #[inline]
    pub(super) fn get(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }

    /// Begins a request on the wire in a slot; its cookie.
    #[inline]
    pub(super) fn begin(
        &mut self,
        index: u32,
        command: u16,
        offset_bytes: u64,
        len_bytes: u32,
        now: Nanos,
    ) -> u64 {
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.is_awaited = true;
        slot.started_at = now;
        let request = &mut slot.request;
        (request.command, request.offset_bytes, request.len_bytes) =
            (command, offset_bytes, len_bytes);
        request.error = 0;
        request.covered.clear();
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    /// The request a reply of this connection belongs to, with its slot.
    #[inline]
    pub(super) fn awaited(&mut self, cookie: u64, connection: u16) -> Option<(u32, &mut Request)> {
        // The lower half is the slot.
        let index = cookie as u32;
        let slot = self.slots.get_mut(index as usize)?;
        let fits = slot.is_awaited
            && u64::from(slot.generation) == cookie >> 32
            && slot.request.connection == connection;
        fits.then_some((index, &mut slot.request))
    }

    /// True if a slot's read has come whole, or failed.
    #[inline]
    pub(super) fn is_complete(&mut self, index: u32) -> bool {
        let request = &self.get(index).request;
        request.is_covered() || request.error != 0
    }

    /// The request of a slot is over.
    #[inline]
    pub(super) fn end(&mut self, index: u32) {
        self.get(index).is_awaited = false;
    }

    /// Frees a slot; who it worked for.
    #[inline]
    pub(super) fn remove(&mut self, index: u32) -> Owner {
        let slot = self.get(index);
        slot.is_awaited = false;
        let owner = std::mem::replace(&mut slot.owner, Owner::Nobody);
        self.free.push(index);
        owner
    }

    /// When the oldest request of a connection was made.
    pub(super) fn oldest(&self, connection: u16) -> Option<Nanos> {
        self.slots
            .iter()
            .filter(|slot| slot.is_awaited && slot.request.connection == connection)
            .map(|slot| slot.started_at)
            .min()
    }
}

impl Slot {
    fn new() -> Slot {
        Slot {
            generation: 0,
            is_awaited: false,
            request: Request {
                command: 0,
                connection: 0,
                offset_bytes: 0,
                len_bytes: 0,
                error: 0,
                covered: Covered::default(),
            },
            owner: Owner::Nobody,
            stage: Stage::Work,
            op: Op::Read,
            flags: BioFlags::empty(),
            start_bytes: 0,
            total_bytes: 0,
            done_bytes: 0,
            started_at: Nanos::ZERO,
        }
    }

    /// True if its request has been made and not been answered.
    #[inline]
    pub(super) fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    /// The bio's data; none if the bio has been answered.
    #[inline]
    pub(super) fn payload(&self) -> Option<&Payload> {
        match &self.owner {
            Owner::Bio(bio) => Some(&bio.payload),
            Owner::Relayed(job) => Some(&job.payload),
            Owner::Nobody | Owner::Abandoned(_) => None,
        }
    }
}

impl Request {
    /// True if all data of a read has come (or none is expected).
    #[inline]
    pub(super) fn is_covered(&self) -> bool {
        self.command != CMD_READ || self.covered.front_bytes == self.len_bytes
    }

    /// The data comes all in one piece.
    #[inline]
    pub(super) fn cover_all(&mut self) {
        self.covered.front_bytes = self.len_bytes;
    }

    /// Notes that a range of the piece has come.
    #[inline]
    pub(super) fn cover(&mut self, at_bytes: u64, len_bytes: u64) -> Result<(), CoverError> {
        let end = at_bytes.checked_add(len_bytes).ok_or(CoverError::Outside)?;
        if end > u64::from(self.len_bytes) {
            return Err(CoverError::Outside);
        }
        // Both fit: they are within the piece.
        self.covered.add(at_bytes as u32, end as u32)
    }
}

impl Covered {
    #[inline]
    fn clear(&mut self) {
        self.front_bytes = 0;
        self.beyond.clear();
    }

    #[inline]
    fn add(&mut self, start: u32, end: u32) -> Result<(), CoverError> {
        if start < self.front_bytes {
            return Err(CoverError::Twice);
        }
        if start == self.front_bytes && self.beyond.is_empty() {
            self.front_bytes = end;
            return Ok(());
        }
        self.add_beyond(start, end)
    }

    fn add_beyond(&mut self, start: u32, end: u32) -> Result<(), CoverError> {
        let at = self.beyond.partition_point(|&(_, other_end)| other_end <= start);
        if self.beyond.get(at).is_some_and(|&(other_start, _)| other_start < end) {
            return Err(CoverError::Twice);
        }
        self.beyond.insert(at, (start, end));
        while let Some(&(start, end)) = self.beyond.first()
            && start == self.front_bytes
        {
            self.front_bytes = end;
            self.beyond.remove(0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{CoverError, Covered};

    #[test]
    fn ranges_in_any_order_cover_the_whole_once() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let mut cuts: Vec<u32> = (0..random.u32(0..12)).map(|_| random.u32(1..999)).collect();
            cuts.extend([0, 1000]);
            cuts.sort_unstable();
            cuts.dedup();
            let mut ranges: Vec<_> = cuts.windows(2).map(|pair| (pair[0], pair[1])).collect();
            random.shuffle(&mut ranges);
            let mut covered = Covered::default();
            for &(start, end) in &ranges {
                assert_ne!(covered.front_bytes, 1000);
                assert_eq!(covered.add(start, end), Ok(()));
                assert_eq!(covered.add(start, end), Err(CoverError::Twice));
                assert_eq!(covered.add(start.saturating_sub(1), end), Err(CoverError::Twice));
            }
            assert_eq!((covered.front_bytes, covered.beyond.len()), (1000, 0));
        }
    }
}
