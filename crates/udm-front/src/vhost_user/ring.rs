//! A split virtqueue, from the device's side: available descriptors in, used ones out.
//!
//! ```text
//!  driver                                    device (we)
//!  descriptors, avail ring, avail.idx  --->  pop, walk
//!  used ring, used.idx                 <---  push_used ..., publish
//!  "kick me at" (used_event)           --->  publish says whether to notify
//!  "kick me at" (avail_event)          <---  arm
//! ```
//!
//! The rings lie in the guest's memory and change under our eyes. Rules: every word is read once
//! and checked before it is used; a chain is bounded, so loops end; what contradicts itself is a
//! [`Breach`].
//!
//! The tricky case is going to sleep. [`Ring::arm`] asks for a kick *first* and looks for new
//! requests *after*, with a full fence between; the driver does the same the other way round, so
//! one of the two always sees the other. `publish` needs the same fence for the same reason.

use super::breach::Breach;
use super::memory::{GuestMemory, GuestRange, Span};
use std::sync::atomic::{Ordering, fence};

/// The longest ring the specification allows.
pub const RING_SIZE_MAX: u16 = 32768;

/// Descriptors of a chain, at most; QEMU's own bound. A ring may be longer, a request is not.
const CHAIN_MAX: usize = 1024;

const DESC_BYTES: usize = 16;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;
/// `avail.flags`: do not notify. `used.flags`: do not kick.
const FLAG_QUIET: u16 = 1;

/// Bytes of the three parts of a ring of this size.
pub fn part_bytes(size: u16) -> [usize; 3] {
    let size = usize::from(size);
    [DESC_BYTES * size, 6 + 2 * size, 6 + 8 * size]
}

/// The buffers of one request, in order.
#[derive(Debug, Default)]
pub struct Chain {
    /// What the device reads.
    pub readable: Vec<GuestRange>,
    /// What the device writes.
    pub writable: Vec<GuestRange>,
}

/// Where a ring lies and what was negotiated for it.
#[derive(Clone, Debug)]
pub struct RingSetup {
    /// Entries, a power of two.
    pub size: u16,
    /// The descriptor table.
    pub desc: Span,
    /// The available ring.
    pub avail: Span,
    /// The used ring.
    pub used: Span,
    /// Index of the next available entry to take.
    pub next_avail: u16,
    /// Notifications are suppressed by index instead of by a flag.
    pub event_idx: bool,
    /// Chains may lie in tables of their own.
    pub indirect: bool,
}

/// The device's side of a ring.
#[derive(Debug)]
pub struct Ring {
    setup: RingSetup,
    mask: u16,
    next_avail: u16,
    /// `avail.idx` as last read.
    avail_idx: u16,
    next_used: u16,
    /// `used.idx` as last written.
    published: u16,
    /// Nothing was published since the start; the driver may wait for what came before.
    first: bool,
}

struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

fn parse_descriptor(bytes: &[u8; DESC_BYTES]) -> Descriptor {
    let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = *bytes;
    Descriptor {
        addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        len: u32::from_le_bytes([l0, l1, l2, l3]),
        flags: u16::from_le_bytes([f0, f1]),
        next: u16::from_le_bytes([n0, n1]),
    }
}

impl Span {
    #[inline]
    fn load(&self, at: usize, ordering: Ordering) -> u16 {
        u16::from_le(self.mapping.load_u16(self.start + at, ordering))
    }

    #[inline]
    fn store(&self, at: usize, value: u16, ordering: Ordering) {
        self.mapping.store_u16(self.start + at, value.to_le(), ordering);
    }
}

impl Ring {
    /// Takes a ring up where it stands.
    ///
    /// # Errors
    /// If the size is no power of two, a part is too short or not aligned.
    pub fn new(setup: RingSetup) -> Result<Ring, Breach> {
        let size = setup.size;
        if !size.is_power_of_two() || size > RING_SIZE_MAX {
            return Err(Breach::Ring("its size is no power of two"));
        }
        check_parts(&setup)?;
        let next_used = setup.used.load(2, Ordering::Acquire);
        Ok(Ring {
            mask: size - 1,
            next_avail: setup.next_avail,
            avail_idx: setup.next_avail,
            next_used,
            published: next_used,
            first: true,
            setup,
        })
    }

    /// Goes on in another view of the same memory.
    ///
    /// # Errors
    /// As [`Ring::new`]; then nothing has changed.
    pub fn set_parts(&mut self, [desc, avail, used]: [Span; 3]) -> Result<(), Breach> {
        let setup = RingSetup { desc, avail, used, ..self.setup.clone() };
        check_parts(&setup)?;
        self.setup = setup;
        Ok(())
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.setup.size
    }

    /// Index of the next available entry: what a successor has to begin with.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// `used.idx` as the driver sees it.
    pub fn published(&self) -> u16 {
        self.published
    }

    /// Goes on at another entry; for requests taken before a restart.
    pub fn set_next_avail(&mut self, next_avail: u16) {
        self.next_avail = next_avail;
        self.avail_idx = next_avail;
    }

    /// True if there is a request to take.
    ///
    /// # Errors
    /// If the driver's index has jumped by more than the ring holds.
    #[inline]
    pub fn has_more(&mut self) -> Result<bool, Breach> {
        if self.next_avail != self.avail_idx {
            return Ok(true);
        }
        self.avail_idx = self.setup.avail.load(2, Ordering::Acquire);
        let waiting = self.avail_idx.wrapping_sub(self.next_avail);
        if waiting > self.setup.size {
            return Err(Breach::Ring("the driver's index jumps"));
        }
        Ok(waiting > 0)
    }

