//! The thread that writes into the page cache for a ring: when it starts, how often it is woken,
//! that it sleeps while there is nothing to do, that lanes which write to the same file share it,
//! and that it ends with its drivers.
//!
//! One test only: it tells threads by their name, so no other driver may live in this program.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs::OpenOptions;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};
use udm_driver::{DriverChoice, open_driver};
use udm_lane::{Buf, Driver, DriverOp, Errno, Handle, OpToken, Payload, RawHandle};
use udm_types::Nanos;

const BLOCK_BYTES: usize = 4_096;
/// Writes in flight together, as many as the driver gives back at once.
const DEPTH: u64 = 64;

/// The folders in `/proc` of all threads that write for a ring.
fn writers() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let paths = tasks.map(|task| task.unwrap().path().to_str().unwrap().to_owned());
    let named = |path: &String| {
        // A thread may end between the listing and the look.
        std::fs::read_to_string(format!("{path}/comm")).is_ok_and(|name| name.trim() == "udm-write")
    };
    paths.filter(named).collect()
}

/// How often a thread has gone to sleep, and how often it had to make room for another.
fn switches(task: &str) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("{task}/status")).unwrap();
    let count = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (count("voluntary_ctxt_switches"), count("nonvoluntary_ctxt_switches"))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < give_up, "never: {what}");
        std::thread::yield_now();
    }
}

fn is_asleep(task: &str) -> bool {
    let stat = std::fs::read_to_string(format!("{task}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().trim_start().starts_with('S')
}

fn register(driver: &mut dyn Driver, fd: impl Into<OwnedFd>) -> Handle {
    driver.register(RawHandle(fd.into().into_raw_fd())).unwrap()
}

/// Writes `count` blocks together and waits for all of them.
fn write(driver: &mut dyn Driver, handle: Handle, count: u64) {
    for index in 0..count {
        let payload = Payload::from_buf(Buf::alloc(BLOCK_BYTES));
        let offset_bytes = index * BLOCK_BYTES as u64;
        let op = DriverOp::Write { handle, offset_bytes, payload, dsync: false };
        driver.submit(OpToken(index), op);
    }
    let mut completions = Vec::new();
    while (completions.len() as u64) < count {
        driver.wait(None, &mut completions);
    }
    for completion in completions {
        assert_eq!(completion.result, Ok(BLOCK_BYTES as u32));
    }
}

#[test]
fn the_writing_thread_starts_late_sleeps_while_idle_and_ends_with_its_drivers() {
    let (mut driver, _) = match open_driver(DriverChoice::Uring) {
        Ok(opened) => opened,
        Err(error) if matches!(error.errno, Errno(libc::EPERM | libc::ENOSYS)) => {
            eprintln!("skipped: io_uring is refused here ({error})");
            return;
        }
        Err(error) => panic!("io_uring: {error}"),
    };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("file");
    let cached = std::fs::File::create(&path).unwrap();
    match OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&path) {
        Ok(direct) => {
            let direct = register(&mut *driver, direct);
            write(&mut *driver, direct, 4);
            assert!(writers().is_empty(), "the ring itself writes past the page cache");
        }
        Err(error) => eprintln!("not checked: no direct file here ({error})"),
    }
    let handle = register(&mut *driver, cached);
    assert!(writers().is_empty(), "nothing was written yet");

    write(&mut *driver, handle, DEPTH);
    let [task] = &writers()[..] else { panic!("one thread, not {:?}", writers()) };
    let lane = "/proc/thread-self";
    let before = [switches(task).0, switches(lane).0];
    for _ in 0..100 {
        write(&mut *driver, handle, DEPTH);
    }
    assert_eq!(writers(), std::slice::from_ref(task), "one thread is enough for a file");
    // One sleep a round is right, for both. Who is woken for every write would have 6400.
    for (who, before) in [task, lane].into_iter().zip(before) {
        let sleeps = switches(who).0 - before;
        assert!(sleeps < 100 * 8, "{who}: {sleeps} sleeps for 100 rounds");
    }

    until("the thread sleeps", || is_asleep(task));
    let before = switches(task);
    let deadline = driver.now() + Nanos::from_millis(300);
    let mut completions = Vec::new();
    while driver.now() < deadline {
        driver.wait(Some(deadline), &mut completions);
    }
    assert!(completions.is_empty());
    assert_eq!(switches(task), before, "an idle thread was woken");

    let (mut other, _) = open_driver(DriverChoice::Uring).unwrap();
    let again = OpenOptions::new().write(true).open(&path).unwrap();
    let again = register(&mut *other, again);
    write(&mut *other, again, DEPTH);
    assert_eq!(writers(), std::slice::from_ref(task), "one thread is enough for a file");
    drop(driver);
    write(&mut *other, again, DEPTH);
    drop(other);
    until("the thread has ended", || writers().is_empty());
}
