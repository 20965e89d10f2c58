//! A lower device in memory that a test can look into and disturb.
//!
//! It records every bio it gets, can hold bios and let them go in any order, and can fail ranges
//! and flushes with any status. Data is written, and read data copied out, at the moment a bio
//! completes, so a held write has not happened yet.
//!
//! [`MemLower`] is the handle a test keeps (cheap to clone); the same handle is the `LowerDevice`
//! that tables use. Bios are held by the lane that got them, as with a real device: each waits on a
//! latch of the [`FakeWorld`], and letting it go opens the latch.
//!
//! The tricky case is an abort: the bio is answered with `Timeout` while its operation hangs on,
//! and until that ends the lane refuses new bios with `Offline`, as the contract of lower devices
//! says.

use crate::fake_driver::{FakeWorld, lock};
use crate::pattern::SECTOR_LEN;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use udm_core::bio::{Bio, BioBox};
use udm_core::lower::{LowerCx, LowerDevice, LowerLane};
use udm_lane::{Completion, DriverOp, Errno, Handle};
use udm_types::{BioFlags, LaneId, Op, OpSet, QueueLimits, Sector, Status};

/// What a discarded byte reads as here: neither old data nor zero, so that nobody relies on either.
pub const DISCARDED_BYTE: u8 = 0xd5;

/// A bio as the device got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its place among the bios of all devices of the test.
    pub event: u64,
    /// The lane it came on.
    pub lane: LaneId,
    /// What was asked.
    pub op: Op,
    /// With which modifiers.
    pub flags: BioFlags,
    /// First sector on this device.
    pub sector: Sector,
    /// Length.
    pub len_sectors: Sector,
    /// Its place among the bios that completed; 0 while it has not.
    pub completed: u64,
}

/// A fake lower device. See the module's text.
#[derive(Clone)]
pub struct MemLower {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    limits: QueueLimits,
    world: FakeWorld,
    state: Mutex<State>,
}

struct State {
    bytes: Vec<u8>,
    log: Vec<Seen>,
    hold_ops: OpSet,
    /// Held bios: latch and what they are, oldest first.
    held: Vec<(Handle, Seen)>,
    faults: Vec<(Range<Sector>, OpSet, Status)>,
    flush_fault: Option<Status>,
    open_lanes: usize,
}

impl MemLower {
    /// A device of zeroes with the limits of an ordinary disk with a volatile cache.
    pub fn new(world: &FakeWorld, name: &str, len_sectors: Sector) -> MemLower {
        let features = udm_types::DeviceFeatures::WRITE_CACHE | udm_types::DeviceFeatures::FUA;
        MemLower::with_limits(
            world,
            name,
            len_sectors,
            QueueLimits { features, ..QueueLimits::default() },
        )
    }

    /// A device of zeroes with the given limits.
    pub fn with_limits(
        world: &FakeWorld,
        name: &str,
        len_sectors: Sector,
        limits: QueueLimits,
    ) -> MemLower {
        let state = State {
            bytes: vec![0; len_sectors as usize * SECTOR_LEN],
            log: Vec::new(),
            hold_ops: OpSet::empty(),
            held: Vec::new(),
            faults: Vec::new(),
            flush_fault: None,
            open_lanes: 0,
        };
        MemLower {
            shared: Arc::new(Shared {
                name: name.to_owned(),
                limits,
                world: world.clone(),
                state: Mutex::new(state),
            }),
        }
    }

    /// Its name, in tables too.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// From now on holds bios of these operations (`OpSet::all()` for everything).
    pub fn hold(&self, ops: OpSet) {
        lock(&self.shared.state).hold_ops = ops;
    }

    /// Holds nothing any more and lets go what is held, oldest first.
    pub fn flow(&self) {
        self.hold(OpSet::empty());
        while self.release(0) {}
    }

    /// The bios held now, oldest first.
    pub fn held(&self) -> Vec<Seen> {
        lock(&self.shared.state).held.iter().map(|(_, seen)| seen.clone()).collect()
    }

    /// Lets one held bio go, by its place in [`MemLower::held`]; it completes when the world runs.
    /// False if there is none at that place.
    pub fn release(&self, index: usize) -> bool {
        let mut state = lock(&self.shared.state);
        if index >= state.held.len() {
            return false;
        }
        let (latch, _) = state.held.remove(index);
        self.shared.world.open_latch(latch);
        true
    }

    /// Lets the held bios go newest first; goes on holding new ones.
    pub fn release_newest_first(&self) {
        let count = self.held().len();
        for index in (0..count).rev() {
            self.release(index);
        }
    }

    /// From now on bios of these operations that touch the range fail.
    pub fn fail(&self, range: Range<Sector>, ops: OpSet, status: Status) {
        lock(&self.shared.state).faults.push((range, ops, status));
    }

    /// From now on flushes fail (`None`: succeed).
    pub fn fail_flushes(&self, status: Option<Status>) {
        lock(&self.shared.state).flush_fault = status;
    }

    /// Ends all faults.
    pub fn heal(&self) {
        let mut state = lock(&self.shared.state);
        state.faults.clear();
        state.flush_fault = None;
    }

    /// Every bio so far, in the order they came.
    pub fn log(&self) -> Vec<Seen> {
        lock(&self.shared.state).log.clone()
    }

    /// Forgets the log.
    pub fn clear_log(&self) {
        lock(&self.shared.state).log.clear();
    }

    /// Empty flushes and pre-flushes so far.
    pub fn flushes(&self) -> usize {
        let flushes =
            |seen: &&Seen| seen.op == Op::Flush || seen.flags.contains(BioFlags::PREFLUSH);
        lock(&self.shared.state).log.iter().filter(flushes).count()
    }

