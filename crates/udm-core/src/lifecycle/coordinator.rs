//! The coordinator: requests in, lane commands and answers out.
//!
//! Quick requests are answered at once. What needs the lanes is a *round*: one command to all
//! lanes, and a continuation for when all have answered. Suspend, resume and remove are sequences
//! of rounds, one at a time for each device (`change.rs`); others queue behind, except status
//! requests, which never wait, and a resume, which ends a suspend that cannot finish.

use super::device::{DM_MAJOR, Device, EventWait, Loaded};
use super::events::GlobalEvents;
use super::remove_all::RemovalWave;
use super::request::{
    DeviceKey, DeviceStatus, Gauges, Reply, ReplySink, Request, StatusKind, StatusLine, Ticket,
};
use super::stats;
use crate::bio::Dest;
use crate::engine::{AnswerBody, LaneAnswer, LaneCommand, LaneStep, RegionNumbers, RegionSpec};
use crate::error::{ErrorCode, UserError};
use crate::table::{DeviceRef, Table};
use crate::target::MapMode;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use udm_types::{DeviceId, DmName, DmUuid, LaneId, Nanos, Sector};

/// Most devices of a daemon, and one more than the largest minor number (the kernel's 20 bits).
const DEVICES_MAX: u32 = 1 << 20;

/// What happens when all lanes have answered.
pub(super) enum After {
    /// The next step of the device's change.
    Change,
    /// A table is staged everywhere.
    Staged(Loaded, ReplySink),
    /// A message has been delivered everywhere.
    Message(ReplySink),
    /// Counters of the targets, for `status` and the `table` of targets that show state in it.
    Lines(Arc<Table>, StatusKind, ReplySink),
    /// Counters of the targets, for a message to one of them that asks for nothing else.
    Report(Arc<Table>, usize, Vec<String>, ReplySink),
    /// Counters of the device.
    Gauges(ReplySink),
    /// A statistics region is counted everywhere.
    Stats(Option<String>, ReplySink),
    /// Numbers of some areas of a statistics region.
    StatsPrint(Arc<RegionSpec>, Range<usize>, ReplySink),
}

struct Round {
    device: DeviceId,
    lanes_left: usize,
    error: Option<UserError>,
    bodies: Vec<(LaneId, AnswerBody)>,
    after: After,
}

/// All mapped devices, and what is under way with them.
pub struct Coordinator {
    lanes: usize,
    pub(super) devices: Vec<Option<Device>>,
    free_ids: Vec<u32>,
    names: BTreeMap<DmName, DeviceId>,
    uuids: BTreeMap<DmUuid, DeviceId>,
    minors: BTreeMap<u32, DeviceId>,
    rounds: BTreeMap<u64, Round>,
    last_round: u64,
    last_generation: u64,
    commands: VecDeque<LaneCommand>,
    timers: VecDeque<(Nanos, u64)>,
    /// Devices whose last opener has gone, to be looked at for deferred removal.
    pub(super) closed: BTreeSet<DeviceId>,
    /// `RemoveAll` requests under way.
    pub(super) wave: RemovalWave,
    pub(super) events: GlobalEvents,
    pub(super) now: Nanos,
}

impl Coordinator {
    /// A coordinator of `lanes` lanes, without devices.
    pub fn new(lanes: usize) -> Coordinator {
        Coordinator {
            lanes,
            devices: Vec::new(),
            free_ids: Vec::new(),
            names: BTreeMap::new(),
            uuids: BTreeMap::new(),
            minors: BTreeMap::new(),
            rounds: BTreeMap::new(),
            last_round: 0,
            last_generation: 0,
            commands: VecDeque::new(),
            timers: VecDeque::new(),
            closed: BTreeSet::new(),
            wave: RemovalWave::default(),
            events: GlobalEvents::default(),
            now: Nanos::ZERO,
        }
    }

