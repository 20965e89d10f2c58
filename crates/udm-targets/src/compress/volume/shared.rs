//! What all tasks of a volume share.
//!
//! [`Port`] is there from the start: the disk, the host's ear, the clock. [`Core`] is there once
//! the volume was recovered: the log, the map, the segments.
//!
//! Rules. One thread. `live` is borrowed for a step and never across an `await`; what must not be
//! torn apart (appending a request, committing a checkpoint) is one step. A task may end anywhere:
//! what it holds (room in the buffers, a lock, pins) is a guard that gives it back.
//!
//! The tricky case is a change that somebody else waits for: every step that frees buffers, space,
//! locks or changes the state ends with the signal that belongs to it.

use super::cache::Unpacked;
use super::log::{Ground, Log, LogPoint};
use super::options::{Done, Event, Options, Request, State, Trouble};
use super::pages::Map;
use super::punch::Punched;
use super::resize::ResizeFault;
use super::segments::Segments;
use super::shrink::Shrink;
use super::signal::{Clock, Signal};
use super::tally::Tally;
use crate::compress::codec::{Coder, CoderChoice};
use crate::compress::format::checkpoint::CheckpointHead;
use crate::compress::format::{Geometry, RecordFlags, Superblock};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use udm_lane::{Payload, TaskId};
use udm_meta::Disk;
use udm_meta::page::{PAGE_PAIR_BYTES, PageRegions};
use udm_meta::record::RecordRules;
use udm_meta::superblock::SUPERBLOCK_BYTES;
use udm_types::Status;

/// The volume's ways out.
pub(super) struct Port {
    pub(super) disk: Disk,
    pub(super) options: Options,
    pub(super) clock: Clock,
    pub(super) state: RefCell<State>,
    pub(super) done: RefCell<VecDeque<Done>>,
    pub(super) events: RefCell<VecDeque<Event>>,
    /// Requests that have not ended, and whether they were accepted: those cannot be taken back.
    pub(super) pending: RefCell<BTreeMap<u64, Pending>>,
    /// Accepted requests, in order, if somebody wants to know.
    pub(super) accepted: RefCell<VecDeque<u64>>,
    /// Ends of resizes.
    pub(super) resized: RefCell<VecDeque<Result<(), ResizeFault>>>,
    pub(super) tally: Tally,
    /// Bytes computed in this turn.
    pub(super) computed: Cell<usize>,
    /// Requests from before the volume serves.
    pub(super) waiting: RefCell<VecDeque<Request>>,
    /// The core, when recovery is through.
    pub(super) core: RefCell<Option<Rc<Core>>>,
}

/// A request that has not ended.
pub(super) struct Pending {
    pub(super) task: TaskId,
    pub(super) is_accepted: bool,
    /// What the host gets back. Reads put their data into it, in steps without an `await`.
    pub(super) payload: Payload,
}

/// The volume proper.
pub(super) struct Core {
    pub(super) port: Rc<Port>,
    pub(super) superblock: Superblock,
    /// The superblock since the disk grew.
    pub(super) grown: Cell<Option<Superblock>>,
    pub(super) geometry: Geometry,
    pub(super) rules: RecordRules,
    pub(super) choice: CoderChoice,
    pub(super) extent_blocks: u64,
    pub(super) coder: RefCell<Coder>,
    /// Memory for one extent, passed around.
    pub(super) scratch: RefCell<Vec<u8>>,
    /// Words of blocks that somebody looks up, in one step.
    pub(super) words: RefCell<Vec<Option<u64>>>,
    pub(super) live: RefCell<Live>,
    /// Extents that are read block by block.
    pub(super) unpacked: RefCell<Unpacked>,
    /// One of them was fetched, or could not be.
    pub(super) fetched: Signal,
    /// Buffers, changes, segments or locks became free, or the state changed.
    pub(super) room: Signal,
    /// A record was sealed, or the open one got its first piece.
    pub(super) sealed: Signal,
    /// A record was written, or failed.
    pub(super) written: Signal,
    /// Somebody wants a commit.
    pub(super) commit: Signal,
    /// A commit ended.
    pub(super) durable: Signal,
    /// Something for the tasks in the background: a checkpoint, cleaning, discards, a stop.
    pub(super) background: Signal,
}

