//! The simulated driver: a lane's way into the world, in place of io_uring.
//!
//! It registers simulated disks (the raw handle is the disk's number), turns driver operations into
//! disk operations, and hands completions back in an order the seed chooses, all at once or (in
//! some seeds) a few at a time. It never blocks: a wait that has nothing to give marks the lane
//! asleep and returns, and the world turns the lane again when there is a reason.
//!
//! At the door every operation is checked: it must lie on the disk, and a write must carry tags of
//! the very sectors it goes to. A mapping gone wrong shows here, at the first write, and not when
//! somebody happens to read the place.
//!
//! The tricky case is the continuation of a short write, which may begin in the middle of a sector:
//! its words are checked by their index, as those of a whole sector are.

use crate::lane_io::{Ended, Sleep, Way};
use crate::ops::{DiskAction, DiskOp, EBADF, EINVAL, EOPNOTSUPP};
use crate::oracle::FaultKind;
use crate::paths::FIRST_PATH_HANDLE;
use crate::state::{SimState, Stage};
use crate::value::{SECTOR_LEN, decode_at, sector_of, volume_of, write_of};
use std::sync::Arc;
use udm_lane::{
    Completion, Driver, DriverOp, Errno, FallocateKind, Handle, OpToken, Payload, RawHandle, Wake,
};
use udm_types::Nanos;

/// The driver of one simulated lane.
pub(crate) struct SimDriver {
    stage: Stage,
    lane: usize,
}

impl SimDriver {
    /// The driver of a lane.
    pub(crate) fn new(stage: Stage, lane: usize) -> SimDriver {
        SimDriver { stage, lane }
    }
}

impl Driver for SimDriver {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn register(&mut self, raw: RawHandle) -> Result<Handle, Errno> {
        let mut state = self.stage.get();
        let way = match raw.0 - FIRST_PATH_HANDLE {
            path if path >= 0 => {
                let path = path as usize;
                let disk = state.paths.get(path).ok_or(EBADF)?.disk;
                Way { disk, path: Some(path) }
            }
            _ => Way { disk: usize::try_from(raw.0).map_err(|_| EBADF)?, path: None },
        };
        let disk = way.disk;
        state.disks.get_mut(disk).ok_or(EBADF)?.open_handles += 1;
        state.note("register", &[self.lane as u64, disk as u64]);
        let handles = &mut state.lanes[self.lane].handles;
        let free = handles.iter().position(Option::is_none).unwrap_or(handles.len());
        if free == handles.len() {
            handles.push(None);
        }
        handles[free] = Some(way);
        Ok(Handle(free as u32))
    }

    fn close(&mut self, handle: Handle) {
        let mut state = self.stage.get();
        let slot = state.lanes[self.lane].handles.get_mut(handle.0 as usize);
        match slot.and_then(Option::take) {
            Some(Way { disk, .. }) => {
                state.disks[disk].open_handles -= 1;
                state.note("close", &[self.lane as u64, disk as u64]);
            }
            None => state.oracle.violate("a handle was closed twice".into()),
        }
    }

    fn shutdown(&mut self, handle: Handle) {
        let mut state = self.stage.get();
        state.oracle.violate(format!("{handle:?} is a disk and cannot be shut down"));
    }

    fn submit(&mut self, token: OpToken, op: DriverOp) {
        self.stage.get().take_op(self.lane, token, op);
    }

    fn cancel(&mut self, token: OpToken) {
        self.stage.get().cancel_op(self.lane, token);
    }

    fn wait(&mut self, deadline: Option<Nanos>, completions: &mut Vec<Completion>) {
        let mut state = self.stage.get();
        let state = &mut *state;
        let lane = &mut state.lanes[self.lane];
        let woken = lane.wake.take();
        let ended = &mut lane.ended;
        let count = match state.swarm.partial_delivery && !ended.is_empty() {
            true => state.rng.usize(1..=ended.len()),
            false => ended.len(),
        };
        for _ in 0..count {
            let pick = state.rng.usize(0..ended.len());
            let ended = ended.swap_remove(pick);
            if ended.unsettled {
                state.oracle.fault(FaultKind::Sync, std::iter::empty());
            }
            completions.push(ended.completion);
        }
        lane.sleep = match deadline {
            _ if woken || count > 0 => Sleep::Awake,
            Some(deadline) if deadline <= state.now => Sleep::Awake,
            Some(deadline) => Sleep::Until(deadline),
            None => Sleep::ForEver,
        };
    }

    fn now(&mut self) -> Nanos {
        self.stage.get().now
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.stage.get().lanes[self.lane].wake) as Arc<dyn Wake>
    }
}

