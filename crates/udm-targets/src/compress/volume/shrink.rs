//! A smaller disk, while everything goes on: what lies in its last segments moves, then they are
//! cut off, and then the disk below may be cut as well.
//!
//! ```text
//! begin        segments before the cut are given out first
//! emptying     what is live behind it moves, and the log; checkpoints, discards
//! cutting      the cut is closed: a checkpoint with fewer segments
//! superblock   copy 0, flush, the others, one of them at the new end, flush
//! ```
//!
//! Rules. Until that checkpoint nothing of it is on the disk: a crash, a stop for a new table or
//! [`Core::give_up_shrink`] leave the volume as it was. Between checkpoint and superblock a crash
//! leaves a volume that uses less than it may; whoever opens it makes it use all again. Nobody is
//! told that it is done before the superblock is durable.
//!
//! The tricky case is a volume without a free segment before the cut. There the emptiest ones
//! before it are copied out first, to wherever there is room; behind the cut, too. So nobody's
//! writes are refused for a shrink; it is given up when rounds of it lead nowhere.

use super::checkpoint::{Halt, await_checkpoint};
use super::clean::{Cleaned, clean_segment};
use super::options::State;
use super::resize::{ResizeFault, write_superblock};
use super::shared::{Core, Live, Resizing};
use super::tally::add;
use crate::compress::format::geometry::SEGMENTS_MIN;
use crate::compress::format::{BLOCK_BYTES, Geometry, Superblock};
use alloc::rc::Rc;

/// Segments moved between two checkpoints: from behind the cut, and to make room before it.
const BATCH: usize = 32;
const BATCH_BEFORE: usize = 8;
/// Rounds that lead nowhere after which a shrink is given up.
const VAIN_MAX: usize = 8;

/// A shrink of the disk.
pub(super) struct Shrink {
    /// What will say so.
    superblock: Superblock,
    /// Segments that are left.
    segments: u32,
    stage: Stage,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// What lies behind the cut moves.
    Emptying,
    /// This checkpoint cuts it off.
    Cutting(u64),
    /// It was given up.
    GivenUp(ResizeFault),
}

impl Shrink {
    /// The size of the disk in the end.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.superblock.geometry.device_bytes
    }
}

/// Begins one, if the size is possible by what is known now.
pub(super) fn begin(core: &Core, disk_bytes: u64) -> Result<(), ResizeFault> {
    if *core.port.state.borrow() != State::Serving {
        return Err(ResizeFault::NotServing);
    }
    let now = core.superblock_now();
    let mut live = core.live.borrow_mut();
    if live.is_resizing() {
        return Err(ResizeFault::Busy);
    }
    let most_bytes = now.geometry.device_bytes;
    let least_bytes = least_disk_bytes(core, &live).min(most_bytes);
    let device_bytes = disk_bytes - disk_bytes % BLOCK_BYTES;
    let geometry = Geometry { device_bytes, ..now.geometry };
    let is_possible = (least_bytes..=most_bytes).contains(&device_bytes);
    if !is_possible || geometry.check().is_err() {
        return Err(ResizeFault::Disk { least_bytes, most_bytes });
    }
    let limit = u32::try_from(geometry.segment_limit()).unwrap_or(u32::MAX);
    let segments = limit.min(live.segments.count());
    let superblock = Superblock { geometry, is_sized: true, generation: now.generation + 1, ..now };
    live.shrink = Some(Shrink { superblock, segments, stage: Stage::Emptying });
    live.segments.begin_cut(segments);
    drop(live);
    core.background.notify();
    Ok(())
}

/// About the smallest size: what is live, a little more for tables and padding, what holds map
/// pages, and what every volume keeps free.
fn least_disk_bytes(core: &Core, live: &Live) -> u64 {
    let geometry = &core.geometry;
    let segment_bytes = geometry.segment_bytes();
    let (map_count, map_end) = live.segments.of_map();
    let live_bytes = live.checkpoint.live_units << geometry.unit_shift;
    let full = live_bytes.div_ceil(segment_bytes - segment_bytes / 16);
    // The open segment, the next one, and one to move into.
    let kept = geometry.reserve_segments + 3;
    let segments = (full + kept + map_count as u64).max(map_end.into()).max(SEGMENTS_MIN);
    geometry.data_offset_bytes + segments * segment_bytes + BLOCK_BYTES
}

