//! Where io_uring is forbidden: the choice falls on the portable driver, and says why.
//!
//! Each test forbids the calls for its own thread only, with a filter as containers use it.

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use udm_driver::{DriverChoice, DriverReport, open_driver};
use udm_lane::Errno;

/// Runs `body` on a thread where `calls` answer `errno`.
fn forbidden<T: Send>(calls: &[i64], errno: i32, body: impl FnOnce() -> T + Send) -> T {
    let filter = SeccompFilter::new(
        calls.iter().map(|&call| (call, Vec::new())).collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            apply_filter(&program).unwrap();
            body()
        });
        thread.join().unwrap()
    })
}

fn report(choice: DriverChoice) -> Result<DriverReport, Errno> {
    open_driver(choice).map(|(_, report)| report).map_err(|error| error.errno)
}

#[test]
fn a_refused_ring_becomes_the_portable_driver_with_the_reason() {
    for (errno, text) in [
        (libc::EPERM, "Operation not permitted"),
        (libc::ENOSYS, "Function not implemented"),
        (libc::ENOMEM, "Cannot allocate memory"),
    ] {
        let report = forbidden(&[libc::SYS_io_uring_setup], errno, || report(DriverChoice::Auto));
        let report = report.unwrap();
        assert_eq!(report.name, "portable");
        let line = report.to_string();
        assert!(line.starts_with("driver: portable (io_uring refused: io_uring_setup: "), "{line}");
        assert!(line.contains(text), "{line}");
    }
}

#[test]
fn a_ring_that_may_be_made_but_not_entered_is_refused_too() {
    let report = forbidden(&[libc::SYS_io_uring_enter], libc::EPERM, || report(DriverChoice::Auto));
    let line = report.unwrap().to_string();
    assert!(line.contains("io_uring refused: io_uring_enter"), "{line}");
}

#[test]
fn an_explicit_choice_of_io_uring_fails_instead_of_changing() {
    let result =
        forbidden(&[libc::SYS_io_uring_setup], libc::EPERM, || report(DriverChoice::Uring));
    assert_eq!(result, Err(Errno(libc::EPERM)));
}

#[test]
fn the_portable_driver_can_be_chosen() {
    assert_eq!(report(DriverChoice::Portable).unwrap().name, "portable");
}