/// What is borrowed for a step.
pub(super) struct Live {
    pub(super) log: Log,
    pub(super) map: Map,
    pub(super) segments: Segments,
    /// The last durable checkpoint.
    pub(super) checkpoint_number: u64,
    pub(super) checkpoint: CheckpointHead,
    /// Where the log stood when the frozen changes were set aside.
    pub(super) frozen_at: Option<LogPoint>,
    /// Sums of the segment table's pages, to see which have changed.
    pub(super) segment_sums: Vec<u64>,
    /// A resize has begun and not ended.
    pub(super) is_resize_claimed: bool,
    /// A resize that the next freeze takes up, and the one that the frozen changes belong to.
    pub(super) resizing: Option<Resizing>,
    pub(super) frozen_resizing: Option<Resizing>,
    /// The disk is being made smaller.
    pub(super) shrink: Option<Shrink>,
    /// A superblock is on its way: a stop waits for it.
    pub(super) writes_superblock: bool,
    /// Where users' requests end: the logical size, or where a shrink will put it.
    pub(super) limit_blocks: u64,
    /// Damage was seen: the volume is to be marked.
    pub(super) needs_mark: bool,
    /// What is remembered of punching.
    pub(super) punched: Punched,
    /// The block that a scrub goes on with.
    pub(super) scrub_at: Option<u64>,
    /// Block ranges that are read and will be written by one request (partial blocks).
    pub(super) locks: Vec<Range<u64>>,
    /// Room in the buffers that requests have claimed and not used yet.
    pub(super) claimed_bytes: usize,
    /// The sequence that somebody wants durable.
    pub(super) wanted: u64,
    /// A flush of the disk is under way for it.
    pub(super) is_committing: bool,
    /// Checkpoints asked for, and done.
    pub(super) checkpoints_asked: u64,
    pub(super) checkpoints_done: u64,
    /// Background work is to end.
    pub(super) is_stopping: bool,
    /// Free segments that somebody waits for, the reserve included; 0 if nobody does.
    pub(super) space_wanted: usize,
    /// Something was discarded since no space was found.
    pub(super) space_retry: bool,
    /// Little space is left, and it was said.
    pub(super) is_low: bool,
    /// Segments that the host wants cleaned whatever the space.
    pub(super) cleaning_asked: u32,
    /// The cleaner is at it.
    pub(super) is_cleaning: bool,
    /// When it was cleaned last, segments died that nobody had cleaned, by overwrites in order.
    pub(super) dies_alone: bool,
    /// Cleaning was in vain: not again before so many record bytes were written.
    pub(super) clean_after: u64,
    /// Writes wait for space that no checkpoint and no cleaning can make.
    pub(super) is_out_of_space: bool,
    /// Bytes of records at the last freeze.
    pub(super) record_bytes_at_freeze: u64,
}

/// What a volume is to become at a checkpoint.
#[derive(Clone)]
pub(super) struct Resizing {
    pub(super) logical_blocks: u64,
    pub(super) segments: u32,
    pub(super) regions: PageRegions,
}

impl Port {
    /// A request has its place in the order.
    pub(super) fn note_accepted(&self, ticket: u64) {
        if let Some(pending) = self.pending.borrow_mut().get_mut(&ticket) {
            pending.is_accepted = true;
        }
        if self.options.tells_accepts {
            self.accepted.borrow_mut().push_back(ticket);
        }
    }

    /// A request without a task has ended.
    pub(super) fn end(&self, request: Request, status: Status) {
        let Request { ticket, payload, .. } = request;
        self.done.borrow_mut().push_back(Done { ticket, status, payload });
    }

