//! Names in tables to devices: mapped devices by asking the coordinator, the rest by opening.
//!
//! | name | device |
//! |---|---|
//! | `dm:NAME`, `/dev/mapper/NAME` | the mapped device NAME of this daemon |
//! | `254:MINOR` | the mapped device of this number |
//! | anything else | a lower device (see docs/lower-devices.md) |
//!
//! `/dev/mapper/NAME` falls back to the file of that path when this daemon has no such device, so a
//! kernel mapped device can be used, too.

use super::Runtime;
use udm_core::lifecycle::{DM_MAJOR, DeviceKey, Reply, Request};
use udm_core::{DeviceRef, DeviceResolver, ErrorCode, ErrorKind, UserError};

/// Resolves names for one table.
pub struct RuntimeResolver<'a> {
    runtime: &'a Runtime,
}

impl<'a> RuntimeResolver<'a> {
    /// A resolver over a runtime's devices.
    pub fn new(runtime: &'a Runtime) -> RuntimeResolver<'a> {
        RuntimeResolver { runtime }
    }

    fn lookup(&self, device: DeviceKey) -> Result<DeviceRef, UserError> {
        match self.runtime.request(Request::Lookup { device })? {
            Reply::Device(device) => Ok(*device),
            other => Err(UserError::new(
                ErrorCode::Internal,
                format!("expected a device, got {other:?}"),
            )),
        }
    }
}

impl DeviceResolver for RuntimeResolver<'_> {
    fn resolve(&mut self, name: &str, read_only: bool) -> Result<DeviceRef, UserError> {
        if let Some(name) = name.strip_prefix("dm:") {
            return self.lookup(DeviceKey::Name(name.to_owned()));
        }
        if let Some(minor) = own_minor(name) {
            return self.lookup(DeviceKey::Minor(minor));
        }
        if let Some(mapped) = name.strip_prefix("/dev/mapper/") {
            match self.lookup(DeviceKey::Name(mapped.to_owned())) {
                Err(error) if error.code() == ErrorCode::NoSuchDevice => {}
                // On Linux there is no node of it yet.
                Err(error) if error.code() == ErrorCode::NoTable => {
                    return Err(error.of_kind(ErrorKind::NoEntry));
                }
                found => return found,
            }
        }
        self.runtime.lowers().open(name, read_only)
    }
}

/// The minor number in `254:MINOR`.
fn own_minor(name: &str) -> Option<u32> {
    let (major, minor) = name.split_once(':')?;
    (major.parse() == Ok(DM_MAJOR)).then(|| minor.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::own_minor;

    #[test]
    fn only_our_own_numbers_are_mapped_devices() {
        assert_eq!(own_minor("254:7"), Some(7));
        assert_eq!(own_minor("7:0"), None);
        assert_eq!(own_minor("254:x"), None);
        assert_eq!(own_minor("mem:64M"), None);
    }
}