    /// Takes a request; its answer goes to `sink`, now or later.
    pub fn on_request(&mut self, request: Request, sink: ReplySink, now: Nanos) {
        self.now = now;
        match request {
            Request::Create { name, uuid, minor } => sink(self.create(name, uuid, minor)),
            Request::List => sink(Ok(Reply::List(self.list()))),
            Request::RemoveAll { deferred } => self.remove_all(deferred, sink),
            Request::Cancel { ticket } => sink(self.cancel(ticket)),
            Request::Close { device } => sink(self.close(device)),
            Request::Rename { device, name } => sink(self.rename(&device, name)),
            Request::SetUuid { device, uuid } => sink(self.set_uuid(&device, uuid)),
            Request::CancelDeferredRemove { device } => sink(self.cancel_deferred(&device)),
            Request::Clear { device } => sink(self.clear(&device)),
            Request::Status { device } => sink(self.find(&device).map(|id| self.done(id))),
            Request::Deps { device, inactive } => sink(self.deps(&device, inactive)),
            Request::Lookup { device } => sink(self.lookup(&device)),
            Request::LiveTable { device } => sink(self.live_table(&device)),
            Request::Open { device } => sink(self.open(&device)),
            Request::GlobalEvent => sink(Ok(Reply::Number(self.events.number()))),
            Request::WaitGlobal { event_nr, ticket } => self.events.wait(event_nr, ticket, sink),
            Request::SetGeometry { device, geometry } => {
                sink(self.set_geometry(&device, geometry));
            }
            Request::Load { device, table } => self.load(&device, table, sink),
            Request::TableStatus { device, inactive, kind } => {
                self.table_status(&device, inactive, kind, sink);
            }
            Request::Gauges { device } => self.gauges(&device, sink),
            Request::Message { device, sector, words } => {
                self.message(&device, sector, words, sink);
            }
            Request::Wait { device, event_nr, ticket } => {
                self.wait(&device, event_nr, ticket, sink);
            }
            Request::Suspend { ref device, .. }
            | Request::Resume { ref device, .. }
            | Request::Remove { ref device, .. } => match self.find(device) {
                Ok(id) => self.change(id, request, sink),
                Err(error) => sink(Err(error)),
            },
        }
    }

    /// Takes a lane's answer.
    pub fn on_answer(&mut self, answer: LaneAnswer, now: Nanos) {
        self.now = now;
        let Some(round) = self.rounds.get_mut(&answer.round) else {
            // The answer of a suspend that was given up meanwhile.
            return;
        };
        round.lanes_left -= 1;
        match answer.outcome {
            Ok(body) => round.bodies.push((answer.lane, body)),
            Err(error) => round.error = Some(error),
        }
        if round.lanes_left == 0
            && let Some(round) = self.rounds.remove(&answer.round)
        {
            self.round_over(round);
        }
    }

    /// A target of the device raised an event.
    pub fn on_event(&mut self, id: DeviceId) {
        let now = self.now;
        let Some(device) = self.device_mut(id) else { return };
        device.event_nr = device.event_nr.wrapping_add(1);
        let status = device.status(now);
        for wait in core::mem::take(&mut device.waits) {
            (wait.sink)(Ok(Reply::Done(Some(Box::new(status.clone())))));
        }
        self.events.raise();
    }

    /// A timer fired: the deadline of the suspend whose round it names.
    pub fn on_timer(&mut self, round: u64, now: Nanos) {
        self.now = now;
        if let Some(round) = self.rounds.get(&round)
            && matches!(round.after, After::Change)
        {
            let id = round.device;
            self.deadline_passed(id);
        }
    }

    /// Removes devices whose removal waited: for their last close, or for what stood on them.
    pub fn settle(&mut self) {
        while let Some(id) = self.closed.pop_first() {
            let due = self.device(id).is_some_and(|device| {
                device.deferred_remove && !device.deleting && device.open_count() == 0
            });
            if due {
                let request = Request::Remove { device: DeviceKey::Id(id), deferred: false };
                self.change(id, request, Box::new(|_| {}));
            }
        }
        self.roll_wave();
    }

    /// The next command for all lanes.
    pub fn next_command(&mut self) -> Option<LaneCommand> {
        self.commands.pop_front()
    }

    /// The next timer to set.
    pub fn next_timer(&mut self) -> Option<(Nanos, u64)> {
        self.timers.pop_front()
    }

    pub(super) fn device(&self, id: DeviceId) -> Option<&Device> {
        self.devices.get(id.index())?.as_ref()
    }

