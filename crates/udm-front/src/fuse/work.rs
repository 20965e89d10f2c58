//! The life of a request in a slot of a [`MountServer`]: from a checked command to its answer.
//!
//! A read is one bio over whole blocks, a flush is one bio; a write or a zeroing goes piece by
//! piece (see `change`). The bytes of a patch are in a buffer of the lane's pool meanwhile.
//!
//! Rules. A change of a part of a block is asked for at the mount's home first, which sees to it
//! that no lane changes the block meanwhile; see `team`. Every command is answered once.
//!
//! The tricky case is a read that is not aligned: the blocks around it are read, and the head of
//! the answer is put right before the part that was asked for, over what nobody wants.

use super::change::{Change, ChangeKind, Piece};
use super::reply::{Answer, data_head};
use super::server::MountServer;
use super::session::{Command, CommandKind, written};
use super::slot::{BUF_BYTES, DATA_AT, Patch, Phase, segment};
use super::team::{Owner, TeamNote, Who};
use super::wire::{OUT_HEADER_BYTES, errno};
use udm_core::actor::ActorCx;
use udm_lane::Segment;
use udm_types::{BioFlags, Op, SECTOR_SHIFT};

/// What a bio is to do, in bytes of whole blocks.
#[derive(Clone, Copy)]
struct Ask {
    op: Op,
    flags: BioFlags,
    from: u64,
    to: u64,
}

impl Ask {
    fn new(op: Op, from: u64, to: u64) -> Ask {
        Ask { op, flags: BioFlags::empty(), from, to }
    }
}

impl MountServer {
    pub(super) fn start(&mut self, at: usize, command: Command, cx: &mut ActorCx<'_>) {
        let unique = command.unique;
        match command.kind {
            CommandKind::Read { offset_bytes: start, len_bytes } => {
                let from = start & !(self.block_bytes - 1);
                let to = (start + u64::from(len_bytes)).next_multiple_of(self.block_bytes);
                if to - from > (BUF_BYTES - DATA_AT) as u64 {
                    return self.answer(at, &Answer::error(unique, errno::EIO), cx);
                }
                let data = segment(&self.slots[at].buf, DATA_AT, (to - from) as usize);
                self.slots[at].phase = Phase::Reading { unique, start, len_bytes, from };
                self.ask(at, Ask::new(Op::Read, from, to), Some(data), cx);
            }
            CommandKind::Flush => {
                self.slots[at].phase = Phase::Flushing { unique };
                self.ask(at, Ask::new(Op::Flush, 0, 0), None, cx);
            }
            CommandKind::Write { offset_bytes: start, len_bytes } => {
                let end = start + u64::from(len_bytes);
                self.begin(at, unique, ChangeKind::Write, (start, end), cx);
            }
            CommandKind::Zero { offset_bytes: start, len_bytes, keep } => {
                let kind = ChangeKind::Zero { keep };
                self.begin(at, unique, kind, (start, start + len_bytes), cx);
            }
        }
    }

    fn begin(
        &mut self,
        at: usize,
        unique: u64,
        kind: ChangeKind,
        (start, end): (u64, u64),
        cx: &mut ActorCx<'_>,
    ) {
        let block_bytes = self.block_bytes;
        let change = Change { unique, kind, start, end, cursor: start, block_bytes };
        self.slots[at].phase = Phase::Waiting;
        if change.is_patch() && !self.is_home() {
            let owner = Owner { mate: self.mate, slot: at };
            return self.tell_home(TeamNote::Want { owner, change }, cx);
        }
        self.take_blocks(Who::Slot(at), change, cx);
    }

    /// Does the next piece of a change, or answers it.
    pub(super) fn go_on(&mut self, at: usize, change: Change, cx: &mut ActorCx<'_>) {
        match change.next_piece() {
            None => {
                let answer = match change.kind {
                    // Fits: a write is at most `IO_BYTES_MAX`.
                    ChangeKind::Write => written(change.unique, (change.end - change.start) as u32),
                    ChangeKind::Zero { .. } => Answer::done(change.unique),
                };
                self.changed(at, &answer, cx);
            }
            Some(Piece::Plain { start, end }) => {
                self.slots[at].phase = Phase::Plain { change, to: end };
                match change.kind {
                    ChangeKind::Write => {
                        let data = segment(&self.slots[at].buf, DATA_AT, (end - start) as usize);
                        self.ask(at, Ask::new(Op::Write, start, end), Some(data), cx);
                    }
                    ChangeKind::Zero { keep } => {
                        let mut ask = Ask::new(Op::WriteZeroes, start, end);
                        ask.flags.set(BioFlags::NO_UNMAP, keep);
                        self.ask(at, ask, None, cx);
                    }
                }
            }
            Some(Piece::Patch { end, from, to, .. }) => {
                let blocks = cx.bufs().take((to - from) as usize);
                let data = segment(&blocks, 0, (to - from) as usize);
                let patch = Patch { change, end, from, to, blocks, writes: false };
                self.slots[at].phase = Phase::Patching(patch);
                self.ask(at, Ask::new(Op::Read, from, to), Some(data), cx);
            }
        }
    }

