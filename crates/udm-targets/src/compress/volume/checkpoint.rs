//! Checkpoints: folding what changed into the map pages, and freeing what died.
//!
//! ```text
//! freeze          changes so far are set aside; c is the next sequence
//! merge           each page they touch: read, subtract old, add new, write to the other slot
//! segment table   likewise, from the counts at c
//! wait            every record before c is written
//! flush           pages and records are durable
//! slot            the checkpoint itself, to the slot of the one before the last
//! flush           it is durable: from here on it is the truth
//! commit          one step: slots, counts, dead segments
//! ```
//!
//! Rules. Until the commit nothing in memory has changed but the split of the changes in two, which
//! a lookup does not see. So an abort anywhere costs the work and nothing else; the next try folds
//! the same frozen changes in again. A segment is dead by the counts at c, never by those of now.
//!
//! The tricky case is a segment that the log took after c. It has no live block by the counts at c,
//! and is as alive as can be; the table calls it free, as it was, and recovery learns of it from
//! the records.

use super::commit;
use super::delta::Delta;
use super::log::LogPoint;
use super::options::Trouble;
use super::pages::PageBytes;
use super::read::read_page;
use super::segments::Live as LiveCount;
use super::shared::{Core, Resizing};
use super::tally::add;
use crate::compress::format::geometry::{MAP_ENTRIES, SEGMENT_ENTRIES};
use crate::compress::format::map::{
    KIND_MAP, KIND_SEGMENTS, MapExtent, SegmentState, map_word, set_segment_entry,
};
use crate::compress::format::{
    Checkpoint, CheckpointFlags, CheckpointHead, MapEntry, SegmentEntry,
};
use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use alloc::vec::Vec;
use udm_lane::yield_now;
use udm_meta::bytes::payload_of;
use udm_meta::page::{PAGE_BYTES, PAGE_HEAD_BYTES, PageName, PageRegions};
use udm_meta::slots::SlotArray;
use udm_meta::{DiskFuture, sum};

/// Pages that are read and written at a time: enough to keep a disk busy.
const WINDOW_PAGES: usize = 32;
/// One part in so many of the memory for changes is worth a checkpoint when nothing else goes on.
const QUIET_SHARE: usize = 64;
/// Changes forgotten in one slice.
const FORGET_SLICE: usize = 4096;

/// Why work in the background ended early.
#[derive(Debug)]
pub(super) enum Halt {
    /// It was asked to.
    Stopped,
    /// It cannot go on.
    Trouble(Trouble),
}

impl From<Trouble> for Halt {
    fn from(trouble: Trouble) -> Halt {
        Halt::Trouble(trouble)
    }
}

/// What a merge builds aside.
struct Merge {
    frozen: Rc<Delta>,
    point: LogPoint,
    number: u64,
    slots: SlotArray,
    counts: Vec<LiveCount>,
    dead: Vec<u32>,
    segment_sums: Vec<u64>,
    /// New images of pages that are in the cache, to take their places.
    fresh: Vec<(u64, PageBytes)>,
    resizing: Option<Resizing>,
}

/// A page on its way: its old contents, or their reading.
enum Old {
    Holes,
    Cached(PageBytes),
    Disk(Option<u64>, DiskFuture),
}

/// For others than the keeper: has it make a checkpoint of everything appended until now, and waits
/// for its end.
pub(super) async fn await_checkpoint(core: &Rc<Core>) -> Result<(), Halt> {
    let number = core.ask_checkpoint();
    core.background
        .until(|| {
            let is_over = core.refusal().is_some();
            let live = core.live.borrow();
            live.checkpoints_done >= number || live.is_stopping || is_over
        })
        .await;
    core.check_stop()
}

