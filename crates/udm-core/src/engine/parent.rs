//! Parents: bios that wait for pieces or copies of themselves.
//!
//! A bio is cut when it crosses a border (split), copied when several devices below have to do the
//! same (fan-out), and waits for a flush before its data (preflush) or goes through the phases of a
//! barrier. The parent is parked here; each child knows its parent by number.
//!
//! Rules. At most [`PIECES_MAX`] pieces of one bio are under way, the rest is cut as they
//! complete, so one huge discard cannot take all memory; a parent that has begun can always go on
//! because every bound is its own. The last error wins. Children carry handles on the parent's
//! data, never copies of it.
//!
//! What happens to a child that is pushed back depends on its parent:
//! ```text
//!   split piece        only the piece is held and replayed; other pieces keep their result
//!   fan-out copy       the whole bio is replayed: a push-back beats errors
//!   part of a barrier  the whole barrier is replayed, so its order holds against the new table
//! ```
//! The tricky case is a split piece *inside* a fan-out or barrier: it is replayed with that
//! ancestor, so the push-back travels up through the split parent.

use super::Engine;
use super::request::Requests;
use crate::bio::{Bio, BioBox, Dest, Origin};
use alloc::vec::Vec;
use udm_types::{BioFlags, DeviceId, Op, SECTOR_BYTES, Sector, Status};

/// Pieces of one bio under way at the most: enough to keep every leg of a wide stripe busy, small
/// enough that a thousand large bios stay within tens of megabytes.
const PIECES_MAX: u32 = 64;

/// What a parent waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParentKind {
    /// Pieces of a range.
    Split,
    /// Copies for several devices or legs. Counts as in flight itself.
    FanOut,
    /// The flush before a write.
    Preflush,
    /// The data of a FUA write that a flush follows.
    FuaData,
    /// The flush after it.
    FuaFlush,
    /// First flush of a barrier. A barrier counts as in flight itself.
    BarrierPreflush,
    /// Data of a barrier.
    BarrierData,
    /// Last flush of a barrier.
    BarrierPostflush,
}

impl ParentKind {
    /// True if a push-back of a child replays the whole parent.
    fn replays_whole(self) -> bool {
        match self {
            ParentKind::Split
            | ParentKind::Preflush
            | ParentKind::FuaData
            | ParentKind::FuaFlush => false,
            ParentKind::FanOut
            | ParentKind::BarrierPreflush
            | ParentKind::BarrierData
            | ParentKind::BarrierPostflush => true,
        }
    }
}

/// What of a split bio has not been cut yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rest {
    pub(crate) sector: Sector,
    pub(crate) len_sectors: Sector,
}

#[derive(Debug)]
pub(crate) struct Parent {
    bio: BioBox,
    device: DeviceId,
    seq: u64,
    kind: ParentKind,
    pending: u32,
    status: Status,
    pushed_back: bool,
    rest: Option<Rest>,
}

/// The parents of a lane.
#[derive(Debug, Default)]
pub(crate) struct Parents {
    slots: Vec<Option<Parent>>,
    free: Vec<u32>,
}

impl Parents {
    /// Parks a bio.
    pub(super) fn put(&mut self, device: DeviceId, seq: u64, kind: ParentKind, bio: BioBox) -> u32 {
        let parent = Parent {
            bio,
            device,
            seq,
            kind,
            pending: 0,
            status: Status::Ok,
            pushed_back: false,
            rest: None,
        };
        match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = Some(parent);
                index
            }
            None => {
                self.slots.push(Some(parent));
                self.slots.len() as u32 - 1
            }
        }
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Parent {
        self.slots[index as usize]
            .as_mut()
            .expect("invariant: a parent lives until its last child is done")
    }

    pub(super) fn get(&self, index: u32) -> Option<&Parent> {
        self.slots.get(index as usize)?.as_ref()
    }

    fn take(&mut self, index: u32) -> Parent {
        self.free.push(index);
        self.slots[index as usize]
            .take()
            .expect("invariant: a parent lives until its last child is done")
    }

    /// How many bios wait for children.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// True if a bio, or a parent it is part of, or a bio it carries, is inside `device`.
pub(super) fn passes_through(
    parents: &Parents,
    requests: &Requests,
    bio: &Bio,
    device: DeviceId,
) -> bool {
    let mut bio = bio;
    loop {
        if bio.frames().iter().any(|frame| frame.device == device) {
            return true;
        }
        match bio.origin {
            Origin::Actor { .. } => return false,
            // Its target may also do it for a device above, but nobody can tell for which.
            Origin::Target { device: own, .. } => return own == device,
            Origin::Parent(index) => match parents.get(index) {
                Some(parent) if parent.device == device => return true,
                Some(parent) => bio = &parent.bio,
                None => return false,
            },
            // As deep as request-based devices are stacked.
            Origin::Request(index) => {
                let bios = requests.bios(index);
                return bios.iter().any(|bio| passes_through(parents, requests, bio, device));
            }
        }
    }
}

