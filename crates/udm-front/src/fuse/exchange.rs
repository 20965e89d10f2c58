//! FUSE over io_uring: requests come by completions of the lane's ring, answers leave as commands.
//!
//! The kernel has a queue for each processor it may ever have, and uses this way once each queue
//! has memory. The queues of a mount are dealt out to its lanes; a slot of such a queue lends the
//! kernel its buffer and goes round without `/dev/fuse`: one command answers a request and waits
//! for the next. Only FORGET and INTERRUPT still come through the descriptor, which the home reads
//! with a slot of the old kind.
//!
//! ```text
//! buffer:  ... | head: 128 | operation: 128 | entry: 32 | payload, aligned to a page ...
//!              3808                                       4096
//! ```
//!
//! Rules. No command can be called off, so a slot that waits counts as idle, and the end of a mount
//! is for the control side: it has the kernel abort the connection ([`super::mount`]), upon which
//! all commands end with an error. What comes while a mount drains is not looked at; it ends with
//! the connection.
//!
//! The tricky case is the data of a read that is not aligned: it was read with the blocks around
//! it, and moves to the beginning of the payload, where the kernel expects it.

use super::order::MountEvent;
use super::server::MountServer;
use super::session::IO_BYTES_MAX;
use super::slot::{DATA_AT, Phase, SLOTS, segment};
use super::team::TeamNote;
use super::wire::{HEAD_BYTES_MAX, IN_HEADER_BYTES, OUT_HEADER_BYTES};
use udm_core::actor::ActorCx;
use udm_lane::{Buf, DriverOp, Payload};

/// `struct fuse_uring_req_header`.
const HEAD_BYTES: usize = 288;
/// Where it is.
const HEAD_AT: usize = DATA_AT - HEAD_BYTES;
/// The operation's own structure.
const OPERATION_AT: usize = HEAD_AT + 128;
/// The number a message is answered by.
const MESSAGE_AT: usize = HEAD_AT + 264;
/// How long the payload is, and what is reserved behind it.
const PAYLOAD_BYTES_AT: usize = HEAD_AT + 272;

/// Slots of a queue, also if a lane has several: a client that stays on its processor has no more
/// than this under way.
const QUEUE_SLOTS_MIN: usize = 16;
/// Slots of a lane, unless it has more queues than this. Their memory is taken when it is used, but
/// where there may be hundreds of processors, it should not even be asked for.
const LANE_SLOTS_MAX: usize = 1024;

/// What the kernel has of a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lent {
    /// In which of its queues.
    queue: u16,
    /// The message that is in it; nothing before it was lent.
    message: Option<u64>,
}

impl Lent {
    /// A slot for a queue.
    pub(super) fn new(queue: u16) -> Lent {
        Lent { queue, message: None }
    }
}

/// The beginning of a message as `/dev/fuse` would have it, and how long it says to be.
pub(super) fn head(buf: &Buf) -> ([u8; HEAD_BYTES_MAX], usize) {
    let mut head = [0; HEAD_BYTES_MAX];
    buf.copy_out(HEAD_AT, &mut head[..IN_HEADER_BYTES]);
    buf.copy_out(OPERATION_AT, &mut head[IN_HEADER_BYTES..]);
    let len = head.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
    (head, len as usize)
}

/// Slots of each of so many queues of a lane.
fn slots_each(queues: usize) -> usize {
    let count = queues.max(1);
    (SLOTS / count).max((LANE_SLOTS_MAX / count).clamp(1, QUEUE_SLOTS_MIN))
}

/// Puts an answer of `len` bytes that begins at `begin` where the kernel looks for it.
fn put_answer(buf: &Buf, begin: usize, len: usize) {
    let mut out = [0; OUT_HEADER_BYTES];
    buf.copy_out(begin, &mut out);
    let body_bytes = len - OUT_HEADER_BYTES;
    if begin + OUT_HEADER_BYTES != DATA_AT {
        buf.copy_to(begin + OUT_HEADER_BYTES, buf, DATA_AT, body_bytes);
    }
    buf.copy_in(HEAD_AT, &out);
    let mut told = [0; 16];
    // Fits: an answer is little more than 1 MiB.
    told[..4].copy_from_slice(&(body_bytes as u32).to_ne_bytes());
    buf.copy_in(PAYLOAD_BYTES_AT, &told);
}

impl MountServer {
    /// Deals the kernel's queues out to all lanes, which help from now on.
    pub(super) fn deal_queues(&mut self, cx: &mut ActorCx<'_>) {
        let count = self.served.ring_queues.unwrap_or(0);
        let lanes = (1 + self.team.present().count()).min(usize::from(count));
        let share = |lane: usize| (0..count).skip(lane).step_by(lanes.max(1)).collect::<Vec<_>>();
        for lane in 1..lanes {
            let Some((place, holds)) = self.team.invite() else { break };
            self.tell(place, TeamNote::Invite { holds, queues: share(lane) }, cx);
        }
        self.join_rings(&share(0), cx);
    }

