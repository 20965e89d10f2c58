//! Listening sockets, outgoing connections, and the options of connections.
//!
//! Fronts and the control side listen with these, lower devices connect. The descriptors are closed
//! on exec; whether calls on them block is set by the driver that registers them, as that driver
//! needs.
//!
//! A unix socket is a file, and two things about it are easy to get wrong:
//!
//! - *Its mode.* The file takes the mode of the socket's own inode at the moment of `bind`, so
//!   the mode is set before, and there is no moment at which others could connect.
//! - *A file left by a dead daemon.* It is replaced only if connecting to it is refused, which
//!   only a socket without a listener answers. A live one, or a file of another kind, stays, and
//!   the answer is `EADDRINUSE`. Two daemons that start at once take turns by a lock on the
//!   folder, so neither removes the other's fresh socket.

use rustix::fs::{
    FileType, FlockOperation, Mode, OFlags, chmod, fchmod, flock, lstat, open, unlink,
};
use rustix::io::Errno as OsErrno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getsockname, listen,
    socket_with, sockopt,
};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use udm_lane::{Errno, PeerAddress};

/// Mode of a unix socket unless the user wants another: its owner only.
pub const SOCKET_MODE_DEFAULT: u32 = 0o600;

/// Connections waiting to be accepted; the kernel's own usual limit (`somaxconn`).
const LISTEN_BACKLOG: i32 = 4096;

/// Wish for a unix connection's buffers, so that a large request or reply goes in one piece. The
/// kernel cuts it to its limit (`wmem_max`). TCP grows its buffers by itself and is left alone.
const UNIX_BUFFER_BYTES: usize = 4 << 20;

/// Listens on a unix socket at `path`, whose file gets exactly `mode`.
///
/// # Errors
/// `EADDRINUSE` if somebody listens there or the path is something else than a socket;
/// `ENAMETOOLONG` beyond 107 bytes; or the kernel's.
pub fn listen_unix(path: &Path, mode: u32) -> Result<OwnedFd, Errno> {
    listen_unix_os(path, Mode::from_raw_mode(mode & 0o777)).map_err(errno)
}

fn listen_unix_os(path: &Path, mode: Mode) -> Result<OwnedFd, OsErrno> {
    let address = SocketAddrUnix::new(path)?;
    let socket = stream_socket(AddressFamily::UNIX)?;
    fchmod(&socket, mode)?;
    // Held from before the bind until the socket listens: in between it looks like a dead one.
    let _turn = lock_folder(path);
    match bind(&socket, &address) {
        Ok(()) => {}
        Err(OsErrno::ADDRINUSE) => {
            remove_dead_socket(path, &address)?;
            bind(&socket, &address)?;
        }
        Err(error) => return Err(error),
    }
    // The umask may have taken bits away; it never adds any.
    if Mode::from_raw_mode(lstat(path)?.st_mode) & Mode::from_raw_mode(0o777) != mode {
        chmod(path, mode)?;
    }
    listen(&socket, LISTEN_BACKLOG)?;
    Ok(socket)
}

/// Waits for our turn in the socket's folder. Everyone holds it for an instant only. None for a
/// folder we may not read: then there is no turn to take, and no other daemon of this kind.
pub(crate) fn lock_folder(path: &Path) -> Option<OwnedFd> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = open(folder, flags, Mode::empty()).ok()?;
    flock(&fd, FlockOperation::LockExclusive).ok()?;
    Some(fd)
}

fn remove_dead_socket(path: &Path, address: &SocketAddrUnix) -> Result<(), OsErrno> {
    if FileType::from_raw_mode(lstat(path)?.st_mode) != FileType::Socket {
        return Err(OsErrno::ADDRINUSE);
    }
    // Non-blocking: a live listener with a full queue must not hold us up.
    let probe = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    match connect(&probe, address) {
        Err(OsErrno::CONNREFUSED) => unlink(path),
        _ => Err(OsErrno::ADDRINUSE),
    }
}

/// Listens on a TCP address. Port zero takes a free one; the address listened on is returned.
///
/// # Errors
/// The kernel's, `EADDRINUSE` above all.
pub fn listen_tcp(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), Errno> {
    listen_tcp_os(address).map_err(errno)
}

fn listen_tcp_os(address: SocketAddr) -> Result<(OwnedFd, SocketAddr), OsErrno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = stream_socket(family)?;
    // Lets a daemon listen again while connections of the one before it still linger.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &address)?;
    listen(&socket, LISTEN_BACKLOG)?;
    let bound = SocketAddr::try_from(getsockname(&socket)?)?;
    Ok((socket, bound))
}

/// Makes a stream socket and begins to connect it, without waiting: the connection may stand only
/// later, and sends and receives tell how it went. The socket is non-blocking and tuned.
///
/// # Errors
/// The kernel's, if it refuses at once.
pub fn begin_connect(peer: &PeerAddress) -> Result<OwnedFd, Errno> {
    begin_connect_os(peer).map_err(errno)
}

fn begin_connect_os(peer: &PeerAddress) -> Result<OwnedFd, OsErrno> {
    let family = match peer {
        PeerAddress::Unix(_) => AddressFamily::UNIX,
        PeerAddress::Tcp(SocketAddr::V4(_)) => AddressFamily::INET,
        PeerAddress::Tcp(SocketAddr::V6(_)) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    tune_connection(&socket);
    let begun = match peer {
        PeerAddress::Unix(path) => connect(&socket, &SocketAddrUnix::new(path.as_slice())?),
        PeerAddress::Tcp(address) => connect(&socket, address),
    };
    match begun {
        // A signal does not stop a connect that has begun.
        Ok(()) | Err(OsErrno::INPROGRESS | OsErrno::INTR) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Sets what a connection should have: no delay on TCP, larger buffers on unix sockets. Wishes,
/// so nothing is returned; without them the connection works, only slower.
pub fn tune_connection(socket: impl AsFd) {
    match sockopt::socket_domain(&socket) {
        Ok(AddressFamily::UNIX) => {
            let _ = sockopt::set_socket_send_buffer_size(&socket, UNIX_BUFFER_BYTES);
            let _ = sockopt::set_socket_recv_buffer_size(&socket, UNIX_BUFFER_BYTES);
        }
        // Replies are sent in batches already; holding back the last one would only delay it.
        Ok(_) => {
            let _ = sockopt::set_tcp_nodelay(&socket, true);
        }
        Err(_) => {}
    }
}

fn stream_socket(family: AddressFamily) -> Result<OwnedFd, OsErrno> {
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

fn errno(error: OsErrno) -> Errno {
    Errno(error.raw_os_error())
}
