//! In steady state a driver allocates nothing: counted by the allocator of this test program.
//!
//! A window of several thousand operations without any allocation has to come soon.
//! One test only, since other tests of the program would be counted, too.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use udm_driver::{DriverChoice, open_driver};
use udm_lane::{Buf, Completion, Driver, DriverOp, Handle, OpToken, Payload, RawHandle, Segment};
use udm_testkit::{Counting, allocations};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Operations in flight together.
const DEPTH: usize = 32;

fn register(driver: &mut dyn Driver, fd: impl IntoRawFd) -> Handle {
    driver.register(RawHandle(fd.into_raw_fd())).unwrap()
}

/// Rounds of reads, two-segment writes, syncs, sends and receives; payloads go round in circles.
fn rounds(driver: &mut dyn Driver, count: usize, memory: &[Buf], files: [Handle; 3]) {
    let [file, left, right] = files;
    let mut completions: Vec<Completion> = Vec::with_capacity(DEPTH);
    for _ in 0..count {
        let mut in_flight = 0;
        for index in 0..DEPTH {
            let offset_bytes = index as u64 * 4_096;
            let payload = || Payload::from_buf(memory[index].clone());
            let op = match index % 4 {
                0 => DriverOp::Read { handle: file, offset_bytes, payload: payload() },
                1 => {
                    let mut payload = payload();
                    payload.push(Segment::whole(memory[DEPTH].clone()));
                    DriverOp::Write { handle: file, offset_bytes, payload, dsync: false }
                }
                2 => DriverOp::Send { handle: left, payload: payload() },
                _ => {
                    DriverOp::Recv { handle: right, segment: Segment::whole(memory[index].clone()) }
                }
            };
            driver.submit(OpToken(index as u64), op);
            in_flight += 1;
        }
        while in_flight > 0 {
            driver.wait(None, &mut completions);
            for completion in completions.drain(..) {
                assert!(completion.result.is_ok(), "{completion:?}");
                in_flight -= 1;
            }
        }
    }
}

#[test]
fn steady_state_allocates_nothing() {
    for choice in [DriverChoice::Auto, DriverChoice::Portable] {
        let (mut driver, report) = open_driver(choice).unwrap();
        let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        file.set_len(1 << 20).unwrap();
        let (left, right) = UnixStream::pair().unwrap();
        let files = [
            register(&mut *driver, file),
            register(&mut *driver, left),
            register(&mut *driver, right),
        ];
        let memory: Vec<Buf> = (0..=DEPTH).map(|_| Buf::alloc(4_096)).collect();
        // Threads start and lists grow while things warm up; then there must come a window
        // without a single allocation, but for the list that `rounds` makes for itself.
        let steady = (0..20).any(|_| {
            let before = allocations();
            rounds(&mut *driver, 200, &memory, files);
            allocations() - before == 1
        });
        assert!(steady, "{report}: it never stops to allocate");
    }
}
