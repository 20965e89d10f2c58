//! Compress volumes for the tests of this crate: made by the production `format`, on the devices of
//! a test world.

use udm_meta::host::MemoryHost;
use udm_targets::compress::format::{Codec, Defaults, Shape};
use udm_targets::compress::tools::format::{FormatRequest, format};
use udm_testkit::{MemLower, SECTOR_LEN};
use udm_types::Sector;

/// Small segments, so that a small device has many.
pub(crate) fn tiny_shape() -> Shape {
    Shape {
        physical_shift: 12,
        segment_shift: 16,
        unit_shift: 6,
        record_limit_bytes: 32 << 10,
        extent_blocks: 4,
        reserve_segments: 3,
        growth: 2,
    }
}

/// The bytes of a new volume of `logical_sectors` on a device of `device_sectors`.
pub(crate) fn image(device_sectors: Sector, logical_sectors: Sector) -> Vec<u8> {
    let mut host = MemoryHost::new(device_sectors as usize * SECTOR_LEN);
    let request = FormatRequest {
        shape: tiny_shape(),
        logical_bytes: Some(logical_sectors * 512),
        uuid: [7; 16],
        salt: 99,
        defaults: Defaults { codec: Codec::Lz4, level: 0 },
        is_discarded: false,
    };
    let plan = host.run(|disk| async move { format(&disk, &request, &mut |_| ()).await });
    plan.expect("it fits");
    host.bytes
}

/// Makes a volume on a device, as if it had `device_sectors`.
pub(crate) fn prepare(device: &MemLower, device_sectors: Sector, logical_sectors: Sector) {
    use udm_core::LowerDevice;
    let mut bytes = image(device_sectors, logical_sectors);
    bytes.truncate(device.len_sectors() as usize * SECTOR_LEN);
    device.set_bytes(0, &bytes);
}
