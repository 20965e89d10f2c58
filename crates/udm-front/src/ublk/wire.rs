//! Every number and fixed structure of ublk that we use, nothing else.
//!
//! ublk is a conversation with the kernel of this very machine, so all numbers are in its own byte
//! order and structures have the layout of C. What is called ublk's "legacy" encoding is not used.
//! The words are the kernel's, from its interface description.
//!
//! The tricky case: the parameters have grown over the years. We send and ask for their first
//! [`PARAMS_BYTES`] bytes, which every kernel has.

use udm_types::Status;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The number of a command: whether the kernel reads as well as writes, its number, the size of
/// what goes with it.
const fn command(both_ways: bool, number: u32, bytes: u32) -> u32 {
    (if both_ways { 3 } else { 2 }) << 30 | bytes << 16 | (b'u' as u32) << 8 | number
}

/// Orders to the control device.
pub mod order {
    use super::command;
    /// Bytes of a control command.
    const BYTES: u32 = 32;
    /// Tells what the kernel knows of a device.
    pub const GET_INFO: u32 = command(false, 0x02, BYTES);
    /// Makes a device: from then on `/dev/ublkcN` is there.
    pub const ADD: u32 = command(true, 0x04, BYTES);
    /// Removes a device, and waits until nobody has `/dev/ublkcN` open.
    pub const DELETE: u32 = command(true, 0x05, BYTES);
    /// Makes the disk: from then on `/dev/ublkbN` is there.
    pub const START: u32 = command(true, 0x06, BYTES);
    /// Removes the disk; fails its I/O.
    pub const STOP: u32 = command(true, 0x07, BYTES);
    /// Tells the kernel what the disk is like.
    pub const SET_PARAMS: u32 = command(true, 0x08, BYTES);
    /// Asks for it, and for the disk's numbers.
    pub const GET_PARAMS: u32 = command(false, 0x09, BYTES);
    /// Takes up a device whose server has died.
    pub const START_RECOVERY: u32 = command(true, 0x10, BYTES);
    /// The disk goes on.
    pub const END_RECOVERY: u32 = command(true, 0x11, BYTES);
    /// Which features the kernel has (Linux 6.5).
    pub const GET_FEATURES: u32 = command(false, 0x13, BYTES);
    /// Another size (Linux 6.16).
    pub const UPDATE_SIZE: u32 = command(true, 0x15, BYTES);
}

/// Commands of a queue.
pub mod io {
    use super::command;
    /// Waits for the first request of a tag.
    pub const FETCH: u32 = command(true, 0x20, 16);
    /// Answers a request, and waits for the next one of the tag.
    pub const COMMIT_AND_FETCH: u32 = command(true, 0x21, 16);
    /// Names memory for the data of a write, and waits until it is there.
    pub const NEED_GET_DATA: u32 = command(true, 0x22, 16);
}

/// A command's result: there is a write, and its data wants memory ([`io::NEED_GET_DATA`]).
pub const RESULT_NEED_GET_DATA: u32 = 1;

/// Features of a device, and of a kernel.
pub mod feature {
    /// Memory for the data of a write is named when the write is there.
    pub const NEED_GET_DATA: u64 = 1 << 2;
    /// The device outlives its server.
    pub const USER_RECOVERY: u64 = 1 << 3;
    /// What a dead server had not answered is asked again.
    pub const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// It was made without root.
    pub const UNPRIVILEGED_DEV: u64 = 1 << 5;
    /// Commands are numbered as above.
    pub const CMD_IOCTL_ENCODE: u64 = 1 << 6;
    /// Data is copied by reading and writing `/dev/ublkcN`.
    pub const USER_COPY: u64 = 1 << 7;
    /// The size can change.
    pub const UPDATE_SIZE: u64 = 1 << 10;
    /// The kernel does not look for partitions when the disk starts.
    pub const NO_AUTO_PART_SCAN: u64 = 1 << 18;
}

/// What a device does.
pub mod state {
    /// There is no disk.
    pub const DEAD: u16 = 0;
    /// It runs.
    pub const LIVE: u16 = 1;
    /// Its server has died, and the disk waits for the next one.
    pub const QUIESCED: u16 = 2;
    /// Its server has died, and the disk fails all I/O meanwhile.
    pub const FAIL_IO: u16 = 3;
}

/// "No number yet".
pub const ANY_DEVICE: u32 = u32::MAX;
/// Devices there can be.
pub const DEVICES_MAX: u32 = 1 << 20;
/// Requests under way in one queue, at most.
pub const DEPTH_MAX: u16 = 4096;

/// What the kernel and we agree about a device.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceInfo {
    /// Queues.
    pub queues: u16,
    /// Requests under way in each, at most.
    pub depth: u16,
    /// See [`state`].
    pub state: u16,
    /// Zero.
    pub pad0: u16,
    /// The longest request.
    pub io_bytes_max: u32,
    /// Its number.
    pub device: u32,
    /// The process that serves it.
    pub server_pid: i32,
    /// Zero.
    pub pad1: u32,
    /// See [`feature`].
    pub features: u64,
    /// The server's own, kept by the kernel.
    pub server_word: u64,
    /// Who made it.
    pub owner_uid: u32,
    /// Of which group.
    pub owner_gid: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