/// Makes a checkpoint of everything appended until now; if one was begun and aborted, that one.
pub(super) async fn checkpoint(core: &Rc<Core>) -> Result<(), Halt> {
    let mut merge = begin(core);
    merge_map(core, &mut merge).await?;
    merge_segments(core, &mut merge).await?;
    core.check_stop()?;
    make_durable(core, &merge).await?;
    let head = head_of(core, &merge);
    // A shrink has made holes of what it cuts off, so these pages are "never written" by now.
    merge.slots.resize(core.geometry.page_count(head.logical_blocks));
    let regions = merge.regions(core);
    write_slot(core, merge.number, head, &merge.slots, regions).await?;
    flush(core).await?;
    let forgotten = settle(core, merge, head);
    forget(forgotten).await;
    Ok(())
}

/// Sets aside what changed, unless an aborted checkpoint has done so.
fn begin(core: &Core) -> Merge {
    core.seal();
    let mut live = core.live.borrow_mut();
    let live = &mut *live;
    if live.map.frozen.is_none() {
        let active = core::mem::take(&mut live.map.active);
        live.map.frozen = Some(Rc::new(active));
        let point = live.log.point();
        live.frozen_at = Some(point);
        live.segments.freeze(point.place.segment);
        live.record_bytes_at_freeze = live.log.record_bytes;
        live.frozen_resizing = live.resizing.take();
    }
    let (Some(frozen), Some(point)) = (live.map.frozen.clone(), live.frozen_at) else {
        unreachable!("invariant: frozen changes have their point in the log")
    };
    let mut slots = live.map.slots.clone();
    if let Some(resizing) = &live.frozen_resizing {
        let pages = core.geometry.page_count(resizing.logical_blocks);
        slots.resize(pages.max(slots.page_count()));
    }
    Merge {
        frozen,
        point,
        number: live.checkpoint_number + 1,
        slots,
        resizing: live.frozen_resizing.clone(),
        counts: live.segments.live(),
        dead: Vec::new(),
        segment_sums: live.segment_sums.clone(),
        fresh: Vec::new(),
    }
}

async fn merge_map(core: &Rc<Core>, merge: &mut Merge) -> Result<(), Halt> {
    let mut from = 0;
    loop {
        core.check_stop()?;
        // All reads of a window are under way before the first one is waited for.
        let window = next_pages(core, merge, &mut from)?;
        if window.is_empty() {
            return Ok(());
        }
        let mut writes: Vec<DiskFuture> = Vec::with_capacity(window.len());
        for (page, old) in window {
            let image = old_image(core, page, old).await?;
            if let Some(write) = merge_page(core, merge, page, image)? {
                writes.push(write);
            }
            if core.computed(PAGE_BYTES) {
                yield_now().await;
            }
        }
        finish_writes(writes).await?;
    }
}

/// The next pages that the frozen changes touch, from block `from` on.
fn next_pages(core: &Core, merge: &Merge, from: &mut u64) -> Result<Vec<(u64, Old)>, Halt> {
    let mut window = Vec::new();
    let mut live = core.live.borrow_mut();
    while window.len() < WINDOW_PAGES {
        let Some(block) = merge.frozen.next_block(*from) else { break };
        let (page, _) = core.geometry.map_page_of(block);
        let first = block - block % MAP_ENTRIES;
        *from = first + MAP_ENTRIES;
        let Some(slot) = live.map.slots.get(page) else {
            let blocks = first..first + MAP_ENTRIES;
            // Holes over a page that was never written: all the way to where they end.
            let is_all_holes = merge.frozen.hole_end(block).is_some_and(|end| end >= blocks.end);
            if is_all_holes && !merge.frozen.has_points(blocks) {
                continue;
            }
            window.push((page, Old::Holes));
            continue;
        };
        let old = match live.map.cached(page) {
            Some(bytes) => Old::Cached(bytes),
            None => {
                let offset_bytes = live.map.regions.offset_bytes(page, slot);
                let read = core.port.disk.read(offset_bytes.unwrap_or(u64::MAX), PAGE_BYTES);
                add(&core.port.tally.page_reads, 1);
                Old::Disk(offset_bytes, read)
            }
        };
        window.push((page, old));
    }
    Ok(window)
}

