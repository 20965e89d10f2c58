//! What is kept in memory of what is on the disk, within a budget of bytes.
//!
//! Two of them: pages of the map (`pages.rs`), and extents as they were before they were compressed
//! ([`Unpacked`]), for those who read an extent block by block.
//!
//! Rules. A [`Cache`] knows nothing of what it holds; whoever puts something in says when it
//! leaves. An unpacked extent can never be old: what lies at an address does not change until its
//! segment is written again, the segment is written again only after it was released, and a release
//! makes the cache forget it ([`Unpacked::forget`]). Between the look at the map and
//! [`Unpacked::insert`] the reader has the segment pinned, so it is not released in between.
//!
//! The tricky case is several readers of one extent at a time: the first one fetches it, the others
//! wait for it instead of reading and decompressing the same again, and then look anew where their
//! blocks are. Who fetches waits for the disk only, so nobody waits in a circle.

use super::shared::Core;
use crate::compress::format::map::MapExtent;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;
use udm_meta::record::LogPlace;

/// What an entry costs beside its bytes.
const EXTRA_BYTES: usize = 96;

/// Bytes by key; those that were not used for longest leave first, about.
pub(super) struct Cache<K> {
    entries: BTreeMap<K, Cached>,
    /// Order of entering, with a second chance for what was used since.
    order: VecDeque<K>,
    bytes: usize,
    limit_bytes: usize,
}

struct Cached {
    bytes: Rc<Vec<u8>>,
    is_used: bool,
}

impl<K: Copy + Ord> Cache<K> {
    /// An empty one.
    pub(super) fn new(limit_bytes: usize) -> Cache<K> {
        Cache { entries: BTreeMap::new(), order: VecDeque::new(), bytes: 0, limit_bytes }
    }

    /// Entries of this length that it has room for.
    pub(super) fn limit_of(&self, len: usize) -> usize {
        self.limit_bytes / (len + EXTRA_BYTES)
    }

    /// What it has under a key.
    pub(super) fn get(&mut self, key: K) -> Option<Rc<Vec<u8>>> {
        let cached = self.entries.get_mut(&key)?;
        cached.is_used = true;
        Some(Rc::clone(&cached.bytes))
    }

    /// Keeps something, even if it is all there is room for; gives back the last that had to leave.
    pub(super) fn insert(&mut self, key: K, bytes: Rc<Vec<u8>>) -> Option<Rc<Vec<u8>>> {
        let mut left = self.take(key);
        if left.is_some() {
            self.order.retain(|other| *other != key);
        }
        // What is new was not used yet, so it is not looked at: room first, and in the older half.
        let mut chances = self.order.len() / 2;
        while self.bytes + cost(&bytes) > self.limit_bytes && !self.entries.is_empty() {
            let Some(oldest) = self.order.pop_front() else { break };
            match self.entries.get_mut(&oldest) {
                Some(cached) if cached.is_used && chances > 0 => {
                    chances -= 1;
                    cached.is_used = false;
                    self.order.push_back(oldest);
                }
                Some(_) => left = self.take(oldest).or(left),
                None => {}
            }
        }
        self.bytes += cost(&bytes);
        self.entries.insert(key, Cached { bytes, is_used: false });
        self.order.push_back(key);
        left
    }

    fn take(&mut self, key: K) -> Option<Rc<Vec<u8>>> {
        let cached = self.entries.remove(&key)?;
        self.bytes -= cost(&cached.bytes);
        Some(cached.bytes)
    }

    /// Forgets all but those that `keep` wants.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(K) -> bool) {
        let bytes = &mut self.bytes;
        self.entries.retain(|key, cached| {
            let is_kept = keep(*key);
            if !is_kept {
                *bytes -= cost(&cached.bytes);
            }
            is_kept
        });
        let entries = &self.entries;
        self.order.retain(|key| entries.contains_key(key));
    }

    /// Forgets those in a range of keys.
    fn forget(&mut self, keys: Range<K>) {
        if self.entries.range(keys.clone()).next().is_some() {
            self.retain(|key| !keys.contains(&key));
        }
    }

    /// Memory it takes, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes
    }
}

fn cost(bytes: &Rc<Vec<u8>>) -> usize {
    bytes.capacity() + EXTRA_BYTES
}

/// An extent: its address, and its first block with the low bits of its sequence. Whoever asks with
/// all of them right has read a map entry that is.
pub(super) type ExtentKey = (u64, u64);

/// The key of the extent that a map entry of `block` names.
pub(super) fn key_of(block: u64, extent: &MapExtent) -> ExtentKey {
    let first_block = block.wrapping_sub(extent.index.into());
    (extent.address, first_block << 8 | u64::from(extent.tag))
}

