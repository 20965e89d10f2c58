//! Commands about tables: load, status, wait, devices below, messages.
//!
//! A load goes to the table builder as parsed lines, never as text. A status brings back as many
//! lines as the caller has room for; a message's answer lies where its words lay.
//!
//! The tricky case is a wait whose device is removed: the removal is an event, so the wait ends
//! well, but by then there is no table to show any more. The header is answered without lines.

use super::layout::{HEADER_LEN_BYTES, flag};
use super::{Call, Refused, lists, specs};
use rustix::io::Errno;
use udm_core::lifecycle::{DeviceKey, DeviceStatus, Reply, Request, StatusKind, StatusLine};
use udm_core::table::split_words;

/// A region's number of statistics that needs the most room; the kernel asks for that much always.
const LONGEST_ID: &str = "2147483647";
/// Where the words of a message begin, from its start: behind the sector.
const WORDS_AT_BYTES: usize = 8;

impl Call<'_> {
    pub(super) fn load(&mut self) -> Result<(), Refused> {
        let (device, _) = self.find()?;
        let lines = specs::read(self.bytes, self.header.data_start, self.header.target_count)?;
        let read_only = self.header.has(flag::READONLY);
        let loaded = self.ops.load_lines(&device, &lines, read_only);
        let settled = self.ops.settle(Some(&device));
        let loaded = loaded?;
        settled?;
        self.header.set(flag::INACTIVE_PRESENT, true);
        self.header.write_status(&loaded);
        Ok(())
    }

    pub(super) fn table_status(&mut self) -> Result<(), Refused> {
        let (device, _) = self.find()?;
        let (device, lines) = self.lines(device)?;
        self.write_lines(&device, &lines);
        Ok(())
    }

    pub(super) fn wait(&mut self) -> Result<(), Refused> {
        let (device, _) = self.find()?;
        let ticket = self.asker.ticket();
        let event_nr = self.header.event_nr;
        let request = Request::Wait { device: device.clone(), event_nr, ticket };
        let woken = self.ask_status(request, Some(ticket))?;
        match self.lines(device) {
            Ok((device, lines)) => self.write_lines(&device, &lines),
            Err(gone) if gone.errno == Errno::NXIO => self.header.write_status(&woken),
            Err(other) => return Err(other),
        }
        Ok(())
    }

    fn lines(
        &mut self,
        device: DeviceKey,
    ) -> Result<(Box<DeviceStatus>, Vec<StatusLine>), Refused> {
        let inactive = self.header.has(flag::QUERY_INACTIVE_TABLE);
        let table = self.header.has(flag::STATUS_TABLE);
        let kind = if table { StatusKind::Table } else { StatusKind::Info };
        match self.ask(Request::TableStatus { device, inactive, kind }, None)? {
            Reply::Lines { device, mut lines } => {
                if !table && self.header.has(flag::IMA_MEASUREMENT) {
                    // No target here has anything to measure.
                    lines.iter_mut().for_each(|line| line.args.clear());
                }
                Ok((device, lines))
            }
            Reply::Done(_) => Err(Refused::no_device()),
            other => Err(crate::dispatch::unexpected(&other).into()),
        }
    }

    fn write_lines(&mut self, device: &DeviceStatus, lines: &[StatusLine]) {
        self.header.write_status(device);
        if lines.is_empty() {
            return;
        }
        let capacity = self.begin_result();
        let written = specs::write(lines, capacity);
        self.header.set(flag::BUFFER_FULL, written.full);
        if written.valid_len_bytes > 0 {
            self.header.data_size = (HEADER_LEN_BYTES + written.valid_len_bytes) as u32;
        }
        self.result = written.bytes;
    }

    pub(super) fn deps(&mut self) -> Result<(), Refused> {
        let (device, _) = self.find()?;
        let inactive = self.header.has(flag::QUERY_INACTIVE_TABLE);
        let (device, deps) = match self.ask(Request::Deps { device, inactive }, None)? {
            Reply::Deps { device, deps } => (device, deps),
            Reply::Done(_) => return Err(Refused::no_device()),
            other => return Err(crate::dispatch::unexpected(&other).into()),
        };
        self.header.write_status(&device);
        let there = if inactive { device.inactive_present } else { device.live_present };
        if there {
            // A file or memory has no number; only what has one can be told.
            let numbers: Vec<_> = deps.into_iter().filter_map(|(number, _)| number).collect();
            let capacity = self.begin_result();
            self.put_result(lists::deps(&numbers, capacity));
        }
        Ok(())
    }

    pub(super) fn message(&mut self) -> Result<(), Refused> {
        let (device, _) = self.find()?;
        let start = self.header.data_start as usize;
        let text = self.text_at(start.saturating_add(WORDS_AT_BYTES))?;
        let sector = self.bytes[start..].first_chunk().copied().map_or(0, u64::from_ne_bytes);
        let text =
            std::str::from_utf8(text).map_err(|_| Refused::invalid("the message is not UTF-8"))?;
        let words = split_words(text);
        let Some(first) = words.first() else {
            return Err(Refused::invalid("the message has no words"));
        };
        let request = if first.eq_ignore_ascii_case("@cancel_deferred_remove") && words.len() == 1 {
            Request::CancelDeferredRemove { device: device.clone() }
        } else {
            Request::Message { device: device.clone(), sector, words }
        };
        let capacity = self.begin_result();
        let reply = match self.peek_stats(&request, capacity)? {
            Some(full) => full,
            None => self.change(request, None)?,
        };
        let after = self.ask_status(Request::Status { device }, None)?;
        self.header.write_status(&after);
        if let Reply::Text(Some(text)) = reply {
            self.header.set(flag::DATA_OUT, true);
            let mut text = text.into_bytes();
            text.push(0);
            // The kernel cannot tell an exact fit from a text cut off.
            self.put_result((text.len() < capacity).then_some(text));
        }
        Ok(())
    }

    /// What two messages about statistics would answer if it does not fit: they change nothing
    /// then. `None` for everything else.
    fn peek_stats(&mut self, request: &Request, room: usize) -> Result<Option<Reply>, Refused> {
        let Request::Message { device, sector, words } = request else { return Ok(None) };
        let Some((verb, rest)) = words.split_first() else { return Ok(None) };
        if verb.eq_ignore_ascii_case("@stats_create") {
            let full = room <= LONGEST_ID.len() + 1;
            return Ok(full.then(|| Reply::Text(Some(LONGEST_ID.to_owned()))));
        }
        if !verb.eq_ignore_ascii_case("@stats_print_clear") {
            return Ok(None);
        }
        let print = core::iter::once("@stats_print").map(str::to_owned);
        let words = print.chain(rest.iter().cloned()).collect();
        let peek = Request::Message { device: device.clone(), sector: *sector, words };
        match self.ask(peek, None)? {
            Reply::Text(Some(text)) if text.len() + 1 >= room => Ok(Some(Reply::Text(Some(text)))),
            _ => Ok(None),
        }
    }
}
