//! Bytes between a lane's sockets and its requests.
//!
//! One receive and one send of each connection are under way at most. A receive takes whatever the
//! kernel has into the inbox; small data is copied from there to its bio, which costs less than a
//! receive of its own. Large data ([`DIRECT_BYTES_MIN`] and more) is received into the bio's memory
//! itself; where mostly such reads are under way, only the head of the next reply goes to the
//! inbox, so that all of the data after it can go straight.
//!
//! The tricky case is a bio that is answered early (aborted) while its data is being received: the
//! operation owns the memory until it ends, and the rest of the data is thrown away.

use super::connection::{Connection, Link, OpKind};
use super::handshake::Progress;
use super::lane::NbdLane;
use super::replies::{Event, Incoming, Window};
use udm_core::LowerCx;
use udm_lane::{Completion, DriverOp, Payload, Segment};
use udm_types::Status;

/// Data from this length on is received straight into the bio's memory: below, copying it is
/// cheaper than another receive.
const DIRECT_BYTES_MIN: u32 = 32 << 10;

impl NbdLane {
    /// An operation ended. Those of a former socket only give their memory back.
    pub(super) fn op_ended(&mut self, user: u32, completion: Completion, cx: &mut LowerCx<'_>) {
        let at = Connection::number_of(user);
        let Some(connection) = self.connections.get_mut(at) else { return };
        let Some(kind) = connection.kind_of(user) else { return };
        match kind {
            OpKind::Recv | OpKind::RecvDirect => {
                connection.is_receiving = false;
                // Let go of the memory before anybody asks whether it is free.
                drop(completion.payload);
                match completion.result {
                    Ok(0) => self.hung_up(at, "the server closed the connection", cx),
                    Ok(len) => self.received(at, kind, len, cx),
                    Err(errno) => {
                        let error = std::io::Error::from_raw_os_error(errno.0);
                        self.hung_up(at, &format!("the connection broke: {error}"), cx);
                    }
                }
            }
            OpKind::Send => match completion.result {
                Ok(len) => self.sent(at, len, completion.payload, cx),
                Err(errno) => {
                    let error = std::io::Error::from_raw_os_error(errno.0);
                    self.hung_up(at, &format!("the connection broke: {error}"), cx);
                }
            },
        }
    }

    fn hung_up(&mut self, at: usize, why: &str, cx: &mut LowerCx<'_>) {
        match self.connections[at].link {
            Link::Leaving(_) => self.left(at, cx),
            Link::Down(_) | Link::Greeting { .. } | Link::Up { .. } => {
                self.lost(at, Status::Transport, why, cx);
            }
        }
    }

    fn sent(&mut self, at: usize, len: u32, payload: Payload, cx: &mut LowerCx<'_>) {
        let connection = &mut self.connections[at];
        let rest = connection.outbox.sent(u64::from(len), payload);
        if let (Some(payload), Some(handle)) = (rest, connection.handle()) {
            return cx.submit_op(connection.user(OpKind::Send), DriverOp::Send { handle, payload });
        }
        if matches!(connection.link, Link::Leaving(_)) {
            return self.left(at, cx);
        }
        self.want_turn_end(cx);
    }

    fn received(&mut self, at: usize, kind: OpKind, len: u32, cx: &mut LowerCx<'_>) {
        let connection = &mut self.connections[at];
        match (kind, &mut connection.link) {
            (OpKind::RecvDirect, Link::Up { replies, .. }) => {
                if let Some(slot) = replies.data_taken(len) {
                    self.over(slot, cx);
                }
            }
            _ => connection.inbox.received(len as usize),
        }
        self.work(at, cx);
        self.want_turn_end(cx);
    }

    /// Looks at what has been received until nothing whole is left.
    fn work(&mut self, at: usize, cx: &mut LowerCx<'_>) {
        loop {
            let goes_on = match &self.connections[at].link {
                Link::Greeting { .. } => self.greet(at, cx),
                Link::Up { replies, .. } => match replies.data() {
                    Some(data) => self.take_data(at, data, cx),
                    None => self.take_reply(at, cx),
                },
                Link::Down(_) | Link::Leaving(_) => false,
            };
            if !goes_on {
                return;
            }
        }
    }

