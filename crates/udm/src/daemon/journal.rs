//! Keeps the state file in step with the engine, and brings the engine back to it.
//!
//! After each change the journal asks the engine what is there now and writes that, before the
//! change is answered. It never guesses what a request did; so requests that race, fail half way or
//! happen by themselves (a deferred removal) end in a file that is true all the same.
//!
//! A table is kept as its user wrote it where possible (`/dev/disk/by-id/...` outlives a reboot,
//! `8:16` may not), except that mapped devices are written as numbers, which a rename does not
//! change. Which text belongs to which slot is found by the lines the engine prints.
//!
//! The tricky case is a device that could not be restored (its disk is missing today). It runs
//! without a table; its tables stay in the file until somebody loads or clears one, so the next
//! start tries again.

use super::exports::{Exports, Patience};
use super::lines::line_text;
use super::state::{SavedDevice, SavedExport, SavedTable, State, StateDir};
use crate::paths::PathWatch;
use crate::runtime::{Runtime, status_of};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use udm_control::api::PathPolicy;
use udm_control::ops::ExportOrder;
use udm_core::error::{ErrorCode, UserError};
use udm_core::lifecycle::{
    DM_MAJOR, DeviceKey, DeviceStatus, Reply, Request, StatusKind, StatusLine, SuspendOptions,
};
use udm_core::table::{Table, TableLine};
use udm_types::{DeviceId, DmName, DmUuid};

/// Texts remembered for a device: of the live and the inactive table, and of loads in progress.
const TEXTS_MAX: usize = 4;

/// A table's text with the lines the engine prints for it.
#[derive(Clone, Debug)]
struct KnownText {
    printed: Vec<String>,
    table: SavedTable,
}

#[derive(Debug, Default)]
struct Entry {
    saved: SavedDevice,
    texts: Vec<KnownText>,
    /// Both slots have been asked for. An entry may exist before that: a text is remembered first.
    noted: bool,
    /// It was in the file, but its live table could not be built at the start.
    unrestored: bool,
}

#[derive(Debug, Default)]
struct Book {
    entries: BTreeMap<DeviceId, Entry>,
    /// Exports that could not be started.
    unrestored_exports: Vec<SavedExport>,
    written: Vec<u8>,
}

/// What is kept besides devices.
#[derive(Clone, Copy)]
pub(crate) struct Served<'a> {
    pub(crate) exports: &'a Exports,
    pub(crate) watch: &'a PathWatch,
}

/// The journal.
pub(crate) struct Journal {
    dir: StateDir,
    book: Mutex<Book>,
}

