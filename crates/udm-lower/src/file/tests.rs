//! The file lane against a driver whose every answer the test gives.
//!
//! A [`Rig`] is one lane: its part of the file, a bench in place of the engine, and a driver that
//! only notes what was asked. Two rigs over one [`FileShared`] are two lanes of one device.
//!
//! What is checked is the contract's hard half: short results, errors, retries, the order of
//! flush and write, who is told of a failed flush, and what an abort leaves behind.

use super::lane::{FileLane, RETRIES_MAX, RETRY_PAUSE, SLOTS_MAX, ZERO_PIECE_BYTES};
use super::state::{DirectAlign, FileShared, InodeState};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use udm_core::{Bio, BioBox, LowerBench, LowerLane};
use udm_lane::{
    Buf, Completion, Driver, DriverOp, Errno, FallocateKind, Handle, NoWake, OpResult, OpToken,
    Payload, RawHandle, Segment, Wake,
};
use udm_types::{BioFlags, LaneId, Nanos, Op, Status};

const EINTR: Errno = Errno(4);
const EIO: Errno = Errno(5);
const EAGAIN: Errno = Errno(11);
const ENOSPC: Errno = Errno(28);
const EOPNOTSUPP: Errno = Errno(95);
const ECANCELED: Errno = Errno(125);

const NONE: BioFlags = BioFlags::empty();

/// Notes operations; completes nothing by itself.
#[derive(Default)]
struct Noted {
    ops: VecDeque<(u32, DriverOp)>,
    cancelled: Vec<u32>,
    closed: Vec<Handle>,
}

impl Driver for Noted {
    fn name(&self) -> &'static str {
        "noted"
    }
    fn register(&mut self, raw: RawHandle) -> Result<Handle, Errno> {
        Ok(Handle(raw.0 as u32))
    }
    fn close(&mut self, handle: Handle) {
        self.closed.push(handle);
    }
    fn shutdown(&mut self, _handle: Handle) {}
    fn submit(&mut self, token: OpToken, op: DriverOp) {
        self.ops.push_back((token.0 as u32, op));
    }
    fn cancel(&mut self, token: OpToken) {
        self.cancelled.push(token.0 as u32);
    }
    fn wait(&mut self, _deadline: Option<Nanos>, _completions: &mut Vec<Completion>) {}
    fn now(&mut self) -> Nanos {
        Nanos::ZERO
    }
    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(NoWake)
    }
}

struct Rig {
    lane: FileLane,
    bench: LowerBench,
    driver: Noted,
    now: Nanos,
}

/// A device of 1 MiB.
fn shared(direct: Option<DirectAlign>) -> Arc<FileShared> {
    Arc::new(FileShared {
        inode: Arc::new(InodeState::default()),
        len_sectors: AtomicU64::new(2048),
        read_only: false,
        direct,
    })
}

fn rig() -> Rig {
    Rig::of(&shared(None))
}

impl Rig {
    fn of(shared: &Arc<FileShared>) -> Rig {
        Rig {
            lane: FileLane::new(Arc::clone(shared), Handle(7)),
            bench: LowerBench::default(),
            driver: Noted::default(),
            now: Nanos::ZERO,
        }
    }