    pub(super) fn device_mut(&mut self, id: DeviceId) -> Option<&mut Device> {
        self.devices.get_mut(id.index())?.as_mut()
    }

    /// An opener of the device has gone.
    pub(super) fn closed_one(&mut self, id: DeviceId) {
        self.closed.insert(id);
    }

    /// Sends a command to all lanes and goes on with `after` when all have answered.
    pub(super) fn round(&mut self, device: DeviceId, step: LaneStep, after: After) -> u64 {
        self.last_round += 1;
        let number = self.last_round;
        let round =
            Round { device, lanes_left: self.lanes, error: None, bodies: Vec::new(), after };
        self.rounds.insert(number, round);
        self.commands.push_back(LaneCommand { device, round: Some(number), step });
        number
    }

    /// Forgets a round; late answers are ignored.
    pub(super) fn drop_round(&mut self, round: u64) {
        self.rounds.remove(&round);
    }

    /// Sends a command nobody waits for.
    pub(super) fn tell(&mut self, device: DeviceId, step: LaneStep) {
        self.commands.push_back(LaneCommand { device, round: None, step });
    }

    pub(super) fn set_timer(&mut self, deadline: Nanos, round: u64) {
        self.timers.push_back((deadline, round));
    }

    /// `Done` with the device as it is now.
    pub(super) fn done(&self, id: DeviceId) -> Reply {
        Reply::Done(self.device(id).map(|device| Box::new(device.status(self.now))))
    }

    /// Frees names and numbers of a device that is being removed.
    pub(super) fn unlink(&mut self, id: DeviceId) {
        let Some(device) = self.devices.get(id.index()).and_then(Option::as_ref) else { return };
        self.names.remove(&device.name);
        if let Some(uuid) = &device.uuid {
            self.uuids.remove(uuid);
        }
        self.minors.remove(&device.minor);
    }

    /// Forgets a device all lanes have forgotten.
    pub(super) fn forget(&mut self, id: DeviceId) {
        self.devices[id.index()] = None;
        self.free_ids.push(id.0);
        self.wave.answered(id);
    }

    fn round_over(&mut self, round: Round) {
        let Round { device: id, error, bodies, after, .. } = round;
        match after {
            After::Change => self.change_step(id, error),
            After::Staged(loaded, sink) => self.staged(id, loaded, error, sink),
            After::Message(sink) => sink(match error {
                Some(error) => Err(error),
                None => Ok(Reply::Text(first_text(bodies))),
            }),
            After::Lines(table, kind, sink) => self.live_lines(id, &table, kind, &bodies, sink),
            After::Report(table, target, words, sink) => {
                let sums = summed(&table, &bodies);
                let text = table.targets[target].config.report(&words, &sums[target]);
                sink(text.map(|text| Reply::Text(Some(text))));
            }
            After::Stats(text, sink) => sink(Ok(Reply::Text(text))),
            After::StatsPrint(spec, areas, sink) => {
                let mut numbers = RegionNumbers::default();
                for (_, body) in &bodies {
                    if let AnswerBody::Region(lane) = body {
                        numbers.add(lane);
                    }
                }
                sink(Ok(Reply::Text(Some(stats::print(&spec, areas, &numbers)))));
            }
            After::Gauges(sink) => {
                let mut gauges = Gauges::default();
                for (_, body) in &bodies {
                    if let AnswerBody::Gauges(lane) = body {
                        gauges.add(lane);
                    }
                }
                gauges.device = self.device(id).map(|device| device.status(self.now));
                sink(Ok(Reply::Gauges(Box::new(gauges))));
            }
        }
    }

