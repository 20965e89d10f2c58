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
use super::selectors::{Finished, Load, PathSelector, Selector, WORDS};
use alloc::vec;
use alloc::vec::Vec;
use udm_core::Dest;
use udm_core::bio::Bio;
use udm_types::{LaneId, Nanos, SECTOR_SHIFT, Status};

/// What is rarely looked at of a path on a lane.
pub(super) struct LanePath {
    /// Its group.
    group: u32,
    /// Its place in the group.
    place: u32,
    pub(super) active: bool,
    /// Changes of the path's state that home has made, as far as this lane has heard.
    pub(super) epoch: u64,
    pub(super) errors: u64,
    /// Code and time of the last error.
    pub(super) last_error: (u64, Nanos),
}

/// What every I/O that is sent touches of a path.
struct HotPath {
    dest: Dest,
    last_chosen_at: Nanos,
    /// The selector hears of its I/Os.
    learns: bool,
}

/// What a path has done on a lane.
pub(super) struct Tally<'a> {
    pub(super) chosen: u64,
    pub(super) done: u64,
    pub(super) last_chosen_at: Nanos,
    pub(super) latencies: &'a [u64; BUCKETS],
}

/// A group on a lane.
pub(super) struct LaneGroup {
    pub(super) selector: Selector,
    /// Its first path, and the first one after it.
    first: u32,
    end: u32,
    pub(super) bypassed: bool,
}

/// The groups and paths of a lane.
///
/// What every I/O touches is in vectors of its own, by path, so that its addresses are known early
/// and nothing waits for a chain of pointers.
pub(super) struct Groups {
    pub(super) groups: Vec<LaneGroup>,
    pub(super) paths: Vec<LanePath>,
    hot: Vec<HotPath>,
    /// What is under way.
    loads: Vec<Load>,
    /// I/Os that came back, by latency; their sum is the I/Os done.
    latencies: Vec<[u64; BUCKETS]>,
    pub(super) current: Option<u32>,
    pub(super) next: Option<u32>,
    /// Changes of groups that home has made, as far as this lane has heard.
    pub(super) epoch: u64,
    /// Active paths.
    pub(super) valid: u32,
    /// A choice was made (or found no path) since the table was loaded.
    pub(super) chose: bool,
}

/// Where the path of an I/O and its size stand in the first word of its frame.
const PATH_BITS: u32 = 32;

impl Groups {
    pub(super) fn new(config: &MultipathConfig) -> Groups {
        let groups = config.groups.iter().map(|group| LaneGroup {
            selector: group.selector.start(),
            first: group.first as u32,
            end: (group.first + group.count) as u32,
            bypassed: false,
        });
        let groups: Vec<LaneGroup> = groups.collect();
        let paths = config.paths.iter().enumerate().map(|(index, path)| LanePath {
            group: path.group as u32,
            place: (index - config.groups[path.group].first) as u32,
            active: true,
            epoch: 0,
            errors: 0,
            last_error: (0, Nanos::ZERO),
        });
        let hot = config.paths.iter().map(|path| HotPath {
            dest: path.device.dest,
            last_chosen_at: Nanos::ZERO,
            learns: groups[path.group].selector.learns(),
        });
        Groups {
            paths: paths.collect(),
            hot: hot.collect(),
            loads: vec![Load::default(); config.paths.len()],
            latencies: vec![[0; BUCKETS]; config.paths.len()],
            groups,
            current: None,
            next: config.initial.map(|group| group as u32),
            epoch: 0,
            valid: config.paths.len() as u32,
            chose: false,
        }
    }

    /// The path the current group's selector says; `None` needs [`Groups::choose_group`].
    #[inline(always)]
    pub(super) fn choose(&mut self, bytes: u64, lane: LaneId, now: Nanos) -> Option<u32> {
        let group = &mut self.groups[self.current? as usize];
        let loads = &self.loads[group.first as usize..group.end as usize];
        group.selector.select(bytes, loads, lane, now).map(|place| group.first + place)
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
            let loads = &self.loads[it.first as usize..it.end as usize];
            if let Some(place) = it.selector.select(bytes, loads, lane, now) {
                self.current = Some(group);
                return Some(it.first + place);
            }
        }
        self.current = None;
        None
    }

    /// Sends a bio down a path: counts it and notes path, size and time in its frame.
    #[inline(always)]
    pub(super) fn start(&mut self, path: u32, bio: &mut Bio, now: Nanos) {
        let sectors = bio.len_sectors.min(u64::from(u32::MAX));
        *bio.words_mut() = [sectors << PATH_BITS | u64::from(path + 1), now.0];
        let sector = bio.sector;
        let hot = &mut self.hot[path as usize];
        hot.last_chosen_at = now;
        bio.remap(hot.dest, sector);
        let load = &mut self.loads[path as usize];
        let before = *load;
        load.ios += 1;
        load.bytes += sectors << SECTOR_SHIFT;
        if hot.learns {
            let LanePath { group, place, .. } = self.paths[path as usize];
            self.groups[group as usize].selector.start_io(place, before, now);
        }
    }

    /// A bio is back from its path. `None` if it was not on one (the target held and ended it).
    #[inline(always)]
    pub(super) fn end(&mut self, bio: &mut Bio, now: Nanos) -> Option<u32> {
        let [first, started] = *bio.words_mut();
        let path = (first as u32).checked_sub(1)?;
        let started = Nanos(started);
        self.latencies[path as usize][bucket_of(now.since(started).0)] += 1;
        let bytes = (first >> PATH_BITS) << SECTOR_SHIFT;
        let load = &mut self.loads[path as usize];
        load.ios -= 1;
        load.bytes -= bytes;
        if self.hot[path as usize].learns {
            let left = *load;
            let LanePath { group, place, .. } = self.paths[path as usize];
            let io = Finished { bytes, started, now, left };
            self.groups[group as usize].selector.end_io(place, io);
        }
        Some(path)
    }

    /// What a path has done: I/Os sent, come back, and by latency; when it was chosen last.
    pub(super) fn tally(&self, path: usize) -> Tally<'_> {
        let latencies = &self.latencies[path];
        let done = latencies.iter().sum();
        Tally {
            chosen: done + self.loads[path].ios,
            done,
            last_chosen_at: self.hot[path].last_chosen_at,
            latencies,
        }
    }

    /// What its selector knows of a path.
    pub(super) fn words(&self, path: usize) -> [u64; WORDS] {
        let LanePath { group, place, .. } = self.paths[path];
        self.groups[group as usize].selector.words(place, self.loads[path])
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
