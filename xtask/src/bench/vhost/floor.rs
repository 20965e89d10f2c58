//! What a vhost-user server cannot do without: being woken by a kick, waking the guest by a call.
//!
//! Two threads pass an eventfd to and fro: the first writes a kick and sleeps until it is called,
//! the second sleeps until it is kicked, and calls. The second's CPU time for a round is what *any*
//! server that sleeps between requests pays for a batch, before it has looked into a ring. It is a
//! little less than a real one pays, since both threads have the same memory.
//!
//! The tricky case is where they run. On two processors each write interrupts a processor that has
//! gone to sleep, on one they just take turns; that differs several times over, more so in a
//! virtual machine.

use crate::steps::Failed;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, read, write};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

struct Ends {
    kick: OwnedFd,
    call: OwnedFd,
    stop: AtomicBool,
}

/// CPU microseconds of the server for a round, over `span`; its processors and the guest's.
pub(super) fn measure([ours, guests]: [&CpuSet; 2], span: Duration) -> Result<f64, Failed> {
    let make = || eventfd(0, EventfdFlags::CLOEXEC).map_err(|errno| failed("an eventfd", errno));
    let ends = Ends { kick: make()?, call: make()?, stop: AtomicBool::new(false) };
    std::thread::scope(|scope| {
        let server = scope.spawn(|| ends.leave(serve(&ends, ours)));
        let client = scope.spawn(|| ends.leave(ask(&ends, guests, span)));
        let lost = "invariant: the floor's threads do not panic";
        let (served, asked) = (server.join().expect(lost), client.join().expect(lost));
        let failed = |errno| failed("passing an eventfd to and fro", errno);
        asked.map_err(failed).and(served.map_err(failed))
    })
}

fn failed(what: &str, errno: Errno) -> Failed {
    Failed::new(format!("{what}: {errno}"))
}

impl Ends {
    /// A thread is done; the other must not sleep on.
    fn leave<T>(&self, result: Result<T, Errno>) -> Result<T, Errno> {
        self.stop.store(true, Ordering::Relaxed);
        ring(&self.kick)?;
        ring(&self.call)?;
        result
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn serve(ends: &Ends, cpus: &CpuSet) -> Result<f64, Errno> {
    sched_setaffinity(None, cpus)?;
    let (begin_us, mut rounds) = (cpu_us(), 0.0);
    loop {
        sleep_on(&ends.kick)?;
        if ends.is_over() {
            return Ok((cpu_us() - begin_us) / f64::max(rounds, 1.0));
        }
        ring(&ends.call)?;
        rounds += 1.0;
    }
}

fn ask(ends: &Ends, cpus: &CpuSet, span: Duration) -> Result<(), Errno> {
    sched_setaffinity(None, cpus)?;
    let begin = Instant::now();
    while begin.elapsed() < span && !ends.is_over() {
        ring(&ends.kick)?;
        sleep_on(&ends.call)?;
    }
    Ok(())
}

fn ring(fd: &OwnedFd) -> Result<(), Errno> {
    write(fd, &1_u64.to_ne_bytes()).map(|_| ())
}

fn sleep_on(fd: &OwnedFd) -> Result<(), Errno> {
    let mut count = [0; 8];
    loop {
        match read(fd, &mut count) {
            Err(Errno::INTR) => {}
            result => return result.map(|_| ()),
        }
    }
}

/// CPU time of the calling thread.
fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
