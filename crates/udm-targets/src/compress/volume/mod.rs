//! The volume: a compressed, crash-consistent block device over a disk, without any I/O of its own.
//!
//! [`Volume`] is driven by its host: requests go in, operations of the disk come out through the
//! port ([`Disk`]), ends and events are asked for, and [`Volume::turn`] does a bounded slice of
//! work. The target on a lane, tests and the crash enumerator are hosts; there is one engine.
//!
//! | file | holds |
//! |---|---|
//! | `options` | what hosts say and are told |
//! | `shared`, `signal`, `tally` | what tasks share, how they wait, what is counted |
//! | `log`, `delta`, `pages`, `segments`, `cache` | the parts of the state, without any waiting |
//! | `write`, `read`, `commit` | the life of a request |
//! | `checkpoint`, `clean`, `discard`, `punch`, `scrub` | the work in the background |
//! | `resize`, `shrink` | other sizes, while everything goes on |
//! | `recovery`, `window` | how it begins |
//!
//! Rules. Deterministic: time comes in with [`Volume::turn`], nothing else from outside. Everything
//! that waits is a task; dropping the volume at any instant is a crash, and a crash is always safe.
//! Work in the background is stopped by asking ([`Volume::request_stop`]); it ends between two
//! steps, with nothing of it under way on the disk.
//!
//! The tricky case is the host that stops and starts again at once, before the stop was through:
//! tasks that have not ended yet are not started twice ([`Volume::start`] is remembered).
//!
//! docs/internals/compress.md says how it all works together, and why.

mod cache;
mod checkpoint;
mod clean;
mod commit;
mod delta;
mod discard;
mod log;
mod options;
mod pages;
mod punch;
mod read;
mod recovery;
mod resize;
mod scrub;
mod segments;
mod shared;
mod shrink;
mod signal;
mod tally;
mod window;
mod write;

#[cfg(test)]
mod tests;

pub use options::{Done, Event, NoSpace, Options, Request, State, TICKET_OF_CUT, Trouble};
pub use resize::{ResizeFault, Sizes};
pub use tally::{Counters, Counts};

use crate::compress::format::{BLOCK_BYTES, Superblock};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use core::cell::{Cell, RefCell};
use shared::{Core, Pending, Port};
use udm_lane::{Executor, NoWake, Payload, TaskId};
use udm_meta::Disk;
use udm_types::{BioFlags, Nanos, Op, SECTOR_BYTES, Status};

/// Computing in one turn, in bytes compressed: about 50 microseconds of it.
const SLICE_BYTES: usize = 32 << 10;
/// Polls in one turn: for those that compute nothing.
const SLICE_POLLS: usize = 64;

/// Kinds of work in the background: checkpoints, cleaning, scrubs, discards, punching, emptying
/// of what is to be cut off.
const BACKGROUND: usize = 6;

/// A compress volume.
pub struct Volume {
    tasks: Executor,
    port: Rc<Port>,
    core: Option<Rc<Core>>,
    /// The work in the background, one place for each kind.
    background: [Option<TaskId>; BACKGROUND],
    stop: Stop,
}

/// How far a stop is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// Nobody asked for one.
    No,
    /// Under way: first the background ends, then the log is brought to the disk by a task.
    Asked { flush: bool, task: Option<TaskId> },
    /// Nothing is under way.
    Stopped,
}

impl Volume {
    /// Opens the volume on `disk`; recovery begins with the first turn.
    pub fn open(disk: Disk, options: Options, now: Nanos) -> Volume {
        let port = Rc::new(Port {
            disk,
            options,
            clock: signal::Clock::default(),
            state: RefCell::new(State::Recovering),
            done: RefCell::default(),
            events: RefCell::default(),
            pending: RefCell::default(),
            accepted: RefCell::default(),
            resized: RefCell::default(),
            tally: tally::Tally::default(),
            computed: Cell::new(0),
            waiting: RefCell::default(),
            core: RefCell::default(),
        });
        port.clock.advance(now);
        // The host asks [`Volume::turn`].
        let mut tasks = Executor::new(Arc::new(NoWake));
        tasks.spawn(recovery::recover(Rc::clone(&port)));
        Volume { tasks, port, core: None, background: [None; BACKGROUND], stop: Stop::No }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.port.state.borrow().clone()
    }

    /// What the volume is, once it was read.
    pub fn superblock(&self) -> Option<Superblock> {
        self.core.as_ref().map(|core| core.superblock_now())
    }

    /// Its logical size, once it was read.
    pub fn logical_bytes(&self) -> Option<u64> {
        self.core.as_ref().map(|core| core.live.borrow().map.logical_blocks * BLOCK_BYTES)
    }

