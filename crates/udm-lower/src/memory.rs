//! `mem:SIZE[:NAME]`: a sparse disk in this daemon's memory, shared by all lanes.
//!
//! Bios are answered within `submit`: a copy in or out. There is no cache to flush, so a flush has
//! nothing to do. The bytes live in a mapping of `udm-driver` that takes pages when written.
//!
//! A bitmap remembers which granules of 64 KiB were ever written. Reads of others only fill with
//! zeroes and do not make the system map pages; discard and write-zeroes of a whole granule clear
//! its bit and give its pages back.
//!
//! The tricky case is a granule written by one lane while another gives it back. Both may happen
//! in either order (they are under way at the same time), but afterwards the bit has to be right:
//! *bit clear means the memory is zero*. Otherwise old bytes would show up with the next write to
//! that granule. So a writer copies first and sets the bit after; a zeroer clears the bit first and
//! zeroes after:
//!
//! ```text
//!  if the bit is clear at the end:  set < clear,  so  copy < set < clear < zero:  memory is zero
//! ```
//!
//! A writer that finds the bit set saves the atomic write. For that look to count as "set", it
//! must come after the copy also for other processors: hence the fence between them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use udm_core::{Bio, BioBox, LowerCx, LowerDevice, LowerLane};
use udm_driver::SharedMemory;
use udm_lane::Errno;
use udm_types::{Op, QueueLimits, SECTOR_BYTES, SECTOR_SHIFT, Sector, Status};

/// Memory one bit stands for: small enough to stay sparse, large enough that the bitmap of a
/// terabyte is 2 MiB.
const GRANULE_BYTES: u64 = 64 << 10;

/// A page, the unit in which memory comes and goes.
const PAGE_BYTES: u32 = 4096;

/// A memory device.
pub(crate) struct MemoryDevice {
    shown: String,
    read_only: bool,
    disk: Arc<MemoryDisk>,
}

/// The bytes of a memory device; several devices (read-only and not) may stand on them.
pub(crate) struct MemoryDisk {
    memory: SharedMemory,
    written: Vec<AtomicU64>,
}

impl MemoryDevice {
    pub(crate) fn new(shown: &str, disk: Arc<MemoryDisk>, read_only: bool) -> MemoryDevice {
        MemoryDevice { shown: shown.to_owned(), read_only, disk }
    }
}

impl LowerDevice for MemoryDevice {
    fn shown(&self) -> String {
        self.shown.clone()
    }

    fn len_sectors(&self) -> Sector {
        self.disk.len_sectors()
    }

    fn limits(&self) -> QueueLimits {
        QueueLimits {
            physical_block_bytes: PAGE_BYTES,
            io_min_bytes: PAGE_BYTES,
            discard_granularity_bytes: PAGE_BYTES,
            read_only: self.read_only,
            ..QueueLimits::default()
        }
    }

    fn open_lane(&self, _cx: &mut LowerCx<'_>) -> Result<Box<dyn LowerLane>, Errno> {
        Ok(Box::new(MemoryLane { disk: Arc::clone(&self.disk), read_only: self.read_only }))
    }

    fn read_now(&self, offset_bytes: u64, into: &mut [u8]) -> Option<Result<(), Errno>> {
        self.disk.memory.copy_out(offset_bytes, into);
        Some(Ok(()))
    }
}

struct MemoryLane {
    disk: Arc<MemoryDisk>,
    read_only: bool,
}

impl LowerLane for MemoryLane {
    fn submit(&mut self, bio: BioBox, cx: &mut LowerCx<'_>) {
        let status = if self.read_only && bio.op.is_write() {
            Status::ReadOnly
        } else {
            self.disk.serve(&bio)
        };
        cx.complete(bio, status);
    }
}

impl MemoryDisk {
    /// Maps a disk of zeroes.
    ///
    /// # Errors
    /// `ENOMEM` if the address space does not hold it.
    pub(crate) fn new(len_sectors: Sector) -> Result<MemoryDisk, Errno> {
        let len_bytes = len_sectors << SECTOR_SHIFT;
        let memory = SharedMemory::new(len_bytes)?;
        // 64 granules a word; the mapping has proved that the count fits.
        let words = len_bytes.div_ceil(GRANULE_BYTES).div_ceil(64) as usize;
        Ok(MemoryDisk { memory, written: (0..words).map(|_| AtomicU64::new(0)).collect() })
    }

    pub(crate) fn len_sectors(&self) -> Sector {
        self.memory.len_bytes() >> SECTOR_SHIFT
    }