/// The body of a page as the last checkpoint left it.
async fn old_image(core: &Core, page: u64, old: Old) -> Result<Vec<u8>, Halt> {
    let (offset_bytes, read) = match old {
        Old::Holes => return Ok(alloc::vec![0; PAGE_BYTES]),
        Old::Cached(bytes) => return Ok(bytes.to_vec()),
        Old::Disk(offset_bytes, read) => (offset_bytes, read),
    };
    let name = PageName { kind: KIND_MAP, page };
    let number = core.live.borrow().checkpoint_number;
    let mut image = alloc::vec![0; PAGE_BYTES];
    if let Ok(payload) = read.await {
        payload.copy_out(0, &mut image);
        if core.superblock.page_marks().verify(name, number, &image).is_ok() {
            return Ok(image);
        }
    }
    let again = read_page(core, name, offset_bytes, number).await;
    again.map_err(|fault| Trouble::Page(name, fault).into())
}

/// Folds the changes of a page into its image, counts, and starts the write of the new one if it
/// differs and is not all holes.
fn merge_page(
    core: &Core,
    merge: &mut Merge,
    page: u64,
    mut image: Vec<u8>,
) -> Result<Option<DiskFuture>, Halt> {
    let name = PageName { kind: KIND_MAP, page };
    let first = core.geometry.first_block_of(page).unwrap_or(0);
    let (counts, frozen) = (&mut merge.counts, Rc::clone(&merge.frozen));
    let body = &mut image[PAGE_HEAD_BYTES..];
    let (mut is_changed, mut trouble) = (false, None);
    frozen.for_each_in(first..first + MAP_ENTRIES, |block, word| {
        let index = (block - first) as usize;
        let old = map_word(body, index);
        if old == word {
            return;
        }
        is_changed = true;
        match (MapEntry::from_word(old), MapEntry::from_word(word)) {
            (Ok(old), Ok(new)) => {
                if let Err(segment) = recount(core, counts, &old, &new) {
                    trouble = trouble.take().or(Some(Trouble::Counts { segment }));
                }
            }
            (Err(_), _) | (_, Err(_)) => trouble = Some(Trouble::Entry(name)),
        }
        body[index * 8..index * 8 + 8].copy_from_slice(&word.to_le_bytes());
    });
    if let Some(trouble) = trouble {
        return Err(trouble.into());
    }
    if !is_changed {
        return Ok(None);
    }
    if body.iter().all(|byte| *byte == 0) {
        merge.slots.set(page, None);
        return Ok(None);
    }
    let write = write_page(core, merge, name, &mut image)?;
    // What is used stays in memory; twice for the rest of the checkpoint, so not without a bound.
    let mut live = core.live.borrow_mut();
    if merge.fresh.len() < live.map.cache_limit() / 4 && live.map.cached(page).is_some() {
        merge.fresh.push((page, Rc::new(image)));
    }
    Ok(Some(write))
}

/// One block less where it was, one more where it is.
fn recount(
    core: &Core,
    counts: &mut [LiveCount],
    old: &MapEntry,
    new: &MapEntry,
) -> Result<(), u32> {
    let segment_of = |extent: &MapExtent| core.geometry.place_of(extent.address).segment;
    if let MapEntry::Extent(extent) = old
        && !LiveCount::subtract(counts, old, segment_of(extent))
    {
        return Err(segment_of(extent));
    }
    if let MapEntry::Extent(extent) = new {
        LiveCount::add(counts, new, segment_of(extent));
    }
    Ok(())
}

