//! Commands about devices: create, remove, rename, suspend and resume, status, lists.
//!
//! Each is one request to the life cycle with the header's flags as its options. What the kernel
//! checks before it looks for the device is checked before here, too.
//!
//! The tricky case is which header a command ends with: most show the device as it is now, but a
//! removal and a list leave what the caller gave, and a rename keeps the old name.

use super::header::minor_of;
use super::layout::flag;
use super::{Call, Refused, lists};
use udm_core::lifecycle::{DeviceKey, Geometry, Reply, Request, SuspendOptions};
use udm_types::{DmName, DmUuid};

/// Longest name and uuid in bytes, without their NUL.
const NAME_LEN_BYTES_MAX: usize = 127;
const UUID_LEN_BYTES_MAX: usize = 128;

impl Call<'_> {
    pub(super) fn create(&mut self) -> Result<(), Refused> {
        let name = name(self.header.name())?;
        let uuid =
            Some(self.header.uuid()).filter(|uuid| !uuid.is_empty()).map(uuid).transpose()?;
        let fixed = self.header.has(flag::PERSISTENT_DEV);
        let minor = fixed.then(|| minor_of(self.header.dev));
        let reply = self.change(Request::Create { name, uuid, minor }, None)?;
        self.header.set(flag::INACTIVE_PRESENT, false);
        self.write_done(&reply)
    }

    pub(super) fn remove(&mut self) -> Result<(), Refused> {
        let (device, _) = self.find()?;
        let deferred = self.header.has(flag::DEFERRED_REMOVE);
        if let Reply::Done(None) = self.change(Request::Remove { device, deferred }, None)? {
            // It has gone; else it goes at its last close, and the header stays as it is.
            self.header.set(flag::DEFERRED_REMOVE, false);
            self.header.set(flag::UEVENT_GENERATED, true);
        }
        Ok(())
    }

    pub(super) fn remove_all(&mut self) -> Result<(), Refused> {
        let deferred = self.header.has(flag::DEFERRED_REMOVE);
        self.change(Request::RemoveAll { deferred }, None)?;
        self.header.data_size = 0;
        Ok(())
    }

    pub(super) fn rename(&mut self) -> Result<(), Refused> {
        let is_uuid = self.header.has(flag::UUID);
        let new = self.text_at(self.header.data_start as usize)?;
        let limit = if is_uuid { UUID_LEN_BYTES_MAX } else { NAME_LEN_BYTES_MAX };
        if new.is_empty() || new.len() > limit {
            return Err(Refused::invalid("the new name or uuid is empty or too long"));
        }
        // Only a name finds the device here; an empty one finds none.
        let old = String::from_utf8_lossy(self.header.name()).into_owned();
        let device = DeviceKey::Name(old);
        let request = if is_uuid {
            Request::SetUuid { device, uuid: uuid(new)? }
        } else {
            Request::Rename { device, name: name(new)? }
        };
        let reply = self.change(request, None)?;
        self.header.set(flag::UEVENT_GENERATED, true);
        self.write_done(&reply)
    }

    pub(super) fn suspend_or_resume(&mut self) -> Result<(), Refused> {
        let (device, before) = self.find()?;
        let ticket = self.asker.ticket();
        let options =
            SuspendOptions { noflush: self.header.has(flag::NOFLUSH), ..SuspendOptions::default() };
        let suspend = self.header.has(flag::SUSPEND);
        let request = if suspend {
            Request::Suspend { device, options, ticket }
        } else {
            Request::Resume { device, options, ticket }
        };
        let reply = self.change(request, Some(ticket))?;
        if !suspend {
            self.header.set(flag::INACTIVE_PRESENT, false);
            let resumed = before.suspended || before.inactive_present;
            self.header.set(flag::UEVENT_GENERATED, resumed);
        }
        self.write_done(&reply)
    }

    pub(super) fn status(&mut self) -> Result<(), Refused> {
        let (_, device) = self.find()?;
        self.header.write_status(&device);
        Ok(())
    }

    pub(super) fn clear(&mut self) -> Result<(), Refused> {
        let (device, _) = self.find()?;
        let reply = self.change(Request::Clear { device }, None)?;
        self.header.set(flag::INACTIVE_PRESENT, false);
        self.write_done(&reply)
    }

    pub(super) fn set_geometry(&mut self) -> Result<(), Refused> {
        let (device, _) = self.find()?;
        let text = self.text_at(self.header.data_start as usize)?;
        let geometry = geometry(text)
            .ok_or_else(|| Refused::invalid("expected CYLINDERS HEADS SECTORS START"))?;
        self.ask(Request::SetGeometry { device, geometry }, None)?;
        self.header.data_size = 0;
        Ok(())
    }

    pub(super) fn list_devices(&mut self) -> Result<(), Refused> {
        let devices = match self.ask(Request::List, None)? {
            Reply::List(devices) => devices,
            other => return Err(crate::dispatch::unexpected(&other).into()),
        };
        let (name, uuid) = (self.header.name().to_vec(), self.header.uuid().to_vec());
        let wanted: Vec<_> = devices
            .iter()
            .filter(|device| device.name.as_str().as_bytes().starts_with(&name))
            .filter(|device| {
                let own = device.uuid.as_ref().map_or("", |uuid| uuid.as_str());
                own.as_bytes().starts_with(&uuid)
            })
            .collect();
        let capacity = self.begin_result();
        let list = lists::devices(&wanted, self.header.has(flag::UUID), capacity);
        self.put_result(list);
        Ok(())
    }

    pub(super) fn list_versions(&mut self) -> Result<(), Refused> {
        let types = self.ops.targets();
        let types: Vec<_> = types.iter().map(|kind| (kind.name.as_str(), kind.version)).collect();
        let capacity = self.begin_result();
        self.put_result(lists::versions(&types, capacity));
        Ok(())
    }

    pub(super) fn target_version(&mut self) -> Result<(), Refused> {
        let types = self.ops.targets();
        let wanted = self.header.name().to_vec();
        let found = types.iter().find(|kind| kind.name.as_bytes() == wanted);
        let kind = found.ok_or_else(|| Refused::invalid("there is no such target type"))?;
        let capacity = self.begin_result();
        self.put_result(lists::versions(&[(kind.name.as_str(), kind.version)], capacity));
        Ok(())
    }

    /// Writes the device of a `Done`.
    fn write_done(&mut self, reply: &Reply) -> Result<(), Refused> {
        match reply {
            Reply::Done(Some(device)) => {
                self.header.write_status(device);
                Ok(())
            }
            // Removed by somebody else since; there is no state to show.
            Reply::Done(None) => Ok(()),
            other => Err(crate::dispatch::unexpected(other).into()),
        }
    }
}

fn name(bytes: &[u8]) -> Result<DmName, Refused> {
    let text = std::str::from_utf8(bytes).map_err(|_| Refused::invalid("the name is not UTF-8"))?;
    DmName::new(text).map_err(|error| Refused::invalid(&error.to_string()))
}

fn uuid(bytes: &[u8]) -> Result<DmUuid, Refused> {
    let text = std::str::from_utf8(bytes).map_err(|_| Refused::invalid("the uuid is not UTF-8"))?;
    DmUuid::new(text).map_err(|error| Refused::invalid(&error.to_string()))
}

/// Four decimal numbers, as `scanf` reads them.
fn geometry(text: &[u8]) -> Option<Geometry> {
    let text = std::str::from_utf8(text).ok()?;
    let mut words = text.split_ascii_whitespace();
    let geometry = Geometry {
        cylinders: words.next()?.parse().ok()?,
        heads: words.next()?.parse().ok()?,
        sectors: words.next()?.parse().ok()?,
        start_sector: words.next()?.parse().ok()?,
    };
    let ends = text.bytes().last().is_some_and(|byte| byte.is_ascii_digit());
    (ends && words.next().is_none()).then_some(geometry)
}
