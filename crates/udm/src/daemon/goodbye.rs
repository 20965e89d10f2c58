//! The end of devices that hold what others have written: it goes below before the engine stops.
//!
//! Called once, when exports have ended and the lanes still run. A write-back target (`compress`)
//! answers writes that are in memory only; at an orderly end nobody should lose them for want of a
//! flush. So such devices are suspended with a flush, those on top first.
//!
//! Rules. The state file hears nothing of it: the devices come back running. A device that cannot
//! be suspended in time is left as it is, which is what a crash would do to it.
//!
//! The tricky case is a stack: a device below must not be suspended while one above has to write
//! through it, so devices are taken by their depth.

use crate::paths::devices;
use crate::runtime::Runtime;
use std::collections::BTreeMap;
use udm_core::lifecycle::{DeviceKey, DeviceStatus, Reply, Request, SuspendOptions};
use udm_types::Nanos;

/// For each device; a disk that takes longer is stalled.
const DEADLINE_S: u64 = 10;
/// The engine's limit of stacking, with room.
const DEPTH_MAX: usize = 16;

/// Lets devices write out what they hold.
pub(super) fn write_out(runtime: &Runtime) {
    // Without an answer the engine is gone already.
    let Ok(all) = devices(runtime) else { return };
    let mut holders: Vec<&DeviceStatus> =
        all.iter().filter(|device| device.holds_writes && !device.suspended).collect();
    if holders.is_empty() {
        return;
    }
    let below: BTreeMap<(u32, u32), Vec<(u32, u32)>> =
        all.iter().map(|device| (number(device), deps(runtime, device))).collect();
    holders.sort_by_key(|device| std::cmp::Reverse(depth(&below, number(device), DEPTH_MAX)));
    for device in holders {
        let options = SuspendOptions {
            deadline: Some(Nanos::from_secs(DEADLINE_S)),
            reason: "the daemon ends".to_owned(),
            ..SuspendOptions::default()
        };
        // What did not go in time stays as a crash would leave it.
        drop(runtime.suspend(&DeviceKey::Id(device.id), options));
    }
}

fn number(device: &DeviceStatus) -> (u32, u32) {
    (device.major, device.minor)
}

fn deps(runtime: &Runtime, device: &DeviceStatus) -> Vec<(u32, u32)> {
    match runtime.request(Request::Deps { device: DeviceKey::Id(device.id), inactive: false }) {
        Ok(Reply::Deps { deps, .. }) => deps.into_iter().filter_map(|(number, _)| number).collect(),
        Ok(_) | Err(_) => Vec::new(),
    }
}

/// How many devices are below, at most.
fn depth(below: &BTreeMap<(u32, u32), Vec<(u32, u32)>>, of: (u32, u32), limit: usize) -> usize {
    let deps = below.get(&of).map_or(&[][..], Vec::as_slice);
    if limit == 0 {
        return 0;
    }
    deps.iter().map(|next| 1 + depth(below, *next, limit - 1)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{DEPTH_MAX, depth};
    use std::collections::BTreeMap;

    #[test]
    fn what_stands_on_more_is_deeper() {
        let below = BTreeMap::from([
            ((254, 0), vec![(8, 0)]),
            ((254, 1), vec![(254, 0), (8, 1)]),
            ((254, 2), vec![(254, 1)]),
        ]);
        let depths = [0, 1, 2].map(|minor| depth(&below, (254, minor), DEPTH_MAX));
        assert_eq!(depths, [1, 2, 3]);
    }
}