    fn serve(&self, bio: &Bio) -> Status {
        if bio.op == Op::Flush {
            return Status::Ok;
        }
        if bio.end_sector() > self.len_sectors() {
            return Status::IoErr;
        }
        let offset_bytes = bio.sector << SECTOR_SHIFT;
        let len_bytes = bio.len_sectors << SECTOR_SHIFT;
        if bio.op.has_data() && bio.payload.len_bytes() != bio.len_sectors * SECTOR_BYTES {
            return Status::Invalid;
        }
        match bio.op {
            Op::Read => self.read(bio, offset_bytes, len_bytes),
            Op::Write => {
                self.memory.write_from(offset_bytes, &bio.payload);
                self.mark_written(offset_bytes, len_bytes);
            }
            Op::Discard | Op::WriteZeroes => self.zero(offset_bytes, len_bytes),
            Op::Flush => {}
        }
        Status::Ok
    }

    fn read(&self, bio: &Bio, offset_bytes: u64, len_bytes: u64) {
        let all = granules(offset_bytes, len_bytes).all(|granule| self.is_written(granule));
        if all {
            return self.memory.read_into(offset_bytes, &bio.payload);
        }
        for granule in granules(offset_bytes, len_bytes) {
            let (start, len) = part_of(granule, offset_bytes, len_bytes);
            let at = start - offset_bytes;
            if self.is_written(granule) {
                self.memory.read_into(start, &bio.payload.slice(at, len));
            } else {
                bio.payload.fill(at, len, 0);
            }
        }
    }

    /// After a copy in: sets the bits of what was written.
    fn mark_written(&self, offset_bytes: u64, len_bytes: u64) {
        fence(Ordering::SeqCst);
        for granule in granules(offset_bytes, len_bytes) {
            if !self.is_written(granule) {
                let (word, bit) = self.bit(granule);
                word.fetch_or(bit, Ordering::SeqCst);
            }
        }
    }

    fn zero(&self, offset_bytes: u64, len_bytes: u64) {
        // Neighbours are given back in one call.
        let mut run: Option<(u64, u64)> = None;
        let Range { start: mut granule, end } = granules(offset_bytes, len_bytes);
        while granule < end {
            let untouched = self.untouched_from(granule).min(end - granule);
            if untouched > 0 {
                if let Some((first, len)) = run.take() {
                    self.memory.zero(first, len);
                }
                granule += untouched;
                continue;
            }
            let (start, len) = part_of(granule, offset_bytes, len_bytes);
            if len == self.granule_len(granule) {
                let (word, bit) = self.bit(granule);
                word.fetch_and(!bit, Ordering::SeqCst);
            }
            run = Some(run.map_or((start, len), |(first, so_far)| (first, so_far + len)));
            granule += 1;
        }
        if let Some((first, len)) = run {
            self.memory.zero(first, len);
        }
    }

    /// How many granules from this one on, in its word of the bitmap, were never written.
    fn untouched_from(&self, granule: u64) -> u64 {
        let rest = self.bit(granule).0.load(Ordering::SeqCst) >> (granule % 64);
        u64::from(rest.trailing_zeros()).min(64 - granule % 64)
    }

    #[inline]
    fn is_written(&self, granule: u64) -> bool {
        let (word, bit) = self.bit(granule);
        word.load(Ordering::SeqCst) & bit != 0
    }

    #[inline]
    fn bit(&self, granule: u64) -> (&AtomicU64, u64) {
        (&self.written[(granule / 64) as usize], 1 << (granule % 64))
    }

    /// The last granule may be cut by the end of the disk.
    fn granule_len(&self, granule: u64) -> u64 {
        GRANULE_BYTES.min(self.memory.len_bytes() - granule * GRANULE_BYTES)
    }
}

/// The granules a range touches.
#[inline]
fn granules(offset_bytes: u64, len_bytes: u64) -> Range<u64> {
    offset_bytes / GRANULE_BYTES..(offset_bytes + len_bytes).div_ceil(GRANULE_BYTES)
}

/// The part of a range that lies in a granule, as start and length.
fn part_of(granule: u64, offset_bytes: u64, len_bytes: u64) -> (u64, u64) {
    let start = offset_bytes.max(granule * GRANULE_BYTES);
    let end = (offset_bytes + len_bytes).min((granule + 1) * GRANULE_BYTES);
    (start, end - start)
}

#[cfg(test)]
mod tests {
    use super::{GRANULE_BYTES, MemoryDisk};
    use udm_core::{BioBox, LowerBench};
    use udm_lane::{Buf, Payload, Segment};
    use udm_types::{BioFlags, Op, Status};