    fn call(&mut self, act: impl FnOnce(&mut FileLane, &mut udm_core::LowerCx<'_>)) {
        act(&mut self.lane, &mut self.bench.cx(&mut self.driver, LaneId(0), self.now));
    }

    fn submit_bio(&mut self, bio: BioBox) {
        self.call(|lane, cx| lane.submit(bio, cx));
    }

    /// Submits; data operations get a payload filled with the low byte of their sector.
    fn submit(&mut self, op: Op, flags: BioFlags, sector: u64, len_sectors: u64) {
        let mut bio = self.bench.bio();
        bio.ask(op, flags, sector, len_sectors);
        if op.has_data() && len_sectors > 0 {
            let buf = Buf::alloc(len_sectors as usize * 512);
            buf.fill(0, buf.len_bytes(), sector as u8);
            bio.payload = Payload::from_buf(buf);
        }
        self.submit_bio(bio);
    }

    fn flush(&mut self) {
        self.submit(Op::Flush, NONE, 0, 0);
    }

    /// The oldest operation that has not been taken.
    fn take(&mut self) -> (u32, DriverOp) {
        self.driver.ops.pop_front().expect("an operation was started")
    }

    fn take_sync(&mut self) -> (u32, DriverOp) {
        let (user, op) = self.take();
        assert!(matches!(op, DriverOp::Sync { handle: Handle(7) }), "expected a sync, got {op:?}");
        (user, op)
    }

    fn end(&mut self, (user, op): (u32, DriverOp), result: OpResult) {
        let payload = match op {
            DriverOp::Read { payload, .. } | DriverOp::Write { payload, .. } => payload,
            DriverOp::Sync { .. } | DriverOp::Fallocate { .. } => Payload::empty(),
            other => panic!("a file never asks for {other:?}"),
        };
        let completion =
            Completion { token: OpToken(u64::from(user)), result, payload, more: false };
        self.call(|lane, cx| lane.on_op(user, completion, cx));
    }

    fn abort(&mut self, select: impl Fn(&Bio) -> bool) {
        self.call(|lane, cx| lane.abort(&mut |bio| select(bio), cx));
    }

    /// The statuses of bios that came back since the last look.
    fn done(&mut self) -> Vec<Status> {
        self.bench.done.drain(..).map(|bio| bio.status).collect()
    }

    fn is_quiet(&self) -> bool {
        self.driver.ops.is_empty() && self.bench.done.is_empty()
    }
}

/// Offset and length of a read or write.
fn place(op: &DriverOp) -> (u64, u64) {
    match op {
        DriverOp::Read { offset_bytes, payload, .. }
        | DriverOp::Write { offset_bytes, payload, .. } => (*offset_bytes, payload.len_bytes()),
        DriverOp::Fallocate { offset_bytes, len_bytes, .. } => (*offset_bytes, *len_bytes),
        other => panic!("{other:?} has no place"),
    }
}

fn is_dsync(op: &DriverOp) -> bool {
    matches!(op, DriverOp::Write { dsync: true, .. })
}

#[test]
fn a_short_read_is_continued_where_it_stopped_and_the_payload_comes_back_whole() {
    let mut rig = rig();
    rig.submit(Op::Read, NONE, 8, 8);
    let address = match &rig.driver.ops[0].1 {
        DriverOp::Read { payload, .. } => payload.segments().next().map(Segment::as_ptr),
        other => panic!("{other:?}"),
    };
    let first = rig.take();
    assert_eq!(place(&first.1), (4096, 4096));
    rig.end(first, Ok(1000));
    let second = rig.take();
    assert_eq!(place(&second.1), (5096, 3096));
    if let DriverOp::Read { payload, .. } = &second.1 {
        payload.fill(0, 3096, 0x5a);
    }
    rig.end(second, Ok(3096));
    let bio = rig.bench.done.pop_front().unwrap();
    assert_eq!((bio.status, bio.payload.len_bytes()), (Status::Ok, 4096));
    let segment = bio.payload.segments().next().unwrap();
    assert_eq!(Some(segment.as_ptr()), address);
    assert!(segment.buf.is_unique(), "the lane keeps no handle on an answered bio's memory");
    let mut seen = [0; 4096];
    bio.payload.copy_out(0, &mut seen);
    assert!(
        seen[..1000].iter().all(|&byte| byte == 8) && seen[1000..].iter().all(|&byte| byte == 0x5a)
    );
}

#[test]
fn a_short_write_is_continued_across_segments() {
    let mut rig = rig();
    let mut bio = rig.bench.bio();
    bio.ask(Op::Write, NONE, 0, 4);
    for _ in 0..4 {
        bio.payload.push(Segment { buf: Buf::alloc(512), offset_bytes: 0, len_bytes: 512 });
    }
    rig.submit_bio(bio);
    for (stop, left) in [(1, 2048), (511, 2047), (1536, 1536)] {
        let op = rig.take();
        assert_eq!(place(&op.1), (2048 - left, left));
        rig.end(op, Ok(stop));
    }
    assert_eq!(rig.done(), [Status::Ok]);
}

#[test]
fn nothing_moved_is_an_error_not_an_endless_loop() {
    for op in [Op::Read, Op::Write] {
        let mut rig = rig();
        rig.submit(op, NONE, 0, 8);
        let first = rig.take();
        rig.end(first, Ok(512));
        let second = rig.take();
        rig.end(second, Ok(0));
        assert_eq!(rig.done(), [Status::IoErr], "{op:?} at the end of a file that has shrunk");
        assert!(rig.is_quiet());
    }
}

#[test]
fn an_impossible_count_is_an_error() {
    let mut rig = rig();
    rig.submit(Op::Write, NONE, 0, 1);
    let op = rig.take();
    rig.end(op, Ok(513));
    assert_eq!(rig.done(), [Status::IoErr]);
}

#[test]
fn errors_end_the_bio_with_their_status() {
    for (errno, status) in [(EIO, Status::IoErr), (ENOSPC, Status::NoSpace)] {
        let mut rig = rig();
        rig.submit(Op::Write, NONE, 0, 8);
        let op = rig.take();
        rig.end(op, Ok(100));
        let op = rig.take();
        rig.end(op, Err(errno));
        assert_eq!(rig.done(), [status]);
        assert!(rig.is_quiet());
    }
}

#[test]
fn an_interrupted_operation_is_tried_again_at_once_but_not_for_ever() {
    let mut rig = rig();
    rig.submit(Op::Read, NONE, 0, 1);
    for _ in 0..RETRIES_MAX {
        let op = rig.take();
        rig.end(op, Err(EINTR));
    }
    let op = rig.take();
    rig.end(op, Err(EINTR));
    assert_eq!(rig.done(), [Status::IoErr]);
    rig.submit(Op::Read, NONE, 0, 1);
    let op = rig.take();
    rig.end(op, Err(EINTR));
    let op = rig.take();
    rig.end(op, Ok(512));
    assert_eq!(rig.done(), [Status::Ok]);
}

#[test]
fn again_is_tried_after_a_pause() {
    let mut rig = rig();
    rig.now = Nanos(5);
    rig.submit(Op::Write, NONE, 0, 1);
    let op = rig.take();
    rig.end(op, Err(EAGAIN));
    assert!(rig.is_quiet());
    let (deadline, _, token) = rig.bench.timers.pop().unwrap();
    assert_eq!(deadline, Nanos(5) + RETRY_PAUSE);
    rig.call(|lane, cx| lane.on_timer(token, cx));
    rig.call(|lane, cx| lane.on_timer(token, cx));
    let op = rig.take();
    assert!(rig.is_quiet(), "a timer that fires twice starts nothing twice");
    rig.end(op, Ok(512));
    assert_eq!(rig.done(), [Status::Ok]);
    rig.call(|lane, cx| lane.on_timer(u64::MAX, cx));
    assert!(rig.is_quiet());
}

#[test]
fn a_flush_is_a_sync_and_fua_a_durable_write() {
    let mut rig = rig();
    rig.flush();
    let op = rig.take_sync();
    assert!(rig.done().is_empty(), "a flush is not done before its sync");
    rig.end(op, Ok(0));
    assert_eq!(rig.done(), [Status::Ok]);
    rig.submit(Op::Write, BioFlags::FUA, 0, 1);
    let op = rig.take();
    assert!(is_dsync(&op.1));
    rig.end(op, Ok(100));
    let op = rig.take();
    assert!(is_dsync(&op.1), "the rest of a durable write is durable too");
    rig.end(op, Ok(412));
    assert_eq!(rig.done(), [Status::Ok]);
    rig.submit(Op::Write, NONE, 0, 1);
    let op = rig.take();
    assert!(!is_dsync(&op.1));
}

#[test]
fn preflush_syncs_first_and_writes_after() {
    for (flags, durable) in [
        (BioFlags::PREFLUSH, false),
        (BioFlags::PREFLUSH | BioFlags::FUA, true),
        (BioFlags::ORDERED, true),
    ] {
        let mut rig = rig();
        rig.submit(Op::Write, flags, 4, 1);
        let op = rig.take_sync();
        assert!(rig.is_quiet());
        rig.end(op, Ok(0));
        let op = rig.take();
        assert_eq!((place(&op.1), is_dsync(&op.1)), ((2048, 512), durable));
        rig.end(op, Ok(512));
        assert_eq!(rig.done(), [Status::Ok]);
    }
}

#[test]
fn a_failed_preflush_writes_nothing() {
    let mut rig = rig();
    rig.submit(Op::Write, BioFlags::PREFLUSH, 4, 1);
    let op = rig.take_sync();
    rig.end(op, Err(EIO));
    assert_eq!(rig.done(), [Status::IoErr]);
    assert!(rig.is_quiet());
}

#[test]
fn empty_bios_are_answered_and_an_empty_preflush_is_a_flush() {
    let mut rig = rig();
    rig.submit(Op::Read, NONE, 2048, 0);
    rig.submit(Op::Write, NONE, 0, 0);
    rig.submit(Op::Discard, NONE, 0, 0);
    assert_eq!(rig.done(), [Status::Ok; 3]);
    rig.submit(Op::Write, BioFlags::PREFLUSH, 0, 0);
    let op = rig.take_sync();
    rig.end(op, Ok(0));
    assert_eq!(rig.done(), [Status::Ok]);
    assert!(rig.is_quiet());
}

#[test]
fn what_cannot_be_is_refused_before_the_kernel_sees_it() {
    let mut rig = rig();
    rig.submit(Op::Read, NONE, 2047, 2);
    rig.submit(Op::Write, NONE, u64::MAX, 1);
    let mut bio = rig.bench.bio();
    bio.ask(Op::Write, NONE, 0, 2);
    bio.payload = Payload::from_buf(Buf::alloc(512));
    rig.submit_bio(bio);
    assert_eq!(rig.done(), [Status::IoErr, Status::IoErr, Status::Invalid]);
    let read_only = Arc::new(FileShared {
        inode: Arc::default(),
        len_sectors: AtomicU64::new(8),
        read_only: true,
        direct: None,
    });
    let mut rig = Rig::of(&read_only);
    for op in [Op::Write, Op::Discard, Op::WriteZeroes] {
        rig.submit(op, NONE, 0, 1);
    }
    assert_eq!(rig.done(), [Status::ReadOnly; 3]);
    assert!(rig.is_quiet());
}

#[test]
fn discard_punches_a_hole_or_says_it_cannot() {
    let mut rig = rig();
    rig.submit(Op::Discard, NONE, 8, 16);
    let op = rig.take();
    let punch = matches!(op.1, DriverOp::Fallocate { kind: FallocateKind::PunchHole, .. });
    assert_eq!((punch, place(&op.1)), (true, (4096, 8192)));
    rig.end(op, Ok(0));
    rig.submit(Op::Discard, NONE, 8, 16);
    let op = rig.take();
    rig.end(op, Err(EOPNOTSUPP));
    assert_eq!(rig.done(), [Status::Ok, Status::NotSupported]);
    assert!(rig.is_quiet());
}

#[test]
fn write_zeroes_keeps_blocks_only_if_asked() {
    let mut rig = rig();
    for (flags, expected) in
        [(NONE, FallocateKind::PunchHole), (BioFlags::NO_UNMAP, FallocateKind::ZeroRange)]
    {
        rig.submit(Op::WriteZeroes, flags, 0, 2048);
        let op = rig.take();
        let DriverOp::Fallocate { kind, .. } = op.1 else { panic!("{op:?}") };
        assert_eq!((kind, place(&op.1)), (expected, (0, 1 << 20)));
        rig.end(op, Ok(0));
        assert_eq!(rig.done(), [Status::Ok]);
    }
}

#[test]
fn write_zeroes_falls_back_to_writing_zeroes_in_pieces() {
    let mut rig = rig();
    rig.submit(Op::WriteZeroes, BioFlags::FUA, 1, 2047);
    let op = rig.take();
    rig.end(op, Err(EOPNOTSUPP));
    let mut at = 512;
    while at < 1 << 20 {
        let op = rig.take();
        assert!(rig.driver.ops.is_empty(), "one piece at a time");
        let (offset, len) = place(&op.1);
        assert_eq!((offset, len), (at, ZERO_PIECE_BYTES.min((1 << 20) - at)));
        let DriverOp::Write { payload, .. } = &op.1 else { panic!("{op:?}") };
        let mut bytes = vec![1; len as usize];
        payload.copy_out(0, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 0));
        // Most pieces come short.
        let moved = len.min(100_000);
        rig.end(op, Ok(moved as u32));
        at += moved;
    }
    let op = rig.take_sync();
    assert!(rig.done().is_empty());
    rig.end(op, Ok(0));
    assert_eq!(rig.done(), [Status::Ok]);
}

