//! What all lanes of an NBD device share: what was opened, how it stands now, the fence.
//!
//! On the path of an I/O only plain loads of two atomics happen here; everything else changes when
//! a connection comes or goes, under a lock that is held for an instant.
//!
//! The tricky case is an export that comes back as something else. What tables rely on is what the
//! device promised when it was opened ([`Promise`]): if the export is now smaller, has other blocks
//! or lost an ability, no I/O may reach it, or a table would write into the wrong place or flush
//! into the void. It is a *misfit* until it is again what it was. If it has grown, that is fine,
//! and the next table that is loaded may use all of it.

use super::handshake::Agreed;
use super::relay::Relay;
use super::uri::NbdOptions;
use super::wire::{READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES};
use rustix::fd::OwnedFd;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use udm_core::LinkState;
use udm_lane::PeerAddress;
use udm_types::{Nanos, SECTOR_SHIFT, Sector};

/// What a device promised to those who stand on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Promise {
    /// What the export was when it was opened.
    pub(super) agreed: Agreed,
    /// Opened for reading only.
    pub(super) read_only: bool,
}

/// The shared part of a device.
#[derive(Debug)]
pub(super) struct NbdShared {
    /// Where the server may be; tried in turn.
    pub(super) peers: Vec<PeerAddress>,
    /// The export's name.
    pub(super) export: String,
    /// What the name said.
    pub(super) options: NbdOptions,
    /// What was promised.
    pub(super) promise: Promise,
    /// Where the lanes meet if there is one connection for all of them.
    pub(super) relay: Relay,
    /// The connection the device was opened with, for the first lane that comes.
    first: Mutex<Option<(OwnedFd, Agreed)>>,
    len_sectors: AtomicU64,
    /// Changes at the server whose bios were answered already.
    fence: AtomicU32,
    /// Flushes that failed, ever.
    flush_failures: AtomicU64,
    links: Mutex<Links>,
}

#[derive(Debug, Default)]
struct Links {
    lanes: BTreeMap<u16, LaneLink>,
    failures: u64,
    last_error: Option<String>,
    is_misfit: bool,
}

/// How a lane stands.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LaneLink {
    /// It has a connection.
    pub(super) is_connected: bool,
    /// When it tries again.
    pub(super) next_try_at: Option<Nanos>,
}

impl NbdShared {
    /// The shared part of a device just opened.
    pub(super) fn new(
        peers: Vec<PeerAddress>,
        export: String,
        options: NbdOptions,
        promise: Promise,
        first: OwnedFd,
    ) -> NbdShared {
        NbdShared {
            peers,
            export,
            options,
            promise,
            relay: Relay::default(),
            first: Mutex::new(Some((first, promise.agreed))),
            len_sectors: AtomicU64::new(len_sectors(&promise.agreed)),
            fence: AtomicU32::new(0),
            flush_failures: AtomicU64::new(0),
            links: Mutex::default(),
        }
    }

    /// The size now.
    #[inline]
    pub(super) fn len_sectors(&self) -> Sector {
        self.len_sectors.load(Ordering::Relaxed)
    }

    /// True while a change may still happen at the server whose bio has been answered.
    #[inline]
    pub(super) fn is_fenced(&self) -> bool {
        self.fence.load(Ordering::SeqCst) != 0
    }

    /// One more such change.
    pub(super) fn fence(&self) {
        self.fence.fetch_add(1, Ordering::SeqCst);
    }

    /// One less.
    pub(super) fn unfence(&self) {
        self.fence.fetch_sub(1, Ordering::SeqCst);
    }

    /// How many flushes have failed, ever.
    pub(super) fn flush_failures(&self) -> u64 {
        self.flush_failures.load(Ordering::SeqCst)
    }

