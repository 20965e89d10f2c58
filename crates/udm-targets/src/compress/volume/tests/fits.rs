//! The default size always fits, whatever the data is; on small disks, too.
//!
//! There the two segments the log has open are a large part of the disk, and nothing compresses.

use super::host::{BLOCK, Media, World, noise};
use crate::compress::format::{Codec, Defaults, Shape};
use crate::compress::tools::format::{FormatRequest, format};
use crate::compress::volume::{NoSpace, Options};
use udm_meta::host::MemoryHost;
use udm_types::Status;

/// A new volume of the default size on a disk of `disk_bytes`.
fn by_default(disk_bytes: usize) -> World {
    let mut host = MemoryHost::new(disk_bytes);
    let request = FormatRequest {
        shape: Shape::for_device(disk_bytes as u64),
        logical_bytes: None,
        uuid: [7; 16],
        salt: 99,
        defaults: Defaults { codec: Codec::Lz4, level: 0 },
        is_discarded: false,
    };
    let plan = host.run(|disk| async move { format(&disk, &request, &mut |_| ()).await });
    plan.expect("formatted");
    let options = Options { no_space: NoSpace::Error, ..Options::default() };
    let mut world = World::open(Media::new(host.bytes), options);
    world.run();
    world
}

#[test]
fn the_default_size_is_filled_and_overwritten_with_data_that_does_not_compress() {
    for disk_mib in [14, 20] {
        let mut world = by_default(disk_mib << 20);
        let blocks = world.volume.logical_bytes().expect("it serves") / BLOCK;
        for block in (0..blocks).step_by(8) {
            let count = (blocks - block).min(8);
            let status = world.write(block * BLOCK, &noise(count as usize, block));
            assert_eq!(status, Status::Ok, "{disk_mib} MiB, block {block} of {blocks}");
        }
        // One block a record is the worst there is: each has a head, and an end that is padded.
        let mut rng = fastrand::Rng::with_seed(disk_mib as u64);
        for step in 0..800 {
            let block = rng.u64(..blocks);
            let status = world.write(block * BLOCK, &noise(1, 1 << 32 | step));
            assert_eq!(status, Status::Ok, "{disk_mib} MiB, overwrite {step}");
            if step % 16 == 0 {
                assert_eq!(world.flush(), Status::Ok);
            }
        }
        world.checkpoint();
        world.assert_sound();
    }
}
