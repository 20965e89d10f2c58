//! Recovery: from what a disk holds to a volume that serves.
//!
//! ```text
//! flush           what is believed below must not go away again
//! superblock, checkpoint, segment table
//! replay          records from the checkpoint's place on, as long as they continue the chain
//! slot            the other slot: the same place, a new epoch, a fence behind the last record
//! flush           from here on, what was not found is shut out for ever
//! ```
//!
//! Rules. No map page is read. Nothing is written before the first flush, and nothing but one slot
//! at all, and copies of the superblock that are damaged or old. Whatever is on the disk is checked
//! before it is believed; what makes no sense ends the recovery with its name. A damaged volume
//! comes up read-only, and nothing is written to it.
//!
//! The tricky case is a record that is not whole: a tear at the end of the log, or damage in the
//! middle of it. If a later record says that this one was durable, it is damage
//! ([`Replay::is_damaged`]; what a group lacks is at *its* end, not where the log ends without it);
//! the volume then shows what is before it and asks for the tool.

use super::cache::Unpacked;
use super::delta::Delta;
use super::log::{Log, LogPoint, apply};
use super::options::{Event, Options, State, Trouble};
use super::pages::Map;
use super::punch::Punched;
use super::segments::Segments;
use super::shared::{Core, Live, Port};
use super::signal::Signal;
use super::window::Window;
use crate::compress::codec::{Coder, CoderChoice};
use crate::compress::format::checkpoint::{CheckpointFlags, CheckpointHead};
use crate::compress::format::geometry::SEGMENT_ENTRIES;
use crate::compress::format::map::{KIND_SEGMENTS, SegmentState, segment_entry};
use crate::compress::format::{
    Checkpoint, Geometry, PlacedEntry, RecordFlags, SegmentEntry, Superblock, entry,
};
use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use udm_lane::yield_now;
use udm_meta::chain::{Chain, Fence};
use udm_meta::page::{PAGE_BODY_BYTES, PAGE_HEAD_BYTES, PageName};
use udm_meta::record::{LogPlace, Record, RecordRules};
use udm_meta::superblock::mend_copies;
use udm_meta::{Disk, DiskError, sum};

/// Segments that are searched for a proof that a record was durable.
const SEARCH_SEGMENTS: usize = 8;

/// Of the memory for pages, one part in so many is for extents that are read block by block: enough
/// for some sequential readers.
const UNPACKED_SHARE: usize = 4;

/// Task: recovers. The volume serves when it has ended well.
pub(super) async fn recover(port: Rc<Port>) {
    match try_recover(&port).await {
        Ok((core, worse, records)) => {
            *port.core.borrow_mut() = Some(Rc::new(core));
            *port.state.borrow_mut() = State::Serving;
            match worse {
                Some(trouble) => port.trouble(State::ReadOnly(trouble)),
                None => port.event(Event::Recovered { records }),
            }
        }
        Err(trouble) => port.trouble(State::Failed(trouble)),
    }
}

