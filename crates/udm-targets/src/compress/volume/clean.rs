//! Making space: copying what is live out of segments that are mostly dead.
//!
//! ```text
//! low        few free segments: clean what is cheap
//! urgent     hardly more than the reserve, or somebody waits: clean whatever gains anything
//! ```
//!
//! A victim is read, the extents that the map still means are appended to the log like any write,
//! and the next checkpoint finds the victim dead. Whole extents move as they are; of others the
//! live blocks are compressed anew.
//!
//! Rules. Between looking up whether a block is live and appending its copy there is no `await`: a
//! user's write cannot come in between and be overwritten by older data. Every extent is verified
//! before it is copied. The cleaner may use the reserve, and always leaves a segment to the log.
//!
//! The tricky case is a full volume: copying segments that are as dense as they can be gains
//! nothing and never ends. After some victims without a gain it gives up, and those who wait for
//! space are told ([`super::NoSpace`]); a discard makes it try again. Nearly full is as tricky:
//! what somebody waits for is there, but not free yet, and the next copies would take it. So the
//! cleaner lets those who wait go first ([`serve_waiting`]).

use super::checkpoint::{Halt, await_checkpoint};
use super::log::Piece;
use super::options::Event;
use super::pages::Known;
use super::read::load_page;
use super::shared::{Claim, Core, Pins};
use super::tally::add;
use super::window::Window;
use super::write::{pack, push_extent};
use crate::compress::format::map::MapExtent;
use crate::compress::format::{
    BLOCK_BYTES, Entry, ExtentHead, MapEntry, PlacedEntry, RecordFlags, entry,
};
use alloc::rc::Rc;
use alloc::vec::Vec;
use udm_lane::yield_now;
use udm_meta::record::{LogPlace, Record};
use udm_types::Status;

/// Victims between two checkpoints: one segment in so many, and a few at least. Many make
/// checkpoints rare, which write every page that random writes touched; but what was copied takes
/// space twice until then.
const BATCH_SHARE: usize = 24;
const BATCH_MIN: usize = 4;
/// Where space is short, and whoever waits for it waits for all of them.
const BATCH_URGENT_MAX: usize = 32;
/// Ordinary cleaning begins when fewer than one segment in so many is free: room for the copies of
/// a batch. What is free is not there for dead data to gather in.
const LOW_SHARE: usize = 64;
/// Victims without any gain after which cleaning is in vain; fewer if there are fewer at all.
const VAIN_MAX: usize = 32;
/// How full the victims of ordinary cleaning may be, in percent: each costs so much copying.
const FULL_MAX_LOW: u64 = 85;
/// And where space is short.
const FULL_MAX_URGENT: u64 = 98;
/// Live extents held in memory at a time; they are sorted by block before they move.
const HELD_BYTES: usize = 4 << 20;

/// An extent of a victim.
struct Found {
    address: u64,
    sequence: u64,
    entry: Entry,
    bytes: Vec<u8>,
}

/// Why cleaning runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// The host wants it.
    Asked,
    /// Little space is left.
    Low,
    /// Hardly any is left, or somebody waits.
    Urgent,
}

/// Task: keeps some segments free.
pub(super) async fn cleaner(core: Rc<Core>) {
    loop {
        let need = core
            .background
            .wait_for(|| match core.live.borrow().is_stopping {
                true => Some(None),
                false => core.cleaning_need().map(Some),
            })
            .await;
        let Some(need) = need else { return };
        core.live.borrow_mut().is_cleaning = true;
        let made = make_space(&core, need).await;
        core.live.borrow_mut().is_cleaning = false;
        match made {
            Ok(()) => {}
            Err(Halt::Stopped) => return,
            Err(Halt::Trouble(trouble)) => return core.damaged(trouble),
        }
        core.room.notify();
    }
}

impl Core {
    /// Free segments, and those that will be soon.
    fn available(&self) -> usize {
        let live = self.live.borrow();
        live.segments.free_count() + live.segments.held_count()
    }