/// Task: one shrink, from its begin to its end.
pub(super) async fn shrink(core: Rc<Core>) {
    let outcome = finish(&core).await;
    let mut live = core.live.borrow_mut();
    live.shrink = None;
    live.segments.end_cut();
    drop(live);
    core.room.notify();
    core.background.notify();
    core.port.resized.borrow_mut().push_back(outcome);
}

async fn finish(core: &Rc<Core>) -> Result<(), ResizeFault> {
    core.background
        .wait_for(|| {
            let refusal = core.refusal();
            let live = core.live.borrow();
            match live.shrink.as_ref().map(|shrink| shrink.stage) {
                Some(Stage::GivenUp(fault)) => Some(Err(fault)),
                Some(Stage::Cutting(number)) if live.checkpoints_done >= number => Some(Ok(())),
                Some(Stage::Emptying | Stage::Cutting(_)) | None => {
                    refusal.map(|status| Err(ResizeFault::Failed(status)))
                }
            }
        })
        .await?;
    let superblock = core.live.borrow().shrink.as_ref().map(|shrink| shrink.superblock);
    match superblock {
        Some(superblock) => write_superblock(core, superblock).await,
        None => Ok(()),
    }
}

/// Task: empties what is to be cut off.
pub(super) async fn emptier(core: Rc<Core>) {
    loop {
        let is_on = core
            .background
            .wait_for(|| match core.check_stop() {
                Err(_) => Some(false),
                Ok(()) => core.is_emptying().then_some(true),
            })
            .await;
        if !is_on {
            return;
        }
        match empty(&core).await {
            Ok(()) => {}
            Err(Halt::Stopped) => return,
            Err(Halt::Trouble(trouble)) => return core.damaged(trouble),
        }
    }
}

/// Until nothing lies behind the cut, or there is a reason to end.
async fn empty(core: &Rc<Core>) -> Result<(), Halt> {
    let mut best = (usize::MAX, 0);
    let mut in_vain = 0;
    while core.is_emptying() {
        leave(core).await?;
        // Counts everything exactly, and finds dead what was moved.
        await_checkpoint(core).await?;
        wait_for_held(core).await?;
        if core.cut_if_empty() {
            return Ok(());
        }
        let (used, free) = {
            let live = core.live.borrow();
            (live.segments.used_behind_cut(), live.segments.free_count())
        };
        in_vain = if used < best.0 || free > best.1 { 0 } else { in_vain + 1 };
        best = (best.0.min(used), best.1.max(free));
        if core.live.borrow().segments.is_cut_stuck() {
            core.give_up_shrink(ResizeFault::Stuck);
        } else if in_vain >= VAIN_MAX {
            core.give_up_shrink(ResizeFault::NoRoom);
        }
        move_some(core).await?;
    }
    Ok(())
}

/// Moves what lies in some segments behind the cut; where there is no room before it, makes some.
async fn move_some(core: &Rc<Core>) -> Result<(), Halt> {
    let (mut behind, mut before) = (0, 0);
    while behind < BATCH && before < BATCH_BEFORE {
        room(core).await?;
        if !core.is_emptying() {
            return Ok(());
        }
        let has_room = core.live.borrow().segments.free_before_cut() >= 2;
        let victim = match has_room {
            true => core.victim_behind_cut(),
            false => core.victim_before_cut(),
        };
        let Some(victim) = victim else { return Ok(()) };
        behind += usize::from(has_room);
        before += usize::from(!has_room);
        match clean_segment(core, victim).await? {
            Cleaned::Whole => {
                let mut live = core.live.borrow_mut();
                let sequence = live.log.last_sequence();
                live.segments.mark_cleaned(victim, sequence);
                add(&core.port.tally.segments_cleaned, 1);
            }
            Cleaned::Damaged => core.live.borrow_mut().segments.mark_stuck(victim),
            // Users were faster.
            Cleaned::NoRoom => return Ok(()),
        }
    }
    Ok(())
}

/// The log leaves the segments behind the cut, as far as there are others: the open one, and the
/// one that was to follow.
async fn leave(core: &Rc<Core>) -> Result<(), Halt> {
    loop {
        room(core).await?;
        let can_leave = core.live.borrow().segments.free_before_cut() > 0;
        if !core.is_emptying() || !core.is_log_behind_cut() || !can_leave {
            return Ok(());
        }
        core.with_log(|log, ground| log.leave_segment(ground));
        core.sealed.notify();
    }
}