async fn try_recover(port: &Rc<Port>) -> Result<(Core, Option<Trouble>, u64), Trouble> {
    let disk = &port.disk;
    flush(port).await?;
    let copies = Superblock::find(disk).await;
    let superblock = match copies.superblock {
        Some(superblock) => superblock.map_err(Trouble::Superblock)?,
        None => return Err(Trouble::NotFormatted),
    };
    let need_bytes = superblock.geometry.device_bytes;
    if disk.len_bytes() < need_bytes {
        return Err(Trouble::DiskTooSmall { have_bytes: disk.len_bytes(), need_bytes });
    }
    let image = superblock.checkpoint_slots().read(disk).await.into_newest();
    let image = image.ok_or(Trouble::NoCheckpoint)?;
    let mut checkpoint = Checkpoint::parse(&superblock, &image).map_err(Trouble::Checkpoint)?;
    let (table, sums) = read_table(port, &superblock, &checkpoint).await?;
    let mut replay = Replay::new(&superblock, &checkpoint, &table);
    replay.run(port).await?;
    let worse = worse_than_serving(&checkpoint, &mut replay, port).await?;
    let point = replay.point();
    let mut fence = checkpoint.head.fence;
    let mut epoch = checkpoint.head.epoch;
    if worse.is_none() {
        epoch += 1;
        fence = Fence { sequence: point.next_sequence - 1, epoch };
        checkpoint.head.epoch = epoch;
        checkpoint.head.fence = fence;
        checkpoint.head.flags = CheckpointFlags::empty();
        checkpoint.number += 1;
        let mut bytes = checkpoint.to_bytes(&superblock.geometry);
        // A copy that cannot be written is no worse than one that cannot be read.
        let _unmended = mend_copies(disk, &copies.reports, &superblock.to_image()).await;
        let place = superblock.checkpoint_slots();
        place.write(disk, checkpoint.number, &mut bytes).await.map_err(Trouble::Disk)?;
        flush(port).await?;
    }
    let records = replay.records;
    let log = Log::new(superblock.record_rules(), superblock.geometry, point, epoch, fence);
    let segments = replay.segments(table, &checkpoint);
    let core = build(port, superblock, checkpoint, replay.delta, Parts { log, segments, sums });
    core.live.borrow_mut().checkpoints_asked = u64::from(records > 0 && worse.is_none());
    Ok((core, worse, records))
}

async fn flush(port: &Port) -> Result<(), Trouble> {
    if port.options.has_volatile_cache {
        port.disk.flush().await.map_err(Trouble::Disk)?;
    }
    Ok(())
}

/// What keeps the volume from being written to, if anything does.
async fn worse_than_serving(
    checkpoint: &Checkpoint,
    replay: &mut Replay,
    port: &Port,
) -> Result<Option<Trouble>, Trouble> {
    if checkpoint.head.flags.contains(CheckpointFlags::NEEDS_CHECK) {
        return Ok(Some(Trouble::NeedsCheck));
    }
    if checkpoint.head.flags.contains(CheckpointFlags::READ_ONLY) {
        return Ok(Some(Trouble::MarkedReadOnly));
    }
    if replay.is_damaged(&port.disk).await.map_err(Trouble::Disk)? {
        let (sequence, place) = (replay.tail.next_sequence, replay.tail.place);
        return Ok(Some(Trouble::LogDamaged { sequence, place }));
    }
    Ok(None)
}

/// The segment table, and the sums of its pages.
async fn read_table(
    port: &Port,
    superblock: &Superblock,
    checkpoint: &Checkpoint,
) -> Result<(Vec<SegmentEntry>, Vec<u64>), Trouble> {
    let count = checkpoint.head.segments as usize;
    let mut table = Vec::with_capacity(count);
    let mut sums = Vec::new();
    let marks = superblock.page_marks();
    while table.len() < count {
        let page = (table.len() as u64) / SEGMENT_ENTRIES;
        let name = PageName { kind: KIND_SEGMENTS, page };
        let slot = checkpoint.slots.get(page);
        let place = slot.and_then(|slot| checkpoint.regions.offset_bytes(page, slot));
        let Some(offset_bytes) = place else {
            let more = (count - table.len()).min(SEGMENT_ENTRIES as usize);
            table.extend((0..more).map(|_| SegmentEntry::default()));
            sums.push(sum::xxh3(&[0; PAGE_BODY_BYTES]));
            continue;
        };
        let image = marks.read(&port.disk, offset_bytes, name, checkpoint.number).await;
        let image = image.map_err(|fault| Trouble::Page(name, fault))?;
        let body = &image[PAGE_HEAD_BYTES..];
        sums.push(sum::xxh3(body));
        for index in 0..(count - table.len()).min(SEGMENT_ENTRIES as usize) {
            table.push(segment_entry(body, index).ok_or(Trouble::Entry(name))?);
        }
    }
    Ok((table, sums))
}

