//! A host that does every operation at once, and the loop that runs a task on it to its end.
//!
//! For tools (a file), tests and fuzzers (memory). Operations are done one after another, in the
//! order they were started; a task that starts several before it awaits one is served as well.
//!
//! Rules. Ranges are checked here, against the size the [`Disk`] tells, so a [`BlockHost`] never
//! sees an operation outside. A task that waits for anything but the disk would wait forever; that
//! is a bug in the task and ends in a panic instead of a hang.

use crate::disk::{Disk, DiskOp, DiskOpKind};
use alloc::vec::Vec;
use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use udm_lane::Payload;
use udm_types::Status;

/// What does the operations of a [`Disk`], each at once.
pub trait BlockHost {
    /// Fills `payload` from `offset_bytes` on.
    fn read(&mut self, offset_bytes: u64, payload: &Payload) -> Status;
    /// Writes all of `payload`.
    fn write(&mut self, offset_bytes: u64, payload: &Payload) -> Status;
    /// Makes durable what was written.
    fn flush(&mut self) -> Status;
    /// The range is worth nothing any more.
    fn discard(&mut self, offset_bytes: u64, len_bytes: u64) -> Status;
}

/// Runs `task` to its end, with `host` doing what it asks of `disk`.
///
/// # Panics
/// If the task waits and has asked the disk for nothing.
pub fn run_on<T>(disk: &Disk, host: &mut impl BlockHost, task: impl Future<Output = T>) -> T {
    let mut task = pin!(task);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(value) = task.as_mut().poll(&mut cx) {
            return value;
        }
        let mut is_served = false;
        while let Some(op) = disk.next_op() {
            is_served = true;
            serve(disk, host, op);
        }
        assert!(is_served, "invariant: a task on a blocking host waits for its disk only");
    }
}

fn serve(disk: &Disk, host: &mut impl BlockHost, op: DiskOp) {
    let is_inside =
        op.offset_bytes.checked_add(op.len_bytes).is_some_and(|end| end <= disk.len_bytes());
    let status = match op.kind {
        _outside if !is_inside => Status::Invalid,
        DiskOpKind::Read => host.read(op.offset_bytes, &op.payload),
        DiskOpKind::Write { fua } => {
            let written = host.write(op.offset_bytes, &op.payload);
            if fua && written.is_ok() { host.flush() } else { written }
        }
        DiskOpKind::Flush => host.flush(),
        DiskOpKind::Discard => host.discard(op.offset_bytes, op.len_bytes),
    };
    disk.complete(op.token, status, op.payload);
}

/// A disk in memory, that counts what it is asked for.
#[derive(Clone, Debug, Default)]
pub struct MemoryHost {
    /// Its contents.
    pub bytes: Vec<u8>,
    /// Ranges `(offset, length)` in bytes that cannot be read, as bad media would be.
    pub unreadable: Vec<(u64, u64)>,
    /// From this many writes on they fail, as if the machine had died.
    pub write_limit: Option<u64>,
    /// Writes done.
    pub writes: u64,
    /// Flushes done.
    pub flushes: u64,
}

impl MemoryHost {
    /// A disk of `len_bytes` zeroes.
    pub fn new(len_bytes: usize) -> MemoryHost {
        MemoryHost { bytes: alloc::vec![0; len_bytes], ..MemoryHost::default() }
    }

    /// A disk with these contents.
    pub fn from_bytes(bytes: Vec<u8>) -> MemoryHost {
        MemoryHost { bytes, ..MemoryHost::default() }
    }

    /// A handle on it, and its task run to the end.
    pub fn run<T, F: Future<Output = T>>(&mut self, task: impl FnOnce(Disk) -> F) -> T {
        let disk = Disk::new(self.bytes.len() as u64);
        run_on(&disk, self, task(disk.clone()))
    }
}

impl BlockHost for MemoryHost {
    fn read(&mut self, offset_bytes: u64, payload: &Payload) -> Status {
        let end = offset_bytes + payload.len_bytes();
        if self.unreadable.iter().any(|&(at, len)| at < end && offset_bytes < at + len) {
            return Status::Medium;
        }
        payload.copy_in(0, &self.bytes[offset_bytes as usize..end as usize]);
        Status::Ok
    }

    fn write(&mut self, offset_bytes: u64, payload: &Payload) -> Status {
        if self.write_limit.is_some_and(|limit| self.writes >= limit) {
            return Status::IoErr;
        }
        self.writes += 1;
        let end = offset_bytes + payload.len_bytes();
        payload.copy_out(0, &mut self.bytes[offset_bytes as usize..end as usize]);
        Status::Ok
    }

    fn flush(&mut self) -> Status {
        self.flushes += 1;
        Status::Ok
    }

    fn discard(&mut self, offset_bytes: u64, len_bytes: u64) -> Status {
        self.bytes[offset_bytes as usize..(offset_bytes + len_bytes) as usize].fill(0);
        Status::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryHost;
    use crate::bytes::{read_vec, write_bytes};
    use udm_types::Status;

    #[test]
    fn a_task_runs_to_its_end_over_memory() {
        let mut host = MemoryHost::new(16384);
        let read = host.run(|disk| async move {
            write_bytes(&disk, 4096, b"abc").await.expect("write");
            disk.write_fua(8192, udm_lane::Payload::from_buf(udm_lane::Buf::alloc(512))).await?;
            disk.discard(4096, 1).await?;
            disk.flush().await?;
            read_vec(&disk, 4095, 4).await
        });
        assert_eq!(read.expect("read"), [0, 0, b'b', b'c']);
        assert_eq!((host.writes, host.flushes), (2, 2));
    }

    #[test]
    fn what_lies_outside_or_cannot_be_read_fails() {
        let mut host = MemoryHost::new(4096);
        host.unreadable.push((512, 512));
        let read = |at, len| move |disk| async move { read_vec(&disk, at, len).await };
        assert_eq!(host.run(read(4095, 2)).expect_err("outside").status, Status::Invalid);
        assert_eq!(host.run(read(u64::MAX, 2)).expect_err("outside").status, Status::Invalid);
        assert_eq!(host.run(read(1023, 1)).expect_err("bad").status, Status::Medium);
        assert!(host.run(read(1024, 3072)).is_ok());
    }
}
