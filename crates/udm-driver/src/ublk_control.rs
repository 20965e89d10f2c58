//! `/dev/ublk-control`: orders to the kernel's ublk driver, one at a time, and waited for.
//!
//! Orders go as commands of a ring with 128-byte entries, since they do not fit into others. The
//! ring is a small one of its own: only control threads use it, and lanes keep their 64-byte
//! entries, into which the commands of ublk's queues fit.
//!
//! Rules. A call returns when the kernel has answered, not before, so the memory it was given may
//! be on the caller's stack. Calls block (a start reads the partition table, a delete waits for
//! the last descriptor), so no lane makes them. What the numbers and bytes mean is the front's
//! business (`udm-front/src/ublk/wire.rs`); here is only where the address lies in a command.
//!
//! The tricky case is a ring that fails while an order is under way: the kernel may still write
//! into the memory, and there is nothing to wait for any more. That ends the process.

use crate::error::DriverError;
use io_uring::squeue::{Entry, Entry128};
use io_uring::{IoUring, cqueue, opcode, types};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use udm_lane::Errno;

/// Where the kernel takes orders.
const PATH: &str = "/dev/ublk-control";

/// "For no queue".
const NO_QUEUE: u16 = u16::MAX;

/// One order.
#[derive(Debug)]
pub struct UblkOrder<'a> {
    /// Which, as the kernel numbers it.
    pub code: u32,
    /// The device; `u32::MAX` for none yet.
    pub device: u32,
    /// The one number that goes with it.
    pub word: u64,
    /// Of the device's file, by which the kernel judges who is not root; else empty.
    pub path: &'a str,
    /// Read, written, or both, as the order says. At most 65535 bytes count.
    pub memory: &'a mut [u8],
}

/// The open control device.
pub struct UblkControl {
    file: File,
    ring: IoUring<Entry128, cqueue::Entry>,
}

impl fmt::Debug for UblkControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UblkControl")
    }
}

impl UblkControl {
    /// Opens it.
    ///
    /// # Errors
    /// `ENOENT` if the kernel has no ublk (or its module is not loaded), `EACCES` without the
    /// right; with another step than `open`, that of making the ring.
    pub fn open() -> Result<UblkControl, DriverError> {
        let file = OpenOptions::new().read(true).write(true).open(PATH);
        let file =
            file.map_err(|error| DriverError::refused_by("open /dev/ublk-control", &error))?;
        let ring = IoUring::<Entry128, cqueue::Entry>::builder()
            .build(2)
            .map_err(|error| DriverError::refused_by("io_uring_setup", &error))?;
        Ok(UblkControl { file, ring })
    }

    /// Gives an order and waits for its end.
    ///
    /// # Errors
    /// The kernel's answer.
    ///
    /// # Panics
    /// If the ring breaks while the order is under way.
    pub fn call(&mut self, order: UblkOrder<'_>) -> Result<u32, Errno> {
        let UblkOrder { code, device, word, path, memory } = order;
        if path.is_empty() {
            return self.call_with(code, device, word, 0, memory);
        }
        // The kernel looks for the memory behind the path.
        let mut joined = [path.as_bytes(), memory].concat();
        let path_len = u16::try_from(path.len()).unwrap_or(u16::MAX);
        let result = self.call_with(code, device, word, path_len, &mut joined);
        memory.copy_from_slice(&joined[path.len()..]);
        result
    }

    fn call_with(
        &mut self,
        code: u32,
        device: u32,
        word: u64,
        path_len: u16,
        memory: &mut [u8],
    ) -> Result<u32, Errno> {
        let len = u16::try_from(memory.len()).unwrap_or(u16::MAX);
        let addr = if memory.is_empty() { 0 } else { memory.as_mut_ptr() as u64 };
        let mut bytes = [0; 80];
        bytes[0..4].copy_from_slice(&device.to_ne_bytes());
        bytes[4..6].copy_from_slice(&NO_QUEUE.to_ne_bytes());
        bytes[6..8].copy_from_slice(&len.to_ne_bytes());
        bytes[8..16].copy_from_slice(&addr.to_ne_bytes());
        bytes[16..24].copy_from_slice(&word.to_ne_bytes());
        bytes[24..26].copy_from_slice(&path_len.to_ne_bytes());
        let fd = types::Fd(self.file.as_raw_fd());
        let entry = opcode::UringCmd80::new(fd, code).cmd(bytes).build();
        // SAFETY: the only address in the entry is that of `memory`, of which the kernel is told
        // no more than the length; it is borrowed until `finish` has seen the order's end.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("invariant: one order at a time fits into the queue");
        let code = self.finish();
        u32::try_from(code).map_err(|_| Errno(-code))
    }

    /// Waits for the one order under way.
    fn finish(&mut self) -> i32 {
        loop {
            if let Some(ended) = self.ring.completion().next() {
                return ended.result();
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => {
                    // Returning would free memory that the kernel may write into.
                    eprintln!("udm: the ring for /dev/ublk-control failed: {error}");
                    std::process::abort();
                }
            }
        }
    }
}

/// An entry of an ordinary ring is enough for the commands of a queue; this one is not.
const _: () = assert!(size_of::<Entry128>() == 2 * size_of::<Entry>());

#[cfg(test)]
mod tests {
    use super::{PATH, UblkControl, UblkOrder};

    #[test]
    fn a_kernel_without_it_is_told_by_the_step_and_the_reason() {
        match UblkControl::open() {
            Ok(mut control) => {
                // A kernel with ublk: there is no device of this number.
                let order = UblkOrder {
                    code: 0x8020_7502,
                    device: 9999,
                    word: 0,
                    path: "",
                    memory: &mut [0; 64],
                };
                assert!(control.call(order).is_err());
            }
            Err(error) => {
                let there = std::path::Path::new(PATH).exists();
                assert_eq!(error.step == "open /dev/ublk-control", !there || error.errno.0 == 13);
            }
        }
    }
}