/// Following the log.
struct Replay {
    geometry: Geometry,
    rules: RecordRules,
    /// Behind the last record that is accepted with all of its group.
    chain: Chain,
    /// Behind the last record that is whole, be its group or not: what is missing is here.
    tail: Chain,
    delta: Delta,
    records: u64,
    /// Segments the log went on in, and where it was before the group under way.
    entered: Vec<u32>,
    /// Segments that the log may go on in: free, as the checkpoint knows them, or its next one.
    usable: BTreeSet<u32>,
    window: Window,
    /// Blocks of the volume: a record that names others is none of ours.
    logical_blocks: u64,
    /// A segment and the sequence of the record at its start, as it was seen last.
    first_of: Option<(u32, Option<u64>)>,
}

/// What a group did so far; nothing of it counts before its last record.
struct Group {
    chain: Chain,
    entries: Vec<(LogPlace, u64, PlacedEntry)>,
    entered: Vec<u32>,
    records: u64,
}

impl Replay {
    fn new(superblock: &Superblock, checkpoint: &Checkpoint, table: &[SegmentEntry]) -> Replay {
        let is_free = |entry: &SegmentEntry| match entry.state {
            SegmentState::Discarded | SegmentState::Free => true,
            SegmentState::Used | SegmentState::Retired | SegmentState::Map => false,
        };
        let free = (0..).zip(table).filter(|(_, entry)| is_free(entry)).map(|(at, _)| at);
        let mut usable: BTreeSet<u32> = free.collect();
        usable.insert(checkpoint.head.next_segment);
        usable.remove(&checkpoint.head.start.segment);
        Replay {
            geometry: superblock.geometry,
            rules: superblock.record_rules(),
            chain: checkpoint.head.chain(),
            tail: checkpoint.head.chain(),
            delta: Delta::default(),
            records: 0,
            entered: Vec::new(),
            usable,
            window: Window::default(),
            logical_blocks: checkpoint.head.logical_blocks,
            first_of: None,
        }
    }

    /// Where the log goes on.
    fn point(&self) -> LogPoint {
        LogPoint {
            next_sequence: self.chain.next_sequence,
            previous_hash: self.chain.previous_hash,
            place: self.chain.place,
            next_segment: self.chain.next_segment,
        }
    }

    /// Follows the log to its end.
    async fn run(&mut self, port: &Port) -> Result<(), Trouble> {
        let mut group = self.new_group();
        loop {
            match self.step(&mut group, &port.disk).await.map_err(Trouble::Disk)? {
                None => {
                    self.tail = group.chain;
                    return Ok(());
                }
                Some(flags) if flags.contains(RecordFlags::ATOMIC) => {}
                Some(_) => {
                    self.accept(group);
                    group = self.new_group();
                }
            }
            let computed = port.computed.get() + self.rules.limit_bytes as usize / 8;
            port.computed.set(computed);
            if computed > super::SLICE_BYTES {
                yield_now().await;
            }
        }
    }

    fn new_group(&self) -> Group {
        Group { chain: self.chain, entries: Vec::new(), entered: Vec::new(), records: 0 }
    }

    /// The group is whole: what it did happened.
    fn accept(&mut self, group: Group) {
        for (place, sequence, placed) in &group.entries {
            apply(&mut self.delta, &self.geometry, *place, *sequence, placed);
        }
        self.chain = group.chain;
        self.records += group.records;
        self.entered.extend(group.entered);
    }

    /// Takes the next record into the group, if there is one.
    async fn step(
        &mut self,
        group: &mut Group,
        disk: &Disk,
    ) -> Result<Option<RecordFlags>, DiskError> {
        for place in self.candidates(&group.chain, disk).await?.into_iter().flatten() {
            self.window.load(&self.geometry, &self.rules, place, disk).await?;
            if let Some(flags) = self.take(group, place) {
                return Ok(Some(flags));
            }
        }
        Ok(None)
    }

