//! An NBD export as one lane sees it: bios to requests and back.
//!
//! Called by the engine with bios, the ends of operations and timers; calls the lane's driver
//! through [`LowerCx`]. `link` makes and ends connections, `transfer` moves bytes; here is what
//! becomes of a bio:
//!
//! ```text
//!  submit --> refused: fenced, read-only, beyond the end, no connection
//!         --> waits: every connection is full, or the very first one is still being made
//!         --> slot: flush first (PREFLUSH) --> work, in pieces --> flush after (FUA without FUA)
//! ```
//!
//! Rules. A bio keeps its connection through all stages. Nothing is sent a second time: when a
//! connection breaks, its bios end, and whoever submitted them decides. Requests of a turn go out
//! together at its end.
//!
//! The tricky case is `abort`. The chosen bios are answered at once. What was asked of the server
//! cannot be taken back, so until it has answered, or the connection has gone, the device is
//! fenced if a change is among it: a write that lands late must not hit newer data. (After the
//! connection has gone the protocol gives no means to know; see docs/lower-devices.md.)

use super::connection::{Connection, IN_FLIGHT_MAX, Link};
use super::handshake::Agreed;
use super::relay::{Desk, OP_BELL};
use super::requests::{Owner, Requests, Stage};
use super::state::NbdShared;
use super::status::status_from_error;
use super::wire::{
    CAN_MULTI_CONN, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE,
    CMD_WRITE_ZEROES, ERROR_SHUTDOWN, REQUEST_BYTES_MAX, RequestHead, SEND_FLUSH, SEND_FUA,
    SEND_TRIM, SEND_WRITE_ZEROES,
};
use std::collections::VecDeque;
use std::sync::Arc;
use udm_core::{Bio, BioBox, LowerCx, LowerLane};
use udm_lane::{Buf, Completion, Errno, Payload, Segment};
use udm_types::{BioFlags, Nanos, Op, SECTOR_BYTES, Status};

/// Most bios of one lane with the server at once; others wait in order. Four full connections, and
/// bounds the table that a timeout looks through.
const SLOTS_MAX: usize = 1024;

/// Longest trim or write-zeroes asked for at once, so that one stays within the timeout.
pub(super) const RANGE_BYTES_MAX: u64 = 1 << 30;

/// Largest payload of a request, whatever the server would take.
const PIECE_BYTES_CAP: u32 = 32 << 20;

/// Zeroes are written in pieces of this size where the server has no write-zeroes.
const ZERO_PIECE_BYTES: u64 = 256 << 10;

const DURABLE: BioFlags = BioFlags::FUA.union(BioFlags::ORDERED);
const FLUSH_FIRST: BioFlags = BioFlags::PREFLUSH.union(BioFlags::ORDERED);

/// What a lane is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The first connection is being made; bios wait for it.
    Fresh,
    /// At work, connected or not.
    Working,
    /// No table wants it.
    LetGo,
}

/// One lane's part of an export.
pub(super) struct NbdLane {
    pub(super) shared: Arc<NbdShared>,
    pub(super) lane: u16,
    pub(super) phase: Phase,
    pub(super) connections: Vec<Connection>,
    pub(super) requests: Requests,
    /// Bios without a slot or a connection yet. Bounded by what the submitters have in flight.
    waiting: VecDeque<Owner>,
    piece_bytes_max: u64,
    /// [`ZERO_PIECE_BYTES`] of zeroes, made when first needed and only ever read.
    zeroes: Option<Buf>,
    /// Failed flushes this lane has told somebody about.
    flush_failures_seen: u64,
    pub(super) wants_turn_end: bool,
    /// Where lanes meet if there is one connection for all of them.
    pub(super) desk: Option<Desk>,
}

/// The largest payload for an export: whole blocks.
pub(super) fn piece_bytes_max(agreed: &Agreed) -> u32 {
    let block_bytes = agreed.block_bytes_min.max(SECTOR_BYTES as u32);
    let most = agreed.payload_bytes_max.min(PIECE_BYTES_CAP);
    (most / block_bytes * block_bytes).max(block_bytes)
}

