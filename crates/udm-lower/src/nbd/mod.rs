//! The NBD client: an export of an NBD server as a lower device.
//!
//! [`NbdDevice`] is opened by the registry on the control side, where it may wait (`open.rs`: the
//! first handshake), and shared by all lanes; each lane has connections of its own (`lane.rs`).
//!
//! - `uri`: names. `wire`: numbers and request heads. `handshake`, `replies`: the protocol as state
//!   machines over bytes. `requests`: what is under way. `status`: error codes. All pure.
//! - `inbox`, `outbox`, `connection`: what a connection holds. `link`: how it comes and goes.
//!   `lane`: bios to requests and back. `transfer`: bytes. `state`: what the lanes share.
//! - `fuzz`: one entry that feeds the reply parser with hostile bytes.
//!
//! Rules. A lane never waits; bios in flight on a connection that breaks are answered at once with
//! `Transport`, on one that stalls with `Timeout`, and while there is no connection new ones are
//! refused at once: what to do then is for multipath (or the submitter) to decide. Nothing is sent
//! twice.
//!
//! The tricky case is a server that may not be reached over several connections (it does not say
//! CAN_MULTI_CONN): a flush there covers only its own connection, and reads of another connection
//! may be stale. Then one lane has the only connection and works for the others (`relay`).

mod connection;
#[doc(hidden)]
pub mod fuzz;
mod handshake;
mod inbox;
mod lane;
mod link;
mod open;
mod outbox;
mod relay;
mod replies;
mod requests;
mod state;
mod status;
mod transfer;
mod uri;
mod wire;

pub(crate) use uri::{NbdName, is_nbd};

use handshake::Agreed;
use lane::NbdLane;
use state::NbdShared;
use std::sync::{Arc, Weak};
use udm_core::{LinkState, LowerCx, LowerDevice, LowerLane, UserError};
use udm_lane::Errno;
use udm_types::{DeviceFeatures, MAX_SECTORS_DEFAULT, QueueLimits, SECTOR_BYTES, Sector};
use wire::{READ_ONLY, ROTATIONAL, SEND_FLUSH, SEND_FUA, SEND_TRIM};

/// An export.
pub(crate) struct NbdDevice {
    shown: String,
    shared: Arc<NbdShared>,
    limits: QueueLimits,
}

impl NbdDevice {
    /// Connects and shakes hands; waits for that, so only for the control side.
    ///
    /// # Errors
    /// Why the server cannot be reached or will not do.
    pub(crate) fn open(
        shown: &str,
        name: &NbdName,
        read_only: bool,
    ) -> Result<NbdDevice, UserError> {
        let shared = open::open(shown, name, read_only)?;
        let limits = limits_of(&shared.promise.agreed, read_only);
        Ok(NbdDevice { shown: shown.to_owned(), shared: Arc::new(shared), limits })
    }

    /// The shared part, for asking about a device that is open.
    pub(crate) fn probe(&self) -> NbdProbe {
        NbdProbe { shared: Arc::downgrade(&self.shared) }
    }
}

/// What the registry keeps to ask a device about itself, without keeping it open.
#[derive(Clone, Debug)]
pub(crate) struct NbdProbe {
    shared: Weak<NbdShared>,
}

impl NbdProbe {
    /// True if the export has become something that tables made for it cannot use.
    pub(crate) fn is_misfit(&self) -> bool {
        self.shared.upgrade().is_some_and(|shared| shared.is_misfit())
    }
}

impl LowerDevice for NbdDevice {
    fn shown(&self) -> String {
        self.shown.clone()
    }

    fn len_sectors(&self) -> Sector {
        self.shared.len_sectors()
    }

    fn limits(&self) -> QueueLimits {
        self.limits.clone()
    }

    fn open_lane(&self, cx: &mut LowerCx<'_>) -> Result<Box<dyn LowerLane>, Errno> {
        Ok(Box::new(NbdLane::open(Arc::clone(&self.shared), cx)?))
    }

    fn link(&self) -> Option<LinkState> {
        Some(self.shared.link_state())
    }
}

/// What an export accepts.
fn limits_of(agreed: &Agreed, read_only: bool) -> QueueLimits {
    let block_bytes = agreed.block_bytes_min.max(SECTOR_BYTES as u32);
    let preferred = agreed.block_bytes_preferred.max(block_bytes);
    let max_sectors = u64::from(lane::piece_bytes_max(agreed)) / SECTOR_BYTES;
    let range_sectors = lane::RANGE_BYTES_MAX / SECTOR_BYTES;
    let mut features = DeviceFeatures::empty();
    features.set(DeviceFeatures::WRITE_CACHE, agreed.has(SEND_FLUSH));
    features.set(DeviceFeatures::FUA, agreed.has(SEND_FUA));
    features.set(DeviceFeatures::ROTATIONAL, agreed.has(ROTATIONAL));
    let mut limits = QueueLimits {
        logical_block_bytes: block_bytes,
        physical_block_bytes: block_bytes,
        io_min_bytes: preferred,
        io_opt_bytes: 0,
        chunk_sectors: 0,
        max_sectors: max_sectors.min(MAX_SECTORS_DEFAULT),
        max_discard_sectors: range_sectors,
        discard_granularity_bytes: preferred,
        // Where the server cannot, zeroes are written.
        max_write_zeroes_sectors: range_sectors,
        features,
        read_only: read_only || agreed.has(READ_ONLY),
    };
    if !agreed.has(SEND_TRIM) {
        limits.forbid_discard();
    }
    limits
}
