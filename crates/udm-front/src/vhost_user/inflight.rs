//! The in-flight record: which requests were taken and not answered, in memory that survives us.
//!
//! The front-end keeps the memory and hands it to whoever serves the disk next, so that after our
//! death every request that the guest still waits for is done. The layout is the specification's
//! for split rings, one piece a queue:
//!
//! ```text
//! header: features u64 | version u16 | entries u16 | last_batch_head u16 | used_idx u16
//! entry:  in_flight u8, 5 unused, next u16 | counter u64          (one for each descriptor)
//! ```
//!
//! Rules. The order of writes is what makes it work, so each is a store that is not reordered:
//! taking a request writes its counter, then its mark. Answering a batch links its entries
//! (`next`, `last_batch_head`), then the used ring's index moves, then the marks go, then
//! `used_idx` follows.
//!
//! The tricky case is a death between the last two: the used ring is ahead of `used_idx`, and the
//! linked batch says whose marks are stale. A death before that leaves requests marked that were
//! done but not reported; they are done again, which is harmless since nobody was told.

use super::breach::Breach;
use super::memory::Span;
use std::sync::atomic::Ordering;

const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
/// Pieces of several queues do not share a cache line.
const ALIGN_BYTES: usize = 64;
const VERSION: u16 = 1;

/// Bytes that a queue of this size needs.
pub fn queue_bytes(size: u16) -> usize {
    (HEADER_BYTES + ENTRY_BYTES * usize::from(size)).next_multiple_of(ALIGN_BYTES)
}

/// The record of one queue.
#[derive(Debug)]
pub struct Inflight {
    span: Span,
    size: u16,
    last_batch_head: u16,
    used_idx: u16,
    next_counter: u64,
    /// Answered and not published.
    batch: Vec<u16>,
}

impl Inflight {
    /// Opens the record of a queue whose used ring stands at `used_idx`, and brings it up to date.
    /// Gives the requests that have to be done again, oldest first.
    ///
    /// # Errors
    /// If it is too short, or says what cannot be. (A ring that was set up anew while nothing was
    /// in flight is fine.)
    pub fn open(span: Span, size: u16, used_idx: u16) -> Result<(Inflight, Vec<u16>), Breach> {
        let fits = span.len_bytes >= queue_bytes(size);
        if !fits || !span.mapping.is_aligned(span.start, 8) {
            return Err(Breach::Inflight("too short, or not aligned"));
        }
        let header = u64::from_le(span.mapping.load_u64(span.start + 8, Ordering::Acquire));
        let [version, entries, last_batch_head, seen_idx] = words(header);
        let mut record = Inflight {
            span,
            size,
            last_batch_head,
            used_idx,
            next_counter: 1,
            batch: Vec::with_capacity(usize::from(size)),
        };
        if version == 0 {
            record.last_batch_head = 0;
            for head in 0..size {
                record.store_entry(head, 0);
            }
            record.store_header();
            return Ok((record, Vec::new()));
        }
        if version != VERSION || entries != size {
            return Err(Breach::Inflight("of another version or size"));
        }
        let behind = used_idx.wrapping_sub(seen_idx);
        if behind <= size {
            record.finish_batch(behind)?;
        } else if (0..size).any(|head| record.is_marked(head)) {
            return Err(Breach::Inflight("the used ring has jumped"));
        }
        record.store_header();
        Ok(record.list())
    }

    /// Clears the marks of the newest batch, which the used ring has and `used_idx` had not.
    fn finish_batch(&mut self, len: u16) -> Result<(), Breach> {
        let mut head = self.last_batch_head;
        for _ in 0..len {
            if head >= self.size {
                return Err(Breach::Inflight("a batch leaves the table"));
            }
            let [_, _, _, next] = words(self.load_entry(head));
            self.store_entry(head, entry(false, next));
            head = next;
        }
        Ok(())
    }

    fn is_marked(&self, head: u16) -> bool {
        self.load_entry(head) & 0xFF != 0
    }

    /// The marked requests in the order they were taken.
    fn list(mut self) -> (Inflight, Vec<u16>) {
        let mut marked: Vec<(u64, u16)> = (0..self.size)
            .filter(|&head| self.is_marked(head))
            .map(|head| (self.span.mapping.load_u64(self.at(head) + 8, Ordering::Relaxed), head))
            .collect();
        marked.sort_unstable();
        self.next_counter = marked.last().map_or(1, |(counter, _)| counter.wrapping_add(1));
        (self, marked.into_iter().map(|(_, head)| head).collect())
    }

    /// A request was taken.
    #[inline]
    pub fn taken(&mut self, head: u16) {
        let at = self.at(head);
        self.span.mapping.store_u64(at + 8, self.next_counter, Ordering::Release);
        self.next_counter = self.next_counter.wrapping_add(1);
        self.store_entry(head, entry(true, 0));
    }

    /// A request is about to go into the used ring.
    #[inline]
    pub fn answered(&mut self, head: u16) {
        self.store_entry(head, entry(true, self.last_batch_head));
        self.last_batch_head = head;
        self.store_header();
        self.batch.push(head);
    }

    /// The used ring's index has moved: the batch is over.
    #[inline]
    pub fn published(&mut self, used_idx: u16) {
        while let Some(head) = self.batch.pop() {
            let [_, _, _, next] = words(self.load_entry(head));
            self.store_entry(head, entry(false, next));
        }
        self.used_idx = used_idx;
        self.store_header();
    }

    #[inline]
    fn at(&self, head: u16) -> usize {
        self.span.start + HEADER_BYTES + ENTRY_BYTES * usize::from(head)
    }

    #[inline]
    fn load_entry(&self, head: u16) -> u64 {
        u64::from_le(self.span.mapping.load_u64(self.at(head), Ordering::Acquire))
    }

    #[inline]
    fn store_entry(&mut self, head: u16, value: u64) {
        self.span.mapping.store_u64(self.at(head), value.to_le(), Ordering::Release);
    }

    #[inline]
    fn store_header(&mut self) {
        let parts = [VERSION, self.size, self.last_batch_head, self.used_idx];
        let value = parts.iter().rev().fold(0, |value, &part| value << 16 | u64::from(part));
        self.span.mapping.store_u64(self.span.start + 8, value.to_le(), Ordering::Release);
    }
}

/// The first word of an entry.
#[inline]
fn entry(in_flight: bool, next: u16) -> u64 {
    u64::from(in_flight) | u64::from(next) << 48
}

/// A word as its four parts, lowest first.
#[inline]
fn words(value: u64) -> [u16; 4] {
    [value as u16, (value >> 16) as u16, (value >> 32) as u16, (value >> 48) as u16]
}