    /// Finds the device a key names.
    pub(super) fn find(&self, key: &DeviceKey) -> Result<DeviceId, UserError> {
        let found = match key {
            DeviceKey::Name(name) => {
                DmName::new(name).ok().and_then(|name| self.names.get(&name).copied())
            }
            DeviceKey::Uuid(uuid) => {
                DmUuid::new(uuid).ok().and_then(|uuid| self.uuids.get(&uuid).copied())
            }
            DeviceKey::Minor(minor) => self.minors.get(minor).copied(),
            DeviceKey::Id(id) => {
                self.device(*id).filter(|device| !device.deleting).map(|device| device.id)
            }
        };
        found.ok_or_else(|| {
            let what = match key {
                DeviceKey::Name(name) => format!("there is no mapped device '{name}'"),
                DeviceKey::Uuid(uuid) => format!("there is no mapped device with uuid '{uuid}'"),
                DeviceKey::Minor(minor) => format!("there is no mapped device {DM_MAJOR}:{minor}"),
                DeviceKey::Id(_) => String::from("the mapped device is gone"),
            };
            UserError::new(ErrorCode::NoSuchDevice, what)
        })
    }

    fn create(
        &mut self,
        name: DmName,
        uuid: Option<DmUuid>,
        minor: Option<u32>,
    ) -> Result<Reply, UserError> {
        let minor = match minor {
            Some(minor) if minor >= DEVICES_MAX || self.minors.contains_key(&minor) => {
                let text = format!("minor number {minor} is not available");
                return Err(UserError::new(ErrorCode::MinorTaken, text));
            }
            Some(minor) => minor,
            None => self.lowest_free_minor()?,
        };
        if self.names.contains_key(&name) {
            let text = format!("a device named '{name}' exists");
            return Err(UserError::new(ErrorCode::NameTaken, text));
        }
        if let Some(uuid) = uuid.as_ref().filter(|uuid| self.uuids.contains_key(*uuid)) {
            let text = format!("a device with uuid '{uuid}' exists");
            return Err(UserError::new(ErrorCode::UuidTaken, text));
        }
        let id = DeviceId(self.free_ids.pop().unwrap_or_else(|| {
            self.devices.push(None);
            self.devices.len() as u32 - 1
        }));
        self.names.insert(name.clone(), id);
        if let Some(uuid) = uuid.clone() {
            self.uuids.insert(uuid, id);
        }
        self.minors.insert(minor, id);
        self.devices[id.index()] = Some(Device {
            id,
            name,
            uuid,
            minor,
            mode: None,
            live: None,
            inactive: None,
            suspended: None,
            unsettled: false,
            opens: 0,
            users: BTreeMap::new(),
            event_nr: 0,
            geometry: None,
            regions: Vec::new(),
            deferred_remove: false,
            deleting: false,
            change: None,
            queue: VecDeque::new(),
            waits: Vec::new(),
        });
        self.tell(id, LaneStep::Create);
        self.events.raise();
        Ok(self.done(id))
    }

    fn lowest_free_minor(&self) -> Result<u32, UserError> {
        let mut free = 0;
        for minor in self.minors.keys() {
            if *minor != free {
                break;
            }
            free += 1;
        }
        if free < DEVICES_MAX {
            return Ok(free);
        }
        Err(UserError::new(ErrorCode::TooManyDevices, "all minor numbers are in use"))
    }

    fn list(&self) -> Vec<DeviceStatus> {
        let ids = self.names.values();
        ids.filter_map(|id| self.device(*id)).map(|device| device.status(self.now)).collect()
    }

    fn rename(&mut self, key: &DeviceKey, name: DmName) -> Result<Reply, UserError> {
        if self.names.contains_key(&name) {
            let text = format!("a device named '{name}' exists");
            return Err(UserError::new(ErrorCode::NameTaken, text));
        }
        let id = self.find(key)?;
        let Some(device) = self.devices[id.index()].as_mut() else { return Ok(Reply::Done(None)) };
        let old = core::mem::replace(&mut device.name, name.clone());
        self.names.remove(&old);
        self.names.insert(name, id);
        self.raise_if_live(id);
        self.events.raise();
        Ok(self.done(id))
    }

    fn set_uuid(&mut self, key: &DeviceKey, uuid: DmUuid) -> Result<Reply, UserError> {
        if self.uuids.contains_key(&uuid) {
            let text = format!("a device with uuid '{uuid}' exists");
            return Err(UserError::new(ErrorCode::UuidTaken, text));
        }
        let id = self.find(key)?;
        let Some(device) = self.devices[id.index()].as_mut() else { return Ok(Reply::Done(None)) };
        if device.uuid.is_some() {
            let text = "a uuid is set once in a device's life";
            return Err(UserError::new(ErrorCode::UuidAlreadySet, text));
        }
        device.uuid = Some(uuid.clone());
        self.uuids.insert(uuid, id);
        self.raise_if_live(id);
        self.events.raise();
        Ok(self.done(id))
    }

