//! Giving dead parts of segments back to the device below, without moving what lives around them.
//!
//! After a checkpoint, segments in which much has died since they were looked at are read; of each
//! record the runs of dead extents are discarded below. It is for devices where space is shared
//! with others: files, thin volumes. The log gets nothing of it.
//!
//! ```text
//! | header | table | dead dead | live | dead | live |   record
//!                    ^^^^^^^^^          ^^^^             inwards to the device's granularity
//! ```
//!
//! Rules. Dead is what no page of the *durable* checkpoint means, and only in records from before
//! it: later ones are replayed, and verified whole. What is dead so stays dead. Headers and tables
//! stay: recovery, cleaner and tools walk over them. A segment is pinned meanwhile, so it is not
//! used again before the discards have ended.
//!
//! The tricky case is a reader who looked an extent up while it lived, and is still reading. Its
//! pin is on the segment; so a segment that anybody else has pinned is left for the next time.

use super::checkpoint::Halt;
use super::pages::Known;
use super::read::load_page;
use super::shared::{Core, Pins};
use super::tally::add;
use super::window::Window;
use crate::compress::format::map::MapExtent;
use crate::compress::format::{Entry, MapEntry, PlacedEntry, RecordFlags, SegmentEntry, entry};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;
use udm_lane::yield_now;
use udm_meta::record::{LogPlace, Record};
use udm_types::Status;

/// A segment is looked at again when so much more of it is dead: one part in so many.
const DEAD_SHARE: u64 = 8;

/// What is remembered of punching. Lost with the volume: then what has died so far stays.
#[derive(Default)]
pub(super) struct Punched {
    /// The checkpoint that was looked at.
    checkpoint: u64,
    /// Segments: when they were filled, and their live units when they were looked at.
    segments: BTreeMap<u32, (u32, u32)>,
    /// The device below cannot.
    is_off: bool,
}

/// Extents of a record, to be judged.
struct Extents {
    sequence: u64,
    placed: Vec<PlacedEntry>,
    place: LogPlace,
}

/// Task: punches after checkpoints.
pub(super) async fn puncher(core: Rc<Core>) {
    if core.port.options.punch_granularity_bytes.is_none() {
        return;
    }
    remember_all(&core);
    loop {
        let is_on = core
            .background
            .wait_for(|| {
                let live = core.live.borrow();
                let is_new = live.checkpoint_number != live.punched.checkpoint;
                match live.is_stopping || live.punched.is_off {
                    true => Some(false),
                    false => is_new.then_some(true),
                }
            })
            .await;
        if !is_on || core.refusal().is_some() {
            return;
        }
        match punch_all(&core).await {
            Ok(()) => {}
            Err(Halt::Stopped) => return,
            Err(Halt::Trouble(trouble)) => return core.damaged(trouble),
        }
    }
}

/// What is dead when a volume is opened is taken for punched: reading everything to find out would
/// cost more than it gives.
fn remember_all(core: &Core) {
    let mut live = core.live.borrow_mut();
    let live = &mut *live;
    if live.punched.checkpoint == 0 {
        let known = live.segments.candidates();
        let known = known.map(|(at, entry)| (at, (entry.sealed_at, entry.live_units)));
        live.punched.segments = known.collect();
        live.punched.checkpoint = live.checkpoint_number;
    }
}

/// Every segment in which enough has died.
async fn punch_all(core: &Rc<Core>) -> Result<(), Halt> {
    let due: Vec<(u32, (u32, u32))> = {
        let mut live = core.live.borrow_mut();
        let live = &mut *live;
        live.punched.checkpoint = live.checkpoint_number;
        let is_there: BTreeMap<u32, u32> =
            live.segments.candidates().map(|(at, entry)| (at, entry.sealed_at)).collect();
        live.punched.segments.retain(|at, (sealed_at, _)| is_there.get(at) == Some(sealed_at));
        let all = (core.geometry.segment_bytes() >> core.geometry.unit_shift) as u32;
        let punched = &live.punched.segments;
        live.segments
            .candidates()
            .filter(|(at, entry)| {
                let before = punched.get(at).map_or(all, |(_, units)| *units);
                let died = u64::from(before.saturating_sub(entry.live_units));
                died * DEAD_SHARE >= u64::from(all)
            })
            .map(|(at, entry)| (at, (entry.sealed_at, entry.live_units)))
            .collect()
    };
    for (segment, state) in due {
        core.check_stop()?;
        if punch_segment(core, segment, state.0).await? {
            core.live.borrow_mut().punched.segments.insert(segment, state);
        }
        yield_now().await;
    }
    Ok(())
}

