//! Writes, discards and zeroes: from bytes to pieces, and into the log.
//!
//! A request claims room in the buffers, becomes pieces (extents, runs of holes, fills) a slice at
//! a time, and is then accepted in one step: that step is its place in the order of everything.
//! When it is done depends on the mode and on FUA.
//!
//! Rules. The map is never read here: what a write replaces is found out by the checkpoint. Only
//! partial blocks are read. All pieces of a request are accepted together or not at all.
//!
//! The tricky case is a partial block: between reading it and accepting it nobody else may write
//! there. Such a request locks *all* its blocks before it reads, in one step, so that two of them
//! never wait for each other; whole-block writers look at the locks when they are accepted.

use super::commit;
use super::log::{Piece, Plan};
use super::options::{Event, NoSpace, Request};
use super::read::read_block;
use super::shared::{Claim, Core, Lock};
use super::tally::add;
use crate::compress::codec::BlockKind;
use crate::compress::format::entry::UNMAP_BLOCKS_MAX;
use crate::compress::format::{BLOCK_BYTES, Codec, Entry};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;
use udm_lane::{Payload, yield_now};
use udm_types::{BioFlags, Nanos, Op, Status};

/// Segments that discards may still take from the reserve: they are how space comes back.
const UNMAP_RESERVE: usize = 2;
/// What a request claims beside its data: tables and padding of its records.
const CLAIM_EXTRA_BYTES: usize = 8192;

/// What a request writes.
#[derive(Clone, Copy)]
enum Content<'a> {
    Data(&'a Payload),
    Zeroes,
}

/// A block that is written in part, as it will be.
struct Patched {
    block: u64,
    bytes: Vec<u8>,
}

/// Does a write, a discard or a write-zeroes.
pub(super) async fn write(core: &Rc<Core>, request: &Request) -> Status {
    let bytes = request.offset_bytes..request.offset_bytes + request.len_bytes;
    let (content, claim_bytes) = match request.op {
        Op::Write => (Content::Data(&request.payload), request.len_bytes as usize),
        Op::WriteZeroes => (Content::Zeroes, 0),
        Op::Discard => {
            let inside =
                bytes.start.next_multiple_of(BLOCK_BYTES)..bytes.end - bytes.end % BLOCK_BYTES;
            if inside.start >= inside.end {
                return Status::Ok;
            }
            return finish(
                core,
                request,
                store(core, inside, Content::Zeroes, 0, request.ticket).await,
            )
            .await;
        }
        Op::Read | Op::Flush => return Status::Invalid,
    };
    add(&core.port.tally.written_bytes, request.len_bytes);
    finish(core, request, store(core, bytes, content, claim_bytes, request.ticket).await).await
}

/// Waits until the request is as durable as it has to be.
async fn finish(core: &Rc<Core>, request: &Request, accepted: Result<u64, Status>) -> Status {
    let sequence = match accepted {
        Ok(sequence) => sequence,
        Err(status) => return status,
    };
    if request.flags.contains(BioFlags::FUA) {
        return commit::commit(core, sequence).await;
    }
    match core.port.options.writeback {
        Some(_) => Status::Ok,
        None => commit::wait_written(core, sequence).await,
    }
}

/// Makes pieces of a byte range and has them accepted; gives the sequence.
async fn store(
    core: &Rc<Core>,
    bytes: Range<u64>,
    content: Content<'_>,
    claim_bytes: usize,
    ticket: u64,
) -> Result<u64, Status> {
    let since = core.port.clock.now();
    let claim = Claim::new(core, claim_bytes + CLAIM_EXTRA_BYTES).await;
    let blocks = bytes.start / BLOCK_BYTES..bytes.end.div_ceil(BLOCK_BYTES);
    let is_partial =
        !bytes.start.is_multiple_of(BLOCK_BYTES) || !bytes.end.is_multiple_of(BLOCK_BYTES);
    let lock = match is_partial {
        true => Some(Lock::new(core, blocks.clone()).await),
        false => None,
    };
    let patched = match is_partial {
        true => patch(core, &bytes, content).await?,
        false => Vec::new(),
    };
    let pieces = match content {
        Content::Data(payload) => data_pieces(core, &bytes, payload, &patched).await,
        Content::Zeroes => zero_pieces(core, &bytes, &patched),
    };
    let has_lock = lock.is_some();
    let ask = Ask { pieces: &pieces, blocks, has_lock, ticket: Some(ticket), since };
    let sequence = accept(core, &ask).await?;
    drop(claim);
    Ok(sequence)
}

