//! CPU time, memory and threads of another process, read from `/proc`.
//!
//! CPU time is the sum over the process's threads of the nanoseconds the scheduler gave them
//! (`schedstat`), which counts time in the kernel too and is exact where `stat` counts ticks. The
//! price: a thread that ends between two readings takes its time with it. During a measurement
//! all connections stay open, so servers keep their threads.

use std::fs;
use std::io;

/// CPU seconds used by all threads of a process so far.
pub(crate) fn seconds(pid: u32) -> io::Result<f64> {
    let mut sum_ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
            sum_ns += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(sum_ns as f64 / 1e9)
}

/// CPU seconds used by a process so far, with threads that have ended; exact to a tick, which is
/// mostly 10 ms.
pub(crate) fn process_seconds(pid: u32) -> io::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before may hold anything, also blanks and brackets.
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks = rest.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    Ok(ticks.sum::<u64>() as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Resident memory in MiB, and threads.
pub(crate) fn size(pid: u32) -> io::Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| {
                line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok()
            })
            .unwrap_or(0)
    };
    Ok((field("VmRSS:") / 1024, field("Threads:")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_uses_cpu_and_memory() {
        let pid = std::process::id();
        let before = super::seconds(pid).expect("own threads can be read");
        let (rss_mib, threads) = super::size(pid).expect("own status can be read");
        assert!(rss_mib > 0 && threads > 0);
        let mut sum = 0_u64;
        while super::seconds(pid).expect("own threads can be read") <= before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let before = super::process_seconds(pid).expect("own state can be read");
        while super::process_seconds(pid).expect("own state can be read") <= before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }
}