/// Punches a segment; false if that has to wait.
async fn punch_segment(core: &Rc<Core>, segment: u32, sealed_at: u32) -> Result<bool, Halt> {
    let mut pins = Pins::new(core);
    {
        // It may have died meanwhile, be discarded as a whole right now, or live another life.
        let mut live = core.live.borrow_mut();
        let is_same = |entry: &SegmentEntry| entry.live_blocks > 0 && entry.sealed_at == sealed_at;
        if segment >= live.segments.count() || !is_same(live.segments.entry(segment)) {
            return Ok(true);
        }
        pins.add(&mut live, segment);
    }
    let Some(dead) = dead_ranges(core, segment).await? else { return Ok(true) };
    if core.live.borrow().segments.pin_count(segment) > 1 {
        return Ok(false);
    }
    // Who reads from here on looks up what lives.
    for range in dead {
        core.check_stop()?;
        let len_bytes = range.end - range.start;
        match core.port.disk.discard(range.start, len_bytes).await {
            Ok(_) => add(&core.port.tally.punched_bytes, len_bytes),
            Err(error) if error.status == Status::NotSupported => {
                core.live.borrow_mut().punched.is_off = true;
                return Ok(true);
            }
            // A discard is a wish.
            Err(_) => {}
        }
    }
    drop(pins);
    Ok(true)
}

/// What is dead in a segment, on the disk; nothing if it cannot be read.
async fn dead_ranges(core: &Rc<Core>, segment: u32) -> Result<Option<Vec<Range<u64>>>, Halt> {
    let mut window = Window::default();
    let mut place = LogPlace { segment, offset_bytes: 0 };
    let (mut last_sequence, mut dead) = (0, Vec::new());
    let limit = core.live.borrow().checkpoint.next_sequence;
    while core.rules.has_room(place.offset_bytes) {
        core.check_stop()?;
        let disk = &core.port.disk;
        if window.load(&core.geometry, &core.rules, place, disk).await.is_err() {
            return Ok(None);
        }
        let Ok(record) = Record::parse(&core.rules, place, window.at(place)) else { break };
        let sequence = record.head.sequence;
        // What follows the last record is of an earlier life; what the checkpoint does not have is
        // replayed.
        if sequence <= last_sequence || sequence >= limit {
            break;
        }
        last_sequence = sequence;
        let total_bytes = record.total_bytes;
        let flags = RecordFlags::from_bits_truncate(record.head.flags);
        if !flags.contains(RecordFlags::SUMMARY) {
            let placed = entry::entries(&core.rules, &record).flatten();
            let placed = placed.filter(|placed| matches!(placed.entry, Entry::Extent { .. }));
            let extents = Extents { sequence, placed: placed.collect(), place };
            dead_of_record(core, &extents, &mut dead).await;
        }
        place.offset_bytes += total_bytes;
        if core.computed(total_bytes as usize / 8) {
            yield_now().await;
        }
    }
    Ok(Some(dead))
}

/// The dead runs of a record, as far as the device can discard them.
async fn dead_of_record(core: &Rc<Core>, extents: &Extents, dead: &mut Vec<Range<u64>>) {
    let mut run: Option<Range<u64>> = None;
    for placed in &extents.placed {
        if !is_dead(core, extents, placed).await {
            push_run(core, run.take(), dead);
            continue;
        }
        let offset_bytes = extents.place.offset_bytes + placed.offset_bytes;
        let at = core.geometry.offset_of(LogPlace { offset_bytes, ..extents.place });
        let end = at + u64::from(placed.stored_bytes);
        run = Some(run.map_or(at, |run| run.start)..end);
    }
    push_run(core, run, dead);
}

fn push_run(core: &Core, run: Option<Range<u64>>, dead: &mut Vec<Range<u64>>) {
    let granularity = core.port.options.punch_granularity_bytes.unwrap_or(1);
    let step = granularity.max(core.geometry.physical_bytes());
    let Some(run) = run else { return };
    let inside = run.start.next_multiple_of(step)..run.end - run.end % step;
    if inside.start < inside.end {
        dead.push(inside);
    }
}

/// Whether nothing means any block of an extent: not the pages of the checkpoint, and not what came
/// after it. A page that cannot be read may mean it.
async fn is_dead(core: &Rc<Core>, extents: &Extents, placed: &PlacedEntry) -> bool {
    let offset_bytes = extents.place.offset_bytes + placed.offset_bytes;
    let address = core.geometry.address_of(LogPlace { offset_bytes, ..extents.place });
    let units = (placed.stored_bytes >> core.geometry.unit_shift) as u16;
    let first = placed.entry.first_block();
    for (index, block) in (0..).zip(first..first + u64::from(placed.entry.blocks())) {
        let meant = MapExtent { address, units, index, tag: extents.sequence as u8 };
        let meant = MapEntry::Extent(meant).to_word();
        loop {
            let known = {
                let mut live = core.live.borrow_mut();
                if block >= live.map.logical_blocks {
                    break;
                }
                let now = live.map.find(&core.geometry, block);
                let settled = live.map.find_settled(&core.geometry, block);
                if now == Known::Word(meant) { now } else { settled }
            };
            match known {
                Known::Word(word) if word == meant => return false,
                Known::Word(_) => break,
                Known::Page(page) if load_page(core, page).await.is_err() => return false,
                Known::Page(_) => {}
            }
        }
    }
    true
}