/// Reads the first and the last block of a range if they are written in part, and puts the new
/// bytes in.
async fn patch(
    core: &Rc<Core>,
    bytes: &Range<u64>,
    content: Content<'_>,
) -> Result<Vec<Patched>, Status> {
    let mut patched: Vec<Patched> = Vec::new();
    let last = bytes.end / BLOCK_BYTES;
    let edges = [
        (bytes.start / BLOCK_BYTES, !bytes.start.is_multiple_of(BLOCK_BYTES)),
        (last, !bytes.end.is_multiple_of(BLOCK_BYTES)),
    ];
    for (block, is_partial) in edges {
        if !is_partial || patched.iter().any(|other| other.block == block) {
            continue;
        }
        let mut old = read_block(core, block).await?;
        let at = block * BLOCK_BYTES;
        let from = bytes.start.max(at);
        let to = bytes.end.min(at + BLOCK_BYTES);
        let place = &mut old[(from - at) as usize..(to - at) as usize];
        match content {
            Content::Data(payload) => payload.copy_out(from - bytes.start, place),
            Content::Zeroes => place.fill(0),
        }
        patched.push(Patched { block, bytes: old });
    }
    Ok(patched)
}

/// Makes pieces of data, an extent a slice.
async fn data_pieces(
    core: &Rc<Core>,
    bytes: &Range<u64>,
    payload: &Payload,
    patched: &[Patched],
) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let end = bytes.end.div_ceil(BLOCK_BYTES);
    let mut first = bytes.start / BLOCK_BYTES;
    while first < end {
        // Extents end at multiples of their length, so that overwrites meet whole ones.
        let stop = (first / core.extent_blocks + 1) * core.extent_blocks;
        let blocks = first..stop.min(end);
        let len = ((blocks.end - blocks.start) * BLOCK_BYTES) as usize;
        let mut room = core.room_for_blocks(len);
        let at = blocks.start * BLOCK_BYTES;
        let from = bytes.start.max(at);
        let to = bytes.end.min(blocks.end * BLOCK_BYTES);
        payload.copy_out(from - bytes.start, &mut room[(from - at) as usize..(to - at) as usize]);
        for patch in patched.iter().filter(|patch| blocks.contains(&patch.block)) {
            let at = ((patch.block - blocks.start) * BLOCK_BYTES) as usize;
            room[at..at + BLOCK_BYTES as usize].copy_from_slice(&patch.bytes);
        }
        pack(core, &blocks, &room, &mut pieces);
        core.give_room_back(room);
        first = blocks.end;
        if core.computed(len) {
            yield_now().await;
        }
    }
    pieces
}

/// Makes pieces of some whole blocks: each run of blocks of one kind becomes one.
pub(super) fn pack(core: &Core, blocks: &Range<u64>, bytes: &[u8], pieces: &mut Vec<Piece>) {
    let block_bytes = BLOCK_BYTES as usize;
    let kind_of = |index: usize| BlockKind::of(&bytes[index * block_bytes..][..block_bytes]);
    let count = (blocks.end - blocks.start) as usize;
    let mut index = 0;
    while index < count {
        let kind = kind_of(index);
        let run_end = (index + 1..count).find(|at| kind_of(*at) != kind).unwrap_or(count);
        let first_block = blocks.start + index as u64;
        let run = (run_end - index) as u32;
        match kind {
            BlockKind::Zero => push_unmap(first_block..first_block + u64::from(run), pieces),
            BlockKind::Fill(pattern) => push_fill(first_block, run, pattern, pieces),
            BlockKind::Plain => {
                let input = &bytes[index * block_bytes..run_end * block_bytes];
                let mut coder = core.coder.borrow_mut();
                let (codec, payload) = coder.pack(core.choice, input);
                push_extent(first_block, run, codec, payload, pieces);
            }
        }
        index = run_end;
    }
}

