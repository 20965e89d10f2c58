//! Messages as the kernel sends them, and which bytes an ioctl asks for in which order.

use super::{IN_HEADER_BYTES, Ioctl, Message, ROOM_BYTES_MAX, Stage, errno, hello, opcode};
use super::{polled, u32_at, u64_at};

const LIST_DEVICES: u32 = 0xc138_fd02;
const TABLE_LOAD: u32 = 0xc138_fd09;
const VERSION: u32 = 0xc138_fd00;

fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; IN_HEADER_BYTES];
    bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
    bytes[8..16].copy_from_slice(&77_u64.to_ne_bytes());
    bytes[24..28].copy_from_slice(&1000_u32.to_ne_bytes());
    bytes.extend(body);
    bytes
}

/// An ioctl with these bytes of its caller and this room.
fn ioctl(command: u32, argument: u64, data: &[u8], room_bytes: u32) -> Vec<u8> {
    let mut body = 5_u64.to_ne_bytes().to_vec();
    body.extend(2_u32.to_ne_bytes());
    body.extend(command.to_ne_bytes());
    body.extend(argument.to_ne_bytes());
    body.extend((data.len() as u32).to_ne_bytes());
    body.extend(room_bytes.to_ne_bytes());
    body.extend(data);
    message(opcode::IOCTL, &body)
}

fn stage(command: u32, argument: u64, data: &[u8], room_bytes: u32) -> Stage {
    let bytes = ioctl(command, argument, data, room_bytes);
    Ioctl::of(&Message::of(&bytes)).stage()
}

fn header(size_bytes: u32, len_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; len_bytes.max(16)];
    bytes[..4].copy_from_slice(&4_u32.to_ne_bytes());
    bytes[12..16].copy_from_slice(&size_bytes.to_ne_bytes());
    bytes.truncate(len_bytes);
    bytes
}

#[test]
fn an_ioctl_asks_for_version_header_and_rest() {
    let retry = |wanted_bytes, room_bytes| Stage::Retry { wanted_bytes, room_bytes };
    assert_eq!(stage(TABLE_LOAD, 9, &[], 0), retry(12, 12));
    assert_eq!(stage(TABLE_LOAD, 9, &header(0, 12), 12), retry(305, 305));
    assert_eq!(stage(TABLE_LOAD, 9, &header(400, 305), 305), retry(400, 400));
    let ask = |call_bytes| Stage::Ask { call_bytes };
    assert_eq!(stage(TABLE_LOAD, 9, &header(400, 400), 400), ask(400));
    // A list reads its header only, whatever room there is.
    assert_eq!(stage(LIST_DEVICES, 9, &header(16384, 305), 305), retry(312, 16384));
    assert_eq!(stage(LIST_DEVICES, 9, &header(16384, 312), 16384), ask(312));
    let large = header(1 << 20, 312);
    assert_eq!(stage(LIST_DEVICES, 9, &large, 305), retry(312, ROOM_BYTES_MAX));
    assert_eq!(stage(LIST_DEVICES, 9, &large, ROOM_BYTES_MAX as u32), ask(312));
    assert_eq!(stage(TABLE_LOAD, 9, &large, 305), Stage::Refuse(errno::ENOMEM));
    // No size that could be: the codec says so.
    assert_eq!(stage(TABLE_LOAD, 9, &header(4, 305), 305), ask(305));
}

#[test]
fn a_version_is_enough_or_all_there_is() {
    let ask = Stage::Ask { call_bytes: 12 };
    assert_eq!(stage(VERSION, 9, &header(0, 12), 12), ask);
    let mut wrong = header(0, 12);
    wrong[0] = 5;
    assert_eq!(stage(TABLE_LOAD, 9, &wrong, 12), ask);
    assert_eq!(stage(0xc138_fd99, 9, &header(0, 12), 12), ask, "an unknown number");
    assert_eq!(stage(0x5413, 9, &[], 0), Stage::Refuse(errno::ENOTTY));
    assert_eq!(stage(VERSION, 0, &[], 0), Stage::Refuse(errno::EFAULT));
}

#[test]
fn the_call_never_says_more_room_than_there_is() {
    let bytes = ioctl(LIST_DEVICES, 9, &header(1 << 20, 312), ROOM_BYTES_MAX as u32);
    let call = Ioctl::of(&Message::of(&bytes)).call(312);
    assert_eq!((call.len(), u32_at(&call, 12)), (312, ROOM_BYTES_MAX as u32));
}

#[test]
fn answers_carry_the_errno_and_wipe_what_is_secret() {
    let mut secret = header(320, 320);
    secret[28..32].copy_from_slice(&(1_u32 << 15).to_ne_bytes());
    let bytes = ioctl(TABLE_LOAD, 9, &secret, 320);
    let answered = Ioctl::of(&Message::of(&bytes)).answered(77, 22, vec![4; 12]);
    assert_eq!((u32_at(&answered, 0), u64_at(&answered, 8)), (16 + 16 + 320, 77));
    assert_eq!(u32_at(&answered, 16).cast_signed(), -22);
    assert_eq!((&answered[32..44], &answered[44..]), (&[4; 12][..], &[0; 308][..]));
    let short = ioctl(VERSION, 9, &header(0, 12), 12);
    let answered = Ioctl::of(&Message::of(&short)).answered(77, 0, vec![4; 13]);
    assert_eq!(u32_at(&answered, 16).cast_signed(), -errno::ENOMEM);
    let retried = Ioctl::of(&Message::of(&short)).retry(77, 305, 312);
    assert_eq!((u32_at(&retried, 20), u32_at(&retried, 24), u32_at(&retried, 28)), (4, 1, 1));
    let pieces = [32, 40, 48, 56].map(|at| u64_at(&retried, at));
    assert_eq!(pieces, [9, 305, 9, 312]);
}

#[test]
fn the_handshake_names_the_device() {
    let body: Vec<u8> = [7_u32, 39, 0, 1].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let bytes = message(opcode::CUSE_INIT, &body);
    let answer = hello(&Message::of(&bytes), "mapper/control").expect("spoken");
    assert_eq!(u32_at(&answer, 0) as usize, answer.len());
    assert_eq!(&answer[16 + 72..], b"DEVNAME=mapper!control\0");
    assert!(hello(&Message::of(&message(opcode::OPEN, &body)), "x").is_none());
    let old: Vec<u8> = [7_u32, 11, 0, 1].iter().flat_map(|word| word.to_ne_bytes()).collect();
    assert!(hello(&Message::of(&message(opcode::CUSE_INIT, &old)), "x").is_none());
    assert_eq!(u32_at(&polled(1, true), 16), 0x41);
}

#[test]
fn any_bytes_have_a_meaning() {
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..20_000 {
        let mut bytes = vec![0; random.usize(..400)];
        random.fill(&mut bytes);
        let message = Message::of(&bytes);
        let (_, _) = (message.handle(), message.wake());
        let ioctl = Ioctl::of(&message);
        if let Stage::Ask { call_bytes } = ioctl.stage() {
            assert!(ioctl.call(call_bytes).len() >= 12);
        }
    }
}
