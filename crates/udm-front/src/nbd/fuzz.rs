//! One entry that drives the whole pure half with bytes somebody else chose; [`tls`] is another.
//!
//! Used by libFuzzer, by the seeded test below and by nothing in production. The device is 64 KiB
//! of memory. The input is a complete client side of a connection, from the client flags on.
//!
//! It checks what must hold for *every* input: no panic, nothing consumed that was not shown,
//! commands within the device, output bounded by input, and, the strongest, that the answer does
//! not depend on how the bytes were cut into receives: the same input is fed whole and in pieces
//! whose sizes the input itself chooses, and both outputs must be equal.
//!
//! The tricky case is a write's payload, which the session leaves to its caller: it is taken here
//! as a connection does, possibly over several receives.

pub mod tls;

use super::export::{ExportDescription, ExportList};
use super::negotiate::{Agreed, Negotiation, Progress, TlsPolicy, greeting};
use super::reply::{self, Extent};
use super::session::{Command, CommandKind, Event, Session};
use super::wire::{HeaderStyle, NbdError};
use udm_types::{QueueLimits, SECTOR_BYTES};

/// Size of the device in bytes.
const DEVICE_BYTES: usize = 64 << 10;

/// The most one request can make us send: a read of the whole device, with its head.
const REPLY_BYTES_MAX: usize = DEVICE_BYTES + reply::HEAD_BYTES_MAX;

/// Feeds `bytes` to a handshake and the session after it.
///
/// # Panics
/// If one of the properties of the module header does not hold.
pub fn session(bytes: &[u8]) {
    let whole = run(bytes, bytes.len().max(1));
    let piece_bytes = bytes.last().map_or(1, |last| usize::from(*last) % 37 + 1);
    assert!(run(bytes, piece_bytes) == whole, "pieces of {piece_bytes} bytes change the answer");
    // Each 16 bytes of input yield one reply at the most; LIST yields both exports.
    let replies = bytes.len() / 16 + 2;
    assert!(whole.len() <= replies * REPLY_BYTES_MAX, "{} bytes of output", whole.len());
}

/// Feeds `bytes` in pieces and returns everything the server sent.
pub fn run(bytes: &[u8], piece_bytes: usize) -> Vec<u8> {
    let mut peer = Peer::new();
    let mut window = Vec::new();
    for piece in bytes.chunks(piece_bytes) {
        window.extend_from_slice(piece);
        let consumed = peer.receive(&window);
        assert!(consumed <= window.len(), "consumed more than was there");
        window.drain(..consumed);
        if peer.is_over() {
            break;
        }
    }
    peer.out
}

/// A server with two exports, one of them read-only.
struct Exports;

impl ExportList for Exports {
    fn lookup(&self, name: &str) -> Option<ExportDescription> {
        self.names().iter().any(|known| known == name).then(|| ExportDescription {
            name: name.to_owned(),
            description: "fuzzed".to_owned(),
            size_bytes: DEVICE_BYTES as u64,
            limits: QueueLimits::default(),
            read_only: name == "ro",
        })
    }

    fn names(&self) -> Vec<String> {
        vec!["rw".to_owned(), "ro".to_owned()]
    }
}

/// The server side of one connection.
struct Peer {
    stage: Stage,
    device: Vec<u8>,
    out: Vec<u8>,
    /// STARTTLS was answered.
    wants_tls: bool,
}

enum Stage {
    Negotiating(Negotiation),
    Transmitting { session: Session, read_only: bool, write: Option<Write> },
    Over,
}

/// A write whose payload is not complete.
struct Write {
    command: Command,
    done_bytes: usize,
}