    /// Takes a request; its end comes through [`Volume::next_done`]. Before the volume serves it
    /// waits.
    pub fn submit(&mut self, request: Request) {
        match &self.core {
            Some(core) => {
                let is_read = is_plain_read(core, &request);
                if is_read && let Some(status) = serve_at_hand(core, &request) {
                    return self.port.end(request, status);
                }
                let core = Rc::clone(core);
                let Request { ticket, op, flags, offset_bytes, len_bytes, payload } = request;
                // A read's task is a good deal smaller than one that can do everything.
                let task = match is_read {
                    true => self.tasks.spawn(serve_read(core, ticket, offset_bytes, len_bytes)),
                    false => {
                        let payload = payload.clone();
                        let request =
                            Request { ticket, op, flags, offset_bytes, len_bytes, payload };
                        self.tasks.spawn(serve(core, request))
                    }
                };
                let pending = Pending { task, is_accepted: false, payload };
                self.port.pending.borrow_mut().insert(ticket, pending);
            }
            None => self.port.waiting.borrow_mut().push_back(request),
        }
    }

    /// Takes a request back. It will not end any more: it was not accepted, and did nothing; this
    /// is its payload. Nothing if it has its place in the order, or has ended.
    pub fn take_back(&mut self, ticket: u64) -> Option<Payload> {
        let mut waiting = self.port.waiting.borrow_mut();
        if let Some(at) = waiting.iter().position(|request| request.ticket == ticket) {
            return waiting.remove(at).map(|request| request.payload);
        }
        let mut pending = self.port.pending.borrow_mut();
        if pending.get(&ticket).is_none_or(|pending| pending.is_accepted) {
            return None;
        }
        let Pending { task, payload, .. } = pending.remove(&ticket)?;
        drop(pending);
        self.tasks.abort(task);
        Some(payload)
    }

    /// Does a slice of work. True if there is more to do at once.
    pub fn turn(&mut self, now: Nanos) -> bool {
        self.port.clock.advance(now);
        self.port.computed.set(0);
        for _ in 0..SLICE_POLLS {
            if self.port.computed.get() >= SLICE_BYTES || !self.tasks.run_one() {
                break;
            }
        }
        self.begin_to_serve();
        if !self.tasks.has_ready() {
            self.seal_when_idle();
        }
        self.look_at_stop();
        self.tasks.has_ready()
    }

    /// When recovery has just ended: tasks that live as long as the volume, and what waited.
    fn begin_to_serve(&mut self) {
        let is_failed = matches!(*self.port.state.borrow(), State::Failed(_));
        if self.core.is_none() {
            self.core = self.port.core.borrow_mut().take();
            if let Some(core) = &self.core {
                self.tasks.spawn(commit::writer(Rc::clone(core)));
                self.tasks.spawn(commit::committer(Rc::clone(core)));
                self.tasks.spawn(commit::sealer(Rc::clone(core)));
                if self.stop == Stop::No {
                    self.start_background();
                }
            }
        }
        if self.core.is_some() || is_failed {
            while let Some(request) = self.next_waiting() {
                match is_failed {
                    true => self.port.end(request, Status::IoErr),
                    false => self.submit(request),
                }
            }
        }
    }

    fn next_waiting(&self) -> Option<Request> {
        self.port.waiting.borrow_mut().pop_front()
    }

    /// In writethrough everybody waits for the record, so it is not kept open for more.
    fn seal_when_idle(&mut self) {
        let Some(core) = &self.core else { return };
        if core.port.options.writeback.is_none() && core.live.borrow().log.has_open() {
            core.seal();
        }
    }

    /// When the host has to come back at the latest, if it is not told before.
    pub fn next_timer(&self) -> Option<Nanos> {
        self.port.clock.next()
    }

    /// The next request that has ended.
    pub fn next_done(&mut self) -> Option<Done> {
        self.port.done.borrow_mut().pop_front()
    }

    /// The next event.
    pub fn next_event(&mut self) -> Option<Event> {
        self.port.events.borrow_mut().pop_front()
    }

    /// Stops the work in the background and brings all that was accepted into the log; with `flush`
    /// it is durable. The host submits nothing until [`Volume::start`].
    pub fn request_stop(&mut self, flush: bool) {
        let Some(core) = &self.core else {
            // A recovery under way goes on; it changes nothing that a crash would not.
            self.stop = Stop::Stopped;
            return;
        };
        core.live.borrow_mut().is_stopping = true;
        core.wake_all();
        self.forget_stop();
        self.stop = Stop::Asked { flush, task: None };
    }

    /// A stop under way is given up.
    fn forget_stop(&mut self) {
        if let Stop::Asked { task: Some(task), .. } = self.stop {
            self.tasks.abort(task);
        }
        self.stop = Stop::No;
    }