    pub(super) fn raise_if_live(&mut self, id: DeviceId) {
        if self.device(id).is_some_and(|device| device.live.is_some()) {
            self.on_event(id);
        }
    }

    fn cancel_deferred(&mut self, key: &DeviceKey) -> Result<Reply, UserError> {
        let id = self.find(key)?;
        if let Some(device) = self.device_mut(id) {
            device.deferred_remove = false;
        }
        Ok(self.done(id))
    }

    fn clear(&mut self, key: &DeviceKey) -> Result<Reply, UserError> {
        let id = self.find(key)?;
        if let Some(loaded) = self.device_mut(id).and_then(|device| device.inactive.take()) {
            self.discard_table(id, loaded);
        }
        Ok(self.done(id))
    }

    /// Drops a table that will not go live.
    pub(super) fn discard_table(&mut self, id: DeviceId, loaded: Loaded) {
        self.tell(id, LaneStep::Unstage { generation: loaded.generation });
        self.release_uses(id, &loaded.table);
    }

    fn open(&mut self, key: &DeviceKey) -> Result<Reply, UserError> {
        let id = self.find(key)?;
        if let Some(device) = self.device_mut(id) {
            device.opens += 1;
        }
        Ok(self.done(id))
    }

    fn close(&mut self, id: DeviceId) -> Result<Reply, UserError> {
        if let Some(device) = self.device_mut(id) {
            device.opens = device.opens.saturating_sub(1);
        }
        self.closed_one(id);
        Ok(self.done(id))
    }

    fn deps(&self, key: &DeviceKey, inactive: bool) -> Result<Reply, UserError> {
        let id = self.find(key)?;
        let Some(device) = self.device(id) else { return Ok(Reply::Done(None)) };
        let slot = if inactive { &device.inactive } else { &device.live };
        let deps = slot.as_ref().map_or_else(Vec::new, |loaded| loaded.table.deps());
        Ok(Reply::Deps { device: Box::new(device.status(self.now)), deps })
    }

    fn live_table(&self, key: &DeviceKey) -> Result<Reply, UserError> {
        let id = self.find(key)?;
        let Some(device) = self.device(id) else { return Ok(Reply::Done(None)) };
        let table = device.live.as_ref().map(|loaded| Arc::clone(&loaded.table));
        Ok(Reply::Table { device: Box::new(device.status(self.now)), table })
    }

    fn lookup(&self, key: &DeviceKey) -> Result<Reply, UserError> {
        let id = self.find(key)?;
        let Some(device) = self.device(id) else { return Ok(Reply::Done(None)) };
        let Some(live) = &device.live else {
            let text = format!("'{}' has no live table, so it has no size yet", device.name);
            return Err(UserError::new(ErrorCode::NoTable, text)
                .hint(format!("load a table and `udm resume {}`", device.name)));
        };
        Ok(Reply::Device(Box::new(DeviceRef {
            dest: Dest::Device(id),
            shown: format!("{DM_MAJOR}:{}", device.minor),
            len_sectors: live.table.len_sectors,
            limits: live.table.limits.clone(),
            number: Some((DM_MAJOR, device.minor)),
            lower: None,
        })))
    }

    fn load(&mut self, key: &DeviceKey, table: Arc<Table>, sink: ReplySink) {
        match self.find(key).and_then(|id| Ok((id, self.check_load(id, &table)?))) {
            Err(error) => sink(Err(error)),
            Ok((id, mode)) => {
                self.last_generation += 1;
                let loaded = Loaded { generation: self.last_generation, table, mode };
                // Uses are taken now, so that what is below cannot go while lanes stage the table.
                self.take_uses(id, &loaded.table);
                let step = LaneStep::Stage {
                    generation: loaded.generation,
                    table: Arc::clone(&loaded.table),
                    mode,
                };
                self.round(id, step, After::Staged(loaded, sink));
            }
        }
    }