#[test]
fn a_flush_that_comes_during_a_sync_waits_for_the_next_one() {
    let mut rig = rig();
    rig.flush();
    let first = rig.take_sync();
    rig.flush();
    rig.submit(Op::Write, BioFlags::PREFLUSH, 0, 1);
    assert!(rig.is_quiet(), "one sync at a time");
    rig.end(first, Ok(0));
    assert_eq!(rig.done(), [Status::Ok]);
    let second = rig.take_sync();
    rig.end(second, Ok(0));
    assert_eq!(rig.done(), [Status::Ok]);
    let write = rig.take();
    rig.end(write, Ok(512));
    assert_eq!(rig.done(), [Status::Ok]);
    assert!(rig.is_quiet(), "no sync without a flush");
}

#[test]
fn an_interrupted_sync_is_tried_again() {
    let mut rig = rig();
    rig.flush();
    let op = rig.take_sync();
    rig.end(op, Err(EINTR));
    let op = rig.take_sync();
    rig.end(op, Ok(0));
    assert_eq!(rig.done(), [Status::Ok]);
}

#[test]
fn a_failed_sync_fails_all_flushes_under_way_on_every_lane_and_no_later_one() {
    let shared = shared(None);
    let (mut one, mut two) = (Rig::of(&shared), Rig::of(&shared));
    one.flush();
    two.flush();
    let (first, second) = (one.take_sync(), two.take_sync());
    one.flush();
    one.end(first, Err(ENOSPC));
    assert_eq!(one.done(), [Status::NoSpace]);
    two.end(second, Ok(0));
    assert_eq!(two.done(), [Status::NoSpace], "it was under way while the other failed");
    let later = one.take_sync();
    one.end(later, Ok(0));
    assert_eq!(one.done(), [Status::Ok], "it began after the failure, which was reported");
}

