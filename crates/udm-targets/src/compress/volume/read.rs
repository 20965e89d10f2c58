//! Reads: from blocks to bytes.
//!
//! A read goes in steps of some blocks. Each step finds out in *one* step of the shared state where
//! all its blocks are (after reading the map pages it misses), takes what is in memory and pins the
//! segments of what is on the disk; then reads, adjacent extents in one operation, verifies, and
//! decompresses into the caller's memory: in place where nobody else has a handle on it.
//!
//! Rules. Nothing is given out that was not verified: place, time and content. An extent that fails
//! is read once more; then its blocks are an error, an event says so, and the rest is still read.
//!
//! Of an extent that is read in part all blocks are kept for a while (`cache.rs`): the next reader
//! wants the next ones.
//!
//! The tricky case is the moment between looking up and reading: the cleaner may have copied the
//! extent, and a checkpoint may have freed its segment. The pin keeps it from being written again.

use super::cache::{ExtentKey, Fetching, key_of};
use super::log::OpenBlock;
use super::options::{Event, Trouble};
use super::pages::Known;
use super::shared::{Core, Pins, Port};
use super::tally::add;
use crate::compress::codec::fill_payload;
use crate::compress::format::map::{KIND_MAP, MapExtent};
use crate::compress::format::{BLOCK_BYTES, ExtentHead, MapEntry};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ops::Range;
use udm_lane::{Buf, Payload, yield_now};
use udm_meta::Disk;
use udm_meta::page::{PageFault, PageName};
use udm_types::Status;

/// Blocks looked up in one step: few enough to be quick, enough for one large lower read.
const STEP_BLOCKS: u64 = 256;
/// Blocks that are copied at once, without a task: a few microseconds.
const AT_HAND_BLOCKS_MAX: u64 = 16;
/// The longest lower read that is put together from several extents.
const JOINED_BYTES_MAX: u64 = 1 << 20;

/// Neighbouring blocks with one source.
struct Part {
    blocks: Range<u64>,
    source: Source,
}

enum Source {
    /// One word all over.
    Fill(u32),
    /// Lost.
    Poisoned,
    /// An extent in memory; which of its blocks the first one is.
    Memory(Vec<u8>, u8),
    /// An extent of a record that is being written.
    InFlight(Payload, u64, MapExtent),
    /// The blocks of an extent; which of them the first one is.
    Unpacked(Rc<Vec<u8>>, u8),
    /// An extent on the disk. Its entry is the first block's.
    Disk(MapExtent),
}

/// A piece of the disk to read for some parts.
struct Stretch {
    offset_bytes: u64,
    len_bytes: u64,
    parts: Range<usize>,
}

/// What a read of the disk brought.
enum Bytes {
    /// At the beginning of its buffer, which nobody else holds.
    Buffer(Buf, usize),
    /// A copy, if somebody does.
    Copy(Vec<u8>),
}

impl Bytes {
    fn of(payload: Payload) -> Bytes {
        let len = payload.len_bytes() as usize;
        let is_own = payload.segment_count() == 1
            && payload.segments().all(|only| only.offset_bytes == 0 && only.buf.is_own());
        if !is_own {
            let mut bytes = alloc::vec![0; len];
            payload.copy_out(0, &mut bytes);
            return Bytes::Copy(bytes);
        }
        payload.into_first_buf().map_or(Bytes::Copy(Vec::new()), |buf| Bytes::Buffer(buf, len))
    }

    fn as_slice(&mut self) -> &[u8] {
        match self {
            Bytes::Buffer(buf, len) => buf.get_mut().map_or(&[], |bytes| &bytes[..*len]),
            Bytes::Copy(bytes) => bytes,
        }
    }

    /// The memory may be used again.
    fn give_back(self, disk: &Disk) {
        match self {
            Bytes::Buffer(buf, _) => disk.give_back(Payload::from_buf(buf)),
            Bytes::Copy(_) => {}
        }
    }
}

/// Where a reader takes data from that is on the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// From memory, if it is there.
    Anywhere,
    /// From the disk: whoever wants to know what is there.
    Disk,
}

