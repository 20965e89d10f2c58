//! What a bio asks for: the operation, its flags, and sets of operations.
//!
//! Matches over [`Op`] list every variant (no `_`), so that a new operation breaks every target at
//! compile time instead of passing through it unseen.

use bitflags::bitflags;

/// The operation of a bio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Op {
    /// Read data.
    Read = 0,
    /// Write data.
    Write = 1,
    /// Make every write completed before durable. Carries no data and no range.
    Flush = 2,
    /// Forget a range; its contents become undefined.
    Discard = 3,
    /// Make a range read as zeroes, without carrying them.
    WriteZeroes = 4,
}

impl Op {
    /// How many operations there are; sizes per-operation counters.
    pub const COUNT: usize = 5;
    /// All operations, in numeric order.
    pub const ALL: [Op; Op::COUNT] = [Op::Read, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes];

    /// The number as an index of per-operation counters.
    #[inline]
    pub fn index(self) -> usize {
        self as usize
    }

    /// True for everything that changes the device (write, discard, write-zeroes).
    #[inline]
    pub fn is_write(self) -> bool {
        match self {
            Op::Read | Op::Flush => false,
            Op::Write | Op::Discard | Op::WriteZeroes => true,
        }
    }

    /// True if the bio carries a payload as long as its range.
    #[inline]
    pub fn has_data(self) -> bool {
        match self {
            Op::Read | Op::Write => true,
            Op::Flush | Op::Discard | Op::WriteZeroes => false,
        }
    }

    /// The word used in statistics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::Discard => "discard",
            Op::WriteZeroes => "write_zeroes",
        }
    }
}

bitflags! {
    /// Modifiers of a bio.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BioFlags: u8 {
        /// The write itself is durable when it completes.
        const FUA = 1;
        /// Flush first, then do the write (the flush covers every write completed before).
        const PREFLUSH = 2;
        /// The ordered barrier: everything submitted before completes first, then a flush, then
        /// this bio's data, then another flush; nothing submitted after it starts before.
        const ORDERED = 4;
        /// Write-zeroes must keep the blocks allocated (NBD's NO_HOLE).
        const NO_UNMAP = 8;
    }
}

bitflags! {
    /// A set of operations; what a target or a device can do.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OpSet: u8 {
        /// [`Op::Read`].
        const READ = 1;
        /// [`Op::Write`].
        const WRITE = 2;
        /// [`Op::Flush`].
        const FLUSH = 4;
        /// [`Op::Discard`].
        const DISCARD = 8;
        /// [`Op::WriteZeroes`].
        const WRITE_ZEROES = 16;
    }
}

impl OpSet {
    /// Membership of a single operation.
    #[inline]
    pub fn has(self, op: Op) -> bool {
        self.bits() & (1 << (op as u8)) != 0
    }
}