    /// Ordinary cleaning begins below this.
    fn low_mark(&self) -> usize {
        let count = self.live.borrow().segments.count() as usize;
        (count / LOW_SHARE).max(self.reserve() + 3)
    }

    fn urgent_mark(&self) -> usize {
        self.reserve() + 1
    }

    /// Whether there is a reason to clean.
    fn cleaning_need(&self) -> Option<Need> {
        let available = self.available();
        let is_low = available < self.low_mark();
        let live = self.live.borrow();
        let is_tried = live.is_out_of_space && !live.space_retry;
        let is_vain = live.log.record_bytes < live.clean_after;
        if live.cleaning_asked > 0 {
            Some(Need::Asked)
        } else if live.space_wanted > 0 && !is_tried {
            Some(Need::Urgent)
        } else if is_low && !is_vain {
            Some(if available < self.urgent_mark() { Need::Urgent } else { Need::Low })
        } else {
            None
        }
    }

    /// Says once that there is hardly anything to gain by cleaning: the volume is nearly full.
    fn tell_low(&self, is_low: bool) {
        let was_low = core::mem::replace(&mut self.live.borrow_mut().is_low, is_low);
        if is_low && !was_low {
            self.port.event(Event::LowSpace);
        }
    }
}

/// Cleans until the need is gone, or nothing is gained any more.
async fn make_space(core: &Rc<Core>, need: Need) -> Result<(), Halt> {
    core.live.borrow_mut().space_retry = false;
    // What has died since the last checkpoint costs nothing to free. Where nothing dies by itself,
    // the first batch goes by the counts there are.
    let mut has_counted = need == Need::Asked || core.live.borrow().dies_alone;
    if need != Need::Asked && has_counted {
        checkpoint_if_moved(core).await?;
    }
    let start = Books::of(core);
    let vain_max = VAIN_MAX.min(core.live.borrow().segments.count() as usize);
    let (mut best, mut in_vain) = (0, 0);
    loop {
        let asked = core.live.borrow().cleaning_asked as usize;
        let is_enough = match need {
            Need::Asked => asked == 0,
            Need::Low => core.available() >= core.low_mark(),
            // A little more than the mark, so that it is not reached again at once.
            Need::Urgent => {
                let wanted = core.live.borrow().space_wanted;
                core.available() >= wanted.max(core.urgent_mark() + 2)
            }
        };
        if is_enough {
            core.tell_low(false);
            break;
        }
        serve_waiting(core).await?;
        let share = core.live.borrow().segments.count() as usize / BATCH_SHARE;
        let batch = match need {
            Need::Low => share.max(BATCH_MIN),
            Need::Urgent => share.clamp(BATCH_MIN, BATCH_URGENT_MAX),
            Need::Asked => asked.min(share.clamp(BATCH_MIN, BATCH_URGENT_MAX)),
        };
        // One for the copies, one for the log to go on.
        wait_for_held(core, 2).await?;
        let moved = clean_batch(core, need, batch).await?;
        if need == Need::Asked {
            let left = asked.saturating_sub(moved);
            core.live.borrow_mut().cleaning_asked = if moved == 0 { 0 } else { left as u32 };
        }
        if moved == 0 && has_counted {
            in_vain = vain_max;
        } else {
            checkpoint_if_moved(core).await?;
            has_counted = true;
            in_vain += moved;
        }
        let gain = start.gain(core);
        if gain > best {
            (best, in_vain) = (gain, 0);
        }
        if in_vain >= vain_max {
            core.tell_low(need != Need::Asked);
            let mut live = core.live.borrow_mut();
            live.clean_after = live.log.record_bytes + 2 * core.geometry.segment_bytes();
            break;
        }
    }
    start.tell_deaths(core);
    // Nothing can be made any more, and somebody needs it.
    let available = core.available();
    let mut live = core.live.borrow_mut();
    let wanted = core::mem::take(&mut live.space_wanted);
    let is_out = wanted > available || (live.is_out_of_space && available <= core.reserve());
    drop(live);
    core.set_out_of_space(is_out);
    Ok(())
}

