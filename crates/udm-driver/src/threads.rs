//! Lane threads: named, optionally pinned, each with its own driver.
//!
//! A driver belongs to the thread that made it, so the thread is started first, opens its driver,
//! and reports before it runs its body. The caller learns at once whether the lane works and
//! which driver it got.
//!
//! Threads are named `udm-lane-N`, which is what `top -H` and a debugger show.

use crate::error::DriverError;
use crate::probe::{DriverChoice, DriverReport, open_driver};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use udm_lane::{Driver, Errno};

/// Starts lane `index` on its own thread and waits until its driver is open.
///
/// `pin` names a processor to stay on (see [`allowed_cpus`]). `body` runs the lane.
///
/// # Errors
/// The driver's, or that of starting or pinning the thread. Then `body` is dropped without
/// running.
pub fn spawn_lane(
    index: usize,
    choice: DriverChoice,
    pin: Option<usize>,
    body: impl FnOnce(Box<dyn Driver>) + Send + 'static,
) -> Result<(JoinHandle<()>, DriverReport), DriverError> {
    let (answer, opened) = mpsc::sync_channel(1);
    let lane = move || {
        // A failed send means that the caller has gone; then nobody needs the lane either.
        match pin.map_or(Ok(()), pin_to).and_then(|()| open_driver(choice)) {
            Ok((driver, report)) => {
                if answer.send(Ok(report)).is_ok() {
                    body(driver);
                }
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    };
    let thread = Builder::new()
        .name(format!("udm-lane-{index}"))
        .spawn(lane)
        .map_err(|error| DriverError::refused_by("starting a thread", &error))?;
    match opened.recv() {
        Ok(Ok(report)) => Ok((thread, report)),
        Ok(Err(error)) => Err(error),
        Err(mpsc::RecvError) => Err(DriverError::refused("a lane's start", Errno(libc::EIO))),
    }
}

/// The processors this thread may run on, in order. Empty if the kernel does not say.
pub fn allowed_cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

/// Tells the kernel that the calling thread does I/O on behalf of file systems and swap: its own
/// wishes for memory then never wait for I/O that only it could do. Threads it starts inherit it.
///
/// # Errors
/// `EPERM` without the right to (`CAP_SYS_RESOURCE`).
pub fn become_io_flusher() -> Result<(), Errno> {
    rustix::process::configure_io_flusher_behavior(true)
        .map_err(|error| Errno(error.raw_os_error()))
}

fn pin_to(cpu: usize) -> Result<(), DriverError> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(DriverError::refused("pinning to a processor", Errno(libc::EINVAL)));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|error| {
        DriverError::refused("pinning to a processor", Errno(error.raw_os_error()))
    })
}

#[cfg(test)]
mod tests {
    use super::{allowed_cpus, spawn_lane};
    use crate::probe::DriverChoice;
    use std::sync::mpsc;

    #[test]
    fn a_lane_is_named_pinned_and_has_its_driver() {
        let cpu = allowed_cpus()[0];
        let (sender, receiver) = mpsc::channel();
        let (thread, report) = spawn_lane(3, DriverChoice::Auto, Some(cpu), move |mut driver| {
            let name = std::thread::current().name().map(str::to_owned);
            driver.waker().wake();
            driver.wait(None, &mut Vec::new());
            sender.send((name, allowed_cpus(), driver.name())).unwrap();
        })
        .unwrap();
        thread.join().unwrap();
        let (name, cpus, driver) = receiver.recv().unwrap();
        assert_eq!(name.as_deref(), Some("udm-lane-3"));
        assert_eq!(cpus, [cpu]);
        assert_eq!(driver, report.name);
    }

    #[test]
    fn a_lane_that_cannot_be_pinned_is_an_error() {
        let error = spawn_lane(0, DriverChoice::Auto, Some(usize::MAX), |_| {}).err().unwrap();
        assert!(error.to_string().starts_with("pinning to a processor: "), "{error}");
    }
}
