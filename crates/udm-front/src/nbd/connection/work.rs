//! A connection's requests: from the session to the engine and back into replies.
//!
//! Called by the connection with bytes received and bios come back. Every command of the protocol
//! becomes one bio, except block status and cache, which are answered here, and a trim or
//! write-zeroes that must be durable, which is two.
//!
//! Rules. A request is counted in `requests` from its bio's start to its answer. Memory that was
//! reserved for it is used or given up exactly once. A request whose client is gone is taken out
//! and forgotten; nothing is sent for it.
//!
//! The tricky case is FUA on a trim or write-zeroes. Devices know FUA for writes; for the others a
//! flush after the change gives the same promise, whatever is below.

use super::{Connection, IncomingWrite, Stage};
use crate::nbd::inbox::INLINE_PAYLOAD_BYTES_MAX;
use crate::nbd::outbox::pieces;
use crate::nbd::reply::{self, Extent, ReplyTo};
use crate::nbd::requests::{Phase, Request};
use crate::nbd::session::{Command, CommandKind, Event, Window};
use crate::nbd::wire::{CommandFlags, NbdError};
use udm_core::actor::ActorCx;
use udm_core::bio::BioBox;
use udm_lane::Segment;
use udm_types::{BioFlags, Op, SECTOR_SHIFT};

/// What a command asks of the engine.
struct Work {
    op: Op,
    flags: BioFlags,
    phase: Phase,
}

impl Work {
    #[inline]
    fn new(op: Op, phase: Phase) -> Work {
        Work { op, flags: BioFlags::empty(), phase }
    }
}

impl Connection {
    #[inline]
    pub(super) fn take_request(&mut self, cx: &mut ActorCx<'_>) -> bool {
        let (Stage::Serving(session), Some(inbox)) = (&mut self.stage, &mut self.inbox) else {
            return false;
        };
        let step = session.step(inbox);
        inbox.consume(step.consumed_bytes);
        match step.event {
            Event::NeedMore => return false,
            Event::Command(command) => self.start(command, cx),
            Event::Refused(refusal) => {
                self.answer_error(refusal.to, refusal.error, refusal.reason, cx);
            }
            Event::Skipped => {}
            Event::Disconnect => self.stage = Stage::Draining,
            Event::Broken(_) => self.hang_up(cx),
        }
        true
    }

    #[inline]
    fn start(&mut self, command: Command, cx: &mut ActorCx<'_>) {
        let change = Phase::Change {
            then_flush: command.flags.contains(CommandFlags::FUA),
            fast_zero: command.flags.contains(CommandFlags::FAST_ZERO),
        };
        match command.kind {
            CommandKind::Read => self.start_read(command, cx),
            CommandKind::Write => self.expect_payload(command, cx),
            CommandKind::Flush => self.start_plain(command, Work::new(Op::Flush, Phase::Flush), cx),
            CommandKind::Trim => self.start_plain(command, Work::new(Op::Discard, change), cx),
            CommandKind::WriteZeroes => {
                let mut work = Work::new(Op::WriteZeroes, change);
                let keep = command.flags.contains(CommandFlags::NO_HOLE);
                work.flags.set(BioFlags::NO_UNMAP, keep);
                self.start_plain(command, work, cx);
            }
            CommandKind::BlockStatus => {
                // "Allocated, contents unknown" is always true.
                let extent = Extent { len_bytes: command.len_bytes, hole: false, zero: false };
                self.scratch.clear();
                reply::block_status(self.style(), command.to, &[extent], &mut self.scratch);
                self.outbox.push(&self.scratch, cx.bufs());
            }
            CommandKind::Cache => {
                self.outbox.push(reply::done(self.style(), command.to).as_bytes(), cx.bufs());
            }
        }
    }

    #[inline]
    fn start_read(&mut self, command: Command, cx: &mut ActorCx<'_>) {
        let head_bytes = reply::read_head_len_bytes(self.style());
        // Fits: the session bounds reads by the maximum payload.
        let len = command.len_bytes as usize;
        let place = self.outbox.reserve(head_bytes, len, cx.bufs());
        let mut bio = cx.take_bio();
        self.outbox.add_segments(place, &mut bio.payload);
        self.submit(command, Work::new(Op::Read, Phase::Read(place)), bio, cx);
    }

    #[inline]
    fn start_plain(&mut self, command: Command, work: Work, cx: &mut ActorCx<'_>) {
        let bio = cx.take_bio();
        self.submit(command, work, bio, cx);
    }

