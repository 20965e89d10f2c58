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

use super::cache::Cache;
use super::delta::Delta;
use crate::compress::format::Geometry;
use crate::compress::format::geometry::MAP_ENTRIES;
use crate::compress::format::map::map_word;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;
use udm_meta::page::{PAGE_BYTES, PAGE_HEAD_BYTES, PageRegions};
use udm_meta::slots::SlotArray;

/// Memory for pages that there always is, whatever the budget: some for every request under way.
const CACHED_MIN_BYTES: usize = 68 << 10;

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
    cache: Cache<u64>,
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
            cache: Cache::new(cache_bytes.max(CACHED_MIN_BYTES)),
        }
    }

    /// Looks a block up.
    pub(super) fn find(&mut self, geometry: &Geometry, block: u64) -> Known {
        let changed = self.active.get(block);
        let changed = changed.or_else(|| self.frozen.as_ref().and_then(|delta| delta.get(block)));
        if let Some(word) = changed {
            return Known::Word(word);
        }
        self.find_settled(geometry, block)
    }

    /// Looks neighbouring blocks up: the words of all of `blocks`, in order; or the first page that
    /// has to be read for them. Where there is a word already, none is needed.
    pub(super) fn find_all(
        &mut self,
        geometry: &Geometry,
        blocks: Range<u64>,
        words: &mut [Option<u64>],
    ) -> Result<(), u64> {
        let at = |block: u64| (block - blocks.start) as usize;
        // Newest first: whoever has a word keeps it.
        self.active.for_each_in(blocks.clone(), |block, word| words[at(block)] = Some(word));
        if let Some(frozen) = &self.frozen {
            frozen.for_each_in(blocks.clone(), |block, word| {
                words[at(block)].get_or_insert(word);
            });
        }
        let mut first = blocks.start;
        while first < blocks.end {
            let (page, index) = geometry.map_page_of(first);
            let end = blocks.end.min(first + (MAP_ENTRIES - index as u64));
            let unknown = &mut words[at(first)..at(end)];
            if unknown.iter().any(Option::is_none) {
                self.fill_in(page, index, unknown)?;
            }
            first = end;
        }
        Ok(())
    }

    /// The words that a page has from `index` on, where none is known.
    fn fill_in(&mut self, page: u64, index: usize, words: &mut [Option<u64>]) -> Result<(), u64> {
        let is_written = self.slots.get(page).is_some();
        let bytes = if is_written { Some(self.cache.get(page).ok_or(page)?) } else { None };
        for (word, index) in words.iter_mut().zip(index..) {
            let settled = || bytes.as_ref().map(|bytes| map_word(&bytes[PAGE_HEAD_BYTES..], index));
            word.get_or_insert_with(|| settled().unwrap_or(0));
        }
        Ok(())
    }

    /// Looks a block up in the pages of the current checkpoint.
    pub(super) fn find_settled(&mut self, geometry: &Geometry, block: u64) -> Known {
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
        self.cache.limit_of(PAGE_BYTES)
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
        self.active.memory_bytes()
            + frozen
            + self.slots.as_bytes().len()
            + self.cache.memory_bytes()
    }
}
