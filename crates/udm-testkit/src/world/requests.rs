//! The life-cycle requests of a [`TestWorld`]: started and looked at later, or done at once.
//!
//! The short forms (`create`, `suspend`, `swap`, ...) panic with the error if a step fails, since a
//! test that uses them is about something else; a test about the error sends the request itself.
//!
//! The tricky case is a request that cannot end yet (a suspend over held I/O): the short forms
//! panic rather than wait, `start` and `answer` are for those.

use super::{Started, TestWorld};
use crate::fake_driver::lock;
use std::sync::Arc;
use udm_core::lifecycle::{
    DeviceKey, DeviceStatus, Gauges, Reply, Request, StatusKind, StatusLine, SuspendOptions,
};
use udm_core::{LaneMessage, UserError};
use udm_types::{DeviceId, DmName, LaneId, Sector};

impl TestWorld {
    /// Starts a request whose answer may need the clock or something else to happen first.
    /// `make` gets a number to use as its ticket, if it has one.
    pub fn start(&mut self, make: impl FnOnce(u64) -> Request) -> Started {
        let started = self.start_quietly(make);
        self.run();
        started
    }

    /// The same without running: for a world that cannot come to rest before.
    pub fn start_quietly(&mut self, make: impl FnOnce(u64) -> Request) -> Started {
        let number = self.take_number();
        let answers = Arc::clone(&self.answers);
        let sink = Box::new(move |answer| {
            let twice = lock(&answers).insert(number, answer);
            assert!(twice.is_none(), "a request was answered twice");
        });
        let request = Box::new(make(number));
        self.engines[0].send(LaneId(0), LaneMessage::Request(request, sink));
        Started(number)
    }

    /// The answer to a started request, once.
    pub fn answer(&mut self, started: Started) -> Option<Result<Reply, UserError>> {
        lock(&self.answers).remove(&started.0)
    }

    /// A request that needs nothing but the lanes.
    ///
    /// # Panics
    /// If all lanes sleep and it has not been answered.
    #[track_caller]
    pub fn request(&mut self, request: Request) -> Result<Reply, UserError> {
        let text = format!("{request:?}");
        let started = self.start(|_| request);
        self.answer(started).unwrap_or_else(|| panic!("no answer to {text}"))
    }

    #[track_caller]
    fn done_or_panic(&mut self, request: Request) -> Option<Box<DeviceStatus>> {
        match self.request(request) {
            Ok(Reply::Done(status)) => status,
            other => panic!("the request failed: {other:?}"),
        }
    }

    /// Makes a device with a live table.
    ///
    /// # Panics
    /// If any step fails.
    #[track_caller]
    pub fn create(&mut self, name: &str, text: &str) -> DeviceId {
        let id = self.create_empty(name);
        self.load(id, text);
        self.resume(id);
        id
    }

    /// Makes a device without tables.
    #[track_caller]
    pub fn create_empty(&mut self, name: &str) -> DeviceId {
        let name = DmName::new(name).expect("a valid name");
        let status = self.done_or_panic(Request::Create { name, uuid: None, minor: None });
        status.expect("create answers with the device").id
    }

    /// Loads a table into the inactive slot; panics if that fails.
    #[track_caller]
    pub fn load(&mut self, device: DeviceId, text: &str) {
        let table = self.build(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        self.done_or_panic(Request::Load { device: DeviceKey::Id(device), table });
    }

    /// Suspends; panics if it fails or does not end by itself.
    #[track_caller]
    pub fn suspend(&mut self, device: DeviceId, noflush: bool) {
        let options = SuspendOptions { noflush, ..SuspendOptions::default() };
        let device = DeviceKey::Id(device);
        self.done_or_panic(Request::Suspend { device, options, ticket: 0 });
    }

    /// Starts a suspend.
    pub fn start_suspend(&mut self, device: DeviceId, options: SuspendOptions) -> Started {
        let device = DeviceKey::Id(device);
        self.start(|ticket| Request::Suspend { device, options, ticket })
    }

    /// Resumes (with the inactive table, if there is one); panics if it fails.
    #[track_caller]
    pub fn resume(&mut self, device: DeviceId) {
        let options = SuspendOptions::default();
        let device = DeviceKey::Id(device);
        self.done_or_panic(Request::Resume { device, options, ticket: 0 });
    }

    /// Suspend, load, resume; panics if a step fails or needs the clock.
    #[track_caller]
    pub fn swap(&mut self, device: DeviceId, text: &str, noflush: bool) {
        self.load(device, text);
        self.suspend(device, noflush);
        self.resume(device);
    }

    /// Load and resume, for a device that is suspended already; panics if a step fails.
    #[track_caller]
    pub fn swap_suspended(&mut self, device: DeviceId, text: &str) {
        self.load(device, text);
        self.resume(device);
    }

    /// Removes a device; panics if it fails.
    #[track_caller]
    pub fn remove(&mut self, device: DeviceId) {
        self.done_or_panic(Request::Remove { device: DeviceKey::Id(device), deferred: false });
    }

    /// The device's header.
    #[track_caller]
    pub fn status(&mut self, device: DeviceId) -> DeviceStatus {
        let status = self.done_or_panic(Request::Status { device: DeviceKey::Id(device) });
        *status.expect("status answers with the device")
    }

    /// The lines of the live table, as `status` or `table` prints them.
    #[track_caller]
    pub fn lines(&mut self, device: DeviceId, kind: StatusKind) -> Vec<StatusLine> {
        let device = DeviceKey::Id(device);
        match self.request(Request::TableStatus { device, inactive: false, kind }) {
            Ok(Reply::Lines { lines, .. }) => lines,
            other => panic!("no lines: {other:?}"),
        }
    }

    /// The arguments of the only line, as `status` or `table` prints them.
    #[track_caller]
    pub fn line_args(&mut self, device: DeviceId, kind: StatusKind) -> String {
        let mut lines = self.lines(device, kind);
        assert_eq!(lines.len(), 1, "one line is expected");
        lines.remove(0).args
    }

    /// The counters.
    #[track_caller]
    pub fn gauges(&mut self, device: DeviceId) -> Gauges {
        match self.request(Request::Gauges { device: DeviceKey::Id(device) }) {
            Ok(Reply::Gauges(gauges)) => *gauges,
            other => panic!("no gauges: {other:?}"),
        }
    }

    /// Sends a message to the target at a sector.
    #[track_caller]
    pub fn message(
        &mut self,
        device: DeviceId,
        sector: Sector,
        words: &[&str],
    ) -> Result<Option<String>, UserError> {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        match self.request(Request::Message { device: DeviceKey::Id(device), sector, words }) {
            Ok(Reply::Text(text)) => Ok(text),
            Ok(other) => panic!("a message was answered with {other:?}"),
            Err(error) => Err(error),
        }
    }
}