    /// A write was accepted; its payload comes next.
    #[inline]
    fn expect_payload(&mut self, command: Command, cx: &mut ActorCx<'_>) {
        let len = command.len_bytes as usize;
        self.incoming = Some(if len <= INLINE_PAYLOAD_BYTES_MAX {
            IncomingWrite::Inline(command)
        } else {
            let mut payload = std::mem::take(&mut self.spare_payload);
            let mut filled = 0;
            for piece_bytes in pieces(len) {
                let buf = cx.bufs().take(piece_bytes);
                if let Some(inbox) = &mut self.inbox {
                    filled += inbox.take_copy(&buf, piece_bytes);
                }
                payload.push(Segment { buf, offset_bytes: 0, len_bytes: piece_bytes as u32 });
            }
            IncomingWrite::Owned { command, payload, filled }
        });
    }

    /// Submits the incoming write if its payload is complete.
    #[inline]
    pub(super) fn gather_payload(&mut self, cx: &mut ActorCx<'_>) -> bool {
        let Some(inbox) = &mut self.inbox else { return false };
        match self.incoming.take() {
            Some(IncomingWrite::Inline(command))
                if inbox.len_bytes() as u64 >= command.len_bytes =>
            {
                let mut bio = cx.take_bio();
                bio.payload.push(inbox.take_in_place(command.len_bytes as usize));
                self.submit(command, write_work(command, Phase::WriteInPlace), bio, cx);
            }
            Some(IncomingWrite::Owned { command, payload, filled })
                if filled as u64 == command.len_bytes =>
            {
                let mut bio = cx.take_bio();
                // The bio's own empty payload is kept for the next write, for its memory.
                self.spare_payload = std::mem::replace(&mut bio.payload, payload);
                self.submit(command, write_work(command, Phase::WriteOwned), bio, cx);
            }
            incomplete => {
                self.incoming = incomplete;
                return false;
            }
        }
        true
    }

    #[inline]
    fn submit(&mut self, command: Command, work: Work, mut bio: BioBox, cx: &mut ActorCx<'_>) {
        let Some(chosen) = &self.chosen else { return cx.recycle(bio) };
        let request = Request { to: command.to, len_bytes: command.len_bytes, phase: work.phase };
        let tag = self.requests.insert(request);
        let sector = command.to.offset_bytes >> SECTOR_SHIFT;
        bio.ask(work.op, work.flags, sector, command.len_bytes >> SECTOR_SHIFT);
        cx.submit(chosen.device, tag, bio);
    }

    fn answer_error(&mut self, to: ReplyTo, error: NbdError, message: &str, cx: &mut ActorCx<'_>) {
        let head = reply::error(self.style(), to, error, message);
        self.outbox.push(head.as_bytes(), cx.bufs());
    }

    /// Answers a request whose bio came back well.
    #[inline]
    fn answer(&mut self, request: Request, cx: &mut ActorCx<'_>) {
        let style = self.style();
        match request.phase {
            Phase::Read(place) => {
                // Fits: the session bounds reads by the maximum payload.
                let head = reply::read_head(style, request.to, request.len_bytes as u32);
                self.outbox.finish(place, head.as_bytes(), cx.bufs());
            }
            Phase::WriteInPlace | Phase::WriteOwned | Phase::Change { .. } | Phase::Flush => {
                self.outbox.push(reply::done(style, request.to).as_bytes(), cx.bufs());
            }
        }
    }

    /// A bio came back: answers its request, or does what comes next for it.
    #[inline]
    pub(super) fn came_back(&mut self, tag: u64, mut bio: BioBox, cx: &mut ActorCx<'_>) {
        let Some(mut request) = self.requests.remove(tag) else { return cx.recycle(bio) };
        let status = bio.status;
        if let Phase::Change { then_flush: true, .. } = request.phase
            && status.is_ok()
            && let Some(chosen) = &self.chosen
        {
            request.phase = Phase::Flush;
            let tag = self.requests.insert(request);
            bio.ask(Op::Flush, BioFlags::empty(), 0, 0);
            return cx.submit(chosen.device, tag, bio);
        }
        if let Phase::WriteOwned = request.phase {
            self.returning.extend(bio.payload.segments().map(|segment| segment.buf.clone()));
        }
        cx.recycle(bio);
        // Now that the bio has let go of them, these handles are the last.
        self.returning.drain(..).for_each(|buf| cx.bufs().put(buf));
        let fast_zero = matches!(request.phase, Phase::Change { fast_zero: true, .. });
        let error = NbdError::from_status(status, fast_zero);
        if let (Phase::Read(place), true) =
            (request.phase, error.is_some() || self.handle.is_none())
        {
            self.outbox.give_up(place, cx.bufs());
        }
        if self.handle.is_none() {
            return;
        }
        match error {
            None => self.answer(request, cx),
            Some(error) => self.answer_error(request.to, error, status.describe(), cx),
        }
        cx.want_turn_end();
    }
}

/// What a write asks of the engine.
#[inline]
fn write_work(command: Command, phase: Phase) -> Work {
    let mut work = Work::new(Op::Write, phase);
    work.flags.set(BioFlags::FUA, command.flags.contains(CommandFlags::FUA));
    work
}
