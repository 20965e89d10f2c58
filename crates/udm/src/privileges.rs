//! What a daemon may do, and the end of what it need not.
//!
//! At its start, before there is a second thread, a daemon gives up every capability that no part
//! of it uses ([`NEEDED`] says which part uses which), for good: also programs it might be made to
//! run cannot have them back. A daemon without capabilities has nothing to give up and changes
//! nothing, so that it can still ask the set-uid `fusermount3`.
//!
//! The tricky case is a container that gives root only some capabilities: what is kept is never
//! more than there is, and not being allowed to empty the bounding set is no failure, since
//! `no_new_privs` closes the same door.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use udm_control::errno;
use udm_core::error::{ErrorCode, UserError};

/// What parts of a daemon use, if they have it. The unit in `packaging/` allows the same.
const NEEDED: [CapabilitySet; 6] = [
    // Mounts of FUSE exports, ublk disks.
    CapabilitySet::SYS_ADMIN,
    // More open files; lanes that file systems may wait for (`PR_SET_IO_FLUSHER`).
    CapabilitySet::SYS_RESOURCE,
    // Files below that belong to others, as root expects: to open them, to change their mode.
    CapabilitySet::DAC_OVERRIDE,
    CapabilitySet::FOWNER,
    // The memory of rings, on kernels that count it.
    CapabilitySet::IPC_LOCK,
    // NBD on a port below 1024.
    CapabilitySet::NET_BIND_SERVICE,
];

/// How much a daemon keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// What some front may need.
    Needed,
    /// Nothing: no mounts, no disks of the kernel.
    Nothing,
}

impl Keep {
    fn set(self) -> CapabilitySet {
        match self {
            Keep::Needed => NEEDED.into_iter().collect(),
            Keep::Nothing => CapabilitySet::empty(),
        }
    }
}

/// Gives up what is not kept. Call it before there are threads: each has its own.
///
/// # Errors
/// The kernel's; then the daemon must not go on as if it had.
pub(crate) fn give_up(keep: Keep) -> Result<(), UserError> {
    drop_all_but(keep.set())
        .map_err(|error| errno::system(ErrorCode::Internal, "give up privileges", &error.into()))
}

fn drop_all_but(keep: CapabilitySet) -> Result<(), Errno> {
    let now = capabilities(None)?;
    if now.permitted.is_empty() {
        return Ok(());
    }
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        // Numbers beyond the kernel's last are refused.
        if keep.contains(one) || !matches!(capability_is_in_bounding_set(one), Ok(true)) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            Ok(()) | Err(Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    let kept = now.permitted & keep;
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    set_no_new_privs(true)
}

/// Tells the kernel that file systems may depend on this thread and those that it starts: none of
/// them waits for memory that only their own writes can free. That goes for threads that load
/// tables, too, since a device may be suspended meanwhile. Without the right to it (see [`NEEDED`])
/// things work as for any other program. Not for a program that starts others' programs.
pub(crate) fn serve_file_systems() {
    let _ = udm_driver::become_io_flusher();
}

#[cfg(test)]
mod tests {
    use super::{Keep, NEEDED, give_up};
    use rustix::thread::{CapabilitySet, capabilities, no_new_privs};

    #[test]
    fn the_unit_allows_what_is_needed_and_no_more() {
        let unit = include_str!("../../../packaging/udm.service");
        let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        let allowed: Vec<&str> = line.expect("it says").split(' ').collect();
        let needed: Vec<String> = NEEDED
            .iter()
            .flat_map(|one| one.iter_names().map(|(name, _)| format!("CAP_{name}")))
            .collect();
        assert_eq!(allowed, needed);
    }

    #[test]
    fn what_is_given_up_is_gone_and_what_is_needed_is_not() {
        // Capabilities are a thread's own, so this one ends with the test.
        let thread = std::thread::spawn(|| {
            let before = capabilities(None).expect("told").permitted;
            give_up(Keep::Needed).expect("given up");
            let after = capabilities(None).expect("told");
            assert_eq!(after.permitted, before & Keep::Needed.set());
            assert!(!after.permitted.contains(CapabilitySet::SYS_MODULE));
            assert_eq!(after.effective, after.permitted);
            assert_eq!(no_new_privs(), Ok(!before.is_empty()), "nothing to give up: unchanged");
            give_up(Keep::Nothing).expect("given up");
            assert!(capabilities(None).expect("told").permitted.is_empty());
        });
        thread.join().expect("passed");
    }
}