impl NbdLane {
    /// A lane's part, with its connections begun.
    ///
    /// # Errors
    /// The kernel's, if there are no descriptors left.
    pub(super) fn open(shared: Arc<NbdShared>, cx: &mut LowerCx<'_>) -> Result<NbdLane, Errno> {
        let is_shared = !shared.promise.agreed.has(CAN_MULTI_CONN);
        let count = if is_shared { 1 } else { shared.options.connections };
        let piece_bytes_max = u64::from(piece_bytes_max(&shared.promise.agreed));
        let mut lane = NbdLane {
            lane: cx.lane.0,
            phase: Phase::Fresh,
            connections: (0..count).map(Connection::new).collect(),
            requests: Requests::default(),
            waiting: VecDeque::new(),
            piece_bytes_max,
            zeroes: None,
            flush_failures_seen: shared.flush_failures(),
            wants_turn_end: false,
            desk: None,
            shared,
        };
        if is_shared {
            lane.desk = Some(Desk::open(&lane.shared.relay, lane.lane, cx)?);
            lane.listen(cx);
        }
        if !lane.is_away() {
            lane.connect_all(cx);
        }
        Ok(lane)
    }

    /// The answer to a bio that needs no server.
    fn answer(&self, bio: &Bio) -> Option<Status> {
        if self.shared.is_fenced() {
            return Some(Status::Offline);
        }
        let promise = &self.shared.promise;
        if bio.op == Op::Flush {
            return (!promise.agreed.has(SEND_FLUSH)).then_some(Status::Ok);
        }
        if bio.op.is_write() && promise.read_only {
            return Some(Status::ReadOnly);
        }
        if bio.end_sector() > self.shared.len_sectors() {
            return Some(Status::IoErr);
        }
        if bio.op.has_data() && bio.payload.len_bytes() != bio.len_sectors * SECTOR_BYTES {
            return Some(Status::Invalid);
        }
        if bio.op == Op::Discard && !promise.agreed.has(SEND_TRIM) {
            return Some(Status::NotSupported);
        }
        let nothing = bio.len_sectors == 0 && !bio.flags.intersects(FLUSH_FIRST);
        nothing.then_some(Status::Ok)
    }

    /// A table came back before this part was closed.
    fn revive(&mut self, cx: &mut LowerCx<'_>) {
        self.phase = Phase::Fresh;
        self.open_desk(cx);
        if !self.is_away() {
            self.connect_all(cx);
        }
    }

    /// Starts work, lets it wait, or refuses it.
    pub(super) fn take(&mut self, owner: Owner, cx: &mut LowerCx<'_>) {
        match self.choose() {
            Some(number) if self.requests.taken_count() < SLOTS_MAX => {
                self.start(owner, number, cx);
            }
            Some(_) => self.waiting.push_back(owner),
            None if self.phase == Phase::Fresh || self.is_any_up() => {
                self.waiting.push_back(owner);
            }
            None => self.answer_owner(owner, Status::Transport, cx),
        }
    }

    /// Tells whoever asked how it ended.
    fn answer_owner(&mut self, owner: Owner, status: Status, cx: &mut LowerCx<'_>) {
        match owner {
            Owner::Bio(bio) => cx.complete(bio, status),
            Owner::Relayed(job) => self.tell_done(job, status, cx),
            Owner::Abandoned(true) => self.shared.unfence(),
            Owner::Abandoned(false) | Owner::Nobody => {}
        }
    }

    pub(super) fn is_any_up(&self) -> bool {
        self.connections.iter().any(Connection::is_up)
    }

    /// The connection with the fewest requests, if it has room.
    #[inline]
    fn choose(&self) -> Option<u16> {
        self.connections
            .iter()
            .filter(|connection| connection.is_up() && connection.in_flight < IN_FLIGHT_MAX)
            .min_by_key(|connection| connection.in_flight)
            .map(|connection| connection.number)
    }