/// Which parts of the parameters count.
pub mod part {
    /// [`super::BasicParams`].
    pub const BASIC: u32 = 1;
    /// [`super::DiscardParams`].
    pub const DISCARD: u32 = 2;
}

/// Attributes of a disk.
pub mod attribute {
    /// It cannot be written.
    pub const READ_ONLY: u32 = 1;
    /// Seeks are slow.
    pub const ROTATIONAL: u32 = 2;
    /// What is written needs a flush to be durable.
    pub const VOLATILE_CACHE: u32 = 4;
    /// Writes can be durable by themselves.
    pub const FUA: u32 = 8;
}

/// What every disk says of itself.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct BasicParams {
    /// See [`attribute`].
    pub attributes: u32,
    /// Logical block, as a power of two; so the next three.
    pub logical_block_shift: u8,
    /// Physical block.
    pub physical_block_shift: u8,
    /// Preferred I/O.
    pub io_opt_shift: u8,
    /// Preferred smallest I/O.
    pub io_min_shift: u8,
    /// The longest request.
    pub sectors_max: u32,
    /// I/O does not cross multiples of this; zero for none.
    pub chunk_sectors: u32,
    /// The size.
    pub len_sectors: u64,
    /// Zero.
    pub virt_boundary_mask: u64,
}

/// What a disk says of discards and write-zeroes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DiscardParams {
    /// Zero.
    pub alignment: u32,
    /// Smaller discards do nothing.
    pub granularity_bytes: u32,
    /// The longest discard; zero if there are none.
    pub discard_sectors_max: u32,
    /// The longest write-zeroes; zero if there are none.
    pub write_zeroes_sectors_max: u32,
    /// One.
    pub segments_max: u16,
    /// Zero.
    pub reserved: u16,
}

/// Numbers of the two device files; only read.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DeviceNumbers {
    /// Of `/dev/ublkcN`.
    pub char_major: u32,
    /// Of `/dev/ublkcN`.
    pub char_minor: u32,
    /// Of `/dev/ublkbN`; zero while there is no disk.
    pub disk_major: u32,
    /// Of `/dev/ublkbN`.
    pub disk_minor: u32,
}

/// The parameters, as far as we know them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Params {
    /// [`PARAMS_BYTES`].
    pub len_bytes: u32,
    /// See [`part`].
    pub parts: u32,
    /// Always there.
    pub basic: BasicParams,
    /// If the disk has any of it.
    pub discard: DiscardParams,
    /// Filled by the kernel.
    pub numbers: DeviceNumbers,
    /// The structure's end, as C pads it.
    pub pad: u32,
}

/// Bytes of [`Params`] that count.
pub const PARAMS_BYTES: usize = 76;

/// Operations of requests.
mod op {
    pub(super) const READ: u8 = 0;
    pub(super) const WRITE: u8 = 1;
    pub(super) const FLUSH: u8 = 2;
    pub(super) const DISCARD: u8 = 3;
    pub(super) const WRITE_ZEROES: u8 = 5;
}

/// Flags of requests.
mod request_flag {
    pub(super) const FUA: u32 = 1 << 13;
    pub(super) const NO_UNMAP: u32 = 1 << 15;
}

/// Bytes of a request's description.
pub const REQUEST_BYTES: usize = 24;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Fill its data.
    Read,
    /// Store its data.
    Write {
        /// Durable on completion.
        fua: bool,
    },
    /// Make all durable.
    Flush,
    /// Forget the range.
    Discard,
    /// Make the range read as zeroes.
    WriteZeroes {
        /// Keep the blocks.
        no_unmap: bool,
    },
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked.
    pub kind: RequestKind,
    /// Where.
    pub sector: u64,
    /// How much.
    pub len_sectors: u32,
}

impl Request {
    /// Reads a request's description. `None` for an operation that we do not know.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Request> {
        let [o0, o1, o2, o3, l0, l1, l2, l3, s0, s1, s2, s3, s4, s5, s6, s7, ..] = *bytes;
        let flags = u32::from_ne_bytes([o0, o1, o2, o3]);
        // The low byte.
        let kind = match (flags & 0xFF) as u8 {
            op::READ => RequestKind::Read,
            op::WRITE => RequestKind::Write { fua: flags & request_flag::FUA != 0 },
            op::FLUSH => RequestKind::Flush,
            op::DISCARD => RequestKind::Discard,
            op::WRITE_ZEROES => {
                RequestKind::WriteZeroes { no_unmap: flags & request_flag::NO_UNMAP != 0 }
            }
            _ => return None,
        };
        let len_sectors = u32::from_ne_bytes([l0, l1, l2, l3]);
        let sector = u64::from_ne_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        Some(Request { kind, sector, len_sectors })
    }
}