#[test]
fn a_failed_sync_nobody_saw_fails_the_next_flush_once() {
    let shared = shared(None);
    let (mut one, mut two) = (Rig::of(&shared), Rig::of(&shared));
    one.flush();
    let hung = one.take_sync();
    one.abort(|_| true);
    assert_eq!(one.done(), [Status::Timeout]);
    one.end(hung, Err(EIO));
    assert!(one.is_quiet());
    for expected in [Status::IoErr, Status::Ok] {
        two.flush();
        let op = two.take_sync();
        two.end(op, Ok(0));
        assert_eq!(two.done(), [expected]);
    }
}

#[test]
fn a_failed_durable_write_fails_the_next_flush_too() {
    let shared = shared(None);
    let (mut one, mut two) = (Rig::of(&shared), Rig::of(&shared));
    one.submit(Op::Write, BioFlags::FUA, 0, 1);
    let op = one.take();
    one.end(op, Err(EIO));
    assert_eq!(one.done(), [Status::IoErr]);
    for expected in [Status::IoErr, Status::Ok] {
        two.flush();
        let op = two.take_sync();
        two.end(op, Ok(0));
        assert_eq!(two.done(), [expected]);
    }
}

#[test]
fn a_failure_left_unseen_while_another_is_reported_stays_unseen() {
    let inode = InodeState::default();
    let began = inode.sync_generation();
    let reported = inode.sync_failed(EIO);
    inode.durable_write_failed(ENOSPC);
    inode.told(reported);
    let next = inode.failed_since(inode.sync_generation()).expect("the second was not told");
    assert_eq!(next.errno, ENOSPC);
    inode.told(next);
    assert_eq!(inode.failed_since(inode.sync_generation()), None);
    assert!(inode.failed_since(began).is_some());
}