impl Engine {
    /// Cuts a bio into pieces and starts the first of them.
    pub(super) fn split(&mut self, id: DeviceId, bio: BioBox, seq: u64, rest: Rest) {
        let index = self.parents.put(id, seq, ParentKind::Split, bio);
        self.parents.get_mut(index).rest = Some(rest);
        self.issue_pieces(index);
    }

    fn issue_pieces(&mut self, index: u32) {
        // A piece can be pushed back before this loop comes round again, and take the parent with
        // it; the guard keeps the parent until the loop is done.
        self.parents.get_mut(index).pending += 1;
        loop {
            let parent = self.parents.get_mut(index);
            let Some(rest) = parent.rest else { break };
            if parent.pending > PIECES_MAX {
                break;
            }
            let (id, seq) = (parent.device, parent.seq);
            let op = parent.bio.op;
            let origin = parent.bio.origin;
            // A barrier waits for bios that have begun; a suspend does not wait for their rest.
            let running = self.devices.get(id).is_some_and(|device| device.gate.suspend.is_none());
            let past_gate = running || self.replaying_parent(origin, id).is_some();
            let piece = match self.devices.get(id) {
                // A closed gate takes what is left in one piece, to be cut again when it opens.
                Some(device) if past_gate && rest.sector < device.len_sectors => {
                    device.piece_sectors(op, rest.sector).min(rest.len_sectors)
                }
                Some(_) | None => rest.len_sectors,
            };
            let child = self.piece_for(index, rest.sector, piece);
            let left = rest.len_sectors - piece;
            self.parents.get_mut(index).rest =
                (left > 0).then_some(Rest { sector: rest.sector + piece, len_sectors: left });
            if past_gate {
                self.route(id, child, seq);
            } else if let Some(device) = self.devices.get_mut(id) {
                device.gate.hold(seq, child);
            } else {
                self.give_up(child, Status::Offline);
            }
        }
        self.drop_pending(index);
    }

    fn piece_for(&mut self, index: u32, sector: Sector, len_sectors: Sector) -> BioBox {
        let mut child = self.shared.take_bio();
        let parent = self.parents.get_mut(index);
        parent.pending += 1;
        let bio = &parent.bio;
        child.ask(bio.op, bio.flags, sector, len_sectors);
        if bio.op.has_data() {
            let offset_bytes = (sector - bio.sector) * SECTOR_BYTES;
            child.payload = bio.payload.slice(offset_bytes, len_sectors * SECTOR_BYTES);
        }
        child.dest = Dest::Device(parent.device);
        child.origin = Origin::Parent(index);
        child.issued_at = bio.issued_at;
        child.classify();
        child.set_live(true);
        child
    }

    /// Parks a bio that copies of will be made of; it counts as in flight.
    pub(super) fn fan_out(&mut self, id: DeviceId, bio: BioBox, seq: u64) -> u32 {
        let index = self.parents.put(id, seq, ParentKind::FanOut, bio);
        // The guard keeps early completions from finishing the parent before all copies exist.
        self.parents.get_mut(index).pending = 1;
        if let Some(device) = self.devices.get_mut(id) {
            device.gate.in_flight += 1;
        }
        index
    }

    /// All copies have been made.
    pub(super) fn fanned_out(&mut self, index: u32) {
        self.drop_pending(index);
    }

    /// A copy of a parked bio.
    pub(super) fn copy_for(&mut self, index: u32, nr: u32) -> BioBox {
        let (sector, len_sectors) = {
            let bio = &self.parents.get_mut(index).bio;
            (bio.sector, bio.len_sectors)
        };
        let mut child = self.piece_for(index, sector, len_sectors);
        child.target_bio_nr = nr;
        child
    }

    /// An empty flush on behalf of a parked bio.
    pub(super) fn flush_for(&mut self, index: u32) -> BioBox {
        let mut child = self.shared.take_bio();
        let parent = self.parents.get_mut(index);
        parent.pending += 1;
        child.ask(Op::Flush, BioFlags::empty(), 0, 0);
        child.dest = Dest::Device(parent.device);
        child.origin = Origin::Parent(index);
        child.issued_at = parent.bio.issued_at;
        child.classify();
        child.set_live(true);
        child
    }