impl SimState {
    fn take_op(&mut self, lane: usize, token: OpToken, op: DriverOp) {
        let way_of = |state: &SimState, handle: Handle| {
            state.lanes[lane].handles.get(handle.0 as usize).copied().flatten()
        };
        let (handle, action, offset_bytes, len_bytes, payload) = match op {
            DriverOp::Read { handle, offset_bytes, payload } => {
                (handle, DiskAction::Read, offset_bytes, payload.len_bytes(), payload)
            }
            DriverOp::Write { handle, offset_bytes, payload, dsync } => {
                let action = DiskAction::Write { durable: dsync };
                (handle, action, offset_bytes, payload.len_bytes(), payload)
            }
            DriverOp::Sync { handle } => (handle, DiskAction::Sync, 0, 0, Payload::empty()),
            DriverOp::Fallocate { handle, kind, offset_bytes, len_bytes } => {
                match kind {
                    FallocateKind::PunchHole | FallocateKind::ZeroRange => {}
                }
                (handle, DiskAction::Zero, offset_bytes, len_bytes, Payload::empty())
            }
            DriverOp::Recv { .. }
            | DriverOp::Send { .. }
            | DriverOp::Accept { .. }
            | DriverOp::Watch { .. }
            | DriverOp::Command { .. }
            | DriverOp::Lend { .. }
            | DriverOp::Exchange { .. } => {
                return self.refuse_op(lane, token, EINVAL, Payload::empty());
            }
        };
        let Some(Way { disk, path }) = way_of(self, handle) else {
            self.oracle.violate("an operation on a closed handle".into());
            return self.refuse_op(lane, token, EBADF, payload);
        };
        if action == DiskAction::Zero && !self.disks[disk].fallocate {
            return self.refuse_op(lane, token, EOPNOTSUPP, payload);
        }
        let end = offset_bytes.saturating_add(len_bytes);
        if end > self.disks[disk].len_bytes() {
            let text = format!("{action:?} at {offset_bytes}+{len_bytes} is beyond disk {disk}");
            self.oracle.violate(text);
            return self.refuse_op(lane, token, EINVAL, payload);
        }
        let mut op = DiskOp::new(lane, token, disk, action);
        op.path = path;
        (op.offset_bytes, op.len_bytes, op.payload) = (offset_bytes, len_bytes, payload);
        self.check_place(&op);
        self.start_op(op);
    }

    fn refuse_op(&mut self, lane: usize, token: OpToken, errno: Errno, payload: Payload) {
        let completion = Completion { token, result: Err(errno), payload, more: false };
        self.lanes[lane].ended.push(Ended { completion, unsettled: false });
    }

    /// An operation may only touch what a table has given away, and a write must fit its place.
    fn check_place(&mut self, op: &DiskOp) {
        if self.disks[op.disk].vault.is_some() {
            return;
        }
        let first = op.offset_bytes / SECTOR_LEN as u64;
        let end = (op.offset_bytes + op.len_bytes).div_ceil(SECTOR_LEN as u64);
        for sector in first..end {
            if self.disks[op.disk].owner(sector).is_none() {
                let text = format!(
                    "{:?} touches sector {sector} of disk {}: nobody's",
                    op.action, op.disk
                );
                return self.oracle.violate(text);
            }
        }
        if !matches!(op.action, DiskAction::Write { .. }) {
            return;
        }
        let mut bytes = vec![0; op.len_bytes as usize];
        op.payload.copy_out(0, &mut bytes);
        let mut at = 0;
        while at < bytes.len() {
            let place = op.offset_bytes + at as u64;
            let in_sector = (place % SECTOR_LEN as u64) as usize;
            let len = (SECTOR_LEN - in_sector).min(bytes.len() - at);
            self.check_words(op, place / SECTOR_LEN as u64, &bytes[at..at + len], in_sector);
            at += len;
        }
    }

    fn check_words(&mut self, op: &DiskOp, sector: u64, words: &[u8], in_sector: usize) {
        let Some(owner) = self.disks[op.disk].owner(sector) else { return };
        let Some(tags) = decode_at(words, in_sector) else {
            let text = format!("garbage is written to sector {sector} of disk {}", op.disk);
            return self.oracle.violate(text);
        };
        for tag in tags.into_iter().filter(|&tag| tag != 0) {
            if (volume_of(tag), sector_of(tag)) != (owner.volume, owner.sector) {
                let text = format!(
                    "write {} of volume {} sector {} goes to disk {} sector {sector}, the place of \
                     volume {} sector {}",
                    write_of(tag),
                    volume_of(tag),
                    sector_of(tag),
                    op.disk,
                    owner.volume,
                    owner.sector
                );
                return self.oracle.violate(text);
            }
            self.oracle.reached_disk(write_of(tag));
        }
    }
}