    /// A change has ended, well or not: answers it, and lets go who waited for it.
    fn changed(&mut self, at: usize, answer: &Answer, cx: &mut ActorCx<'_>) {
        self.answer(at, answer, cx);
        match self.slots[at].patch.take() {
            // Its blocks are released when the home says so, here as on the other lanes.
            Some(patch) if !self.is_home() => self.tell_home(TeamNote::Done { patch }, cx),
            Some(patch) => self.patch_done(patch, cx),
            None => self.leave_blocks(Who::Slot(at), cx),
        }
    }

    /// Submits a bio for the slot.
    fn ask(&mut self, at: usize, ask: Ask, data: Option<Segment>, cx: &mut ActorCx<'_>) {
        let mut bio = cx.take_bio();
        if let Some(data) = data {
            bio.payload.push(data);
        }
        bio.ask(ask.op, ask.flags, ask.from >> SECTOR_SHIFT, (ask.to - ask.from) >> SECTOR_SHIFT);
        cx.submit(self.served.device, at as u64, bio);
    }

    /// The slot's bio came back.
    pub(super) fn came_back(&mut self, at: usize, failed: Option<i32>, cx: &mut ActorCx<'_>) {
        match (std::mem::replace(&mut self.slots[at].phase, Phase::Idle), failed) {
            (Phase::Reading { unique, .. } | Phase::Flushing { unique }, Some(errno)) => {
                self.answer(at, &Answer::error(unique, errno), cx);
            }
            (Phase::Reading { unique, start, len_bytes, from }, None) => {
                let begin = DATA_AT + (start - from) as usize - OUT_HEADER_BYTES;
                self.slots[at].buf.copy_in(begin, &data_head(unique, len_bytes));
                self.send(at, begin, OUT_HEADER_BYTES + len_bytes as usize, cx);
            }
            (Phase::Flushing { unique }, None) => self.answer(at, &Answer::done(unique), cx),
            (Phase::Plain { change, .. }, Some(errno)) => {
                self.changed(at, &Answer::error(change.unique, errno), cx);
            }
            (Phase::Plain { change, to }, None) => {
                self.go_on(at, Change { cursor: to, ..change }, cx);
            }
            (Phase::Patching(patch), Some(errno)) => {
                cx.bufs().put(patch.blocks);
                self.changed(at, &Answer::error(patch.change.unique, errno), cx);
            }
            (Phase::Patching(patch), None) => self.patched(at, patch, cx),
            (Phase::Idle | Phase::Receiving | Phase::Waiting | Phase::Answering, _) => {
                debug_assert!(false, "a bio nobody submitted");
            }
        }
    }

    /// The blocks of a patch were read, or written back.
    fn patched(&mut self, at: usize, patch: Patch, cx: &mut ActorCx<'_>) {
        let Patch { change, end, from, to, .. } = patch;
        if patch.writes {
            cx.bufs().put(patch.blocks);
            return self.go_on(at, Change { cursor: end, ..change }, cx);
        }
        let (place, len) = ((change.cursor - from) as usize, (end - change.cursor) as usize);
        match change.kind {
            ChangeKind::Write => {
                let payload_at = DATA_AT + (change.cursor - change.start) as usize;
                self.slots[at].buf.copy_to(payload_at, &patch.blocks, place, len);
            }
            ChangeKind::Zero { .. } => patch.blocks.fill(place, len, 0),
        }
        let data = segment(&patch.blocks, 0, (to - from) as usize);
        self.slots[at].phase = Phase::Patching(Patch { writes: true, ..patch });
        self.ask(at, Ask::new(Op::Write, from, to), Some(data), cx);
    }
}