    /// A child came back: with a result, or pushed back to be replayed with its parent.
    pub(super) fn child_done(&mut self, index: u32, mut child: BioBox, pushed_back: bool) {
        child.set_live(false);
        let parent = self.parents.get_mut(index);
        if !child.status.is_ok() {
            parent.status = child.status;
        }
        if pushed_back {
            parent.pushed_back = true;
            parent.rest = None;
        }
        self.shared.recycle(child);
        if self.parents.get_mut(index).rest.is_some() {
            // Counted down first, so that the freed place can be used by the next piece.
            self.parents.get_mut(index).pending -= 1;
            self.issue_pieces(index);
            return;
        }
        self.drop_pending(index);
    }

    fn drop_pending(&mut self, index: u32) {
        let parent = self.parents.get_mut(index);
        parent.pending -= 1;
        if parent.pending == 0 && parent.rest.is_none() {
            self.parent_done(index);
        }
    }

    fn parent_done(&mut self, index: u32) {
        let (kind, ok) =
            (self.parents.get_mut(index).kind, self.parents.get_mut(index).status.is_ok());
        match kind {
            ParentKind::Split => {
                let parent = self.parents.take(index);
                if let (true, Origin::Parent(above)) = (parent.pushed_back, parent.bio.origin) {
                    self.child_done(above, parent.bio, true);
                } else {
                    self.give_up(parent.bio, parent.status);
                }
            }
            ParentKind::FanOut => {
                let parent = self.parents.take(index);
                self.fan_out_done(parent);
            }
            ParentKind::Preflush => {
                let mut parent = self.parents.take(index);
                if parent.status.is_ok() {
                    parent.bio.flags.remove(BioFlags::PREFLUSH);
                    parent.bio.classify();
                    self.enter_at(parent.device, parent.bio, parent.seq);
                } else {
                    self.give_up(parent.bio, parent.status);
                }
            }
            ParentKind::FuaData if ok => {
                let parent = self.parents.get_mut(index);
                parent.kind = ParentKind::FuaFlush;
                let (id, seq) = (parent.device, parent.seq);
                let child = self.flush_for(index);
                self.route_flush(id, child, seq);
            }
            ParentKind::FuaData | ParentKind::FuaFlush => {
                let parent = self.parents.take(index);
                self.give_up(parent.bio, parent.status);
                if let Some(queue) =
                    self.devices.get_mut(parent.device).and_then(|device| device.requests.as_mut())
                {
                    queue.settle();
                    self.check_drained(parent.device);
                }
            }
            ParentKind::BarrierPreflush
            | ParentKind::BarrierData
            | ParentKind::BarrierPostflush => self.barrier_step(index),
        }
    }

    fn fan_out_done(&mut self, parent: Parent) {
        let Parent { mut bio, device: id, seq, status, pushed_back, .. } = parent;
        let Some(device) = self.devices.get_mut(id) else {
            return self.give_up(bio, Status::Offline);
        };
        device.gate.in_flight -= 1;
        if pushed_back {
            self.push_back(id, seq, bio);
            // The suspend may have been given up since the copy was pushed back.
            self.let_flow(id);
        } else {
            bio.status = status;
            device.stats.count(&bio, self.shared.now.since(bio.issued_at));
            self.parts.done.push_back(bio);
        }
        self.check_drained(id);
    }

    /// The parent that a bio of this origin goes back to when it is pushed back in `device`: it is
    /// part of something that is replayed as a whole.
    pub(super) fn replaying_parent(&self, origin: Origin, device: DeviceId) -> Option<u32> {
        let Origin::Parent(nearest) = origin else { return None };
        let mut origin = origin;
        while let Origin::Parent(index) = origin {
            let parent = self.parents.get(index).filter(|parent| parent.device == device)?;
            if parent.kind.replays_whole() {
                return Some(nearest);
            }
            origin = parent.bio.origin;
        }
        None
    }
}

impl Parent {
    pub(super) fn device(&self) -> DeviceId {
        self.device
    }

    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    pub(super) fn kind(&self) -> ParentKind {
        self.kind
    }

    pub(super) fn set_kind(&mut self, kind: ParentKind) {
        self.kind = kind;
    }

    pub(super) fn outcome(&self) -> (Status, bool) {
        (self.status, self.pushed_back)
    }

    pub(super) fn bio(&self) -> &BioBox {
        &self.bio
    }

    pub(super) fn into_bio(self) -> BioBox {
        self.bio
    }
}

impl Parents {
    /// Takes a finished parent out.
    pub(super) fn finish(&mut self, index: u32) -> Parent {
        self.take(index)
    }
}