/// Reads what `target` wants.
pub(super) async fn read(core: &Rc<Core>, target: &Target<'_>) -> Status {
    let end = target.wanted.end_bytes.div_ceil(BLOCK_BYTES);
    let mut first = target.wanted.offset_bytes / BLOCK_BYTES;
    let mut status = Status::Ok;
    while first < end {
        let blocks = first..end.min(first + STEP_BLOCKS);
        first = blocks.end;
        let step = read_step(core, blocks, target).await;
        status = if status.is_ok() { step } else { status };
    }
    status
}

/// A read that needs nothing but copying: blocks that are at hand, uncompressed or all of one word.
/// Nothing if there is more to it; then the payload may have been written into.
pub(super) fn read_at_hand(core: &Core, offset_bytes: u64, payload: &Payload) -> Option<Status> {
    let end_bytes = offset_bytes + payload.len_bytes();
    let blocks = offset_bytes / BLOCK_BYTES..end_bytes.div_ceil(BLOCK_BYTES);
    if blocks.end - blocks.start > AT_HAND_BLOCKS_MAX {
        return None;
    }
    let wanted = Wanted { offset_bytes, end_bytes };
    let mut live = core.live.borrow_mut();
    let mut unpacked = core.unpacked.borrow_mut();
    for block in blocks {
        if live.log.find_open(block).is_some() {
            return None;
        }
        let Known::Word(word) = live.map.find(&core.geometry, block) else { return None };
        match Place::of_word(word) {
            Place::Fill(pattern) => {
                let (at, _, len) = wanted.range(&(block..block + 1));
                fill_payload(payload, at, len, pattern);
            }
            Place::Extent(extent) => {
                let bytes = unpacked.get(key_of(block, &extent))?;
                let from = usize::from(extent.index) * BLOCK_BYTES as usize;
                let bytes = bytes.get(from..from + BLOCK_BYTES as usize)?;
                let (at, skip, len) = wanted.range(&(block..block + 1));
                payload.copy_in(at, &bytes[skip..skip + len as usize]);
            }
            Place::Poisoned | Place::Open { .. } => return None,
        }
    }
    Some(Status::Ok)
}

/// Reads one block into memory.
pub(super) async fn read_block(core: &Rc<Core>, block: u64) -> Result<Vec<u8>, Status> {
    let place = RefCell::new(Payload::from_buf(Buf::alloc(BLOCK_BYTES as usize)));
    let target = Target::own(&place, block * BLOCK_BYTES, From::Anywhere);
    let status = read(core, &target).await;
    let mut bytes = alloc::vec![0; BLOCK_BYTES as usize];
    place.borrow().copy_out(0, &mut bytes);
    if status.is_ok() { Ok(bytes) } else { Err(status) }
}

/// The bytes that somebody wants.
#[derive(Clone, Copy)]
struct Wanted {
    offset_bytes: u64,
    end_bytes: u64,
}

/// What the caller wants, and where it goes.
pub(super) struct Target<'a> {
    wanted: Wanted,
    memory: Memory<'a>,
    from: From,
}