    fn start(&mut self, owner: Owner, number: u16, cx: &mut LowerCx<'_>) {
        let can_flush = self.shared.promise.agreed.has(SEND_FLUSH);
        let index = self.requests.insert(owner, number);
        let slot = self.requests.get(index);
        let flush_first = slot.op == Op::Flush || (can_flush && slot.flags.intersects(FLUSH_FIRST));
        slot.stage = if flush_first { Stage::FlushFirst } else { Stage::Work };
        if slot.stage == Stage::Work && slot.total_bytes == 0 {
            // A pre-flush without data, at a server that has nothing to flush.
            return self.finish(index, Status::Ok, cx);
        }
        self.issue(index, cx);
    }

    /// Makes the slot's next request.
    fn issue(&mut self, index: u32, cx: &mut LowerCx<'_>) {
        let agreed = &self.shared.promise.agreed;
        let slot = self.requests.get(index);
        let left = slot.total_bytes - slot.done_bytes;
        let durable = slot.flags.intersects(DURABLE) && agreed.has(SEND_FUA);
        let fua = if durable { CMD_FLAG_FUA } else { 0 };
        let keep = slot.flags.contains(BioFlags::NO_UNMAP);
        let no_hole = if keep { CMD_FLAG_NO_HOLE } else { 0 };
        let range = left.min(RANGE_BYTES_MAX);
        let (command, flags, len) = match (slot.stage, slot.op) {
            (Stage::FlushFirst | Stage::FlushAfter, _) | (Stage::Work, Op::Flush) => {
                (CMD_FLUSH, 0, 0)
            }
            (Stage::Work, Op::Read) => (CMD_READ, 0, left.min(self.piece_bytes_max)),
            (Stage::Work, Op::Write) => (CMD_WRITE, fua, left.min(self.piece_bytes_max)),
            (Stage::Work, Op::Discard) => (CMD_TRIM, fua, range),
            (Stage::Work, Op::WriteZeroes) if agreed.has(SEND_WRITE_ZEROES) => {
                (CMD_WRITE_ZEROES, fua | no_hole, range)
            }
            (Stage::Work, Op::WriteZeroes) => {
                (CMD_WRITE, fua, left.min(ZERO_PIECE_BYTES).min(self.piece_bytes_max))
            }
        };
        let offset_bytes = if len == 0 { 0 } else { slot.start_bytes + slot.done_bytes };
        let number = slot.request.connection;
        // Every length was cut to less than 4 GiB.
        let len_bytes = len as u32;
        let cookie = self.requests.begin(index, command, offset_bytes, len_bytes, cx.now);
        let head = RequestHead { flags, command, cookie, offset_bytes, len_bytes };
        self.queue(index, number, &head, cx);
    }

    /// Puts a request into its connection's outbox.
    fn queue(&mut self, index: u32, number: u16, head: &RequestHead, cx: &mut LowerCx<'_>) {
        let connection = &mut self.connections[usize::from(number)];
        let Link::Up { style, .. } = connection.link else {
            debug_assert!(false, "only a connection that is up gets requests");
            return self.finish(index, Status::Transport, cx);
        };
        let mut bytes = [0; REQUEST_BYTES_MAX];
        let head_bytes = head.encode(style, &mut bytes);
        connection.outbox.push(&bytes[..head_bytes]);
        let len_bytes = u64::from(head.len_bytes);
        connection.in_flight += 1;
        match head.command {
            CMD_READ => {
                connection.reads += 1;
                connection.read_bytes += len_bytes;
            }
            CMD_WRITE => {
                let slot = self.requests.get(index);
                let (op, at) = (slot.op, slot.done_bytes);
                match (op, slot.payload()) {
                    (Op::Write, Some(payload)) => {
                        connection.outbox.push_data(payload, at, len_bytes);
                    }
                    _ => {
                        let make = || Buf::alloc(ZERO_PIECE_BYTES as usize);
                        let buf = self.zeroes.get_or_insert_with(make).clone();
                        let len_bytes = head.len_bytes;
                        let zeroes = Payload::from(Segment { buf, offset_bytes: 0, len_bytes });
                        connection.outbox.push_data(&zeroes, 0, u64::from(len_bytes));
                    }
                }
            }
            _ => {}
        }
        self.watch(usize::from(number), cx);
        self.want_turn_end(cx);
    }

