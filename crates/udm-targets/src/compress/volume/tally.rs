//! What a volume counted.
//!
//! Rules. Counters only grow, from the opening of the volume on; sizes in [`Counters`] are those of
//! the moment. Nothing here decides anything.

use core::cell::Cell;

macro_rules! tally {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters while they count.
        #[derive(Default)]
        pub(super) struct Tally {
            $(pub(super) $name: Cell<u64>,)*
        }

        /// Counters as they are read.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Tally {
            /// All of them.
            pub(super) fn read(&self) -> Counts {
                Counts { $($name: self.$name.get(),)* }
            }
        }
    };
}

tally! {
    /// Bytes that users wrote, zeroes and fills included.
    written_bytes,
    /// Bytes of compressed extents in user records, headers included.
    stored_bytes,
    /// Bytes of map and segment pages and checkpoints written.
    map_bytes,
    /// Bytes of extents that the cleaner wrote.
    gc_bytes,
    /// Bytes that users read.
    read_bytes,
    /// Reads of the disk for data.
    data_reads,
    /// Reads of the disk for map pages.
    page_reads,
    /// Flushes of the disk for users.
    commits,
    /// Checkpoints committed.
    checkpoints,
    /// Segments the cleaner copied out.
    segments_cleaned,
    /// Segments freed by checkpoints.
    segments_freed,
    /// Dead bytes inside used segments that were discarded below.
    punched_bytes,
    /// Blocks that scrubs went over.
    scrubbed_blocks,
    /// Steps of scrubs that met damage.
    scrub_errors,
    /// Extents that were read again because their checksum was wrong.
    rereads,
}

/// Adds to a counter.
pub(super) fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get() + count);
}

/// Counters and sizes of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// What was counted.
    pub counts: Counts,
    /// Records sealed.
    pub records: u64,
    /// Their bytes.
    pub record_bytes: u64,
    /// What it uses of its disk.
    pub disk_bytes: u64,
    /// What it is about to use; 0 if that does not change.
    pub shrinking_to_bytes: u64,
    /// Segments there are.
    pub segments: u64,
    /// Segments in use.
    pub segments_used: u64,
    /// What the volume takes below: superblocks and checkpoint slots, both places of every page
    /// that was written, segments in use. The open segment counts up to where the log has come,
    /// the one that is reserved to follow it holds nothing yet.
    pub used_bytes: u64,
    /// Logical size.
    pub logical_blocks: u64,
    /// Live blocks, as of the last checkpoint.
    pub live_blocks: u64,
    /// Live bytes, as of the last checkpoint, about.
    pub live_bytes: u64,
    /// Log behind the last checkpoint.
    pub log_bytes: u64,
    /// Changes that are not in map pages.
    pub changes: u64,
    /// The last durable checkpoint.
    pub checkpoint: u64,
    /// Data in memory that is not written yet.
    pub buffered_bytes: u64,
    /// All memory that grows with use, about.
    pub memory_bytes: u64,
    /// A checkpoint is under way.
    pub is_checkpointing: bool,
    /// Segments are being cleaned.
    pub is_cleaning: bool,
    /// The last sequence appended, written and durable.
    pub sequences: [u64; 3],
}