    /// True when a stop is through.
    pub fn is_stopped(&self) -> bool {
        self.stop == Stop::Stopped
    }

    fn look_at_stop(&mut self) {
        let (Stop::Asked { flush, task }, Some(core)) = (self.stop, &self.core) else { return };
        match task {
            Some(task) if !self.tasks.is_alive(task) => self.stop = Stop::Stopped,
            Some(_) => {}
            None if self.background.iter().flatten().any(|task| self.tasks.is_alive(*task)) => {}
            None if core.live.borrow().writes_superblock => {}
            None => {
                let task = Some(self.tasks.spawn(stop(Rc::clone(core), flush)));
                self.stop = Stop::Asked { flush, task };
            }
        }
    }

    /// Goes on after a stop, or gives it up.
    pub fn start(&mut self) {
        self.forget_stop();
        self.start_background();
    }

    /// Starts the tasks in the background; those that have not stopped yet go on.
    fn start_background(&mut self) {
        let Some(core) = &self.core else { return };
        core.live.borrow_mut().is_stopping = false;
        if !matches!(*self.port.state.borrow(), State::Serving) {
            return;
        }
        for (kind, place) in self.background.iter_mut().enumerate() {
            if place.is_some_and(|task| self.tasks.is_alive(task)) {
                continue;
            }
            let core = Rc::clone(core);
            *place = Some(match kind {
                0 => self.tasks.spawn(checkpoint::keeper(core)),
                1 => self.tasks.spawn(clean::cleaner(core)),
                2 => self.tasks.spawn(scrub::scrubber(core)),
                3 => self.tasks.spawn(discard::discarder(core)),
                4 => self.tasks.spawn(punch::puncher(core)),
                _ => self.tasks.spawn(shrink::emptier(core)),
            });
        }
        // A resize waits for the end of a stop.
        core.background.notify();
    }

    /// Asks for a checkpoint.
    pub fn checkpoint(&mut self) {
        if let Some(core) = &self.core {
            core.ask_checkpoint();
        }
    }

    /// Asks for up to `count` segments to be cleaned, whatever the space.
    pub fn gc(&mut self, count: u32) {
        if let Some(core) = &self.core {
            core.live.borrow_mut().cleaning_asked += count;
            core.background.notify();
        }
    }

    /// Reads and verifies everything that is stored, in the background; damage is told by events.
    pub fn scrub(&mut self) {
        if let Some(core) = &self.core {
            core.live.borrow_mut().scrub_at.get_or_insert(0);
            core.background.notify();
        }
    }

    /// Gives the volume other sizes; its end comes through [`Volume::next_resized`]. One at a time.
    pub fn resize(&mut self, sizes: Sizes) {
        match &self.core {
            Some(core) => {
                self.tasks.spawn(resize::resize(Rc::clone(core), sizes));
            }
            None => self.port.resized.borrow_mut().push_back(Err(ResizeFault::NotServing)),
        }
    }

    /// Makes the volume use less of its disk, so that the disk can be cut to `disk_bytes` once it
    /// is done; its end comes through [`Volume::next_resized`]. A size that cannot be is refused at
    /// once. Until [`Sizes::grows_to_disk`] it does not use more again.
    ///
    /// # Errors
    /// Why it cannot be so small.
    pub fn shrink_disk(&mut self, disk_bytes: u64) -> Result<(), ResizeFault> {
        let core = self.core.as_ref().ok_or(ResizeFault::NotServing)?;
        shrink::begin(core, disk_bytes)?;
        self.tasks.spawn(shrink::shrink(Rc::clone(core)));
        Ok(())
    }

    /// Gives up making the disk smaller, if that is still possible; its end is the usual one.
    pub fn stop_shrinking(&mut self) {
        if let Some(core) = &self.core {
            core.give_up_shrink(ResizeFault::GivenUp);
        }
    }

    /// The end of a resize.
    pub fn next_resized(&mut self) -> Option<Result<(), ResizeFault>> {
        self.port.resized.borrow_mut().pop_front()
    }

    /// The next request that was accepted, in the order of the log: writes, discards, zeroes. Told
    /// only with [`Options::tells_accepts`], and in the step that accepts.
    pub fn next_accepted(&mut self) -> Option<u64> {
        self.port.accepted.borrow_mut().pop_front()
    }

