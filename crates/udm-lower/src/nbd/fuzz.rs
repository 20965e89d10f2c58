//! One entry that feeds the reply parser with bytes a hostile server chose.
//!
//! Used by libFuzzer, by the seeded test below and by nothing in production. Sixteen requests are
//! under way, all reads and writes of known ranges; the first byte of the input chooses the header
//! style, the rest is what the server sends after the handshake (a first byte of 3 and more: the
//! handshake itself).
//!
//! It checks what must hold for every input: no panic, no request over twice, no byte of memory
//! touched outside the ranges asked for, no successful read of which a byte has not come, and that
//! nothing depends on how the bytes were cut into receives.

use super::handshake::{Handshake, Progress};
use super::replies::{Event, Replies};
use super::requests::{Owner, Requests};
use super::wire::{CMD_READ, CMD_WRITE, HeaderStyle};
use udm_core::{BioBox, LowerBench};
use udm_lane::{Buf, Payload, Segment};
use udm_types::{BioFlags, Nanos, Op};

/// Requests under way.
const REQUESTS: u64 = 16;
/// What each asks for.
const LEN_BYTES: u32 = 4096;
/// Memory around the range of each, which nobody may touch.
const MARGIN_BYTES: u32 = 512;
/// What the memory holds before.
const UNTOUCHED: u8 = 0xa5;

/// What became of the requests: how each ended (`None`: it did not), and the memory.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    ended: Vec<Option<u32>>,
    memory: Vec<Vec<u8>>,
    broken: bool,
}

/// Feeds `bytes` to the parser.
///
/// # Panics
/// If one of the properties of the module header does not hold.
pub fn replies(bytes: &[u8]) {
    let Some((&style, stream)) = bytes.split_first() else { return };
    let style = match style {
        0 => HeaderStyle::Simple,
        1 => HeaderStyle::Structured,
        2 => HeaderStyle::Extended,
        _ => return handshake(stream),
    };
    let whole = run(style, stream, stream.len().max(1));
    let piece_bytes = stream.last().map_or(1, |last| usize::from(*last) % 29 + 1);
    assert!(run(style, stream, piece_bytes) == whole, "pieces of {piece_bytes} change the result");
}

fn handshake(bytes: &[u8]) {
    let (mut handshake, mut out) = (Handshake::new("export"), Vec::new());
    let mut start = 0;
    // Every step takes bytes or is the last.
    while start <= bytes.len() {
        let (consumed, progress) = handshake.step(&bytes[start..], &mut out);
        start += consumed;
        match progress {
            Progress::Continue => assert!(consumed > 0, "a step without progress"),
            Progress::NeedMore | Progress::Agreed(_) | Progress::Failed(_) => break,
        }
    }
    assert!(out.len() <= 400, "{} bytes said", out.len());
}

fn run(style: HeaderStyle, stream: &[u8], piece_bytes: usize) -> Outcome {
    let (mut requests, bufs) = under_way();
    let mut parser = Replies::new(style, 0);
    let mut outcome =
        Outcome { ended: vec![None; REQUESTS as usize], memory: Vec::new(), broken: false };
    let mut window: Vec<u8> = Vec::new();
    for piece in stream.chunks(piece_bytes) {
        window.extend_from_slice(piece);
        feed(&mut window, &mut parser, &mut requests, &mut outcome);
        if outcome.broken {
            break;
        }
    }
    for buf in &bufs {
        let mut bytes = vec![0; buf.len_bytes()];
        buf.copy_out(0, &mut bytes);
        let margin = MARGIN_BYTES as usize;
        let outside = bytes[..margin].iter().chain(&bytes[margin + LEN_BYTES as usize..]);
        assert!(outside.copied().all(|byte| byte == UNTOUCHED), "memory outside was touched");
        outcome.memory.push(bytes);
    }
    // Bios that are dropped count as lost; these were only props.
    for index in 0..requests.len() {
        drop(requests.remove(index));
    }
    outcome
}

fn under_way() -> (Requests, Vec<Buf>) {
    let (bench, mut requests, mut bufs) = (LowerBench::default(), Requests::default(), Vec::new());
    for index in 0..REQUESTS {
        let op = if index % 4 == 3 { Op::Write } else { Op::Read };
        let mut bio: BioBox = bench.bio();
        bio.ask(op, BioFlags::empty(), index * 8, 8);
        let buf = Buf::alloc((LEN_BYTES + 2 * MARGIN_BYTES) as usize);
        buf.fill(0, buf.len_bytes(), UNTOUCHED);
        let (offset_bytes, len_bytes) = (MARGIN_BYTES, LEN_BYTES);
        bio.payload = Payload::from(Segment { buf: buf.clone(), offset_bytes, len_bytes });
        bufs.push(buf);
        let slot = requests.insert(Owner::Bio(bio), 0);
        let command = if op == Op::Read { CMD_READ } else { CMD_WRITE };
        let offset_bytes = index * u64::from(LEN_BYTES);
        let cookie = requests.begin(slot, command, offset_bytes, LEN_BYTES, Nanos::ZERO);
        assert_eq!(cookie, 1 << 32 | index, "seeds rely on it");
    }
    (requests, bufs)
}