/// What cleaning is measured by. Segments that users filled meanwhile were gained, too.
struct Books {
    available: usize,
    entered: u64,
    stored_bytes: u64,
    gc_bytes: u64,
    freed: u64,
    cleaned: u64,
}

impl Books {
    fn of(core: &Core) -> Books {
        Books {
            available: core.available(),
            entered: core.live.borrow().log.segments_entered,
            stored_bytes: core.port.tally.stored_bytes.get(),
            gc_bytes: core.port.tally.gc_bytes.get(),
            freed: core.port.tally.segments_freed.get(),
            cleaned: core.port.tally.segments_cleaned.get(),
        }
    }

    /// Notes whether segments died that nobody had cleaned.
    fn tell_deaths(&self, core: &Core) {
        let now = Books::of(core);
        let dies_alone = now.freed - self.freed > now.cleaned - self.cleaned;
        core.live.borrow_mut().dies_alone = dies_alone;
    }

    /// Segments gained since: exact if no user wrote, about right otherwise.
    fn gain(&self, core: &Core) -> u64 {
        let now = Books::of(core);
        let users = now.stored_bytes - self.stored_bytes;
        let all = users + now.gc_bytes - self.gc_bytes;
        let filled = ((now.entered - self.entered) * users).checked_div(all).unwrap_or(0);
        (now.available as u64 + filled).saturating_sub(self.available as u64)
    }
}

/// If fewer than `wanted` segments are free, but there will be more: waits for them.
async fn wait_for_held(core: &Rc<Core>, wanted: usize) -> Result<(), Halt> {
    core.room
        .until(|| {
            let live = core.live.borrow();
            let is_coming = live.segments.held_count() > 0;
            live.segments.free_count() >= wanted || !is_coming || live.is_stopping
        })
        .await;
    core.check_stop()
}

/// If there will be what somebody waits for: waits until it is free, and lets them take it.
async fn serve_waiting(core: &Rc<Core>) -> Result<(), Halt> {
    let wanted = core.live.borrow().space_wanted;
    if wanted == 0 || core.available() < wanted {
        return Ok(());
    }
    wait_for_held(core, wanted).await?;
    // Whoever still waits after that says so again.
    core.live.borrow_mut().space_wanted = 0;
    core.room.notify();
    yield_now().await;
    core.check_stop()
}

/// A checkpoint, and its end, if there is anything for it to do.
async fn checkpoint_if_moved(core: &Rc<Core>) -> Result<(), Halt> {
    let has_moved = {
        let live = core.live.borrow();
        live.log.has_open() || live.map.changes() > 0
    };
    if !has_moved {
        return Ok(());
    }
    await_checkpoint(core).await
}

/// Copies out up to `limit` victims; gives how many.
async fn clean_batch(core: &Rc<Core>, need: Need, limit: usize) -> Result<usize, Halt> {
    let mut moved = 0;
    while moved < limit {
        {
            let live = core.live.borrow();
            let is_awaited = live.space_wanted > 0 && moved >= BATCH_URGENT_MAX;
            // One for the copies, one for the log to go on.
            if is_awaited || live.segments.free_count() < 2 {
                break;
            }
        }
        let Some(victim) = choose(core, need) else { break };
        match clean_segment(core, victim).await? {
            Cleaned::Whole => {
                let mut live = core.live.borrow_mut();
                let sequence = live.log.last_sequence();
                live.segments.mark_cleaned(victim, sequence);
                add(&core.port.tally.segments_cleaned, 1);
                moved += 1;
            }
            Cleaned::Damaged => core.live.borrow_mut().segments.mark_stuck(victim),
            Cleaned::NoRoom => break,
        }
    }
    Ok(moved)
}