    /// What refuses a load; whether the table maps bios or requests.
    fn check_load(&self, id: DeviceId, table: &Table) -> Result<MapMode, UserError> {
        self.check_stack(id, table)?;
        let live = self.device(id).and_then(|device| device.live.as_ref());
        if let Some(immutable) = live.and_then(|live| live.table.immutable_type())
            && !table.has_wildcard()
            && table.immutable_type() != Some(immutable)
        {
            let text = format!("the live table's type '{immutable}' cannot be replaced by another");
            return Err(UserError::new(ErrorCode::TypeRule, text));
        }
        self.mode_of_load(id, table)
    }

    fn staged(&mut self, id: DeviceId, loaded: Loaded, error: Option<UserError>, sink: ReplySink) {
        let gone = self.device(id).is_none_or(|device| device.deleting);
        if error.is_some() || gone {
            self.discard_table(id, loaded);
            let gone = UserError::new(ErrorCode::NoSuchDevice, "the device was removed meanwhile");
            return sink(Err(error.unwrap_or(gone)));
        }
        // Another first load may have ended while this one was staged.
        if let Err(error) = self.fix_mode(id, loaded.mode) {
            self.discard_table(id, loaded);
            return sink(Err(error));
        }
        let old = self.device_mut(id).and_then(|device| device.inactive.replace(loaded));
        if let Some(old) = old {
            self.discard_table(id, old);
        }
        sink(Ok(self.done(id)));
    }

    fn table_status(&mut self, key: &DeviceKey, inactive: bool, kind: StatusKind, sink: ReplySink) {
        let id = match self.find(key) {
            Ok(id) => id,
            Err(error) => return sink(Err(error)),
        };
        let Some(device) = self.device(id) else { return sink(Ok(Reply::Done(None))) };
        let slot = if inactive { &device.inactive } else { &device.live };
        let Some((table, generation)) =
            slot.as_ref().map(|loaded| (Arc::clone(&loaded.table), loaded.generation))
        else {
            let device = Box::new(device.status(self.now));
            return sink(Ok(Reply::Lines { device, lines: Vec::new() }));
        };
        match (kind, inactive) {
            (StatusKind::Info, false) => {
                let step = LaneStep::Counters { generation };
                self.round(id, step, After::Lines(table, kind, sink));
            }
            (StatusKind::Table, false) if table.shows_state() => {
                let step = LaneStep::Counters { generation };
                self.round(id, step, After::Lines(table, kind, sink));
            }
            (StatusKind::Info, true) => self.live_lines(id, &table, kind, &[], sink),
            (StatusKind::Table, _) => {
                let device = Box::new(device.status(self.now));
                let lines = lines_of(&table, |index| table.targets[index].config.table_args());
                sink(Ok(Reply::Lines { device, lines }));
            }
        }
    }

    /// `status`, or a `table` that shows state, with the counters of all lanes summed.
    fn live_lines(
        &self,
        id: DeviceId,
        table: &Table,
        kind: StatusKind,
        bodies: &[(LaneId, AnswerBody)],
        sink: ReplySink,
    ) {
        let sums = summed(table, bodies);
        let Some(device) = self.device(id) else { return sink(Ok(Reply::Done(None))) };
        let lines = lines_of(table, |index| {
            let config = &table.targets[index].config;
            match kind {
                StatusKind::Info => config.status_args(&sums[index]),
                StatusKind::Table => config.live_table_args(&sums[index]),
            }
        });
        sink(Ok(Reply::Lines { device: Box::new(device.status(self.now)), lines }));
    }

    fn gauges(&mut self, key: &DeviceKey, sink: ReplySink) {
        match self.find(key) {
            Ok(id) => {
                self.round(id, LaneStep::Gauges, After::Gauges(sink));
            }
            Err(error) => sink(Err(error)),
        }
    }

