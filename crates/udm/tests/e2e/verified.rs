//! A client whose I/O goes on while a test does something else, and is verified all the time.
//!
//! It writes stamped blocks, reads them back and compares. The test asks for progress: a number of
//! further rounds, each of which must be right. An error or a mismatch ends the thread and fails
//! the next question.

use super::nbd::NbdClient;
use super::outside::LIMIT;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;

const BLOCK_BYTES: usize = 4096;

/// A block that tells its place and version in every eight bytes.
pub(crate) fn stamp(block: u64, version: u64) -> Vec<u8> {
    let word = (block << 40 | version).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    word.to_le_bytes().repeat(BLOCK_BYTES / 8)
}

/// The client.
pub(crate) struct Verified {
    ended: Arc<AtomicBool>,
    rounds: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Verified {
    /// Starts on an export of at least 256 blocks.
    pub(crate) fn start(socket: &Path, export: &str) -> Verified {
        let mut client = NbdClient::connect(socket, export).expect("connected");
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        // Each round waits until it is asked for, or a few are ahead: load, but not a flood.
        let (done, rounds) = sync_channel(4);
        let thread = std::thread::spawn(move || {
            let mut version = 0_u64;
            while !told.load(Ordering::Relaxed) {
                version += 1;
                let block = version.wrapping_mul(7919) % 256;
                let bytes = stamp(block, version);
                let at = block * BLOCK_BYTES as u64;
                client.write(at, &bytes, 0).expect("connected").expect("written");
                if version.is_multiple_of(16) {
                    client.flush().expect("connected").expect("flushed");
                }
                let read = client.read(at, BLOCK_BYTES).expect("connected").expect("read");
                assert!(read == bytes, "block {block} differs at version {version}");
                if done.send(()).is_err() {
                    return;
                }
            }
        });
        Verified { ended, rounds, thread: Some(thread) }
    }

    /// Waits until more rounds have been right than could have been under way before.
    #[track_caller]
    pub(crate) fn goes_on(&self) {
        for _ in 0..8 {
            match self.rounds.recv_timeout(LIMIT) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => panic!("the verified client hangs"),
                Err(RecvTimeoutError::Disconnected) => panic!("the verified client has failed"),
            }
        }
    }

    /// Ends it; every round so far was right.
    #[track_caller]
    pub(crate) fn end(mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Take what it may be waiting to hand over.
        while self.rounds.recv_timeout(LIMIT).is_ok() {}
        self.thread.take().expect("running").join().expect("all rounds were right");
    }
}
