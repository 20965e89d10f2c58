//! The map as it is known: pages in memory, and where the others are.
//!
//! A lookup goes from the newest to the oldest: the open record (`log.rs`), the changes since the
//! last freeze, those that a checkpoint is folding into pages right now, the page itself. This file
//! has the last three, and the cache of pages.
//!
//! Rules. The cache holds pages of the *current* checkpoint and nothing else: when one is
//! committed, every page whose slot changed leaves the cache in the same step. A page that was read
//! from the disk enters only if no checkpoint was committed since its read began
//! ([`Map::generation`]).
//!
//! The tricky case is the page that was never written: it is all holes, costs nothing, and is
//! neither read nor cached.

use super::delta::Delta;
use crate::compress::format::Geometry;
use crate::compress::format::map::map_word;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use udm_meta::page::{PAGE_BYTES, PAGE_HEAD_BYTES, PageRegions};
use udm_meta::slots::SlotArray;

/// What a cached page costs beside its bytes.
const CACHED_EXTRA_BYTES: usize = 96;
/// Pages the cache always has room for, whatever its budget: some for every request under way.
const CACHED_MIN: usize = 16;

/// A page's bytes, header included.
pub(super) type PageBytes = Rc<Vec<u8>>;

/// The map of a volume.
pub(super) struct Map {
    /// Changes since the last freeze.
    pub(super) active: Delta,
    /// Changes that a checkpoint is folding in.
    pub(super) frozen: Option<Rc<Delta>>,
    /// Where pages are, as of the last checkpoint.
    pub(super) slots: SlotArray,
    /// Where they lie.
    pub(super) regions: PageRegions,
    /// Logical size.
    pub(super) logical_blocks: u64,
    /// How many checkpoints were committed since the volume was opened.
    pub(super) generation: u64,
    cache: Cache,
}

/// What is known about a block without reading anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Its word.
    Word(u64),
    /// This page has to be read first.
    Page(u64),
}

impl Map {
    /// A map without changes and an empty cache of `cache_bytes`.
    pub(super) fn new(
        slots: SlotArray,
        regions: PageRegions,
        logical_blocks: u64,
        cache_bytes: usize,
    ) -> Map {
        Map {
            active: Delta::default(),
            frozen: None,
            slots,
            regions,
            logical_blocks,
            generation: 0,
            cache: Cache::new(cache_bytes),
        }
    }

    /// Looks a block up.
    pub(super) fn find(&mut self, geometry: &Geometry, block: u64) -> Known {
        let changed = self.active.get(block);
        let changed = changed.or_else(|| self.frozen.as_ref().and_then(|delta| delta.get(block)));
        if let Some(word) = changed {
            return Known::Word(word);
        }
        let (page, index) = geometry.map_page_of(block);
        if self.slots.get(page).is_none() {
            return Known::Word(0);
        }
        match self.cache.get(page) {
            Some(bytes) => Known::Word(map_word(&bytes[PAGE_HEAD_BYTES..], index)),
            None => Known::Page(page),
        }
    }

    /// Pages the cache has room for.
    pub(super) fn cache_limit(&self) -> usize {
        self.cache.limit
    }

    /// A cached page.
    pub(super) fn cached(&mut self, page: u64) -> Option<PageBytes> {
        self.cache.get(page)
    }

    /// Caches a page of the current checkpoint.
    pub(super) fn insert(&mut self, page: u64, bytes: PageBytes) {
        self.cache.insert(page, bytes);
    }

    /// A checkpoint is durable: its slots are the truth, what it folded in is in its pages. Gives
    /// back the folded changes, for somebody to forget in peace.
    pub(super) fn commit(&mut self, slots: SlotArray) -> Option<Rc<Delta>> {
        let old = core::mem::replace(&mut self.slots, slots);
        let slots = &self.slots;
        let of = |slots: &SlotArray, page| (page < slots.page_count()).then(|| slots.get(page));
        self.cache.retain(|page| of(&old, page) == of(slots, page));
        self.generation += 1;
        self.frozen.take()
    }

    /// Changes that are in no page yet.
    pub(super) fn changes(&self) -> usize {
        self.active.len() + self.frozen.as_ref().map_or(0, |delta| delta.len())
    }

    /// Memory it takes, about.
    pub(super) fn memory_bytes(&self) -> usize {
        let frozen = self.frozen.as_ref().map_or(0, |delta| delta.memory_bytes());
        self.active.memory_bytes() + frozen + self.slots.as_bytes().len() + self.cache.bytes()
    }
}

/// Pages in memory; the one that was not used for longest leaves first, about.
struct Cache {
    pages: BTreeMap<u64, Cached>,
    /// Order of entering, with a second chance for what was used since.
    order: VecDeque<u64>,
    limit: usize,
}

struct Cached {
    bytes: PageBytes,
    is_used: bool,
}

impl Cache {
    fn new(bytes: usize) -> Cache {
        let limit = (bytes / (PAGE_BYTES + CACHED_EXTRA_BYTES)).max(CACHED_MIN);
        Cache { pages: BTreeMap::new(), order: VecDeque::new(), limit }
    }

    fn get(&mut self, page: u64) -> Option<PageBytes> {
        let cached = self.pages.get_mut(&page)?;
        cached.is_used = true;
        Some(Rc::clone(&cached.bytes))
    }

    fn insert(&mut self, page: u64, bytes: PageBytes) {
        if self.pages.insert(page, Cached { bytes, is_used: false }).is_none() {
            self.order.push_back(page);
        }
        while self.pages.len() > self.limit {
            let Some(oldest) = self.order.pop_front() else { return };
            match self.pages.get_mut(&oldest) {
                Some(cached) if cached.is_used => {
                    cached.is_used = false;
                    self.order.push_back(oldest);
                }
                Some(_) => {
                    self.pages.remove(&oldest);
                }
                None => {}
            }
        }
    }

    fn retain(&mut self, mut keep: impl FnMut(u64) -> bool) {
        self.pages.retain(|page, _| keep(*page));
        let pages = &self.pages;
        self.order.retain(|page| pages.contains_key(page));
    }

    fn bytes(&self) -> usize {
        self.pages.len() * (PAGE_BYTES + CACHED_EXTRA_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::{CACHED_MIN, Cache};
    use alloc::rc::Rc;

    #[test]
    fn the_cache_keeps_what_is_used_and_its_bound() {
        let mut cache = Cache::new(0);
        for page in 0..100 {
            cache.insert(page, Rc::new(alloc::vec![page as u8]));
            assert!(cache.get(0).is_some(), "used all the time");
            assert!(cache.pages.len() <= CACHED_MIN && cache.order.len() <= CACHED_MIN);
        }
        assert!(cache.get(50).is_none() && cache.get(99).is_some());
        cache.retain(|page| page != 99);
        assert!(cache.get(99).is_none() && cache.get(0).is_some());
    }
}
