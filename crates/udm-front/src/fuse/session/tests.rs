//! Messages as the kernel sends them, and what becomes of them.

use super::{Command, CommandKind, Event, FileView, IO_BYTES_MAX, Session};
use crate::fuse::wire::{
    AttrOut, FallocateIn, HEAD_BYTES_MAX, InHeader, InitIn, InitOut, IoIn, OpenIn, OutHeader,
    SeekIn, SetAttrIn, errno, fallocate, init_flag, opcode, seek, set_attr,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

fn message<T: IntoBytes + Immutable>(opcode: u32, body: &T, payload: usize) -> Vec<u8> {
    let len = 40 + size_of::<T>() + payload;
    let header = InHeader { len: len as u32, opcode, unique: 9, nodeid: 1, ..InHeader::default() };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(body.as_bytes());
    bytes.resize(len, 0xAA);
    bytes
}

fn take(session: &mut Session, message: &[u8]) -> Event {
    session.take(&message[..message.len().min(HEAD_BYTES_MAX)], message.len())
}

fn hello(minor: u32) -> Vec<u8> {
    let init = InitIn { major: 7, minor, max_readahead: 131072, flags: u32::MAX };
    message(opcode::INIT, &init, 48)
}

fn ready(read_only: bool) -> Session {
    let file = FileView { size_bytes: 1000, block_bytes: 4096, read_only, ..FileView::default() };
    let mut session = Session::new(file, false);
    assert!(matches!(take(&mut session, &hello(41)), Event::Ready(_)));
    session
}

fn error_of(event: Event) -> i32 {
    let Event::Answer(answer) = event else { panic!("no answer: {event:?}") };
    -OutHeader::read_from_prefix(answer.as_bytes()).expect("a head").0.error
}

fn io(offset: u64, size: u32) -> IoIn {
    IoIn { offset, size, ..IoIn::default() }
}

fn kind_of(event: Event) -> CommandKind {
    let Event::Command(Command { unique: 9, kind }) = event else { panic!("{event:?}") };
    kind
}

#[test]
fn the_handshake_takes_what_both_know_and_refuses_the_past() {
    let mut session = Session::new(FileView::default(), false);
    let early = message(opcode::GETATTR, &[0_u8; 16], 0);
    assert!(matches!(take(&mut session, &early), Event::Broken(_)));
    let Event::Ready(answer) = take(&mut session, &hello(41)) else { panic!("refused") };
    let (out, _) = InitOut::read_from_prefix(&answer.as_bytes()[16..]).expect("whole");
    assert_eq!((out.major, out.max_write, out.max_pages), (7, IO_BYTES_MAX, 256));
    assert_ne!(out.flags & init_flag::ASYNC_DIO, 0);
    assert!(matches!(take(&mut session, &hello(41)), Event::Broken(_)), "once is enough");
    let mut session = Session::new(FileView::default(), false);
    assert!(matches!(take(&mut session, &hello(23)), Event::Refused(_)));
}

#[test]
fn reads_end_where_the_device_ends() {
    let mut session = ready(false);
    let mut read = |offset, size| take(&mut session, &message(opcode::READ, &io(offset, size), 0));
    let whole = CommandKind::Read { offset_bytes: 0, len_bytes: 1000 };
    assert_eq!(kind_of(read(0, 4096)), whole);
    let rest = CommandKind::Read { offset_bytes: 900, len_bytes: 100 };
    assert_eq!(kind_of(read(900, 200)), rest);
    assert_eq!(error_of(read(1000, 1)), 0, "nothing is there, and that is no error");
    assert_eq!(error_of(read(u64::MAX, 4096)), 0);
    assert_eq!(error_of(read(0, IO_BYTES_MAX + 1)), errno::EINVAL);
}

#[test]
fn writes_end_where_the_device_ends_and_have_the_payload_they_say() {
    let mut session = ready(false);
    let mut write = |offset, size: u32, payload| {
        take(&mut session, &message(opcode::WRITE, &io(offset, size), payload))
    };
    let rest = CommandKind::Write { offset_bytes: 900, len_bytes: 100 };
    assert_eq!(kind_of(write(900, 200, 200)), rest);
    assert_eq!(error_of(write(1000, 1, 1)), errno::ENOSPC);
    assert_eq!(error_of(write(0, 512, 511)), errno::EINVAL);
    assert_eq!(error_of(write(0, 0, 0)), 0);
    let mut session = ready(true);
    let write = message(opcode::WRITE, &io(0, 512), 512);
    assert_eq!(error_of(take(&mut session, &write)), errno::EROFS);
}

#[test]
fn holes_and_zeroes_stay_inside_the_device() {
    let mut session = ready(false);
    let mut ask = |mode, offset, length| {
        let body = FallocateIn { mode, offset, length, ..FallocateIn::default() };
        take(&mut session, &message(opcode::FALLOCATE, &body, 0))
    };
    let hole = fallocate::PUNCH_HOLE | fallocate::KEEP_SIZE;
    let zero = |offset_bytes, len_bytes, keep| CommandKind::Zero { offset_bytes, len_bytes, keep };
    assert_eq!(kind_of(ask(hole, 10, 20)), zero(10, 20, false));
    assert_eq!(kind_of(ask(hole, 990, 1 << 40)), zero(990, 10, false));
    assert_eq!(kind_of(ask(fallocate::ZERO_RANGE, 0, 1000)), zero(0, 1000, true));
    assert_eq!(error_of(ask(fallocate::ZERO_RANGE, 0, 1001)), errno::ENOSPC);
    assert_eq!(error_of(ask(hole, 5000, 10)), 0);
    assert_eq!(error_of(ask(hole, u64::MAX, 10)), errno::EINVAL);
    for mode in [0, fallocate::KEEP_SIZE, fallocate::PUNCH_HOLE, 8, 32] {
        assert_eq!(error_of(ask(mode, 0, 10)), errno::EOPNOTSUPP, "{mode}");
    }
}

#[test]
fn a_resize_is_seen_by_the_next_question() {
    let mut session = ready(false);
    let size = |session: &mut Session| {
        let event = take(session, &message(opcode::GETATTR, &[0_u8; 16], 0));
        let Event::Answer(answer) = event else { panic!("{event:?}") };
        let (out, _) = AttrOut::read_from_prefix(&answer.as_bytes()[16..]).expect("whole");
        assert_eq!((out.attr_valid, out.attr_valid_nsec), (0, 0), "nothing is kept");
        out.attr.size
    };
    assert_eq!(size(&mut session), 1000);
    session.set_size(5000, 4096);
    assert_eq!(size(&mut session), 5000);
}

#[test]
fn the_size_is_the_tables_and_an_open_that_truncates_changes_nothing() {
    let mut session = ready(false);
    let mut set = |valid, size| {
        let body = SetAttrIn { valid, size, ..SetAttrIn::default() };
        error_of(take(&mut session, &message(opcode::SETATTR, &body, 0)))
    };
    assert_eq!(set(set_attr::SIZE, 0), 0, "open with O_TRUNC");
    assert_eq!(set(set_attr::SIZE | set_attr::FH, 0), errno::EINVAL, "ftruncate");
    assert_eq!(set(set_attr::SIZE | set_attr::FH, 1000), 0);
    assert_eq!(set(set_attr::SIZE, 999), errno::EINVAL);
    assert_eq!(set(set_attr::MODE, 0), errno::EPERM);
    assert_eq!(set(1 << 5, 0), 0, "times may be set and are not kept");
}

#[test]
fn opens_are_counted_and_a_read_only_file_is_not_opened_to_write() {
    let mut session = ready(true);
    let mut open = |flags| {
        let body = OpenIn { flags, open_flags: 0 };
        error_of(take(&mut session, &message(opcode::OPEN, &body, 0)))
    };
    assert_eq!((open(0), open(1), open(2)), (0, errno::EROFS, errno::EROFS));
    assert_eq!(session.open_count(), 1);
    take(&mut session, &message(opcode::RELEASE, &[0_u8; 24], 0));
    assert_eq!(session.open_count(), 0);
}

#[test]
fn all_of_a_device_is_data() {
    let mut session = ready(false);
    let mut ask = |whence, offset| {
        let body = SeekIn { offset, whence, ..SeekIn::default() };
        take(&mut session, &message(opcode::LSEEK, &body, 0))
    };
    let place = |event: Event| {
        let Event::Answer(answer) = event else { panic!("{event:?}") };
        u64::read_from_prefix(&answer.as_bytes()[16..]).expect("whole").0
    };
    assert_eq!((place(ask(seek::DATA, 7)), place(ask(seek::HOLE, 7))), (7, 1000));
    assert_eq!(error_of(ask(seek::DATA, 1000)), errno::ENXIO);
    assert_eq!(error_of(ask(0, 1)), errno::EINVAL);
}

#[test]
fn what_is_not_known_is_said_so_and_forgetting_is_not_answered() {
    let mut session = ready(false);
    let mut ask = |opcode| take(&mut session, &message(opcode, &[0_u8; 40], 0));
    assert_eq!(error_of(ask(opcode::INTERRUPT)), errno::ENOSYS);
    assert_eq!(error_of(ask(22)), errno::ENOSYS);
    assert_eq!(error_of(ask(opcode::IOCTL)), errno::ENOTTY);
    assert_eq!(ask(opcode::FORGET), Event::Quiet);
    assert_eq!(ask(opcode::BATCH_FORGET), Event::Quiet);
    assert_eq!(kind_of(ask(opcode::FSYNC)), CommandKind::Flush);
    assert_eq!(kind_of(ask(opcode::FLUSH)), CommandKind::Flush);
}

#[test]
fn a_message_that_lies_about_its_length_ends_the_mount() {
    let mut session = ready(false);
    let mut read = message(opcode::READ, &io(0, 512), 0);
    assert!(matches!(session.take(&read[..39], 39), Event::Broken(_)));
    assert!(matches!(session.take(&read[..60], 80), Event::Broken(_)));
    read[0] += 1;
    assert!(matches!(take(&mut session, &read), Event::Broken(_)));
    let short = message(opcode::READ, &[0_u8; 8], 0);
    assert_eq!(error_of(take(&mut session, &short)), errno::EINVAL);
}
