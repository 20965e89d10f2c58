//! What the kernel is told about the disk: its parameters, from queue limits.
//!
//! Pure. Every device is told as one with a cache and durable writes, whatever it is now: the next
//! table may have a cache, the kernel cannot be told later, and where there is none a flush costs
//! nothing.
//!
//! Stripe borders are not told: the engine splits at them, and what the kernel does not cut it
//! need not put together again.

use super::wire::{BasicParams, DiscardParams, PARAMS_BYTES, Params, attribute, part};
use udm_types::{OpSet, QueueLimits, Sector};

/// The longest request we take. The largest class of a lane's buffers.
pub const IO_BYTES_MAX: u32 = 1 << 20;

/// The largest block that a disk of Linux may have.
const BLOCK_BYTES_MAX: u32 = 4096;

/// The longest discard or write-zeroes that a request of Linux can name.
const RANGE_SECTORS_MAX: u32 = u32::MAX >> 9;

/// Why a device cannot be a disk of this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockTooLarge(pub u32);

/// The parameters of a disk.
///
/// # Errors
/// If the device's blocks are larger than a page.
pub fn params(
    len_sectors: Sector,
    limits: &QueueLimits,
    read_only: bool,
) -> Result<Params, BlockTooLarge> {
    let block = limits.logical_block_bytes.max(512);
    if block > BLOCK_BYTES_MAX {
        return Err(BlockTooLarge(block));
    }
    let limits = QueueLimits { read_only: read_only || limits.read_only, ..limits.clone() };
    let ops = limits.ops();
    let physical = limits.physical_block_bytes.max(block);
    let mut attributes = attribute::VOLATILE_CACHE | attribute::FUA;
    if limits.read_only {
        attributes |= attribute::READ_ONLY;
    }
    if limits.features.contains(udm_types::DeviceFeatures::ROTATIONAL) {
        attributes |= attribute::ROTATIONAL;
    }
    let block_sectors = block >> 9;
    let most = limits.max_sectors.min(Sector::from(IO_BYTES_MAX >> 9));
    // Linux wants a page at least; the engine splits what is longer than the device takes.
    let sectors_max = (most as u32).max(BLOCK_BYTES_MAX >> 9) / block_sectors * block_sectors;
    let basic = BasicParams {
        attributes,
        logical_block_shift: shift(block),
        physical_block_shift: shift(physical),
        io_opt_shift: shift(limits.io_opt_bytes.max(physical)),
        io_min_shift: shift(limits.io_min_bytes.max(physical)),
        sectors_max,
        len_sectors,
        ..BasicParams::default()
    };
    let granularity = limits.discard_granularity_bytes.max(block);
    let range = |op: OpSet, most: Sector| match ops.contains(op) {
        true => {
            let most = u32::try_from(most).unwrap_or(u32::MAX).min(RANGE_SECTORS_MAX);
            most / block_sectors * block_sectors
        }
        false => 0,
    };
    let discard = DiscardParams {
        granularity_bytes: granularity,
        discard_sectors_max: range(OpSet::DISCARD, limits.max_discard_sectors),
        write_zeroes_sectors_max: range(OpSet::WRITE_ZEROES, limits.max_write_zeroes_sectors),
        segments_max: 1,
        ..DiscardParams::default()
    };
    Ok(Params {
        len_bytes: PARAMS_BYTES as u32,
        parts: part::BASIC | part::DISCARD,
        basic,
        discard,
        ..Params::default()
    })
}

/// The power of two that is not larger.
fn shift(bytes: u32) -> u8 {
    // Fits: less than 32.
    bytes.max(1).ilog2() as u8
}

#[cfg(test)]
mod tests {
    use super::{BlockTooLarge, params};
    use crate::ublk::wire::attribute;
    use udm_types::{DeviceFeatures, QueueLimits};

    #[test]
    fn limits_become_parameters_that_linux_takes() {
        let limits = QueueLimits {
            logical_block_bytes: 4096,
            io_opt_bytes: 65_536,
            max_sectors: 3,
            max_discard_sectors: 1001,
            features: DeviceFeatures::ROTATIONAL,
            ..QueueLimits::default()
        };
        let told = params(1 << 20, &limits, false).expect("a page is not too large");
        assert_eq!(told.basic.len_sectors, 1 << 20);
        assert_eq!((told.basic.logical_block_shift, told.basic.physical_block_shift), (12, 12));
        assert_eq!((told.basic.io_min_shift, told.basic.io_opt_shift), (12, 16));
        assert_eq!(told.basic.sectors_max, 8, "a page at least");
        assert_eq!(told.discard.granularity_bytes, 4096);
        assert_eq!(told.discard.discard_sectors_max, 1000);
        assert_eq!(told.discard.write_zeroes_sectors_max, (u32::MAX >> 9) / 8 * 8);
        let wanted = attribute::VOLATILE_CACHE | attribute::FUA | attribute::ROTATIONAL;
        assert_eq!(told.basic.attributes, wanted);
    }

    #[test]
    fn a_read_only_disk_has_no_discards() {
        let told = params(8, &QueueLimits::default(), true).expect("small blocks");
        assert_ne!(told.basic.attributes & attribute::READ_ONLY, 0);
        assert_eq!(told.discard.discard_sectors_max, 0);
        assert_eq!(told.discard.write_zeroes_sectors_max, 0);
        assert_eq!(told.discard.segments_max, 1);
    }

    #[test]
    fn blocks_beyond_a_page_are_refused() {
        let limits = QueueLimits { logical_block_bytes: 8192, ..QueueLimits::default() };
        assert_eq!(params(16, &limits, false), Err(BlockTooLarge(8192)));
    }
}