    #[inline]
    pub(super) fn want_turn_end(&mut self, cx: &mut LowerCx<'_>) {
        if !self.wants_turn_end {
            self.wants_turn_end = true;
            cx.want_turn_end();
        }
    }

    /// The server has answered a slot's request.
    pub(super) fn over(&mut self, index: u32, cx: &mut LowerCx<'_>) {
        self.requests.end(index);
        let slot = self.requests.get(index);
        let (command, error) = (slot.request.command, slot.request.error);
        let at = usize::from(slot.request.connection);
        let connection = &mut self.connections[at];
        connection.in_flight -= 1;
        if command == CMD_READ {
            connection.reads -= 1;
            connection.read_bytes -= u64::from(slot.request.len_bytes);
        }
        connection.has_answered = true;
        connection.failures = 0;
        if error == 0 && command != CMD_FLUSH {
            slot.done_bytes += u64::from(slot.request.len_bytes);
        }
        let is_durable = slot.flags.intersects(DURABLE) && command != CMD_READ;
        match (&slot.owner, error) {
            (Owner::Abandoned(_) | Owner::Nobody, _) => self.finish(index, Status::Ok, cx),
            (Owner::Bio(_) | Owner::Relayed(_), 0) if command == CMD_FLUSH => {
                self.flushed(index, cx)
            }
            (Owner::Bio(_) | Owner::Relayed(_), 0) => self.advance(index, cx),
            (Owner::Bio(_) | Owner::Relayed(_), error) => {
                if command == CMD_FLUSH {
                    self.flush_failures_seen = self.shared.flush_failed();
                } else if is_durable {
                    // The server may have used this answer to tell what became of earlier writes.
                    self.shared.flush_failed();
                }
                self.finish(index, status_from_error(error), cx);
            }
        }
        if error == ERROR_SHUTDOWN {
            self.lost(at, Status::Transport, "the server is shutting down", cx);
        }
    }

    /// A flush went through. If one failed on another lane since this lane was last told, that
    /// concerns what this lane has written, too.
    fn flushed(&mut self, index: u32, cx: &mut LowerCx<'_>) {
        let failures = self.shared.flush_failures();
        if std::mem::replace(&mut self.flush_failures_seen, failures) == failures {
            self.advance(index, cx);
        } else {
            self.finish(index, Status::IoErr, cx);
        }
    }

    /// The slot's request went through.
    fn advance(&mut self, index: u32, cx: &mut LowerCx<'_>) {
        let agreed = &self.shared.promise.agreed;
        let slot = self.requests.get(index);
        let is_left = slot.done_bytes < slot.total_bytes;
        let flush_after =
            slot.flags.intersects(DURABLE) && !agreed.has(SEND_FUA) && agreed.has(SEND_FLUSH);
        let next = match slot.stage {
            Stage::FlushFirst if is_left => Some(Stage::Work),
            Stage::Work if is_left => Some(Stage::Work),
            Stage::Work if flush_after => Some(Stage::FlushAfter),
            Stage::FlushFirst | Stage::Work | Stage::FlushAfter => None,
        };
        match next {
            Some(stage) => {
                slot.stage = stage;
                self.issue(index, cx);
            }
            None => self.finish(index, Status::Ok, cx),
        }
    }

    /// Answers the slot's bio and frees the slot.
    pub(super) fn finish(&mut self, index: u32, status: Status, cx: &mut LowerCx<'_>) {
        let owner = self.requests.remove(index);
        self.answer_owner(owner, status, cx);
        if !self.waiting.is_empty() {
            self.start_waiting(cx);
        }
    }

    /// Starts bios that waited for a slot or a connection.
    pub(super) fn start_waiting(&mut self, cx: &mut LowerCx<'_>) {
        while self.requests.taken_count() < SLOTS_MAX {
            let number = self.choose();
            if number.is_none() && !self.is_away() {
                return;
            }
            let Some(owner) = self.waiting.pop_front() else { return };
            match (owner, number) {
                (Owner::Bio(bio), number) => match (self.answer(&bio), number) {
                    (Some(status), _) => cx.complete(bio, status),
                    (None, Some(number)) => self.start(Owner::Bio(bio), number, cx),
                    (None, None) => self.ask_home(bio, cx),
                },
                (owner, Some(number)) => self.start(owner, number, cx),
                (owner, None) => self.answer_owner(owner, Status::Transport, cx),
            }
        }
    }