/// Waits until there is more room than the reserve; if the cleaner can make none, gives up.
async fn room(core: &Rc<Core>) -> Result<(), Halt> {
    core.room
        .until(|| {
            if !core.is_emptying() {
                return true;
            }
            let live = core.live.borrow();
            if live.is_stopping || live.segments.free_count() > core.reserve() {
                return true;
            }
            let is_vain = live.log.record_bytes < live.clean_after;
            let is_hopeless = (is_vain || live.is_out_of_space) && live.segments.held_count() == 0;
            drop(live);
            is_hopeless && core.give_up_shrink(ResizeFault::NoRoom)
        })
        .await;
    core.check_stop()
}

/// Waits until no segment behind the cut waits to become free: for discards, and for readers.
async fn wait_for_held(core: &Rc<Core>) -> Result<(), Halt> {
    core.background
        .until(|| {
            let live = core.live.borrow();
            let is_over = live.is_stopping || !live.segments.is_held_behind_cut();
            drop(live);
            is_over || !core.is_emptying()
        })
        .await;
    core.check_stop()
}

impl Live {
    /// True if the volume is getting other sizes.
    pub(super) fn is_resizing(&self) -> bool {
        let is_in_checkpoint = self.resizing.is_some() || self.frozen_resizing.is_some();
        self.is_resize_claimed || is_in_checkpoint || self.shrink.is_some()
    }
}

impl Core {
    /// The superblock as it is on the disk.
    pub(super) fn superblock_now(&self) -> Superblock {
        self.grown.get().unwrap_or(self.superblock)
    }

    /// Gives a shrink up, unless its checkpoint has begun. True if there was one.
    pub(super) fn give_up_shrink(&self, fault: ResizeFault) -> bool {
        let mut live = self.live.borrow_mut();
        let Some(shrink) = live.shrink.as_mut().filter(|it| it.stage == Stage::Emptying) else {
            return false;
        };
        shrink.stage = Stage::GivenUp(fault);
        live.segments.end_cut();
        drop(live);
        self.room.notify();
        self.background.notify();
        true
    }

    fn is_emptying(&self) -> bool {
        let live = self.live.borrow();
        let stage = live.shrink.as_ref().map(|shrink| shrink.stage);
        drop(live);
        stage == Some(Stage::Emptying) && self.refusal().is_none()
    }

    fn is_log_behind_cut(&self) -> bool {
        let live = self.live.borrow();
        let point = live.log.point();
        let cut = live.shrink.as_ref().map_or(u32::MAX, |shrink| shrink.segments);
        point.place.segment >= cut || point.next_segment >= cut
    }

    /// A segment behind the cut that has to be emptied. Not while records of it are on their way.
    fn victim_behind_cut(&self) -> Option<u32> {
        let live = self.live.borrow();
        live.segments.candidate_behind_cut(|at| !live.log.is_writing_to(at))
    }

    /// The segment before the cut that is cheapest to copy out, if that gains anything.
    fn victim_before_cut(&self) -> Option<u32> {
        let units = self.geometry.segment_bytes() >> self.geometry.unit_shift;
        let live = self.live.borrow();
        let found = live.segments.candidate_before_cut(|at| !live.log.is_writing_to(at));
        found.filter(|(_, live)| u64::from(*live) * 16 < units * 15).map(|(segment, _)| segment)
    }

    /// Closes the cut and asks for its checkpoint, if nothing is left behind it.
    fn cut_if_empty(&self) -> bool {
        let mut live = self.live.borrow_mut();
        let live = &mut *live;
        let Some(shrink) = live.shrink.as_mut().filter(|it| it.stage == Stage::Emptying) else {
            return false;
        };
        if !live.segments.close_cut() {
            return false;
        }
        live.resizing = Some(Resizing {
            logical_blocks: live.map.logical_blocks,
            segments: shrink.segments,
            regions: live.map.regions.clone(),
        });
        // One that has frozen already does not know of it.
        let number = live.checkpoints_done + 1 + u64::from(live.map.frozen.is_some());
        live.checkpoints_asked = live.checkpoints_asked.max(number);
        shrink.stage = Stage::Cutting(number);
        self.background.notify();
        true
    }
}
