//! Sockets whose listener has died while the kernel still listens for it.
//!
//! A process that is killed with io_uring at work leaves its ring to a worker of the kernel, which
//! closes what operations were under way on, the listening sockets among them. Usually that takes a
//! moment; behind a file system that is slow to delete it was seen to take a quarter of an hour.
//! Until then connecting to such a socket works, and nobody ever answers.
//!
//! The kernel remembers which process began to listen. If that one is gone, so is whoever would
//! have accepted. Only for addresses that are known to have been our own: a program may begin to
//! listen and leave the socket to a child.
//!
//! The tricky case is a process that the kernel does not name (of another pid namespace: number 0),
//! or whose number has another owner by now: neither counts as gone.

use crate::sockets::lock_folder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::unlink;
use rustix::io::Errno as OsErrno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

/// Removes the file of a listening socket at `path` if the process that listened has ended. True
/// if it did; then the address is free.
///
/// For addresses only that a daemon of the caller's own state had: see above.
pub fn remove_orphan(path: &Path) -> bool {
    // As for every change of a socket's file: in turns.
    let _turn = lock_folder(path);
    let Ok(Some(pid)) = listener_of(path) else { return false };
    has_ended(pid) && unlink(path).is_ok()
}

/// The process that began to listen at a path; nothing if the kernel does not name it.
fn listener_of(path: &Path) -> Result<Option<Pid>, OsErrno> {
    let address = SocketAddrUnix::new(path)?;
    // Non-blocking: a full queue must not hold us up.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&probe, &address)?;
    Ok(peer_pid(&probe).and_then(Pid::from_raw))
}

/// The number of the process behind a connection; 0 if it has none here.
// rustix has this call, too, but its type for the answer has no room for a 0.
fn peer_pid(socket: &impl AsFd) -> Option<i32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len_bytes = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call; the kernel writes `len_bytes` bytes at most
    // to a place of that size, and any bytes are a valid `ucred`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len_bytes,
        )
    };
    (result == 0).then_some(peer.pid)
}

/// True if a process is gone, or dead and only not asked after yet.
fn has_ended(pid: Pid) -> bool {
    match pidfd_open(pid, PidfdFlags::empty()) {
        Err(error) => error == OsErrno::SRCH,
        // Readable once it has ended.
        Ok(process) => {
            let mut polled = [PollFd::new(&process, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            matches!(poll(&mut polled, Some(&now)), Ok(1..))
        }
    }
}