    /// Tells the host.
    pub(super) fn event(&self, event: Event) {
        self.events.borrow_mut().push_back(event);
    }

    /// Changes to a worse state, and says so; the first trouble stays.
    pub(super) fn trouble(&self, worse: State) {
        let mut state = self.state.borrow_mut();
        let is_worse = match (&*state, &worse) {
            (State::Recovering | State::Serving, State::ReadOnly(_) | State::Failed(_)) => true,
            (State::ReadOnly(_), State::Failed(_)) => true,
            (State::Failed(_) | State::ReadOnly(_), _)
            | (_, State::Recovering | State::Serving) => false,
        };
        if let (true, State::ReadOnly(trouble) | State::Failed(trouble)) = (is_worse, &worse) {
            self.event(Event::Troubled(trouble.clone()));
            *state = worse;
        }
    }
}

impl Core {
    /// A step over the log with all it changes.
    pub(super) fn with_log<T>(&self, step: impl FnOnce(&mut Log, &mut Ground<'_>) -> T) -> T {
        let mut live = self.live.borrow_mut();
        let live = &mut *live;
        let mut ground = Ground {
            disk: &self.port.disk,
            segments: &mut live.segments,
            active: &mut live.map.active,
            checkpoint: live.checkpoint_number,
        };
        step(&mut live.log, &mut ground)
    }

    /// Ends the open record, if there is one.
    pub(super) fn seal(&self) {
        self.with_log(|log, ground| log.seal(RecordFlags::empty(), ground));
        self.sealed.notify();
    }

    /// What a write gets now that the volume does not serve; nothing if it does.
    pub(super) fn refusal(&self) -> Option<Status> {
        match &*self.port.state.borrow() {
            State::Recovering | State::Serving => None,
            State::ReadOnly(Trouble::Disk(error)) if self.live.borrow().log.is_broken => {
                Some(error.status)
            }
            State::ReadOnly(_) => Some(Status::ReadOnly),
            State::Failed(_) => Some(Status::IoErr),
        }
    }

    /// Metadata is damaged or cannot be written: the volume is to be checked.
    pub(super) fn damaged(&self, trouble: Trouble) {
        self.live.borrow_mut().needs_mark = true;
        self.read_only(trouble);
    }

    /// Stops taking writes, for good, and wakes everybody who waits for something.
    pub(super) fn read_only(&self, trouble: Trouble) {
        self.port.trouble(State::ReadOnly(trouble));
        self.wake_all();
    }

    /// Wakes everybody who waits for something.
    pub(super) fn wake_all(&self) {
        let signals = [
            &self.room,
            &self.sealed,
            &self.written,
            &self.commit,
            &self.durable,
            &self.background,
        ];
        signals.into_iter().for_each(Signal::notify);
    }

    /// What the volume takes below.
    pub(super) fn used_bytes(&self, live: &Live) -> u64 {
        let copies = self.geometry.superblock_offsets().len() * SUPERBLOCK_BYTES;
        let slots = 2 * self.geometry.checkpoint_len_bytes;
        let pages = live.map.slots.written_count() * PAGE_PAIR_BYTES;
        // All but the open one and the one that follows are counted whole.
        let whole = (live.segments.used_count() as u64).saturating_sub(2);
        let segments = whole * self.geometry.segment_bytes();
        let open = u64::from(live.log.point().place.offset_bytes);
        copies as u64 + slots + pages + segments + open
    }

    /// Counts computing; true if the task should let others have a turn.
    pub(super) fn computed(&self, bytes: usize) -> bool {
        let computed = self.port.computed.get() + bytes;
        self.port.computed.set(computed);
        computed >= super::SLICE_BYTES
    }

    /// Asks for a checkpoint; gives the number to wait for in `checkpoints_done`.
    pub(super) fn ask_checkpoint(&self) -> u64 {
        let mut live = self.live.borrow_mut();
        // One that has frozen already does not cover what was appended since.
        let is_running = live.map.frozen.is_some();
        let number = live.checkpoints_done + 1 + u64::from(is_running);
        live.checkpoints_asked = live.checkpoints_asked.max(number);
        drop(live);
        self.background.notify();
        number
    }
}

/// A claim on room in the buffers; given back when it is dropped.
pub(super) struct Claim {
    core: Rc<Core>,
    bytes: usize,
}

impl Claim {
    /// Waits for room.
    pub(super) async fn new(core: &Rc<Core>, bytes: usize) -> Claim {
        let limit = core.port.options.buffer_bytes;
        core.room
            .until(|| {
                // What will be refused should not wait for it.
                let is_refused = core.refusal().is_some();
                let mut live = core.live.borrow_mut();
                let used = live.claimed_bytes + live.log.buffered_bytes;
                // Something larger than all buffers goes alone.
                let is_room = used + bytes <= limit || used == 0 || is_refused;
                if is_room {
                    live.claimed_bytes += bytes;
                }
                is_room
            })
            .await;
        Claim { core: Rc::clone(core), bytes }
    }