    /// Where records lie that go on with the chain, the one of the later life first.
    ///
    /// A tail that an earlier recovery gave up may still be whole behind the last record, where
    /// nothing was written since: what came instead did not fit there and lies in the next
    /// segment. The fence shuts the old tail out only until a second recovery moves the fence
    /// behind it. Records of the volume's own epoch are never old, so most places end the search.
    async fn candidates(
        &mut self,
        chain: &Chain,
        disk: &Disk,
    ) -> Result<[Option<LogPlace>; 2], DiskError> {
        let mut found: [Option<(u32, LogPlace)>; 2] = [None, None];
        for (index, place) in chain.places(&self.rules).enumerate() {
            let is_known_other = place.offset_bytes == 0
                && self.first_of.is_some_and(|(segment, sequence)| {
                    segment == place.segment && sequence != Some(chain.next_sequence)
                });
            if found[0].is_some_and(|(epoch, _)| epoch == chain.epoch_ceiling) || is_known_other {
                break;
            }
            self.window.load(&self.geometry, &self.rules, place, disk).await?;
            let record = Record::parse(&self.rules, place, self.window.at(place)).ok();
            if place.offset_bytes == 0 {
                let sequence = record.as_ref().map(|record| record.head.sequence);
                self.first_of = Some((place.segment, sequence));
            }
            found[index] = record
                .filter(|record| chain.check(&record.head).is_ok())
                .map(|record| (record.head.epoch, place));
        }
        if found[1].map(|(epoch, _)| epoch) > found[0].map(|(epoch, _)| epoch) {
            found.swap(0, 1);
        }
        Ok(found.map(|found| found.map(|(_, place)| place)))
    }

    /// Takes the record at a place in memory into the group, if it is whole.
    fn take(&mut self, group: &mut Group, place: LogPlace) -> Option<RecordFlags> {
        let bytes = self.window.at(place);
        let record = Record::parse(&self.rules, place, bytes).ok()?;
        let flags = entry::verify(&self.rules, &record, Some(bytes)).ok()?;
        let is_beyond = |placed: PlacedEntry| {
            let end = placed.entry.first_block() + u64::from(placed.entry.blocks());
            end > self.logical_blocks
        };
        let is_summary = flags.contains(RecordFlags::SUMMARY);
        if !is_summary && entry::entries(&self.rules, &record).flatten().any(is_beyond) {
            return None;
        }
        let is_moving = place.segment != group.chain.place.segment;
        let next = record.head.next_segment;
        let has_next = self.usable.contains(&next)
            && next != place.segment
            && !self.entered.contains(&next)
            && !group.entered.contains(&next);
        if !has_next {
            return None;
        }
        if is_moving {
            group.entered.push(place.segment);
        }
        if !flags.contains(RecordFlags::SUMMARY) {
            let sequence = record.head.sequence;
            let entries = entry::entries(&self.rules, &record).flatten();
            group.entries.extend(entries.map(|placed| (place, sequence, placed)));
        }
        group.chain.follow(place, &record);
        group.records += 1;
        Some(flags)
    }

    /// True if a record behind the end says that the one missing here was durable: then this is no
    /// end but damage.
    async fn is_damaged(&mut self, disk: &Disk) -> Result<bool, DiskError> {
        let mut places: Vec<LogPlace> = self.tail.places(&self.rules).collect();
        let mut searched: BTreeSet<u32> = BTreeSet::new();
        while let Some(start) = places.pop() {
            let is_known = start.segment == self.tail.place.segment;
            if searched.len() >= SEARCH_SEGMENTS || (!is_known && !searched.insert(start.segment)) {
                continue;
            }
            let mut place = start;
            while self.rules.has_room(place.offset_bytes) {
                self.window.load(&self.geometry, &self.rules, place, disk).await?;
                let step = match Record::parse(&self.rules, place, self.window.at(place)) {
                    Ok(record) if self.proves(&record) => return Ok(true),
                    Ok(record) if self.is_later(&record) => {
                        let segment = record.head.next_segment;
                        if self.usable.contains(&segment) {
                            places.push(LogPlace { segment, offset_bytes: 0 });
                        }
                        record.total_bytes
                    }
                    Ok(_) | Err(_) => self.rules.align_bytes,
                };
                place.offset_bytes += step.max(self.rules.align_bytes);
            }
        }
        Ok(false)
    }