    /// Lends slots for these queues.
    pub(super) fn join_rings(&mut self, queues: &[u16], cx: &mut ActorCx<'_>) {
        if self.draining {
            return;
        }
        (self.has_ring, self.is_awake) = (true, true);
        let each = slots_each(queues.len());
        for queue in queues {
            let first = self.slots.len();
            self.grow(first + each, Some(Lent::new(*queue)));
            (first..first + each).for_each(|at| self.exchange(at, cx));
        }
    }

    /// The kernel refuses to be lent anything: the rings were switched off in the moment of the
    /// handshake. It goes on by `/dev/fuse`, which only the home reads then.
    pub(super) fn leave_rings(&mut self, cx: &mut ActorCx<'_>) {
        if self.draining {
            return;
        }
        if !self.is_home() {
            return self.tell_home(TeamNote::Refused, cx);
        }
        if !std::mem::replace(&mut self.is_refused, true) {
            (self.tell)(MountEvent::RingsRefused);
            self.grow(self.slots.len() + SLOTS - 1, None);
            self.receive_everywhere(cx);
        }
    }

    /// Answers with what begins at `begin` of a lent slot's buffer, and waits for the next message.
    pub(super) fn answer_lent(
        &mut self,
        at: usize,
        (begin, len): (usize, usize),
        cx: &mut ActorCx<'_>,
    ) {
        put_answer(&self.slots[at].buf, begin, len);
        self.exchange(at, cx);
    }

    /// Lends a slot, or answers what is in it; then it waits.
    pub(super) fn exchange(&mut self, at: usize, cx: &mut ActorCx<'_>) {
        let slot = &mut self.slots[at];
        let (Some(handle), Some(lent)) = (self.handle, &mut slot.lent) else { return };
        slot.phase = Phase::Receiving;
        let queue = lent.queue;
        let op = match lent.message.take() {
            Some(message) => DriverOp::Exchange { handle, queue, message },
            None => {
                let mut memory = Payload::from(segment(&slot.buf, HEAD_AT, HEAD_BYTES));
                memory.push(segment(&slot.buf, DATA_AT, IO_BYTES_MAX as usize));
                DriverOp::Lend { handle, queue, memory }
            }
        };
        cx.submit_op(at as u32, op);
        self.rest_if_idle(cx);
    }

    /// A message has come into a lent slot.
    pub(super) fn received_lent(&mut self, at: usize, cx: &mut ActorCx<'_>) {
        let slot = &mut self.slots[at];
        let Some(lent) = &mut slot.lent else { return };
        let mut message = [0; 8];
        slot.buf.copy_out(MESSAGE_AT, &mut message);
        lent.message = Some(u64::from_ne_bytes(message));
        if self.draining {
            slot.phase = Phase::Idle;
            return;
        }
        let (head, len) = head(&slot.buf);
        self.take(at, &head, len, cx);
    }
}

#[cfg(test)]
mod tests {
    use super::{DATA_AT, HEAD_AT, OPERATION_AT, PAYLOAD_BYTES_AT, head, put_answer, slots_each};
    use crate::fuse::reply::data_head;
    use crate::fuse::slot::BUF_BYTES;
    use crate::fuse::wire::{IN_HEADER_BYTES, OUT_HEADER_BYTES};
    use udm_lane::Buf;

    #[test]
    fn few_queues_share_a_lanes_slots_and_many_have_some_each() {
        let each = slots_each;
        assert_eq!((each(1), each(2), each(4)), (64, 32, 16));
        assert_eq!((each(8), each(64)), (16, 16), "a client on one processor is not held up");
        assert_eq!((each(128), each(512), each(4096)), (8, 2, 1), "nor is memory without end");
    }

    #[test]
    fn a_message_in_two_places_is_read_as_one() {
        let buf = Buf::alloc(BUF_BYTES);
        buf.copy_in(HEAD_AT, &80_u32.to_ne_bytes());
        buf.fill(HEAD_AT + 4, IN_HEADER_BYTES - 4, 1);
        buf.fill(OPERATION_AT, 40, 2);
        let (head, len) = head(&buf);
        assert_eq!(len, 80);
        assert_eq!((head[4], head[39], head[40], head[79], head[80]), (1, 1, 2, 2, 0));
    }

    #[test]
    fn data_that_was_read_with_its_surroundings_moves_to_the_front() {
        let buf = Buf::alloc(BUF_BYTES);
        for shift in [0, 1, 300, 4095] {
            buf.fill(DATA_AT, 8192, 0);
            buf.fill(DATA_AT + shift, 1000, 7);
            let begin = DATA_AT + shift - OUT_HEADER_BYTES;
            buf.copy_in(begin, &data_head(5, 1000));
            put_answer(&buf, begin, OUT_HEADER_BYTES + 1000);
            let mut data = [0; 1000];
            buf.copy_out(DATA_AT, &mut data);
            assert!(data.iter().all(|byte| *byte == 7), "{shift}");
            let (mut out, mut told) = ([0; OUT_HEADER_BYTES], [0; 16]);
            buf.copy_out(HEAD_AT, &mut out);
            buf.copy_out(PAYLOAD_BYTES_AT, &mut told);
            assert_eq!(out, data_head(5, 1000));
            assert_eq!(told[..4], 1000_u32.to_ne_bytes());
        }
    }
}