#[test]
fn an_abort_answers_at_once_and_fences_every_lane_until_the_operation_ends() {
    let shared = shared(None);
    let (mut one, mut two) = (Rig::of(&shared), Rig::of(&shared));
    one.submit(Op::Write, NONE, 3, 1);
    one.submit(Op::Write, NONE, 5, 1);
    let (hung, other) = (one.take(), one.take());
    one.abort(|bio| bio.sector == 3);
    let bio = one.bench.done.pop_front().unwrap();
    assert_eq!((bio.status, bio.sector), (Status::Timeout, 3));
    // It went back whole, and its memory is not taken for free while the kernel may read it.
    assert_eq!(bio.payload.len_bytes(), 512);
    assert!(!bio.payload.segments().next().unwrap().buf.is_unique());
    assert_eq!(one.driver.cancelled, [hung.0]);
    for rig in [&mut one, &mut two] {
        rig.submit(Op::Read, NONE, 0, 1);
        rig.flush();
        assert_eq!(rig.done(), [Status::Offline; 2]);
        assert!(rig.is_quiet());
    }
    one.end(other, Ok(512));
    assert_eq!(one.done(), [Status::Ok], "what was not aborted goes on");
    two.submit(Op::Read, NONE, 0, 1);
    assert_eq!(two.done(), [Status::Offline]);
    one.end(hung, Ok(100));
    assert!(one.is_quiet(), "an abandoned write is not continued");
    assert!(bio.payload.segments().next().unwrap().buf.is_unique());
    for rig in [&mut one, &mut two] {
        rig.submit(Op::Read, NONE, 0, 1);
        let op = rig.take();
        rig.end(op, Ok(512));
        assert_eq!(rig.done(), [Status::Ok]);
    }
}