/// Starts the write of a page to the slot that the current checkpoint does not name.
fn write_page(
    core: &Core,
    merge: &mut Merge,
    name: PageName,
    image: &mut [u8],
) -> Result<DiskFuture, Halt> {
    let live = core.live.borrow();
    let slot = live.map.slots.free_slot(name.page);
    let Some(offset_bytes) = live.map.regions.offset_bytes(name.page, slot) else {
        return Err(Trouble::Entry(name).into());
    };
    core.superblock.page_marks().seal(name, merge.number, image);
    merge.slots.set(name.page, Some(slot));
    add(&core.port.tally.map_bytes, PAGE_BYTES as u64);
    Ok(core.port.disk.write(offset_bytes, payload_of(image)))
}

async fn finish_writes(writes: Vec<DiskFuture>) -> Result<(), Halt> {
    let mut failure = None;
    for write in writes {
        if let Err(error) = write.await {
            failure = failure.or(Some(error));
        }
    }
    failure.map_or(Ok(()), |error| Err(Trouble::Disk(error).into()))
}

/// Writes the pages of the segment table that differ from what they were.
async fn merge_segments(core: &Rc<Core>, merge: &mut Merge) -> Result<(), Halt> {
    let count = merge.segment_count(core);
    let pages = u64::from(count).div_ceil(SEGMENT_ENTRIES);
    // Those behind a cut are empty, and their pages are given up with them.
    for page in pages..merge.segment_sums.len() as u64 {
        merge.slots.set(page, None);
    }
    merge.segment_sums.truncate(pages as usize);
    let mut writes: Vec<DiskFuture> = Vec::new();
    for page in 0..pages {
        let mut image = segment_page(core, merge, page);
        let body_sum = sum::xxh3(&image[PAGE_HEAD_BYTES..]);
        if merge.segment_sums.get(page as usize) != Some(&body_sum) {
            merge.segment_sums.resize(pages as usize, 0);
            merge.segment_sums[page as usize] = body_sum;
            let name = PageName { kind: KIND_SEGMENTS, page };
            writes.push(write_page(core, merge, name, &mut image)?);
        }
        if core.computed(PAGE_BYTES) {
            yield_now().await;
        }
        if writes.len() >= WINDOW_PAGES {
            finish_writes(core::mem::take(&mut writes)).await?;
            core.check_stop()?;
        }
    }
    finish_writes(writes).await
}

/// A page of the segment table as of c. Finds the dead among its segments.
fn segment_page(core: &Core, merge: &mut Merge, page: u64) -> Vec<u8> {
    let live = core.live.borrow();
    let (open, next) = (merge.point.place.segment, merge.point.next_segment);
    let mut later: BTreeSet<u32> = live.segments.entered_since_freeze().collect();
    later.insert(live.log.point().next_segment);
    later.remove(&next);
    later.remove(&open);
    let regions = merge.resizing.as_ref().map_or(&live.map.regions, |resizing| &resizing.regions);
    let is_region = |segment| {
        let at = core.geometry.segment_offset_bytes(segment);
        regions.as_slice().iter().any(|region| region.offset_bytes == at)
    };
    let mut image = alloc::vec![0; PAGE_BYTES];
    let body = &mut image[PAGE_HEAD_BYTES..];
    let first = page * SEGMENT_ENTRIES;
    let end = (first + SEGMENT_ENTRIES).min(merge.segment_count_in(&live).into());
    for segment in first..end {
        let index = (segment - first) as usize;
        let segment = segment as u32;
        let count = merge.counts[segment as usize];
        let entry = *live.segments.entry(segment);
        let free = SegmentEntry { state: SegmentState::Free, ..SegmentEntry::default() };
        let entry = match entry.state {
            // Taken for a resize that a later checkpoint will make the truth.
            SegmentState::Map if !is_region(segment) => free,
            SegmentState::Discarded
            | SegmentState::Free
            | SegmentState::Retired
            | SegmentState::Map => entry,
            SegmentState::Used if later.contains(&segment) => free,
            SegmentState::Used if count.blocks == 0 && segment != open && segment != next => {
                merge.dead.push(segment);
                free
            }
            SegmentState::Used => {
                SegmentEntry { live_blocks: count.blocks, live_units: count.units, ..entry }
            }
        };
        set_segment_entry(body, index, &entry);
    }
    image
}