/// An extent; runs are cut to extents before.
pub(super) fn push_extent(
    first_block: u64,
    blocks: u32,
    codec: Codec,
    payload: &[u8],
    pieces: &mut Vec<Piece>,
) {
    let blocks = u8::try_from(blocks).expect("invariant: an extent has 15 blocks at most");
    let payload_bytes = payload.len() as u32;
    let entry = Entry::Extent { first_block, blocks, codec, payload_bytes };
    pieces.push(Piece { entry, payload: payload.to_vec() });
}

/// Holes; goes on with the last piece if that ends where these begin.
pub(super) fn push_unmap(blocks: Range<u64>, pieces: &mut Vec<Piece>) {
    let mut first_block = blocks.start;
    if let Some(Piece { entry: Entry::Unmap { first_block: before, blocks: count }, .. }) =
        pieces.last_mut()
    {
        let room = u64::from(UNMAP_BLOCKS_MAX - *count);
        if *before + u64::from(*count) == first_block {
            let more = room.min(blocks.end - first_block);
            *count += more as u32;
            first_block += more;
        }
    }
    while first_block < blocks.end {
        let count = (blocks.end - first_block).min(UNMAP_BLOCKS_MAX.into());
        let entry = Entry::Unmap { first_block, blocks: count as u32 };
        pieces.push(Piece { entry, payload: Vec::new() });
        first_block += count;
    }
}

fn push_fill(first_block: u64, blocks: u32, pattern: u32, pieces: &mut Vec<Piece>) {
    if let Some(Piece {
        entry: Entry::Fill { first_block: before, blocks: count, pattern: same },
        ..
    }) = pieces.last_mut()
        && *same == pattern
        && *before + u64::from(*count) == first_block
    {
        *count += blocks;
        return;
    }
    pieces.push(Piece { entry: Entry::Fill { first_block, blocks, pattern }, payload: Vec::new() });
}

/// Pieces of a range of zeroes: holes between patched edges.
fn zero_pieces(core: &Core, bytes: &Range<u64>, patched: &[Patched]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let whole = bytes.start.div_ceil(BLOCK_BYTES)..bytes.end / BLOCK_BYTES;
    for patch in patched {
        pack(core, &(patch.block..patch.block + 1), &patch.bytes, &mut pieces);
    }
    if whole.start < whole.end {
        push_unmap(whole, &mut pieces);
    }
    pieces
}

/// What shall be accepted.
pub(super) struct Ask<'a> {
    /// What the log gets.
    pub(super) pieces: &'a [Piece],
    /// The blocks it changes.
    pub(super) blocks: Range<u64>,
    /// The asker has them locked.
    pub(super) has_lock: bool,
    /// The request; none of a resize.
    pub(super) ticket: Option<u64>,
    /// When the request came: how long it waits for space counts from here, also if it waited for
    /// others that waited for space.
    pub(super) since: Nanos,
}

/// Waits until the log can take the pieces, and appends them in one step.
pub(super) async fn accept(core: &Rc<Core>, ask: &Ask<'_>) -> Result<u64, Status> {
    let timeout = match core.port.options.no_space {
        NoSpace::Error => Nanos(u64::MAX),
        NoSpace::Queue { timeout } => timeout,
    };
    let mut deadline = ask.since + timeout;
    loop {
        let attempt = || try_accept(core, ask);
        if let Some(outcome) = core.port.clock.wait_until(deadline, &core.room, attempt).await {
            return outcome;
        }
        if core.live.borrow().is_out_of_space {
            return Err(Status::NoSpace);
        }
        // It waited for something else.
        deadline = core.port.clock.now() + timeout;
    }
}