#[test]
fn an_aborted_flush_fences_until_its_sync_ends_and_others_get_their_result() {
    let mut rig = rig();
    rig.flush();
    let first = rig.take_sync();
    rig.flush();
    rig.submit(Op::Write, BioFlags::PREFLUSH, 9, 1);
    rig.submit(Op::Flush, BioFlags::FUA, 0, 0);
    rig.abort(|bio| bio.flags.is_empty());
    assert_eq!(rig.done(), [Status::Timeout; 2]);
    rig.flush();
    assert_eq!(rig.done(), [Status::Offline]);
    rig.end(first, Ok(0));
    assert!(rig.done().is_empty());
    let second = rig.take_sync();
    rig.end(second, Ok(0));
    assert_eq!(rig.done(), [Status::Ok], "the flush that was not chosen");
    let write = rig.take();
    assert_eq!(place(&write.1), (9 * 512, 512));
    rig.end(write, Ok(512));
    assert_eq!(rig.done(), [Status::Ok]);
}

#[test]
fn a_step_not_yet_taken_is_not_taken_while_fenced() {
    let shared = shared(None);
    let (mut one, mut two) = (Rig::of(&shared), Rig::of(&shared));
    one.submit(Op::Write, BioFlags::PREFLUSH, 0, 1);
    let sync = one.take_sync();
    one.submit(Op::Write, NONE, 8, 1);
    let pausing = one.take();
    one.end(pausing, Err(EAGAIN));
    two.submit(Op::Write, NONE, 0, 1);
    let hung = two.take();
    two.abort(|_| true);
    one.end(sync, Ok(0));
    let (_, _, token) = one.bench.timers.pop().unwrap();
    one.call(|lane, cx| lane.on_timer(token, cx));
    assert_eq!(one.done(), [Status::Offline; 2]);
    assert!(one.is_quiet());
    two.end(hung, Err(ECANCELED));
    one.submit(Op::Write, NONE, 0, 1);
    assert_eq!(one.driver.ops.len(), 1);
}