/// Does what a connection does with received bytes.
fn feed(
    window: &mut Vec<u8>,
    parser: &mut Replies,
    requests: &mut Requests,
    outcome: &mut Outcome,
) {
    loop {
        if let Some(data) = parser.data() {
            let len = window.len().min(data.left_bytes as usize);
            if len == 0 {
                return;
            }
            let payload = requests.get(data.slot).payload().expect("invariant: props keep bios");
            payload.copy_in(u64::from(data.at_bytes), &window[..len]);
            window.drain(..len);
            if let Some(slot) = parser.data_taken(len as u32) {
                over(slot, requests, outcome);
            }
            continue;
        }
        let (consumed, event) = parser.step(&window.as_slice(), requests);
        assert!(consumed <= window.len(), "consumed more than was there");
        window.drain(..consumed);
        match event {
            Event::NeedMore => return,
            Event::Continue | Event::Data => assert!(consumed > 0, "a step without progress"),
            Event::Hole { slot, at_bytes, len_bytes, is_over } => {
                let payload = requests.get(slot).payload().expect("invariant: props keep bios");
                payload.fill(u64::from(at_bytes), u64::from(len_bytes), 0);
                if is_over {
                    over(slot, requests, outcome);
                }
            }
            Event::Over { slot } => over(slot, requests, outcome),
            Event::Broken(_) => {
                outcome.broken = true;
                return;
            }
        }
    }
}

fn over(slot: u32, requests: &mut Requests, outcome: &mut Outcome) {
    let request = &requests.get(slot).request;
    let error = request.error;
    assert!(error != 0 || request.is_covered(), "a read succeeded without all its data");
    requests.end(slot);
    let before = outcome.ended[slot as usize].replace(error);
    assert_eq!(before, None, "a request is over twice");
}

#[cfg(test)]
mod tests {
    use super::replies;

    /// A server that answers as it should, with mistakes strewn in.
    fn stream(random: &mut fastrand::Rng) -> Vec<u8> {
        let style = random.u8(0..4);
        let mut bytes = vec![style];
        for _ in 0..random.usize(1..40) {
            let cookie = 1_u64 << 32 | random.u64(0..17);
            let offset = (cookie & 0xff) * 4096 + random.u64(0..3) * 1024;
            match style {
                0 => {
                    bytes.extend(0x6744_6698_u32.to_be_bytes());
                    bytes.extend(u32::from(random.u8(0..8) == 0).to_be_bytes());
                    bytes.extend(cookie.to_be_bytes());
                    bytes.extend(vec![random.u8(..); random.choice([0, 4096]).unwrap()]);
                }
                1 | 2 => {
                    let kind = random.choice([0_u16, 1, 1, 1, 2, 0x8001, 0x8002, 7]).unwrap();
                    let data = random.choice([512_u32, 1024, 2048, 4096]).unwrap();
                    let body = match kind {
                        1 => [&offset.to_be_bytes()[..], &vec![9; data as usize]].concat(),
                        2 => [&offset.to_be_bytes()[..], &data.to_be_bytes()].concat(),
                        0x8001 => vec![0, 0, 0, 5, 0, 0],
                        0x8002 => [&[0, 0, 0, 5, 0, 0][..], &offset.to_be_bytes()].concat(),
                        _ => Vec::new(),
                    };
                    let magic: u32 = if style == 1 { 0x668e_33ef } else { 0x6e8a_278c };
                    bytes.extend(magic.to_be_bytes());
                    bytes.extend(u16::from(random.bool()).to_be_bytes());
                    bytes.extend(kind.to_be_bytes());
                    bytes.extend(cookie.to_be_bytes());
                    if style == 1 {
                        bytes.extend((body.len() as u32).to_be_bytes());
                    } else {
                        bytes.extend(offset.to_be_bytes());
                        bytes.extend((body.len() as u64).to_be_bytes());
                    }
                    bytes.extend(body);
                }
                _ => bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(30)),
            }
        }
        if random.u8(0..4) == 0 {
            let at = random.usize(0..bytes.len());
            bytes[at] ^= 1 << random.u8(0..8);
        }
        bytes
    }

    #[test]
    fn no_server_breaks_the_client() {
        let mut random = fastrand::Rng::with_seed(0x6e62_6463);
        for _ in 0..4000 {
            replies(&stream(&mut random));
        }
    }
}
