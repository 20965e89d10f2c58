//! Bio or request: what a device maps is decided by its first table, and never changes.
//!
//! Called by the coordinator at every load. The rules are the kernel's: a request-based table has
//! one target of an immutable type without a length limit of its own, and what it stands on is
//! request-based or no mapped device; anything may stand on a request-based device. A table of
//! targets that can do either (`error`) is what the device is.
//!
//! One rule is stricter: a request-based table without devices (all paths missing) is refused on a
//! bio-based device, too. Linux would run it as a bio-based one.
//!
//! The tricky case is two first loads at once: both are checked while the device is neither, and
//! the one that is staged second has to fit what the first has made of it.

use super::coordinator::Coordinator;
use crate::error::{ErrorCode, UserError};
use crate::table::Table;
use crate::target::MapMode;
use alloc::format;
use alloc::string::String;
use udm_types::DeviceId;

impl Coordinator {
    /// Whether a table for this device maps bios or requests, or why it cannot be loaded.
    pub(super) fn mode_of_load(&self, id: DeviceId, table: &Table) -> Result<MapMode, UserError> {
        let fixed = self.device(id).and_then(|device| device.mode);
        let mode = match (table.mode, fixed) {
            (MapMode::Either, Some(MapMode::Request)) => MapMode::Request,
            (MapMode::Either | MapMode::Bio, _) => MapMode::Bio,
            (MapMode::Request, _) => MapMode::Request,
        };
        if mode == MapMode::Request {
            self.check_request_table(table)?;
        }
        check_fixed(fixed, mode)?;
        Ok(mode)
    }

    /// A load has succeeded: the device is what its table is, from now on.
    pub(super) fn fix_mode(&mut self, id: DeviceId, mode: MapMode) -> Result<(), UserError> {
        let Some(device) = self.device_mut(id) else { return Ok(()) };
        check_fixed(device.mode, mode)?;
        device.mode = Some(mode);
        Ok(())
    }

    fn check_request_table(&self, table: &Table) -> Result<(), UserError> {
        let [target] = table.targets.as_slice() else {
            return Err(rule("a request-based table has exactly one target"));
        };
        let name = target.target_type.name();
        if target.traits.max_io_len_sectors != 0 {
            return Err(rule(format!("'{name}' limits the length of its I/O by itself")));
        }
        if target.devices.is_empty() {
            return Ok(());
        }
        if !target.target_type.features().immutable {
            return Err(rule(format!("'{name}' on devices cannot stand in for another target")));
        }
        for below in &table.mapped {
            if let Some(device) = self.device(*below)
                && device.mode != Some(MapMode::Request)
            {
                let text = format!("'{}' below is a bio-based mapped device", device.name);
                return Err(rule(text).hint("use queue_mode bio"));
            }
        }
        Ok(())
    }
}

fn check_fixed(fixed: Option<MapMode>, mode: MapMode) -> Result<(), UserError> {
    let word = |mode: MapMode| match mode {
        MapMode::Bio | MapMode::Either => "bio",
        MapMode::Request => "request",
    };
    match fixed {
        Some(fixed) if fixed != mode => {
            let (fixed, mode) = (word(fixed), word(mode));
            let text =
                format!("the device is {fixed}-based since its first load, not {mode}-based");
            Err(rule(text))
        }
        Some(_) | None => Ok(()),
    }
}

fn rule(text: impl Into<String>) -> UserError {
    UserError::new(ErrorCode::MapModeRule, text)
}