/// The checkpoint's fields.
fn head_of(core: &Core, merge: &Merge) -> CheckpointHead {
    let live = core.live.borrow();
    let total = |of: fn(&LiveCount) -> u32| merge.counts.iter().map(|n| u64::from(of(n))).sum();
    let resizing = merge.resizing.as_ref();
    CheckpointHead {
        logical_blocks: resizing
            .map_or(live.checkpoint.logical_blocks, |resizing| resizing.logical_blocks),
        segments: resizing.map_or(live.checkpoint.segments, |resizing| resizing.segments),
        next_sequence: merge.point.next_sequence,
        epoch: live.log.epoch,
        fence: live.log.fence,
        previous_hash: merge.point.previous_hash,
        start: merge.point.place,
        next_segment: merge.point.next_segment,
        flags: CheckpointFlags::empty(),
        live_units: total(|count| count.units),
        live_blocks: total(|count| count.blocks),
    }
}

/// Makes all that the checkpoint will speak of durable: pages, and the records before c.
async fn make_durable(core: &Rc<Core>, merge: &Merge) -> Result<(), Halt> {
    let last = merge.point.next_sequence - 1;
    if !commit::wait_written(core, last).await.is_ok() {
        // Its writer has said why.
        return Err(Halt::Stopped);
    }
    flush(core).await?;
    let mut live = core.live.borrow_mut();
    live.log.durable = live.log.durable.max(last);
    drop(live);
    core.durable.notify();
    Ok(())
}

/// Makes what was written durable.
async fn flush(core: &Core) -> Result<(), Halt> {
    if core.port.options.has_volatile_cache {
        core.port.disk.flush().await.map_err(Trouble::Disk)?;
    }
    Ok(())
}

/// Writes a checkpoint to its slot.
async fn write_slot(
    core: &Core,
    number: u64,
    head: CheckpointHead,
    slots: &SlotArray,
    regions: PageRegions,
) -> Result<(), Halt> {
    let checkpoint = Checkpoint { number, head, regions, slots: slots.clone() };
    let mut bytes = checkpoint.to_bytes(&core.geometry);
    add(&core.port.tally.map_bytes, bytes.len() as u64);
    let place = core.superblock.checkpoint_slots();
    place.write(&core.port.disk, number, &mut bytes).await.map_err(Trouble::Disk)?;
    Ok(())
}

/// The checkpoint is the truth from here on.
fn settle(core: &Core, merge: Merge, head: CheckpointHead) -> Option<Rc<Delta>> {
    add(&core.port.tally.checkpoints, 1);
    add(&core.port.tally.segments_freed, merge.dead.len() as u64);
    let mut live = core.live.borrow_mut();
    let live = &mut *live;
    let forgotten = live.map.commit(merge.slots);
    for (page, image) in merge.fresh {
        live.map.insert(page, image);
    }
    live.segments.settle(&merge.counts, &merge.dead, merge.point.next_sequence);
    live.frozen_at = None;
    live.frozen_resizing = None;
    if let Some(resizing) = merge.resizing {
        live.map.logical_blocks = resizing.logical_blocks;
        live.map.regions = resizing.regions;
        live.segments.resize(resizing.segments);
        live.limit_blocks = resizing.logical_blocks;
    }
    live.checkpoint_number = merge.number;
    live.checkpoint = head;
    live.segment_sums = merge.segment_sums;
    live.checkpoints_done += 1;
    drop(merge.frozen);
    core.background.notify();
    core.room.notify();
    forgotten
}