    fn greet(&mut self, at: usize, cx: &mut LowerCx<'_>) -> bool {
        let connection = &mut self.connections[at];
        let Link::Greeting { handshake, .. } = &mut connection.link else { return false };
        let mut out = Vec::new();
        let (consumed, progress) = handshake.step(&connection.inbox.unread(), &mut out);
        connection.inbox.consume(consumed);
        if !out.is_empty() {
            connection.outbox.push(&out);
        }
        match progress {
            Progress::NeedMore => return false,
            Progress::Continue => {}
            Progress::Agreed(agreed) => self.up(at, &agreed, cx),
            Progress::Failed(why) => self.lost(at, Status::Transport, &why, cx),
        }
        true
    }

    /// Takes data from the inbox to its bio, or away.
    #[inline]
    fn take_data(&mut self, at: usize, data: Incoming, cx: &mut LowerCx<'_>) -> bool {
        let connection = &mut self.connections[at];
        let len = connection.inbox.len_bytes().min(data.left_bytes as usize);
        let Link::Up { replies, .. } = &mut connection.link else { return false };
        if len == 0 {
            return false;
        }
        let slot = self.requests.get(data.slot);
        let place = slot.done_bytes + u64::from(data.at_bytes);
        if let Some(payload) = slot.payload() {
            connection.inbox.copy_to(payload, place, len);
        }
        connection.inbox.consume(len);
        // At most what is left, so 32 bits.
        if let Some(slot) = replies.data_taken(len as u32) {
            self.over(slot, cx);
        }
        true
    }

    #[inline]
    fn take_reply(&mut self, at: usize, cx: &mut LowerCx<'_>) -> bool {
        let connection = &mut self.connections[at];
        let Link::Up { replies, .. } = &mut connection.link else { return false };
        let (consumed, event) = replies.step(&connection.inbox, &mut self.requests);
        connection.inbox.consume(consumed);
        match event {
            Event::NeedMore => return false,
            Event::Continue | Event::Data => {}
            Event::Hole { slot, at_bytes, len_bytes, is_over } => {
                let place = self.requests.get(slot).done_bytes + u64::from(at_bytes);
                if let Some(payload) = self.requests.get(slot).payload() {
                    payload.fill(place, u64::from(len_bytes), 0);
                }
                if is_over {
                    self.over(slot, cx);
                }
            }
            Event::Over { slot } => self.over(slot, cx),
            Event::Broken(why) => {
                let why = format!("the server broke the protocol: {why}");
                self.lost(at, Status::Transport, &why, cx);
            }
        }
        true
    }

    /// Starts the next send and the next receive of a connection.
    pub(super) fn move_on(&mut self, at: usize, cx: &mut LowerCx<'_>) {
        let connection = &mut self.connections[at];
        let Some(handle) = connection.handle() else { return };
        if let Some(payload) = connection.outbox.next_send() {
            cx.submit_op(connection.user(OpKind::Send), DriverOp::Send { handle, payload });
        }
        if connection.is_receiving {
            return;
        }
        connection.is_receiving = true;
        let (kind, segment) = match direct_place(&mut self.requests, connection) {
            Some(segment) => (OpKind::RecvDirect, segment),
            None => (OpKind::Recv, connection.inbox.room(room_wanted(connection))),
        };
        cx.submit_op(connection.user(kind), DriverOp::Recv { handle, segment });
    }
}

/// The bio's memory that the data on its way goes to, if it is worth a receive of its own.
fn direct_place(
    requests: &mut super::requests::Requests,
    connection: &Connection,
) -> Option<Segment> {
    let Link::Up { replies, .. } = &connection.link else { return None };
    let data = replies.data().filter(|data| data.left_bytes >= DIRECT_BYTES_MIN)?;
    let slot = requests.get(data.slot);
    let place = slot.done_bytes + u64::from(data.at_bytes);
    let mut found = None;
    slot.payload()?.for_range(place, u64::from(data.left_bytes), |segment, start, len, done| {
        if done == 0 {
            found = Some(Segment {
                buf: segment.buf.clone(),
                offset_bytes: segment.offset_bytes + start,
                len_bytes: len,
            });
        }
    });
    found
}

/// How much to receive into the inbox: the next head only, if large data follows it.
fn room_wanted(connection: &Connection) -> usize {
    let Link::Up { replies, .. } = &connection.link else { return usize::MAX };
    let large = u64::from(connection.reads) * u64::from(DIRECT_BYTES_MIN);
    if connection.reads == 0 || connection.read_bytes < large || replies.data().is_some() {
        return usize::MAX;
    }
    match replies.data_head_bytes().saturating_sub(connection.inbox.len_bytes()) {
        0 => usize::MAX,
        len => len,
    }
}
