//! A lane's pool of I/O buffers, by size class.
//!
//! Fronts take a buffer for each request and give it back when the reply has gone. In steady
//! state nothing is allocated. A buffer somebody still holds a handle on (an abandoned operation)
//! is not taken back; it frees itself when that handle goes.

use crate::Buf;
use alloc::vec::Vec;

/// Size classes: 4 KiB, 16 KiB, 64 KiB, 256 KiB, 1 MiB; larger requests are allocated singly.
const CLASS_BYTES: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// Bytes a pool keeps idle at the most, a class: what a connection of a front may have in flight
/// (`MEMORY_BYTES_MAX` of the NBD front), since a buffer that is not kept costs its page faults
/// again. Beyond it buffers are freed, so an old burst does not hold memory for ever.
const IDLE_BYTES_PER_CLASS_MAX: usize = 8 << 20;

/// Idle buffers of one lane.
#[derive(Debug, Default)]
pub struct BufPool {
    idle: [Vec<Buf>; CLASS_BYTES.len()],
}

impl BufPool {
    /// An empty pool.
    pub fn new() -> BufPool {
        BufPool::default()
    }

    /// A buffer of at least `len_bytes`. Its contents are unspecified (old data of this daemon).
    pub fn take(&mut self, len_bytes: usize) -> Buf {
        match class_of(len_bytes) {
            Some(class) => self.idle[class].pop().unwrap_or_else(|| Buf::alloc(CLASS_BYTES[class])),
            None => Buf::alloc(len_bytes),
        }
    }

    /// Gives a buffer back.
    pub fn put(&mut self, buf: Buf) {
        if !buf.is_unique() {
            return;
        }
        let Some(class) = CLASS_BYTES.iter().position(|&bytes| bytes == buf.len_bytes()) else {
            return;
        };
        if self.idle[class].len() * CLASS_BYTES[class] < IDLE_BYTES_PER_CLASS_MAX {
            self.idle[class].push(buf);
        }
    }
}

fn class_of(len_bytes: usize) -> Option<usize> {
    CLASS_BYTES.iter().position(|&bytes| len_bytes <= bytes)
}

#[cfg(test)]
mod tests {
    use super::BufPool;

    #[test]
    fn a_returned_buffer_is_used_again() {
        let mut pool = BufPool::new();
        let buf = pool.take(1000);
        assert_eq!(buf.len_bytes(), 4096);
        let address = buf.as_ptr();
        pool.put(buf);
        assert_eq!(pool.take(4096).as_ptr(), address);
    }

    #[test]
    fn a_buffer_still_held_elsewhere_is_not_reused() {
        let mut pool = BufPool::new();
        let buf = pool.take(4096);
        let held = buf.clone();
        pool.put(buf);
        assert_ne!(pool.take(4096).as_ptr(), held.as_ptr());
    }
}
