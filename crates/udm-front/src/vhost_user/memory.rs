//! A guest's memory: the regions its virtual machine has given us, and how addresses find them.
//!
//! There are two kinds of addresses. *Guest addresses* are what descriptors hold; *user addresses*
//! are those of the front-end's own process, used for the rings only. [`MemoryTable`] belongs to
//! the control thread and knows both; [`GuestMemory`] is the copy that one queue works with on its
//! lane, with buffers of its own, so that lanes do not count references in common.
//!
//! Rules. Nothing is trusted: a region must lie inside its file, regions must not overlap, and
//! every address is looked up before it is used. A piece that is outside of all regions is a
//! [`Breach`], which ends the connection.
//!
//! The tricky cases: a buffer may cross from one region into the next (it becomes two segments),
//! and segments have 32-bit offsets, so a region is cut into windows.

use super::breach::Breach;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use udm_driver::FileMapping;
use udm_lane::{Buf, Payload, Segment};

/// Regions of one client. QEMU needs one for each memory device, two for a PC's low memory.
pub const REGIONS_MAX: usize = 128;

/// Bytes in a window: a power of two that fits a segment's offset and length.
const WINDOW_BYTES: u64 = 1 << 30;

/// Where a region lies, as the client says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionPlace {
    /// First guest address.
    pub guest_addr: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// First address in the client's own process.
    pub user_addr: u64,
    /// Where in the file it begins.
    pub file_offset_bytes: u64,
}

#[derive(Clone)]
struct Region {
    place: RegionPlace,
    mapping: Arc<FileMapping>,
}

/// All regions of a client, ordered by guest address.
#[derive(Clone, Default)]
pub struct MemoryTable {
    regions: Vec<Region>,
}

impl fmt::Debug for MemoryTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.regions.iter().map(|region| region.place)).finish()
    }
}

/// A piece of mapped memory that is contiguous: a ring, an in-flight record.
#[derive(Clone, Debug)]
pub struct Span {
    /// The memory.
    pub mapping: Arc<FileMapping>,
    /// Where the piece starts.
    pub start: usize,
    /// Its length.
    pub len_bytes: usize,
}

fn ends(start: u64, len: u64) -> Option<u64> {
    start.checked_add(len)
}

fn overlap(a: u64, b: u64, a_len: u64, b_len: u64) -> bool {
    a < b.saturating_add(b_len) && b < a.saturating_add(a_len)
}

impl MemoryTable {
    /// Maps one more region.
    ///
    /// # Errors
    /// If it overlaps another, runs past the end of an address space or of its file, or cannot be
    /// mapped; then nothing has changed.
    pub fn add(&mut self, place: RegionPlace, file: &OwnedFd) -> Result<(), Breach> {
        if self.regions.len() >= REGIONS_MAX {
            return Err(Breach::Memory("too many regions"));
        }
        let len = place.len_bytes;
        if len == 0 || ends(place.guest_addr, len).is_none() || ends(place.user_addr, len).is_none()
        {
            return Err(Breach::Memory("a region without length, or past the last address"));
        }
        let clash = self.regions.iter().map(|region| region.place).any(|other| {
            overlap(place.guest_addr, other.guest_addr, len, other.len_bytes)
                || overlap(place.user_addr, other.user_addr, len, other.len_bytes)
        });
        if clash {
            return Err(Breach::Memory("a region overlaps another"));
        }
        let mapping = FileMapping::map(file.as_fd(), place.file_offset_bytes, len)
            .map_err(|_| Breach::Memory("a region cannot be mapped from its file"))?;
        let at = self.regions.partition_point(|other| other.place.guest_addr < place.guest_addr);
        self.regions.insert(at, Region { place, mapping });
        Ok(())
    }

    /// Forgets a region. It stays mapped while I/O uses it.
    ///
    /// # Errors
    /// If there is none at exactly this place.
    pub fn remove(&mut self, place: RegionPlace) -> Result<(), Breach> {
        let found = self.regions.iter().position(|region| {
            let other = region.place;
            (other.guest_addr, other.user_addr, other.len_bytes)
                == (place.guest_addr, place.user_addr, place.len_bytes)
        });
        let at = found.ok_or(Breach::Memory("there is no such region"))?;
        self.regions.remove(at);
        Ok(())
    }

