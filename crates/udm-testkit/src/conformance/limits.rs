//! Checks of limits: what the devices below can do bounds what the mapped device promises.
//!
//! Block sizes, read-only devices, sizes. A case's devices are exactly as large as its line needs,
//! so one sector less on any of them must be refused, with the code for it and the line.

use super::bench::{line, world, world_with};
use super::{Case, Kind};
use crate::io::Io;
use udm_core::ErrorCode;
use udm_core::lifecycle::{DeviceKey, Request};
use udm_types::{Op, Status};

/// Over devices of 4 KiB blocks the mapped device has 4 KiB blocks, and half blocks are refused.
pub fn the_block_size_below_reaches_the_top<C: Case>() {
    let mut world = world_with::<C>(|_, len_sectors, mut limits| {
        limits.logical_block_bytes = 4096;
        limits.physical_block_bytes = 4096;
        limits.io_min_bytes = 4096;
        limits.discard_granularity_bytes = 4096;
        (len_sectors, limits)
    });
    let table = world.build(&line::<C>(0)).expect("the case's line fits 4 KiB blocks");
    if C::KIND != Kind::Stores {
        return;
    }
    assert_eq!(table.limits.logical_block_bytes, 4096);
    assert!(table.limits.io_min_bytes >= 4096);
    let device = world.create("t", &line::<C>(0));
    assert!(world.io(device, Io::write_pattern(8, 8, 1)).status.is_ok());
    assert_eq!(world.io(device, Io::write_pattern(4, 8, 1)).status, Status::Invalid);
    assert_eq!(world.io(device, Io::read(8, 4)).status, Status::Invalid);
    world.assert_quiet();
}

/// One sector less on any device below is refused.
pub fn a_device_below_that_is_too_small_is_refused<C: Case>() {
    for (short, _) in C::DEVICES {
        let mut world = world_with::<C>(|name, len_sectors, limits| {
            (if name == *short { len_sectors - 1 } else { len_sectors }, limits)
        });
        let error = world.build(&line::<C>(0)).expect_err("the device is too small");
        assert_eq!((error.code(), error.line()), (ErrorCode::DeviceTooSmall, Some(1)), "{short}");
    }
    assert!(world::<C>().build(&line::<C>(0)).is_ok(), "the case's devices are just large enough");
}

/// A device below that cannot be written is refused, unless the table is read-only too.
pub fn a_read_only_device_below_is_refused<C: Case>() {
    for (locked, _) in C::DEVICES {
        let mut world = world_with::<C>(|name, len_sectors, mut limits| {
            limits.read_only = name == *locked;
            (len_sectors, limits)
        });
        let error = world.build(&line::<C>(0)).expect_err("the device is read-only");
        assert_eq!(error.code(), ErrorCode::ReadOnlyBelow, "{locked}");
        if is_always_writable::<C>() {
            continue;
        }
        assert!(world.build_read_only(&line::<C>(0)).is_ok());
    }
}

/// The type refuses read-only tables.
fn is_always_writable<C: Case>() -> bool {
    C::registry().find(C::TARGET).is_some_and(|known| known.features().always_writable)
}

/// A table loaded read-only refuses everything that writes; reads and flushes work.
pub fn a_read_only_table_refuses_writes<C: Case>() {
    let mut world = world::<C>();
    if is_always_writable::<C>() {
        let error = world.build_read_only(&line::<C>(0)).expect_err("it has to write");
        assert_eq!(error.code(), ErrorCode::TypeRule);
        return;
    }
    let device = world.create_empty("t");
    let table = world.build_read_only(&line::<C>(0)).expect("the case's line");
    assert!(world.request(Request::Load { device: DeviceKey::Id(device), table }).is_ok());
    world.resume(device);
    assert!(world.status(device).read_only);
    for op in [Op::Write, Op::Discard, Op::WriteZeroes] {
        let io = match op {
            Op::Write => Io::write_pattern(0, 8, 1),
            Op::Discard => Io::discard(0, 8),
            Op::WriteZeroes => Io::write_zeroes(0, 8),
            Op::Read | Op::Flush => Io::read(0, 8),
        };
        assert_eq!(world.io(device, io).status, Status::ReadOnly, "{op:?}");
    }
    let expected = match C::KIND {
        Kind::Fails(status) => status,
        Kind::Stores | Kind::Transforms | Kind::Zeroes => Status::Ok,
    };
    assert_eq!(world.io(device, Io::read(0, 8)).status, expected);
    assert!(world.io(device, Io::flush()).status.is_ok());
    for (name, _) in C::DEVICES {
        let wrote = world.lower(name).log().iter().any(|seen| seen.op.is_write());
        assert!(!wrote, "something was written to {name}");
    }
    world.assert_quiet();
}