    fn bio(op: Op, sector: u64, len_sectors: u64, byte: u8) -> BioBox {
        let mut bio = LowerBench::default().bio();
        bio.ask(op, BioFlags::empty(), sector, len_sectors);
        let mut left = if op.has_data() { len_sectors as u32 * 512 } else { 0 };
        // Two segments, so that borders of granules fall anywhere in them.
        while left > 0 {
            let len_bytes = if bio.payload.is_empty() { left.div_ceil(3) } else { left };
            let buf = Buf::alloc(len_bytes as usize);
            buf.fill(0, len_bytes as usize, byte);
            bio.payload.push(Segment { buf, offset_bytes: 0, len_bytes });
            left -= len_bytes;
        }
        bio
    }

    fn read(disk: &MemoryDisk, sector: u64, len_sectors: u64) -> Vec<u8> {
        let bio = bio(Op::Read, sector, len_sectors, 0xee);
        assert_eq!(disk.serve(&bio), Status::Ok);
        let mut bytes = vec![0; bio.payload.len_bytes() as usize];
        bio.payload.copy_out(0, &mut bytes);
        bytes
    }

    #[test]
    fn random_operations_agree_with_an_array() {
        // Ends in the middle of a granule.
        const SECTORS: u64 = 5 * 128 + 77;
        let disk = MemoryDisk::new(SECTORS).unwrap();
        let mut model = vec![0_u8; SECTORS as usize];
        let mut random = fastrand::Rng::with_seed(0x6d65_6d31);
        for step in 0..4000_u32 {
            let sector = random.u64(0..SECTORS);
            let most = if random.bool() { 16 } else { 400 };
            let len = random.u64(0..=most.min(SECTORS - sector));
            let range = sector as usize..(sector + len) as usize;
            let op = Op::ALL[random.usize(..Op::COUNT)];
            let byte = (step % 251) as u8 + 1;
            match op {
                Op::Read => {
                    let bytes = read(&disk, sector, len);
                    for (at, sector) in range.enumerate() {
                        let piece = &bytes[at * 512..][..512];
                        assert!(piece.iter().all(|&seen| seen == model[sector]), "step {step}");
                    }
                    continue;
                }
                Op::Write => model[range].fill(byte),
                Op::Discard | Op::WriteZeroes => model[range].fill(0),
                Op::Flush => {}
            }
            assert_eq!(disk.serve(&bio(op, sector, len, byte)), Status::Ok);
        }
    }

    #[test]
    fn what_was_given_back_is_zero_whatever_raced_with_it() {
        let disk = MemoryDisk::new(4 * 128).unwrap();
        for round in 0..200 {
            std::thread::scope(|scope| {
                for lane in 0..2_u64 {
                    let disk = &disk;
                    scope.spawn(move || {
                        for step in 0..8 {
                            let write = bio(Op::Write, (lane * 3 + step) % 4 * 128 + 9, 8, 7);
                            assert_eq!(disk.serve(&write), Status::Ok);
                            let zero = bio(Op::WriteZeroes, (lane + step) % 3 * 128, 256, 0);
                            assert_eq!(disk.serve(&zero), Status::Ok);
                        }
                    });
                }
            });
            for granule in 0..4 {
                let mut bytes = vec![0; GRANULE_BYTES as usize];
                disk.memory.copy_out(granule * GRANULE_BYTES, &mut bytes);
                let zero = bytes.iter().all(|&byte| byte == 0);
                assert!(zero || disk.is_written(granule), "round {round} granule {granule}");
            }
        }
    }

    #[test]
    fn a_terabyte_is_sparse_and_quickly_discarded() {
        let sectors = 2 << 30;
        let disk = MemoryDisk::new(sectors).unwrap();
        assert_eq!(disk.serve(&bio(Op::Write, sectors - 8, 8, 5)), Status::Ok);
        assert_eq!(read(&disk, sectors - 9, 9)[512..], [5; 4096]);
        assert_eq!(disk.serve(&bio(Op::Discard, 0, sectors, 0)), Status::Ok);
        assert_eq!(read(&disk, sectors - 8, 8), [0; 4096]);
        assert!(disk.written.iter().all(|word| word.load(super::Ordering::Relaxed) == 0));
    }

    #[test]
    fn what_lies_beyond_the_end_or_has_too_little_memory_is_refused() {
        let disk = MemoryDisk::new(8).unwrap();
        assert_eq!(disk.serve(&bio(Op::Read, 8, 1, 0)), Status::IoErr);
        assert_eq!(disk.serve(&bio(Op::Discard, u64::MAX, 2, 0)), Status::IoErr);
        assert_eq!(disk.serve(&bio(Op::Read, 8, 0, 0)), Status::Ok);
        let mut short = bio(Op::Write, 0, 2, 0);
        short.payload = Payload::from_buf(Buf::alloc(512));
        assert_eq!(disk.serve(&short), Status::Invalid);
        assert!(MemoryDisk::new(udm_types::MAX_SECTOR).is_err(), "beyond the address space");
    }
}
