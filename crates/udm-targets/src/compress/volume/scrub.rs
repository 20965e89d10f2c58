//! Scrubbing: reading everything that is stored, so that damage is found before it is needed.
//!
//! Rules. It reads as a user does, a step at a time, and throws the data away; so every place, time
//! and checksum is verified by the code that will be used when it matters, and what is lost is told
//! by the same event. A stop ends it between two steps; the next start goes on where it was.
//!
//! The tricky case is a block that changes meanwhile: whatever is there when its step comes is
//! verified, newer data was written a moment ago.

use super::read::{From, Target, read};
use super::shared::Core;
use super::tally::add;
use crate::compress::format::BLOCK_BYTES;
use alloc::rc::Rc;
use core::cell::RefCell;
use udm_lane::{Buf, Payload, yield_now};

/// Blocks of one step.
const STEP_BLOCKS: u64 = 64;

/// Task: scrubs when it is asked to.
pub(super) async fn scrubber(core: Rc<Core>) {
    let mut room: Option<Payload> = None;
    loop {
        let next = core
            .background
            .wait_for(|| {
                let live = core.live.borrow();
                match live.is_stopping {
                    true => Some(None),
                    false => live.scrub_at.map(Some),
                }
            })
            .await;
        let Some(first) = next else { return };
        let end = core.live.borrow().limit_blocks.min(first + STEP_BLOCKS);
        if first >= end {
            core.live.borrow_mut().scrub_at = None;
            room = None;
            continue;
        }
        let whole = room.get_or_insert_with(|| {
            Payload::from_buf(Buf::alloc((STEP_BLOCKS * BLOCK_BYTES) as usize))
        });
        let place = RefCell::new(whole.slice(0, (end - first) * BLOCK_BYTES));
        let target = Target::own(&place, first * BLOCK_BYTES, From::Disk);
        let status = read(&core, &target).await;
        add(&core.port.tally.scrubbed_blocks, end - first);
        add(&core.port.tally.scrub_errors, u64::from(!status.is_ok()));
        core.live.borrow_mut().scrub_at = Some(end);
        yield_now().await;
    }
}