/// Whose memory it goes to.
enum Memory<'a> {
    /// A request's. It stays with the request, since a task may end at any `await`.
    Request(&'a Port, u64),
    /// The caller's.
    Own(&'a RefCell<Payload>),
}

impl Wanted {
    /// The bytes of `blocks` that are wanted: where in the payload, how many to skip in the blocks,
    /// and how many.
    fn range(&self, blocks: &Range<u64>) -> (u64, usize, u64) {
        let from = (blocks.start * BLOCK_BYTES).max(self.offset_bytes);
        let to = (blocks.end * BLOCK_BYTES).min(self.end_bytes);
        let skip = from - blocks.start * BLOCK_BYTES;
        (from - self.offset_bytes, skip as usize, to - from)
    }
}

impl<'a> Target<'a> {
    /// What a request with a task wants.
    pub(super) fn of_request(
        port: &'a Port,
        ticket: u64,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Target<'a> {
        let wanted = Wanted { offset_bytes, end_bytes: offset_bytes + len_bytes };
        Target { wanted, memory: Memory::Request(port, ticket), from: From::Anywhere }
    }

    /// As much as there is memory, from `offset_bytes` on.
    pub(super) fn own(place: &'a RefCell<Payload>, offset_bytes: u64, from: From) -> Target<'a> {
        let end_bytes = offset_bytes + place.borrow().len_bytes();
        let wanted = Wanted { offset_bytes, end_bytes };
        Target { wanted, memory: Memory::Own(place), from }
    }

    /// Something done with the memory; nothing if the request is gone.
    fn with<T>(&self, what: impl FnOnce(&mut Payload) -> T) -> Option<T> {
        match self.memory {
            Memory::Own(place) => Some(what(&mut place.borrow_mut())),
            Memory::Request(port, ticket) => {
                let mut pending = port.pending.borrow_mut();
                pending.get_mut(&ticket).map(|pending| what(&mut pending.payload))
            }
        }
    }

    /// Copies what the caller wants of `blocks`, whose bytes are `bytes`.
    fn put(&self, blocks: &Range<u64>, bytes: &[u8]) {
        let (at, skip, len) = self.wanted.range(blocks);
        self.with(|payload| payload.copy_in(at, &bytes[skip..skip + len as usize]));
    }

    /// Fills what the caller wants of `blocks` with one word.
    fn fill(&self, blocks: &Range<u64>, pattern: u32) {
        let (at, _, len) = self.wanted.range(blocks);
        self.with(|payload| fill_payload(payload, at, len, pattern));
    }

    /// The memory that `blocks` go to, if all of them are wanted and nobody else has it.
    fn make_in_place<T>(
        &self,
        blocks: &Range<u64>,
        make: impl FnOnce(&mut [u8]) -> T,
    ) -> Option<T> {
        let (at, _, len) = self.wanted.range(blocks);
        if len < (blocks.end - blocks.start) * BLOCK_BYTES {
            return None;
        }
        self.with(|payload| payload.slice_mut(at, len).map(make)).flatten()
    }
}

async fn read_step(core: &Rc<Core>, blocks: Range<u64>, target: &Target<'_>) -> Status {
    let mut pins = Pins::new(core);
    let mut fetching = Fetching::new(core);
    let parts = match find_parts(core, blocks, target.from, &mut pins, &mut fetching).await {
        Ok(parts) => parts,
        Err(status) => return status,
    };
    let stretches = stretches(core, &parts);
    add(&core.port.tally.data_reads, stretches.len() as u64);
    let disk = &core.port.disk;
    let begin = |stretch: &Stretch| {
        disk.read_into(stretch.offset_bytes, disk.buffer(stretch.len_bytes as usize))
    };
    let reads: Vec<_> = stretches.iter().map(begin).collect();
    let mut status = Status::Ok;
    for part in &parts {
        let step = match &part.source {
            Source::Disk(_) => continue,
            Source::Fill(pattern) => {
                target.fill(&part.blocks, *pattern);
                Ok(())
            }
            Source::Poisoned => Err(Status::Medium),
            Source::Unpacked(bytes, index) => {
                let blocks = bytes.get(usize::from(*index) * BLOCK_BYTES as usize..);
                target.put(&part.blocks, blocks.unwrap_or_default());
                Ok(())
            }
            Source::Memory(bytes, index) => {
                decode(core, part, None, *index, bytes, target).map_err(|()| Status::IoErr)
            }
            Source::InFlight(payload, at, extent) => {
                let mut bytes = alloc::vec![0; stored_bytes(core, extent)];
                payload.copy_out(*at, &mut bytes);
                let decoded = decode(core, part, Some(extent), extent.index, &bytes, target);
                decoded.map_err(|()| Status::IoErr)
            }
        };
        status = if status.is_ok() { step.err().unwrap_or_default() } else { status };
        rest(core, part).await;
    }
    for (stretch, read) in stretches.iter().zip(reads) {
        let mut outcome = read.await.map(Bytes::of);
        for part in &parts[stretch.parts.clone()] {
            let Source::Disk(extent) = &part.source else { continue };
            let is_read = match &mut outcome {
                Ok(bytes) => {
                    let at = (extent_offset(core, extent) - stretch.offset_bytes) as usize;
                    let stored = bytes.as_slice().get(at..at + stored_bytes(core, extent));
                    stored.is_some_and(|bytes| {
                        decode(core, part, Some(extent), extent.index, bytes, target).is_ok()
                    })
                }
                Err(_) => false,
            };
            if !is_read {
                let again = read_again(core, part, extent, target).await;
                status = if status.is_ok() { again } else { status };
            }
            rest(core, part).await;
        }
        if let Ok(bytes) = outcome {
            bytes.give_back(disk);
        }
    }
    status
}

/// Lets others have a turn if enough was computed.
async fn rest(core: &Core, part: &Part) {
    let bytes = ((part.blocks.end - part.blocks.start) * BLOCK_BYTES) as usize;
    // Decompressing is about four times as fast as compressing, and copying ten times as that.
    let share = match part.source {
        Source::Unpacked(..) | Source::Fill(_) | Source::Poisoned => 40,
        Source::Memory(..) | Source::InFlight(..) | Source::Disk(_) => 4,
    };
    if core.computed(bytes / share) {
        yield_now().await;
    }
}

/// The second try of an extent that was wrong or could not be read.
async fn read_again(
    core: &Rc<Core>,
    part: &Part,
    extent: &MapExtent,
    target: &Target<'_>,
) -> Status {
    add(&core.port.tally.rereads, 1);
    let offset_bytes = extent_offset(core, extent);
    let (from, len) = widen(core, offset_bytes, stored_bytes(core, extent) as u64);
    let status = match core.port.disk.read(from, len as usize).await {
        Ok(payload) => {
            let mut bytes = alloc::vec![0; stored_bytes(core, extent)];
            payload.copy_out(offset_bytes - from, &mut bytes);
            match decode(core, part, Some(extent), extent.index, &bytes, target) {
                Ok(()) => return Status::Ok,
                Err(()) => Status::IoErr,
            }
        }
        Err(error) => error.status,
    };
    let blocks = part.blocks.end - part.blocks.start;
    core.port.event(Event::BlocksLost { first_block: part.blocks.start, blocks });
    status
}

/// Verifies an extent and gives the caller its blocks.
fn decode(
    core: &Core,
    part: &Part,
    extent: Option<&MapExtent>,
    index: u8,
    bytes: &[u8],
    target: &Target<'_>,
) -> Result<(), ()> {
    let (head, payload) = ExtentHead::verify(core.rules.salt, bytes).map_err(|_fault| ())?;
    let first = part.blocks.start;
    let is_meant = match extent {
        Some(extent) => head.answers(first, extent, core.rules.unit_bytes),
        None => head.first_block + u64::from(index) == first,
    };
    let count = part.blocks.end - first;
    if !is_meant || u64::from(index) + count > u64::from(head.blocks) {
        return Err(());
    }
    if count == u64::from(head.blocks) {
        let make = |room: &mut [u8]| core.coder.borrow_mut().unpack(head.codec, payload, room);
        if let Some(made) = target.make_in_place(&part.blocks, make) {
            return made.map_err(|_bad| ());
        }
    }
    let mut room = core.room_for_blocks(head.logical_bytes() as usize);
    let unpacked = core.coder.borrow_mut().unpack(head.codec, payload, &mut room);
    let at = usize::from(index) * BLOCK_BYTES as usize;
    if unpacked.is_ok() {
        target.put(&part.blocks, &room[at..]);
    }
    // The rest of it will be wanted next, by whoever reads on. Nothing but what is on the disk:
    // that is pinned, and what is on its way there is not.
    if let (Source::Disk(extent), Ok(())) = (&part.source, &unpacked)
        && count < u64::from(head.blocks)
        && target.from == From::Anywhere
    {
        room = core.unpacked.borrow_mut().insert(key_of(first, extent), room);
    }
    core.give_room_back(room);
    unpacked.map_err(|_bad| ())
}

/// Where all of `blocks` are, found in one step; what is on the disk is pinned.
async fn find_parts(
    core: &Rc<Core>,
    blocks: Range<u64>,
    from: From,
    pins: &mut Pins,
    fetching: &mut Fetching,
) -> Result<Vec<Part>, Status> {
    loop {
        let mut parts = match known_parts(core, blocks.clone(), pins) {
            Ok(parts) => parts,
            Err(page) => {
                load_page(core, page).await?;
                continue;
            }
        };
        if from == From::Disk {
            return Ok(parts);
        }
        let Some(others) = take_unpacked(core, &mut parts, fetching) else { return Ok(parts) };
        fetching.end();
        core.fetched.until(|| !core.unpacked.borrow().is_fetched(others)).await;
    }
}

/// Takes what is in memory of extents that are read in part, and says that the others are fetched.
/// Gives one that somebody else fetches, to be waited for with nothing in hand.
fn take_unpacked(core: &Core, parts: &mut [Part], fetching: &mut Fetching) -> Option<ExtentKey> {
    for part in parts {
        let Source::Disk(extent) = &part.source else { continue };
        let count = part.blocks.end - part.blocks.start;
        if extent.index == 0 && count >= core.extent_blocks {
            continue;
        }
        let key = key_of(part.blocks.start, extent);
        let end = (u64::from(extent.index) + count) * BLOCK_BYTES;
        let unpacked = core.unpacked.borrow_mut().get(key);
        match unpacked.filter(|bytes| bytes.len() as u64 >= end) {
            Some(bytes) => part.source = Source::Unpacked(bytes, extent.index),
            None if fetching.add(key) => {}
            None => return Some(key),
        }
    }
    None
}

/// As [`find_parts`], if every page is at hand; otherwise, one that is not.
fn known_parts(core: &Core, blocks: Range<u64>, pins: &mut Pins) -> Result<Vec<Part>, u64> {
    let mut live = core.live.borrow_mut();
    let live = &mut *live;
    let mut words = core.words.borrow_mut();
    words.clear();
    // What the open record says is newer than anything, and needs no page.
    let open = |block| live.log.find_open(block);
    words.extend(blocks.clone().map(|block| open(block).map(|_newer| 0)));
    live.map.find_all(&core.geometry, blocks.clone(), &mut words)?;
    let mut parts: Vec<Part> = Vec::new();
    let mut last: Option<Place> = None;
    for (block, word) in blocks.zip(words.iter()) {
        let place = match live.log.find_open(block) {
            Some(OpenBlock::Word(word)) => Place::of_word(word),
            Some(OpenBlock::Extent { entry, index }) => Place::Open { entry, index },
            None => Place::of_word(word.unwrap_or(0)),
        };
        let goes_on = last.is_some_and(|last| last.is_followed_by(&place));
        last = Some(place);
        match parts.last_mut() {
            Some(part) if goes_on => {
                part.blocks.end = block + 1;
                continue;
            }
            Some(_) | None => {}
        }
        let source = match place {
            Place::Fill(pattern) => Source::Fill(pattern),
            Place::Poisoned => Source::Poisoned,
            Place::Open { entry, index } => {
                Source::Memory(live.log.open_extent(entry).to_vec(), index)
            }
            Place::Extent(extent) => match live.log.find_in_flight(extent.address) {
                Some((payload, at)) => Source::InFlight(payload, at, extent),
                None => {
                    let segment = core.geometry.place_of(extent.address).segment;
                    if segment >= live.segments.count() {
                        Source::Poisoned
                    } else {
                        pins.add(live, segment);
                        Source::Disk(extent)
                    }
                }
            },
        };
        parts.push(Part { blocks: block..block + 1, source });
    }
    Ok(parts)
}

/// A block's place, as the log and the map say it.
#[derive(Clone, Copy)]
enum Place {
    Fill(u32),
    Poisoned,
    Open { entry: usize, index: u8 },
    Extent(MapExtent),
}

impl Place {
    fn of_word(word: u64) -> Place {
        match MapEntry::from_word(word) {
            Ok(MapEntry::Hole) => Place::Fill(0),
            Ok(MapEntry::Fill(pattern)) => Place::Fill(pattern),
            Ok(MapEntry::Extent(extent)) => Place::Extent(extent),
            Ok(MapEntry::Poisoned) | Err(_) => Place::Poisoned,
        }
    }

    /// True if the next block's place is the continuation of this one.
    fn is_followed_by(&self, next: &Place) -> bool {
        match (self, next) {
            (Place::Fill(one), Place::Fill(other)) => one == other,
            (Place::Poisoned, Place::Poisoned) => true,
            (
                Place::Open { entry, index },
                Place::Open { entry: next_entry, index: next_index },
            ) => entry == next_entry && index + 1 == *next_index,
            (Place::Extent(one), Place::Extent(next)) => {
                MapExtent { index: one.index + 1, ..*one } == *next
            }
            (Place::Fill(_) | Place::Poisoned | Place::Open { .. } | Place::Extent(_), _) => false,
        }
    }
}

/// What has to be read for `parts`: adjacent and overlapping extents in one piece.
fn stretches(core: &Core, parts: &[Part]) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let Source::Disk(extent) = &part.source else { continue };
        let stored = stored_bytes(core, extent) as u64;
        let (from, len) = widen(core, extent_offset(core, extent), stored);
        if let Some(last) = stretches.last_mut() {
            let last_end = last.offset_bytes + last.len_bytes;
            let joined = (from + len).saturating_sub(last.offset_bytes);
            if (last.offset_bytes..=last_end).contains(&from) && joined <= JOINED_BYTES_MAX {
                last.len_bytes = last.len_bytes.max(joined);
                last.parts.end = index + 1;
                continue;
            }
        }
        let parts = index..index + 1;
        stretches.push(Stretch { offset_bytes: from, len_bytes: len, parts });
    }
    stretches
}