    fn message(&mut self, key: &DeviceKey, sector: Sector, words: Vec<String>, sink: ReplySink) {
        let id = match self.find(key) {
            Ok(id) => id,
            Err(error) => return sink(Err(error)),
        };
        match words.first().map(String::as_str) {
            None => {
                let text = "a message has at least one word";
                return sink(Err(UserError::new(ErrorCode::BadMessage, text)));
            }
            Some("@cancel_deferred_remove") if words.len() == 1 => {
                return sink(self.cancel_deferred(key).map(|_| Reply::Text(None)));
            }
            Some(word) if is_stats(word) => return self.stats_message(id, &words, sink),
            Some(word) if word.starts_with('@') => {
                return sink(Err(UserError::unknown_message(&words)));
            }
            Some(_) => {}
        }
        let Some(live) = self.device(id).and_then(|device| device.live.as_ref()) else {
            let text = "there is no live table to send a message to";
            return sink(Err(UserError::new(ErrorCode::NoTable, text)));
        };
        let Some(target) = live.table.target_at(sector) else {
            let text = format!("sector {sector} is beyond the end of the live table");
            return sink(Err(UserError::new(ErrorCode::NoTargetThere, text)));
        };
        if live.table.targets[target].config.is_report(&words) {
            let step = LaneStep::Counters { generation: live.generation };
            let after = After::Report(Arc::clone(&live.table), target, words, sink);
            self.round(id, step, after);
            return;
        }
        let step = LaneStep::Message { target: target as u32, words: words.into() };
        self.round(id, step, After::Message(sink));
    }

    fn wait(&mut self, key: &DeviceKey, event_nr: u32, ticket: Ticket, sink: ReplySink) {
        let id = match self.find(key) {
            Ok(id) => id,
            Err(error) => return sink(Err(error)),
        };
        let reply = self.done(id);
        match self.device_mut(id) {
            Some(device) if device.event_nr == event_nr => {
                device.waits.push(EventWait { ticket, sink });
            }
            Some(_) | None => sink(Ok(reply)),
        }
    }

    fn cancel(&mut self, ticket: Ticket) -> Result<Reply, UserError> {
        self.events.cancel(ticket);
        let ids: Vec<DeviceId> = self.devices.iter().flatten().map(|device| device.id).collect();
        for id in ids {
            let Some(device) = self.device_mut(id) else { continue };
            if let Some(at) = device.waits.iter().position(|wait| wait.ticket == ticket) {
                let wait = device.waits.remove(at);
                let text = "the wait was given up";
                (wait.sink)(Err(UserError::new(ErrorCode::SuspendCancelled, text)));
            }
            self.cancel_change(id, ticket);
        }
        Ok(Reply::Done(None))
    }
}

/// True for a message about statistics; upper and lower case are one.
fn is_stats(word: &str) -> bool {
    word.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("@stats_"))
}

/// The counters of a table's targets, summed over the lanes.
fn summed(table: &Table, bodies: &[(LaneId, AnswerBody)]) -> Vec<Vec<u64>> {
    let mut sums: Vec<Vec<u64>> = table.targets.iter().map(|_| Vec::new()).collect();
    for (_, body) in bodies {
        let AnswerBody::Counters(targets) = body else { continue };
        for (sum, counters) in sums.iter_mut().zip(targets) {
            if sum.len() < counters.len() {
                sum.resize(counters.len(), 0);
            }
            sum.iter_mut().zip(counters).for_each(|(sum, counter)| *sum += counter);
        }
    }
    sums
}

fn first_text(bodies: Vec<(LaneId, AnswerBody)>) -> Option<String> {
    let mut texts: Vec<(LaneId, Option<String>)> = bodies
        .into_iter()
        .map(|(lane, body)| match body {
            AnswerBody::Text(text) => (lane, text),
            AnswerBody::Done
            | AnswerBody::Counters(_)
            | AnswerBody::Gauges(_)
            | AnswerBody::Region(_) => (lane, None),
        })
        .collect();
    texts.sort();
    texts.into_iter().find_map(|(_, text)| text)
}

fn lines_of(table: &Table, args: impl Fn(usize) -> String) -> Vec<StatusLine> {
    let lines = table.targets.iter().enumerate().map(|(index, target)| StatusLine {
        begin_sector: target.begin_sector,
        len_sectors: target.len_sectors,
        target: target.target_type.name().into(),
        args: args(index),
    });
    lines.collect()
}
