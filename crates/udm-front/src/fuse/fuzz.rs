//! One entry that drives the pure half with bytes somebody else chose.
//!
//! Used by libFuzzer, by the seeded loop of `cargo xtask fuzz`, and by nothing in production. The
//! input is a row of messages, each cut off by a length of its own; a small file of 3000 bytes is
//! kept beside as what the answers must agree with.
//!
//! It checks what must hold for every input: no panic, answers that count themselves and name the
//! request they belong to, commands inside the device and not empty, no change of a read-only
//! file, pieces of a change that cover it without a gap, and patches that nobody else meets.

use super::change::{Change, ChangeKind, Changes, Piece};
use super::reply::Answer;
use super::session::{Command, CommandKind, Event, FileView, IO_BYTES_MAX, Session};
use super::wire::{HEAD_BYTES_MAX, InHeader, OutHeader};
use zerocopy::{FromBytes, IntoBytes};

/// Size of the file in bytes: neither a whole page nor a whole sector.
const SIZE_BYTES: u64 = 3000;
/// The block of the device below it.
const BLOCK_BYTES: u64 = 512;

/// Feeds a row of messages to a session.
///
/// # Panics
/// If one of the properties of the module header does not hold.
pub fn session(bytes: &[u8]) {
    let read_only = bytes.first().is_some_and(|byte| byte & 1 == 1);
    let file =
        FileView { size_bytes: SIZE_BYTES, block_bytes: 4096, read_only, ..FileView::default() };
    let mut session = Session::new(file, true);
    let mut changes = Changes::new(8);
    let mut rest = bytes.get(1..).unwrap_or(&[]);
    let mut count = 0;
    while let Some((&cut, after)) = rest.split_first() {
        let (message, left) = after.split_at(usize::from(cut).min(after.len()));
        rest = left;
        count += 1;
        let mut message = message.to_vec();
        if cut & 1 == 0 {
            // Else nearly no message would have the length it says.
            set_len(&mut message);
        }
        let head = &message[..message.len().min(HEAD_BYTES_MAX)];
        let unique = InHeader::read_from_prefix(head).map_or(0, |(header, _)| header.unique);
        match session.take(head, message.len()) {
            Event::Answer(answer) | Event::Ready(answer) => check_answer(&answer, unique),
            Event::Refused(answer) => return check_answer(&answer, unique),
            Event::Quiet => {}
            Event::Broken(_) => return,
            Event::Command(command) => {
                assert_eq!(command.unique, unique, "a command of somebody else");
                check_command(command, read_only, count, &mut changes);
            }
        }
    }
}

fn set_len(message: &mut [u8]) {
    let len = message.len() as u32;
    if let Some(place) = message.get_mut(..4) {
        place.copy_from_slice(len.as_bytes());
    }
}

fn check_answer(answer: &Answer, unique: u64) {
    let bytes = answer.as_bytes();
    let (head, _) = OutHeader::read_from_prefix(bytes).expect("an answer has a head");
    assert_eq!(head.len as usize, bytes.len(), "an answer counts itself");
    assert_eq!(head.unique, unique, "an answer to somebody else");
    assert!((-4095..=0).contains(&head.error), "no error number: {}", head.error);
}

fn check_command(command: Command, read_only: bool, count: usize, changes: &mut Changes<usize>) {
    let (kind, start, len) = match command.kind {
        CommandKind::Read { offset_bytes, len_bytes } => {
            assert!(len_bytes <= IO_BYTES_MAX, "a read of {len_bytes} bytes");
            return check_range(offset_bytes, u64::from(len_bytes));
        }
        CommandKind::Flush => return,
        CommandKind::Write { offset_bytes, len_bytes } => {
            assert!(len_bytes <= IO_BYTES_MAX, "a write of {len_bytes} bytes");
            (ChangeKind::Write, offset_bytes, u64::from(len_bytes))
        }
        CommandKind::Zero { offset_bytes, len_bytes, keep } => {
            (ChangeKind::Zero { keep }, offset_bytes, len_bytes)
        }
    };
    assert!(!read_only, "a read-only file is changed");
    check_range(start, len);
    let (unique, end) = (command.unique, start + len);
    let mut change = Change { unique, kind, start, end, cursor: start, block_bytes: BLOCK_BYTES };
    let goes = changes.begin(count, change);
    while let Some(piece) = change.next_piece() {
        change.cursor = check_piece(piece, &change);
    }
    assert_eq!(change.cursor, end, "a change is done whole");
    if goes && count.is_multiple_of(2) {
        changes.ended(count);
        while changes.next().is_some() {}
    }
}

fn check_range(start: u64, len: u64) {
    assert!(
        len > 0 && start.checked_add(len).is_some_and(|end| end <= SIZE_BYTES),
        "{start}+{len}"
    );
}

/// Gives the piece's end.
fn check_piece(piece: Piece, change: &Change) -> u64 {
    match piece {
        Piece::Plain { start, end } => {
            assert_eq!((start % BLOCK_BYTES, end % BLOCK_BYTES), (0, 0), "not whole blocks");
            assert!(start == change.cursor && end > start && end <= change.end);
            end
        }
        Piece::Patch { start, end, from, to } => {
            assert_eq!((from % BLOCK_BYTES, to % BLOCK_BYTES), (0, 0), "not whole blocks");
            assert!(start == change.cursor && end > start && end <= change.end);
            assert!(from <= start && end <= to && start - from < BLOCK_BYTES);
            assert!(to - end < BLOCK_BYTES, "more is read than has to be");
            end
        }
    }
}

#[cfg(test)]
mod tests {
    use super::session;

    #[test]
    fn random_messages_break_nothing() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let mut bytes = vec![random.u8(..) & 1];
            // A handshake, so that what follows is looked at.
            bytes.push(104);
            let mut hello = [0_u8; 104];
            hello[4] = 26;
            hello[40] = 7;
            hello[44] = 41;
            bytes.extend(hello);
            for _ in 0..random.usize(1..6) {
                let len = random.usize(40..=140);
                bytes.push(len as u8);
                let mut message = vec![0_u8; len];
                random.fill(&mut message[40..]);
                message[4] = *random.choice([3, 4, 14, 15, 16, 43, 46, 20, 99].iter()).unwrap();
                message[8] = random.u8(..);
                // Small numbers are where the edges are.
                for place in (40..len.saturating_sub(8)).step_by(8) {
                    if random.bool() {
                        message[place + 2..place + 8].fill(0);
                        message[place + 1] &= 15;
                    }
                }
                bytes.extend(message);
            }
            session(&bytes);
        }
    }
}