    /// The cleaner's: waits for records to be written, and never for what requests claim. They may
    /// hold all the room there is while they wait for the space that the cleaner is to make.
    pub(super) async fn of_cleaner(core: &Rc<Core>, bytes: usize) -> Claim {
        let limit = core.port.options.buffer_bytes;
        core.room
            .until(|| {
                let buffered = core.live.borrow().log.buffered_bytes;
                buffered + bytes <= limit || buffered == 0 || core.refusal().is_some()
            })
            .await;
        core.live.borrow_mut().claimed_bytes += bytes;
        Claim { core: Rc::clone(core), bytes }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.core.live.borrow_mut().claimed_bytes -= self.bytes;
        self.core.room.notify();
    }
}

/// A block range that only its holder may write.
pub(super) struct Lock {
    core: Rc<Core>,
    pub(super) blocks: Range<u64>,
}

impl Lock {
    /// Waits until nobody else has a part of `blocks`.
    pub(super) async fn new(core: &Rc<Core>, blocks: Range<u64>) -> Lock {
        core.room
            .until(|| {
                let mut live = core.live.borrow_mut();
                let is_free = !live.is_locked(&blocks);
                if is_free {
                    live.locks.push(blocks.clone());
                }
                is_free
            })
            .await;
        Lock { core: Rc::clone(core), blocks }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut live = self.core.live.borrow_mut();
        if let Some(at) = live.locks.iter().position(|held| *held == self.blocks) {
            live.locks.swap_remove(at);
        }
        drop(live);
        self.core.room.notify();
    }
}

impl Live {
    /// True if somebody holds a part of `blocks`.
    pub(super) fn is_locked(&self, blocks: &Range<u64>) -> bool {
        self.locks.iter().any(|held| held.start < blocks.end && blocks.start < held.end)
    }
}

/// Segments that a reader is in.
pub(super) struct Pins {
    core: Rc<Core>,
    segments: Vec<u32>,
}

impl Pins {
    /// None yet.
    pub(super) fn new(core: &Rc<Core>) -> Pins {
        Pins { core: Rc::clone(core), segments: Vec::new() }
    }

    /// One more; `live` is what the caller looked the address up in.
    pub(super) fn add(&mut self, live: &mut Live, segment: u32) {
        live.segments.pin(segment);
        self.segments.push(segment);
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if self.segments.is_empty() {
            return;
        }
        let mut live = self.core.live.borrow_mut();
        let mut is_last = false;
        for segment in self.segments.drain(..) {
            is_last |= live.segments.unpin(segment);
        }
        let has_held = live.segments.held_count() > 0;
        drop(live);
        if is_last && has_held {
            self.core.background.notify();
        }
    }
}
