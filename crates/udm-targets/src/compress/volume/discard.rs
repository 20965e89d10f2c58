//! Segments that died, on their way to be free: discarded below, and released.
//!
//! Rules. A segment leaves only when nobody reads in it, and is used again only after its discard
//! has ended: a discard that is still on its way would hit the new records. What the device below
//! says to a discard does not matter; one that cannot is not asked again.
//!
//! The tricky case is a stop: the discard under way is waited for, the others stay held and are
//! taken up by the next start. After a crash they are simply free.

use super::shared::Core;
use alloc::rc::Rc;
use udm_types::Status;

/// Task: discards and releases what checkpoints found dead.
pub(super) async fn discarder(core: Rc<Core>) {
    let mut is_passed_down = core.port.options.discard_passdown;
    loop {
        let next = core
            .background
            .wait_for(|| {
                let live = core.live.borrow();
                match live.is_stopping {
                    true => Some(None),
                    false => live.segments.next_held(None).map(Some),
                }
            })
            .await;
        let Some(segment) = next else { return };
        let mut is_discarded = false;
        if is_passed_down {
            let at = core.geometry.segment_offset_bytes(segment);
            let len = core.geometry.segment_bytes();
            match core.port.disk.discard(at, len).await {
                Ok(_) => is_discarded = true,
                Err(error) => is_passed_down = error.status != Status::NotSupported,
            }
        }
        core.forget_unpacked(segment);
        core.live.borrow_mut().segments.release(segment, is_discarded);
        core.room.notify();
        core.background.notify();
    }
}