/// The segment with the best relation of gain and age to cost.
fn choose(core: &Core, need: Need) -> Option<u32> {
    let live = core.live.borrow();
    let units = core.geometry.segment_bytes() >> core.geometry.unit_shift;
    let full_max = match need {
        Need::Low => FULL_MAX_LOW,
        Need::Asked | Need::Urgent => FULL_MAX_URGENT,
    };
    let now = live.checkpoint_number as u32;
    let score = |segment: u32| {
        let entry = live.segments.entry(segment);
        let full = (u64::from(entry.live_units) * 1000 / units).min(1000);
        // Where space is short, age is a luxury.
        let age = match need {
            Need::Low | Need::Asked => {
                u64::from(now.wrapping_sub(entry.sealed_at)).min(1 << 20) + 1
            }
            Need::Urgent => 1,
        };
        ((1000 - full) * 1_000_000 / (1000 + full)).saturating_mul(age)
    };
    live.segments
        .candidates()
        .filter(|(_, entry)| u64::from(entry.live_units) * 100 <= units * full_max)
        // Counted by the checkpoint before, left since: its last records may still be on their way.
        .filter(|(segment, _)| !live.log.is_writing_to(*segment))
        .map(|(segment, _)| segment)
        .max_by_key(|segment| (score(*segment), core::cmp::Reverse(*segment)))
}

/// How cleaning a segment ended.
pub(super) enum Cleaned {
    Whole,
    /// Something live could not be read.
    Damaged,
    /// The log has no room for copies.
    NoRoom,
}

/// Copies everything live out of a segment.
pub(super) async fn clean_segment(core: &Rc<Core>, victim: u32) -> Result<Cleaned, Halt> {
    let mut pins = Pins::new(core);
    pins.add(&mut core.live.borrow_mut(), victim);
    let mut window = Window::default();
    let mut place = LogPlace { segment: victim, offset_bytes: 0 };
    let mut found: Vec<Found> = Vec::new();
    let mut last_sequence = 0;
    let mut outcome = Cleaned::Whole;
    while core.rules.has_room(place.offset_bytes) {
        core.check_stop()?;
        let disk = &core.port.disk;
        let load = window.load(&core.geometry, &core.rules, place, disk).await;
        if load.is_err() {
            return Ok(Cleaned::Damaged);
        }
        let Ok(record) = Record::parse(&core.rules, place, window.at(place)) else { break };
        // What follows the last record is of an earlier life.
        if record.head.sequence <= last_sequence {
            break;
        }
        last_sequence = record.head.sequence;
        collect(core, place, &record, window.at(place), &mut found);
        place.offset_bytes += record.total_bytes;
        if found.iter().map(|extent| extent.bytes.len()).sum::<usize>() >= HELD_BYTES {
            match move_all(core, &mut found).await? {
                Cleaned::Whole => {}
                Cleaned::Damaged => outcome = Cleaned::Damaged,
                Cleaned::NoRoom => return Ok(Cleaned::NoRoom),
            }
        }
    }
    match move_all(core, &mut found).await? {
        Cleaned::Whole => Ok(outcome),
        worse @ (Cleaned::Damaged | Cleaned::NoRoom) => Ok(worse),
    }
}

/// The extents of a record that may be live: those whose page is not at hand are asked later.
fn collect(
    core: &Core,
    place: LogPlace,
    record: &Record<'_>,
    bytes: &[u8],
    found: &mut Vec<Found>,
) {
    let flags = RecordFlags::from_bits_truncate(record.head.flags);
    if flags.contains(RecordFlags::SUMMARY) {
        return;
    }
    for placed in entry::entries(&core.rules, record).flatten() {
        let Entry::Extent { .. } = placed.entry else { continue };
        let PlacedEntry { entry, offset_bytes, stored_bytes } = placed;
        let at = LogPlace { offset_bytes: place.offset_bytes + offset_bytes, ..place };
        let stored = offset_bytes as usize..(offset_bytes + stored_bytes) as usize;
        let extent = Found {
            address: core.geometry.address_of(at),
            sequence: record.head.sequence,
            entry,
            bytes: bytes[stored].to_vec(),
        };
        if extent.live_blocks(core) != Some(0) {
            found.push(extent);
        }
    }
}