    /// What was counted, and sizes.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters { counts: self.port.tally.read(), ..Counters::default() };
        let Some(core) = &self.core else { return counters };
        counters.disk_bytes = core.superblock_now().geometry.device_bytes;
        let live = core.live.borrow();
        let log = &live.log;
        counters.records = log.records;
        counters.record_bytes = log.record_bytes;
        counters.segments = live.segments.count().into();
        counters.segments_used = live.segments.used_count() as u64;
        counters.used_bytes = core.used_bytes(&live);
        counters.logical_blocks = live.map.logical_blocks;
        counters.live_blocks = live.checkpoint.live_blocks;
        counters.live_bytes = live.checkpoint.live_units << core.geometry.unit_shift;
        counters.log_bytes = log.record_bytes - live.record_bytes_at_freeze;
        counters.changes = live.map.changes() as u64;
        counters.checkpoint = live.checkpoint_number;
        counters.buffered_bytes = log.buffered_bytes as u64;
        let parts = log.memory_bytes() + live.map.memory_bytes() + live.segments.memory_bytes();
        let coder = core.coder.borrow().memory_bytes();
        let unpacked = core.unpacked.borrow().memory_bytes();
        let kept = self.port.disk.kept_bytes();
        counters.memory_bytes = (parts + coder + unpacked + live.claimed_bytes + kept) as u64;
        counters.shrinking_to_bytes = live.shrink.as_ref().map_or(0, |shrink| shrink.disk_bytes());
        counters.is_checkpointing = live.map.frozen.is_some();
        counters.is_cleaning = live.is_cleaning;
        counters.sequences = [log.last_sequence(), log.written(), log.durable];
        counters
    }
}

/// Does a request that waits for nothing, without a task of its own: a small read of what is in
/// memory. Whoever reads on in small pieces finds most of them there.
fn serve_at_hand(core: &Core, request: &Request) -> Option<Status> {
    let status = read::read_at_hand(core, request.offset_bytes, &request.payload)?;
    tally::add(&core.port.tally.read_bytes, request.len_bytes);
    Some(status)
}

/// A read of something, and of nothing else.
fn is_plain_read(core: &Core, request: &Request) -> bool {
    let is_read = request.op == Op::Read && request.len_bytes > 0;
    is_read && !request.flags.contains(BioFlags::PREFLUSH) && is_valid(core, request)
}

/// Does a plain read.
async fn serve_read(core: Rc<Core>, ticket: u64, offset_bytes: u64, len_bytes: u64) {
    tally::add(&core.port.tally.read_bytes, len_bytes);
    let target = read::Target::of_request(&core.port, ticket, offset_bytes, len_bytes);
    let status = read::read(&core, &target).await;
    end(&core, ticket, status);
}

/// Whether a request is one at all, and inside the volume.
fn is_valid(core: &Core, request: &Request) -> bool {
    let is_aligned = request.offset_bytes.is_multiple_of(SECTOR_BYTES)
        && request.len_bytes.is_multiple_of(SECTOR_BYTES);
    let end = request.offset_bytes.checked_add(request.len_bytes);
    let size = core.live.borrow().limit_blocks * BLOCK_BYTES;
    let has_data = !request.op.has_data() || request.payload.len_bytes() == request.len_bytes;
    is_aligned && has_data && end.is_some_and(|end| end <= size)
}

/// A request with a task has ended.
fn end(core: &Core, ticket: u64, status: Status) {
    let pending = core.port.pending.borrow_mut().remove(&ticket);
    let payload = pending.map_or_else(Payload::empty, |pending| pending.payload);
    core.port.done.borrow_mut().push_back(Done { ticket, status, payload });
}

/// Does one request.
async fn serve(core: Rc<Core>, request: Request) {
    let status = serve_inner(&core, &request).await;
    end(&core, request.ticket, status);
}

async fn serve_inner(core: &Rc<Core>, request: &Request) -> Status {
    if !is_valid(core, request) {
        return Status::Invalid;
    }
    if request.flags.contains(BioFlags::PREFLUSH) {
        let status = commit::flush(core).await;
        if !status.is_ok() {
            return status;
        }
    }
    match request.op {
        Op::Flush => commit::flush(core).await,
        Op::Read | Op::Write | Op::Discard | Op::WriteZeroes if request.len_bytes == 0 => {
            Status::Ok
        }
        Op::Read => {
            tally::add(&core.port.tally.read_bytes, request.len_bytes);
            let Request { ticket, offset_bytes, len_bytes, .. } = *request;
            let target = read::Target::of_request(&core.port, ticket, offset_bytes, len_bytes);
            // Rare here: a read with a flush before it.
            Box::pin(read::read(core, &target)).await
        }
        Op::Write | Op::Discard | Op::WriteZeroes => write::write(core, request).await,
    }
}

/// Brings everything into the log, and with `flush` makes it durable.
async fn stop(core: Rc<Core>, flush: bool) {
    if flush {
        commit::flush(&core).await;
    } else {
        core.seal();
        let sealed = core.live.borrow().log.sealed();
        commit::wait_written(&core, sealed).await;
    }
    // Who wanted a commit may have been taken back; what it began is still the volume's.
    commit::wait_idle(&core).await;
}