/// Extents as they were before they were compressed.
pub(super) struct Unpacked {
    cache: Cache<ExtentKey>,
    /// On their way: who fetches them puts them here, and takes them out.
    fetched: BTreeSet<ExtentKey>,
}

impl Unpacked {
    /// None yet.
    pub(super) fn new(limit_bytes: usize) -> Unpacked {
        Unpacked { cache: Cache::new(limit_bytes), fetched: BTreeSet::new() }
    }

    /// The blocks of an extent.
    pub(super) fn get(&mut self, key: ExtentKey) -> Option<Rc<Vec<u8>>> {
        self.cache.get(key)
    }

    /// Keeps the blocks of an extent in a segment that the caller has pinned. Gives memory back
    /// that nobody uses any more.
    pub(super) fn insert(&mut self, key: ExtentKey, blocks: Vec<u8>) -> Vec<u8> {
        let left = self.cache.insert(key, Rc::new(blocks));
        left.and_then(|left| Rc::try_unwrap(left).ok()).unwrap_or_default()
    }

    /// True if somebody fetches an extent.
    pub(super) fn is_fetched(&self, key: ExtentKey) -> bool {
        self.fetched.contains(&key)
    }

    /// A segment with these addresses is released.
    pub(super) fn forget(&mut self, addresses: Range<u64>) {
        self.cache.forget((addresses.start, 0)..(addresses.end, 0));
    }

    /// Memory it takes, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.cache.memory_bytes()
    }
}

/// What one reader fetches; others wait until it is dropped.
pub(super) struct Fetching {
    core: Rc<Core>,
    keys: Vec<ExtentKey>,
}

impl Fetching {
    /// Nothing yet.
    pub(super) fn new(core: &Rc<Core>) -> Fetching {
        Fetching { core: Rc::clone(core), keys: Vec::new() }
    }

    /// One more. False if somebody else fetches it.
    pub(super) fn add(&mut self, key: ExtentKey) -> bool {
        let is_own = self.keys.contains(&key);
        let is_first = !is_own && self.core.unpacked.borrow_mut().fetched.insert(key);
        if is_first {
            self.keys.push(key);
        }
        is_own || is_first
    }

    /// Nothing any more.
    pub(super) fn end(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut unpacked = self.core.unpacked.borrow_mut();
        for key in self.keys.drain(..) {
            unpacked.fetched.remove(&key);
        }
        drop(unpacked);
        self.core.fetched.notify();
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.end();
    }
}

impl Core {
    /// A segment is released: what its extents held is forgotten.
    pub(super) fn forget_unpacked(&self, segment: u32) {
        let start = self.geometry.address_of(LogPlace { segment, offset_bytes: 0 });
        let units = self.geometry.segment_bytes() >> self.geometry.unit_shift;
        self.unpacked.borrow_mut().forget(start..start + units);
    }
}

#[cfg(test)]
mod tests {
    use super::{Cache, EXTRA_BYTES, Unpacked};
    use alloc::rc::Rc;

    #[test]
    fn the_cache_keeps_what_is_used_and_its_bound() {
        let mut cache = Cache::new(16 * (10 + EXTRA_BYTES));
        assert_eq!(cache.limit_of(10), 16);
        for key in 0..100 {
            cache.insert(key, Rc::new(alloc::vec![key as u8; 10]));
            assert!(cache.get(0).is_some(), "used all the time");
            assert!(cache.entries.len() <= 16 && cache.order.len() <= 16);
            assert!(cache.memory_bytes() <= 16 * (10 + EXTRA_BYTES));
        }
        assert!(cache.get(50).is_none() && cache.get(99).is_some());
        cache.retain(|key| key != 99);
        assert!(cache.get(99).is_none() && cache.get(0).is_some());
        cache.forget(0..200);
        assert_eq!((cache.memory_bytes(), cache.order.len()), (0, 0));
    }

    #[test]
    fn memory_of_extents_goes_round() {
        let mut unpacked = Unpacked::new(2 * (4096 + EXTRA_BYTES));
        assert!(unpacked.insert((1, 7), alloc::vec![1; 4096]).is_empty());
        assert!(unpacked.insert((2, 8), alloc::vec![2; 4096]).is_empty());
        assert_eq!(unpacked.insert((3, 9), alloc::vec![3; 4096]), alloc::vec![1; 4096]);
        unpacked.forget(2..3);
        assert!(unpacked.get((2, 8)).is_none() && unpacked.get((3, 9)).is_some());
        assert!(unpacked.get((3, 8)).is_none(), "another block");
    }
}
