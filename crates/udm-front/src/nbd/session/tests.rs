//! Tests of the transmission phase: every command, both sides of every limit, broken streams.

use super::{Breach, Command, CommandKind, Event, Session};
use crate::nbd::export::{ExportDescription, PAYLOAD_BYTES_MAX};
use crate::nbd::negotiate::Agreed;
use crate::nbd::reply::ReplyTo;
use crate::nbd::wire::{CommandFlags, HeaderStyle, NbdError};
use udm_types::QueueLimits;

const SIZE: u64 = 64 << 20;
const FUA: u16 = 1;
const DF: u16 = 4;
const PAYLOAD: u16 = 32;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

fn agreed(style: HeaderStyle) -> Agreed {
    Agreed {
        export: ExportDescription {
            name: "vol".into(),
            description: String::new(),
            size_bytes: SIZE,
            limits: QueueLimits::default(),
            read_only: false,
        },
        style,
        allocation_selected: style != HeaderStyle::Simple,
    }
}

fn compact(flags: u16, command: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(7_u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

fn extended(flags: u16, command: u16, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = 0x21e4_1c71_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(7_u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// The event of a single request on a fresh session.
fn one(agreed: &Agreed, bytes: &[u8]) -> Event {
    Session::new(agreed).step(bytes).event
}

fn refusal(agreed: &Agreed, bytes: &[u8]) -> Option<NbdError> {
    match one(agreed, bytes) {
        Event::Refused(refusal) => {
            assert!(refusal.reason.is_ascii() && !refusal.reason.is_empty());
            Some(refusal.error)
        }
        Event::Command(_) => None,
        other => panic!("neither command nor refusal: {other:?}"),
    }
}

#[test]
fn every_command_comes_out_typed() {
    let agreed = agreed(HeaderStyle::Structured);
    let table = [
        (READ, DF, CommandKind::Read),
        (WRITE, FUA, CommandKind::Write),
        (TRIM, FUA, CommandKind::Trim),
        (CACHE, 0, CommandKind::Cache),
        (WRITE_ZEROES, FUA | 2 | 16, CommandKind::WriteZeroes),
        (BLOCK_STATUS, 8, CommandKind::BlockStatus),
    ];
    for (number, flags, kind) in table {
        assert_eq!(
            one(&agreed, &compact(flags, number, 4096, 8192)),
            Event::Command(Command {
                to: ReplyTo { cookie: 7, offset_bytes: 4096 },
                kind,
                len_bytes: 8192,
                flags: CommandFlags::from_bits_retain(flags),
            })
        );
        assert_eq!(
            refusal(&agreed, &compact(FUA, number, 0, 512)),
            None,
            "FUA is legal everywhere"
        );
    }
    assert_eq!(
        one(&agreed, &compact(0, FLUSH, 0, 0)),
        Event::Command(Command {
            to: ReplyTo { cookie: 7, offset_bytes: 0 },
            kind: CommandKind::Flush,
            len_bytes: 0,
            flags: CommandFlags::empty(),
        })
    );
    assert_eq!(one(&agreed, &compact(0, DISC, 0, 0)), Event::Disconnect);
}

#[test]
fn flags_that_do_not_belong_are_refused() {
    let structured = agreed(HeaderStyle::Structured);
    // Per command: the flags it may have besides FUA.
    let table = [
        (READ, DF),
        (WRITE, 0),
        (FLUSH, 0),
        (TRIM, 0),
        (CACHE, 0),
        (WRITE_ZEROES, 2 | 16),
        (BLOCK_STATUS, 8),
    ];
    for (command, allowed) in table {
        let len = if command == FLUSH { 0 } else { 512 };
        for bit in 0..16 {
            let flag = 1_u16 << bit;
            let expected = (flag & (allowed | FUA) == 0).then_some(NbdError::Inval);
            let got = refusal(&structured, &compact(flag, command, 0, len));
            assert_eq!(got, expected, "command {command} flag {flag}");
        }
    }
    let simple = agreed(HeaderStyle::Simple);
    assert_eq!(refusal(&simple, &compact(DF, READ, 0, 512)), Some(NbdError::Inval));
}

#[test]
fn ranges_are_exact_on_both_sides() {
    let agreed = agreed(HeaderStyle::Structured);
    let beyond = [
        (READ, NbdError::Inval),
        (WRITE, NbdError::NoSpace),
        (TRIM, NbdError::Inval),
        (CACHE, NbdError::Inval),
        (WRITE_ZEROES, NbdError::NoSpace),
        (BLOCK_STATUS, NbdError::Inval),
    ];
    for (command, error) in beyond {
        assert_eq!(refusal(&agreed, &compact(0, command, SIZE - 512, 512)), None);
        for (offset, len) in [(SIZE - 512, 1024), (SIZE, 512), (u64::MAX - 511, 512)] {
            assert_eq!(refusal(&agreed, &compact(0, command, offset, len)), Some(error));
        }
        for (offset, len) in [(0, 0), (1, 512), (0, 511), (256, 256)] {
            let got = refusal(&agreed, &compact(0, command, offset, len));
            assert_eq!(got, Some(NbdError::Inval), "command {command} at {offset}+{len}");
        }
    }
    assert_eq!(refusal(&agreed, &compact(0, FLUSH, 512, 0)), Some(NbdError::Inval));
    assert_eq!(refusal(&agreed, &compact(0, FLUSH, 0, 512)), Some(NbdError::Inval));
}

#[test]
fn the_logical_block_is_the_alignment() {
    let mut agreed = agreed(HeaderStyle::Simple);
    agreed.export.limits.logical_block_bytes = 4096;
    assert_eq!(refusal(&agreed, &compact(0, READ, 4096, 4096)), None);
    assert_eq!(refusal(&agreed, &compact(0, READ, 512, 4096)), Some(NbdError::Inval));
    assert_eq!(refusal(&agreed, &compact(0, READ, 4096, 512)), Some(NbdError::Inval));
}

#[test]
fn a_resize_moves_the_end_for_an_existing_session() {
    let mut session = Session::new(&agreed(HeaderStyle::Simple));
    let past = compact(0, READ, SIZE, 512);
    assert!(matches!(session.step(&past[..]).event, Event::Refused(_)));
    session.set_size_bytes(SIZE + 512);
    assert!(matches!(session.step(&past[..]).event, Event::Command(_)));
}

#[test]
fn the_maximum_payload_is_exact() {
    for (style, error) in
        [(HeaderStyle::Simple, NbdError::Inval), (HeaderStyle::Structured, NbdError::Overflow)]
    {
        let agreed = agreed(style);
        assert_eq!(refusal(&agreed, &compact(0, READ, 0, PAYLOAD_BYTES_MAX)), None);
        assert_eq!(refusal(&agreed, &compact(0, READ, 0, PAYLOAD_BYTES_MAX + 512)), Some(error));
        assert_eq!(refusal(&agreed, &compact(0, WRITE, 0, PAYLOAD_BYTES_MAX)), None);
        assert_eq!(
            one(&agreed, &compact(0, WRITE, 0, PAYLOAD_BYTES_MAX + 1)),
            Event::Broken(Breach::PayloadTooLong(u64::from(PAYLOAD_BYTES_MAX) + 1))
        );
        // Commands without payload may be longer.
        assert_eq!(refusal(&agreed, &compact(0, TRIM, 0, SIZE as u32)), None);
        assert_eq!(refusal(&agreed, &compact(0, WRITE_ZEROES, 0, SIZE as u32)), None);
    }
}

#[test]
fn a_read_only_export_refuses_every_change_with_eperm() {
    let mut agreed = agreed(HeaderStyle::Structured);
    agreed.export.read_only = true;
    for command in [WRITE, TRIM, WRITE_ZEROES] {
        let got = refusal(&agreed, &compact(0, command, 0, 512));
        assert_eq!(got, Some(NbdError::Perm), "command {command}");
    }
    for command in [READ, CACHE, BLOCK_STATUS] {
        assert_eq!(refusal(&agreed, &compact(0, command, 0, 512)), None);
    }
    assert_eq!(refusal(&agreed, &compact(0, FLUSH, 0, 0)), None);
}

#[test]
fn commands_that_were_not_offered_are_refused() {
    let mut plain = agreed(HeaderStyle::Simple);
    plain.export.limits.forbid_discard();
    plain.export.limits.max_write_zeroes_sectors = 0;
    for command in [TRIM, WRITE_ZEROES, BLOCK_STATUS, 8, 99, u16::MAX] {
        let got = refusal(&plain, &compact(0, command, 0, 512));
        assert_eq!(got, Some(NbdError::Inval), "command {command}");
    }
}

#[test]
fn a_refused_write_is_skipped_and_the_stream_stays_in_step() {
    let mut stream = compact(0, WRITE, SIZE, 1024);
    // The payload looks like a request, on purpose.
    stream.extend(compact(0, DISC, 0, 0));
    stream.resize(28 + 1024, 0);
    stream.extend(compact(0, READ, 0, 512));
    let agreed = agreed(HeaderStyle::Simple);
    for piece_bytes in [1, 7, 28, 29, 500, stream.len()] {
        let events = feed(&mut Session::new(&agreed), &stream, piece_bytes);
        assert_eq!(events.len(), 2, "pieces of {piece_bytes}");
        assert!(matches!(events[0], Event::Refused(refused) if refused.error == NbdError::NoSpace));
        assert!(matches!(events[1], Event::Command(read) if read.kind == CommandKind::Read));
    }
}

/// Feeds a stream in pieces; the events without the uninteresting ones.
fn feed(session: &mut Session, stream: &[u8], piece_bytes: usize) -> Vec<Event> {
    let (mut window, mut events) = (Vec::new(), Vec::new());
    for piece in stream.chunks(piece_bytes) {
        window.extend_from_slice(piece);
        loop {
            let step = session.step(&window[..]);
            window.drain(..step.consumed_bytes);
            match step.event {
                Event::NeedMore => break,
                Event::Skipped => {}
                Event::Disconnect | Event::Broken(_) => {
                    events.push(step.event);
                    return events;
                }
                Event::Command(_) | Event::Refused(_) => events.push(step.event),
            }
        }
    }
    assert!(window.is_empty(), "everything was consumed");
    events
}

#[test]
fn extended_headers_carry_64_bit_lengths() {
    let mut agreed = agreed(HeaderStyle::Extended);
    agreed.export.size_bytes = 1 << 50;
    let Event::Command(command) = one(&agreed, &extended(0, WRITE_ZEROES, 0, 1 << 49)) else {
        panic!("a huge write-zeroes is fine");
    };
    assert_eq!(command.len_bytes, 1 << 49);
    assert_eq!(refusal(&agreed, &extended(0, READ, 0, 1 << 40)), Some(NbdError::Overflow));
    assert_eq!(refusal(&agreed, &extended(0, TRIM, 512, u64::MAX - 511)), Some(NbdError::Inval));
}

#[test]
fn the_payload_flag_rules_extended_requests() {
    let agreed = agreed(HeaderStyle::Extended);
    let Event::Command(write) = one(&agreed, &extended(PAYLOAD, WRITE, 0, 512)) else {
        panic!("a proper write");
    };
    assert_eq!((write.kind, write.flags), (CommandKind::Write, CommandFlags::empty()));

    // QEMU's client leaves the flag out and sends the payload all the same.
    let Event::Command(write) = one(&agreed, &extended(FUA, WRITE, 0, 512)) else {
        panic!("a write as QEMU sends it");
    };
    assert_eq!((write.kind, write.flags), (CommandKind::Write, CommandFlags::FUA));
    let mut stream = extended(0, WRITE, SIZE, 512);
    stream.extend([0xee; 512]);
    stream.extend(extended(0, FLUSH, 0, 0));
    let events = feed(&mut Session::new(&agreed), &stream, 32);
    assert!(matches!(events[0], Event::Refused(refused) if refused.error == NbdError::NoSpace));
    assert!(matches!(events[1], Event::Command(_)));

    // With the flag on another command (even an unknown one) the payload is passed over.
    for command in [READ, BLOCK_STATUS, 77] {
        let mut stream = extended(PAYLOAD, command, 0, 12);
        stream.extend([0xee; 12]);
        stream.extend(extended(0, FLUSH, 0, 0));
        let events = feed(&mut Session::new(&agreed), &stream, 5);
        assert!(matches!(events[0], Event::Refused(refused) if refused.error == NbdError::Inval));
        assert!(matches!(events[1], Event::Command(_)), "command {command}");
    }

    let too_long = u64::from(PAYLOAD_BYTES_MAX) + 1;
    assert_eq!(
        one(&agreed, &extended(0, WRITE, 0, too_long)),
        Event::Broken(Breach::PayloadTooLong(too_long))
    );
    for len in [too_long, u64::MAX] {
        assert_eq!(
            one(&agreed, &extended(PAYLOAD, READ, 0, len)),
            Event::Broken(Breach::PayloadTooLong(len))
        );
    }
}

#[test]
fn a_wrong_magic_ends_the_session_for_good() {
    let agreed = agreed(HeaderStyle::Simple);
    let mut session = Session::new(&agreed);
    let mut stream = extended(0, READ, 0, 512);
    let broken = Event::Broken(Breach::BadMagic(0x21e4_1c71));
    assert_eq!(session.step(&stream[..]).event, broken);
    stream = compact(0, READ, 0, 512);
    let step = session.step(&stream[..]);
    assert_eq!((step.consumed_bytes, step.event), (0, broken));
}

#[test]
fn nothing_is_read_behind_a_disconnect() {
    let agreed = agreed(HeaderStyle::Simple);
    let mut session = Session::new(&agreed);
    let mut stream = compact(0xffff, DISC, 12345, 6789);
    stream.extend([0xff; 100]);
    let step = session.step(&stream[..]);
    assert_eq!((step.consumed_bytes, step.event), (28, Event::Disconnect));
    let step = session.step(&stream[28..]);
    assert_eq!((step.consumed_bytes, step.event), (0, Event::Disconnect));
}