/// Forgets folded changes a slice at a time.
async fn forget(changes: Option<Rc<Delta>>) {
    let Some(mut changes) = changes.and_then(Rc::into_inner) else { return };
    while changes.forget_some(FORGET_SLICE) {
        yield_now().await;
    }
}

impl Merge {
    /// Segments of the table: those there are, or that will be left of them.
    fn segment_count(&self, core: &Core) -> u32 {
        self.segment_count_in(&core.live.borrow())
    }

    fn segment_count_in(&self, live: &super::shared::Live) -> u32 {
        let count = live.segments.count();
        self.resizing.as_ref().map_or(count, |resizing| resizing.segments.min(count))
    }

    /// Where pages lie from this checkpoint on.
    fn regions(&self, core: &Core) -> PageRegions {
        match &self.resizing {
            Some(resizing) => resizing.regions.clone(),
            None => core.live.borrow().map.regions.clone(),
        }
    }
}

/// Marks the volume: the last checkpoint again, under the next number, with a flag. What it speaks
/// of has not been touched. If that fails too, there is nothing more to do.
async fn mark(core: &Rc<Core>) {
    let (number, head, slots, regions) = {
        let live = core.live.borrow();
        let flags = live.checkpoint.flags | CheckpointFlags::NEEDS_CHECK;
        let head = CheckpointHead { flags, ..live.checkpoint };
        let number = live.checkpoint_number + 1;
        (number, head, live.map.slots.clone(), live.map.regions.clone())
    };
    if write_slot(core, number, head, &slots, regions).await.is_ok() {
        let _unheard = flush(core).await;
    }
}

impl Core {
    /// Work in the background asks this between two steps.
    pub(super) fn check_stop(&self) -> Result<(), Halt> {
        if self.live.borrow().is_stopping { Err(Halt::Stopped) } else { Ok(()) }
    }

    /// True if changes take memory that a checkpoint would give back.
    fn has_many_changes(&self) -> bool {
        let memory_bytes = self.live.borrow().map.active.memory_bytes();
        memory_bytes >= self.port.options.delta_bytes / QUIET_SHARE
    }

    /// True if it is time for a checkpoint.
    fn is_checkpoint_due(&self) -> bool {
        let live = self.live.borrow();
        let options = &self.port.options;
        live.checkpoints_asked > live.checkpoints_done
            || live.map.frozen.is_some()
            || live.map.active.memory_bytes() >= options.delta_bytes / 2
            || live.log.record_bytes - live.record_bytes_at_freeze >= options.checkpoint_log_bytes
    }
}

/// Ends when a checkpoint is due, or something else is for the keeper. An idle volume has no timer.
async fn await_due(core: &Core) {
    let is_called = || {
        let live = core.live.borrow();
        let is_called = live.is_stopping || live.needs_mark;
        drop(live);
        is_called || core.is_checkpoint_due()
    };
    loop {
        core.background.until(|| is_called() || core.has_many_changes()).await;
        let records = core.live.borrow().log.records;
        let deadline = core.port.clock.now() + core.port.options.quiet_before_checkpoint;
        let called = || is_called().then_some(());
        let called = core.port.clock.wait_until(deadline, &core.background, called).await;
        let live = core.live.borrow();
        let is_quiet = live.log.records == records && !live.log.has_open();
        if is_quiet {
            core.port.disk.forget_buffers();
        }
        if called.is_some() || is_quiet {
            return;
        }
    }
}

/// Task: makes checkpoints when they are due.
pub(super) async fn keeper(core: Rc<Core>) {
    loop {
        await_due(&core).await;
        if core.live.borrow().needs_mark {
            return mark(&core).await;
        }
        // A log that failed has changes in memory that are on no disk.
        if core.refusal().is_some() {
            return;
        }
        match checkpoint(&core).await {
            Ok(()) => {}
            Err(Halt::Stopped) => return,
            Err(Halt::Trouble(trouble)) => core.damaged(trouble),
        }
    }
}