/// A range of the disk in whole physical blocks.
fn widen(core: &Core, offset_bytes: u64, len_bytes: u64) -> (u64, u64) {
    let align = core.geometry.physical_bytes();
    let from = offset_bytes - offset_bytes % align;
    (from, (offset_bytes + len_bytes).next_multiple_of(align) - from)
}

fn extent_offset(core: &Core, extent: &MapExtent) -> u64 {
    core.geometry.offset_of(core.geometry.place_of(extent.address))
}

fn stored_bytes(core: &Core, extent: &MapExtent) -> usize {
    usize::from(extent.units) * core.rules.unit_bytes as usize
}

/// Reads a map page into the cache, unless a checkpoint made it stale meanwhile.
pub(super) async fn load_page(core: &Rc<Core>, page: u64) -> Result<(), Status> {
    let (generation, offset_bytes, number) = {
        let live = core.live.borrow();
        let Some(slot) = live.map.slots.get(page) else { return Ok(()) };
        let offset_bytes = live.map.regions.offset_bytes(page, slot);
        (live.map.generation, offset_bytes, live.checkpoint_number)
    };
    let name = PageName { kind: KIND_MAP, page };
    let image = read_page(core, name, offset_bytes, number).await;
    let mut live = core.live.borrow_mut();
    if live.map.generation != generation {
        return Ok(());
    }
    match image {
        Ok(image) => {
            live.map.insert(page, Rc::new(image));
            Ok(())
        }
        Err(fault) => {
            drop(live);
            core.damaged(Trouble::Page(name, fault));
            Err(Status::IoErr)
        }
    }
}

/// Reads a page and verifies it, twice if need be.
pub(super) async fn read_page(
    core: &Core,
    name: PageName,
    offset_bytes: Option<u64>,
    number: u64,
) -> Result<Vec<u8>, PageFault> {
    let Some(offset_bytes) = offset_bytes else {
        return Err(PageFault::Unreadable(Status::Invalid));
    };
    let marks = core.superblock.page_marks();
    let disk = &core.port.disk;
    add(&core.port.tally.page_reads, 1);
    match marks.read(disk, offset_bytes, name, number).await {
        Ok(image) => Ok(image),
        Err(_first) => marks.read(disk, offset_bytes, name, number).await,
    }
}

impl Core {
    /// Memory for the blocks of an extent; given back with [`Core::give_room_back`].
    pub(super) fn room_for_blocks(&self, len: usize) -> Vec<u8> {
        let mut room = core::mem::take(&mut *self.scratch.borrow_mut());
        room.resize(len, 0);
        room
    }

    /// The memory may be used again.
    pub(super) fn give_room_back(&self, room: Vec<u8>) {
        *self.scratch.borrow_mut() = room;
    }
}