/// What goes with a command of a queue.
pub fn io_words(queue: u16, tag: u16, result: i32) -> [u8; 8] {
    let ([q0, q1], [t0, t1]) = (queue.to_ne_bytes(), tag.to_ne_bytes());
    let [r0, r1, r2, r3] = result.to_ne_bytes();
    [q0, q1, t0, t1, r0, r1, r2, r3]
}

/// Where in `/dev/ublkcN` the data of a request is.
pub fn data_at(queue: u16, tag: u16) -> u64 {
    0x8000_0000 + (u64::from(queue) << 41) + (u64::from(tag) << 25)
}

/// Where in `/dev/ublkcN` the requests of a queue are described, and in how many bytes.
pub fn requests_at(queue: u16, depth: u16) -> (u64, usize) {
    let page = 4096;
    let most = (usize::from(DEPTH_MAX) * REQUEST_BYTES).next_multiple_of(page);
    let len_bytes = (usize::from(depth) * REQUEST_BYTES).next_multiple_of(page);
    (u64::from(queue) * most as u64, len_bytes)
}

/// What the kernel says when there will be no more requests of a tag.
pub const ENODEV: i32 = 19;

/// Error numbers of answers, as Linux numbers them. The kernel makes its own status of each; it
/// knows those of the block layer and calls everything else an I/O error.
pub fn result_of(status: Status, len_bytes: i32) -> i32 {
    match status {
        Status::Ok => len_bytes,
        Status::NotSupported => -95,
        Status::Timeout => -110,
        Status::NoSpace => -28,
        Status::Transport => -67,
        Status::Target => -121,
        Status::Reservation => -52,
        Status::Medium => -61,
        Status::Protection => -84,
        Status::Resource => -12,
        Status::Invalid => -22,
        // The words for these would be taken for something to try again, or for the end of the
        // server.
        Status::DevResource
        | Status::Again
        | Status::Offline
        | Status::ReadOnly
        | Status::IoErr => -5,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        DeviceInfo, PARAMS_BYTES, Params, Request, RequestKind, data_at, io, io_words, order,
        requests_at, result_of,
    };
    use std::mem::offset_of;
    use udm_types::Status;

    #[test]
    fn structures_have_the_kernels_layout() {
        assert_eq!(size_of::<DeviceInfo>(), 64);
        assert_eq!(offset_of!(DeviceInfo, features), 24);
        assert_eq!(offset_of!(DeviceInfo, owner_uid), 40);
        assert_eq!(offset_of!(Params, basic.len_sectors), 24);
        assert_eq!(offset_of!(Params, discard), 40);
        assert_eq!(offset_of!(Params, numbers), 60);
        assert_eq!(offset_of!(Params, pad), PARAMS_BYTES);
    }

    #[test]
    fn commands_are_numbered_as_ioctls() {
        // Worked out by hand from the definition of such numbers.
        assert_eq!(order::ADD, 0xC020_7504);
        assert_eq!(order::GET_INFO, 0x8020_7502);
        assert_eq!(io::COMMIT_AND_FETCH, 0xC010_7521);
        assert_eq!(io::NEED_GET_DATA, 0xC010_7522);
    }

    #[test]
    fn requests_are_read_and_strangers_are_not() {
        let mut bytes = [0; 24];
        bytes[0..4].copy_from_slice(&(1_u32 | 1 << 13 | 1 << 11).to_ne_bytes());
        bytes[4..8].copy_from_slice(&8_u32.to_ne_bytes());
        bytes[8..16].copy_from_slice(&(1_u64 << 40).to_ne_bytes());
        let kind = RequestKind::Write { fua: true };
        assert_eq!(Request::parse(&bytes), Some(Request { kind, sector: 1 << 40, len_sectors: 8 }));
        bytes[0..4].copy_from_slice(&(5_u32 | 1 << 15).to_ne_bytes());
        let kind = RequestKind::WriteZeroes { no_unmap: true };
        assert_eq!(Request::parse(&bytes).map(|request| request.kind), Some(kind));
        bytes[0..4].copy_from_slice(&18_u32.to_ne_bytes());
        assert_eq!(Request::parse(&bytes), None);
    }

    #[test]
    fn places_in_the_device_file_do_not_overlap() {
        assert_eq!(requests_at(0, 128), (0, 4096));
        assert_eq!(requests_at(2, 4096), (2 * 98_304, 98_304));
        assert_eq!(data_at(0, 0), 0x8000_0000);
        assert_eq!(data_at(0, 1) - data_at(0, 0), 32 << 20);
        assert_eq!(data_at(1, 0), data_at(0, 0) + 65_536 * (32 << 20));
        assert_eq!(io_words(1, 2, -5)[4..], (-5_i32).to_ne_bytes());
    }

    #[test]
    fn an_error_is_never_taken_for_the_end() {
        assert_eq!(result_of(Status::Ok, 512), 512);
        for status in [Status::Offline, Status::Again, Status::DevResource, Status::IoErr] {
            assert_eq!(result_of(status, 512), -5);
        }
    }
}
