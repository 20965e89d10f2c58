//! The fuzz entry driven by seeds: mutated real conversations and plain garbage.

use super::{run, session};
use fastrand::Rng;

/// One option as a client sends it.
fn option(number: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A request with fields that are right most of the time.
fn request(rng: &mut Rng, extended: bool, out: &mut Vec<u8>) {
    let command = if rng.u8(..) == 0 { rng.u16(..) } else { rng.u16(0..8) };
    // A disconnect now and then, not every eighth time: it would end the conversation.
    let command = if command == 2 && rng.u8(..) > 8 { 1 } else { command };
    let is_write = command == 1;
    let mut flags = if rng.u8(..) < 32 { rng.u16(..) } else { rng.u16(0..2) };
    if extended && (is_write != (rng.u8(..) < 4)) {
        flags |= 32;
    }
    let sectors = rng.u64(0..20);
    let (mut offset, mut len) = (rng.u64(0..130) * 512, sectors * 512);
    if command == 3 {
        (offset, len) = (0, 0);
    }
    match rng.u8(..) {
        0 => offset = rng.u64(..),
        1 if !is_write => len = rng.u64(..) >> rng.u32(0..64),
        2 => offset += 1,
        _ => {}
    }
    let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
    out.extend(magic.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend(command.to_be_bytes());
    out.extend(if rng.u8(..) == 0 { u64::MAX } else { rng.u64(..) }.to_be_bytes());
    out.extend(offset.to_be_bytes());
    if extended {
        out.extend(len.to_be_bytes());
    } else {
        out.extend((len as u32).to_be_bytes());
    }
    let has_payload = is_write || (extended && flags & 32 != 0);
    if has_payload && len < 1 << 16 {
        out.extend(std::iter::repeat_with(|| rng.u8(..)).take(len as usize));
    }
}

/// A whole conversation, valid up to a few planted errors.
fn conversation(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    let style = rng.u8(0..3);
    if style > 0 {
        bytes.extend(option(if style == 1 { 8 } else { 11 }, b""));
        let select = b"\0\0\0\x02rw\0\0\0\x01\0\0\0\x0fbase:allocation";
        bytes.extend(option(10, select));
    }
    for _ in 0..rng.u8(0..4) {
        bytes.extend(option(rng.u32(2..14), &vec![rng.u8(..); rng.usize(0..40)]));
    }
    let name: &[u8] = if rng.u8(..) < 64 { b"ro" } else { b"rw" };
    bytes.extend(option(7, &[b"\0\0\0\x02", name, b"\0\x01\0\x03"].concat()));
    for _ in 0..rng.u8(0..40) {
        request(rng, style == 2, &mut bytes);
    }
    bytes
}

/// Flips, drops or repeats a few bytes.
fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.u8(0..4) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.usize(..bytes.len());
        match rng.u8(0..3) {
            0 => bytes[at] ^= 1 << rng.u8(0..8),
            1 => {
                bytes.remove(at);
            }
            _ => bytes.truncate(at),
        }
    }
}

#[test]
fn mutated_conversations_keep_every_property() {
    for seed in 0..3000 {
        let mut rng = Rng::with_seed(seed);
        let mut bytes = conversation(&mut rng);
        mutate(&mut rng, &mut bytes);
        session(&bytes);
    }
}

#[test]
fn garbage_keeps_every_property() {
    for seed in 0..3000 {
        let mut rng = Rng::with_seed(seed);
        let mut bytes = vec![0; rng.usize(0..300)];
        rng.fill(&mut bytes);
        session(&bytes);
    }
}

#[test]
fn byte_by_byte_equals_whole() {
    for seed in 0..100 {
        let bytes = conversation(&mut Rng::with_seed(seed));
        assert!(run(&bytes, 1) == run(&bytes, bytes.len()), "seed {seed}");
    }
}

#[test]
fn what_was_written_is_read_back() {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(option(1, b"rw"));
    let head = |command: u16, len: u32| {
        let mut head = b"\x25\x60\x95\x13\0\0".to_vec();
        head.extend(command.to_be_bytes());
        head.extend(9_u64.to_be_bytes());
        head.extend(1024_u64.to_be_bytes());
        head.extend(len.to_be_bytes());
        head
    };
    bytes.extend(head(1, 512));
    bytes.extend([0xab; 512]);
    bytes.extend(head(0, 1024));
    let out = run(&bytes, 100);
    let data = &out[out.len() - 1024..];
    assert!(data[..512].iter().all(|byte| *byte == 0xab));
    assert!(data[512..].iter().all(|byte| *byte == 0));
    let read_reply = b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x09";
    assert_eq!(out[out.len() - 1040..out.len() - 1024], *read_reply);
}