    /// The memory at a user address; all of it in one region.
    pub fn by_user_addr(&self, addr: u64, len_bytes: usize) -> Result<Span, Breach> {
        let region = self.regions.iter().find(|region| {
            addr.checked_sub(region.place.user_addr).is_some_and(|at| at < region.place.len_bytes)
        });
        let region = region.ok_or(Breach::Memory("a ring outside of the guest's memory"))?;
        let start = addr - region.place.user_addr;
        if len_bytes as u64 > region.place.len_bytes - start {
            return Err(Breach::Memory("a ring that ends outside of its region"));
        }
        // Fits: the region is mapped, so its length is below the address space.
        Ok(Span { mapping: Arc::clone(&region.mapping), start: start as usize, len_bytes })
    }

    /// True if there is no region.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// A copy for one queue.
    pub fn for_queue(&self) -> GuestMemory {
        GuestMemory { regions: self.regions.iter().map(LaneRegion::of).collect() }
    }
}

/// One region as a queue has it.
struct LaneRegion {
    guest_addr: u64,
    len_bytes: u64,
    windows: Vec<Buf>,
}

impl LaneRegion {
    fn of(region: &Region) -> LaneRegion {
        let len_bytes = region.place.len_bytes;
        let windows = (0..len_bytes.div_ceil(WINDOW_BYTES))
            .map(|window| {
                let start = window * WINDOW_BYTES;
                let len = (len_bytes - start).min(WINDOW_BYTES);
                region.mapping.buf(start as usize, len as usize)
            })
            .collect();
        LaneRegion { guest_addr: region.place.guest_addr, len_bytes, windows }
    }
}

/// Guest memory as one queue reaches it.
pub struct GuestMemory {
    regions: Vec<LaneRegion>,
}

impl fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestMemory({} regions)", self.regions.len())
    }
}

impl GuestMemory {
    /// The contiguous piece that begins at a guest address, at most `len_bytes` of it.
    #[inline]
    fn piece(&self, addr: u64, len_bytes: u64) -> Result<(&Buf, u32, u32), Breach> {
        for region in &self.regions {
            let at = addr.wrapping_sub(region.guest_addr);
            if at < region.len_bytes {
                let in_window = at % WINDOW_BYTES;
                let buf = &region.windows[(at / WINDOW_BYTES) as usize];
                let left = buf.len_bytes() as u64 - in_window;
                // Both fit: a window is far below 4 GiB.
                return Ok((buf, in_window as u32, left.min(len_bytes) as u32));
            }
        }
        Err(Breach::Address(addr))
    }

    /// Walks the pieces of a range, in order: `visit(buffer, start in it, length, done so far)`.
    #[inline]
    fn for_pieces(
        &self,
        addr: u64,
        len_bytes: u64,
        mut visit: impl FnMut(&Buf, u32, u32, usize),
    ) -> Result<(), Breach> {
        let mut done = 0;
        while done < len_bytes {
            let (buf, start, len) = self.piece(addr.wrapping_add(done), len_bytes - done)?;
            visit(buf, start, len, done as usize);
            done += u64::from(len);
        }
        Ok(())
    }

    /// Appends a range of guest memory to a payload, in place.
    #[inline]
    pub fn append(&self, range: GuestRange, payload: &mut Payload) -> Result<(), Breach> {
        self.for_pieces(range.addr, range.len_bytes.into(), |buf, offset_bytes, len_bytes, _| {
            payload.push(Segment { buf: buf.clone(), offset_bytes, len_bytes });
        })
    }

    /// Copies out of guest memory.
    #[inline]
    pub fn read(&self, addr: u64, into: &mut [u8]) -> Result<(), Breach> {
        self.for_pieces(addr, into.len() as u64, |buf, start, len, done| {
            buf.copy_out(start as usize, &mut into[done..done + len as usize]);
        })
    }

    /// Copies into guest memory.
    #[inline]
    pub fn write(&self, addr: u64, from: &[u8]) -> Result<(), Breach> {
        self.for_pieces(addr, from.len() as u64, |buf, start, len, done| {
            buf.copy_in(start as usize, &from[done..done + len as usize]);
        })
    }

    /// Checks that a whole range is guest memory.
    #[inline]
    pub fn check(&self, range: GuestRange) -> Result<(), Breach> {
        self.for_pieces(range.addr, range.len_bytes.into(), |_, _, _, _| {})
    }
}

/// A range of guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRange {
    /// First address.
    pub addr: u64,
    /// Length in bytes.
    pub len_bytes: u32,
}