impl Peer {
    fn new() -> Peer {
        Peer {
            stage: Stage::Negotiating(Negotiation::new(TlsPolicy::Off)),
            device: vec![0; DEVICE_BYTES],
            out: greeting().to_vec(),
            wants_tls: false,
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// Takes all it can from the window; how much that was.
    fn receive(&mut self, window: &[u8]) -> usize {
        let mut consumed = 0;
        loop {
            let rest = &window[consumed..];
            let (step_bytes, again) = match &mut self.stage {
                Stage::Negotiating(negotiation) => {
                    let (bytes, progress) = negotiation.step(rest, &Exports, &mut self.out);
                    (bytes, self.progressed(progress))
                }
                Stage::Transmitting { write: Some(_), .. } => self.take_payload(rest),
                Stage::Transmitting { session, .. } => {
                    let step = session.step(rest);
                    (step.consumed_bytes, self.happened(step.event))
                }
                Stage::Over => (0, false),
            };
            consumed += step_bytes;
            if !again {
                return consumed;
            }
        }
    }

    fn progressed(&mut self, progress: Progress) -> bool {
        match progress {
            Progress::NeedMore => return false,
            Progress::Continue => {}
            // Only where TLS is fuzzed.
            Progress::StartTls => {
                self.wants_tls = true;
                return false;
            }
            Progress::Agreed(agreed) => self.stage = transmitting(&agreed),
            Progress::Ended(_) => self.stage = Stage::Over,
        }
        true
    }

    fn happened(&mut self, event: Event) -> bool {
        match event {
            Event::NeedMore => return false,
            Event::Command(command) => self.execute(command),
            Event::Refused(refusal) => {
                let head = reply::error(self.style(), refusal.to, refusal.error, refusal.reason);
                self.out.extend_from_slice(head.as_bytes());
            }
            Event::Skipped => {}
            Event::Disconnect | Event::Broken(_) => self.stage = Stage::Over,
        }
        true
    }

    fn style(&self) -> HeaderStyle {
        match &self.stage {
            Stage::Transmitting { session, .. } => session.style(),
            Stage::Negotiating(_) | Stage::Over => HeaderStyle::Simple,
        }
    }

    /// The command's range in the device; panics if the session let a bad one through.
    fn range(&mut self, command: &Command) -> &mut [u8] {
        assert!(
            (command.to.offset_bytes | command.len_bytes).is_multiple_of(SECTOR_BYTES),
            "unaligned commands are refused"
        );
        assert!(command.len_bytes > 0, "empty commands are refused");
        let start = command.to.offset_bytes as usize;
        &mut self.device[start..start + command.len_bytes as usize]
    }

    fn execute(&mut self, command: Command) {
        let style = self.style();
        match command.kind {
            CommandKind::Read => {
                let len = u32::try_from(command.len_bytes).expect("invariant: reads are bounded");
                let head = reply::read_head(style, command.to, len);
                let content = self.range(&command).to_vec();
                self.out.extend_from_slice(head.as_bytes());
                self.out.extend_from_slice(&content);
                return;
            }
            CommandKind::Write => {
                self.range(&command);
                if let Stage::Transmitting { write, read_only, .. } = &mut self.stage {
                    assert!(!*read_only, "a write to a read-only export");
                    *write = Some(Write { command, done_bytes: 0 });
                }
                return;
            }
            CommandKind::Trim | CommandKind::WriteZeroes => {
                assert!(
                    !matches!(self.stage, Stage::Transmitting { read_only: true, .. }),
                    "a change to a read-only export"
                );
                self.range(&command).fill(0);
            }
            CommandKind::BlockStatus => {
                let len_bytes = self.range(&command).len() as u64;
                let extent = Extent { len_bytes, hole: false, zero: false };
                reply::block_status(style, command.to, &[extent], &mut self.out);
                return;
            }
            CommandKind::Cache => {
                self.range(&command);
            }
            CommandKind::Flush => {}
        }
        self.out.extend_from_slice(reply::done(style, command.to).as_bytes());
    }

    /// Moves payload from the window to the device.
    fn take_payload(&mut self, rest: &[u8]) -> (usize, bool) {
        let Stage::Transmitting { session, write, .. } = &mut self.stage else {
            return (0, false);
        };
        let Some(Write { command, done_bytes }) = write else { return (0, false) };
        let start = command.to.offset_bytes as usize + *done_bytes;
        let take = rest.len().min(command.len_bytes as usize - *done_bytes);
        self.device[start..start + take].copy_from_slice(&rest[..take]);
        *done_bytes += take;
        if (*done_bytes as u64) < command.len_bytes {
            return (take, false);
        }
        let head = if command.to.cookie == u64::MAX {
            // One cookie stands for a failing device, so that this reply is fuzzed too.
            reply::error(session.style(), command.to, NbdError::Io, "planned failure")
        } else {
            reply::done(session.style(), command.to)
        };
        self.out.extend_from_slice(head.as_bytes());
        *write = None;
        (take, true)
    }
}

fn transmitting(agreed: &Agreed) -> Stage {
    Stage::Transmitting {
        session: Session::new(agreed),
        read_only: agreed.export.read_only,
        write: None,
    }
}

#[cfg(test)]
mod tests;