    /// A record of this life behind the end.
    fn is_later(&self, record: &Record<'_>) -> bool {
        let head = &record.head;
        let behind_fence = head.sequence > self.tail.fence.sequence;
        head.sequence > self.tail.next_sequence
            && (self.tail.epoch_floor..=self.tail.epoch_ceiling).contains(&head.epoch)
            && (!behind_fence || head.epoch >= self.tail.fence.epoch)
    }

    /// It knows the missing record to be durable.
    fn proves(&self, record: &Record<'_>) -> bool {
        let claim = record.head.durable_sequence;
        let is_possible = claim < record.head.sequence;
        self.is_later(record) && is_possible && claim >= self.tail.next_sequence
    }

    /// The segments, with what the log took of them.
    fn segments(&self, table: Vec<SegmentEntry>, checkpoint: &Checkpoint) -> Segments {
        let head = &checkpoint.head;
        let mut segments = Segments::new(table, head.start.segment, head.next_segment);
        for &segment in &self.entered {
            segments.take_this(segment);
            segments.enter(segment, checkpoint.number);
        }
        segments.take_this(self.chain.next_segment);
        segments
    }
}

/// What [`build`] puts together.
struct Parts {
    log: Log,
    segments: Segments,
    sums: Vec<u64>,
}

fn build(
    port: &Rc<Port>,
    superblock: Superblock,
    checkpoint: Checkpoint,
    delta: Delta,
    parts: Parts,
) -> Core {
    let geometry = superblock.geometry;
    let options: &Options = &port.options;
    let defaults = superblock.defaults;
    let choice = CoderChoice { codec: defaults.codec, level: defaults.level };
    let longest = geometry.extent_blocks;
    let mut map = Map::new(
        checkpoint.slots,
        checkpoint.regions,
        checkpoint.head.logical_blocks,
        options.cache_bytes - options.cache_bytes / UNPACKED_SHARE,
    );
    map.active = delta;
    let live = live(map, checkpoint.number, checkpoint.head, parts);
    Core {
        port: Rc::clone(port),
        superblock,
        grown: Cell::new(None),
        geometry,
        rules: superblock.record_rules(),
        choice: options.coder.unwrap_or(choice),
        extent_blocks: options.extent_blocks.unwrap_or(longest).clamp(1, longest).into(),
        coder: RefCell::new(Coder::new()),
        scratch: RefCell::default(),
        words: RefCell::default(),
        live: RefCell::new(live),
        unpacked: RefCell::new(Unpacked::new(options.cache_bytes / UNPACKED_SHARE)),
        fetched: Signal::default(),
        room: Signal::default(),
        sealed: Signal::default(),
        written: Signal::default(),
        commit: Signal::default(),
        durable: Signal::default(),
        background: Signal::default(),
    }
}

/// The state of a volume that begins to serve.
fn live(map: Map, checkpoint_number: u64, checkpoint: CheckpointHead, parts: Parts) -> Live {
    Live {
        log: parts.log,
        map,
        segments: parts.segments,
        checkpoint_number,
        checkpoint,
        frozen_at: None,
        is_resize_claimed: false,
        resizing: None,
        frozen_resizing: None,
        shrink: None,
        writes_superblock: false,
        limit_blocks: checkpoint.logical_blocks,
        needs_mark: false,
        punched: Punched::default(),
        scrub_at: None,
        segment_sums: parts.sums,
        locks: Vec::new(),
        claimed_bytes: 0,
        wanted: 0,
        is_committing: false,
        checkpoints_asked: 0,
        checkpoints_done: 0,
        is_stopping: true,
        space_wanted: 0,
        space_retry: false,
        is_low: false,
        cleaning_asked: 0,
        is_cleaning: false,
        dies_alone: true,
        clean_after: 0,
        is_out_of_space: false,
        record_bytes_at_freeze: 0,
    }
}