#[test]
fn aborting_what_waits_for_a_timer_fences_nothing() {
    let mut rig = rig();
    rig.submit(Op::Read, NONE, 0, 1);
    let op = rig.take();
    rig.end(op, Err(EAGAIN));
    rig.abort(|_| true);
    assert_eq!(rig.done(), [Status::Timeout]);
    let (_, _, token) = rig.bench.timers.pop().unwrap();
    rig.submit(Op::Read, NONE, 4, 1);
    let op = rig.take();
    rig.call(|lane, cx| lane.on_timer(token, cx));
    assert!(rig.is_quiet(), "the timer of an aborted bio does not touch the slot's next bio");
    rig.end(op, Ok(512));
    assert_eq!(rig.done(), [Status::Ok]);
}

#[test]
fn a_cancelled_durable_write_leaves_no_failed_flush_behind_but_a_failed_one_does() {
    for (result, expected) in [(Err(ECANCELED), Status::Ok), (Err(EIO), Status::IoErr)] {
        let mut rig = rig();
        rig.submit(Op::Write, BioFlags::FUA, 0, 1);
        let hung = rig.take();
        rig.abort(|_| true);
        assert_eq!(rig.done(), [Status::Timeout]);
        rig.end(hung, result);
        rig.flush();
        let op = rig.take_sync();
        rig.end(op, Ok(0));
        assert_eq!(rig.done(), [expected]);
    }
}

#[test]
fn bios_beyond_the_bound_wait_in_order_and_are_aborted_with_the_rest() {
    let mut rig = rig();
    for sector in 0..SLOTS_MAX as u64 + 4 {
        rig.submit(Op::Read, NONE, sector, 1);
    }
    assert_eq!(rig.driver.ops.len(), SLOTS_MAX);
    let first = rig.take();
    rig.end(first, Ok(512));
    assert_eq!(place(&rig.driver.ops.back().unwrap().1).0, SLOTS_MAX as u64 * 512);
    rig.done();
    rig.abort(|bio| bio.sector == SLOTS_MAX as u64 + 2);
    assert_eq!(rig.done(), [Status::Timeout]);
    for offset in [1, 3] {
        let op = rig.take();
        rig.end(op, Ok(512));
        assert_eq!(place(&rig.driver.ops.back().unwrap().1).0, (SLOTS_MAX as u64 + offset) * 512);
    }
    // A bio that still waits when the device is fenced is refused, not started.
    rig.submit(Op::Read, NONE, 2, 1);
    rig.done();
    rig.abort(|bio| bio.sector == 5);
    assert_eq!(rig.done(), [Status::Timeout]);
    let op = rig.take();
    rig.end(op, Ok(512));
    assert_eq!(rig.done(), [Status::Ok, Status::Offline]);
}