fn try_accept(core: &Core, ask: &Ask<'_>) -> Option<Result<u64, Status>> {
    let Ask { pieces, blocks, ticket, .. } = ask;
    if let Some(status) = core.refusal() {
        return Some(Err(status));
    }
    let mut live = core.live.borrow_mut();
    // A shrink that began meanwhile has cut these blocks off.
    if ticket.is_some() && blocks.end > live.limit_blocks {
        return Some(Err(Status::Invalid));
    }
    if !ask.has_lock && live.is_locked(blocks) {
        return None;
    }
    if live.map.active.memory_bytes() >= core.port.options.delta_bytes / 2 {
        drop(live);
        core.background.notify();
        return None;
    }
    let is_unmap = pieces.iter().all(|piece| matches!(piece.entry, Entry::Unmap { .. }));
    let reserve = if is_unmap { UNMAP_RESERVE.min(core.reserve()) } else { core.reserve() };
    let plan = live.log.plan(pieces);
    // Also what would fit the open segment: below the reserve, that room is the cleaner's.
    let wanted = plan.segments + reserve;
    let free = live.segments.free_count();
    if free < wanted {
        // Not if it is only a matter of waiting for a discard or a reader.
        let is_final = live.is_out_of_space && free + live.segments.held_count() < wanted;
        live.space_wanted = live.space_wanted.max(wanted);
        drop(live);
        core.background.notify();
        let is_refused = is_final && core.port.options.no_space == NoSpace::Error;
        return is_refused.then_some(Err(Status::NoSpace));
    }
    live.space_retry |= is_unmap && live.is_out_of_space;
    drop(live);
    let sequence = core.append(&plan, pieces, false);
    if let Some(ticket) = ticket {
        core.port.note_accepted(*ticket);
    }
    Some(Ok(sequence))
}

impl Core {
    /// Appends pieces as planned in this very step.
    fn append(&self, plan: &Plan, pieces: &[Piece], is_cleaner: bool) -> u64 {
        let (was_open, sequence, is_open) = self.with_log(|log, ground| {
            let before = (log.has_open(), log.sealed());
            let sequence = log.append(plan, pieces, is_cleaner, ground);
            (before, sequence, (log.has_open(), log.sealed()))
        });
        let stored: u64 = pieces.iter().map(|piece| piece.payload.len() as u64).sum();
        let tally = &self.port.tally;
        add(if is_cleaner { &tally.gc_bytes } else { &tally.stored_bytes }, stored);
        if was_open != is_open {
            self.sealed.notify();
        }
        // Whatever the background waits for moves with the segments, or is asked for.
        if plan.segments > 0 || self.live.borrow().space_retry {
            self.background.notify();
        }
        sequence
    }

    /// The cleaner's copies: into the reserve, but never the last segment.
    pub(super) fn append_moved(&self, pieces: &[Piece]) -> Result<(), Status> {
        if let Some(status) = self.refusal() {
            return Err(status);
        }
        let live = self.live.borrow();
        let plan = live.log.plan(pieces);
        if plan.segments > 0 && live.segments.free_count() < plan.segments {
            return Err(Status::NoSpace);
        }
        drop(live);
        self.append(&plan, pieces, true);
        Ok(())
    }

    /// Segments that users never get.
    pub(super) fn reserve(&self) -> usize {
        usize::try_from(self.geometry.reserve_segments).unwrap_or(usize::MAX)
    }

    /// Says once that there is no space, or that there is again.
    pub(super) fn set_out_of_space(&self, is_out: bool) {
        let mut live = self.live.borrow_mut();
        if live.is_out_of_space == is_out {
            return;
        }
        live.is_out_of_space = is_out;
        drop(live);
        self.port.event(if is_out { Event::OutOfSpace } else { Event::SpaceAgain });
        self.room.notify();
    }
}
