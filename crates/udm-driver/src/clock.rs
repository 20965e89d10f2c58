//! The two clocks a real lane reads: the monotonic one, and its own CPU time.
//!
//! Drivers answer `Driver::now` from here; benches measure with [`cpu_time_ns`]. Both go through
//! the vDSO where the kernel offers it (the monotonic one always does on common hardware), so a
//! reading costs some twenty nanoseconds and no system call.
//!
//! Nothing here is ever read by the engine itself: time reaches it as an argument.

use rustix::time::{ClockId, clock_gettime};
use udm_types::Nanos;

/// `CLOCK_MONOTONIC` in nanoseconds. Never goes backwards; its origin is the boot of the machine.
#[inline]
pub fn monotonic_ns() -> u64 {
    clock_ns(ClockId::Monotonic)
}

/// CPU time the calling thread has used, in nanoseconds.
pub fn cpu_time_ns() -> u64 {
    clock_ns(ClockId::ThreadCPUTime)
}

/// [`monotonic_ns`] as the lane's time.
#[inline]
pub(crate) fn now() -> Nanos {
    Nanos(monotonic_ns())
}

#[inline]
fn clock_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Both clocks count up from zero, so neither part is ever negative.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::{cpu_time_ns, monotonic_ns};

    #[test]
    fn clocks_advance_and_never_go_back() {
        let (wall, cpu) = (monotonic_ns(), cpu_time_ns());
        // Work until the CPU clock has visibly moved; the wall clock must have moved as much.
        while cpu_time_ns() < cpu + 1_000_000 {}
        assert!(monotonic_ns() >= wall + 1_000_000);
    }
}
