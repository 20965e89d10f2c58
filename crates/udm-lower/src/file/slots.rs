//! The bios of one lane's part of a file: one slot each, from `submit` to the last operation.
//!
//! A slot outlives its bio when that is aborted: it then waits for its operation, which still owns
//! a share of the memory. The slot's index is the operation's `user` word, so an index is used
//! again only after its operation has ended.
//!
//! The bio keeps its payload. The operation gets its own handles on the same memory, in a payload
//! that lives in the slot between operations (so its capacity is used again and steady state
//! allocates nothing). That is how an aborted bio goes back whole, to be tried elsewhere, while the
//! kernel may still read or write the memory: buffers are counted, and a pool never takes back one
//! that somebody else holds.
//!
//! ```text
//!  free -> Queued (waits for a sync) -> Running (one operation) -> free
//!                ^        |                |  ^
//!                +--------+----------------+  +-- Pausing (EAGAIN: a timer brings it back)
//! ```

use udm_core::BioBox;
use udm_lane::{Buf, Payload};

/// What a slot is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotState {
    /// Nobody's.
    Free,
    /// Waits for the lane's sync.
    Queued,
    /// Has an operation with the driver.
    Running,
    /// Waits a moment before it tries again; the number tells its timer from stale ones.
    Pausing(u32),
}

/// How far a bio has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The flush before the data, or the flush that is all the bio asks for.
    PreSync,
    /// The read, the write, the range.
    Work,
    /// Write-zeroes by writing zeroes, where the file system cannot do it.
    ZeroPages,
    /// The flush after a durable write-zeroes or discard.
    PostSync,
}

/// One bio under way.
#[derive(Debug)]
pub(crate) struct Slot {
    /// `None` in a free slot, and once aborted.
    pub(crate) bio: Option<BioBox>,
    pub(crate) state: SlotState,
    pub(crate) stage: Stage,
    /// Bytes of the range that are done.
    pub(crate) done_bytes: u64,
    /// How often the present piece was tried again.
    pub(crate) retries: u32,
    /// Empty between operations; kept for its capacity.
    pub(crate) spare: Payload,
    /// Aligned memory in place of the bio's, for `O_DIRECT`.
    pub(crate) bounce: Option<Buf>,
    /// The operation is a durable write.
    pub(crate) dsync: bool,
}

/// The slots of a lane's part.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slots {
    /// How many are taken.
    pub(crate) fn taken_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a slot for a bio.
    pub(crate) fn insert(&mut self, bio: BioBox) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| self.grow());
        let slot = self.get(index);
        slot.bio = Some(bio);
        slot.state = SlotState::Queued;
        slot.stage = Stage::PreSync;
        slot.done_bytes = 0;
        slot.retries = 0;
        slot.dsync = false;
        index
    }

    /// A slot.
    ///
    /// # Panics
    /// If there never was one of this number.
    #[inline]
    pub(crate) fn get(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }

    /// What a slot is doing, also for numbers that never were.
    pub(crate) fn state(&self, index: u32) -> SlotState {
        self.slots.get(index as usize).map_or(SlotState::Free, |slot| slot.state)
    }

    /// Frees a slot; gives what was in it.
    pub(crate) fn remove(&mut self, index: u32) -> (Option<BioBox>, Option<Buf>) {
        self.free.push(index);
        let slot = self.get(index);
        assert!(slot.state != SlotState::Free, "a slot is freed once");
        slot.state = SlotState::Free;
        slot.spare.clear();
        (slot.bio.take(), slot.bounce.take())
    }

    /// The numbers of all slots there have been.
    pub(crate) fn indices(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    fn grow(&mut self) -> u32 {
        let index = u32::try_from(self.slots.len())
            .expect("invariant: a lane's part has a bounded number of slots");
        self.slots.push(Slot {
            bio: None,
            state: SlotState::Free,
            stage: Stage::PreSync,
            done_bytes: 0,
            retries: 0,
            spare: Payload::empty(),
            bounce: None,
            dsync: false,
        });
        index
    }
}
