//! Queue limits: what a device accepts, and how limits of stacked devices combine.
//!
//! Called by the table when it is built (`udm-core`), read by the fronts to tell their clients
//! block sizes. Restates the rules of Linux's limit stacking for the limits that exist in user
//! space. Limits only ever get *tighter* going up; a mapped device never promises what a device
//! below cannot do, except for what its target does itself (`zero` discards).
//!
//! The tricky case: a value of 0 in the discard and write-zeroes limits means "cannot", and must
//! win, while 0 in `io_opt_bytes` means "no opinion", and must not.

use crate::{OpSet, Sector};
use bitflags::bitflags;

bitflags! {
    /// Features that stack by OR (write cache, FUA, rotational).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct DeviceFeatures: u8 {
        /// Has a volatile cache: completed writes need a flush to be durable.
        const WRITE_CACHE = 1;
        /// Takes FUA writes.
        const FUA = 2;
        /// Seeks are slow.
        const ROTATIONAL = 4;
    }
}

/// What a device accepts and prefers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Smallest addressable unit, a power of two, at least 512.
    pub logical_block_bytes: u32,
    /// Unit the medium writes without reading first, a power of two.
    pub physical_block_bytes: u32,
    /// Preferred smallest I/O.
    pub io_min_bytes: u32,
    /// Preferred I/O; 0 if there is no preference.
    pub io_opt_bytes: u32,
    /// Stripe or chunk size I/O should not cross; 0 if none.
    pub chunk_sectors: Sector,
    /// Largest read or write the device wants in one piece.
    pub max_sectors: Sector,
    /// Largest discard; 0 if the device cannot discard.
    pub max_discard_sectors: Sector,
    /// Discards smaller than this do nothing; 0 if unknown.
    pub discard_granularity_bytes: u32,
    /// Largest write-zeroes; 0 if the device cannot.
    pub max_write_zeroes_sectors: Sector,
    /// Features that stack by OR.
    pub features: DeviceFeatures,
    /// Writes are refused.
    pub read_only: bool,
}

/// The largest read or write a device takes unless it says otherwise: 4 MiB, as Linux caps it.
pub const MAX_SECTORS_DEFAULT: Sector = 8192;

/// "No limit" for discard and write-zeroes ranges.
pub const UNLIMITED: Sector = u32::MAX as Sector;

impl Default for QueueLimits {
    /// The start values for stacking: 512-byte blocks, everything allowed, no cache.
    fn default() -> Self {
        QueueLimits {
            logical_block_bytes: 512,
            physical_block_bytes: 512,
            io_min_bytes: 512,
            io_opt_bytes: 0,
            chunk_sectors: 0,
            max_sectors: MAX_SECTORS_DEFAULT,
            max_discard_sectors: UNLIMITED,
            discard_granularity_bytes: 512,
            max_write_zeroes_sectors: UNLIMITED,
            features: DeviceFeatures::empty(),
            read_only: false,
        }
    }
}

impl QueueLimits {
    /// Tightens `self` by the limits of a device (or target) below.
    pub fn stack(&mut self, lower: &QueueLimits) {
        self.logical_block_bytes = self.logical_block_bytes.max(lower.logical_block_bytes);
        self.physical_block_bytes =
            self.physical_block_bytes.max(lower.physical_block_bytes).max(self.logical_block_bytes);
        self.io_min_bytes =
            self.io_min_bytes.max(lower.io_min_bytes).max(self.physical_block_bytes);
        self.io_opt_bytes = lcm_ignoring_zero(self.io_opt_bytes, lower.io_opt_bytes);
        if !self.io_opt_bytes.is_multiple_of(self.physical_block_bytes) {
            self.io_opt_bytes = 0;
        }
        self.chunk_sectors = gcd_ignoring_zero(self.chunk_sectors, lower.chunk_sectors);
        self.max_sectors = min_ignoring_zero(self.max_sectors, lower.max_sectors);
        self.max_discard_sectors = self.max_discard_sectors.min(lower.max_discard_sectors);
        self.discard_granularity_bytes = if self.max_discard_sectors == 0 {
            0
        } else {
            self.discard_granularity_bytes.max(lower.discard_granularity_bytes)
        };
        self.max_write_zeroes_sectors =
            self.max_write_zeroes_sectors.min(lower.max_write_zeroes_sectors);
        self.features |= lower.features;
        self.read_only |= lower.read_only;
    }

    /// Takes discards away.
    pub fn forbid_discard(&mut self) {
        self.max_discard_sectors = 0;
        self.discard_granularity_bytes = 0;
    }

    /// The operations these limits allow.
    pub fn ops(&self) -> OpSet {
        let mut ops = OpSet::READ | OpSet::FLUSH;
        ops.set(OpSet::WRITE, !self.read_only);
        ops.set(OpSet::DISCARD, !self.read_only && self.max_discard_sectors != 0);
        ops.set(OpSet::WRITE_ZEROES, !self.read_only && self.max_write_zeroes_sectors != 0);
        ops
    }

    /// The logical block in sectors.
    pub fn logical_block_sectors(&self) -> Sector {
        Sector::from(self.logical_block_bytes >> crate::SECTOR_SHIFT)
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn gcd_ignoring_zero(a: u64, b: u64) -> u64 {
    gcd(a, b)
}

fn min_ignoring_zero(a: u64, b: u64) -> u64 {
    match (a, b) {
        (0, other) | (other, 0) => other,
        (a, b) => a.min(b),
    }
}

/// Least common multiple; 0 means "no opinion", and so does a result that does not fit.
fn lcm_ignoring_zero(a: u32, b: u32) -> u32 {
    if a == 0 || b == 0 {
        return a | b;
    }
    let lcm = u64::from(a) / gcd(u64::from(a), u64::from(b)) * u64::from(b);
    u32::try_from(lcm).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{DeviceFeatures, QueueLimits};
    use crate::OpSet;

    #[test]
    fn stacking_takes_the_larger_block_and_the_smaller_limit() {
        let mut top = QueueLimits::default();
        let disk = QueueLimits {
            logical_block_bytes: 4096,
            physical_block_bytes: 4096,
            io_min_bytes: 4096,
            max_sectors: 256,
            features: DeviceFeatures::WRITE_CACHE,
            ..QueueLimits::default()
        };
        top.stack(&disk);
        assert_eq!(top.logical_block_bytes, 4096);
        assert_eq!(top.max_sectors, 256);
        assert_eq!(top.features, DeviceFeatures::WRITE_CACHE);
    }

    #[test]
    fn a_device_without_discard_takes_discard_away() {
        let mut top = QueueLimits::default();
        let mut disk = QueueLimits::default();
        disk.forbid_discard();
        top.stack(&disk);
        assert!(!top.ops().contains(OpSet::DISCARD));
        assert_eq!(top.discard_granularity_bytes, 0);
        assert!(top.ops().contains(OpSet::WRITE_ZEROES));
    }

    #[test]
    fn optimal_io_sizes_combine_to_their_common_multiple() {
        let mut top = QueueLimits { io_opt_bytes: 65536, ..QueueLimits::default() };
        top.stack(&QueueLimits { io_opt_bytes: 3 * 65536, ..QueueLimits::default() });
        assert_eq!(top.io_opt_bytes, 3 * 65536);
        top.stack(&QueueLimits::default());
        assert_eq!(top.io_opt_bytes, 3 * 65536);
    }

    #[test]
    fn a_read_only_device_refuses_writes_of_every_kind() {
        let limits = QueueLimits { read_only: true, ..QueueLimits::default() };
        assert_eq!(limits.ops(), OpSet::READ | OpSet::FLUSH);
    }
}