    /// Refuses what waited for a connection.
    pub(super) fn refuse_waiting(&mut self, status: Status, cx: &mut LowerCx<'_>) {
        while let Some(owner) = self.waiting.pop_front() {
            self.answer_owner(owner, status, cx);
        }
    }

    /// Ends every request of a connection that has gone.
    pub(super) fn fail_requests(&mut self, number: u16, status: Status, cx: &mut LowerCx<'_>) {
        for index in 0..self.requests.len() {
            let slot = self.requests.get(index);
            if slot.is_awaited() && slot.request.connection == number {
                self.finish(index, status, cx);
            }
        }
    }

    /// Sets the timer for the oldest request of a connection, unless one is set.
    pub(super) fn watch(&mut self, at: usize, cx: &mut LowerCx<'_>) {
        let timeout = self.shared.options.timeout;
        let connection = &mut self.connections[at];
        if timeout == Nanos::ZERO || connection.io_timer.is_some() {
            return;
        }
        let oldest = match connection.in_flight {
            0 => return,
            1 => cx.now,
            _ => self.requests.oldest(connection.number).unwrap_or(cx.now),
        };
        connection.io_timer = Some(oldest + timeout);
        cx.set_timer(oldest + timeout, super::link::io_timer_token(connection.number));
    }
}

impl LowerLane for NbdLane {
    fn submit(&mut self, bio: BioBox, cx: &mut LowerCx<'_>) {
        match self.answer(&bio) {
            Some(status) => cx.complete(bio, status),
            None => {
                if self.phase == Phase::LetGo {
                    self.revive(cx);
                }
                match self.is_away() {
                    true if self.requests.taken_count() < SLOTS_MAX => self.ask_home(bio, cx),
                    true => self.waiting.push_back(Owner::Bio(bio)),
                    false => self.take(Owner::Bio(bio), cx),
                }
            }
        }
    }

    fn on_op(&mut self, user: u32, completion: Completion, cx: &mut LowerCx<'_>) {
        if user == OP_BELL {
            return self.bell_rang(completion.payload, cx);
        }
        self.op_ended(user, completion, cx);
    }

    fn on_timer(&mut self, token: u64, cx: &mut LowerCx<'_>) {
        self.timer_fired(token, cx);
    }

    fn on_turn_end(&mut self, cx: &mut LowerCx<'_>) {
        self.wants_turn_end = false;
        for at in 0..self.connections.len() {
            self.move_on(at, cx);
        }
        self.ring_bells();
    }

    fn abort(&mut self, select: &mut dyn FnMut(&Bio) -> bool, cx: &mut LowerCx<'_>) {
        // First all fences, then the answers: whoever sees an answer finds the device fenced.
        let mut answered = Vec::new();
        for index in 0..self.requests.len() {
            let slot = self.requests.get(index);
            let is_change = slot.op.is_write();
            if !matches!(&slot.owner, Owner::Bio(bio) if select(bio)) {
                continue;
            }
            let owner = std::mem::replace(&mut slot.owner, Owner::Abandoned(is_change));
            if is_change {
                self.shared.fence();
            }
            answered.push(owner);
        }
        for owner in answered {
            if let Owner::Bio(bio) = owner {
                cx.complete(bio, Status::Timeout);
            }
        }
        for _ in 0..self.waiting.len() {
            match self.waiting.pop_front() {
                Some(Owner::Bio(bio)) if select(&bio) => cx.complete(bio, Status::Timeout),
                Some(owner) => self.waiting.push_back(owner),
                None => break,
            }
        }
    }

    fn let_go(&mut self, cx: &mut LowerCx<'_>) {
        self.say_good_bye(cx);
        self.leave_desk(cx);
        self.ring_bells();
    }

    fn close(&mut self, cx: &mut LowerCx<'_>) {
        self.close_desk(cx);
        self.shared.set_lane(self.lane, None);
    }
}
