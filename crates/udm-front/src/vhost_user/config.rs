//! What the guest is told about the disk: feature bits and the configuration space.
//!
//! Both are derived from the device's size and queue limits here and nowhere else, so that what we
//! promise and what the engine accepts cannot drift apart. The size and the limits are read anew
//! whenever the client asks: after a resize it is told to ask again.

use udm_types::{OpSet, QueueLimits, Sector};

/// Feature bits of virtio and of its block device (`VIRTIO_*_F_*`).
pub mod feature {
    /// There is a bound of segments in a request.
    pub const BLK_SEG_MAX: u64 = 1 << 2;
    /// Writes fail.
    pub const BLK_RO: u64 = 1 << 5;
    /// The logical block is told.
    pub const BLK_BLK_SIZE: u64 = 1 << 6;
    /// Flushes are understood; without it every write is durable.
    pub const BLK_FLUSH: u64 = 1 << 9;
    /// Physical block and best sizes are told.
    pub const BLK_TOPOLOGY: u64 = 1 << 10;
    /// There are several queues.
    pub const BLK_MQ: u64 = 1 << 12;
    /// Discards are understood.
    pub const BLK_DISCARD: u64 = 1 << 13;
    /// Write-zeroes are understood.
    pub const BLK_WRITE_ZEROES: u64 = 1 << 14;
    /// Descriptors may be indirect.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications are suppressed by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// vhost-user's own: protocol features are negotiated.
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    /// Modern virtio: little-endian, any layout.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Queues of one disk, at most. QEMU makes one for each virtual processor; more than lanes are
/// spread over them.
pub const QUEUES_MAX: u16 = 64;

/// Segments of a request: what fits a ring of 128 with header and status, as QEMU has it.
const SEG_MAX: u32 = 126;

/// Bytes of the configuration space that can be asked for; what we do not know reads as zero.
pub const CONFIG_BYTES: usize = 256;

/// The disk as clients see it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskShape {
    /// Size in sectors.
    pub len_sectors: Sector,
    /// What the device accepts.
    pub limits: QueueLimits,
    /// Exported read-only, whatever the device allows.
    pub read_only: bool,
}

impl DiskShape {
    /// The operations a client may ask for.
    pub fn ops(&self) -> OpSet {
        let read_only = self.read_only || self.limits.read_only;
        QueueLimits { read_only, ..self.limits.clone() }.ops()
    }

    /// The feature bits we offer.
    pub fn features(&self) -> u64 {
        let ops = self.ops();
        let mut features = feature::BLK_SEG_MAX
            | feature::BLK_BLK_SIZE
            | feature::BLK_FLUSH
            | feature::BLK_TOPOLOGY
            | feature::BLK_MQ
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | feature::PROTOCOL_FEATURES
            | feature::VERSION_1;
        if !ops.contains(OpSet::WRITE) {
            features |= feature::BLK_RO;
        }
        if ops.contains(OpSet::DISCARD) {
            features |= feature::BLK_DISCARD;
        }
        if ops.contains(OpSet::WRITE_ZEROES) {
            features |= feature::BLK_WRITE_ZEROES;
        }
        features
    }

    /// The configuration space (`struct virtio_blk_config`).
    pub fn config(&self) -> [u8; CONFIG_BYTES] {
        let limits = &self.limits;
        let block = limits.logical_block_bytes.max(512);
        let in_blocks = |bytes: u32| bytes / block;
        let physical_exp = in_blocks(limits.physical_block_bytes).max(1).ilog2();
        let sectors = |max: Sector| u32::try_from(max).unwrap_or(u32::MAX);
        let granularity = (limits.discard_granularity_bytes >> udm_types::SECTOR_SHIFT).max(1);
        let mut space = [0; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.len_sectors.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &block.to_le_bytes());
        // Both fit: a block is a power of two of 32 bits.
        put(24, &[physical_exp as u8, 0]);
        let min = u16::try_from(in_blocks(limits.io_min_bytes)).unwrap_or(0);
        put(26, &min.to_le_bytes());
        put(28, &in_blocks(limits.io_opt_bytes).to_le_bytes());
        // Write-back: completed writes need a flush.
        put(32, &[1]);
        put(34, &QUEUES_MAX.to_le_bytes());
        put(36, &sectors(limits.max_discard_sectors).to_le_bytes());
        put(40, &1_u32.to_le_bytes());
        put(44, &granularity.to_le_bytes());
        put(48, &sectors(limits.max_write_zeroes_sectors).to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
        space
    }
}

#[cfg(test)]
mod tests {
    use super::{DiskShape, feature};
    use udm_types::QueueLimits;

    fn shape(limits: QueueLimits) -> DiskShape {
        DiskShape { len_sectors: 0x1_0000_0008, limits, read_only: false }
    }

    #[test]
    fn features_follow_the_limits() {
        let all = shape(QueueLimits::default()).features();
        let writes = feature::BLK_DISCARD | feature::BLK_WRITE_ZEROES;
        assert_eq!(all & writes, writes);
        assert_eq!(all & feature::BLK_RO, 0);
        let by_export = DiskShape { read_only: true, ..shape(QueueLimits::default()) };
        let by_device = shape(QueueLimits { read_only: true, ..QueueLimits::default() });
        for shape in [by_export, by_device] {
            assert_eq!(shape.features() & (writes | feature::BLK_RO), feature::BLK_RO);
        }
        let mut limits = QueueLimits::default();
        limits.forbid_discard();
        assert_eq!(shape(limits).features() & writes, feature::BLK_WRITE_ZEROES);
    }

    #[test]
    fn the_configuration_space_says_what_the_specification_says() {
        let config = shape(QueueLimits {
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            io_min_bytes: 4096,
            io_opt_bytes: 65536,
            max_discard_sectors: 2048,
            discard_granularity_bytes: 4096,
            ..QueueLimits::default()
        })
        .config();
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| config[at + byte]));
        assert_eq!((word(0), word(4)), (8, 1), "the capacity in sectors");
        assert_eq!((word(8), word(12)), (0, 126), "no bound of a segment, 126 of them");
        assert_eq!(word(20), 512);
        assert_eq!(word(24), 3 | 8 << 16, "8 logical blocks in a physical one");
        assert_eq!(word(28), 128);
        assert_eq!((word(36), word(40), word(44)), (2048, 1, 8));
        assert_eq!((word(48), word(52), config[56]), (u32::MAX, 1, 1));
    }
}