impl Journal {
    pub(crate) fn new(dir: StateDir) -> Journal {
        Journal { dir, book: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        // The book is rebuilt from the engine each time; a panic costs one entry's text at most.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the text of a table that is about to be loaded.
    pub(crate) fn remember(&self, device: DeviceId, lines: &[TableLine], table: &Table) {
        let mut book = self.lock();
        let entry = book.entries.entry(device).or_default();
        let known = KnownText {
            printed: printed_by(table),
            table: SavedTable {
                read_only: table.read_only,
                lines: lines.iter().map(line_text).collect(),
            },
        };
        entry.texts.retain(|text| text.printed != known.printed);
        entry.texts.insert(0, known);
        entry.texts.truncate(TEXTS_MAX);
    }

    /// Writes the state if it has changed.
    pub(crate) fn settle(
        &self,
        runtime: &Runtime,
        served: Served<'_>,
        touched: Option<&DeviceKey>,
    ) -> Result<(), UserError> {
        let mut book = self.lock();
        let devices = match runtime.request(Request::List)? {
            Reply::List(devices) => devices,
            other => {
                let text = format!("expected a list, got {other:?}");
                return Err(UserError::new(ErrorCode::Internal, text));
            }
        };
        book.entries.retain(|id, _| devices.iter().any(|device| device.id == *id));
        let mut policies = served.watch.policies();
        for device in &devices {
            let entry = book.entries.entry(device.id).or_default();
            entry.note(device);
            entry.saved.paths = policies.remove(&device.id);
            if !entry.noted || touched.is_some_and(|key| is_key_of(key, device)) {
                entry.note_tables(runtime, device)?;
            }
        }
        self.write(&mut book, served.exports)
    }

    fn write(&self, book: &mut Book, exports: &Exports) -> Result<(), UserError> {
        let mut state = State::default();
        state.devices.extend(book.entries.values().map(|entry| entry.saved.clone()));
        state.devices.sort_by(|a, b| a.name.cmp(&b.name));
        state.exports.extend(exports.saved());
        for missing in &book.unrestored_exports {
            if state.exports.iter().all(|export| export.name != missing.name) {
                state.exports.push(missing.clone());
            }
        }
        let bytes = state.encode();
        if bytes != book.written {
            self.dir.write(&bytes)?;
            book.written = bytes;
        }
        Ok(())
    }

    /// Forgets an export that could not be restored. True if there was one.
    pub(crate) fn forget_export(&self, name: &str) -> bool {
        let mut book = self.lock();
        let before = book.unrestored_exports.len();
        book.unrestored_exports.retain(|export| export.name != name);
        book.unrestored_exports.len() != before
    }

    /// Brings devices and exports back. What cannot be brought back is told to `warn` and kept.
    ///
    /// # Errors
    /// `StateDamaged`; then nothing has been changed.
    pub(crate) fn restore(
        &self,
        runtime: &Runtime,
        served: Served<'_>,
        load: &dyn Fn(&DeviceKey, &str, bool) -> Result<(), UserError>,
        warn: &mut dyn FnMut(&str),
    ) -> Result<(), UserError> {
        let state = self.dir.read()?;
        for device in &state.devices {
            create(runtime, device)?;
        }
        for device in below_first(&state.devices) {
            if let Err(error) = bring_up(runtime, device, load) {
                warn(&format!("device '{}' is back without its table: {error}", device.name));
                self.keep(runtime, device)?;
            }
        }
        for device in &state.devices {
            if let Some(words) = &device.paths
                && let Err(error) = watch(runtime, served.watch, device, words)
            {
                warn(&format!("paths of '{}' are not checked: {error}", device.name));
            }
        }
        for export in &state.exports {
            if let Err(error) = serve_again(served.exports, export) {
                warn(&format!("export '{}' is not served: {error}", export.name));
                self.lock().unrestored_exports.push(export.clone());
            }
        }
        Ok(())
    }

    /// Keeps what the file says of a device that could not be brought back.
    fn keep(&self, runtime: &Runtime, device: &SavedDevice) -> Result<(), UserError> {
        let key = DeviceKey::Minor(device.minor);
        if let Reply::Done(Some(status)) = runtime.request(Request::Status { device: key })? {
            let entry = Entry { saved: device.clone(), unrestored: true, ..Entry::default() };
            self.lock().entries.insert(status.id, entry);
        }
        Ok(())
    }
}

impl Entry {
    /// Takes over what the header says.
    fn note(&mut self, device: &DeviceStatus) {
        self.saved.name = device.name.as_str().to_owned();
        self.saved.uuid = device.uuid.as_ref().map(|uuid| uuid.as_str().to_owned());
        self.saved.minor = device.minor;
        self.saved.suspended = device.suspended && device.live_present;
    }

    /// Asks for the lines of both slots.
    fn note_tables(&mut self, runtime: &Runtime, device: &DeviceStatus) -> Result<(), UserError> {
        if self.unrestored && !device.live_present && !device.inactive_present {
            return Ok(());
        }
        self.unrestored = false;
        let mut slots = [None, None];
        for (slot, inactive) in slots.iter_mut().zip([false, true]) {
            let key = DeviceKey::Id(device.id);
            let request = Request::TableStatus { device: key, inactive, kind: StatusKind::Table };
            // Removed since the list was made: the next settle leaves it out.
            let Ok(Reply::Lines { lines, .. }) = runtime.request(request) else { return Ok(()) };
            if lines.is_empty() {
                continue;
            }
            let printed: Vec<String> = lines.iter().map(printed_line).collect();
            let known = self.texts.iter().find(|text| text.printed == printed);
            *slot = Some(match known {
                Some(known) => known.table.clone(),
                None => SavedTable { read_only: device.read_only && !inactive, lines: printed },
            });
        }
        [self.saved.live, self.saved.inactive] = slots;
        self.noted = true;
        Ok(())
    }
}

fn is_key_of(key: &DeviceKey, device: &DeviceStatus) -> bool {
    match key {
        DeviceKey::Name(name) => device.name.as_str() == name,
        DeviceKey::Uuid(uuid) => device.uuid.as_ref().is_some_and(|own| own.as_str() == uuid),
        DeviceKey::Minor(minor) => device.minor == *minor,
        DeviceKey::Id(id) => device.id == *id,
    }
}

fn printed_by(table: &Table) -> Vec<String> {
    let line = |target: &udm_core::table::TableTarget| {
        printed_line(&StatusLine {
            begin_sector: target.begin_sector,
            len_sectors: target.len_sectors,
            target: target.target_type.name().to_owned(),
            args: target.config.table_args(),
        })
    };
    table.targets.iter().map(line).collect()
}

fn printed_line(line: &StatusLine) -> String {
    let text = format!("{} {} {} {}", line.begin_sector, line.len_sectors, line.target, line.args);
    text.trim_end().to_owned()
}

fn create(runtime: &Runtime, device: &SavedDevice) -> Result<(), UserError> {
    let damaged = |what: String| UserError::new(ErrorCode::StateDamaged, what);
    let name = DmName::new(&device.name).map_err(|error| damaged(error.to_string()))?;
    let uuid = device
        .uuid
        .as_deref()
        .map(DmUuid::new)
        .transpose()
        .map_err(|error| damaged(error.to_string()))?;
    let request = Request::Create { name, uuid, minor: Some(device.minor) };
    runtime
        .request(request)
        .map(drop)
        .map_err(|error| damaged(format!("device '{}' cannot be made again: {error}", device.name)))
}

fn serve_again(exports: &Exports, export: &SavedExport) -> Result<(), UserError> {
    let order = ExportOrder {
        device: DeviceKey::Name(export.device.clone()),
        place: export.place()?,
        name: Some(export.name.clone()),
        read_only: export.read_only,
        tls: export.tls.clone(),
        lanes: export.lanes,
    };
    exports.add(&order, Patience::OldDaemon).map(drop)
}

fn watch(
    runtime: &Runtime,
    watch: &PathWatch,
    device: &SavedDevice,
    words: &PathPolicy,
) -> Result<(), UserError> {
    let device = DeviceKey::Minor(device.minor);
    let found = status_of(runtime.request(Request::Status { device })?)?;
    watch.watch(found.id, words.clone())
}

fn bring_up(
    runtime: &Runtime,
    device: &SavedDevice,
    load: &dyn Fn(&DeviceKey, &str, bool) -> Result<(), UserError>,
) -> Result<(), UserError> {
    let key = DeviceKey::Minor(device.minor);
    if let Some(live) = &device.live {
        load(&key, &live.lines.join("\n"), live.read_only)?;
        runtime.resume(&key, SuspendOptions::default())?;
    }
    if let Some(inactive) = &device.inactive {
        load(&key, &inactive.lines.join("\n"), inactive.read_only)?;
    }
    if device.suspended {
        let reason = "it was suspended when the daemon ended".to_owned();
        runtime.suspend(&key, SuspendOptions { reason, ..SuspendOptions::default() })?;
    }
    Ok(())
}

/// Devices in an order in which what is below comes first. A loop cannot have been saved; if a
/// file has one, its devices come in some order and fail to load.
fn below_first(devices: &[SavedDevice]) -> Vec<&SavedDevice> {
    let below = |device: &SavedDevice| -> Vec<u32> {
        let tables = device.live.iter().chain(&device.inactive);
        let words = tables.flat_map(|table| &table.lines).flat_map(|line| line.split(' '));
        let prefix = format!("{DM_MAJOR}:");
        words.filter_map(|word| word.strip_prefix(&prefix)?.parse().ok()).collect()
    };
    let mut left: Vec<(&SavedDevice, Vec<u32>)> =
        devices.iter().map(|device| (device, below(device))).collect();
    let mut ordered: Vec<&SavedDevice> = Vec::with_capacity(devices.len());
    while !left.is_empty() {
        let waiting: Vec<u32> = left.iter().map(|(device, _)| device.minor).collect();
        let (ready, blocked): (Vec<_>, Vec<_>) = left.into_iter().partition(|(device, below)| {
            below.iter().all(|minor| *minor == device.minor || !waiting.contains(minor))
        });
        if ready.is_empty() {
            ordered.extend(blocked.iter().map(|(device, _)| *device));
            break;
        }
        ordered.extend(ready.iter().map(|(device, _)| *device));
        left = blocked;
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::super::state::{SavedDevice, SavedTable};
    use super::below_first;

    #[test]
    fn what_is_below_is_restored_first_and_loops_end() {
        let device = |name: &str, minor: u32, below: u32| SavedDevice {
            name: name.into(),
            minor,
            live: Some(SavedTable {
                read_only: false,
                lines: vec![format!("0 8 linear 254:{below} 0")],
            }),
            ..SavedDevice::default()
        };
        let names = |devices: &[SavedDevice]| -> Vec<String> {
            below_first(devices).iter().map(|device| device.name.clone()).collect()
        };
        let stack = [device("top", 2, 1), device("middle", 1, 0), device("bottom", 0, 99)];
        assert_eq!(names(&stack), ["bottom", "middle", "top"]);
        let ring = [device("a", 0, 1), device("b", 1, 0)];
        assert_eq!(names(&ring).len(), 2);
    }
}