    /// The contents of a range.
    pub fn bytes(&self, sector: Sector, len_sectors: Sector) -> Vec<u8> {
        let at = sector as usize * SECTOR_LEN;
        lock(&self.shared.state).bytes[at..at + len_sectors as usize * SECTOR_LEN].to_vec()
    }

    /// Sets the contents of a range.
    pub fn set_bytes(&self, sector: Sector, bytes: &[u8]) {
        let at = sector as usize * SECTOR_LEN;
        lock(&self.shared.state).bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Gives the device another size; what is new reads as zeroes.
    pub fn set_len_sectors(&self, len_sectors: Sector) {
        lock(&self.shared.state).bytes.resize(len_sectors as usize * SECTOR_LEN, 0);
    }

    /// Lanes that have the device open now.
    pub fn open_lanes(&self) -> usize {
        lock(&self.shared.state).open_lanes
    }
}

impl Shared {
    /// Does what a bio asks, now.
    fn execute(&self, bio: &Bio) -> Status {
        let mut state = lock(&self.state);
        if let Some(status) = state.fault(bio) {
            return status;
        }
        let from = bio.sector as usize * SECTOR_LEN;
        let to = from + bio.len_sectors as usize * SECTOR_LEN;
        if to > state.bytes.len() {
            return Status::IoErr;
        }
        match bio.op {
            Op::Read => bio.payload.copy_in(0, &state.bytes[from..to]),
            Op::Write => bio.payload.copy_out(0, &mut state.bytes[from..to]),
            Op::Flush => {}
            Op::Discard => state.bytes[from..to].fill(DISCARDED_BYTE),
            Op::WriteZeroes => state.bytes[from..to].fill(0),
        }
        Status::Ok
    }

    fn note_completion(&self, event: u64) {
        let completed = self.world.next_event();
        let mut state = lock(&self.state);
        if let Some(seen) = state.log.iter_mut().find(|seen| seen.event == event) {
            seen.completed = completed;
        }
    }
}

impl State {
    fn fault(&self, bio: &Bio) -> Option<Status> {
        let flushes = bio.op == Op::Flush || bio.flags.contains(BioFlags::PREFLUSH);
        if flushes && self.flush_fault.is_some() {
            return self.flush_fault;
        }
        let hit = self.faults.iter().find(|(range, ops, _)| {
            ops.has(bio.op) && bio.sector < range.end && bio.end_sector() > range.start
        });
        hit.map(|(_, _, status)| *status)
    }
}

impl LowerDevice for MemLower {
    fn shown(&self) -> String {
        self.shared.name.clone()
    }

    fn len_sectors(&self) -> Sector {
        (lock(&self.shared.state).bytes.len() / SECTOR_LEN) as Sector
    }

    fn limits(&self) -> QueueLimits {
        self.shared.limits.clone()
    }

    fn read_now(&self, offset_bytes: u64, into: &mut [u8]) -> Option<Result<(), Errno>> {
        let at = offset_bytes as usize;
        into.copy_from_slice(&lock(&self.shared.state).bytes[at..at + into.len()]);
        Some(Ok(()))
    }

    fn open_lane(&self, _cx: &mut LowerCx<'_>) -> Result<Box<dyn LowerLane>, Errno> {
        lock(&self.shared.state).open_lanes += 1;
        Ok(Box::new(MemLane {
            shared: Arc::clone(&self.shared),
            held: BTreeMap::new(),
            abandoned: 0,
        }))
    }
}

/// One lane's part.
struct MemLane {
    shared: Arc<Shared>,
    /// Held bios by latch number; `None` once aborted.
    held: BTreeMap<u32, (Option<BioBox>, u64)>,
    abandoned: usize,
}

impl MemLane {
    fn note(&self, bio: &Bio, lane: LaneId) -> Seen {
        let seen = Seen {
            event: self.shared.world.next_event(),
            lane,
            op: bio.op,
            flags: bio.flags,
            sector: bio.sector,
            len_sectors: bio.len_sectors,
            completed: 0,
        };
        lock(&self.shared.state).log.push(seen.clone());
        seen
    }

    fn finish(&self, bio: BioBox, event: u64, cx: &mut LowerCx<'_>) {
        let status = self.shared.execute(&bio);
        self.shared.note_completion(event);
        cx.complete(bio, status);
    }
}

impl LowerLane for MemLane {
    fn submit(&mut self, bio: BioBox, cx: &mut LowerCx<'_>) {
        let seen = self.note(&bio, cx.lane);
        if self.abandoned > 0 {
            return cx.complete(bio, Status::Offline);
        }
        let holds = lock(&self.shared.state).hold_ops.has(bio.op);
        if !holds {
            return self.finish(bio, seen.event, cx);
        }
        let latch = self.shared.world.new_latch();
        self.held.insert(latch.0, (Some(bio), seen.event));
        lock(&self.shared.state).held.push((latch, seen));
        cx.submit_op(latch.0, DriverOp::Sync { handle: latch });
    }

    fn on_op(&mut self, user: u32, _completion: Completion, cx: &mut LowerCx<'_>) {
        match self.held.remove(&user) {
            Some((Some(bio), event)) => self.finish(bio, event, cx),
            Some((None, _)) => self.abandoned -= 1,
            None => {}
        }
    }

    fn abort(&mut self, select: &mut dyn FnMut(&Bio) -> bool, cx: &mut LowerCx<'_>) {
        for (bio, _) in self.held.values_mut() {
            if bio.as_deref().is_some_and(&mut *select)
                && let Some(bio) = bio.take()
            {
                self.abandoned += 1;
                cx.complete(bio, Status::Timeout);
            }
        }
    }

    fn close(&mut self, _cx: &mut LowerCx<'_>) {
        lock(&self.shared.state).open_lanes -= 1;
    }
}
