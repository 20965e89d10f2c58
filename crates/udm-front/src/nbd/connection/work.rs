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
    segment: Option<Segment>,
}

impl Work {
    #[inline]
    fn new(op: Op, phase: Phase) -> Work {
        Work { op, flags: BioFlags::empty(), phase, segment: None }
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
            CommandKind::Flush => self.submit(command, Work::new(Op::Flush, Phase::Flush), cx),
            CommandKind::Trim => self.submit(command, Work::new(Op::Discard, change), cx),
            CommandKind::WriteZeroes => {
                let mut work = Work::new(Op::WriteZeroes, change);
                let keep = command.flags.contains(CommandFlags::NO_HOLE);
                work.flags.set(BioFlags::NO_UNMAP, keep);
                self.submit(command, work, cx);
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
        let segment = Some(self.outbox.segment(place));
        self.submit(command, Work { segment, ..Work::new(Op::Read, Phase::Read(place)) }, cx);
    }

    /// A write was accepted; its payload comes next.
    #[inline]
    fn expect_payload(&mut self, command: Command, cx: &mut ActorCx<'_>) {
        let len = command.len_bytes as usize;
        let incoming = if len <= INLINE_PAYLOAD_BYTES_MAX {
            IncomingWrite::Inline(command)
        } else {
            let buf = cx.bufs().take(len);
            let filled = self.inbox.as_mut().map_or(0, |inbox| inbox.take_copy(&buf, len));
            IncomingWrite::Owned { command, buf, filled }
        };
        self.incoming = Some(incoming);
    }

    /// Submits the incoming write if its payload is complete.
    #[inline]
    pub(super) fn gather_payload(&mut self, cx: &mut ActorCx<'_>) -> bool {
        let Some(inbox) = &mut self.inbox else { return false };
        match self.incoming.take() {
            Some(IncomingWrite::Inline(command))
                if inbox.len_bytes() as u64 >= command.len_bytes =>
            {
                let segment = inbox.take_in_place(command.len_bytes as usize);
                self.start_write(command, Phase::WriteInPlace, segment, cx);
            }
            Some(IncomingWrite::Owned { command, buf, filled })
                if filled as u64 == command.len_bytes =>
            {
                let len_bytes = filled as u32;
                let segment = Segment { buf, offset_bytes: 0, len_bytes };
                self.start_write(command, Phase::WriteOwned, segment, cx);
            }
            incomplete => {
                self.incoming = incomplete;
                return false;
            }
        }
        true
    }

    #[inline]
    fn start_write(
        &mut self,
        command: Command,
        phase: Phase,
        segment: Segment,
        cx: &mut ActorCx<'_>,
    ) {
        let mut work = Work { segment: Some(segment), ..Work::new(Op::Write, phase) };
        work.flags.set(BioFlags::FUA, command.flags.contains(CommandFlags::FUA));
        self.submit(command, work, cx);
    }

    #[inline]
    fn submit(&mut self, command: Command, work: Work, cx: &mut ActorCx<'_>) {
        let Some(chosen) = &self.chosen else { return };
        let request = Request { to: command.to, len_bytes: command.len_bytes, phase: work.phase };
        let tag = self.requests.insert(request);
        let mut bio = cx.take_bio();
        let sector = command.to.offset_bytes >> SECTOR_SHIFT;
        bio.ask(work.op, work.flags, sector, command.len_bytes >> SECTOR_SHIFT);
        if let Some(segment) = work.segment {
            bio.payload.push(segment);
        }
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
        if let Phase::WriteOwned = request.phase
            && let Some(buf) = std::mem::take(&mut bio.payload).into_first_buf()
        {
            cx.bufs().put(buf);
        }
        cx.recycle(bio);
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
