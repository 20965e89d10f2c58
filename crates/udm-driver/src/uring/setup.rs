//! Making a ring: the flags, the file table, and what the kernel must be able to do.
//!
//! Called once a lane, on the lane's own thread, because the ring belongs to the thread that made
//! it (`SINGLE_ISSUER`). Newer kernels get the flags that make batching cheap; older ones get a
//! ring with fewer, and what is missing is remembered in [`Abilities`]:
//!
//! | kernel | flags |
//! |---|---|
//! | 6.1 | `SINGLE_ISSUER`, `DEFER_TASKRUN`: completion work runs only when the lane asks for it |
//! | 5.19 | `COOP_TASKRUN`: no interrupts sent to the lane's thread |
//! | 5.13 | none; the oldest accepted (multishot poll, `EXT_ARG` timeouts, `NODROP`) |
//!
//! The last step is one NOP through the whole path, since some sandboxes let a ring be made but
//! not entered. Anything that fails here is a reason to use the portable driver, so each failure
//! says which step it was.

use super::DriverError;
use super::Ring;
use io_uring::{Probe, opcode};
use udm_lane::Errno;

/// Entries of the submission queue. A lane's turn seldom starts more operations than this; what
/// goes beyond waits in the driver's backlog. 1024 entries cost 128 KiB a lane: each has 128 bytes,
/// since the commands of FUSE need more room than the usual 64.
const SQ_ENTRIES: u32 = 1024;

/// Entries of the completion queue: four times as many, since operations of several turns (and
/// receives that wait for ever) are in flight together. 64 KiB a lane. If it overflows even so,
/// the kernel keeps the rest aside (`NODROP`) and `wait` fetches it.
const CQ_ENTRIES: u32 = 4 * SQ_ENTRIES;

/// Slots of the ring's own file table; saves a reference count on the descriptor with every
/// operation. 4096 cover the devices and connections of a lane; handles beyond use plain
/// descriptors. 32 KiB a lane.
const FIXED_FILES: u32 = 4096;

/// What this kernel's ring can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    /// Slots in the file table; zero if there is none.
    pub(crate) fixed_files: u32,
    /// One accept operation delivers many connections.
    pub(crate) multishot_accept: bool,
    /// An operation can be told not to report success.
    pub(crate) skips_success: bool,
    /// The flags of the best rung of the ladder that the kernel took, for the report.
    pub(crate) flavour: &'static str,
}

/// How much of the kernel to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// Everything it has.
    Current,
    /// Only what the oldest accepted kernel has; the tests run on this, too.
    Oldest,
}

/// Makes a ring and tries it.
pub(crate) fn open_ring(age: Age) -> Result<(Ring, Abilities), DriverError> {
    let (mut ring, flavour) = match age {
        Age::Current => build()?,
        Age::Oldest => (build_plain()?, "plain"),
    };
    let params = ring.params();
    if !(params.is_feature_nodrop()
        && params.is_feature_ext_arg()
        && params.is_feature_resource_tagging())
    {
        return Err(DriverError::refused("features of Linux 5.13", Errno(libc::ENOSYS)));
    }
    let skips_success = params.is_feature_skip_cqe_on_success();
    let multishot_accept = check_operations(&ring)?;
    no_operation(&mut ring)?;
    if age == Age::Oldest {
        let abilities =
            Abilities { fixed_files: 0, multishot_accept: false, skips_success: false, flavour };
        return Ok((ring, abilities));
    }
    let fixed_files = register_table(&ring);
    Ok((ring, Abilities { fixed_files, multishot_accept, skips_success, flavour }))
}

fn build() -> Result<(Ring, &'static str), DriverError> {
    let deferred = Ring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(CQ_ENTRIES)
        .build(SQ_ENTRIES);
    match deferred {
        Ok(ring) => return Ok((ring, "deferred task run")),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        Err(error) => return Err(DriverError::refused_by("io_uring_setup", &error)),
    }
    let cooperative = Ring::builder()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(CQ_ENTRIES)
        .build(SQ_ENTRIES);
    if let Ok(ring) = cooperative {
        return Ok((ring, "cooperative task run"));
    }
    build_plain().map(|ring| (ring, "plain"))
}

fn build_plain() -> Result<Ring, DriverError> {
    Ring::builder()
        .setup_cqsize(CQ_ENTRIES)
        .build(SQ_ENTRIES)
        .map_err(|error| DriverError::refused_by("io_uring_setup", &error))
}

/// Asks the kernel for the operations used. True if it also has multishot accept.
fn check_operations(ring: &Ring) -> Result<bool, DriverError> {
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| DriverError::refused_by("IORING_REGISTER_PROBE", &error))?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::Recv::CODE,
        opcode::Send::CODE,
        opcode::SendMsg::CODE,
        opcode::Accept::CODE,
        opcode::AsyncCancel::CODE,
        opcode::PollAdd::CODE,
    ];
    if !needed.iter().all(|&code| probe.is_supported(code)) {
        return Err(DriverError::refused("an operation it needs", Errno(libc::ENOSYS)));
    }
    // Multishot accept has no code of its own; it came with Linux 5.19, as this operation did.
    Ok(probe.is_supported(opcode::Socket::CODE))
}

fn no_operation(ring: &mut Ring) -> Result<(), DriverError> {
    // SAFETY: a NOP refers to no memory.
    let pushed = unsafe { ring.submission().push(&opcode::Nop::new().build().into()) };
    pushed.expect("invariant: the queue of a new ring has room");
    ring.submit_and_wait(1).map_err(|error| DriverError::refused_by("io_uring_enter", &error))?;
    let result = ring.completion().next().map(|entry| entry.result());
    match result {
        Some(0) => Ok(()),
        Some(error) => Err(DriverError::refused("a no-operation", Errno(-error))),
        None => Err(DriverError::refused("a no-operation", Errno(libc::EIO))),
    }
}

/// Registers an empty file table as large as the kernel allows (it may not exceed `nofile`).
fn register_table(ring: &Ring) -> u32 {
    let submitter = ring.submitter();
    for count in [FIXED_FILES, 1024, 256] {
        if submitter.register_files_sparse(count).is_ok() {
            return count;
        }
        // Before Linux 5.19 an empty table is a list of minus ones.
        if submitter.register_files(&vec![-1; count as usize]).is_ok() {
            return count;
        }
    }
    0
}