#[test]
fn direct_io_uses_aligned_memory_in_place_of_the_bios() {
    let align = DirectAlign { memory_bytes: 512, range_bytes: 4096 };
    let mut rig = Rig::of(&shared(Some(align)));
    let odd = |rig: &Rig, op| {
        let mut bio = rig.bench.bio();
        bio.ask(op, NONE, 8, 16);
        let buf = Buf::alloc(3 * 8192);
        buf.fill(0, buf.len_bytes(), 3);
        bio.payload.push(Segment { buf: buf.clone(), offset_bytes: 28, len_bytes: 4096 });
        bio.payload.push(Segment { buf, offset_bytes: 8192, len_bytes: 4096 });
        bio
    };
    let bio = odd(&rig, Op::Write);
    bio.payload.fill(4000, 4192, 9);
    rig.submit_bio(bio);
    let op = rig.take();
    let DriverOp::Write { payload, .. } = &op.1 else { panic!("{op:?}") };
    assert_eq!((payload.segment_count(), payload.len_bytes()), (1, 8192));
    assert_eq!(payload.segments().next().unwrap().as_ptr() as usize % 4096, 0);
    let mut bytes = [0; 8192];
    payload.copy_out(0, &mut bytes);
    assert!(
        bytes[..4000].iter().all(|&byte| byte == 3) && bytes[4000..].iter().all(|&byte| byte == 9)
    );
    // Cut in the middle of a block: that block is done again.
    rig.end(op, Ok(5000));
    let op = rig.take();
    assert_eq!(place(&op.1), (8192, 4096));
    rig.end(op, Ok(4096));
    assert_eq!(rig.done(), [Status::Ok]);

    let bio = odd(&rig, Op::Read);
    rig.submit_bio(bio);
    let op = rig.take();
    let DriverOp::Read { payload, .. } = &op.1 else { panic!("{op:?}") };
    payload.fill(0, 8192, 0x77);
    rig.end(op, Ok(8192));
    let bio = rig.bench.done.pop_front().unwrap();
    bio.payload.copy_out(0, &mut bytes);
    assert_eq!((bio.status, bytes), (Status::Ok, [0x77; 8192]));

    let mut bio = rig.bench.bio();
    bio.ask(Op::Read, NONE, 0, 8);
    bio.payload = Payload::from_buf(Buf::alloc(4096));
    let address = bio.payload.segments().next().unwrap().as_ptr();
    rig.submit_bio(bio);
    let op = rig.take();
    let DriverOp::Read { payload, .. } = &op.1 else { panic!("{op:?}") };
    assert_eq!(
        payload.segments().next().unwrap().as_ptr(),
        address,
        "aligned memory is used as is"
    );
    rig.end(op, Ok(100));
    assert_eq!(rig.done(), [Status::IoErr], "less than a block moved");
}

#[test]
fn an_abandoned_direct_read_never_touches_the_bios_memory() {
    let align = DirectAlign { memory_bytes: 512, range_bytes: 512 };
    let mut rig = Rig::of(&shared(Some(align)));
    let mut bio = rig.bench.bio();
    bio.ask(Op::Read, NONE, 0, 1);
    let buf = Buf::alloc(1024);
    bio.payload.push(Segment { buf: buf.clone(), offset_bytes: 1, len_bytes: 512 });
    rig.submit_bio(bio);
    let op = rig.take();
    rig.abort(|_| true);
    rig.done();
    if let DriverOp::Read { payload, .. } = &op.1 {
        payload.fill(0, 512, 1);
    }
    rig.end(op, Ok(512));
    let mut bytes = [9; 512];
    buf.copy_out(1, &mut bytes);
    assert_eq!(bytes, [0; 512]);
}

#[test]
fn closing_gives_the_handle_back() {
    let mut rig = rig();
    rig.call(|lane, cx| lane.close(cx));
    assert_eq!(rig.driver.closed, [Handle(7)]);
}