    /// A flush failed; how many have now.
    pub(super) fn flush_failed(&self) -> u64 {
        self.flush_failures.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The connection the device was opened with, once.
    pub(super) fn take_first(&self) -> Option<(OwnedFd, Agreed)> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Compares what the server offers now with what was promised, and takes it over if it fits.
    pub(super) fn adopt(&self, now: &Agreed) -> Result<(), String> {
        let fits = self.promise.differs(now);
        let mut links = self.links();
        match fits {
            None => {
                links.is_misfit = false;
                self.len_sectors.store(len_sectors(now), Ordering::Relaxed);
                Ok(())
            }
            Some(why) => {
                links.is_misfit = true;
                Err(why)
            }
        }
    }

    /// True if the export last came back as something that does not fit.
    pub(super) fn is_misfit(&self) -> bool {
        self.links().is_misfit
    }

    /// A connection broke or was not made.
    pub(super) fn failed(&self, why: &str) {
        let mut links = self.links();
        links.failures += 1;
        links.last_error = Some(why.to_owned());
    }

    /// How a lane stands now; `None` when it has closed the device.
    pub(super) fn set_lane(&self, lane: u16, link: Option<LaneLink>) {
        let mut links = self.links();
        match link {
            Some(link) => links.lanes.insert(lane, link),
            None => links.lanes.remove(&lane),
        };
    }

    /// For whoever asks.
    pub(super) fn link_state(&self) -> LinkState {
        let links = self.links();
        let up = links.lanes.values().filter(|lane| lane.is_connected);
        LinkState {
            // Both are bounded by the number of lanes, 16 bits.
            lanes_open: links.lanes.len() as u32,
            lanes_connected: up.count() as u32,
            failures: links.failures,
            last_error: links.last_error.clone(),
            next_try_at: links.lanes.values().filter_map(|lane| lane.next_try_at).min(),
            is_misfit: links.is_misfit,
        }
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        // Every change is complete before the lock is let go.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whole sectors, and no last piece smaller than a block.
pub(super) fn len_sectors(agreed: &Agreed) -> Sector {
    let block_bytes = u64::from(agreed.block_bytes_min.max(512));
    (agreed.size_bytes / block_bytes * block_bytes) >> SECTOR_SHIFT
}

impl Promise {
    /// Why an export as it is now cannot keep the promise.
    pub(super) fn differs(&self, now: &Agreed) -> Option<String> {
        let then = &self.agreed;
        let (was, is) = (len_sectors(then), len_sectors(now));
        if is < was {
            return Some(format!(
                "the export shrank from {was} to {is} sectors; load a table that fits"
            ));
        }
        if now.block_bytes_min.max(512) != then.block_bytes_min.max(512) {
            return Some(format!(
                "the export's block was {} bytes and is {} now; load the table again",
                then.block_bytes_min, now.block_bytes_min
            ));
        }
        if now.payload_bytes_max < then.payload_bytes_max {
            return Some(
                "the server takes smaller requests than before; load the table again".into(),
            );
        }
        if now.has(READ_ONLY) && !self.read_only {
            return Some("the export is read-only now".into());
        }
        let abilities = [
            (SEND_FLUSH, "flush"),
            (SEND_FUA, "FUA"),
            (SEND_TRIM, "trim"),
            (SEND_WRITE_ZEROES, "write zeroes"),
            (super::wire::CAN_MULTI_CONN, "serve several connections as one"),
        ];
        let lost = abilities.iter().find(|(flag, _)| then.has(*flag) && !now.has(*flag));
        lost.filter(|_| !self.read_only)
            .map(|(_, what)| format!("the server cannot {what} any more; load the table again"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::handshake::Agreed;
    use super::super::wire::{HeaderStyle, READ_ONLY, SEND_FLUSH};
    use super::Promise;

    #[test]
    fn what_the_export_may_become_and_what_not() {
        let agreed = Agreed {
            style: HeaderStyle::Simple,
            size_bytes: 1 << 20,
            flags: SEND_FLUSH,
            block_bytes_min: 1,
            block_bytes_preferred: 4096,
            payload_bytes_max: 1 << 25,
        };
        let promise = Promise { agreed, read_only: false };
        let fits = |now: Agreed| promise.differs(&now).is_none();
        assert!(fits(agreed));
        assert!(fits(Agreed { size_bytes: 2 << 20, style: HeaderStyle::Extended, ..agreed }));
        assert!(fits(Agreed { block_bytes_min: 512, ..agreed }));
        assert!(!fits(Agreed { block_bytes_min: 4096, ..agreed }));
        assert!(!fits(Agreed { size_bytes: (1 << 20) - 512, ..agreed }));
        assert!(!fits(Agreed { flags: 0, ..agreed }));
        assert!(!fits(Agreed { flags: SEND_FLUSH | READ_ONLY, ..agreed }));
        assert!(!fits(Agreed { payload_bytes_max: 1 << 20, ..agreed }));
        let reader = Promise { agreed, read_only: true };
        assert!(reader.differs(&Agreed { flags: READ_ONLY, ..agreed }).is_none());
    }
}
