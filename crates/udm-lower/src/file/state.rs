//! What all lanes share about a file: the fence, failed flushes nobody knows of, the size.
//!
//! One [`InodeState`] exists for a file or block device, however many devices (buffered, direct,
//! read-only) are open on it, and lives as long as any of them. Lanes touch it with atomics only;
//! nothing here blocks.
//!
//! **The fence.** An operation that was abandoned (its bio was answered although it hangs) may
//! still write when the disk comes back. Until all of them have ended, on every lane, new bios
//! are refused: [`InodeState::is_fenced`]. The fence goes up *before* the bio is answered, so
//! whoever reacts to the answer finds it up.
//!
//! **Failed flushes.** The kernel reports a write-back error once for each open file description.
//! Two things could hide it from the flush that has to report it, and are dealt with here:
//!
//! | what happened | who is told |
//! |---|---|
//! | a sync fails, others are under way | all of them: the generation they began with is over |
//! | a sync fails, but its bios were aborted meanwhile | the next flush: the error is *unseen* |
//! | a durable write fails, using up the report of other writes | its bio, and the next flush |

use rustix::fd::OwnedFd;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use udm_lane::Errno;
use udm_types::Sector;

/// State of a file, shared by everything that is open on it.
#[derive(Debug, Default)]
pub(crate) struct InodeState {
    abandoned: AtomicU32,
    /// How many syncs have failed so far.
    sync_failures: AtomicU64,
    /// The newest failure.
    last_errno: AtomicI32,
    /// How many failures had nobody to be reported to.
    unseen: AtomicU64,
    /// How many of those somebody has been told of since.
    seen: AtomicU64,
    /// The claim on a block device, held by the devices that write to it.
    claim: Mutex<Weak<OwnedFd>>,
}

/// How many syncs had failed when one began; compared to tell whether one failed meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SyncGeneration(u64);

/// A failure that a flush has to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SyncFailure {
    /// What the kernel said.
    pub(crate) errno: Errno,
    unseen: u64,
}

impl InodeState {
    /// Keeps others (a mount, another program) off a block device for as long as the answer, or
    /// another one, is held.
    ///
    /// # Errors
    /// Those of `claim`, which opens the device for nobody else.
    pub(crate) fn claim(
        &self,
        claim: impl FnOnce() -> Result<OwnedFd, Errno>,
    ) -> Result<Arc<OwnedFd>, Errno> {
        let mut held = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(claimed) = held.upgrade() {
            return Ok(claimed);
        }
        let claimed = Arc::new(claim()?);
        *held = Arc::downgrade(&claimed);
        Ok(claimed)
    }

    /// True while an abandoned operation may still change the file.
    #[inline]
    pub(crate) fn is_fenced(&self) -> bool {
        self.abandoned.load(Ordering::Acquire) != 0
    }

    /// An operation is abandoned. Called before its bio is answered.
    pub(crate) fn fence(&self) {
        self.abandoned.fetch_add(1, Ordering::AcqRel);
    }

    /// An abandoned operation has ended.
    pub(crate) fn unfence(&self) {
        let before = self.abandoned.fetch_sub(1, Ordering::AcqRel);
        assert!(before != 0, "an abandoned operation ends once");
    }

    /// The generation a sync begins in.
    pub(crate) fn sync_generation(&self) -> SyncGeneration {
        SyncGeneration(self.sync_failures.load(Ordering::Acquire))
    }

    /// A sync (or a durable write) has failed: so have all syncs under way.
    pub(crate) fn sync_failed(&self, errno: Errno) -> SyncFailure {
        self.last_errno.store(errno.0, Ordering::Relaxed);
        self.sync_failures.fetch_add(1, Ordering::AcqRel);
        SyncFailure { errno, unseen: self.unseen.load(Ordering::Acquire) }
    }

    /// The failure that a sync which went well has to report: another one failed while it was
    /// under way, or earlier and nobody was told.
    pub(crate) fn failed_since(&self, began: SyncGeneration) -> Option<SyncFailure> {
        let unseen = self.unseen.load(Ordering::Acquire);
        let told = unseen <= self.seen.load(Ordering::Acquire);
        if told && self.sync_generation() == began {
            return None;
        }
        Some(SyncFailure { errno: Errno(self.last_errno.load(Ordering::Relaxed)), unseen })
    }

    /// Nobody could be told of a failure; it waits for the next flush.
    pub(crate) fn leave_unseen(&self) {
        self.unseen.fetch_add(1, Ordering::AcqRel);
    }

    /// A durable write failed. The kernel may have used it to report what became of earlier
    /// writes, so it counts as a failed sync, and the next flush fails too.
    pub(crate) fn durable_write_failed(&self, errno: Errno) {
        self.sync_failed(errno);
        self.leave_unseen();
    }

    /// Somebody was told. What was left unseen after `failure` was made up stays so.
    pub(crate) fn told(&self, failure: SyncFailure) {
        self.seen.fetch_max(failure.unseen, Ordering::AcqRel);
    }
}

/// What every lane knows about an open device.
#[derive(Debug)]
pub(crate) struct FileShared {
    /// Shared with other devices open on the same file.
    pub(crate) inode: Arc<InodeState>,
    /// The newest size known.
    pub(crate) len_sectors: AtomicU64,
    /// Opened for reading only.
    pub(crate) read_only: bool,
    /// What `O_DIRECT` asks of addresses and ranges; `None` if the page cache is used.
    pub(crate) direct: Option<DirectAlign>,
}

/// Alignment of `O_DIRECT`, both powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectAlign {
    /// Of memory addresses.
    pub(crate) memory_bytes: u32,
    /// Of offsets and lengths.
    pub(crate) range_bytes: u32,
}

impl FileShared {
    /// True if the range lies inside the device.
    #[inline]
    pub(crate) fn holds(&self, end_sector: Sector) -> bool {
        end_sector <= self.len_sectors.load(Ordering::Relaxed)
    }
}
