//! A driver with what tests need around it: tokens, waiting for one completion, files, socket
//! pairs. A wait that lasts [`PATIENCE_S`] seconds fails the test instead of hanging it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use udm_driver::{DriverChoice, DriverError, open_driver, open_oldest_uring};
use udm_lane::{
    Buf, Completion, Driver, DriverOp, Errno, Handle, OpToken, Payload, RawHandle, Segment,
};
use udm_types::Nanos;

/// How long anything may take before a test gives up. Far above what a busy machine needs.
pub(crate) const PATIENCE_S: u64 = 60;

/// A driver under test.
pub(crate) struct Rig {
    pub(crate) driver: Box<dyn Driver>,
    next_token: u64,
    stash: BTreeMap<u64, Vec<Completion>>,
}

impl Rig {
    /// The io_uring driver, or nothing (with the reason printed) where the machine forbids it.
    pub(crate) fn uring() -> Option<Rig> {
        Rig::unless_refused(open_driver(DriverChoice::Uring).map(|(driver, _)| driver))
    }

    /// The same with nothing that newer kernels have.
    pub(crate) fn oldest_uring() -> Option<Rig> {
        Rig::unless_refused(open_oldest_uring())
    }

    fn unless_refused(opened: Result<Box<dyn Driver>, DriverError>) -> Option<Rig> {
        match opened {
            Ok(driver) => Some(Rig::over(driver)),
            Err(error) if matches!(error.errno, Errno(libc::EPERM | libc::ENOSYS)) => {
                eprintln!("skipped: io_uring is refused here ({error})");
                None
            }
            Err(error) => panic!("io_uring: {error}"),
        }
    }

    /// The portable driver.
    pub(crate) fn portable() -> Rig {
        Rig::over(open_driver(DriverChoice::Portable).unwrap().0)
    }

    fn over(driver: Box<dyn Driver>) -> Rig {
        Rig { driver, next_token: 1, stash: BTreeMap::new() }
    }

    /// Registers what owns a descriptor.
    pub(crate) fn register(&mut self, fd: impl Into<OwnedFd>) -> Handle {
        self.driver.register(RawHandle(fd.into().into_raw_fd())).unwrap()
    }

    /// Submits an operation under a fresh token.
    pub(crate) fn submit(&mut self, op: DriverOp) -> OpToken {
        let token = OpToken(self.next_token);
        self.next_token += 1;
        self.driver.submit(token, op);
        token
    }

    /// The next completion of a token.
    pub(crate) fn completion(&mut self, token: OpToken) -> Completion {
        let deadline = self.driver.now() + Nanos::from_secs(PATIENCE_S);
        loop {
            if let Some(list) = self.stash.get_mut(&token.0)
                && !list.is_empty()
            {
                return list.remove(0);
            }
            assert!(self.driver.now() < deadline, "no completion of {token:?}");
            self.turn(Some(deadline));
        }
    }

    /// The result of a token's only completion.
    pub(crate) fn result(&mut self, token: OpToken) -> Result<u32, Errno> {
        let completion = self.completion(token);
        assert!(!completion.more);
        completion.result
    }

    /// Submits and waits.
    pub(crate) fn run(&mut self, op: DriverOp) -> Result<u32, Errno> {
        let token = self.submit(op);
        self.result(token)
    }

    /// One `wait`; completions go to the stash.
    pub(crate) fn turn(&mut self, deadline: Option<Nanos>) -> usize {
        let mut completions = Vec::new();
        self.driver.wait(deadline, &mut completions);
        let count = completions.len();
        for completion in completions {
            self.stash.entry(completion.token.0).or_default().push(completion);
        }
        count
    }

    /// Completions of a token that nobody has asked for yet, after a turn that does not block.
    pub(crate) fn leftover(&mut self, token: OpToken) -> usize {
        self.turn(Some(Nanos::ZERO));
        self.stash.get(&token.0).map_or(0, Vec::len)
    }

    pub(crate) fn receive(&mut self, handle: Handle, len_bytes: usize) -> OpToken {
        let segment = Segment::whole(Buf::alloc(len_bytes));
        self.submit(DriverOp::Recv { handle, segment })
    }

    pub(crate) fn send(&mut self, handle: Handle, bytes: &[u8]) -> OpToken {
        self.submit(DriverOp::Send { handle, payload: payload_of(bytes) })
    }

    /// Two ends of a stream: one registered, one for the test.
    pub(crate) fn socket_pair(&mut self) -> (Handle, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (self.register(ours), theirs)
    }

    /// Reads a whole range through the driver.
    pub(crate) fn read(&mut self, handle: Handle, offset_bytes: u64, len_bytes: usize) -> Vec<u8> {
        let payload = Payload::from_buf(Buf::alloc(len_bytes));
        let token = self.submit(DriverOp::Read { handle, offset_bytes, payload });
        let completion = self.completion(token);
        assert_eq!(completion.result, Ok(len_bytes as u32));
        bytes_of(&completion)
    }
}

/// A file that is gone when it is closed, on a real file system.
pub(crate) fn scratch_file() -> File {
    tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// One segment holding `bytes`.
pub(crate) fn payload_of(bytes: &[u8]) -> Payload {
    let buf = Buf::alloc(bytes.len());
    buf.copy_in(0, bytes);
    Payload::from_buf(buf)
}

/// Segments of odd lengths at odd places, which together hold `bytes`.
pub(crate) fn scattered(bytes: &[u8], piece_bytes: usize) -> Payload {
    let mut payload = Payload::empty();
    for (index, piece) in bytes.chunks(piece_bytes).enumerate() {
        let buf = Buf::alloc(piece_bytes + 64);
        let offset_bytes = index % 64;
        buf.copy_in(offset_bytes, piece);
        payload.push(Segment {
            buf,
            offset_bytes: offset_bytes as u32,
            len_bytes: piece.len() as u32,
        });
    }
    payload
}

/// What a completion brought: its payload, up to the length of its result.
pub(crate) fn bytes_of(completion: &Completion) -> Vec<u8> {
    let len_bytes = completion.result.unwrap() as usize;
    let mut bytes = vec![0; len_bytes];
    completion.payload.copy_out(0, &mut bytes);
    bytes
}

/// Bytes that differ from place to place and seed to seed.
pub(crate) fn pattern(seed: u64, len_bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len_bytes).map(|_| random.u8(..)).collect()
}