    /// Takes the next request: the number of its first descriptor.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<u16>, Breach> {
        if !self.has_more()? {
            return Ok(None);
        }
        let slot = usize::from(self.next_avail & self.mask);
        let head = self.setup.avail.load(4 + 2 * slot, Ordering::Relaxed);
        if head >= self.setup.size {
            return Err(Breach::Ring("a descriptor that is not in the table"));
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(head))
    }

    /// Collects the buffers of a request.
    #[inline]
    pub fn walk(&self, head: u16, memory: &GuestMemory, chain: &mut Chain) -> Result<(), Breach> {
        chain.readable.clear();
        chain.writable.clear();
        let mut table = Table::Ring(&self.setup.desc);
        let (mut index, mut entries) = (head, u32::from(self.setup.size));
        let mut left = CHAIN_MAX.min(usize::from(self.setup.size).max(1));
        loop {
            let descriptor = table.entry(index, memory)?;
            if descriptor.flags & FLAG_INDIRECT != 0 {
                let lone = descriptor.flags & FLAG_NEXT == 0;
                if !self.setup.indirect || !lone || matches!(table, Table::Guest(_)) {
                    return Err(Breach::Chain("an indirect table where none may be"));
                }
                let count = descriptor.len / DESC_BYTES as u32;
                if count == 0 || !descriptor.len.is_multiple_of(DESC_BYTES as u32) {
                    return Err(Breach::Chain("an indirect table of no whole entries"));
                }
                table = Table::Guest(descriptor.addr);
                // The specification bounds chains by the ring's size; Linux makes tables that are
                // longer than a small ring, and every device takes them.
                (index, entries, left) = (0, count, CHAIN_MAX);
                continue;
            }
            if left == 0 {
                return Err(Breach::Chain("it is too long, or a loop"));
            }
            left -= 1;
            let range = GuestRange { addr: descriptor.addr, len_bytes: descriptor.len };
            if descriptor.flags & FLAG_WRITE != 0 {
                chain.writable.push(range);
            } else if chain.writable.is_empty() {
                chain.readable.push(range);
            } else {
                return Err(Breach::Chain("a buffer to read behind one to write"));
            }
            if descriptor.flags & FLAG_NEXT == 0 {
                return Ok(());
            }
            if u32::from(descriptor.next) >= entries {
                return Err(Breach::Chain("it leaves its table"));
            }
            index = descriptor.next;
        }
    }

    /// Puts an answered request into the used ring; the driver sees it after `publish`.
    #[inline]
    pub fn push_used(&mut self, head: u16, written_bytes: u32) {
        let slot = usize::from(self.next_used & self.mask);
        let mut entry = [0; 8];
        entry[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        entry[4..].copy_from_slice(&written_bytes.to_le_bytes());
        let used = &self.setup.used;
        used.mapping.write(used.start + 4 + 8 * slot, &entry);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// True if something was put into the used ring and not published.
    #[inline]
    pub fn has_unpublished(&self) -> bool {
        self.next_used != self.published
    }

    /// Shows the driver what was put into the used ring. True if it wants to be notified.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        self.setup.used.store(2, new, Ordering::Release);
        self.published = new;
        fence(Ordering::SeqCst);
        if std::mem::take(&mut self.first) {
            return true;
        }
        if !self.setup.event_idx {
            return self.setup.avail.load(0, Ordering::Relaxed) & FLAG_QUIET == 0;
        }
        let at = 4 + 2 * usize::from(self.setup.size);
        crosses(self.setup.avail.load(at, Ordering::Relaxed), new, old)
    }

    /// Asks for a kick with the next request. True if one is there already.
    #[inline]
    pub fn arm(&mut self) -> Result<bool, Breach> {
        if self.setup.event_idx {
            let at = 4 + 8 * usize::from(self.setup.size);
            self.setup.used.store(at, self.next_avail, Ordering::Relaxed);
        } else {
            self.setup.used.store(0, 0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.has_more()
    }

    /// Asks not to be kicked: we look by ourselves.
    #[inline]
    pub fn disarm(&mut self) {
        // By index there is nothing to do: the one asked for has passed.
        if !self.setup.event_idx {
            self.setup.used.store(0, FLAG_QUIET, Ordering::Relaxed);
        }
    }
}

fn check_parts(setup: &RingSetup) -> Result<(), Breach> {
    let parts = [(&setup.desc, 16), (&setup.avail, 2), (&setup.used, 4)];
    for ((span, align), len) in parts.into_iter().zip(part_bytes(setup.size)) {
        if span.len_bytes < len {
            return Err(Breach::Ring("a part is too short"));
        }
        if !span.mapping.is_aligned(span.start, align) {
            return Err(Breach::Ring("a part is not aligned"));
        }
    }
    Ok(())
}

/// True if an index that moves from `old` to `new` passes the one an event is wanted at.
#[inline]
fn crosses(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Where descriptors are read from.
enum Table<'a> {
    Ring(&'a Span),
    /// An indirect table at a guest address.
    Guest(u64),
}

impl Table<'_> {
    #[inline]
    fn entry(&self, index: u16, memory: &GuestMemory) -> Result<Descriptor, Breach> {
        let at = DESC_BYTES * usize::from(index);
        match self {
            Table::Ring(span) => Ok(parse_descriptor(&span.mapping.read(span.start + at))),
            Table::Guest(addr) => {
                let mut bytes = [0; DESC_BYTES];
                let addr = addr.checked_add(at as u64).ok_or(Breach::Address(*addr))?;
                memory.read(addr, &mut bytes)?;
                Ok(parse_descriptor(&bytes))
            }
        }
    }
}
