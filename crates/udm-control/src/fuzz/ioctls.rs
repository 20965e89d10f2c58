//! Any bytes as a series of ioctls against one daemon.
//!
//! Each call begins with four bytes: command, size of the buffer the caller claims (in units of 8,
//! or the buffer's true size if 0), and how many bytes follow (two, little-endian). What must hold:
//! an answer without a panic; no more bytes back than the caller has room for; only the version
//! after an error; and nothing changed by a call that failed.

use super::model::{AskModel, Model};
use crate::ioctl::layout::{DATA_SIZE_AT, VERSION_LEN_BYTES};
use crate::ioctl::{Outcome, run};

const TYPE: u32 = 0xc138_fd00;
/// Calls of one input; more only cost time.
const CALLS_MAX: usize = 64;

/// Takes bytes as ioctls.
///
/// # Panics
/// If one of the rules is broken: a bug.
pub fn ioctls(bytes: &[u8]) {
    let model = Model::default();
    let mut rest = bytes;
    for _ in 0..CALLS_MAX {
        let Some(([command, claim, low, high], after)) = rest.split_first_chunk() else { return };
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let (call, after) = after.split_at(len);
        rest = after;
        let mut call = call.to_vec();
        if call.len() >= VERSION_LEN_BYTES {
            // Most inputs shall come beyond the version.
            if claim & 1 == 0 {
                call[..4].copy_from_slice(&4_u32.to_ne_bytes());
                call[4..8].copy_from_slice(&0_u32.to_ne_bytes());
            }
            if call.len() >= DATA_SIZE_AT + 4 && claim & 2 == 0 {
                let room = (call.len() + usize::from(claim >> 2) * 8) as u32;
                let at = DATA_SIZE_AT;
                call[at..at + 4].copy_from_slice(&room.to_ne_bytes());
            }
        }
        check(&model, TYPE | u32::from(*command), &call);
    }
}

fn check(model: &Model, command: u32, call: &[u8]) {
    let before = model.changes();
    let Outcome { errno, bytes, why } = run(command, call, model, &mut AskModel(model));
    assert_eq!(errno != 0, why.is_some(), "an error says why");
    if errno != 0 {
        assert_eq!(model.changes(), before, "a call that failed changed something");
        assert!(bytes.is_empty() || bytes.len() == VERSION_LEN_BYTES, "more than a version back");
        return;
    }
    let room = call.get(DATA_SIZE_AT..DATA_SIZE_AT + 4);
    let room = room.map_or(0, |room| u32::from_ne_bytes([room[0], room[1], room[2], room[3]]));
    assert!(bytes.len() <= (room as usize).max(VERSION_LEN_BYTES), "more back than there is room");
}
