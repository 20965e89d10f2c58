//! What a client may connect to.
//!
//! The control side implements [`ExportList`]; the handshake asks it. An [`ExportDescription`] is a
//! snapshot taken when a client chose the export: later resizes and table swaps reach existing
//! connections through the engine, new connections through a new snapshot.
//!
//! Transmission flags and block sizes are derived from the queue limits here and nowhere else, so
//! that what we promise and what the engine accepts cannot drift apart.
//!
//! The tricky case is the empty name, which means "the default export": it is the only export if
//! there is exactly one, and unknown otherwise. Guessing among several would hand a client
//! somebody else's disk.

use super::wire::{HeaderStyle, TransmissionFlags};
use udm_types::{DeviceFeatures, OpSet, QueueLimits};

/// The largest payload of a read or write. Below it the protocol forbids to call a client hostile,
/// above it we would hold that much memory for one request.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// The largest minimum block size the protocol can express.
const MIN_BLOCK_BYTES_MAX: u32 = 1 << 16;

/// An export as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportDescription {
    /// The canonical name.
    pub name: String,
    /// A line for people; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// What the device accepts.
    pub limits: QueueLimits,
    /// Exported read-only, whatever the device itself allows.
    pub read_only: bool,
}

/// The three sizes of the BLOCK_SIZE information item, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this.
    pub min_bytes: u32,
    /// Multiples of this are fast.
    pub preferred_bytes: u32,
    /// No read or write is longer than this.
    pub max_payload_bytes: u32,
}

/// The exports of a server.
pub trait ExportList {
    /// The export of exactly this name.
    fn lookup(&self, name: &str) -> Option<ExportDescription>;

    /// All names, in the order a list shows them.
    fn names(&self) -> Vec<String>;

    /// The export a client means by `name`: the empty name is the only export, if there is one.
    fn resolve(&self, name: &str) -> Option<ExportDescription> {
        if let Some(export) = self.lookup(name) {
            return Some(export);
        }
        if !name.is_empty() {
            return None;
        }
        match self.names().as_slice() {
            [only] => self.lookup(only),
            _ => None,
        }
    }
}

impl ExportDescription {
    /// The operations a client of this export may ask for.
    pub fn ops(&self) -> OpSet {
        let limits = QueueLimits {
            read_only: self.read_only || self.limits.read_only,
            ..self.limits.clone()
        };
        limits.ops()
    }

    /// The flags sent at the end of the handshake.
    ///
    /// Flush and FUA are always there: the engine emulates what a device lacks. A flush covers
    /// every write completed before on the *device*, hence on all connections.
    pub fn transmission_flags(&self, style: HeaderStyle) -> TransmissionFlags {
        let ops = self.ops();
        let mut flags = TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::SEND_FLUSH
            | TransmissionFlags::SEND_FUA
            | TransmissionFlags::CAN_MULTI_CONN
            | TransmissionFlags::SEND_CACHE;
        flags.set(TransmissionFlags::READ_ONLY, !ops.contains(OpSet::WRITE));
        flags.set(
            TransmissionFlags::ROTATIONAL,
            self.limits.features.contains(DeviceFeatures::ROTATIONAL),
        );
        flags.set(TransmissionFlags::SEND_TRIM, ops.contains(OpSet::DISCARD));
        let zeroes = ops.contains(OpSet::WRITE_ZEROES);
        flags.set(TransmissionFlags::SEND_WRITE_ZEROES, zeroes);
        flags.set(TransmissionFlags::SEND_FAST_ZERO, zeroes);
        flags.set(
            TransmissionFlags::SEND_DF,
            match style {
                HeaderStyle::Simple => false,
                HeaderStyle::Structured | HeaderStyle::Extended => true,
            },
        );
        flags
    }

    /// Block sizes as the protocol wants them: powers of two, min <= preferred <= max.
    pub fn block_sizes(&self) -> BlockSizes {
        let min_bytes = self.limits.logical_block_bytes.clamp(512, MIN_BLOCK_BYTES_MAX);
        // The optimal size may be any multiple of the physical block (a stripe of three disks);
        // the protocol allows powers of two only, so fall back to the block itself.
        let wanted = [self.limits.io_opt_bytes, self.limits.io_min_bytes.max(4096)]
            .into_iter()
            .find(|bytes| bytes.is_power_of_two())
            .unwrap_or(4096);
        let preferred_bytes = wanted.clamp(min_bytes, PAYLOAD_BYTES_MAX);
        BlockSizes { min_bytes, preferred_bytes, max_payload_bytes: PAYLOAD_BYTES_MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockSizes, ExportDescription, PAYLOAD_BYTES_MAX};
    use crate::nbd::wire::{HeaderStyle, TransmissionFlags as Flags};
    use udm_types::{DeviceFeatures, QueueLimits};

    fn export(limits: QueueLimits) -> ExportDescription {
        ExportDescription {
            name: "vol".into(),
            description: String::new(),
            size_bytes: 1 << 20,
            limits,
            read_only: false,
        }
    }

    #[test]
    fn flags_follow_the_limits() {
        let all = export(QueueLimits::default());
        assert_eq!(
            all.transmission_flags(HeaderStyle::Structured),
            Flags::all() - Flags::READ_ONLY - Flags::ROTATIONAL
        );
        assert!(!all.transmission_flags(HeaderStyle::Simple).contains(Flags::SEND_DF));

        let mut limits = QueueLimits::default();
        limits.forbid_discard();
        limits.features = DeviceFeatures::ROTATIONAL;
        let flags = export(limits).transmission_flags(HeaderStyle::Extended);
        assert!(!flags.contains(Flags::SEND_TRIM) && flags.contains(Flags::ROTATIONAL));

        let limits = QueueLimits { max_write_zeroes_sectors: 0, ..QueueLimits::default() };
        let flags = export(limits).transmission_flags(HeaderStyle::Extended);
        assert!(!flags.intersects(Flags::SEND_WRITE_ZEROES | Flags::SEND_FAST_ZERO));
    }

    #[test]
    fn a_read_only_export_and_a_read_only_device_look_the_same() {
        let by_export = ExportDescription { read_only: true, ..export(QueueLimits::default()) };
        let by_device = export(QueueLimits { read_only: true, ..QueueLimits::default() });
        for export in [by_export, by_device] {
            let flags = export.transmission_flags(HeaderStyle::Simple);
            assert!(flags.contains(Flags::READ_ONLY));
            assert!(!flags.intersects(Flags::SEND_TRIM | Flags::SEND_WRITE_ZEROES));
        }
    }

    #[test]
    fn block_sizes_are_powers_of_two_in_order() {
        let sizes = |limits| export(limits).block_sizes();
        assert_eq!(
            sizes(QueueLimits::default()),
            BlockSizes {
                min_bytes: 512,
                preferred_bytes: 4096,
                max_payload_bytes: PAYLOAD_BYTES_MAX
            }
        );
        let stripes_of_three = QueueLimits {
            logical_block_bytes: 4096,
            io_min_bytes: 65536,
            io_opt_bytes: 3 * 65536,
            ..QueueLimits::default()
        };
        let got = sizes(stripes_of_three);
        assert_eq!((got.min_bytes, got.preferred_bytes), (4096, 65536));
        let huge = QueueLimits { io_opt_bytes: 1 << 30, ..QueueLimits::default() };
        assert_eq!(sizes(huge).preferred_bytes, PAYLOAD_BYTES_MAX);
        let odd = QueueLimits { io_min_bytes: 3 * 4096, ..QueueLimits::default() };
        assert_eq!(sizes(odd).preferred_bytes, 4096);
    }
}
