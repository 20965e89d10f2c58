//! Who stands on whom: uses of mapped devices by tables, loops, depth.
//!
//! A device counts as open once for every device whose live or inactive table names it, however
//! many tables or lines do. Linux detects only direct self-reference; here every loop is refused,
//! because a loop is a bio that never ends.

use super::coordinator::Coordinator;
use crate::bio::MAX_STACK_DEPTH;
use crate::error::{ErrorCode, UserError};
use crate::table::Table;
use alloc::format;
use alloc::vec::Vec;
use udm_types::DeviceId;

impl Coordinator {
    /// Refuses a table that would make a loop, stack too deep, or name a device that is gone.
    pub(super) fn check_stack(&self, id: DeviceId, table: &Table) -> Result<(), UserError> {
        for below in &table.mapped {
            if self.device(*below).is_none_or(|device| device.deleting) {
                return Err(UserError::new(
                    ErrorCode::NoSuchDevice,
                    "a mapped device named by the table has been removed",
                ));
            }
        }
        let mut below: Vec<DeviceId> = table.mapped.clone();
        let mut seen = alloc::collections::BTreeSet::new();
        while let Some(next) = below.pop() {
            if next == id {
                return Err(UserError::new(
                    ErrorCode::SelfReference,
                    "the table puts the device below itself",
                ));
            }
            if seen.insert(next) {
                below.extend(self.below(next));
            }
        }
        let depth = 1 + table.mapped.iter().map(|below| self.depth(*below)).max().unwrap_or(0);
        let height = self.height(id);
        if depth + height > MAX_STACK_DEPTH {
            return Err(UserError::new(
                ErrorCode::StackTooDeep,
                format!(
                    "{} devices would stand on each other, {MAX_STACK_DEPTH} can",
                    depth + height
                ),
            ));
        }
        Ok(())
    }

    /// Devices named by either table of a device.
    fn below(&self, id: DeviceId) -> Vec<DeviceId> {
        let Some(device) = self.device(id) else { return Vec::new() };
        let tables = device.live.iter().chain(&device.inactive);
        tables.flat_map(|loaded| loaded.table.mapped.iter().copied()).collect()
    }

    /// Layers from a device down, itself included. Loops cannot exist, so this ends.
    fn depth(&self, id: DeviceId) -> usize {
        1 + self.below(id).into_iter().map(|below| self.depth(below)).max().unwrap_or(0)
    }

    /// Layers above a device.
    fn height(&self, id: DeviceId) -> usize {
        let Some(device) = self.device(id) else { return 0 };
        device.users.keys().map(|user| 1 + self.height(*user)).max().unwrap_or(0)
    }

    /// A table of `user` names these devices from now on.
    pub(super) fn take_uses(&mut self, user: DeviceId, table: &Table) {
        for below in &table.mapped {
            if let Some(device) = self.device_mut(*below) {
                *device.users.entry(user).or_insert(0) += 1;
            }
        }
    }

    /// A table of `user` is gone.
    pub(super) fn release_uses(&mut self, user: DeviceId, table: &Table) {
        for below in &table.mapped {
            let Some(device) = self.device_mut(*below) else { continue };
            if let Some(count) = device.users.get_mut(&user) {
                *count -= 1;
                if *count == 0 {
                    device.users.remove(&user);
                }
            }
            self.closed_one(*below);
        }
    }
}