/// Copies what is live among `found`, in the order of the blocks, and empties it.
async fn move_all(core: &Rc<Core>, found: &mut Vec<Found>) -> Result<Cleaned, Halt> {
    found.sort_by_key(|extent| extent.entry.first_block());
    let mut outcome = Cleaned::Whole;
    for extent in found.drain(..) {
        core.check_stop()?;
        let claim = Claim::of_cleaner(core, extent.bytes.len() + 4096).await;
        match move_extent(core, &extent).await {
            Ok(()) => {}
            Err(Status::NoSpace) => return Ok(Cleaned::NoRoom),
            Err(Status::Medium) => outcome = Cleaned::Damaged,
            // The volume takes no writes any more; whoever found out has said why.
            Err(_) => return Err(Halt::Stopped),
        }
        drop(claim);
        if core.computed(extent.bytes.len()) {
            yield_now().await;
        }
    }
    Ok(outcome)
}

/// Copies the live blocks of one extent. The look and the copy are one step.
async fn move_extent(core: &Rc<Core>, extent: &Found) -> Result<(), Status> {
    let live = loop {
        match extent.live_set(core) {
            Ok(live) => break live,
            Err(page) => load_page(core, page).await?,
        }
    };
    if live == 0 {
        return Ok(());
    }
    let Some(pieces) = pieces_of(core, extent, live) else {
        let blocks = u64::from(extent.entry.blocks());
        let first_block = extent.entry.first_block();
        core.port.event(Event::BlocksLost { first_block, blocks });
        return Err(Status::Medium);
    };
    core.append_moved(&pieces)
}

/// The pieces that copy the blocks of `live`; nothing if the extent is damaged.
fn pieces_of(core: &Core, extent: &Found, live: u16) -> Option<Vec<Piece>> {
    let (head, payload) = ExtentHead::verify(core.rules.salt, &extent.bytes).ok()?;
    let first_block = extent.entry.first_block();
    if head.first_block != first_block || head.tag != extent.sequence as u32 {
        return None;
    }
    let mut pieces = Vec::new();
    if live == u16::MAX >> (16 - u16::from(head.blocks)) {
        push_extent(first_block, head.blocks.into(), head.codec, payload, &mut pieces);
        return Some(pieces);
    }
    let mut room = core.room_for_blocks(head.logical_bytes() as usize);
    let unpacked = core.coder.borrow_mut().unpack(head.codec, payload, &mut room);
    let mut index = 0;
    while unpacked.is_ok() && index < head.blocks {
        let run = (live >> index).trailing_ones() as u8;
        if run > 0 {
            let from = usize::from(index) * BLOCK_BYTES as usize;
            let to = usize::from(index + run) * BLOCK_BYTES as usize;
            let first = first_block + u64::from(index);
            pack(core, &(first..first + u64::from(run)), &room[from..to], &mut pieces);
        }
        index += run.max(1);
    }
    core.give_room_back(room);
    unpacked.ok().map(|()| pieces)
}

impl Found {
    /// Which of its blocks the map means, a bit each.
    ///
    /// # Errors
    /// The page that has to be read first.
    fn live_set(&self, core: &Core) -> Result<u16, u64> {
        let mut live = core.live.borrow_mut();
        let live = &mut *live;
        let units = self.bytes.len() >> core.geometry.unit_shift;
        let mut set = 0;
        for index in 0..self.entry.blocks() as u8 {
            let block = self.entry.first_block() + u64::from(index);
            if block >= live.map.logical_blocks || live.log.find_open(block).is_some() {
                continue;
            }
            let extent = MapExtent {
                address: self.address,
                units: units as u16,
                index,
                tag: self.sequence as u8,
            };
            match live.map.find(&core.geometry, block) {
                Known::Word(word) if word == MapEntry::Extent(extent).to_word() => {
                    set |= 1 << index
                }
                Known::Word(_) => {}
                Known::Page(page) => return Err(page),
            }
        }
        Ok(set)
    }

    /// How many of its blocks are live, if that is known without reading.
    fn live_blocks(&self, core: &Core) -> Option<u32> {
        self.live_set(core).ok().map(u16::count_ones)
    }
}
