//! A lane's copy of the priority groups and paths, and the choice among them.
//!
//! Called by `map.rs` for every I/O. Knows nothing of messages, notes or held bios; whoever changes
//! it tells the home lane (`home.rs`).
//!
//! How a path is chosen, in order:
//!
//! | | condition | choice |
//! |---|---|---|
//! | 1 | no path is active | none; no group is current any more |
//! | 2 | a group is current | what its selector says |
//! | 3 | a group is next | that one, once |
//! | 4 | | the first in order with an active path: those not bypassed, then the bypassed |
//!
//! So a group is kept while it has any active path, even if a better one has recovered.
//!
//! Rules. `valid` is the number of active paths; a path exists for an I/O if and only if it is not
//! 0. Every `start` is followed by exactly one `end` with the words the start left in the frame.
//!
//! The tricky case is an I/O that ends on a path that was failed meanwhile: its selector still
//! counts it, so `end` does not look at the path's state.

use super::config::MultipathConfig;
use super::counters::{BUCKETS, bucket_of};
use super::report::code_of;
use super::selectors::{Finished, PathSelector, Selector};
use alloc::vec::Vec;
use udm_core::Dest;
use udm_core::bio::Bio;
use udm_types::{LaneId, Nanos, SECTOR_SHIFT, Status};

/// A path on a lane.
pub(super) struct LanePath {
    pub(super) dest: Dest,
    /// Its group.
    pub(super) group: u32,
    /// Its place in the group.
    place: u32,
    pub(super) active: bool,
    /// Changes of the path's state that home has made, as far as this lane has heard.
    pub(super) epoch: u64,
    pub(super) chosen: u64,
    pub(super) done: u64,
    pub(super) errors: u64,
    /// Code and time of the last error.
    pub(super) last_error: (u64, Nanos),
    pub(super) last_chosen_at: Nanos,
    pub(super) latencies: [u64; BUCKETS],
}

/// A group on a lane.
pub(super) struct LaneGroup {
    pub(super) selector: Selector,
    first: u32,
    pub(super) bypassed: bool,
}

/// The groups and paths of a lane.
pub(super) struct Groups {
    pub(super) groups: Vec<LaneGroup>,
    pub(super) paths: Vec<LanePath>,
    pub(super) current: Option<u32>,
    pub(super) next: Option<u32>,
    /// Changes of groups that home has made, as far as this lane has heard.
    pub(super) epoch: u64,
    /// Active paths.
    pub(super) valid: u32,
    /// A choice was made (or found no path) since the table was loaded.
    pub(super) chose: bool,
}

impl LanePath {
    /// Its place in the group.
    pub(super) fn place(&self) -> u32 {
        self.place
    }
}

/// Where the path of an I/O and its size stand in the first word of its frame.
const PATH_BITS: u32 = 32;

impl Groups {
    pub(super) fn new(config: &MultipathConfig) -> Groups {
        let groups = config.groups.iter().map(|group| LaneGroup {
            selector: group.selector.start(),
            first: group.first as u32,
            bypassed: false,
        });
        let paths = config.paths.iter().enumerate().map(|(index, path)| LanePath {
            dest: path.device.dest,
            group: path.group as u32,
            place: (index - config.groups[path.group].first) as u32,
            active: true,
            epoch: 0,
            chosen: 0,
            done: 0,
            errors: 0,
            last_error: (0, Nanos::ZERO),
            last_chosen_at: Nanos::ZERO,
            latencies: [0; BUCKETS],
        });
        Groups {
            groups: groups.collect(),
            paths: paths.collect(),
            current: None,
            next: config.initial.map(|group| group as u32),
            epoch: 0,
            valid: config.paths.len() as u32,
            chose: false,
        }
    }

    /// The path the current group's selector says; `None` needs [`Groups::choose_group`].
    #[inline]
    pub(super) fn choose(&mut self, bytes: u64, lane: LaneId, now: Nanos) -> Option<u32> {
        let group = &mut self.groups[self.current? as usize];
        group.selector.select(bytes, lane, now).map(|place| group.first + place)
    }

    /// Chooses another group and a path in it. May change `current` and `next`.
    #[cold]
    pub(super) fn choose_group(&mut self, bytes: u64, lane: LaneId, now: Nanos) -> Option<u32> {
        self.chose = true;
        if self.valid == 0 {
            self.current = None;
            return None;
        }
        let next = self.next.take();
        let count = self.groups.len() as u32;
        let in_order = |bypassed| (0..count).map(move |group| (group, Some(bypassed)));
        let candidates = next.into_iter().map(|group| (group, None));
        for (group, bypassed) in candidates.chain(in_order(false)).chain(in_order(true)) {
            let it = &mut self.groups[group as usize];
            if bypassed.is_some_and(|bypassed| bypassed != it.bypassed) {
                continue;
            }
            if let Some(place) = it.selector.select(bytes, lane, now) {
                self.current = Some(group);
                return Some(it.first + place);
            }
        }
        self.current = None;
        None
    }

    /// Sends a bio down a path: counts it and notes path, size and time in its frame.
    #[inline]
    pub(super) fn start(&mut self, path: u32, bio: &mut Bio, now: Nanos) {
        let sectors = bio.len_sectors.min(u64::from(u32::MAX));
        *bio.words_mut() = [sectors << PATH_BITS | u64::from(path + 1), now.0];
        let sector = bio.sector;
        let it = &mut self.paths[path as usize];
        it.chosen += 1;
        it.last_chosen_at = now;
        bio.remap(it.dest, sector);
        let group = &mut self.groups[it.group as usize];
        group.selector.start_io(it.place, sectors << SECTOR_SHIFT, now);
    }

    /// A bio is back from its path. `None` if it was not on one (the target held and ended it).
    #[inline]
    pub(super) fn end(&mut self, bio: &mut Bio, now: Nanos) -> Option<u32> {
        let [first, started] = *bio.words_mut();
        let path = (first as u32).checked_sub(1)?;
        let started = Nanos(started);
        let it = &mut self.paths[path as usize];
        it.done += 1;
        it.latencies[bucket_of(now.since(started).0)] += 1;
        let bytes = (first >> PATH_BITS) << SECTOR_SHIFT;
        let group = &mut self.groups[it.group as usize];
        group.selector.end_io(it.place, Finished { bytes, started, now });
        Some(path)
    }

    /// Counts an error of a path.
    pub(super) fn count_error(&mut self, path: u32, status: Status, now: Nanos) {
        let path = &mut self.paths[path as usize];
        path.errors += 1;
        path.last_error = (code_of(status), now);
    }

    /// Marks a path. False if it was so already.
    pub(super) fn mark(&mut self, path: u32, active: bool) -> bool {
        let it = &mut self.paths[path as usize];
        if it.active == active {
            return false;
        }
        it.active = active;
        let selector = &mut self.groups[it.group as usize].selector;
        if active {
            selector.reinstate_path(it.place);
            self.valid += 1;
        } else {
            selector.fail_path(it.place);
            self.valid -= 1;
        }
        true
    }

    /// No group is current; the next I/O chooses again.
    pub(super) fn bypass(&mut self, group: u32, bypassed: bool) {
        self.groups[group as usize].bypassed = bypassed;
        self.current = None;
    }

    /// The next I/O goes to this group; no group is bypassed any more.
    pub(super) fn switch_to(&mut self, group: u32) {
        self.groups.iter_mut().for_each(|it| it.bypassed = false);
        self.current = None;
        self.next = Some(group);
    }
}
