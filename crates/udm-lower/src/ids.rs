//! Numbers of lower devices: small, and free again when the last reference has gone.
//!
//! A [`Numbered`] device is what a table and the lanes hold. Its drop gives the number back, so a
//! number is used again only when no table and no lane knows the former device any more; lanes
//! index their slots and operation tokens by it.

use std::sync::{Arc, Mutex, PoisonError};
use udm_core::{LinkState, LowerCx, LowerDevice, LowerLane, LowerRef};
use udm_lane::Errno;
use udm_types::{LowerId, QueueLimits, Sector};

/// Numbers a lane's tokens can hold (28 bits).
const IDS_MAX: u32 = 1 << 28;

/// Gives out numbers, the lowest free one first.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    inner: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    next: u32,
    free: std::collections::BTreeSet<u32>,
}

/// A device with its number.
pub(crate) struct Numbered {
    id: LowerId,
    ids: Arc<Ids>,
    device: Box<dyn LowerDevice>,
}

impl Ids {
    /// Numbers a device; `None` if all numbers are taken.
    pub(crate) fn number(ids: &Arc<Ids>, device: Box<dyn LowerDevice>) -> Option<Arc<Numbered>> {
        let id = LowerId(ids.take()?);
        Some(Arc::new(Numbered { id, ids: Arc::clone(ids), device }))
    }

    fn take(&self) -> Option<u32> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = inner.free.pop_first() {
            return Some(id);
        }
        let id = inner.next;
        inner.next = (id < IDS_MAX).then_some(id + 1)?;
        Some(id)
    }

    fn give_back(&self, id: u32) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).free.insert(id);
    }
}

impl Numbered {
    /// As the engine takes it.
    pub(crate) fn reference(self: Arc<Numbered>) -> LowerRef {
        LowerRef { id: self.id, device: self }
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        self.ids.give_back(self.id.0);
    }
}

impl LowerDevice for Numbered {
    fn shown(&self) -> String {
        self.device.shown()
    }

    fn len_sectors(&self) -> Sector {
        self.device.len_sectors()
    }

    fn limits(&self) -> QueueLimits {
        self.device.limits()
    }

    fn open_lane(&self, cx: &mut LowerCx<'_>) -> Result<Box<dyn LowerLane>, Errno> {
        self.device.open_lane(cx)
    }

    fn read_now(&self, offset_bytes: u64, into: &mut [u8]) -> Option<Result<(), Errno>> {
        self.device.read_now(offset_bytes, into)
    }

    fn link(&self) -> Option<LinkState> {
        self.device.link()
    }
}
